"""A second memory: the validator against bytes of two memories that are really overwritten, prices, execution, the whole command."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold import plans
from fourfold.decisions.rematerialise._evict import evicted
from fourfold.decisions.rematerialise._far import FarMemory
from fourfold.decisions.rematerialise._lives import measure, own_order
from fourfold.decisions.rematerialise.offload import Offload
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.decisions.rematerialise.sequence_annealing import SequenceAnnealing
from fourfold.errors import ArtefactError, Infeasible, InputError
from fourfold.frontends.capture import capture
from fourfold.graph import BACKWARD, ELEMENTWISE, FORWARD, INTERMEDIATE, Builder, Graph
from fourfold.jobs.memory import QUESTION, plan_memory
from fourfold.ledger import decisions, hash_chain
from fourfold.machine import Machine
from fourfold.problem import Budget, solve
from fourfold.runtime.arena.check import check
from fourfold.runtime.arena.dry_run import dry_run
from fourfold.runtime.arena.execute import ProgramArena
from fourfold.runtime.arena.layout import laid_out
from fourfold.runtime.arena.ready import Eager, ready
from fourfold.runtime.local.compare import compared

FAST = FarMemory(1 << 20, 1e12)


@cache
def sample(seed: int) -> Rematerialise:
    return Rematerialise.sample(seed)


def chain(length: int = 5, random: bool = False) -> Graph:
    """A forward pass of `length` ops (the second one draws at random, where asked) and a backward pass that reads each value, last first."""
    build = Builder("chain")
    values = [build.input((64,), "float32")]
    for i in range(length):
        kind = "aten.bernoulli.p" if random and i == 1 else "aten.mul"
        values += build.node(kind, (values[-1],), [((256,), "float32")], steps=256.0, fusion=ELEMENTWISE, phase=FORWARD, layer=i)
    (gradient,) = build.node("aten.ones", (values[-1],), [((64,), "float32")], steps=64.0, fusion=ELEMENTWISE, phase=BACKWARD)
    for value in values[-2:0:-1]:
        (gradient,) = build.node("aten.mul", (gradient, value), [((64,), "float32")], steps=64.0, fusion=ELEMENTWISE, phase=BACKWARD)
    build.output(gradient)
    return build.build()


def clobbered(problem: Rematerialise, plan: Rematerialisation) -> bool:
    """Whether a step finds other bytes than it should, when every instance and every copy writes its value's mark over its whole room."""
    g, near, far = problem.graph, dict[int, Any](), dict[int, int]()
    where: dict[int, tuple[int, int] | None] = {v: None for v in range(len(g.role)) if g.role[v] != INTERMEDIATE}
    held: dict[int, Any] = {}                                           # value → its root's mark
    place, left, marks = dict(zip(plan.away.tolist(), plan.place.tolist(), strict=True)), iter(plan.offset.tolist()), itertools.count(1)

    def span(value: int, at: int) -> range:
        return range(at // 64, at // 64 + -(-int(g.size[value]) // 64))

    def intact(value: int) -> bool:
        if value not in where:
            return False
        one = where[value]
        return one is None or all(near.get(b) == held[value] for b in span(int(g.alias[value]), one[1]))

    for n in plan.sequence.tolist():
        if n >= len(g):
            v = n - len(g)
            if v not in held or any(far.get(b) != v for b in span(v, place[v])):
                return True
            made, inputs = [v], []
        else:
            made, inputs = [v for v in g.outputs_of(n).tolist() if g.alias[v] == v], g.inputs_of(n).tolist()
        if not all(map(intact, inputs)):
            return True
        read = [(span(int(g.alias[v]), one[1]), held[v]) for v in inputs if (one := where[v]) is not None]
        for v in made:
            first, at, held[v] = v not in held, next(left), next(marks)
            where[v] = (v, at)
            for b in span(v, at):
                near[b] = held[v]
            for b in span(v, place[v]) if first and v in place else ():
                far[b] = v
        for v in [v for v in g.outputs_of(n).tolist() if g.alias[v] != v] if n < len(g) else []:
            over = next((u for u in inputs if g.alias[u] == g.alias[v]), int(g.alias[v]))
            where[v], held[v] = where.get(over), held.get(over, 0)
        if not all(map(intact, made)) or any(near.get(b) != mark for bytes_, mark in read for b in bytes_):
            return True                                                 # what is read must be there until the step ends
    return not all(map(intact, g.outputs.tolist()))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_validator_finds_exactly_the_plans_whose_bytes_are_overwritten(data: st.DataObject) -> None:
    problem = sample(data.draw(st.sampled_from([5, 11, 17, 23]))).within(None)
    limit = data.draw(st.integers(problem.least_peak(), problem.peak(problem.baseline())))
    found = evicted(problem.linked, own_order(problem.core), limit, 1.0, 1.0)
    steps = problem.expand(own_order(problem.core) if found is None else found)
    plan = problem.plan(steps)
    offset, place, kind = plan.offset.copy(), plan.place.copy(), data.draw(st.integers(0, 3))
    if kind == 1 and len(place):                                        # a copy moved
        place[data.draw(st.integers(0, len(place) - 1))] = 64 * data.draw(st.integers(0, 48))
    if kind == 2:                                                       # an offset moved
        offset[data.draw(st.integers(0, len(offset) - 1))] = 64 * data.draw(st.integers(0, int(offset.max()) // 64 + 2))
    if kind == 3 and len(plan.away):                                    # a fetch moved
        steps = steps.tolist()
        at = next(s for s, n in enumerate(steps) if n >= len(problem.graph))
        steps.insert(data.draw(st.integers(0, len(steps) - 1)), steps.pop(at))
        plan = Rematerialisation(np.array(steps, np.int32), plan.offset, plan.away, plan.place)
    plan = Rematerialisation(plan.sequence, offset, plan.away, place)
    wrong = [one for one in problem.violations(plan) if "of a second memory of" not in one]
    assert bool(wrong) == clobbered(problem, plan), wrong


def test_each_rule_of_copies_is_named() -> None:
    problem = Rematerialise.of(chain(), far=FAST)
    limit = problem.least_peak() + 1024
    good = solve(problem.within(limit), Offload(), Budget(60, 200)).answer
    assert len(good.away) and not problem.violations(good)
    nodes = len(problem.graph)

    def said(plan: Rematerialisation, of: Rematerialise = problem) -> str:
        return next(iter(of.violations(plan)), "")

    assert "copies with" in said(Rematerialisation(good.sequence, good.offset))
    assert "of a second memory of" in said(Rematerialisation(good.sequence, good.offset, good.away, good.place + 32))
    assert "but there are" in said(good, Rematerialise.of(problem.graph))
    assert "cannot be copied" in said(good, Rematerialise.of(problem.graph, far=FAST, transfer=np.full(len(problem.graph.alias), np.inf)))
    early = [good.sequence[good.sequence >= nodes][0], *good.sequence[good.sequence < nodes]]
    assert "has not made" in said(Rematerialisation(np.array(early, np.int32), good.offset, good.away, good.place))
    if len(good.away) > 1:
        assert "share bytes" in said(Rematerialisation(good.sequence, good.offset, good.away, np.zeros_like(good.place)))


def test_a_fetch_costs_a_copy_and_a_value_one_store() -> None:
    graph = chain()
    far = FarMemory(1 << 20, 1e9, 1e-6)
    problem = Rematerialise.of(graph, price=np.ones(len(graph)), far=far)
    value = int(graph.outputs_of(0)[0])
    twice = problem.plan([*range(len(graph)), len(graph) + value, len(graph) + value])
    assert problem.cost(twice) == pytest.approx(len(graph) + 3 * (1e-6 + 1024 / 1e9))
    assert problem.repeated(twice) == 0 and problem.carried(twice) == 2 and problem.far_peak(twice) == 1024
    assert Rematerialisation.from_json(twice.to_json()).away.tolist() == [value]
    _, price, kept, _ = measure(problem.linked, np.arange(len(graph), dtype=np.int32))
    assert price == len(graph) and len(kept) == len(graph)


@pytest.mark.parametrize(("bandwidth", "way"), [(1e13, "fetched"), (1e3, "computed")])
def test_the_link_decides_between_fetching_and_computing_again(bandwidth: float, way: str) -> None:
    graph = chain(8)
    alone = Rematerialise.of(graph, price=np.full(len(graph), 1e-6))
    limit = alone.least_peak() + 1536
    both = Rematerialise.of(graph, limit, price=alone.price, far=FarMemory(1 << 20, bandwidth))
    found = solve(both, SequenceAnnealing(), Budget(60, 4000))
    assert found.cost <= solve(alone.within(limit), SequenceAnnealing(), Budget(60, 4000)).cost + 1e-12
    assert (both.carried(found.answer) > 0, both.repeated(found.answer) > 0) == (way == "fetched", way == "computed")
    assert found.bound is not None and alone.price.sum() <= found.bound <= found.cost


def test_what_must_not_run_again_can_be_fetched() -> None:
    graph = chain(6, random=True)
    alone = Rematerialise.of(graph)
    limit = alone.least_peak() + 1024
    with_far = Rematerialise.of(graph, limit, far=FAST)
    found = solve(with_far, Offload(), Budget(60, 500)).answer
    draws = int(graph.outputs_of(1)[0])
    assert draws in found.away and not with_far.violations(found) and with_far.repeated(found) == 0


def test_outputs_that_are_fetched_last_need_nothing_beside_them() -> None:
    """Each of two outputs is made of a value of its own size: who computes the last one holds three, who fetches it two."""
    build = Builder("outputs")
    x = build.input((256,), "float32")
    for _ in range(2):
        (inner,) = build.node("aten.mul", (x,), [((256,), "float32")], steps=256.0)
        build.output(build.node("aten.exp", (inner,), [((256,), "float32")], steps=256.0)[0])
    alone = Rematerialise.of(build.build())
    assert alone.peak(alone.baseline()) == alone.least_peak() == 3 * 1024
    problem = Rematerialise.of(alone.graph, 2 * 1024, far=FAST)
    found = solve(problem, Offload(), Budget(60, 200)).answer
    assert problem.least_peak() == problem.peak(found) == 2 * 1024 and not problem.violations(found)


def test_a_second_memory_that_is_full_is_full() -> None:
    graph = chain(8)
    limit = Rematerialise.of(graph).least_peak() + 1024
    one = Rematerialise.of(graph, limit, far=FarMemory(1024, 1e13))
    with pytest.raises(Infeasible):
        solve(one, Offload(), Budget(60, 200))
    joint = solve(one, SequenceAnnealing(), Budget(60, 2000)).answer
    assert one.far_peak(joint) <= 1024 and one.repeated(joint) > 0


@pytest.mark.parametrize("name", ["mlp", "encoder"])
def test_a_poisoned_arena_with_a_second_memory_answers_as_eager_does(name: str) -> None:
    model, x = small_models.MODELS[name]()
    captured = capture(model.train(), (x,), train=True)
    made = ready(captured)
    dry = dry_run(made, captured.inputs, repeat=1)
    fixed = np.array([way in ("view", "plain") for way in dry.way])
    transfer = np.where((made.graph.producer < 0) | fixed[np.maximum(made.graph.producer, 0)], np.inf, 1e-12)
    problem = Rematerialise.of(made.graph, price=np.ones(len(made.graph)), far=FAST, transfer=transfer)
    sequence = evicted(problem.linked, own_order(problem.core), int(0.8 * problem.peak(problem.baseline())), 1.0, 1.0)
    assert sequence is not None
    plan = problem.plan(problem.expand(sequence))
    assert problem.carried(plan) and not problem.violations(plan)
    layout = laid_out(made.graph, plan.sequence, plan.offset, dict(zip(plan.away.tolist(), plan.place.tolist(), strict=True)))
    for poison in (True, False):
        arena = ProgramArena(made, captured.inputs, layout, dry, poison=poison, seed=3)
        want = {v: one.clone() for v, one in Eager(made, captured.inputs, seed=3).outputs()[0].items()}
        assert all(compared("", arena.run().outputs[v], want[v]).equal for v in want)
    assert len(arena.far) == problem.far_peak(plan) or len(arena.far) > problem.far_peak(plan) - 64
    assert arena.transfers() > 0
    arena.far.fill_(0xFF)                                               # what is fetched comes from there: nothing else holds it
    arena.steps = [step for step in arena.steps if not step.stores]
    with pytest.raises(InputError):
        laid_out(made.graph, plan.sequence, plan.offset)


def test_the_whole_way_in_seconds_and_in_joules(tmp_path: Path) -> None:
    model, x = small_models.MODELS["encoder"]()
    model.train()
    quick: dict[str, Any] = {"budget": 1.0, "evaluations": 1500, "train": True, "out": tmp_path / "plan", "machine": "here"}
    loose: Any = plan_memory(model, (x,), memory="1GiB", **quick).solutions[QUESTION]
    limit = loose["outside"] + int(0.75 * loose["peaks"]["offsets"])
    for objective, unit in (("latency", "s"), ("energy", "J")):
        solution: Any = plan_memory(model, (x,), memory=limit, far="64MiB@50GB/s", objective=objective, ledger=tmp_path / "books", **quick
                               ).solutions[QUESTION]
        assert solution["unit"] == unit and solution["far"]["fetches"] and solution["arena"] + solution["outside"] <= limit
        assert solution["cost"] == pytest.approx(solution.get("watts", 1.0) * solution["seconds"])
        assert any(line.startswith("Offloaded: ") for line in solution["sentences"])
        assert plans.verify(tmp_path / "plan") == {QUESTION: []}
    done = check(tmp_path / "plan", model=model, inputs=(x,), repeat=1)
    assert done.equal and done.within and done.fetches == solution["far"]["fetches"] and done.far[0] <= done.far[1] and min(done.link) > 0
    told: Any = done.to_json()
    assert told["far"]["room"] == 64 << 20
    booked = decisions.levers(hash_chain.rows(tmp_path / "books"))
    assert booked is not None and [(row.job, row.before.unit) for row in booked.rows if row.before is not None] == 2 * [("plan", "B")]
    document = (tmp_path / "plan" / "plan.json").read_text()
    (tmp_path / "plan" / "plan.json").write_text(document.replace('"used":', '"used": 1, "was":'))
    wrong: Any = None
    try:
        wrong = plans.verify(tmp_path / "plan")[QUESTION]
    except ArtefactError as damaged:
        wrong = [str(damaged)]
    assert wrong


@pytest.mark.parametrize(("text", "says"), [("64MiB@", "bandwidth of --far"), ("much@8GB/s", "size of --far"), ("gpu9", "no device"),
                                            ("64MiB@8GB/s,soon", "latency of --far"), ("64MiB@0B/s", "cannot be"), ("cpu0", "planned for")])
def test_second_memories_that_are_none(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        FarMemory.read(text, Machine.read("cpux2"))


def test_a_device_of_the_machine_is_a_second_memory() -> None:
    machine = Machine.read("p100x4")
    name = machine.devices[1].name
    far, route = FarMemory.read(name, machine), machine.route(0, 1)
    assert (far.room, far.bandwidth, far.latency) == (int(machine.devices[1].memory), route.bandwidth, route.latency)
    assert FarMemory.from_json(far.to_json()) == far
    assert FarMemory.read("1MiB@1GB/s,10us", machine).seconds(np.array([1000])).tolist() == pytest.approx([11e-6])
