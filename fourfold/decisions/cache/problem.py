"""Which object leaves a full cache: bytes that must be fetched again, over a trace of requests."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.cache.bound import least_missed
from fourfold.decisions.cache.instance import Evictions, RequestTrace
from fourfold.decisions.cache.validate import misses
from fourfold.errors import InputError
from fourfold.problem import Problem


class Cache(Problem[Evictions]):
    """A trace and a cache of `capacity` bytes; the cost is bytes missed. Raises InputError for a capacity below one byte."""

    question: ClassVar[str] = "cache"
    lever: ClassVar[str] = "mechanization"
    unit = "B"

    def __init__(self, trace: RequestTrace, capacity: int) -> None:
        if capacity < 1:
            raise InputError(f"A cache of {capacity:,} bytes holds nothing.", "Give a size of at least one byte, or a larger share of the trace.")
        self.trace, self.capacity = trace, int(capacity)

    def baseline(self) -> Evictions:
        """Nothing is taken in: every request is a miss."""
        nobody = np.zeros(0, np.int32)
        return Evictions(np.ones(len(self.trace), bool), nobody, nobody)

    def violations(self, answer: Evictions) -> list[str]:
        """The first rule that `answer` breaks, in words."""
        broken = misses(self.trace, self.capacity, answer)[1]
        return [broken] if broken else []

    def cost(self, answer: Evictions) -> float:
        """Bytes missed."""
        return float(self.trace.sizes[misses(self.trace, self.capacity, answer)[0]].sum())

    def bound(self) -> float:
        """Bytes that no policy can do without."""
        return least_missed(self.trace, self.capacity)

    @classmethod
    def sample(cls, seed: int) -> Cache:
        """A small random trace: some objects popular, sizes far apart, now and then a scan."""
        from fourfold.decisions.cache._synthetic import synthetic

        rng = np.random.default_rng(seed)
        trace = synthetic(int(rng.integers(50, 1500)), int(rng.integers(5, 200)), zipf=float(rng.uniform(0.3, 1.2)),
                          spread=float(rng.uniform(0, 1.5)), once=float(rng.uniform(0, 0.5)), churn=float(rng.uniform(0, 0.3)),
                          scans=float(rng.uniform(0, 0.2)), seed=seed)
        return cls(trace, max(1, int(trace.footprint * rng.uniform(0.02, 0.5))))
