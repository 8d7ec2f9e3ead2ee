"""How a draft is accepted so that what is drawn keeps the model's own distribution (Leviathan et al. 2023, appendix A.1; Chen et al. 2023)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]


def drawn(shares: Shares, random: np.random.Generator) -> int:
    """A token of the distribution [V]."""
    total = np.cumsum(shares)
    return int(min(np.searchsorted(total, random.random() * total[-1], side="right"), len(shares) - 1))


def verdict(shares: Shares, draft: int, proposed: Shares | None, random: np.random.Generator) -> tuple[bool, int]:
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
