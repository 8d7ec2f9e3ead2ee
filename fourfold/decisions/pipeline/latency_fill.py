"""Latency, the greedy baseline: nodes in topological order fill one accelerator after the other, as far as memory goes; the rest stays on the cores.

The simplest of the baselines in Tarnawski et al. (2020). It looks at no time, so it can be worse than the cores alone.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.pipeline._groups import Groups
from fourfold.decisions.pipeline.problem import Latency, Split
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer


class LatencyFill(Solver):
    title = "Latency: accelerators filled in topological order (greedy baseline)"
    lever = "machine"
    answers = "partition-latency"
    cites = ("tarnawski2020",)
    needs = ("scipy",)
    counts = "groups placed"

    def solve(self, problem: Latency, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        g = Groups.of_workload(problem.workload, acyclic=True)
        machine, at, held = np.zeros(len(g), np.int64), 0, 0.0
        for group in g.breadth_first().tolist():
            budget.spend()
            if not np.isfinite(g.fast[group]):                          # a core takes it; nothing may return to the accelerator so far
                machine[group], at, held = g.accelerators, at + (held > 0), 0.0
                continue
            if held + g.size[group] > g.limit:
                at, held = at + 1, 0.0
            machine[group] = min(at, g.accelerators)
            held += g.size[group]
        if np.isinf(g.slow[machine == g.accelerators]).any():
            raise Infeasible("Filled in topological order, the accelerators do not hold all nodes, and there is no core.",
                             "Choose another technique.")
        return SolverAnswer(Split(machine[g.of].astype(np.int16)))
