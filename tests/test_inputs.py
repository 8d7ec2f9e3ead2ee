"""What goes into the original is what it was made for: its padding, its pictures, its labels, all of its weights; else it is refused in words."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_data import bert, phrases, wordpiece
from torch import nn

from fourfold.datasets.columns import labels_of
from fourfold.datasets.encode import load_inputs
from fourfold.datasets.examples import Examples, Ragged
from fourfold.datasets.load import load_data
from fourfold.datasets.media import picture
from fourfold.datasets.metrics import METRICS
from fourfold.datasets.sources import read
from fourfold.datasets.table import Table
from fourfold.datasets.task import Task
from fourfold.datasets.unread import Unread
from fourfold.errors import FourfoldError, InputError, ModelError
from fourfold.frontends.model import load_model
from fourfold.frontends.subject import Subject
from fourfold.jobs.optimize.question import best_order, questioned, tried
from fourfold.measure.quality import relative


def table(path: Path, header: str | None, lines: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([header.split(",")] if header else [])
        writer.writerows(lines)
    return path


# ------------------------------------------------------------------------------------------------------------------------------------ padding


@pytest.mark.parametrize("left", [False, True])
def test_batches_are_padded_where_the_tokenizer_pads(tmp_path: Path, left: bool) -> None:
    tokenizer = wordpiece()
    tokenizer.padding_side = "left" if left else "right"
    tokenizer._pad_token_type_id = 3
    made = bert(type_vocab_size=4)
    model = Subject(made.module, {}, (*made.inputs, "position_ids"), tokenizer)
    texts = phrases(40)
    lines = [(text, i % 2) for i, text in enumerate(texts)]
    splits, _ = load_data(table(tmp_path / "r.csv", "text,label", lines), None, model)
    rows = np.arange(6)
    wanted = tokenizer([splits.train.raw[i] for i in rows], padding=True, return_token_type_ids=True, return_tensors="np")  # type: ignore[index]
    for examples in (splits.train, load_inputs(list(splits.train.raw or []), Task("classification", None, METRICS["accuracy"]), model),
                     Unread(splits.train.raw or [], model).read()):
        batch = examples.collate(rows)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            np.testing.assert_array_equal(batch[name], wanted[name], err_msg=name)
        first = batch["attention_mask"].argmax(1)
        assert (batch["position_ids"][np.arange(6), first] == 0).all() and (first.any() == left)
    assert splits.train.take(rows).left == splits.train.left


def test_a_causal_classifier_answers_in_batches_as_alone() -> None:
    """It reads its answer at the last position, so that padding at the wrong side changes it."""
    columns = {"input_ids": Ragged.of([np.arange(1, n + 1) for n in (3, 7, 5)])}
    right, left = (Examples(columns, left=side) for side in ((), ("input_ids",)))
    assert left.collate([0, 1, 2])["input_ids"][:, -1].tolist() == [3, 7, 5] and right.collate([0, 1, 2])["input_ids"][0, -1] == 0
    assert left.digest() != right.digest()


# ----------------------------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_of_every_kind_are_what_they_show(tmp_path: Path) -> None:
    from PIL import Image

    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    colour = np.stack([grey, grey[::-1], grey.T], -1)
    eight = Image.fromarray(grey)
    eight.save(tmp_path / "eight.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.tif")
    for name in ("eight.png", "sixteen.png", "sixteen.tif"):
        for channels in (1, 3):
            found = np.asarray(picture(str(tmp_path / name), channels))
            np.testing.assert_array_equal(found if channels == 1 else found[..., 1], grey, err_msg=name)
    exif = Image.Exif()
    exif[0x0112] = 6
    eight.rotate(90).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(picture(str(tmp_path / "turned.png"), 1)), grey)
    Image.fromarray(colour).quantize(256).save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([colour, grey])).save(tmp_path / "alpha.png")
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.tif")
    for name, near in (("palette.png", 40), ("alpha.png", 0), ("cmyk.tif", 2)):
        found = np.asarray(picture(str(tmp_path / name), 3)).astype(int)
        assert found.shape == (8, 8, 3) and np.abs(found - colour).max() <= near, name
    assert np.asarray(picture(str(tmp_path / "alpha.png"), 4)).shape == (8, 8, 4)
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="32-bit numbers"):
        picture(str(tmp_path / "float.tif"), 3)


# ------------------------------------------------------------------------------------------------------------------------------------ weights


def without(folder: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    kept = {name: value for name, value in load_file(folder / "model.safetensors").items() if part not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_weight_that_the_answer_depends_on_is_in_the_file(tmp_path: Path) -> None:
    module = bert().module
    module.save_pretrained(tmp_path / "full")
    module.save_pretrained(tmp_path / "part")
    without(tmp_path / "part", "pooler")
    assert load_model(tmp_path / "full").module is not None
    with pytest.raises(ModelError, match=r"lack bert\.pooler\.dense\.bias and 1 more") as caught:
        load_model(tmp_path / "part")
    assert len(str(caught.value).splitlines()) == 2
    module.bert.save_pretrained(tmp_path / "body")  # whose answer, the last hidden state, needs no pooler
    without(tmp_path / "body", "pooler")
    first, second = (load_model(tmp_path / "body").module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="holds an adapter.*\n.*merge_and_unload"):
        load_model(tmp_path)


# ------------------------------------------------------------------------------------------------------------------------------------- labels


def labelled(values: list[Any], names: list[str]) -> list[str]:
    found = labels_of(Table({"stars": values}, "r.csv"), "stars", SimpleNamespace(id2label=dict(enumerate(names))))
    return [found.classes[i] for i in found.targets]


@pytest.mark.parametrize("write", [str, int, float, lambda n: f"{n}.0", lambda n: f" {n} ", np.int64, np.float64])
def test_a_number_is_the_same_label_however_it_is_written(write: Any) -> None:
    assert labelled([write(n) for n in (1, 2, 1)], ["1", "2", "3"]) == ["1", "2", "1"]
    assert labelled([write(n) for n in (0, 2, 1)], ["1", "2", "3"]) == ["1", "3", "2"]  # 0 is no name, so these are class numbers
    assert labelled([write(n) for n in (0, 1, 0)], ["no", "yes"]) == ["no", "yes", "no"]
    assert labelled([write(n) for n in (1, 3, 1)], ["1 star", "2 stars", "3 stars"]) == ["1 star", "3 stars", "1 star"]
    with pytest.raises(InputError, match="label 1 in column 'stars' may be the model's class number 1 .'2 stars'. or its class '1 star'"):
        labelled([write(n) for n in (1, 2, 1)], ["1 star", "2 stars", "3 stars"])


def test_which_column_is_the_label_is_not_guessed(tmp_path: Path) -> None:
    model, texts = bert(), phrases(60)
    lines = [(text, i % 2, (i // 2) % 2) for i, text in enumerate(texts)]
    for header in ("text,toxic_label,spam_label", "text,toxic,spam", "text,target,class"):
        with pytest.raises(InputError, match="several columns.*\n.*--label-column") as caught:
            load_data(table(tmp_path / "two.csv", header, lines), None, model)
        assert texts[0] not in str(caught.value)
    load_data(table(tmp_path / "one.csv", "text,label,spam", lines), None, model)
    load_data(table(tmp_path / "same.csv", "text,verdict,colour", [(a, b, "red" if b else "blue") for a, b, _ in lines]), None, model)


def test_the_first_row_is_not_lost(tmp_path: Path) -> None:
    lines = [(text, ["bad", "good"][i % 2]) for i, text in enumerate(phrases(60))]
    bare = read(table(tmp_path / "bare.csv", None, lines))
    assert isinstance(bare, Table) and len(bare) == 60 and "no header" in bare.notes[0]
    named = read(table(tmp_path / "named.csv", "what they said,verdict", lines))
    assert isinstance(named, Table) and len(named) == 60 and not named.notes
    numbers = read(table(tmp_path / "form.csv", "How did you like the film you saw,points", [(a, 3) for a, _ in lines]))
    assert isinstance(numbers, Table) and len(numbers) == 60
    with pytest.raises(InputError, match="line 1: it may be a header or a first row"):
        read(table(tmp_path / "alone.csv", None, [(f"{text} five words more than that {i}",) for i, (text, _) in enumerate(lines)]))


def test_errors_do_not_show_what_people_wrote(tmp_path: Path) -> None:
    secret = "my doctor told me that"
    shapes: list[tuple[str, list[tuple[Any, ...]], Subject]] = [
        ("text,label", [(f"good {i}", secret if i == 7 else "POSITIVE") for i in range(40)], bert(id2label={0: "NEGATIVE", 1: "POSITIVE"})),
        ("text,label", [(f"good {i}", secret if i == 7 else i % 2) for i in range(40)], bert()),
        ("text,label", [(f"good {i}", secret if i == 7 else i / 7) for i in range(40)], bert(num_labels=1)),
        ("text,label", [(f"good {i}", f"{secret} {i}") for i in range(40)], bert()),
        ("text,label", [(f"good {i}", secret) for i in range(40)], bert()),
    ]
    for number, (header, lines, model) in enumerate(shapes):
        with pytest.raises(FourfoldError) as caught:
            load_data(table(tmp_path / f"{number}.csv", header, lines), None, model)
        assert "doctor" not in str(caught.value) and "label" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------- before time is spent


def job(subject: Subject, splits: Any, task: Task, **more: Any) -> Any:
    options = SimpleNamespace(anyway=more.pop("anyway", False))
    return SimpleNamespace(subject=subject, splits=splits, task=task, warnings=[], options=options, **more)


def test_the_first_batch_is_tried(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    lines = [(text, i % 2) for i, text in enumerate(phrases(60))]
    path = table(tmp_path / "r.csv", "text,label", lines)
    size = len(wordpiece())
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "num_labels": 2, "bos_token_id": 2, "eos_token_id": 3}
    for named in ("[PAD]", None, "<beyond>"):  # the last has an id that the model has no row for
        tokenizer = wordpiece()
        tokenizer.pad_token = named
        if named == "<beyond>":
            tokenizer.add_special_tokens({"pad_token": named})
            assert tokenizer.pad_token_id == size
        folder = tmp_path / f"gpt{named}"
        GPT2ForSequenceClassification(GPT2Config(vocab_size=size, pad_token_id=None, **sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = load_model(folder)
        splits, task = load_data(path, None, model)
        if named == "[PAD]":
            tried(found := job(model, splits, task))
            assert not found.warnings
            continue
        with pytest.raises(InputError, match="needs a padding token.*\n.*pad_token_id") as caught:
            tried(job(model, splits, task))
        assert len(str(caught.value).splitlines()) == 2


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x)
        return {"logits": y[:, :2], "pred_boxes": y}


class Wilful(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("sizes do not fit\nat line 7")


def test_outputs_that_are_left_out_are_named_and_a_forward_that_fails_says_so() -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2
    model = load_model(Detector())
    splits, task = load_data((x, y), None, model)
    tried(found := job(model, splits, task))
    assert "pred_boxes [1, 4]" in found.warnings[0] and "logits" not in found.warnings[0]
    with pytest.raises(ModelError, match="cannot answer a batch of its own data: RuntimeError: sizes do not fit\n"):
        tried(job(Subject(Wilful(), {}, ("x",)), splits, task))


def test_padding_that_changes_answers_is_a_warning(tmp_path: Path) -> None:
    class Last(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(input_ids[:, -1] % 2, 2).float()

    lines = [(text, i % 2) for i, text in enumerate(phrases(60))]
    model = Subject(Last(), {}, ("input_ids",), wordpiece())
    splits, task = load_data(table(tmp_path / "r.csv", "text,label", lines), "classification", model)
    tried(found := job(model, splits, task))
    assert "padded batch" in found.warnings[0]


def measured(order: list[int], noise: float, anyway: bool = False) -> Any:
    rng = np.random.default_rng(0)
    classes = len(order)
    targets = rng.integers(0, classes, 300)
    answers = np.where(rng.random(300) < noise, rng.integers(0, classes, 300), np.array(order)[targets])
    examples = Examples({"x": np.zeros((300, 1), np.float32)}, targets, groups=np.arange(300))
    splits = SimpleNamespace(train=examples, search=examples)
    task = Task("classification", [f"class {i}" for i in range(classes)], METRICS["accuracy"])
    return job(Subject(nn.Identity(), {}, ()), splits, task, base_search=np.eye(classes)[answers], anyway=anyway)


def test_an_original_that_is_no_better_than_guessing_is_questioned() -> None:
    questioned(measured([0, 1, 2], 0.1))
    questioned(measured([0, 1, 2], 0.6))
    for order in ([1, 0], [2, 1, 0], [0, 2, 1]):
        with pytest.raises(InputError, match="in another order.*do labels and model belong together.*\n.*--anyway"):
            questioned(measured(order, 0.1))
    with pytest.raises(InputError, match="most frequent class"):
        questioned(measured([0, 0], 0.05))
    questioned(kept := measured([1, 0], 0.1, anyway=True))
    assert "in another order" in kept.warnings[0]


def test_the_best_order_of_classes_is_found() -> None:
    targets = np.arange(300) % 5
    order = np.array([3, 0, 4, 1, 2])
    answers = np.argsort(order)[targets]
    assert best_order(np.eye(5)[answers], targets).tolist() == order.tolist()


@pytest.mark.parametrize(("rows", "hits"), [(8, 1), (8, 2), (120, 2), (120, 3)])
def test_an_interval_is_finite_though_the_original_is_hardly_ever_right(rows: int, hits: int) -> None:
    base = np.tile([0.0, 1.0], (rows, 1))
    other = base.copy()
    base[:hits], other[: hits + 1] = [1, 0], [1, 0]
    found = relative(METRICS["accuracy"], base, other, np.zeros(rows, int))
    assert np.isfinite([found.value, found.low, found.high]).all() and found.low <= found.value <= found.high


def test_optional_inputs_are_not_needed(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForSequenceClassification

    tokenizer = wordpiece()
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, num_labels=2, pad_token_id=0,
                      eos_token_id=3, decoder_start_token_id=0)   # fmt: skip
    T5ForSequenceClassification(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    model = load_model(tmp_path / "t5")
    splits, task = load_data(table(tmp_path / "r.csv", "text,label", [(f"{text} end", i % 2) for i, text in enumerate(phrases(60))]), None, model)
    assert "decoder_input_ids" not in splits.train.columns and task.kind == "classification"
    model.inputs = tuple(name for name in model.inputs if name in splits.train.columns)
    tried(job(model, splits, task))
