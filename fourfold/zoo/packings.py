"""Packing instances made by code: lives and sizes with a known capacity at which a packing exists. Solvers learn from them and are measured on them.

An instance is (lower, upper, size, capacity), i8 arrays and an int. All draws come from one seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Lives = tuple[I64, I64, I64, int]


def perfect(seed: int, count: int, width: int = 0, height: int = 1 << 20, grain: int = 1024) -> Lives:
    """A rectangle of `width` points of time (0: 2 for each 3 buffers) and `height` bytes cut at random into `count` buffers: no slack anywhere.

    The piece to be cut is drawn by area, across or along by its shape, at a point in its middle four fifths; sizes are multiples of `grain`.
    """
    rng = np.random.default_rng(seed)
    width = width or max(4, 2 * count // 3)
    pieces = [(0, width, 0, height // grain)]
    for _ in range(40 * count):
        if len(pieces) >= count:
            break
        area = np.array([(u - lo) * (t - b) for lo, u, b, t in pieces], float)
        at = int(rng.choice(len(pieces), p=area / area.sum()))
        lo, u, b, t = pieces[at]
        wide, tall = (u - lo) / width, (t - b) * grain / height
        along = rng.random() < wide / (wide + tall)                     # cut time, else cut memory
        length = u - lo if along else t - b
        if length < 2:
            continue
        cut = int(np.clip(round(length * rng.uniform(0.1, 0.9)), 1, length - 1))
        pieces[at:at + 1] = [(lo, lo + cut, b, t), (lo + cut, u, b, t)] if along else [(lo, u, b, b + cut), (lo, u, b + cut, t)]
    table = np.array(pieces, np.int64)[rng.permutation(len(pieces))]
    return table[:, 0], table[:, 1], (table[:, 3] - table[:, 2]) * grain, height // grain * grain


def carved(seed: int, count: int, load: float = 1.0, spare: float = 0.3, height: int = 1 << 20, grain: int = 1024) -> Lives:
    """A perfect packing with a share `spare` of its buffers left out or shortened, so that it is full at some times only; the capacity is the peak
    divided by `load`, at most 1."""
    rng = np.random.default_rng(seed + 1_000_003)
    lower, upper, size, capacity = perfect(seed, count + int(count * spare / 2), 0, height, grain)
    full = int(rng.integers(lower.min(), upper.max()))                  # this moment stays full
    lower, upper, keep = lower.copy(), upper.copy(), np.ones(len(size), bool)
    for i in np.flatnonzero(rng.random(len(size)) < spare):
        if lower[i] <= full < upper[i]:
            if rng.random() < 0.5:
                upper[i] = int(rng.integers(full + 1, upper[i] + 1))
            else:
                lower[i] = int(rng.integers(lower[i], full + 1))
        elif rng.random() < 0.5:
            keep[i] = False
        elif upper[i] - lower[i] > 1:
            upper[i] = int(rng.integers(lower[i] + 1, upper[i]))
    return lower[keep], upper[keep], size[keep], int(capacity / load) // grain * grain


def scattered(seed: int, count: int, load: float = 0.95, grain: int = 1024) -> Lives:
    """Lives and sizes drawn freely (lengths and sizes log-uniform); the capacity is the peak divided by `load`, and may be too small."""
    rng = np.random.default_rng(seed + 2_000_003)
    span = max(8, count)
    length = np.maximum(1, np.exp(rng.uniform(0.0, np.log(span / 2), count)).astype(np.int64))
    lower = rng.integers(0, span, count)
    upper = np.minimum(lower + length, span + 1)
    size = np.maximum(1, np.exp(rng.uniform(0.0, np.log(400), count)).astype(np.int64)) * grain
    change = np.zeros(span + 2, np.int64)
    np.add.at(change, lower, size)
    np.subtract.at(change, upper, size)
    peak = int(np.cumsum(change).max())
    return lower, upper, size, -(-int(peak / load) // grain) * grain


def tight(seed: int, count: int = 0) -> Iterator[tuple[str, Lives]]:
    """Endless: names and instances of all kinds, 100 to 400 buffers (or `count`)."""
    rng = np.random.default_rng(seed)
    made = 0
    while True:
        n, one = count or int(rng.integers(100, 401)), int(rng.integers(0, 1 << 31))
        kind = made % 3
        made += 1
        if kind == 0:
            yield f"perfect-{n}-{one}", perfect(one, n)
        elif kind == 1:
            yield f"carved-{n}-{one}", carved(one, n, 1.0, float(rng.choice([0.1, 0.3, 0.5])))
        else:
            yield f"scattered-{n}-{one}", scattered(one, n, float(rng.uniform(0.9, 1.0)))
