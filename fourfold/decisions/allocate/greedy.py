"""The greedy family: buffers in several orders, each at the lowest free offset or in the smallest hole; then the order is mended.

The order by size is that of Pisarchyk and Lee (2020); the repair of the order is squeaky wheel optimisation (Joslin
and Clements 1999): what made trouble is placed earlier the next time.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.allocate._place import born, place, spans, within
from fourfold.decisions.allocate.instance import FREE, I64, Rectangles
from fourfold.decisions.allocate.problem import Allocate
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


def orders(p: Rectangles) -> dict[str, I64]:
    """Name → order of the offsets, the most promising first."""
    first, last = spans(p)
    width, size = last - first, p.extent
    area = np.zeros(len(size), np.int64)
    np.add.at(area, p.owner, p.size * (p.upper - p.lower))
    contention = np.zeros(len(size), np.int64)                          # the fullest section that an offset lives in
    np.maximum.at(contention, p.owner, _peaks(p))
    keys = {"contention and life": (-size, -width, -contention), "size": (-width, -size), "contention": (-size, -contention),
            "area": (-size, -area), "life": (-size, -width)}
    return {name: np.lexsort(key).astype(np.int64) for name, key in keys.items()} | {"birth": born(p)}


def _peaks(p: Rectangles) -> I64:
    """i8[k] the largest load of the sections that each rectangle lives in (a sparse table of maxima)."""
    if not len(p.owner):
        return np.zeros(0, np.int64)
    table, width = [p.load], 1
    while 2 * width <= p.sections:
        table.append(np.maximum(table[-1][:-width], table[-1][width:]))
        width *= 2
    level = np.log2(np.maximum(1, p.upper - p.lower)).astype(np.int64)
    level -= (1 << level) > (p.upper - p.lower)
    out = np.empty(len(p.owner), np.int64)
    for one in np.unique(level).tolist():
        some = np.flatnonzero(level == one)
        out[some] = np.maximum(table[one][p.lower[some]], table[one][p.upper[some] - (1 << one)])
    return out


_PATIENCE = 5000                                                        # packings without a gain, of few buffers fewer


class Greedy(Solver):
    """Best of several orders and of first and best fit, the order mended by local search while the budget lasts."""

    title: ClassVar[str] = "Greedy family: several orders, first and best fit, order repaired"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "allocate"
    cites: ClassVar[tuple[str, ...]] = ("pisarchyk2020", "joslin1999")
    counts: ClassVar[str] = "packings"

    def solve(self, problem: Allocate, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that there is no packing, or where none within the capacity was found (the message says which)."""
        if why := problem.impossible():
            raise Infeasible(f"No packing exists: {why}.", "Give more memory, or fewer bytes at that time.")
        p = problem.buffers.parts()
        goal = problem.target // p.unit
        tried = dict(orders(p))
        if (p.hint != FREE).any():
            tried = {"hint": np.lexsort((p.hint, p.hint == FREE)).astype(np.int64), **tried}
        best, kept = p.units(problem.baseline()), tried["birth"]        # never worse than it
        least = p.height(best)
        budget.improve(least * p.unit)
        budget.spend()
        for name, order, fit in [(name, order, fit) for name, order in tried.items() for fit in (False, True)][:-1]:
            if (least <= goal and within(p, best)) or budget.exhausted:
                break
            found = place(p, order, best=fit, hints=name == "hint")
            height = p.height(found)
            if (not within(p, found), height) < (not within(p, best), least):
                best, least, kept = found, height, order
                budget.improve(least * p.unit)
            budget.spend()
        best, least = self._mend(p, best, kept, goal, budget, seed)
        if not within(p, best):
            over = least * p.unit - (problem.capacity or 0)
            raise Infeasible(f"No packing was found; the best needs {least * p.unit:,} bytes"
                             + (f", {over:,} more than the capacity of {problem.capacity:,}." if over > 0 else ", and fits no set of banks."),
                             "Whether there is one is unknown: allow more time, another solver, or more memory.", front=p.offsets(best))
        return SolverAnswer(p.offsets(best))

    def _mend(self, p: Rectangles, best: I64, order: I64, goal: int, budget: Budget, seed: int) -> tuple[I64, int]:
        """Place what stands above the goal before something that lives beside it, and all again; keep what is no worse. Ends at the goal, with the
        budget, or after `_PATIENCE` rounds without a gain."""
        rng = np.random.default_rng(seed)
        first, last = spans(p)
        score = kept = _score(p, best, goal)
        order = start = np.array(order, np.int64)
        found, stale, patience = best, 0, min(_PATIENCE, 200 + 50 * len(order))
        while (kept[0] or p.height(best) > goal) and stale < patience and not budget.exhausted:
            tried = order.copy()
            position = np.empty(len(order), np.int64)
            position[order] = np.arange(len(order))
            top = found + p.extent
            high = np.flatnonzero(top > goal) if len(p.base) == 1 else np.arange(len(order))
            if not len(high):
                high = np.flatnonzero(top == top.max())
            for v in rng.choice(high, min(len(high), 1 + int(rng.geometric(0.6)))).tolist():
                beside = np.flatnonzero((first < last[v]) & (last > first[v]) & (position < position[v]))
                if len(beside):
                    tried = tried[tried != v]
                    tried = np.insert(tried, int(np.flatnonzero(tried == rng.choice(beside))[0]), v)
            now = place(p, tried)
            budget.spend()
            value, stale = _score(p, now, goal), stale + 1
            if value <= score or rng.random() < 0.01:
                order, found, score = tried, now, value
            if value < kept:
                best, kept, start, stale = now, value, tried, 0
                budget.improve(p.height(best) * p.unit)
            elif stale % 500 == 0:
                order, found, score = start, best, kept
        return best, p.height(best)


def _score(p: Rectangles, found: I64, goal: int) -> tuple[bool, int, float]:
    """What is better is smaller: within the banks, then the height (no better below the goal), then units above the goal, summed over offsets."""
    return not within(p, found), max(goal, p.height(found)), float(np.maximum(0, found + p.extent - goal).sum())
