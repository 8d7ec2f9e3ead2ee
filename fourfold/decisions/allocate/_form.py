"""The normal form as the compiled searches read it, one bank at a time: sections are the maximal cliques of the lives, neighbours are listed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.decisions.allocate.instance import FREE, I64, Rectangles

NEIGHBOURS = 30_000_000                                                 # pairs; above this a list of neighbours does not fit


class Packing(NamedTuple):
    """n buffers of one bank for the kernels; all i64, heights in units above the bank's base.

    A buffer is one or more pieces (rows piece[b] … piece[b + 1] of plo, phi, bottom, top): sections [plo, phi), heights [bottom, top) above its
    offset.
    """

    size: np.ndarray                                                    # [n] height over all pieces
    life: np.ndarray                                                    # [n] how long it lives, in the time that was given
    align: np.ndarray                                                   # [n]
    fixed: np.ndarray                                                   # [n] offset, or -1
    low: np.ndarray                                                     # [n] first section
    high: np.ndarray                                                    # [n] after the last section
    piece: np.ndarray                                                   # [n + 1]
    plo: np.ndarray
    phi: np.ndarray
    bottom: np.ndarray
    top: np.ndarray
    first: np.ndarray                                                   # [n + 1] rows of the next two
    near: np.ndarray                                                    # buffers that live at a time of b's
    apart: np.ndarray                                                   # how far above b's offset theirs must be if they lie above it
    kin: np.ndarray                                                     # [n] class of buffers with the same life
    kinfirst: np.ndarray                                                # [classes + 1] rows of kinfolk
    kinfolk: np.ndarray
    sections: int
    plain: bool                                                         # one piece each, no alignment, nothing fixed
    proves: bool                                                        # every piece begins at the offset: a search that ends empty is a proof


def pairs(p: Rectangles) -> float:
    """About how many pairs of rectangles live at one time."""
    alive = np.zeros(p.sections + 1)
    np.add.at(alive, p.lower, 1)
    np.subtract.at(alive, p.upper, 1)
    return float(np.cumsum(alive)[p.lower].sum()) if len(p.owner) else 0.0


def cliques(p: Rectangles) -> tuple[I64, I64, int]:
    """(first, after the last, number) of sections, of which only those remain that hold all rectangles alive in a neighbour."""
    begins, ends = np.zeros(p.sections + 1, bool), np.zeros(p.sections + 1, bool)
    begins[p.lower], ends[p.upper] = True, True
    keep = _keep(begins, ends)
    return np.searchsorted(keep, p.lower).astype(np.int64), np.searchsorted(keep, p.upper).astype(np.int64), len(keep)


@njit(cache=True)
def _keep(begins, ends):  # type: ignore[no-untyped-def]
    keep, count, fresh = np.empty(len(begins), np.int64), 0, False
    for k in range(len(begins) - 1):
        fresh |= begins[k]
        if ends[k + 1] and fresh:
            keep[count] = k
            count, fresh = count + 1, False
    return keep[:count]


@njit(cache=True)
def _neighbours(piece, plo, phi, bottom, top, near, apart, first):  # type: ignore[no-untyped-def]
    """Fill `first`, and `near` and `apart` where they are long enough; the number of pairs. Rows are by number of the neighbour."""
    n, count = len(piece) - 1, 0
    for b in range(n):
        first[b] = count
        for o in range(n):
            if o == b:
                continue
            meets, most = False, -(np.int64(1) << 62)
            for q in range(piece[b], piece[b + 1]):
                for r in range(piece[o], piece[o + 1]):
                    if plo[q] < phi[r] and plo[r] < phi[q]:
                        meets, most = True, max(most, top[q] - bottom[r])
            if meets:
                if count < len(near):
                    near[count], apart[count] = o, most
                count += 1
    first[n] = count
    return count


def packing(p: Rectangles, some: I64 | None = None, base: int = 0) -> tuple[Packing, I64]:
    """The form of the offsets `some` (default all) and which of them own memory: the others need no place. `base`: of their bank."""
    some = np.arange(len(p.extent)) if some is None else some
    some = some[np.diff(p.ptr)[some] > 0]
    n = len(some)
    plo, phi, sections = cliques(p)
    count = np.diff(p.ptr)[some]
    piece = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    rows = np.repeat(p.ptr[some].astype(np.int64) - piece[:-1], count) + np.arange(piece[-1])
    plo, phi, bottom, top = plo[rows], phi[rows], p.shift[rows], (p.shift + p.size)[rows]
    low, high = (np.minimum.reduceat(plo, piece[:-1]), np.maximum.reduceat(phi, piece[:-1])) if n else (plo, phi)
    first, none = np.zeros(n + 1, np.int64), np.zeros(0, np.int64)
    edges = _neighbours(piece, plo, phi, bottom, top, none, none, first)
    near, apart = np.zeros(edges, np.int64), np.zeros(edges, np.int64)
    _neighbours(piece, plo, phi, bottom, top, near, apart, first)
    keys, kin = np.unique(low * (sections + 1) + high, return_inverse=True)
    kin = kin.reshape(-1).astype(np.int64)
    folk = np.argsort(kin, kind="stable").astype(np.int64)
    kinfirst = np.searchsorted(kin[folk], np.arange(len(keys) + 1)).astype(np.int64)
    fixed = np.where(p.fixed[some] != FREE, p.fixed[some] - base, FREE)
    align = p.alignment[some].copy()
    plain = bool((count == 1).all() and not bottom.any() and (align == 1).all() and (fixed == FREE).all())
    size = np.maximum.reduceat(top, piece[:-1]) if n else top
    begins, ends = p.times[p.lower][rows], p.times[p.upper][rows]
    life = np.maximum.reduceat(ends, piece[:-1]) - np.minimum.reduceat(begins, piece[:-1]) if n else size
    return Packing(size, life, align, fixed, low, high, piece, plo, phi, bottom, top, first, near, apart, kin, kinfirst, folk, sections, plain,
                   not bottom.any()), some.astype(np.int64)


def heights(p: Packing) -> tuple[I64, I64]:
    """(load of each section, the largest load of each buffer's sections)."""
    change = np.zeros(p.sections + 1, np.int64)
    np.add.at(change, p.plo, p.top - p.bottom)
    np.subtract.at(change, p.phi, p.top - p.bottom)
    load = np.cumsum(change)[: p.sections]
    return load, np.array([load[a:z].max(initial=0) for a, z in zip(p.low, p.high, strict=True)], np.int64).reshape(-1)


def ranks(keys: tuple[np.ndarray, ...]) -> I64:
    """Rank of each buffer by `keys`, largest first, the first key above the second."""
    order = np.lexsort([-key for key in reversed(keys)])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def banked(p: Rectangles, found: I64) -> Iterator[tuple[int, int, I64]]:
    """(base, room, offsets) of each bank as `found` fills them; all of them where there is one bank."""
    which = np.searchsorted(p.base, found, "right") - 1
    for b in range(len(p.base)):
        yield int(p.base[b]), int(p.room[b]), np.flatnonzero(which == b)
