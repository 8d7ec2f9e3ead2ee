"""Repair by propagation: whatever the network chose becomes a valid plan.

In topological order, a node that wants to joins the group of a producer, the one that hands it most bytes first, if the rules of fusion hold; it then
takes that group's device with it, unless it is colocated with others, and is asked to wait for no one: a group that would close a circle is left out.
Units that hold more than a device has are moved afterwards (`_parts.mend`), in the last resort spread. So a joined node overrules its own placement:
two nodes on two devices cannot be one kernel, and the sample says that they shall be.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.cost.simulate import Played, play
from fourfold.decisions.schedule._go.features import GraphFeatures
from fourfold.decisions.schedule._parts import _LOOK, PartitionTasks, fit, fused
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import Infeasible

OFFSETS = np.array([-1.0, -0.5, -0.2, -0.07, 0.0, 0.07, 0.2, 0.5, 1.0])  # what a level adds to a task's rank, in shares of the longest path


@njit(cache=True)
def _rank(seconds, place, order, succ_ptr, succ, succ_bytes, wait, pace):  # type: ignore[no-untyped-def]
    """f8[T] the longest path from a task's start to the end, with the transfers that `place` makes necessary; 1 for the longest."""
    rank, longest = np.zeros(len(place)), 1e-30
    for k in range(len(order) - 1, -1, -1):
        t = order[k]
        for e in range(succ_ptr[t], succ_ptr[t + 1]):
            s = succ[e]
            away = wait[place[t], place[s]] + succ_bytes[e] * pace[place[t], place[s]] if place[t] != place[s] else 0.0
            rank[t] = max(rank[t], away + rank[s])
        rank[t] += seconds[t, place[t]]
        longest = max(longest, rank[t])
    return rank / longest


class Mended(NamedTuple):
    """A valid plan: its tasks, `place` i8[T], `priority` f8[T], cost in the problem's unit."""

    work: PartitionTasks
    place: np.ndarray
    priority: np.ndarray
    cost: float

    @property
    def answer(self) -> Answer:
        return self.work.answer(self.place, self.priority)

    def played(self) -> Played:
        return play(self.work.plain, self.place.astype(np.int16), self.work.priorities(self.priority), False, False)


def joined(problem: Schedule, place: np.ndarray, join: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(group i4[N], place i8[N]) of nodes in the graph's order that are to be on `place` and to `join` a producer."""
    g = problem.graph
    place = np.asarray(place, np.int64)
    if problem.group is not None:
        return problem.group, place
    kept = np.zeros(len(g.producer), bool)
    kept[g.outputs] = True
    able = (problem.able.astype(np.int64) << np.arange(problem.able.shape[1])).sum(1)
    loose = (g.colocation < 0) & (problem.place is None)
    return fused(np.asarray(join, bool), g.fusion, problem.space, place, loose, g.colocation, able, g.in_ptr, g.in_val, g.out_ptr, g.out_val,
                 g.use_ptr, g.use_node, g.producer, g.size, kept, problem.most, problem.streams, _LOOK)


def _fitted(work: PartitionTasks, place: np.ndarray, priority: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plan with units moved until it fits; where that does not help, a list schedule of the same groups that watches memory."""
    from fourfold.decisions.schedule.heft import plan

    try:
        return fit(work, lambda work, factor: (place, priority), (1.0,))
    except Infeasible:
        return fit(work, plan)


def mended(reading: GraphFeatures, place: np.ndarray, level: np.ndarray, join: np.ndarray, kept: dict[bytes, PartitionTasks] | None = None) -> Mended:
    """The plan of `place` i8[U], `level` i8[N] and `join` [N] (in the reading's order). `kept` remembers tasks by partition. Raises Infeasible where
    nothing that was tried fits the memory."""
    problem, back = reading.problem, reading.back
    group, node = joined(problem, place[reading.unit][back], join[back])
    key = group.tobytes()
    work = kept.get(key) if kept is not None else None
    if work is None:
        work = PartitionTasks.of(problem, group)
        if kept is not None:
            if len(kept) >= 24:
                kept.pop(next(iter(kept)))
            kept[key] = work
    if problem.place is not None:
        where = work.forced
    else:
        units = len(work.unit_able)
        lead = np.full(units, len(work.first))
        np.minimum.at(lead, work.unit, np.arange(len(work.first)))
        device = node[work.first[lead]]
        device = np.where(work.unit_able[np.arange(units), device], device, work.unit_able.argmax(1))
        where = device[work.unit]
    shift = OFFSETS[level[back][work.first]]

    def order(where: np.ndarray) -> np.ndarray:
        dag = work.dag
        return _rank(dag.seconds, where.astype(np.int64), dag.order, dag.succ_ptr, dag.succ, dag.succ_bytes, dag.wait, dag.pace) + shift

    priority = order(where)
    cost, over = work.over(where, priority)
    if over.any():
        where, priority = _fitted(work, where, priority)
        cost, _ = work.over(where, priority)
    return Mended(work, where, priority, cost)
