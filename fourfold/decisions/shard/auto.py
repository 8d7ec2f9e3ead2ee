"""Portfolio (Rice 1976): the dual ascent on one core, the primal search on the other, exact search where the instance is small."""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import numpy as np

from fourfold.decisions.shard._integer import search, small
from fourfold.decisions.shard._portfolio import Pair
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_WORK = 0.05                                                            # units of CP-SAT's deterministic clock an evaluation


class ShardPortfolio(Solver):
    """TRW-S with prices and forest search side by side; each starts from what the other found."""

    default = True
    title: ClassVar[str] = "Portfolio: TRW-S with prices on bytes beside forest search"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "shard"
    cites: ClassVar[tuple[str, ...]] = ("rice1976", "kolmogorov2006", "hamze2004", "perron2023")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "passes of messages"

    def solve(self, problem: ShardProblem, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that no choice keeps the rules, or where none was found (the message says which)."""
        if why := problem.impossible():
            raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or strategies that take fewer bytes.")
        pair = Pair(problem, budget, seed)
        m = pair.m
        exact = small(m) and importlib.util.find_spec("ortools") is not None
        try:
            pair.run(0.3 if exact else 1.0)
        except Infeasible:
            if not exact:
                raise
        if not exact or pair.closed:
            floor, proof = pair.proof()
            return SolverAnswer(pair.answer(), floor, {"certificate": proof})
        found = search(m, problem.graph.whole, max(0.5, budget.left), _WORK * budget.evaluations, seed, pair.incumbent.chosen)
        if found.impossible:
            raise Infeasible("Proven impossible: no choice keeps the limit and the forbidden pairs together.",
                             "Give more memory, or allow more pairs.")
        if found.chosen is not None:
            pair.incumbent.take(found.chosen)
        if pair.incumbent.chosen is None:
            raise Infeasible("No choice was found that keeps the limit and the forbidden pairs.",
                             "Whether there is one is unknown: allow more time, or more memory.")
        floor, proof = pair.proof()
        if found.floor <= floor:
            return SolverAnswer(pair.answer(), floor, {"certificate": proof})
        return SolverAnswer(pair.answer(), min(found.floor, problem.cost(pair.answer())), {"certificate": proof, "searched": True},
                            "The bound is CP-SAT's; the certificate alone gives " + f"{floor:,.6g}.")
