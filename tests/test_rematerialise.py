"""The validator against memory that is really overwritten, the optimum against all sequences, the descent against its promise."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.decisions.rematerialise import descent, pebbling, reorder
from fourfold.decisions.rematerialise._evict import evicted
from fourfold.decisions.rematerialise._lives import INVALID, lives, measure, own_order
from fourfold.decisions.rematerialise._pack import live_peak, pack
from fourfold.decisions.rematerialise._search import PRICE, improve
from fourfold.decisions.rematerialise._segments import segmented
from fourfold.decisions.rematerialise.eviction import Eviction
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.decisions.rematerialise.recompute_all import RecomputeAll
from fourfold.decisions.rematerialise.retention_intervals import RetentionIntervals
from fourfold.decisions.rematerialise.sequence_annealing import SequenceAnnealing
from fourfold.decisions.rematerialise.sqrt_checkpointing import SqrtCheckpointing
from fourfold.decisions.rematerialise.store_all import StoreAll
from fourfold.errors import Infeasible, InputError
from fourfold.graph import BACKWARD, ELEMENTWISE, FORWARD, INTERMEDIATE, VIEW, Builder, Graph
from fourfold.problem import Budget, solve
from fourfold.zoo.graphs import make


@cache
def sample(seed: int) -> Rematerialise:
    return Rematerialise.sample(seed)


def chain(length: int = 4, sizes: tuple[int, ...] = (256,)) -> Graph:
    """A forward pass of `length` ops and a backward pass that reads each value, last first."""
    build = Builder("chain")
    x = build.input((64,), "float32")
    values = [x]
    for i in range(length):
        wide = sizes[i % len(sizes)]
        values += build.node("aten.mul", (values[-1],), [((wide,), "float32")], steps=float(wide), fusion=ELEMENTWISE, phase=FORWARD, layer=i)
    (gradient,) = build.node("aten.ones", (values[-1],), [((64,), "float32")], steps=64.0, fusion=ELEMENTWISE, phase=BACKWARD)
    for value in values[-2:0:-1]:
        (gradient,) = build.node("aten.mul", (gradient, value), [((64,), "float32")], steps=64.0, fusion=ELEMENTWISE, phase=BACKWARD)
    build.output(gradient)
    return build.build()


# ---- the validator

def clobbered(problem: Rematerialise, sequence: list[int], offset: list[int]) -> bool:
    """Whether a step of the sequence finds other bytes than it should, when every instance writes its own mark over its whole room."""
    g = problem.graph
    memory: dict[int, int] = {}
    where: dict[int, tuple[int, int, int] | None] = {v: None for v in range(len(g.role)) if g.role[v] != INTERMEDIATE}
    marks = itertools.count(1)

    def intact(value: int) -> bool:
        if value not in where:
            return False
        place = where[value]
        return place is None or all(memory.get(b) == place[0] for b in range(place[1], place[2]))

    left = iter(offset)
    for n in sequence:
        inputs = [v for v in g.inputs_of(n).tolist()]
        if not all(map(intact, inputs)):
            return True
        before = {v: where[v] for v in inputs}
        made = []
        for v in g.outputs_of(n).tolist():
            if g.alias[v] == v:
                at = next(left) // 64
                place = (next(marks), at, at + -(-int(g.size[v]) // 64))
                memory.update(dict.fromkeys(range(*place[1:]), place[0]))
                where[v] = place
                made.append(v)
        for v in g.outputs_of(n).tolist():
            if g.alias[v] != v:
                where[v] = where.get(next((u for u in inputs if g.alias[u] == g.alias[v]), int(g.alias[v])))
        if not all(map(intact, made)) or any(memory.get(b) != p[0] for p in before.values() if p for b in range(p[1], p[2])):
            return True
    return not all(map(intact, g.outputs.tolist()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_validator_finds_exactly_the_plans_whose_bytes_are_overwritten(data: st.DataObject) -> None:
    problem = sample(data.draw(st.integers(0, 11))).within(None)
    limit = data.draw(st.integers(problem.least_peak(), problem.peak(problem.baseline())))
    found = evicted(problem.core, own_order(problem.core), limit, 1.0, 1.0)
    sequence = problem.expand(own_order(problem.core) if found is None else found).tolist()
    kind = data.draw(st.integers(0, 3))
    if kind == 1:                                                      # a step moved
        a, b = (data.draw(st.integers(0, len(sequence) - 1)) for _ in range(2))
        sequence.insert(b, sequence.pop(a))
    plan = np.array(sequence, np.int32)
    offset = pack(lives(problem, plan)).tolist()
    if kind == 2:                                                      # an offset moved
        k = data.draw(st.integers(0, len(offset) - 1))
        offset[k] = 64 * data.draw(st.integers(0, max(offset) // 64 + 2))
    wrong = problem.violations(Rematerialisation(plan, np.array(offset, np.int64)))
    if not wrong or kind != 1 or all("runs" not in one for one in wrong):
        assert bool(wrong) == clobbered(problem, sequence, offset), wrong


def test_each_rule_is_named() -> None:
    graph = chain()
    problem = Rematerialise.of(graph)
    good = problem.baseline()
    steps, offset = good.sequence.tolist(), good.offset.tolist()

    def said(sequence: list[int], offsets: list[int], of: Rematerialise = problem) -> str:
        found = of.violations(Rematerialisation(np.array(sequence, np.int32), np.array(offsets, np.int64)))
        return found[0] if found else ""

    assert said(steps, offset) == ""
    assert "never runs" in said(steps[:-1], offset[:-1])
    assert "has not made" in said([steps[1], steps[0], *steps[2:]], offset)
    assert "but there are" in said([99], [0])
    assert "offsets for" in said(steps, offset[:-1])
    assert "no multiple of 64" in said(steps, [o + 1 for o in offset])
    assert "lives in" in said(steps, [0] * len(offset))
    assert "more than the limit" in said(steps, offset, problem.within(100))
    never = Rematerialise(graph, None, problem.price, once=np.arange(len(graph)) == 0)
    assert "must not be repeated" in said([0, 0, *steps[1:]], [0, *offset], never)


def test_random_ops_are_not_repeated_unless_their_seed_is_kept() -> None:
    build = Builder("dropout")
    (a,) = build.node("aten.mul", (build.input((64,), "float32"),), [((64,), "float32")], steps=64.0)
    (mask,) = build.node("aten.bernoulli.p", (a,), [((64,), "float32")], steps=64.0)
    build.output(build.node("aten.mul", (a, mask), [((64,), "float32")], steps=64.0)[0])
    graph = build.build()
    assert Rematerialise.of(graph).once.tolist() == [False, True, False]
    assert not Rematerialise.of(graph, seeds_kept=[1]).once.any()


def test_arrays_that_do_not_fit_are_refused() -> None:
    graph = chain()
    for wrong in ({"price": np.ones(3)}, {"price": np.full(len(graph), -1.0)}, {"limit": -1}, {"workspace": np.full(len(graph), -1)}, {"unit": "h"}):
        with pytest.raises(InputError):
            Rematerialise(graph, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        Rematerialise(Builder("nothing").build())
    with pytest.raises(InputError):
        Rematerialisation(np.zeros((2, 2), np.int32), np.zeros(0, np.int64))


def test_a_workspace_lies_above_what_is_alive() -> None:
    graph = chain(2)
    plain, wide = Rematerialise.of(graph), Rematerialise.of(graph, workspace=np.full(len(graph), 640))
    assert wide.peak(wide.baseline()) == plain.peak(plain.baseline()) + 640 and wide.least_peak() >= plain.least_peak() + 640


# ---- views

@pytest.mark.parametrize("seed", range(12))
def test_views_put_back_change_neither_peak_nor_validity(seed: int) -> None:
    problem = sample(seed).within(None)
    for share in (0.2, 0.5, 0.8, 1.0):
        least = problem.least_peak()
        found = evicted(problem.core, own_order(problem.core), int(least + share * (problem.peak(problem.baseline()) - least)), 1.0, 0.5)
        if found is None:
            continue
        peak, _, kept, _ = measure(problem.core, found)
        answer = problem.plan(problem.expand(kept))
        assert problem.violations(answer) == [] and live_peak(lives(problem, answer.sequence)) == peak
        assert problem.collapse(answer.sequence).tolist() == kept.tolist()


def test_a_view_is_taken_again_where_its_root_is_made_again() -> None:
    build = Builder("views")
    x = build.input((64,), "float32")
    (a,) = build.node("aten.mul", (x,), [((64,), "float32")], steps=64.0)
    (v,) = build.node("aten.view", (a,), [((8, 8), "float32")], fusion=VIEW, alias=[a])
    (b,) = build.node("aten.exp", (v,), [((8, 8), "float32")], steps=64.0)
    build.output(build.node("aten.add", (b, v), [((8, 8), "float32")], steps=64.0)[0])
    problem = Rematerialise.of(build.build())
    assert problem.expand([0, 1, 0, 2]).tolist() == [0, 1, 2, 0, 1, 3]
    assert problem.expand([0, 1, 2]).tolist() == [0, 1, 2, 3]


# ---- optimum, bounds

def cheapest(problem: Rematerialise, extra: int) -> float:
    """The least price of any sequence with up to `extra` repeats whose living bytes fit, by looking at all of them."""
    core, best = problem.core, np.inf
    for length in range(len(core.node), len(core.node) + extra + 1):
        for one in itertools.product(range(len(core.node)), repeat=length):
            if len(set(one)) == len(core.node):
                peak, price, _, _ = measure(core, np.array(one, np.int32))
                if peak != INVALID and peak <= (problem.limit or 0):
                    best = min(best, price)
    return best


@pytest.mark.parametrize("sizes", [(64,), (64, 128), (192, 64)])
def test_the_pebble_game_finds_the_optimum_of_all_sequences(sizes: tuple[int, ...]) -> None:
    problem = Rematerialise.of(chain(3, sizes))                        # 6 nodes
    top, least = problem.peak(problem.baseline()), problem.least_peak()
    for limit in range(least, top + 1, 512):
        one = problem.within(limit)
        true = cheapest(one, 1)
        if np.isfinite(true):
            found = solve(one, pebbling.Pebbling(), Budget(60, 100_000))
            assert (one.bound() or 0.0) <= true * (1 + 1e-12)
            assert found.cost <= true + 1e-15 and (found.cost == pytest.approx(true) or problem.repeated(found.answer) > 1)
            assert found.note == "Optimum." and found.bound == pytest.approx(found.cost)
            other = solve(one, RetentionIntervals(), Budget(60, 3000))
            assert other.cost == pytest.approx(found.cost) and other.bound is not None and other.bound <= found.cost * (1 + 1e-9)


def test_retention_intervals_prove_what_they_find() -> None:
    problem = sample(1)
    found, best = (solve(problem, solver, Budget(60, 4000)) for solver in (RetentionIntervals(), pebbling.Pebbling()))
    assert found.bound is not None and best.bound is not None and max(found.bound, best.bound) <= min(found.cost, best.cost) * (1 + 1e-9)
    assert RetentionIntervals().declines(sample(5)) and RetentionIntervals().declines(trained())


def test_what_cannot_be_is_proven_or_said_to_be_unknown() -> None:
    problem = Rematerialise.of(chain(4))
    with pytest.raises(Infeasible, match="any takes at least"):
        solve(problem.within(problem.least_peak() - 64), Eviction(), Budget(10, 100))
    with pytest.raises(Infeasible, match="all were looked at|at least"):
        solve(problem.within(64), pebbling.Pebbling(), Budget(10, 10_000))


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_for_every_technique(seed: int) -> None:
    problem = sample(seed)
    for technique in (Eviction, SequenceAnnealing, pebbling.Pebbling, RetentionIntervals, reorder.Reorder, StoreAll, SqrtCheckpointing, RecomputeAll):
        solver = technique()
        if solver.declines(problem):
            continue
        try:
            found = solve(problem, solver, Budget(600, 60 if technique is pebbling.Pebbling else 300), seed=seed)
        except Infeasible:
            continue
        here = problem.within(problem.peak(found.answer))              # what it takes is a limit that it meets
        assert here.limit >= problem.least_peak() and found.cost >= (here.bound() or 0.0) * (1 - 1e-12)  # type: ignore[operator]


def test_the_exact_order_is_least_of_all_orders() -> None:
    core = sample(2).core                                              # 11 nodes
    order = reorder.exact_order(core)
    assert order is not None
    dice, least = np.random.default_rng(0), measure(core, order)[0]
    for k in range(200):
        waiting = np.diff(core.in_ptr).astype(int)
        ready, one = [n for n in range(len(waiting)) if not waiting[n]], []
        while ready:
            n = ready.pop(int(dice.integers(len(ready))))
            one.append(n)
            for m in range(len(waiting)):
                reads = core.in_val[core.in_ptr[m] : core.in_ptr[m + 1]]
                hit = sum(core.producer[v] == n for v in reads.tolist())
                waiting[m] -= hit
                if hit and not waiting[m]:
                    ready.append(m)
        assert measure(core, np.array(one, np.int32))[0] >= least, k


def test_the_bound_sees_what_a_limit_costs() -> None:
    problem = trained()
    top, bounds = problem.peak(problem.baseline()), []
    for share in (1.0, 0.8, 0.6, 0.5):
        limit = int(share * top)
        found = evicted(problem.core, own_order(problem.core), limit, 1.0, 1.0)
        assert found is not None
        bounds.append(problem.within(limit).bound() or 0.0)
        assert bounds[-1] <= problem.cost(problem.plan(problem.expand(found))) * (1 + 1e-12)
    assert bounds == sorted(bounds) and bounds[0] == pytest.approx(problem.price.sum()) and bounds[-1] > 1.01 * bounds[0]


# ---- techniques

@cache
def trained() -> Rematerialise:
    return Rematerialise.of(make("transformer_xl", 400, 0, train=True))


def test_checkpoints_lie_between_keeping_all_and_recomputing_all() -> None:
    problem = trained()
    plans = {one.__name__: solve(problem, one(), Budget(60, 100)) for one in (StoreAll, SqrtCheckpointing, RecomputeAll)}
    peaks = {name: problem.peak(found.answer) for name, found in plans.items()}
    assert peaks["SqrtCheckpointing"] < 0.8 * peaks["StoreAll"] and plans["RecomputeAll"].cost > 2 * plans["StoreAll"].cost
    assert 1.0 < plans["SqrtCheckpointing"].cost / plans["StoreAll"].cost < 1.5


def test_annealing_improves_what_checkpointing_finds_and_keeps_to_the_limit() -> None:
    problem = trained()
    start = segmented(problem, 4)
    limit, price, _, _ = measure(problem.core, start)
    found, fits = improve(problem.core, start, PRICE, limit, Budget(600, 20_000), 0, tries=20_000)
    again, _ = improve(problem.core, start, PRICE, limit, Budget(600, 20_000), 0, tries=20_000)
    assert fits and measure(problem.core, found)[0] <= limit and measure(problem.core, found)[1] < 0.99 * price
    assert found.tolist() == again.tolist()


def test_eviction_keeps_to_the_limit() -> None:
    problem = trained()
    least, top = problem.least_peak(), problem.peak(problem.baseline())
    for share in (0.1, 0.4, 0.8):
        limit = int(least + share * (top - least))
        found = evicted(problem.core, own_order(problem.core), limit, 1.0, 1.0)
        assert found is not None and measure(problem.core, found)[0] <= limit


def test_the_lower_the_limit_the_smaller_the_arena_and_never_dearer_than_checkpoints() -> None:
    problem, budget = trained(), 12_000                                # what is promised holds for any number of evaluations
    top = problem.peak(problem.baseline())
    before, cost = top + 1, 0.0
    checkpointed = problem.plan(problem.expand(segmented(problem, 3)))
    for share in sorted((1.0, 0.83, 0.7, 0.5, problem.peak(checkpointed) / top), reverse=True):
        found = solve(problem.within(round(share * top)), descent.Descent(), Budget(600, budget))
        peak = problem.peak(found.answer)
        assert peak <= round(share * top) and peak <= before
        assert share * top < problem.peak(checkpointed) or found.cost <= problem.cost(checkpointed)
        before, cost = peak, found.cost
    again = solve(problem.within(before + 64), descent.Descent(), Budget(600, budget))     # between two of its own limits
    assert problem.peak(again.answer) <= before + 64
    assert cost < 1.3 * problem.price.sum()
