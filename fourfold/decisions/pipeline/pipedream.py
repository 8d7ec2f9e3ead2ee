"""PipeDream's partition (Narayanan et al. 2019): cut one linear order of the layers into stages, a stage an accelerator, by dynamic programming.

A(j, m) = min over i < j of max(A(i, m-1), load of layers i+1 … j), without its replication of stages. The order is the breadth-first topological
one, so on operator graphs, where tensors of many branches are alive at once, it has hardly a cheap place to cut. Cores are used only where an
accelerator will not do.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fourfold.decisions.pipeline._groups import Groups
from fourfold.decisions.pipeline._stages import cut
from fourfold.decisions.pipeline.problem import MaxLoad, Split
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


class Pipedream(Solver):
    title = "PipeDream: one linear order cut into stages"
    lever = "machine"
    answers = "partition"
    cites = ("narayanan2019", "tarnawski2020")
    needs = ("numba", "scipy")
    counts = "cuts of an order"

    def solve(self, problem: MaxLoad, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        groups = Groups.of_workload(problem.workload, acyclic=True)
        order = groups.breadth_first()
        budget.spend()
        value, machine = cut(replace(groups, cores=0), order)
        if not np.isfinite(value):
            value, machine = cut(groups, order)
        if not np.isfinite(value):
            raise Infeasible("The breadth-first order has no cut into stages that fit the accelerators.", "Try ideals, which looks at more cuts.")
        return SolverAnswer(Split(machine[groups.of].astype(np.int16)))
