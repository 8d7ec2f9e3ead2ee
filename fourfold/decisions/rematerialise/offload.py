"""Offloading alone: what does not fit is copied to the second memory and fetched before its next reader; nothing is computed twice (Rhu et al. 2016).

Which value goes is decided by its copy's price per byte and step until its next use, as in eviction; annealing then moves the fetches. Techniques
that compute again (`eviction`, `sequence_annealing`, `descent`) use the second memory too where that is cheaper, value by value (Beaumont et al.
2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._evict import evictions
from fourfold.decisions.rematerialise._lives import measure, own_order
from fourfold.decisions.rematerialise._order import greedy_orders
from fourfold.decisions.rematerialise._plans import refusal, shrinking, target
from fourfold.decisions.rematerialise._search import PRICE, improve
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.problem import Budget, Solver, SolverAnswer

_HEAT = 1e-3                                                            # temperature, in shares of the price of running everything once


class Offload(Solver):
    """Every value is kept or carried; the price is that of the link."""

    title: ClassVar[str] = "Offloading to the second memory, nothing recomputed"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("rhu2016", "belady1966", "kirkpatrick1983")
    counts: ClassVar[str] = "sequences priced"

    def declines(self, problem: Rematerialise) -> str | None:
        return "there is no second memory to copy values to." if problem.far is None else None

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        core = problem.linked
        core = core._replace(once=core.once | (np.arange(len(core.once)) < core.computing))
        orders = [own_order(core), greedy_orders(core)[0]]

        def carried(limit: int) -> Iterator[tuple[float, NDArray[np.int32]]]:
            for price, sequence in evictions(core, limit, orders, budget):
                yield price, sequence
                short = Budget(budget.left / 4, max(1, (budget.evaluations - budget.spent) // 8))
                better, _ = improve(core, sequence, PRICE, limit, short, seed, tries=short.evaluations, heat=_HEAT)
                budget.spend(short.spent)
                peak, price, kept, _ = measure(core, better)
                if peak <= limit:
                    yield price, kept

        found = shrinking(problem, target(problem), carried)
        if found is None:
            raise refusal(problem)
        return SolverAnswer(found.answer, note=f"{problem.carried(found.answer)} fetches, {problem.far_peak(found.answer):,} bytes of the second "
                                               f"memory.")
