"""LFU (as in Lee et al. 2001): who was asked for least often leaves, the earliest first among equals.

Counts are lost on leaving. What was popular once stays for long.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import LFU


class Lfu(EvictionRule):
    """Least frequently used."""

    title = "Least frequently used"
    cites = ("lee2001",)
    kind = LFU
