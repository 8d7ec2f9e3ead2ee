"""TRW-S with Lagrangean prices on memory: a dual bound with its certificate, and the choices met on the way, repaired.

Sequential tree-reweighted message passing is Kolmogorov's (2006); the limit of bytes is relaxed as Geoffrion (1974) does, and prices move by
subgradients.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.shard._portfolio import Pair, Shares
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


class TreeReweightedPassing(Solver):
    """The dual, and forests from its choices alone."""

    title: ClassVar[str] = "TRW-S: messages and prices on bytes give a bound; its choices are repaired"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "shard"
    cites: ClassVar[tuple[str, ...]] = ("kolmogorov2006", "geoffrion1974", "hamze2004")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "passes of messages"

    def solve(self, problem: ShardProblem, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that no choice keeps the rules, or where none was found (the message says which)."""
        if why := problem.impossible():
            raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or strategies that take fewer bytes.")
        pair = Pair(problem, budget, seed, Shares(1.0, 1e-9, 1e-9))
        pair.run()
        floor, proof = pair.proof()
        return SolverAnswer(pair.answer(), floor, {"certificate": proof})
