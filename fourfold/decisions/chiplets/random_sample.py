"""Random search: random partitions made valid by the propagator, the best of them (the baseline of Xie et al., MLSys 2022).

Half of them are drawn by SAMPLE with uniform chances, as the paper does; since those fill the first chips with single ops where a graph is long, the
other half cut the order of the ops at random and are repaired by FIX.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._random import drawn
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.problem import Budget, Solver, SolverAnswer


class RandomSample(Solver):
    title = "Random partitions made valid (random + SAMPLE)"
    lever = "machine"
    answers = "chiplets"
    cites = ("xie2022",)
    needs = ("numba",)
    counts = "partitions priced"

    def solve(self, problem: ChipletPartition, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        rng, sampler, found, k = np.random.default_rng(seed), Sampler(problem), PartitionEvaluator(problem, budget), 0
        while not found.over or k == 0:
            found.price(drawn(sampler, k, rng))
            k += 1
        return SolverAnswer(found.answer(), evidence={"trace": found.trace})
