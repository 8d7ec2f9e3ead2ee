"""ARC (Megiddo and Modha 2003): one list of objects seen once, one of those seen again, each with ghosts.

A ghost that returns says which list is too short; the target moves by the bytes of the object times the ratio of the ghosts.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import ARC


class Arc(EvictionRule):
    """ARC: recency and frequency, balanced by their ghosts."""

    title = "ARC: recency and frequency, balanced by their ghosts"
    cites = ("megiddo2003",)
    kind = ARC
