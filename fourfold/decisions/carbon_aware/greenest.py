"""The greenest region, naively: each job starts at release, without waiting, at the site where its run would cost least.

What "run it in the cleanest region" means with no thought of capacity or hours (compared with waiting in Sukprasert et al. 2024).
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.carbon_aware._pricing import separate
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.problem import Budget, Solver, SolverAnswer


class Greenest(Solver):
    title = "Greenest region, no waiting"
    lever = "map"
    answers = "place"
    cites = ("sukprasert2024",)
    ignores = ("capacity",)

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        return SolverAnswer(separate(problem.replace(deadline=problem.release + problem.hours, interruptible=np.zeros(len(problem.names), bool)))[1])
