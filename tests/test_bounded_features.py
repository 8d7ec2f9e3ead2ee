"""Random features: unbiased, of the exact variance, with the best A; attention by them: equal to its dense product, causal, streaming, under masks,
in half precision, with gradients, compiled, exported, converted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.rewrites.attend import bounded_features
from fourfold.rewrites.attend._features import (
    RandomFeatures,
    directions,
    optimal_a,
    per_sequence,
    relative_variance,
    trigonometric_variance,
)
from fourfold.rewrites.attend._linear import read_mask
from fourfold.rewrites.attend.bounded_features import BoundedFeatures

H = 2
KINDS = ("bounded", "positive", "trigonometric")
GOLDEN = {0.05: -0.023054, 0.1: -0.043541, 0.25: -0.097597, 0.5: -0.176777, 1: -0.320194, 2: -0.587695, 4: -1.101884}


def inputs(n: int = 37, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return list(torch.randn(3, 2, H, n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def dense(layer: BoundedFeatures, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None, causal: bool = False) -> Tensor:
    """The same estimate with all N × S weights written out, in float64. `keep` [B, S]."""
    maps = copy.deepcopy(layer.maps).double()
    x, y, v = (t.double() * f for t, f in zip((q, k, v), (q.shape[-1] ** -0.25, q.shape[-1] ** -0.25, 1.0), strict=True))
    (f_x, _), (f_y, w) = maps(x, False), maps(y, True)
    weights = (f_x @ f_y.transpose(-1, -2)) * w.exp()[:, :, None]
    if causal:
        weights = weights.tril()
    if keep is not None:
        weights = weights * keep[:, None, None]
    return (weights @ v) / weights.sum(-1, keepdim=True)


# --- features --------------------------------------------------------------------------------------------------------------------------------------

def test_a_is_that_of_the_note_and_of_least_variance() -> None:
    for phi, a in GOLDEN.items():
        assert float(optimal_a(torch.tensor(phi, dtype=torch.float64))) == pytest.approx(a, abs=1e-6)
    for d, phi in ((16, 0.25), (64, 0.1), (7, 2.0)):
        best = float(optimal_a(torch.tensor(phi, dtype=torch.float64)))
        grid = np.arange(-3, 0.0005, 0.001)
        assert abs(grid[np.argmin([relative_variance(a, phi * d, d) for a in grid])] - best) <= 0.001
        assert relative_variance(best, phi * d, d) < relative_variance(0, phi * d, d) == pytest.approx(math.expm1(phi * d))


@pytest.mark.parametrize("square, bounded, positive", [(4, 4.15, 7.32), (8, 11.1, 54.6), (16, 43.0, 2981)])
def test_exact_deviations_of_the_note(square: float, bounded: float, positive: float) -> None:
    a = float(optimal_a(torch.tensor(square / 16, dtype=torch.float64)))
    assert math.sqrt(relative_variance(a, square, 16)) == pytest.approx(bounded, rel=5e-3)
    assert math.sqrt(relative_variance(0, square, 16)) == pytest.approx(positive, rel=5e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [0.5, 1.0, 1.5])
def test_estimates_are_unbiased_with_the_exact_variance(kind: str, norm: float) -> None:
    """Independent directions. Where the fourth moment is heavy the sample variance says little, so that the mean is held to 3.5 exact deviations."""
    d, count = 16, 200_000
    x, y = (norm * F.normalize(torch.randn(d, generator=torch.Generator().manual_seed(s), dtype=torch.float64), dim=0) for s in (1, 2))
    maps = RandomFeatures(1, d, count, kind, orthogonal=False, seed=3).double()  # type: ignore[arg-type]
    square = float((x + y).square().sum())
    maps.phi.fill_(square / d)
    (f_x, _), (f_y, w) = maps(x[None, None, None], False), maps(y[None, None, None], True)
    raw = f_x.flatten() * f_y.flatten() * w.exp().flatten()
    if kind == "trigonometric":
        products = (raw[: count // 2] + raw[count // 2 :]) * math.exp(float(x.square().sum()) / 2)
        exact = trigonometric_variance(float((x - y).square().sum()))
    else:  # what cancels in attention: the query's own factor, and (1 − 4A)^{d/2}
        a = float(maps.a(torch.float64))
        omega = maps.omega[0]
        exponent = a * omega.square().sum(-1) + math.sqrt(1 - 4 * a) * omega @ x
        products = raw * (exponent.max() - x.square().sum() / 2).exp() * (1 - 4 * a) ** (d / 2)
        exact = relative_variance(a, square, d)
    relative = products / torch.exp(x @ y)
    assert abs(float(relative.mean()) - 1) < 3.5 * math.sqrt(exact / len(relative))
    if exact < 30:
        assert float(relative.var()) == pytest.approx(exact, rel=0.25)


def test_orthogonal_directions_of_any_width() -> None:
    for d, count in ((5, 17), (1, 3), (8, 8), (33, 10)):
        omega = directions(count, d, torch.Generator().manual_seed(0)).double()
        assert omega.shape == (count, d)
        for start in range(0, count, d):
            block = F.normalize(omega[start : start + d], dim=1)
            assert torch.allclose(block @ block.T, torch.eye(len(block), dtype=torch.float64), atol=1e-6)
    omega = directions(4000, 6, torch.Generator().manual_seed(1))
    assert float(omega.square().sum(1).mean()) == pytest.approx(6, rel=0.05) and omega.mean().abs() < 0.05


def test_draws_go_on_where_a_saved_module_stopped() -> None:
    one, other = RandomFeatures(2, 4, 8, seed=5), RandomFeatures(2, 4, 8, seed=5)
    assert torch.equal(one.omega, other.omega) and not torch.equal(one.omega[0], one.omega[1])
    one.redraw()
    assert not torch.equal(one.omega, other.omega)
    other.load_state_dict(one.state_dict())
    for maps in (one, other):
        maps.redraw()
    assert torch.equal(one.omega, other.omega) and not torch.equal(one.omega, RandomFeatures(2, 4, 8, seed=6).omega)


# --- attention -------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 2, 37, 300])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bounded", "positive"])
def test_it_is_the_dense_product_of_its_features(kind: str, causal: bool, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_features, "MOST", 2)                    # several blocks
    layer = BoundedFeatures(H, 5, 33, kind=kind, chunk=16).eval()  # type: ignore[arg-type]
    q, k, v = inputs(n)
    assert torch.allclose(layer(q, k, v, is_causal=causal).double(), dense(layer, q, k, v, causal=causal), atol=2e-5)
    keep = torch.rand(2, n, generator=torch.Generator().manual_seed(1)) < 0.6
    keep[:, 0] = True
    found = layer(q, k, v, keep[:, None, None], is_causal=causal)
    assert torch.allclose(found.double(), dense(layer, q, k, v, keep, causal), atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_with_many_features_it_is_softmax_attention(kind: str, causal: bool) -> None:
    layer = BoundedFeatures(H, 5, 16384, kind=kind).eval()  # type: ignore[arg-type]
    q, k, v = (0.6 * t for t in inputs())
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert (layer(q, k, v, is_causal=causal) - wanted).norm() < 0.1 * wanted.norm()


def test_the_error_falls_with_the_features_and_a_helps() -> None:
    q, k, v = (0.8 * t for t in inputs(64, 16))
    wanted = F.scaled_dot_product_attention(q, k, v)
    found: dict[tuple[str, int], float] = {}
    for kind in ("bounded", "positive"):
        for m in (16, 128, 1024):
            errors = []
            for seed in range(12):
                layer = BoundedFeatures(H, 16, m, kind=kind, seed=seed).train()  # type: ignore[arg-type]
                layer(q, k, v)                                          # sees what it is used on
                errors.append(float((layer.eval()(q, k, v) - wanted).norm() / wanted.norm()))
            found[kind, m] = float(np.median(errors))
    assert found["bounded", 16] > found["bounded", 128] > found["bounded", 1024]
    assert all(found["bounded", m] < found["positive", m] for m in (128, 1024))


@pytest.mark.parametrize("kind", KINDS)
def test_causal_attention_sees_nothing_of_later_positions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by rounding either: later keys of any size leave earlier answers bit for bit, but for sums in another order."""
    monkeypatch.setattr(bounded_features, "MOST", 2)
    layer = BoundedFeatures(H, 5, 32, kind=kind, chunk=8).eval()  # type: ignore[arg-type]
    q, k, v = inputs(70)
    before = layer(q, k, v, is_causal=True)
    for t in (1, 7, 16, 33, 69):
        for size in (1.0, 1e3, float("nan")):
            others = [torch.cat([z[:, :, :t], size * torch.randn_like(z[:, :, t:])], 2) for z in (q, k, v)]
            if not math.isnan(size) or t % 16 == 0:                     # within a block 0 · NaN is NaN
                assert torch.allclose(layer(*others, is_causal=True)[:, :, :t], before[:, :, :t], atol=1e-6), (t, size)


def test_streaming_is_the_whole_run() -> None:
    for kind in KINDS:
        layer = BoundedFeatures(H, 5, 32, kind=kind, chunk=8).eval()  # type: ignore[arg-type]
        q, k, v = inputs(41)
        whole = layer(q, k, v, is_causal=True)
        state, found = None, []
        for start, stop in ((0, 13), (13, 14), (14, 40), (40, 41)):
            out, state = layer.stream(q[:, :, start:stop], k[:, :, start:stop], v[:, :, start:stop], state)
            found.append(out)
        assert torch.allclose(torch.cat(found, 2), whole, atol=1e-4 if kind == "trigonometric" else 2e-6)
        assert state is not None and state.sums.shape == (2, H, 32, 6)


def test_masks_of_transformers_are_read() -> None:
    layer = BoundedFeatures(H, 5, 32).eval()
    q, k, v = inputs(10)
    keep = torch.ones(2, 10, dtype=torch.bool)
    keep[0, 7:] = False
    keep[1, :3] = False
    tril = torch.ones(10, 10, dtype=torch.bool).tril()
    causal = layer(q, k, v, keep[:, None, None], is_causal=True)
    least = torch.finfo(torch.float32).min
    both_ = tril & keep[:, None, None]
    for mask in (both_, torch.zeros(2, 1, 10, 10).masked_fill(~both_, least), torch.zeros(2, 1, 10, 10).masked_fill(~both_, -torch.inf)):
        assert torch.allclose(layer(q, k, v, mask), causal, atol=1e-6)
    seen_anywhere = both_ | ~both_.any(-1, keepdim=True)                # libraries let padding look anywhere
    found = layer(q, k, v, seen_anywhere)
    assert torch.allclose(found[0], causal[0], atol=1e-6) and torch.allclose(found[1, :, 3:], causal[1, :, 3:], atol=1e-6)
    whole = keep[:, None, None].expand(2, 1, 10, 10)
    assert torch.allclose(layer(q, k, v, whole), layer(q, k, v, keep[:, None, None]), atol=1e-6)
    cached = layer(q[:, :, 6:], k, v, tril[6:])                         # the last queries of a longer text
    assert torch.allclose(cached, layer(q, k, v, is_causal=True)[:, :, 6:], atol=1e-6)
    numbers = torch.randn(2, 1, 1, 10)
    wanted = dense(layer, q, k, v, None)
    weighted = layer(q, k, v, numbers)
    assert not torch.allclose(weighted.double(), wanted, atol=1e-3)
    assert torch.allclose(layer(q, k, v, numbers + 50), weighted, atol=1e-5)
    assert read_mask(None, True, 5, 5).causal and not read_mask(keep[:, None, None], False, 10, 10).causal


def test_queries_and_keys_of_other_lengths_as_in_torch() -> None:
    layer = BoundedFeatures(H, 5, 8192).eval()
    q, k, v = (0.5 * t for t in inputs(12))
    for few, many in ((4, 12), (12, 4), (1, 9)):
        wanted = F.scaled_dot_product_attention(q[:, :, :few], k[:, :, :many], v[:, :, :many], is_causal=True)
        assert (layer(q[:, :, :few], k[:, :, :many], v[:, :, :many], is_causal=True) - wanted).norm() < 0.1 * wanted.norm() + 1e-3
    assert layer(q[:, :, :0], k, v).shape == (2, H, 0, 5) and (layer(q, k[:, :, :0], v[:, :, :0]) == 0).all()
    assert layer(q[:, :, :0], k[:, :, :0], v[:, :, :0], is_causal=True).shape == (2, H, 0, 5)


def test_rows_without_keys_are_zero_and_hidden_keys_may_hold_anything() -> None:
    for kind in KINDS:
        layer = BoundedFeatures(H, 5, 32, kind=kind).eval()  # type: ignore[arg-type]
        q, k, v = inputs(9)
        keep = torch.ones(2, 1, 1, 9, dtype=torch.bool)
        keep[0, ..., :4] = keep[1] = False
        k[0, :, :4], v[0, :, :4] = float("nan"), float("inf")
        for causal in (False, True):
            out = layer(q, k, v, keep, is_causal=causal)
            assert torch.isfinite(out).all() and (out[1] == 0).all() and out[0, :, 4:].abs().min(-1).values.max() > 0
        assert (layer(q, k, v, keep, is_causal=True)[0, :, :4] == 0).all()


@pytest.mark.parametrize("size", [1e-20, 30.0, 1e3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bounded", "positive"])
def test_any_size_gives_numbers_within_the_values(kind: str, causal: bool, size: float) -> None:
    """Weights are positive, so that answers lie between the least and the greatest value, however far exponents go."""
    layer = BoundedFeatures(H, 5, 32, kind=kind).eval()  # type: ignore[arg-type]
    q, k, v = inputs(20)
    out = layer(size * q, size * k, v, is_causal=causal)
    assert torch.isfinite(out).all()
    assert (out <= v.amax(2, keepdim=True) + 1e-4).all() and (out >= v.amin(2, keepdim=True) - 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    layer = BoundedFeatures(H, 5, 32).eval()
    q, k, v = (t.to(dtype) for t in inputs())
    single = layer(q.float(), k.float(), v.float())
    assert layer(q, k, v).dtype == dtype and torch.equal(layer(q, k, v), single.to(dtype))
    large = layer(q * 200, k * 200, v)
    assert torch.isfinite(large).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(q.float(), k.float(), v.float()), single)


def test_gradients_by_finite_differences() -> None:
    for kind in KINDS:
        for causal in (False, True):
            layer = BoundedFeatures(H, 3, 8, kind=kind, chunk=4).double().eval()  # type: ignore[arg-type]
            given = [t.requires_grad_() for t in inputs(9, 3, dtype=torch.float64)]
            assert torch.autograd.gradcheck(lambda q, k, v, layer=layer, causal=causal: layer(q, k, v, is_causal=causal), given, fast_mode=True)


def test_a_is_a_running_mean_that_is_fixed_after_training_and_not_of_this_sequence() -> None:
    layer, q, k, v = BoundedFeatures(H, 5, 32), *inputs()
    x, y = q * 5**-0.25, k * 5**-0.25
    phi = ((x[:, :, :, None] + y[:, :, None]).square().sum(-1).mean((2, 3)) / 5).mean(0)
    fresh = copy.deepcopy(layer).eval()(q, k, v, is_causal=True)
    assert torch.allclose(layer.train()(q, k, v, is_causal=True), fresh, atol=1e-6), "the first step is computed before its sequence counts"
    assert torch.allclose(layer.maps.phi, phi, rtol=1e-5)
    held = layer.maps.phi.clone()
    layer.eval()(3 * q, k, v)
    assert torch.equal(layer.maps.phi, held)
    per = optimal_a((x[:, :, :, None] + y[:, :, None]).square().sum(-1).mean((2, 3)) / 5)
    assert torch.allclose(per_sequence(x, y), per, rtol=1e-4)
    adaptive = BoundedFeatures(H, 5, 32, adaptive=True).eval()
    assert torch.isfinite(adaptive(q, k, v)).all()
    with pytest.raises(ModelError, match="later ones"):
        adaptive(q, k, v, is_causal=True)


def test_directions_are_drawn_anew_while_training_only() -> None:
    layer, given = BoundedFeatures(H, 5, 8, redraw=2), inputs()
    first = layer.maps.omega.clone()
    seen = []
    for _ in range(5):
        layer.train()(*given)
        seen.append(int(layer.maps.draws))
    assert seen == [1, 1, 2, 2, 3] and not torch.equal(first, layer.maps.omega)
    held = layer.maps.omega.clone()
    for _ in range(4):
        layer.eval()(*given)
    assert torch.equal(held, layer.maps.omega)


def test_state_strides_and_shared_keys() -> None:
    layer, other = (BoundedFeatures(H, 5, 32, seed=seed) for seed in (1, 2))
    layer.train()(*inputs())
    other.load_state_dict(layer.state_dict())
    q, k, v = inputs()
    assert torch.equal(layer.eval()(q, k, v), other.eval()(q, k, v))
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert not turned[0].is_contiguous() and torch.allclose(layer(*turned), layer(q, k, v), atol=1e-6)
    shared = layer(q, k[:, :1], v[:, :1])
    assert torch.allclose(shared, layer(q, k[:, :1].expand_as(k), v[:, :1].expand_as(v)), atol=1e-6)


@pytest.mark.parametrize("wrong, words", [
    (lambda: BoundedFeatures(2, 5, 0), "0 bounded features"), (lambda: BoundedFeatures(2, 5, 7, kind="trigonometric"), "pairs"),
    (lambda: BoundedFeatures(2, 5, kind="cosine"), "Kinds: bounded"),  # type: ignore[arg-type]
    (lambda: BoundedFeatures(2, 5, redraw=0), "positive numbers"), (lambda: BoundedFeatures(3, 5)(*inputs()), "3 heads of width 5"),
    (lambda: BoundedFeatures(2, 6)(*inputs()), "width 6"), (lambda: BoundedFeatures(2, 5)(*inputs(), torch.randn(37, 37)), "position bias"),
    (lambda: BoundedFeatures(2, 5)(*inputs(), torch.rand(37, 37) < 0.5), "window"),
    (lambda: BoundedFeatures(2, 5)(*inputs(), torch.ones(3, 9)), "shape"),
    (lambda: BoundedFeatures(2, 5)(*inputs(), torch.ones(37, 37) > 0, is_causal=True), "together with is_causal"),
    (lambda: BoundedFeatures(2, 5).stream(inputs()[0], inputs(3)[1], inputs(3)[2]), "37 queries came with 3 keys"),
])  # fmt: skip
def test_bad_input_is_refused_in_words(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        wrong()
    assert len(str(caught.value).splitlines()) == 2


# --- compiled, exported, converted -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("causal", [False, True])
def test_it_compiles(causal: bool) -> None:
    layer, given = BoundedFeatures(H, 5, 32, chunk=16).eval(), inputs(70)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(*given, is_causal=causal), layer(*given, is_causal=causal), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_exported_for_any_length(causal: bool, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = BoundedFeatures(H, 5, 32, chunk=16)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.core(q, k, v, is_causal=causal)

    layer, file = Layer().eval(), tmp_path / "it.onnx"
    torch.onnx.export(layer, tuple(inputs(40)), str(file), dynamo=False, opset_version=17, input_names=["q", "k", "v"], output_names=["out"],
                      dynamic_axes={name: {2: "length"} for name in ("q", "k", "v", "out")})  # fmt: skip  (the exporter of most engines)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for n in (40, 7, 100):
        given = inputs(n, seed=n)
        (found,) = session.run(None, {name: t.numpy() for name, t in zip("qkv", given, strict=True)})
        assert np.abs(found - layer(*given).numpy()).max() < 1e-5


def test_it_is_proposed_for_long_texts_alone_and_a_converted_model_recovers_in_training() -> None:
    from fourfold.datasets.examples import Examples, Ragged
    from fourfold.datasets.metrics import METRICS
    from fourfold.datasets.task import Task
    from fourfold.frontends.model import Subject, origin_of
    from fourfold.recipe import Recipe, apply
    from fourfold.rewrite import Context
    from fourfold.rewrites.attend.bounded_features import BoundedRandomFeatures

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True, dropout=0.0)
    model = nn.Sequential(nn.Embedding(50, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 2)).eval()
    ids = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))

    def call(module: nn.Module) -> Tensor:
        return module(ids)

    offered = {}
    for length in (40, 5000):
        rows = Ragged.of([np.zeros(length, np.int64)] * 3, np.int64)
        examples = Examples({"input_ids": rows}, None, None, {"input_ids": 0})
        subject = Subject(model, origin_of(model), ("input_ids",), None, None)
        task = Task("classification", ["a", "b"], METRICS["accuracy"])
        offered[length] = list(BoundedRandomFeatures().propose(Context(subject, task, examples, None, None, None, 0.97, 0, call=call)))
    assert offered[40] == [] and len(offered[5000]) == 1 and offered[5000][0].cost[0] < 0.3
    student = apply(copy.deepcopy(model), Recipe(offered[5000][0].edits)).train()
    assert sum(isinstance(part, BoundedFeatures) for part in student.modules()) == 2
    wanted = model(ids).detach()
    optimizer, losses = torch.optim.Adam(student.parameters(), 3e-3), []
    for _ in range(40):
        loss = (student(ids) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 4
