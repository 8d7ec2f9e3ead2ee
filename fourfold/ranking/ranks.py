"""Ranks of items by their scores, exact and approximate, and cut-offs at the first n (Qin, Liu and Li 2010 for the approximation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fourfold.ranking.lists import dense, list_sum, pairs_within, rows, unpacked

StepFn = Callable[[Tensor], Tensor]
_PAIRS = 1 << 16  # of a block: it stays in a core's cache


class RankFn(Protocol):
    """scores → ranks [..., L], from 1, of the items that count within their lists."""

    def __call__(self, scores: Tensor, *, where: Tensor | None, segments: Tensor | None, generator: torch.Generator | None) -> Tensor: ...


class CutoffFn(Protocol):
    """values, n → 1 for the n highest of each list, 0 for the others (or something between); `n` None: all 1."""

    def __call__(self, values: Tensor, n: int | None, *, where: Tensor | None, segments: Tensor | None) -> Tensor: ...


def ordered(keys: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, generator: torch.Generator | None = None,
            descending: bool = True) -> Tensor:
    """Positions [..., L] by list (dense `segments`), items that count before the others, then by key. NaN is last. Ties stay in their order, or are
    in a random one where a generator is given."""
    lowest = -torch.inf if descending else torch.inf
    if keys.is_floating_point():
        keys = torch.where(keys.isnan(), lowest, keys)
    if generator is not None:
        shuffled = torch.rand(keys.shape, generator=generator, device=keys.device).argsort(dim=-1)
        order = shuffled.gather(-1, keys.gather(-1, shuffled).argsort(dim=-1, descending=descending, stable=True))
    else:
        order = keys.argsort(dim=-1, descending=descending, stable=True)
    if where is not None or segments is not None:                      # one more stable sort, by what comes before the key
        outer = torch.zeros_like(order) if segments is None else 2 * segments
        outer = outer if where is None else outer + (~where).to(order.dtype)
        order = order.gather(-1, outer.gather(-1, order).argsort(dim=-1, stable=True))
    return order


def _ranks(scores: Tensor, where: Tensor | None, packed: Tensor | None, generator: torch.Generator | None) -> Tensor:
    order = ordered(scores.detach(), where=where, segments=packed, generator=generator)
    places = torch.arange(1, scores.shape[-1] + 1, device=scores.device).expand_as(order)
    if packed is not None:
        places = places - _starts(packed).gather(-1, order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _starts(packed: Tensor) -> Tensor:
    """How many items of the row are in lists of lower numbers: int64 [..., L]."""
    sizes = torch.zeros_like(packed).scatter_add(-1, packed, torch.ones_like(packed))
    return (sizes.cumsum(-1) - sizes).gather(-1, packed)


def ranks(scores: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Ranks int64 [..., L], 1 for the highest score of a list. Items that do not count follow those that do; ties are ranked in their order, or at
    random by `generator`. NaN ranks last."""
    return _ranks(scores, where, dense(segments) if segments is not None else None, generator)


class SigmoidStep:
    """A smooth step: σ(x / temperature)."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x / self.temperature)


def _pair_ranks(scores: Tensor, where: Tensor | None, packed: Tensor | None, step_fn: StepFn) -> Tensor:
    """The definition, over all pairs at once."""
    steps = step_fn(scores.unsqueeze(-2) - scores.unsqueeze(-1))
    keep = ~torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    both = pairs_within(where, packed)
    return torch.where(keep if both is None else keep & both, steps, 0.0).sum(-1) + 1


class _SigmoidRanks(torch.autograd.Function):
    """The same for the sigmoid step, list by list: its slope is even, so the gradient is two products with one symmetric matrix. Only that matrix's
    lists are held at a time; backward makes them again."""

    @staticmethod
    def forward(ctx, scores: Tensor, where: Tensor | None, temperature: float) -> Tensor:
        ctx.save_for_backward(scores, where)
        ctx.temperature = temperature
        flat = rows(scores / temperature)
        mask = None if where is None else where.reshape(flat.shape).to(flat.dtype)
        step = max(1, _PAIRS // max(1, flat.shape[1] ** 2))
        found = []
        for begin in range(0, len(flat), step):
            part = flat[begin : begin + step]
            sigma = (part.unsqueeze(-2) - part.unsqueeze(-1)).sigmoid_()
            if mask is None:
                found.append(sigma.sum(-1).add_(0.5))                  # 1, less the item's own half
            else:
                own = mask[begin : begin + step]
                found.append(torch.bmm(sigma, own.unsqueeze(-1)).squeeze(-1).sub_(0.5).mul_(own).add_(1))
        return (torch.cat(found) if found else flat.clone()).reshape(scores.shape)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        scores, where = ctx.saved_tensors
        if torch.is_grad_enabled():                                    # the gradient itself is to be differentiated
            with torch.enable_grad():
                plain = _pair_ranks(scores, where, None, SigmoidStep(ctx.temperature))
                return *torch.autograd.grad(plain, scores, grads[0], create_graph=True), None, None
        flat = rows(scores / ctx.temperature)
        over = grads[0].reshape(flat.shape)
        mask = None if where is None else where.reshape(flat.shape).to(flat.dtype)
        over = over if mask is None else over * mask
        step = max(1, _PAIRS // max(1, flat.shape[1] ** 2))
        found = torch.empty_like(flat)
        ones = torch.ones_like(flat) if mask is None else mask
        for begin in range(0, len(flat), step):
            part = slice(begin, begin + step)
            sigma = (flat[part].unsqueeze(-2) - flat[part].unsqueeze(-1)).sigmoid_()
            slope = torch.addcmul(sigma, sigma, sigma, value=-1.0)
            both = torch.bmm(slope, torch.stack([over[part], ones[part]], -1))
            found[part] = torch.addcmul(both[..., 0], over[part], both[..., 1], value=-1.0) * ones[part]
        return found.div_(ctx.temperature).reshape(scores.shape), None, None


def approx_ranks(scores: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None, generator: torch.Generator | None = None,
                 step_fn: StepFn | None = None) -> Tensor:
    """r_i = 1 + Σ_{j≠i} step(s_j − s_i) over the items of i's list that count: [..., L], differentiable. `step_fn` None: the sigmoid. An item that
    does not count has rank 1. `generator` is not used: nothing is tied."""
    step = step_fn or SigmoidStep()
    packed = dense(segments) if segments is not None else None
    if isinstance(step, SigmoidStep) and not torch.compiler.is_compiling():
        if packed is None:
            return _SigmoidRanks.apply(scores, where, step.temperature)  # type: ignore[no-any-return]
        index, counts = unpacked(packed, where)
        found = _SigmoidRanks.apply(scores.reshape(-1)[index], counts, step.temperature)
        return torch.ones_like(scores).reshape(-1).index_put((index[counts],), found[counts]).reshape(scores.shape)
    return _pair_ranks(scores, where, packed, step)


def cutoff(values: Tensor, n: int | None = None, *, where: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
    """1 for the `n` highest values of each list, 0 for the others and for what does not count; `n` None: all 1. [..., L], floating."""
    dtype = values.dtype if values.is_floating_point() else torch.float32
    if n is None:
        return torch.ones_like(values, dtype=dtype)
    found = ranks(values, where=where, segments=segments) <= n
    return (found if where is None else found & where).to(dtype)


def approx_cutoff(values: Tensor, n: int | None = None, *, where: Tensor | None = None, segments: Tensor | None = None,
                  step_fn: StepFn | None = None) -> Tensor:
    """step(v − threshold), the threshold halfway between the n-th and the next value of each list (no gradient flows through it): [..., L]. Lists of
    `n` items or fewer are kept whole; `n` None: all 1."""
    if n is None:
        return torch.ones_like(values)
    if n == 0:
        return torch.zeros_like(values)
    packed = dense(segments) if segments is not None else None
    place = _ranks(values, where, packed, None)
    edge = torch.where((place == n) | (place == n + 1), values.detach(), 0.0)
    ones = torch.ones_like(values)
    threshold, count = (list_sum(edge, packed, where), list_sum(ones, packed, where))
    if packed is None:
        threshold, count = threshold.unsqueeze(-1), count.unsqueeze(-1)
    found = torch.where(count > n, (step_fn or SigmoidStep())(values - threshold / 2), 1.0)
    return found if where is None else torch.where(where, found, 0.0)
