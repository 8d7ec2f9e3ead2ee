"""What outputs mean: losses, records and predictions against plain re-computation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fourfold.datasets.task import IGNORE, Speech, Task, default_metric, edits
from fourfold.errors import InputError


def task(kind: str, **more: Any) -> Task:
    return Task(kind, more.pop("classes", None), default_metric(kind), **more)


def test_losses_equal_the_plain_ones() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    assert task("classification").loss(z, y) == functional.cross_entropy(z, y)
    assert task("regression").loss(z[:, :1], y.float()) == functional.mse_loss(z[:, 0], y.float())
    z, y = torch.randn(2, 5, 7), torch.tensor([[1, 2, 3, 4, 5], [6, 1, IGNORE, IGNORE, IGNORE]])
    shifted = functional.cross_entropy(torch.cat([z[0, :4], z[1, :1]]), torch.tensor([2, 3, 4, 5, 1]))
    assert task("causal_lm").loss(z, y).item() == pytest.approx(shifted.item(), abs=1e-6)
    plain = functional.cross_entropy(torch.cat([z[0], z[1, :2]]), torch.tensor([1, 2, 3, 4, 5, 6, 1]))
    assert task("seq2seq").loss(z, y).item() == pytest.approx(plain.item(), abs=1e-6)
    with pytest.raises(InputError, match="no loss on labels"):
        task("custom").loss(z, y)


def test_ctc_loss_reads_only_real_frames() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(2, 10, 5), torch.tensor([[1, 2, 3], [4, IGNORE, IGNORE]])
    mask = torch.tensor([[1] * 100, [1] * 40 + [0] * 60])
    found = task("ctc").loss(z, y, {"attention_mask": mask})
    changed = z.clone()
    changed[1, 4:] += torch.randn(6, 5)
    assert task("ctc").loss(changed, y, {"attention_mask": mask}) == found != task("ctc").loss(changed, y)


def test_distillation_ignores_padding_and_vanishes_for_equal_answers() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    y = torch.tensor([[1, 2, 3, 4, 5], [6, 1, IGNORE, IGNORE, IGNORE]])
    for kind in ("causal_lm", "seq2seq"):
        found = task(kind).distil_loss(student, teacher, y)
        other = student.clone()
        other[1, 2:] += 3
        assert task(kind).distil_loss(other, teacher, y).item() == pytest.approx(found.item(), abs=1e-6)
        assert task(kind).distil_loss(teacher, teacher, y).item() == pytest.approx(0, abs=1e-6)
    flat = task("classification").distil_loss(student[:, 0], teacher[:, 0], torch.tensor([0, 1]), 3.0)
    p, q = (teacher[:, 0] / 3).softmax(-1), (student[:, 0] / 3).softmax(-1)
    assert flat.item() == pytest.approx(float((p * (p / q).log()).sum(-1).mean() * 9), rel=1e-4)
    assert task("regression").distil_loss(student[:, 0, :1], teacher[:, 0, :1]) == functional.mse_loss(student[:, 0, :1], teacher[:, 0, :1])
    frames = torch.tensor([[True] * 5, [True, False, False, False, False]])
    other = student.clone()
    other[1, 1:] = 0
    assert task("ctc").distil_loss(other, teacher, frames).item() == pytest.approx(task("ctc").distil_loss(student, teacher, frames).item(), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["causal_lm", "seq2seq"]))
def test_token_records_are_sums_over_asked_tokens(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(size=(3, 6, 5)).astype(np.float32) * 3, rng.integers(0, 5, (3, 6))
    for row, size in enumerate(rng.integers(2, 7, 3)):
        targets[row, size:] = IGNORE
    records = task(kind).records(logits, {}, targets)
    for row in range(3):
        pairs = [(t, targets[row, t + 1]) for t in range(5)] if kind == "causal_lm" else [(t, targets[row, t]) for t in range(6)]
        pairs = [(t, want) for t, want in pairs if want != IGNORE]
        nll = sum(math.log(np.exp(logits[row, t].astype(float)).sum()) - float(logits[row, t, want]) for t, want in pairs)
        right = sum(int(logits[row, t].argmax()) == want for t, want in pairs)
        assert records[row] == pytest.approx([nll, len(pairs), float(right == len(pairs)), right], rel=1e-5)
    tail = np.concatenate([logits, rng.normal(size=(3, 2, 5)).astype(np.float32)], axis=1)
    padded = np.concatenate([targets, np.full((3, 2), IGNORE)], axis=1)
    assert task(kind).records(tail, {}, padded) == pytest.approx(records)


@settings(max_examples=100, deadline=None)
@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edits_are_the_least_number(a: str, b: str) -> None:
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = min(table[i, j] + (a[i] != b[j]), table[i, j + 1] + 1, table[i + 1, j] + 1)
    assert edits(a, b) == table[-1, -1]


def test_speech_is_decoded_and_counted() -> None:
    speech = Speech(("", "|", "A", "B", "C"))
    frames = np.eye(5)[[2, 2, 0, 2, 1, 3, 3, 4, 0]]
    assert speech.text(speech.greedy(frames)) == "AA BC"
    kind = task("ctc", speech=speech, width=8)
    wanted = np.array([[2, 2, 1, 3, 3, IGNORE]])
    records = kind.records(frames[None], {}, wanted)
    assert records[0, :2].tolist() == [1, 2] and kind.predict(records) == ["AA BC"] and kind.answers(wanted) == ["AA BB"]


def test_predictions_are_for_people() -> None:
    assert task("classification", classes=["no", "yes"]).predict(np.array([[0.1, 0.9], [2, 1]])) == ["yes", "no"]
    assert task("regression").predict(np.array([[1.5], [2]])) == [1.5, 2.0]
    assert task("causal_lm").predict(np.array([[math.log(8) * 3, 3, 0, 0]])) == pytest.approx([8.0])
    confident = task("classification").confidence(np.array([[0.0, 0.0], [0, 100]]))
    assert confident.tolist() == [0.5, 1.0]


def test_text_to_text_keeps_the_tokens_where_they_are_wanted() -> None:
    kind = task("seq2seq", width=3, decoder=lambda rows: ["-".join(map(str, row)) for row in rows])
    logits = np.eye(6)[[[4, 5, 1]]]
    records = kind.records(logits, {}, np.array([[4, 5, IGNORE]]))
    assert records[0, :4].tolist()[1:] == [2, 1, 2] and kind.predict(records) == ["4-5"]
    assert kind.predict(kind.records(logits, {}, None)) == ["4-5-1"]


def test_the_users_metric_sees_the_users_labels() -> None:
    seen: list[Any] = []

    def mine(predictions: Any, targets: Any) -> float:
        seen.append((predictions, targets))
        return 1.0

    records, targets = np.array([[0.1, 0.9], [2, 1]]), np.array([1, 1])
    named = task("classification", classes=["no", "yes"], named=True).with_metric(mine)
    assert named.metric.name == "mine" and named.metric.score(records, targets) == 1.0
    task("classification", classes=["0", "1"]).with_metric(mine).metric.score(records, targets)
    assert seen == [(["yes", "no"], ["yes", "yes"]), ([1, 0], [1, 1])]
    assert named.with_metric("f1").metric.name == "f1" and named.with_metric(None) is named
    with pytest.raises(InputError, match="does not measure a classification task"):
        named.with_metric("wer")
    with pytest.raises(InputError, match="A metric is a name or a function"):
        named.with_metric(7)  # type: ignore[arg-type]


def test_it_travels_as_json() -> None:
    for one in (task("classification", classes=["a", "b"], named=True), task("ctc", speech=Speech(("", "|", "A")))):
        again = Task.from_json(one.to_json())
        assert replace(again, metric=one.metric) == one and again.metric.name == one.metric.name


def test_the_originals_answers_can_be_the_labels() -> None:
    assert task("classification").labelled(np.array([[0, 1], [1, 0]])).tolist() == [1, 0]
    assert task("regression").labelled(np.array([[0.5], [2]])).tolist() == [0.5, 2.0]
