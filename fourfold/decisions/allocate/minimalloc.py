"""Canonical depth-first search of the MiniMalloc class (Moffitt 2023): buffers in order of their offsets, sections, dominance, decomposition.

Greedy packings first. Beside the paper's inference: in each section the unplaced buffers end by the capacity as jobs with release dates; failed
states are remembered; a buffer over a whole component goes to its top; and static orders share the nodes with disturbed ones under restarts. A second
search has cheaper nodes (the paper's inference alone) and ranks each component anew; plain packings are asked of both in turn.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.allocate import _starts as starts
from fourfold.decisions.allocate._form import NEIGHBOURS, banked, packing, pairs
from fourfold.decisions.allocate._restarts import Height, Restarts, StopFlag, lower
from fourfold.decisions.allocate.instance import I64
from fourfold.decisions.allocate.problem import Allocate
from fourfold.problem import Budget, Solver, SolverAnswer


class MiniMalloc(Solver):
    title: ClassVar[str] = "Canonical depth-first search with section inference, dominance and restarts"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "allocate"
    cites: ClassVar[tuple[str, ...]] = ("moffitt2023", "luby1993", "gomes2000")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "thousands of nodes"

    def declines(self, problem: Allocate) -> str | None:
        return starts.too_many(pairs(problem.buffers.parts()), NEIGHBOURS)

    def solve(self, problem: Allocate, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that there is no packing, or where none within the capacity was found (the message says which)."""
        begin = starts.begin(problem, budget)
        found, proof = begin.found, None
        if not begin.done:
            with StopFlag(budget) as stop:
                found, proof = search(problem, found, budget, stop, seed)
        return starts.answer(problem, found, proof)


def search(problem: Allocate, found: I64, budget: Budget, stop: np.ndarray, seed: int) -> tuple[I64, int | None]:
    """(the best packing, units; a height that is proven, or None), bank after bank, each with the buffers that `found` puts there."""
    p, proof = problem.buffers.parts(), None
    decide = problem.decide and problem.capacity is not None
    for base, room, some in banked(p, found):
        form, own = packing(p, some, base)
        if (base % form.align).any():                                   # the bank begins between multiples: what was found stands
            continue
        height = Height(None, *starts.bank_limits(problem, found, base, some))
        height = lower(Restarts(form, seed), height, room if decide else height.bound, decide, budget, stop)
        if height.found is not None:
            found = found.copy()
            found[own] = base + height.found
        if len(p.base) == 1 and form.proves:
            proof = height.bound
    return found, proof
