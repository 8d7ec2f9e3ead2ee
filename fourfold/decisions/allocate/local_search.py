"""Large neighbourhood search (Shaw 1998) over packings of any size: what reaches highest is taken out with some of what lives beside it.

They are put back one after another at the lowest free offset, large ones first with some chance; the change is kept unless it reaches higher. No list
of neighbours is kept, so that tens of thousands of buffers need little memory.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numba import njit

from fourfold.decisions.allocate import _starts as starts
from fourfold.decisions.allocate._restarts import StopFlag
from fourfold.decisions.allocate.instance import I64
from fourfold.decisions.allocate.problem import Allocate
from fourfold.problem import Budget, Solver, SolverAnswer

_PIECE, _MOST = 8, 24                                                   # moves between two looks at the clock; buffers taken out at most


class PackingNeighbourhoods(Solver):
    title: ClassVar[str] = "Large neighbourhood search: the highest buffers and their neighbours placed again"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "allocate"
    cites: ClassVar[tuple[str, ...]] = ("shaw1998",)
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    counts: ClassVar[str] = "moves"

    def declines(self, problem: Allocate) -> str | None:
        if problem.buffers.parts().plain:
            return None
        return "it knows neither banks, alignments, fixed offsets, gaps nor aliases"

    def solve(self, problem: Allocate, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that there is no packing, or where none within the capacity was found (the message says which)."""
        begin = starts.begin(problem, budget)
        if begin.done:
            return starts.answer(problem, begin.found)
        with StopFlag(budget) as stop:
            found = improve(problem, begin.found, budget, stop, seed)
        return starts.answer(problem, found)


def improve(problem: Allocate, found: I64, budget: Budget, stop: np.ndarray, seed: int) -> I64:
    """A packing (units) no higher than `found`."""
    p = problem.buffers.parts()
    goal = problem.target // p.unit
    own = p.owner.astype(np.int64)                                      # plain: one rectangle an offset; those without any are nowhere
    low, high, size, offset = p.lower.astype(np.int64), p.upper.astype(np.int64), p.size, found[own].copy()
    rounds = 0
    while len(size) and not budget.exhausted and not stop[0] and int((offset + size).max()) > goal:
        piece = min(_PIECE, max(1, budget.evaluations - budget.spent))
        _moves(low, high, size, offset, piece, goal, stop, (seed * 1_000_003 + rounds * 7919) % 4294967291)
        rounds += 1
        budget.spend(piece)
    better = found.copy()
    better[own] = offset
    return better


@njit(cache=True, nogil=True)
def _lowest(low, high, size, offset, out, b, near):  # type: ignore[no-untyped-def]
    """The lowest free offset of `b` among all that are not `out`."""
    count = 0
    for i in range(len(low)):
        if low[i] < high[b] and low[b] < high[i] and not out[i]:
            near[count] = i
            count += 1
    at = np.int64(0)
    for j in np.argsort(offset[near[:count]]):
        i = near[j]
        if offset[i] - at >= size[b]:
            break
        at = max(at, offset[i] + size[i])
    return at


@njit(cache=True, nogil=True)
def _moves(low, high, size, offset, count, goal, stop, seed):  # type: ignore[no-untyped-def]
    """`count` moves on `offset`, in place; ends early at `goal`."""
    np.random.seed(seed)
    n = len(low)
    out, near = np.zeros(n, np.bool_), np.empty(n, np.int64)
    taken, before, key = np.empty(_MOST + 1, np.int64), np.empty(_MOST + 1, np.int64), np.empty(_MOST + 1)
    for _ in range(count):
        v, top, same = 0, np.int64(-1), 0
        for i in range(n):
            here = offset[i] + size[i]
            if here > top:
                v, top, same = i, here, 1
            elif here == top:
                same += 1
                if np.random.randint(same) == 0:
                    v = i
        if top <= goal or stop[0]:
            return
        beside = 0
        for i in range(n):
            if i != v and low[i] < high[v] and low[v] < high[i]:
                near[beside] = i
                beside += 1
        taken[0] = v
        several = 1 + min(beside, 1 + np.random.randint(_MOST))
        for j in range(1, several):
            k = j - 1 + np.random.randint(beside - j + 1)
            near[j - 1], near[k] = near[k], near[j - 1]
            taken[j] = near[j - 1]
        spread = 2.0 * np.random.random()
        for j in range(several):
            b = taken[j]
            before[j], out[b] = offset[b], True
            key[j] = -np.log(max(1, size[b])) + spread * np.random.normal()
        reached = np.int64(0)
        for j in np.argsort(key[:several]):
            b = taken[j]
            offset[b] = _lowest(low, high, size, offset, out, b, near)
            out[b] = False
            reached = max(reached, offset[b] + size[b])
            if reached > top:
                break
        if reached > top:
            for j in range(several):
                offset[taken[j]] = before[j]
        for j in range(several):
            out[taken[j]] = False
