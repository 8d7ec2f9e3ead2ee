"""Metrics of rankings, after Rax (Jagerman et al. 2022): values in [0, 1] of each list, higher is better, and their mean over lists.

scores, labels [..., L]; `where`, `segments`: `fourfold.ranking.lists`. `topn`: only the first n items are retrieved. An item with a score of −∞ or
NaN is not retrieved. A label of 1 or more is relevant. Ties are ranked in their order, or at random by `generator`. `rank_fn` and `cutoff_fn` replace
ranks and cut-offs by differentiable ones (`fourfold.ranking.transformations`). Lists without an item that counts leave the mean; where none
is left it is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fourfold.ranking.lists import Items, Reduction, checked, counted, list_max, list_sum, masked_mean, pairs_within, reduced, rows
from fourfold.ranking.ranks import CutoffFn, RankFn, _starts, cutoff, ranks

GainFn = Callable[[Tensor], Tensor]


def default_gain_fn(label: Tensor) -> Tensor:
    """2^label − 1 (Burges et al. 2005)."""
    return torch.exp2(label) - 1


def default_discount_fn(rank: Tensor) -> Tensor:
    """1 / log2(rank + 1) (Järvelin and Kekäläinen 2002)."""
    return 1.0 / torch.log2(rank + 1.0)


def _retrieved(items: Items, place: Tensor | None, topn: int | None, cutoff_fn: CutoffFn) -> Tensor:
    """How far each item is retrieved: 1, 0, or between where the cut-off is soft."""
    found = items.scores > -torch.inf
    found = (found if items.where is None else found & items.where).to(items.scores.dtype)
    if topn is None or place is None:
        return found
    if cutoff_fn is cutoff and not place.is_floating_point():          # whole ranks say it themselves
        return found * (place <= topn)
    return found * cutoff_fn(-place.to(found.dtype), topn, where=items.where, segments=items.segments)


def _ranked(items: Items, topn: int | None, rank_fn: RankFn, cutoff_fn: CutoffFn, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    place = rank_fn(items.scores, where=items.where, segments=items.segments, generator=generator)
    return place, _retrieved(items, place, topn, cutoff_fn)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / torch.where(whole == 0, 1.0, whole)


def mrr_metric(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, topn: int | None = None,
               generator: torch.Generator | None = None, rank_fn: RankFn = ranks, cutoff_fn: CutoffFn = cutoff,
               reduce_fn: Reduction = masked_mean) -> Tensor:
    """Mean reciprocal rank: max over relevant items that are retrieved of 1 / rank."""
    items = checked(scores, labels, where, segments)
    place, retrieved = _ranked(items, topn, rank_fn, cutoff_fn, generator)
    values = (items.labels >= 1) * retrieved / place.to(retrieved.dtype).clamp_min(torch.finfo(retrieved.dtype).tiny)
    return reduced(list_max(values, items.segments, where, least=0.0), counted(where, items.segments), reduce_fn)


def recall_metric(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, topn: int | None = None,
                  generator: torch.Generator | None = None, rank_fn: RankFn = ranks, cutoff_fn: CutoffFn = cutoff,
                  reduce_fn: Reduction = masked_mean) -> Tensor:
    """Relevant items that are retrieved / relevant items; 0 where none is relevant."""
    items = checked(scores, labels, where, segments)
    relevant, retrieved = _both(items, topn, rank_fn, cutoff_fn, generator)
    values = _ratio(list_sum(retrieved * relevant, items.segments, where), list_sum(relevant, items.segments, where))
    return reduced(values, counted(where, items.segments), reduce_fn)


def precision_metric(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, topn: int | None = None,
                     generator: torch.Generator | None = None, rank_fn: RankFn = ranks, cutoff_fn: CutoffFn = cutoff,
                     reduce_fn: Reduction = masked_mean) -> Tensor:
    """Relevant items that are retrieved / retrieved items (no more than there are in the list); 0 where none is retrieved."""
    items = checked(scores, labels, where, segments)
    relevant, retrieved = _both(items, topn, rank_fn, cutoff_fn, generator)
    values = _ratio(list_sum(retrieved * relevant, items.segments, where), list_sum(retrieved, items.segments, where))
    return reduced(values, counted(where, items.segments), reduce_fn)


def _both(items: Items, topn: int | None, rank_fn: RankFn, cutoff_fn: CutoffFn, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(1 for a relevant item, 1 for one that is retrieved); ranks are found only where a cut-off asks for them."""
    if topn is None and cutoff_fn is cutoff:
        retrieved = _retrieved(items, None, topn, cutoff_fn)
    else:
        _, retrieved = _ranked(items, topn, rank_fn, cutoff_fn, generator)
    return (items.labels >= 1).to(retrieved.dtype), retrieved


def _relevant_up_to(relevant: Tensor, place: Tensor, items: Items) -> Tensor:
    """How many relevant items of its list rank no lower than each item."""
    if place.is_floating_point():
        within = pairs_within(items.where, items.segments)
        ahead = place.unsqueeze(-1) >= place.unsqueeze(-2)
        return ((ahead if within is None else ahead & within) * relevant.unsqueeze(-2)).sum(-1)
    at = place - 1 if items.segments is None else place - 1 + _starts(items.segments)
    sums = torch.zeros_like(relevant).scatter(-1, at, relevant).cumsum(-1)
    if items.segments is None:
        return sums.gather(-1, at)
    padded = torch.cat([torch.zeros_like(sums[..., :1]), sums], -1)
    return padded.gather(-1, at + 1) - padded.gather(-1, _starts(items.segments))


def ap_metric(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, topn: int | None = None,
              generator: torch.Generator | None = None, rank_fn: RankFn = ranks, cutoff_fn: CutoffFn = cutoff,
              reduce_fn: Reduction = masked_mean) -> Tensor:
    """Average precision: Σ over relevant items that are retrieved of the precision at their rank / relevant items; 0 where none is relevant."""
    items = checked(scores, labels, where, segments)
    place, retrieved = _ranked(items, topn, rank_fn, cutoff_fn, generator)
    relevant = (items.labels >= 1).to(retrieved.dtype)
    relevant = relevant if where is None else relevant * where
    precision = _relevant_up_to(relevant, place, items) / place.to(retrieved.dtype) * relevant * retrieved
    values = _ratio(list_sum(precision, items.segments, where), list_sum(relevant, items.segments, where))
    return reduced(values, counted(where, items.segments), reduce_fn)


def opa_metric(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, reduce_fn: Reduction = masked_mean) -> Tensor:
    """Ordered pair accuracy: the share of pairs with different labels whose scores are in the same order; 0 where there is no such pair."""
    items = checked(scores, labels, where)
    s, y = rows(items.scores), rows(items.labels)
    if where is not None:
        y = torch.where(rows(where), y, torch.nan)                     # a comparison with NaN does not hold
    pairs, right = s.new_zeros(len(s)), s.new_zeros(len(s))
    step = max(1, (1 << 16) // max(1, s.shape[1] ** 2))                # lists at a time: their pairs stay in a core's cache
    for begin in range(0, len(s) if s.shape[1] else 0, step):
        part = slice(begin, begin + step)
        below = (y[part].unsqueeze(-1) > y[part].unsqueeze(-2)).to(s.dtype)
        pairs[part] = below.sum((-2, -1))
        right[part] = below.mul_(s[part].unsqueeze(-1) > s[part].unsqueeze(-2)).sum((-2, -1))
    shape = scores.shape[:-1]
    return reduced(_ratio(right.reshape(shape), pairs.reshape(shape)), counted(where, None), reduce_fn)


def dcg_metric(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, topn: int | None = None,
               weights: Tensor | None = None, generator: torch.Generator | None = None, gain_fn: GainFn = default_gain_fn,
               discount_fn: Callable[[Tensor], Tensor] = default_discount_fn, rank_fn: RankFn = ranks, cutoff_fn: CutoffFn = cutoff,
               reduce_fn: Reduction = masked_mean) -> Tensor:
    """Discounted cumulative gain: Σ gain(y_i) · discount(rank_i) over items that are retrieved. `weights` multiply gains."""
    items = checked(scores, labels, where, segments, weights)
    gains = _gains(items, gain_fn)
    return reduced(_dcg(items, gains, topn, discount_fn, rank_fn, cutoff_fn, generator), counted(where, items.segments), reduce_fn)


def _gains(items: Items, gain_fn: GainFn) -> Tensor:
    gains = gain_fn(items.labels)
    return gains if items.weights is None else gains * items.weights


def _dcg(items: Items, gains: Tensor, topn: int | None, discount_fn: Callable[[Tensor], Tensor], rank_fn: RankFn, cutoff_fn: CutoffFn,
         generator: torch.Generator | None) -> Tensor:
    place, retrieved = _ranked(items, topn, rank_fn, cutoff_fn, generator)
    return list_sum(retrieved * gains * discount_fn(place.to(gains.dtype)), items.segments, items.where)


def ideal_dcg(items: Items, gains: Tensor, topn: int | None, discount_fn: Callable[[Tensor], Tensor]) -> Tensor:
    """The DCG of the best order, in the shape of `list_sum`."""
    if items.segments is not None:
        return _dcg(items._replace(scores=gains), gains, topn, discount_fn, ranks, cutoff, None)
    gains = gains if items.where is None else torch.where(items.where, gains, -torch.inf)
    best = gains.sort(-1, descending=True).values[..., :topn]
    place = torch.arange(1, best.shape[-1] + 1, device=gains.device, dtype=gains.dtype)
    return (torch.where(best > -torch.inf, best, 0.0) * discount_fn(place)).sum(-1)


def ndcg_metric(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, topn: int | None = None,
                weights: Tensor | None = None, generator: torch.Generator | None = None, gain_fn: GainFn = default_gain_fn,
                discount_fn: Callable[[Tensor], Tensor] = default_discount_fn, rank_fn: RankFn = ranks, cutoff_fn: CutoffFn = cutoff,
                reduce_fn: Reduction = masked_mean) -> Tensor:
    """DCG / the DCG of the best order (Järvelin and Kekäläinen 2002); 0 where no item gains anything."""
    items = checked(scores, labels, where, segments, weights)
    gains = _gains(items, gain_fn)
    found = _dcg(items, gains, topn, discount_fn, rank_fn, cutoff_fn, generator)
    return reduced(_ratio(found, ideal_dcg(items, gains, topn, discount_fn)), counted(where, items.segments), reduce_fn)


mrr, recall, precision, ap, opa, dcg, ndcg = mrr_metric, recall_metric, precision_metric, ap_metric, opa_metric, dcg_metric, ndcg_metric
