"""A decoder on ONNX Runtime answers as the packed module does in eager PyTorch; its products with packed weights are MatMulNBits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import GRIDS, VOCABULARY, decoder, furthest, prompts

from fourfold.engines.decode.base import TOLERANCE
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.errors import Declined
from fourfold.rewrites.compress._packed import PackedWeight
from fourfold.rewrites.weight_precision import Grid, WeightPlan, packed, uniform

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
import onnx

from fourfold.engines.decode import onnxruntime as way


@pytest.mark.parametrize("kind", ["llama", "gemma", "opt", "gpt2"])
def test_it_answers_as_eager_does(kind: str, tmp_path: Path) -> None:
    module = decoder(kind)
    way.export(module, tmp_path)
    found = way.OnnxDecoding(tmp_path)
    assert furthest(found, EagerDecoding(module)) < TOLERANCE["fp32"] and found.vocabulary == VOCABULARY


@pytest.mark.parametrize(("bits", "group", "offset"), GRIDS)
def test_packed_weights_are_multiplied_as_codes(bits: int, group: int, offset: str, tmp_path: Path) -> None:
    module = decoder("llama")
    plain = sum({p.data_ptr(): p.numel() for p in module.parameters()}.values()) * 4
    made = packed(module, WeightPlan("p", "compress/round_to_nearest", uniform(module, Grid(bits, group, offset))), lambda m: None)
    for precision in way.PRECISIONS:
        files = way.export(made, tmp_path, precision)
        found = way.OnnxDecoding(tmp_path, 1, precision)
        assert furthest(found, EagerDecoding(made)) < TOLERANCE[precision]
        nodes = Counter(node.op_type for node in onnx.load(tmp_path / files[1]).graph.node)
        assert nodes["MatMulNBits"] == 2 * 5 + 1 and found.bytes < 0.85 * plain                # keys and values are too small to gain
        assert found.describe()["weights"] == sorted({f"int{bits}-weights", "int8-weights"})
        found.close()


def test_blocks_are_powers_of_two_and_rows_without_any_stay_float() -> None:
    assert [way.block_of(PackedWeight(4, inputs, Grid(8, 0, "symmetric"))) for inputs in (576, 1536, 48, 24)] == [64, 128, 16, 0]
    assert way.block_of(PackedWeight(4, 192, Grid(4, 32))) == 32


def test_states_are_copied_joined_and_weighed(tmp_path: Path) -> None:
    module = decoder("llama")
    way.export(module, tmp_path)
    found, token = [], np.full((3, 1), 5)
    for d in (way.OnnxDecoding(tmp_path), EagerDecoding(module)):
        a, _ = d.start(prompts(), 20)
        b = d.copied(a, 6, 30)
        d.step(a, token)
        c, _ = d.start({"input_ids": np.full((2, 4), 9)}, 30)
        whole = d.joined([c, b])
        assert d.state_bytes(whole) == 5 * 6 * 4 * 2 * 2 * 2 * 16
        found.append((d.step(whole, np.full((5, 2), 7)), d.step(a, token)))
    for x, y in zip(*found, strict=True):
        assert np.abs(x - y).max() < TOLERANCE["fp32"] * np.abs(y).max()


def test_it_is_opened_in_one_call_and_refuses_in_words(tmp_path: Path) -> None:
    module = decoder("opt")
    assert way.opened(module, prompts()).describe()["engine"] == "onnxruntime"
    assert "not bf16" in str(way.declines("bf16", object())) and way.declines("fp32", object()) is None
    way.export(module, tmp_path)
    if "CUDAExecutionProvider" not in __import__("onnxruntime").get_available_providers():
        with pytest.raises(Declined, match="no cuda"):
            way.OnnxDecoding(tmp_path, device="cuda")
    with pytest.raises(Declined, match="takes? a memory|does not take"):
        way.opened(torch.nn.Linear(2, 2), prompts())
