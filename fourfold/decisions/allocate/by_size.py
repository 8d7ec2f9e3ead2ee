"""Greedy by size: the largest buffer first, each at the lowest address that is free for its whole life (Pisarchyk and Lee 2020)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.allocate._place import place, spans, within
from fourfold.decisions.allocate.problem import Allocate
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


class BySize(Solver):
    """One order, one pass: what other techniques are compared with."""

    title: ClassVar[str] = "Greedy by size: the largest first, at the lowest free address"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "allocate"
    cites: ClassVar[tuple[str, ...]] = ("pisarchyk2020",)
    counts: ClassVar[str] = "packings"

    def solve(self, problem: Allocate, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where the packing does not fit; whether another one does is unknown then."""
        p = problem.buffers.parts()
        first, last = spans(p)
        found = place(p, np.lexsort((first - last, -p.extent)).astype(np.int64))
        budget.spend()
        if not within(p, found):
            raise Infeasible(f"Greedy by size needs {p.height(found) * p.unit:,} bytes, which do not fit.",
                             "Whether another packing fits is unknown: ask another solver.", front=p.offsets(found))
        return SolverAnswer(p.offsets(found))
