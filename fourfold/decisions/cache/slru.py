"""Segmented LRU (Karedla, Love and Wherry 1994): four segments of one size, each by recency.

A hit moves an object up one segment; what no longer fits there cools down into the next lower one; the lowest loses its oldest.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import SLRU


class SegmentedLru(EvictionRule):
    """Segmented LRU."""

    title = "Segmented LRU"
    cites = ("karedla1994",)
    kind = SLRU
