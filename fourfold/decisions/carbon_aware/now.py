"""Run at home, at release, without pause: what happens when nobody decides, and what others are held against (Sukprasert et al. 2024)."""

from __future__ import annotations

from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.problem import Budget, Solver, SolverAnswer


class Now(Solver):
    title = "Run now, at home"
    lever = "map"
    answers = "place"
    cites = ("sukprasert2024",)
    ignores = ("capacity",)

    def declines(self, problem: Place) -> str | None:
        broken = problem.relaxed(("capacity",)).violations(problem.baseline())
        return broken[0] + "." if broken else None

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        return SolverAnswer(problem.baseline())
