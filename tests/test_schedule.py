"""Fusion, placement and order: worked examples of the literature, brute force, the validator against the simulator, liars, bounds, hypothesis."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cite import BIBLIOGRAPHY
from fourfold.cost.simulate import Scratch, play, quick, simulate
from fourfold.decisions.schedule import _list
from fourfold.decisions.schedule._parts import PartitionTasks, alone, fuse
from fourfold.decisions.schedule.anneal import _causes, _nearby
from fourfold.decisions.schedule.auto import _skips, size
from fourfold.decisions.schedule.problem import Answer, Schedule, random_graph, replay
from fourfold.errors import Infeasible, InputError
from fourfold.graph import CONTRACTION, ELEMENTWISE, OPAQUE, REDUCTION, Builder, Graph
from fourfold.machine import Device, Link, Machine
from fourfold.problem import Budget, Rejected, Solver, SolverAnswer, solve
from fourfold.registry import technique
from fourfold.zoo.graphs import FAMILIES, PUBLISHED, make, published

NAMES = ("default", "expert", "heft", "peft", "cpop", "metis", "anneal", "exact", "auto")


def solver(name: str) -> Solver:
    made = technique(f"schedule/{name}")()
    for need in made.needs:
        pytest.importorskip(need)
    return made


def system(count: int, memory: float = 1e9, bandwidth: float = 1e7, speeds: tuple[float, ...] = (1e9, 2e9, 5e8)) -> Machine:
    devices = tuple(Device(f"d{i}", "fake", {"float32": speeds[i % len(speeds)]}, 1e9, 1e-6, memory, 1.0, 10.0) for i in range(count))
    return Machine("fake", devices, tuple(Link(a.name, b.name, 1e-6, bandwidth) for a, b in itertools.combinations(devices, 2)))


def row(*fusions: int, width: int = 8) -> Graph:
    """A chain of ops over [8, width]."""
    build = Builder("row")
    value = build.input((8, width), "float32")
    for fusion in fusions:
        weight = [build.parameter((width, width), "float32")] if fusion == CONTRACTION else []
        (value,) = build.node(f"op{fusion}", [value, *weight], [((8, width), "float32")], flops=1e4 if fusion == CONTRACTION else 64.0, fusion=fusion)
    build.output(value)
    return build.build()


# ---- the literature's examples

def example(costs: list[list[float]], edges: list[tuple[int, int, float]]) -> _list.Dag:
    table = np.array(edges, float)
    src, dst = table[:, 0].astype(int) - 1, table[:, 1].astype(int) - 1
    return _list.Dag.of(np.array(costs, float), src, dst, table[:, 2], np.zeros((3, 3)), 1 - np.eye(3))


def test_the_ten_tasks_of_topcuoglu_2002() -> None:
    """Figure 2 and table 1 of the paper: HEFT 80, CPOP 86, and its ranks."""
    dag = example([[14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10], [13, 16, 9], [7, 15, 11], [5, 11, 14], [18, 12, 20],
                   [21, 7, 16]],
                  [(1, 2, 18), (1, 3, 12), (1, 4, 9), (1, 5, 11), (1, 6, 14), (2, 8, 19), (2, 9, 16), (3, 7, 23), (4, 8, 27), (4, 9, 23), (5, 9, 13),
                   (6, 8, 15), (7, 10, 17), (8, 10, 11), (9, 10, 13)])
    assert _list.heft(dag)[2].max() == 80 and _list.cpop(dag)[2].max() == 86
    rank = _list.upward(dag.mean, dag.succ_ptr, dag.succ, dag.succ_bytes, dag.order, 0.0, 1.0)
    assert rank == pytest.approx([108, 77, 80, 80, 69, 63.333, 42.667, 35.667, 44.333, 14.667], abs=1e-3)


def test_the_ten_tasks_of_arabnejad_2014() -> None:
    """The paper's example: PEFT 122, HEFT 133."""
    dag = example([[22, 21, 36], [22, 18, 18], [32, 27, 43], [7, 10, 4], [29, 27, 35], [26, 17, 24], [14, 25, 30], [29, 23, 36], [15, 21, 8],
                   [13, 16, 33]],
                  [(1, 2, 17), (1, 3, 31), (1, 4, 29), (1, 5, 13), (1, 6, 7), (2, 8, 3), (2, 9, 30), (3, 7, 16), (4, 8, 11), (4, 9, 7), (5, 9, 57),
                   (6, 8, 5), (7, 10, 9), (8, 10, 42), (9, 10, 7)])
    assert _list.peft(dag)[2].max() == 122 and _list.heft(dag)[2].max() == 133


# ---- rules

def test_what_may_not_be_fused_is_told_in_words() -> None:
    problem = Schedule(row(CONTRACTION, ELEMENTWISE, CONTRACTION, OPAQUE, ELEMENTWISE), system(2))
    order = -np.arange(5.0)

    def told(*group: int, place: tuple[int, ...] = (0,) * 5) -> str:
        return " | ".join(problem.violations(Answer(np.array(group), np.array(place), order)))

    assert not told(0, 0, 2, 3, 4)
    assert "2 contractions" in told(0, 0, 0, 3, 4)
    assert "computes what its contraction op3_1 reads" in told(0, 1, 1, 3, 4)
    assert "cannot be fused" in told(0, 1, 2, 3, 3)
    assert "are fused, but on d1 and d0" in told(0, 0, 2, 3, 4, place=(0, 1, 0, 0, 0))
    assert "there are 2" in told(0, 1, 2, 3, 4, place=(0, 0, 7, 0, 0))
    assert "no value" in told(0, 1, 2, 3, 1) or "circle" in told(0, 1, 2, 3, 1)
    assert "priority" in problem.violations(Answer(np.arange(5), np.zeros(5, int), np.full(5, np.nan)))[0]
    assert "for 5 ops" in problem.violations(Answer(np.arange(3), np.zeros(3, int), np.zeros(3)))[0]


def test_a_cycle_of_groups_is_found() -> None:
    build = Builder("diamond")
    x = build.input((4, 4), "float32")
    (a,) = build.node("a", [x], [((4, 4), "float32")], fusion=ELEMENTWISE)
    (b,) = build.node("b", [a], [((4, 4), "float32")], fusion=OPAQUE)
    (c,) = build.node("c", [a, b], [((4, 4), "float32")], fusion=ELEMENTWISE)
    build.output(c)
    problem = Schedule(build.build(), system(1))
    assert "circle" in problem.violations(Answer(np.array([0, 1, 0]), np.zeros(3, int), np.zeros(3)))[0]
    assert len(np.unique(fuse(problem))) == 3


def test_fixed_parts_are_kept_by_everyone() -> None:
    free = Schedule.sample(3)
    nodes, dice = len(free.graph), np.random.default_rng(0)
    fixed = {"group": np.arange(nodes), "place": np.zeros(nodes, int), "priority": dice.random(nodes)}
    for part, value in fixed.items():
        problem = free.replace(**{part: value})
        for name in NAMES:
            solve(problem, solver(name), Budget(1, 2000))
        other = {**fixed, part: value[::-1].copy() if part == "priority" else np.ones(nodes, int)}
        assert any("fixed" in one for one in problem.violations(Answer(**other)))


def test_what_fits_nowhere_is_named_with_its_bytes() -> None:
    graph = row(CONTRACTION, width=64)
    with pytest.raises(Infeasible, match=r"op3 needs 18,432 bytes .* 8,432 more"):
        Schedule(graph, system(2, memory=10_000))
    with pytest.raises(InputError, match="No device"):
        Schedule(graph, replace(system(1), devices=(replace(system(1).devices[0], unsupported=("op3",)),)))
    with pytest.raises(InputError, match="objective"):
        Schedule(graph, system(1), objective="joy")


def test_an_impossible_baseline_says_by_how_many_bytes() -> None:
    graph = row(*[CONTRACTION] * 6, width=64)
    problem = Schedule(graph, system(3, memory=60_000))
    for name in NAMES:
        found = solve(problem, solver(name), Budget(1, 3000))
        assert found.before is None and "more than its 60,000" in found.why
        assert problem.timeline(found.answer).peak_bytes.max() <= 60_000


class _Liar(Solver):
    """Claims what it is told to."""

    title, lever, answers = "Liar", "machine", "schedule"
    counts: ClassVar[str] = ""

    def __init__(self, answer: Answer, bound: float | None = None) -> None:
        self.answer, self.claim = answer, bound

    def solve(self, problem: Any, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        return SolverAnswer(self.answer, self.claim)


def test_liars_are_refused_in_words() -> None:
    problem = Schedule(row(CONTRACTION, ELEMENTWISE, CONTRACTION), system(2))
    with pytest.raises(Rejected, match="broke .* of Schedule; first: the group of"):
        solve(problem, _Liar(Answer(np.zeros(3, int), np.zeros(3, int), np.zeros(3))))
    with pytest.raises(Rejected, match="nothing costs less"):
        solve(problem, _Liar(problem.baseline(), 1.0))


# ---- the validator's replay, the bound, every solver

@given(st.integers(0, 10_000), st.integers(3, 25), st.integers(1, 4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_replay_is_the_simulator_bit_by_bit(seed: int, nodes: int, devices: int, fused: bool) -> None:
    dice = np.random.default_rng(seed)
    problem = Schedule(random_graph(dice, nodes, colocated=0.0), system(devices))
    group = fuse(problem) if fused else alone(problem)
    tasks = problem.tasks(group)
    place, priority = dice.integers(devices, size=len(tasks)), dice.random(len(tasks))
    start, finish, peak = replay(tasks, place, priority, problem.system)
    line = simulate(tasks, place, priority, problem.system)
    assert np.array_equal(start, line.start) and np.array_equal(finish, line.finish)
    assert [most for most, _ in peak] == line.peak_bytes.tolist() and [at for _, at in peak] == pytest.approx(line.peak_at.tolist())


@given(st.integers(0, 10_000), st.integers(3, 60), st.integers(1, 4), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_quick_simulator_is_the_simulator_bit_by_bit(seed: int, nodes: int, devices: int, fused: bool, overlap: bool) -> None:
    dice = np.random.default_rng(seed)
    made = system(devices, bandwidth=float(dice.choice([1e6, 1e8])))
    made = replace(made, links=tuple(replace(link, overlap=overlap, duplex=bool(dice.integers(2))) for link in made.links))
    problem = Schedule(random_graph(dice, nodes, colocated=0.0), made)
    work = PartitionTasks.of(problem, fuse(problem) if fused else alone(problem))
    scratch, tasks = Scratch.of(work.plain), len(work.tasks)
    for _ in range(3):                                                 # nothing of one evaluation is left for the next
        place, priority = dice.integers(devices, size=tasks).astype(np.int16), dice.integers(4, size=tasks).astype(float)
        makespan, busiest, joules = quick(work.plain, scratch, place, priority)
        run = play(work.plain, place, priority, False, False)
        assert makespan == run.makespan and joules == run.joules and busiest == max(run.busy.max(), run.lane_busy.max(initial=0.0))
        assert np.array_equal(scratch.start, run.start) and np.array_equal(scratch.finish, run.finish)
        causes = np.zeros((3, tasks), np.int64)
        length = _causes(work.plain, scratch, place, 0, run.peak, causes)
        assert scratch.finish[causes[0, 0]] == run.finish.max() and causes[1, length - 1] == -1
        assert all(scratch.finish[q] <= scratch.start[t] for t, q in causes[:2, :length - 1].T)


@given(st.integers(0, 10_000), st.integers(4, 30), st.sampled_from(["latency", "throughput", "energy", "memory"]))
@settings(max_examples=25, deadline=None)
def test_every_answer_is_valid_and_no_cheaper_than_the_bound_in_tight_memory(seed: int, nodes: int, objective: str) -> None:
    dice = np.random.default_rng(seed)
    graph = random_graph(dice, nodes)
    need = int(graph.size.sum())
    tight = replace(system(3), devices=tuple(replace(d, memory=float(need) if i == 0 else need * 0.4) for i, d in enumerate(system(3).devices)))
    try:
        problem = Schedule(graph, tight, objective)
    except Infeasible:
        return
    for name in ("default", "expert", "heft", "peft", "cpop", "metis", "anneal"):
        found = solve(problem, solver(name), Budget(20, 300), seed)     # raises where a rule is broken or the bound lies
        assert found.bound is not None and found.bound <= found.cost


@given(st.integers(0, 10_000), st.integers(6, 40))
@settings(max_examples=30, deadline=None)
def test_changed_fusion_breaks_no_rule_of_fusion(seed: int, nodes: int) -> None:
    """A group that is cut in two may fall into more parts; then it is taken apart whole."""
    dice = np.random.default_rng(seed)
    problem = Schedule(random_graph(dice, nodes, colocated=0.0), system(2))
    group, place = fuse(problem), np.zeros(nodes, np.int16)
    for _ in range(12):
        found = _nearby(problem, group, dice, place)
        answer = Answer(found, place, np.zeros(nodes))
        assert not problem._fusions(answer)
        group = found if not problem._cycles(answer) else group


def brute(problem: Schedule) -> float:
    """The least cost over all set partitions, placements and orders, by the simulator alone."""
    nodes, devices, best = len(problem.graph), len(problem.system), np.inf
    for labels in itertools.product(range(nodes), repeat=nodes):
        if any(label > max((-1, *labels[:i])) + 1 for i, label in enumerate(labels)):
            continue
        group = np.array(labels)
        if problem.violations(Answer(group, np.zeros(nodes, int), np.zeros(nodes))):
            continue
        tasks = problem.tasks(group)
        for place in itertools.product(range(devices), repeat=len(tasks)):
            for order in itertools.permutations(range(len(tasks))):
                line = simulate(tasks, place, order, problem.system)
                if not line.violations():
                    best = min(best, {"s": line.makespan, "J": line.joules, "B": float(line.peak_bytes.max())}[problem.unit])
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("objective", ["latency", "energy", "memory"])
def test_exact_equals_brute_force(seed: int, objective: str) -> None:
    problem = Schedule(random_graph(np.random.default_rng(seed), 4, colocated=0.0), system(2), objective)
    found = solve(problem, solver("exact"), Budget(60))
    assert found.cost == pytest.approx(brute(problem), rel=1e-12) and found.gap == 0.0
    bound = problem.bound()
    assert bound is not None and bound <= found.cost


def test_a_chain_is_solved_exactly_and_its_plan_costs_what_the_table_says() -> None:
    problem = Schedule(row(*[CONTRACTION, ELEMENTWISE, ELEMENTWISE] * 4), system(2))
    found = solve(problem, solver("exact"), Budget(30))
    assert found.gap == pytest.approx(0, abs=1e-8) and "chain" in found.note
    assert found.cost <= solve(problem, solver("anneal"), Budget(30, 3000)).cost * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_cp_sat_bound_holds_against_annealing(seed: int) -> None:
    problem = Schedule(random_graph(np.random.default_rng(seed + 50), 9), system(2))
    found = solve(problem, solver("exact"), Budget(4))
    other = solve(problem, solver("anneal"), Budget(10, 4000), seed=1)
    assert found.bound is not None and found.bound <= min(found.cost, other.cost) * (1 + 1e-9)


def test_exact_declines_what_it_cannot_prove() -> None:
    large, small = (Schedule(random_graph(np.random.default_rng(1), nodes), system(2)) for nodes in (9, 4))
    for objective in ("throughput", "energy", "memory"):
        assert objective in (solver("exact").declines(large.replace(objective=objective)) or "")
        assert solver("exact").declines(small.replace(objective=objective)) is None
    assert solver("exact").declines(large) is None
    assert "more than the" in (solver("exact").declines(Schedule(make("rnnlm", 300), system(2))) or "")


def test_auto_is_never_worse_than_its_parts_and_says_what_each_gave() -> None:
    for objective in ("latency", "throughput", "energy", "memory"):
        problem = Schedule(make("gnmt", 60, train=True), system(3), objective)
        found = solve(problem, solver("auto"), Budget(600, 1500))
        table = {row["solver"]: row for row in found.evidence["table"]}
        assert {"default", "expert", "heft", "peft", "metis", "anneal"} <= set(table)
        assert found.cost == min(row["cost"] for row in table.values() if row["cost"] is not None)
        assert all({"solver", "cost", "seconds", "evaluations", "note"} == set(row) for row in table.values())
        for name in ("default", "heft"):
            assert table[name]["cost"] == solve(problem, solver(name)).cost


def test_same_seed_and_evaluations_give_the_same_answer() -> None:
    problem = Schedule(make("rnnlm", 150), system(3))
    one, other = (solve(problem, solver("anneal"), Budget(600, 3000), seed=4).answer for _ in range(2))
    assert all(np.array_equal(getattr(one, part), getattr(other, part)) for part in ("group", "place", "priority"))


# ---- the corpus

@cache
def graph(family: str, train: bool) -> Graph:
    return make(family, 500, 1, train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_sound_and_every_quick_solver_beats_the_default(family: str, train: bool) -> None:
    made = graph(family, train)
    assert not made.validate() and 250 <= len(made) <= 1000 and made == make(family, 500, 1, train)
    problem = Schedule(made, Machine.read("p100x4"))
    for name in ("expert", "heft", "peft", "metis"):
        found = solve(problem, solver(name))
        assert found.bound and found.before and found.bound <= found.cost < found.before * 1.6
    assert (solve(problem, solver("anneal"), Budget(60, 400)).saving or 0.0) > 0


def test_a_family_follows_its_size() -> None:
    sizes = [len(make("gnmt", nodes)) for nodes in (100, 1000, 8000)]
    assert sizes == pytest.approx([100, 1000, 8000], rel=0.35)
    with pytest.raises(InputError, match="no family"):
        make("perceptron")
    with pytest.raises(InputError, match="too small"):
        make("cnn", 5)


def test_published_models_have_the_sizes_that_are_named() -> None:
    for name in ("rnnlm-2", "transformer-xl-2", "inception-32", "amoebanet", "resnet", "wavenet-2x18", "encoder-decoder"):
        made = published(name)
        assert not made.validate() and made == published(name) and (made.phase == 2).any()
        assert len(made) > 2 * len(published(name, train=False))
    assert published("wavenet-2x18", train=False).layer.max() == 36
    assert {one.family for one in PUBLISHED.values()} == set(FAMILIES) and {one.devices for one in PUBLISHED.values()} == {2, 4, 8}
    with pytest.raises(InputError, match="no published model"):
        published("gnmt-3")


def test_batch_normalisation_is_a_reduction_in_training_only() -> None:
    for train in (False, True):
        made = graph("cnn", train)
        norms = made.fusion[[made.kinds[kind] == "aten.native_batch_norm" for kind in made.kind]]
        assert len(norms) and (norms == (REDUCTION if train else ELEMENTWISE)).all()


def test_gradients_of_embeddings_are_rows_and_those_of_shared_weights_add_up_as_they_come() -> None:
    made = graph("rnnlm", True)
    assert any(kind == "optim.sparse_sgd" for kind in made.kinds) and "aten.embedding_weight" not in made.kinds
    last = int(np.flatnonzero(made.phase == 1).max())
    assert (made.phase[last + 1:] == 2).all()                           # only updates are left when the last gradient is there


def test_auto_leaves_go_out_where_its_network_takes_too_long_or_lost() -> None:
    problem = Schedule(make("cnn", 100), system(2))
    assert "that are left" in _skips(problem, Budget(0.01)) or "not installed" in _skips(problem, Budget(0.01))
    assert size(100) == 300 and size(300) == 300 and size(301) == 1000 and size(80_000) == 0


def test_papers_are_in_the_bibliography() -> None:
    for name in NAMES:
        assert all(key in BIBLIOGRAPHY for key in technique(f"schedule/{name}").cites)
