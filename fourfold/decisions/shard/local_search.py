"""Local search: forests of nodes solved exactly under prices on bytes that rise where the limit is passed, greedy repair, small forests within it.

Tree blocks are Hamze and de Freitas's (2004), neighbourhoods that are solved again Shaw's (1998). No bound: prices are weights of a penalty here.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.shard._messages import sweep_of
from fourfold.decisions.shard._model import model
from fourfold.decisions.shard._search import Incumbent, Oscillation
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_TRIES = 60                                                             # rounds that a search without any answer goes on for


class ForestSearch(Solver):
    """Strategic oscillation about the limit with moves of whole forests."""

    title: ClassVar[str] = "Local search: forests solved exactly, prices on bytes, repair"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "shard"
    cites: ClassVar[tuple[str, ...]] = ("hamze2004", "shaw1998")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    counts: ClassVar[str] = "rounds"

    def solve(self, problem: ShardProblem, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that no choice keeps the rules, or where none was found (the message says which)."""
        if why := problem.impossible():
            raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or strategies that take fewer bytes.")
        m = model(problem.graph)
        best = Incumbent(m, budget)
        search = Oscillation(m, sweep_of(m), best, seed)
        node = np.repeat(np.arange(len(m)), np.diff(m.ptr))
        search.begin(np.lexsort((m.unary, m.usage, node))[m.ptr[:-1]] - m.ptr[:-1], np.zeros(m.sections))
        rounds = 0
        while (budget.spend() and not budget.exhausted) or (best.chosen is None and rounds < _TRIES):
            search.round()
            search.near(50)
            rounds += 1
        if best.chosen is None:
            raise Infeasible("No choice was found that keeps the limit and the forbidden pairs.",
                             "Whether there is one is unknown: allow more time, another solver, or more memory.")
        return SolverAnswer(m.answer(best.chosen))
