"""LIRS (Jiang and Zhang 2002): who comes back within a short distance keeps the cache.

99 % of it is for objects of low inter-reference recency; the others pass through a short queue, and the stack remembers them for two caches.
"""

from __future__ import annotations

from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import LIRS


class Lirs(EvictionRule):
    """LIRS: low inter-reference recency stays."""

    title = "LIRS: low inter-reference recency stays"
    cites = ("jiang2002",)
    kind = LIRS
