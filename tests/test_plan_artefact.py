"""The two main jobs compose: `fourfold plan cheap/` plans the network of an artefact as it runs, and `fourfold run` carries that plan out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import served

import fourfold
from fourfold.cli import main
from fourfold.errors import InputError
from fourfold.plans import Plan
from fourfold.runtime.source import recapture

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK: dict[str, Any] = {"machine": "p100x2", "solver": "expert", "evaluations": 50}


@pytest.fixture(scope="module")
def cheap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("artefact")
    return served.saved(home / "cheap", [served.part(home / "net", "torch")])


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("cascade")
    small = served.part(home / "small", "torch", name="small", net=served.network(1, 16, seed=1))
    return served.saved(home / "cheap", [served.words(), small, served.part(home / "net", "torch")], [0.4, 0.4])


def test_an_artefact_is_planned_on_the_batch_it_keeps(cheap: Path, tmp_path: Path) -> None:
    plan = fourfold.plan(cheap, out=tmp_path / "plan", **QUICK)
    assert plan.model["kind"] == "folder" and plan.model["part"] == "net" and Path(plan.model["path"]) == cheap.resolve()
    assert any("what is planned is its network in PyTorch fp32" in note for note in plan.notes) and len(plan.graph) > 20
    again = recapture(Plan.load(tmp_path / "plan"))
    assert again.graph.hash == plan.graph.hash
    sized = fourfold.plan(cheap, dims={"batch": 3, "length": 5}, **QUICK)
    assert {tuple(row["shape"]) for row in sized.capture["inputs"]} == {(3, 5)}
    with pytest.raises(InputError, match="given twice"):
        fourfold.plan(cheap, dims={"width": 3}, **QUICK)


def test_the_dearest_of_a_cascade_is_planned_and_said(cascade: Path) -> None:
    plan = fourfold.plan(cascade, dims={"batch": 2, "length": 6}, **QUICK)
    assert plan.model["part"] == "net" and any("a cascade of 3: its last and dearest network, net" in note for note in plan.notes)


def test_words_alone_are_no_program(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no network"):
        fourfold.plan(served.saved(tmp_path / "cheap", [served.words()]), **QUICK)


@pytest.mark.apart
def test_its_plan_is_carried_out(cheap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["plan", str(cheap), "--dims", "batch=2,length=6", "--solver", "default", "--evaluations", "20", "--progress", "none"]) == 0
    assert main.run(["run", "plan", "--check", "--repeat", "2", "--no-race"]) == 0
    assert "equals the original's" in capsys.readouterr().out
