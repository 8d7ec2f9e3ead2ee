"""Offsets for known lives by greedy first fit, in a few orders: what a plan of this question is priced with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._lives import Lives
from fourfold.decisions.rematerialise.instance import ALIGNMENT

_TRIES, _WORK = 600, 200_000_000                                       # moves of the climb; pairs of buffers that all of them may look at
_PACKINGS = 60

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


@njit(cache=True)
def _climb(lower, upper, size, order, offset, height, floor, tries, seed):  # type: ignore[no-untyped-def]
    """Move a buffer that reaches the top (or one drawn beside it in time) forward in the order, and keep the change where the height does not grow;
    the height at the end. `order` and `offset` change in place."""
    np.random.seed(seed)
    count = len(order)
    trial, place = order.copy(), np.zeros(len(offset), np.int64)
    for _ in range(tries):
        if height <= floor:
            break
        many, top = 0, 0
        for k in range(count):
            if offset[order[k]] + size[order[k]] == height:
                many += 1
                if np.random.randint(many) == 0:
                    top = k
        at = top
        if np.random.random() < 0.5:                                   # what stands below it and lives with it, as well
            many = 0
            for k in range(count):
                if lower[order[k]] < upper[order[top]] and lower[order[top]] < upper[order[k]]:
                    many += 1
                    if np.random.randint(many) == 0:
                        at = k
        to = int(np.random.randint(at + 1) if np.random.random() < 0.7 else np.random.randint(count))
        trial[:] = order
        if to <= at:
            for k in range(at, to, -1):
                trial[k] = trial[k - 1]
        else:
            for k in range(at, to):
                trial[k] = trial[k + 1]
        trial[to] = order[at]
        found = _first_fit(lower, upper, size, trial, place)
        if found <= height:
            height = found
            order[:] = trial
            offset[:] = place
    return height


def pack(found: Lives) -> NDArray[np.int64]:
    """i8[K] offsets of the instances: the lowest of several greedy orders (largest first, longest life first, largest area first, as they are born,
    largest by the root of the life); where none takes as little as is alive at once, of what the question `allocate` finds, and of a climb."""
    size, span = found.size, found.upper - found.lower
    orders = (np.lexsort((found.lower, -span, -size)), np.lexsort((-size, -span)), np.lexsort((-span, -size * span)),
              np.lexsort((-size, found.lower)), np.lexsort((found.lower, -size.astype(float) * np.sqrt(span))))
    best, order, least, floor = np.zeros(len(size), np.int64), np.zeros(0, np.int64), -1, live_peak(found)
    for one in orders:
        offset = np.zeros(len(size), np.int64)
        height = int(_first_fit(found.lower, found.upper, size, one.astype(np.int64), offset))
        if least < 0 or height < least:
            best, order, least = offset, one.astype(np.int64), height
        if least <= floor:
            return best
    other = _allocated(found)
    if (height := int((other + size).max())) < least:
        best, order, least = other, np.argsort(other, kind="stable").astype(np.int64), height
    if least > floor:
        trial = best.copy()
        if _climb(found.lower, found.upper, size, order, trial, least, floor, int(min(_TRIES, _WORK // max(1, len(size)) ** 2)), 1) < least:
            best = trial
    return best


def _allocated(found: Lives) -> NDArray[np.int64]:
    """Offsets by the greedy family of the question `allocate`, its order mended for a few packings."""
    from fourfold.decisions.allocate.greedy import Greedy
    from fourfold.decisions.allocate.instance import Buffers
    from fourfold.decisions.allocate.problem import Allocate
    from fourfold.problem import Budget

    some = np.flatnonzero(found.size)
    buffers = Buffers(tuple(map(str, some.tolist())), found.lower[some], found.upper[some], found.size[some], np.full(len(some), ALIGNMENT, np.int64))
    offset = np.zeros(len(found.size), np.int64)
    offset[some] = Greedy().solve(Allocate(buffers), Budget(3600.0, _PACKINGS), 0).answer
    return offset
