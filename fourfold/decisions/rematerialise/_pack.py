"""Offsets for known lives by greedy first fit, in a few orders: what a plan of this question is priced with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._lives import Lives

Packer = Callable[[Lives], NDArray[np.int64]]


@njit(cache=True)
def _first_fit(lower, upper, size, order, offset):  # type: ignore[no-untyped-def]
    """Place each buffer of `order` at the lowest address free throughout its life; the height. Placed ones are kept sorted by offset."""
    count, height = 0, 0
    placed = np.empty(len(order), np.int64)
    for b in order:
        if size[b] == 0:
            offset[b] = 0
            continue
        at = 0
        for k in range(count):
            o = placed[k]
            if lower[o] < upper[b] and lower[b] < upper[o]:
                if offset[o] >= at + size[b]:
                    break
                at = max(at, offset[o] + size[o])
        offset[b] = at
        height = max(height, at + size[b])
        k = count
        while k > 0 and offset[placed[k - 1]] > at:
            placed[k] = placed[k - 1]
            k -= 1
        placed[k] = b
        count += 1
    return height


def live_peak(found: Lives) -> int:
    """The most bytes alive at once."""
    if not len(found.lower):
        return 0
    change = np.zeros(int(found.upper.max()) + 1, np.int64)
    np.add.at(change, found.lower, found.size)
    np.add.at(change, found.upper, -found.size)
    return int(np.cumsum(change).max())


def pack(found: Lives) -> NDArray[np.int64]:
    """i8[K] offsets of the instances: the lowest of several greedy orders (largest first; longest life first; largest area first; as they are
    born)."""
    size, span = found.size, found.upper - found.lower
    best, least, floor = np.zeros(len(size), np.int64), -1, live_peak(found)
    for order in (np.lexsort((found.lower, -span, -size)), np.lexsort((-size, -span)), np.lexsort((-span, -size * span)), np.lexsort((-size, found.lower)),
                  np.lexsort((found.lower, -size.astype(float) * np.sqrt(span)))):
        offset = np.zeros(len(size), np.int64)
        height = int(_first_fit(found.lower, found.upper, size, order.astype(np.int64), offset))
        if least < 0 or height < least:
            best, least = offset, height
        if least <= floor:
            break
    return best
