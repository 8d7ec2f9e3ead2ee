"""Sequential tree-reweighted message passing (Kolmogorov 2006) on a model with prices on bytes, hanging trees eliminated exactly first.

Nodes of degree one are taken off again and again: each hands its whole cost to its neighbour. On what is left (the 2-core) messages run forward and
back in the order of the nodes; a node shares its cost among the edges to one side. Any state is a reparametrisation, so its bound holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from fourfold.decisions.shard._model import PairwiseModel
from fourfold.decisions.shard.instance import F64, I64


@dataclass(frozen=True, eq=False)
class Sweep:
    """What stays the same from sweep to sweep: `peel` i8[p] nodes taken off, in order, `over` the edge to whom each hung (-1: none), `core` i8[c] the
    others; messages of edge e are at mptr[e] (into a), then into b."""

    peel: I64
    over: I64
    core: I64
    inner: np.ndarray                                                   # [m] whether the edge joins core nodes
    mptr: I64


def sweep_of(m: PairwiseModel) -> Sweep:
    count = np.diff(m.ptr)
    mptr = np.concatenate([[0], np.cumsum(count[m.a] + count[m.b])]).astype(np.int64)
    peel, over, inner = _peel(m.a, m.b, m.aptr, m.aedge)
    core = np.ones(len(m), bool)
    core[peel] = False
    return Sweep(peel, over, np.flatnonzero(core), inner, mptr)


class Messages:
    """The state of the passing: `sent` (messages), `given` (the reparametrisation of the last forward pass)."""

    def __init__(self, m: PairwiseModel, sweep: Sweep | None = None) -> None:
        self.m, self.sweep = m, sweep or sweep_of(m)
        self.sent, self.given = np.zeros(int(self.sweep.mptr[-1])), np.zeros(int(self.sweep.mptr[-1]))
        self.full = np.zeros(len(m.unary))

    def forward(self, prices: F64, chosen: I64) -> float:
        """One pass there and back; the bound of the pass there, without the price of the limit. `chosen` gets the choice made on the way."""
        m, s = self.m, self.sweep
        return _forward(m.ptr, m.unary + prices, m.a, m.b, m.tptr, m.table, m.aptr, m.aedge, s.peel, s.over, s.core, s.inner, s.mptr, self.sent,
                        self.given, self.full, chosen)

    def backward(self) -> None:
        m, s = self.m, self.sweep
        _backward(m.ptr, m.a, m.b, m.tptr, m.table, m.aptr, m.aedge, s.core, s.inner, s.mptr, self.sent, self.full)


@njit(cache=True, nogil=True)
def _peel(a, b, aptr, aedge):                                           # noqa: ANN001, ANN202
    n = len(aptr) - 1
    left = aptr[1:] - aptr[:-1]
    inner = np.ones(len(a), np.bool_)
    gone = np.zeros(n, np.bool_)
    peel, over = np.empty(n, np.int64), np.empty(n, np.int64)
    tail = 0
    for i in range(n):
        if left[i] <= 1:
            peel[tail] = i
            gone[i] = True
            tail += 1
    head = 0
    while head < tail:
        i = peel[head]
        over[head] = -1
        for at in range(aptr[i], aptr[i + 1]):
            e = aedge[at]
            if inner[e]:
                over[head] = e
                inner[e] = False
                j = b[e] if a[e] == i else a[e]
                left[j] -= 1
                if left[j] <= 1 and not gone[j]:
                    peel[tail] = j
                    gone[j] = True
                    tail += 1
        head += 1
    return peel[:tail].copy(), over[:tail].copy(), inner


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "ninf", "reassoc"})
def through(e, forth, ptr, a, b, tptr, table, cost, out):               # noqa: ANN001, ANN202
    """out(t) = min_s cost(s) + table(s, t) over edge e, from a to b (`forth`) or from b to a."""
    ka, kb = ptr[a[e] + 1] - ptr[a[e]], ptr[b[e] + 1] - ptr[b[e]]
    base = tptr[e]
    if forth:
        for t in range(kb):
            out[t] = cost[0] + table[base + t]
        for s in range(1, ka):
            here, own = base + s * kb, cost[s]
            for t in range(kb):
                out[t] = min(out[t], own + table[here + t])
    else:
        for s in range(ka):
            here = base + s * kb
            least = cost[0] + table[here]
            for t in range(1, kb):
                least = min(least, cost[t] + table[here + t])
            out[s] = least


@njit(cache=True, nogil=True)
def _forward(ptr, own, a, b, tptr, table, aptr, aedge, peel, over, core, inner, mptr, sent, given, full, chosen):  # noqa: ANN001, ANN202
    """Trees first, then the core in order. `full` keeps the costs of nodes with what hangs on them."""
    most = np.max(ptr[1:] - ptr[:-1])
    total, part, out = np.empty(most), np.empty(most), np.empty(most)
    bound = 0.0
    full[:] = own
    for at in range(len(peel)):
        i, e = peel[at], over[at]
        k = ptr[i + 1] - ptr[i]
        if e < 0:
            bound += np.min(full[ptr[i]:ptr[i + 1]])
            continue
        forth = a[e] == i
        j = b[e] if forth else a[e]
        ka = ptr[a[e] + 1] - ptr[a[e]]
        mine, his = (mptr[e], mptr[e] + ka) if forth else (mptr[e] + ka, mptr[e])
        through(e, forth, ptr, a, b, tptr, table, full[ptr[i]:ptr[i + 1]], out)
        for s in range(k):
            given[mine + s] = -full[ptr[i] + s]
        for t in range(ptr[j + 1] - ptr[j]):
            given[his + t] = out[t]
            full[ptr[j] + t] += out[t]
    for i in core:
        k = ptr[i + 1] - ptr[i]
        before, after = 0, 0
        for s in range(k):
            total[s] = full[ptr[i] + s]
            part[s] = total[s]
        for at in range(aptr[i], aptr[i + 1]):
            e = aedge[at]
            if not inner[e]:
                continue
            ka = ptr[a[e] + 1] - ptr[a[e]]
            if a[e] == i:
                after += 1
                for s in range(k):
                    total[s] += sent[mptr[e] + s]
                    part[s] += sent[mptr[e] + s]
            else:
                before += 1
                here = tptr[e] + chosen[a[e]] * k
                for s in range(k):
                    total[s] += sent[mptr[e] + ka + s]
                    part[s] += table[here + s]
        chosen[i] = np.argmin(part[:k])
        share = 1.0 / max(before, after, 1)
        least = np.inf
        for s in range(k):
            least = min(least, total[s] * (1.0 - after * share))
        bound += least
        for at in range(aptr[i], aptr[i + 1]):
            e = aedge[at]
            if not inner[e] or a[e] != i:
                continue
            for s in range(k):
                part[s] = total[s] * share - sent[mptr[e] + s]
                given[mptr[e] + s] = -part[s]
            through(e, True, ptr, a, b, tptr, table, part, out)
            j = b[e]
            kj = ptr[j + 1] - ptr[j]
            least = np.min(out[:kj])
            bound += least
            for t in range(kj):
                sent[mptr[e] + k + t] = out[t] - least
                given[mptr[e] + k + t] = out[t] - least
    for at in range(len(peel) - 1, -1, -1):
        i, e = peel[at], over[at]
        k = ptr[i + 1] - ptr[i]
        best, least = 0, np.inf
        for s in range(k):
            value = full[ptr[i] + s]
            if e >= 0:
                value += table[tptr[e] + s * (ptr[b[e] + 1] - ptr[b[e]]) + chosen[b[e]]] if a[e] == i else table[tptr[e] + chosen[a[e]] * k + s]
            if value < least:
                best, least = s, value
        chosen[i] = best
    return bound


@njit(cache=True, nogil=True)
def _backward(ptr, a, b, tptr, table, aptr, aedge, core, inner, mptr, sent, full):  # noqa: ANN001, ANN202
    most = np.max(ptr[1:] - ptr[:-1])
    total, part, out = np.empty(most), np.empty(most), np.empty(most)
    for step in range(len(core) - 1, -1, -1):
        i = core[step]
        k = ptr[i + 1] - ptr[i]
        before, after = 0, 0
        for s in range(k):
            total[s] = full[ptr[i] + s]
        for at in range(aptr[i], aptr[i + 1]):
            e = aedge[at]
            if not inner[e]:
                continue
            here = mptr[e] + (0 if a[e] == i else ptr[a[e] + 1] - ptr[a[e]])
            if a[e] == i:
                after += 1
            else:
                before += 1
            for s in range(k):
                total[s] += sent[here + s]
        share = 1.0 / max(before, after, 1)
        for at in range(aptr[i], aptr[i + 1]):
            e = aedge[at]
            if not inner[e] or b[e] != i:
                continue
            j = a[e]
            kj = ptr[j + 1] - ptr[j]
            for s in range(k):
                part[s] = total[s] * share - sent[mptr[e] + kj + s]
            through(e, False, ptr, a, b, tptr, table, part, out)
            least = np.min(out[:kj])
            for t in range(kj):
                sent[mptr[e] + t] = out[t] - least
