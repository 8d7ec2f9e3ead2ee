"""Let's Wait Awhile (Wiesner et al. 2021): shift in time at home, on a forecast of the intensity.

A job in one piece starts where the rolling mean of the forecast over its window is least; one that may pause takes the d cheapest hours of the
forecast. The paper's error model: truth plus Gaussian noise, independent from hour to hour, with sigma = `error` × the mean of the trace (0, 0.05 or
0.10 there, ten draws). It pays the truth.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.carbon_aware._pricing import at_home, separate
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.problem import Budget, Solver, SolverAnswer


class LetsWaitAwhile(Solver):
    title = "Let's Wait Awhile, at home"
    lever = "map"
    answers = "place"
    cites = ("wiesner2021",)
    ignores = ("capacity",)

    def __init__(self, error: float = 0.05) -> None:
        self.error = error

    def declines(self, problem: Place) -> str | None:
        return at_home(problem)[1]

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        sigma = self.error * np.nanmean(problem.intensity, axis=1, keepdims=True)
        noise = np.random.default_rng(seed).normal(size=problem.intensity.shape)
        forecast = np.maximum(problem.intensity + sigma * noise, 0.0)
        return SolverAnswer(separate(at_home(problem.replace(intensity=forecast))[0])[1])
