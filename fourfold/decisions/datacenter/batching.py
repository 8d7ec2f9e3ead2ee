"""Gather items into calls: a call costs a fixed time whatever it holds, so fuller calls need fewer busy servers, as far as the latency allows.

Time of a call of b items: fixed + b × item. The first item waits until the call is full, (b - 1) / rate, and then for the call; the largest b that
keeps within the latency is best, because work per item falls with b (Crankshaw et al. 2017: batches under a latency objective). The servers that
this frees are switched off as consolidation would. """

from __future__ import annotations

import numpy as np

from fourfold.decisions.datacenter._fleet import cheapest
from fourfold.decisions.datacenter.problem import Serve
from fourfold.problem import Budget, Solver, SolverAnswer


class Batching(Solver):
    """The largest batch that each hour's rate can fill in time, then the fewest joules of servers."""

    title = "Fuller calls under a latency limit"
    lever = "mechanization"
    answers = "serve"
    cites = ("crankshaw2017", "barroso2007")
    counts = "hours"

    def declines(self, problem: Serve) -> str | None:
        return None if problem.batched else "the problem states no time a call and an item; its load cannot be batched."

    def solve(self, problem: Serve, budget: Budget, seed: int = 0) -> SolverAnswer[dict[str, object]]:
        batch = largest(problem)
        on, _ = cheapest(problem, problem.demand(batch))
        budget.spend(len(on))
        return SolverAnswer({"on": [int(count) for count in on], "batch": [int(size) for size in batch]})


def largest(problem: Serve) -> np.ndarray:
    """The most items [T] a call may gather: (b - 1) / rate + fixed + b × item <= latency, at least 1 and at most the problem's `most`."""
    rate = np.maximum(problem.load, 1e-300)
    room = (problem.latency_s - problem.call_s + 1 / rate) / (1 / rate + problem.item_s)
    return np.clip(np.floor(room * (1 + 1e-12)), 1, problem.most).astype(int)
