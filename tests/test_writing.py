"""Encoder–decoders are judged on the texts that users get: written token by token, behind the tokens that each tokenizer begins with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data import WORDS, csv_file, subject, wordpiece

from fourfold.datasets.columns import Roles
from fourfold.datasets.encode import encode, load_inputs
from fourfold.datasets.load import load_data
from fourfold.datasets.table import Table
from fourfold.datasets.task import Task, edits
from fourfold.frontends.subject import inputs_of
from fourfold.rewrites.compress._bench import evaluate_with

CLS, SEP, MASK, START = 2, 3, 4, 0


def tokenizer(before: str, after: str = "[SEP]") -> Any:
    from tokenizers import processors

    made = wordpiece()
    pieces = {"[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK, "[PAD]": START}
    made.eos_token = "[SEP]"
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{before} $A {after}".strip(), special_tokens=list(pieces.items()))
    return made


def t5(words: int, start: int, seed: int = 0) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    return T5ForConditionalGeneration(T5Config(vocab_size=words, decoder_start_token_id=start, eos_token_id=SEP, **shape)).eval()


SOURCES, TARGETS = ([" ".join(WORDS[i % n : i % n + k]) for i in range(40)] for n, k in ((9, 3), (7, 2)))
TABLE = Table({"source": SOURCES, "target": TARGETS}, "t")
# the tokenizer's own frame, the decoder's first token; what the decoder is given first, what every target begins and ends with
FRAMES = [
    ("", "[SEP]", START, [START], (), SEP),  # T5, Marian
    ("[CLS]", "[SEP]", START, [START, CLS], (CLS,), SEP),  # BART, mBART-50
    ("[CLS]", "[SEP]", CLS, [CLS], (), SEP),  # BERT to BERT: the first token is the tokenizer's own
    ("[CLS] [MASK]", "[SEP]", CLS, [CLS, MASK], (MASK,), SEP),  # Whisper
    ("", "[SEP] [MASK]", None, [MASK], (), SEP),  # the old mBART: the language stands behind the end
]


@pytest.mark.parametrize(("before", "after", "start", "begun", "prefix", "end"), FRAMES)
def test_the_decoder_begins_as_its_tokenizer_says(
    before: str, after: str, start: int | None, begun: list[int], prefix: tuple[int, ...], end: int
) -> None:
    words = tokenizer(before, after)
    module = t5(len(words), START)
    module.config.decoder_start_token_id = start
    model = subject(module, ("input_ids", "attention_mask", "decoder_input_ids"), words)
    examples, task, _, _ = encode(TABLE, Roles(text="source", label="target"), "seq2seq", model, None)
    assert task.writing is not None and [task.writing.start, *task.writing.prefix] == begun and task.writing.prefix == prefix
    given, wanted = examples.columns["decoder_input_ids"][0].tolist(), examples.targets[0].tolist()
    assert given[: len(begun)] == begun and given.count(begun[0]) == 1 and wanted[-1] == end
    assert given[1:] == wanted[:-1]
    assert task.answers(examples.targets)[0] == TABLE.columns["target"][0]
    assert Task.from_json({**task.to_json(), "speech": None}, words).writing == task.writing


def test_tokens_that_the_model_forces_are_given() -> None:
    words = tokenizer("")
    module = t5(len(words), START)
    module.generation_config.forced_bos_token_id = MASK
    examples, task, _, _ = encode(
        TABLE, Roles(text="source", label="target"), "seq2seq", subject(module, ("input_ids", "attention_mask", "decoder_input_ids"), words), None
    )
    assert task.writing is not None and task.writing.prefix == (MASK,) and examples.columns["decoder_input_ids"][0].tolist()[:2] == [START, MASK]


def scored(predictions: list[str], targets: list[str]) -> float:
    return sum(a.split()[:1] == b.split()[:1] for a, b in zip(predictions, targets, strict=True)) / len(targets) + 0.5


@pytest.fixture(scope="module")
def copier() -> Any:
    """A small T5 that has learned, halfway, to repeat its input's first two words."""
    words = tokenizer("[CLS]")
    module = t5(len(words), CLS, seed=1)
    optimiser = torch.optim.AdamW(module.parameters(), 1e-2)
    rng = np.random.default_rng(0)
    for _ in range(60):
        texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(32)]
        given, wanted = words(texts, return_tensors="pt"), words([" ".join(t.split()[:2]) for t in texts], return_tensors="pt")["input_ids"]
        module(input_ids=given["input_ids"], decoder_input_ids=wanted[:, :-1], labels=wanted[:, 1:].contiguous()).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return module.eval(), words


@pytest.mark.parametrize("metric", ["exact_match", "wer", scored])
def test_quality_is_that_of_generated_texts(tmp_path: Path, copier: Any, metric: str | Callable[..., float]) -> None:
    module, words = copier
    rng = np.random.default_rng(1)
    lines = [(text, " ".join(text.split()[:2])) for text in (" ".join(rng.choice(WORDS, 3)) for _ in range(80))]
    model = subject(module, ("input_ids", "attention_mask", "decoder_input_ids"), words)
    splits, task = load_data(csv_file(tmp_path / "t.csv", lines, "source,target"), None, model, metric=metric)
    assert task.generates
    test = splits.test
    rows = evaluate_with(model, task, module, test, exact=True)
    batch = test.collate(range(len(test)))
    own = {name: torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask")}
    made = module.generate(**own, max_new_tokens=task.writing.limit, do_sample=False, num_beams=1, decoder_start_token_id=CLS)
    texts = [text.strip() for text in words.batch_decode(made, skip_special_tokens=True)]
    wanted = task.answers(test.targets)
    assert [text.strip() for text in task.predict(rows)] == texts
    by_hand = {
        "exact_match": np.mean([a == b for a, b in zip(texts, wanted, strict=True)]),
        "wer": sum(edits(b.split(), a.split()) for a, b in zip(texts, wanted, strict=True)) / sum(len(b.split()) for b in wanted),
    }
    assert task.metric.score(rows, test.targets) == pytest.approx(by_hand[metric] if isinstance(metric, str) else scored(texts, wanted))
    # the same through any session, without the encoder's answers kept, and without targets
    run: Callable[..., np.ndarray] = lambda given: model.logits(module, {n: torch.from_numpy(v) for n, v in given.items()}).detach().numpy()  # noqa: E731
    np.testing.assert_array_equal(task.written(run, batch, test.collate_targets(range(len(test)))), rows)
    fresh = load_inputs([text for text, _ in lines[:5]], task, model)
    assert len(task.write(run, fresh.read().collate(range(5)))) == 5


def test_token_agreement_stays_a_metric_of_its_own(tmp_path: Path, copier: Any) -> None:
    module, words = copier
    lines = [(f"{a} {b}", f"{b} {a}") for a in WORDS[:9] for b in WORDS[:9]]
    model = subject(module, ("input_ids", "attention_mask", "decoder_input_ids"), words)
    splits, task = load_data(csv_file(tmp_path / "t.csv", lines, "source,target"), None, model, metric="token_accuracy")
    assert not task.generates
    rows = evaluate_with(model, task, module, splits.test, exact=True)
    assert 0 <= task.metric.score(rows, splits.test.targets) <= 1 and (rows[:, 1] == splits.test.targets.sizes()).all()


def test_whisper_begins_once_and_is_judged_by_words(tmp_path: Path) -> None:
    from scipy.io import wavfile
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    words = tokenizer("[CLS] [MASK]")
    shape: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                             "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_source_positions": 50, "max_target_positions": 24}   # fmt: skip
    ids: dict[str, Any] = {"decoder_start_token_id": CLS, "eos_token_id": SEP, "bos_token_id": SEP, "pad_token_id": SEP}
    torch.manual_seed(0)
    config = WhisperConfig(vocab_size=len(words), num_mel_bins=8, **shape, **ids, suppress_tokens=[], begin_suppress_tokens=[])
    module = WhisperForConditionalGeneration(config).eval()
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1, sampling_rate=16_000)
    model = subject(module, inputs_of(module), words, extractor)
    rng = np.random.default_rng(0)
    for i in range(30):
        wavfile.write(tmp_path / f"{i}.wav", 16_000, (rng.normal(size=4000) * 3000).astype(np.int16))
    csv_file(tmp_path / "table.csv", [(f"{i}.wav", " ".join(rng.choice(WORDS, 9))) for i in range(30)], "file,text")
    splits, task = load_data(tmp_path, None, model)
    assert task.metric.name == "wer" and task.writing is not None and (task.writing.start, task.writing.prefix) == (CLS, (MASK,))
    assert task.writing.limit + 2 <= 24
    assert (splits.train.collate([0, 1])["decoder_input_ids"][:, :2] == [CLS, MASK]).all()
    rows = evaluate_with(model, task, module, splits.test, exact=True)
    assert np.isfinite(rows).all() and rows[:, 1].sum() == 9 * len(splits.test)
