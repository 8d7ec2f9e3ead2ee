"""Bytes alive in every section as a tree of maxima, so that a change of one node is priced in O(log sections) whatever the length of its life."""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.shard._model import PairwiseModel
from fourfold.decisions.shard.instance import I64


def tree(m: PairwiseModel, chosen: I64) -> I64:
    """The tree i8[2, 2w] over the sections for a choice: row 0 holds maxima, row 1 what was added to all below."""
    width = 1
    while width < max(1, m.sections):
        width *= 2
    made = np.zeros((2, 2 * width), np.int64)
    made[0, width:width + m.sections] = load(m, chosen)
    _build(made)
    return made


def load(m: PairwiseModel, chosen: I64) -> I64:
    """Bytes alive in every section."""
    change = np.zeros(m.sections + 1, np.int64)
    bytes_ = m.usage[m.ptr[:-1] + chosen]
    np.add.at(change, m.first, bytes_)
    np.subtract.at(change, m.last, bytes_)
    return np.cumsum(change)[: m.sections]


@njit(cache=True, nogil=True)
def _build(made):                                                       # noqa: ANN001, ANN202
    for v in range(made.shape[1] // 2 - 1, 0, -1):
        made[0, v] = max(made[0, 2 * v], made[0, 2 * v + 1])


@njit(cache=True, nogil=True)
def add(made, first, last, bytes_):                                     # noqa: ANN001, ANN202
    """`bytes_` more in the sections [first, last)."""
    if first >= last or bytes_ == 0:
        return
    width = made.shape[1] // 2
    left, right = first + width, last - 1 + width
    made[0, left] += bytes_
    made[1, left] += bytes_
    if left != right:
        made[0, right] += bytes_
        made[1, right] += bytes_
    while left >> 1 != right >> 1:
        if left & 1 == 0:
            made[0, left + 1] += bytes_
            made[1, left + 1] += bytes_
        if right & 1 == 1:
            made[0, right - 1] += bytes_
            made[1, right - 1] += bytes_
        left >>= 1
        right >>= 1
        made[0, left] = max(made[0, 2 * left], made[0, 2 * left + 1]) + made[1, left]
        made[0, right] = max(made[0, 2 * right], made[0, 2 * right + 1]) + made[1, right]
    left >>= 1
    while left > 0:
        made[0, left] = max(made[0, 2 * left], made[0, 2 * left + 1]) + made[1, left]
        left >>= 1


@njit(cache=True, nogil=True)
def peak(made, first, last):                                            # noqa: ANN001, ANN202
    """Most bytes alive in a section of [first, last); 0 where there is none."""
    if first >= last:
        return 0
    width = made.shape[1] // 2
    left, right = first + width, last - 1 + width
    one, two = made[0, left], made[0, right]
    while left >> 1 != right >> 1:
        if left & 1 == 0:
            one = max(one, made[0, left + 1])
        if right & 1 == 1:
            two = max(two, made[0, right - 1])
        left >>= 1
        right >>= 1
        one += made[1, left]
        two += made[1, right]
    one = max(one, two)
    left >>= 1
    while left > 0:
        one += made[1, left]
        left >>= 1
    return one


@njit(cache=True, nogil=True)
def fullest(made):                                                      # noqa: ANN001, ANN202
    """A section with the most bytes."""
    width = made.shape[1] // 2
    v = 1
    while v < width:
        v = 2 * v if made[0, 2 * v] >= made[0, 2 * v + 1] else 2 * v + 1
    return v - width
