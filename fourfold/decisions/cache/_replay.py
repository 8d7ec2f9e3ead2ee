"""A trace replayed through one rule, as an answer to the question."""

from __future__ import annotations

import numpy as np

from fourfold.decisions.cache._kernel import REFUSED, replay
from fourfold.decisions.cache._state import new
from fourfold.decisions.cache.instance import Evictions, RequestTrace


def replayed(kind: int, trace: RequestTrace, capacity: int) -> Evictions:
    """What the rule of that kind does to the trace in a cache of `capacity` bytes."""
    outcome = np.zeros(len(trace), np.uint8)
    when, who = np.zeros(len(trace), np.int32), np.zeros(len(trace), np.int32)  # no more can leave than entered
    left = replay(new(kind, capacity, trace.objects), trace.ids, trace.sizes, trace.following, outcome, when, who, 0)
    return Evictions(outcome == REFUSED, when[:left].copy(), who[:left].copy())
