"""Metrics against their definitions; intervals against simulations with a known answer."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as known

from fourfold.errors import InputError, MetricError
from fourfold.measure.quality import METRICS, Metric, Relative, accuracy_bound, clears, metric_named, probe, relative, user_metric, wilson

RNG = np.random.default_rng


def scores(targets: np.ndarray, right: np.ndarray, classes: int = 2) -> np.ndarray:
    """Logits that pick the target where `right`, else the next class."""
    return np.eye(classes)[np.where(right, targets, (targets + 1) % classes)]


def test_metrics_equal_their_definitions() -> None:
    rng = RNG(0)
    logits, y = rng.normal(size=(400, 4)), rng.integers(0, 4, 400)
    guess = logits.argmax(1)
    assert METRICS["accuracy"].score(logits, y) == pytest.approx(known.accuracy_score(y, guess))
    assert METRICS["f1"].score(logits, y) == pytest.approx(known.f1_score(y, guess, average="macro"))
    assert METRICS["f1_binary"].score(logits[:, :2], y % 2) == pytest.approx(known.f1_score(y % 2, logits[:, :2].argmax(1)))
    value, truth = np.round(rng.normal(size=(300, 1)), 1), np.round(rng.normal(size=300), 1)
    truth += value[:, 0]
    assert METRICS["spearman"].score(value, truth) == pytest.approx(stats.spearmanr(value[:, 0], truth).statistic)
    assert METRICS["pearson"].score(value + 1e6, truth) == pytest.approx(stats.pearsonr(value[:, 0], truth).statistic)
    assert METRICS["r2"].score(value, truth) == pytest.approx(known.r2_score(truth, value[:, 0]))
    assert METRICS["mse"].score(value, truth) == pytest.approx(known.mean_squared_error(truth, value[:, 0]))
    tokens = np.array([[20.0, 10, 1, 10], [4.0, 2, 0, 1]])
    assert METRICS["perplexity"].score(tokens, None) == pytest.approx(math.exp(2))
    assert METRICS["exact_match"].score(tokens, None) == 0.5 and METRICS["token_accuracy"].score(tokens, None) == pytest.approx(11 / 12)
    assert METRICS["wer"].score(np.array([[1.0, 4], [0, 6]]), None) == pytest.approx(0.1)


def test_a_constant_answer_does_not_correlate() -> None:
    for name in ("spearman", "pearson"):
        assert METRICS[name].score(np.full((50, 1), 0.3), RNG(0).normal(size=50)) == 0.0


@pytest.mark.parametrize("name", ["accuracy", "f1", "spearman", "pearson", "perplexity", "wer", "mse", "exact_match"])
def test_weighted_scores_are_scores_of_repeated_rows(name: str) -> None:
    rng, metric = RNG(1), METRICS[name]
    records = np.abs(rng.normal(size=(60, 4)).round(1)) + [0, 1, 0, 0]
    targets = rng.integers(0, 3, 60) if name in ("accuracy", "f1") else rng.normal(size=60).round(1)
    picked = rng.integers(0, 60, (3, 60))
    weights = np.stack([np.bincount(row, minlength=60) for row in picked]).astype(float)
    assert metric.weighted is not None
    found = metric.weighted(records, targets, weights)
    for row, value in zip(picked, found, strict=True):
        assert value == pytest.approx(metric.score(records[row], targets[row]), abs=1e-9)


def test_names_are_forgiving_and_wrong_ones_are_corrected() -> None:
    assert metric_named("F1-macro").name == "f1" and metric_named("Accuracy").name == "accuracy"
    with pytest.raises(InputError, match="Did you mean 'accuracy'"):
        metric_named("acuracy")
    with pytest.raises(InputError, match="does not measure a regression task"):
        metric_named("accuracy", "regression")


# ------------------------------------------------------------------------------------------------------------- intervals


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 200), st.floats(0.3, 0.95), st.floats(0.3, 0.95))
def test_identical_is_one_and_intervals_hold_their_value(seed: int, n: int, base: float, other: float) -> None:
    rng = RNG(seed)
    y = rng.integers(0, 2, n)
    y[:2] = [0, 1]
    right = rng.random(n) < base
    right[0] = True
    first, second = scores(y, right), scores(y, rng.random(n) < other)
    assert relative(METRICS["accuracy"], first, first.copy(), y, seed=seed) == Relative(1.0, 1.0, 1.0, n)
    found = relative(METRICS["accuracy"], first, second, y, seed=seed)
    assert found.low <= found.value <= found.high
    better = second.copy()
    better[y != second.argmax(1)] = np.eye(2)[y[y != second.argmax(1)]]
    if not np.array_equal(first, second):  # equal answers are certainly as good; answers that differ for the better are not certain to stay so
        assert relative(METRICS["accuracy"], first, better, y, seed=seed).low >= found.low  # more right answers never lower the bound


@pytest.mark.parametrize("n", [20, 33])
def test_more_right_answers_never_lower_the_bound(n: int) -> None:
    """Every table of who is right of so many examples: right answers added to the second never lower its bound, which is never below zero."""

    def bound(both: int, first: int, second: int) -> float:
        order = np.arange(n)
        only = (order >= both + first) & (order < both + first + second)
        return max(accuracy_bound(order < both + first, (order < both) | only, pseudo=1.0), 0.0)

    for both in range(n + 1):
        for first in range(max(1 - both, 0), n + 1 - both):
            for second in range(n + 1 - both - first):
                assert bound(both + first, 0, n - both - first) >= bound(both, first, second) - 1e-12


def test_equal_answers_are_certain_and_better_ones_are_not() -> None:
    y = np.zeros(20, dtype=np.int64)
    right = np.arange(20) < 17
    first, better = scores(y, right), scores(y, np.ones(20, dtype=bool))
    assert relative(METRICS["accuracy"], first, first.copy(), y).low == 1.0
    assert relative(METRICS["accuracy"], first, better, y).low < 1.0 < relative(METRICS["accuracy"], first, better, y).value


def simulated(p_b: float, p_c: float, shared: float, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paired right/wrong with the given shares; `shared` is the share that both get right."""
    kind = rng.choice(4, n, p=[shared, p_b - shared, p_c - shared, 1 - p_b - p_c + shared])
    return (kind < 2), (kind % 2 == 0)


@pytest.mark.parametrize(
    ("p_b", "p_c", "shared", "n"), [(0.85, 0.83, 0.80, 400), (0.9, 0.9, 0.88, 500), (0.7, 0.6, 0.5, 300), (0.95, 0.94, 0.93, 600)]
)
def test_the_bound_covers_the_truth(p_b: float, p_c: float, shared: float, n: int) -> None:
    rng, covered, delta = RNG(7), 0, 0
    y = np.zeros(n, dtype=np.int64)
    for trial in range(400):
        b, c = simulated(p_b, p_c, shared, n, rng)
        covered += relative(METRICS["accuracy"], scores(y, b), scores(y, c), y, seed=trial, resamples=400).low <= p_c / p_b
        delta += accuracy_bound(b, c, pseudo=1.0) <= p_c / p_b
    assert covered / 400 >= 0.93 and delta / 400 >= 0.93


def test_the_delta_bound_is_the_formula() -> None:
    b, c = simulated(0.85, 0.83, 0.79, 300, RNG(0))
    p_b, p_c, both, r = b.mean(), c.mean(), (b & c).mean(), c.mean() / b.mean()
    variance = (p_c * (1 - p_c) - 2 * r * (both - p_c * p_b) + r * r * p_b * (1 - p_b)) / (300 * p_b * p_b)
    assert accuracy_bound(b, c) == pytest.approx(r - 1.6448536 * math.sqrt(variance))
    assert accuracy_bound(b, c, groups=np.arange(300)) == accuracy_bound(b, c) > accuracy_bound(b, c, pseudo=1.0)


def test_the_bootstrap_agrees_with_the_delta_method() -> None:
    rng = RNG(0)
    b, c = simulated(0.85, 0.83, 0.79, 3000, rng)
    y = np.zeros(3000, dtype=np.int64)
    found = relative(METRICS["accuracy"], scores(y, b), scores(y, c), y, resamples=4000)
    assert found.low == pytest.approx(accuracy_bound(b, c), abs=0.002)


def test_the_bound_of_perplexity_covers_documents() -> None:
    """Tokens of one document go together: nll noise is shared inside it."""
    rng, covered = RNG(3), 0
    for trial in range(300):
        hardness = np.repeat(rng.normal(0, 0.2, 60), 5)
        tokens = np.full(300, 50.0)
        base, worse = 50 * (3 + hardness), 50 * (3.05 + hardness + np.repeat(rng.normal(0, 0.1, 60), 5))
        records = [np.stack([nll, tokens, tokens * 0, tokens * 0], 1) for nll in (base, worse)]
        covered += relative(METRICS["perplexity"], *records, None, seed=trial, resamples=400, groups=np.repeat(np.arange(60), 5)).low <= math.exp(
            -0.05
        )
    assert covered / 300 >= 0.92


def test_directions() -> None:
    tokens = np.full(50, 10.0)
    base = np.stack([tokens * 2, tokens, tokens, tokens], 1) + RNG(0).normal(0, 0.1, (50, 1)) * [1, 0, 0, 0]
    worse = base * [1.1, 1, 1, 1]
    assert relative(METRICS["perplexity"], base, worse, None).high < 1 < relative(METRICS["perplexity"], worse, base, None).low
    wrong = RNG(1).integers(0, 3, 50).astype(float)
    one, two = np.stack([wrong, tokens], 1), np.stack([wrong + 1, tokens], 1)
    found = relative(METRICS["wer"], one, two, None)
    assert found.value == pytest.approx((1 - two[:, 0].sum() / 500) / (1 - one[:, 0].sum() / 500)) and found.high < 1


def test_duplicates_widen_the_interval() -> None:
    rng = RNG(0)
    y = np.zeros(400, dtype=np.int64)
    b, c = simulated(0.85, 0.8, 0.75, 100, rng)
    first, second = scores(y, np.repeat(b, 4)), scores(y, np.repeat(c, 4))
    apart, together = (
        relative(METRICS["accuracy"], first, second, y),
        relative(METRICS["accuracy"], first, second, y, groups=np.repeat(np.arange(100), 4)),
    )
    assert together.n == 100 and together.high - together.low > 1.7 * (apart.high - apart.low)


def test_it_is_fast_and_repeatable() -> None:
    rng = RNG(0)
    y = rng.integers(0, 2, 3000)
    one, two = scores(y, rng.random(3000) < 0.9), scores(y, rng.random(3000) < 0.88)
    started = time.process_time()
    found = relative(METRICS["accuracy"], one, two, y)
    assert time.process_time() - started < 1.0
    assert found == relative(METRICS["accuracy"], one, two, y) != relative(METRICS["accuracy"], one, two, y, seed=1)


def test_a_share_of_nothing_is_refused() -> None:
    y = np.zeros(30, dtype=np.int64)
    with pytest.raises(InputError, match="share of that means nothing"):
        relative(METRICS["accuracy"], scores(y, np.zeros(30, dtype=bool)), scores(y, np.ones(30, dtype=bool)), y)


def test_wilson_against_scipy() -> None:
    for k, n in ((0, 10), (3, 10), (85, 100), (10, 10)):
        expected = stats.binomtest(k, n).proportion_ci(0.90, method="wilson")
        assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_first_that_clears_from_the_cheapest() -> None:
    front = [Relative(value, value - 0.02, value + 0.02, 100) for value in (0.9, 0.97, 0.995, 0.99)]
    assert clears(front, 0.95) == 1 and clears(front, 0.96) == 2 and clears(front, 0.99) is None and clears([], 0.5) is None
    floors = np.linspace(0.5, 1, 30)
    places = [clears(front, floor) for floor in floors]
    assert all(a <= b for a, b in zip(places, places[1:], strict=False) if a is not None and b is not None)


# ------------------------------------------------------------------------------------------------------ the user's metric


def read(records: np.ndarray, targets: Any) -> tuple[Any, Any]:
    return records.argmax(1).tolist(), targets.tolist()


def test_the_users_own_metric_is_used_and_watched() -> None:
    rng = RNG(0)
    y = rng.integers(0, 2, 120)
    records = scores(y, rng.random(120) < 0.9)

    def share(predictions: list[int], targets: list[int]) -> float:
        return sum(a == b for a, b in zip(predictions, targets, strict=True)) / len(targets)

    mine = user_metric(share, read)
    assert probe(mine, records, y) == METRICS["accuracy"].score(records, y)
    worse = scores(y, rng.random(120) < 0.8)
    assert relative(mine, records, worse, y, resamples=300).low == pytest.approx(
        relative(METRICS["accuracy"], records, worse, y, resamples=300).low, abs=0.02
    )

    def loss(predictions: list[int], targets: list[int]) -> float:
        return 1.001 - share(predictions, targets)

    loss.greater_is_better = False  # type: ignore[attr-defined]
    assert relative(user_metric(loss, read), records, worse, y, resamples=200).value < 1


def broken(predictions: Any, targets: Any) -> float:
    raise KeyError("no such class")


def nothing(predictions: Any, targets: Any) -> Any:
    return None


def nan(predictions: Any, targets: Any) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("function", "message"), [(broken, "'broken' raised KeyError"), (nothing, "'nothing' returned NoneType"), (nan, "'nan' returned nan")]
)
def test_a_bad_metric_is_named(function: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message) as caught:
        probe(user_metric(function, read), np.eye(2), np.array([0, 1]))
    assert len(str(caught.value).splitlines()) <= 2


def test_a_metric_that_changes_its_mind_is_named() -> None:
    rng = RNG(0)

    def dice(predictions: Any, targets: Any) -> float:
        return float(rng.random())

    with pytest.raises(MetricError, match="'dice' answered .* and then"):
        probe(user_metric(dice, read), np.eye(2), np.array([0, 1]))


def test_a_metric_object_can_be_made_by_hand() -> None:
    assert probe(Metric("one", True, lambda records, targets: 1.0), np.eye(2), None) == 1.0
