"""Bytes that every policy misses, whatever it knows of the future: PFOO-L of Berger, Beckmann and Harchol-Balter (2018), and each first request.

A hit needs its object inside from one request to the next: bytes × requests of room. All the room that a trace of n requests has is capacity × n, so
the intervals that give most bytes for their room, taken until it is spent, give more than any cache can.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.cache.instance import NEVER, RequestTrace


def least_missed(trace: RequestTrace, capacity: int) -> float:
    """A number of bytes below which no policy misses."""
    following = trace.following
    start = np.flatnonzero(following < NEVER)
    if not len(start):
        return float(trace.bytes)
    end = following[start]
    least = np.full(trace.objects, np.iinfo(np.int64).max)              # of the sizes that an object comes in: it holds at least that many bytes
    np.minimum.at(least, trace.ids, trace.sizes)
    gain, small = trace.sizes[end].astype(float), least[trace.ids[start]]
    room = small * (end - start).astype(float)
    room[small > capacity] = np.inf
    order = np.argsort(room / gain, kind="stable")
    order = order[np.isfinite(room[order])]
    filled = np.cumsum(room[order])
    whole = int(np.searchsorted(filled, float(capacity) * len(trace), side="right"))
    saved = float(gain[order[:whole]].sum())
    if whole < len(order):
        left = float(capacity) * len(trace) - (filled[whole - 1] if whole else 0.0)
        saved += float(gain[order[whole]] * left / room[order[whole]])
    return max(0.0, float(trace.bytes - saved))
