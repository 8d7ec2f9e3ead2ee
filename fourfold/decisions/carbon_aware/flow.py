"""The exact min-cost flow as a linear programme, solved by HiGHS.

x[j, r, t] = share of hour t in which job j runs at site r; each job gets its hours, at most one site in an hour, and no site more than its capacity.
The matrix is that of a network (job → job-hour → region-hour → sink), hence totally unimodular: with whole hours and capacities a vertex is a whole
schedule. The simplex multipliers of the capacity rows are the price of capacity and prove the optimum (Huangfu & Hall 2018; Ahuja, Magnanti & Orlin
1993, ch. 9 and 11).
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.carbon_aware._pricing import bound, no_flow, separate, tables
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

LARGEST = 2_000_000                                                     # variables; beyond it HiGHS takes minutes


class Flow(Solver):
    default = True
    title = "Min-cost flow as a linear programme (HiGHS)"
    lever = "map"
    answers = "place"
    cites = ("huangfu2018", "ahuja1993")
    needs = ("scipy",)
    gives = ("optimum", "bound")
    counts = "linear programmes"

    def declines(self, problem: Place) -> str | None:
        if why := no_flow(problem):
            return why
        if size(problem) > LARGEST:
            return f"{size(problem):,} variables are more than HiGHS solves in minutes; successive_shortest_paths takes any number."
        return None

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix

        budget.spend()
        _, alone = separate(problem)
        if not (alone.load(problem.width, problem.intensity.shape) > problem.room).any():   # nobody is in anybody's way
            mu = np.zeros(problem.intensity.shape)
            return SolverAnswer(alone, bound(problem, mu), {"mu": mu}, "no capacity binds")
        job, site, hour, cost = arcs(problem)
        total, columns = problem.intensity.shape[1], np.arange(len(job))
        pair, once = np.unique(job * total + hour, return_inverse=True)
        spot, full = np.unique(site * total + hour, return_inverse=True)
        limit = problem.room.ravel()[spot] / problem.width[0]
        rows = np.isfinite(limit)
        ones = np.ones(len(job))
        upper = csr_matrix((np.tile(ones, 2), (np.concatenate([once, len(pair) + full]), np.tile(columns, 2))), (len(pair) + len(spot), len(job)))
        keep = np.concatenate([np.ones(len(pair), bool), rows])
        solved = linprog(cost, A_ub=upper[keep], b_ub=np.concatenate([np.ones(len(pair)), limit])[keep],
                         A_eq=csr_matrix((ones, (job, columns)), (len(problem.names), len(job))), b_eq=problem.hours, bounds=(0, 1),
                         method="highs-ds", options={"time_limit": max(1.0, budget.left), "presolve": True})
        if solved.status == 2:
            raise Infeasible("No schedule meets every deadline within the capacities.", "Raise the capacity, the slack, or the number of sites.")
        if solved.status != 0 or solved.x is None:
            raise Infeasible(f"HiGHS found no optimum in time: {solved.message}", "Give more time: --budget")
        picked = np.flatnonzero(solved.x > 0.5)
        mu = np.zeros(problem.intensity.size)
        mu[spot[rows]] = np.maximum(0.0, -solved.ineqlin.marginals[len(pair):]) / problem.width[0]
        mu = mu.reshape(problem.intensity.shape)
        return SolverAnswer(JobHours(job[picked], site[picked], hour[picked]), bound(problem, mu), {"mu": mu})


def size(problem: Place) -> int:
    """Variables of the programme: job × allowed site × hour of its window."""
    return int((problem.allowed.sum(axis=1) * (problem.deadline - problem.release)).sum())


def arcs(problem: Place) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every (job, site, hour) that may be used, and its cost: int64, int64, int64, float [variables]."""
    p = tables(problem)
    parts = []
    for j in range(len(problem.names)):
        rate = p.rate[:, p.release[j]: p.deadline[j]]
        r, t = np.nonzero(p.allowed[j][:, None] & np.isfinite(rate))
        parts.append((np.full(len(r), j), r, t + p.release[j], p.kw[j] * rate[r, t]))
    job, site, hour, cost = (np.concatenate(column) for column in zip(*parts, strict=True))
    return job, site, hour, cost
