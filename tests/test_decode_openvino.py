"""A decoder on OpenVINO answers as the packed module does in eager PyTorch: with a memory that is cropped, reordered and left by rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoders import GRIDS, VOCABULARY, decoder, furthest, prompts
from torch import nn

from fourfold.engines.decode.base import TOLERANCE
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.errors import Declined
from fourfold.rewrites.compress._packed import PackedLinear
from fourfold.rewrites.weight_precision import Grid, WeightPlan, packed, uniform

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
from fourfold.engines.decode import openvino as way


@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma", "opt", "gpt2"])
def test_it_answers_as_eager_does(kind: str, tmp_path: Path) -> None:
    module = decoder(kind)
    way.export(module, tmp_path)
    found = way.OpenVinoDecoding(tmp_path)
    assert furthest(found, EagerDecoding(module)) < TOLERANCE["fp32"]
    assert found.vocabulary == VOCABULARY


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
        for d, state in ((one, a), (other, b)):
            d.step(state, draft)
            d.crop(state, state.seen - 28)
    assert isinstance(a.held, way._Held) and a.held.slots - a.seen < way.LEAST_DEAD + 28
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


def test_states_are_copied_joined_and_weighed(tmp_path: Path) -> None:
    module = decoder("llama")
    way.export(module, tmp_path)
    one, other = way.OpenVinoDecoding(tmp_path), EagerDecoding(module)
    token = np.full((3, 1), 5)
    found = []
    for d in (one, other):
        a, _ = d.start(prompts(), 20)
        d.step(a, token)
        d.rows(a, [1, 2, 0])
        b = d.copied(a, 7, 30)
        d.step(a, token + 1)
        c, _ = d.start({"input_ids": np.full((2, 4), 9)}, 30)
        whole = d.joined([c, b])
        assert (whole.seen, whole.rows, d.state_bytes(whole)) == (7, 5, 5 * 7 * 4 * 2 * 2 * 2 * 16)
        found.append((d.step(whole, np.full((5, 2), 7)), d.step(a, token)))
    for x, y in zip(*found, strict=True):
        assert np.abs(x - y).max() < TOLERANCE["fp32"] * np.abs(y).max()


def test_it_is_opened_in_one_call_and_refuses_in_words() -> None:
    module = decoder("llama")
    found = way.opened(module, prompts())
    assert found.describe()["engine"] == "openvino" and furthest(found, EagerDecoding(module)) < TOLERANCE["fp32"]
    with pytest.raises(Declined, match="encoder–decoders"):
        from transformers import AutoModelForSeq2SeqLM, T5Config

        way.opened(AutoModelForSeq2SeqLM.from_config(T5Config(d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=2, vocab_size=50)), prompts())
    assert way.declines("int3", object()) == "OpenVINO generates in fp32, bf16, int8, not int3" and way.declines("fp32", object()) is None
