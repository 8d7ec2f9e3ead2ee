"""2-D weight-stationary (Pope et al. 2022, section 3.2.2): the width is split over some axes, the feed-forward dimension over the others.

What is sent falls with √n; which axes split the width is tried for every set of them.
"""

from __future__ import annotations

from fourfold.decisions.layout._candidates import best, called, declined
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem
from fourfold.problem import Budget, Solver, SolverAnswer


class WeightStationary2D(Solver):
    title = "2-D weight-stationary layout"
    lever = "machine"
    answers = "layout"
    cites = ("pope2022",)
    counts = "layouts priced"

    def declines(self, problem: ServingLayoutProblem) -> str | None:
        return declined(problem, "WS-2D")

    def solve(self, problem: ServingLayoutProblem, budget: Budget, seed: int = 0) -> SolverAnswer[Layouts]:
        layouts = called(problem.chips, "WS-2D")
        budget.spend(len(layouts) * len(problem.phases))
        return SolverAnswer(best(problem, layouts))
