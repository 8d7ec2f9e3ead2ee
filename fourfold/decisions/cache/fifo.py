"""FIFO (compared by Belady 1966): who entered first leaves first.

A hit writes nothing, so it is the cheapest rule there is.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import FIFO


class Fifo(EvictionRule):
    """First in, first out."""

    title = "First in, first out"
    cites = ("belady1966",)
    kind = FIFO
