"""The threshold policy: at home, run in an hour whose intensity is at most the 30th percentile of the next 24 h.

When the slack is used up it runs anyway. It needs no knowledge of how long the job will be (Ecovisor: Souza et al. 2023; a variant in GAIA: Hanafy et
al. 2024). A job that may not pause starts at the first such hour and runs on.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.carbon_aware._pricing import assemble, at_home
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.problem import Budget, Solver, SolverAnswer


class Threshold(Solver):
    title = "Threshold (30th percentile), at home"
    lever = "map"
    answers = "place"
    cites = ("souza2023", "hanafy2024")
    ignores = ("capacity",)

    def __init__(self, percentile: float = 30.0, view: int = 24) -> None:
        self.percentile, self.view = percentile, view

    def declines(self, problem: Place) -> str | None:
        home = at_home(problem)[1]
        if home is None and np.isnan(problem.intensity[np.unique(problem.home)]).any():
            return "some hours of a home have no known intensity, and the policy looks at every hour."
        return home

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        total = problem.intensity.shape[1]
        homes, which = np.unique(problem.home, return_inverse=True)
        rate = problem.rate[homes]
        ahead = np.pad(rate, ((0, 0), (0, self.view - 1)), constant_values=np.nan)      # near the end of the trace the view is shorter
        views = np.lib.stride_tricks.sliding_window_view(ahead, self.view, axis=1)
        calm = rate <= np.concatenate([np.nanpercentile(views[:, t: t + 1000], self.percentile, axis=2) for t in range(0, total, 1000)], axis=1)
        found = []
        for j in range(len(problem.names)):
            hour = np.array(self._hours(calm[which[j]], problem, j), np.int64)
            found.append((0.0, np.full(len(hour), problem.home[j]), hour))
        return SolverAnswer(assemble(found))

    @staticmethod
    def _hours(calm: np.ndarray, problem: Place, j: int) -> list[int]:
        picked: list[int] = []
        for t in range(problem.release[j], problem.deadline[j]):
            missing = int(problem.hours[j]) - len(picked)
            if not missing:
                break
            running = bool(picked) and not problem.interruptible[j]
            if calm[t] or running or problem.deadline[j] - t <= missing:
                picked.append(t)
        return picked
