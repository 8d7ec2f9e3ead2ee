"""The greedy family: buffers in several orders, each at the lowest free offset or in the smallest hole; then the order is mended.

The order by size is that of Pisarchyk and Lee (2020); the repair of the order is squeaky wheel optimisation (Joslin
and Clements 1999): what made trouble is placed earlier the next time.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.allocate._place import born, place, spans
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
    keys = {"size": (-width, -size), "contention": (-size, -contention), "area": (-size, -area), "life": (-size, -width),
            "contention and life": (-size, -width, -contention)}
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


class Greedy(Solver):
    """Best of several orders and of first and best fit, the order mended while the budget lasts."""

    default = True
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
        best, least, tried = None, 0, dict(orders(p))
        if (p.hint != FREE).any():
            tried = {"hint": np.lexsort((p.hint, p.hint == FREE)).astype(np.int64), **tried}
        turns = [(name, order, fit) for name, order in tried.items() for fit in (False, True)]
        for name, order, fit in [*turns[-1:], *turns[:-1]]:             # the baseline first: never worse than it
            found = place(p, order, best=fit, hints=name == "hint")
            height = p.height(found)
            if best is None or (not _within(p, found), height) < (not _within(p, best), least):
                best, least, kept = found, height, order
                budget.improve(least * p.unit)
            if (least <= goal and _within(p, best)) or not budget.spend():
                break
        assert best is not None
        best, least = self._mend(p, best, kept, goal, budget, seed)
        if not _within(p, best):
            over = least * p.unit - (problem.capacity or 0)
            raise Infeasible(f"No packing was found; the best needs {least * p.unit:,} bytes"
                             + (f", {over:,} more than the capacity of {problem.capacity:,}." if over > 0 else ", and fits no set of banks."),
                             "Whether there is one is unknown: allow more time, another solver, or more memory.", front=p.offsets(best))
        return SolverAnswer(p.offsets(best))

    def _mend(self, p: Rectangles, best: I64, order: I64, goal: int, budget: Budget, seed: int) -> tuple[I64, int]:
        """Move forward what reaches the top, a little at random, and place again, until the goal, the budget or 200 rounds without a gain."""
        rng = np.random.default_rng(seed)
        least, rank, stale = p.height(best), np.empty(len(order)), 0
        rank[order] = np.arange(len(order))
        now, found = rank.copy(), best
        while (least > goal or not _within(p, best)) and stale < 200 and not budget.exhausted:
            top = found + p.extent
            blame = top > max(goal, 1) if (top > goal).any() else top == top.max()
            now = np.where(blame, now * rng.uniform(0.0, 0.9, len(now)), now + rng.normal(0.0, 0.02 * len(now) * (stale > 20), len(now)))
            now = np.argsort(np.argsort(now, kind="stable"), kind="stable").astype(float)
            found = place(p, np.argsort(now, kind="stable"))
            height = p.height(found)
            stale += 1
            if (not _within(p, found), height) < (not _within(p, best), least):
                best, least, rank, stale = found, height, now.copy(), 0
                budget.improve(least * p.unit)
            elif stale % 25 == 0:
                now, found = rank.copy(), best
            budget.spend()
        return best, least


def _within(p: Rectangles, found: I64) -> bool:
    """Whether every offset lies within a bank that it may be in."""
    which = np.searchsorted(p.base, found, "right") - 1
    return bool(((found + p.extent <= p.base[which] + p.room[which]) & ((p.bank == FREE) | (p.bank == which))).all())
