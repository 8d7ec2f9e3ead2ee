"""A decoder on OpenVINO answers as the packed module does in eager PyTorch: with a memory that is cropped, reordered and left by rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fourfold.engines.decode.base import TOLERANCE, Decoding
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.errors import Declined
from fourfold.rewrites.compress._packed import PackedLinear
from fourfold.rewrites.weight_precision import Grid, WeightPlan, packed, uniform

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
from fourfold.engines.decode import openvino as way

VOCABULARY = 128


def decoder(kind: str) -> nn.Module:
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {
        "llama": lambda: LlamaConfig(**common, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1),
        "qwen": lambda: Qwen2Config(**common, num_key_value_heads=1, initializer_range=0.1),
        "gemma": lambda: Gemma3TextConfig(**common, num_key_value_heads=1, head_dim=16, sliding_window=6, initializer_range=0.1,
                                          layer_types=["sliding_attention", "full_attention"]),
        "opt": lambda: OPTConfig(vocab_size=VOCABULARY, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4,
                                 max_position_embeddings=64, word_embed_proj_dim=64, init_std=0.1),
        "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64, initializer_range=0.1),
    }[kind]()  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def prompts(seed: int = 0) -> dict[str, np.ndarray]:
    ids, mask = np.random.default_rng(seed).integers(3, VOCABULARY, (3, 7)), np.ones((3, 7), np.int64)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def furthest(one: Decoding, other: Decoding) -> float:
    """Largest difference, as a share of the largest logit: prefill, steps, drafts that are cropped, rows that move, leave and are doubled."""
    tokens, found = np.random.default_rng(1).integers(3, VOCABULARY, (3, 12)), []
    pairs = one.start(prompts(), 40), other.start(prompts(), 40)
    states = pairs[0][0], pairs[1][0]

    def note(a: np.ndarray, b: np.ndarray) -> None:
        assert a.shape == b.shape and a.dtype == np.float32
        found.append(float(np.abs(a - b).max() / np.abs(b).max()))

    def step(rows: slice, columns: slice) -> None:
        note(*(d.step(s, tokens[rows, columns]) for d, s in zip((one, other), states, strict=True)))

    note(pairs[0][1], pairs[1][1])
    whole = slice(0, 3)
    step(whole, slice(0, 1))
    step(whole, slice(1, 5))
    for d, s in zip((one, other), states, strict=True):
        d.crop(s, 9)
    step(whole, slice(5, 7))
    for index in ([2, 0, 1], [1, 2], [1, 1, 0]):
        for d, s in zip((one, other), states, strict=True):
            d.rows(s, index)
        step(slice(0, len(index)), slice(7, 9))
    assert states[0].seen == states[1].seen and np.array_equal(states[0].mask, states[1].mask)
    return max(found)


@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma", "opt", "gpt2"])
def test_it_answers_as_eager_does(kind: str, tmp_path: Path) -> None:
    module = decoder(kind)
    way.export(module, tmp_path)
    found = way.OpenVinoDecoding(tmp_path)
    assert furthest(found, EagerDecoding(module)) < TOLERANCE["fp32"]
    assert found.vocabulary == VOCABULARY


GRIDS = [(8, 0, "symmetric"), (8, 0, "integer"), (4, 32, "symmetric"), (4, 32, "integer"), (4, 32, "fractional")]


@pytest.mark.parametrize(("bits", "group", "offset"), GRIDS)
def test_packed_weights_are_written_as_they_are(bits: int, group: int, offset: str, tmp_path: Path) -> None:
    module = decoder("llama")
    plain = sum({p.data_ptr(): p.numel() for p in module.parameters()}.values()) * 4
    made = packed(module, WeightPlan("p", "compress/round_to_nearest", uniform(module, Grid(bits, group, offset))), lambda m: None)
    way.export(made, tmp_path)
    assert isinstance(made.model.layers[0].mlp.up_proj, PackedLinear)                        # it is put back after tracing
    eager = EagerDecoding(made)
    for precision, cache in (("fp32", ""), ("fp32", "int8"), ("bf16", ""), ("int8", "")):
        found = way.OpenVinoDecoding(tmp_path, 1, precision, cache)
        assert furthest(found, eager) < (TOLERANCE["int8"] if cache else TOLERANCE[precision]), (precision, cache)
        assert found.bytes < 0.6 * plain and found.describe()["weights"] == sorted({f"int{bits}-weights", "int8-weights"})
        found.close()


def test_a_pruned_decoder_whose_layers_differ_is_exported(tmp_path: Path) -> None:
    module = decoder("llama")
    layer = module.model.layers[0]                                                            # half of its heads, one KV group, fewer units
    for name, shape in (("q_proj", (64, 32)), ("k_proj", (64, 16)), ("v_proj", (64, 16)), ("o_proj", (32, 64))):
        setattr(layer.self_attn, name, nn.Linear(*shape, bias=False))
    layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj = nn.Linear(64, 40), nn.Linear(64, 40), nn.Linear(40, 64)
    way.export(module.eval(), tmp_path)
    assert furthest(way.OpenVinoDecoding(tmp_path), EagerDecoding(module)) < TOLERANCE["fp32"]


def test_slots_that_nobody_sees_are_cut_out(tmp_path: Path) -> None:
    module = decoder("llama")
    way.export(module, tmp_path)
    one, other = way.OpenVinoDecoding(tmp_path), EagerDecoding(module)
    (a, _), (b, _) = one.start(prompts(), 400), other.start(prompts(), 400)
    draft = np.random.default_rng(2).integers(3, VOCABULARY, (3, 30))
    for _ in range(4):
        one.step(a, draft), other.step(b, draft)
        one.crop(a, a.seen - 28), other.crop(b, b.seen - 28)
    assert a.held.slots - a.seen < way.LEAST_DEAD + 28
    x, y = one.step(a, draft[:, :2]), other.step(b, draft[:, :2])
    assert np.abs(x - y).max() < TOLERANCE["fp32"] * np.abs(y).max()


def test_two_states_live_beside_each_other_and_requests_are_used_again(tmp_path: Path) -> None:
    module = decoder("llama")
    way.export(module, tmp_path)
    one, token = way.OpenVinoDecoding(tmp_path), np.full((3, 1), 5)
    a, _ = one.start(prompts(), 20)
    b, _ = one.start(prompts(1), 20)
    first = one.step(a, token)
    one.step(b, token)
    del a, b
    assert len(one.free) == 2
    again, _ = one.start(prompts(), 20)
    assert np.allclose(one.step(again, token), first, atol=1e-5) and len(one.free) == 1


def test_it_is_opened_in_one_call_and_refuses_in_words() -> None:
    module = decoder("llama")
    found = way.opened(module, prompts())
    assert found.describe()["engine"] == "openvino" and furthest(found, EagerDecoding(module)) < TOLERANCE["fp32"]
    with pytest.raises(Declined, match="encoder–decoders"):
        from transformers import AutoModelForSeq2SeqLM, T5Config

        way.opened(AutoModelForSeq2SeqLM.from_config(T5Config(d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=2, vocab_size=50)), prompts())
    assert way.declines("int3", object()) == "OpenVINO generates in fp32, bf16, int8, not int3" and way.declines("fp32", object()) is None
