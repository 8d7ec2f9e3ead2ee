"""2Q (Johnson and Shasha 1994): new objects stand in a FIFO queue of a quarter of the cache.

Who left it and is asked for again while it is remembered (half a cache) enters the main queue, which is ordered by recency.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import TWOQ


class TwoQueues(EvictionRule):
    """2Q: in, out and main queue."""

    title = "2Q: in, out and main queue"
    cites = ("johnson1994",)
    kind = TWOQ
