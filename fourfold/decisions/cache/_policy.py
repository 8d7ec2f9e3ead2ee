"""What the techniques share: a policy is a kind of rule; it answers a trace by replaying it, and a live cache request by request."""

from __future__ import annotations

from typing import ClassVar

from fourfold.decisions.cache._online import OnlinePolicy
from fourfold.decisions.cache.instance import Evictions
from fourfold.decisions.cache.problem import Cache
from fourfold.problem import Budget, Solver, SolverAnswer


class EvictionRule(Solver):
    """`kind`: its rule in `_state`. A request is an evaluation; no budget stops it, since a trace that is half replayed is no answer."""

    kind: ClassVar[int]
    lever = "mechanization"
    answers = "cache"
    counts = "requests"

    def solve(self, problem: Cache, budget: Budget, seed: int = 0) -> SolverAnswer[Evictions]:
        from fourfold.decisions.cache._replay import replayed

        budget.spend(len(problem.trace))
        return SolverAnswer(replayed(self.kind, problem.trace, problem.capacity))

    def online(self, capacity: int, seed: int = 0) -> OnlinePolicy:
        """The same policy for requests that come one by one. Raises InputError where it must know the future."""
        return OnlinePolicy(self.kind, capacity)
