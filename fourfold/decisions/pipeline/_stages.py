"""Stages along a topological order: the linear dynamic programme, and valid splits to start from. Shared by the techniques of this folder."""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups
from fourfold.errors import Infeasible
from fourfold.frontends.placement import PipelineWorkload


def stages(workload: PipelineWorkload, seed: int = 0, orders: int = 1) -> list[np.ndarray]:
    """Valid splits, machine of each node i8[N], best first: the best cut of each of several topological orders into stages.

    Raises Infeasible where no order can be cut within the memory.
    """
    groups = Groups.of_workload(workload, acyclic=True)
    rng = np.random.default_rng(seed)
    found = []
    for i in range(max(orders, 2)):
        order = groups.late() if i == 0 else groups.order() if i == 1 else groups.order(rng)
        value, machine = cut(groups, order)
        if np.isfinite(value):
            found.append((value, i, machine[groups.of]))
    if not found:
        raise Infeasible("No cut of a topological order into stages fits the accelerators' memory.", "Raise the limit, or give a core.")
    found.sort(key=lambda entry: entry[:2])
    return [machine for _, _, machine in found[:orders]]


def cut(groups: Groups, order: np.ndarray, bound: float = np.inf) -> tuple[float, np.ndarray]:
    """(greatest load, machine of each group) of the best way to cut `order` into consecutive stages, any of them on a core; inf where none fits."""
    g = groups
    return _cut(order, g.fast, g.slow, g.size, g.net_ptr, g.net_cost, g.own_ptr, g.own_net, g.accelerators, g.cores, g.limit, bound)


@njit(cache=True)
def _cut(order, fast, slow, size, net_ptr, net_cost, own_ptr, own_net, accelerators, cores, limit, bound):  # type: ignore[no-untyped-def]
    many = len(order)
    best = np.full((many + 1, accelerators + 1, cores + 1), np.inf)
    back = np.full((many + 1, accelerators + 1, cores + 1), -1, np.int64)
    best[0, 0, 0] = 0.0
    count = np.zeros(len(net_cost), np.int64)
    for first in range(many):
        for a in range(accelerators + 1):                               # an idle machine more changes nothing
            for c in range(cores + 1):
                if a and best[first, a - 1, c] < best[first, a, c]:
                    best[first, a, c], back[first, a, c] = best[first, a - 1, c], -2
                if c and best[first, a, c - 1] < best[first, a, c]:
                    best[first, a, c], back[first, a, c] = best[first, a, c - 1], -3
        if not np.isfinite(best[first, accelerators, cores]):
            continue
        count[:] = 0
        here, border, there, held = 0.0, 0.0, 0.0, 0.0
        for last in range(first, many):
            g = order[last]
            here, there, held = here + fast[g], there + slow[g], held + size[g]
            for p in range(own_ptr[g], own_ptr[g + 1]):
                h = own_net[p]
                if count[h] == 0:
                    border += net_cost[h]
                count[h] += 1
                if count[h] == net_ptr[h + 1] - net_ptr[h]:
                    border -= net_cost[h]
            able = held <= limit and here <= bound
            if not able and there > bound:
                break
            for a in range(accelerators + 1):
                for c in range(cores + 1):
                    start = best[first, a, c]
                    if not np.isfinite(start):
                        continue
                    if able and a < accelerators and max(start, here + border) < best[last + 1, a + 1, c]:
                        best[last + 1, a + 1, c], back[last + 1, a + 1, c] = max(start, here + border), 2 * first
                    if c < cores and max(start, there) < best[last + 1, a, c + 1]:
                        best[last + 1, a, c + 1], back[last + 1, a, c + 1] = max(start, there), 2 * first + 1
    a, c, value = 0, 0, np.inf
    for i in range(accelerators + 1):
        for j in range(cores + 1):
            if best[many, i, j] < value:
                value, a, c = best[many, i, j], i, j
    machine = np.full(many, -1, np.int64)
    last = many
    while last > 0 and np.isfinite(value):
        b = back[last, a, c]
        if b == -2:
            a -= 1
            continue
        if b == -3:
            c -= 1
            continue
        on_core = b % 2 == 1
        if on_core:
            c -= 1
        else:
            a -= 1
        m = accelerators + c if on_core else a
        for i in range(b // 2, last):
            machine[order[i]] = m
        last = b // 2
    return value, machine
