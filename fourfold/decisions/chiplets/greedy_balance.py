"""Greedy balance: in the order of the ops, the next chip begins when this one has its even share, made valid by FIX (stages of equal size, as
pipelines of layers are cut by default; Narayanan et al., SOSP 2019).

An even share of K chips, for every K from all chips down: fewer stages are better where the rules allow no more, or where sending is dear.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.problem import Budget, Solver, SolverAnswer


class GreedyBalance(Solver):
    title = "Even shares in the order of the ops, made valid"
    lever = "machine"
    answers = "chiplets"
    cites = ("narayanan2019", "xie2022")
    needs = ("numba",)
    counts = "partitions priced"

    def solve(self, problem: ChipletPartition, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        sampler, found = Sampler(problem), PartitionEvaluator(problem, budget)
        seconds = problem.workload.seconds
        middle = (np.cumsum(seconds) - seconds / 2) / max(float(seconds.sum()), 1e-30)
        for stages in range(problem.package.chips, 0, -1):
            found.price(sampler.fix(np.minimum((middle * stages).astype(np.int64), stages - 1)))
            if found.over:
                break
        return SolverAnswer(found.answer(), evidence={"trace": found.trace})
