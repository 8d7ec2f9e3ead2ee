"""Data parallelism alone: every device holds the whole model and takes its share of each batch (Krizhevsky 2014, and before)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.stages._short import nothing_fits
from fourfold.decisions.stages.problem import StageConstruction, Stages
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


class DataParallel(Solver):
    title: ClassVar[str] = "One stage, data parallelism alone"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "stages"
    cites: ClassVar[tuple[str, ...]] = ("krizhevsky2014",)
    counts: ClassVar[str] = "configurations priced"

    def declines(self, problem: StageConstruction) -> str | None:
        return None if (problem.table.data & (problem.table.devices <= problem.devices)).any() else "the table has no data-parallel configuration"

    def solve(self, problem: StageConstruction, budget: Budget, seed: int = 0) -> SolverAnswer[Stages]:
        """The quickest that fits, on whatever number of devices. Raises Infeasible where the whole model fits no device."""
        table = problem.table
        found = [Stages(np.zeros(1, np.int64), np.array([c])) for c in np.flatnonzero(table.data & (table.devices <= problem.devices))]
        budget.spend(len(found))
        found = [answer for answer in found if not problem.violations(answer)]
        if not found:
            error = nothing_fits(problem)
            raise Infeasible(f"The whole model does not fit a device, so data parallelism cannot be. {error.message}", error.mend)
        return SolverAnswer(min(found, key=problem.cost))
