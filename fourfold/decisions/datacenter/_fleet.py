"""The fewest joules of servers for an hourly load: what consolidation and batching share."""

from __future__ import annotations

import numpy as np

from fourfold.decisions.datacenter.problem import Serve


def needed(problem: Serve, work: np.ndarray) -> np.ndarray:
    """The fewest servers [T] that hold `work` [T] at the headroom, with the spare ones on top, never more than there are."""
    room = np.cumsum(problem.fleet.capacity) * problem.headroom
    fewest = np.where(work > 0, np.searchsorted(room * (1 + 1e-9), work) + 1, 0)
    return np.minimum(fewest + problem.spare, len(problem.fleet))


def cheapest(problem: Serve, work: np.ndarray) -> tuple[np.ndarray, float]:
    """Numbers of servers [T] of least energy for `work` [T], and that energy in kWh. Time T × (most - fewest): running minima over the number before.

    Power never falls with a further server (they stand in the order of busy power per capacity, and power is concave in load), so no hour has more
    than the most that any hour needs, and where starting is free each has just what it needs.
    """
    fewest, start = needed(problem, work), problem.fleet.start_kwh
    if start == 0:
        return fewest, float(problem.power(fewest, work).sum() / 1000.0)
    counts = np.arange(fewest.min(), fewest.max() + 1)
    came = np.zeros((len(work), len(counts)), np.int32)
    best = np.zeros(len(counts))
    for t in range(len(work)):
        price = np.where(counts >= fewest[t], problem.power(counts, np.full(len(counts), work[t])) / 1000.0, np.inf)
        if t:
            rise = np.minimum.accumulate(best - start * counts) + start * counts   # start more: best[m] + start × (n - m), m <= n
            above = np.minimum.accumulate(best[::-1])[::-1]                        # switch off: best[m], m >= n
            came[t] = np.where(above <= rise, len(counts) - 1 - _at(best[::-1])[::-1], _at(best - start * counts))
            best = np.minimum(above, rise) + price
        else:
            best = price
    on = np.zeros(len(work), int)
    on[-1] = int(np.argmin(best))
    for t in range(len(work) - 1, 0, -1):
        on[t - 1] = came[t, on[t]]
    return counts[on], float(best.min())


def _at(values: np.ndarray) -> np.ndarray:
    """Where the smallest value up to each position [n] stands."""
    return np.maximum.accumulate(np.where(values <= np.minimum.accumulate(values), np.arange(len(values)), 0))
