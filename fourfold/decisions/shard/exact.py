"""Exact search by CP-SAT (Perron et al. 2023) for small instances: Alpa's integer program (Zheng et al. 2022) on what is left of the tables."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.shard._integer import ENTRIES, STRATEGIES, search, small
from fourfold.decisions.shard._model import model
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_WORK = 0.05                                                            # units of CP-SAT's deterministic clock an evaluation


class ShardIntegerProgram(Solver):
    """One variable a strategy, one a pair of strategies that may stand together."""

    title: ClassVar[str] = "Exact: Alpa's integer program by CP-SAT, for small instances"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "shard"
    cites: ClassVar[tuple[str, ...]] = ("zheng2022alpa", "perron2023")
    needs: ClassVar[tuple[str, ...]] = ("numba", "ortools")
    gives: ClassVar[tuple[str, ...]] = ("optimum", "bound")
    counts: ClassVar[str] = "twentieths of a unit of CP-SAT's own clock"

    def declines(self, problem: object) -> str | None:
        if not isinstance(problem, ShardProblem) or (len(problem.graph.cost) <= 4 * STRATEGIES and len(problem.graph.table) <= 4 * ENTRIES):
            return None
        return f"{len(problem.graph.cost):,} strategies and {len(problem.graph.table):,} table entries are too many for an integer program"

    def solve(self, problem: ShardProblem, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that no choice keeps the rules, or where none was found (the message says which)."""
        if why := problem.impossible():
            raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or strategies that take fewer bytes.")
        m = model(problem.graph)
        if not small(m):
            raise Infeasible("After reductions the instance is still too large for an integer program.", "Use --solver auto.")
        found = search(m, problem.graph.whole, budget.left, _WORK * budget.evaluations, seed)
        budget.spend(1)
        if found.impossible:
            raise Infeasible("Proven impossible: no choice keeps the limit and the forbidden pairs together.",
                             "Give more memory, or allow more pairs.")
        if found.chosen is None:
            raise Infeasible("No choice was found in the time.", "Whether there is one is unknown: allow more time, or use --solver auto.")
        return SolverAnswer(m.answer(found.chosen), found.floor, {"searched": True})
