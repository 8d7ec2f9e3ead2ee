"""Critical path on a processor: the tasks of the critical path all go to the one device that runs them soonest, the others where they end first.

Topcuoglu, Hariri and Wu (2002), eq. 10 and section 4.2. Fusion comes first (greedy producer–consumer); colocated tasks go together, and a device is
only taken where its memory is estimated to suffice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from fourfold.decisions.schedule._list import cpop
from fourfold.decisions.schedule._parts import PartitionTasks, fit, fuse
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.problem import Budget, Solver, SolverAnswer


def plan(work: PartitionTasks, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """(place, priority: the earlier it starts the higher)."""
    place, start, _, _ = cpop(replace(work.dag, held=work.held * factor), work.forced)
    return place, -start


class Cpop(Solver):
    """CPOP on fused tasks."""

    title: ClassVar[str] = "CPOP: critical path on a processor, with insertion"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("topcuoglu2002",)
    counts: ClassVar[str] = "plans"

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        work = PartitionTasks.of(problem, fuse(problem))
        budget.spend()
        return SolverAnswer(work.answer(*fit(work, plan)))
