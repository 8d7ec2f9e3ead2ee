"""Every layout of Pope et al. (2022) priced in each phase, the quickest taken.

A grid of k axes has fewer than 2^(k+2) layouts, so the optimum is had.
Phases are independent, since all these layouts store the weights alike.
"""

from __future__ import annotations

from fourfold.decisions.layout._candidates import best, every
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem
from fourfold.problem import Budget, Solver, SolverAnswer


class ExhaustiveLayout(Solver):
    title = "The quickest of all layouts, phase by phase"
    default = True
    lever = "machine"
    answers = "layout"
    cites = ("pope2022",)
    gives = ("optimum", "bound")
    counts = "layouts priced"

    def solve(self, problem: ServingLayoutProblem, budget: Budget, seed: int = 0) -> SolverAnswer[Layouts]:
        layouts = list(every(problem.chips))
        budget.spend(len(layouts) * len(problem.phases))
        answer = best(problem, layouts)
        return SolverAnswer(answer, problem.cost(answer))
