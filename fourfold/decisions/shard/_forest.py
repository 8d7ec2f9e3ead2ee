"""Moves of whole forests: a random set of nodes without a cycle is solved exactly by dynamic programming while the others keep their choice.

Blocks that are trees are those of Hamze and de Freitas (2004), here to minimise. What hangs on a tree is in every set, so that leaves always follow.
`Neighbourhoods` does the same in small parts and within the limit (large neighbourhood search, Shaw 1998).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.shard import _memory as memory
from fourfold.decisions.shard._messages import through
from fourfold.decisions.shard._model import PairwiseModel
from fourfold.decisions.shard.instance import F64, I64


class Forests:
    """The moves on one model, with their working memory; one thread at a time."""

    def __init__(self, m: PairwiseModel) -> None:
        n = len(m)
        self.m = m
        self.scratch = (np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n, np.bool_),
                        np.empty(n, np.int64), np.empty(len(m.unary)), np.empty(n, np.int64))
        self.met = np.zeros(n, np.bool_)

    def improve(self, prices: F64, order: I64, chosen: I64) -> None:
        """Choose anew on a forest that takes nodes in `order` as long as they close no cycle (nodes not in `order` stay). `chosen` changes in
        place and never gets dearer, its prices counted."""
        m = self.m
        _improve(m.ptr, m.unary, prices, 1.0, m.a, m.b, m.tptr, m.table, m.aptr, m.aedge, order, len(order), chosen, *self.scratch)

    def neighbourhoods(self, prices: F64, starts: I64, sizes: I64, factors: F64, seed: int, chosen: I64, tree: I64) -> tuple[int, float]:
        """A forest near each of `starts` in turn, solved with a share of the prices, kept where it costs less and the limit holds. In place; (how
        many were kept, by how much the cost fell)."""
        m = self.m
        return _neighbourhoods(m.ptr, m.unary, prices, m.usage, m.first, m.last, m.a, m.b, m.tptr, m.table, m.aptr, m.aedge, m.limit, starts, sizes,
                               factors, seed, chosen, tree, self.met, *self.scratch)


@njit(cache=True, nogil=True)
def _root(parent, i):                                                   # noqa: ANN001, ANN202
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _improve(ptr, unary, prices, factor, a, b, tptr, table, aptr, aedge, order, length, chosen, parent, mark, over, seen, queue, cost,  # noqa: ANN001
             before):                                                   # noqa: ANN001, ANN202
    """`before` gets the choices of the nodes of `queue`, in its order; returns how many those are."""
    for at in range(length):
        i = order[at]
        free = True
        for near in range(aptr[i], aptr[i + 1]):
            e = aedge[near]
            j = b[e] if a[e] == i else a[e]
            if parent[j] >= 0:
                r = _root(parent, j)
                if mark[r] == i:
                    free = False
                    break
                mark[r] = i
        if not free:
            continue
        parent[i] = i
        for near in range(aptr[i], aptr[i + 1]):
            e = aedge[near]
            j = b[e] if a[e] == i else a[e]
            if parent[j] >= 0 and j != i:
                parent[_root(parent, j)] = i
    head, tail = 0, 0                                                   # breadth first from any node of each tree
    for at in range(length):
        start = order[at]
        if parent[start] < 0 or seen[start]:
            continue
        seen[start] = True
        queue[tail] = start
        tail += 1
        while head < tail:
            i = queue[head]
            head += 1
            for near in range(aptr[i], aptr[i + 1]):
                e = aedge[near]
                j = b[e] if a[e] == i else a[e]
                if parent[j] >= 0 and not seen[j]:
                    seen[j] = True
                    over[j] = e
                    queue[tail] = j
                    tail += 1
    _solve(ptr, unary, prices, factor, a, b, tptr, table, aptr, aedge, parent, queue, tail, over, chosen, cost, before)
    for at in range(length):
        i = order[at]
        parent[i] = mark[i] = over[i] = -1
        seen[i] = False
    return tail


@njit(cache=True, nogil=True)
def _solve(ptr, unary, prices, factor, a, b, tptr, table, aptr, aedge, parent, queue, tail, over, chosen, cost, before):  # noqa: ANN001, ANN202
    """Leaves to roots, then choices from roots to leaves; ties go to what was chosen before."""
    most = 1
    for at in range(tail):
        i = queue[at]
        before[at] = chosen[i]
        for s in range(ptr[i], ptr[i + 1]):
            cost[s] = unary[s] + factor * prices[s]
        for near in range(aptr[i], aptr[i + 1]):                        # of all neighbours, for what comes out of an edge
            most = max(most, ptr[b[aedge[near]] + 1] - ptr[b[aedge[near]]], ptr[a[aedge[near]] + 1] - ptr[a[aedge[near]]])
        most = max(most, ptr[i + 1] - ptr[i])
    out = np.empty(most)
    for at in range(tail - 1, -1, -1):
        i = queue[at]
        k, base = ptr[i + 1] - ptr[i], ptr[i]
        for near in range(aptr[i], aptr[i + 1]):
            e = aedge[near]
            if a[e] == i:
                if parent[b[e]] < 0:
                    kb = ptr[b[e] + 1] - ptr[b[e]]
                    here = tptr[e] + chosen[b[e]]
                    for s in range(k):
                        cost[base + s] += table[here + s * kb]
            elif parent[a[e]] < 0:
                here = tptr[e] + chosen[a[e]] * k
                for s in range(k):
                    cost[base + s] += table[here + s]
        e = over[i]
        if e >= 0:
            forth = a[e] == i
            j = b[e] if forth else a[e]
            through(e, forth, ptr, a, b, tptr, table, cost[base:base + k], out)
            for t in range(ptr[j + 1] - ptr[j]):
                cost[ptr[j] + t] += out[t]
    for at in range(tail):
        i = queue[at]
        k, e, base = ptr[i + 1] - ptr[i], over[i], ptr[i]
        best = chosen[i]
        if e < 0:
            for s in range(k):
                if cost[base + s] < cost[base + best]:
                    best = s
        else:
            step = 1 if b[e] == i else ptr[b[e] + 1] - ptr[b[e]]
            here = tptr[e] + (chosen[a[e]] * k if b[e] == i else chosen[b[e]])
            for s in range(k):
                if cost[base + s] + table[here + s * step] < cost[base + best] + table[here + best * step]:
                    best = s
        chosen[i] = best


@njit(cache=True, nogil=True)
def _neighbourhoods(ptr, unary, prices, usage, first, last, a, b, tptr, table, aptr, aedge, limit, starts, sizes, factors, seed,  # noqa: ANN001
                    chosen, tree, met, parent, mark, over, seen, queue, cost, before):  # noqa: ANN001, ANN202
    np.random.seed(seed)
    near_by = np.empty(len(ptr), np.int64)
    kept, fell = 0, 0.0
    for step in range(len(starts)):
        tail, head = 1, 0
        near_by[0] = starts[step]
        met[starts[step]] = True
        while head < tail and tail < sizes[step]:
            i = near_by[head]
            head += 1
            degree = aptr[i + 1] - aptr[i]
            for _ in range(min(degree, 40)):                            # of a hub's neighbours some are enough
                near = aptr[i] + (_ if degree <= 40 else np.random.randint(degree))
                e = aedge[near]
                j = b[e] if a[e] == i else a[e]
                if not met[j] and tail < sizes[step]:
                    met[j] = True
                    near_by[tail] = j
                    tail += 1
        for at in range(tail):
            met[near_by[at]] = False
        for at in range(tail - 1, 0, -1):                               # in random order: another forest each time
            other = np.random.randint(at + 1)
            near_by[at], near_by[other] = near_by[other], near_by[at]
        count = _improve(ptr, unary, prices, factors[step], a, b, tptr, table, aptr, aedge, near_by, tail, chosen, parent, mark, over, seen, queue,
                         cost, before)
        change = 0.0
        for at in range(count):                                         # back, one node after another, for the difference; then forth if it is kept
            i = queue[at]
            now = chosen[i]
            if now != before[at]:
                change += _switch(i, before[at], ptr, unary, a, b, tptr, table, aptr, aedge, chosen)
                memory.add(tree, first[i], last[i], usage[ptr[i] + now] - usage[ptr[i] + before[at]])
                chosen[i], before[at] = before[at], now
        good = change > 1e-9 * abs(change) and tree[0, 1] <= limit
        for at in range(count):
            i = queue[at]
            if chosen[i] != before[at]:
                if good:
                    chosen[i] = before[at]
                else:
                    memory.add(tree, first[i], last[i], usage[ptr[i] + chosen[i]] - usage[ptr[i] + before[at]])
        if good:
            kept += 1
            fell += change
    return kept, fell


@njit(cache=True, nogil=True)
def _switch(i, other, ptr, unary, a, b, tptr, table, aptr, aedge, chosen):  # noqa: ANN001, ANN202
    """What node i costs more with the strategy `other` than with its own, beside the others' choices as they are."""
    k, now = ptr[i + 1] - ptr[i], chosen[i]
    value = unary[ptr[i] + other] - unary[ptr[i] + now]
    for near in range(aptr[i], aptr[i + 1]):
        e = aedge[near]
        if a[e] == i:
            kb = ptr[b[e] + 1] - ptr[b[e]]
            here = tptr[e] + chosen[b[e]]
            value += table[here + other * kb] - table[here + now * kb]
        else:
            here = tptr[e] + chosen[a[e]] * k
            value += table[here + other] - table[here + now]
    return value
