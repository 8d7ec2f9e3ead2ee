"""The validator: every rule by its definition, sums in Python's whole numbers (or correctly rounded, for floats). It knows no solver."""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from fourfold.decisions.shard.instance import FORBIDDEN, I64, StrategyGraph


def violations(g: StrategyGraph, answer: object) -> list[str]:
    """Every rule that `answer` (a strategy for each node, from 0) breaks, a sentence each; [] = valid."""
    try:
        given = np.asarray(answer)
    except (ValueError, OverflowError):
        return ["the answer is no array of whole numbers"]
    if given.ndim != 1 or given.dtype.kind not in "iu":
        return [f"the answer has shape {list(given.shape)} and type {given.dtype}; whole numbers are expected, one a node"]
    if len(given) != len(g):
        return [f"there are {len(given)} choices for {len(g)} nodes"]
    chosen = given.astype(np.int64)
    outside = np.flatnonzero((chosen < 0) | (chosen >= g.strategies))
    if len(outside):
        return [f"{g.name(i)} takes strategy {chosen[i]} of {g.strategies[i]}, numbered from 0" for i in outside.tolist()]
    said = [f"{g.name(i)} takes strategy {chosen[i]}, which is forbidden" for i in np.flatnonzero(g.cost[g.ptr[:-1] + chosen] >= FORBIDDEN).tolist()]
    for e in np.flatnonzero(g.table[_entries(g, chosen)] >= FORBIDDEN).tolist():
        a, b = g.edge[e].tolist()
        said.append(f"{g.name(a)} with strategy {chosen[a]} and {g.name(b)} with strategy {chosen[b]} may not stand together")
    if g.limit is not None:
        said += _over(g, chosen)
    return said


def total(g: StrategyGraph, answer: object) -> float | int:
    """Σ node costs + Σ edge costs of an answer: a Python int where costs are whole, else a correctly rounded float."""
    chosen = np.asarray(answer, np.int64)
    parts = [*g.cost[g.ptr[:-1] + chosen].tolist(), *g.table[_entries(g, chosen)].tolist()]
    return sum(cast(list[int], parts)) if g.whole else math.fsum(cast(list[float], parts))


def loads(g: StrategyGraph, answer: object) -> tuple[I64, I64]:
    """(times i8[t] at which something begins or ends, ascending; bytes i8[t] alive from each until the next)."""
    chosen = np.asarray(answer, np.int64)
    lives = np.flatnonzero(g.upper > g.lower)
    bytes_ = g.usage[g.ptr[lives] + chosen[lives]]
    times, at = np.unique(np.concatenate([g.lower[lives], g.upper[lives]]), return_inverse=True)
    change = np.zeros(len(times), np.int64)
    np.add.at(change, at[: len(lives)], bytes_)
    np.subtract.at(change, at[len(lives):], bytes_)
    return times, np.cumsum(change)


def _entries(g: StrategyGraph, chosen: I64) -> I64:
    a, b = g.edge[:, 0], g.edge[:, 1]
    return g.table_ptr[:-1] + chosen[a] * g.strategies[b] + chosen[b]


def _over(g: StrategyGraph, chosen: I64) -> list[str]:
    """One sentence for all times at which the limit is passed: how many, and the worst."""
    times, load = loads(g, chosen)
    limit = g.limit or 0
    over = int((load > limit).sum())
    if not over:
        return []
    at = int(np.argmax(load))
    return [f"at time {int(times[at])} the values alive take {int(load[at]):,} bytes, {int(load[at]) - limit:,} more than the limit of {limit:,}"
            + (f" (and it is passed at {over - 1:,} other times)" if over > 1 else "")]
