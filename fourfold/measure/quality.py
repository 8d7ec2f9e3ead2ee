"""How much of the original's quality a cheaper model keeps, with an interval: paired bootstrap, and the bounds that check it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourfold.datasets.metrics import METRICS, Metric, metric_named, probe, user_metric
from fourfold.errors import InputError
from fourfold.measure import bootstrap

__all__ = ["METRICS", "Metric", "Relative", "accuracy_bound", "clears", "metric_named", "probe", "relation", "relative", "user_metric", "wilson"]

Z95 = 1.6448536269514722  # standard normal quantile of a one-sided 95 % bound
CHUNK = 8_000_000  # weights (cells of resamples × examples) held at once: 64 MB
PATIENCE = 60.0  # seconds that the bootstrap of a user's own metric may take before it makes do with fewer resamples
FEWEST = 200  # … but never fewer than this


@dataclass(frozen=True)
class Relative:
    """Quality relative to the original: 1 = as good, above 1 = better. `low`…`high` is a two-sided 90 % interval: `low` is the one-sided 95 % bound.

    `n` is the number of independent units behind it (examples; duplicates and pieces of one document count once).
    """

    value: float
    low: float
    high: float
    n: int


def relation(metric: Metric, base: object, candidate: object) -> Any:
    """Quality of `candidate` relative to `base` (floats or arrays of scores): above 1 is better, whatever the metric's direction."""
    if metric.ceiling == "complement":
        base, candidate = 1 - np.asarray(base, dtype=np.float64), 1 - np.asarray(candidate, dtype=np.float64)
    elif not metric.greater_is_better:
        base, candidate = candidate, base
    base, candidate = np.asarray(base, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(base == candidate, 1.0, candidate / base)


def _units(groups: np.ndarray | None, count: int) -> tuple[np.ndarray, int]:
    """Dense numbers of the units to resample, and how many there are."""
    if groups is None:
        return np.arange(count), count
    _, dense = np.unique(np.asarray(groups), return_inverse=True)
    return dense, int(dense.max(initial=-1)) + 1


def _resampled(
    metric: Metric, base: np.ndarray, candidate: np.ndarray, targets: object, unit: np.ndarray, units: int, seed: int, resamples: int
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ratios, started, step = [], time.perf_counter(), max(1, min(resamples, CHUNK // max(len(base), 1)))
    for begin in range(0, resamples, step):
        weights = bootstrap.weights(units, min(step, resamples - begin), rng)
        weights = weights[:, unit] if units != len(unit) or not np.array_equal(unit, np.arange(units)) else weights
        if metric.weighted:
            weights = weights.astype(np.float64)
            ratios.append(relation(metric, metric.weighted(base, targets, weights), metric.weighted(candidate, targets, weights)))
            continue
        for row in weights:
            index = np.repeat(np.arange(len(row)), row)
            some = pick(targets, index)
            ratios.append(np.atleast_1d(relation(metric, metric.score(base[index], some), metric.score(candidate[index], some))))
            if len(ratios) >= FEWEST and time.perf_counter() - started > PATIENCE:
                return np.concatenate(ratios)
    return np.concatenate(ratios)


def pick(targets: Any, index: np.ndarray) -> object:
    """Targets at `index`, whether they are an array, a list or absent."""
    return targets[index] if isinstance(targets, np.ndarray) else None if targets is None else [targets[i] for i in index]


def relative(
    metric: Metric,
    base_records: np.ndarray,
    records: np.ndarray,
    targets: object,
    *,
    seed: int = 0,
    resamples: int = 2000,
    groups: np.ndarray | None = None,
) -> Relative:
    """Relative quality of a candidate by the paired bootstrap (Efron and Tibshirani 1993, chapters 13 and 16), percentile interval of the ratio.

    `base_records`, `records`: [N, k] of the same examples in the same order. `groups` [N]: examples with equal numbers (duplicates, blocks of one
    document) are drawn together. Above 1 is better whatever the metric's direction: candidate / base, its inverse where lower is better, (1 − WER)
    / (1 − WER of the base). Where the score is a share of right answers, `low` is the lower of this and `accuracy_bound` with pseudo-examples. A
    metric without a vectorised form is called once per resample and may stop at fewer resamples after a minute.

    Raises InputError where the original's own score is not positive, because a share of it would mean nothing; MetricError as the metric does.
    """
    if len(base_records) != len(records):
        raise ValueError(f"{len(base_records)} records of the original against {len(records)} of the candidate")
    before, after = metric.score(base_records, targets), metric.score(records, targets)
    reference = 1 - before if metric.ceiling == "complement" else before
    share = metric.greater_is_better or metric.ceiling == "complement"
    if not math.isfinite(reference) or reference < 0 or (reference == 0 and share):
        raise InputError(
            f"The original model's {metric.name} is {before:.4g}: a share of that means nothing.",
            "Choose another metric, or check that labels and model belong together.",
        )
    unit, units = _units(groups, len(records))
    value = float(relation(metric, before, after))
    if np.array_equal(base_records, records):
        return Relative(1.0, 1.0, 1.0, units)
    ratios = _resampled(metric, base_records, records, targets, unit, units, seed, resamples)
    ratios = np.where(np.isnan(ratios), 0.0, ratios)  # a resample in which the base scores 0 says nothing good about the candidate
    if not np.isfinite(ratios).all():  # … and where it scores 0 and the candidate does not, no ratio does: the largest that is one stands for it
        ratios = np.where(np.isinf(ratios), max(ratios[np.isfinite(ratios)].max(initial=value), value), ratios)
    low, high = bootstrap.interval(ratios)
    if metric.right:
        bound = accuracy_bound(metric.right(base_records, targets), metric.right(records, targets), groups=groups, pseudo=1.0)
        low = min(low, max(bound, 0.0))  # a ratio of shares is never negative
    return Relative(value, float(min(low, value)), float(max(high, value)), units)


def accuracy_bound(base_right: np.ndarray, right: np.ndarray, *, groups: np.ndarray | None = None, pseudo: float = 0.0) -> float:
    """One-sided 95 % lower bound of the ratio of two paired accuracies by the delta method: r − 1.645 √Var(r), with

    Var(r) = [p_c(1 − p_c) − 2r(p_11 − p_c p_b) + r² p_b(1 − p_b)] / (n p_b²) = Σ (c − r b)² / (Σ b)², where p_11 is the share that both get right.
    Units of one group are summed before they are squared. `pseudo`: so many examples are added that only the original gets right, and as many that
    only the candidate does (Laplace, as Bonett and Price 2012 do for paired differences). Where the two models hardly ever differ, a bootstrap or a
    plain delta bound is too sure of itself, since losses that did not happen in the sample cannot be drawn from it: in simulations with 1 to 10
    expected disagreements they cover 75 to 92 %, with one pseudo-example each way 94 % and more.
    """
    b, c = np.asarray(base_right, dtype=np.float64), np.asarray(right, dtype=np.float64)
    unit, units = _units(groups, len(b))
    total = b.sum() + pseudo
    r = (c.sum() + pseudo) / total
    squares = float((np.bincount(unit, c - r * b, units) ** 2).sum()) + pseudo * (1 + r * r)
    return float(r - Z95 * math.sqrt(squares) / total)


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Two-sided interval of a proportion (Wilson 1927); 90 % by default, so that its lower end is a one-sided 95 % bound."""
    if n <= 0:
        return 0.0, 1.0
    p, square = successes / n, z * z
    middle, half = (p + square / (2 * n)) / (1 + square / n), z * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def clears(relatives_from_cheapest: Sequence[Relative], floor: float) -> int | None:
    """Place of the first candidate, from the cheapest upward, whose lower bound reaches `floor`; None if none does.

    The order is fixed by cost before the unseen split is looked at, and the test stops at the first that passes, so one claim is made and not
    several. Each candidate below the floor that is tested on the way has its own 5 % chance to pass wrongly: hand over a front of few members.
    """
    return next((place for place, found in enumerate(relatives_from_cheapest) if found.low >= floor), None)
