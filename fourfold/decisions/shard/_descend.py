"""Moves of one node within the limit: iterated conditional modes (Besag 1986), and the repair of a choice that passes the limit."""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.shard import _memory as memory
from fourfold.decisions.shard._model import PairwiseModel
from fourfold.decisions.shard.instance import F64, I64


def descend(m: PairwiseModel, chosen: I64, order: I64, tree: I64, rounds: int = 50, prices: F64 | None = None) -> int:
    """Give each node in turn its cheapest strategy beside the others' that keeps the limit, until nothing changes or for `rounds`; in place.

    `prices` f8[S]: what a strategy costs besides. Returns how many changes were made.
    """
    own = m.unary if prices is None else m.unary + prices
    return _descend(m.ptr, own, m.usage, m.first, m.last, m.a, m.b, m.tptr, m.table, m.aptr, m.aedge, m.limit, chosen, order, tree, rounds)


def repair(m: PairwiseModel, chosen: I64, tree: I64, prices: F64, seed: int = 0) -> bool:
    """Lower the fullest section until the limit holds, by changes of one node that cost least a byte (with `prices`); in place. False: stuck."""
    sptr, snode = _alive(m)
    return _repair(m.ptr, m.unary + prices, m.usage, m.first, m.last, m.a, m.b, m.tptr, m.table, m.aptr, m.aedge, m.limit, chosen, tree, sptr,
                   snode, 4 * len(m) + 1000)


def cost(m: PairwiseModel, chosen: I64) -> float:
    """Own costs and tables of a choice, in the model's doubles."""
    here = m.tptr[:-1] + chosen[m.a] * (m.ptr[m.b + 1] - m.ptr[m.b]) + chosen[m.b]
    return float(m.unary[m.ptr[:-1] + chosen].sum() + m.table[here].sum())


def _alive(m: PairwiseModel) -> tuple[I64, I64]:
    """Nodes whose bytes vary, by first section: (n, …) for a scan of who lives in a section."""
    varies = np.flatnonzero((m.first < m.last) & (np.maximum.reduceat(m.usage, m.ptr[:-1]) > np.minimum.reduceat(m.usage, m.ptr[:-1])))
    order = varies[np.argsort(m.first[varies], kind="stable")]
    return np.searchsorted(m.first[order], np.arange(m.sections + 1)), order


@njit(cache=True, nogil=True)
def conditional(i, ptr, own, a, b, tptr, table, aptr, aedge, chosen, out):  # noqa: ANN001, ANN202
    """What each strategy of node i costs beside its neighbours' choices, into `out`."""
    k = ptr[i + 1] - ptr[i]
    for s in range(k):
        out[s] = own[ptr[i] + s]
    for at in range(aptr[i], aptr[i + 1]):
        e = aedge[at]
        if a[e] == i:
            kb = ptr[b[e] + 1] - ptr[b[e]]
            here = tptr[e] + chosen[b[e]]
            for s in range(k):
                out[s] += table[here + s * kb]
        else:
            here = tptr[e] + chosen[a[e]] * k
            for s in range(k):
                out[s] += table[here + s]


@njit(cache=True, nogil=True)
def _descend(ptr, own, usage, first, last, a, b, tptr, table, aptr, aedge, limit, chosen, order, tree, rounds):  # noqa: ANN001, ANN202
    out = np.empty(np.max(ptr[1:] - ptr[:-1]))
    made = 0
    for _ in range(rounds):
        before = made
        for i in order:
            k = ptr[i + 1] - ptr[i]
            if k == 1:
                continue
            conditional(i, ptr, own, a, b, tptr, table, aptr, aedge, chosen, out)
            now = chosen[i]
            best, room = now, np.int64(-1)
            for s in range(k):
                if out[s] < out[best] or (out[s] == out[best] and usage[ptr[i] + s] < usage[ptr[i] + best]):
                    more = usage[ptr[i] + s] - usage[ptr[i] + now]
                    if more > 0 and first[i] < last[i]:
                        if room < 0:
                            room = max(0, limit - memory.peak(tree, first[i], last[i]))
                        if more > room:
                            continue
                    best = s
            if best != now:
                memory.add(tree, first[i], last[i], usage[ptr[i] + best] - usage[ptr[i] + now])
                chosen[i] = best
                made += 1
        if made == before:
            break
    return made


@njit(cache=True, nogil=True)
def _repair(ptr, own, usage, first, last, a, b, tptr, table, aptr, aedge, limit, chosen, tree, sptr, snode, most):  # noqa: ANN001, ANN202
    out = np.empty(np.max(ptr[1:] - ptr[:-1]))
    for _ in range(most):
        if tree[0, 1] <= limit:
            return True
        section = memory.fullest(tree)
        need = tree[0, 1] - limit
        who, which, least = -1, -1, np.inf
        for at in range(sptr[section + 1]):
            i = snode[at]
            if last[i] <= section:
                continue
            now = chosen[i]
            if usage[ptr[i] + now] == 0:
                continue
            conditional(i, ptr, own, a, b, tptr, table, aptr, aedge, chosen, out)
            for s in range(ptr[i + 1] - ptr[i]):
                less = usage[ptr[i] + now] - usage[ptr[i] + s]
                if less > 0:
                    value = (out[s] - out[now]) / min(less, need)
                    if value < least:
                        who, which, least = i, s, value
        if who < 0:
            return False
        memory.add(tree, first[who], last[who], usage[ptr[who] + which] - usage[ptr[who] + chosen[who]])
        chosen[who] = which
    return tree[0, 1] <= limit
