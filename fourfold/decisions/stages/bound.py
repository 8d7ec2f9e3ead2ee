"""A bound for every pipeline: for each largest stage M, a chain of stages none longer than M with the devices rule priced instead of kept.

    T* ≥ min over M of [ (B − 1)·M + max over λ ≥ 0 of ( min over chains of stages ≤ M of Σ (t + λ·n) − λ·D ) ]
The inner maximum is the linear relaxation of the chain with a device limit (Handler and Zang 1980), once for each M: a disjunctive relaxation, as the
MIP relaxations of arXiv 2311.03703 are for partitions of pipelines. Memory counts as if each stage were the last (fewest microbatches in flight).
It looks at no solver, and knows neither the number of stages nor their devices one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from fourfold.decisions.stages.problem import StageConstruction

_STEPS = 60                                                             # of the search for λ; any λ gives a bound


@numba.njit(cache=True)
def _chain(t, n, most, price):  # noqa: ANN001, ANN202 — numba types
    """(least Σ t + price·n over chains of runs with t ≤ most, its Σ t, its Σ n): t f8[K, L, L], n f8[K]; inf where there is none."""
    kinds, count, _ = t.shape
    value, time, used = np.full(count + 1, np.inf), np.zeros(count + 1), np.zeros(count + 1)
    value[count] = 0.0
    for k in range(count - 1, -1, -1):
        for i in range(k, count):
            if value[i + 1] == np.inf:
                continue
            for c in range(kinds):
                if t[c, k, i] <= most:
                    whole = t[c, k, i] + price * n[c] + value[i + 1]
                    if whole < value[k]:
                        value[k], time[k], used[k] = whole, t[c, k, i] + time[i + 1], n[c] + used[i + 1]
    return value[0], time[0], used[0]


@numba.njit(cache=True)
def _relaxed(t, n, devices, most, steps):  # noqa: ANN001, ANN202
    """The best λ's bound on Σ t of chains of runs ≤ most; inf where no chain of fewer than infinitely many devices is proven to exist."""
    low_value, low_time, low_used = _chain(t, n, most, 0.0)
    if low_value == np.inf:
        return np.inf
    best = low_value
    if low_used <= devices:
        return best                                                     # the rule does not bind
    _, thin_time, thin_used = _chain(t, n, most, 1e18)
    if thin_used > devices:
        return np.inf                                                   # not even the chain of fewest devices has enough
    for _ in range(steps):                                              # the two lines cross at the next price (a cutting plane of one dimension)
        price = (thin_time - low_time) / (low_used - thin_used)
        value, time, used = _chain(t, n, most, price)
        best = max(best, value - price * devices)
        if value >= low_time + price * low_used - 1e-12 * abs(value):
            break
        if used > devices:
            low_time, low_used = time, used
        else:
            thin_time, thin_used = time, used
        if low_used <= thin_used:
            break
    return best


@numba.njit(cache=True)
def _least(t, n, devices, batches, values, steps):  # noqa: ANN001, ANN202
    """min over M in `values` (ascending) of (batches)·M + `_relaxed`, skipping what cannot be less."""
    best, free = np.inf, _chain(t, n, np.inf, 0.0)[0]
    low, high = 0, len(values)
    while low < high:                                                   # the least M that has a chain within the devices: the rule is monotone in M
        middle = (low + high) // 2
        if _chain(t, n, values[middle], 1e18)[2] <= devices and _chain(t, n, values[middle], 1e18)[0] < np.inf:
            high = middle
        else:
            low = middle + 1
    for m in range(low, len(values)):
        if batches * values[m] + free >= best:
            break
        best = min(best, batches * values[m] + _relaxed(t, n, devices, values[m], steps))
    return best


def lower_bound(problem: StageConstruction) -> float:
    """Seconds that no valid answer of `problem` goes below; inf where none exists."""
    table = problem.table
    time = np.where(problem.most_flights >= 1, table.seconds, np.inf)
    owned = np.unique(table.devices[table.devices <= problem.devices])
    if not owned.size:
        return float("inf")
    best = np.stack([time[table.devices == n].min(axis=0) for n in owned])             # of one size the quickest counts
    values = np.unique(best[np.isfinite(best)])
    return float(_least(best, owned.astype(np.float64), float(problem.devices), float(problem.microbatches - 1), values, _STEPS))
