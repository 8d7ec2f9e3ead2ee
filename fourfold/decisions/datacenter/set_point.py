"""Warm the supply air as far as allowed: the chiller lifts heat less far, and outside air serves more hours; servers' own fans work harder above 25
°C.

The chiller's gain is Carnot's, followed in part (an assumed exponent of 0.5 to 1). The limit is the recommended envelope of ASHRAE, 18 to 27 °C,
unless the problem allows more (Khankari 2011 quotes the envelope). Found by trying every half degree. """

from __future__ import annotations

import numpy as np

from fourfold.decisions.datacenter.problem import Cool
from fourfold.problem import Budget, Solver, SolverAnswer


class SetPoint(Solver):
    """Every half degree from the present set point to the limit, priced."""

    default = True
    title = "A warmer set point of the supply air"
    lever = "mechanization"
    answers = "cool"
    cites = ("lei2020", "khankari2011")
    counts = "set points"

    def declines(self, problem: Cool) -> str | None:
        if problem.hall.cooling == "immersion":
            return "the servers are immersed; no supply air reaches them."
        if "set point" not in problem.allowed:
            return "another set point is not allowed in this hall."
        if problem.limit <= problem.hall.set_point:
            return f"the set point of {problem.hall.set_point:g} °C is at its limit of {problem.limit:g} °C."
        return None

    def solve(self, problem: Cool, budget: Budget, seed: int = 0) -> SolverAnswer[dict[str, object]]:
        """The cheapest set point, the hall's present use of outside air kept."""
        now = problem.hall.set_point
        points = [*np.arange(now, problem.limit, 0.5), problem.limit]
        tried = []
        for point in points:
            answer = {**problem.baseline(), "set_point": float(point)}
            if problem.hall.cooling == "economiser":
                answer["modes"] = [int(mode) for mode in problem.free_modes(float(point))]
            tried.append(answer)
            budget.spend()
        sound = [answer for answer in tried if not problem.violations(answer)] or tried[:1]
        return SolverAnswer(min(sound, key=problem.cost))
