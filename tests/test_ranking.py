"""Ranking losses and metrics: known values, brute force over every item and pair, padded and packed lists, gradients, and lists with
nothing in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fourfold import ranking
from fourfold.errors import InputError
from fourfold.ranking import approx_t12n, bound_t12n, gumbel_t12n, ndcg_metric, segment_t12n

LISTWISE = ("softmax_loss", "poly1_softmax_loss", "unique_softmax_loss", "listmle_loss")
PAIRWISE = ("pairwise_hinge_loss", "pairwise_logistic_loss", "pairwise_soft_zero_one_loss", "pairwise_mse_loss", "pairwise_qr_loss")
POINTWISE = ("pointwise_sigmoid_loss", "pointwise_mse_loss")
METRICS = ("mrr_metric", "ndcg_metric", "dcg_metric", "ap_metric", "precision_metric", "recall_metric")
LOSSES = (*LISTWISE, *PAIRWISE, *POINTWISE)
EVERY = (*LOSSES, *METRICS)


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of(name: str) -> Callable[..., Tensor]:
    return getattr(ranking, name)


# ---- known values ----------------------------------------------------------------------------------------------------------------------------------

S, Y = [2.2, -1.3, 5.4], [1.0, 0.0, 0.0]


@pytest.mark.parametrize("found, value, places", [
    (lambda: ranking.softmax_loss(f64([2, 1, 3]), f64([1, 0, 0])), 1.40760596, 8),
    (lambda: ranking.softmax_loss(f64(S), f64(Y)), 3.24114, 5),
    (lambda: ranking.ndcg_metric(f64(S), f64(Y)), 0.63092975, 8),
    (lambda: ranking.pairwise_hinge_loss(f64(S), f64(Y)), 2.1, 12),
    (lambda: ranking.pairwise_logistic_loss(f64(S), f64(Y)), 1.63485, 5),
    (lambda: ranking.pairwise_soft_zero_one_loss(f64(S), f64(Y)), 0.495073, 6),
    (lambda: approx_t12n(ndcg_metric)(f64(S), f64(Y)), -0.63282484, 7),
    (lambda: approx_t12n(ranking.mrr_metric)(f64([0, 1, 3, 2]), f64([0, 0, 1, 2])), -0.69659, 5),
    (lambda: bound_t12n(ranking.mrr_metric)(f64([0, 1, 3, 2]), f64([0, 1, 0, 1])), -1 / 3, 12),
    (lambda: ranking.pairwise_hinge_loss(f64([[2, 1, 0], [1, .5, 1.5]]), f64([[1, 0, 0], [0, 0, 1]]),
                                         where=torch.tensor([[True, True, False], [True, True, True]])), 1 / 6, 12),
])
def test_known_values(found: Callable[[], Tensor], value: float, places: int) -> None:
    assert found().item() == pytest.approx(value, abs=0.6 * 10.0**-places)


def test_known_gradients() -> None:
    scores = f64([[0, 1, 3], [1, 2, 0]]).requires_grad_()
    ranking.softmax_loss(scores, f64([[0, 0, 1], [1, 0, 0]])).backward()
    assert scores.grad is not None
    assert torch.allclose(scores.grad, f64([[.02100503, .0570976, -.07810265], [-.37763578, .33262047, .04501529]]), atol=1e-7)
    scores = f64(S).requires_grad_()
    approx_t12n(ndcg_metric)(scores, f64(Y)).backward()
    assert scores.grad is not None and torch.allclose(scores.grad, f64([-.01276882, .00549765, .00727116]), atol=1e-7)


# ---- brute force -----------------------------------------------------------------------------------------------------------------------------------

def plain(name: str, s: list[float], y: list[float]) -> float:
    """One list's loss or metric, from its definition, by loops."""
    n, soft = len(s), (lambda group: math.log(sum(math.exp(x) for x in group)))
    order = sorted(range(n), key=lambda i: (-s[i], i))
    rank = {i: order.index(i) + 1 for i in range(n)}
    relevant = [i for i in range(n) if y[i] >= 1]
    gain = [2.0**label - 1 for label in y]
    dcg = sum(gain[i] / math.log2(rank[i] + 1) for i in range(n))
    best = sum(g / math.log2(k + 2) for k, g in enumerate(sorted(gain, reverse=True)))
    total = sum(y)
    share = [label / total for label in y] if total else [1 / n] * n
    by_label = sorted(range(n), key=lambda i: (-y[i], i))
    cross = -sum(y[i] * (s[i] - soft(s)) for i in range(n))
    if name == "poly1_softmax_loss":
        return cross + 1 - sum(share[i] * math.exp(s[i] - soft(s)) for i in range(n))
    return {
        "softmax_loss": lambda: cross,
        "unique_softmax_loss": lambda: -sum(gain[i] * (s[i] - soft([s[i], *(s[j] for j in range(n) if y[j] < y[i])])) for i in range(n)),
        "listmle_loss": lambda: -sum(s[i] - soft([s[j] for j in by_label[k:]]) for k, i in enumerate(by_label)),
        "mrr_metric": lambda: max([1 / rank[i] for i in relevant], default=0.0),
        "ndcg_metric": lambda: dcg / best if best else 0.0,
        "dcg_metric": lambda: dcg,
        "ap_metric": lambda: sum(sum(rank[j] <= rank[i] for j in relevant) / rank[i] for i in relevant) / max(1, len(relevant)),
        "precision_metric": lambda: len(relevant) / n,
        "recall_metric": lambda: float(bool(relevant)),
    }[name]()


def pairs(name: str, s: list[float], y: list[float]) -> list[float]:
    """Values of all pairs that count."""
    value: dict[str, Callable[[float, float], float]] = {
        "pairwise_hinge_loss": lambda d, delta: max(0.0, 1 - d), "pairwise_logistic_loss": lambda d, delta: math.log1p(math.exp(-d)),
        "pairwise_soft_zero_one_loss": lambda d, delta: 1 / (1 + math.exp(d)), "pairwise_mse_loss": lambda d, delta: (d - delta) ** 2,
        "pairwise_qr_loss": lambda d, delta: 0.5 * abs(d - delta),
    }
    every = [(i, j) for i in range(len(s)) for j in range(len(s)) if name == "pairwise_mse_loss" or y[i] > y[j]]
    return [value[name](s[i] - s[j], y[i] - y[j]) for i, j in every]


def points(name: str, s: list[float], y: list[float]) -> list[float]:
    if name == "pointwise_mse_loss":
        return [(a - b) ** 2 for a, b in zip(s, y, strict=True)]
    return [math.log1p(math.exp(a)) - a * min(b, 1.0) for a, b in zip(s, y, strict=True)]


def expected(name: str, lists: list[tuple[list[float], list[float]]]) -> float:
    if name in PAIRWISE or name in POINTWISE:
        values = [value for s, y in lists for value in (pairs if name in PAIRWISE else points)(name, s, y)]
    else:
        values = [plain(name, s, y) for s, y in lists if s]
    return sum(values) / len(values) if values else 0.0


A_LIST = st.lists(st.tuples(st.integers(-6, 6).map(lambda x: x / 4), st.integers(0, 3).map(float)), max_size=6)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=8, deadline=None)
@given(lists=st.lists(A_LIST, min_size=1, max_size=4), dice=st.randoms(use_true_random=False))
def test_padded_and_packed_lists_are_what_loops_make(name: str, lists: list[list[tuple[float, float]]], dice: Any) -> None:
    pair = [([s for s, _ in one], [y for _, y in one]) for one in lists]
    want = expected(name, pair)
    longest = max(1, *(len(one) for one in lists))
    s, y, where = torch.full((len(lists), longest), torch.nan).double(), torch.full((len(lists), longest), torch.nan).double(), []
    for row, one in enumerate(lists):
        kept = sorted(dice.sample(range(longest), len(one)))            # what does not count stands anywhere, and is NaN
        for at, (score, label) in zip(kept, one, strict=True):
            s[row, at], y[row, at] = score, label
        where.append([i in kept for i in range(longest)])
    assert of(name)(s, y, where=torch.tensor(where)).item() == pytest.approx(want, abs=1e-9)
    flat = [(score, label, number) for number, one in enumerate(lists) for score, label in one]
    held = [*flat, (7.0, 3.0, 99)]                                     # and one item that does not count
    ids = sorted({number for _, _, number in held})
    names = dict(zip(ids, dice.sample(range(-50, 50), len(ids)), strict=True))
    s, y = f64([[one[0] for one in held]]), f64([[one[1] for one in held]])
    segments, where = torch.tensor([[names[one[2]] for one in held]]), torch.tensor([[True] * len(flat) + [False]])
    assert of(name)(s, y, where=where, segments=segments).item() == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "listmle_loss"])
def test_the_order_of_items_does_not_matter(name: str) -> None:
    rng = np.random.default_rng(3)
    s, y, order = f64(rng.normal(size=(4, 9))), f64(rng.integers(0, 3, (4, 9))), torch.randperm(9)
    segments = torch.tensor(rng.integers(0, 3, (4, 9)))
    for options, turned in (({}, {}), ({"segments": segments}, {"segments": segments[:, order]})):
        assert torch.allclose(of(name)(s, y, **options), of(name)(s[:, order], y[:, order], **turned))


@pytest.mark.parametrize("name", METRICS)
def test_topn_retrieves_the_first_n_and_infinite_scores_never(name: str) -> None:
    s, y = f64([[4, 3, 2, 1]]), f64([[0, 1, 0, 1]])
    first = {"mrr_metric": 1 / 2, "precision_metric": 1 / 2, "recall_metric": 1 / 2, "ap_metric": 1 / 4}
    dcg = 1 / math.log2(3)
    want = first.get(name, dcg if name == "dcg_metric" else dcg / (1 + dcg))
    assert of(name)(s, y, topn=2).item() == pytest.approx(want)
    for nothing in (-torch.inf, torch.nan):
        hidden = of(name)(torch.where(y > 0, nothing, s), y).item()
        assert hidden == 0.0


def test_ties_keep_their_order_or_are_drawn() -> None:
    s = torch.zeros(1, 3)
    assert ranking.ranks(s).tolist() == [[1, 2, 3]]
    draws = {tuple(ranking.ranks(s, generator=torch.Generator().manual_seed(seed))[0].tolist()) for seed in range(40)}
    assert len(draws) == 6
    tied = ranking.ranks(torch.tensor([[1.0, 2.0, 1.0, 2.0]]), generator=torch.Generator().manual_seed(0))[0]
    assert set(tied[[1, 3]].tolist()) == {1, 2} and set(tied[[0, 2]].tolist()) == {3, 4}
    segments = torch.tensor([[5, -2, 5, -2, 5]])
    assert ranking.ranks(torch.tensor([[1.0, 2, 3, 4, 2]]), segments=segments).tolist() == [[3, 2, 1, 1, 2]]


def test_task_metrics_are_those_of_lists_with_one_relevant_item() -> None:
    from fourfold.datasets.metrics import METRICS, metric_named

    rng = np.random.default_rng(4)
    logits, truth = rng.integers(0, 5, (60, 7)).astype(float), rng.integers(0, 7, 60)                 # many ties
    labels = torch.nn.functional.one_hot(torch.tensor(truth), 7)
    for name in ("mrr", "ndcg"):
        assert METRICS[name].score(logits, truth) == pytest.approx(of(name)(torch.tensor(logits), labels).item(), abs=1e-12)
        assert metric_named(name.upper(), "classification") is METRICS[name]
    assert METRICS["mrr"].score(logits[:1], np.array([9])) == pytest.approx(1 / 8)                   # a class that the model does not know
    with pytest.raises(InputError):
        metric_named("ndcg", "regression")


# ---- weights, lambda weights, transformations ------------------------------------------------------------------------------------------------------

def test_weights_repeat_items_and_scale_gains() -> None:
    s, y, w = f64([[1, 2, 0.5]]), f64([[1, 0, 2]]), f64([[2, 1, 3]])
    assert torch.allclose(ranking.softmax_loss(s, y, weights=w), ranking.softmax_loss(s, y * w))
    assert torch.allclose(ranking.dcg_metric(s, y, weights=2 * torch.ones(1, 1)), 2 * ranking.dcg_metric(s, y))
    assert torch.allclose(ranking.pairwise_hinge_loss(s, y, weights=w, reduce_fn=torch.sum),
                          f64(2 * max(0, 1 - (1 - 2)) + 3 * (max(0, 1 - (0.5 - 1)) + max(0, 1 - (0.5 - 2)))))
    assert torch.allclose(ranking.pointwise_mse_loss(s, y, weights=w), (w * (s - y) ** 2).mean())


@pytest.mark.parametrize("weight, expected", [
    (ranking.labeldiff_lambdaweight, lambda i, j, r, g: abs(g[0][i] - g[0][j])),
    (ranking.dcg_lambdaweight, lambda i, j, r, g: 4 * abs(g[1][i] - g[1][j]) * abs(1 / math.log2(1 + r[i]) - 1 / math.log2(1 + r[j]))),
    (ranking.dcg2_lambdaweight, lambda i, j, r, g: 0 if i == j else 4 * abs(g[1][i] - g[1][j]) * abs(
        1 / math.log2(1 + abs(r[i] - r[j])) - 1 / math.log2(2 + abs(r[i] - r[j])))),
])
def test_lambda_weights_are_their_formulas(weight: Callable[..., Tensor], expected: Callable[..., float]) -> None:
    s, y = [0.3, 2.0, -1.0, 1.0], [1.0, 0.0, 3.0, 1.0]
    r, gain = [3, 1, 4, 2], [2**label - 1 for label in y]
    want = f64([expected(i, j, r, (y, gain)) for i in range(4) for j in range(4)])
    found = weight(f64(s), f64(y))
    assert torch.allclose(found, want)
    where = torch.tensor([True, True, True, True, False])
    wide = weight(f64([*s, 9.0]), f64([*y, 9.0]), where=where).unflatten(-1, (5, 5))
    scale = 4 / 5 if weight is not ranking.labeldiff_lambdaweight else 1
    assert torch.allclose(scale * wide[:4, :4].flatten(), want) and not wide[4].any() and not wide[:, 4].any()
    with_topn = ranking.dcg_lambdaweight(f64(s), f64(y), topn=1, normalize=True).unflatten(-1, (4, 4))
    assert with_topn[0, 2] == 0 and with_topn[1, 2] > 0


def test_a_pairwise_loss_with_lambda_weights_is_their_product() -> None:
    rng = np.random.default_rng(0)
    s, y = f64(rng.normal(size=(3, 5))), f64(rng.integers(0, 3, (3, 5)))
    each = ranking.pairwise_logistic_loss(s, y, reduce_fn=None) * ranking.dcg_lambdaweight(s, y)
    whole = ranking.pairwise_logistic_loss(s, y, lambdaweight_fn=ranking.dcg_lambdaweight, reduce_fn=torch.sum)
    assert each.shape == (3, 25) and torch.allclose(each.sum(), whole)


def test_smooth_ranks_approach_ranks_and_bounds_bound() -> None:
    rng = np.random.default_rng(1)
    s, y = f64(rng.permutation(12).reshape(1, 12)), f64(rng.integers(0, 3, (1, 12)))
    for name in METRICS:
        options = {} if name in ("precision_metric", "recall_metric") else {"topn": 4}
        exact = of(name)(s, y, **options)
        cold = -approx_t12n(of(name), temperature=1e-3)(s, y, **options)
        assert torch.allclose(cold, exact, atol=1e-6), name
    for name in ("mrr_metric", "ndcg_metric", "dcg_metric"):
        assert -bound_t12n(of(name))(s, y).item() <= of(name)(s, y).item() + 1e-12


def test_masked_items_do_not_move_soft_cutoffs() -> None:
    loss = approx_t12n(ndcg_metric)
    s, y = f64([[1, 2, 3, 0]]), f64([[1, 0, 2, 1]])
    padded = loss(torch.cat([s, f64([[9, -9]])], 1), torch.cat([y, f64([[2, 2]])], 1), where=torch.tensor([[True] * 4 + [False] * 2]), topn=2)
    assert torch.allclose(padded, loss(s, y, topn=2))


def test_gumbel_samples_are_drawn_around_scores() -> None:
    s, y = f64([[0.0, 1.0, 2.0]]), f64([[0, 0, 1]])
    noisy = gumbel_t12n(ranking.mrr_metric, samples=4000)
    values = noisy(s, y, generator=torch.Generator().manual_seed(0), reduce_fn=None)
    first = math.exp(2) / (1 + math.e + math.exp(2))                  # Plackett–Luce: the chance to come first is the softmax
    assert values.shape == (4000, 1) and (values == 1).double().mean().item() == pytest.approx(first, abs=0.03)
    again = noisy(s, y, generator=torch.Generator().manual_seed(0), reduce_fn=None)
    assert torch.equal(values, again)
    calm = gumbel_t12n(ranking.softmax_loss, samples=2, beta=0.0)(s, y)
    assert torch.allclose(calm, ranking.softmax_loss(s, y))
    smooth = gumbel_t12n(ranking.softmax_loss, beta=0.0, smoothing_factor=1e-20)(s, y, where=torch.tensor([[True, True, False]]))
    assert torch.isfinite(smooth)


def test_lists_are_laid_out_for_what_knows_no_segments() -> None:
    rng = np.random.default_rng(2)
    s, y, segments = f64(rng.normal(size=(2, 6))), f64(rng.integers(0, 2, (2, 6))), torch.tensor([[0, 1, 0, 1, 1, 2], [3, 3, 3, 3, 3, 3]])
    values = [ranking.opa(s[row][segments[row] == k], y[row][segments[row] == k]) for row in range(2) for k in segments[row].unique()]
    assert torch.allclose(segment_t12n(ranking.opa)(s, y, segments=segments), torch.stack(values).mean())
    assert segment_t12n(ranking.softmax_loss) is ranking.softmax_loss


# ---- gradients and edges ---------------------------------------------------------------------------------------------------------------------------

SMOOTH = {**{name: of(name) for name in LOSSES}, "approx_ndcg": approx_t12n(ndcg_metric), "approx_mrr": approx_t12n(ranking.mrr_metric),
          "bound_dcg": bound_t12n(ranking.dcg_metric), "approx_ndcg_topn": partial(approx_t12n(ndcg_metric, 0.5), topn=2),
          "lambda": partial(ranking.pairwise_logistic_loss, lambdaweight_fn=ranking.labeldiff_lambdaweight),
          "squared": partial(ranking.pairwise_qr_loss, tau=0.3, squared=True)}


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "approx_ndcg_topn"])   # none flows through its threshold, by definition
@pytest.mark.parametrize("way", ["where", "both"])
def test_gradients_are_finite_differences(name: str, way: str) -> None:
    rng = np.random.default_rng(5)
    s, y = f64(rng.normal(size=(3, 5))).requires_grad_(), f64(rng.integers(0, 3, (3, 5)))
    where = torch.tensor([[True, True, False, True, True], [False] * 5, [True, False, True, True, True]])
    options: dict[str, Tensor] = {"where": where} if way in ("where", "both") else {}
    if way in ("segments", "both"):
        options["segments"] = torch.tensor([[0, 0, 1, 1, 1], [2, 0, 2, 0, 0], [1, 1, 1, 1, 1]])
    assert gradcheck(lambda x: SMOOTH[name](x, y, **options), (s,), fast_mode=True)
    if name in ("pairwise_logistic_loss", "approx_ndcg", "lambda", "softmax_loss") and way == "where":
        assert gradgradcheck(lambda x: SMOOTH[name](x, y, **options), (s,), fast_mode=True)


@pytest.mark.parametrize("name", SMOOTH)
def test_lists_with_nothing_in_them_have_loss_and_gradient_nought(name: str) -> None:
    packed = {"segments": torch.zeros(2, 3, dtype=torch.long)}
    for shape, options in (((2, 3), {}), ((2, 3), packed), ((2, 0), {}), ((0, 3), {})):
        s = torch.full(shape, torch.nan).requires_grad_()
        nobody = torch.zeros(shape, dtype=torch.bool)
        loss = SMOOTH[name](s, torch.full(shape, torch.inf), where=nobody, **options)
        loss.backward()
        assert loss.item() == 0 and s.grad is not None and not s.grad.any(), (shape, s.grad)
    if "lambda" not in name:
        assert torch.isfinite(SMOOTH[name](torch.zeros(2, 0), torch.zeros(2, 0)))


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_nothing_are_nought(name: str) -> None:
    for options in ({}, {"segments": torch.zeros(2, 3, dtype=torch.long)}):
        nobody = torch.zeros(2, 3, dtype=torch.bool)
        assert of(name)(torch.full((2, 3), torch.nan), torch.ones(2, 3), where=nobody, **options).item() == 0
    assert of(name)(torch.zeros(2, 0), torch.zeros(2, 0)).item() == 0 and of(name)(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0
    assert ranking.opa(torch.zeros(2, 0), torch.zeros(2, 0)).item() == 0


@pytest.mark.parametrize("name", PAIRWISE)
def test_blocks_of_pairs_are_whole_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold.ranking import pairs as module

    rng = np.random.default_rng(6)
    s, y, w = f64(rng.normal(size=(5, 7))), f64(rng.integers(0, 4, (5, 7))), f64(rng.uniform(1, 2, (5, 7)))
    where, segments = torch.tensor(rng.random((5, 7)) < 0.8), torch.tensor(rng.integers(0, 2, (5, 7)))
    want_s = s.clone().requires_grad_()
    whole = of(name)(want_s, y, where=where, segments=segments, weights=w, reduce_fn=lambda v, where: torch.where(where, v, 0.0).sum())
    whole.backward()
    for size in (1, 16, 100):
        monkeypatch.setattr(module, "_PAIRS", size)
        have_s = s.clone().requires_grad_()
        part = of(name)(have_s, y, where=where, segments=segments, weights=w, reduce_fn=torch.sum)
        part.backward()
        assert torch.allclose(part, whole) and have_s.grad is not None and torch.allclose(have_s.grad, want_s.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["softmax_loss", "poly1_softmax_loss", *POINTWISE])
@pytest.mark.parametrize("reduce_fn", [torch.mean, torch.sum])
def test_what_is_made_with_its_gradient_is_the_formula_differentiated(name: str, reduce_fn: Any) -> None:
    rng = np.random.default_rng(7)
    y, w = f64(rng.integers(0, 3, (4, 6))), f64(rng.uniform(1, 2, (4, 6)))
    y[0] = 0
    mask = torch.tensor(rng.random((4, 6)) < 0.7)
    mask[2] = False
    for options in ({}, {"weights": w}, {"where": mask}, {"where": mask, "weights": w[:, :1]}):
        found = []
        for reduction in (reduce_fn, lambda values, where: (values if where is None else torch.where(where, values, 0.0)).sum() / (
                1 if reduce_fn is torch.sum else values.numel() if where is None else where.sum())):
            s = f64(rng.normal(size=(4, 6)) if not found else found[0][2]).requires_grad_()
            loss = of(name)(s, y, **options, reduce_fn=reduction)
            (gradient,) = torch.autograd.grad(loss, s)
            found.append((loss, gradient, s.detach().numpy()))
        assert torch.allclose(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1]), options


def test_large_scores_and_half_precision_stay_finite() -> None:
    for name in LOSSES:
        s = torch.tensor([[1e4, -1e4, 3e4, 0.0]]).requires_grad_()
        loss = of(name)(s, torch.tensor([[1.0, 0.0, 0.0, 2.0]]))
        loss.backward()
        assert torch.isfinite(loss) and s.grad is not None and torch.isfinite(s.grad).all(), name
        half = of(name)(s.detach().half(), torch.tensor([[1, 0, 0, 2]]))
        assert half.dtype == torch.float32 and torch.isfinite(half), name
    assert ranking.softmax_loss(torch.tensor([0.0, -torch.inf]), torch.tensor([1.0, 0.0])).item() == 0
    assert ranking.ndcg(torch.tensor([3.0, 2.0]).half(), torch.tensor([0, 20])).item() == pytest.approx(1 / math.log2(3))


def test_strides_and_compilation_change_nothing() -> None:
    rng = np.random.default_rng(8)
    s, y = f64(rng.normal(size=(6, 4))).t(), f64(rng.integers(0, 3, (6, 4))).t()
    for name in EVERY:
        assert torch.allclose(of(name)(s, y), of(name)(s.contiguous(), y.contiguous())), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax_loss", "pairwise_logistic_loss", "listmle_loss", "unique_softmax_loss"])
def test_compiled_is_plain(name: str) -> None:
    s, y = torch.randn(3, 5), torch.randint(0, 3, (3, 5)).float()
    assert torch.allclose(torch.compile(of(name))(s, y), of(name)(s, y), atol=1e-6)


def test_what_does_not_fit_is_said_in_two_lines() -> None:
    s = torch.zeros(2, 3)
    for call in (lambda: ranking.softmax_loss(s, torch.zeros(3)), lambda: ranking.ndcg(s, s, where=torch.ones(2, 3)),
                 lambda: ranking.ndcg(s, s, segments=torch.zeros(2, 3)), lambda: ranking.softmax_loss(s, s, weights=torch.ones(5)),
                 lambda: ranking.pairwise_qr_loss(s, s, tau=0.0), lambda: ranking.softmax_loss(torch.tensor(1.0), torch.tensor(1.0))):
        with pytest.raises(InputError) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 2


def test_every_name_is_there_and_short_names_are_the_metrics() -> None:
    assert all(hasattr(ranking, name) for name in ranking.__all__) and ranking.ndcg is ndcg_metric
    assert set(EVERY) | {"opa_metric"} <= set(ranking.__all__)
