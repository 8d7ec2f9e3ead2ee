"""A trace replayed through one policy: who hit, who was not taken in, and who left when."""

from __future__ import annotations

from numba import njit

from fourfold.decisions.cache._rules import admit, drop, meet, refuses, touch, victim
from fourfold.decisions.cache._state import CAPACITY, KIND, USED, resident

MISS, HIT, REFUSED = 0, 1, 2


@njit(cache=True)
def replay(s, ids, sizes, following, outcome, when, who, left):  # type: ignore[no-untyped-def]
    """Requests `ids` i4[n] of `sizes` i8[n] bytes, next asked for at `following` i8[n]. Writes `outcome` u1[n] and, from position `left`, each object
    that leaves to `who` i4 and the request to `when` i4. Returns how many have left in all."""
    kind = s.reg[KIND]
    for i in range(len(ids)):
        o, size = ids[i], sizes[i]
        if resident(s, o):
            touch(s, kind, o, following[i])
            outcome[i] = HIT
            continue
        if refuses(s, kind, size, following[i]):
            outcome[i] = REFUSED
            continue
        meet(s, kind, o, size)
        while s.reg[USED] + size > s.reg[CAPACITY]:
            v = victim(s, kind)
            drop(s, kind, v)
            when[left], who[left] = i, v
            left += 1
        admit(s, kind, o, size, following[i])
        outcome[i] = MISS
    return left
