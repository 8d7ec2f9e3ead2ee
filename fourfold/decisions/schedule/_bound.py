"""A cost that no plan can beat, whatever it fuses, places and orders. Every step of the proof is a relaxation.

Whatever is fused, the anchors of a graph (opaque ops, contractions) are each in a task of their own, and a task takes at least what its anchor takes when
all that fusion could save is saved: `floor` f8[N, D] prices an anchor alone with nothing written but what the program returns, other nodes 0; where
fusion is fixed a task's own seconds count. Then
 · path: the longest path of floors, each on its fastest device, transfers free;
 · work: Σ floors, shared among the devices at will (the fractional optimum over unrelated machines, by its dual: any weights w ≥ 0 with Σ w = 1 prove
   Σ_n min_d w_d · floor[n, d]; equal devices need w = 1 / D alone, unlike ones a short subgradient search);
 · class: the largest Σ over a colocation class, on its best device.
Latency is at least all three, throughput the last two. Joules: a device costs idle watts for the whole step and the difference to busy ones while it
works. Memory: some device holds its share of what is resident, and one holds what the largest class reads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.schedule.problem import Schedule
from fourfold.graph import CONTRACTION, ELEMENTWISE, OPAQUE, VIEW


def floors(problem: Schedule) -> np.ndarray:
    """f8[N, D] seconds that a node is sure to take, however it is fused; inf where it cannot run. Where fusion is fixed, a task's seconds stand at its
    first node."""
    if problem.group is not None:
        tasks = problem.tasks(problem.group)
        first = np.full(len(tasks), len(problem.graph))
        np.minimum.at(first, tasks.group, np.arange(len(problem.graph)))
        table = np.zeros_like(problem.seconds)
        table[first] = tasks.seconds
        return table
    return np.where(problem.able, _sure(problem), np.inf)


def _sure(problem: Schedule) -> np.ndarray:
    from fourfold.cost.roofline import sure_seconds

    return sure_seconds(problem.graph, problem.system)


@njit(cache=True)
def _path(weight, ptr, val, producer):  # type: ignore[no-untyped-def]
    longest = np.zeros(len(weight))
    best = 0.0
    for n in range(len(weight)):
        for e in range(ptr[n], ptr[n + 1]):
            if producer[val[e]] >= 0:
                longest[n] = max(longest[n], longest[producer[val[e]]])
        longest[n] += weight[n]
        best = max(best, longest[n])
    return best
