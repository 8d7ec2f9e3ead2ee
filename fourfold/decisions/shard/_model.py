"""What the techniques work on: the same question in doubles, parallel edges joined, what is impossible removed, what is separable moved to nodes.

Every strategy that is left stands for one of the instance (`origin`). A table keeps what depends on both of its nodes: the least of each row, then of
each column, is added to the strategies' own costs, and a table that is zero afterwards goes. Strategies without a partner (arc consistency, Mackworth
1977) go too. Time is ranks of the sections in which the limit can bind: those before something ends and after something began.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from fourfold.decisions.shard.instance import F64, FORBIDDEN, I64, StrategyGraph
from fourfold.errors import Infeasible

BIG = float(FORBIDDEN)


@dataclass(frozen=True, eq=False)
class Unreduced:
    """The instance with joined edges before anything was removed: what a certificate is written for.

    Pairs (a, b), tables of all strategies less `shift` (a's, then b's, at sptr), `alive` [S], `gone` strategies in the order they went, `kept` the
    pairs that the model's edges are, `aptr` and `aedge` the pairs of each node.
    """

    ptr: I64
    unary: F64
    usage: I64
    a: I64
    b: I64
    tptr: I64
    table: F64
    sptr: I64
    shift: F64
    alive: np.ndarray
    gone: I64
    kept: I64
    aptr: I64
    aedge: I64


@dataclass(frozen=True, eq=False)
class PairwiseModel:
    """n nodes, S strategies, m edges between different nodes, in ascending order of (a, b), a < b.

      ptr i8[n+1], unary f8[S], usage i8[S], origin i8[S]    strategies: own cost, bytes, number in the instance
      first, last i8[n]                                       sections [first, last) in which the node's value lives; none where equal
      a, b i8[m], tptr i8[m+1], table f8[T]                   rows are strategies of a
      aptr i8[n+1], aedge i8[2m]                              edges of each node
      times i8[sections]                                      a point of time in each section
      limit                                                   bytes; a very large number where there is none
    """

    ptr: I64
    unary: F64
    usage: I64
    origin: I64
    first: I64
    last: I64
    a: I64
    b: I64
    tptr: I64
    table: F64
    aptr: I64
    aedge: I64
    times: I64
    limit: int
    whole: Unreduced

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def sections(self) -> int:
        return len(self.times)

    def answer(self, chosen: I64) -> I64:
        """The instance's strategies for the model's."""
        return self.origin[self.ptr[:-1] + chosen]

    def local(self, answer: I64) -> I64:
        """The model's strategies for the instance's; where one is gone, the node's cheapest that is left."""
        found = np.zeros(len(self), np.int64)
        _locate(self.ptr, self.origin, self.unary, np.asarray(answer, np.int64), found)
        return found


def sections(g: StrategyGraph) -> tuple[I64, I64, I64]:
    """(first i8[n], last i8[n], times i8[k]): the sections between end points that no other one contains, as ranks; a time in each."""
    lives = np.flatnonzero(g.upper > g.lower)
    first, last = np.zeros(len(g), np.int64), np.zeros(len(g), np.int64)
    if not len(lives) or g.limit is None:
        return first, last, np.zeros(0, np.int64)
    times, at = np.unique(np.concatenate([g.lower[lives], g.upper[lives]]), return_inverse=True)
    begins, ends = np.zeros(len(times), bool), np.zeros(len(times), bool)
    begins[at[: len(lives)]] = True
    ends[at[len(lives):]] = True
    kept = np.flatnonzero(begins[:-1] & ends[1:])                       # nothing that lives next to it lives beside more
    # between two kept sections only begins or only ends happen, so one of them contains what lies between
    rank = np.searchsorted(kept, np.arange(len(times)))
    first[lives], last[lives] = rank[at[: len(lives)]], rank[at[len(lives):]]
    return first, last, times[kept]


def model(g: StrategyGraph) -> PairwiseModel:
    """The instance for a search. Raises Infeasible where a node has no strategy that may stand beside its neighbours'."""
    unary = g.cost.astype(np.float64)
    a, b = g.edge.min(1, initial=len(g)), g.edge.max(1, initial=-1)
    order = np.lexsort((b, a))
    loops = order[a[order] == b[order]]
    _diagonals(loops, g.edge[:, 0].copy(), g.ptr, g.table_ptr, g.table.astype(np.float64), unary)
    order = order[a[order] != b[order]]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (a[order][1:] != a[order][:-1]) | (b[order][1:] != b[order][:-1])
    group = np.cumsum(fresh) - 1
    first = order[fresh]
    ea, eb = a[first], b[first]
    tptr = np.concatenate([[0], np.cumsum(g.strategies[ea] * g.strategies[eb])]).astype(np.int64)
    table = np.zeros(int(tptr[-1]))
    _join(order, group, g.edge[:, 0].copy(), ea, eb, g.strategies, g.table_ptr, g.table.astype(np.float64), tptr, table)
    aptr, aedge = _adjacent(len(g), ea, eb)
    alive = unary < BIG
    gone, count = np.empty(len(unary), np.int64), int((~alive).sum())
    gone[:count] = np.flatnonzero(~alive)
    node, count = _consistent(g.ptr, unary, ea, eb, tptr, table, aptr, aedge, alive, gone, count)
    if node >= 0:
        raise Infeasible(f"Proven impossible: {g.name(node)} has no strategy that may stand beside its neighbours'.",
                         "Allow one of them more: costs of 1e18 and more are forbidden.")
    sptr = np.concatenate([[0], np.cumsum(g.strategies[ea] + g.strategies[eb])]).astype(np.int64)
    shift = np.zeros(int(sptr[-1]))
    _normalise(g.ptr, unary, ea, eb, tptr, table, alive, sptr, shift)
    nothing = np.zeros(0, np.int64)
    return _compact(g, unary, Unreduced(g.ptr, unary, g.usage, ea, eb, tptr, table, sptr, shift, alive, gone[:count], nothing, aptr, aedge))


def _compact(g: StrategyGraph, unary: F64, w: Unreduced) -> PairwiseModel:
    """The arrays without what is gone."""
    alive, ea, eb, tptr, table = w.alive, w.a, w.b, w.tptr, w.table
    node = np.repeat(np.arange(len(g)), g.strategies)
    count = np.bincount(node[alive], minlength=len(g))
    ptr = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    origin = (np.arange(len(unary)) - g.ptr[node])[alive]
    keep = np.zeros(len(ea), bool)
    _matters(g.ptr, alive, ea, eb, tptr, table, keep)
    a, b = ea[keep], eb[keep]
    size = np.concatenate([[0], np.cumsum(count[a] * count[b])]).astype(np.int64)
    left = np.zeros(int(size[-1]))
    _copy(g.ptr, alive, np.flatnonzero(keep), ea, eb, tptr, table, size, left)
    aptr, aedge = _adjacent(len(g), a, b)
    first, last, times = sections(g)
    limit = 2**62 if g.limit is None else g.limit
    return PairwiseModel(ptr, unary[alive], g.usage[alive], origin, first, last, a, b, size, left, aptr, aedge, times, limit,
                         replace(w, kept=np.flatnonzero(keep)))


def _adjacent(n: int, a: I64, b: I64) -> tuple[I64, I64]:
    ends = np.concatenate([a, b])
    aedge = np.concatenate([np.arange(len(a)), np.arange(len(b))])[np.argsort(ends, kind="stable")]
    return np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=n))]).astype(np.int64), aedge.astype(np.int64)


@njit(cache=True, nogil=True)
def _locate(ptr, origin, unary, answer, found):                         # noqa: ANN001, ANN202 — kernels take arrays
    for i in range(len(ptr) - 1):
        best = 0
        for s in range(ptr[i + 1] - ptr[i]):
            if origin[ptr[i] + s] == answer[i]:
                best = s
                break
            if unary[ptr[i] + s] < unary[ptr[i] + best]:
                best = s
        found[i] = best


@njit(cache=True, nogil=True)
def _diagonals(loops, node, ptr, tptr, table, unary):                   # noqa: ANN001, ANN202
    for e in loops:
        i = node[e]
        k = ptr[i + 1] - ptr[i]
        for s in range(k):
            unary[ptr[i] + s] = min(unary[ptr[i] + s] + table[tptr[e] + s * k + s], 1e18)


@njit(cache=True, nogil=True)
def _join(order, group, head, ea, eb, count, tptr, table, out_ptr, out):  # noqa: ANN001, ANN202
    for at in range(len(order)):
        e, f = order[at], group[at]
        ka, kb = count[ea[f]], count[eb[f]]
        same = head[e] == ea[f]
        for s in range(ka):
            for t in range(kb):
                value = table[tptr[e] + (s * kb + t if same else t * ka + s)]
                here = out_ptr[f] + s * kb + t
                out[here] = min(out[here] + value, 1e18)


@njit(cache=True, nogil=True)
def _consistent(ptr, unary, ea, eb, tptr, table, aptr, aedge, alive, gone, count):  # noqa: ANN001, ANN202
    """Remove strategies without a partner until none is left to remove; (a node without any, or -1, and how many are gone)."""
    n = len(ptr) - 1
    queue, waits, head, tail = np.empty(n + 1, np.int64), np.ones(n, np.bool_), 0, 0
    for i in range(n):
        queue[tail] = i
        tail += 1
    while head != tail:
        i = queue[head]
        head = (head + 1) % (n + 1)
        waits[i] = False
        ki, changed, some = ptr[i + 1] - ptr[i], False, False
        for s in range(ki):
            if not alive[ptr[i] + s]:
                continue
            good = True
            for at in range(aptr[i], aptr[i + 1]):
                e = aedge[at]
                j = eb[e] if ea[e] == i else ea[e]
                kj, met = ptr[j + 1] - ptr[j], False
                for t in range(kj):
                    if alive[ptr[j] + t] and table[tptr[e] + (s * kj + t if ea[e] == i else t * ki + s)] < 1e18:
                        met = True
                        break
                if not met:
                    good = False
                    break
            if good:
                some = True
            else:
                alive[ptr[i] + s], changed = False, True
                gone[count] = ptr[i] + s
                count += 1
        if not some:
            return i, count
        if changed:
            for at in range(aptr[i], aptr[i + 1]):
                e = aedge[at]
                j = eb[e] if ea[e] == i else ea[e]
                if not waits[j]:
                    waits[j] = True
                    queue[tail] = j
                    tail = (tail + 1) % (n + 1)
    return -1, count


@njit(cache=True, nogil=True)
def _normalise(ptr, unary, ea, eb, tptr, table, alive, sptr, shift):    # noqa: ANN001, ANN202
    """Move the least entry of each row, then of each column, to the strategy it is of."""
    for e in range(len(ea)):
        pa, pb = ptr[ea[e]], ptr[eb[e]]
        ka, kb = ptr[ea[e] + 1] - pa, ptr[eb[e] + 1] - pb
        for s in range(ka):
            least = np.inf
            for t in range(kb):
                if alive[pb + t]:
                    least = min(least, table[tptr[e] + s * kb + t])
            if alive[pa + s] and least != 0:
                unary[pa + s] += least
                shift[sptr[e] + s] = least
                for t in range(kb):
                    if table[tptr[e] + s * kb + t] < 1e18:
                        table[tptr[e] + s * kb + t] -= least
        for t in range(kb):
            least = np.inf
            for s in range(ka):
                if alive[pa + s]:
                    least = min(least, table[tptr[e] + s * kb + t])
            if alive[pb + t] and least != 0:
                unary[pb + t] += least
                shift[sptr[e] + ka + t] = least
                for s in range(ka):
                    if table[tptr[e] + s * kb + t] < 1e18:
                        table[tptr[e] + s * kb + t] -= least


@njit(cache=True, nogil=True)
def _matters(ptr, alive, ea, eb, tptr, table, keep):                    # noqa: ANN001, ANN202
    for e in range(len(ea)):
        pa, pb = ptr[ea[e]], ptr[eb[e]]
        ka, kb = ptr[ea[e] + 1] - pa, ptr[eb[e] + 1] - pb
        for s in range(ka):
            for t in range(kb):
                if alive[pa + s] and alive[pb + t] and table[tptr[e] + s * kb + t] != 0:
                    keep[e] = True


@njit(cache=True, nogil=True)
def _copy(ptr, alive, kept, ea, eb, tptr, table, size, out):            # noqa: ANN001, ANN202
    for f in range(len(kept)):
        e, at = kept[f], size[f]
        pa, pb = ptr[ea[e]], ptr[eb[e]]
        ka, kb = ptr[ea[e] + 1] - pa, ptr[eb[e] + 1] - pb
        for s in range(ka):
            for t in range(kb):
                if alive[pa + s] and alive[pb + t]:
                    out[at] = table[tptr[e] + s * kb + t]
                    at += 1
