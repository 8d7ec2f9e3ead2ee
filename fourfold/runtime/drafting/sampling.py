"""What a token is drawn from, and how a draft is accepted so that the distribution stays the model's own (Leviathan et al. 2023, appendix A.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError

Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: the logits are divided by `temperature`; of the `top_k` likeliest (0: all) those stay that come first to a probability of
    `top_p`. A temperature of 0 takes the likeliest token (greedy). Raises InputError outside of these ranges."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"Nothing can be drawn at temperature {self.temperature:g}, top_k {self.top_k} and top_p {self.top_p:g}.",
                             "Give a temperature of zero or more, top_k of zero or more, and 0 < top_p <= 1.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def probabilities(self, logits: NDArray[np.float32]) -> Probabilities:
        """float64 [..., V] of logits [..., V]; each row adds up to 1."""
        scores = np.asarray(logits, np.float64)
        if self.greedy:
            chosen = np.zeros_like(scores)
            np.put_along_axis(chosen, scores.argmax(-1)[..., None], 1.0, -1)
            return chosen
        scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            least = np.partition(scores, -self.top_k, axis=-1)[..., -self.top_k, None]
            scores = np.where(scores < least, -np.inf, scores)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        if self.top_p < 1.0:
            order = np.argsort(-shares, axis=-1, kind="stable")
            ranked = np.take_along_axis(shares, order, -1)
            ranked[np.cumsum(ranked, -1) - ranked >= self.top_p] = 0.0  # the token that crosses the threshold stays
            np.put_along_axis(shares, order, ranked, -1)
            shares /= shares.sum(-1, keepdims=True)
        return shares


GREEDY = Sampling()


def drawn(shares: Probabilities, random: np.random.Generator) -> int:
    """A token of the distribution [V]."""
    total = np.cumsum(shares)
    return int(min(np.searchsorted(total, random.random() * total[-1], side="right"), len(shares) - 1))


def verdict(shares: Probabilities, draft: int, proposed: Probabilities | None, random: np.random.Generator) -> tuple[bool, int]:
    """(whether the drafted token is taken, the token that stands there): with probability min(1, p / q) the draft, else a draw from max(0, p − q).

    `shares` is p [V], the model's; `proposed` q [V], what the draft was drawn from, or None where it was certain (a copy): the rest is p without it.
    The token is distributed as p, whatever q is.
    """
    chance = shares[draft] if proposed is None else shares[draft] / proposed[draft]
    if random.random() < chance:
        return True, draft
    rest = shares.copy() if proposed is None else np.maximum(shares - proposed, 0.0)
    if proposed is None:
        rest[draft] = 0.0
    if rest.sum() <= 0.0:                                               # p and q agree but for rounding
        return False, drawn(shares, random)
    return False, drawn(rest, random)
