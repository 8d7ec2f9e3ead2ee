"""The dynamic programme over stages and submeshes in numba: F(s, k, d; t_max), its table of choices, and the sweep over t_max."""

from __future__ import annotations

import numba
import numpy as np

MANY = 1 << 30


@numba.njit(cache=True)
def fill(t, n, most, devices, stages, t_max, value, layer, config):  # noqa: ANN001, ANN202 — numba types
    """F(s, k, d; t_max) into `value` f8[S+1, L+1, D+1], the last layer and the configuration chosen into `layer`, `config` i4 of that shape.

    F(s, k, d) is the least Σ t of exactly s stages over layers k … L−1 on at most d devices, each stage at most t_max and, of s stages from it to the
    last, memory enough: s ≤ most[c, k, i]. F(0, L, d) = 0. t f8[C, L, L], n i8[C], most i8[C, L, L].
    """
    kinds, count, _ = t.shape
    value[:] = np.inf
    value[0, count, :] = 0.0
    for s in range(1, stages + 1):
        for k in range(count - s, -1, -1):
            for i in range(k, count - s + 1):
                for c in range(kinds):
                    own = t[c, k, i]
                    if own > t_max or most[c, k, i] < s:
                        continue
                    for d in range(n[c], devices + 1):
                        whole = own + value[s - 1, i + 1, d - n[c]]
                        if whole < value[s, k, d]:
                            value[s, k, d], layer[s, k, d], config[s, k, d] = whole, i, c
    return value[1:, 0, devices].argmin() + 1


@numba.njit(cache=True)
def fill_free(t, n, devices, t_max, value, layer, config):  # noqa: ANN001, ANN202
    """As `fill` where memory limits no stage, so that their number need not be counted: value f8[1, L+1, D+1]."""
    kinds, count, _ = t.shape
    value[:] = np.inf
    value[0, count, :] = 0.0
    for k in range(count - 1, -1, -1):
        for i in range(k, count):
            for c in range(kinds):
                own = t[c, k, i]
                if own > t_max:
                    continue
                for d in range(n[c], devices + 1):
                    whole = own + value[0, i + 1, d - n[c]]
                    if whole < value[0, k, d]:
                        value[0, k, d], layer[0, k, d], config[0, k, d] = whole, i, c
    return 0


@numba.njit(cache=True)
def sweep(t, n, most, devices, stages, batches, values, free, start):  # noqa: ANN001, ANN202
    """(first i8[S], config i8[S], cost, tried, done): the best pipeline over t_max in `values` (ascending) from `start`, so many of them.

    `batches` = (B − 1, that most, the least Σ t of any chain); `free`: memory limits no stage. `done` is False where the tries ended it. After
    each t_max the largest stage that was used counts, not t_max; it ends when (B − 1)·t_max plus the least Σ t of any chain is no less than the best.
    """
    count = t.shape[1]
    depth = 1 if free else stages + 1
    value = np.full((depth, count + 1, devices + 1), np.inf)
    layer, config = np.zeros(value.shape, np.int32), np.zeros(value.shape, np.int32)
    best, tried = np.inf, 0
    first, chosen = np.zeros(count, np.int64), np.zeros(count, np.int64)
    kept_first, kept_config, kept = np.zeros(count, np.int64), np.zeros(count, np.int64), 0
    for m in range(start, len(values)):
        if batches[0] * values[m] + batches[2] >= best:
            return kept_first[:kept], kept_config[:kept], best, tried, True
        if tried >= batches[1]:
            return kept_first[:kept], kept_config[:kept], best, tried, False
        tried += 1
        s = (fill_free(t, n, devices, values[m], value, layer, config) if free
             else fill(t, n, most, devices, stages, values[m], value, layer, config))
        if value[s, 0, devices] == np.inf:
            continue
        k, d, total, largest, found = 0, devices, 0.0, 0.0, 0
        while k < count:
            i, c = layer[s, k, d], config[s, k, d]
            first[found], chosen[found] = k, c
            total, largest, found = total + t[c, k, i], max(largest, t[c, k, i]), found + 1
            k, d, s = i + 1, d - n[c], s if free else s - 1
        if total + batches[0] * largest < best:
            best, kept = total + batches[0] * largest, found
            kept_first[:found], kept_config[:found] = first[:found], chosen[:found]
    return kept_first[:kept], kept_config[:kept], best, tried, True


@numba.njit(cache=True)
def least_max(t, n, most, devices, stages, values, free):  # noqa: ANN001, ANN202
    """Index into `values` of the least t_max that has a pipeline; len(values) where none has. Feasibility is monotone in t_max."""
    count = t.shape[1]
    value = np.full((1 if free else stages + 1, count + 1, devices + 1), np.inf)
    layer, config = np.zeros(value.shape, np.int32), np.zeros(value.shape, np.int32)
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        s = (fill_free(t, n, devices, values[middle], value, layer, config) if free
             else fill(t, n, most, devices, stages, values[middle], value, layer, config))
        if value[s, 0, devices] < np.inf:
            high = middle
        else:
            low = middle + 1
    return low
