"""Values and gradients of the losses that cost next to nothing, made together: autograd's own bookkeeping would take longer than their arithmetic.

Used where the reduction is a mean or a sum over padded lists and only scores are learnt; everywhere else the plain formula is differentiated, and so
is it where a gradient is to be differentiated itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fourfold.ranking.lists import Reduction, lowest, masked_mean, masked_sum
from fourfold.torch_types import Saved


class _SavedGradient(Saved, Protocol):
    gradient: Tensor
    plain: Callable[[Tensor], Tensor]


class _Closed(torch.autograd.Function):
    """A value whose gradient by the scores is known."""

    @staticmethod
    def forward(ctx: _SavedGradient, scores: Tensor, value: Tensor, gradient: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.gradient, ctx.plain = gradient, plain
        return value

    @staticmethod
    def backward(ctx: _SavedGradient, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        scores, = ctx.saved_tensors
        if torch.is_grad_enabled():                                    # the gradient itself is to be differentiated
            with torch.enable_grad():
                into, = torch.autograd.grad(ctx.plain(scores), scores, grads[0], create_graph=True)
                return into, None, None, None
        return ctx.gradient * grads[0], None, None, None


def closed(scores: Tensor, labels: Tensor, weights: Tensor | None, segments: Tensor | None, reduce_fn: Reduction) -> bool:
    """Whether value and gradient may be made together."""
    plain = scores.dtype in (torch.float32, torch.float64) and labels.dtype == scores.dtype and scores.numel() > 0
    fixed = not labels.requires_grad and (weights is None or not weights.requires_grad) and segments is None
    asked = reduce_fn in (masked_mean, masked_sum, torch.mean, torch.sum) and scores.requires_grad and torch.is_grad_enabled()
    return plain and fixed and asked and not torch.compiler.is_compiling()


def _over(count: Tensor | int, reduce_fn: Reduction) -> Tensor | float:
    """What the reduction divides by."""
    if reduce_fn in (masked_sum, torch.sum):
        return 1.0
    return max(1, count) if isinstance(count, int) else count.clamp_min(1)


def pointwise(scores: Tensor, labels: Tensor, where: Tensor | None, weights: Tensor | None, reduce_fn: Reduction, sigmoid: bool,
              plain: Callable[[Tensor], Tensor]) -> Tensor:
    """Binary cross-entropy of σ(s) and the clipped label, or the squared error."""
    with torch.no_grad():
        if sigmoid:
            y = labels.clamp(0, 1)
            values = torch.nn.functional.binary_cross_entropy_with_logits(scores, y, reduction="none")
            slope = torch.sigmoid(scores).sub_(y)
            if where is not None:
                values, slope = torch.where(where, values, 0.0), torch.where(where, slope, 0.0)
        else:
            slope = scores - labels
            slope = slope if where is None else torch.where(where, slope, 0.0)             # a mask costs more than the arithmetic: it is used once
            values = slope.square()
            slope.mul_(2)
        if weights is not None:
            weights = weights if where is None else torch.where(where, weights, 0.0)
            values, slope = values * weights, slope * weights
        over = _over(scores.numel() if where is None else where.count_nonzero(), reduce_fn)
        value, gradient = values.sum() / over, slope.div_(over)
    return _Closed.apply(scores, value, gradient, plain)  # type: ignore[no-any-return]


def softmax(scores: Tensor, labels: Tensor, where: Tensor | None, weights: Tensor | None, reduce_fn: Reduction, epsilon: float | None,
            plain: Callable[[Tensor], Tensor]) -> Tensor:
    """The softmax loss, or with `epsilon` the poly-1 loss."""
    with torch.no_grad():
        low = lowest(scores.dtype)
        s = scores if where is None else torch.where(where, scores, low)
        logs = s.clamp_min(low).log_softmax(-1)
        y = labels if weights is None else labels * weights
        y = y if where is None else torch.where(where, y, 0.0)
        mass, chance = y.sum(-1, keepdim=True), logs.exp()
        value, gradient = (y * logs).sum().neg_(), (chance * mass).sub_(y)
        if epsilon is not None:
            count = scores.shape[-1] if where is None else where.sum(-1, keepdim=True).clamp_min(1)
            known = mass != 0
            share = torch.where(known, y / torch.where(known, mass, 1.0), 1.0 / count)
            hit = chance * share if where is None else (chance * share).mul_(where)
            p = hit.sum(-1, keepdim=True)
            counted = p.new_ones(p.shape) if where is None else where.any(-1, keepdim=True).to(p.dtype)
            value = value + epsilon * ((1 - p) * counted).sum()
            gradient = torch.addcmul(gradient.sub_(hit, alpha=epsilon), chance, p * counted, value=epsilon)
        if where is None:
            lists: Tensor | int = scores.numel() // scores.shape[-1]
        else:                                                          # `any` of marks takes longer than a maximum of numbers
            found = s.amax(-1)
            lists = (found > low).sum() if found.isfinite().all() else where.any(-1).sum()
        over = _over(lists, reduce_fn)
        value, gradient = value / over, gradient.div_(over)
    return _Closed.apply(scores, value, gradient, plain)  # type: ignore[no-any-return]
