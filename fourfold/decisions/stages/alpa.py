"""Alpa's dynamic programme over stages and submeshes (Zheng et al., OSDI 2022, section 5; the formula as its code has it), exact for the table.

    F(s, k, d; t_max) = min over i ≥ k and configurations with t ≤ t_max and memory for s stages from here to the last of  t(k..i) + F(s−1, i+1, d−n)
    T* = min over t_max of [ min_s F(s, 0, D; t_max) + (B − 1) · (largest stage used) ]
Every stage time of the table is a t_max, none is skipped; the least with an answer is found by bisection, and the sweep ends when no larger t_max
can pay.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.stages import _kernel as kernel
from fourfold.decisions.stages._short import nothing_fits
from fourfold.decisions.stages.problem import StageConstruction, Stages
from fourfold.problem import Budget, Solver, SolverAnswer

_CHUNK = 64                                                             # values of t_max between two looks at the clock


class Alpa(Solver):
    title: ClassVar[str] = "Dynamic programme over stages and submeshes (Alpa)"
    default: ClassVar[bool] = True
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "stages"
    cites: ClassVar[tuple[str, ...]] = ("zheng2022alpa",)
    gives: ClassVar[tuple[str, ...]] = ("optimum", "bound")
    counts: ClassVar[str] = "largest stage times tried"

    def solve(self, problem: StageConstruction, budget: Budget, seed: int = 0) -> SolverAnswer[Stages]:
        """The cheapest pipeline of the table, with its cost as bound where the sweep ended by itself. Raises Infeasible where nothing fits."""
        table, count = problem.table, len(problem.table.layers)
        own = np.flatnonzero(table.devices <= problem.devices)
        most = problem.most_flights[own]
        t = np.where(most >= 1, table.seconds[own], np.inf)
        n, stages = table.devices[own].astype(np.int64), min(count, problem.devices)
        finite = np.isfinite(t)
        free = bool((most[finite] >= min(stages, problem.microbatches)).all())
        values = np.unique(t[finite])
        at = kernel.least_max(t, n, most, problem.devices, stages, values, free) if values.size else 0
        if at >= len(values):
            raise nothing_fits(problem)
        best, first, config, done, tried = np.inf, np.zeros(0, np.int64), np.zeros(0, np.int64), False, 0
        ends = np.array([problem.microbatches - 1, _CHUNK, _least_sum(t)], np.float64)
        while not done and at < len(values):
            found = kernel.sweep(t, n, most, problem.devices, stages, ends, values, free, at)
            if found[2] < best:
                first, config, best = found[0], own[found[1]], float(found[2])
            at, tried, done = at + int(found[3]), tried + int(found[3]), bool(found[4])
            if not budget.spend(int(found[3])) and len(first) and not done:
                return SolverAnswer(Stages(first, config), note=f"The budget ended the sweep after {tried:,} of {len(values):,} stage times.")
        return SolverAnswer(Stages(first, config), bound=best)


def _least_sum(t: np.ndarray) -> float:
    """The least Σ t of any chain of runs, whatever devices it takes."""
    quickest, count = t.min(axis=0), t.shape[1]
    least = np.zeros(count + 1)
    for k in range(count - 1, -1, -1):
        least[k] = (quickest[k, k:] + least[k + 1 :]).min()
    return float(least[0])
