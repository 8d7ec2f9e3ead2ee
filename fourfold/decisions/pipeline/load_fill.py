"""Greedy baseline for throughput: nodes in topological order fill one accelerator up to the average load, then the next; a core takes what is left.

The balanced fill that m-TOPO and the baselines of Tarnawski et al. (2020) stand for; it knows neither transfers nor where a cut would be cheap.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.pipeline._groups import Groups
from fourfold.decisions.pipeline.problem import MaxLoad, Split
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


class LoadFill(Solver):
    title = "Accelerators filled to the average in topological order (greedy baseline)"
    lever = "machine"
    answers = "partition"
    cites = ("tarnawski2020",)
    needs = ("scipy",)
    counts = "groups placed"

    def solve(self, problem: MaxLoad, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        g = Groups.of_workload(problem.workload, acyclic=True)
        share = g.fast[np.isfinite(g.fast)].sum() / max(1, g.accelerators)
        machine, at, held, load = np.zeros(len(g), np.int64), 0, 0.0, 0.0
        for group in g.order().tolist():
            budget.spend()
            able = bool(np.isfinite(g.fast[group]))
            if load and (not able or load + g.fast[group] / 2 > share or held + g.size[group] > g.limit):
                at, held, load = at + 1, 0.0, 0.0
            if not able or at >= g.accelerators:
                machine[group] = g.accelerators
                continue
            machine[group], held, load = at, held + g.size[group], load + g.fast[group]
        if np.isinf(g.slow[machine >= g.accelerators]).any():
            raise Infeasible("Filled in topological order, the accelerators do not hold all nodes, and there is no core.",
                             "Choose another technique.")
        return SolverAnswer(Split(machine[g.of].astype(np.int16)))
