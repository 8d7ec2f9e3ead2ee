"""One document for all plans: {question: solution}; the first formats still read, a second question is added, everything verifies and explains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourfold import plans
from fourfold.cli import main
from fourfold.errors import ArtefactError, InputError
from fourfold.plans import Plan

DATA = Path(__file__).parent / "data"
QUICK = ("--question", "pipeline", "--solver", "load_fill", "--budget", "1s", "--progress", "none")


def ran(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main.run([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A plan that the first format holds, to write in."""
    return Path(shutil.copytree(DATA / "plan-1", tmp_path / "plan"))


def change(folder: Path, question: str, **fields: Any) -> None:
    data = json.loads((folder / "plan.json").read_text())
    data["solutions"][question].update(fields)
    (folder / "plan.json").write_text(json.dumps(data))


# ---- the first formats

def test_a_plan_of_the_first_format_is_read() -> None:
    plan = Plan.load(DATA / "plan-1")
    assert json.loads((DATA / "plan-1" / "plan.json").read_text())["schema"] == 1
    assert plan.solver == "expert" and len(plan.graph) == 4 and plan.system.name == "two P100 over PCIe"
    document = plans.read(DATA / "plan-1")
    assert list(document.solutions) == ["schedule"] and document.workload["hash"] == plan.graph.hash
    assert plans.verify(DATA / "plan-1") == {"schedule": []}
    assert plans.explain(DATA / "plan-1") == plan.explain() and plan.explain()[0] == "Everything stays on gpu0."


def test_a_plan_of_jobs_of_the_first_format_is_read(capsys) -> None:
    document = plans.read(DATA / "map-1")
    assert list(document.solutions) == ["carbon_aware"] and document.solutions["carbon_aware"]["cost"] == pytest.approx(3.24117, rel=1e-5)
    assert plans.verify(DATA / "map-1") == {"carbon_aware": []}
    said = plans.explain(DATA / "map-1")
    assert "2 jobs at 2 sites take 3.24117 kgCO2e" in said[0] and "55.4 % saved" in said[1]
    code, out, _ = ran(capsys, "explain", DATA / "map-1")
    assert code == 0 and out.splitlines() == said
    with pytest.raises(ArtefactError, match="holds no schedule"):
        Plan.load(DATA / "map-1")


def test_what_is_saved_anew_is_of_this_format(old: Path) -> None:
    Plan.load(old).save(old)
    data = json.loads((old / "plan.json").read_text())
    assert data["format"] == "fourfold.plan/2" and set(data) == {"format", "workload", "machine", "files", "solutions"}
    assert set(data["files"]) == {"graph.npz", "system.toml"} and set(data["solutions"]) == {"schedule"}
    again = Plan.load(old)
    assert again.hash == Plan.load(DATA / "plan-1").hash and again.to_json() == Plan.load(DATA / "plan-1").to_json()


# ---- several questions

def test_a_second_question_is_added(capsys, old: Path) -> None:
    code, out, err = ran(capsys, "plan", old, *QUICK)
    assert code == 0 and err == "" and f"Wrote the plan to {old}" in out, (out, err)
    assert list(plans.read(old).solutions) == ["schedule", "pipeline"] and Plan.load(old).solver == "expert"
    code, out, _ = ran(capsys, "plan", "verify", old)
    assert code == 0 and "schedule: sound" in out and "pipeline: sound" in out
    code, out, _ = ran(capsys, "explain", old)
    assert code == 0 and out.splitlines()[0] == "schedule:" and "pipeline:" in out.splitlines()
    Plan.load(old).replace(engines={"0": "eager"}).save(old)            # as `fourfold run` does
    assert list(plans.read(old).solutions) == ["schedule", "pipeline"] and Plan.load(old).engines == {"0": "eager"}


def jobs(folder: Path) -> list[str]:
    (folder / "jobs.csv").write_text("name,hours,kw,release,slack,home\na,2,1,2022-05-01T00:00Z,2h,north\nb,1,2,2022-05-01T00:00Z,3h,north\n")
    (folder / "hours.csv").write_text("# unit: g/kWh\ntime,north,south\n" + "".join(
        f"2022-05-01T0{t}:00Z,{500 - 10 * t},{100 + 50 * t}\n" for t in range(4)))
    return ["map", str(folder / "jobs.csv"), "--intensity", str(folder / "hours.csv"), "--capacity", "1", "--quick"]


def test_jobs_are_added_to_a_plan(capsys, old: Path, tmp_path: Path) -> None:
    code, out, err = ran(capsys, *jobs(tmp_path), "--plan", old)
    assert code == 0 and "Check with: fourfold map verify" in out, err
    assert plans.verify(old) == {"schedule": [], "carbon_aware": []} and Plan.load(old).solver == "expert"
    assert plans.read(old).solutions["carbon_aware"]["workload"]["kind"] == "jobs"
    assert ran(capsys, "map", "verify", old)[0] == 0
    Plan.load(old).save(old)                                            # of the same graph and machine: the jobs' answer stays
    assert plans.verify(old) == {"schedule": [], "carbon_aware": []}
    code, _, err = ran(capsys, *jobs(tmp_path), "--out", old)
    assert code == 2 and "written by something else" in err             # would drop the schedule


def test_jobs_alone_are_a_document_too(capsys, tmp_path: Path) -> None:
    out = tmp_path / "jobs"
    assert ran(capsys, *jobs(tmp_path), "--out", out)[0] == 0
    assert plans.verify(out) == {"carbon_aware": []} and "2 jobs at 2 sites" in plans.explain(out)[0]
    assert ran(capsys, *jobs(tmp_path), "--out", out)[0] == 0           # an earlier plan of jobs is replaced
    code, told, _ = ran(capsys, "plan", "verify", out, "--json")
    assert code == 0 and json.loads(told)["questions"]["carbon_aware"]["wrong"] == []
    code, _, err = ran(capsys, "plan", "verify", tmp_path / "nowhere")
    assert code == 2 and "no such folder" in err


# ---- what is wrong is found

def test_claims_that_do_not_hold_are_told(capsys, old: Path) -> None:
    assert ran(capsys, "plan", old, *QUICK)[0] == 0
    said = plans.read(old).solutions["pipeline"]
    change(old, "pipeline", cost=0.5 * said["cost"])
    wrong = plans.verify(old)
    assert wrong["schedule"] == [] and any("counted again" in one for one in wrong["pipeline"])
    code, out, _ = ran(capsys, "plan", "verify", old)
    assert code == 4 and "pipeline does not hold" in out and "schedule: sound" in out
    change(old, "pipeline", cost=said["cost"], answer={"machine": [99] * 4, "part": [0] * 4})
    assert "there are 0 … 1" in plans.verify(old)["pipeline"][0]
    change(old, "pipeline", answer=said["answer"], bound=2 * said["cost"])
    assert any("nothing costs less" in one for one in plans.verify(old)["pipeline"])
    change(old, "pipeline", answer={"machine": ["x"]})
    with pytest.raises(ArtefactError, match="pipeline"):
        plans.verify(old)
    change(old, "pipeline", bound=None, **{"answer": said["answer"]})
    (old / "graph.npz").write_bytes((old / "graph.npz").read_bytes() + b" ")
    with pytest.raises(ArtefactError, match="graph.npz is not the file"):
        plans.verify(old)


def test_a_question_that_nobody_knows(old: Path) -> None:
    Plan.load(old).save(old)
    data = json.loads((old / "plan.json").read_text())
    data["solutions"]["floor plan"] = {"cost": 1, "bound": None}
    (old / "plan.json").write_text(json.dumps(data))
    assert "nobody here knows" in plans.verify(old)["floor plan"][0]


def test_a_damaged_document(old: Path) -> None:
    Plan.load(old).save(old)
    data = json.loads((old / "plan.json").read_text())
    for broken in ({**data, "solutions": []}, {**data, "solutions": {"schedule": 3}}, {**data, "files": None}):
        (old / "plan.json").write_text(json.dumps(broken))
        with pytest.raises(ArtefactError, match="damaged"):
            Plan.load(old)
    (old / "plan.json").write_text(json.dumps({**data, "format": "fourfold.plan/3"}))
    with pytest.raises(ArtefactError, match="newer fourfold"):
        Plan.load(old)


def test_a_plan_of_jobs_is_not_replaced_by_a_schedule(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "map-1", tmp_path / "jobs"))
    with pytest.raises(InputError, match="written by something else"):
        Plan.load(DATA / "plan-1").save(folder)
    assert np.isfinite(plans.read(folder).solutions["carbon_aware"]["cost"])
