"""What no answer can beat, and the certificate for it, counted from the instance alone: this file knows no search.

A certificate moves costs about without changing the cost of any answer: `messages` between an edge's table and its nodes' strategies (a
reparametrisation), `prices` per byte at chosen times (Lagrangean relaxation of the limit, Geoffrion 1974). Then

    bound = Σ_i min_s [c_i(s) + usage_i(s) · Σ_{t in life of i} price_t + Σ_e message_e,i(s)] + Σ_e min_{s,t} [table_e(s,t) − message_e,a(s)
            − message_e,b(t)] − limit · Σ_t price_t

holds for any messages and any prices of 0 or more. Every entry is lowered by what doubles may have rounded away before the least is taken. A bound of
whole costs is rounded up.
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
_UNIT = 2.0**-52                                                        # twice what one operation on doubles rounds away, relative


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
    unary, tables = _joined(g)
    size = np.abs(unary)                                                # Σ of magnitudes and how many terms, for what doubles round away
    node = np.repeat(np.arange(len(g)), g.strategies)
    order = np.argsort(proof.times, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(proof.prices[order])])
    upto = [summed[np.searchsorted(proof.times[order], when)] for when in (g.lower, np.maximum(g.upper, g.lower))]
    price = np.maximum(0.0, upto[1] - upto[0] - _UNIT * len(proof.prices) * (upto[0] + upto[1]))
    priced = price[node] * g.usage
    unary = unary + priced
    size, terms = size + np.abs(priced), np.full(len(g), 4)
    paid = math.fsum(proof.prices.tolist()) * (g.limit or 0)
    parts, at = [-paid * (1 + 4 * _UNIT)], 0
    for a, b in proof.pairs.tolist():
        ka, kb = int(g.strategies[a]), int(g.strategies[b])
        one, two = proof.messages[at : at + ka], proof.messages[at + ka : at + ka + kb]
        at += ka + kb
        table = tables.pop((min(a, b), max(a, b)))
        table = table if a < b else table.T
        moved = table - one[:, None] - two[None, :]
        parts.append(float((moved - 4 * _UNIT * (np.abs(table) + np.abs(one)[:, None] + np.abs(two)[None, :])).min()))
        for i, message in ((a, one), (b, two)):
            unary[g.ptr[i] : g.ptr[i + 1]] += message
            size[g.ptr[i] : g.ptr[i + 1]] += np.abs(message)
            terms[i] += 1
    if at != len(proof.messages):
        raise ValueError(f"{len(proof.messages)} messages are given, and the pairs have {at} strategies")
    parts += [float(table.min()) for table in tables.values()]
    parts += np.minimum.reduceat(unary - _UNIT * terms[node] * size, g.ptr[:-1]).tolist()
    found = math.fsum(parts)
    found -= 4 * _UNIT * abs(found)
    return float(math.ceil(found)) if g.whole and abs(found) < 2**52 else found


def _joined(g: StrategyGraph) -> tuple[F64, dict[tuple[int, int], F64]]:
    """(costs of strategies with the diagonals of self edges, the table of each pair of nodes, lower number first, edges between them added)."""
    unary = g.cost.astype(np.float64)
    found: dict[tuple[int, int], F64] = {}
    for e, (a, b) in enumerate(g.edge.tolist()):
        table = g.table[g.table_ptr[e] : g.table_ptr[e + 1]].reshape(g.strategies[a], g.strategies[b]).astype(np.float64)
        if a == b:
            unary[g.ptr[a] : g.ptr[a + 1]] += np.diagonal(table)
            continue
        key, table = (min(a, b), max(a, b)), table.T if a > b else table
        found[key] = found[key] + table if key in found else table
    return unary, found


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
