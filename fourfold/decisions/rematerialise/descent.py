"""Best of all techniques, the limit lowered step by step from what the graph's own order takes, each plan started from the one before.

The limits of the steps are fixed shares of what the graph needs unplanned, and what checkpointing takes: the same for any limit asked for, and a step
is skipped where the plan before fits already. So the plan for a lower limit is one further down the same way: its arena is never larger, which no
planner that starts anew for each limit can say. At each step the candidates are the plan before, annealed; tensor eviction (Kirisame et al. 2021)
from two orders; checkpointing of any number of segments (Chen et al. 2016); the order of least peak. Holds for budgets of evaluations; a clock may
cut a step short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._evict import evictions
from fourfold.decisions.rematerialise._lives import measure, own_order
from fourfold.decisions.rematerialise._order import lowest_order
from fourfold.decisions.rematerialise._plans import PricedPlan, candidate, refusal
from fourfold.decisions.rematerialise._search import PRICE, improve
from fourfold.decisions.rematerialise._segments import blocks, has_backward, segmented
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.problem import Budget, Solver, SolverAnswer

STEPS = 96                                                              # limits from what is needed unplanned down to nothing
_ORDER, _POLISH = 0.1, 0.5                                              # shares of the budget: order of least peak, the last plan
_ATTEMPTS, _PACKED = 4, 2
_HEATS = (2e-3, 4e-4)

Priced = tuple[float, NDArray[np.int32]]


class _Way:
    """What all steps of one problem share."""

    def __init__(self, problem: Rematerialise, budget: Budget, seed: int) -> None:
        self.problem, self.budget, self.seed, core = problem, budget, seed, problem.core
        most = min(int(budget.evaluations * _ORDER), 40_000_000 // max(100, len(core.node)))
        order = Budget(budget.left * _ORDER, most)
        self.orders = [own_order(core), lowest_order(core, seed, most, order)]
        budget.spend(order.spent)
        self.fixed = [candidate(problem, sequence) for sequence in (*self.orders, *self._checkpoints())]     # plans that know no limit
        self.tries = max(1, int((budget.evaluations * (1 - _POLISH) - budget.spent) / (STEPS * len(_HEATS) * 1.5)))
        self.seconds = budget.left * (1 - _POLISH) / (STEPS * len(_HEATS) * 1.5)

    def _checkpoints(self) -> Iterator[NDArray[np.int32]]:
        if has_backward(self.problem):
            _, count = blocks(self.problem)
            for segments in sorted({*range(2, min(count, 16) + 1), *(count // k for k in (1, 2, 3, 4) if count // k > 1)}):
                yield segmented(self.problem, segments)

    def limits(self, top: int) -> list[int]:
        """The limits of all steps, falling: even shares of `top`, and what the plans take that know no limit."""
        even = {top * (STEPS - number) // STEPS for number in range(1, STEPS)}
        return sorted({*even, *(one.peak for one in self.fixed if one.peak < top)}, reverse=True)

    def step(self, number: int, limit: int, before: PricedPlan) -> PricedPlan | None:
        """The plan of one step: at most `limit` bytes, from the plan of the step before."""
        best = min((one for one in self.fixed if one.peak <= limit), key=lambda one: one.price, default=None)
        most = limit
        for _ in range(_ATTEMPTS):                                     # offsets may take more than what is alive: then it aims lower by as much
            ready = self._search(number, most, before.sequence)
            tried = [candidate(self.problem, sequence) for _, sequence in ready[:_PACKED]]
            for one in tried:
                if one.peak <= limit and (best is None or one.price < best.price):
                    best = one
            if not tried or tried[0].peak <= limit:
                break
            most = min(most - most // 200, int(most * limit / tried[0].peak))
        return best

    def _search(self, number: int, most: int, before: NDArray[np.int32]) -> list[Priced]:
        """Sequences of at most `most` bytes alive, cheapest first."""
        core = self.problem.linked
        ready: list[Priced] = [(measure(core, one.sequence)[1], one.sequence) for one in self.fixed if one.peak <= most]
        ready += list(evictions(core, most, self.orders, Budget(60.0, 10)))
        for start in ([min(ready, key=lambda one: one[0])[1]] if ready else []) + [before]:
            for turn, heat in enumerate(_HEATS):
                short = Budget(self.seconds, self.tries)
                start, _ = improve(core, start, PRICE, most, short, self.seed * 8191 + number * 31 + turn, tries=self.tries, heat=heat)
                self.budget.spend(short.spent)
            peak, price, kept, _ = measure(core, start)
            if peak <= most:
                ready.append((price, kept))
        return sorted(ready, key=lambda one: one[0])


class Stage(NamedTuple):
    """A plan on the way down: it serves every limit from what it takes up to the stage before; stages behind it take at most `following` bytes."""

    plan: PricedPlan
    following: int


def descend(problem: Rematerialise, budget: Budget, seed: int, goal: int | None = None) -> Iterator[Stage]:
    """The stages, from what the graph's own order takes downwards, until a step finds nothing. Each has a smaller arena than the one before.

    Where the clock runs short, limits above `goal` are passed over.
    """
    now = candidate(problem, own_order(problem.core))
    top = now.peak
    way = _Way(problem, budget, seed)
    limits = [top, *way.limits(top)]

    def stage(plan: PricedPlan) -> Stage:
        return Stage(plan, max((limit for limit in limits if limit < plan.peak), default=0))

    yield stage(now)
    for number, limit in enumerate(limits):
        hurried = goal is not None and limit > goal and budget.left < _POLISH * budget.seconds
        if now.peak > limit and not hurried:
            found = way.step(number, limit, now) if limit >= problem.least_peak() else None
            if found is None:
                return
            now = found
            yield stage(now)


def polish(problem: Rematerialise, stage: Stage, budget: Budget, seed: int) -> PricedPlan:
    """A plan at most as dear as the stage's, which takes no more, and no less than the stages behind may: so no plan of a lower limit takes more."""
    best, following = stage
    most = limit = best.peak
    for turn in range(2):
        tries = max(1, (budget.evaluations - budget.spent) // (2 - turn) // len(_HEATS))
        sequence = best.sequence
        for k, heat in enumerate(_HEATS):
            sequence, _ = improve(problem.linked, sequence, PRICE, most, budget, seed * 131 + turn * 7 + k, tries=tries, heat=heat)
        found = candidate(problem, sequence)
        if following <= found.peak <= limit and found.price < best.price:
            best = found
        most = min(most - most // 200, int(most * limit / max(1, found.peak))) if found.peak > limit else most
        if budget.exhausted:
            break
    return best


class Descent(Solver):
    """The default: the lower the limit, the smaller the arena."""

    title: ClassVar[str] = "Best of all, along one descent of the limit"
    default: ClassVar[bool] = True
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("kirisame2021", "chen2016", "kirkpatrick1983")
    counts: ClassVar[str] = "sequences priced"

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        own = candidate(problem, own_order(problem.core))
        if problem.limit is None or own.peak <= problem.limit:
            return SolverAnswer(own.answer, note="The graph's own order fits.")
        least: int | None = None
        for stage in descend(problem, budget, seed, problem.limit):
            least = stage.plan.peak
            if least <= problem.limit:
                best = polish(problem, stage, budget, seed)
                return SolverAnswer(best.answer, note=f"{problem.repeated(best.answer)} steps computed again.")
        raise refusal(problem, least)
