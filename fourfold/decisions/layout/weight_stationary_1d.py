"""1-D weight-stationary (Pope et al. 2022, section 3.2.1): the feed-forward dimension is split over all chips.

Inputs are all-gathered and outputs reduce-scattered over all chips: 2·BL·E elements a layer, whatever their number.
"""

from __future__ import annotations

from fourfold.decisions.layout._candidates import best, called, declined
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem
from fourfold.problem import Budget, Solver, SolverAnswer


class WeightStationary1D(Solver):
    title = "1-D weight-stationary layout"
    lever = "machine"
    answers = "layout"
    cites = ("pope2022",)
    counts = "layouts priced"

    def declines(self, problem: ServingLayoutProblem) -> str | None:
        return declined(problem, "WS-1D")

    def solve(self, problem: ServingLayoutProblem, budget: Budget, seed: int = 0) -> SolverAnswer[Layouts]:
        layouts = called(problem.chips, "WS-1D")
        budget.spend(len(layouts) * len(problem.phases))
        return SolverAnswer(best(problem, layouts))
