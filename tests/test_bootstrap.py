"""The one bootstrap: what it resamples, and that its intervals hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from fourfold.measure import bootstrap


def test_rows_stay_paired_and_the_seed_decides() -> None:
    a = np.arange(10.0)
    drawn = bootstrap.resampled(lambda x, y: np.abs(x - y).max(axis=1), a, a, seed=3, resamples=50)
    assert drawn.shape == (50,) and not drawn.any()
    one, same, other = (bootstrap.resampled(bootstrap.medians, a, seed=seed, resamples=50).tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_weights_are_the_counts_of_the_same_draws() -> None:
    a = np.random.default_rng(0).normal(size=30)
    weights = bootstrap.weights(30, 100, np.random.default_rng(5))
    assert weights.shape == (100, 30) and (weights.sum(axis=1) == 30).all() and (weights >= 0).all()
    assert weights @ a / 30 == pytest.approx(bootstrap.resampled(lambda x: x.mean(axis=1), a, seed=5, resamples=100))


def test_the_interval_holds_the_median() -> None:
    low, high = bootstrap.interval(bootstrap.resampled(bootstrap.medians, [3.0, 1.0, 2.0, 5.0, 4.0]))
    assert 1.0 <= low <= 3.0 <= high <= 5.0
    wider = bootstrap.interval(bootstrap.resampled(bootstrap.medians, [3.0, 1.0, 2.0, 5.0, 4.0]), bootstrap.SURE)
    assert wider[0] <= low and high <= wider[1]


def test_nine_in_ten_intervals_of_a_mean_hold_it() -> None:
    held = 0
    for seed in range(400):
        rows = np.random.default_rng(seed).exponential(size=60)
        low, high = bootstrap.interval(bootstrap.resampled(lambda x: x.mean(axis=1), rows, seed=seed, resamples=500))
        held += low <= 1.0 <= high
    assert 0.84 <= held / 400 <= 0.94
