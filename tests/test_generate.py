"""Generation: with a cache as without one, as transformers itself, over families and pruned shapes; samples as their distribution says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from fourfold.engines.decode.base import DecodingState
from fourfold.engines.decode.eager import EagerDecoding, agree, opened
from fourfold.errors import Declined, InputError
from fourfold.recipe import Recipe, apply
from fourfold.runtime.generate import Sampling, choose, draws, generate, log_probability, probabilities

WORDS = 61
SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 48, "vocab_size": WORDS}
BODY: dict[str, Any] = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**BODY)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(sliding_window=4, **BODY)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=48, vocab_size=WORDS)),
    "opt": lambda: OPTForCausalLM(OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **SHAPE)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, vocab_size=WORDS, decoder_start_token_id=0)),  # pyright: ignore[reportCallIssue]
    "whisper": lambda: WhisperForConditionalGeneration(WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20, max_target_positions=48, vocab_size=WORDS, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1)),
}  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name]().eval()


def prompts(name: str, rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    ids, mask = rng.integers(3, WORDS, (rows, 9)), np.ones((rows, 9), np.int64)
    for row in range(1, rows):
        mask[row, : 2 * row] = 0
    ids[mask == 0] = 0
    if name == "whisper":
        return {"input_features": rng.normal(size=(rows, 8, 40)).astype(np.float32), "decoder_input_ids": np.full((rows, 2), 1)}
    if name == "t5":
        return {"input_ids": ids[:, ::-1].copy(), "attention_mask": mask[:, ::-1].copy(), "decoder_input_ids": np.zeros((rows, 1), np.int64)}
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_changes_no_answer(name: str) -> None:
    module, inputs = made(name), prompts(name)
    model = EagerDecoding(module)
    assert agree(model, EagerDecoding(module, cached=False), inputs, 1e-4, steps=5)
    alone = generate(model, {k: v[:1] for k, v in inputs.items()}, 8)
    together = generate(model, inputs, 8)
    assert together.tokens[0] == alone.tokens[0] and together.scores[0] == pytest.approx(alone.scores[0], abs=1e-3)
    assert all(len(row) == 8 for row in together.tokens) and together.steps == 7


@pytest.mark.parametrize("name", ["llama", "opt", "t5"])
def test_greedy_answers_are_those_of_transformers(name: str) -> None:
    module, inputs = made(name), prompts(name)
    stop = generate(EagerDecoding(module), inputs, 6).tokens[0][2]  # a token that the first row says in the middle
    found = generate(EagerDecoding(module), inputs, 6, stops=[stop])
    given = {k: torch.from_numpy(v) for k, v in inputs.items()}
    theirs = module.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=stop, pad_token_id=0)  # pyright: ignore
    begin = inputs["decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"].shape[1]
    for row, stopped, whole in zip(found.tokens, found.stopped, theirs[:, begin:].tolist(), strict=True):
        assert row == (whole[: whole.index(stop)] if stop in whole else whole[: len(row)]) and stopped == (stop in whole)
    assert found.stopped[0]


def test_pruned_layers_keep_a_cache_of_their_own_size() -> None:
    edits = [{"kind": "absent", "path": "model.layers.0.self_attn", "argument": "hidden_states", "returns": ["zero", None]}]
    for part, rows in (("q_proj", "0-7,8-15"), ("k_proj", "0-7"), ("v_proj", "0-7")):
        edits.append({"kind": "slice", "path": f"model.layers.1.self_attn.{part}", "axis": "out", "index": rows})
    edits.append({"kind": "slice", "path": "model.layers.1.self_attn.o_proj", "axis": "in", "index": "0-15"})
    module = apply(made("llama"), Recipe(tuple(edits)))
    model = opened(module, prompts("llama"))
    assert model.cached, "an attention that is gone must not cost the cache"
    state, _ = model.start(prompts("llama"), 20)
    layers = state.held.memory.memories()  # pyright: ignore[reportAttributeAccessIssue]
    assert [layer.keys.shape[1] if layer.is_initialized else 0 for layer in layers] == [0, 1, 2]


def test_an_attention_made_again_keeps_what_it_read() -> None:
    module = made("opt")
    for number in range(3):
        old = module.model.decoder.layers[number].self_attn  # pyright: ignore
        parts: dict[str, object] = {short: [f"{short}_proj", "0-31"] for short in "qkv"}
        edit = {"argument": "hidden_states", "context": None, "mask": ["attention_mask", "keep"], "returns": ["zero", None], "heads": 4,
               "causal": False, "scale": old.scaling, "batch_first": True, "out": "out_proj", "norm": None, **parts}
        path = f"model.decoder.layers.{number}.self_attn"
        module = apply(module, Recipe(({"kind": "swap", "path": path, "to": "heads", **edit},)))
    inputs = prompts("opt")
    assert opened(module, inputs).cached
    assert generate(EagerDecoding(module), inputs, 6).tokens == generate(EagerDecoding(made("opt")), inputs, 6).tokens


@pytest.mark.parametrize("name", ["gpt2", "whisper"])
def test_a_cropped_and_reordered_state_goes_on_as_if_never_otherwise(name: str) -> None:
    model, inputs = EagerDecoding(made(name)), prompts(name)
    state, _ = model.start(inputs, 30)
    length = state.seen
    token = np.array([[5], [6], [7]])
    want = model.step(state, token)
    model.step(state, np.full((3, 4), 9))
    model.crop(state, length)
    model.rows(state, [2, 0, 0])
    assert state.rows == 3 and np.allclose(model.step(state, token[[2, 0, 0]]), want[[2, 0, 0]], atol=1e-4)
    with pytest.raises(ValueError, match="cropped"):
        model.crop(state, length + 9)


def test_too_long_and_wrongly_padded_prompts_are_refused() -> None:
    model, inputs = EagerDecoding(made("llama")), prompts("llama")
    with pytest.raises(InputError, match="positions for 48"):
        generate(model, inputs, 60)
    with pytest.raises(InputError, match="padded on the right"):
        generate(model, {k: v[:, ::-1] for k, v in inputs.items()}, 2)
    with pytest.raises(InputError, match="0 new tokens"):
        generate(model, inputs, 0)
    with pytest.raises(Declined, match="no transformers model"):
        EagerDecoding(nn.Linear(2, 2))


def test_streaming_tells_every_token_in_order_and_rows_draw_for_themselves() -> None:
    model, inputs, how = EagerDecoding(made("llama")), prompts("llama"), Sampling(1.0, seed=4)
    heard: list[tuple[int, int]] = []
    found = generate(model, inputs, 7, how=how, heard=lambda row, token: heard.append((row, token)))
    assert [[t for r, t in heard if r == row] for row in range(3)] == found.tokens
    last = generate(model, {k: v[2:] for k, v in inputs.items()}, 7, how=how, rng=draws(3, how)[2:])
    assert last.tokens[0] == found.tokens[2]


class Echo(EagerDecoding):
    """Answers fixed logits, so that what is drawn can be counted."""

    def __init__(self, logits: np.ndarray) -> None:  # pyright: ignore[reportMissingSuperCall]
        self.logits, self.vocabulary = logits, len(logits)

    def start(self, inputs: object, room: int) -> tuple[DecodingState, np.ndarray]:
        rows = len(inputs["input_ids"])  # pyright: ignore
        return DecodingState(1, room, np.ones((rows, 1), bool)), np.repeat(self.logits[None], rows, 0)

    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        return np.repeat(self.logits[None, None], len(tokens), 0)


def test_samples_follow_their_probabilities() -> None:
    logits = np.array([2.0, 1.0, 0.5, -1.0, -3.0])
    how = Sampling(0.8, top_k=4, top_p=0.9, seed=2)
    found = generate(Echo(logits), {"input_ids": np.zeros((40, 1), np.int64)}, 100, how=how)
    counts = np.bincount(np.concatenate([np.array(row) for row in found.tokens]), minlength=5) / 4000
    want = probabilities(logits[None], how)[0]
    assert want[3] == want[4] == 0 and np.abs(counts - want).max() < 4 * np.sqrt(0.25 / 4000)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.1, 3), st.integers(0, 5), st.floats(0.05, 1))
def test_what_may_be_drawn_is_the_smallest_likely_set(logits: list[float], heat: float, k: int, p: float) -> None:
    how = Sampling(heat, k, p)
    found = probabilities(np.array([logits]), how)[0]
    plain = probabilities(np.array([logits]), Sampling(heat, k))[0]
    kept = found > 0
    assert found.sum() == pytest.approx(1) and plain[kept].sum() >= p - 1e-9
    assert plain[kept].min() >= plain[~kept].max(initial=0) - 1e-12
    assert plain[kept].sum() - plain[kept].min() < p + 1e-9  # without its least likely token the set would be too small
    assert choose(np.array([logits]), how, draws(1, how))[0] in np.flatnonzero(kept)
    assert np.exp(log_probability(np.array([logits]), np.array([0])))[0] == pytest.approx(probabilities(np.array([logits]), Sampling(1.0))[0, 0])


@pytest.mark.slow
def test_compiled_steps_answer_as_eager_ones() -> None:
    from pathlib import Path

    from fourfold.engines.base import no_compiler
    from fourfold.engines.decode.compiled import CompiledDecoding

    if (why := no_compiler()) is not None:
        pytest.skip(why)
    module, inputs = made("llama"), prompts("llama")
    model = CompiledDecoding.open(Path("."), module, "fp32", 1)
    assert agree(model, EagerDecoding(module), inputs, 1e-4, steps=4)
    stop = generate(EagerDecoding(module), inputs, 8).tokens[0][2]
    assert generate(model, inputs, 8, stops=[stop]).tokens == generate(EagerDecoding(module), inputs, 8, stops=[stop]).tokens
    state, _ = model.start(inputs, 30)
    want = model.step(state, np.array([[5], [6], [7]]))
    model.crop(state, 9)
    model.rows(state, [1, 1, 0])
    assert np.allclose(model.step(state, np.array([[6], [6], [5]])), want[[1, 1, 0]], atol=1e-4)
    for name, said in (("mistral", "sliding"), ("t5", "decoder-only")):
        with pytest.raises(Declined, match=said):
            CompiledDecoding(made(name))
