"""Wait for the best hours at home, knowing them exactly: the most that shifting in time alone can do when jobs do not hinder one another.

A job that may pause takes its cheapest hours (pausing), another its cheapest piece (deferring), as in Sukprasert et al. (2024), section 3.
"""

from __future__ import annotations

from fourfold.decisions.carbon_aware._pricing import at_home, separate
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.problem import Budget, Solver, SolverAnswer


class Home(Solver):
    title = "Best hours at home"
    lever = "map"
    answers = "place"
    cites = ("sukprasert2024",)
    ignores = ("capacity",)

    def declines(self, problem: Place) -> str | None:
        return at_home(problem)[1]

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        return SolverAnswer(separate(at_home(problem)[0])[1])
