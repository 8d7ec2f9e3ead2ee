"""plan.html: the page's parts say what the plan says; boxes hold every op once; nothing a name holds can break it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import planned
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.decisions.schedule.heft import Heft
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.report import graph, timeline
from fourfold.report.graph_layout import GROUP, MOST, OP, SHOWN, boxes, layers


class Reader(HTMLParser):
    """Texts, and tags that are still open."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "br", "input", "rect", "path", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids)
    return reader


def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', text)
    assert found
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


@pytest.mark.parametrize("family, nodes, train, system", [("encoder_decoder", 300, False, "p100x4"), ("rnnlm", 600, True, "p100x8"),
                                                          ("moe", 200, False, "cpux2"), ("cnn", 60, True, "v100x4")])
def test_the_page_is_whole_and_loads_nothing(family: str, nodes: int, train: bool, system: str) -> None:
    plan = planned.solved(planned.problem(family, nodes, train=train, system=system), Heft(), sentences=("gpu0 was chosen.",))
    text = graph.page(plan)
    read(text)
    assert "gpu0 was chosen." in text and plan.graph.name in text and "://" not in text.replace("http://www.w3.org/2000/svg", "")
    content = data(text)
    leaves = content["kind"].count("o")
    assert leaves == len(plan.graph) and content["ops"][0] == len(plan.graph)
    assert sum(len(strip["start"]) for strip in content["strips"] if strip["kind"] == "predicted") == len(plan.tasks)
    assert content["ns"][0] == pytest.approx(plan.timeline().busy.sum() * 1e9, rel=1e-3) or system == "cpux2"   # there senders' copying is busy too
    assert text == graph.page(plan), "the same page each time"


def test_names_cannot_break_the_page() -> None:
    nasty = "<script>alert(1)</script>\"'&--></style>\ud800"
    asked = planned.problem("cnn", 60)
    plan = planned.of(Schedule(planned.renamed(asked.graph, nasty), asked.system), asked.baseline(), sentences=(nasty,), notes=(nasty,),
                      table=({"solver": nasty, "title": nasty, "cost": None, "seconds": 1.0, "evaluations": None, "gap": None, "note": nasty},))
    text = graph.page(plan)
    read(text)
    assert text.count("<script") == 2 and "alert(1)</script>" not in text and "&lt;script&gt;alert(1)" in text
    assert any(name.startswith("<script>alert(1)") for name in data(text)["title"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_op_stands_in_one_box_and_every_group_in_the_innermost_that_holds_it(seed: int) -> None:
    asked = Schedule.sample(seed)
    dice = np.random.default_rng(seed)
    count = len(asked.graph)
    group = np.arange(count) - np.arange(count) % 2 if seed % 2 else np.arange(count)
    place = dice.integers(len(asked.system), size=count)[group]
    plan = planned.of(asked, Answer(group, place, -np.arange(float(count))), cost=1.0)
    root = boxes(plan)
    items = list(root.walk())
    assert sorted(n for item in items if item.kind == OP for n in item.nodes) == list(range(count))
    assert sorted(sorted(item.nodes) for item in items if item.kind == GROUP) == sorted(
        np.flatnonzero(group == g).tolist() for g in np.unique(group) if (group == g).sum() > 1)
    assert [item.number for item in items] == list(range(len(items)))
    for item in items:
        assert sorted(spot for row in item.rows for spot in row) == list(range(len(item.items)))
        assert item.ops == sum(inner.ops for inner in item.items) or not item.items


@given(count=st.integers(1, 12), pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30))
def test_layers_stand_below_what_they_read(count: int, pairs: list[tuple[int, int]]) -> None:
    edges = [(a % count, b % count) for a, b in pairs]
    rows = layers(count, edges)
    assert sorted(one for row in rows for one in row) == list(range(count)) and all(rows)
    rank = {one: r for r, row in enumerate(rows) for one in row}
    assert all(rank[a] < rank[b] for a, b in edges if a < b)


def test_layers_put_neighbours_near() -> None:
    assert layers(4, [(0, 3), (1, 2)]) in ([[0, 1], [3, 2]], [[1, 0], [2, 3]])
    assert layers(3, [(0, 2), (1, 2), (2, 0)]) == [[0, 1], [2]], "an edge back closes a cycle and moves nothing"
    assert layers(4, [(0, 1), (1, 2), (3, 2)])[1] in ([1], [1, 3], [3, 1])


def test_bytes_between_boxes_count_each_value_once() -> None:
    plan = planned.solved(planned.problem("encoder_decoder", 300), Heft())
    root = boxes(plan)
    g = plan.graph
    encoder, decoder = (next(item for item in root.items if item.name == name) for name in ("encoder", "decoder"))
    inside = [{n for item in part.walk() for n in item.nodes} for part in (encoder, decoder)]
    wanted = sum(int(g.size[v]) for n in inside[0] for v in g.outputs_of(n).tolist() if inside[1] & set(g.readers_of(v).tolist()))
    (edge,) = [edge for edge in root.edges if edge[:2] == (encoder.spot, decoder.spot)]
    assert edge[2] == wanted > 0 and 0 <= edge[3] <= wanted


def test_the_first_view_is_small_and_no_box_is_crowded() -> None:
    for family, nodes in (("rnnlm", 3000), ("cnn", 120), ("encoder_decoder", 3000)):
        asked = planned.problem(family, nodes)
        root = boxes(planned.of(asked, asked.baseline()))
        assert root.open and sum(len(item.items) for item in root.walk() if item.open) <= SHOWN
        assert max(len(item.items) for item in root.walk() if item.kind == "module") <= MOST


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.tuples(st.floats(0, 0.02), st.floats(0, 0.02)), min_size=1, max_size=200))
def test_strips_draw_all_the_time_that_is_spent(lengths: list[tuple[float, float]]) -> None:
    gap, took = np.array(lengths).T
    start = np.cumsum(gap) + np.concatenate([[0.0], np.cumsum(took)[:-1]])
    whole = float(start[-1] + took[-1]) or 1.0
    shapes = timeline.drawn(timeline.Strip("d", "predicted", 0, start, start + took, np.arange(len(start))), whole)
    large = sum(float(width) for width in re.findall(r'width="([\d.]+)" height="\d+" class="t', shapes))
    spent = took / whole * timeline.WIDE
    assert large == pytest.approx(spent[spent >= 1.5].sum(), abs=0.02 * len(took) + 1.5)
    assert shapes.count("<rect") <= 1700 and ("rect" in shapes or not (spent > 1e-3).any())


def test_a_thinned_curve_keeps_its_peak() -> None:
    dice = np.random.default_rng(0)
    at, held = np.sort(dice.random(50_000)), dice.integers(0, 10**9, 50_000)
    near, less = timeline.thinned(at, held, 300)
    assert len(near) <= 600 and less.max() == held.max() and (np.diff(near) >= 0).all() and less[-1] == held[-1]


def test_headlines() -> None:
    asked = planned.problem("cnn", 60)
    plan = planned.of(asked, asked.baseline(), cost=0.01, before=0.02, bound=0.009, gap=0.111)
    assert "".join(graph.headline(plan)) == "A step in 10 ms instead of 20 ms: 50 % less."
    assert "".join(graph.headline(plan.replace(before=0.01))) == "A step in 10 ms, as by default."
    assert "cannot run" in graph.headline(plan.replace(before=None, why="impossible, because it is too large"))[0]
    assert graph.proof(plan) == "No valid plan is below 9 ms; this one is at most 11.1 % above it."
    assert graph.proof(plan.replace(gap=0.0, bound=0.01)) == "Proven optimal: no valid plan is below 10 ms."
    assert "not proven" in graph.proof(plan.replace(bound=None, gap=None))
    others = (("energy", "J", 0.5, "A step for 0.5 J"), ("memory", "B", 1.5e9, "1.5 GB on the fullest"), ("throughput", "s", 2.0, "A step every 2 s"))
    for objective, unit, cost, said in others:
        changed = plan.replace(objective=objective, unit=unit, cost=cost, before=None)
        assert "".join(graph.headline(changed)).startswith(said)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_was_measured_is_on_the_page(compiled: bool) -> None:
    plan = planned.solved(planned.problem("encoder_decoder", 120, system="cpux2"), Heft())
    execution = planned.executed(plan, compiled)
    text = graph.page(plan, execution)
    read(text)
    rows = data(text)["strips"]
    assert [row["kind"] for row in rows[:4]] == ["predicted", "measured"] * 2 and "<dt>measured</dt>" in text
    assert sum(len(row["start"]) for row in rows if row["kind"] == "measured") == len(plan.tasks)
    assert data(text)["whole"] == pytest.approx(2e9 * plan.timeline().makespan, rel=1e-6)
    assert [name in text for name in ("Memory of cpu0", "Memory of measured")] == [True, False]


def test_written_beside_a_plan(tmp_path: Path) -> None:
    plan = planned.solved(planned.problem("cnn", 60))
    plan.save(tmp_path)
    assert sorted(path.name for path in graph.write(plan, tmp_path)) == ["plan.html", "trace.json"]
    assert type(plan).load(tmp_path).hash == plan.hash
