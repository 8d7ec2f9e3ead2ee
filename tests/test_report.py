"""The readers of a report: schema, sentences, terminal, files, picture, page. The report they read is invented (tests/invented.py)."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from invented import plan, report
from rich.console import Console

from fourfold.cli import main
from fourfold.errors import ArtefactError, InputError
from fourfold.jobs.optimize.front import Choice, Front
from fourfold.report import advice, format, html, markdown, place, plot, summary, terminal, write
from fourfold.report import json as files
from fourfold.report.schema import validate


def shown(document: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    terminal.show(document, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


# ---- schema ----


@pytest.mark.parametrize("feasible", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_sound_report_is_sound_and_survives_json(feasible: bool, seed: int) -> None:
    document = report(feasible, seed)
    assert validate(document) == []
    assert validate(json.loads(json.dumps(document))) == []


def broken(path: str, value: Any) -> Any:
    document = report()
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = document
    for part in parents:
        place = place[part]
    place[last] = value
    return document


@pytest.mark.parametrize(
    "path, value, said",
    [
        ("floor", "97%", "report.floor is text; a number"),
        ("floor", math.nan, "finite"),
        ("seed", True, "whole number"),
        ("candidates.2.parameters", 1.5, "report.candidates[2].parameters"),
        ("candidates.2.status", "great", "expected one of"),
        ("candidates.2.cascade.shares", [1.0], "members and shares"),
        ("objective", "beauty", "energy, latency, memory"),
        ("best", 99, "there are 40 candidates"),
        ("best", None, "floor_met"),
        ("factors.1.before", 0.9, "report.factors[1].before"),
        ("factors.1.after", 0.0, "positive"),
        ("total", 3.0, "multiply to"),
        ("baseline", None, "report.baseline is null"),
        ("surprise", 1, "not part of the schema"),
        ("schema", "fourfold.report/99", "this version reads"),
    ],
)
def test_a_fault_is_named_in_words(path: str, value: Any, said: str) -> None:
    faults = validate(broken(path, value))
    assert any(said in fault for fault in faults), faults


@pytest.mark.parametrize("value", [None, [], 3, "x", {}, {"candidates": {}}])
def test_validate_never_raises(value: Any) -> None:
    assert validate(value)


def test_a_missing_optional_key_is_fine_and_a_missing_needed_one_is_not() -> None:
    document = report()
    for candidate in document["candidates"]:
        del candidate["vocabulary"], candidate["bytes"]
    assert validate(document) == []
    del document["cost"]
    assert validate(document) == ["report.cost is missing"]


# ---- words ----


def test_numbers_read_well() -> None:
    assert [format.percent(v) for v in (0.981, 0.97, 1.0, 0.0043, 12.0, None)] == ["98.1 %", "97 %", "100 %", "0.43 %", "1,200 %", "–"]
    assert format.interval({"value": 0.981, "low": 0.972, "high": 0.99}) == "98.1 % [97.2, 99.0]"
    assert format.interval({"value": 0.5, "low": None, "high": None}) == "50.0 %"
    assert [format.count(v) for v in (22_713_216, 512, 186_000, 1.2e9, None)] == ["22.7 M", "512", "186 k", "1.2 G", "–"]
    assert [format.span(v) for v in (0.0123, 42, 190, 3600, 7300)] == ["12.3 ms", "42 s", "3 min 10 s", "1 h 0 min", "2 h 1 min"]
    assert format.energy(None) == "not measured"
    assert format.energy({"value": 41.2, "grade": "modelled"}) == "41.2 J (modelled)"


# ---- sentences and terminal ----


def test_the_decision_comes_first() -> None:
    text = shown(report())
    assert text.index("6.2 %") < text.index("Quality is 98.1 % [97.2, 99.0]") < text.index("bag of words")
    assert "floor is 97 %" in text and "modelled" in text and "186 k inferences" in text and "cheap/" in text


def test_a_missed_floor_says_why_and_shows_the_nearest() -> None:
    text = shown(report(False))
    assert "Nothing cheaper clears the floor of 100 %" in text
    assert "as soon as block 4" in " ".join(text.split()) and "1.2 points short" in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line.rstrip()) for line in shown(report(), width).splitlines()) <= width


def test_names_with_markup_are_shown_as_they_are() -> None:
    document = report()
    document["model"]["name"] = document["candidates"][3]["name"] = "[red]x[/red]"
    assert "[red]x[/red]" in shown(document, 160)


def test_the_story_tells_what_went_where() -> None:
    text = "\n".join(summary.story(report()))
    assert (
        "blocks stay" in text
        and "of 72 heads" in text
        and "9,214 of 30,522" in text
        and "layer_removal" in text
        and "torchao int8 eager (slower than fp32)" in text
    )
    assert "Nothing cheaper" in "\n".join(summary.story(report(False)))


def test_a_race_is_told_with_before_after_and_who_could_not_run() -> None:
    run = {"engine": "torch", "precision": "fp32", "threads": 1, "batch": 8, "bucketing": True}
    row = {
        **run,
        "bucket": True,
        "who": "challenger",
        "stage": "final",
        "chosen": True,
        "verdict": "cheaper",
        "cpu": {"value": 0.5, "low": 0.45, "high": 0.55},
        "wall": None,
    }
    kept = {
        "table": [row, {**row, "stage": "tuning", "batch": 77}],
        "rejected": [{"engine": "openvino", "precision": "int8", "reason": "[not] installed"}],
    }
    parts = [{"part": "[b]", "before": run, "after": {**run, "engine": "openvino"}, "race": kept}]
    console = Console(file=io.StringIO(), width=120, highlight=False)
    terminal.show_race({"folder": "cheap", "machine": "an invented one", "parts": parts, "stored": True}, console)
    terminal.show_race({"folder": "cheap", "machine": "an invented one", "parts": [], "stored": False}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[b]: torch fp32" in text and "→ openvino" in text and "0.50 [0.45, 0.55]" in text and "[not] installed" in text and "77" not in text
    assert "Nothing to race" in text and "Saved in cheap" in text and "Nothing was written" in text and "challenger" in text


# ---- what a reader asks next ----


def agreeing(share: float) -> Any:
    document = report()
    document["candidates"][document["best"]]["agreement"] = {"value": share, "low": share - 0.01, "high": min(1.0, share + 0.01), "n": 2_145}
    return document


def test_the_same_work_is_said_only_where_the_answers_are_the_same() -> None:
    assert summary.headline(agreeing(0.995)) == "The same work for 6.2 % of the energy."
    assert summary.headline(agreeing(0.88)) == "98.1 % of the accuracy for 6.2 % of the energy; answers agree with the original's on 88.0 %."
    assert summary.headline(report()) == "98.1 % of the accuracy for 6.2 % of the energy."
    values = agreeing(0.88)
    values["data"]["task"] = "regression"
    assert "rank correlation with the original's answers 0.880" in summary.headline(values)


def test_agreement_stands_beside_quality_in_every_reader_and_old_reports_are_read() -> None:
    document = agreeing(0.88)
    assert validate(document) == []
    for text in (shown(document, 140), html.page(document), markdown.card(document), summary.decision(document)):
        assert "88.0" in text and "87.0" in text
    assert "agrees, %" in shown(document, 140) and "agrees, %" not in shown(report(), 140)
    assert "<em>6.2 %</em>" in html.page(document)


def test_every_candidate_that_is_not_the_answer_has_a_reason() -> None:
    for document in (report(), report(False)):
        for index, row in enumerate(document["candidates"]):
            row["reason"] = ""
            assert bool(advice.why(document, index)) == (index != document["best"])
        cheap = advice.cheaper(document)
        best = document["candidates"][document["best"]]["relative_energy"]["value"] if document["best"] is not None else 1.0
        assert cheap and all(document["candidates"][i]["relative_energy"]["value"] < best for i in cheap)
    assert "points below the floor" in shown(report()) and "Cheaper, and not chosen" in html.page(report())


def test_a_near_miss_names_the_floor_that_gives_it() -> None:
    document = report()
    assert advice.near_miss(document) == "" and advice.near_miss(report(False)) == ""   # the plain interval proves nothing
    document["candidates"][4] |= {"test_quality": {"value": 0.983, "low": 0.96998, "high": 0.99, "n": 900}, "passes_at": 0.965}
    document["candidates"][5]["passes_at"], document["candidates"][0]["passes_at"] = 0.93, 0.99
    assert advice.near_miss(document) == "c004 at 3.4 % of the cost would have passed at a floor of 96.5 %: `--floor 96.5%`."
    assert validate(document) == []
    assert all("--floor 96.5%" in " ".join(text.split()) for text in (shown(document), html.page(document), markdown.card(document)))
    document["candidates"][4]["reason"] = ""
    assert "just below the floor" in advice.why(document, 4) and "0.0 points" not in shown(document)
    document["candidates"][4]["passes_at"] = None
    assert advice.near_miss(document) == ""


@pytest.mark.parametrize(
    "metric, greater, share, own", [("accuracy", True, 0.9, 0.7677), ("perplexity", False, 0.5, 1.706), ("wer", False, 0.9, 0.8677)]
)
def test_the_winners_own_score_is_told(metric: str, greater: bool, share: float, own: float) -> None:
    document = report()
    document["data"] |= {"metric": metric, "greater_is_better": greater}
    best = document["candidates"][document["best"]]
    best["test_quality"] = {"value": share, "low": share - 0.05, "high": share + 0.05, "n": 99}
    found = advice.absolute_quality(document, best)
    assert found and found["value"] == pytest.approx(own) and found["low"] < found["value"] < found["high"]
    assert f"{metric} {own:.3f}" in advice.winner(document) and "340 ms CPU time" in advice.winner(document)


def test_what_next_fits_the_data_and_the_shell() -> None:
    document = report()
    document["folder"] = "my models/cheap"
    told = dict(advice.steps(document))
    assert told["use"] == "fourfold predict 'my models/cheap' --text \"…\"" and "fourfold verify 'my models/cheap'" in told["check on new data"]
    assert advice.steps(document) == advice.steps({**document, "trust": []})
    document["trust"] = ["their.code"]
    for kind, how in (("images", "pictures/"), ("sounds", "sounds/"), ("arrays", "new.npz"), ("pairs", "new.csv"), ("rows", "FILE")):
        document["data"]["inputs"] = kind
        told = dict(advice.steps(document))
        assert told["use"] == f"fourfold predict 'my models/cheap' --data {how} --trust their.code" and validate(document) == []
    assert "trust=['their.code']" in told.pop("in Python") and all(how.endswith(" --trust their.code") for how in told.values())
    document["model"] = {**document["model"], "name": "their.code:make"}
    assert "--original their.code:make" in dict(advice.steps(document))["check on new data"]
    known = set(typer.main.get_command(main.app).commands)  # type: ignore[attr-defined]
    assert {how.split()[1] for _, how in advice.steps(document) if how.startswith("fourfold ")} <= known
    assert advice.steps({**document, "folder": None}) == [] == advice.steps({**report(False), "folder": "cheap"})


@given(st.lists(st.floats(0.2, 60.0), min_size=1, max_size=6))
def test_printed_factors_multiply_to_the_printed_total(factors: list[float]) -> None:
    total = math.prod(factors)
    shown_, whole = format.chain(factors, total)
    assert format.times(math.prod(float(text.rstrip("×").replace(",", "")) for text in shown_)) == whole == format.times(total)


# ---- the front in a console and in a notebook ----


def front_of(document: Any) -> Front:
    """A front over an invented report: its points have names and costs, and nothing that could answer."""
    def choice(row: Any) -> Choice:
        return Choice(SimpleNamespace(name=row["name"], test=None), job, document)  # type: ignore[arg-type]

    costs = {row["name"]: row["relative_energy"]["value"] for row in document["candidates"]}
    job: Any = SimpleNamespace(cost=lambda point: costs[point.name])
    rows = [document["candidates"][index] for index in document["front"]]
    best = None if document["best"] is None else choice(document["candidates"][document["best"]])
    return Front(job, document, best, points=[choice(row) for row in rows])


@pytest.mark.parametrize("feasible", [True, False])
def test_a_front_is_a_sequence_and_one_screen_of_text(feasible: bool) -> None:
    document = report(feasible)
    front = front_of(document)
    assert len(front) == len(document["front"]) == len(list(front)) and bool(front)
    assert front[0].cost == min(choice.cost for choice in front) and front[-1].cost == max(choice.cost for choice in front)
    assert front[front[1].name] is front[1] and front[:2] == [front[0], front[1]]
    text = repr(front)
    assert len(text.splitlines()) <= 24 and all(choice.name in text for choice in front)
    assert ("front.best.predict" in text) == feasible and "object at" not in repr(front[0]) and len(repr(front[0]).splitlines()) <= 8
    with pytest.raises(InputError, match="c9999"):
        front["c9999"]
    with pytest.raises(IndexError):
        front[999]


def test_a_front_of_many_points_is_still_one_screen() -> None:
    document = report()
    document["front"] = list(range(40))
    for row in document["candidates"]:
        row["relative_energy"] = row["relative_energy"] or {"value": 0.5, "low": 0.4, "high": 0.6}
    text = repr(front_of(document))
    assert len(text.splitlines()) <= 24 and "24 more" in text


def test_a_front_in_a_notebook_is_its_picture_and_a_table() -> None:
    document = report()
    document["candidates"][document["best"]]["how"] = "<script>alert(1)</script>"
    found = front_of(document)._repr_html_()
    assert "<svg" in found and found.count("<tr>") == 1 + len(document["front"]) and "<script>" not in found


# ---- progress ----


def test_plain_progress_is_a_line_a_stage_and_tells_the_best() -> None:
    stream = io.StringIO()
    with terminal.Progress("auto", stream, every=1e9) as progress:
        progress.plan({"baseline": 10.0, "search": 100.0})
        progress.stage("baseline", 3)
        progress.advance(3)
        progress.stage("search", 100)
        for _ in range(50):
            progress.advance()
        progress.best("98 % quality at 8 % energy")
        progress.best("98 % quality at 8 % energy")
        progress.note("c003 stopped early")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4 and "left" in lines[0] and "98 % quality" in lines[2]


def test_json_progress_is_json_lines() -> None:
    stream = io.StringIO()
    with terminal.Progress("json", stream, every=0.0) as progress:
        progress.stage("search", 2)
        progress.advance()
        progress.best("x")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["stage", "advance", "best"] and events[1]["done"] == 1


def test_bars_and_silence_and_a_closed_stream_do_no_harm() -> None:
    closed = io.StringIO()
    closed.close()
    for mode, stream in (("bars", io.StringIO()), ("silent", io.StringIO()), ("plain", closed)):
        with terminal.Progress(mode, stream, every=0.0) as progress:  # type: ignore[arg-type]
            progress.stage("[a] stage", 2)
            progress.advance()
            progress.best("[/b] best")
            progress.note("[/c] note")
            progress.stage("next")
            progress.advance()


def test_the_forecast_follows_what_was_measured() -> None:
    estimate = terminal.Estimate()
    assert estimate.left(0.0) is None
    estimate.plan({"a": 10.0, "b": 100.0})
    estimate.stage("a", 10, 0.0)
    assert estimate.left(0.0) == pytest.approx(110.0)
    estimate.step(5, 10.0)
    assert estimate.left(10.0) == pytest.approx(10.0 + 100.0)
    estimate.stage("b", 0, 20.0)  # a took twice its plan, so b is expected to
    assert estimate.left(20.0) == pytest.approx(200.0)
    estimate.stage("unplanned", 0, 220.0)
    assert estimate.left(220.0) is None


def test_the_forecast_of_what_takes_longer_than_foreseen_grows() -> None:
    estimate = terminal.Estimate()
    estimate.plan({"a": 5.0})
    estimate.stage("a", 0, 0.0)
    assert estimate.left(65.0) == pytest.approx(16.25)                  # a minute over its plan is not "a few seconds"
    estimate.stage("b", 10, 70.0)
    estimate.plan({"b": 5.0})
    estimate.step(10, 72.0)
    assert (estimate.left(132.0) or 0) >= 15.0                          # nor is a minute after the last step
    estimate = terminal.Estimate()
    estimate.plan({"b": 5.0})
    estimate.stage("b", 10, 0.0)
    estimate.step(9, 9.0)
    assert (estimate.left(69.0) or 0) >= 15.0                           # nor a last step that takes a minute


def test_no_forecast_says_more_than_the_budget_leaves() -> None:
    estimate = terminal.Estimate()
    estimate.bound(100.0, 0.0)
    assert estimate.left(10.0) == 90.0                                  # before there is a plan
    estimate.plan({"a": 500.0})
    estimate.stage("a", 0, 10.0)
    assert estimate.left(40.0) == 60.0


def test_progress_of_a_library_call_is_shown_where_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert terminal.listener()[0].mode == "silent" and terminal.listener("plain")[0].mode == "plain"
    monkeypatch.setattr("sys.stderr", Terminal())
    assert terminal.listener()[0].mode == "bars" and terminal.listener(False)[0].mode == "silent"
    mine = terminal.Progress("json", io.StringIO())
    assert terminal.listener(mine) == (mine, False)
    with pytest.raises(InputError, match="loud"):
        terminal.listener("loud")


# ---- files ----


def test_report_json_is_written_whole_and_read_back(tmp_path: Path) -> None:
    document = report()
    assert files.read(files.write(document, tmp_path)) == files.read(tmp_path) == document
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_an_unsound_report_is_not_written_and_the_old_one_stays(tmp_path: Path) -> None:
    files.write(report(), tmp_path)
    with pytest.raises(ArtefactError, match=r"report\.seed"):
        files.write({**report(), "seed": "none"}, tmp_path)
    assert files.read(tmp_path)["seed"] == 0


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"a": NaN}'])
def test_a_damaged_report_is_named_in_two_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ArtefactError) as caught:
        files.read(tmp_path)
    assert len(str(caught.value).splitlines()) == 2


def test_no_report_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        files.read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["report.html", "report.json", "front.svg", "card.md"])
def test_the_ending_chooses_the_reader(tmp_path: Path, name: str) -> None:
    path = write(report(), tmp_path / name)
    assert path == tmp_path / name and "c003" in path.read_text()


def test_an_unknown_ending_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.docx"):
        write(report(), tmp_path / "report.docx")


def test_the_card_is_a_table_that_markdown_understands() -> None:
    text = markdown.card(report())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1 and "6.2 %" in text and "fourfold optimize" in text
    assert "Nothing cheaper" in markdown.card(report(False))


# ---- picture and page ----


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("feasible", [True, False])
def test_the_picture_is_a_drawing_within_its_frame(tmp_path: Path, log: bool, feasible: bool) -> None:
    document = report(feasible)
    root = ET.parse(html.picture(document, tmp_path / "front.svg", log=log)).getroot()
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width and 0 <= float(circle.attrib["cy"]) <= height
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert f"floor {format.percent(document['floor'])}" in texts and "original" in texts and "bag of words" in texts
    assert any(text.startswith("chosen") for text in texts) == feasible


def positions(document: Any) -> dict[str, tuple[float, float]]:
    marks = plot.points(document)
    box = plot.frame(document, marks, 920, 480, True)
    return {mark.name: (box.x(mark.x["value"]), box.y(mark.y["value"])) for mark in marks}


def test_cheaper_is_left_and_better_is_up() -> None:
    where = positions(report())
    assert where["bag of words"][0] < where["c006"][0] < where["c003"][0] < where["original"][0]
    assert where["original"][1] < where["c003"][1] < where["c006"][1]


def extremes() -> list[Any]:
    """Reports at the edges of what may come: nothing found, one point, no simple baselines, dearer than the original, huge and tiny numbers."""
    bare = report(False)
    bare.update(candidates=[], front=[], knee=None, simple=[], race=[], timeline=[], citations=[], notes=[])
    bare["infeasible"] = {"reason": "no candidate was finished within the budget", "nearest": []}
    dear = report()
    for candidate in dear["candidates"]:
        candidate["relative_energy"] = {"value": 1.7, "low": None, "high": None}
        candidate["search_quality"] = candidate["test_quality"] = {"value": 1.0, "low": 1.0, "high": 1.0}
    dear.update(factors=[{**dear["factors"][0], "after": 1.7}], total=1 / 1.7)
    tiny = report()
    tiny["candidates"][0]["relative_energy"] = {"value": 1e-7, "low": 0.0, "high": 1e-6}
    tiny["candidates"][1]["test_quality"] = {"value": -0.4, "low": -0.9, "high": 0.2}
    unknown = report()
    for candidate in unknown["candidates"][4:]:
        candidate.update(relative_energy=None, search_quality=None, test_quality=None, relative_latency=None, relative_memory=None, setting=None)
    unknown["baseline"].update(joules_per_1000=None, memory_bytes=None)
    unknown["cost"].update(joules=None, break_even=None)
    memory, latency = report(), report()
    memory["objective"], latency["objective"] = "memory", "latency"
    return [bare, dear, tiny, unknown, memory, latency]


@pytest.mark.parametrize("number", range(6))
def test_every_reader_copes_with_the_edges(number: int) -> None:
    document = extremes()[number]
    assert validate(document) == []
    assert shown(document) and summary.story(document) and html.page(document)
    ET.fromstring(plot.draw(document))


class _Reader(HTMLParser):
    """What a page refers to, and whether its tags nest."""

    VOID = {"meta", "link", "input", "br", "img", "line", "rect", "circle", "path"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loads += [str(found[key]) for key in ("src", "srcset", "data", "poster") if found.get(key)]
        self.loads += [str(found["href"])] if tag == "link" else []
        self.ids += [str(found["id"])] if "id" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("feasible", [True, False])
def test_the_page_is_one_complete_file(tmp_path: Path, feasible: bool) -> None:
    page = html.write(report(feasible), tmp_path).read_text()
    reader = _Reader()
    reader.feed(page)
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids)
    assert all(load.startswith("data:") for load in reader.loads)
    assert not re.search(r"url\(\s*['\"]?http|@import", page)
    assert len(page.encode()) < 1_000_000


PROMISED = """floor 97|Quality against energy|layer by layer|Where the saving comes from|race of precisions|All 40 candidates|How the time went
fourfold optimize teacher/|Modelled|bag of words|ShortGPT|fourfold race cheap/"""


@pytest.mark.parametrize("text", re.split(r"[|\n]", PROMISED))
def test_the_page_holds_all_that_was_promised(text: str) -> None:
    assert text in html.page(report())


def test_what_users_name_things_cannot_break_out_of_the_page() -> None:
    document = copy.deepcopy(report())
    evil = "</script><script>alert(1)</script><b>&\"'"
    document["model"]["name"] = document["data"]["name"] = document["command"] = evil
    for candidate in document["candidates"]:
        candidate["how"] = candidate["name"] = evil
    page = html.page(document)
    assert "<script>alert" not in page and page.count("</script>") == 2
    ET.fromstring(plot.draw(document))


def test_a_large_report_stays_small() -> None:
    document = report()
    document["candidates"] += [{**row, "name": f"d{i}{row['name']}"} for i in range(12) for row in document["candidates"][7:40]]
    assert len(html.page(document).encode()) < 1_000_000


# ---- the page of a plan ----


def unpacked(packed: Any, sites: int) -> Any:
    numbers = np.frombuffer(base64.b64decode(packed["base64"]), "<u2").reshape(sites, -1).astype(float)
    return np.where(numbers == 65_535, np.nan, packed["low"] + numbers * packed["scale"])


def held(text: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]


def test_the_plans_page_is_one_complete_file(tmp_path: Path) -> None:
    text = place.write(plan(), tmp_path).read_text()
    reader = _Reader()
    reader.feed(text)
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids)
    assert not re.search(r"url\(\s*['\"]?http|@import", text)
    for part in ("Hydro", "lower bound", "the oracle, which knows", "What capacity is worth", "one for one", "breaks a rule",
                 "impossible, because job 3", "at most 1.0 %", "2022-05-01 11:00"):
        assert part in text, part


def test_what_is_drawn_is_what_was_planned() -> None:
    document = plan()
    data = held(place.page(document))
    grams, kw = unpacked(data["intensity"], 4), unpacked(data["kw"], 4)
    known = np.array([[np.nan if value is None else value for value in row] for row in document["intensity"]])
    np.testing.assert_allclose(grams, known, atol=0.02)
    planned = np.zeros_like(known)
    for row in document["schedule"]:
        planned[row["site"], row["hours"]] += document["jobs"][row["job"]]["kw"]
    np.testing.assert_allclose(kw, planned, atol=0.01)
    first, job = document["schedule"][0], document["jobs"][0]
    jobs = data["jobs"]
    assert jobs["first"][0] == first["hours"][0] and jobs["wait"][0] == first["hours"][0] - job["release"] and jobs["hours"][0] == len(first["hours"])
    assert jobs["kg"][0] == pytest.approx(job["kw"] * 1.1 * known[first["site"], first["hours"]].sum() / 1000, rel=1e-4)


def test_a_year_of_many_sites_and_jobs_is_kept_small() -> None:
    data = held(text := place.page(plan(jobs=3000, sites=90, hours=8760)))
    assert data["step"] == 2 and data["hours"] == 4380 and len(text.encode()) < 4_000_000
    means = unpacked(data["intensity"], 90)
    row = plan(jobs=1, sites=90, hours=8760)["intensity"][0]
    assert means[0, 5] == pytest.approx((row[10] + row[11]) / 2, abs=0.3)


def test_a_marginal_plan_says_so_and_a_bare_one_still_reads() -> None:
    document = plan()
    document["signal"] = "marginal"
    assert "consequential" in place.page(document)
    bare = {key: document[key] for key in ("sites", "start_utc", "intensity", "jobs", "schedule")}
    bare["sites"] = ["Hydro", "Wind", "Gas", "Coal"]
    assert "is not proven" in place.page(bare)
    assert held(place.page({**bare, "jobs": [], "schedule": []}))["jobs"]["name"] == []


@pytest.mark.parametrize("value", [None, [], {}, {"sites": []}, {**plan(), "schedule": [{"job": 0, "site": 0, "hours": [999_999]}]},
                                   {**plan(), "sites": ["one"]}, {**plan(), "start_utc": "soon"}])
def test_what_is_no_plan_is_refused_in_two_lines(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        place.page(value)
    assert len(str(caught.value).splitlines()) == 2


def test_names_in_a_plan_cannot_break_out_of_its_page() -> None:
    document = plan()
    evil = "</script><script>alert(1)</script><b>&\"'"
    document["sites"][0]["name"] = document["jobs"][0]["name"] = document["comparators"][0]["title"] = evil
    text = place.page(document)
    assert "<script>alert" not in text and text.count("</script>") == 2
