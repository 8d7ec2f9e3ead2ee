"""GDSF (Cherkasova 1998): priority = L + uses × worth / bytes, where L is the priority of who left last.

Small objects stay, so many requests hit and few bytes do; with `worth` in joules it keeps most joules a byte.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import GDSF


class GreedyDualSizeFrequency(EvictionRule):
    """GreedyDual-Size-Frequency."""

    title = "GreedyDual-Size-Frequency"
    cites = ("cherkasova1998",)
    kind = GDSF
