"""Clock2Q+ (2025), a refinement of S3-FIFO (Yang et al. 2023): a small FIFO queue, a main clock and ghosts.

Hits within a window after an object entered are taken for one use, not for several, so what is read twice in a row and never again leaves.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import CLOCK2QPLUS


class Clock2QPlus(EvictionRule):
    """Clock2Q+: S3-FIFO with a window of correlated use."""

    title = "Clock2Q+: S3-FIFO with a window of correlated use"
    cites = ("yang2023s3fifo",)
    kind = CLOCK2QPLUS
