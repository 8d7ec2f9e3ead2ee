"""What runs when nobody decides: ops one by one in topological order, first come first served, all on the fastest device that holds them.

Frameworks do this without a placement; it is the default that GO (Zhou et al. 2020) is compared with.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.schedule._parts import PartitionTasks, alone, fit
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.problem import Budget, Solver, SolverAnswer


class Default(Solver):
    """No fusion; first the fastest device alone; where it lacks memory or an op the next; where none suffices, spread in topological order."""

    title: ClassVar[str] = "Default: no fusion, the fastest device that holds it, first come first served"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("zhou2020go",)
    counts: ClassVar[str] = "plans priced"

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        work = PartitionTasks.of(problem, alone(problem))
        count, devices = len(work.tasks), len(problem.system)
        order = -np.arange(count, dtype=np.float64)
        total = work.plain.seconds.sum(0)
        for device in np.argsort(total, kind="stable"):
            place = np.full(count, device) if problem.place is None else work.forced
            budget.spend()
            if np.isfinite(total[device]) or problem.place is not None:
                _, over = work.over(place, order)
                if not over.any():
                    return SolverAnswer(work.answer(place, order))
        cheapest = np.where(work.unit_able, 0, devices) + np.arange(devices)

        def first(work: PartitionTasks, factor: float) -> tuple[np.ndarray, np.ndarray]:
            return cheapest.argmin(1)[work.unit] if problem.place is None else work.forced, order

        return SolverAnswer(work.answer(*fit(work, first, (1.0,))), note="No single device holds the whole; ops are spread.")
