"""Portfolio (Rice 1976): what `--solver auto` asks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.shard.greedy import GreedyDescent
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.problem import Budget, Solver, SolverAnswer


class ShardPortfolio(Solver):
    """The techniques of the folder, one after another."""

    default = True
    title: ClassVar[str] = "Portfolio: what suits the size, with the bound of the best certificate"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "shard"
    cites: ClassVar[tuple[str, ...]] = ("rice1976", "huberman1997")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "starts"

    def solve(self, problem: ShardProblem, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that no choice keeps the rules, or where none was found."""
        return GreedyDescent().solve(problem, budget, seed)
