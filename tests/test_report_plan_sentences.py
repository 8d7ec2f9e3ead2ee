"""Sentences of a plan: what they claim is what the simulator says when that decision is taken back."""

from __future__ import annotations

import re

import numpy as np
import planned
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.decisions.schedule.expert import Expert
from fourfold.decisions.schedule.heft import Heft
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.graph import CONTRACTION, ELEMENTWISE, Builder
from fourfold.machine import Device, Link, Machine
from fourfold.problem import Budget
from fourfold.report import format
from fourfold.report.ablation import PARTS, Simulated
from fourfold.report.modules import named, span, tree
from fourfold.report.sentences import sentences


def system(count: int = 2, memory: float = 1e9) -> Machine:
    devices = tuple(Device(f"gpu:{d}", "gpu", {"float32": 1e12}, 1e12, 0.0, memory, 10.0, 100.0) for d in range(count))
    return Machine("test", devices, tuple(Link(a.name, b.name, 0.0, 1e9) for i, a in enumerate(devices) for b in devices[i + 1:]))


def branches() -> Schedule:
    """Two modules of 2 ms each that read one input and make 300 kB, and one that reads both."""
    build = Builder("branches")
    x = build.input((75_000,), "float32")
    ends = []
    for name in ("left", "right"):
        weight = build.parameter((16,), "float32")
        (y,) = build.node("aten.mm", [x, weight], [((75_000,), "float32")], module=f"{name}.core", flops=2e9, fusion=CONTRACTION)
        ends.append(y)
    (z,) = build.node("aten.add", ends, [((75_000,), "float32")], module="join", steps=0.0, fusion=ELEMENTWISE)
    build.output(z)
    return Schedule(build.build(), system())


def test_a_moved_branch_saves_queueing_and_costs_a_transfer() -> None:
    asked = branches()
    answer = Answer(np.arange(3), np.array([0, 1, 0]), -np.arange(3.0))
    told = sentences(asked, answer)
    assert told == ["1 of 3 ops run elsewhere than by default (all on one, here gpu:0), on 2 devices in all: saves 2 ms of queueing, "
                    "costs 300 µs of transfer, 1.7 ms less in all."]
    assert asked.cost(asked.baseline()) - asked.cost(answer) == pytest.approx(1.7e-3, rel=0.01)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), shake=st.integers(0, 5))
def test_the_chain_that_ends_last_adds_up_to_the_makespan(seed: int, shake: int) -> None:
    asked = Schedule.sample(seed)
    dice = np.random.default_rng(shake)
    nodes = len(asked.graph)
    answer = Answer(np.arange(nodes), dice.integers(len(asked.system), size=nodes), dice.random(nodes))
    plan = Simulated(asked, answer)
    timeline = asked.timeline(answer)
    assert plan.plan.makespan == timeline.makespan and plan.plan.cost == asked.cost(answer)
    assert plan.plan.parts.sum() == pytest.approx(timeline.makespan, rel=1e-9) and (plan.plan.parts >= -1e-12).all()
    assert len(PARTS) == len(plan.plan.parts)


def test_taking_back_is_simulated_not_estimated() -> None:
    asked = planned.problem("encoder_decoder", 200, system="p100x2")
    answer = Expert().solve(asked, Budget(evaluations=10)).answer
    plan = Simulated(asked, answer)
    place = np.where(np.arange(len(answer)) % 3 == 0, 0, answer.place).astype(np.int16)
    place = place[np.array([np.flatnonzero(answer.group == g)[0] for g in answer.group])]   # whole groups move
    tasks, where, _, _ = plan.given
    moved = where.copy()
    moved[tasks.group] = place
    assert plan(place=moved).cost == asked.cost(Answer(answer.group, place, answer.priority))
    alone = Simulated(asked, Answer(np.arange(len(answer)), answer.place, answer.priority))
    assert plan.alone.sum() == pytest.approx(alone.given[0].seconds.sum())


@pytest.mark.parametrize("family, train, objective", [("moe", False, "latency"), ("rnnlm", True, "latency"), ("cnn", True, "energy"),
                                                      ("inception", False, "throughput"), ("gnmt", False, "memory")])
def test_every_kind_of_problem_gets_its_sentences(family: str, train: bool, objective: str) -> None:
    asked = planned.problem(family, 150, train=train, objective=objective)
    for solver in (Expert(), Heft()):
        answer = solver.solve(asked, Budget(evaluations=20)).answer
        told = sentences(asked, answer)
        assert told and told == sentences(asked, answer), "the same sentences each time"
        assert len(told) <= 20 and len(set(told)) == len(told)
        for one in told:
            assert one.endswith(".") and "nan" not in one and "inf " not in one and not re.search(r"\d{6,} ", one), one


def test_fusion_saves_memory_because_what_passes_inside_is_not_held() -> None:
    asked = planned.problem("cnn", 60, objective="memory")
    answer = Expert().solve(asked, Budget(evaluations=10)).answer
    apart = asked.cost(Answer(np.arange(len(answer)), answer.place, answer.priority))
    said = next(one for one in sentences(asked, answer) if "ops fused into" in one)
    saved = apart - asked.cost(answer)
    assert said.endswith(f"saves {format.size(saved)} on the fullest device." if saved > 0 else "makes no difference.")


def test_a_module_that_is_called_by_a_number_is_called_a_module() -> None:
    assert named("3.conv") == "module 3.conv" and named("layer.3") == "layer.3" and named("") == ""


def test_the_default_against_itself_has_little_to_tell() -> None:
    asked = planned.problem("cnn", 60)
    assert sentences(asked, asked.baseline()) == [f"Everything stays on {asked.system.devices[0].name}."]
    assert sentences(branches().replace(system=Machine("one", system().devices[:1])), branches().baseline()) == []


def test_what_only_memory_asks_for_says_so() -> None:
    asked = branches()
    build = Builder("heavy")
    x = build.input((256,), "float32")
    ends = [build.node("aten.mm", [x, build.parameter((100_000_000 // 4,), "float32")], [((256,), "float32")], module=name, flops=2e6,
                       fusion=CONTRACTION)[0] for name in ("left", "right")]
    build.output(build.node("aten.add", ends, [((256,), "float32")], module="join", steps=0.0, fusion=ELEMENTWISE)[0])
    asked = Schedule(build.build(), system(memory=150e6))
    told = sentences(asked, Answer(np.arange(3), np.array([0, 1, 0]), -np.arange(3.0)))
    assert any("would hold 50.0 MB more than it may" in one for one in told), told


def test_modules_are_named_in_the_order_of_the_graph() -> None:
    assert span("a.1", "a.3", 3) == "a.1 to 3" and span("a.1", "a.2", 2) == "a.1 and 2"
    assert span("b", "c", 2) == "b and c" and span("a", "a", 1) == "a"
    graph = planned.problem("encoder_decoder", 200).graph
    root = tree(graph)
    assert root.all() == list(range(len(graph)))
    assert [box.name for box in root.children][:2] == ["encoder", "decoder"] and root.children[0].children[0].path == "encoder.0"
    trained = tree(planned.problem("cnn", 100, train=True).graph)
    assert [box.name for box in trained.children] == ["forward", "backward", "optimiser"]


@pytest.mark.slow
def test_eighty_thousand_nodes_are_told() -> None:
    asked = planned.problem("encoder_decoder", 80_000, system="p100x8")
    assert len(sentences(asked, Expert().solve(asked, Budget(evaluations=5)).answer)) > 5
