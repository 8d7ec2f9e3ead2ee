"""HALP asked request by request; see `_online`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.cache._halp import UNKNOWN, LearnedCache, unknown
from fourfold.decisions.cache._online import OnlinePolicy
from fourfold.decisions.cache._state import LIRS, NOWHERE, RESIDENT, grown

_MEAN = 4_096.0                                                         # bytes of an object, before any was seen


class LearnedPolicy(OnlinePolicy):
    """HALP over `capacity` bytes, for slots 0 … n − 1. Not safe for threads: who calls holds a lock."""

    def __init__(self, capacity: int, seed: int = 0, slots: int = 1024) -> None:
        super().__init__(LIRS, capacity, slots)
        self.cache = LearnedCache(capacity, slots, _MEAN, seed)
        self.state = self.cache.state

    def fit(self, slot: int) -> None:
        """Make room for `slot`, doubling."""
        while slot >= self.slots:
            super().fit(self.slots)                                     # doubles once
            cache, more = self.cache, self.slots
            cache.state, cache.arms = self.state, tuple(grown(arm, more) for arm in cache.arms)
            known = cache.known
            cache.known = known._replace(last=_wider(known.last, more, -1), gap=_wider(known.gap, more, float(UNKNOWN)),
                                         weight=_wider(known.weight, more, 0), count=_wider(known.count, more, 0),
                                         faded=_wider(known.faded, more, 0), pair=_wider(known.pair, more, -1))

    def _ask(self, slot: int, size: int) -> int:
        self._one[0], self._size[0] = slot, size
        return self.cache.replay(self._one, self._size, self._said, self._when, self._who)

    def enter(self, slot: int, size: int, worth: float, name: int) -> list[int] | None:
        """As `OnlinePolicy.enter`; what fetching costs is not asked."""
        del worth, name
        if 0 <= self.state.where[slot] < RESIDENT:
            self.forget(slot)
        left = self._ask(slot, size)
        return None if self._said[0] == 2 else self._who[:left].tolist()

    def remembered(self, slot: int) -> bool:
        """Whether a slot that left is of use still, to the cache or to a miniature. One that is not may be given to another key, and is unknown."""
        if self.state.where[slot] != NOWHERE or any(arm.where[slot] != NOWHERE for arm in self.cache.arms):
            return True
        self.forget(slot)
        return False

    def forget(self, slot: int) -> None:
        """A slot leaves without a trace."""
        unknown(self.cache.state, self.cache.arms, self.cache.known, slot)


def _wider(array: NDArray, length: int, fill: float) -> NDArray:
    out = np.full((length, *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out
