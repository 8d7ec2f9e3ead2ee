"""Depth-first packing as Moffitt (2023) describes it, with cheap tests of each section: the other compiled search of `minimalloc`.

Buffers are numbered by rank, and where the time line comes apart each component may be ranked again by the load that is left in it: orders that
look at the load mean another thing there, and some packings are found only so. Cut off beside the paper's tests: twins (same life and size) in
another order than that of their ranks, and a buffer that hangs over a hole which nothing can fill. A node costs about a fifth of one of
`_canonical`, whose inference is stronger. For plain packings only: one piece each, no alignment, nothing fixed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.decisions.allocate._canonical import EXHAUSTED, LIMIT, PACKED, STOPPED, hangs
from fourfold.decisions.allocate._form import Packing


class RankedPacking(NamedTuple):
    """Buffers in the order of their static rank; heights in units."""

    size: np.ndarray                                                    # [n]
    low: np.ndarray                                                     # [n] first section
    high: np.ndarray                                                    # [n] after the last
    first: np.ndarray                                                   # [n + 1] rows of near
    near: np.ndarray                                                    # neighbours in time
    sfirst: np.ndarray                                                  # [sections + 1] rows of live
    live: np.ndarray                                                    # buffers of each section
    twin: np.ndarray                                                    # [n] the last one before it with the same life and size, or -1
    order: np.ndarray                                                   # [n] number in the form
    loaded: bool                                                        # the fullest sections come first: ranked again in each component


class RankedStack(NamedTuple):
    """Working arrays of `search`; i8 but where noted."""

    offset: np.ndarray                                                  # [n]
    least: np.ndarray                                                   # [n]
    placed: np.ndarray                                                  # [n] u8
    floor: np.ndarray                                                   # [sections]
    total: np.ndarray                                                   # [sections] size of the unplaced
    cross: np.ndarray                                                   # [sections] unplaced buffers over the border after it
    mark: np.ndarray                                                    # [sections] stamp
    touched: np.ndarray                                                 # [sections] scratch
    part: np.ndarray                                                    # [sections + 2] scratch, as the next two
    begin: np.ndarray
    end: np.ndarray
    later: np.ndarray                                                   # [sections + 2] of each part: where its list goes on after the last placed
    peak: np.ndarray                                                    # [n] scratch
    trail: np.ndarray                                                   # [·, 2] buffer, least before
    floors: np.ndarray                                                  # [·, 2] section, floor before
    done: np.ndarray                                                    # [n]
    lists: np.ndarray
    picks: np.ndarray
    frame: np.ndarray                                                   # [·, 16]
    queue: np.ndarray                                                   # [·, 6]
    at: np.ndarray                                                      # [8]


_LIST, _LEN, _PICK, _PICKS, _TRY, _OFF, _TRAIL, _FLOORS, _DONE, _PARENT, _QUEUE, _ENDLIST, _ENDPICK, _QTOP, _LO, _HI = range(16)
_QLIST, _QLEN, _QPARENT, _QOFF, _QNEXT, _QAFTER = range(6)
_T, _F, _D, _L, _Q, _STAMP, VISITED = range(7)
LOOK = 1023                                                             # nodes between looks at the flag, less one


def ranked(p: Packing, order: np.ndarray, loaded: bool) -> RankedPacking:
    """`form`'s buffers in the order i8[n] of their rank; `loaded`: of `RankedPacking`."""
    n = len(order)
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    low, high, size = p.low[order], p.high[order], p.size[order]
    count = np.diff(p.first)[order]
    first = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    near = np.concatenate([np.sort(rank[p.near[p.first[b]:p.first[b + 1]]]) for b in order] or [np.zeros(0, np.int64)]).astype(np.int32)
    live = [np.flatnonzero((low <= k) & (k < high)) for k in range(p.sections)]
    sfirst = np.concatenate([[0], np.cumsum([len(row) for row in live])]).astype(np.int64)
    twin = np.full(n, -1, np.int64)
    last: dict[tuple[int, int, int], int] = {}
    for b in range(n):
        key = (int(low[b]), int(high[b]), int(size[b]))
        twin[b] = last.get(key, -1)
        last[key] = b
    rows = np.concatenate([*live, np.zeros(0, np.int64)]).astype(np.int32)
    return RankedPacking(size, low, high, first, near, sfirst, rows, twin, order.astype(np.int64), loaded)


def stack(p: Packing) -> RankedStack:
    """Working arrays for any order of a form."""
    n, edges, sections = len(p.size), len(p.near), p.sections
    area = n * (n + 5) // 2 + 4 * n + 16

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int64)

    a, z = sections + 1, sections + 2
    return RankedStack(zeros(n), zeros(n), np.zeros(n, np.uint8), zeros(a), zeros(a), zeros(a), zeros(a), zeros(a), zeros(z), zeros(z), zeros(z),
                       zeros(z), zeros(n), zeros(edges + n + 1, 2), zeros((n + 1) * a, 2), np.zeros(n + 1, np.int32), np.zeros(2 * area, np.int32),
                       np.zeros(area, np.int32), zeros(2 * n + 4, 16), zeros(4 * n + 8, 6), zeros(8))


@njit(cache=True, nogil=True)
def _undo(p, s, trail, floors, done):  # type: ignore[no-untyped-def]
    for i in range(s.at[_T] - 1, trail - 1, -1):
        s.least[s.trail[i, 0]] = s.trail[i, 1]
    for i in range(s.at[_F] - 1, floors - 1, -1):
        s.floor[s.floors[i, 0]] = s.floors[i, 1]
    for i in range(done, s.at[_D]):
        b = s.done[i]
        s.placed[b] = 0
        for k in range(p.low[b], p.high[b]):
            s.total[k] += p.size[b]
        for k in range(p.low[b], p.high[b] - 1):
            s.cross[k] += 1
    s.at[_T], s.at[_F], s.at[_D] = trail, floors, done


@njit(cache=True, nogil=True)
def _place(p, s, b, cap, lo, hi):  # type: ignore[no-untyped-def]
    """Put `b` at its least offset: (whether all tests hold, whether the sections came apart, whether an unplaced one lives beside it)."""
    at = s.least[b]
    top, size = at + p.size[b], p.size[b]
    s.offset[b] = at
    s.placed[b] = 1
    s.done[s.at[_D]] = b
    s.at[_D] += 1
    cut, beside = False, False
    low, high = p.low[b], p.high[b]
    for k in range(low, high - 1):
        s.cross[k] -= 1
        cut |= s.cross[k] == 0
    for k in range(low, high):
        s.total[k] -= size
    s.at[_STAMP] += 1
    stamp, count, t, ft = s.at[_STAMP], 0, s.at[_T], s.at[_F]
    for k in range(low, high):
        s.floors[ft, 0], s.floors[ft, 1] = k, s.floor[k]
        ft += 1
        s.floor[k] = top
        s.mark[k] = stamp
        s.touched[count] = k
        count += 1
    fine = True
    for e in range(p.first[b], p.first[b + 1]):
        o = p.near[e]
        if s.placed[o]:
            continue
        beside = True
        was = s.least[o]
        if was >= top:
            continue
        if top + p.size[o] > cap:
            fine = False
            break
        s.trail[t, 0], s.trail[t, 1] = o, was
        t += 1
        s.least[o] = top
        for k in range(p.low[o], p.high[o]):
            if s.mark[k] != stamp and s.floor[k] >= was:
                s.mark[k] = stamp
                s.touched[count] = k
                count += 1
    s.at[_T], s.at[_F] = t, ft
    if not fine:
        return False, cut, True
    most = np.int64(0)
    for k in range(lo, hi):
        most = max(most, max(s.floor[k], at) + s.total[k])
    if most > cap:
        return False, cut, beside
    for i in range(count):
        k = s.touched[i]
        if s.total[k] == 0:
            continue
        least = np.int64(1) << 62
        for j in range(p.sfirst[k], p.sfirst[k + 1]):
            o = p.live[j]
            if not s.placed[o]:
                least = min(least, s.least[o])
        if least > s.floor[k]:
            if least + s.total[k] > cap:
                fine = False
                break
            s.floors[ft, 0], s.floors[ft, 1] = k, s.floor[k]
            ft += 1
            s.floor[k] = least
    s.at[_F] = ft
    return fine, cut, beside


@njit(cache=True, nogil=True)
def _open(p, s, f, start, count, off, after, parent, head):  # type: ignore[no-untyped-def]
    """Make frame `f`: the unplaced of a list, and its candidates in the order of their trial. after: place in the list of the buffer placed last."""
    fr, begin, w = s.frame, s.at[_L], s.at[_L]
    ceiling, lo, hi, last = np.int64(1) << 62, np.int64(1) << 62, np.int64(0), begin
    for i in range(start, start + count):
        b = s.lists[i]
        if i == after:
            last = w
        if s.placed[b]:
            continue
        s.lists[w] = b
        w += 1
        ceiling = min(ceiling, s.least[b] + p.size[b])
        lo, hi = min(lo, p.low[b]), max(hi, p.high[b])
    s.at[_L] = w
    first = fr[f, _PICK]
    picks = first
    for i in range(begin, w):
        b = s.lists[i]
        at = s.least[b]
        if at >= ceiling:
            continue
        if at < off or (at == off and i < last):
            if hangs(p, s, b, off):
                picks = first
                break
            continue
        if p.twin[b] >= 0 and not s.placed[p.twin[b]]:
            continue
        j = picks
        while j > first and s.least[s.lists[s.picks[j - 1]]] > at:
            s.picks[j] = s.picks[j - 1]
            j -= 1
        s.picks[j] = i
        picks += 1
    fr[f, _LIST], fr[f, _LEN], fr[f, _PICKS], fr[f, _TRY], fr[f, _OFF] = begin, w - begin, picks - first, 0, off
    fr[f, _TRAIL], fr[f, _FLOORS], fr[f, _DONE], fr[f, _PARENT], fr[f, _QUEUE] = s.at[_T], s.at[_F], s.at[_D], parent, head
    fr[f, _ENDLIST], fr[f, _ENDPICK], fr[f, _QTOP], fr[f, _LO], fr[f, _HI] = w, picks, s.at[_Q], lo, hi


@njit(cache=True, nogil=True)
def _rank(p, s, begin, end):  # type: ignore[no-untyped-def]
    """Order a list by the largest load that is left in a section of each."""
    for i in range(begin, end):
        b, most = s.lists[i], np.int64(0)
        for k in range(p.low[b], p.high[b]):
            most = max(most, s.total[k])
        s.peak[b] = most
        j = i
        while j > begin and s.peak[s.lists[j - 1]] < most:
            s.lists[j] = s.lists[j - 1]
            j -= 1
        s.lists[j] = b


@njit(cache=True, nogil=True)
def _split(p, s, start, count, lo, hi, parent, off, after, head):  # type: ignore[no-untyped-def]
    """Put the components of the unplaced of a list into the queue before `head`, the smallest first; the new head."""
    parts = 0
    for k in range(lo, hi):
        s.part[k] = parts
        if s.cross[k] == 0:
            parts += 1
    for q in range(parts + 1):
        s.end[q] = 0
    for i in range(start, start + count):
        if not s.placed[s.lists[i]]:
            s.end[s.part[p.low[s.lists[i]]]] += 1
    begin = s.at[_L]
    for q in range(parts + 1):
        s.begin[q] = begin
        begin += s.end[q]
        s.end[q] = s.begin[q]
    for i in range(start, start + count):
        if i == after:
            for q in range(parts + 1):
                s.later[q] = s.end[q]
        if not s.placed[s.lists[i]]:
            q = s.part[p.low[s.lists[i]]]
            s.lists[s.end[q]] = s.lists[i]
            s.end[q] += 1
    if p.loaded:
        for q in range(parts + 1):
            _rank(p, s, s.begin[q], s.end[q])
            s.later[q] = s.begin[q]
    s.at[_L] = begin
    while True:                                                         # the largest first into the queue
        best, most = -1, 0
        for q in range(parts + 1):
            if s.end[q] - s.begin[q] > most:
                best, most = q, s.end[q] - s.begin[q]
        if best < 0:
            return head
        i = s.at[_Q]
        s.at[_Q] = i + 1
        s.queue[i, 0], s.queue[i, 1], s.queue[i, 2] = s.begin[best], most, parent
        s.queue[i, 3], s.queue[i, 4], s.queue[i, 5] = off, head, s.later[best]
        s.end[best] = s.begin[best]
        head = i


@njit(cache=True, nogil=True)
def _root(p, s):  # type: ignore[no-untyped-def]
    n, sections = len(p.size), len(p.sfirst) - 1
    for a in (s.least, s.floor, s.total, s.cross, s.mark, s.at):
        a[:] = 0
    s.placed[:] = 0
    for b in range(n):
        s.lists[b] = b
        for k in range(p.low[b], p.high[b]):
            s.total[k] += p.size[b]
        for k in range(p.low[b], p.high[b] - 1):
            s.cross[k] += 1
    s.at[_L] = n
    return _split(p, s, 0, n, 0, sections, -1, 0, 0, -1)


@njit(cache=True, nogil=True)
def search(p, s, cap, limit, stop):  # type: ignore[no-untyped-def]
    """Pack within `cap`: PACKED (offsets in `s.offset`, by rank), EXHAUSTED (proof that there is none), LIMIT (after `limit` nodes) or STOPPED."""
    fr, head, f, fresh = s.frame, _root(p, s), -1, True
    for k in range(len(s.total)):
        if s.total[k] > cap:
            return EXHAUSTED
    for b in range(len(p.size)):
        if p.size[b] > cap:
            return EXHAUSTED
    while True:
        if fresh:                                                       # the next component that waits
            if head < 0:
                return PACKED
            q, head = head, s.queue[head, _QNEXT]
            parent = s.queue[q, _QPARENT]
            g = f + 1
            fr[g, _PICK] = 0 if f < 0 else fr[f, _ENDPICK]
            _open(p, s, g, s.queue[q, _QLIST], s.queue[q, _QLEN], s.queue[q, _QOFF], s.queue[q, _QAFTER], parent, head)
            f, fresh = g, False
        if fr[f, _TRY] >= fr[f, _PICKS]:                                # nothing left to try here: back
            f = fr[f, _PARENT]
            if f < 0:
                return EXHAUSTED
            _undo(p, s, fr[f, _TRAIL], fr[f, _FLOORS], fr[f, _DONE])
            s.at[_L], s.at[_Q] = fr[f, _ENDLIST], fr[f, _QTOP]
            continue
        at = s.picks[fr[f, _PICK] + fr[f, _TRY]]
        b = s.lists[at]
        fr[f, _TRY] += 1
        s.at[VISITED] += 1
        if s.at[VISITED] > limit:
            return LIMIT
        if s.at[VISITED] & LOOK == 1 and stop[0] != 0:
            return STOPPED
        fine, cut, beside = _place(p, s, b, cap, fr[f, _LO], fr[f, _HI])
        if not beside:                                                  # it is in nobody's way: no other choice can help where this fails
            fr[f, _TRY] = fr[f, _PICKS]
        if not fine:
            _undo(p, s, fr[f, _TRAIL], fr[f, _FLOORS], fr[f, _DONE])
            continue
        head = fr[f, _QUEUE]
        if fr[f, _LEN] == 1:
            fresh = True
        elif cut:
            head = _split(p, s, fr[f, _LIST], fr[f, _LEN], fr[f, _LO], fr[f, _HI], f, s.offset[b], at, head)
            fresh = True
        else:
            fr[f + 1, _PICK] = fr[f, _ENDPICK]
            _open(p, s, f + 1, fr[f, _LIST], fr[f, _LEN], s.offset[b], at, f, head)
            f += 1
