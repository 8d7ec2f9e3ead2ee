"""The rules of the policies, as five small functions of the kind: what a hit changes (`touch`), what a miss finds among the ghosts (`meet`), who is
to leave (`victim`), how it leaves (`drop`), and where a new object enters (`admit`).

They stand together so that one kernel replays all of them, and that a policy may be a part of another. Each technique's file tells its source.
"""

from __future__ import annotations

from numba import njit

from fourfold.decisions.cache._lirs import lirs_admit, lirs_drop, lirs_touch, lirs_victim, stack_out
from fourfold.decisions.cache._state import (
    ARC,
    BELADY,
    CAPACITY,
    CLOCK,
    CLOCK2QPLUS,
    FIFO,
    FILLED,
    FLAG,
    GDSF,
    HAND,
    LFU,
    LIRS,
    LRU,
    NOWHERE,
    QUEUES,
    RESIDENT,
    S3FIFO,
    SIEVE,
    SLRU,
    TARGET,
    TWOQ,
    heap_in,
    heap_out,
    oldest,
    push,
    push_oldest,
    settle,
    trim,
    unlink,
)

NEVER = 1 << 60
_SMALL, _WINDOW, _GHOST_PLUS = 0.10, 0.50, 0.50                         # S3-FIFO's small queue; Clock2Q+'s window within it and its ghosts
_IN, _OUT = 0.25, 0.50                                                  # 2Q's Kin and Kout
_MOST = 3                                                               # S3-FIFO counts to three


@njit(cache=True)
def touch(s, kind, o, following):  # type: ignore[no-untyped-def]
    """A hit on object `o`; `following`: its next request, which only Belady's rule reads."""
    if kind == LRU:
        unlink(s, o)
        push(s, 0, o)
    elif kind == SIEVE:
        s.tag[o] = 1
    elif kind == S3FIFO:
        s.tag[o] = min(_MOST, s.tag[o] + 1)
    elif kind == CLOCK2QPLUS:                                           # hits soon after the first are one use, not several
        if s.where[o] == 1 or s.reg[FILLED] - s.stamp[o] >= _WINDOW * _SMALL * s.reg[CAPACITY]:
            s.tag[o] = 1
    elif kind == TWOQ or kind == ARC:
        if kind == ARC or s.where[o] == 1:
            unlink(s, o)
            push(s, 1, o)
    elif kind == SLRU:
        _promote(s, o)
    elif kind == LIRS:
        lirs_touch(s, o)
    elif kind == LFU or kind == GDSF or kind == BELADY:
        s.tag[o] += 1
        _price(s, kind, o, following)
        settle(s, o, s.number[0])


@njit(cache=True)
def _price(s, kind, o, following):  # type: ignore[no-untyped-def]
    """The key by which object `o` waits in the heap; the least leaves."""
    s.reg[CLOCK] += 1
    s.stamp[o] = s.reg[CLOCK]
    if kind == LFU:
        s.key[o] = s.tag[o]
    elif kind == GDSF:
        s.key[o] = s.real[0] + s.tag[o] * s.worth[o] / max(1, s.size[o])
    else:
        s.key[o] = -float(following)


@njit(cache=True)
def _promote(s, o):  # type: ignore[no-untyped-def]
    """SLRU: up one of four segments; what no longer fits there cools down, one segment at a time."""
    q, share = min(3, s.where[o] + 1), s.reg[CAPACITY] // 4
    unlink(s, o)
    push(s, q, o)
    for level in range(q, 0, -1):
        while s.used[level] > share:
            cold = oldest(s, level)
            unlink(s, cold)
            push(s, level - 1, cold)


@njit(cache=True)
def meet(s, kind, o, size):  # type: ignore[no-untyped-def]
    """A miss of object `o`, before room is made: it leaves the ghosts, and FLAG says from which queue it came (0: none)."""
    q = s.where[o]
    s.reg[FLAG] = max(0, q)
    if kind == ARC and q >= RESIDENT:
        grow = max(1.0, s.used[11 - q] / max(1, s.used[q])) * size      # the ghosts of recency (5) ask for room, those of frequency (6) give it
        s.reg[TARGET] = min(s.reg[CAPACITY], s.reg[TARGET] + int(grow)) if q == 5 else max(0, s.reg[TARGET] - int(grow))
    if q != NOWHERE:
        if kind == LIRS:
            stack_out(s, o)
        unlink(s, o)


@njit(cache=True)
def victim(s, kind):  # type: ignore[no-untyped-def]
    """Who is to leave; it still stands in its queue. What only moves on the way has moved."""
    if kind == LRU or kind == FIFO:
        return oldest(s, 0)
    if kind == SIEVE:
        return _sieve(s)
    if kind == S3FIFO or kind == CLOCK2QPLUS:
        return _small_or_main(s, kind)
    if kind == TWOQ:
        return oldest(s, 0) if s.used[0] > _IN * s.reg[CAPACITY] or s.number[1] == 0 else oldest(s, 1)
    if kind == ARC:
        first = s.used[0] > s.reg[TARGET] or (s.reg[FLAG] == 6 and s.used[0] == s.reg[TARGET])
        return oldest(s, 0) if s.number[0] > 0 and (first or s.number[1] == 0) else oldest(s, 1)
    if kind == SLRU:
        for level in range(4):
            if s.number[level] > 0:
                return oldest(s, level)
    if kind == LIRS:
        return lirs_victim(s)
    return s.heap[0]


@njit(cache=True)
def _sieve(s):  # type: ignore[no-untyped-def]
    """The hand walks from old to new, spares whom it finds visited, once, and stops at the first that is not."""
    node = s.reg[HAND] if s.reg[HAND] >= QUEUES else s.prev[0]
    while s.tag[node - QUEUES] > 0:
        s.tag[node - QUEUES] = 0
        node = s.prev[node] if s.prev[node] >= QUEUES else s.prev[0]
    s.reg[HAND] = node
    return node - QUEUES


@njit(cache=True)
def _small_or_main(s, kind):  # type: ignore[no-untyped-def]
    """S3-FIFO and Clock2Q+: from the small queue who was used goes on to the main one; there, who was used goes round once more."""
    main, needed = (1.0 - _SMALL) * s.reg[CAPACITY], 2 if kind == S3FIFO else 1
    while True:
        if s.number[0] > 0 and (s.used[1] <= main or s.number[1] == 0):
            o = oldest(s, 0)
            if s.tag[o] < needed:
                return o
            unlink(s, o)
            push(s, 1, o)
            s.tag[o] = 0
        else:
            o = oldest(s, 1)
            if s.tag[o] < 1:
                return o
            unlink(s, o)
            push(s, 1, o)
            s.tag[o] -= 1


@njit(cache=True)
def drop(s, kind, o):  # type: ignore[no-untyped-def]
    """Object `o` leaves the cache; some policies remember it."""
    q = s.where[o]
    if kind == LIRS:
        lirs_drop(s, o)
        return
    if kind == SIEVE and s.reg[HAND] == o + QUEUES:                     # the hand goes on to the next newer one
        s.reg[HAND] = s.prev[o + QUEUES]
    unlink(s, o)
    if kind == LFU or kind == GDSF or kind == BELADY:
        s.real[0] = s.key[o]
        heap_out(s, o)
        return
    s.tag[o] = 0
    s.reg[CLOCK] += 1
    if kind == S3FIFO and q == 0:
        push(s, 5, o)
        trim(s, 5, (1.0 - _SMALL) * s.reg[CAPACITY])
    elif kind == CLOCK2QPLUS and q == 0:
        push(s, 5, o)
        trim(s, 5, _GHOST_PLUS * s.reg[CAPACITY])
    elif kind == TWOQ and q == 0:
        push(s, 5, o)
        trim(s, 5, _OUT * s.reg[CAPACITY])
    elif kind == ARC:
        push(s, 5 + q, o)


@njit(cache=True)
def admit(s, kind, o, size, following):  # type: ignore[no-untyped-def]
    """Object `o`, for which there is room now, enters; FLAG is what `meet` found."""
    s.size[o] = size
    s.tag[o] = 0
    ghost = s.reg[FLAG] >= RESIDENT
    if kind == S3FIFO or kind == CLOCK2QPLUS:
        s.reg[FILLED] += size
        s.stamp[o] = s.reg[FILLED]
        early = s.reg[CLOCK] == 0 and s.used[0] + size > _SMALL * s.reg[CAPACITY]   # until something has left, the small queue keeps its share
        push(s, 1 if ghost or early else 0, o)
    elif kind == TWOQ:
        push(s, 1 if ghost else 0, o)
    elif kind == ARC:
        push(s, 1 if ghost else 0, o)
        trim(s, 5, max(0, s.reg[CAPACITY] - s.used[0]))
        trim(s, 6, max(0, 2 * s.reg[CAPACITY] - s.used[0] - s.used[1] - s.used[5]))
    elif kind == LIRS:
        lirs_admit(s, o, ghost)
    else:
        push(s, 0, o)
        if kind == LFU or kind == GDSF or kind == BELADY:
            s.tag[o] = 1
            _price(s, kind, o, following)
            heap_in(s, o)


@njit(cache=True)
def refuses(s, kind, size, following):  # type: ignore[no-untyped-def]
    """Whether an object of `size` bytes is not taken in at all."""
    return size > s.reg[CAPACITY] or (kind == BELADY and following >= NEVER)


@njit(cache=True)
def forget(s, kind, o):  # type: ignore[no-untyped-def]
    """Object `o` leaves without a trace, from the cache or from the ghosts."""
    if kind == SIEVE and s.reg[HAND] == o + QUEUES:
        s.reg[HAND] = s.prev[o + QUEUES]
    if kind == LIRS:
        stack_out(s, o)
    if s.where[o] != NOWHERE:
        inside = s.where[o] < RESIDENT
        unlink(s, o)
        if inside and (kind == LFU or kind == GDSF or kind == BELADY):
            heap_out(s, o)


@njit(cache=True)
def adopt(s, kind, o, count):  # type: ignore[no-untyped-def]
    """Object `o`, of known size, is in the cache already when the policy takes over: it enters as the oldest, so newer ones are adopted first."""
    s.tag[o] = 0
    if kind == LIRS:
        if s.used[0] + s.size[o] <= 0.99 * s.reg[CAPACITY]:
            push_oldest(s, 0, o)
            below = s.above[0]                                          # the bottom of the stack
            s.above[o + 1], s.below[o + 1] = below, 0
            s.below[below], s.above[0] = o + 1, o + 1
        else:
            push_oldest(s, 1, o)
        return
    push_oldest(s, 1 if kind == S3FIFO or kind == CLOCK2QPLUS or kind == TWOQ or kind == ARC else 0, o)
    if kind == LFU or kind == GDSF or kind == BELADY:
        s.tag[o] = max(1, count)
        s.stamp[o] = -s.number[0]
        s.key[o] = s.tag[o] if kind == LFU else s.real[0] + s.tag[o] * s.worth[o] / max(1, s.size[o])
        heap_in(s, o)
