"""What a decision is worth: the plan once more with that one decision taken back and all else as it is, by the same simulator.

Where the objective is latency the difference is told apart by the chain that ends last: from the last task back, each moment of the step is one in
which that chain computes, waits for a device that is busy with something else (queueing), is on its way between devices (transfer), or waits for a
link (contention). The four add up to the makespan, so their differences add up to what the decision saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from fourfold.cost.simulate import Arrays, Played, arrays, play

if TYPE_CHECKING:
    from fourfold.decisions.schedule.problem import Answer, Schedule

PARTS = ("computing", "queueing", "transfer", "contention")


@dataclass(frozen=True)
class SimulatedPlan:
    """One simulated plan: `cost` in the problem's unit, `makespan` s, `parts` s of the chain that ends last (in the order of `PARTS`), bytes by which
    each device passes its limit [D].
    """

    cost: float
    makespan: float
    parts: np.ndarray
    over: np.ndarray


@dataclass(frozen=True, eq=False)
class Simulated:
    """A plan that can be simulated with other places, priorities or times of its tasks."""

    problem: Schedule
    answer: Answer

    @cached_property
    def given(self) -> tuple[Any, np.ndarray, np.ndarray, Arrays]:
        """(tasks, place i2[T], priority f8[T], arrays)."""
        tasks, place, priority = self.problem.of_tasks(self.answer)
        return tasks, place, priority, arrays(tasks, self.problem.system)

    @cached_property
    def plan(self) -> SimulatedPlan:
        return self()

    @cached_property
    def alone(self) -> np.ndarray:
        """f8[T, D] s of each task if its ops ran one after the other, each by itself."""
        tasks = self.given[0]
        total = np.zeros_like(tasks.seconds)
        np.add.at(total, tasks.group, self.problem.seconds)
        return total

    def __call__(self, place: np.ndarray | None = None, priority: np.ndarray | None = None, seconds: np.ndarray | None = None) -> SimulatedPlan:
        tasks, own, order, plain = self.given
        if seconds is not None:
            plain = plain._replace(seconds=np.ascontiguousarray(seconds))
        where = own if place is None else place.astype(np.int16)
        run = play(plain, where, order if priority is None else priority, False, False)
        return SimulatedPlan(self.problem.figure(run), float(run.makespan), parts(plain, where, run), np.maximum(run.peak - plain.limit, 0.0))


def parts(plain: Arrays, place: np.ndarray, run: Played) -> np.ndarray:
    """f8[4] s of the chain that ends last, in the order of `PARTS`; they add up to the makespan."""
    devices = plain.seconds.shape[1]
    order = np.argsort(run.value.astype(np.int64) * devices + run.target, kind="stable")
    return _walk(plain, place, run, (run.value.astype(np.int64) * devices + run.target)[order], order)


@njit(cache=True)
def _walk(a, place, run, key, order):  # noqa: ANN001, ANN202 — numba types
    devices = a.seconds.shape[1]
    found = np.zeros(4)
    if len(run.finish) == 0:
        return found
    t = np.int64(np.argmax(run.finish))
    while t >= 0:
        found[0] += run.finish[t] - run.start[t]
        found[1] += run.start[t] - run.ready[t]
        latest, came, sent = -1.0, np.int64(-1), np.int64(-1)
        for e in range(a.in_ptr[t], a.in_ptr[t + 1]):
            v = np.int64(a.in_val[e])
            maker, by = np.int64(a.producer[v]), np.int64(-1)
            at = run.finish[maker]
            if place[maker] != place[t]:
                by = order[np.searchsorted(key, v * devices + np.int64(place[t]))]
                at = run.arrived[by]
            if at > latest:
                latest, came, sent = at, maker, by
        if sent >= 0:
            found[2] += run.arrived[sent] - run.begun[sent]
            found[3] += run.begun[sent] - run.asked[sent]
        t = came
    return found
