"""Weight-gathered over two of three axes, XY (Pope et al. 2022, section 3.2.3): the batch is split over both.

More is gathered than with X and less of the activations is sent, over the third axis alone.
"""

from __future__ import annotations

from fourfold.decisions.layout._candidates import best, called, declined
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem
from fourfold.problem import Budget, Solver, SolverAnswer


class WeightGatheredXY(Solver):
    title = "Weights gathered over two axes"
    lever = "machine"
    answers = "layout"
    cites = ("pope2022",)
    counts = "layouts priced"

    def declines(self, problem: ServingLayoutProblem) -> str | None:
        return declined(problem, "WG-XY")

    def solve(self, problem: ServingLayoutProblem, budget: Budget, seed: int = 0) -> SolverAnswer[Layouts]:
        layouts = called(problem.chips, "WG-XY")
        budget.spend(len(layouts) * len(problem.phases))
        return SolverAnswer(best(problem, layouts))
