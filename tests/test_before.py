"""What the version before wrote is still read: artefacts (a pruned network, a static student, a module in memory) and ledgers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fourfold
from fourfold.cli import main

DATA = Path(__file__).parent / "data"
ARTEFACTS = DATA / "artefacts-1"


@pytest.mark.parametrize("kind", ["network", "static"])
def test_an_artefact_answers_as_it_did(kind: str) -> None:
    said = json.loads((ARTEFACTS / "answers.json").read_text())[kind]
    model = fourfold.load(ARTEFACTS / kind)
    assert np.allclose(model.records(said["texts"]), said["records"], atol=1e-5)
    assert [str(one) for one in model.predict(said["texts"])] == said["predict"]
    assert not model.warnings


def test_a_module_that_lived_in_memory() -> None:
    said = json.loads((ARTEFACTS / "tree.json").read_text())
    model = fourfold.load(ARTEFACTS / "tree")
    assert np.allclose(model.records(np.array(said["rows"], np.float32)), said["records"], atol=1e-5)


def test_a_report_and_a_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["report", str(ARTEFACTS / "network")]) == 0 and "unseen" in capsys.readouterr().out
    assert main.run(["explain", str(ARTEFACTS / "static")]) == 0 and capsys.readouterr().out
    assert main.run(["cite", str(ARTEFACTS / "static")]) == 0 and "@" in capsys.readouterr().out


def test_a_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shutil.copy(DATA / "ledger-1.jsonl", tmp_path / "ledger.jsonl")
    assert main.run(["ledger", "verify", str(path)]) == 0 and "as they were written" in capsys.readouterr().out
    assert main.run(["ledger", "show", str(path)]) == 0
