"""Annealing of the whole sequence (Kirkpatrick et al. 1983): which values are made again, where, and in what order the steps run.

It starts from the cheapest plan of tensor eviction (or of checkpointing) that fits, and ends with offsets; where those need more than what is alive,
it aims a little lower.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._evict import evicted
from fourfold.decisions.rematerialise._lives import measure, own_order
from fourfold.decisions.rematerialise._order import greedy_orders
from fourfold.decisions.rematerialise._plans import refusal, shrinking, target
from fourfold.decisions.rematerialise._search import PRICE, improve
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.problem import Budget, Solver, SolverAnswer

_ROUNDS = (3e-3, 1e-3, 3e-4)                                            # temperatures, in shares of the price of running everything once


def annealed(problem: Rematerialise, limit: int, budget: Budget, seed: int) -> Iterator[tuple[float, NDArray[np.int32]]]:
    """(price, sequence) that keeps `limit` bytes alive at most."""
    core = problem.linked
    starts = [own_order(core), greedy_orders(core)[0]]
    starts += [found for order in starts for by in ((1.0, 1.0), (0.5, 0.5)) if (found := evicted(core, order, limit, *by)) is not None]
    start = min(starts, key=lambda one: (max(limit, measure(core, one)[0]), measure(core, one)[1]))
    tries = max(1, (budget.evaluations - budget.spent) // (2 * len(_ROUNDS)))
    for turn, heat in enumerate(_ROUNDS):
        short = Budget(budget.left / (2 + len(_ROUNDS) - turn), tries)
        start, _ = improve(core, start, PRICE, limit, short, seed * 31 + turn, tries=tries, heat=heat)
        budget.spend(short.spent)
    peak, price, kept, _ = measure(core, start)
    if peak <= limit:
        yield price, kept


class SequenceAnnealing(Solver):
    """Thousands of nodes, every sequence priced in full."""

    title: ClassVar[str] = "Annealing of order and recomputation together"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("kirkpatrick1983",)
    counts: ClassVar[str] = "sequences priced"

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        found = shrinking(problem, target(problem), lambda limit: annealed(problem, limit, budget, seed))
        if found is None:
            raise refusal(problem)
        return SolverAnswer(found.answer)
