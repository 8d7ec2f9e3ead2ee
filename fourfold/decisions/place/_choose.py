"""Which exact technique suits an instance."""

from __future__ import annotations

from fourfold.decide import Solver
from fourfold.decisions.place.problem import Place

_HIGHS = 60_000                                                         # variables that HiGHS does in a second or so


def planner(problem: Place) -> Solver:
    """HiGHS for small flows, augmenting paths for large ones, integer programming with a bound for all else."""
    from fourfold.decisions.place.flow import Flow, size
    from fourfold.decisions.place.milp import Milp
    from fourfold.decisions.place.successive_shortest_paths import SuccessiveShortestPaths

    if SuccessiveShortestPaths().declines(problem):
        return Milp()
    return Flow() if size(problem) <= _HIGHS else SuccessiveShortestPaths()
