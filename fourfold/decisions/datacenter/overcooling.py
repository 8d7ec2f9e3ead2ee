"""Cool no more than the servers need: control of fans and chillers by what the inlets report. Operators report 35 % less cooling energy, up to 40 %.

A published reduction, never measured here; it is applied to the cooling of the hall as it stands. Sources and interval:
`_hall.REDUCTIONS["overcooling"]` (Evans & Gao 2016 for the upper end).
"""

from __future__ import annotations

from fourfold.decisions.datacenter.problem import Cool
from fourfold.problem import Budget, Solver, SolverAnswer


class Overcooling(Solver):
    """The published cut of cooling energy, whatever the hours."""

    title = "Control of over-cooling"
    lever = "mechanization"
    answers = "cool"
    cites = ("evans2016",)

    def declines(self, problem: Cool) -> str | None:
        if problem.hall.cooling == "immersion":
            return "the servers are immersed; there is no air to over-cool."
        return None if "overcooling" in problem.allowed else "over-cooling control is not allowed in this hall."

    def solve(self, problem: Cool, budget: Budget, seed: int = 0) -> SolverAnswer[dict[str, object]]:
        return SolverAnswer({**problem.baseline(), "cut": "overcooling"}, note="published reduction")
