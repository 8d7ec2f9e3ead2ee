"""The oracle: every job at its best sites and hours with all intensities known and no capacity in the way; no plan saves more.

The upper bound of Sukprasert et al. (2024): for jobs in one piece the best block anywhere, for others their cheapest hours anywhere.
"""

from __future__ import annotations

from fourfold.decisions.carbon_aware._pricing import separate
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.problem import Budget, Solver, SolverAnswer


class Oracle(Solver):
    title = "Oracle (no capacity)"
    lever = "map"
    answers = "place"
    cites = ("sukprasert2024",)
    gives = ("bound",)
    ignores = ("capacity",)

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        cost, schedule = separate(problem)
        return SolverAnswer(schedule, float(cost.sum()))
