"""Cascades: calibration, gates that hand on what they say, chains that are what they claim and that nothing simple beats."""

from __future__ import annotations

import numpy as np
import pytest

from fourfold.gate import confidence
from fourfold.rewrites.compress.cascade import chains, gates, temperature


def answers(accuracy: float, sharpness: float, targets: np.ndarray, seed: int) -> np.ndarray:
    """Logits [N, 2] of a classifier of about that accuracy whose margin tells how sure it may be."""
    rng = np.random.default_rng(seed)
    margin = rng.gamma(2.0, 1.0, len(targets)) * sharpness
    right = rng.random(len(targets)) < 1 - (1 - accuracy) * 2 * np.exp(-margin / sharpness) / np.exp(-margin / sharpness).mean() / 2
    sign = np.where(targets == 1, 1.0, -1.0) * np.where(right, 1.0, -1.0) * margin
    return np.stack([-sign, sign], 1)


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, 4000)


def test_temperature_undoes_a_known_scaling(truth: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1.0, len(truth))
    flip = rng.random(len(truth)) > p
    z = np.log(p / (1 - p)) / 2 * np.where(truth == 1, 1, -1) * np.where(flip, -1, 1)
    calibrated = np.stack([-z, z], 1)
    assert temperature(calibrated, truth) == pytest.approx(1.0, rel=0.1)
    assert temperature(5 * calibrated, truth) == pytest.approx(5.0, rel=0.1)


def test_gates_hand_on_the_share_they_say(truth: np.ndarray) -> None:
    z = answers(0.85, 1.0, truth, 2)
    for share, gate in gates(z, truth):
        assert (~gate.keeps(z)).mean() == pytest.approx(share)
        assert confidence(z, gate.temperature)[gate.keeps(z)].min() >= gate.threshold


def test_chains_cost_and_score_what_they_claim(truth: np.ndarray) -> None:
    logits = [answers(0.80, 1.0, truth, 3), answers(0.87, 1.2, truth, 4), answers(0.92, 1.5, truth, 5)]
    costs = [0.01, 0.2, 1.0]

    def score(z: np.ndarray) -> float:
        return float((z.argmax(1) == truth).mean())

    found = chains(costs, logits, truth, score)
    assert found
    assert any(len(c.members) == 3 for c in found) and any(len(c.members) == 2 for c in found)
    for chain in found:
        price, open_ = 0.0, np.ones(len(truth), bool)
        rows = np.zeros_like(logits[0])
        for number, member in enumerate(chain.members):
            price += costs[member] * open_.mean()
            rows[open_] = logits[member][open_]
            if number < len(chain.gates):
                open_ &= ~chain.gates[number].keeps(logits[member])
        assert chain.cost == pytest.approx(price)
        assert chain.score == pytest.approx(score(rows))
        assert not any(c <= chain.cost and score(z) >= chain.score for c, z in zip(costs, logits, strict=True))
    ordered = sorted(found, key=lambda c: c.cost)
    assert all(a.score < b.score for a, b in zip(ordered, ordered[1:], strict=False))
