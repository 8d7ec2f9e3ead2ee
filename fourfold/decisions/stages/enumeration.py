"""Every pipeline there is, tried in turn: what a dynamic programme is checked against (brute force, as in Knuth 1975's estimates of its size)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from fourfold.decisions.stages._short import nothing_fits
from fourfold.decisions.stages.problem import StageConstruction, Stages
from fourfold.problem import Budget, Solver, SolverAnswer

_MOST = 8                                                               # layers


class Enumeration(Solver):
    title: ClassVar[str] = "Every cut into stages with every submesh"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "stages"
    cites: ClassVar[tuple[str, ...]] = ("knuth1975",)
    gives: ClassVar[tuple[str, ...]] = ("optimum", "bound")
    counts: ClassVar[str] = "pipelines priced"

    def declines(self, problem: StageConstruction) -> str | None:
        count = len(problem.table.layers)
        return f"there are {count} layers, and it tries all cuts of {_MOST} at most" if count > _MOST else None

    def solve(self, problem: StageConstruction, budget: Budget, seed: int = 0) -> SolverAnswer[Stages]:
        """The cheapest of all, or of those seen when the budget ended. Raises Infeasible where none fits."""
        best, cheapest, whole = None, np.inf, True
        for first, config in _pipelines(problem, 0, problem.devices):
            answer = Stages(np.array(first), np.array(config))
            if not problem.violations(answer) and (cost := problem.cost(answer)) < cheapest:
                best, cheapest = answer, cost
            if not budget.spend() and best is not None:
                whole = False
                break
        if best is None:
            raise nothing_fits(problem)
        return SolverAnswer(best, bound=cheapest if whole else None)


def _pipelines(problem: StageConstruction, layer: int, devices: int) -> Iterator[tuple[list[int], list[int]]]:
    table, count = problem.table, len(problem.table.layers)
    if layer == count:
        yield [], []
        return
    for last in range(layer, count):
        for c in range(len(table.configs)):
            if table.devices[c] <= devices and np.isfinite(table.seconds[c, layer, last]):
                for first, config in _pipelines(problem, last + 1, devices - int(table.devices[c])):
                    yield [layer, *first], [c, *config]
