"""What a metric is: a function of records, one row of numbers per example (see `fourfold.datasets.task.Task.records`). The named ones, and the user's
own.

Where a metric can be written as a function of sums over examples, a whole bootstrap is one matrix product: weights [resamples, examples] times sums
[examples, k].
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fourfold.errors import InputError, MetricError

Score = Callable[[np.ndarray, object], float]
Weighted = Callable[[np.ndarray, object, np.ndarray], np.ndarray]  # (records [N, k], targets [N], weights [R, N]) → score of each resample [R]


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    `score(records, targets)` gives one float. `weighted(records, targets, weights)` gives the score of each weighted sample, [R], and is what makes
    the bootstrap fast; without it the bootstrap repeats rows and calls `score`. `ceiling` is what relative quality is taken of: "ratio" (candidate
    / base, or its inverse where lower is better) or "complement" (word error rate: the share of words that are right). `right(records, targets)`
    says which examples are right (bool [N]), where the score is their share.
    """

    name: str
    greater_is_better: bool
    score: Score
    weighted: Weighted | None = None
    ceiling: str = "ratio"
    right: Callable[[np.ndarray, object], np.ndarray] | None = None


def _ones(records: np.ndarray) -> np.ndarray:
    return np.ones((1, len(records)))


def _of_sums(
    name: str, sums: Callable[[np.ndarray, object], np.ndarray], finish: Callable[[np.ndarray], np.ndarray], up: bool = True, ceiling: str = "ratio",
    right: Callable[[np.ndarray, object], np.ndarray] | None = None,
) -> Metric:  # fmt: skip
    """A metric that is `finish` of column sums: sums(records, targets) is [N, k], finish maps [R, k] to [R]."""

    def weighted(records: np.ndarray, targets: object, weights: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return finish(weights @ sums(records, targets))

    return Metric(name, up, lambda records, targets: float(weighted(records, targets, _ones(records))[0]), weighted, ceiling, right)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _with_one(column: np.ndarray) -> np.ndarray:
    return np.stack([column.astype(np.float64), np.ones(len(column))], axis=1)


def _choices(records: np.ndarray) -> np.ndarray:
    return np.argmax(records, axis=1)


def _confusion(records: np.ndarray, targets: object) -> np.ndarray:
    """One-hot [true positive, predicted, true] per class: [N, 3·C]."""
    guess, truth = _choices(records), np.asarray(targets, dtype=np.int64)
    classes = np.arange(max(records.shape[1], int(truth.max(initial=0)) + 1))
    predicted, actual = guess[:, None] == classes, truth[:, None] == classes
    return np.concatenate([predicted & actual, predicted, actual], axis=1).astype(np.float64)


def _f1_by_class(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hit, predicted, actual = np.split(sums, 3, axis=1)
    present = predicted + actual > 0
    return np.where(present, 2 * hit / np.where(present, predicted + actual, 1.0), 0.0), present


def _macro(sums: np.ndarray) -> np.ndarray:
    f1, present = _f1_by_class(sums)
    return f1.sum(axis=1) / np.maximum(present.sum(axis=1), 1)  # as elsewhere: the mean over classes that occur in truth or prediction


def _binary(sums: np.ndarray) -> np.ndarray:
    return _f1_by_class(sums)[0][:, 1]


def _moments(records: np.ndarray, targets: object) -> np.ndarray:
    x, y = records[:, 0].astype(np.float64), np.asarray(targets, dtype=np.float64)
    x, y = x - x.mean(), y - y.mean()  # sums of centred values do not cancel
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _correlation(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums.T
    spread = (n * xx - x * x) * (n * yy - y * y)
    floor = (1e-12 * n * n) ** 2 * np.abs(xx * yy) / np.maximum(n * n, 1)
    return np.where(spread > floor, (n * xy - x * y) / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


def _midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks of `values` [N] in each weighted sample [R, N]; tied values share the middle of their ranks. Up to a constant, which correlation
    ignores."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    mass = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(mass, axis=1) - mass / 2
    which = np.empty(len(values), dtype=np.int64)
    which[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return middle[:, which]


def _spearman(records: np.ndarray, targets: object, weights: np.ndarray) -> np.ndarray:
    x, y = _midranks(records[:, 0].astype(np.float64), weights), _midranks(np.asarray(targets, dtype=np.float64), weights)
    total = weights.sum(axis=1, keepdims=True)
    x, y = x - (weights * x).sum(axis=1, keepdims=True) / total, y - (weights * y).sum(axis=1, keepdims=True) / total
    spread = (weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)
    return np.where(spread > 0, (weights * x * y).sum(axis=1) / np.sqrt(np.maximum(spread, 1e-300)), 0.0)


def _errors(records: np.ndarray, targets: object) -> np.ndarray:
    y = np.asarray(targets, dtype=np.float64)
    centred = y - y.mean()
    return np.stack([(records[:, 0] - y) ** 2, np.ones(len(y)), centred, centred * centred], axis=1)


def _determination(sums: np.ndarray) -> np.ndarray:
    error, n, y, yy = sums.T
    return 1 - error / (yy - y * y / n)


def _hits(records: np.ndarray, targets: object) -> np.ndarray:
    return _choices(records) == np.asarray(targets, dtype=np.int64)


def _place(records: np.ndarray, targets: object) -> np.ndarray:
    """Rank of the true class by score, from 1; of equal scores the first class comes first, as for `_choices`. A class without a score is last."""
    truth = np.asarray(targets, dtype=np.int64)
    inside = np.clip(truth, 0, records.shape[1] - 1)
    own = np.take_along_axis(records, inside[:, None], axis=1)
    before = (records > own) | ((records == own) & (np.arange(records.shape[1]) < inside[:, None]))
    return np.where(truth == inside, before.sum(axis=1) + 1.0, records.shape[1] + 1.0)


def _agreement(records: np.ndarray, targets: object) -> np.ndarray:
    return _with_one(_hits(records, targets))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _of_sums("accuracy", _agreement, _ratio, right=_hits),
        _of_sums("f1", _confusion, _macro),
        _of_sums("f1_binary", _confusion, _binary),
        _of_sums("agreement", _agreement, _ratio, right=_hits),
        _of_sums("mrr", lambda records, targets: _with_one(1 / _place(records, targets)), _ratio),          # as fourfold.ranking has them, where
        _of_sums("ndcg", lambda records, targets: _with_one(1 / np.log2(_place(records, targets) + 1)), _ratio),    # one item of a list is relevant
        _of_sums("pearson", _moments, _correlation),
        Metric("spearman", True, lambda records, targets: float(_spearman(records, targets, _ones(records))[0]), _spearman),
        _of_sums("r2", _errors, _determination),
        _of_sums("mse", _errors, _ratio, up=False),
        _of_sums("perplexity", lambda records, targets: records[:, :2], lambda sums: np.exp(_ratio(sums)), up=False),
        _of_sums("exact_match", lambda records, targets: _with_one(records[:, 2]), _ratio, right=lambda records, targets: records[:, 2] > 0),
        _of_sums("token_accuracy", lambda records, targets: records[:, [3, 1]], _ratio),
        _of_sums("wer", lambda records, targets: records[:, :2], _ratio, up=False, ceiling="complement"),
    )
}
TAUGHT = ("token_accuracy", "perplexity")
"""Metrics of given texts (teacher forcing); all others are of what is written."""

# Of texts that a generating model wrote. Records: word edits, words of the reference, 1 where the texts are equal, ROUGE-L, tokens of the longer of
# answer and reference, tokens that are equal at their places, and the tokens.
GENERATED: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        METRICS["perplexity"],
        METRICS["token_accuracy"],
        METRICS["exact_match"],
        METRICS["wer"],
        _of_sums("rouge", lambda records, targets: _with_one(records[:, 3]), _ratio),
        _of_sums("agreement", lambda records, targets: records[:, [5, 4]], _ratio),
    )
}


def rouge_l(reference: Sequence[str], guess: Sequence[str]) -> float:
    """ROUGE-L: harmonic mean of the longest common subsequence's shares of either text, in words (Lin 2004, equations 2–4, β = 1)."""
    if not reference or not guess:
        return float(not reference and not guess)
    row = np.zeros(len(guess) + 1, np.int64)
    items = np.array(guess, dtype=object)
    for word in reference:
        best = np.maximum(row[1:], row[:-1] + (items == word))
        row = np.concatenate([[0], np.maximum.accumulate(best)])
    common = int(row[-1])
    return 2 * common / (len(reference) + len(guess))


SUITED = {
    "classification": ("accuracy", "f1", "f1_binary", "agreement", "mrr", "ndcg"),
    "regression": ("spearman", "pearson", "r2", "mse"),
    "causal_lm": ("perplexity", "token_accuracy"),
    "seq2seq": ("exact_match", "wer", "token_accuracy", "perplexity"),
    "ctc": ("wer",),
    "custom": (),
}


def metric_named(name: str, kind: str | None = None, *, generated: bool = False) -> Metric:
    """The built-in metric called `name` (case and dashes do not matter); `generated`: of a model that generates, whatever its kind.

    Raises InputError for a name that does not exist (nearest ones offered), or one that does not fit the task `kind`.
    """
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    key = {
        "f1_macro": "f1",
        "macro_f1": "f1",
        "acc": "accuracy",
        "ppl": "perplexity",
        "word_error_rate": "wer",
        "em": "exact_match",
        "r_2": "r2",
        "rouge_l": "rouge",
    }.get(key, key)
    offered = tuple(GENERATED) if generated else SUITED[kind] if kind else tuple(METRICS)
    if generated and key in GENERATED:
        return GENERATED[key]
    if key not in METRICS:
        near = difflib.get_close_matches(key, METRICS, 1, 0.5)
        raise InputError(
            f"There is no metric called {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            f"Known: {', '.join(offered) or 'none'}; or pass a function (predictions, targets) -> float.",
        )
    if kind and key not in offered:
        raise InputError(
            f"The metric {key!r} does not measure a {kind} task.",
            f"Metrics that do: {', '.join(offered) or 'a function (predictions, targets) -> float'}.",
        )
    return METRICS[key]


def user_metric(function: Callable[[object, object], float], read: Callable[[np.ndarray, object], tuple[object, object]]) -> Metric:
    """The user's own metric: `function(predictions, targets)`; higher is better unless `function.greater_is_better` is False.

    `read(records, targets)` gives what the user's function expects to see. Each call is guarded: MetricError if it raises or answers with a non-
    number.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def score(records: np.ndarray, targets: object) -> float:
        try:
            answer = function(*read(records, targets))
        except Exception as error:  # the user's code: whatever it raises is reported in one sentence
            raise MetricError(
                f"The metric {name!r} raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
                "It is called with (predictions, targets), one entry per example, and returns a number.",
            ) from error
        try:
            number = float(answer)
        except (TypeError, ValueError):
            raise MetricError(f"The metric {name!r} returned {type(answer).__name__}, not a number.", "Return one float.") from None
        if not math.isfinite(number):
            raise MetricError(
                f"The metric {name!r} returned {number} on {len(records)} examples.", "Return a finite number whatever the predictions are."
            )
        return number

    return Metric(name, bool(getattr(function, "greater_is_better", True)), score)


def probe(metric: Metric, records: np.ndarray, targets: object) -> float:
    """Score once, then again: MetricError unless both answers are the same finite number."""
    first, second = metric.score(records, targets), metric.score(records, targets)
    if not math.isfinite(first):
        raise MetricError(
            f"The metric {metric.name!r} is {first} for the original model on {len(records)} examples.",
            "Choose another metric, or give more varied data.",
        )
    if first != second:
        raise MetricError(
            f"The metric {metric.name!r} answered {first:.6g} and then {second:.6g} for the same predictions.",
            "Make it deterministic (fix its random seed).",
        )
    return first
