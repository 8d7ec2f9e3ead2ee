"""What `predict` takes and gives: a row an answer, whatever form the rows come in, and a bad row costs that row."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import served

import fourfold
from fourfold.cli.main import run
from fourfold.datasets.asked import asked
from fourfold.errors import InputError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("answers")
    return {
        "words": served.saved(at / "words", [served.words()]),
        "network": served.saved(at / "network", [served.part(at / "files", "torch")]),
        "cascade": served.saved(at / "cascade", [served.words(), served.part(at / "more", "torch")], [0.5]),
    }


@pytest.fixture(scope="module", params=["words", "network", "cascade"])
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    return fourfold.load(folders[request.param])


@pytest.fixture(scope="module")
def network(folders: dict[str, Path]) -> Any:
    return fourfold.load(folders["network"])


TEXTS = served.texts(12, 31)


def test_every_form_gives_the_same_answers(model: Any, tmp_path: Path) -> None:
    import pandas

    wanted = model.predict(TEXTS)
    assert len(wanted) == 12 and wanted.errors == {} and set(wanted) <= {f"class {i}" for i in range(3)}
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *[[row["id"], row["text"]] for row in rows]])
    forms = [
        tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), pandas.Series(TEXTS), (text for text in TEXTS), iter(TEXTS),
        dict.fromkeys(TEXTS).keys(), rows, pandas.DataFrame(rows), {"text": TEXTS}, {"id": list(range(12)), "text": TEXTS},
        tmp_path / "a.txt", str(tmp_path / "a.txt"), tmp_path / "a.jsonl", tmp_path / "a.csv", str(tmp_path / "a.csv"),
    ]  # fmt: skip
    for form in forms:
        assert model.predict(form) == wanted, type(form)
    assert model.predict(TEXTS[0]) == wanted[:1] and model.predict({"text": TEXTS[0]}) == wanted[:1]
    assert model.predict([]) == []


def test_what_looks_like_nothing_or_a_number_is_a_text(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("5").write_text("a file of that name")
    Path("word1").mkdir()
    for text in ("", "5", "nan", " ", "None", "-", "word1", "a/b", "x" * 5000, "1.5", "true", "null\0null"):
        answers = model.predict([text])
        assert answers[0] is not None and answers.errors == {}
        assert model.predict(text) == answers
    assert model.predict(["5", "7"]).errors == {} and model.predict({"text": ["5", ""]}).errors == {}
    assert model.predict([5, 7.5]) == model.predict(["5", "7.5"])
    with pytest.raises(InputError, match="no file"):
        model.predict("gone.csv")


def test_a_bad_row_costs_one_row(model: Any, tmp_path: Path) -> None:
    wanted = model.predict(TEXTS[:3])
    given = [TEXTS[0], None, TEXTS[1], float("nan"), ["x"], TEXTS[2], b"bytes", {"text": "x"}]
    found = model.predict(given)
    assert [found[i] for i in (0, 2, 5)] == wanted
    assert list(found.errors) == [1, 3, 4, 6, 7] and all(found[i] is None for i in found.errors)
    assert found.errors[1] == "there is no text"
    rows = [{"text": TEXTS[0]}, {"other": 1}, "no dict", {"text": TEXTS[1]}]
    found = model.predict(rows)
    assert [found[0], found[3]] == wanted[:2] and list(found.errors) == [1, 2]
    assert model.predict([None]) == [None]

    (tmp_path / "b.jsonl").write_text(f'{json.dumps({"text": TEXTS[0]})}\nnot json\n\n{json.dumps({"text": TEXTS[1]})}\n')
    found = model.predict(tmp_path / "b.jsonl")
    assert found == [wanted[0], None, wanted[1]] and list(found.errors) == [1]
    (tmp_path / "b.csv").write_text(f"id,text\n1,{TEXTS[0]}\n2,secret,three,cells\n3,{TEXTS[1]}\n")
    found = model.predict(tmp_path / "b.csv")
    assert found == [wanted[0], None, wanted[1]] and "secret" not in found.errors[1]
    (tmp_path / "b.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}")
    assert [model.predict(tmp_path / "b.txt")[i] for i in (0, 2)] == wanted[:2]


def test_pairs(network: Any) -> None:
    import pandas

    pairs = list(zip(TEXTS[:4], TEXTS[4:8], strict=True))
    wanted = network.predict(pairs)
    assert network.predict([list(pair) for pair in pairs]) == wanted
    assert network.predict(pandas.DataFrame(pairs, columns=["premise", "hypothesis"])) == wanted
    assert network.predict(pandas.DataFrame(pairs, columns=["p", "q"]), columns={"text": "p", "pair": "q"}) == wanted
    found = network.predict([pairs[0], (pairs[1][0], None), pairs[2]])
    assert [found[0], found[2]] == [wanted[0], wanted[2]] and list(found.errors) == [1]
    assert not np.allclose(network.records(pairs), network.records([first for first, _ in pairs]))


def test_arrays_lose_only_the_row_that_is_broken(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from fourfold.engines.base import Signature
    from fourfold.frontends.model import load_model
    from fourfold.runtime.artefact import Part, Setting

    torch.manual_seed(0)
    subject = load_model(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    signature = Signature.of(subject.inputs, [{subject.inputs[0]: np.zeros((4, 5), np.float32)}])
    part = Part("net", subject, subject.module, None, Setting(), signature)
    model = fourfold.load(served.saved(tmp_path / "mlp", [part]))
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    wanted = model.predict(x)
    assert len(wanted) == 6 and wanted.errors == {}
    for form in (list(x), x.tolist(), torch.from_numpy(x), {"x": x}, (row for row in x), [torch.from_numpy(row) for row in x]):
        assert model.predict(form) == wanted
    broken = x.copy()
    broken[2, 1] = np.nan
    found = model.predict(broken)
    assert found[2] is None and list(found.errors) == [2] and [found[i] for i in (0, 1, 3, 4, 5)] == [wanted[i] for i in (0, 1, 3, 4, 5)]
    found = model.predict([x[0], np.zeros((2, 5)), "text", x[1]])
    assert [found[0], found[3]] == wanted[:2] and list(found.errors) == [1, 2]


# ---- the command line ----------------------------------------------------------------------------------------------------------------------------


def test_scores_probabilities_identity_and_inputs(folders: dict[str, Path], network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["key", "text", "note"], *[[f"k{i}", text, "n"] for i, text in enumerate(TEXTS[:4])]])
    here = ["predict", str(folders["network"]), "--data", str(tmp_path / "in.csv")]
    assert run([*here, "--scores", "--probabilities", "--id", "key", "--out", str(tmp_path / "out.csv")]) == 0
    assert "4 predictions in" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    records = network.records(TEXTS[:4])
    assert list(rows[0]) == ["key", "prediction", *[f"{word} class {i}" for word in ("score", "probability") for i in range(3)]]
    np.testing.assert_allclose([[float(row[f"score class {i}"]) for i in range(3)] for row in rows], records, atol=1e-6)
    chances = np.array([[float(row[f"probability class {i}"]) for i in range(3)] for row in rows])
    np.testing.assert_allclose(chances.sum(1), 1)
    assert [row["prediction"] for row in rows] == network.predict(TEXTS[:4]) == [f"class {i}" for i in chances.argmax(1)]
    assert [row["key"] for row in rows] == ["k0", "k1", "k2", "k3"]

    assert run([*here, "--with-inputs", "--id", "key", "--out", str(tmp_path / "out.jsonl")]) == 0
    objects = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert list(objects[0]) == ["key", "text", "note", "prediction"] and objects[1]["text"] == TEXTS[1]
    capsys.readouterr()
    assert run([*here, "--probabilities"]) == 0
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out)))[0]["prediction"] == rows[0]["prediction"]
    assert run([*here, "--id", "nothing"]) != 0
    assert "no column 'nothing'" in capsys.readouterr().err
    assert run([*here, "--out", str(tmp_path / "out.xls")]) != 0


def test_bad_rows_are_told_and_the_rest_is_answered(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(f'{json.dumps({"text": TEXTS[0]})}\n{{"text": null}}\n{json.dumps({"text": TEXTS[1]})}\n')
    here = ["predict", str(folders["words"]), "--data", str(tmp_path / "in.jsonl")]
    assert run(here) == 0
    told = capsys.readouterr()
    assert "row 2: there is no text" in told.err and len(told.out.splitlines()) == 3
    assert run([*here, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["predictions"][1] is None and document["errors"] == {"2": "there is no text"}
    assert run([*here, "--out", str(tmp_path / "out.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [bool(row["prediction"]) for row in rows] == [True, False, True] and rows[1]["error"] == "there is no text"


@pytest.mark.parametrize("objects", [False, True])
def test_standard_input(objects: bool, folders: dict[str, Path]) -> None:
    model = fourfold.load(folders["words"])
    given = "\n".join(json.dumps({"text": text}) if objects else text for text in TEXTS) + "\n"
    command = [sys.executable, "-m", "fourfold", "predict", str(folders["words"]), "--data", "-"]
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == model.predict(TEXTS)


def test_one_text_may_say_anything(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(folders["words"]), "--text", "", "--text", "5", "--text", "nan"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_folder_of_files_without_classes_is_answered_file_by_file(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", ".hidden"):
        (tmp_path / name).touch()
    found = asked(tmp_path, SimpleNamespace(inputs=("pixel_values",)))  # type: ignore[arg-type]
    assert found.nature == "images" and [Path(one).name for one in found.columns["file"]] == ["a.png", "b.png"]
