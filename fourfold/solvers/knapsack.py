"""The multiple-choice knapsack: one option per item, least total harm for every total cost at once.

Dynamic programme over cost buckets (Martello & Toth 1990, ch. 3; used for structured pruning by ZipLM): O(items · options · buckets). Costs are
rounded to the nearest bucket, so a plan's true cost differs from its bucket by at most items / (2 · buckets) of the largest total; `solve` re-adds
the true costs.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def _table(cost: np.ndarray, harm: np.ndarray, start: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    items = len(start) - 1
    best = np.full(buckets + 1, np.inf)
    best[0] = 0.0
    choice = np.full((items, buckets + 1), -1, np.int32)
    for i in range(items):
        fresh = np.full(buckets + 1, np.inf)
        for o in range(start[i], start[i + 1]):
            c, h = cost[o], harm[o]
            for b in range(c, buckets + 1):
                value = best[b - c] + h
                if value < fresh[b]:
                    fresh[b] = value
                    choice[i, b] = o
        best = fresh
    return best, choice


def solve(costs: list[np.ndarray], harms: list[np.ndarray], budgets: list[float], buckets: int = 10_000) -> list[list[int] | None]:
    """For each budget, the option index chosen per item (or None where not even the cheapest options fit).

    `costs[i]`, `harms[i]` float [options of item i], same units as `budgets`; costs must be ≥ 0.
    """
    if any((c < 0).any() for c in costs):
        raise ValueError("knapsack costs must be non-negative")
    if not costs:
        return [[] if budget >= 0 else None for budget in budgets]
    largest = sum(float(c.max()) for c in costs)
    unit = max(largest, 1e-300) / buckets
    flat = np.concatenate([np.rint(c / unit).astype(np.int64) for c in costs])
    start = np.concatenate([[0], np.cumsum([len(c) for c in costs])]).astype(np.int64)
    best, choice = _table(flat, np.concatenate(harms).astype(np.float64), start, buckets)
    answers: list[list[int] | None] = []
    for budget in budgets:
        top = min(buckets, int(np.floor(budget / unit + 1e-9)))
        answers.append(_trace(best, choice, flat, start, costs, budget, top))
    return answers


def _trace(
    best: np.ndarray, choice: np.ndarray, flat: np.ndarray, start: np.ndarray, costs: list[np.ndarray], budget: float, top: int
) -> list[int] | None:
    """Walk back from the best bucket at or below `top` whose true cost respects the budget."""
    reachable = np.flatnonzero(np.isfinite(best[: top + 1]))
    for bucket in reachable[np.argsort(best[reachable], kind="stable")]:
        picks, b = [], int(bucket)
        for i in range(len(start) - 2, -1, -1):
            option = int(choice[i, b])
            picks.append(option - int(start[i]))
            b -= int(flat[option])
        picks.reverse()
        if sum(float(c[p]) for c, p in zip(costs, picks, strict=True)) <= budget * (1 + 1e-12):
            return picks
    return None
