"""Greedy: fewest bytes first, then each node in turn its cheapest strategy beside the others' that keeps the limit (iterated conditional modes).

Iterated conditional modes is Besag's (1986). It begins from two choices, the fewest bytes and the cheapest repaired, and keeps the cheaper end; from
there shuffled orders begin again while the budget lasts.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.shard import _memory as memory
from fourfold.decisions.shard._descend import cost, descend, repair
from fourfold.decisions.shard._model import BIG, PairwiseModel, model
from fourfold.decisions.shard.instance import I64
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


class GreedyDescent(Solver):
    """Two starts, one node at a time."""

    title: ClassVar[str] = "Greedy: fewest bytes, then the cheapest strategy of each node in turn (ICM)"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "shard"
    cites: ClassVar[tuple[str, ...]] = ("besag1986", "zheng2022alpa")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    counts: ClassVar[str] = "starts"

    def solve(self, problem: ShardProblem, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that no choice keeps the rules, or where none was found (the message says which)."""
        if why := problem.impossible():
            raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or strategies that take fewer bytes.")
        m = model(problem.graph)
        rng = np.random.default_rng(seed)
        best, least, stale = None, np.inf, 0
        while best is None or not (budget.exhausted or stale > 20):
            order = np.arange(len(m)) if budget.spent < 2 else rng.permutation(len(m))
            found = start(m, budget.spent % 2 == 0, order)
            stale += 1
            if found is not None and (value := cost(m, found)) < min(least, BIG):
                best, least, stale = found, value, 0
                budget.improve(value)
            if not budget.spend() or (best is None and stale > 20):
                break
        if best is None:
            raise Infeasible("No choice was found that keeps the limit and the forbidden pairs.",
                             "Whether there is one is unknown: allow more time, another solver, or more memory.")
        return SolverAnswer(m.answer(best))


def start(m: PairwiseModel, fewest: bool, order: I64) -> I64 | None:
    """A choice of the fewest bytes, or of the least cost and repaired, then improved node by node. None where the limit could not be kept."""
    node = np.repeat(np.arange(len(m)), np.diff(m.ptr))
    keys = (m.unary, m.usage, node) if fewest else (m.usage, m.unary, node)
    chosen = np.lexsort(keys)[m.ptr[:-1]] - m.ptr[:-1]
    held = memory.tree(m, chosen)
    if not fewest:
        descend(m, chosen, order, held, rounds=3)
    if held[0, 1] > m.limit and not repair(m, chosen, held, np.zeros(len(m.unary))):
        return None
    descend(m, chosen, order, held)
    return chosen
