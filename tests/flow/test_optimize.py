"""The main job from end to end on a small real model: found, proved, saved, loaded elsewhere; killed and resumed; asked for too much."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fourfold
from fourfold.report.schema import validate


def test_report_is_sound(front: fourfold.Front) -> None:
    assert validate(front.report_data) == []


def test_best_clears_the_floor_and_costs_less(front: fourfold.Front) -> None:
    assert front.best is not None, front.infeasible
    point = front.best.point
    assert point.test is not None and point.test.low >= 0.9
    assert front.best.cost < 1


def test_the_front_answers_as_the_saved_artefact_does(front: fourfold.Front) -> None:
    assert front.best is not None and "►" in repr(front) and "<svg" in front._repr_html_()
    texts = ["ember smoke word1", "word2 not river ash", "lake word3"]
    assert front.best.predict(texts) == fourfold.load(front.job.options.out or "").predict(texts)
    assert all(len(choice.predict(texts)) == 3 for choice in front)


def test_costs_are_of_the_whole_service_on_unseen_rows(front: fourfold.Front) -> None:
    """The answer and its neighbours were raced from raw text on the unseen split; a cascade costs at least its first member, about its parts' sum."""
    from fourfold.runtime.service import disagrees

    job = front.job
    assert job.served is not None and job.served.rows <= len(job.splits.test)
    assert front.best is not None and front.best.point.served is not None
    raced = {p.name: p for p in job.points if p.served is not None and p.agreement is not None}
    for point in raced.values():
        assert 0 <= point.agreement.low <= point.agreement.value <= 1  # type: ignore[union-attr]
        members = point.candidate.extra.get("members", [])
        if members and not any(point.candidate.name in warning for warning in job.warnings):
            reach = [sum(point.shares[k:]) for k in range(len(members))]
            assert disagrees(point.served, [m.served for m in members], reach) is None  # type: ignore[arg-type]
    assert any("whole service" in note for note in front.report_data["notes"])


def test_the_printed_command_reaches_the_same_answer(front: fourfold.Front, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    from fourfold.cli import main

    assert front.best is not None
    words = shlex.split(front.report_data["command"])
    assert words[0] == "fourfold" and main.run([*words[1:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["candidates"][again["best"]]["name"] == front.best.name and again["command"] == front.report_data["command"]


def test_ledger_says_what_the_report_says(front: fourfold.Front) -> None:
    """The book saved with the artefact is sound by its own rules, and its factor is the report's total."""
    out = front.job.options.out
    assert out is not None and front.best is not None
    book = fourfold.Ledger.load(out / "ledger.jsonl")
    assert book.factor().value == pytest.approx(front.report_data["total"])
    assert book.spent is not None and book.spent.value > 0


def test_fresh_process_gives_identical_answers(front: fourfold.Front, reviews: Path) -> None:
    assert front.best is not None
    folder = front.job.options.out
    texts = [line.split(",")[0] for line in reviews.read_text().splitlines()[1:40]]
    here = fourfold.load(folder).predict(texts)
    code = "import sys, json, fourfold; print(json.dumps(fourfold.load(sys.argv[1]).predict(json.loads(sys.argv[2]))))"
    done = subprocess.run([sys.executable, "-c", code, str(folder), json.dumps(texts)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == here
    assert set(here) <= {"water", "fire"}


def test_an_altered_artefact_is_refused(front: fourfold.Front, tmp_path: Path) -> None:
    import shutil

    assert front.best is not None
    copy = tmp_path / "copy"
    shutil.copytree(front.job.options.out or "", copy)
    weights = next(copy.rglob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(fourfold.ArtefactError, match="altered"):
        fourfold.load(copy)


@pytest.mark.whole
def test_infeasible_floor_says_why(model: Path, reviews: Path, tmp_path: Path) -> None:
    found = fourfold.optimize(model, reviews, floor=1.0, budget="12s", out=tmp_path / "cheap", engines=["torch"], seed=1)
    said = found.report_data["infeasible"]
    if found.best is not None:                                         # then it really keeps all of the quality
        assert found.best.point.test is not None and found.best.point.test.low >= 1.0 and said is None and found.infeasible is None
    else:
        assert found.infeasible is not None and str(found.infeasible).startswith(said["reason"]) and said["nearest"]
    assert validate(found.report_data) == []


def test_why_nothing_was_chosen_is_said(front: fourfold.Front) -> None:
    """The account of the same job, had it chosen nothing."""
    from copy import copy

    from fourfold.jobs.optimize.accounts import report_data

    job = copy(front.job)
    job.best = None
    account = report_data(job)
    said = account["infeasible"]
    assert not account["floor_met"] and account["best"] is None and front.report_data["infeasible"] is None
    assert "floor taken alone" in said["reason"] and 1 <= len(said["nearest"]) <= 3
    for row in said["nearest"]:
        assert row["shortfall"] == max(0.0, 0.9 - account["candidates"][row["candidate"]]["test_quality"]["low"]) and "of the cost" in row["reason"]


@pytest.mark.whole
def test_memory_objective_shrinks_the_weights(model: Path, reviews: Path, tmp_path: Path) -> None:
    """Fewer token rows are among the candidates, and what is saved answers as it was judged."""
    out = tmp_path / "small"
    found = fourfold.optimize(model, reviews, floor=0.9, budget="20s", objective="memory", out=out, engines=["torch"], seed=1)
    assert found.best is not None, found.infeasible
    assert found.best.cost < 0.7
    assert any("fewer rows" in p.name for p in found.job.points)
    loaded = fourfold.load(out)
    assert set(loaded.predict(["flame word1 word2", "word3 river lake wave"])) <= {"water", "fire"}


def test_full_disk_loses_nothing(front: fourfold.Front, tmp_path: Path) -> None:
    """The kernel refuses to write beyond a limit (a stand-in for a full disk): two lines, the artefact that was there stays, no half of a new one."""
    import resource

    assert front.best is not None
    out = tmp_path / "cheap"
    front.best.save(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(fourfold.FourfoldError, match="could not write") as caught:
            front.best.save(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert len(str(caught.value).splitlines()) <= 2
    assert fourfold.load(out).predict(["flame word1"])
    assert not list(tmp_path.glob(".cheap.part"))
