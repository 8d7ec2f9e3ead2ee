"""Dynamic tensor rematerialisation (Kirisame et al. 2021), planned ahead: the program is run within the limit in thought, what does not fit is
dropped and made again when it is read. As the whole program is known, the time to a value's next use takes the place of the time since its last.

Tried for several exponents of bytes and of time, and for the graph's own order and the list schedule of least peak.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.rematerialise._evict import evictions
from fourfold.decisions.rematerialise._lives import own_order
from fourfold.decisions.rematerialise._order import greedy_orders
from fourfold.decisions.rematerialise._plans import refusal, shrinking, target
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.problem import Budget, Solver, SolverAnswer


class Eviction(Solver):
    """What costs least to make again, per byte and step until its next use, is dropped first."""

    title: ClassVar[str] = "Tensor eviction with the next use known"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("kirisame2021", "belady1966")
    counts: ClassVar[str] = "runs in thought"

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        orders = [own_order(problem.core), greedy_orders(problem.core)[0]]
        if np.array_equal(orders[0], orders[1]):
            orders.pop()
        found = shrinking(problem, target(problem), lambda limit: evictions(problem.linked, limit, orders, budget))
        if found is None:
            raise refusal(problem)
        return SolverAnswer(found.answer)
