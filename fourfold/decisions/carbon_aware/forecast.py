"""Plan on a forecast with realistic errors, pay the truth, and say what not knowing cost.

The forecast has autocorrelated errors (sigma = `error` × the site's mean, `rho` from hour to hour; Wiesner et al. 2021 use independent ones) and is
shrunk towards its own climatology before it is optimised (Efron & Morris 1975). Regret: its true cost over that of the plan on the truth, less one.
"""

from __future__ import annotations

from fourfold.decisions.carbon_aware._choose import ROUGH, planner
from fourfold.decisions.carbon_aware._forecasts import noisy, shrunk
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.problem import Budget, Solver, SolverAnswer


class Forecast(Solver):
    title = "Plan on a noisy forecast"
    lever = "map"
    answers = "place"
    cites = ("wiesner2021", "efron1975")
    needs = ("scipy", "numba")

    def __init__(self, error: float = 0.2, rho: float = 0.95, shrink: bool = True) -> None:
        self.error, self.rho, self.shrink = error, rho, shrink

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        seen = noisy(problem.intensity, self.error, seed, self.rho)
        seen = shrunk(seen, self.error) if self.shrink and self.error else seen
        guess = problem.replace(intensity=seen)
        answer = planner(guess, ROUGH).solve(guess, budget, seed).answer
        return SolverAnswer(answer, evidence={"forecast": seen})
