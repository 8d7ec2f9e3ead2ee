"""LIRS (Jiang and Zhang 2002): a stack by recency in which those of low inter-reference recency (LIR, queue 0) keep the cache, and a short queue (1)
of the others, from which one leaves; of those that left, the stack remembers some (ghosts, queue 5)."""

from __future__ import annotations

from numba import njit

from fourfold.decisions.cache._state import CAPACITY, NOWHERE, oldest, push, unlink

_LIR = 0.99                                                             # share of the cache that LIR objects may hold
_REMEMBERED = 2.0                                                       # ghosts stand for at most so many caches


@njit(cache=True, inline="always")
def _on_stack(s, o):  # type: ignore[no-untyped-def]
    return s.below[o + 1] != -1


@njit(cache=True)
def stack_out(s, o):  # type: ignore[no-untyped-def]
    """Off the stack, if it is on it. Node 0 is the stack's own end: `below[0]` is the top, `above[0]` the bottom."""
    node = o + 1
    if s.below[node] != -1:
        s.below[s.above[node]], s.above[s.below[node]] = s.below[node], s.above[node]
        s.below[node], s.above[node] = -1, -1


@njit(cache=True)
def _top(s, o):  # type: ignore[no-untyped-def]
    stack_out(s, o)
    node, first = o + 1, s.below[0]
    s.below[node], s.above[node] = first, 0
    s.above[first], s.below[0] = node, node


@njit(cache=True)
def _prune(s):  # type: ignore[no-untyped-def]
    """Until a LIR object is at the bottom."""
    while s.above[0] != 0:
        o = s.above[0] - 1
        if s.where[o] == 0:
            return
        stack_out(s, o)
        if s.where[o] >= 5:
            unlink(s, o)


@njit(cache=True)
def _demote(s):  # type: ignore[no-untyped-def]
    """The LIR objects at the bottom join the queue until the others have their share."""
    while s.used[0] > _LIR * s.reg[CAPACITY] and s.number[0] > 0:
        o = s.above[0] - 1
        stack_out(s, o)
        unlink(s, o)
        push(s, 1, o)
        _prune(s)


@njit(cache=True)
def lirs_touch(s, o):  # type: ignore[no-untyped-def]
    if s.where[o] == 0:
        _top(s, o)
        _prune(s)
        return
    inside = _on_stack(s, o)
    _top(s, o)
    unlink(s, o)
    push(s, 0 if inside else 1, o)
    if inside:
        _demote(s)


@njit(cache=True)
def lirs_victim(s):  # type: ignore[no-untyped-def]
    if s.number[1] == 0 and s.above[0] != 0:                            # all are LIR: the one at the bottom
        return s.above[0] - 1
    return oldest(s, 1)


@njit(cache=True)
def lirs_drop(s, o):  # type: ignore[no-untyped-def]
    lir = s.where[o] == 0
    unlink(s, o)
    if lir:
        stack_out(s, o)
        _prune(s)
    elif _on_stack(s, o):
        push(s, 5, o)
        while s.used[5] > _REMEMBERED * s.reg[CAPACITY]:
            old = oldest(s, 5)
            stack_out(s, old)
            unlink(s, old)


@njit(cache=True)
def lirs_admit(s, o, ghost):  # type: ignore[no-untyped-def]
    lir = ghost or s.used[0] + s.size[o] <= _LIR * s.reg[CAPACITY]
    _top(s, o)
    push(s, 0 if lir else 1, o)
    if lir:
        _demote(s)
    _prune(s)


@njit(cache=True)
def lirs_sound(s):  # type: ignore[no-untyped-def]
    """Whether stack and queues agree: every LIR object is on the stack, one is at its bottom, and no ghost is off it."""
    node, lir = s.below[0], 0
    while node != 0:
        if s.where[node - 1] == NOWHERE:
            return False
        lir += s.where[node - 1] == 0
        node = s.below[node]
    return lir == s.number[0] and (s.above[0] == 0 or s.where[s.above[0] - 1] == 0)
