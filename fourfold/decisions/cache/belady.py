"""Belady's rule (1966): who is not asked for longest from now on leaves, and who is never asked for again is not taken in.

It knows the future, so it is no policy for a live cache but a mark to measure others by: the least misses where all objects are of one size. Where
sizes differ nothing short of a search is optimal; the bound of the question is then the proof (`bound.py`).
"""

from __future__ import annotations

from fourfold.decisions.cache._online import OnlinePolicy
from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import BELADY
from fourfold.errors import InputError


class Belady(EvictionRule):
    """Belady's rule, by the next request of every object."""

    title = "Belady's rule, which knows the future"
    cites = ("belady1966",)
    kind = BELADY

    def online(self, capacity: int, seed: int = 0) -> OnlinePolicy:
        raise InputError("belady must know every request to come, and a live cache does not.", "Choose another policy, such as s3fifo.")
