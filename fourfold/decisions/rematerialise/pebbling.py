"""The optimum of small graphs: the cheapest play of the pebble game with weights (Sethi 1975), by A* (Hart, Nilsson and Raphael 1968).

A state is the set of nodes that ran and the set of values that are there. Running a node needs its inputs there and room for its outputs; where there
is no room, a least set of values is dropped first (dropping earlier, or more, helps nothing). Every play is a sequence in any order with any number
of repeats, so the least price at which all ran and the outputs are there is the least price of any plan whose values fit by their bytes alone;
offsets can only need more. What was not settled when the budget ended is a bound all the same: the least price of any open state.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._evict import evictions
from fourfold.decisions.rematerialise._lives import own_order
from fourfold.decisions.rematerialise._order import greedy_orders
from fourfold.decisions.rematerialise._plans import PricedPlan, candidate, first_fitting, fits, refusal, shrinking, target
from fourfold.decisions.rematerialise.instance import CoreGraph
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_NODES = 60                                                             # computing nodes; beyond, states are too many from the start
_DROPS = 64                                                             # least sets looked at for one step; more, and nothing is claimed as optimal


class _Found(NamedTuple):
    """A sequence or None; the least price that any play can have; whether all plays were looked at (then None means that there is no play)."""

    sequence: NDArray[np.int32] | None
    bound: float
    complete: bool


def _least_sets(values: list[int], size: list[int], excess: int) -> Iterator[tuple[int, ...]]:
    """Sets of `values` whose bytes reach `excess` and none of whose members can be left out: added largest first, the last one is always needed."""
    values = sorted(values, key=lambda v: -size[v])
    chosen: list[int] = []
    rest = np.concatenate([np.cumsum([size[v] for v in values][::-1])[::-1], [0]]).tolist()

    def extend(at: int, got: int) -> Iterator[tuple[int, ...]]:
        if got >= excess:
            yield tuple(chosen)
        elif at < len(values) and got + rest[at] >= excess:
            chosen.append(values[at])
            yield from extend(at + 1, got + size[values[at]])
            chosen.pop()
            yield from extend(at + 1, got)

    yield from extend(0, 0)


class _Game:
    """The graph as bit masks over nodes and values."""

    def __init__(self, core: CoreGraph, limit: int) -> None:
        nodes = range(len(core.node))
        self.limit, self.nodes, self.size = limit, len(core.node), core.size.tolist()
        self.reads = [_mask(core.in_val[core.in_ptr[n] : core.in_ptr[n + 1]].tolist()) for n in nodes]
        self.makes = [_mask(core.out_val[core.out_ptr[n] : core.out_ptr[n + 1]].tolist()) for n in nodes]
        self.price, self.once, self.workspace = core.price.tolist(), core.once.tolist(), core.workspace.tolist()
        self.pinned = _mask(np.flatnonzero(core.pinned).tolist())
        self.narrow = False                                            # whether drops were left out

    def bytes_of(self, values: int) -> int:
        return sum(self.size[v] for v in _bits(values))

    def moves(self, done: int, there: int) -> Iterator[tuple[int, int, int]]:
        """(node, done, there) after each run that is possible, for each least set that must be dropped before."""
        for n in range(self.nodes):
            again = done >> n & 1
            if self.reads[n] & ~there or again and (self.once[n] or not self.makes[n] & ~there):
                continue
            after = there | self.makes[n]
            excess = self.bytes_of(after) + self.workspace[n] - self.limit
            if excess <= 0:
                yield n, done | 1 << n, after
                continue
            loose = [v for v in _bits(there & ~self.reads[n] & ~self.makes[n]) if self.size[v]]
            sets = list(itertools.islice(_least_sets(loose, self.size, excess), _DROPS + 1))
            self.narrow = self.narrow or len(sets) > _DROPS
            for gone in sets[:_DROPS]:
                yield n, done | 1 << n, after & ~_mask(gone)

    def play(self, budget: Budget, ceiling: float) -> _Found:
        """The cheapest play, looking at states until the budget is spent or none is below `ceiling`."""
        full, total = (1 << self.nodes) - 1, sum(self.price)
        tick = itertools.count()
        heap: list[tuple[float, int, int, int, int, int]] = [(total, self.nodes, 0, 0, 0, -1)]
        line: list[tuple[int, int]] = []                               # (node, index of the state before) of each state that was opened
        best: dict[int, list[tuple[int, float]]] = {}                  # done → (there, price) not beaten by a state with more there and no dearer
        while heap:
            price, left, _, done, there, way = heapq.heappop(heap)
            if price >= ceiling:
                return _Found(None, ceiling if not self.narrow else 0.0, not self.narrow)
            if any(there & ~other == 0 and cost <= price and (other, cost) != (there, price) for other, cost in best.get(done, ())):
                continue
            if done == full and not self.pinned & ~there:
                return _Found(_steps(line, way), price if not self.narrow else 0.0, not self.narrow)
            if not budget.spend():
                return _Found(None, price if not self.narrow else 0.0, False)
            for n, after, now in self.moves(done, there):
                cost = price + (self.price[n] if done >> n & 1 else 0.0)
                known = best.setdefault(after, [])
                if any(now & ~other == 0 and known_cost <= cost for other, known_cost in known):
                    continue
                known[:] = [(other, c) for other, c in known if not (other & ~now == 0 and cost <= c)]
                known.append((now, cost))
                line.append((n, way))
                heapq.heappush(heap, (cost, left - (not done >> n & 1), -next(tick), after, now, len(line) - 1))
        return _Found(None, float("inf") if not self.narrow else 0.0, not self.narrow)


def _mask(values: tuple[int, ...] | list[int]) -> int:
    found = 0
    for v in values:
        found |= 1 << v
    return found


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _steps(line: list[tuple[int, int]], way: int) -> NDArray[np.int32]:
    order = []
    while way >= 0:
        node, way = line[way]
        order.append(node)
    return np.array(order[::-1], np.int32)


class Pebbling(Solver):
    """A* over what ran and what is there; a proven gap where the budget ends first."""

    title: ClassVar[str] = "Exact on small graphs: the weighted pebble game by A*"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("sethi1975", "hart1968")
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "states"

    def declines(self, problem: Rematerialise) -> str | None:
        nodes = len(problem.core.node)
        if problem.far is not None:
            return "its game has one memory, and the question has two."
        return f"{nodes} computing ops are more than the {_NODES} whose states can be looked at." if nodes > _NODES else None

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        limit, core = target(problem), problem.core
        orders = [own_order(core), greedy_orders(core)[0]]
        start = shrinking(problem, limit, lambda most: evictions(core, most, orders, Budget(60.0, 40)))
        views = float(problem.price[problem.viewing].sum())
        ceiling = start.price if start is not None else float("inf")
        found = _Game(core, limit).play(budget, ceiling - views)
        best: PricedPlan | None = start
        if found.sequence is not None:
            one = candidate(problem, found.sequence)
            if fits(problem, one.peak) and (best is None or one.price < best.price):
                best = one
            best = best or first_fitting(problem, [(one.price, found.sequence)])
        if best is None:
            if found.complete and found.sequence is None:
                raise Infeasible(f"No plan of {problem.graph.name or 'this graph'} fits {limit:,} bytes: all were looked at.", "Give more bytes.")
            raise refusal(problem)
        claimed = min(best.price, (found.bound + views) * (1 - 1e-12))
        done = best.price <= max(claimed, problem.bound() or 0.0) * (1 + 1e-9)
        return SolverAnswer(best.answer, claimed, note="Optimum." if done else f"{budget.spent:,} states; not settled.")
