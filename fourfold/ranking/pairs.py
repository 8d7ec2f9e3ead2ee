"""Pairwise losses: Σ over pairs (i, j) of one list of a function of the score difference d = s_i − s_j and the label difference δ = y_i − y_j.

RankNet's logistic loss (Burges et al. 2005), Ranking SVM's hinge (Joachims 2002), and their kin. The reduction is over all pairs of the whole batch
that count, not list by list. Where the reduction is a mean or a sum, values and gradient are made together, a block of pairs at a time, so that the
[..., L, L] tensors never leave the cache; every other case takes the same formula over whole tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fourfold.errors import InputError
from fourfold.ranking.lists import Items, Reduction, checked, masked_mean, masked_sum, pairs_within, reduced, rows, unpacked

PairLossFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
LambdaweightFn = Callable[..., Tensor]
_PAIRS = 1 << 16  # of a block


class _Pair(NamedTuple):
    """A function of (d, δ) and its slope along d, whether only pairs with δ > 0 count, and whether δ enters the function. `both` gives value and
    slope; `value` alone is what autograd differentiates."""

    value: Callable[[Tensor, Tensor], Tensor]
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ordered: bool = True
    labelled: bool = False


def _hinge() -> _Pair:
    def both(d: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.relu(1 - d)
        return value, (value > 0).to(d.dtype).neg_()

    return _Pair(lambda d, delta: torch.relu(1 - d), both)


def _logistic() -> _Pair:
    def value(d: Tensor, delta: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-d, threshold=1e9 if d.dtype == torch.float64 else 80.0)

    return _Pair(value, lambda d, delta: (value(d, delta), torch.sigmoid(-d).neg_()))


def _soft_zero_one() -> _Pair:
    def both(d: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.sigmoid(-d)
        return sigma, torch.addcmul(-sigma, sigma, sigma)

    return _Pair(lambda d, delta: torch.sigmoid(-d), both)


def _squares() -> _Pair:
    def both(d: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        error = d - delta
        return error.square(), 2 * error

    return _Pair(lambda d, delta: (d - delta).square(), both, ordered=False, labelled=True)


def _quantile(tau: float, squared: bool) -> _Pair:
    def value(d: Tensor, delta: Tensor) -> Tensor:
        below, above = torch.relu(delta - d), torch.relu(d - delta)
        return tau * below.square() + (1 - tau) * above.square() if squared else tau * below + (1 - tau) * above

    def both(d: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        error = d - delta
        side = torch.where(error < 0, tau, 1 - tau).to(d.dtype) if squared else torch.where(error < 0, -tau, 1 - tau).to(d.dtype)
        found = error * side
        return (found * error, found.mul_(2)) if squared else (found, side)

    return _Pair(value, both, labelled=True)


# ---- over whole tensors ----------------------------------------------------------------------------------------------------------------------------

def compute_pairs(values: Tensor, op: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """op(v_i, v_j) of all pairs of [..., L], flattened: [..., L·L], i before j."""
    made = op(values.unsqueeze(-1), values.unsqueeze(-2))
    return made.broadcast_to((*values.shape, values.shape[-1])).reshape(*values.shape[:-1], -1)


def _whole(items: Items, pair_loss_fn: PairLossFn, lambdas: Tensor | None, reduce_fn: Reduction) -> Tensor:
    d, delta = (compute_pairs(values, torch.sub) for values in (items.scores, items.labels))
    values, valid = pair_loss_fn(d, delta)
    within = pairs_within(items.where, items.segments)
    if within is not None:
        valid = valid & within.flatten(-2)
    if items.weights is not None:
        values = values * compute_pairs(items.weights, lambda first, second: first)
    if lambdas is not None:
        values = values * lambdas
    return reduced(values, valid, reduce_fn)


def pairwise_loss(scores: Tensor, labels: Tensor, *, pair_loss_fn: PairLossFn, lambdaweight_fn: LambdaweightFn | None = None,
                  where: Tensor | None = None, segments: Tensor | None = None, weights: Tensor | None = None,
                  reduce_fn: Reduction = masked_mean) -> Tensor:
    """A pairwise loss of one's own.

    `pair_loss_fn(d, δ)` of differences [..., L·L] → (values, bool: which pairs count). `weights` [..., L] multiply by the first item of the pair;
    `lambdaweight_fn(scores, labels, where=, segments=, weights=)` → [..., L·L] multiplies besides. `reduce_fn` None: values [..., L·L].
    """
    items = checked(scores, labels, where, segments, weights)
    return _whole(items, pair_loss_fn, _lambdas(items, lambdaweight_fn), reduce_fn)


def _lambdas(items: Items, lambdaweight_fn: LambdaweightFn | None) -> Tensor | None:
    if lambdaweight_fn is None:
        return None
    return lambdaweight_fn(items.scores, items.labels, where=items.where, segments=items.segments, weights=items.weights)


# ---- block by block --------------------------------------------------------------------------------------------------------------------------------

class _PairSum(torch.autograd.Function):
    """Σ over the pairs that count, and their number: both of one pass, the gradient with them."""

    @staticmethod
    def forward(ctx, scores: Tensor, items: Items, pair: _Pair, lambdas: Tensor | LambdaweightFn | None):
        length, ctx.pair, ctx.items, ctx.lambdas = scores.shape[-1], pair, items, lambdas
        ctx.save_for_backward(scores)
        flat = rows(scores.detach())
        labels = rows(items.labels)
        if items.where is not None:                                    # a comparison with NaN does not hold
            labels = torch.where(items.where.reshape(labels.shape), labels, torch.nan)
        segments, weights = (None if one is None else rows(one.detach()) for one in (items.segments, items.weights))
        gradient = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        total, count = flat.new_zeros(()), flat.new_zeros((), dtype=torch.float64)
        lists = max(1, _PAIRS // max(1, length**2))
        firsts = max(1, min(length, _PAIRS // max(1, length)))
        for begin in range(0, len(flat), lists):
            scales = None
            if isinstance(lambdas, Tensor):
                scales = lambdas.reshape(len(flat), length, length)[begin : begin + lists]
            elif lambdas is not None:
                some = [None if one is None else rows(one)[begin : begin + lists] for one in items]
                scales = lambdas(some[0], some[1], where=some[2], segments=some[3], weights=some[4]).unflatten(-1, (length, length))
            for first in range(0, length, firsts):
                part = slice(begin, begin + lists), slice(first, first + firsts)
                total, count = _block(pair, part, flat, labels, (segments, weights, scales), gradient, total, count)
        ctx.gradient = None if gradient is None else gradient.reshape(scores.shape)
        count = count.to(total.dtype)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    def backward(ctx, *grads: Tensor):
        if torch.is_grad_enabled():                                    # the gradient itself is to be differentiated
            scores, = ctx.saved_tensors
            with torch.enable_grad():
                items = ctx.items._replace(scores=scores)
                weights = ctx.lambdas if ctx.lambdas is None or isinstance(ctx.lambdas, Tensor) else _lambdas(items, ctx.lambdas)
                total = _whole(items, _plain(ctx.pair), weights, masked_sum)
                return *torch.autograd.grad(total, scores, grads[0], create_graph=True), None, None, None
        return ctx.gradient * grads[0], None, None, None


def _block(pair: _Pair, part: tuple[slice, slice], scores: Tensor, labels: Tensor, extra: tuple[Tensor | None, Tensor | None, Tensor | None],
           gradient: Tensor | None, total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Add what the pairs of these lists, with these first items, make."""
    lists, firsts = part
    segments, weights, scales = extra
    d = scores[lists, firsts].unsqueeze(-1) - scores[lists].unsqueeze(-2)
    delta = labels[lists, firsts].unsqueeze(-1) - labels[lists].unsqueeze(-2)
    valid = (delta > 0 if pair.ordered else delta == delta).to(d.dtype)
    if segments is not None:
        valid *= segments[lists, firsts].unsqueeze(-1) == segments[lists].unsqueeze(-2)
    count = count + valid.sum()
    if pair.labelled and labels.isnan().any():
        delta = torch.nan_to_num(delta)
    if weights is not None:
        valid *= weights[lists, firsts].unsqueeze(-1)
    if scales is not None:
        valid *= scales[:, firsts]
    if gradient is None:
        value = pair.value(d, delta)
    else:
        value, slope = pair.both(d, delta)
        slope = slope * valid
        gradient[lists, firsts] += slope.sum(-1)
        gradient[lists] -= slope.sum(-2)
    return total + torch.dot(value.reshape(-1), valid.reshape(-1)), count


def _plain(pair: _Pair) -> PairLossFn:
    """The same as a function of whole tensors."""
    return lambda d, delta: (pair.value(d, delta), delta > 0 if pair.ordered else torch.ones_like(delta, dtype=torch.bool))


def _built_in(pair: _Pair, items: Items, lambdaweight_fn: LambdaweightFn | None, reduce_fn: Reduction) -> Tensor:
    mean, total = reduce_fn in (masked_mean, torch.mean), reduce_fn in (masked_sum, torch.sum)
    whole = getattr(getattr(lambdaweight_fn, "func", lambdaweight_fn), "of_ranks", False)      # no gradient flows through ours: a few lists at a time
    lambdas = lambdaweight_fn if whole else _lambdas(items, lambdaweight_fn)
    learnt = any(isinstance(one, Tensor) and one.requires_grad for one in (items.labels, items.weights, lambdas))
    if not (mean or total) or learnt or torch.compiler.is_compiling():
        return _whole(items, _plain(pair), _lambdas(items, lambdaweight_fn), reduce_fn)
    if items.segments is not None and lambdas is None:
        items = _laid_out(items)
    if not pair.ordered and lambdas is None:
        found, count = _all_squares(items)
    else:
        found, count = _PairSum.apply(items.scores, items._replace(scores=items.scores.detach()), pair, lambdas)  # type: ignore[misc]
    return found / count.clamp_min(1) if mean else found


def _laid_out(items: Items) -> Items:
    """Packed lists as rows of their own: pairs across lists are not even looked at."""
    assert items.segments is not None
    index, counts = unpacked(items.segments, items.where)
    scores, labels = (torch.where(counts, one.reshape(-1)[index], 0.0) for one in items[:2])
    weights = torch.where(counts, items.weights.reshape(-1)[index], 0.0) if items.weights is not None else None
    return Items(scores, labels, counts, None, weights)


def _all_squares(items: Items) -> tuple[Tensor, Tensor]:
    """Σ_i w_i Σ_j (e_i − e_j)² with errors e = s − y is Σ_i w_i (n e_i² + Σ_j e_j²) where e has mean 0: no pairs are needed."""
    counts = torch.ones_like(items.scores) if items.where is None else items.where.to(items.scores.dtype)
    n = counts.sum(-1, keepdim=True)
    error = (items.scores - items.labels) * counts
    error = (error - error.sum(-1, keepdim=True) / n.clamp_min(1)) * counts
    squares = error.square()
    each = (n * squares + squares.sum(-1, keepdim=True)) * counts
    return (each if items.weights is None else each * items.weights).sum(), n.square().sum()


def pairwise_hinge_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                        weights: Tensor | None = None, lambdaweight_fn: LambdaweightFn | None = None,
                        reduce_fn: Reduction = masked_mean) -> Tensor:
    """max(0, 1 − d) over pairs with y_i > y_j (Joachims 2002)."""
    return _built_in(_hinge(), checked(scores, labels, where, segments, weights), lambdaweight_fn, reduce_fn)


def pairwise_logistic_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                           weights: Tensor | None = None, lambdaweight_fn: LambdaweightFn | None = None,
                           reduce_fn: Reduction = masked_mean) -> Tensor:
    """log(1 + e^−d) over pairs with y_i > y_j (Burges et al. 2005)."""
    return _built_in(_logistic(), checked(scores, labels, where, segments, weights), lambdaweight_fn, reduce_fn)


def pairwise_soft_zero_one_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                                weights: Tensor | None = None, lambdaweight_fn: LambdaweightFn | None = None,
                                reduce_fn: Reduction = masked_mean) -> Tensor:
    """σ(−d) over pairs with y_i > y_j: a smooth count of pairs in the wrong order."""
    return _built_in(_soft_zero_one(), checked(scores, labels, where, segments, weights), lambdaweight_fn, reduce_fn)


def pairwise_mse_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                      weights: Tensor | None = None, lambdaweight_fn: LambdaweightFn | None = None,
                      reduce_fn: Reduction = masked_mean) -> Tensor:
    """(d − δ)² over all pairs of a list, an item with itself among them (which adds 0 and counts in the mean)."""
    return _built_in(_squares(), checked(scores, labels, where, segments, weights), lambdaweight_fn, reduce_fn)


def pairwise_qr_loss(scores: Tensor, labels: Tensor, *, where: Tensor | None = None, segments: Tensor | None = None,
                     weights: Tensor | None = None, tau: float = 0.5, squared: bool = False, lambdaweight_fn: LambdaweightFn | None = None,
                     reduce_fn: Reduction = masked_mean) -> Tensor:
    """Quantile regression of differences: τ·max(0, δ − d) + (1 − τ)·max(0, d − δ) over pairs with y_i > y_j, each part squared where `squared`.

    Raises InputError for `tau` outside of (0, 1].
    """
    if not 0 < tau <= 1:
        raise InputError(f"tau is {tau}; a quantile in (0, 1] was expected.", "0.5 weighs both directions alike.")
    return _built_in(_quantile(tau, squared), checked(scores, labels, where, segments, weights), lambdaweight_fn, reduce_fn)
