"""Placing offsets one after another, each at the lowest address (or in the smallest hole) where none of its rectangles meets one that stands.

What stands is kept in order of address, in blocks, so that a scan from below stops at the first hole. Fixed offsets stand from the start.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fourfold.decisions.allocate.instance import FREE, I64, MOST, Rectangles


def born(p: Rectangles) -> I64:
    """Offsets in the order of their first beginning; of those born together the one that lives longest first."""
    first, last = spans(p)
    return np.lexsort((-(last - first), first)).astype(np.int64)


def spans(p: Rectangles) -> tuple[I64, I64]:
    """(first section, last section + 1) of each offset; (0, 0) of one without rectangles."""
    m = len(p.extent)
    first, last = np.full(m, p.sections, np.int64), np.zeros(m, np.int64)
    np.minimum.at(first, p.owner, p.lower)
    np.maximum.at(last, p.owner, p.upper)
    return np.minimum(first, last), last


def place(p: Rectangles, order: I64, *, best: bool = False, hints: bool = False) -> I64:
    """Units i8[m] of each offset, placed in `order`; `best`: into the smallest hole, else at the lowest address; `hints`: at its hint where free.

    The last bank that an offset may be in has no limit here, so there always is a place; who asks looks at the height.
    """
    order = np.asarray(order, np.int64)
    held = p.fixed[order] != FREE
    order = np.concatenate([order[held], order[~held]])
    return _place(order, p.ptr, p.lower, p.upper, p.shift, p.size, p.extent, p.alignment, p.fixed, p.bank, p.hint, p.base, p.room, best, hints)


@numba.njit(cache=True)
def _up(x: int, a: int) -> int:
    return -(-x // a) * a


@numba.njit(cache=True)
def _hole(low: Any, high: Any, v: int, bank: Any, base: np.ndarray, room: np.ndarray, extent: np.ndarray, alignment: np.ndarray) -> tuple[int, int]:
    """(lowest offset in the hole of offsets [low, high] that suits a bank, room left above it in the hole) or (-1, 0)."""
    last = len(base) - 1 if bank < 0 else bank
    for b in range(0 if bank < 0 else bank, last + 1):
        x = _up(max(low, base[b]), alignment[v])
        end = MOST if b == last else base[b] + room[b]
        if x <= high and x + extent[v] <= end:
            return x, min(high, end - extent[v]) - x
    return -1, 0


@numba.njit(cache=True)
def _place(order: np.ndarray, ptr: np.ndarray, lower: np.ndarray, upper: np.ndarray, shift: np.ndarray, size: np.ndarray, extent: np.ndarray,
           alignment: np.ndarray, fixed: np.ndarray, bank: np.ndarray, hint: np.ndarray, base: np.ndarray, room: np.ndarray, best: bool,
           hints: bool) -> np.ndarray:
    m, k = len(order), len(lower)
    found = np.zeros(len(extent), np.int64)
    at, top = np.empty(k, np.int64), np.empty(k, np.int64)              # addresses of what stands, in order
    since, till = np.empty(k, np.int32), np.empty(k, np.int32)          # its sections
    count = 0
    low, high = np.empty(k + 1, np.int64), np.empty(k + 1, np.int64)    # offsets that are not free, as open intervals
    for i in range(m):
        v = order[i]
        x = fixed[v]
        if x < 0:
            several = ptr[v + 1] - ptr[v] > 1
            taken = 0
            for r in range(ptr[v], ptr[v + 1]):
                for j in range(count):
                    if since[j] < upper[r] and till[j] > lower[r]:
                        low[taken], high[taken] = at[j] - shift[r] - size[r], top[j] - shift[r]
                        taken += 1
            turn = np.argsort(low[:taken]) if several else np.arange(taken)  # those of one rectangle come by address
            x = _choose(v, taken, turn, low, high, bank[v], base, room, extent, alignment, hint[v] if hints else FREE, best)
        found[v] = x
        for r in range(ptr[v], ptr[v + 1]):
            a = x + shift[r]
            j = np.searchsorted(at[:count], a)
            at[j + 1:count + 1], top[j + 1:count + 1] = at[j:count].copy(), top[j:count].copy()
            since[j + 1:count + 1], till[j + 1:count + 1] = since[j:count].copy(), till[j:count].copy()
            at[j], top[j], since[j], till[j] = a, a + size[r], lower[r], upper[r]
            count += 1
    return found


@numba.njit(cache=True)
def _choose(v: int, taken: int, turn: np.ndarray, low: np.ndarray, high: np.ndarray, bank: Any, base: np.ndarray, room: np.ndarray,
            extent: np.ndarray, alignment: np.ndarray, hint: Any, best: bool) -> int:
    """The offset: the hint where it is free, else the lowest, or the one that leaves least of its hole."""
    if hint >= 0 and hint % alignment[v] == 0:
        clear = _hole(hint, hint, v, bank, base, room, extent, alignment)[0] == hint
        for j in range(taken):
            clear = clear and not (low[j] < hint < high[j])
        if clear:
            return hint
    x, left, at = -1, MOST, 0
    for j in range(taken + 1):
        end = low[turn[j]] if j < taken else MOST
        if end >= at:                                                   # offsets at … end are free
            start, rest = _hole(at, end, v, bank, base, room, extent, alignment)
            if start >= 0 and not best:
                return start
            if start >= 0 and (x < 0 or rest < left):
                x, left = start, rest
        if j < taken:
            at = max(at, high[turn[j]])
    return x
