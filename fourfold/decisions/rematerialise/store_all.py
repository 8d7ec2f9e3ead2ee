"""Store all: the graph's own order, every value kept until its last reader, as reverse-mode differentiation does unasked (Griewank and Walther
2008)."""

from __future__ import annotations

from typing import ClassVar

from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.problem import Budget, Solver, SolverAnswer


class StoreAll(Solver):
    """Nothing runs twice and nothing moves; only offsets are chosen."""

    title: ClassVar[str] = "Store all values; offsets alone"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("griewank2008",)
    ignores: ClassVar[tuple[str, ...]] = ("memory",)
    counts: ClassVar[str] = "plans"

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        budget.spend()
        return SolverAnswer(problem.baseline())
