"""Formats of tables: measured on the table, converted without a changed value, nothing pickled opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs fourfold[data]")

import pyarrow as pa

from fourfold.cli.main import run
from fourfold.errors import InputError
from fourfold.jobs.formats import formats


def wide(path: Path, rows: int = 60_000) -> Path:
    from pyarrow import csv

    made = np.random.default_rng(0)
    table = pa.table({**{f"x{i}": made.normal(size=rows) for i in range(14)}, "word": made.choice(["red", "green", "blue"], rows).tolist(),
                      "count": made.integers(0, 99, rows)})
    csv.write_csv(table, path)
    return path


def test_parquet_is_read_for_less_than_csv_and_holds_the_same(tmp_path: Path) -> None:
    from pyarrow import csv, parquet

    found = formats(wide(tmp_path / "t.csv"), to="parquet", columns=["x3", "word"], ledger=tmp_path / "ledger.jsonl")
    assert found.now == "csv" and {one.kind for one in found.costs} == {"csv", "jsonl", "parquet", "arrow"}      # words are no arrays
    assert found.of("parquet").whole < found.of("csv").whole and found.of("parquet").part < found.of("csv").part
    assert found.of("parquet").bytes < found.of("csv").bytes and found.costs[0].kind in ("parquet", "arrow")
    assert parquet.read_table(tmp_path / "t.parquet").equals(csv.read_csv(tmp_path / "t.csv"))
    row = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])
    assert "read as parquet" in json.dumps(row)
    with pytest.raises(InputError, match="there already"):
        formats(tmp_path / "t.csv", to="parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.jsonl", "ledger.jsonl.head", "t.csv", "t.parquet"]


def test_what_cannot_be_read_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for words, said in (((str(tmp_path / "model.pkl"),), "not opened"), ((str(tmp_path / "bad.parquet"),), "cannot be read"),
                        ((str(tmp_path / "none.csv"),), "not there"), ((str(tmp_path / "t.csv"), "--to", "xlsx"), "not known"),
                        ((str(tmp_path / "t.csv"), "--column", "c"), "no column")):
        assert run(["formats", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.strip().splitlines()) == 2
    assert run(["formats", str(tmp_path / "t.csv"), "--json"]) == 0 and json.loads(capsys.readouterr().out)["rows"] == 1


@pytest.mark.parametrize("kind", ["npz", "safetensors", "arrow"])
def test_numbers_go_into_arrays_and_come_back(tmp_path: Path, kind: str) -> None:
    from pyarrow import csv, parquet

    made = np.random.default_rng(0)
    csv.write_csv(pa.table({"z": made.normal(size=2000), "a": made.integers(0, 99, 2000)}), tmp_path / "n.csv")
    found = formats(tmp_path / "n.csv", to=kind)
    assert {one.kind for one in found.costs} == {"csv", "jsonl", "parquet", "arrow", "safetensors", "npz"}
    again = formats(tmp_path / f"n.{kind}", to="parquet", columns=["z"])
    assert again.now == kind and again.rows == 2000
    assert parquet.read_table(tmp_path / "n.parquet").select(["z", "a"]).equals(csv.read_csv(tmp_path / "n.csv"))


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["t.pkl", "t.pickle", "t.pt", "t.pth", "t.joblib", "t.npz", "t.parquet"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str) -> None:
    """Under its own name, as an object array within an NPZ, and under another format's name: nothing of it runs."""
    mark, file = tmp_path / "ran", tmp_path / name
    if name == "t.npz":
        np.savez(file, a=np.array([Trap(mark)], dtype=object))
    else:
        file.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(InputError, match="not opened" if name not in ("t.npz", "t.parquet") else "cannot be read"):
        formats(file)
    assert not mark.exists()
    if name == "t.pkl":
        pickle.loads(file.read_bytes())
        assert mark.exists()                                           # the trap does bite


def test_arrays_that_are_no_table_say_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(InputError, match="no table"):
        formats(tmp_path / "w.npz")
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2,y\n")
    with pytest.raises(InputError, match="numbers without gaps"):
        formats(tmp_path / "t.csv", to="safetensors")
