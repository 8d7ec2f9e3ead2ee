"""Which items make up one list, and how values of lists become one number: the parts that every ranking loss and metric shares.

Items stand along the last axis. A list is a whole row [..., L] of which `where` says which items count (padded), or, where `segments` are given, all
items of a row that bear the same number (packed). A value of a list is [...] in the padded form, and [..., L] in the packed form, where every item
bears its list's value and the first item that counts takes it into the reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fourfold.errors import InputError


class ReduceFn(Protocol):
    """values, where (bool, of their shape, or None: all) → what is left of them."""

    def __call__(self, values: Tensor, *, where: Tensor | None = None) -> Tensor: ...


def masked_mean(values: Tensor, *, where: Tensor | None = None) -> Tensor:
    """The mean of `values` where `where` holds; 0 where it holds nowhere."""
    if where is None:
        return values.mean() if values.numel() else values.sum()
    return torch.where(where, values, 0.0).sum() / where.sum().clamp_min(1)


def masked_sum(values: Tensor, *, where: Tensor | None = None) -> Tensor:
    """The sum of `values` where `where` holds."""
    return (values if where is None else torch.where(where, values, 0.0)).sum()


Reduction = ReduceFn | Callable[..., Tensor] | None
"""`masked_mean`, `masked_sum` (torch.mean and torch.sum say the same), any `ReduceFn`, or None: values as they are, 0 where nothing counts."""


def reduced(values: Tensor, where: Tensor | None, reduce_fn: Reduction) -> Tensor:
    """`values` reduced over those lists (or pairs) that count."""
    if reduce_fn is None:
        return values if where is None else torch.where(where, values, 0.0)
    if reduce_fn is torch.mean:
        reduce_fn = masked_mean
    elif reduce_fn is torch.sum:
        reduce_fn = masked_sum
    return reduce_fn(values, where=where)


class Items(NamedTuple):
    """Checked arguments: `scores` and `labels` of one floating dtype (half precision is raised to float32) and one shape [..., L]. Items that do not
    count have label 0 and a score of 0, so that nothing they held (NaN, infinity) can reach a gradient."""

    scores: Tensor
    labels: Tensor
    where: Tensor | None
    segments: Tensor | None
    weights: Tensor | None


def lowest(dtype: torch.dtype) -> float:
    """A score whose exponential is 0 beside any other of a list, and finite."""
    return torch.finfo(dtype).min / 4


def fit(scores: Tensor, labels: Tensor, where: Tensor | None, segments: Tensor | None, weights: Tensor | None) -> None:
    """Raises InputError where shapes or types do not fit (see `checked`)."""
    if scores.dim() == 0 or scores.shape != labels.shape:
        raise InputError(f"scores of shape {tuple(scores.shape)} and labels of shape {tuple(labels.shape)}; one shape [..., L] was expected.",
                         "Give one label for each score; pad lists to one length and say with `where` which items count.")
    for name, one, kind in (("where", where, "bool"), ("segments", segments, "integer")):
        if one is not None and (one.shape != scores.shape or (one.dtype == torch.bool) != (kind == "bool") or one.is_floating_point()):
            raise InputError(f"`{name}` is {one.dtype} of shape {tuple(one.shape)}; {kind} of shape {tuple(scores.shape)} was expected.",
                             f"Give one {kind} for each item.")
    if weights is not None:
        try:
            weights.expand_as(scores)
        except RuntimeError as error:
            raise InputError(f"weights of shape {tuple(weights.shape)} do not broadcast to the scores' {tuple(scores.shape)}.",
                             "Give one weight for each item, or [..., 1] for each list.") from error


def checked(scores: Tensor, labels: Tensor, where: Tensor | None = None, segments: Tensor | None = None, weights: Tensor | None = None, *,
            low: bool = False) -> Items:
    """The arguments of a loss or metric, checked. With `low`, items that do not count have the `lowest` score instead of 0.

    scores, labels, where (bool), segments (integer): [..., L]; weights: of a shape that broadcasts to it. Raises InputError for other shapes or
    types.
    """
    fit(scores, labels, where, segments, weights)
    dtype = scores.dtype if scores.dtype in (torch.float32, torch.float64) else torch.float32
    scores, labels = scores.to(dtype), labels.to(dtype)
    weights = weights.to(dtype).expand_as(scores) if weights is not None else None
    if where is not None:
        scores, labels = torch.where(where, scores, lowest(dtype) if low else 0.0), torch.where(where, labels, 0.0)
        weights = torch.where(where, weights, 0.0) if weights is not None else None
    return Items(scores, labels, where, dense(segments) if segments is not None else None, weights)


def rows(values: Tensor) -> Tensor:
    """[..., L] as [N, L]."""
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def unpacked(segments: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Packed lists (`segments` as `dense` gives them) laid out in rows: (positions int64 [N, M] in the flattened items, which of them count), of the
    items that count alone, N lists of at most M."""
    ids = (rows(segments) + segments.shape[-1] * torch.arange(math.prod(segments.shape[:-1]), device=segments.device).unsqueeze(1)).reshape(-1)
    kept = torch.arange(len(ids), device=ids.device) if where is None else where.reshape(-1).nonzero().squeeze(1)
    ordered, order = ids[kept].sort(stable=True)
    _, row, counts = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(row), device=ids.device) - (counts.cumsum(0) - counts)[row]
    index = torch.zeros(len(counts), int(counts.max()) if len(counts) else 0, dtype=torch.long, device=ids.device)
    index[row, place] = kept[order]
    return index, torch.arange(index.shape[1], device=ids.device) < counts.unsqueeze(1)


# ---- packed lists ----------------------------------------------------------------------------------------------------------------------------------

def dense(segments: Tensor) -> Tensor:
    """Numbers of lists, renumbered from 0 in each row: int64 [..., L], all below L."""
    if segments.shape[-1] == 0:
        return segments.long()
    ordered, order = segments.sort(dim=-1, stable=True)
    steps = torch.zeros_like(order)
    steps[..., 1:] = (ordered[..., 1:] != ordered[..., :-1]).cumsum(-1)
    return torch.empty_like(order).scatter_(-1, order, steps)


def list_sum(values: Tensor, segments: Tensor | None, where: Tensor | None = None) -> Tensor:
    """Sums over lists: [...], or [..., L] where packed (`segments` as `dense` gives them), where every item bears its list's sum."""
    values = values if where is None else torch.where(where, values, 0)
    if segments is None:
        return values.sum(-1)
    return torch.zeros_like(values).scatter_add(-1, segments, values).gather(-1, segments)


def list_max(values: Tensor, segments: Tensor | None, where: Tensor | None = None, least: float = -torch.inf) -> Tensor:
    """Maxima over lists, of `least` where a list has no item, in the shape of `list_sum`."""
    values = values if where is None else torch.where(where, values, least)
    if segments is None:
        return values.amax(-1) if values.shape[-1] else values.sum(-1) + least
    most = torch.full_like(values, least).scatter_reduce(-1, segments, values, "amax", include_self=True)
    return most.gather(-1, segments)


def item_of_list(value: Tensor, segments: Tensor | None) -> Tensor:
    """A value of lists as it broadcasts to their items."""
    return value.unsqueeze(-1) if segments is None else value


def counted(where: Tensor | None, segments: Tensor | None) -> Tensor | None:
    """Which values of lists are reduced: those of lists with an item that counts; of packed lists the first such item's."""
    if segments is None:
        return where.any(-1) if where is not None else None
    position = torch.arange(segments.shape[-1], device=segments.device).expand_as(segments)
    last = segments.shape[-1]
    held = position if where is None else torch.where(where, position, last)
    first = torch.full_like(held, last).scatter_reduce(-1, segments, held, "amin", include_self=True).gather(-1, segments)
    return (position == first) & (first < last)


def log_softmax(scores: Tensor, segments: Tensor | None, where: Tensor | None) -> Tensor:
    """log softmax within lists over the items that count, of scores `checked` with `low`; finite everywhere, whatever the scores."""
    if scores.shape[-1] == 0:
        return scores
    scores = scores.clamp_min(lowest(scores.dtype))
    if segments is None:
        return scores.log_softmax(-1)
    most = list_max(scores.detach(), segments, where)
    shifted = scores - torch.where(most == -torch.inf, 0.0, most)
    total = list_sum(shifted.exp(), segments, where)
    logs = shifted - torch.where(total > 0, total, 1.0).log()
    return logs if where is None else torch.where(where, logs, 0.0)


def normalize_probabilities(values: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
    """`values` [..., L] divided by their list's sum over the items that count; where that is 0, one share for each such item (for each item where
    none counts)."""
    packed = dense(segments) if segments is not None else None
    total = item_of_list(list_sum(values, packed, where), packed)
    ones = torch.ones_like(values)
    count = item_of_list(list_sum(ones, packed, where), packed)
    count = torch.where(count == 0, item_of_list(list_sum(ones, packed), packed), count)
    return torch.where(total != 0, values / torch.where(total != 0, total, 1.0), 1.0 / count)


def pairs_within(where: Tensor | None, segments: Tensor | None) -> Tensor | None:
    """[..., L, L]: whether both items count and are of one list; None: all."""
    both = where.unsqueeze(-1) & where.unsqueeze(-2) if where is not None else None
    if segments is None:
        return both
    same = segments.unsqueeze(-1) == segments.unsqueeze(-2)
    return same if both is None else same & both
