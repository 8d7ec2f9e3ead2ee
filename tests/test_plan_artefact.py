"""The two main jobs compose: `fourfold plan cheap/` plans the network of an artefact as it runs, and `fourfold run` carries that plan out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served

import fourfold
from fourfold.cli import main
from fourfold.errors import ArtefactError, InputError
from fourfold.jobs.pipeline import pipeline
from fourfold.plans import Plan
from fourfold.runtime.source import recapture

pytestmark = pytest.mark.filterwarnings("ignore")
MINE = """
import served
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(128, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        seen = attention_mask[..., None].float()
        return self.head(torch.tanh(self.words(input_ids) * seen).sum(1) / seen.sum(1))


def net():
    torch.manual_seed(0)
    return Net(), served.tokenizer()
"""
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


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An artefact of the user's own factory."""
    home = tmp_path_factory.mktemp("own")
    (home / "mine_of_trust.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as here:
        here.syspath_prepend(str(home))
        here.setenv("PYTHONPATH", f"{home}:{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
        yield served.saved(home / "cheap", [served.part(home / "net", "torch", net="mine_of_trust:net")])


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


@pytest.mark.whole
@pytest.mark.apart
def test_its_plan_is_carried_out(cheap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["plan", str(cheap), "--dims", "batch=2,length=6", "--solver", "default", "--evaluations", "20", "--progress", "none"]) == 0
    assert main.run(["run", "plan", "--check", "--repeat", "2", "--no-race"]) == 0
    assert "equals the original's" in capsys.readouterr().out


def test_an_artefact_of_ones_own_code_is_planned_only_where_it_is_trusted(own: Path, tmp_path: Path) -> None:
    quick: dict[str, Any] = {"evaluations": 20, "budget": 1.0}
    for asked in (lambda **how: fourfold.plan(own, **QUICK, **how),
                  lambda **how: pipeline(own, machine="p100x2", solver="load_fill", **quick, **how),
                  lambda **how: fourfold.plan(own, memory="1MiB", machine="p100x2", **quick, **how),
                  lambda **how: fourfold.allocate(own, solver="greedy", **quick, **how)):
        with pytest.raises(ArtefactError, match="mine_of_trust:Net.*not trusted") as told:
            asked()
        assert "--trust mine_of_trust" in str(told.value).split("\n")[1] and "\n" not in told.value.mend
        asked(trust=["mine_of_trust"])


def test_a_plan_runs_the_code_that_it_names_only_where_it_is_trusted(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    trusted, quick = ("--trust", "mine_of_trust"), ("--evaluations", "20", "--budget", "1s", "--progress", "none")
    run = ["run", "plan", "--repeat", "1", "--no-race", "--one-process"]
    dims = ("--dims", "input_ids.0=2,input_ids.1=6,attention_mask.0=2,attention_mask.1=6")
    memory = [["plan", "plan", "--memory", "1MiB", *quick], ["run", "plan", "--memory", "--repeat", "1"]]
    for model, sizes, commands in ((str(own), (), [run]), ("mine_of_trust:net", dims, [run, *memory])):
        shutil.rmtree("plan", ignore_errors=True)
        assert main.run(["plan", model, *sizes, "--solver", "default", *quick, *trusted, "--out", "plan"]) == 0
        assert "fourfold run plan --trust mine_of_trust" in capsys.readouterr().out
        for command in commands:
            assert main.run(command) == 2
            said = capsys.readouterr().err.strip().split("\n")
            assert len(said) == 2 and "not trusted" in said[0] and "--trust mine_of_trust" in said[1], command
            assert main.run([*command, *trusted]) == 0, command
        capsys.readouterr()
    assert main.run(["allocate", str(own), *quick]) == 2
    assert "--trust mine_of_trust" in capsys.readouterr().err


def test_data_that_a_plan_names_are_not_made_by_a_strangers_factory(cheap: Path, tmp_path: Path) -> None:
    fourfold.plan(cheap, out=tmp_path / "plan", **QUICK)
    plan = Plan.load(tmp_path / "plan")
    for ref in ("mine_of_trust:rows", "no_such_package.module:rows"):
        with pytest.raises(ArtefactError, match="the plan names .*not trusted"):
            recapture(plan.replace(capture={**plan.capture, "file": ref, "path": ref}))
