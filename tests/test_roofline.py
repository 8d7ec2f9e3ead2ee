"""The roofline by hand on small graphs, and what must hold on any: groups of one cost what nodes cost, traffic equals a brute-force count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cost.roofline import _traffic, families, fused_seconds, joules, seconds, short
from fourfold.cost.simulate import simulate, tasks_of
from fourfold.errors import InputError
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, OPAQUE, REDUCTION, VIEW, Builder, Graph, number
from fourfold.machine import Device, Efficiency, Link, Machine

FAST = Device("gpu", "gpu", {"float32": 1e12, "float16": 2e12}, 1e11, 5e-6, 1e10, idle=10.0, busy=100.0)
SLOW = Device("cpu", "cpu", {"float32": 1e10}, 1e10, 1e-6, 1e11, idle=1.0, busy=7.0, unsupported=("aten.mm*",))
PAIR = Machine("pair", (FAST, SLOW), (Link("gpu", "cpu", 1e-5, 1e10),))


def network() -> Graph:
    """x [64, 256] · wᵀ → + bias → gelu → view → row sums."""
    build = Builder("network")
    x, w, bias = build.input((64, 256), "float32"), build.parameter((512, 256), "float32"), build.parameter((512,), "float32")
    (wt,) = build.node("aten.t", [w], [((256, 512), "float32")], fusion=VIEW, alias=[w])
    (y,) = build.node("aten.mm", [x, wt], [((64, 512), "float32")], fusion=CONTRACTION, flops=2 * 64 * 256 * 512)
    (z,) = build.node("aten.add", [y, bias], [((64, 512), "float32")], fusion=ELEMENTWISE, steps=64 * 512)
    (g,) = build.node("aten.gelu", [z], [((64, 512), "float32")], fusion=ELEMENTWISE, steps=5 * 64 * 512)
    (v,) = build.node("aten.view", [g], [((64 * 512,), "float32")], fusion=VIEW, alias=[g])
    (s,) = build.node("aten.sum", [v], [((1,), "float32")], fusion=REDUCTION, steps=64 * 512)
    build.output(s)
    return build.build()


def test_single_ops_by_hand() -> None:
    table = seconds(network(), PAIR)
    moved, flops = 4 * (64 * 256 + 256 * 512 + 64 * 512), 2 * 64 * 256 * 512
    assert math.isclose(table[1, 0], 5e-6 + max(flops / 1e12, moved / 1e11)) and table[1, 1] == math.inf
    assert math.isclose(table[2, 0], 5e-6 + 4 * (2 * 64 * 512 + 512) / 1e11)
    assert math.isclose(table[3, 1], 1e-6 + max(8 * 64 * 512 / 1e10, 5 * 64 * 512 / 1e10))
    assert table[0, 0] == 5e-6 and table[4, 1] == 1e-6                  # views move nothing
    watts = joules(network(), PAIR)
    assert math.isclose(watts[2, 0], 100 * table[2, 0]) and math.isclose(watts[3, 1], 7 * table[3, 1])


def test_a_fused_group_moves_what_crosses_its_border_once() -> None:
    graph = network()
    fused = fused_seconds(graph, [0, 0, 0, 0, 0, 0], PAIR)
    inside, outside = 4 * (64 * 256 + 512 * 256 + 512), 4
    assert fused.shape == (1, 2) and fused[0, 1] == math.inf
    work = 2 * 64 * 256 * 512 / 1e12 + (64 * 512 + 5 * 64 * 512 + 64 * 512) / 1e12
    assert math.isclose(fused[0, 0], 5e-6 + max(work, (inside + outside) / 1e11))
    tail = fused_seconds(graph, [-1, -1, 1, 1, 1, 1], PAIR)
    assert math.isclose(tail[2, 0], 5e-6 + (4 * (64 * 512 + 512) + 4) / 1e11)
    np.testing.assert_allclose(tail[:2], seconds(graph, PAIR)[:2])


def test_shares_are_found_by_kind_then_name_then_family() -> None:
    assert short("aten._softmax.default") == "softmax" and short("Conv") == "conv" and short("prims.convert_element_type") == "convert_element_type"
    assert families("aten.addmm", CONTRACTION) == ("aten.addmm", "addmm", "matmul")
    assert families("aten.bmm", CONTRACTION)[-2:] == ("batched", "matmul")
    assert families("Conv", CONTRACTION) == ("Conv", "conv", "matmul")
    assert families("aten._softmax", REDUCTION) == ("aten._softmax", "softmax", "reduction", "elementwise")
    assert families("aten.mul", ELEMENTWISE) == ("aten.mul", "mul", "elementwise")
    assert families("aten.sort", OPAQUE)[-2:] == ("opaque", "elementwise") and families("aten.embedding", GATHER)[1:3] == ("embedding", "gather")
    assert families("aten.view", VIEW) == ("aten.view", "view")
    assert families("aten.matmul", CONTRACTION) == ("aten.matmul", "batched", "matmul")
    assert families("aten.slice", VIEW) == ("aten.slice", "slice", "view")
    assert families("MaxPool", REDUCTION)[1:3] == ("maxpool", "pool") and families("Dropout", VIEW)[-1] == "view"
    shares = {"aten.gelu": Efficiency(bandwidth=((1.0, 0.5),)), "elementwise": Efficiency(launch=2e-6, bandwidth=((1.0, 0.25),))}
    system = Machine("one", (Device("d", "cpu", {"float32": 1e15}, 1e9, 0.0, 1e9, efficiency=shares),))
    table = seconds(network(), system)
    assert math.isclose(table[3, 0], 8 * 64 * 512 / 0.5e9) and math.isclose(table[2, 0], 2e-6 + 4 * (2 * 64 * 512 + 512) / 0.25e9)


def test_parameters_of_a_large_model_come_from_memory() -> None:
    curve = {"matmul": Efficiency(bandwidth=((1e6, 10.0), (1e8, 1.0)))}
    system = Machine("one", (Device("d", "cpu", {"float32": 1e15}, 1e10, 0.0, 1e9, efficiency=curve),))

    def one(others: int) -> float:
        build = Builder()
        x, w = build.input((1, 100), "float32"), build.parameter((100, 100), "float32")
        build.parameter((others,), "float32")
        (y,) = build.node("aten.mm", [x, w], [((1, 100), "float32")], fusion=CONTRACTION, flops=20000)
        build.output(y)
        return float(seconds(build.build(), system)[0, 0])

    assert math.isclose(one(10), (40000 + 800) / 1e11) and math.isclose(one(10**8), 40000 / 1e10 + 800 / 1e11)


def test_narrow_products_and_depthwise_convolutions() -> None:
    shares = {"matmul": Efficiency(narrow=((1.0, 0.01), (100.0, 1.0))), "depthwise": Efficiency(peak=((1.0, 0.125),)),
              "conv": Efficiency(peak=((1.0, 0.5),))}
    system = Machine("one", (Device("d", "cpu", {"float32": 1e6}, 1e15, 0.0, 1e9, efficiency=shares),))
    build = Builder()
    x, w = build.input((1, 1000), "float32"), build.parameter((1000, 1000), "float32")
    build.node("aten.mm", [x, w], [((1, 1000), "float32")], fusion=CONTRACTION, flops=2e6)
    image, deep, full = build.input((1, 8, 10, 10), "float32"), build.parameter((8, 1, 3, 3), "float32"), build.parameter((8, 8, 3, 3), "float32")
    build.node("aten.conv2d", [image, deep], [((1, 8, 10, 10), "float32")], fusion=CONTRACTION, flops=2 * 800 * 9)
    build.node("aten.conv2d", [image, full], [((1, 8, 10, 10), "float32")], fusion=CONTRACTION, flops=2 * 800 * 72)
    table = seconds(build.build(), system)[:, 0]
    np.testing.assert_allclose(table, [2.0 / 0.01, 2 * 800 * 9 / 1e6 / 0.125, 2 * 800 * 72 / 1e6 / 0.5])


def test_convolutions_lay_weights_out_anew_and_rare_kinds_are_cold() -> None:
    shares = {"conv": Efficiency(relay=1e6), "elementwise": Efficiency(1e-3)}
    cold = ((1e3, 0.0), (1e6, 3.0))
    system = Machine("one", (Device("d", "cpu", {"float32": 1e9}, 1e15, 0.0, 1e9, efficiency=shares, cold=cold),))
    build = Builder()
    image, full = build.input((1, 8, 10, 10), "float32"), build.parameter((8, 8, 3, 3), "float32")
    (y,) = build.node("aten.conv2d", [image, full], [((1, 8, 10, 10), "float32")], fusion=CONTRACTION, flops=2 * 800 * 72)
    (z,) = build.node("aten.relu", [y], [((1, 8, 10, 10), "float32")], fusion=ELEMENTWISE)
    (u,) = build.node("aten.relu", [z], [((1, 8, 10, 10), "float32")], fusion=ELEMENTWISE)
    build.output(u)
    graph = build.build()
    conv, first, second = seconds(graph, system)[:, 0]
    moved = 4 * (800 + 576 + 800)
    assert math.isclose(conv, 2 * 800 * 72 / 1e9 + 4 * 576 / 1e6 + system.devices[0].chill(2 * 6400.0), rel_tol=1e-6)
    assert math.isclose(first, 1e-3 + system.devices[0].chill(moved)) and math.isclose(second, 1e-3, rel_tol=1e-6)     # its kind has just run
    fused = fused_seconds(graph, [0, 0, 0], system)
    assert fused[0, 0] < conv                                           # compiled code keeps its weights as it needs them


def test_linear_layers_of_transposed_views() -> None:
    shares = {"matmul": Efficiency(peak=((1.0, 0.5),)), "strided": Efficiency(peak=((1.0, 0.25),))}
    system = Machine("one", (Device("d", "cpu", {"float32": 1e9}, 1e15, 0.0, 1e9, efficiency=shares),))
    build = Builder()
    w = build.parameter((16, 16), "float32")
    for shape in ((2, 8, 16), (1, 8, 16)):
        x, turned = build.input(shape, "float32"), (shape[1], shape[0], 16)
        (t,) = build.node("aten.transpose", [x], [(turned, "float32")], fusion=VIEW, alias=[x])
        build.output(build.node("aten.linear", [t, w], [(turned, "float32")], fusion=CONTRACTION, flops=2.0 * shape[0] * 8 * 256)[0])
    table = seconds(build.build(), system)[:, 0]
    np.testing.assert_allclose(table[[1, 3]], [2.0 * 16 * 256 / 1e9 / 0.25, 2.0 * 8 * 256 / 1e9 / 0.5], rtol=1e-4)


def test_types_that_a_device_lacks() -> None:
    build = Builder()
    a, b = build.input((64, 64), "float64"), build.input((64, 64), "float64")
    build.node("aten.mm", [a, b], [((64, 64), "float64")], fusion=CONTRACTION, flops=2 * 64**3)
    build.node("aten.add", [a, b], [((64, 64), "float64")], fusion=ELEMENTWISE, steps=64**2)
    table = seconds(build.build(), Machine("one", (FAST,)))
    assert table[0, 0] == math.inf and table[1, 0] < 1e-4


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, list[int]]:
    build = Builder()
    pool = [build.input((draw(st.integers(1, 9)),), "float32"), build.parameter((draw(st.integers(1, 9)),), "float32")]
    count = draw(st.integers(1, 8))
    for _ in range(count):
        reads = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True))
        if draw(st.booleans()):
            pool += build.node("aten.add", reads, [((draw(st.integers(1, 9)),), "float32")], fusion=ELEMENTWISE)
        else:
            pool += build.node("aten.view", reads[:1], [((build.size_of(reads[0]) // 4,), "float32")], fusion=VIEW, alias=reads[:1])
    build.output(pool[-1])
    return build.build(), draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_traffic_equals_a_brute_force_count(drawn: tuple[Graph, list[int]]) -> None:
    graph, group = drawn
    task, count = number(group, len(graph))
    read, written = _traffic(graph, task, count)
    for t in range(count):
        storage: dict[int, dict[int, int]] = {}
        for n in np.flatnonzero(task == t).tolist():
            for v in graph.inputs_of(n).tolist() if graph.fusion[n] != VIEW else []:
                root = int(graph.alias[v])
                if graph.producer[root] < 0 or task[graph.producer[root]] != t:
                    storage.setdefault(root, {})[v] = min(int(graph.size[v]), int(graph.size[root]))
        assert read[t] == sum(min(sum(sizes.values()), int(graph.size[root])) for root, sizes in storage.items())
        needed = set()
        for n in np.flatnonzero(task == t).tolist():
            for v in graph.outputs_of(n).tolist():
                root = int(graph.alias[v])
                leaves = v in graph.outputs.tolist() or any(task[r] != t for r in graph.readers_of(v).tolist())
                if leaves and graph.producer[root] >= 0 and task[graph.producer[root]] == t:
                    needed.add(root)
        assert written[t] == sum(int(graph.size[root]) for root in needed)


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_groups_of_one_cost_what_nodes_cost(drawn: tuple[Graph, list[int]]) -> None:
    graph, group = drawn
    np.testing.assert_array_equal(fused_seconds(graph, np.arange(len(graph)), PAIR), seconds(graph, PAIR))
    fused = fused_seconds(graph, group, PAIR)
    task, count = number(group, len(graph))
    views = graph.fusion == VIEW
    for t in range(count):                                              # a group launches once, and moves no more than its members
        mine = seconds(graph, PAIR)[task == t]
        assert (fused[t] <= mine.sum(axis=0) + 1e-12).all()
        assert not views[task == t].all() or fused[t].max() <= mine.max() + 1e-12


def test_a_graph_goes_through_the_simulator() -> None:
    graph = network()
    tasks = tasks_of(graph, [-1] * 6, Machine("one", (FAST,)))
    line = simulate(tasks, [0] * 6, [-t for t in range(6)], Machine("one", (FAST,)))
    assert math.isclose(line.makespan, seconds(graph, Machine("one", (FAST,))).sum())
    assert tasks.names[1] == "aten.mm"
    with pytest.raises(InputError, match="6 nodes and 2"):
        fused_seconds(graph, [0, 1], PAIR)


def chain(pairs: int) -> Graph:
    """A product and an activation, `pairs` times over, one after the other."""
    build = Builder("long")
    last: Any = build.input((128, 128), "float32")
    weight = build.parameter((128, 128), "float32")
    for n in range(pairs):
        (last,) = build.node("aten.mm", [last, weight], [((128, 128), "float32")], fusion=CONTRACTION, flops=2 * 128**3)
        (last,) = build.node(("aten.relu", "aten.gelu")[n % 2], [last], [((128, 128), "float32")], fusion=ELEMENTWISE, steps=128 * 128)
    build.output(last)
    return build.build()


def test_forty_thousand_nodes_are_priced_as_four_are() -> None:
    long, short = chain(20_000), chain(4)
    assert len(long) == 40_000
    table, small = (fused_seconds(graph, np.arange(len(graph)) // 2, PAIR) for graph in (long, short))
    assert table.shape == (20_000, 2) and np.isfinite(table[:, 0]).all() and (table > 0).all()
    for n in range(1, 20_000 - 1):                                      # the ends read the input and write the output
        assert table[n].tolist() == small[1 + (n + 1) % 2].tolist()
    assert table[0].tolist() == small[0].tolist() and table[-1].tolist() == small[-1].tolist()


@pytest.mark.bench
def test_forty_thousand_nodes_are_priced_in_seconds() -> None:
    import time

    graph = chain(20_000)
    fused_seconds(chain(4), np.arange(8) // 2, PAIR)                    # compiled
    began = time.process_time()
    fused_seconds(graph, np.arange(len(graph)) // 2, PAIR)
    assert time.process_time() - began < 10
