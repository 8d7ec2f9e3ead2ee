"""HALP (Song et al. 2023): candidates of a heuristic, ranked by a small network that learns online, by pairwise preference, which is asked for first.

Our reading of it. At an eviction K candidates of a heuristic stand before a network of 8 → 16 → 1 units, the last of them leaves, the others begin
anew; two of the candidates then wait for which is asked for again first, and that is one training step (logistic loss, Adagrad). Which heuristic,
which K, and whether the network is to be heard at all, is decided online too: each way runs in miniature on a sample of the objects, chosen by hash
(Waldspurger et al. 2015, SHARDS), and the cache follows the one that misses the fewest bytes lately, where it is ahead beyond a margin.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.cache._online import OnlinePolicy
from fourfold.decisions.cache._policy import EvictionRule
from fourfold.decisions.cache._state import LIRS
from fourfold.decisions.cache.instance import Evictions
from fourfold.decisions.cache.problem import Cache
from fourfold.problem import Budget, SolverAnswer

_TOLD = 1_000                                                           # requests whose mean size sets the size of the miniatures


class Halp(EvictionRule):
    """HALP: a network learns which of the heuristic's candidates to let go, and which heuristic."""

    title: ClassVar[str] = "HALP: preference learnt online over candidates of a heuristic, which miniatures choose"
    cites: ClassVar[tuple[str, ...]] = ("song2023halp", "waldspurger2015", "duchi2011")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    kind = LIRS                                                         # whom it follows first

    def solve(self, problem: Cache, budget: Budget, seed: int = 0) -> SolverAnswer[Evictions]:
        from fourfold.decisions.cache._halp import NEXT, SWITCHES, LearnedCache

        trace, length = problem.trace, len(problem.trace)
        budget.spend(length)
        cache = LearnedCache(problem.capacity, trace.objects, float(trace.sizes[:_TOLD].mean()), seed)
        outcome, when, who = np.zeros(length, np.uint8), np.zeros(length, np.int32), np.zeros(length, np.int32)
        left = cache.replay(trace.ids, trace.sizes, outcome, when, who)
        return SolverAnswer(Evictions(outcome == 2, when[:left].copy(), who[:left].copy()), None,
                            {"switches": int(cache.known.reg[SWITCHES]), "pairs": int(cache.known.reg[NEXT])})

    def online(self, capacity: int, seed: int = 0) -> OnlinePolicy:
        """The same policy for requests that come one by one."""
        from fourfold.decisions.cache._halp_online import LearnedPolicy

        return LearnedPolicy(capacity, seed)
