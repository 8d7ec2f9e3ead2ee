"""A cost that no plan can beat, whatever it fuses, places and orders. Every step of the proof is a relaxation.

Two tables f8[N, D] of seconds that nodes are sure to take, such that a task takes at least the sum over its members:
 · anchors: an opaque op is always alone; a task has at most one contraction, which reads nothing that the task computes, so its launch, its
 arithmetic and
   the traffic of what it reads cannot be fused away. All others count 0;
 · arithmetic: the launch and arithmetic of anchors, and the arithmetic of the others, which fusion does not save either.
Where fusion is fixed, the tasks' own seconds, at each task's first node.
From each table
 · path: the longest path, each node on its fastest device, transfers free;
 · work: Σ seconds shared among the devices at will (unrelated machines, preemptive). Any weights w ≥ 0 with Σ w = 1 prove Σ_c min_d w_d · s[c, d]
 over
   colocation classes c; equal devices need w = 1 / D, unlike ones a few hundred steps of multiplicative weights;
 · class: the largest class on its best device.
Latency is at least all three, throughput the last two. Joules: devices cost the lesser of idle and busy watts for the whole step, and the
difference while
they work. Memory: one device holds what the largest class reads, and one at least its share of all that is resident.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.schedule.problem import Schedule
from fourfold.graph import CONTRACTION, OPAQUE, VIEW

_STEPS = 200


def tables(problem: Schedule) -> list[np.ndarray]:
    """The tables of the docstring; inf where a device cannot run a node."""
    if problem.group is not None:
        tasks = problem.tasks(problem.group)
        first = np.full(len(tasks), len(problem.graph))
        np.minimum.at(first, tasks.group, np.arange(len(problem.graph)))
        sure = np.where(problem.able, 0.0, np.inf)
        sure[first] = tasks.seconds
        return [sure]
    from fourfold.cost.roofline import fusing
    from fourfold.system import Efficiency

    g, prices = problem.graph, problem.prices
    anchor = (g.fusion == CONTRACTION) | (g.fusion == OPAQUE)
    outside = _read(problem)
    fused = np.zeros_like(prices.alone)
    for d, device in enumerate(problem.system.devices):
        curve = fusing(device)
        points = np.array(curve.bandwidth)
        later = np.array([points[points[:, 0] >= size, 1].max(initial=0.0) for size in outside]) if len(points) > 1 else points[0, 1]
        share = np.maximum(Efficiency.at(curve.bandwidth, np.maximum(outside, 1.0)), later)
        traffic = np.maximum(outside / (device.bandwidth * share), prices.cold(device, curve, np.minimum(g.params, outside)))
        fused[:, d] = prices.launch[:, d] + np.maximum(prices.arithmetic[:, d], traffic)
    tight = np.where((g.fusion == CONTRACTION)[:, None], np.minimum(prices.alone, fused), prices.alone)
    tight = np.where(anchor[:, None], tight, 0.0)
    spread = np.where(anchor[:, None], prices.launch, 0.0) + np.where((g.fusion == VIEW)[:, None], 0.0, prices.arithmetic)
    return [np.where(problem.able, np.minimum(table, prices.alone), np.inf) for table in (tight, spread)]


def _read(problem: Schedule) -> np.ndarray:
    """f8[N] bytes that a contraction reads whatever it is fused with, each storage once; views inside its task may read less than they view."""
    g, total = problem.graph, np.zeros(len(problem.graph))
    for n in np.flatnonzero(g.fusion == CONTRACTION).tolist():
        size: dict[int, int] = {}
        for v in g.inputs_of(n).tolist():
            root, least = int(g.alias[v]), int(g.size[v])
            made = int(g.producer[v])
            if made >= 0 and g.fusion[made] == VIEW and g.size[root] < least:
                least = int(g.size[root])
            size[root] = max(size.get(root, 0), min(least, int(g.reads[n])))
        total[n] = min(sum(size.values()), int(g.reads[n]))
    return total


@njit(cache=True)
def _path(weight, ptr, val, producer):  # type: ignore[no-untyped-def]
    longest, best = np.zeros(len(weight)), 0.0
    for n in range(len(weight)):
        for e in range(ptr[n], ptr[n + 1]):
            if producer[val[e]] >= 0:
                longest[n] = max(longest[n], longest[producer[val[e]]])
        longest[n] += weight[n]
        best = max(best, longest[n])
    return best


def work(table: np.ndarray) -> float:
    """The least that the busiest device can do of `table` f8[C, D], parts of a row shared at will; proven by the weights found."""
    devices = table.shape[1]
    able = np.where(np.isfinite(table), table, 1e30)
    weight, best, scale = np.full(devices, 1.0 / devices), 0.0, None
    for step in range(_STEPS if devices > 1 and not (table == table[:, :1]).all() else 1):
        priced = able * weight
        chosen = priced.argmin(1)
        best = max(best, float(np.take_along_axis(priced, chosen[:, None], 1).sum()))
        load = np.bincount(chosen, able[np.arange(len(able)), chosen], devices)
        scale = scale or max(1e-300, float(load.max()))
        weight = weight * np.exp(load / scale * 2.0 / (1.0 + step) ** 0.5)
        weight /= weight.sum()
    return best


def _time(problem: Schedule) -> tuple[float, float]:
    """(latency, throughput) bounds in s."""
    g, latency, busiest = problem.graph, 0.0, 0.0
    label = np.empty(len(g), np.int64)
    for c, nodes in enumerate(problem.classes):
        label[nodes] = c
    for table in tables(problem):
        grouped = np.zeros((len(problem.classes), table.shape[1]))
        np.add.at(grouped, label, table)
        alone = float(np.where(np.isfinite(grouped), grouped, np.inf).min(1).max())
        busiest = max(busiest, work(grouped), alone if np.isfinite(alone) else 0.0)
        # where fusion is fixed a task's seconds stand at its first node, and a path may enter it later: only sound without fused tasks
        if problem.group is None or len(np.unique(problem.group)) == len(g):
            latency = max(latency, _path(table.min(1), g.in_ptr, g.in_val, g.producer))
        else:
            latency = max(latency, _task_path(problem))
    return max(latency, busiest), busiest


def _task_path(problem: Schedule) -> float:
    assert problem.group is not None
    tasks = problem.tasks(problem.group)
    from fourfold.decisions.schedule._list import Dag, upward

    src, dst, _ = tasks.edges()
    square = np.zeros((1, 1))
    least = tasks.seconds.min(1)
    dag = Dag.of(least[:, None], src, dst, np.zeros(len(src)), square, square)
    return float(upward(least, dag.succ_ptr, dag.succ, dag.succ_bytes, dag.order, 0.0, 0.0).max(initial=0.0))


def least(problem: Schedule) -> float:
    """The bound in the problem's unit, a hair below what the arithmetic gives (sums in another order)."""
    devices = problem.system.devices
    if problem.objective == "memory":
        heaviest = max(problem.standing(nodes) for nodes in problem.classes)
        return float(max(heaviest, -(-int(problem.resident.sum()) // len(devices))))
    latency, busiest = _time(problem)
    if problem.objective == "energy":
        more = np.array([max(0.0, device.busy - device.idle) for device in devices])
        spent = max(float(np.where(np.isfinite(table), table * more, np.inf).min(1).sum()) for table in tables(problem))
        return (1 - 1e-12) * (sum(min(device.idle, device.busy) for device in devices) * latency + spent)
    return (1 - 1e-12) * (latency if problem.objective == "latency" else busiest)
