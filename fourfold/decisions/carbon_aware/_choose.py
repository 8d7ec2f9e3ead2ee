"""Which exact technique suits an instance."""

from __future__ import annotations

from fourfold.decisions.carbon_aware.problem import Place
from fourfold.problem import Solver

_HIGHS = 60_000                                                         # variables that HiGHS does in a second or so


ROUGH = 2e-3                                                            # gap at which what is only compared with may stop; a table shows no more


def planner(problem: Place, enough: float | None = None) -> Solver:
    """HiGHS for small flows, augmenting paths for large ones, integer programming with a bound for all else: to a gap of `enough`, or as far as
    the budget goes."""
    from fourfold.decisions.carbon_aware.flow import Flow, size
    from fourfold.decisions.carbon_aware.milp import Milp
    from fourfold.decisions.carbon_aware.successive_shortest_paths import SuccessiveShortestPaths

    if SuccessiveShortestPaths().declines(problem):
        return Milp() if enough is None else Milp(enough)
    return Flow() if size(problem) <= _HIGHS else SuccessiveShortestPaths()
