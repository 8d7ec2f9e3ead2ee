"""From the state of a dual ascent to the certificate of `bound.py`: messages for every pair of the instance, removed strategies included."""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.shard._model import PairwiseModel
from fourfold.decisions.shard.bound import DualCertificate
from fourfold.decisions.shard.instance import F64


def certificate(m: PairwiseModel, given: F64, price: F64) -> DualCertificate:
    """The evidence for the bound of a reparametrisation `given` (messages of the model's edges) and prices of its sections.

    A strategy that was removed gets the largest messages that lower no edge's least entry, the last removed first.
    """
    w = m.whole
    sent = np.zeros(int(w.sptr[-1]))
    _place(w.ptr, w.a, w.b, w.sptr, w.alive, w.kept, given, sent)
    summed = np.concatenate([[0.0], np.cumsum(price)])
    node = np.repeat(np.arange(len(m)), np.diff(w.ptr))
    own = w.unary + np.maximum(0.0, summed[m.last] - summed[m.first])[node] * w.usage
    _extend(w.ptr, node, own, w.a, w.b, w.tptr, w.table, w.sptr, w.alive.copy(), w.gone, w.aptr, w.aedge, sent)
    bought = np.flatnonzero(price > 0)
    return DualCertificate(m.times[bought], price[bought], np.stack([w.a, w.b], 1).astype(np.int64), sent + w.shift)


@njit(cache=True, nogil=True)
def _place(ptr, a, b, sptr, alive, kept, given, sent):                  # noqa: ANN001, ANN202
    at = 0
    for e in kept:
        ka = ptr[a[e] + 1] - ptr[a[e]]
        for s in range(ka):
            if alive[ptr[a[e]] + s]:
                sent[sptr[e] + s] = given[at]
                at += 1
        for t in range(ptr[b[e] + 1] - ptr[b[e]]):
            if alive[ptr[b[e]] + t]:
                sent[sptr[e] + ka + t] = given[at]
                at += 1


@njit(cache=True, nogil=True)
def _extend(ptr, node, own, a, b, tptr, table, sptr, alive, gone, aptr, aedge, sent):  # noqa: ANN001, ANN202
    least = np.full(len(a), np.inf)
    total = own.copy()                                                  # of strategies, with the messages so far
    for e in range(len(a)):
        pa, pb = ptr[a[e]], ptr[b[e]]
        ka, kb = ptr[a[e] + 1] - pa, ptr[b[e] + 1] - pb
        for s in range(ka):
            total[pa + s] += sent[sptr[e] + s]
            for t in range(kb):
                if alive[pa + s] and alive[pb + t]:
                    least[e] = min(least[e], table[tptr[e] + s * kb + t] - sent[sptr[e] + s] - sent[sptr[e] + ka + t])
        for t in range(kb):
            total[pb + t] += sent[sptr[e] + ka + t]
    goal = np.full(len(ptr) - 1, np.inf)
    for g in range(len(total)):
        if alive[g]:
            goal[node[g]] = min(goal[node[g]], total[g])
    for step in range(len(gone) - 1, -1, -1):
        g = gone[step]
        i = node[g]
        mine, held, where = g - ptr[i], own[g], -1
        for at in range(aptr[i], aptr[i + 1]):
            e = aedge[at]
            ka, kb = ptr[a[e] + 1] - ptr[a[e]], ptr[b[e] + 1] - ptr[b[e]]
            value = np.inf
            if a[e] == i:
                slot = sptr[e] + mine
                for t in range(kb):
                    if alive[ptr[b[e]] + t]:
                        value = min(value, table[tptr[e] + mine * kb + t] - sent[sptr[e] + ka + t] - least[e])
            else:
                slot = sptr[e] + ka + mine
                for s in range(ka):
                    if alive[ptr[a[e]] + s]:
                        value = min(value, table[tptr[e] + s * kb + mine] - sent[sptr[e] + s] - least[e])
            if value > 1e17:                                            # nothing alive may stand beside it: this message may be as large as it need
                where, value = slot, 0.0
            elif own[g] >= 1e17:
                value = min(value, 0.0)
            sent[slot] = value
            held += value
        if where >= 0 and held < goal[i]:
            sent[where] = 1.001 * (goal[i] - held) + 1e-9 * abs(goal[i])
        alive[g] = True
