"""Sharding's solvers against enumeration, and their certificates counted again by the validator of bounds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shard import least

from fourfold.decisions.shard._certify import certificate
from fourfold.decisions.shard._descend import conditional, cost
from fourfold.decisions.shard._forest import Forests
from fourfold.decisions.shard._memory import add, load, peak, tree
from fourfold.decisions.shard._messages import Messages
from fourfold.decisions.shard._model import model
from fourfold.decisions.shard._prices import DualAscent, by_strategy
from fourfold.decisions.shard.auto import ShardPortfolio
from fourfold.decisions.shard.bound import DualCertificate, bound
from fourfold.decisions.shard.exact import ShardIntegerProgram
from fourfold.decisions.shard.instance import StrategyGraph
from fourfold.decisions.shard.linear_relaxation import LinearRelaxation
from fourfold.decisions.shard.problem import ShardProblem, invented
from fourfold.decisions.shard.trws import TreeReweightedPassing
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Watch, solve


def drawn(count: int, most: int = 6) -> Iterator[tuple[int, StrategyGraph, float]]:
    for seed in range(count):
        graph = invented(seed, most)
        yield seed, graph, least(graph)


def test_auto_equals_enumeration_on_240_problems_and_its_bound_never_passes_it() -> None:
    for seed, graph, optimum in drawn(240):
        found = solve(ShardProblem(graph), ShardPortfolio(), Budget(60, 60))
        assert found.cost == pytest.approx(optimum, rel=1e-9), f"seed {seed}"
        assert found.bound is not None and found.bound <= optimum + 1e-9
        assert bound(graph, found.evidence["certificate"]) <= optimum + 1e-9


def test_exact_search_equals_enumeration_and_the_linear_relaxation_bounds_it_by_its_duals() -> None:
    for seed, graph, optimum in drawn(48):
        problem = ShardProblem(graph)
        assert solve(problem, ShardIntegerProgram(), Budget(60, 1000)).cost == pytest.approx(optimum, rel=1e-6), f"seed {seed}"
        relaxed = solve(problem, LinearRelaxation(), Budget(60, 3))
        proven = bound(graph, relaxed.evidence["certificate"])
        assert proven <= optimum + 1e-9 and relaxed.cost >= optimum - 1e-9
        assert proven >= bound(graph, solve(problem, TreeReweightedPassing(), Budget(60, 20)).evidence["certificate"]) - 1e-6 * abs(optimum)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 3.0, 50.0]))
def test_any_messages_and_prices_give_a_bound_that_holds(seed: int, noise: int, scale: float) -> None:
    graph, rng = invented(seed, 5), np.random.default_rng(noise)
    pairs = np.unique(np.sort(graph.edge[graph.edge[:, 0] != graph.edge[:, 1]], 1), axis=0)
    sizes = int(graph.strategies[pairs].sum())
    times = np.arange(-1, 12) if graph.limit is not None else np.zeros(0, int)
    proof = DualCertificate(times, rng.exponential(scale / 10, len(times)), pairs, rng.normal(0, scale, sizes))
    assert bound(graph, proof) <= least(graph) + 1e-9


def test_a_certificate_that_does_not_fit_is_refused() -> None:
    graph = StrategyGraph.of([[1, 2], [3]], [[0, 1], [0]], [(0, 1)], [[4, 5]], limit=1)
    with pytest.raises(ValueError, match="negative"):
        bound(graph, DualCertificate(np.array([0]), np.array([-1.0])))
    with pytest.raises(ValueError, match="messages"):
        bound(graph, DualCertificate(pairs=np.array([[0, 1]]), messages=np.zeros(7)))
    with pytest.raises(KeyError):
        bound(graph, DualCertificate(pairs=np.array([[1, 1]]), messages=np.zeros(2)))


def test_the_certificate_of_an_ascent_gives_what_the_passes_count() -> None:
    """Removed strategies must not cost anything: forbidden pairs (seed % 6 == 2) remove some."""
    for seed in range(2, 200, 6):
        graph = invented(seed)
        m = model(graph)
        dual = DualAscent(m)
        for _ in range(40):
            dual.advance()
        assert bound(graph, certificate(m, dual.given, dual.best)) >= dual.bound - 1e-6 * abs(dual.bound)


def test_on_a_tree_one_pass_is_exact_and_a_forest_move_finds_the_optimum() -> None:
    rng = np.random.default_rng(3)
    k = rng.integers(1, 4, 8)
    edges = [(int(rng.integers(0, i)), i) for i in range(1, 8)]
    graph = StrategyGraph.of([rng.integers(0, 20, size).tolist() for size in k], [[0] * size for size in k], edges,
                             [rng.integers(0, 20, int(k[a] * k[b])).tolist() for a, b in edges])
    m, chosen = model(graph), np.zeros(8, np.int64)
    assert Messages(m).forward(np.zeros(len(m.unary)), chosen) == pytest.approx(least(graph))
    assert cost(m, chosen) == pytest.approx(least(graph))
    chosen[:] = 0
    Forests(m).improve(np.zeros(len(m.unary)), np.arange(8), chosen)
    assert cost(m, chosen) == pytest.approx(least(graph))


def test_a_forest_move_never_costs_more_and_a_neighbourhood_keeps_the_limit() -> None:
    for seed in range(60):
        m = model(invented(seed, 9))
        rng = np.random.default_rng(seed)
        chosen = rng.integers(0, np.diff(m.ptr))
        prices = by_strategy(m, rng.random(m.sections))
        at, forests = m.ptr[:-1], Forests(m)
        for _ in range(4):
            before = cost(m, chosen) + prices[at + chosen].sum()
            forests.improve(prices, rng.permutation(len(m)), chosen)
            assert cost(m, chosen) + prices[at + chosen].sum() <= before + 1e-9 * abs(before)
        if load(m, chosen).max(initial=0) > m.limit:
            continue
        held, before = tree(m, chosen), cost(m, chosen)
        starts = rng.integers(0, len(m), 10)
        _, fell = forests.neighbourhoods(prices, starts, np.full(10, 4), rng.random(10), seed, chosen, held)
        assert load(m, chosen).max(initial=0) <= m.limit and cost(m, chosen) == pytest.approx(before - fell, abs=1e-6 * (1 + abs(before)))
        assert held[0, 1] == load(m, chosen).max(initial=0)


def test_the_tree_of_maxima_equals_a_plain_array() -> None:
    rng = np.random.default_rng(0)
    m = model(invented(1, 9))
    made = tree(m, np.zeros(len(m), np.int64))
    width = made.shape[1] // 2
    plain = np.concatenate([load(m, np.zeros(len(m), np.int64)), np.zeros(width - m.sections, np.int64)])
    for _ in range(300):
        first, last = sorted(rng.integers(0, width + 1, 2).tolist())
        change = int(rng.integers(-9, 20))
        add(made, first, last, change)
        plain[first:last] += change
        assert made[0, 1] == plain.max()
        low, high = sorted(rng.integers(0, width + 1, 2).tolist())
        assert peak(made, low, high) == (plain[low:high].max() if low < high else 0)


def test_what_a_strategy_costs_beside_its_neighbours_is_the_difference_of_costs() -> None:
    m = model(invented(7, 9))
    rng, out = np.random.default_rng(1), np.empty(9)
    chosen = rng.integers(0, np.diff(m.ptr))
    for i in range(len(m)):
        conditional(i, m.ptr, m.unary, m.a, m.b, m.tptr, m.table, m.aptr, m.aedge, chosen, out)
        for s in range(int(np.diff(m.ptr)[i])):
            other = chosen.copy()
            other[i] = s
            assert cost(m, other) - cost(m, chosen) == pytest.approx(out[s] - out[chosen[i]])


def test_a_node_whose_pairs_are_all_forbidden_is_told() -> None:
    graph = StrategyGraph.of([[1, 1], [1]], [[0, 0], [0]], [(0, 1)], [[10**18, 10**18]])
    with pytest.raises(Infeasible, match="no strategy that may stand beside"):
        solve(ShardProblem(graph), ShardPortfolio(), Budget(5, 20))


def test_a_spent_budget_and_a_stop_still_hand_back_an_answer() -> None:
    problem = ShardProblem(invented(3))
    assert not problem.violations(solve(problem, ShardPortfolio(), Budget(0.0)).answer)
    with Watch() as watch:
        watch.stopped = True
        assert not problem.violations(solve(problem, ShardPortfolio(), Budget(60)).answer)
