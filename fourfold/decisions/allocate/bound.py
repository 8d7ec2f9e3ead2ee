"""What no packing can beat, and proofs that there is none. A proof is a sentence; where none is found the answer is "unknown", which is no proof.

  peak        at no time do the buffers alive need less than the sum of their sizes
  aligned     of buffers whose offsets are multiples of a, all but the topmost take up a multiple of a (a for each alignment that occurs)
  fixed       a fixed buffer reaches as high as it stands; what lives beside fixed buffers fills holes that are large enough for it, or lies above
  banks       a buffer lies in one bank: at any time the sizes alive are items, the banks bins (L2 of Martello and Toth 1990, chapter 8)
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.allocate.instance import FREE, MOST, Buffers, Rectangles

_LOOKED_AT = 64                                                         # sections examined one by one, the fullest first


def peak(b: Buffers) -> int:
    """Peak live bytes."""
    parts = b.parts()
    return int(parts.load.max(initial=0)) * parts.unit


def bound(b: Buffers) -> int:
    """Bytes that every packing uses at least (of several banks: the sum of what each uses)."""
    parts = b.parts()
    best = max(int(parts.load.max(initial=0)), _tallest(parts))
    if (parts.alignment > 1).any() and len(parts.base) == 1:
        best = max(best, _aligned(parts))
    if (parts.fixed != FREE).any() and len(parts.base) == 1:
        best = max(best, _beside_fixed(parts))
    return best * parts.unit


def contradiction(b: Buffers) -> str | None:
    """Why the input contradicts itself: a buffer larger than what it must lie in, fixed buffers that overlap; None: it does not."""
    return _too_large(b) or _fixed_overlap(b)


def impossible(b: Buffers) -> str | None:
    """A sentence that proves that no packing exists, or None: unknown."""
    return contradiction(b) or _too_much(b)


def _tallest(p: Rectangles) -> int:
    """The top of fixed buffers (one bank), and the largest buffer."""
    held = p.fixed != FREE
    return max(int(p.extent.max(initial=0)), int((p.fixed + p.extent)[held].max(initial=0)) if len(p.base) == 1 else 0)


def _live(p: Rectangles, section: int) -> np.ndarray:
    """Rectangles alive in a section."""
    return np.flatnonzero((p.lower <= section) & (section < p.upper))


def _sums(p: Rectangles, sizes: np.ndarray, some: np.ndarray) -> np.ndarray:
    """i8[sections] sum of `sizes` over the rectangles `some`."""
    change = np.zeros(p.sections + 1, np.int64)
    np.add.at(change, p.lower[some], sizes[some])
    np.subtract.at(change, p.upper[some], sizes[some])
    return np.cumsum(change)[: p.sections]


def _aligned(p: Rectangles) -> int:
    """Rectangles that begin at multiples of a: the next one begins at a multiple of a too, so all but the topmost are rounded up.

    Others may lie in the slack, so for each a the larger of two figures counts: the rounded sizes of these alone, and (above) all sizes as they are.
    """
    best = 0
    begins = p.alignment[p.owner]
    for a in np.unique(p.alignment[p.alignment > 1]).tolist():
        some = np.flatnonzero((begins % a == 0) & (p.shift % a == 0))
        rounded = -(-p.size // a) * a
        sums = _sums(p, rounded, some)
        slack = rounded - p.size
        for section in np.argsort(-sums, kind="stable")[:_LOOKED_AT].tolist():
            if sums[section] - (a - 1) <= best and sums[section] - int(slack[some].max(initial=0)) <= best and sums[section] <= best:
                break
            live = some[(p.lower[some] <= section) & (section < p.upper[some])]
            best = max(best, int(sums[section]) - int(slack[live].max(initial=0)))
    return best


def _beside_fixed(p: Rectangles) -> int:
    """In a section with fixed rectangles the others fill the holes between them that hold the smallest of them at least, or lie above."""
    best = 0
    held = p.fixed[p.owner] != FREE
    some = np.flatnonzero(held)
    change = np.zeros(p.sections + 1, np.int64)
    np.add.at(change, p.lower[some], 1)
    np.subtract.at(change, p.upper[some], 1)
    with_fixed = np.flatnonzero(np.cumsum(change)[: p.sections] > 0)
    for section in with_fixed[np.argsort(-p.load[with_fixed], kind="stable")][: 4 * _LOOKED_AT].tolist():
        live = _live(p, section)
        fixed = live[held[live]]
        free = p.size[live[~held[live]]]
        order = np.argsort(p.fixed[p.owner[fixed]] + p.shift[fixed], kind="stable")
        low = (p.fixed[p.owner[fixed]] + p.shift[fixed])[order]
        high = low + p.size[fixed][order]
        left, least, at = int(free.sum()), int(free.min(initial=MOST)), 0
        for a, z in zip(low.tolist(), high.tolist(), strict=True):
            hole = a - at
            if left <= 0:
                break
            if hole >= least:
                left -= int(min(hole, free[free <= hole].sum()))
            at = max(at, z)
        best = max(best, int(high.max(initial=0)) + max(0, left))
    return best


# ---- proofs that there is no packing

def _too_large(b: Buffers) -> str | None:
    if not len(b.banks) or not len(b):
        return None
    limit = np.where(b.bank == FREE, b.banks.max(), b.banks[np.maximum(b.bank, 0)])
    over = b.size - limit
    if (over > 0).any():
        i = int(np.argmax(over))
        where = f"bank {b.bank_names[b.bank[i]]}" if b.bank[i] != FREE else "the capacity" if len(b.banks) == 1 else "the largest bank"
        return f"buffer {b.ids[i]} has {b.size[i]:,} bytes, {over[i]:,} more than {where} of {limit[i]:,}"
    which = np.maximum(0, np.searchsorted(b.base, b.fixed, "right") - 1)
    past = np.where(b.fixed != FREE, b.fixed + b.size - (b.base + b.banks)[which], 0)
    if (past > 0).any():
        i = int(np.argmax(past))
        where = "the capacity" if len(b.banks) == 1 else f"bank {b.bank_names[which[i]]}"
        return f"buffer {b.ids[i]} is fixed at {b.fixed[i]:,} and ends {past[i]:,} bytes beyond {where}"
    return None


def _fixed_overlap(b: Buffers) -> str | None:
    """Two fixed buffers that live at one time at one address, by a sweep."""
    p = b.parts()
    some = np.flatnonzero(p.fixed[p.owner] != FREE)
    if len(some) < 2:
        return None
    low = p.fixed[p.owner] + p.shift
    active: list[int] = []
    for r in some[np.argsort(p.lower[some], kind="stable")].tolist():
        active = [other for other in active if p.upper[other] > p.lower[r]]
        for other in active:
            if low[other] < low[r] + p.size[r] and low[r] < low[other] + p.size[other]:
                one, two = (b.ids[int(np.flatnonzero(p.variable == p.owner[part])[0])] for part in (other, r))
                when = int(p.times[max(p.lower[r], p.lower[other])])
                return f"buffers {one} and {two} are fixed at places that overlap while both live (at time {when})"
        active.append(r)
    return None


def _too_much(b: Buffers) -> str | None:
    capacity = b.capacity
    if capacity is None:
        return None
    p = b.parts()
    total = int(p.room.sum())                                           # whole units: what is below one unit holds nothing
    if p.sections and (top := int(p.load.max())) > total:
        when = int(p.times[int(np.argmax(p.load))])
        return f"at time {when} buffers of {top * p.unit:,} bytes are alive, {top * p.unit - capacity:,} more than there are"
    if (least := bound(b)) > capacity:
        return f"every packing needs {least:,} bytes (alignments and fixed buffers counted), {least - capacity:,} more than there are"
    for bank in range(len(b.banks)) if len(b.banks) > 1 else ():
        sums = _sums(p, p.size, np.flatnonzero(p.bank[p.owner] == bank))
        if len(sums) and int(sums.max()) > p.room[bank]:
            over = (int(sums.max()) - int(p.room[bank])) * p.unit
            return f"at time {int(p.times[int(np.argmax(sums))])} buffers of bank {b.bank_names[bank]} need {over:,} bytes more than it has"
    return _bins(b) if len(b.banks) > 1 else None


def _bins(b: Buffers) -> str | None:
    """The bin-packing bound L2 in the fullest sections, each bank taken as large as the largest: smaller ones make it no easier."""
    p, count = b.parts(), len(b.banks)
    size = int(p.room.max())
    for section in np.argsort(-p.load, kind="stable")[:_LOOKED_AT].tolist():
        sizes = p.size[_live(p, section)]
        for small in np.unique(np.concatenate([[0], sizes[sizes <= size // 2]])).tolist():
            large, middle = sizes > size - small, (sizes <= size - small) & (2 * sizes > size)
            rest = sizes[(2 * sizes <= size) & (sizes >= small)]
            free = int(middle.sum()) * size - int(sizes[middle].sum())
            bins = int(large.sum()) + int(middle.sum()) + max(0, -(-(int(rest.sum()) - free) // size))
            if bins > count:
                return f"at time {int(p.times[section])} the buffers alive need {bins} banks of {size * p.unit:,} bytes; there are {count}"
    return None
