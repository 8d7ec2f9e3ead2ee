"""int8 by our own modules: the arithmetic, the plan, and that a state dict finds its place in a bare architecture."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from fourfold.recipe import Recipe, apply
from fourfold.rewrites.compress.quantise import Int8Embedding, Int8Linear, Quantise, fit_range, narrow, plan, product, round_rows, to_bf16

MODES = ["int8", "int8-static", "int8-weights"]


def noise(got: torch.Tensor, right: torch.Tensor) -> float:
    return float((got - right).norm() / right.norm())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), inside=st.integers(1, 200), outside=st.integers(1, 60), seed=st.integers(0, 99))
def test_the_integer_product_is_exact(rows: int, inside: int, outside: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = (rng.integers(-128, 128, (n, inside)).astype(np.int8) for n in (rows, outside))
    got = product(torch.from_numpy(left), torch.from_numpy(right))
    assert np.array_equal(got.numpy(), left.astype(np.int64) @ right.astype(np.int64).T)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 50), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_rounding_is_off_by_half_a_step_at_most(rows: int, columns: int, scale: float, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    q, step = round_rows(weight)
    assert q.dtype == torch.int8 and step.shape == (rows,)
    assert ((q.float() * step[:, None] - weight).abs() <= 0.5001 * step[:, None]).all()


def test_rows_of_zeros_stay_zero() -> None:
    q, step = round_rows(torch.zeros(3, 4))
    assert not q.any() and torch.isfinite(step).all()


@pytest.mark.parametrize("mode", ["dynamic", "static", "weights"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_answers_nearly_the_same(mode: str, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 96, bias=bias), torch.randn(4, 7, 128) * 2 + 0.3
    step, zero = fit_range(x.flatten(), float(x.min()), float(x.max()))
    with torch.inference_mode():
        got, right = Int8Linear.of(layer, mode, step, zero)(x), layer(x)
    assert got.shape == right.shape and got.dtype == right.dtype
    assert noise(got, right) < 0.02


def test_a_token_that_is_loud_does_not_drown_the_others() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(10, 64)
    x[3] *= 1000
    with torch.inference_mode():
        got, right = Int8Linear.of(layer, "dynamic")(x), layer(x)
    assert max(noise(got[i], right[i]) for i in range(10)) < 0.03


def test_gpt2_layers_are_stored_the_other_way_round() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer, x = Conv1D(96, 64), torch.randn(2, 5, 64)
    with torch.inference_mode():
        got, right = Int8Linear.of(layer, "dynamic")(x), layer(x)
    assert got.shape == (2, 5, 96) and noise(got, right) < 0.02


def test_static_range_clips_an_outlier() -> None:
    values = torch.cat([torch.randn(200_000, generator=torch.Generator().manual_seed(0)), torch.tensor([15.0])])
    step, zero = fit_range(values, float(values.min()), 15.0)
    full = (15.0 - float(values.min())) / 255
    assert step < 0.9 * full and -128 <= zero <= 127


def test_static_range_is_lopsided_where_the_values_are() -> None:
    values = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    step, zero = fit_range(values, 0.0, 1.0)
    assert zero == -128 and step == pytest.approx(1 / 255, rel=0.1)


def test_embedding_rows() -> None:
    torch.manual_seed(0)
    table, ids = nn.Embedding(50, 16, padding_idx=0), torch.tensor([[0, 3, 49]])
    with torch.inference_mode():
        got, right = Int8Embedding.of(table)(ids), table(ids)
    assert noise(got, right) < 0.01 and not got[0, 0].any()


class Tied(nn.Module):
    """An embedding whose table is the output head's too, between them a layer, one too small to bother with and one that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.small = nn.Embedding(300, 64), nn.Linear(64, 64), nn.Linear(64, 8)
        self.unused, self.head = nn.Linear(64, 64), nn.Linear(64, 300, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.table(ids)).relu()
        return self.head(x + self.small(x).sum(-1, keepdim=True))


def by_path(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {edit["path"]: edit for edit in recipe.edits}


def test_the_plan_gives_its_reasons() -> None:
    torch.manual_seed(0)
    edits = by_path(plan(Tied().eval(), "int8", [(torch.arange(20)[None],)]))
    assert edits["layer"]["mode"] == "dynamic" and "table" not in edits
    assert {path: edit["mode"] for path, edit in edits.items() if path != "layer"} == {"small": "skip", "unused": "skip", "head": "skip"}
    assert "512 weights" in edits["small"]["reason"] and "output" in edits["head"]["reason"] and "never called" in edits["unused"]["reason"]


def test_a_shared_table_stays_shared() -> None:
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.arange(20)[None]
    quantised = apply(copy.deepcopy(model), plan(model, "int8-weights", [(ids,)]))
    assert quantised.head.weight.data_ptr() == quantised.table.weight.data_ptr()
    with torch.inference_mode():
        assert noise(quantised(ids), model(ids)) < 0.02


@pytest.mark.parametrize("precision", MODES)
def test_a_state_dict_fills_the_bare_architecture(precision: str) -> None:
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.arange(20)[None]
    recipe = Recipe(tuple(json.loads(plan(model, precision, [(ids,)]).to_json())["edits"]))
    trained = apply(copy.deepcopy(model), recipe)
    stored = save({name: tensor.contiguous().clone() for name, tensor in trained.state_dict().items()})
    torch.manual_seed(1)
    bare = apply(Tied().eval(), recipe)
    bare.load_state_dict(load(stored))
    with torch.inference_mode():
        assert torch.equal(bare(ids), trained(ids))
        assert noise(trained(ids), model(ids)) < 0.05


@pytest.mark.parametrize("precision", MODES)
def test_a_plain_transformer_does_not_take_its_fused_path(precision: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(2, 6, 64)
    recipe = plan(model, precision, [(x,)])
    assert {edit["mode"] for path, edit in by_path(recipe).items() if path.endswith("out_proj")} == {"skip"}
    quantised = apply(copy.deepcopy(model), recipe)
    with torch.inference_mode():
        assert noise(quantised(x), model(x)) < 0.05


def test_static_without_data_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration"):
        plan(Tied(), "int8-static", [])


def test_nothing_to_do_is_said() -> None:
    tiny = nn.Sequential(nn.Linear(4, 4))
    reason = Quantise().declines(tiny)
    assert reason is not None and "Sequential" in reason and Quantise().declines(Tied()) is None
    assert not plan(tiny, "int8", []).edits


def test_bf16_makes_no_infinity_of_a_mask() -> None:
    lowest = torch.finfo(torch.float32).min
    narrowed = narrow(torch.tensor([lowest, -lowest, float("-inf"), 1.0]))
    assert narrowed.dtype == torch.bfloat16
    assert torch.isfinite(narrowed[:2]).all() and torch.isinf(narrowed[2])
    model = to_bf16(nn.Linear(4, 4))
    model.register_buffer("ids", torch.arange(3))
    assert model.weight.dtype == torch.bfloat16 and model.ids.dtype == torch.int64


def test_int8_keeps_the_float_type_of_its_neighbours() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64), torch.randn(3, 64)
    got = Int8Linear.of(layer, "dynamic")(x.bfloat16())
    assert got.dtype == torch.bfloat16 and noise(got.float(), F.linear(x, layer.weight, layer.bias).detach()) < 0.03
