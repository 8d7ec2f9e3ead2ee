"""Simulated annealing over partitions, each made valid by the propagator (a baseline of Xie et al., MLSys 2022; Kirkpatrick et al., Science 1983).

It begins with a random partition. A move shifts a boundary between two chips at a random op, or one op; FIX makes the result valid.
"""

from __future__ import annotations

import math

import numpy as np

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._moves import anneal
from fourfold.decisions.chiplets._random import drawn
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.problem import Budget, Solver, SolverAnswer

_STARTS = 0.1                                                           # share of the evaluations spent on random partitions to begin with


class AnnealSample(Solver):
    title = "Annealing over partitions made valid (annealing + SAMPLE)"
    lever = "machine"
    answers = "chiplets"
    cites = ("xie2022", "kirkpatrick1983")
    needs = ("numba",)
    counts = "partitions priced"

    def solve(self, problem: ChipletPartition, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        rng, sampler, found, k = np.random.default_rng(seed), Sampler(problem), PartitionEvaluator(problem, budget), 0
        while k == 0 or not found.over and (k < min(1000, _STARTS * budget.evaluations) or math.isinf(found.cost) and k < 1000):
            found.price(drawn(sampler, k, rng))
            k += 1
        if found.best is not None:
            anneal(found, sampler, found.best, found.cost, rng)
        return SolverAnswer(found.answer(), evidence={"trace": found.trace})
