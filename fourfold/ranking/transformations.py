"""Losses from metrics, and losses over samples or packed lists, from any loss or metric of this package (Rax's t12n; Jagerman et al. 2022).

A metric becomes a loss when its ranks become smooth: by sigmoid steps (Qin, Liu and Li 2010), or by steps that bound the metric (Jagerman et al.
2022). Gumbel noise on scores makes it an expectation over Plackett-Luce rankings (Bruch et al. 2020).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from fourfold.ranking.ranks import SigmoidStep, StepFn, approx_cutoff, approx_ranks

RankingFn = Callable[..., Tensor]


def _accepts(function: RankingFn, name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


def _negated(metric_fn: RankingFn, rank_step: StepFn, cutoff_step: StepFn, prefix: str) -> RankingFn:
    smooth: dict[str, object] = {}
    if _accepts(metric_fn, "rank_fn"):
        smooth["rank_fn"] = partial(approx_ranks, step_fn=rank_step)
    if _accepts(metric_fn, "cutoff_fn"):
        smooth["cutoff_fn"] = partial(approx_cutoff, step_fn=cutoff_step)

    @wraps(metric_fn)
    def loss(scores: Tensor, labels: Tensor, **options: object) -> Tensor:
        return -metric_fn(scores, labels, **{**smooth, **options})

    loss.__name__ = f"{prefix}_{getattr(metric_fn, '__name__', 'metric')}"
    return loss


def approx_t12n(metric_fn: RankingFn, temperature: float = 1.0) -> RankingFn:
    """−metric with ranks and cut-offs made of sigmoids of that temperature: a loss."""
    step = SigmoidStep(temperature)
    return _negated(metric_fn, step, step, "approx")


def _upper(x: Tensor) -> Tensor:
    return torch.relu(x + 1)


def _lower(x: Tensor) -> Tensor:
    return 1 - torch.relu(1 - x)


def bound_t12n(metric_fn: RankingFn) -> RankingFn:
    """−a lower bound of the metric: ranks with the step max(0, x + 1), which lies above the true one, cut-offs with min(x, 1) below it."""
    return _negated(metric_fn, _upper, _lower, "bounded")


def gumbel_t12n(loss_or_metric_fn: RankingFn, *, samples: int = 8, beta: float = 1.0, smoothing_factor: float | None = None) -> RankingFn:
    """The same over `samples` copies of the scores with Gumbel noise times `beta`, drawn by the argument `generator` (None: torch's own).

    Copies stand along a new first axis, so `reduce_fn` None keeps it. With `smoothing_factor` scores become log(softmax + factor), as TF-Ranking has
    it.
    """

    @wraps(loss_or_metric_fn)
    def sampled(scores: Tensor, labels: Tensor, *, generator: torch.Generator | None = None, **options: Any) -> Tensor:
        def copies(one: object) -> object:
            return one.expand(samples, *one.shape) if isinstance(one, Tensor) else one

        scores = scores if scores.is_floating_point() else scores.float()
        uniform = torch.rand((samples, *scores.shape), generator=generator, dtype=scores.dtype, device=scores.device)
        tiny = torch.finfo(scores.dtype).tiny
        noisy = scores - beta * uniform.clamp(tiny, 1 - torch.finfo(scores.dtype).eps).log().neg().log()
        if smoothing_factor is not None:
            where = options.get("where")
            if where is not None:
                noisy = torch.where(where | ~where.any(-1, keepdim=True), noisy, -torch.inf)
            noisy = (noisy.softmax(-1) + smoothing_factor).log()
        if generator is not None and _accepts(loss_or_metric_fn, "generator"):
            options["generator"] = generator
        return loss_or_metric_fn(noisy, copies(labels), **{name: copies(one) for name, one in options.items()})

    sampled.__name__ = f"gumbel_{getattr(loss_or_metric_fn, '__name__', 'loss')}"
    sampled.__signature__ = _with(loss_or_metric_fn, "generator")  # type: ignore[attr-defined]
    return sampled


def segment_t12n(loss_or_metric_fn: RankingFn) -> RankingFn:
    """The same with an argument `segments` for packed lists, for one that lacks it: each list is laid out in a row of its own, [..., L, L]."""
    if _accepts(loss_or_metric_fn, "segments"):
        return loss_or_metric_fn

    @wraps(loss_or_metric_fn)
    def segmented(scores: Tensor, labels: Tensor, *, segments: Tensor | None = None, **options: Any) -> Tensor:
        if segments is None:
            return loss_or_metric_fn(scores, labels, **options)

        def rows(one: object) -> object:
            return one.unsqueeze(-2).expand(*one.shape, one.shape[-1]) if isinstance(one, Tensor) else one

        same = segments.unsqueeze(-1) == segments.unsqueeze(-2)
        options = {name: rows(one) for name, one in options.items()}
        mask = same & (same.cumsum(-2) == 1)                           # an item stands in the row of its list's first item
        options["where"] = mask & options["where"] if options.get("where") is not None else mask
        return loss_or_metric_fn(rows(scores), rows(labels), **options)

    segmented.__name__ = f"segment_{getattr(loss_or_metric_fn, '__name__', 'loss')}"
    segmented.__signature__ = _with(loss_or_metric_fn, "segments")  # type: ignore[attr-defined]
    return segmented


def _with(function: RankingFn, name: str) -> inspect.Signature:
    """The signature of `function` with one more keyword."""
    signature = inspect.signature(function)
    if name in signature.parameters:
        return signature
    more = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
    kept = list(signature.parameters.values())
    at = next((i for i, one in enumerate(kept) if one.kind is inspect.Parameter.VAR_KEYWORD), len(kept))
    return signature.replace(parameters=[*kept[:at], more, *kept[at:]])
