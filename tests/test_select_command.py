"""`fourfold select` as a user meets it: what is chosen, the file of names, JSON, and every mistake in two lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from fourfold.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 5)).round(3)
    lines = ["a,b,c,d,e,city,y"]
    lines += [",".join([*map(str, row), "Ulm" if row[0] > 0 else "Jena", "yes" if row[1] * row[3] > 0 else "no"]) for row in X]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main.run(["select", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_columns_that_tell_only_together_are_chosen_and_written(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, err = ran(capsys, "data.csv", "--target", "y", "-k", "2", "--ignore", "city", "--out", "names/columns.txt", "--progress", "plain")
    assert code == 0 and "2 of 5 columns tell 'y' (classification, 240 rows)" in out and "40.0%" in out and "Wrote names/columns.txt." in out
    assert sorted((folder / "names/columns.txt").read_text().split()) == ["b", "d"] and "selecting columns" in err
    code, out, err = ran(capsys, "data.csv", "--target", "y", "-k", "0.4", "--ignore", "city", "--json")
    document = json.loads(out)
    assert code == 0 and not err and sorted(document["columns"]) == ["b", "d"] and document["of"] == 5 and document["files"] == []


def test_a_linear_model_gives_the_order_of_matching_pursuit(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    X, y = load_diabetes(return_X_y=True)
    np.savetxt(folder / "d.csv", np.column_stack([X, y]), delimiter=",", header=",".join([*(f"x{i}" for i in range(10)), "y"]), comments="")
    code, out, _ = ran(capsys, "d.csv", "--target", "y", "-k", "8", "--linear", "--json")
    assert code == 0 and json.loads(out)["columns"] == [f"x{i}" for i in (2, 8, 3, 6, 1, 5, 9, 4)] and json.loads(out)["task"] == "regression"


@pytest.mark.parametrize(("arguments", "said"), [
    (["--target", "z"], "no column 'z'"), (["--target", "y"], "'city' holds words"), (["--target", "y", "--ignore", "town"], "no column 'town'"),
    (["--target", "y", "--ignore", "city", "-k", "9"], "from 5 features"), (["--target", "y", "--ignore", "city", "--progress", "loud"], "loud"),
    (["--target", "city", "--ignore", "y", "--task", "regression"], "holds words"),
])  # fmt: skip
def test_mistakes_are_told_in_two_lines(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, out, err = ran(capsys, "data.csv", *arguments)
    assert code == 2 and not out and said in err and len(err.strip().splitlines()) == 2


def test_missing_and_infinite_values_name_the_line_and_the_column(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for cell, said in (("", "no value"), ("nan", "no value"), ("inf", "infinite")):
        (folder / "bad.csv").write_text(f"a,b,y\n1.5,2,0\n{cell},3,1\n2.5,1,0\n")
        code, _, err = ran(capsys, "bad.csv", "--target", "y")
        assert code == 2 and said in err and "line 3" in err and "'a'" in err


def test_the_command_line_starts_without_scikit_learn() -> None:
    code = "import sys\nfrom fourfold.cli import main\nmain.run(['select', '--help'])\nprint([m for m in ('sklearn', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
