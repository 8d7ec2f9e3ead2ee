"""An artefact measured again on new data: what is true passes, what is not is named with the interval that was violated, and its exit code."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import fourfold
from fourfold.cli.main import run
from fourfold.datasets.encode import load_labelled
from fourfold.datasets.metrics import METRICS
from fourfold.datasets.task import Task
from fourfold.errors import ArtefactError, InputError, ModelError
from fourfold.frontends.model import load_model
from fourfold.host import here
from fourfold.jobs.optimize.final_race import prepare
from fourfold.jobs.verify import outside
from fourfold.runtime.artefact import Assembly, Part, Setting
from fourfold.runtime.original import NAME, digest
from fourfold.runtime.saving import save

WORDS = [f"w{i}" for i in range(50)]
CLASSES = ["water", "fire"]                                             # not in the order of the alphabet


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "original"
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32,
        id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)}, initializer_range=0.5,
    )  # fmt: skip
    model, dice = BertForSequenceClassification(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():                                               # both classes are as frequent, whatever the random head prefers
        scores = model(torch.randint(2, len(vocabulary), (200, 6), generator=dice)).logits
        model.classifier.bias[1] -= (scores[:, 1] - scores[:, 0]).median()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", model_max_length=32).save_pretrained(folder)
    return folder


def rows(folder: Path, count: int, seed: int, file: Path) -> list[str]:
    """Texts, labelled by the model itself but for one in ten."""
    dice, subject = np.random.default_rng(seed), load_model(str(folder))
    texts = [" ".join(dice.choice(WORDS, size=dice.integers(3, 9))) for _ in range(count)]
    subject.module.eval()
    with torch.no_grad():
        logits = subject.module(**subject.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits.numpy()
    answers = logits.argmax(1)
    answers = np.where(dice.random(count) < 0.1, 1 - answers, answers)
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("text", "label"), *zip(texts, (CLASSES[k] for k in answers), strict=True)])
    return texts


@pytest.fixture(scope="module")
def data(original: Path) -> Path:
    file = original.parent / "new.csv"
    rows(original, 240, 1, file)
    return file


def artefact(original: Path, folder: Path, data: Path, changes: dict[str, Any] | None = None, stored: bool = False) -> Path:
    """The original with a little noise on its weights, saved with a manifest of what is true of it; `changes` are what it lies about."""
    subject = load_model(str(original))
    subject.module.eval()
    kept = digest(subject.module)
    task = Task("classification", CLASSES, METRICS["accuracy"], named=True)
    examples = load_labelled(str(data), task, subject)
    module = deepcopy(subject.module)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.003 * weight.std().nan_to_num(0.0) * torch.randn(weight.shape, generator=dice)
    subject.inputs = tuple(name for name in subject.inputs if name in examples.columns)
    part = Part("member-0", subject, module, None, Setting("torch", "fp32", 1, 32, True))
    assert prepare(part, examples, folder.parent / "engine")[1] is None
    spread = {"value": 1.0, "low": 0.97, "high": 1.03, "n": 300}
    facts = {
        "candidate": {"test_quality": spread, "agreement": {**spread, "value": 0.95, "low": 0.9, "high": 0.99},
                      "relative_energy": {"value": 1.0, "low": 0.3, "high": 3.0}, "relative_latency": None},
        "floor": 0.9, "objective": "energy", "fingerprint": here().fingerprint, "data": {"metric": "accuracy"},
        "baseline": {"setting": part.setting.to_json()},
        "original": {"kind": "folder", "reference": str(original), "sha256": kept},
    }  # fmt: skip
    facts["candidate"] |= (changes or {}).get("candidate", {})
    facts |= {key: value for key, value in (changes or {}).items() if key != "candidate"}
    extra = {}
    if stored:
        whole = Part("original", subject, subject.module, None, part.setting, part.signature)
        records = whole.outputs(examples, task)
        half = len(examples) // 2
        extra[NAME] = json.dumps({"rows": {str(g): r.tolist() for g, r in zip(examples.groups[:half].tolist(), records[:half], strict=True)}})
    return save(Assembly("small", [part]), task, folder, facts, extra=extra)


def process(*words: str) -> tuple[int, Any, str]:
    done = subprocess.run(
        [sys.executable, "-m", "fourfold", "verify", *words], capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    return done.returncode, json.loads(done.stdout) if "--json" in words else done.stdout, done.stderr


def test_what_is_true_holds_in_a_fresh_process(original: Path, data: Path, tmp_path: Path) -> None:
    folder = artefact(original, tmp_path / "cheap", data)
    code, found, _ = process(str(folder), "--data", str(data), "--budget", "2s", "--json")
    assert code == 0 and found["holds"], found
    assert [check["name"] for check in found["checks"]] == ["floor", "quality", "agreement", "energy"]
    assert all(check["verdict"] == "holds" for check in found["checks"]) and found["rows"] == 240
    quality = found["checks"][1]["measured"]
    assert quality["low"] <= quality["value"] <= quality["high"] and 0.9 < quality["value"] < 1.1


def test_a_missed_floor_exits_with_3_and_says_by_how_much(original: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = artefact(original, tmp_path / "cheap", data, {"floor": 1.0})
    found = fourfold.verify(folder, str(data), cost=False, strict=True)
    assert found.exit_code == 3 and found["floor"].by < 0 and "points below" in found["floor"].why
    assert run(["verify", str(folder), "--data", str(data), "--no-cost", "--strict"]) == 3
    assert "Does not hold: floor" in capsys.readouterr().out


@pytest.mark.parametrize(
    "lie, name",
    [
        ({"relative_energy": {"value": 0.01, "low": 0.009, "high": 0.011}}, "energy"),
        ({"relative_energy": {"value": 80.0, "low": 79.0, "high": 81.0}}, "energy"),
        ({"agreement": {"value": 0.9999, "low": 0.9999, "high": 1.0}}, "agreement"),
        ({"test_quality": {"value": 1.5, "low": 1.49, "high": 1.51}}, "quality"),
    ],
)
def test_a_stated_figure_that_is_not_so_exits_with_4_and_is_named(
    original: Path, data: Path, tmp_path: Path, lie: dict[str, Any], name: str
) -> None:
    folder = artefact(original, tmp_path / "cheap", data, {"candidate": lie})
    found = fourfold.verify(folder, str(data), budget=1.5)
    assert found.exit_code == 4 and [check.name for check in found.failed] == [name]
    assert "the stated interval" in found[name].why
    assert np.sign(found[name].by) == (1 if lie[next(iter(lie))]["value"] == 0.01 else -1)


def test_costs_of_another_processor_are_told_and_not_judged(original: Path, data: Path, tmp_path: Path) -> None:
    lie = {"candidate": {"relative_energy": {"value": 0.01, "low": 0.009, "high": 0.011}}, "fingerprint": "another"}
    found = fourfold.verify(artefact(original, tmp_path / "cheap", data, lie), str(data), budget=1.5)
    assert found.exit_code == 0 and found["energy"].verdict == "not checked" and not found.same_machine
    assert found["energy"].measured is not None


def test_without_the_original_its_stored_answers_serve(original: Path, data: Path, tmp_path: Path) -> None:
    gone = {"original": {"kind": "folder", "reference": str(tmp_path / "gone"), "sha256": "0"}}
    folder = artefact(original, tmp_path / "cheap", data, gone, stored=True)
    found = fourfold.verify(folder, str(data))
    assert found.rows == 120 and found.original == "stored answers" and "left out" in found.warnings[0]
    assert found["quality"].verdict == "holds" and found["energy"].verdict == "not checked"
    other = tmp_path / "other.csv"
    rows(original, 60, 5, other)
    with pytest.raises(InputError, match="--original"):
        fourfold.verify(folder, str(other))


def test_counted_words_are_saved_loaded_and_verified(original: Path, data: Path, tmp_path: Path) -> None:
    from fourfold.rewrites.compress.bag_of_words import fit

    table = list(csv.DictReader(data.open()))
    words = fit([row["text"] for row in table], np.array([CLASSES.index(row["label"]) for row in table]), CLASSES, strength=1.0)
    part = Part("bag-of-words", load_model(str(original)), None, None, Setting("numpy", "fp32", 1, 256, False), words=words)
    facts = {
        "candidate": {"test_quality": {"value": 1.0, "low": 0.2, "high": 1.8}}, "floor": 0.1, "objective": "energy", "fingerprint": "another",
        "data": {"metric": "accuracy"}, "baseline": {"setting": Setting().to_json()},
    }  # fmt: skip
    folder = save(Assembly("words", [part]), Task("classification", CLASSES, METRICS["accuracy"], named=True), tmp_path / "cheap", facts)
    found = fourfold.verify(folder, str(data), original=str(original), budget=1.0)
    assert found.exit_code == 0 and found["quality"].verdict == "holds" and found["energy"].measured is not None


def test_another_model_is_not_taken_for_the_original(original: Path, data: Path, tmp_path: Path) -> None:
    folder = artefact(original, tmp_path / "cheap", data)
    other = load_model(str(original)).module
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    other.save_pretrained(tmp_path / "other")  # type: ignore[operator]
    load_model(str(original)).tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="weights are others"):
        fourfold.verify(folder, str(data), original=str(tmp_path / "other"))


def test_a_manifest_makes_no_factory_run(original: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    noted = {"original": {"kind": "factory", "reference": "trap:model", "sha256": "0"}}
    folder = artefact(original, tmp_path / "cheap", data, noted)
    with pytest.raises(InputError, match="--original"):
        fourfold.verify(folder, str(data))
    noted["original"]["kind"] = "folder"
    with pytest.raises(InputError, match="--original"):
        fourfold.verify(artefact(original, tmp_path / "cheap2", data, noted), str(data))
    assert "trap" not in sys.modules


def test_faults_are_two_lines(original: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = artefact(original, tmp_path / "cheap", data), tmp_path / "bad.csv"
    for content in ("text,label\n", "text\nw1 w2\n", "text,label\nw1,ice\nw2,fire\n", "text,label\nw1,fire\nw2,water\n", ""):
        file.write_text(content)
        assert run(["verify", str(folder), "--data", str(file), "--no-cost"]) == 2, content
        said = capsys.readouterr().err.strip().splitlines()
        assert 1 <= len(said) <= 2 and said[0].startswith("error: "), said
    assert run(["verify", str(tmp_path), "--data", str(data)]) == 2 and run(["verify", str(folder), "--data", str(data), "--floor", "200%"]) == 2


def test_rows_without_labels_are_held_against_the_originals_answers(original: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("\n".join(["text", *(row["text"] for row in csv.DictReader(data.open()))]))
    found = fourfold.verify(artefact(original, tmp_path / "cheap", data), str(file), cost=False)
    assert [check.name for check in found.checks] == ["floor", "agreement"] and "no labels" in found.warnings[0]
    assert found["floor"].measured["value"] == found["agreement"].measured["value"] < 1


def test_damaged_answers_are_named(original: Path, data: Path, tmp_path: Path) -> None:
    from fourfold.runtime.original import remembered

    (tmp_path / NAME).write_text("[1")
    with pytest.raises(ArtefactError, match=NAME):
        remembered(tmp_path, load_labelled(str(data), Task("classification", CLASSES, METRICS["accuracy"]), None))


def test_labels_are_numbered_as_the_manifest_numbers_them(original: Path, data: Path) -> None:
    task = Task("classification", CLASSES, METRICS["accuracy"], named=True)
    with_it, without = load_labelled(str(data), task, load_model(str(original))), load_labelled(str(data), task, None)
    words = [row["label"] for row in csv.DictReader(data.open())]
    assert with_it.targets.tolist() == without.targets.tolist() == [CLASSES.index(word) for word in words]
    assert with_it.groups.tolist() == without.groups.tolist()


def test_two_measurements_of_one_thing_rarely_contradict_each_other() -> None:
    dice = np.random.default_rng(0)
    sides = []
    for _ in range(4000):
        first, second = dice.normal(1.0, 0.02), dice.normal(1.0, 0.05)
        stated = {"value": first, "low": first - 1.645 * 0.02, "high": first + 1.645 * 0.02}
        sides.append(np.sign(outside(stated, {"value": second, "low": second - 1.645 * 0.05, "high": second + 1.645 * 0.05})))
    below, above = np.mean(np.array(sides) < 0), np.mean(np.array(sides) > 0)
    assert 0.035 < below < 0.065 and 0.035 < above < 0.065
    assert outside({"value": 0.1, "low": 0.09, "high": 0.11}, {"value": 0.3, "low": 0.29, "high": 0.31}, log=True) == pytest.approx(0.19, abs=0.01)
