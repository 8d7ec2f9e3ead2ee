"""Prices of partitions while a technique searches: each costs one evaluation of the budget, and the compiler's price where there is a compiler."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.errors import Infeasible
from fourfold.problem import Budget


class PartitionEvaluator:
    """Prices partitions that keep the rules, remembers the `best` and a `trace` of (evaluations spent, least cost so far, s) at each improvement."""

    def __init__(self, problem: ChipletPartition, budget: Budget) -> None:
        self.problem, self.budget = problem, budget
        self.best: np.ndarray | None = None
        self.cost = math.inf
        self.trace: list[tuple[int, float]] = []

    @property
    def over(self) -> bool:
        return self.budget.exhausted

    def price(self, chip: np.ndarray | None) -> float:
        """Seconds of the slowest stage; inf where there is no partition (None: a search for one that failed) or the compiler refuses it."""
        problem = self.problem
        self.budget.spend(1 + (problem.price if problem.compiler is not None and chip is not None else 0))
        if chip is None or problem.compiler is not None and problem.compiler(np.array(chip)) is not None:
            return math.inf
        cost = price(problem, chip)
        if cost < self.cost:
            self.best, self.cost = np.array(chip, np.int16), cost
            self.trace.append((self.budget.spent, cost))
            self.budget.improve(cost)
        return cost

    def answer(self) -> np.ndarray:
        """The best partition. Raises Infeasible where none was found."""
        if self.best is None:
            raise Infeasible("No valid partition was found: the weights do not fit the chips, or the compiler refuses all.",
                             "Give more evaluations, chips with more memory, or a smaller model.")
        return self.best


def price(problem: ChipletPartition, chip: np.ndarray) -> float:
    """What `ChipletPartition.cost` counts, by a kernel."""
    w, p = problem.workload, problem.package
    return float(_price(np.asarray(chip, np.int64), w.seconds, w.base_seconds, w.maker, w.size, w.readers.ptr, w.readers.item, p.chips, p.latency,
                        p.rate, p.copies, p.lanes.ptr, p.lanes.item, p.lane_latency, p.lane_rate))


@njit(cache=True)
def _price(chip, seconds, base, maker, size, ptr, reader, chips, latency, rate, copies,   # type: ignore[no-untyped-def]
           lane_ptr, lane, lane_latency, lane_rate):
    stage, passing, used = np.zeros(chips), np.zeros(len(lane_rate)), np.zeros(chips, np.bool_)
    for v in range(len(chip)):
        stage[chip[v]] += seconds[v]
        used[chip[v]] = True
    for c in range(chips):
        if used[c]:
            stage[c] += base
    there = np.full(chips, -1, np.int64)
    for k in range(len(maker)):
        a = chip[maker[k]]
        there[a] = k
        for e in range(ptr[k], ptr[k + 1]):
            c = chip[reader[e]]
            if there[c] == k:
                continue
            there[c] = k
            if copies[a, c]:
                stage[a] += latency[a, c] + size[k] / rate[a, c]
            for i in range(lane_ptr[a * chips + c], lane_ptr[a * chips + c + 1]):
                passing[lane[i]] += lane_latency[lane[i]] + size[k] / lane_rate[lane[i]]
    return max(stage.max(), passing.max())
