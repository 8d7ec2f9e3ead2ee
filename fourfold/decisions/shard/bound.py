"""What no answer can beat, and the certificate for it, counted from the instance alone: this file knows no search.

A certificate moves costs about without changing the cost of any answer: `messages` between an edge's table and its nodes' strategies (a
reparametrisation), `prices` per byte at chosen times (Lagrangean relaxation of the limit, Geoffrion 1974). Then

    bound = Σ_i min_s [c_i(s) + usage_i(s) · Σ_{t in life of i} price_t + Σ_e message_e,i(s)] + Σ_e min_{s,t} [table_e(s,t) − message_e,a(s)
            − message_e,b(t)] − limit · Σ_t price_t  −  what doubles may have rounded away

holds for any messages and any prices of 0 or more. A bound of whole costs is rounded up.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fourfold.decisions.shard.instance import F64, FORBIDDEN, I64, StrategyGraph
from fourfold.errors import ArtefactError

_EMPTY = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class DualCertificate:
    """Evidence for a bound: `times` i8[p] with `prices` f8[p] a byte, and for `pairs` i8[q, 2] of nodes (all edges between the two together, in this
    order) `messages`, flattened: strategies of the first node, then of the second. Empty: the costs as they stand."""

    times: I64 = field(default_factory=lambda: _EMPTY)
    prices: F64 = field(default_factory=lambda: _EMPTY.astype(np.float64))
    pairs: I64 = field(default_factory=lambda: _EMPTY.reshape(0, 2))
    messages: F64 = field(default_factory=lambda: _EMPTY.astype(np.float64))

    def save(self, path: str | Path) -> None:
        """Write the arrays to an .npz file."""
        np.savez_compressed(path, times=self.times, prices=self.prices, pairs=self.pairs, messages=self.messages)

    @classmethod
    def load(cls, path: str | Path) -> DualCertificate:
        """What `save` wrote. Raises ArtefactError where it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as held:
                return cls(*(held[name] for name in ("times", "prices", "pairs", "messages")))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ArtefactError(f"{path} is damaged.", "Make the plan again.") from error


def bound(g: StrategyGraph, proof: DualCertificate | None = None) -> float:
    """The bound that `proof` gives for the instance. Raises ValueError where the proof does not fit it (a negative price, wrong lengths), KeyError
    for a pair without an edge."""
    proof = proof or DualCertificate()
    if (proof.prices < 0).any() or not np.isfinite(proof.prices).all() or not np.isfinite(proof.messages).all():
        raise ValueError("a price is negative, or something is no finite number")
    if len(proof.prices) and g.limit is None:
        raise ValueError("prices are given, and nothing is limited")
    unary = g.cost.astype(np.float64)
    rounding = float(np.abs(unary[unary < FORBIDDEN]).sum())
    node = np.repeat(np.arange(len(g)), g.strategies)
    order = np.argsort(proof.times, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(proof.prices[order])])
    upto = [summed[np.searchsorted(proof.times[order], when)] for when in (g.lower, np.maximum(g.upper, g.lower))]
    price = np.maximum(0.0, upto[1] - upto[0])
    priced = price[node] * g.usage
    unary = np.minimum(unary + priced, FORBIDDEN)
    paid = math.fsum(proof.prices.tolist()) * (g.limit or 0)
    tables = _joined(g)
    at, degree, edges = 0, np.zeros(len(g), np.int64), 0.0
    for a, b in proof.pairs.tolist():
        ka, kb = int(g.strategies[a]), int(g.strategies[b])
        one, two = proof.messages[at : at + ka], proof.messages[at + ka : at + ka + kb]
        at += ka + kb
        table = tables.pop((min(a, b), max(a, b)))
        table = (table if a < b else table.T) - one[:, None] - two[None, :]
        least = float(table.min())
        edges += least
        unary[g.ptr[a] : g.ptr[a + 1]] += one
        unary[g.ptr[b] : g.ptr[b + 1]] += two
        degree[[a, b]] += 1
        rounding += 4 * (float(np.abs(one).max()) + float(np.abs(two).max()) + abs(least))
    if at != len(proof.messages):
        raise ValueError(f"{len(proof.messages)} messages are given, and the pairs have {at} strategies")
    edges += math.fsum(float(table.min()) for table in tables.values())
    nodes = math.fsum(np.minimum.reduceat(unary, g.ptr[:-1]).tolist())
    rounding += float(np.maximum.reduceat(priced, g.ptr[:-1]).sum()) + abs(paid)
    slack = 2.0**-52 * (rounding * (4 + math.log2(2 + len(proof.prices)) + float(np.sqrt(degree.max(initial=1)))))
    found = nodes + edges - paid - slack
    return float(math.ceil(found)) if g.whole and abs(found) < 2**52 else found


def _joined(g: StrategyGraph) -> dict[tuple[int, int], F64]:
    """The table of each pair of nodes (lower number first), edges between the same two added; a self edge stands as (i, i) with its diagonal."""
    found: dict[tuple[int, int], F64] = {}
    for e, (a, b) in enumerate(g.edge.tolist()):
        table = g.table[g.table_ptr[e] : g.table_ptr[e + 1]].reshape(g.strategies[a], g.strategies[b]).astype(np.float64)
        table = np.diagonal(table)[None, :] if a == b else table.T if a > b else table
        key = (min(a, b), max(a, b))
        found[key] = found[key] + table if key in found else table
    return found


def impossible(g: StrategyGraph) -> str | None:
    """A sentence that proves that no choice keeps the limit: even the fewest bytes of every node pass it, where and by how much. None: unknown."""
    if g.limit is None:
        return None
    from fourfold.decisions.shard.validate import loads

    allowed = np.where(g.cost < FORBIDDEN, g.usage, 2**62)
    node = np.repeat(np.arange(len(g)), g.strategies)
    least = np.minimum.reduceat(allowed, g.ptr[:-1])
    first = np.full(len(g), 2**62, np.int64)
    hit = np.flatnonzero(allowed == least[node])
    np.minimum.at(first, node[hit], hit)
    times, load = loads(g, first - g.ptr[:-1])
    if not len(load) or load.max() <= g.limit:
        return None
    at = int(np.argmax(load))
    return (f"at time {int(times[at])} the values alive take at least {int(load[at]):,} bytes, whatever is chosen, {int(load[at]) - g.limit:,} more "
            f"than the limit of {g.limit:,}")
