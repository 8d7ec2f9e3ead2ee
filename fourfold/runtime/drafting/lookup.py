"""Drafts copied from the text so far: where the last tokens stood before, what followed them then (Yang et al. 2023; compiled)."""

from __future__ import annotations

from typing import cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
LONGEST = 16                                                            # tokens of a match beyond which a longer one says nothing more


@njit(cache=True)
def _match(tokens, count, shortest, longest):  # type: ignore[no-untyped-def]
    """Where to copy from, -1 for nowhere: after the longest earlier occurrence of the last tokens, of equal ones the latest."""
    best, where = shortest - 1, -1
    for end in range(count - 2, -1, -1):                                # the occurrence ends at `end`; what follows it begins at end + 1
        if tokens[end] != tokens[count - 1]:
            continue
        size = 1
        while size < longest and end - size >= 0 and tokens[end - size] == tokens[count - 1 - size]:
            size += 1
        if size > best:
            best, where = size, end + 1
            if best >= longest:
                break
    return where


@njit(cache=True)
def _draft(tokens, count, most, shortest, longest, out):  # type: ignore[no-untyped-def]
    """Number of tokens written to `out`. A copy that reaches the end of the text goes on with itself, as a text that repeats does."""
    at = _match(tokens, count, shortest, longest)
    if at < 0:
        return 0
    for j in range(most):
        out[j] = tokens[at + j] if at + j < count else out[at + j - count]
    return most


@njit(cache=True)
def _tried(tokens, first, most, shortest, longest, offered, right):  # type: ignore[no-untyped-def]
    """Fill `offered` and `right` i4[T − first] for a known text: what a draft at each position offers, and how much of it is the text's own."""
    out = np.empty(most, np.int64)
    for at in range(first, len(tokens)):
        given = _draft(tokens, at, min(most, len(tokens) - at), shortest, longest, out)
        good = 0
        while good < given and out[good] == tokens[at + good]:
            good += 1
        offered[at - first], right[at - first] = given, good


def lookup(tokens: Tokens, most: int, shortest: int = 2, longest: int = LONGEST) -> Tokens:
    """Up to `most` tokens that followed the last tokens of `tokens` [T] where they stood before; none where fewer than `shortest` of them match.

    Of several earlier places the one whose match is longest (counted up to `longest`) is copied, of equal ones the latest.
    """
    out = np.empty(max(most, 0), np.int64)
    if most < 1 or len(tokens) < 2:
        return out[:0]
    return out[: cast("int", _draft(np.ascontiguousarray(tokens, np.int64), len(tokens), most, shortest, longest, out))]


def tried(tokens: Tokens, first: int, most: int, shortest: int = 2, longest: int = LONGEST) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(offered, right) int32 [T − first]: what `lookup` would offer before each token from `first` on (no more than the text
    has left), and how much of that is right."""
    offered, right = (np.zeros(len(tokens) - first, np.int32) for _ in range(2))
    _tried(np.ascontiguousarray(tokens, np.int64), first, most, shortest, longest, offered, right)
    return offered, right
