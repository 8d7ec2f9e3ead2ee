"""Placing offsets one after another, each at the lowest address (or in the smallest hole) where none of its rectangles meets one that stands.

What stands is kept in order of address, then of time, in blocks that know the earliest beginning and the latest end of what they hold: a scan from
below passes over blocks of other times and stops at the first hole. Buffers of like size stand side by side at one address, so most blocks are of
other times. Fixed offsets stand from the start.
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


def within(p: Rectangles, found: I64) -> bool:
    """Whether every offset lies within a bank that it may be in."""
    which = np.searchsorted(p.base, found, "right") - 1
    return bool(((found + p.extent <= p.base[which] + p.room[which]) & ((p.bank == FREE) | (p.bank == which))).all())


_BLOCK = 64                                                             # rectangles in a block, at most


@numba.njit(cache=True, error_model="numpy")
def _up(x: int, a: int) -> int:
    return -(-x // a) * a


@numba.njit(cache=True, error_model="numpy")
def _place(order: np.ndarray, ptr: np.ndarray, lower: np.ndarray, upper: np.ndarray, shift: np.ndarray, size: np.ndarray, extent: np.ndarray,
           alignment: np.ndarray, fixed: np.ndarray, bank: np.ndarray, hint: np.ndarray, base: np.ndarray, room: np.ndarray, best: bool,
           hints: bool) -> np.ndarray:
    k = len(lower)
    found = np.zeros(len(extent), np.int64)
    most = 2 * (k // (_BLOCK // 2)) + 2
    space = np.empty((most, _BLOCK, 2), np.int64)                       # address, end of each rectangle
    span = np.empty((most, _BLOCK, 2), np.int32)                        # its first section, last + 1
    count, first, last = np.zeros(most, np.int64), np.full(most, 2**31 - 1, np.int32), np.full(most, -1, np.int32)
    turn = np.zeros(most, np.int64)                                     # blocks in order of address
    blocks = 1
    stand, low, high = 0, np.empty(k + 1, np.int64), np.empty(k + 1, np.int64)   # offsets that are not free, as open intervals
    for i in range(len(order)):
        v = order[i]
        x = fixed[v]
        plain = len(base) == 1 and ptr[v + 1] - ptr[v] == 1 and not best and not (hints and hint[v] >= 0)
        if x < 0 and plain:
            r = ptr[v]
            x = _lowest(lower[r], upper[r], shift[r], size[r], alignment[v], space, span, count, first, last, turn, blocks)
        elif x < 0:
            taken, pairs = 0, (ptr[v + 1] - ptr[v]) * stand
            if pairs > len(low):
                low, high = np.empty(2 * pairs, np.int64), np.empty(2 * pairs, np.int64)
            for r in range(ptr[v], ptr[v + 1]):
                taken = _taken(taken, lower[r], upper[r], shift[r], size[r], space, span, count, first, last, turn, blocks, low, high)
            if ptr[v + 1] - ptr[v] > 1:                                 # those of one rectangle come by address
                _sort(low, high, taken)
            x = _choose(v, taken, low, high, bank[v], base, room, extent, alignment, hint[v] if hints else FREE, best)
        found[v] = x
        for r in range(ptr[v], ptr[v + 1]):
            blocks = _insert(x + shift[r], size[r], lower[r], upper[r], space, span, count, first, last, turn, blocks)
            stand += 1
    return found


@numba.njit(cache=True, error_model="numpy")
def _lowest(lower: object, upper: object, shift: Any, size: Any, alignment: Any, space: np.ndarray, span: np.ndarray, count: np.ndarray,
            first: np.ndarray, last: np.ndarray, turn: np.ndarray, blocks: int) -> int:
    """The lowest offset of one rectangle: up past everything of its time that is in the way, until a hole holds it."""
    x = 0
    for j in range(blocks):
        n = turn[j]
        if count[n] and space[n, 0, 0] >= x + shift + size:
            break
        if first[n] >= upper or last[n] <= lower:
            continue
        for c in range(count[n]):
            if span[n, c, 0] < upper and span[n, c, 1] > lower and space[n, c, 1] > x + shift:
                if space[n, c, 0] >= x + shift + size:
                    return x
                x = _up(space[n, c, 1] - shift, alignment)
    return x


@numba.njit(cache=True, error_model="numpy")
def _taken(taken: int, lower: int, upper: int, shift: int, size: int, space: np.ndarray, span: np.ndarray, count: np.ndarray, first: np.ndarray,
           last: np.ndarray, turn: np.ndarray, blocks: int, low: np.ndarray, high: np.ndarray) -> int:
    """Write the offsets that one rectangle may not have, by address, from `taken` on; the new number."""
    for j in range(blocks):
        n = turn[j]
        if first[n] >= upper or last[n] <= lower:
            continue
        for c in range(count[n]):
            if span[n, c, 0] < upper and span[n, c, 1] > lower:
                low[taken], high[taken] = space[n, c, 0] - shift - size, space[n, c, 1] - shift
                taken += 1
    return taken


@numba.njit(cache=True, error_model="numpy")
def _insert(at: int, size: int, lower: int, upper: int, space: np.ndarray, span: np.ndarray, count: np.ndarray, first: np.ndarray, last: np.ndarray,
            turn: np.ndarray, blocks: int) -> int:
    """Enter a rectangle in order of (address, first section); a full block is cut in two. The new number of blocks."""
    left, right = 0, blocks - 1                                         # the last block that does not begin above it
    while left < right:
        middle = (left + right + 1) // 2
        n = turn[middle]
        if space[n, 0, 0] < at or (space[n, 0, 0] == at and span[n, 0, 0] <= lower):
            left = middle
        else:
            right = middle - 1
    n = turn[left]
    if count[n] == _BLOCK:
        half, new = _BLOCK // 2, blocks
        count[n], count[new] = half, _BLOCK - half
        first[n], last[n] = span[n, 0, 0], span[n, 0, 1]
        for c in range(half):
            first[n], last[n] = min(first[n], span[n, c, 0]), max(last[n], span[n, c, 1])
        for c in range(half, _BLOCK):
            space[new, c - half, 0], space[new, c - half, 1] = space[n, c, 0], space[n, c, 1]
            span[new, c - half, 0], span[new, c - half, 1] = span[n, c, 0], span[n, c, 1]
            first[new], last[new] = min(first[new], span[n, c, 0]), max(last[new], span[n, c, 1])
        for j in range(blocks, left + 1, -1):
            turn[j] = turn[j - 1]
        turn[left + 1] = new
        blocks += 1
        if space[new, 0, 0] < at or (space[new, 0, 0] == at and span[new, 0, 0] <= lower):
            n = new
    c = count[n]
    while c > 0 and (space[n, c - 1, 0] > at or (space[n, c - 1, 0] == at and span[n, c - 1, 0] > lower)):
        space[n, c, 0], space[n, c, 1] = space[n, c - 1, 0], space[n, c - 1, 1]
        span[n, c, 0], span[n, c, 1] = span[n, c - 1, 0], span[n, c - 1, 1]
        c -= 1
    space[n, c, 0], space[n, c, 1], span[n, c, 0], span[n, c, 1] = at, at + size, lower, upper
    count[n] += 1
    first[n], last[n] = min(first[n], lower), max(last[n], upper)
    return blocks


@numba.njit(cache=True, error_model="numpy")
def _sort(low: np.ndarray, high: np.ndarray, count: int) -> None:
    """Sort the first `count` pairs by `low` (Shell's sort: short to compile)."""
    step = 1
    while step < count // 3:
        step = 3 * step + 1
    while step:
        for i in range(step, count):
            a, z, j = low[i], high[i], i
            while j >= step and low[j - step] > a:
                low[j], high[j] = low[j - step], high[j - step]
                j -= step
            low[j], high[j] = a, z
        step //= 3


@numba.njit(cache=True, error_model="numpy")
def _hole(low: Any, high: Any, v: int, bank: Any, base: np.ndarray, room: np.ndarray, extent: np.ndarray,
          alignment: np.ndarray) -> tuple[int, int]:
    """(lowest offset in the hole of offsets [low, high] that suits a bank, room left above it in the hole) or (-1, 0)."""
    last = len(base) - 1 if bank < 0 else bank
    for b in range(0 if bank < 0 else bank, last + 1):
        x = _up(max(low, base[b]), alignment[v])
        end = MOST if b == last else base[b] + room[b]
        if x <= high and x + extent[v] <= end:
            return x, min(high, end - extent[v]) - x
    return -1, 0


@numba.njit(cache=True, error_model="numpy")
def _choose(v: int, taken: int, low: np.ndarray, high: np.ndarray, bank: object, base: np.ndarray, room: np.ndarray,
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
        end = low[j] if j < taken else MOST
        if end >= at:                                                   # offsets at … end are free
            start, rest = _hole(at, end, v, bank, base, room, extent, alignment)
            if start >= 0 and not best:
                return start
            if start >= 0 and (x < 0 or rest < left):
                x, left = start, rest
        if j < taken:
            at = max(at, high[j])
    return x
