"""The cascade: the cheap model answers when its calibrated confidence allows, a dearer one only otherwise.

Confidence is the largest class probability after temperature scaling (Guo et al. 2017), the temperature fitted on the search split. The threshold is
the least that keeps the cascade's quality there; the price is cost(cheap) + share handed on × cost(dear), which the final race measures for real.
Cascades of this kind: Viola & Jones 2001 for detectors, Chen et al. 2023 (FrugalGPT) for language models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.rewrite import Option, Rewrite

if TYPE_CHECKING:
    from torch import nn

    from fourfold.recipe import Recipe


@dataclass(frozen=True)
class Gate:
    """When the cheap member keeps its answer: calibrated confidence ≥ `threshold`, confidence = max softmax(logits / `temperature`)."""

    temperature: float
    threshold: float

    def keeps(self, logits: np.ndarray) -> np.ndarray:
        """bool [N] for logits [N, C]."""
        return confidence(logits, self.temperature) >= self.threshold


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise softmax of [N, C]."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Largest class probability [N] of logits [N, C] at a temperature."""
    return softmax(logits / temperature).max(1)


def temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature in [0.05, 20] that minimises the negative log likelihood of int targets [N] (Guo et al. 2017, §4.2)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(targets))

    def loss(log_t: float) -> float:
        return float(-np.log(softmax(logits / np.exp(log_t))[rows, targets] + 1e-12).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))  # type: ignore[union-attr]


def joined(cheap: np.ndarray, dear: np.ndarray, gate: Gate) -> np.ndarray:
    """Logits of the cascade [N, C]; the cheap member's are tempered so that both speak of comparable probabilities."""
    keep = gate.keeps(cheap)
    return np.where(keep[:, None], cheap / gate.temperature, dear)


def gates(
    cheap: np.ndarray, targets: np.ndarray, shares: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
) -> list[tuple[float, Gate]]:
    """Gates handing on about the given shares of examples, each with the share it really hands on; `cheap` logits [N, C] on the search split."""
    t = temperature(cheap, targets)
    sure = confidence(cheap, t)
    found = []
    for share in shares:
        threshold = float(np.quantile(sure, share))
        found.append((float((sure < threshold).mean()), Gate(t, threshold)))
    return found


@dataclass(frozen=True)
class Chain:
    """A cascade as found on the search split: `members` (indices, cheapest first), a gate between each and the next, expected cost, score, joint
    logits [N, C]."""

    members: tuple[int, ...]
    gates: tuple[Gate, ...]
    cost: float
    score: float
    logits: np.ndarray


def chains(
    costs: Sequence[float],
    logits: Sequence[np.ndarray],
    targets: np.ndarray,
    score: Callable[[np.ndarray], float],
    *,
    fallback: Sequence[bool] | None = None,
    keep: int = 40,
) -> list[Chain]:
    """All worthwhile cascades of two members, and the best of them with a third between or behind; none that another beats in both cost and score.

    `costs` per example, any unit; `logits` [N, C] per member on the search split; `score` of joint logits, higher is better; `fallback[i]`: may
    member i stand last?
    """
    solo = [score(z) for z in logits]
    last = list(fallback) if fallback is not None else [True] * len(costs)
    pairs: list[Chain] = []
    for i, z in enumerate(logits):
        for _, gate in gates(z, targets):
            kept = gate.keeps(z)
            for j in range(len(costs)):
                if j == i or costs[j] < 1.5 * costs[i] or solo[j] <= solo[i] or not last[j]:
                    continue
                rows = np.where(kept[:, None], z / gate.temperature, logits[j])
                pairs.append(Chain((i, j), (gate,), costs[i] + float((~kept).mean()) * costs[j], score(rows), rows))
    best = _front(pairs, keep)
    triples = [t for pair in best for t in _deeper(pair, costs, logits, targets, solo, last, score)]
    singles = [(c, s) for c, s in zip(costs, solo, strict=True)]
    found = _front(best + triples, keep)
    return [f for f in found if not any(c <= f.cost and s >= f.score for c, s in singles)]


def expected(gates: Sequence[Gate], logits: Sequence[np.ndarray]) -> list[float]:
    """The share of examples that each member answers, from the logits of all members on the same examples."""
    open_ = np.ones(len(logits[0]), bool)
    shares = []
    for gate, z in zip(gates, logits, strict=False):
        kept = open_ & gate.keeps(z)
        shares.append(float(kept.mean()))
        open_ &= ~kept
    return [*shares, float(open_.mean())]


def _deeper(
    pair: Chain,
    costs: Sequence[float],
    logits: Sequence[np.ndarray],
    targets: np.ndarray,
    solo: list[float],
    last: list[bool],
    score: Callable[[np.ndarray], float],
) -> list[Chain]:
    """The pair with a dearer third member behind, gated on the second's confidence where the first was unsure."""
    i, j = pair.members
    first = pair.gates[0]
    open_ = ~first.keeps(logits[i])
    if open_.sum() < 30:
        return []
    found = []
    for _, gate in gates(logits[j][open_], targets[open_], (0.1, 0.2, 0.3, 0.5, 0.7)):
        handed = open_ & ~gate.keeps(logits[j])
        for k in range(len(costs)):
            if k in (i, j) or costs[k] < 1.5 * costs[j] or solo[k] <= solo[j] or not last[k]:
                continue
            middle = np.where(handed[:, None], logits[k], logits[j] / gate.temperature)
            rows = np.where(open_[:, None], middle, logits[i] / first.temperature)
            cost = costs[i] + float(open_.mean()) * costs[j] + float(handed.mean()) * costs[k]
            found.append(Chain((i, j, k), (first, gate), cost, score(rows), rows))
    return found


def _front(found: list[Chain], most: int) -> list[Chain]:
    """Those that no other beats in cost and score, by falling cost; thinned to `most`."""
    kept: list[Chain] = []
    top = -np.inf
    for chain in sorted(found, key=lambda c: (c.cost, -c.score)):
        if chain.score > top:
            kept.append(chain)
            top = chain.score
    step = max(1, -(-len(kept) // most))
    return kept[::step]


class Cascade(Rewrite):
    """The cheap model first, the dear one when unsure; temperature-scaled confidence (Guo et al. 2017; Viola & Jones 2001; Chen et al. 2023)."""

    title = "the cheap model answers when its calibrated confidence allows, the original only otherwise"
    cites = ("guo2017", "viola2001", "chen2023frugalgpt")
    needs = ("numpy", "scipy")

    def declines(self, model: nn.Module) -> str | None:
        heads = [m for m in model.modules() if getattr(m, "out_features", 0) > 1]
        return None if heads else f"{type(model).__name__} gives no class scores, so it has no confidence to gate on"

    def options(self, anatomy: Any, sensitivities: Any) -> list[Option]:
        return []  # it combines finished candidates

    def apply(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        return model  # members keep their shapes; the gate is data in the manifest
