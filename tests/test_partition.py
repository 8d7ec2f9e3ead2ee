"""Splitting networks over devices: the loader, both questions' validators, the dynamic programmes and the bounds against brute force."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.decisions.pipeline._network import Network
from fourfold.decisions.pipeline._paths import path_bound
from fourfold.decisions.pipeline.handmade import Handmade
from fourfold.decisions.pipeline.ideals import Ideals
from fourfold.decisions.pipeline.latency_annealing import LatencyAnnealing
from fourfold.decisions.pipeline.latency_fill import LatencyFill
from fourfold.decisions.pipeline.lns import Lns
from fourfold.decisions.pipeline.local_search import LocalSearch
from fourfold.decisions.pipeline.pipedream import Pipedream
from fourfold.decisions.pipeline.problem import Latency, MaxLoad, Split, invented
from fourfold.decisions.pipeline.throughput_ip import ThroughputIp
from fourfold.errors import InputError
from fourfold.frontends.placement import PipelineWorkload, read_placement, read_split
from fourfold.problem import Budget, solve

SUITE = Path(os.environ.get("FOURFOLD_PLACEMENT_SUITE", Path(__file__).parents[2] / "shared" / "data" / "place"))
needs_suite = pytest.mark.skipif(not SUITE.is_dir(), reason="the placement suite is not here; point FOURFOLD_PLACEMENT_SUITE at a copy of "
                                                            "msr-fiddle/dnn-partitioning")


def tiny(seed: int) -> PipelineWorkload:
    """At most seven nodes, two accelerators, one core."""
    return replace(invented(seed, 7), accelerators=2)


def every(problem: Any, machines: int) -> list[tuple[float, Split]]:
    """(cost, split) of every valid split, cheapest first."""
    w = problem.workload
    colors, of = np.unique(w.color, return_inverse=True)
    found = []
    for choice in itertools.product(range(machines), repeat=len(colors)):
        split = Split(np.array(choice, np.int16)[of])
        if not problem.violations(split):
            found.append((problem.cost(split), split))
    return sorted(found, key=lambda entry: entry[0])


# ---- the loader

PLAIN = {"maxFPGAs": 2, "maxCPUs": 1, "maxSizePerFPGA": 100.0,
         "nodes": [{"id": 7, "cpuLatency": 10, "fpgaLatency": 1.0, "size": 60.0, "supportedOnFpga": 1, "name": "a"},
                   {"id": 3, "cpuLatency": 20, "fpgaLatency": 2.0, "size": 50, "supportedOnFpga": True, "colorClass": 4},
                   {"id": 9, "cpuLatency": 30, "fpgaLatency": 3.0, "size": 10, "colorClass": 4}],
         "edges": [{"sourceId": 7, "destId": 3, "cost": 0.5}, {"sourceId": 7, "destId": 9, "cost": 0.5}, {"sourceId": 3, "destId": 9, "cost": 0.25}]}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "net.json"
    path.write_text(json.dumps({key: value for key, value in (PLAIN | changes).items() if value is not None}))
    return path


def test_a_plain_file(tmp_path: Path) -> None:
    w = read_placement(written(tmp_path))
    assert (w.name, w.accelerators, w.cores, w.limit) == ("net", 2, 1, 100.0)
    assert w.ids.tolist() == [7, 3, 9] and w.color[1] == w.color[2] != w.color[0] and w.called(0) == "7 (a)"
    assert w.cost.tolist() == [0.5, 0.25, 0.0] and w.supported.all() and not w.backward.any()
    problem = MaxLoad(w)
    assert problem.loads(Split(np.array([0, 1, 1]))).tolist() == [1.5, 5.5, 0.0]           # node 7's output once on each side
    assert problem.loads(Split(np.array([2, 1, 1]))).tolist() == [0.0, 5.5, 10.0]
    assert Latency(w).cost(Split(np.array([0, 1, 1]))) == 7.0 and Latency(w).cost(Split(np.array([2, 2, 2]))) == 60.0


@pytest.mark.parametrize(("changes", "said"), [
    ({"nodes": None}, "has no 'nodes'"), ({"maxFPGAs": 1.5}, "maxFPGAs is 1.5"), ({"maxSizePerFPGA": -1}, "maxSizePerFPGA is -1"),
    ({"edges": [{"sourceId": 7, "destId": 8, "cost": 1}]}, "destId 8, no node's id"),
    ({"edges": [{"sourceId": 7, "destId": 7, "cost": 1}]}, "to itself"), ({"edges": [{"sourceId": 7, "destId": 3}]}, "needs sourceId, destId, cost"),
    ({"edges": [{"sourceId": a, "destId": b, "cost": 1} for a, b in ((7, 3), (3, 9), (9, 7))]}, "have a cycle: .*7 .a..*"),
    ({"nodes": [{"id": 1, "cpuLatency": 1, "size": 1}], "edges": []}, "has no 'fpgaLatency'"),
    ({"nodes": [*PLAIN["nodes"], PLAIN["nodes"][0]]}, "share the id 7"),
    ({"nodes": [PLAIN["nodes"][0] | {"size": "big"}], "edges": []}, "size is 'big'"),
    ({"maxCPUs": 0, "maxSizePerFPGA": 55}, "needs 5 bytes more"), ({"maxCPUs": 0, "maxFPGAs": 0}, "neither accelerators nor cores"),
    ({"maxCPUs": 0, "nodes": [PLAIN["nodes"][0] | {"supportedOnFpga": 0}], "edges": []}, "cannot run on an accelerator"),
])
def test_what_is_wrong_is_said_in_words(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_placement(written(tmp_path, **changes))


def test_not_json_and_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_placement(tmp_path / "x.json")
    with pytest.raises(InputError, match="Cannot read"):
        read_placement(tmp_path / "y.json")


def test_a_split_must_name_each_node_once(tmp_path: Path) -> None:
    w = read_placement(written(tmp_path))
    path = tmp_path / "split.json"
    for fpgas, said in (([[7], [3, 9]], ""), ([[7], [3]], "forgets 1 nodes"), ([[7, 3, 9], [3]], "on two machines"),
                        ([[7, 3, 9, 1]], "which net has not"), ([[7], [3], [9]], "uses 3 fpgas")):
        path.write_text(json.dumps({"fpgas": [{"nodes": nodes} for nodes in fpgas], "cpus": [{"nodes": []}], "maxLoad": -1}))
        if said:
            with pytest.raises(InputError, match=said):
                read_split(path, w)
        else:
            assert read_split(path, w).tolist() == [0, 1, 1]


# ---- validators and prices, by a second, slow way

def slow_load(w: PipelineWorkload, machine: np.ndarray, m: int) -> float:
    own = set(np.flatnonzero(machine == m).tolist())
    if m >= w.accelerators:
        return sum(float(w.core[v]) for v in own)
    edges = list(zip(w.source.tolist(), w.target.tolist(), strict=True))
    crossing = {u for u, v in edges if (u in own) != (v in own)}
    return sum(float(w.accelerator[v]) for v in own) + sum(float(w.cost[u]) for u in crossing)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_loads_equal_a_recount(seed: int, draw: int) -> None:
    problem = MaxLoad(invented(seed))
    machine = np.random.default_rng(draw).integers(0, problem.machines, len(problem.workload))
    assert problem.loads(Split(machine)) == pytest.approx([slow_load(problem.workload, machine, m) for m in range(problem.machines)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_contiguity_and_waiting_equal_a_search_of_all_paths(seed: int, draw: int) -> None:
    w = replace(invented(seed), limit=1e12, supported=np.ones(len(invented(seed)), bool), color=np.arange(len(invented(seed)), dtype=np.int32))
    machine = np.random.default_rng(draw).integers(0, w.accelerators + 1, len(w))
    after = {u: [int(v) for v in w.target[w.source == u]] for u in range(len(w))}

    def returns(m: int) -> bool:
        seen, todo = set(), [v for u in np.flatnonzero(machine == m) for v in after[int(u)] if machine[v] != m]
        while todo:
            u = todo.pop()
            for v in after[u]:
                if machine[v] == m:
                    return True
                if v not in seen:
                    seen.add(v)
                    todo.append(v)
        return False

    bad = {m for m in range(w.accelerators) if returns(m)}
    said = MaxLoad(w, contiguous=True).violations(Split(machine))
    assert {int(line.split("accelerator ")[1].split()[0]) for line in said} == bad
    assert bool(Latency(w).violations(Split(machine))) == (not np.isfinite(Latency(w).cost(Split(machine))))
    assert not bad or Latency(w).violations(Split(machine))
    net = Network.of_workload(w, 1)
    assert net.latency(machine.astype(np.int64)) == pytest.approx(Latency(w).cost(Split(machine)))


def test_rules_are_broken_in_words() -> None:
    w = read_placement_plain()
    problem = MaxLoad(w, contiguous=True)
    assert "holds 120 bytes, 20 more" in problem.violations(Split(np.array([0, 0, 0])))[0]
    assert "of one class" in problem.violations(Split(np.array([0, 1, 2])))[0]
    assert "there are 0 … 2" in problem.violations(Split(np.array([0, 3, 3])))[0]
    assert "cannot run" in MaxLoad(replace(w, supported=np.zeros(3, bool))).violations(Split(np.array([0, 2, 2])))[0]
    assert "of 2 nodes" in problem.violations(Split(np.array([0, 1])))[0]
    free = replace(w, color=np.arange(3, dtype=np.int32), limit=1e9)
    assert "returns at node 9" in MaxLoad(free, contiguous=True).violations(Split(np.array([0, 1, 0])))[0]
    assert MaxLoad(free).violations(Split(np.array([0, 1, 0]))) == []
    assert "returns" in Latency(free).violations(Split(np.array([0, 1, 0])))[0]
    assert Latency(free, parts=2).violations(Split(np.array([0, 1, 0]), np.array([0, 0, 1]))) == []


def read_placement_plain() -> PipelineWorkload:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read_placement(written(Path(folder)))


# ---- solvers and bounds against brute force

@pytest.mark.parametrize("seed", range(12))
def test_throughput_against_brute_force(seed: int) -> None:
    w = tiny(seed)
    anything, contiguous = MaxLoad(w), MaxLoad(w, contiguous=True)
    best, _ = every(anything, 3)[0]
    assert anything.bound() <= best + 1e-9
    exact = solve(anything, ThroughputIp(), Budget(20, 3000))
    assert exact.cost == pytest.approx(best, rel=1e-4) and exact.bound == pytest.approx(best, rel=1e-4) and exact.bound <= best * (1 + 1e-9)
    assert solve(anything, Lns(), Budget(20, 100_000), seed).cost == pytest.approx(best, rel=1e-9)
    ordered = [cost for cost, split in every(contiguous, 3) if in_order(w, split)]
    assert solve(contiguous, Ideals(), Budget(20, 10**6)).cost == pytest.approx(ordered[0], rel=1e-9)
    assert solve(contiguous, ThroughputIp(), Budget(20, 3000)).cost == pytest.approx(every(contiguous, 3)[0][0], rel=1e-4)


def in_order(w: PipelineWorkload, split: Split) -> bool:
    """Whether the machines of a split, cores too, can be put in an order that all edges follow."""
    a, b = split.machine[w.source], split.machine[w.target]
    edges = {(int(x), int(y)) for x, y in zip(a, b, strict=True) if x != y}
    return any(all(order.index(x) < order.index(y) for x, y in edges) for order in itertools.permutations(range(w.accelerators + w.cores)))


@pytest.mark.parametrize("seed", range(30))
def test_latency_bound_and_annealing_against_brute_force(seed: int) -> None:
    problem = Latency(tiny(seed))
    best, _ = every(problem, 3)[0]
    assert problem.bound() <= best + 1e-9
    assert solve(problem, LatencyAnnealing(), Budget(20, 40_000), seed).cost == pytest.approx(best, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 1.0), st.floats(0.0, 20.0))
def test_the_path_bound_is_below_every_valid_split(seed: int, tight: float, dear: float) -> None:
    w = tiny(seed)
    w = replace(w, limit=max(1.0, w.size.sum() * tight), cost=w.cost * dear, size=w.size * 1.0)
    costs = [cost for cost, _ in every(Latency(w), 3)]
    assert path_bound(w) <= min(costs) + 1e-9


def test_annealing_keeps_the_memory_limit_and_is_never_worse_than_the_cores() -> None:
    for seed in range(8):
        w = invented(seed)
        w = replace(w, limit=float(np.median(w.size)))
        found = solve(Latency(w), LatencyAnnealing(), Budget(10, 5_000))
        held = np.bincount(found.answer.machine, w.size, w.accelerators + 1)
        assert (held[:-1] <= w.limit).all() and found.before is not None and found.cost <= found.before


# ---- the suite itself

@needs_suite
@pytest.mark.parametrize(("name", "load"), [("inference", 46.2085), ("training", 137.154)])
def test_the_experts_splits_have_their_published_loads(name: str, load: float) -> None:
    w = read_placement(SUITE / f"throughput-inputs/LayerGraphs/gnmt_{name}.json")
    expert = Split(read_split(SUITE / f"human-experts/gnmt_{name}_expert.json", w))
    found = solve(MaxLoad(w, contiguous=True, expert=expert), Handmade())
    assert found.cost == pytest.approx(load, rel=1e-5)


@needs_suite
def test_every_file_loads_with_the_sizes_and_bounds_of_its_description() -> None:
    want = {"throughput-inputs/LayerGraphs/gnmt_inference": (96, 122, 29.93), "throughput-inputs/LayerGraphs/gnmt_training": (192, 244, 85.32),
            "throughput-inputs/OperatorGraphs/bert_l-6_inference": (418, 448, 25.45),
            "throughput-inputs/OperatorGraphs/bert_l-6_training": (1071, 1462, 63.39),
            "throughput-inputs/OperatorGraphs/bert_l-12_inference": (783, 843, 106.36),
            "throughput-inputs/OperatorGraphs/bert_L-12_training": (2012, 2751, 313.02)}
    for name, (nodes, edges, bound) in want.items():
        w = read_placement(SUITE / f"{name}.json")
        assert (len(w), len(w.source)) == (nodes, edges) and MaxLoad(w).bound() == pytest.approx(bound, abs=0.006)
    for name, core in (("LayerGraphs/gnmt_inference", 1824.4), ("OperatorGraphs/bert_l-6_inference", 1724.8),
                       ("OperatorGraphs/bert_l-12_inference", 14016.8)):
        problem = Latency(read_placement(SUITE / f"latency-inputs/{name}.json"))
        assert problem.cost(problem.baseline()) == pytest.approx(core, abs=0.06)


@needs_suite
def test_figures_to_reach() -> None:
    """BERT-6: the published dynamic programme; PipeDream collapses; latency within 10 % of the bound and better than greedy."""
    w = read_placement(SUITE / "throughput-inputs/OperatorGraphs/bert_l-6_inference.json")
    assert solve(MaxLoad(w, contiguous=True), Ideals(), Budget(60, 10**7)).cost == pytest.approx(29.5795, abs=1e-3)
    assert solve(MaxLoad(w), Pipedream()).cost > 29.6
    assert solve(MaxLoad(w), LocalSearch(), Budget(20, 10**6)).cost >= solve(MaxLoad(w), Lns(), Budget(30, 500_000)).cost
    latency = Latency(read_placement(SUITE / "latency-inputs/OperatorGraphs/bert_l-6_inference.json"))
    found = solve(latency, LatencyAnnealing(), Budget(60, 200_000))
    assert found.gap is not None and found.gap <= 0.1 and found.cost < solve(latency, LatencyFill()).cost
