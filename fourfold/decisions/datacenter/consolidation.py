"""Switch off the servers that the load does not need: an idle server draws a third to a half of a busy one (Barroso & Hölzle 2007).

For every hour and every number of servers the power is known (idle + range × (2u - u^1.4), Fan, Weber & Barroso 2007); a shortest path over the hours
trades what an idle server draws against what starting one costs. Exact over numbers of servers taken in the fleet's order, so exact in full for
servers that are alike; for others the problem's bound tells how far off it may be.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.datacenter._fleet import cheapest
from fourfold.decisions.datacenter.problem import Serve
from fourfold.problem import Budget, Solver, SolverAnswer


class Consolidation(Solver):
    """Dynamic programming over the number of servers that are on."""

    default = True
    title = "Fewer servers on: consolidation by the hour"
    lever = "mechanization"
    answers = "serve"
    cites = ("barroso2007", "fan2007", "bellman1957")
    gives = ("optimum",)
    counts = "hours"

    def solve(self, problem: Serve, budget: Budget, seed: int = 0) -> SolverAnswer[dict[str, object]]:
        """The cheapest number of servers for every hour, one item a call. Claims the optimum for servers that are alike and unbatched."""
        answer = problem.baseline()
        work = problem.demand(np.asarray(answer["batch"], int))
        on, cost = cheapest(problem, work)
        budget.spend(len(on))
        return SolverAnswer({**answer, "on": [int(count) for count in on]}, bound=cost if problem.fleet.alike and not problem.batched else None)
