"""Compiled loops over the units of an MLP that are not zero: what decoding of one to four rows needs.

Weights are neuron-major: one contiguous row a unit, so that a unit that is zero costs nothing but the look at it. All arrays are contiguous float32
unless said; a unit is active in a call where its value is not zero in at least one row (NaN is not zero).

`screen` is exact: with w = s·q + e, q int8, |x·w − s·(x·q)| ≤ ‖x‖·‖e‖ by Cauchy and Schwarz, so a unit whose upper bound is not above what it must
exceed cannot be active, and only the others are computed from the full weights. A quarter of the bytes of a memory-bound product are read.
"""

from __future__ import annotations

import numpy as np
from numba import njit

SLACK = np.float32(1e-5)                                                # of ‖x‖·‖w‖: rounding of both products in float32


@njit(cache=True)
def active(h, units):  # type: ignore[no-untyped-def]
    """Number of units of h [B, H] that are not zero in some row; `units` int64 [H] is filled with them in order."""
    count = 0
    for j in range(h.shape[1]):
        some = False
        for r in range(h.shape[0]):
            some = some or h[r, j] != 0
        units[count] = j                                                # written over where it is zero
        count += some
    return count


@njit(cache=True, fastmath={"contract", "reassoc"})
def scatter(h, units, weight, bias, out):  # type: ignore[no-untyped-def]
    """out [B, D] = bias [D] + Σ over `units` j of h[:, j] · weight[j, :]; weight [H, D]. Four units at a time, since `out` is read and written anew
    for each."""
    width = weight.shape[1]
    for r in range(h.shape[0]):
        for i in range(width):
            out[r, i] = bias[i]
    many = len(units) // 4 * 4
    for t in range(0, many, 4):
        a, b, c, d = units[t], units[t + 1], units[t + 2], units[t + 3]
        for r in range(h.shape[0]):
            va, vb, vc, vd = h[r, a], h[r, b], h[r, c], h[r, d]
            if va != 0 or vb != 0 or vc != 0 or vd != 0:
                for i in range(width):
                    out[r, i] += va * weight[a, i] + vb * weight[b, i] + vc * weight[c, i] + vd * weight[d, i]
    for t in range(many, len(units)):
        a = units[t]
        for r in range(h.shape[0]):
            va = h[r, a]
            if va != 0:
                for i in range(width):
                    out[r, i] += va * weight[a, i]


@njit(cache=True, fastmath={"contract", "reassoc"})
def gather(x, units, weight, bias, h):  # type: ignore[no-untyped-def]
    """h[:, j] *= x · weight[j] + bias[j] for j of `units`, x [B, D], weight [H, D]: the second factor of a gated unit, where the first is not
    zero."""
    width = weight.shape[1]
    for t in range(len(units)):
        j = units[t]
        for r in range(x.shape[0]):
            if h[r, j] != 0:
                total = np.float32(0)
                for i in range(width):
                    total += x[r, i] * weight[j, i]
                h[r, j] *= total + bias[j]


@njit(cache=True)
def sketch(weight, codes, scale, error, norm):  # type: ignore[no-untyped-def]
    """int8 `codes` [H, D], `scale` [H], and the norms [H] of what they miss and of the rows of `weight`."""
    for j in range(weight.shape[0]):
        largest = np.float32(0)
        for i in range(weight.shape[1]):
            largest = max(largest, abs(weight[j, i]))
        step = largest / np.float32(127) if largest > 0 else np.float32(1)
        scale[j] = step
        missed, square = 0.0, 0.0
        for i in range(weight.shape[1]):
            code = np.round(weight[j, i] / step)
            codes[j, i] = np.int8(code)
            missed += (weight[j, i] - step * np.float32(code)) ** 2
            square += weight[j, i] ** 2
        error[j] = np.sqrt(missed)
        norm[j] = np.sqrt(square)


@njit(cache=True, fastmath={"contract", "reassoc"})
def _estimates(x, codes, scale, bias, out):  # type: ignore[no-untyped-def]
    for j in range(codes.shape[0]):
        total = np.float32(0)
        for i in range(codes.shape[1]):
            total += x[i] * np.float32(codes[j, i])
        out[j] = total * scale[j] + bias[j]


@njit(cache=True, fastmath={"contract", "reassoc"})
def _exact(x, weight, bias, j):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(weight.shape[1]):
        total += x[i] * weight[j, i]
    return total + bias[j]


@njit(cache=True)
def screen(x, weight, bias, codes, scale, error, norm, k, least, h):  # type: ignore[no-untyped-def]
    """h [B, H] = relu(x · weightᵀ + bias), of which what is not above `least` ≥ 0 and all but the `k` largest of a row are zero (k = H: all may
    stay); the number of rows of weights that were read in full, or −1 where something is not finite, and h is not to be used.

    A row is read where its upper bound is above `least` and not below the k-th largest lower bound.
    """
    width, read = weight.shape[0], 0
    near, low = np.empty(width, np.float32), np.empty(width, np.float32)
    for r in range(x.shape[0]):
        square = 0.0
        for i in range(x.shape[1]):
            square += np.float64(x[r, i]) ** 2
        length = np.float32(np.sqrt(square))
        _estimates(x[r], codes, scale, bias, near)
        for j in range(width):
            low[j] = near[j] - length * (error[j] + SLACK * norm[j]) - SLACK * abs(bias[j])
            if not np.isfinite(low[j]):
                return -1
        edge = least if k >= width else max(least, np.partition(low, width - k)[width - k])
        for j in range(width):
            h[r, j] = 0
            if 2 * near[j] - low[j] > least and 2 * near[j] - low[j] >= edge:
                value = _exact(x[r], weight, bias, j)
                h[r, j] = value if value > least else np.float32(0)
                read += 1
        if k < width:
            keep_largest(h[r], k)
    return read


@njit(cache=True)
def keep_largest(row, k):  # type: ignore[no-untyped-def]
    """All but the k entries of row [H] of largest magnitude become zero; of equal ones the first are kept. NaN counts as largest."""
    size = np.empty(len(row), np.float32)
    for j in range(len(row)):
        size[j] = abs(row[j]) if row[j] == row[j] else np.float32(np.inf)
    edge, above = np.partition(size, len(row) - k)[len(row) - k], 0
    for j in range(len(row)):
        above += size[j] > edge
    for j in range(len(row)):
        if size[j] == edge and above < k:
            above += 1
        elif not size[j] > edge:
            row[j] = 0
