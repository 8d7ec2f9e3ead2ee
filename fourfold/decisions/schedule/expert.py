"""What a practised person does: fuse each op into its producer, split the layers into contiguous parts of equal time, backward ops beside their
forward.

The manual placements that HDP (Mirhoseini et al. 2018) and GO (Zhou et al. 2020) were compared with put whole layers on devices, balanced by eye.
Here the cuts are optimal for the slowest device within its memory, for every number of devices from one to all, over the whole and over each stack
(encoder, decoder) by itself as GNMT's authors placed theirs; the plan that simulates best is the answer.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np

from fourfold.decisions.schedule._parts import PartitionTasks, fit, fuse
from fourfold.decisions.schedule._split import blocks, split, split_stacks
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.problem import Budget, Solver, SolverAnswer


def plans(work: PartitionTasks) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(cost, place, priority) of every balanced split that holds its memory, cheapest first; order: the graph's."""
    order = -work.first.astype(np.float64)
    fastest = np.argsort(np.nan_to_num(work.plain.seconds, posinf=1e3).sum(0), kind="stable")
    by, found = blocks(work), []
    for used, way in itertools.product(range(1, len(fastest) + 1), (split, split_stacks)):
        for factor in (1.0, 1.4):
            place = way(work, sorted(fastest[:used].tolist()), factor, by) if work.problem.place is None else work.forced
            if place is None:
                break
            cost, over = work.over(place, order)
            if not over.any():
                found.append((cost, place, order))
                break
    return sorted(found, key=lambda one: one[0])


class Expert(Solver):
    """Layer-wise balanced contiguous splits; producer–consumer fusion."""

    title: ClassVar[str] = "Expert: layers split evenly, backward beside forward, producers fused with consumers"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("mirhoseini2018hdp", "zhou2020go")
    counts: ClassVar[str] = "splits priced"

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        work = PartitionTasks.of(problem, fuse(problem))
        found = plans(work)
        budget.spend(max(1, len(found)))
        if found:
            return SolverAnswer(work.answer(*found[0][1:]))
        order, by, devices = -work.first.astype(np.float64), blocks(work), list(range(len(problem.system)))

        def whole(work: PartitionTasks, factor: float) -> tuple[np.ndarray, np.ndarray]:
            place = split(work, devices, factor, by) if problem.place is None else work.forced
            return np.full(len(order), -1) if place is None else place, order

        return SolverAnswer(work.answer(*fit(work, whole)))
