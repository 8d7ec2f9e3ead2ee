"""Graph: what Builder makes is sound, what is broken is named, what is saved comes back, and every figure equals a slow recount."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.errors import InputError
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, PARAMETER, VIEW, Builder, Graph, bytes_of, topological


def small() -> Graph:
    """x → t(w) view → mm → relu → out."""
    b = Builder("small")
    x, w = b.input((2, 3), "float32", "x"), b.parameter((4, 3), "float32", "w")
    (t,) = b.node("aten.t", [w], [((3, 4), "float32")], fusion=VIEW, alias=[w])
    (y,) = b.node("aten.mm", [x, t], [((2, 4), "float32")], flops=48, fusion=CONTRACTION, module="layer.0")
    (z,) = b.node("aten.relu", [y], [((2, 4), "float32")], fusion=ELEMENTWISE, steps=8, layer=0)
    b.output(z)
    return b.build()


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    b = Builder("random")
    values = [b.input((draw(st.integers(1, 9)),), "float32") for _ in range(draw(st.integers(1, 3)))]
    values += [b.parameter((draw(st.integers(1, 9)), 2), "bfloat16") for _ in range(draw(st.integers(0, 3)))]
    for i in range(draw(st.integers(0, 12))):
        reads = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4))
        fusion = draw(st.integers(0, 5))
        shapes = [((draw(st.integers(0, 9)), 3), "int64") for _ in range(draw(st.integers(1, 3)))]
        alias = [reads[0]] * len(shapes) if fusion == VIEW else []
        values += b.node(f"op{i % 4}", reads, shapes, flops=i, fusion=fusion, alias=alias, phase=i % 3, module=f"block.{i // 4}.part")
    for v in draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)):
        b.output(v)
    return b.build()


def test_arrays_say_what_was_built():
    g = small()
    assert (len(g), g.kinds, g.names) == (3, ("aten.t", "aten.mm", "aten.relu"), g.kinds)
    assert g.shape_of(1) == (4, 3) and g.size.tolist() == [24, 48, 48, 32, 32]
    assert g.alias.tolist() == [0, 1, 1, 3, 4] and g.producer.tolist() == [-1, -1, 0, 1, 2]
    assert g.reads.tolist() == [0, 24 + 48, 32] and g.writes.tolist() == [0, 32, 32] and g.params.tolist() == [0, 48, 0]
    assert [a.tolist() for a in g.edges()] == [[0, 1], [1, 2], [2, 3]]
    assert g.readers_of(2).tolist() == [1] and g.outputs.tolist() == [4]
    assert g.role[1] == PARAMETER and g.modules[1] == "layer.0"
    for name in ("flops", "in_val", "size"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(g, name)[0] = 1
    assert [f.name for f in dataclasses.fields(g)][:3] == ["name", "kinds", "kind"]


@given(graphs())
def test_what_is_built_is_sound_and_comes_back(graph: Graph):
    assert graph.validate() == []
    path = Path(__import__("tempfile").mkdtemp()) / "g.npz"
    graph.save(path)
    again = Graph.load(path)
    assert again == graph and again.name == graph.name and again.hash == graph.hash and again.statistics() == graph.statistics()


@given(graphs())
def test_edges_uses_and_live_bytes_equal_a_slow_recount(graph: Graph):
    n = len(graph)
    edges = [(int(graph.producer[v]), d, int(v)) for d in range(n) for v in graph.inputs_of(d) if graph.producer[v] >= 0]
    assert list(zip(*(a.tolist() for a in graph.edges()), strict=True)) == edges
    for v in range(len(graph.producer)):
        assert graph.readers_of(v).tolist() == [d for d in range(n) if v in graph.inputs_of(d)]
    live = []
    for now in range(n):
        total = 0
        for root in range(len(graph.producer)):
            family = [v for v in range(len(graph.producer)) if graph.alias[v] == root]
            if graph.alias[root] != root or graph.producer[root] < 0:
                continue
            last = max([graph.producer[v] for v in family] + [d for v in family for d in graph.readers_of(v)])
            last = n - 1 if any(v in graph.outputs for v in family) else last
            total += int(graph.size[root]) if graph.producer[root] <= now <= last else 0
        live.append(total)
    assert graph.live().tolist() == live


def broken(graph: Graph, **changes: object) -> list[str]:
    return dataclasses.replace(graph, **changes).validate()  # type: ignore[arg-type]


def changed(array: np.ndarray, index: int, value: float) -> np.ndarray:
    copy = array.copy()
    copy[index] = value
    return copy


def test_every_broken_rule_has_its_sentence():
    g = small()
    for changes, word in (
        ({"flops": g.flops[:-1]}, "flops has 2 entries for 3 nodes"),
        ({"size": g.size[1:]}, "size has 4 entries for 5 values"),
        ({"names": g.names[:-1]}, "names has 2 entries"),
        ({"in_ptr": changed(g.in_ptr, 1, 4)}, "in_ptr is no row pointer"),
        ({"kind": changed(g.kind, 0, 9)}, "kind[0] is 9, but there are 3 kinds"),
        ({"fusion": changed(g.fusion, 1, 6)}, "fusion[1] is 6"),
        ({"phase": changed(g.phase, 1, 3)}, "phase[1] is 3"),
        ({"in_val": changed(g.in_val, 0, 99)}, "in_val[0] is 99"),
        ({"size": changed(g.size, 0, -4)}, "size[0] is negative"),
        ({"flops": changed(g.flops, 0, float("nan"))}, "flops[0] is nan"),
        ({"steps": changed(g.steps, 0, -1)}, "steps[0] is -1"),
        ({"params": changed(g.params, 1, 10**6)}, "reads 1000000 bytes of parameters"),
        ({"names": ("a", "a", "b")}, "two nodes are called 'a'"),
        ({"unknown": ("odd",)}, "unknown lists 'odd'"),
        ({"in_val": changed(g.in_val, 0, 4)}, "reads value 4, made by node 2 at or after it"),
        ({"producer": changed(g.producer, 2, -1)}, "whose producer is -1"),
        ({"use_node": changed(g.use_node, 0, 2)}, "do not list the readers"),
        ({"role": changed(g.role, 4, 1)}, "value 4 is input but its producer is 2"),
        ({"alias": changed(g.alias, 0, 2)}, "itself an alias"),
        ({"alias": changed(g.alias, 0, 4)}, "made later"),
        ({"size": changed(g.size, 3, 31)}, "value 3 has 31 bytes"),
        ({"in_val": np.array([1, 0, 0, 3]), "use_ptr": g.use_ptr}, "same value twice"),
    ):
        assert any(word in sentence for sentence in broken(g, **changes)), (word, broken(g, **changes))


def test_a_value_must_exist_before_it_is_read():
    b = Builder("x")
    with pytest.raises(InputError, match="reads value 7, which does not exist yet"):
        b.node("aten.relu", [7], [((1,), "float32")])


def test_bytes_follow_views_gathers_and_small_types():
    assert bytes_of((3,), "int4") == 2 and bytes_of((3, 5), "bool") == 15 and bytes_of((), "float64") == 8 and bytes_of((4,), "string") == 0
    b = Builder("expanded")
    mask = b.input((1, 8), "float32")
    (wide,) = b.node("aten.expand", [mask], [((100, 8), "float32")], fusion=VIEW, alias=[mask])
    (y,) = b.node("aten.add", [wide, wide], [((100, 8), "float32")], fusion=ELEMENTWISE)
    table = b.parameter((1000, 8), "float32")
    b.node("aten.embedding", [table], [((2, 8), "float32")], fusion=GATHER, reads=64, params=64)
    b.output(y)
    g = b.build()
    assert g.reads.tolist() == [0, 32, 64] and g.params.tolist() == [0, 0, 64]             # a broadcast is read once


def test_names_are_made_unique():
    b = Builder("names")
    x = b.input((1,), "float32")
    for _ in range(3):
        (x,) = b.node("aten.relu", [x], [((1,), "float32")], name="relu")
    b.node("aten.relu", [x], [((1,), "float32")], name="relu_1")
    assert b.build().names == ("relu", "relu_1", "relu_2", "relu_1_1")


def test_the_hash_is_of_content_and_the_same_in_another_process():
    g = small()
    assert g.hash == small().hash == dataclasses.replace(g, name="other").hash
    assert g.hash != dataclasses.replace(g, flops=changed(g.flops, 0, 1)).hash
    assert g.hash != dataclasses.replace(g, modules=("a", "", "")).hash
    code = "import sys; sys.path.insert(0, 'tests'); from test_graph import small; print(small().hash)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    assert out.stdout.strip() == g.hash


def test_files_that_cannot_be_graphs_are_refused_in_words(tmp_path: Path):
    good = tmp_path / "g.npz"
    small().save(good)
    whole = good.read_bytes()
    for name, content, word in (
        ("empty", b"", "damaged or no fourfold graph"),
        ("text", b"hello", "damaged or no fourfold graph"),
        ("half", whole[: len(whole) // 2], "damaged or no fourfold graph"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=word):
            Graph.load(tmp_path / name)
    with pytest.raises(InputError, match="There is no file"):
        Graph.load(tmp_path / "none.npz")
    with pytest.raises(InputError, match="cannot be written"):
        small().save(tmp_path / "no" / "such" / "g.npz")


def test_altered_and_newer_files_are_refused(tmp_path: Path):
    path = tmp_path / "g.npz"
    small().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    head = json.loads(arrays["json"].tobytes())
    for change, word in (({"schema": 99}, "schema 99"), ({"format": "x"}, "no fourfold graph"), ({"hash": "0"}, "hash differs")):
        arrays["json"] = np.frombuffer(json.dumps(head | change).encode(), dtype=np.uint8)
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=word):
            Graph.load(path)
    arrays["json"] = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
    np.savez(path, **{k: v for k, v in arrays.items() if k != "flops"})
    with pytest.raises(InputError, match="lacks flops"):
        Graph.load(path)


def test_topological_order_and_cycles():
    assert topological(4, [3, 2], [0, 1]).tolist() == [2, 1, 3, 0]
    assert topological(0, [], []).tolist() == []
    with pytest.raises(InputError, match="cycle: (a → b → a|b → a → b)"):
        topological(3, [0, 1, 1], [1, 0, 2], ["a", "b", "c"])


@given(st.integers(1, 30), st.data())
def test_topological_order_points_every_edge_forward(n: int, data: st.DataObject):
    order = data.draw(st.permutations(range(n)))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    edges = [(order[min(p)], order[max(p)]) for p in pairs if p[0] != p[1]]
    found = topological(n, [s for s, _ in edges], [d for _, d in edges]).tolist()
    place = {node: i for i, node in enumerate(found)}
    assert sorted(found) == list(range(n)) and all(place[s] < place[d] for s, d in edges)


def test_eighty_thousand_nodes_are_built_and_loaded_in_seconds(tmp_path: Path):
    rng = np.random.default_rng(0)
    back, weights = rng.integers(1, 30, (80_000, 2)), rng.random(80_000) < 0.3
    start = time.process_time()
    b = Builder("large")
    values = [b.input((64, 64), "float32")]
    for i in range(80_000):
        reads = [values[max(0, len(values) - int(k))] for k in back[i]]
        reads += [b.parameter((64, 64), "float32", f"w{i}")] if weights[i] else []
        values += b.node(f"op{i % 50}", reads, [((64, 64), "float32")], name="node", module=f"layer.{i // 100}", flops=1e6, fusion=i % 6)
    b.output(values[-1])
    graph = b.build()
    graph.save(tmp_path / "g.npz")
    built, start = time.process_time() - start, time.process_time()
    again = Graph.load(tmp_path / "g.npz")
    assert len(again) == 80_000 and again == graph
    assert again.statistics()["depth"] > 5_000
    assert built < 30 and time.process_time() - start < 15             # about 5 and 2 s on a quiet core
