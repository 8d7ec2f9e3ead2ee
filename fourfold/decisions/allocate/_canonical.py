"""Canonical depth-first packing: the compiled search of `minimalloc`, on plain arrays, with an explicit stack and one trail.

Time is cut into sections (the maximal cliques of the lives). A buffer is one or more pieces: sections [lo, hi) and heights [bottom, top) above its
offset. Buffers are placed in the order of their offsets, each at the least offset that what is placed leaves it. What is cut off:
- a section whose unplaced pieces, taken in order of their least heights as jobs with release dates, end above the capacity;
- an offset at or above the top of an unplaced buffer that could lie below it (Moffitt 2023: dominance), and one that leaves a buffer hanging over
  a hole that nothing can keep it out of;
- twins in another order than that of their ranks;
- states (unplaced buffers with their least offsets) that have failed before.
A buffer over all sections of its component is put at the top of it. Components that no unplaced buffer joins are solved one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.decisions.allocate._form import Packing

EXHAUSTED, PACKED, LIMIT, STOPPED = 0, 1, 2, 3


class _State(NamedTuple):
    offset: np.ndarray                                                  # [n] where placed
    least: np.ndarray                                                   # [n] least offset left
    placed: np.ndarray                                                  # [n] u8
    cross: np.ndarray                                                   # [sections] unplaced buffers over the border after a section
    height: np.ndarray                                                  # [sections] scratch
    part: np.ndarray                                                    # [sections] scratch, as the next two
    begin: np.ndarray
    order: np.ndarray
    raised: np.ndarray                                                  # [n] stamp of the placement that raised it last
    scratch: np.ndarray                                                 # [n]
    trail: np.ndarray                                                   # [·, 2] buffer, least before
    done: np.ndarray                                                    # [n] buffers in the order of their placement
    lists: np.ndarray                                                   # unplaced buffers of each frame by least offset
    picks: np.ndarray                                                   # candidates of each frame
    frame: np.ndarray                                                   # [·, F]
    queue: np.ndarray                                                   # [·, Q] components that wait
    seen: np.ndarray                                                    # [2^k, 3] key, last offset, last rank
    zobrist: np.ndarray                                                 # [n]
    weight: np.ndarray                                                  # [sections] f8: failures there
    at: np.ndarray                                                      # [8] lengths of trail, done, lists, picks, queue, stamp


# columns of a frame
_LIST, _LEN, _PICK, _PICKS, _TRY, _CAP, _OFF, _RANK, _TRAIL, _DONE, _PARENT, _QUEUE, _ENDLIST, _ENDPICK, _QTOP, _KEY = range(16)
# columns of a waiting component
_QLIST, _QLEN, _QCAP, _QPARENT, _QOFF, _QRANK, _QNEXT = range(7)
# columns of `at`
_T, _D, _L, _P, _Q, _STAMP, VISITED, _PEAK = range(8)
_A, _B, _C = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def state(p: Packing, seed: int = 0, memory: int = 16) -> _State:
    """Working arrays for `search`; `memory`: log2 of the number of failed states kept."""
    n, edges = len(p.size), len(p.near)
    rng = np.random.default_rng(seed)
    area = n * (n + 5) // 2 + 4 * n + 16
    zeros = np.zeros
    return _State(zeros(n, np.int64), zeros(n, np.int64), zeros(n, np.uint8), zeros(p.sections + 1, np.int64), zeros(p.sections + 1, np.int64),
                  zeros(p.sections + 1, np.int64), zeros(p.sections + 2, np.int64), zeros(p.sections + 2, np.int64), zeros(n, np.int64),
                  zeros(n + 1, np.int64), zeros((edges + n + 1, 2), np.int64),
                  zeros(n + 1, np.int32), zeros(2 * area, np.int32), zeros(area, np.int32), zeros((2 * n + 4, 16), np.int64),
                  zeros((4 * n + 8, 7), np.int64), zeros((1 << memory, 3), np.int64),
                  rng.integers(1, 1 << 62, n, np.int64), zeros(p.sections + 1), zeros(8, np.int64))


@njit(cache=True, nogil=True)
def _remove(p, s, b):  # type: ignore[no-untyped-def]
    """Take `b` out of the unplaced ones; whether a border lost its last one."""
    s.placed[b] = 1
    s.done[s.at[_D]] = b
    s.at[_D] += 1
    cut = False
    for k in range(p.low[b], p.high[b] - 1):
        s.cross[k] -= 1
        cut |= s.cross[k] == 0
    return cut


@njit(cache=True, nogil=True)
def _undo(p, s, trail, done):  # type: ignore[no-untyped-def]
    for i in range(s.at[_T] - 1, trail - 1, -1):
        s.least[s.trail[i, 0]] = s.trail[i, 1]
    for i in range(done, s.at[_D]):
        b = s.done[i]
        s.placed[b] = 0
        for k in range(p.low[b], p.high[b] - 1):
            s.cross[k] += 1
    s.at[_T], s.at[_D] = trail, done


@njit(cache=True, nogil=True)
def _fits(p, s, start, count, last, cap):  # type: ignore[no-untyped-def]
    """Whether in every section the unplaced pieces, as jobs with release dates, end by `cap`. `lists[start:start + count]` is by least offset."""
    height = s.height
    height[:] = 0
    for i in range(start, start + count):
        o = s.lists[i]
        release = max(s.least[o], last)
        for q in range(p.piece[o], p.piece[o + 1]):
            at, tall, most = release + p.bottom[q], p.top[q] - p.bottom[q], 0
            for k in range(p.plo[q], p.phi[q]):
                h = max(height[k], at) + tall
                height[k] = h
                most = max(most, h)
            if most > cap:
                for k in range(p.plo[q], p.phi[q]):
                    if height[k] > cap:
                        s.weight[k] += 1.0
                return False
    return True


@njit(cache=True, nogil=True)
def _raise(p, s, b, cap):  # type: ignore[no-untyped-def]
    """Lift the unplaced neighbours of `b` above it: (how many are in `scratch`, by least offset, or -1 where one finds no room; b's unplaced
    neighbours)."""
    s.at[_STAMP] += 1
    stamp, at, count, beside = s.at[_STAMP], s.offset[b], 0, 0
    for e in range(p.first[b], p.first[b + 1]):
        o = p.near[e]
        if s.placed[o]:
            continue
        beside += 1
        above = at + p.apart[e]
        if above <= s.least[o]:
            continue
        if p.align[o] > 1:
            above = (above + p.align[o] - 1) // p.align[o] * p.align[o]
            if above <= s.least[o]:
                continue
        if above + p.size[o] > cap or (p.fixed[o] >= 0 and above > p.fixed[o]):
            s.weight[p.low[o]] += 1.0
            return -1, max(1, beside)
        t = s.at[_T]
        s.trail[t, 0], s.trail[t, 1] = o, s.least[o]
        s.at[_T] = t + 1
        s.least[o] = above
        s.raised[o] = stamp
        j = count
        while j > 0 and s.least[s.scratch[j - 1]] > above:
            s.scratch[j] = s.scratch[j - 1]
            j -= 1
        s.scratch[j] = o
        count += 1
    return count, beside


@njit(cache=True, nogil=True)
def _merge(s, start, count, raised):  # type: ignore[no-untyped-def]
    """The list of the next frame: the unplaced of `lists[start:start + count]` with the raised ones put where they now belong; its length."""
    begin = w = s.at[_L]
    stamp, r = s.at[_STAMP], 0
    for i in range(start, start + count):
        o = s.lists[i]
        if s.placed[o] or s.raised[o] == stamp:
            continue
        while r < raised and s.least[s.scratch[r]] <= s.least[o]:
            s.lists[w] = s.scratch[r]
            w, r = w + 1, r + 1
        s.lists[w] = o
        w += 1
    while r < raised:
        s.lists[w] = s.scratch[r]
        w, r = w + 1, r + 1
    s.at[_L] = w
    return w - begin


@njit(cache=True, nogil=True)
def _split(p, s, start, count, cap, parent, off, rank, head):  # type: ignore[no-untyped-def]
    """Put the components of a list into the queue before `head`, the smallest first; the new head."""
    low, high = p.low[s.lists[start]], p.high[s.lists[start]]
    for i in range(start + 1, start + count):
        low, high = min(low, p.low[s.lists[i]]), max(high, p.high[s.lists[i]])
    parts = 0
    for k in range(low, high):
        s.part[k] = parts
        s.height[k] = 0
        if s.cross[k] == 0:
            parts += 1
    for i in range(start, start + count):
        s.height[low + s.part[p.low[s.lists[i]]]] += 1                  # how many are in each part
    begin = s.at[_L]
    for k in range(parts + 1):                                          # where each part's list begins
        if low + k < high:
            here = s.height[low + k]
            s.height[low + k], s.begin[k] = begin, here
            begin += here
    for i in range(start, start + count):
        at = low + s.part[p.low[s.lists[i]]]
        s.lists[s.height[at]] = s.lists[i]
        s.height[at] += 1
    s.at[_L] = begin
    made = 0
    for k in range(parts + 1):                                          # by number of buffers, the largest first into the queue
        if low + k >= high or s.begin[k] == 0:
            continue
        j = made
        while j > 0 and s.begin[s.order[j - 1]] < s.begin[k]:
            s.order[j] = s.order[j - 1]
            j -= 1
        s.order[j] = k
        made += 1
    for i in range(made):
        k, q = s.order[i], s.at[_Q]
        s.at[_Q] = q + 1
        s.queue[q, 0], s.queue[q, 1], s.queue[q, 2] = s.height[low + k] - s.begin[k], s.begin[k], cap
        s.queue[q, 3], s.queue[q, 4], s.queue[q, 5], s.queue[q, 6] = parent, off, rank, head
        head = q
    return head


@njit(cache=True, nogil=True)
def _top(p, s, q):  # type: ignore[no-untyped-def]
    """Put what lives all through the waiting component `q` at its top. -1: no room; 0: done; 1: the rest is to be split."""
    start, count = s.queue[q, _QLIST], s.queue[q, _QLEN]
    low, high = p.low[s.lists[start]], p.high[s.lists[start]]
    for i in range(start + 1, start + count):
        low, high = min(low, p.low[s.lists[i]]), max(high, p.high[s.lists[i]])
    cut, w = False, start
    for i in range(start, start + count):
        b = s.lists[i]
        if p.low[b] == low and p.high[b] == high:
            s.queue[q, _QCAP] -= p.size[b]
            if s.queue[q, _QCAP] < s.least[b]:
                return -1
            s.offset[b] = s.queue[q, _QCAP]
            cut |= _remove(p, s, b)
    if s.queue[q, _QCAP] < 0:
        return -1
    begin, w = s.at[_L], s.at[_L]
    for i in range(start, start + count):
        if not s.placed[s.lists[i]]:
            s.lists[w] = s.lists[i]
            w += 1
    s.at[_L] = w
    s.queue[q, _QLIST], s.queue[q, _QLEN] = begin, w - begin
    return 1 if cut else 0


@njit(cache=True, nogil=True)
def _allowed(p, s, rank, b):  # type: ignore[no-untyped-def]
    """Whether no twin of b that goes before it is unplaced."""
    for j in range(p.kinfirst[p.kin[b]], p.kinfirst[p.kin[b] + 1]):
        c = p.kinfolk[j]
        if not s.placed[c] and p.size[c] == p.size[b] and rank[c] < rank[b]:
            return False
    return True


@njit(cache=True, nogil=True)
def hangs(p, s, b, last):  # type: ignore[no-untyped-def]
    """Whether b, passed over, could still fall to its least offset: none of its neighbours can come in between."""
    above = s.least[b] + p.size[b]
    if last >= above:
        return True
    for e in range(p.first[b], p.first[b + 1]):
        o = p.near[e]
        if not s.placed[o] and s.least[o] < above:
            return False
    return True


@njit(cache=True, nogil=True)
def _open(p, s, rank, f, start, count, cap, off, last, parent, head):  # type: ignore[no-untyped-def]
    """Make frame `f`: the candidates of a list, in the order of their trial; none where the state fails at once."""
    fr, picks, begin = s.frame, 0, s.at[_P]
    fr[f, _LIST], fr[f, _LEN], fr[f, _CAP], fr[f, _OFF], fr[f, _RANK] = start, count, cap, off, last
    fr[f, _PARENT], fr[f, _QUEUE], fr[f, _TRY], fr[f, _PICK] = parent, head, 0, begin
    key, ceiling = np.uint64(cap), np.int64(1) << 62
    for i in range(start, start + count):
        b = s.lists[i]
        ceiling = min(ceiling, s.least[b] + p.size[b])
        x = np.uint64(s.zobrist[b]) + np.uint64(s.least[b]) * _A
        x = (x ^ (x >> np.uint64(30))) * _B
        x = (x ^ (x >> np.uint64(27))) * _C
        key += x ^ (x >> np.uint64(31))
    fr[f, _KEY] = np.int64(key)
    slot = np.int64(key & np.uint64(len(s.seen) - 1))
    fails = s.seen[slot, 0] == fr[f, _KEY] and (off > s.seen[slot, 1] or (off == s.seen[slot, 1] and last >= s.seen[slot, 2]))
    if not fails:
        for i in range(start, start + count):
            b = s.lists[i]
            at = s.least[b]
            if at >= ceiling:
                break
            if at < off or (at == off and rank[b] < last):
                if hangs(p, s, b, off):
                    fails = True
                    break
                continue
            if p.plain and not _allowed(p, s, rank, b):
                continue
            j = begin + picks
            while j > begin and s.least[s.picks[j - 1]] == at and rank[s.picks[j - 1]] > rank[b]:
                s.picks[j] = s.picks[j - 1]
                j -= 1
            s.picks[j] = b
            picks += 1
    if fails:
        picks = 0
    fr[f, _PICKS] = picks
    s.at[_P] = begin + picks
    fr[f, _TRAIL], fr[f, _DONE], fr[f, _ENDLIST], fr[f, _ENDPICK], fr[f, _QTOP] = s.at[_T], s.at[_D], s.at[_L], s.at[_P], s.at[_Q]
    return fails


@njit(cache=True, nogil=True)
def _root(p, s, cap):  # type: ignore[no-untyped-def]
    n = len(p.size)
    s.placed[:] = 0
    s.cross[:] = 0
    s.at[:] = 0
    s.raised[:] = 0
    for b in range(n):
        s.least[b] = max(0, p.fixed[b])
        for k in range(p.low[b], p.high[b] - 1):
            s.cross[k] += 1
    order = np.argsort(s.least, kind="mergesort")
    for i in range(n):
        s.lists[i] = order[i]
    s.at[_L] = n
    return _split(p, s, 0, n, cap, -1, 0, -1, -1)


@njit(cache=True, nogil=True)
def search(p, s, rank, cap, limit, stop):  # type: ignore[no-untyped-def]
    """Pack within `cap`: PACKED (offsets in `s.offset`), EXHAUSTED (proof that there is none), LIMIT (after `limit` nodes) or STOPPED."""
    fr = s.frame
    for i in range(len(s.seen)):
        s.seen[i, 0] = 0
    head, f, fresh = _root(p, s, cap), -1, True
    start = count = off = last = parent = 0
    for b in range(len(p.size)):
        if p.size[b] + s.least[b] > cap:
            return EXHAUSTED
    while True:
        while fresh:                                                    # the next component that waits
            if head < 0:
                return PACKED
            q, head = head, s.queue[head, _QNEXT]
            parent, off, last = s.queue[q, _QPARENT], s.queue[q, _QOFF], s.queue[q, _QRANK]
            cut = _top(p, s, q) if p.plain else 0
            start, count, cap = s.queue[q, _QLIST], s.queue[q, _QLEN], s.queue[q, _QCAP]
            fresh = cut >= 0 and count == 0
            if cut == 1 and count > 0:
                head = _split(p, s, start, count, cap, parent, off, last, head)
                fresh = True
            elif not fresh:
                f = (f + 1) if parent < f + 1 else parent + 1
                _open(p, s, rank, f, start, count, cap, off, last, parent, head)
                if cut < 0 or not _fits(p, s, start, count, off, cap):
                    fr[f, _PICKS] = 0
        if fr[f, _TRY] >= fr[f, _PICKS]:                                # nothing left to try here: back
            slot = fr[f, _KEY] & (len(s.seen) - 1)
            s.seen[slot, 0], s.seen[slot, 1], s.seen[slot, 2] = fr[f, _KEY], fr[f, _OFF], fr[f, _RANK]
            f = fr[f, _PARENT]
            if f < 0:
                return EXHAUSTED
            _undo(p, s, fr[f, _TRAIL], fr[f, _DONE])
            s.at[_L], s.at[_P], s.at[_Q] = fr[f, _ENDLIST], fr[f, _ENDPICK], fr[f, _QTOP]
            continue
        b = s.picks[fr[f, _PICK] + fr[f, _TRY]]
        fr[f, _TRY] += 1
        s.at[VISITED] += 1
        if s.at[VISITED] > limit:
            return LIMIT
        if stop[0] != 0:
            return STOPPED
        s.offset[b] = s.least[b]
        cut = _remove(p, s, b)
        raised, beside = _raise(p, s, b, fr[f, _CAP])
        if beside == 0:                                                 # it is in nobody's way: no other choice can help where this fails
            fr[f, _TRY] = fr[f, _PICKS]
        start, fits = s.at[_L], raised >= 0
        count = _merge(s, fr[f, _LIST], fr[f, _LEN], raised) if fits else 0
        if not fits or not _fits(p, s, start, count, s.offset[b], fr[f, _CAP]):
            _undo(p, s, fr[f, _TRAIL], fr[f, _DONE])
            s.at[_L] = fr[f, _ENDLIST]
            continue
        head = fr[f, _QUEUE]
        if count == 0:
            fresh = True
        elif cut:
            head = _split(p, s, start, count, fr[f, _CAP], f, s.offset[b], rank[b], head)
            fresh = True
        else:
            _open(p, s, rank, f + 1, start, count, fr[f, _CAP], s.offset[b], rank[b], f, head)
            f += 1
