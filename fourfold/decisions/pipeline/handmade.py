"""The split that a person made by hand, as shipped with some workloads (the experts' splits of Tarnawski et al. 2020)."""

from __future__ import annotations

from fourfold.decisions.pipeline.problem import MaxLoad, Split
from fourfold.problem import Budget, Solver, SolverAnswer


class Handmade(Solver):
    title = "The human expert's split"
    lever = "machine"
    answers = "partition"
    cites = ("tarnawski2020",)

    def declines(self, problem: MaxLoad) -> str | None:
        return None if problem.expert is not None else "nobody made a split of this workload by hand"

    def solve(self, problem: MaxLoad, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        assert problem.expert is not None
        return SolverAnswer(problem.expert)
