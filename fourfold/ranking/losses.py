"""Pointwise and listwise losses of learning to rank, after Rax (Jagerman et al. 2022), in torch.

Scores and labels [..., L], higher is better; `where`, `segments` and `weights` as in `fourfold.ranking.lists`. Half precision is computed in float32.
The mean is over lists with an item that counts; a batch without one has loss 0 and gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fourfold.ranking import _closed
from fourfold.ranking.lists import (
    Items,
    Reduction,
    checked,
    counted,
    fit,
    list_sum,
    log_softmax,
    masked_mean,
    normalize_probabilities,
    reduced,
)
from fourfold.ranking.metrics import default_gain_fn
from fourfold.ranking.ranks import ordered

LabelFn = Callable[..., Tensor]


def _as_given(labels: Tensor, where: Tensor | None = None) -> Tensor:
    return labels


def _cross_entropy(items: Items, labels: Tensor) -> Tensor:
    logs = log_softmax(items.scores, items.segments, items.where)
    return -list_sum(labels * logs, items.segments)


def softmax_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, weights: Tensor | None = None,
                 label_fn: LabelFn = _as_given, reduce_fn: Reduction = masked_mean) -> Tensor:
    """−Σ_i y_i log softmax(s)_i (ListNet's, Cao et al. 2007, as Bruch et al. 2019 have it).

    Labels times `weights` are taken as they are, unless `label_fn(labels, where=)` normalises them (`normalize_probabilities`).
    """
    fit(scores, labels, where, segments, weights)

    def plain(scores: Tensor) -> Tensor:
        items = checked(scores, labels, where, segments, weights, low=True)
        weighed = items.labels if items.weights is None else items.labels * items.weights
        return reduced(_cross_entropy(items, label_fn(weighed, where=where)), counted(where, items.segments), reduce_fn)

    if label_fn is _as_given and _closed.closed(scores, labels, weights, segments, reduce_fn):
        return _closed.softmax(scores, labels, where, weights, reduce_fn, None, plain)
    return plain(scores)


def poly1_softmax_loss(scores: Tensor, labels: Tensor, *, epsilon: float = 1.0, where: Tensor | None = None, segments: Tensor | None = None,
                       weights: Tensor | None = None, reduce_fn: Reduction = masked_mean) -> Tensor:
    """softmax_loss + ε (1 − p), p = Σ_i ŷ_i softmax(s)_i with normalised labels ŷ (PolyLoss, Leng et al. 2022)."""
    fit(scores, labels, where, segments, weights)

    def plain(scores: Tensor) -> Tensor:
        items = checked(scores, labels, where, segments, weights, low=True)
        weighed = items.labels if items.weights is None else items.labels * items.weights
        chance = log_softmax(items.scores, items.segments, where).exp()
        share = normalize_probabilities(weighed, where=where, segments=items.segments)
        p = list_sum(share * chance, items.segments, where)
        if where is not None and items.segments is None:
            p = torch.where(where.any(-1), p, 1.0)
        return reduced(_cross_entropy(items, weighed) + epsilon * (1 - p), counted(where, items.segments), reduce_fn)

    if _closed.closed(scores, labels, weights, segments, reduce_fn):
        return _closed.softmax(scores, labels, where, weights, reduce_fn, epsilon, plain)
    return plain(scores)


def _prefix_logsumexp(values: Tensor, segments: Tensor | None) -> Tensor:
    """log Σ_{j ≤ i} e^{v_j} along the last axis, within runs of equal `segments`. Without runs torch's own; with them by doubling, log₂ L steps."""
    if segments is None:
        return values.logcumsumexp(-1) if values.shape[-1] else values
    step = 1
    while step < values.shape[-1]:
        same = segments[..., step:] == segments[..., :-step]
        joined = torch.logaddexp(values[..., step:], torch.where(same, values[..., :-step], values[..., step:]))
        values = torch.cat([values[..., :step], torch.where(same, joined, values[..., step:])], -1)
        step *= 2
    return values


def unique_softmax_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                        weights: Tensor | None = None, gain_fn: Callable[[Tensor], Tensor] | None = default_gain_fn,
                        reduce_fn: Reduction = masked_mean) -> Tensor:
    """−Σ_i gain(y_i) log( e^{s_i} / (e^{s_i} + Σ_{j: y_j < y_i} e^{s_j}) ) (Zhu and Klabjan 2020). `gain_fn` None: gains of 1.

    Sorted by label, so O(L log L) and not L².
    """
    items = checked(scores, labels, where, segments, weights)
    gains = gain_fn(items.labels) if gain_fn is not None else torch.ones_like(items.labels)
    gains = gains if items.weights is None else gains * items.weights
    gains = gains if where is None else torch.where(where, gains, 0.0)
    order = ordered(items.labels, where=where, segments=items.segments, descending=False)
    s, y, g = (values.gather(-1, order) for values in (items.scores, items.labels, gains))
    runs = items.segments.gather(-1, order) if items.segments is not None else None
    place = torch.arange(s.shape[-1], device=s.device).expand_as(order)
    changed, opened = torch.ones_like(y, dtype=torch.bool), torch.zeros_like(y, dtype=torch.bool)
    opened[..., :1] = True                                             # where a list begins
    changed[..., 1:] = y[..., 1:] != y[..., :-1]                       # and where a run of equal labels does
    if runs is not None:
        opened[..., 1:] = runs[..., 1:] != runs[..., :-1]
    if where is not None:                                              # what does not count follows what does, and is no label of the list's
        held = where.gather(-1, order)
        changed[..., 1:] |= held[..., 1:] != held[..., :-1]
    start = torch.where(changed | opened, place, 0).cummax(-1).values if s.shape[-1] else place
    lower = _prefix_logsumexp(s, runs).gather(-1, (start - 1).clamp_min(0))  # of all items with a lower label
    least = ~opened.gather(-1, start)
    total = torch.where(least, torch.logaddexp(s, torch.where(least, lower, s)), s)
    terms = torch.where(g == 0, 0.0, g * (s - total))
    if runs is None:
        loss = -terms.sum(-1)
    else:
        loss = -list_sum(torch.zeros_like(terms).scatter(-1, order, terms), items.segments)
    return reduced(loss, counted(where, items.segments), reduce_fn)


def listmle_loss(scores: Tensor, labels: Tensor, *, generator: torch.Generator | None = None, where: Tensor | None = None,
                 segments: Tensor | None = None, reduce_fn: Reduction = masked_mean) -> Tensor:
    """−Σ_i (s_(i) − log Σ_{j ≥ i} e^{s_(j)}), items sorted by label from the highest (ListMLE, Xia et al. 2008). Ties stand in their order, or in a
    random one by `generator`."""
    items = checked(scores, labels, where, segments)
    turned = [None if one is None else one.flip(-1) for one in (items.labels, where, items.segments)]   # from behind, so that sums grow forwards
    order = ordered(turned[0], where=turned[1], segments=turned[2], generator=generator, descending=False)  # type: ignore[arg-type]
    s = items.scores.flip(-1).gather(-1, order)
    runs = turned[2].gather(-1, order) if turned[2] is not None else None
    terms = s - _prefix_logsumexp(s, runs)
    if turned[1] is not None:
        terms = torch.where(turned[1].gather(-1, order), terms, 0.0)
    if runs is None:
        loss = -terms.sum(-1)
    else:
        loss = -list_sum(torch.zeros_like(terms).scatter(-1, order, terms).flip(-1), items.segments)
    return reduced(loss, counted(where, items.segments), reduce_fn)


def pointwise_sigmoid_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                           weights: Tensor | None = None, reduce_fn: Reduction = masked_mean) -> Tensor:
    """Binary cross-entropy of σ(s) and the label, clipped to [0, 1], of each item. `segments` change nothing."""
    return _pointwise(scores, labels, where, segments, weights, reduce_fn, sigmoid=True)


def _pointwise(scores: Tensor, labels: Tensor, where: Tensor | None, segments: Tensor | None, weights: Tensor | None, reduce_fn: Reduction,
               sigmoid: bool) -> Tensor:
    fit(scores, labels, where, segments, weights)

    def plain(scores: Tensor) -> Tensor:
        s, y, _, _, w = checked(scores, labels, where, None, weights)
        if sigmoid:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(s, y.clamp(0, 1), reduction="none")
        else:
            loss = (s - y).square()
        return reduced(loss if w is None else loss * w, where, reduce_fn)

    if _closed.closed(scores, labels, weights, None, reduce_fn):
        return _closed.pointwise(scores, labels, where, weights, reduce_fn, sigmoid, plain)
    return plain(scores)


def pointwise_mse_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                       weights: Tensor | None = None, reduce_fn: Reduction = masked_mean) -> Tensor:
    """(s − y)² of each item. `segments` change nothing."""
    return _pointwise(scores, labels, where, segments, weights, reduce_fn, sigmoid=False)


