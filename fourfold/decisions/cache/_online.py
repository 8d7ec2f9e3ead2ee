"""A policy asked request by request: objects are slots that come and go, and whoever keeps the values is told which slots left."""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.cache._kernel import REFUSED, replay
from fourfold.decisions.cache._rules import forget
from fourfold.decisions.cache._state import KIND, NOWHERE, RESIDENT, grown, new


@njit(cache=True)
def _forget(s, o):  # type: ignore[no-untyped-def]
    forget(s, s.reg[KIND], o)


class OnlinePolicy:
    """One policy of `kind` over `capacity` bytes, for slots 0 … n − 1; grows as slots are named. Not safe for threads: who calls holds a lock."""

    def __init__(self, kind: int, capacity: int, slots: int = 1024) -> None:
        self.state = new(kind, capacity, slots)
        self.slots = slots
        self._one, self._size = np.zeros(1, np.int32), np.zeros(1, np.int64)    # one request, for the kernel that replays traces
        self._never, self._said = np.zeros(1, np.int64), np.zeros(1, np.uint8)
        self._when, self._who = np.zeros(slots, np.int32), np.zeros(slots, np.int32)

    def fit(self, slot: int) -> None:
        """Make room for `slot`, doubling."""
        while slot >= self.slots:
            self.slots *= 2
            self.state = grown(self.state, self.slots)
            self._when, self._who = np.zeros(self.slots, np.int32), np.zeros(self.slots, np.int32)

    def hit(self, slot: int) -> None:
        """A slot that is in the cache was asked for."""
        self._ask(slot, int(self.state.size[slot]))

    def _ask(self, slot: int, size: int) -> int:
        self._one[0], self._size[0] = slot, size
        return int(replay(self.state, self._one, self._size, self._never, self._said, self._when, self._who, 0))

    def enter(self, slot: int, size: int, worth: float, name: int) -> list[int] | None:
        """A slot enters with `size` bytes, `worth` (what fetching it costs), and `name` (a hash of its key); those that leave for it. None where it
        is not taken in: it is larger than the cache."""
        del name                                                        # for policies that sample
        if 0 <= self.state.where[slot] < RESIDENT:
            _forget(self.state, slot)
        if len(self.state.worth):
            self.state.worth[slot] = worth
        left = self._ask(slot, size)
        return None if self._said[0] == REFUSED else self._who[:left].tolist()

    def remembered(self, slot: int) -> bool:
        """Whether a slot that left is of use still."""
        return bool(self.state.where[slot] != NOWHERE)

    def forget(self, slot: int) -> None:
        """A slot leaves without a trace."""
        _forget(self.state, slot)


