"""What every packer begins and ends with: greedy packings, limits, and the answer or the sentence that there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fourfold.decisions.allocate._place import born, place
from fourfold.decisions.allocate.greedy import orders
from fourfold.decisions.allocate.instance import FREE, I64, Rectangles
from fourfold.decisions.allocate.problem import Allocate
from fourfold.errors import Infeasible
from fourfold.problem import Budget, SolverAnswer

_LARGE = 20_000                                                         # offsets: above, only two orders are asked


@dataclass
class Start:
    """`found` i8[m] units, the best greedy packing (it may pass the capacity); `done`: nothing better is asked for."""

    found: I64
    done: bool


def begin(problem: Allocate, budget: Budget) -> Start:
    """The lowest of the greedy packings. Raises Infeasible where it is proven that no packing exists."""
    if why := problem.impossible():
        raise Infeasible(f"No packing exists: {why}.", "Give more memory, or fewer bytes at that time.")
    p = problem.buffers.parts()
    goal = problem.target // p.unit
    named = orders(p)
    turns = [(named["contention"], True), (named["size"], False)] if len(p.extent) > _LARGE else [
        (born(p), True), *((order, fit) for order in named.values() for fit in (False, True))]
    if (p.hint != FREE).any():
        turns.insert(0, (np.lexsort((p.hint, p.hint == FREE)).astype(np.int64), False))
    best, key = None, (True, 0)
    for order, fit in turns:
        found = place(p, order, best=fit, hints=bool((p.hint != FREE).any()) and order is turns[0][0])
        value = (not within(p, found), p.height(found))
        if best is None or value < key:
            best, key = found, value
            budget.improve(p.height(found) * p.unit)
        if key <= (False, goal) or budget.exhausted:
            break
    assert best is not None
    return Start(best, key <= (False, goal))


def within(p: Rectangles, found: I64) -> bool:
    """Whether every offset lies within a bank that it may be in."""
    which = np.searchsorted(p.base, found, "right") - 1
    return bool(((found >= 0) & (found + p.extent <= p.base[which] + p.room[which]) & ((p.bank == FREE) | (p.bank == which))).all())


def bank_limits(problem: Allocate, found: I64, base: int, some: I64) -> tuple[int, int]:
    """(height of a bank's buffers as `found` has them, what they need at least), in units."""
    p = problem.buffers.parts()
    top = int((found[some] + p.extent[some]).max(initial=base)) - base
    if len(p.base) == 1:
        return top, -(-problem.bound() // p.unit)
    inside = np.isin(p.owner, some)
    change = np.zeros(p.sections + 1, np.int64)
    np.add.at(change, p.lower[inside], p.size[inside])
    np.subtract.at(change, p.upper[inside], p.size[inside])
    return top, int(np.cumsum(change).max(initial=0))


def too_many(pairs: float, most: int) -> str | None:
    return f"{pairs:.3g} pairs of buffers live at one time, and its list of neighbours holds {most:.3g}" if pairs > most else None


def answer(problem: Allocate, found: I64, bound: int | None = None, note: str = "") -> SolverAnswer[np.ndarray]:
    """`found` as an answer, with a height in units that is proven. Raises Infeasible where it passes the capacity: whether that is proven is said."""
    p = problem.buffers.parts()
    capacity, height = problem.capacity, p.height(found) * p.unit
    if bound is not None and capacity is not None and bound * p.unit > capacity:
        raise Infeasible(f"No packing exists within {capacity:,} bytes: the search went through all of them.",
                         f"Give at least {bound * p.unit:,} bytes.", front=p.offsets(found))
    if not within(p, found):
        over = height - (capacity or 0)
        raise Infeasible(f"No packing was found; the best needs {height:,} bytes"
                         + (f", {over:,} more than the capacity of {capacity:,}." if over > 0 else ", and fits no set of banks."),
                         "Whether there is one is unknown: allow more time, another solver, or more memory.", front=p.offsets(found))
    return SolverAnswer(p.offsets(found), None if bound is None else float(min(bound * p.unit, height)), note=note)
