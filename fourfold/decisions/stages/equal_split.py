"""The pipeline that people write by hand: S stages of equally many layers, each on a submesh of one kind (Megatron-LM: Narayanan et al., SC 2021).

All S and all configurations are tried, and the cheapest that fits stands: the best uniform plan. Layers that are left over go to the first stages.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.stages._short import nothing_fits
from fourfold.decisions.stages.problem import StageConstruction, Stages
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


class EqualSplit(Solver):
    title: ClassVar[str] = "Stages of equally many layers on equal submeshes"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "stages"
    cites: ClassVar[tuple[str, ...]] = ("narayanan2021megatron",)
    counts: ClassVar[str] = "pipelines priced"

    def solve(self, problem: StageConstruction, budget: Budget, seed: int = 0) -> SolverAnswer[Stages]:
        """Raises Infeasible where no equal split fits."""
        table, count = problem.table, len(problem.table.layers)
        best, cheapest = None, np.inf
        for stages in range(1, min(count, problem.devices) + 1):
            length = np.full(stages, count // stages)
            length[: count % stages] += 1
            first = np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64)
            for c in range(len(table.configs)):
                answer = Stages(first, np.full(stages, c))
                budget.spend()
                if int(table.devices[c]) * stages <= problem.devices and not problem.violations(answer) and (cost := problem.cost(answer)) < cheapest:
                    best, cheapest = answer, cost
        if best is None:
            error = nothing_fits(problem)
            raise Infeasible(f"No equal split into stages fits. {error.message}", error.mend)
        return SolverAnswer(best)
