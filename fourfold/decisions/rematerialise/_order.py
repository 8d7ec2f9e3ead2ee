"""Orders of least peak without running anything twice: greedy list schedules from both ends, then annealing."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._lives import measure, own_order
from fourfold.decisions.rematerialise._search import PEAK, improve
from fourfold.decisions.rematerialise.instance import CoreGraph
from fourfold.problem import Budget


@njit(cache=True)
def _forward(core, users_ptr, users, rule):  # type: ignore[no-untyped-def]
    """List schedule: of the ready nodes the one after which the fewest bytes are alive (rule 0), that needs the fewest while it runs (1), that frees
    the largest share of what it touches (2); ties go to the graph's order."""
    nodes, roots = core.computing, len(core.size)
    waiting = np.zeros(nodes, np.int32)
    left = np.zeros(roots, np.int32)                                   # readers to come
    for n in range(nodes):
        waiting[n] = core.in_ptr[n + 1] - core.in_ptr[n]
    for v in range(roots):
        left[v] = users_ptr[v + 1] - users_ptr[v] + core.pinned[v]
    ready = np.zeros(nodes, np.int32)
    many = 0
    for n in range(nodes):
        if waiting[n] == 0:
            ready[many] = n
            many += 1
    order = np.zeros(nodes, np.int32)
    for s in range(nodes):
        best, least = 0, np.inf
        for k in range(many):
            n = ready[k]
            gain, made = 0.0, 0.0
            for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
                if left[core.in_val[e]] == 1:
                    gain += core.size[core.in_val[e]]
            for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
                made += core.size[core.out_val[e]]
            key = made - gain if rule == 0 else made if rule == 1 else (made - gain) / (made + gain + 1.0)
            if key < least or (key == least and n < ready[best]):
                best, least = k, key
        n = ready[best]
        many -= 1
        ready[best] = ready[many]
        order[s] = n
        for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
            left[core.in_val[e]] -= 1
        for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
            v = core.out_val[e]
            for f in range(users_ptr[v], users_ptr[v + 1]):
                waiting[users[f]] -= 1
                if waiting[users[f]] == 0:
                    ready[many] = users[f]
                    many += 1
    return order


@njit(cache=True)
def _backward(core, users_ptr, users):  # type: ignore[no-untyped-def]
    """List schedule from the end: of the nodes whose readers are all placed, the one that shrinks what is alive before it most; ties go to the
    graph's order."""
    nodes, roots = core.computing, len(core.size)
    waiting = np.zeros(nodes, np.int32)
    alive = np.zeros(roots, np.bool_)
    for v in range(roots):
        alive[v] = core.pinned[v]
        waiting[core.producer[v]] += users_ptr[v + 1] - users_ptr[v]
    ready = np.zeros(nodes, np.int32)
    many = 0
    for n in range(nodes):
        if waiting[n] == 0:
            ready[many] = n
            many += 1
    order = np.zeros(nodes, np.int32)
    for s in range(nodes - 1, -1, -1):
        best, least = 0, np.inf
        for k in range(many):
            n = ready[k]
            key = 0.0
            for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
                if not alive[core.in_val[e]]:
                    key += core.size[core.in_val[e]]
            for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
                key -= core.size[core.out_val[e]]
            if key < least or (key == least and n > ready[best]):
                best, least = k, key
        n = ready[best]
        many -= 1
        ready[best] = ready[many]
        order[s] = n
        for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
            v = core.in_val[e]
            alive[v] = True
            m = core.producer[v]
            waiting[m] -= 1
            if waiting[m] == 0:
                ready[many] = m
                many += 1
    return order


def users_of(core: CoreGraph) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(pointer [R+1], reading nodes) of each root."""
    reader = np.repeat(np.arange(len(core.node), dtype=np.int32), np.diff(core.in_ptr))
    pointer = np.concatenate([[0], np.cumsum(np.bincount(core.in_val, minlength=len(core.size)))]).astype(np.int32)
    return pointer, reader[np.argsort(core.in_val, kind="stable")]


def greedy_orders(core: CoreGraph) -> list[NDArray[np.int32]]:
    """The graph's own order and the list schedules, least peak first."""
    pointer, users = users_of(core)
    found = [own_order(core), *(_forward(core, pointer, users, rule) for rule in range(3)), _backward(core, pointer, users)]
    return sorted(found, key=lambda order: measure(core, order)[0])


def lowest_order(core: CoreGraph, seed: int, evaluations: int, budget: Budget | None = None) -> NDArray[np.int32]:
    """The order of least peak found by annealing from the best two list schedules, with `evaluations` moves in all (within `budget`)."""
    budget = budget or Budget(3600.0, evaluations)
    starts = greedy_orders(core)
    best, least = starts[0], measure(core, starts[0])[0]
    for k, start in enumerate(starts[:2]):
        found, _ = improve(core, start, PEAK, least, budget, seed + k, tries=max(1, evaluations // 3), heat=0.02, again=False)
        if (peak := measure(core, found)[0]) < least:
            best, least = found, peak
    found, _ = improve(core, best, PEAK, least, budget, seed + 2, tries=max(1, evaluations // 3), heat=0.004, again=False)
    return found if measure(core, found)[0] < least else best
