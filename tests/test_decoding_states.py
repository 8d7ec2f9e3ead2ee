"""What a model remembers, copied and joined: rows go on as if they had been together, or apart, from the beginning."""

from __future__ import annotations

import numpy as np
import pytest
from decoded import TableDecoding
from test_generate import MODELS, WORDS, made, prompts

from fourfold.decisions.drafting.problem import DraftChoice
from fourfold.engines.decode.base import Decoding
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.errors import Declined
from fourfold.runtime.drafting.continuous import ORDERS, RowBatching, answer_all
from fourfold.runtime.drafting.drafters import CopyDrafter, ModelDrafter
from fourfold.runtime.drafting.gate import gate
from fourfold.runtime.drafting.prefix import PrefixCache
from fourfold.runtime.drafting.speculative import generate
from fourfold.runtime.generate import generate as plainly


def tokens(rows: int, count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(3, WORDS, (rows, count))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cached", [True, False])
def test_a_copy_is_another_and_the_first_goes_on(name: str, cached: bool) -> None:
    model, inputs = EagerDecoding(made(name), cached=cached), prompts(name)
    state, _ = model.start(inputs, 30)
    length, more = state.seen, tokens(3, 4)
    model.step(state, more[:, :2])
    copy = model.copied(state, length + 1, 30)
    assert copy.seen == length + 1 and 0 < model.state_bytes(copy) <= model.state_bytes(state)
    first, again = model.step(state, more[:, 2:]), model.step(copy, more[:, 1:])
    assert np.abs(again[:, 1:] - first).max() < 1e-4
    model.rows(state, [0])
    assert model.step(copy, more[:, :1]).shape == (3, 1, WORDS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cached", [True, False])
def test_joined_rows_go_on_as_apart(name: str, cached: bool) -> None:
    """A batch that has been going on, and one that is new and shorter; a row of padding goes, and there is room as before."""
    model, inputs, more = EagerDecoding(made(name), cached=cached), prompts(name), tokens(3, 6)
    shared = {n: v for n, v in inputs.items() if name in ("t5", "whisper")}
    old = {n: v[:2] for n, v in inputs.items()}
    new = {n: v[2:] if n in shared else v[2:, 4:] for n, v in inputs.items()}
    (one, _), (other, _) = model.start(old, 20), model.start(new, 17)
    expected = [model.copied(state, room=30) for state in (one, other)]
    for state in (one, expected[0]):
        model.step(state, more[:2, :2])
    if name == "whisper":                                              # its decoder counts positions by the cache
        with pytest.raises(Declined, match="equally far"):
            model.joined([one, other])
        for state in (other, expected[1]):
            model.step(state, more[2:, :2])
    together = model.joined([one, other])
    assert together.rows == 3 and together.seen >= expected[0].seen and together.room - together.seen >= 20 - expected[0].seen
    for at in (2, 3):
        both = model.step(together, more[:, at : at + 1])
        apart = np.concatenate([model.step(expected[0], more[:2, at : at + 1]), model.step(expected[1], more[2:, at : at + 1])])
        assert np.abs(both - apart).max() < 1e-4
    model.rows(together, [2])
    assert np.abs(model.step(together, more[2:, 4:]) - model.step(expected[1], more[2:, 4:])).max() < 1e-4


def test_encoders_of_different_lengths_are_not_joined() -> None:
    model, inputs = EagerDecoding(made("t5")), prompts("t5")
    states = [model.start({n: v[:1] if n == "decoder_input_ids" else v[:1, :size] for n, v in inputs.items()}, 9)[0] for size in (9, 5)]
    with pytest.raises(Declined, match="different lengths"):
        model.joined(states)


def test_an_engine_that_keeps_its_memory_declines() -> None:
    class Closed(TableDecoding):
        name = "closed"
        copied, joined, state_bytes = Decoding.copied, Decoding.joined, Decoding.state_bytes  # type: ignore[assignment]

    model = Closed(5, 0)
    state, _ = model.start({"input_ids": np.ones((1, 3), np.int64)}, 5)
    for ask in (lambda: model.copied(state), lambda: model.joined([state]), lambda: model.state_bytes(state)):
        with pytest.raises(Declined, match="closed"):
            ask()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("whisper",)])
def test_real_models_say_the_same_with_drafts(name: str) -> None:
    """Copies, and another model of the same family that agrees by chance; one text and three side by side."""
    inputs, model = prompts(name), EagerDecoding(made(name))
    plain = plainly(model, inputs, 14).tokens
    for choice, drafter in ((DraftChoice("copy-1", 4), CopyDrafter(1)), (DraftChoice("twin", 3, True), ModelDrafter(EagerDecoding(made(name))))):
        drafted = generate(model, inputs, 14, drafter, choice, tie=1e-4)
        assert [row.tolist() for row in drafted.tokens] == plain
        assert drafted.wide and drafted.accepted


@pytest.mark.parametrize("order", ORDERS)
def test_a_real_model_answers_a_file_of_prompts_as_each_alone(order: str) -> None:
    model, random = EagerDecoding(made("llama")), np.random.default_rng(0)
    texts = [random.integers(3, WORDS, size) for size in (3, 9, 5, 12, 2, 7, 9)]
    found = answer_all(model, texts, [6, 2, 8, 4, 8, 3, 5], RowBatching(3, order, 1))
    for text, count, row in zip(texts, [6, 2, 8, 4, 8, 3, 5], found.tokens, strict=True):
        assert row.tolist() == plainly(model, {"input_ids": text[None]}, count).tokens[0]


def test_a_real_model_reads_a_shared_beginning_once() -> None:
    model, random = EagerDecoding(made("llama")), np.random.default_rng(0)
    cache, start = PrefixCache(model, 10**7), random.integers(3, WORDS, 24)
    for last in range(4):
        prompt = np.concatenate([start, random.integers(3, WORDS, 2 + last)])[None]
        state, logits = cache.start({"input_ids": prompt}, 40)
        other, plain = model.start({"input_ids": prompt}, 40)
        token = np.array([[7]])
        assert np.abs(logits - plain).max() < 1e-4 and np.abs(model.step(state, token) - model.step(other, token)).max() < 1e-4
    assert cache.hits == 2 and 0 < cache.held <= 10**7 and cache.saved == 48


def test_a_draft_as_dear_as_the_model_is_refused_with_its_figure() -> None:
    module = made("llama")
    verdict = gate(EagerDecoding(module), [{n: v[r : r + 1, 6:] for n, v in prompts("llama").items()} for r in (0, 1)], 10,
                   models={"twin": EagerDecoding(module)}, rounds=3)
    assert verdict.figures["twin"]["acceptance"] == 1.0 and verdict.figures["twin"]["ratio"] > 0.5
    assert verdict.choice.draft != "twin" and verdict.why.endswith(".")
