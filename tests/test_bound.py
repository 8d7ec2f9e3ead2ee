"""The lower bound: its charges against every legal group, its nodes against all schedules, itself against all plans and against good ones."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cost.roofline import fused_seconds
from fourfold.cost.simulate import arrays, play
from fourfold.decisions.schedule import _bound_terms
from fourfold.decisions.schedule import bound as _bound
from fourfold.decisions.schedule._parts import fuse
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import FourfoldError
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, OPAQUE, REDUCTION, VIEW, Builder, Graph
from fourfold.machine import Device, Efficiency, Link, Machine
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.zoo.graphs import FAMILIES, make

SHAPES = [(8, 16), (8, 1), (4, 4), (8, 32), ()]
COMMON = settings(max_examples=60, deadline=None)


def tangled(dice: np.random.Generator, nodes: int) -> Graph:
    """A random sound graph: every fusion class, views that share memory (of parameters too), several outputs, values that many read, colocation."""
    build = Builder(f"tangled {nodes}")
    values = [(build.input((8, 16), "float32"), (8, 16)) for _ in range(2)] + [(build.parameter((8, 16), "float32"), (8, 16))]
    reach = float(dice.choice([0.2, 0.35, 0.6]))
    for _ in range(nodes):
        fusion = int(dice.choice([OPAQUE, ELEMENTWISE, REDUCTION, CONTRACTION, VIEW, GATHER], p=[0.06, 0.38, 0.13, 0.2, 0.18, 0.05]))
        back = dice.geometric(reach, size=1 if fusion == VIEW else int(dice.integers(1, 4)))
        reads = [values[i] for i in dict.fromkeys(max(0, len(values) - int(one)) for one in back)]
        shapes = [reads[0][1] if dice.random() < 0.6 else SHAPES[int(dice.integers(len(SHAPES)))]
                  for _ in range(1 if fusion == VIEW else int(dice.choice([1, 1, 1, 2])))]
        kind = ("aten.opaque", "aten.add", "aten.sum", "aten.mm", "aten.view", "aten.gather")[fusion]
        work = float(np.prod(shapes[0]) * {CONTRACTION: dice.choice([20, 300]), VIEW: 0}.get(fusion, 2))
        made = build.node(kind, [v for v, _ in reads], [(shape, "float32") for shape in shapes], flops=work, fusion=fusion,
                          alias=[reads[0][0]] if fusion == VIEW and dice.random() < 0.8 else (),
                          colocation=int(dice.integers(3)) if dice.random() < 0.1 else -1)
        values += list(zip(made, shapes, strict=True))
    for i in {len(values) - 1, *dice.integers(3, len(values), size=int(dice.integers(0, 3))).tolist()}:
        build.output(values[i][0])
    return build.build()


def machines(dice: np.random.Generator, count: int, memory: float = 1e9) -> Machine:
    """Devices of unlike speed, launch cost and curves; links from slow to free of cost."""
    same, devices = dice.random() < 0.4, []
    for i in range(count):
        curve = Efficiency(float(dice.choice([1e-7, 2e-6])) if dice.random() < 0.4 else None,
                           bandwidth=((64.0, 0.2), (1000.0, float(dice.choice([0.5, 4.0]))), (1e5, 1.0)))
        efficiency = {name: curve for name in ("fused", "elementwise", "matmul") if dice.random() < 0.4}
        devices.append(Device(f"d{i}", "fake", {"float32": float(dice.choice([2e8, 1e9, 4e9]))}, float(dice.choice([1e8, 1e9])),
                              float(dice.choice([1e-7, 2e-6])), memory, float(dice.choice([1.0, 20.0])), 10.0, efficiency,
                              ("aten.gather",) if i and dice.random() < 0.2 else (), ((100.0, 1e-7), (1000.0, 1e-6)) if dice.random() < 0.3 else ()))
    if same:
        devices = [replace(devices[0], name=one.name) for one in devices]
    wait, rate = float(dice.choice([0.0, 1e-6])), float(dice.choice([1e7, 1e9, 1e12]))
    links = [Link(a.name, b.name, wait, rate * float(dice.choice([1.0, 2.0])), bool(dice.random() < 0.5), overlap=bool(dice.random() < 0.7))
             for i, a in enumerate(devices) for b in devices[i + 1:]]
    return Machine("fake", tuple(devices), tuple(links))


def legal(problem: Schedule) -> list[tuple[int, ...]]:
    """Every group of two ops or more that the rules allow and that no path leaves and enters again."""
    g, nodes = problem.graph, len(problem.graph)
    reach = np.eye(nodes, dtype=bool)
    src, dst, _ = g.edges()
    for a, b in sorted(zip(src.tolist(), dst.tolist(), strict=True), key=lambda pair: -pair[0]):
        reach[a] |= reach[b]
    found = []
    for size in range(2, nodes + 1):
        for members in itertools.combinations(range(nodes), size):
            inside = np.zeros(nodes, bool)
            inside[list(members)] = True
            between = reach[inside].any(0) & reach[:, inside].any(1) & ~inside
            if not between.any() and not list(problem._unfit(list(members))):
                found.append(members)
    return found


def _no_group_is_charged_more_than_it_takes(seed: int, nodes: int) -> None:
    dice = np.random.default_rng(seed)
    problem = Schedule(tangled(dice, nodes), machines(dice, 2), most=int(dice.choice([2, 64])))
    duty = _bound_terms.duties(problem)
    paid, launch, parts = _bound_terms.charges(problem, duty)
    assert (paid <= problem.seconds * (1 + 1e-12)).all()
    apart = set(zip(duty.src[duty.apart].tolist(), duty.dst[duty.apart].tolist(), strict=True))
    for members in legal(problem):
        label = np.arange(nodes)
        label[list(members)] = members[0]
        took = fused_seconds(problem.graph, label, problem.system)[members[0]]
        inside = list(members)
        assert (paid[inside].sum(0) <= took * (1 + 1e-12)).all()
        assert (launch[inside].max(0) + np.maximum(parts[:3, inside].sum(1).max(0), parts[3, inside].max(0)) <= took * (1 + 1e-12)).all()
        assert len(set(duty.cluster[inside].tolist())) == 1 and not any(pair in apart for pair in itertools.permutations(members, 2))


@given(st.integers(0, 10**6), st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_no_group_is_charged_more_than_it_takes(seed: int, nodes: int) -> None:
    _no_group_is_charged_more_than_it_takes(seed, nodes)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(2, 9))
@settings(max_examples=300, deadline=None)
def test_no_group_is_charged_more_than_it_takes_in_many_instances(seed: int, nodes: int) -> None:
    _no_group_is_charged_more_than_it_takes(seed, nodes)


def serial(nodes: _bound.Nodes, place: tuple[int, ...], order: tuple[int, ...]) -> float:
    """The makespan when nodes are started in `order`, each as soon as its device and what it reads allow."""
    free, end = [0.0] * nodes.p.shape[1], np.zeros(len(nodes))
    for n in order:
        begin = free[place[n]]
        for e in np.flatnonzero(nodes.dst == n):
            u = int(nodes.src[e])
            begin = max(begin, end[u] + (nodes.away[e] if place[u] != place[n] else 0.0))
        free[place[n]] = end[n] = begin + nodes.p[n, place[n]]
    return float(end.max())


def _no_schedule_of_single_nodes_is_shorter(seed: int, count: int, devices: int) -> None:
    """All placements and all orders of small graphs: what heads, tails, windows, clusters and work claim."""
    dice = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count) if dice.random() < 0.45]
    src, dst = (np.array([pair[i] for pair in sorted(pairs, key=lambda pair: (pair[1], pair[0]))], np.int64) for i in range(2))
    p = dice.integers(1, 9, size=(count, 1)) * (np.ones(devices) if dice.random() < 0.5 else dice.choice([1.0, 2.0], size=(count, devices)))
    kin = np.arange(count)
    if dice.random() < 0.3:
        kin[count - 1] = 0
    away = dice.choice([0.0, 1.0, 3.0, 9.0], size=len(src)) * (1 if dice.random() < 0.8 else 0.1)
    nodes = _bound.Nodes(p, src, dst, np.zeros(len(src)), away, away, kin)
    before = [set(src[dst == n].tolist()) for n in range(count)]
    orders = [order for order in itertools.permutations(range(count)) if all(before[n] <= set(order[:i]) for i, n in enumerate(order))]
    best, load = np.inf, np.inf
    for place in itertools.product(range(devices), repeat=count):
        if place[kin[count - 1]] == place[count - 1] or kin[count - 1] == count - 1:
            best = min(best, min(serial(nodes, place, order) for order in orders))
            lanes = max([float(away[e]) for e in range(len(src)) if place[src[e]] != place[dst[e]]], default=0.0)
            load = min(load, max(lanes, *(float(p[np.array(place) == d, d].sum()) for d in range(devices))))
    assert _bound.latency(replace(nodes, rooms=np.full(devices, np.inf))) <= best * (1 + 1e-9)
    assert _bound.throughput(nodes) <= load * (1 + 1e-9)


@given(st.integers(0, 10**6), st.integers(3, 5), st.integers(2, 3))
@settings(max_examples=20, deadline=None)
def test_no_schedule_of_single_nodes_is_shorter(seed: int, count: int, devices: int) -> None:
    _no_schedule_of_single_nodes_is_shorter(seed, count, devices)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(3, 5), st.integers(2, 3))
@settings(max_examples=400, deadline=None)
def test_no_schedule_of_single_nodes_is_shorter_in_many_instances(seed: int, count: int, devices: int) -> None:
    _no_schedule_of_single_nodes_is_shorter(seed, count, devices)


def cheapest(problem: Schedule) -> float:
    """The least cost over all set partitions, placements and orders, by the simulator alone."""
    nodes, devices, best = len(problem.graph), len(problem.system), np.inf
    for labels in itertools.product(range(nodes), repeat=nodes):
        if any(label > max((-1, *labels[:i])) + 1 for i, label in enumerate(labels)):
            continue
        group = np.array(labels)
        trial = Answer(group, np.zeros(nodes, int), np.zeros(nodes))
        if problem._fusions(trial) or problem._cycles(trial):
            continue
        plain, tasks = arrays(problem.tasks(group), problem.system), problem.tasks(group)
        for place in itertools.product(range(devices), repeat=len(tasks)):
            where = np.array(place, np.int16)
            tie = problem.graph.colocation
            if not problem.able[np.arange(nodes), where[tasks.group]].all() or any(
                    len(set(where[tasks.group[tie == c]].tolist())) > 1 for c in np.unique(tie[tie >= 0])):
                continue
            for order in itertools.permutations(range(len(tasks))):
                run = play(plain, where, np.array(order, float), False, False)
                if (run.peak <= plain.limit).all():
                    busy = max(run.busy.max(), run.lane_busy.max(initial=0.0))
                    best = min(best, {"latency": run.makespan, "throughput": busy, "energy": run.joules, "memory": float(run.peak.max())}[
                        problem.objective])
    return best


def _no_plan_is_cheaper_than_the_bound(seed: int, nodes: int, objective: str) -> None:
    dice = np.random.default_rng(seed)
    graph = tangled(dice, nodes)
    try:
        problem = Schedule(graph, machines(dice, 2, float(dice.choice([1e9, 1600.0]))), objective)
    except FourfoldError:
        return
    bound = problem.bound()
    assert bound is not None and 0 <= bound <= cheapest(problem)


@given(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from(["latency", "throughput", "energy", "memory"]))
@settings(max_examples=25, deadline=None)
def test_no_plan_is_cheaper_than_the_bound(seed: int, nodes: int, objective: str) -> None:
    _no_plan_is_cheaper_than_the_bound(seed, nodes, objective)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from(["latency", "throughput", "energy", "memory"]))
@settings(max_examples=400, deadline=None)
def test_no_plan_is_cheaper_than_the_bound_in_many_instances(seed: int, nodes: int, objective: str) -> None:
    _no_plan_is_cheaper_than_the_bound(seed, nodes, objective)


def _no_good_plan_is_cheaper_than_the_bound(seed: int, nodes: int, devices: int, objective: str) -> None:
    """Fused greedily, placed at random, by stretches or all on one device; parts of the answer fixed."""
    dice = np.random.default_rng(seed)
    problem = Schedule(tangled(dice, nodes), machines(dice, devices), objective)
    least = problem.bound()
    assert least is not None
    tie = problem.graph.colocation
    for label in [np.zeros(nodes, int), np.arange(nodes) * devices // nodes, *(dice.integers(devices, size=nodes) for _ in range(3))]:
        place = np.array(label)
        for c in np.unique(tie[tie >= 0]):
            place[tie == c] = place[np.flatnonzero(tie == c)[0]]
        group = fuse(problem, label=place)
        answer = Answer(group, place, -np.arange(nodes, dtype=float) if dice.random() < 0.5 else dice.random(nodes))
        if problem.violations(answer):
            continue
        cost = problem.cost(answer)
        assert least <= cost
        for fixed in ({"group": group}, {"place": place}, {"group": group, "place": place}):
            bound = problem.replace(**fixed).bound()
            assert bound is not None and bound <= cost


@given(st.integers(0, 10**6), st.integers(5, 40), st.integers(1, 4), st.sampled_from(["latency", "throughput", "energy", "memory"]))
@settings(max_examples=15, deadline=None)
def test_no_good_plan_is_cheaper_than_the_bound(seed: int, nodes: int, devices: int, objective: str) -> None:
    _no_good_plan_is_cheaper_than_the_bound(seed, nodes, devices, objective)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(5, 40), st.integers(1, 4), st.sampled_from(["latency", "throughput", "energy", "memory"]))
@settings(max_examples=400, deadline=None)
def test_no_good_plan_is_cheaper_than_the_bound_in_many_instances(seed: int, nodes: int, devices: int, objective: str) -> None:
    _no_good_plan_is_cheaper_than_the_bound(seed, nodes, devices, objective)


def test_what_shares_memory_only_on_paper_is_forced_apart() -> None:
    """Two halves of a model that no device holds together: one must be sent the other's result, over a slow link."""
    build = Builder("halves")
    x = build.input((4, 4), "float32")
    for _ in range(2):
        (x,) = build.node("aten.mm", [x, build.parameter((4, 1000), "float32")], [((4, 4), "float32")], flops=32000.0, fusion=CONTRACTION)
    build.output(x)
    devices = tuple(Device(f"d{i}", "fake", {"float32": 1e9}, 1e9, 1e-6, 20_000.0) for i in range(2))
    problem = Schedule(build.build(), Machine("fake", devices, (Link("d0", "d1", 1e-3, 1e6),)))
    bound = problem.bound()
    roomy = problem.replace(bounded=False).bound()
    assert bound is not None and roomy is not None and roomy < 1.1e-4 < 1.06e-3 < bound


def test_a_chain_with_dear_transfers_is_bound_to_one_device() -> None:
    problem = Schedule(make("cnn", 100, 0), Machine.read("p100x4"))
    alone = float(problem.tasks(fuse(problem)).seconds[:, 0].sum())
    bound = problem.bound()
    assert bound is not None and 0.9 * alone < bound <= alone


@pytest.mark.parametrize("family", FAMILIES)
def test_annealed_plans_of_every_family_stay_above_the_bound(family: str) -> None:
    for system in ("p100x2", "cpux4"):
        problem = Schedule(make(family, 120, 1), Machine.read(system))
        found = solve(problem, technique("schedule/anneal")(), Budget(600, 300))
        assert found.bound is not None and found.bound <= found.cost


def test_weights_of_unlike_devices_prove_what_a_linear_program_finds() -> None:
    from scipy.optimize import linprog

    dice = np.random.default_rng(0)
    for devices in (2, 3, 5):
        table = dice.random((30, devices)) * dice.choice([1.0, 5.0], size=devices)
        table[dice.random(table.shape) < 0.05] = np.inf
        table[:, 0] = np.where(np.isinf(table).all(1), 1.0, table[:, 0])
        able = np.isfinite(table)
        cost = np.append(np.zeros(table.size), 1.0)
        load = np.zeros((devices, table.size + 1))
        for d in range(devices):
            load[d, d:table.size:devices] = np.where(able[:, d], table[:, d], 0.0)
            load[d, -1] = -1.0
        once = np.kron(np.eye(len(table)), np.ones(devices))
        found = linprog(cost, load, np.zeros(devices), np.column_stack([once, np.zeros(len(table))]), np.ones(len(table)),
                        bounds=[(0, 1 if one else 0) for one in able.ravel()] + [(0, None)])
        assert found.fun * (1 - 1e-3) <= _bound.work(table) <= found.fun * (1 + 1e-9)
