"""Annealing over single groups, swaps and grown regions, any subset of nodes on any device (non-contiguous), loads kept up to date in numba.

A state costs Σ_m (load_m / T)^8 with T the bound: a smooth stand-in for the greatest load. A move takes one group, exchanges two, or grows a region
from a seed over shared outputs and hands it to another machine, so that a border can shift past a dear tensor in one step; it is kept with
probability exp(-Δ/temperature) (Kirkpatrick et al. 1983). Rounds double in length; every other one starts from the best seen, large neighbourhoods
in the sense of Shaw (1998). It starts from stages along topological orders.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.pipeline._groups import Groups
from fourfold.decisions.pipeline._moves import groups_first, improve
from fourfold.decisions.pipeline._stages import stages
from fourfold.decisions.pipeline.problem import MaxLoad, Split
from fourfold.problem import Budget, Solver, SolverAnswer


class Lns(Solver):
    title = "Annealing of non-contiguous splits by nodes, swaps and regions"
    lever = "machine"
    answers = "partition"
    cites = ("tarnawski2020", "shaw1998", "kirkpatrick1983")
    needs = ("numba", "scipy")
    counts = "moves tried"

    def declines(self, problem: MaxLoad) -> str | None:
        return "it keeps no device contiguous, and this problem asks for that" if problem.contiguous else None

    def solve(self, problem: MaxLoad, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        groups = Groups.of_workload(problem.workload)
        starts = [s[groups_first(groups)] for s in stages(problem.workload, seed, 4)]
        best, value, rounds = improve(groups, starts, problem.bound(), budget, seed)
        return SolverAnswer(Split(best[groups.of].astype(np.int16)), note=f"{rounds} rounds, greatest load {value:.6g}")
