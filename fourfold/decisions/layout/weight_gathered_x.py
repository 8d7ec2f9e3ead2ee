"""Weight-gathered over one axis, X (Pope et al. 2022, section 3.2.3): the batch is split over it, and weights are gathered along it.

Little is gathered, and activations are still sent over the other axes. Which axis is X is tried for each.
"""

from __future__ import annotations

from fourfold.decisions.layout._candidates import best, called, declined
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem
from fourfold.problem import Budget, Solver, SolverAnswer


class WeightGatheredX(Solver):
    title = "Weights gathered over one axis"
    lever = "machine"
    answers = "layout"
    cites = ("pope2022",)
    counts = "layouts priced"

    def declines(self, problem: ServingLayoutProblem) -> str | None:
        return declined(problem, "WG-X")

    def solve(self, problem: ServingLayoutProblem, budget: Budget, seed: int = 0) -> SolverAnswer[Layouts]:
        layouts = called(problem.chips, "WG-X")
        budget.spend(len(layouts) * len(problem.phases))
        return SolverAnswer(best(problem, layouts))
