"""Weight-gathered over all axes, XYZ (Pope et al. 2022, section 3.2.3): every chip gathers each layer whole, and the batch is split over all.

Activations are never sent. It pays where a pass carries so many tokens that computing a layer takes longer than gathering the next.
"""

from __future__ import annotations

from fourfold.decisions.layout._candidates import best, called, declined
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem
from fourfold.problem import Budget, Solver, SolverAnswer


class WeightGatheredXYZ(Solver):
    title = "Weights gathered over all axes"
    lever = "machine"
    answers = "layout"
    cites = ("pope2022",)
    counts = "layouts priced"

    def declines(self, problem: ServingLayoutProblem) -> str | None:
        return declined(problem, "WG-XYZ")

    def solve(self, problem: ServingLayoutProblem, budget: Budget, seed: int = 0) -> SolverAnswer[Layouts]:
        layouts = called(problem.chips, "WG-XYZ")
        budget.spend(len(layouts) * len(problem.phases))
        return SolverAnswer(best(problem, layouts))
