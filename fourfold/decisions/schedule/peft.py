"""Predict earliest finish time: like HEFT, but a device is judged by the end there plus the best that can follow, by a table of optimistic costs.

Arabnejad and Barbosa (2014), eq. 5 and algorithm 1. Fusion comes first (greedy producer–consumer); colocated tasks go together, and a device is
only taken where its memory is estimated to suffice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from fourfold.decisions.schedule._list import peft
from fourfold.decisions.schedule._parts import PartitionTasks, fit, fuse
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.problem import Budget, Solver, SolverAnswer


def plan(work: PartitionTasks, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """(place, priority: the earlier it starts the higher)."""
    place, start, _, _ = peft(replace(work.dag, held=work.held * factor), work.forced)
    return place, -start


class Peft(Solver):
    """PEFT on fused tasks."""

    title: ClassVar[str] = "PEFT: predict earliest finish time, with insertion"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("arabnejad2014",)
    counts: ClassVar[str] = "plans"

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        work = PartitionTasks.of(problem, fuse(problem))
        budget.spend()
        return SolverAnswer(work.answer(*fit(work, plan)))
