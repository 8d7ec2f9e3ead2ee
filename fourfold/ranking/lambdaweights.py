"""Weights of pairs for pairwise losses: how much a metric would change if both items changed places (LambdaRank, Burges et al. 2006).

Each is a function of scores and labels [..., L] that returns [..., L·L], i before j; pairs of different lists, or with an item that does not count,
have 0. Ranks are whole numbers, so no gradient flows through them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fourfold.ranking.lists import Items, checked, item_of_list, pairs_within
from fourfold.ranking.metrics import GainFn, default_discount_fn, default_gain_fn, ideal_dcg
from fourfold.ranking.ranks import ranks

DiscountFn = Callable[[Tensor], Tensor]


def _distance(values: Tensor) -> Tensor:
    return (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()


def _flat(pairs: Tensor, items: Items) -> Tensor:
    within = pairs_within(items.where, items.segments)
    return (pairs if within is None else torch.where(within, pairs, 0.0)).flatten(-2)


def labeldiff_lambdaweight(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                           weights: Tensor | None = None) -> Tensor:
    """|y_i − y_j|. `weights` change nothing."""
    items = checked(scores, labels, where, segments)
    return _flat(_distance(items.labels), items)


def _gain_differences(items: Items, topn: int | None, normalize: bool, gain_fn: GainFn, discount_fn: DiscountFn) -> Tensor:
    gains = gain_fn(items.labels)
    gains = gains if items.weights is None else gains * items.weights
    if normalize:
        best = item_of_list(ideal_dcg(items, gains, topn, discount_fn), items.segments)
        gains = gains / torch.where(best == 0, 1.0, best)
    return _distance(gains)


def dcg_lambdaweight(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                     weights: Tensor | None = None, topn: int | None = None, normalize: bool = False, gain_fn: GainFn = default_gain_fn,
                     discount_fn: DiscountFn = default_discount_fn) -> Tensor:
    """|g_i − g_j| · |D(r_i) − D(r_j)| · L, gains over the best DCG where `normalize` (Burges et al. 2006). Beyond `topn` discounts are 0."""
    items = checked(scores, labels, where, segments, weights)
    place = ranks(items.scores, where=where, segments=items.segments).to(items.scores.dtype)
    discounts = discount_fn(place)
    if topn is not None:
        discounts = torch.where(place <= topn, discounts, 0.0)
    differences = _gain_differences(items, topn, normalize, gain_fn, discount_fn)
    return _flat(_distance(discounts) * differences * scores.shape[-1], items)


def dcg2_lambdaweight(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                      weights: Tensor | None = None, topn: int | None = None, normalize: bool = False, gain_fn: GainFn = default_gain_fn,
                      discount_fn: DiscountFn = default_discount_fn, light_discount: bool = False) -> Tensor:
    """|g_i − g_j| · |D(δ) − D(δ + 1)| · L with δ = |r_i − r_j| (LambdaLoss, Wang et al. 2018); |D(δ)| alone where `light_discount`. Pairs whose lower
    item ranks beyond `topn` are divided by 1 − D(that rank)."""
    items = checked(scores, labels, where, segments, weights)
    place = ranks(items.scores, where=where, segments=items.segments).to(items.scores.dtype)
    apart = _distance(place)
    safe = apart.clamp_min(1)
    discounts = discount_fn(safe).abs() if light_discount else (discount_fn(safe) - discount_fn(safe + 1)).abs()
    discounts = torch.where(apart == 0, 0.0, discounts)
    if topn is not None:
        lower = torch.maximum(place.unsqueeze(-1), place.unsqueeze(-2))
        beyond = lower > max(topn, 1)
        discounts = discounts * torch.where(beyond, 1 / (1 - discount_fn(torch.where(beyond, lower, 2))), 1.0)
    differences = _gain_differences(items, topn, normalize, gain_fn, discount_fn)
    return _flat(discounts * differences * scores.shape[-1], items)


for _weight in (labeldiff_lambdaweight, dcg_lambdaweight, dcg2_lambdaweight):
    _weight.of_ranks = True  # type: ignore[attr-defined]  # of labels and whole ranks alone, list by list: `pairs` may ask a few lists at a time
