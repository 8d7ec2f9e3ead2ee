"""A technique of somebody else's, which no file of fourfold names, goes the whole way: propose, build, recover, judge, race, prove, save, load in
another process, explain, report. Loading runs its code only where its package is trusted. An engine of somebody else's is raced likewise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from zygote import ran

import fourfold
from fourfold import registry
from fourfold.errors import ArtefactError
from fourfold.jobs.optimize.front import Choice
from fourfold.report import html

TESTS = Path(__file__).parent.parent
CHILD = """
import json, sys, fourfold
model = fourfold.load(sys.argv[1], trust=["toyroom"])
print(json.dumps([float(x) for row in model.records(sys.argv[2:]) for x in row]))
"""


@pytest.mark.whole
def test_a_foreign_technique_goes_the_whole_way(model: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    with registry.including(TESTS / "toyroom", "toyroom"):
        assert "route/expert_split" in registry.techniques()
        for budget in ("60s", "240s"):                                  # beside busy neighbours the first may end before it is built
            front = fourfold.optimize(model, reviews, floor=0.5, budget=budget, out=tmp_path / budget, engines=["torch"], seed=1, progress=False)
            job = front.job
            there = [c for c in job.candidates if c.technique == "route/expert_split" and c.quality is not None]
            if there and any(p.candidate is there[0] for p in job.points) and any(p.candidate.technique == "select/naive_bayes" for p in job.points):
                break
        (candidate,) = [c for c in job.candidates if c.technique == "route/expert_split"]
        assert candidate.quality is not None and candidate.extra["curve"], "recovered by distillation, judged on the search split"
        points = [p for p in job.points if p.candidate is candidate]
        assert points and all(p.timing is not None for p in points if p.status == "open"), "built and raced"
        point = points[0]
        if point.test is None:  # others beat it on the search split, so that it was not asked for
            point.test = job.relative(point.assembly.outputs(job.splits.test, job.task), "test")
        assert point.test.low > 0.2
        report = front.report_data
        row = next(row for row in report["candidates"] if row["name"] == point.name)
        assert "in 2 experts" in row["how"] and row["techniques"] == ["route/expert_split", "distil"]
        page = html.write(report, tmp_path / "report.html").read_text()
        assert point.name.split(" ·")[0] in page

        folder = Choice(point, job, report).save(tmp_path / "experts")
        manifest = json.loads((folder / "manifest.json").read_text())
        (edit,) = [edit for part in manifest["parts"] for edit in part["recipe"]["edits"]]
        assert "in 2 experts" in manifest["candidate"]["how"] and manifest["trust"] == ["toyroom"]
        assert edit["by"] == "toyroom.rewrites.route.expert_split"

        texts = ["a fine and moving film", "dull, long and empty"]
        wanted = [float(x) for row in fourfold.load(folder, trust=["toyroom"]).records(texts) for x in row]
        done = ran(["-c", CHILD, str(folder), *texts])
        assert done.returncode == 0, done.stderr[-800:]
        assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(wanted, abs=1e-5)
        with pytest.raises(ArtefactError, match="toyroom.*not trusted") as caught:
            fourfold.load(folder)
        assert "--trust toyroom" in str(caught.value)

        (point,) = [p for p in job.points if p.candidate.technique == "select/naive_bayes"]
        assert point.search is not None and point.search.value > 0.5 and (point.timing is not None or point.status != "open")
        point.test = point.test or job.relative(point.assembly.outputs(job.splits.test, job.task), "test")
        assert any(row["name"] == "naive Bayes" for row in report["simple"])
        folder = Choice(point, job, report).save(tmp_path / "odds")
        (part,) = json.loads((folder / "manifest.json").read_text())["parts"]
        assert part["kind"] == "naive_bayes" and part["by"] == "toyroom.rewrites.select.naive_bayes"
        wanted = [float(x) for row in fourfold.load(folder, trust=["toyroom"]).records(texts) for x in row]
        done = ran(["-c", CHILD, str(folder), *texts])
        assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1]) == pytest.approx(wanted, abs=1e-9), done.stderr[-800:]
        with pytest.raises(ArtefactError, match="toyroom.*not trusted"):
            fourfold.load(folder)

        from fourfold.cli import main

        assert main.run(["explain", "route/expert_split"]) == 0 and "experts of equal width" in capsys.readouterr().out


@pytest.mark.slow
def test_a_foreign_engine_is_raced_and_built_by_the_job(model: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    with registry.including(TESTS / "toyroom", "toyroom"):
        front = fourfold.optimize(model, reviews, floor=0.5, budget="40s", out=tmp_path / "cheap", engines=["torch", "frozen"], seed=1,
                                  progress=False)
        rows = [row for row in front.job.race_rows if row["engine"] == "frozen"]
        assert rows and all(row["cpu"]["value"] > 0 for row in rows), "raced with the original"
        if ("frozen", "fp32") in [(e, p) for e, p, _ in front.job.pairs]:   # it paid on this machine
            points = [p for p in front.job.points if p.setting.engine == "frozen"]
            assert points and all(p.status != "rejected" and p.assembly.parts[0].files for p in points), "built"
        assert any(row["setting"]["engine"] == "frozen" for row in front.report_data["race"])
