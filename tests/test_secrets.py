"""What users wrote never stands in an error: a secret word in every cell of files of every kind, damaged in many ways."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fourfold.carbon.hourly import read_hours
from fourfold.carbon.jobs import read_jobs
from fourfold.datasets.asked import asked, encoded
from fourfold.datasets.columns import labels_of, roles_of, sides_of, texts_of, values_of
from fourfold.datasets.encode import load_labelled
from fourfold.datasets.load import load_data
from fourfold.datasets.media import picture, sound
from fourfold.datasets.metrics import METRICS
from fourfold.datasets.sources import read
from fourfold.datasets.table import Table
from fourfold.datasets.task import Task
from fourfold.errors import FourfoldError
from fourfold.frontends.placement import read_placement
from fourfold.text import shown

SECRET = "Geheimnis"
ROWS = [(f"a {SECRET} film", f"{SECRET}"), (SECRET, "1"), (f"{SECRET} {SECRET}", SECRET), ("", SECRET)]


def table_file(delimiter: str, header: str) -> bytes:
    body = "\n".join(delimiter.join(row) for row in ROWS)
    return (f"{header}\n" if header else "").encode() + f"{body}\n".encode()


def parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"text": [a for a, _ in ROWS], "label": [b for _, b in ROWS]}), out)
    return out.getvalue()


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def objects() -> list[dict[str, Any]]:
    return [{"text": a, "label": b, "split": SECRET} for a, b in ROWS]


DATA: dict[str, Callable[[], bytes]] = {
    "a.csv": lambda: table_file(",", "text,label"), "b.csv": lambda: table_file(",", ""), "c.csv": lambda: table_file(";", "text;label"),
    "d.csv": lambda: table_file(",", f"{SECRET},{SECRET}"), "e.tsv": lambda: table_file("\t", ""), "f.csv": lambda: f"{SECRET},7{SECRET}\n".encode(),
    "g.jsonl": lambda: "\n".join(json.dumps(row) for row in objects()).encode(), "h.json": lambda: json.dumps(objects()).encode(),
    "i.json": lambda: json.dumps({"text": [SECRET], "label": [SECRET, SECRET]}).encode(), "j.txt": lambda: f"{SECRET}\n".encode(),
    "k.parquet": parquet, "l.parquet": lambda: SECRET.encode(), "m.npz": lambda: npz(x=np.array([SECRET, "b"]), y=np.array([SECRET])),
    "n.npz": lambda: npz(x=np.array([{SECRET: 1}], object)), "o.npz": lambda: SECRET.encode(), "p.png": lambda: SECRET.encode(),
    "q.wav": lambda: SECRET.encode(), "r.tif": lambda: b"II*\0" + SECRET.encode(),
    "s.jsonl": lambda: f'{{"text": "{SECRET}", "label": {"9" * 5000}}}'.encode(),
    "t.csv": lambda: table_file(",", "text,label,split").replace(b"\n", f",{SECRET}\n".encode()),
    "u.npz": lambda: npz(x=np.zeros((4, 2)), y=[SECRET] * 4),
}  # fmt: skip
OTHER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "jobs.csv": (read_jobs, f"name,hours,kw,release,slack,zone,interruptible,width\n"
                            f"a,{SECRET},2,2022-05-01T00:00Z,{SECRET},{SECRET},{SECRET},{SECRET}\n"),
    "more.csv": (read_jobs, f"name,hours,kw,release,zone,interruptible\na,1,2,2022-05-01T00:00,{SECRET},{SECRET}\n"),
    "bare.csv": (read_jobs, f"{SECRET},{SECRET}\n{SECRET},1\n"), "late.csv": (read_jobs, f"name,hours,release,kw\na,1,{SECRET},2\n"),
    "slack.csv": (read_jobs, f"name,hours,release,kw,slack\na,1,2022-05-01T00:00Z,2,{SECRET}\n"),
    "jobs.json": (read_jobs, f'[{{"name": "a", "hours": "{SECRET}", "kw": 1, "release": "{SECRET}"}}, "{SECRET}"]'),
    "hours.csv": (read_hours, f"time,FR g/kWh\n2022-05-01T00:00Z,{SECRET}\n"), "times.csv": (read_hours, f"time,FR g/kWh\n{SECRET},4\n"),
    "units.csv": (read_hours, f"time,site,value,unit,signal\n2022-05-01T00:00Z,FR,4,{SECRET},{SECRET}\n"),
    "signals.csv": (read_hours, f"time,site,value,unit,signal\n2022-05-01T00:00Z,FR,4,g/kWh,{SECRET}\n2022-05-01T01:00Z,FR,4,g/kWh,average\n"),
    "headless.csv": (read_hours, f"{SECRET},{SECRET}\n{SECRET},1\n"),
    "work.json": (read_placement, json.dumps({"maxSizePerFPGA": SECRET, "maxFPGAs": SECRET, "maxCPUs": 1, 
                                                     "nodes": [{"id": SECRET}], "edges": [SECRET]})),
}  # fmt: skip


def of_columns(table: Table) -> list[Callable[[], Any]]:
    """Every column taken for every role, and the roles guessed."""
    config = type("Config", (), {"id2label": {0: "good", 1: "bad"}})
    steps: list[Callable[[], Any]] = [lambda: roles_of(table, {"text": "nowhere"}, None, "classification")]
    for name in table.columns:
        steps += [lambda name=name: labels_of(table, name, config)]
        steps += [lambda name=name, one=one: one(table, name) for one in (values_of, texts_of, sides_of)]
    return steps + [lambda kind=kind: roles_of(table, None, None, kind) for kind in ("classification", "regression", "seq2seq", "causal_lm")]


def everything(path: Path) -> None:
    """All that is done with a file of data, as far as it goes; each step's error is looked at."""
    from torch import nn

    tasks = [Task("classification", ["good", "bad"], METRICS["accuracy"]), Task("regression", None, METRICS["spearman"])]
    steps: list[Callable[[], Any]] = [lambda: read(path), lambda: asked(path, None), lambda: picture(str(path), 3), lambda: sound(str(path), 16_000)]
    for task in tasks:
        steps += [lambda task=task: load_labelled(path, task, None), lambda task=task: encoded(asked(path, None), task, None)]
    try:
        found = read(path)
    except FourfoldError:
        found = {}
    steps += of_columns(found) if isinstance(found, Table) else []
    if path.suffix == ".npz":
        from fourfold.frontends.model import load_model

        steps.append(lambda: load_data(path, "classification", load_model(nn.Linear(2, 2))))
    for step in steps:
        try:
            made = step()
        except FourfoldError as error:
            assert SECRET.lower() not in str(error).lower(), str(error)
        else:
            reasons = [*made.errors.values()] if hasattr(made, "errors") else []
            assert SECRET.lower() not in " ".join(reasons).lower()


def damaged(data: bytes, how: str, at: float) -> bytes:
    place = int(at * len(data))
    if how == "cut":
        return data[:place]
    if how == "headless":
        return data.partition(b"\n")[2]
    if how == "twice":
        return data[:place] + data
    more = {"quote": b'"', "nul": b"\0", "byte": b"\xe9", "comma": b",,", "brace": b"}{", "line": b"\n", "none": b""}
    return data[:place] + more[how] + data[place:]


HOW = st.sampled_from(["none", "cut", "headless", "twice", "quote", "nul", "byte", "comma", "brace", "line"])


@pytest.mark.parametrize("name", DATA)
@settings(max_examples=25)
@given(how=HOW, at=st.floats(0, 1))
@example(how="none", at=0.0)
@example(how="headless", at=0.0)
def test_no_cell_of_data_is_in_an_error(name: str, how: str, at: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(damaged(DATA[name](), how, at))
        everything(path)


@pytest.mark.parametrize("name", OTHER)
@settings(max_examples=25)
@given(how=HOW, at=st.floats(0, 1))
@example(how="none", at=0.0)
def test_no_cell_of_jobs_and_hours_is_in_an_error(name: str, how: str, at: float) -> None:
    reader, content = OTHER[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(damaged(content.encode(), how, at))
        try:
            reader(path)
        except FourfoldError as error:
            assert SECRET.lower() not in str(error).lower(), str(error)
        else:
            assert how != "none"


def test_a_manifest_of_files_tells_no_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "list.csv").write_text(f"file,label\na.png,x\n{SECRET}.png,y\n")
    with pytest.raises(FourfoldError, match="line 3: there is no such file") as told:
        read(tmp_path)
    assert SECRET not in str(told.value)


def test_figures_and_times_are_shown_and_words_are_not() -> None:
    assert [shown(cell) for cell in ("1,5", " 12 kW", "2022-13-01T00:00Z", None, 3)] == ["'1,5'", "'12 kW'", "'2022-13-01T00:00Z'", "None", "3"]
    assert shown("four score") == "a text of 2 words" and shown("x" * 50) == "a word" and shown("") == "''"
