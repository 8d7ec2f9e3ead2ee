"""Immerse the servers in liquid: operators report 94 to 97 % less cooling energy (a published reduction, never measured here).

The reduction is applied to the cooling of the air-cooled hall; power delivery and lighting stay, and so does the servers' own power, although
immersed servers need no fans. Sources and interval: `_hall.REDUCTIONS["immersion"]` (KDDI and others 2023; operators' own statements). """

from __future__ import annotations

from fourfold.decisions.datacenter.problem import Cool
from fourfold.problem import Budget, Solver, SolverAnswer


class Immersion(Solver):
    """Liquid in place of air, all year."""

    title = "Liquid immersion of the servers"
    lever = "mechanization"
    answers = "cool"
    cites = ("kddi2026",)

    def declines(self, problem: Cool) -> str | None:
        if problem.hall.cooling == "immersion":
            return "the servers are immersed already."
        return None if "immersion" in problem.allowed else "immersion is not allowed in this hall."

    def solve(self, problem: Cool, budget: Budget, seed: int = 0) -> SolverAnswer[dict[str, object]]:
        return SolverAnswer({**problem.baseline(), "cooling": "immersion", "modes": [0] * len(problem.outside)}, note="published reduction")
