"""The breakdown of costs on a real job: structure, engine and precision are steps of their own levers, whose factors multiply to the whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fourfold
from fourfold.jobs.levers import levers
from fourfold.jobs.optimize.accounts import ledger_of, report_data
from fourfold.jobs.optimize.breakdown import _climb
from fourfold.jobs.optimize.final_race import Point, prepare
from fourfold.jobs.optimize.points import named, original
from fourfold.report import html, summary
from fourfold.report.schema import SCHEMA, validate
from fourfold.rewrites.compress.combine import Candidate, prune, site_ids
from fourfold.runtime.artefact import Assembly, Setting
from fourfold.runtime.service import ORIGINAL, Runner, race_services

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


@pytest.fixture
def job(front: fourfold.Front) -> Iterator[Any]:
    """The finished job, whose points and choice a test may change."""
    job = front.job
    points, best, rows = list(job.points), job.best, job.ladder
    yield job
    job.points, job.best, job.ladder = points, best, rows


_made: dict[tuple[str, str], Point] = {}


def raced(job: Any, candidate: Candidate, setting: Setting, folder: Path) -> Point:
    """A point as the job makes it: built (once for all tests), judged on nothing new, raced against the original."""
    key = candidate.name, str(setting)
    if key not in _made:
        part = job.part(candidate.name, candidate.module, candidate, setting)
        assert prepare(part, job.splits.search, folder)[1] is None
        point = Point(named(candidate, setting), candidate, Assembly(named(candidate, setting), [part]), status="front")
        whole = Assembly(ORIGINAL, [job.signed(ORIGINAL, job.subject.module)])
        found = race_services({ORIGINAL: Runner(whole), "it": Runner(point.assembly)}, job.splits.search, job.task, seconds=1.0)
        point.served, point.timing = found["it"], found["it"].result
        _made[key] = point
    point = replace(_made[key], candidate=candidate)
    point.search = point.test = job.best.test
    job.points = [*[p for p in job.points if p.name != point.name], point]
    return point


def whole(rows: list[dict[str, Any]], end: float) -> None:
    """The steps are a chain from 1 to `end`."""
    assert rows[0]["before"] == 1.0 and rows[-1]["after"] == end
    assert all(a["after"] == b["before"] for a, b in zip(rows, rows[1:], strict=False))
    assert math.prod(row["before"] / row["after"] for row in rows) == pytest.approx(1 / end, rel=1e-12)


def test_engine_and_precision_of_the_original_are_two_steps_of_two_levers(job: Any, tmp_path: Path) -> None:
    job.best = raced(job, original(job), Setting("onnxruntime", "int8", 1, 32, True), tmp_path)
    rows = _climb(job, True)
    assert [(row["lever"], row["technique"]) for row in rows] == [("machine", "engine"), ("model", "quantise")]
    assert rows[0]["point"] is None and "for this account" in rows[0]["evidence"] and 0 < rows[0]["low"] <= rows[0]["after"] <= rows[0]["high"]
    assert rows[1]["point"] == job.best.name
    whole(rows, job.best.timing.cpu.value)


def test_a_state_that_raced_with_the_points_is_not_raced_again(job: Any, tmp_path: Path) -> None:
    root = original(job)
    carried = raced(job, root, Setting("onnxruntime", "fp32", 1, 32, True), tmp_path)
    job.best = raced(job, root, Setting("onnxruntime", "int8", 1, 32, True), tmp_path)
    (engine, precision) = _climb(job, False)
    assert engine["point"] == carried.name and engine["after"] == carried.timing.cpu.value and precision["before"] == engine["after"]  # type: ignore[union-attr]
    job.best = carried
    (only,) = _climb(job, True)
    assert (only["lever"], only["technique"], only["title"]) == ("machine", "engine", "onnxruntime fp32")


def test_what_cannot_be_told_apart_is_one_step_and_says_so(job: Any, tmp_path: Path) -> None:
    job.best = raced(job, original(job), Setting("onnxruntime", "int8", 1, 32, True), tmp_path)
    (row,) = _climb(job, False)
    assert row["lever"] == "model" and "engine and precision together: onnxruntime fp32 was not raced yet" in row["evidence"]
    whole([row], job.best.timing.cpu.value)


def test_a_first_answer_takes_what_the_race_of_back_ends_found(job: Any, tmp_path: Path) -> None:
    job.best = raced(job, original(job), Setting("onnxruntime", "int8", 1, 32, True), tmp_path)
    before, figure = job.race_rows, {"value": 0.8, "low": 0.7, "high": 0.9}
    job.race_rows = [*before, {"stage": "heat", "who": "candidate", "engine": "onnxruntime", "precision": "fp32", "cpu": figure, "prepared_s": 1.0}]
    rows = _climb(job, False)
    job.race_rows = before
    assert [(row["lever"], row["after"]) for row in rows] == [("machine", 0.8), ("model", job.best.timing.cpu.value)]
    assert "without the service" in rows[0]["evidence"]
    whole(rows, job.best.timing.cpu.value)


def test_structure_engine_and_precision_reach_report_levers_and_ledger(job: Any, tmp_path: Path) -> None:
    if job.root is None:
        pytest.skip("this host was too busy: the job's budget ended before it had looked at the structure")
    sublayers = [name for name, (_, bundle) in site_ids(job.root.anatomy).items() if bundle]
    shape = {sublayers[0]: 0, sublayers[-1]: 1}                          # one sub-layer gone, another down to a unit, as the search makes them
    module, recipe, kept = prune(job.root, shape, mend=False)
    candidate = Candidate("smaller", "network", recipe, shape, 0.8, 2, kept=kept, module=module, structured=True, techniques=("matrix_pruning",))
    job.best = raced(job, candidate, Setting("onnxruntime", "int8", 1, 32, True), tmp_path)
    job.ladder = _climb(job, True)
    whole(job.ladder, job.best.timing.cpu.value)
    techniques = [row["technique"] for row in job.ladder]
    assert techniques == ["layer_removal", "matrix_pruning", "engine", "quantise"]
    assert all((row["lever"] == "machine") == (row["technique"] == "engine") for row in job.ladder)

    document: dict[str, Any] = {"schema": SCHEMA, **report_data(job)}
    document["levers"] = levers(document)
    assert validate(document) == []
    given = {row["lever"]: row for row in document["levers"]["rows"] if row["given"]}
    assert set(given) == {"model", "machine"} and given["machine"]["title"] == "onnxruntime fp32"
    assert math.prod(row["factor"]["value"] for row in given.values()) == pytest.approx(document["total"], rel=1e-6)
    told = " ".join(summary.story(document))
    assert "the machine lever" in told and "int8 in onnxruntime (quantise, the model lever)".lower() in told.lower()
    page = html.write(document, tmp_path / "report.html").read_text()
    assert "onnxruntime fp32" in page and "int8 in onnxruntime" in page

    book = ledger_of(job)
    assert {row.lever for row in book.rows} == {"model", "machine"}
    assert math.prod(factor.value for factor in book.factors().values()) == pytest.approx(document["total"], rel=1e-9)
    book.save(tmp_path / "ledger.jsonl")
    from fourfold.cli.main import app

    done = CliRunner().invoke(app, ["ledger", "show", str(tmp_path / "ledger.jsonl"), "--json"])
    assert done.exit_code == 0 and set(json.loads(done.output)["account"]["factors"]) == {"model", "machine"}
