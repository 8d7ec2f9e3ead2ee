"""Bucket elimination (Dechter 1999): the exact optimum where the graph of the edges is thin, as networks' are; a limit of memory is priced.

Without a limit that binds, the answer is the optimum and its cost the bound. With one, bytes of the fullest times are priced until the optimum of the
priced costs fits (Lagrangean relaxation): the bound is the largest priced optimum less the price of the limit.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.shard.instance import FORBIDDEN, I64, StrategyGraph
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.decisions.shard.validate import loads
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer
from fourfold.solvers.elimination import Table, TooWide, eliminate

_MOST = 1 << 22                                                         # entries of a table
_NODES = 20_000
_ROUNDS = 40


class BucketElimination(Solver):
    """Nodes are taken out one by one, the one whose neighbours have fewest choices together first."""

    title: ClassVar[str] = "Bucket elimination, exact on thin graphs; memory by prices"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "shard"
    cites: ClassVar[tuple[str, ...]] = ("dechter1999",)
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "eliminations"

    def declines(self, problem: ShardProblem) -> str | None:
        if len(problem.graph) > _NODES:
            return f"there are {len(problem.graph):,} nodes, and it takes {_NODES:,} at most"
        wide = _width(problem.graph)
        return f"a table of {wide:,} entries would be needed, and it makes {_MOST:,} at most" if wide > _MOST else None

    def solve(self, problem: ShardProblem, budget: Budget, seed: int = 0) -> SolverAnswer[I64]:
        """Raises Infeasible where no price made the optimum fit, or it is proven that nothing does."""
        if why := problem.impossible():
            raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or strategies that take fewer bytes.")
        g, edges = problem.graph, _edges(problem.graph)
        times = loads(g, np.zeros(len(g), np.int64))[0]
        price, low, high = np.zeros(0), 0.0, 0.0
        best, least, bound, at = None, np.inf, -np.inf, np.zeros(0, np.int64)
        if not problem.violations(start := problem.baseline()):
            best, least = start, problem.cost(start)
        for _ in range(_ROUNDS):
            found = _priced(g, edges, at, price)
            bound = max(bound, found[1] - float(price.sum()) * (g.limit or 0))
            if fits := not problem.violations(found[0]):
                found = (_descended(g, found[0]) if len(at) else found[0], found[1])
            if fits and (value := problem.cost(found[0])) < least:
                best, least = found[0], value
            if (fits and not len(at)) or not budget.spend() or found[1] >= FORBIDDEN:
                break
            load = loads(g, found[0])[1]
            if not len(at):                                             # the fullest time is priced, from what a byte of it could save
                at = np.array([times[int(load.argmax())]])
                high = max(1e-12, float(np.abs(g.cost[g.cost < FORBIDDEN]).max(initial=1)) / max(1.0, float(g.usage[g.usage > 0].min(initial=1))))
            if fits:
                high = float(price[0])
            else:
                low = float(price[0]) if len(price) else 0.0
                high = max(high, 4 * low)
            if high - low <= 1e-9 * high:
                break
            price = np.array([high if not len(price) and not low else 0.5 * (low + high)])
        if best is None:
            raise Infeasible("No price of memory made the exact optimum fit the limit.", "Ask another technique, or give more memory.")
        return SolverAnswer(best, bound=min(bound, least) if np.isfinite(bound) and bound < FORBIDDEN else None, evidence={"searched": True})


def _descended(g: StrategyGraph, chosen: I64, rounds: int = 6) -> I64:
    """Give nodes in turn the cheapest strategy that the room left by the others allows: prices leave some of it unused."""
    chosen, limit = chosen.copy(), float("inf") if g.limit is None else g.limit
    near: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(len(g))]
    for scope, table in _edges(g):
        if len(scope) == 2:
            near[scope[0]].append((scope[1], table.T))
            near[scope[1]].append((scope[0], table))
        else:
            near[scope[0]].append((-1, table))
    times, load = loads(g, chosen)
    load = load.astype(np.float64)
    first, last = np.searchsorted(times, g.lower), np.searchsorted(times, np.maximum(g.upper, g.lower))
    for _ in range(rounds):
        changed = False
        for i in range(len(g)):
            own = slice(int(g.ptr[i]), int(g.ptr[i + 1]))
            total = np.where(g.cost[own] >= FORBIDDEN, np.inf, g.cost[own].astype(np.float64))
            for other, table in near[i]:
                total = total + (table if other < 0 else table[chosen[other]])
            usage, lives = g.usage[own], slice(int(first[i]), int(last[i]))
            if last[i] > first[i]:
                total = np.where(load[lives].max() - usage[chosen[i]] + usage > limit, np.inf, total)
            best = int(total.argmin())
            if total[best] < total[chosen[i]]:
                load[lives] += usage[best] - usage[chosen[i]]
                chosen[i], changed = best, True
        if not changed:
            break
    return chosen


def _edges(g: StrategyGraph) -> list[Table]:
    """A table for each edge; equal ones are one object."""
    seen: dict[tuple[int, bytes], np.ndarray] = {}
    found: list[Table] = []
    for e, (a, b) in enumerate(g.edge.tolist()):
        table = np.asarray(g.table[g.table_ptr[e] : g.table_ptr[e + 1]], np.float64).reshape(int(g.strategies[a]), int(g.strategies[b]))
        table = np.where(table >= FORBIDDEN, np.inf, table)
        if a == b:
            found.append(((a,), np.ascontiguousarray(np.diagonal(table))))
            continue
        found.append(((a, b), seen.setdefault((table.shape[1], table.tobytes()), table)))
    return found


def _priced(g: StrategyGraph, edges: list[Table], at: I64, price: np.ndarray) -> tuple[I64, float]:
    """(the optimum of costs and priced bytes, its value)."""
    lives = ((g.lower[:, None] <= at) & (at < g.upper[:, None])).astype(np.float64) @ price if len(at) and len(price) else np.zeros(len(g))
    cost = np.where(g.cost >= FORBIDDEN, np.inf, np.asarray(g.cost, np.float64))
    seen: dict[bytes, np.ndarray] = {}
    unary: list[Table] = []
    for i in range(len(g)):
        own = cost[g.ptr[i] : g.ptr[i + 1]] + lives[i] * g.usage[g.ptr[i] : g.ptr[i + 1]]
        unary.append(((i,), seen.setdefault(own.tobytes(), own)))
    try:
        found = eliminate(g.strategies.tolist(), [*unary, *edges], most=_MOST)
    except TooWide as error:
        raise Infeasible(f"The graph is not thin: {error}.", "Ask another technique.") from error
    return found.choice, float(found.value)


def _width(g: StrategyGraph) -> int:
    """Entries of the largest table that elimination would make, by sizes alone."""
    import heapq
    import math

    sizes = g.strategies.tolist()
    near: list[set[int]] = [set() for _ in sizes]
    for a, b in g.edge.tolist():
        if a != b:
            near[a].add(b)
            near[b].add(a)

    def weight(v: int) -> int:
        return sizes[v] * math.prod(sizes[u] for u in near[v])

    queue = [(weight(v), v) for v in range(len(sizes))]
    heapq.heapify(queue)
    gone, widest = [False] * len(sizes), 0
    while queue and widest <= _MOST:
        told, v = heapq.heappop(queue)
        if gone[v]:
            continue
        if (now := weight(v)) != told:
            heapq.heappush(queue, (now, v))
            continue
        gone[v], widest = True, max(widest, now)
        for u in near[v]:
            near[u] |= near[v] - {u}
            near[u].discard(v)
            heapq.heappush(queue, (weight(u), u))
    return widest
