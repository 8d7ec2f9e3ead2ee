"""Gates: when a cheap member of a cascade keeps its answer, and what members and gates make together.

Confidence is the largest class probability after temperature scaling (Guo et al. 2017). The techniques that choose gates are in
`fourfold.rewrites`; what they hand back, and what an artefact stores and runs, is defined here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


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


def expected(gates: Sequence[Gate], logits: Sequence[np.ndarray]) -> list[float]:
    """The share of examples that each member answers, from the logits of all members on the same examples."""
    open_ = np.ones(len(logits[0]), bool)
    shares = []
    for gate, z in zip(gates, logits, strict=False):
        kept = open_ & gate.keeps(z)
        shares.append(float(kept.mean()))
        open_ &= ~kept
    return [*shares, float(open_.mean())]


def owners(gates: Sequence[Gate], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Which member answers each example, int64 [N], from the logits [N, C] of all members on the same examples."""
    owner = np.full(len(logits[0]), len(gates), np.int64)
    open_ = np.ones(len(logits[0]), bool)
    for number, (gate, z) in enumerate(zip(gates, logits, strict=False)):
        kept = open_ & gate.keeps(z)
        owner[kept] = number
        open_ &= ~kept
    return owner


def assembled(gates: Sequence[Gate], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Joint logits [N, C] of a cascade, from those of all members on the same examples."""
    owner = owners(gates, logits)
    heats = [*[gate.temperature for gate in gates], 1.0]
    return np.choose(owner[:, None], [z / t for z, t in zip(logits, heats, strict=True)])


@dataclass(frozen=True)
class Chain:
    """A cascade as found on the search split: `members` (indices, cheapest first), a gate between each and the next, expected cost, score, joint
    logits [N, C]."""

    members: tuple[int, ...]
    gates: tuple[Gate, ...]
    cost: float
    score: float
    logits: np.ndarray


@dataclass(frozen=True)
class Path:
    """An ordered family of cascades of the same members: gates from cautious (much is handed on) to bold, each a `Chain`. `share`: of the error that
    all families found beside it may spend; `promise`: the cost that it is expected to end at."""

    members: tuple[int, ...]
    chains: tuple[Chain, ...]
    share: float = 1.0
    promise: float = 0.0


@dataclass(frozen=True)
class Proof:
    """What a family will be tested by. `floor` of the score; `spread(logits)`: standard errors of the score's estimate (on the rows at hand, on the
    rows of the test); `level`: one-sided error that all families share; `otherwise`: the cost that stands where none passes."""

    floor: float
    spread: Callable[[np.ndarray], tuple[float, float]]
    level: float = 0.045
    otherwise: float = 1.0


@dataclass(frozen=True)
class Members:
    """Finished models that a technique may join. `costs`: of each per example, any unit · `logits`: of each [N, C] on the same examples · `targets`:
    int [N] · `score`: of joint logits, higher is better · `fallback`: may the member stand last? · `seed`."""

    costs: Sequence[float]
    logits: Sequence[np.ndarray]
    targets: np.ndarray
    score: Callable[[np.ndarray], float]
    fallback: Sequence[bool]
    seed: int = 0
