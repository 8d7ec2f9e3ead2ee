"""LRU (analysed by Mattson et al. 1970): who was not asked for longest leaves first.

Good where use is local in time; one scan washes everything out.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import LRU


class Lru(EvictionRule):
    """Least recently used."""

    title = "Least recently used"
    cites = ("mattson1970",)
    kind = LRU
