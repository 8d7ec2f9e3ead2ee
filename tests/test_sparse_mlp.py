"""Sparse MLP activations: Top-k to the letter, ways of decoding against the dense reference, screening that never misses a unit, and where skipping
is not allowed."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourfold.errors import InputError
from fourfold.nn import SparseMLP, TopK
from fourfold.rewrites.route import sparse_mlp
from fourfold.rewrites.route._sparse_kernels import active, keep_largest, scatter


def layer(way: str = "auto", width: int = 24, hidden: int = 80, seed: int = 0, **more: Any) -> SparseMLP:
    torch.manual_seed(seed)
    return SparseMLP(width, hidden, decode=way, **more).eval()


def reference(m: SparseMLP, x: Tensor) -> Tensor:
    """Written out: no Top-k of ours, no transposed weights."""
    functions = {"relu": torch.relu, "relu_squared": lambda z: torch.relu(z) ** 2, "gelu": nn.functional.gelu, "silu": nn.functional.silu}
    function = functions[m.activation]
    first = m.up if m.gate is None else m.gate
    h = function(x @ first.weight.T + (0 if first.bias is None else first.bias))
    if m.topk is not None:
        for row in h.view(-1, m.hidden):
            order = sorted(range(m.hidden), key=lambda j, r=row: -abs(float(r[j])))
            row[order[m.topk.count(m.hidden):]] = 0.0
    if m.gate is not None:
        h = h * (x @ m.up.weight.T + (0 if m.up.bias is None else m.up.bias))
    return h @ m.down + (0 if m.down_bias is None else m.down_bias)


# ---- Top-k

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, -1.0, 1.0, 2.0, -2.0, 0.5]), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 8))
def test_exactly_k_of_the_largest_are_kept_ties_included(rows: list[list[float]], k: int) -> None:
    x = torch.tensor(rows, requires_grad=True)
    y = TopK(k)(x)
    kept = torch.autograd.grad(y.sum(), x)[0]                           # 1 where kept, 0 elsewhere
    assert set(kept.flatten().tolist()) <= {0.0, 1.0} and (kept.sum(-1) == min(k, 6)).all()
    assert torch.equal(y, x * kept)
    for row, mask in zip(x.detach().abs(), kept.bool(), strict=True):
        assert mask.all() or row[mask].min() >= row[~mask].max()
    ours = x.detach().numpy().copy()
    for row in ours:
        keep_largest(row, min(k, 6))
    assert np.allclose(np.sort(np.abs(ours), -1), np.sort(y.detach().abs().numpy(), -1)), "the compiled loop keeps as many of the same size"
    assert (np.count_nonzero(ours, axis=-1) <= k).all()


def test_k_is_checked_and_shares_are_rounded_up() -> None:
    assert TopK(0.1).count(384) == 39 and TopK(0.1).count(10) == 1 and TopK(1.0).count(7) == 7 and TopK(9).count(4) == 4
    for wrong in (0, -1, 0.0, 1.5, True, "3", None):
        with pytest.raises(InputError, match="cannot keep"):
            TopK(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="int64"):
        TopK(2)(torch.arange(5))
    assert TopK(3)(torch.empty(2, 0)).shape == (2, 0) and TopK(3)(torch.empty(0, 5)).shape == (0, 5)
    assert torch.equal(TopK(5)(torch.arange(5.0)), torch.arange(5.0)) and "5, approximate" in repr(TopK(5, approximate=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_strides(dtype: torch.dtype) -> None:
    x = torch.randn(6, 5, dtype=torch.float64).to(dtype)
    y = TopK(2)(x.t())
    assert y.dtype == dtype and ((y != 0).sum(-1) == 2).all() and torch.equal(y, TopK(2)(x.t().contiguous()))
    tiny = torch.full((1, 4), torch.finfo(torch.float16).tiny / 2, dtype=torch.float16)
    assert int((TopK(2)(tiny) != 0).sum()) == 2, "subnormal numbers count"


def test_nan_is_never_dropped_and_zeros_stay_zeros() -> None:
    x = torch.tensor([[1.0, math.nan, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    for topk in (TopK(1), TopK(1, approximate=True).eval()):
        y = topk(x)
        assert bool(y[0].isnan().any()) and not bool(y[1].any())
    row = x[0].numpy().copy()
    keep_largest(row, 1)
    assert np.isnan(row[1]) and row[2] == 0
    assert torch.equal(TopK(2)(torch.tensor([math.inf, 1.0, -math.inf])), torch.tensor([math.inf, 0.0, -math.inf])), "no 0 · ∞"


def test_gradients_pass_through_what_is_kept() -> None:
    x = torch.linspace(-2, 2, 14, dtype=torch.float64).reshape(2, 7)[:, torch.tensor([3, 0, 6, 1, 5, 2, 4])].add(0.013).requires_grad_()
    assert torch.autograd.gradcheck(TopK(3), (x,))
    m = SparseMLP(5, 9, activation="gelu", k=4, gated=True, dtype=torch.float64)
    assert torch.autograd.gradcheck(m, (torch.randn(3, 5, dtype=torch.float64, requires_grad=True),))


def test_a_threshold_keeps_k_on_average() -> None:
    sample = torch.randn(400, 50, generator=torch.Generator().manual_seed(0))
    topk = TopK(0.2, approximate=True)
    assert topk.calibrate(sample) == pytest.approx(0.2, abs=1e-3) and float((topk.eval()(sample) != 0).float().mean()) == pytest.approx(0.2, abs=1e-3)
    assert ((topk.train()(sample) != 0).sum(-1) == 10).all(), "exact in training"
    whole = TopK(50, approximate=True).eval()
    assert whole.calibrate(sample) == 1.0 and torch.equal(whole(sample), sample)
    with pytest.raises(InputError, match="no activations"):
        topk.calibrate(torch.empty(0, 50))
    again = TopK(0.2, approximate=True)
    again.load_state_dict(topk.state_dict())
    assert torch.equal(again.eval()(sample), topk.eval()(sample))


# ---- the layer

@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["relu", "relu_squared", "gelu", "silu"])
def test_every_way_equals_the_dense_reference(activation: str, gated: bool) -> None:
    for k, bias, rows in ((None, True, 1), (7, True, 4), (0.1, False, 2), (80, True, 3), (500, True, 1)):
        m = layer(activation=activation, gated=gated, k=k, bias=bias)
        x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(rows))
        with torch.no_grad():
            want = reference(m, x)
            assert torch.allclose(m._dense(x), want, atol=1e-5)
            for way in ("sparse", "screened") if activation.startswith("relu") else ("sparse",):
                m.decode = way
                assert torch.allclose(m(x), want, atol=1e-5), (way, k)
                assert torch.allclose(m(x.view(1, rows, 24)), want, atol=1e-5)


def test_k_of_all_units_is_the_dense_mlp() -> None:
    m = layer(k=80)
    dense = nn.Sequential(nn.Linear(24, 80), nn.ReLU(), nn.Linear(80, 24))
    dense.load_state_dict({"0.weight": m.up.weight, "0.bias": m.up.bias, "2.weight": m.down.t(), "2.bias": m.down_bias})
    x = torch.randn(3, 7, 24, requires_grad=True)
    assert torch.allclose(m(x), dense(x), atol=1e-6)
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (m, dense))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_screening_reads_few_rows_and_misses_none(seed: int) -> None:
    from fourfold.rewrites.route._sparse_kernels import screen, sketch

    rng = np.random.default_rng(seed)
    weight, x = rng.standard_normal((600, 128), np.float32), rng.standard_normal((2, 128), np.float32)
    weight[::7] *= 100 ** rng.uniform(-1, 1, (86, 1)).astype(np.float32)
    bias = rng.standard_normal(600).astype(np.float32) - 12
    codes, (scale, error, norm) = np.empty(weight.shape, np.int8), np.empty((3, 600), np.float32)
    sketch(weight, codes, scale, error, norm)
    exact = x @ weight.T + bias
    for k, least in ((600, 0.0), (30, 0.0), (600, 5.0), (1, 0.0)):
        h = np.empty((2, 600), np.float32)
        read = screen(x, weight, bias, codes, scale, error, norm, k, np.float32(least), h)
        want = np.where(exact > least, exact, 0)
        if k < 600:
            want = np.where(want >= np.sort(want, -1)[:, [600 - k]], want, 0)
        assert np.allclose(h, want, atol=1e-3) and 0 < read < 2 * 450, (k, read)
    x[0, 0] = np.inf
    assert screen(x, weight, bias, codes, scale, error, norm, 600, np.float32(0), np.empty((2, 600), np.float32)) == -1


def test_units_are_counted_in_some_row_and_added_up() -> None:
    h = np.array([[0, 1, 0, math.nan, 0, 2], [0, 0, 0, 0, -0.0, 3]], np.float32)
    units = np.empty(6, np.int64)
    assert active(h, units) == 3 and units[:3].tolist() == [1, 3, 5]
    out, weight = np.empty((2, 4), np.float32), np.arange(24, dtype=np.float32).reshape(6, 4)
    scatter(h, units[:3], weight, np.ones(4, np.float32), out)
    assert np.isnan(out[0]).all() and np.allclose(out[1], 3 * weight[5] + 1)
    scatter(np.zeros((2, 6), np.float32), units[:0], weight, np.ones(4, np.float32), out)
    assert (out == 1).all(), "all zero: the bias alone"


def test_units_are_skipped_only_where_that_is_allowed() -> None:
    m, x = layer("sparse"), torch.randn(1, 24)
    with torch.no_grad():
        assert m._decodes(x) and m._decodes(x.view(1, 1, 24)) and m._decodes(torch.randn(4, 24))
        assert not m._decodes(torch.randn(5, 24)) and not m._decodes(torch.empty(0, 24)) and not m._decodes(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not m._decodes(x)
        seen: list[Tensor] = []
        handle = m.active.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        m(x)
        assert len(seen) == 1 and seen[0].shape == (1, 80), "who watches the activations sees them"
        handle.remove()
        assert m._decodes(x) and not m.train()._decodes(x)
        half = copy.deepcopy(m).bfloat16().eval()
        assert half(x.bfloat16()).dtype == torch.bfloat16
    assert not m.eval()._decodes(x), "gradients"
    assert m(torch.empty(0, 24)).shape == (0, 24)
    with torch.inference_mode():
        assert torch.allclose(m(x), reference(m, x), atol=1e-5)
        assert torch.allclose(m(torch.randn(24, 2).t()), m(torch.randn(24, 2).t()), atol=10), "not contiguous"
    with pytest.raises(RuntimeError):
        m(torch.randn(2, 23))


def test_weights_that_change_are_seen() -> None:
    m, x = layer("screened", k=9), torch.randn(2, 24)
    with torch.no_grad():
        m(x)
        m.up.weight.mul_(-1.5)
        m.down.add_(1)
        assert torch.allclose(m(x), reference(m, x), atol=1e-5)
        m.up.weight.data.mul_(-1)
        m.forget()
        assert torch.allclose(m(x), reference(m, x), atol=1e-5)
        other = copy.deepcopy(m)
        other.up.weight.data = torch.randn(80, 24)
        assert torch.allclose(other(x), reference(other, x), atol=1e-5) and torch.allclose(m(x), reference(m, x), atol=1e-5)


def test_bad_numbers_are_passed_on_and_not_hidden() -> None:
    for way in ("dense", "sparse", "screened"):
        m, x = layer(way), torch.randn(2, 24)
        x[0, 3] = math.nan
        with torch.no_grad():
            y = m(x)
        assert bool(y[0].isnan().all()) and bool(y[1].isfinite().all())


def test_sizes_and_names_are_checked() -> None:
    for wrong in ({"width": 0, "hidden": 4}, {"width": 4, "hidden": 0}):
        with pytest.raises(InputError, match="nothing to compute"):
            SparseMLP(**wrong)
    for more, said in (({"activation": "sine"}, "Choose from: relu"), ({"decode": "fast"}, "auto, dense"), ({"k": 0}, "cannot keep"),
                       ({"activation": "gelu", "decode": "screened"}, "not zero below zero")):
        with pytest.raises(InputError, match=said):
            SparseMLP(4, 8, **more)  # type: ignore[arg-type]
    assert "decode=auto" in repr(SparseMLP(4, 8))


def test_a_race_decides_and_is_not_copied() -> None:
    m, x = layer(width=192, hidden=1024, k=0.02), torch.randn(1, 192)
    with torch.no_grad():
        assert torch.allclose(m(x), reference(m, x), atol=1e-4)
        one = m.races()[1]
        assert one.way in sparse_mlp.WAYS and one.share == pytest.approx(0.02, abs=2e-3)
        assert one.way == "dense" or one.cpu < 1
        assert copy.deepcopy(m).races() == {} and set(m.state_dict()) == {"up.weight", "up.bias", "down", "down_bias", "topk.threshold"}
        sparse_mlp._memory(m)["races"][1] = sparse_mlp.DecodeRace(1, "sparse", 0.1, 0.1, 0.001)
        decoder = sparse_mlp._Decoder(m, x, "sparse", m._most(1))
        assert decoder.run() is None and decoder.units > m._most(1), "more units than were raced: torch computes"
        assert torch.allclose(m(x), reference(m, x), atol=1e-4)


def test_state_is_loaded_and_compiled_code_equals(tmp_path: Path) -> None:
    m = layer(k=9, gated=True, activation="silu")
    torch.save(m.state_dict(), tmp_path / "it.pt")
    other = layer(k=9, gated=True, activation="silu", seed=1)
    other.load_state_dict(torch.load(tmp_path / "it.pt", weights_only=True))
    x = torch.randn(2, 24)
    with torch.no_grad():
        assert torch.equal(other._dense(x), m._dense(x))
        compiled = torch.compile(m, backend="aot_eager")
        assert torch.allclose(compiled(x), reference(m, x), atol=1e-5)
        exported = torch.export.export(m, (x,)).module()
        assert torch.allclose(exported(x), reference(m, x), atol=1e-5)


def test_onnx_computes_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    m, x = layer(k=9), torch.randn(2, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(m, (x,), str(tmp_path / "it.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "it.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        assert np.allclose(found, reference(m, x), atol=1e-5)
