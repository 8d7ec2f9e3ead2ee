"""Random partitions for search: what random + SAMPLE and annealing + SAMPLE begin with."""

from __future__ import annotations

import numpy as np

from fourfold.decisions.chiplets._sampler import Sampler


def drawn(sampler: Sampler, k: int, rng: np.random.Generator) -> np.ndarray | None:
    """The k-th random partition: every other one by SAMPLE with uniform chances, as published; the others cut the order of the ops at uniform places
    into a uniform number of stages, and FIX repairs that. The latter are far better where a graph is long."""
    n, chips = sampler.net.count, sampler.net.chips
    if k % 2:
        return sampler.sample(None, int(rng.integers(1 << 30)))
    cuts = np.sort(rng.integers(0, n + 1, int(rng.integers(0, chips))))
    return sampler.fix(np.searchsorted(cuts, np.arange(n), side="right"))
