"""SIEVE (Zhang et al. 2024): a queue in order of entry, and a hand that walks from old to new.

What was visited since the hand last came is spared once and stays where it is; new objects are met soon, so one-hit wonders leave early.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import SIEVE


class Sieve(EvictionRule):
    """SIEVE: a hand that spares what was visited."""

    title = "SIEVE: a hand that spares what was visited"
    cites = ("zhang2024sieve",)
    kind = SIEVE
