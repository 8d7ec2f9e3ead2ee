"""`fourfold convert` with a technique of somebody else's: what it says, what it writes, that a fresh process answers alike, that quality is won back
and cost raced; and every way in which it declines, in words."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fourfold
from fourfold import registry
from fourfold.cli import main
from fourfold.errors import ArtefactError, InputError, ModelError
from fourfold.jobs.convert import blocks_of, task_of

TESTS = Path(__file__).parent
FIRE, WATER = ["ember", "flame", "smoke", "burn", "ash", "spark"], ["river", "rain", "wave", "swim", "lake", "drop"]
REST = [f"word{i}" for i in range(30)]
CHILD = """
import json, sys, fourfold
model = fourfold.load(sys.argv[1], trust=["toyroom"])
print(json.dumps([float(x) for row in model.records(sys.argv[2:]) for x in row]))
"""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    with registry.including(TESTS / "toyroom", "toyroom"):
        yield


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """The first theme word, wherever it stands, says which; a second one is of either kind."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        label = int(rng.integers(2))
        words = list(rng.choice(REST, size=rng.integers(5, 14)))
        words.insert(int(rng.integers(len(words))), str(rng.choice([WATER, FIRE][label])))
        found.append((" ".join(words), ["water", "fire"][label]))
    return found


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *texts(700, 0)])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that tells fire from water, as a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *FIRE, *WATER, *REST])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    made = BertForSequenceClassification(BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=32,
        id2label={0: "fire", 1: "water"}, label2id={"fire": 0, "water": 1}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ))  # fmt: skip
    optimiser = torch.optim.AdamW(made.parameters(), lr=3e-3)
    rows = texts(600, 1)
    for step in range(60):
        some = rows[(32 * step) % 576 :][:32]
        batch = tokenizer([text for text, _ in some], padding=True, return_tensors="pt")
        labels = torch.tensor([int(label == "water") for _, label in some])
        made(**{k: v for k, v in batch.items() if k != "token_type_ids"}, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    path = tmp_path_factory.mktemp("model")
    made.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
def test_with_data_quality_is_judged_won_back_and_raced(folder: Path, reviews: Path, tmp_path: Path) -> None:
    made = fourfold.convert(folder, "window-4", data=reviews, budget="10min", floor=0.5, out=tmp_path / "near", ledger=tmp_path / "book.jsonl",
                            seeds=2)
    assert [one["site"] for one in made.sites] == ["encoder.0.attention", "encoder.1.attention"] and not made.exact
    assert made.found is not None and made.moved is not None and made.moved > 1e-5 and made.exit_code == 0
    quality, cost, record = made.found["quality"], made.found["cost"], made.found["record"]
    assert quality["baseline"] > 0.9 and quality["metric"] == "accuracy" and quality["rows"] >= 48
    assert quality["recovered"]["value"] >= 0.9 and quality["recovered"]["low"] <= quality["recovered"]["value"]
    assert len(made.found["trainings"]) == 2 and all(one["steps"] > 0 and len(one["curve"]) > 1 for one in made.found["trainings"])
    assert cost["cpu"]["low"] <= cost["cpu"]["value"] <= cost["cpu"]["high"] and cost["cpu"]["verdict"] in ("cheaper", "no difference", "dearer")
    assert {"metric", "baseline", "value", "interval", "joules", "seeds"} <= set(record) and record["seeds"] == [0, 1]
    assert cost["joules"]["after"] == pytest.approx(cost["joules"]["before"] * cost["cpu"]["value"]) and cost["joules"]["grade"]
    told = "\n".join(made.sentences)
    assert "accuracy on" in told and "distillation from the original" in told and "CPU time" in told and "floor of 50 % is held" in told

    manifest = json.loads((tmp_path / "near" / "manifest.json").read_text())
    assert manifest["trust"] == ["toyroom"] and manifest["conversion"]["to"] == "window-4" and manifest["original"]["kind"] == "folder"
    assert {"conversion.json", "ledger.jsonl"} <= set(manifest["files"])
    row = json.loads((tmp_path / "book.jsonl").read_text().splitlines()[-1])
    assert row["lever"] == "model" and row["job"] == "convert" and row["before"]["unit"] == "J" and row["factor"]["value"] > 0

    some = ["word1 river word2", "word3 flame"]
    wanted = [float(x) for rows in fourfold.load(tmp_path / "near", trust=["toyroom"]).records(some) for x in rows]
    assert fourfold.load(tmp_path / "near", trust=["toyroom"]).predict(some) == ["water", "fire"]
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "near"), *some], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1]) == pytest.approx(wanted, abs=1e-5), done.stderr[-800:]
    with pytest.raises(ArtefactError, match="toyroom.*not trusted"):
        fourfold.load(tmp_path / "near")
    seen = fourfold.verify(tmp_path / "near", reviews, trust=["toyroom"], cost=False)
    assert seen["quality"].verdict == "holds" and seen["floor"].verdict == "holds"


def test_without_data_it_is_saved_as_it_is(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main.run(["convert", str(folder), "--to", "window", "--layers", "1", "--out", str(tmp_path / "far"), "--json", "--ledger",
                     str(tmp_path / "book.jsonl")])
    said = json.loads(capsys.readouterr().out)
    assert code == 0 and [one["site"] for one in said["sites"]] == ["encoder.1.attention"] and said["exact"] and said["moved"] < 1e-5
    assert said["found"] is None and said["predicted"]["flops"]["before"] > 0
    assert said["predicted"]["parameters"]["after"] == said["predicted"]["parameters"]["before"] + 4
    assert "without data" in json.loads((tmp_path / "book.jsonl").read_text().splitlines()[-1])["why"]
    original = fourfold.load(tmp_path / "far", trust=["toyroom"])
    assert original.predict(["word1 river", "word1 ember"]) == ["water", "fire"]
    export = ["export", str(tmp_path / "far"), "--out", str(tmp_path / "plain"), "--to", "hf", "--trust", "toyroom"]
    assert main.run(export) == 2 and "WindowCore" in capsys.readouterr().err and not (tmp_path / "plain").exists()
    assert main.run(["convert", str(folder), "--to", "window", "--dry-run"]) == 0
    assert "2 parts" in (told := capsys.readouterr().out) and "would be converted" in told and "Counted on" in told


@pytest.mark.slow
@pytest.mark.parametrize("to", ["relu-mlp", "window-4"])
def test_a_language_model_is_judged_by_perplexity(to: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *FIRE, *WATER, *REST])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    made = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=0))
    made.save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in texts(300, 5)))
    found = fourfold.convert(tmp_path / "model", to, data=tmp_path / "text.txt", budget="3min", out=tmp_path / "out", max_length=16)
    assert found.found is not None and found.found["quality"]["metric"] == "perplexity" and found.found["trainings"][0]["steps"] > 0
    assert found.found["quality"]["recovered"]["value"] > 0.9 and found.folder is not None
    assert fourfold.load(tmp_path / "out", trust=["toyroom"]).manifest["task"]["kind"] == "causal_lm"


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    made = fourfold.convert(folder, "window-4", out=tmp_path / "none", dry_run=True)
    assert made.dry_run and made.moved is None and not list(tmp_path.iterdir()) and made.folder is None


def test_a_floor_that_is_missed_writes_nothing_and_exits_with_3(folder: Path, reviews: Path, tmp_path: Path) -> None:
    made = fourfold.convert(folder, "window-4", data=reviews, budget="3s", floor=1.0, out=tmp_path / "near")
    assert made.found is not None
    assert {"metric", "baseline", "value", "interval", "joules", "seeds"} <= set(made.found["record"]) and made.found["cost"]["cpu"]["value"] > 0
    if made.found["quality"]["recovered"]["low"] >= 1.0:
        pytest.skip("converted without any loss, which leaves nothing to miss")
    assert made.exit_code == 3 and not (tmp_path / "near").exists() and any("Not written" in note for note in made.notes)


def test_decoders_and_modules_of_the_users_own(tmp_path: Path) -> None:
    from sited import X, model

    made, _ = model("gpt2")
    found = fourfold.convert(made, "window", out=tmp_path / "gpt2")
    assert len(found.sites) == 2 and found.moved is not None and found.moved < 1e-5
    assert fourfold.load(tmp_path / "gpt2", trust=["toyroom"]).manifest["task"]["kind"] == "causal_lm"
    own, _ = model("own")
    found = fourfold.convert(own, "window-4", layers=[0], dims={"input.0": 2, "input.1": 9, "input.2": 32})
    assert [one["path"] for one in found.sites] == ["0.attention"] and found.module is not None
    with torch.no_grad():
        assert found.module(X).shape == own(X).shape
    with pytest.raises(ModelError, match="cannot be guessed"):
        fourfold.convert(own, "window-4")


@pytest.mark.parametrize("given, match", [
    ({"to": "windows"}, "Did you mean window"), ({"to": "zzz"}, "There are: "), ({"to": "window", "layers": "7"}, "no block 7"),
    ({"to": "window", "layers": "x"}, "names no layers"), ({"to": "window", "floor": 0.9}, "held on data"), ({"to": "window", "seeds": 0}, "seeds"),
    ({"to": "window", "task": "song"}, "no task called"),
])
def test_what_cannot_be_is_said_in_two_lines(folder: Path, given: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        fourfold.convert(folder, **given)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 2


def test_a_model_with_nothing_to_convert_is_declined(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="no self-attention") as caught:
        fourfold.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "window", dims={"input.0": 2, "input.1": 4})
    assert len(str(caught.value).splitlines()) == 2
    assert main.run(["convert", "nowhere/", "--to", "windo"]) == 2 and "Did you mean window" in capsys.readouterr().err


def test_layers_are_read_as_ranges() -> None:
    assert blocks_of("all") is None and blocks_of("0-2,5") == {0, 1, 2, 5} and blocks_of([3, 1]) == {1, 3}
    for wrong in ("", "a-b", "-1", [], [-2]):
        with pytest.raises(InputError, match="names no layers"):
            blocks_of(wrong)


def test_the_task_is_read_off_the_head(folder: Path) -> None:
    from fourfold.frontends.model import load_model

    found = task_of(load_model(folder), None)
    assert found.kind == "classification" and found.classes == ["fire", "water"] and found.metric.name == "accuracy"
    assert task_of(load_model(nn.Linear(2, 2)), None).kind == "custom"
