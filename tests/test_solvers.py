"""The knapsack against brute force, the search's determinism, dominance against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.solvers import bayes, knapsack


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(2, 5), st.integers(0, 10_000), st.floats(0.1, 1.0))
def test_knapsack_is_exact(items: int, options: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, 50, options).astype(float) for _ in range(items)]
    harms = [rng.random(options) for _ in range(items)]
    budget = share * sum(c.max() for c in costs)
    feasible = [
        sum(h[p] for h, p in zip(harms, picks, strict=True))
        for picks in itertools.product(range(options), repeat=items)
        if sum(c[p] for c, p in zip(costs, picks, strict=True)) <= budget
    ]
    # one bucket per unit of integer cost, so that nothing is rounded
    (answer,) = knapsack.solve(costs, harms, [budget], buckets=max(1, int(sum(c.max() for c in costs))))
    if not feasible:
        assert answer is None
    else:
        assert answer is not None
        assert sum(c[p] for c, p in zip(costs, answer, strict=True)) <= budget
        assert sum(h[p] for h, p in zip(harms, answer, strict=True)) == pytest.approx(min(feasible))


def test_knapsack_front_matches_brute_force_on_a_layered_toy() -> None:
    """Six layers of twenty options: the whole front, checked against an independent exact Pareto merge."""
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.integers(0, 200, 20)).astype(float) for _ in range(6)]
    harms = [np.sort(rng.random(20))[::-1].copy() for _ in range(6)]
    front: dict[int, float] = {0: 0.0}
    for c, h in zip(costs, harms, strict=True):
        merged: dict[int, float] = {}
        for spent, lost in front.items():
            for price, harm in zip(c, h, strict=True):
                key = spent + int(price)
                merged[key] = min(merged.get(key, np.inf), lost + harm)
        front = merged
    total = int(sum(c.max() for c in costs))
    budgets = [total * f for f in (0.2, 0.4, 0.6, 0.8, 1.0)]
    for budget, picks in zip(budgets, knapsack.solve(costs, harms, budgets, buckets=total), strict=True):
        assert picks is not None
        assert sum(h[p] for h, p in zip(harms, picks, strict=True)) == pytest.approx(min(v for k, v in front.items() if k <= budget))


def test_knapsack_of_nothing_is_nothing() -> None:
    assert knapsack.solve([], [], [0.0, 1.0, -1.0]) == [[], [], None]


def test_knapsack_refuses_negative_costs() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        knapsack.solve([np.array([-1.0])], [np.array([0.0])], [1.0])


def test_search_is_a_function_of_seed_and_history() -> None:
    def run() -> list[dict[str, float]]:
        search = bayes.Search({"x": bayes.Span(0.01, 1, log=True), "n": bayes.Span(1, 6, whole=True)}, 2, seed=3, startup=4)
        search.seed({"x": 0.5, "n": 3})
        seen = []
        for _ in range(12):
            ticket, p = search.ask()
            seen.append(p)
            search.tell(ticket, [(p["x"] - 0.3) ** 2, p["n"]], violation=p["x"] - 0.9)
        return seen

    first, second = run(), run()
    assert first == second
    assert first[0] == {"x": 0.5, "n": 3}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_dominated_is_its_definition(points: list[tuple[int, int]]) -> None:
    for point, gone in zip(points, bayes.dominated([tuple(map(float, p)) for p in points]), strict=True):
        assert gone == any(q[0] <= point[0] and q[1] <= point[1] and q != point for q in points)
