"""Traces made by rule: popular objects, objects asked for once, popularity that moves on, scans and loops, sizes far apart."""

from __future__ import annotations

import numpy as np

from fourfold.decisions.cache.instance import RequestTrace


def synthetic(requests: int, objects: int, *, zipf: float = 0.9, spread: float = 0.0, once: float = 0.0, churn: float = 0.0,
              scans: float = 0.0, loops: float = 0.0, mean: float = 8192.0, seed: int = 0, name: str = "synthetic") -> RequestTrace:
    """`requests` over about `objects` popular objects, whose popularity falls as rank^−`zipf`.

    spread: sigma of log-normal sizes around `mean` bytes, 0 for one byte each. once: share of requests to objects that come only once. churn:
    share of the popular objects that are replaced over the whole trace, times 10. scans: share of requests in runs over new objects that come back
    once, much
    later. loops: share of requests in rounds over one fixed set, a third as many as the popular ones.
    """
    rng = np.random.default_rng(seed)
    weights = np.arange(1, objects + 1) ** -zipf
    rank = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(requests)).clip(max=objects - 1)
    moved = (np.arange(requests) / requests * churn * 10 * objects).astype(np.int64)
    keys = rng.permutation(objects)[rank] + moved // max(1, objects // 20) * max(1, objects // 20) * (rank % 2)   # half of them, in steps
    base = int(keys.max()) + 1
    kind = np.repeat(rng.random(requests // 50 + 1), 50)[:requests]     # scans and loops come in runs
    loop = kind < loops
    round_ = max(2, objects // 3)
    keys[loop] = base + np.arange(int(loop.sum())) % round_
    base += round_
    scan = (kind >= loops) & (kind < loops + scans)
    walk, length = np.arange(int(scan.sum())), max(1, objects)
    keys[scan] = base + walk % length + walk // (2 * length) * length   # every object of a scan twice, a scan apart
    base = int(keys.max()) + 1
    single = rng.random(requests) < once
    keys[single] = base + np.arange(int(single.sum()))
    sizes = None
    if spread > 0:
        of = np.maximum(1, rng.lognormal(np.log(mean) - spread * spread / 2, spread, int(keys.max()) + 1)).astype(np.int64)
        sizes = of[keys]
    return RequestTrace.of(keys, sizes, name)
