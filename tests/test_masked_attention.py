"""Masks of linear attention: exact against dense, nothing wraps around, gradients, trees by brute force, masked keys, bad input."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourfold.errors import FourfoldError, InputError, ModelError
from fourfold.rewrites.attend._masks import AttentionMask, GraphDiffusionMask, GridMask, ToeplitzMask, TreeMask
from fourfold.rewrites.attend.masked import MaskedLinearAttention

H = 2


def random_tree(n: int, seed: int) -> np.ndarray:
    """A random tree whose numbers are in no order."""
    rng = np.random.default_rng(seed)
    parents = np.array([-1, *(int(rng.integers(max(0, i - 4), i)) for i in range(1, n))])
    names = rng.permutation(n)
    renamed = np.empty(n, np.int64)
    for i, parent in enumerate(parents):
        renamed[names[i]] = -1 if parent < 0 else names[parent]
    return renamed


def random_graph(n: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, n, (3 * n, 2))


MASKS: dict[str, Callable[[int], AttentionMask]] = {
    "toeplitz": lambda heads: ToeplitzMask(heads, 20),
    "grid": lambda heads: GridMask(6, 8, heads),
    "tree decay": lambda heads: TreeMask(random_tree(48, 1), heads, weights=np.random.default_rng(0).uniform(0, 1, 48)),
    "tree table": lambda heads: TreeMask(random_tree(48, 1), heads, form="table", reach=9),
    "graph": lambda heads: GraphDiffusionMask(random_graph(48), 48, heads),
}


def made(name: str, heads: int = H) -> AttentionMask:
    mask = MASKS[name](heads)
    torch.manual_seed(0)
    for parameter in mask.parameters():
        torch.nn.init.normal_(parameter)
    return mask


def inputs(n: int = 48, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return list(torch.randn(3, 2, H, n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def both(layer: MaskedLinearAttention) -> tuple[MaskedLinearAttention, MaskedLinearAttention]:
    """The layer that multiplies densely, and the one that never does."""
    dense, fast = copy.deepcopy(layer), copy.deepcopy(layer)
    dense.short, fast.short = 1 << 30, 0
    return dense.eval(), fast.eval()


@pytest.mark.parametrize("heads", [1, H])
@pytest.mark.parametrize("name", MASKS)
def test_the_product_is_that_of_the_matrix(name: str, heads: int) -> None:
    mask = made(name, heads)
    x = torch.randn(2, H, 3, 48, dtype=torch.float64)
    matrix = mask.double().dense(48)
    assert matrix.shape == (heads, 48, 48) and (matrix >= 0).all()
    assert torch.allclose(mask.matmul(x), torch.einsum("hij,bhfj->bhfi", matrix.expand(H, -1, -1), x), atol=1e-11)
    assert torch.equal(mask.dense(48, 5), matrix[:, -5:])
    single = mask.float().matmul(x.float())
    assert single.dtype == torch.float32 and (single.double() - torch.einsum("hij,bhfj->bhfi", matrix.expand(H, -1, -1), x)).abs().max() < 1e-5


@pytest.mark.parametrize("name", MASKS)
def test_attention_is_exact_against_dense_with_gradients_of_the_mask(name: str) -> None:
    dense, fast = both(MaskedLinearAttention(H, 5, made(name), 16))
    found = []
    for layer in (dense, fast):
        given = [t.requires_grad_() for t in inputs()]
        out = layer(*given)
        out.square().sum().backward()
        found.append([out.detach(), *(t.grad for t in given), *(p.grad for p in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and torch.isfinite(one).all() and one.abs().max() > 0
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(one.abs().max()))


@pytest.mark.parametrize("name", MASKS)
def test_gradients_by_finite_differences(name: str) -> None:
    """Of attention, in which the mask's largest entry cancels."""
    _, layer = both(MaskedLinearAttention(H, 5, made(name), 4).double())
    (own, parameter), = layer.mask.named_parameters()

    def attention(q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {f"mask.{own}": p}, (q, k, v))

    given = [t.requires_grad_() for t in (*inputs(dtype=torch.float64), parameter.detach().clone())]
    assert torch.autograd.gradcheck(attention, given, fast_mode=True)


@pytest.mark.parametrize("short", [0, 1 << 30])
@pytest.mark.parametrize("n", [1, 2, 33, 64])
def test_causal_attention_sees_nothing_of_later_positions(n: int, short: int) -> None:
    torch.manual_seed(0)
    layer = MaskedLinearAttention(H, 5, made("toeplitz"), 16, short=short).eval()
    q, k, v = inputs(n)
    before = layer(q, k, v, is_causal=True)
    for t in range(1, n, 7):
        others = [torch.cat([z[:, :, :t], 3 * torch.randn_like(z[:, :, t:])], 2) for z in (q, k, v)]
        assert torch.allclose(layer(*others, is_causal=True)[:, :, :t], before[:, :, :t], atol=1e-6)
    # the last position's value is large: had the transform wrapped, the first positions would show it
    k[:, :, -1], v[:, :, -1] = 0, 1e4
    if n > 1:
        assert torch.allclose(layer(q, k, v, is_causal=True)[:, :, :-1], before[:, :, :-1], atol=1e-4)


def test_a_bias_of_position_added_to_scores_is_the_mask() -> None:
    """With many features, softmax attention with a relative bias b is masked attention with M = e^b."""
    mask = made("toeplitz")
    layer = MaskedLinearAttention(H, 5, mask, 20000).eval()
    q, k, v = (0.6 * t for t in inputs())
    bias = mask.dense(48).log()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)
    assert (layer(q, k, v) - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("short", [0, 1 << 30])
def test_masked_keys_do_not_count_and_rows_without_keys_are_zero(name: str, short: int) -> None:
    layer = MaskedLinearAttention(H, 5, made(name), 16, short=short).eval()
    q, k, v = inputs()
    keep = torch.ones(2, 1, 1, 48, dtype=torch.bool)
    keep[0, ..., 30:] = False
    keep[1] = False
    k[0, :, 30:], v[0, :, 30:] = float("nan"), float("inf")
    out = layer(q, k, v, keep)
    assert torch.isfinite(out).all() and (out[1] == 0).all() and out[0].abs().max() > 0
    clean = layer(q, k.nan_to_num(5.0), v.nan_to_num(7.0, 7.0), keep)
    assert torch.allclose(out, clean)
    added = torch.zeros(2, 1, 1, 48).masked_fill(~keep, -torch.inf)
    assert torch.allclose(out, layer(q, k, v, added))
    if name == "toeplitz":  # left padding: the first rows see nothing
        left = torch.ones(2, 1, 1, 48, dtype=torch.bool)
        left[0, ..., :9] = False
        out = layer(*inputs(), left, is_causal=True)
        assert (out[0, :, :9] == 0).all() and torch.isfinite(out).all() and out[0, :, 9:].abs().max() > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(0, 10_000), st.integers(1, 80))
def test_distances_and_products_of_any_tree(n: int, seed: int, reach: int) -> None:
    parents = random_tree(n, seed)
    apart = np.full((n, n), np.inf)
    np.fill_diagonal(apart, 0)
    for i, parent in enumerate(parents):
        if parent >= 0:
            apart[i, parent] = apart[parent, i] = 1
    for middle in range(n):
        apart = np.minimum(apart, apart[:, [middle]] + apart[[middle]])
    for form in ("decay", "table"):
        mask = TreeMask(parents, 1, form=form, reach=reach).double()
        torch.nn.init.normal_(next(mask.parameters()))
        assert torch.allclose(mask.dense(n), mask.entries(torch.from_numpy(apart), torch.float64))
        x = torch.randn(1, 1, 2, n, dtype=torch.float64)
        assert torch.allclose(mask.matmul(x), x @ mask.dense(n), atol=1e-10)


def test_a_long_path_goes_through_transforms() -> None:
    n = 1500
    mask = TreeMask(np.arange(-1, n - 1), 1, form="table", reach=1000).double()
    torch.nn.init.normal_(mask.bias)
    x = torch.randn(1, 1, 1, n, dtype=torch.float64)
    assert torch.allclose(mask.matmul(x), x @ mask.dense(n), atol=1e-9)


def test_decoding_reads_the_last_positions() -> None:
    layer = MaskedLinearAttention(H, 5, made("toeplitz"), 16, short=0).eval()
    q, k, v = inputs()
    assert torch.allclose(layer(q[:, :, -3:], k, v), layer(q, k, v)[:, :, -3:], atol=1e-5)


def test_state_goes_and_comes_back_and_half_precision_is_computed_in_single() -> None:
    layer, other = (MaskedLinearAttention(H, 5, made("toeplitz"), 16, seed=seed, short=0) for seed in (1, 2))
    with torch.no_grad():
        layer.mask.bias.mul_(2)  # type: ignore[operator]
    other.load_state_dict(layer.state_dict())
    q, k, v = inputs()
    assert torch.equal(layer.eval()(q, k, v), other.eval()(q, k, v))
    half = layer(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16 and (half.float() - layer(q, k, v)).abs().max() < 0.1
    assert torch.allclose(layer(*(t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v))), layer(q, k, v), atol=1e-6)


@pytest.mark.parametrize("wrong, words", [
    (lambda: MaskedLinearAttention(3, 5, ToeplitzMask(2)), "2 heads"), (lambda: ToeplitzMask(1, 0), "reach of 0"), (lambda: GridMask(0, 4), "0 × 4"),
    (lambda: TreeMask([0, -1, 1]), "circle"), (lambda: TreeMask([-1, 2, 1]), "circle"), (lambda: TreeMask([-1, -1]), "tree"),
    (lambda: TreeMask([]), "tree"),
    (lambda: TreeMask([-1, 0], weights=[0, np.nan]), "finite"), (lambda: TreeMask([-1, 0], weights=[0, 1], form="table"), "weights"),
    (lambda: GraphDiffusionMask([[0, 5]], 3), "graph of 3"), (lambda: MaskedLinearAttention(H, 5, made("grid"))(*inputs(40)), "48 positions"),
    (lambda: MaskedLinearAttention(H, 5, made("grid"))(*inputs(), is_causal=True), "no order"),
    (lambda: MaskedLinearAttention(H, 5, made("toeplitz"))(*inputs(), torch.randn(48, 48)), "position bias"),
    (lambda: MaskedLinearAttention(H, 5, made("toeplitz"), kind="trigonometric"), "vanish"),
    (lambda: MaskedLinearAttention(H, 6, made("toeplitz"))(*inputs()), "width 6"),
])  # fmt: skip
def test_bad_input_is_refused_in_words(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(FourfoldError, match=words) as caught:
        wrong()
    assert isinstance(caught.value, ModelError | InputError) and len(str(caught.value).splitlines()) == 2


def test_nothing_and_one() -> None:
    layer = MaskedLinearAttention(H, 5, made("toeplitz"), 16).eval()
    assert layer(*inputs(0)).shape == (2, H, 0, 5)
    q, k, v = inputs(1)
    assert torch.allclose(layer(q, k, v, is_causal=True), v, atol=1e-6)


def test_it_compiles() -> None:
    layer = MaskedLinearAttention(H, 5, made("toeplitz"), 16, short=0).eval()
    q, k, v = inputs()
    assert torch.allclose(torch.compile(layer, backend="aot_eager")(q, k, v, is_causal=True), layer(q, k, v, is_causal=True), atol=1e-5)


def test_a_relative_bias_is_handed_over_to_the_mask() -> None:
    """T5: the converted encoder is, with many features, what it was; its mask holds the table that all its layers share."""
    from transformers import T5Config, T5EncoderModel

    from fourfold.recipe import Recipe, apply
    from fourfold.rewrites.attend.masked import MaskedFeatures
    from fourfold.structure.sites import sites

    torch.manual_seed(0)
    config = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=H, relative_attention_num_buckets=8,
                      relative_attention_max_distance=20)  # fmt: skip
    model = T5EncoderModel(config).eval()
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(parameter)
        elif "SelfAttention.q" in name:
            torch.nn.init.normal_(parameter, std=0.05)                  # T5's scores are not divided by a root: keep them small
    ids = torch.randint(0, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    marks = torch.ones_like(ids)
    marks[1, 20:] = 0

    def call(model: torch.nn.Module) -> Tensor:
        return model(input_ids=ids, attention_mask=marks).last_hidden_state

    many = MaskedFeatures().conversions(sites(model, call), "masked-features")
    edits = [edit | ({"features": 6000} if "features" in edit else {}) for one in many for edit in one.edits]
    made = apply(copy.deepcopy(model), Recipe(tuple(edits))).eval()
    cores = [part for part in made.modules() if isinstance(part, MaskedLinearAttention)]
    assert len(many) == len(cores) == 2 and all(edit["biased"] for edit in edits if edit["kind"] == "masked_features")
    bias = model.encoder.block[0].layer[0].SelfAttention.compute_bias(30, 30)[0]  # type: ignore[operator, index]
    for core in cores:
        matrix = core.mask.dense(30).log()
        assert torch.allclose(matrix - matrix[:, :1, :1], bias - bias[:, :1, :1], atol=1e-5)
    before, after = call(model)[marks > 0], call(made)[marks > 0]
    for core in cores:
        torch.nn.init.zeros_(core.mask.bias)  # type: ignore[arg-type]
    without = call(made)[marks > 0]
    assert (after - before).norm() < 0.1 * before.norm() and (without - before).norm() > 3 * (after - before).norm()
