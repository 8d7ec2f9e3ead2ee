"""Dual ascent and primal search together: choices of the one start the other, costs of the other scale steps of the one."""

from __future__ import annotations

import contextvars
import threading
import time
from dataclasses import dataclass

import numpy as np

from fourfold.decisions.shard import _memory as memory
from fourfold.decisions.shard._certify import certificate
from fourfold.decisions.shard._descend import descend, repair
from fourfold.decisions.shard._model import PairwiseModel, model
from fourfold.decisions.shard._prices import DualAscent, by_strategy, excess
from fourfold.decisions.shard._search import Incumbent, Oscillation
from fourfold.decisions.shard.bound import DualCertificate, bound
from fourfold.decisions.shard.instance import F64, I64
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.errors import Infeasible
from fourfold.problem import Budget

REPEATABLE = 10_000                                                     # evaluations: up to here one thread takes turns, to answer alike
_ALONE = 12                                                             # passes before the search begins
_GRACE = 40                                                             # rounds that a search without any answer may go on for
_STALE = 25                                                             # rounds without a gain before an oscillation begins elsewhere
_PER_PAIR, _PER_ENTRY = 4e-5, 4e-7                                      # s that counting the certificate again takes, generously


@dataclass
class Shares:
    """How the primal time is shared: fresh choices of the dual, the oscillation, small neighbourhoods of the incumbent."""

    fresh: float = 0.3
    wander: float = 0.35
    near: float = 0.35


class Pair:
    """A dual ascent and a primal search on one problem. Raises Infeasible as `model` does."""

    def __init__(self, problem: ShardProblem, budget: Budget, seed: int = 0, shares: Shares | None = None) -> None:
        began = time.monotonic()
        self.problem, self.budget, self.shares = problem, budget, shares or Shares()
        self.m: PairwiseModel = model(problem.graph)
        self.dual = DualAscent(self.m)
        self.incumbent = Incumbent(self.m, budget)
        sweep = self.dual.messages.sweep
        self.wanderer = Oscillation(self.m, sweep, self.incumbent, seed)
        self.fresh = Oscillation(self.m, sweep, self.incumbent, seed + 1)
        self.spent = {"fresh": 0.0, "wander": 0.0, "near": 0.0}
        self.tally = {"fresh": 0, "wander": 0, "near": 0}
        self.since, self.begun, self.turn = 0, False, 0
        estimate = _PER_PAIR * problem.graph.edges + _PER_ENTRY * len(problem.graph.table) + 0.5 * (time.monotonic() - began)
        self.reserve = min(0.15 * budget.seconds, estimate)             # for the certificate, and for the check of the answer

    # ---- the run

    def run(self, share: float = 1.0) -> None:
        """Until that share of the budget is spent, or the bound meets the cost. Raises Infeasible where nothing was found."""
        self.reserve = max(self.reserve, (1.0 - share) * self.budget.seconds)
        for _ in range(_ALONE):
            self.dual.advance(self.incumbent.cost)
            if self.budget.left <= self.reserve:
                break
        self._fewest()
        self._fresh(self.dual.chosen, self.dual.price)
        if self.budget.evaluations <= REPEATABLE:
            self._in_turn()
        elif not self.over:
            self._side_by_side()
        for _ in range(_GRACE):
            if self.incumbent.chosen is not None:
                return
            self.dual.advance()
            self._fresh(self.dual.chosen, self.dual.price)
            self.wanderer.round()
        if self.incumbent.chosen is None:
            raise Infeasible("No choice was found that keeps the limit and the forbidden pairs.",
                             "Whether there is one is unknown: allow more time, another solver, or more memory.")

    @property
    def over(self) -> bool:
        """Whether the time is up or nothing is left to gain."""
        return self.budget.left <= self.reserve or self.budget.exhausted or self.closed

    @property
    def closed(self) -> bool:
        cost = self.incumbent.cost
        if not np.isfinite(cost):
            return False
        return cost - self.dual.bound < max(0.999 * self.problem.graph.whole, 1e-9 * abs(cost))

    def _in_turn(self) -> None:
        while self.budget.spend() and not self.over:
            self.dual.advance(self.incumbent.cost)
            self._act(self.dual.chosen, self.dual.price, clock=False)

    def _side_by_side(self) -> None:
        """The dual in a thread of its own: kernels hold no lock of the interpreter."""
        stop = threading.Event()
        latest: list[tuple[I64, F64]] = [(self.dual.chosen.copy(), self.dual.price)]
        failed: list[BaseException] = []

        def ascend() -> None:
            try:
                while not stop.is_set():
                    self.dual.advance(self.incumbent.cost)
                    latest[0] = (self.dual.chosen.copy(), self.dual.price)
                    if self.dual.step < 1e-4:
                        self.dual.longer()
            except BaseException as error:                              # told by the caller's thread
                failed.append(error)

        helper = threading.Thread(target=contextvars.copy_context().run, args=(ascend,), daemon=True)
        helper.start()
        try:
            while not self.over and not failed:
                self._act(*latest[0])
        finally:
            stop.set()
            helper.join()
        if failed:
            raise failed[0]
        self.budget.spend(self.dual.passes)

    # ---- moves

    def _act(self, chosen: I64, price: F64, clock: bool = True) -> None:
        """One action of the primal search: of those that had least of their share of the time (or in turn, without a clock)."""
        self.turn += 1
        if clock:
            total = sum(self.spent.values()) + 1e-9
            name = min(self.spent, key=lambda name: self.spent[name] / total / getattr(self.shares, name))
        else:
            name = ("fresh", "wander", "near")[self.turn % 3]
        began = time.thread_time()
        if name == "fresh":
            better = self._fresh(chosen, price)
        elif name == "near":
            self.fresh.price = self.dual.best
            self.fresh.priced = by_strategy(self.m, self.fresh.price)
            better = self.fresh.near(200 if clock else 20)
        else:
            better = self._wander(chosen, price)
        self.spent[name] += time.thread_time() - began
        self.tally[name] += better

    def _fresh(self, chosen: I64, price: F64) -> bool:
        self.fresh.begin(chosen, price)
        self.fresh.forest(self.fresh.chosen, self.fresh.priced, 3)
        return self.fresh.offer(self.fresh.chosen, excess(self.m, self.fresh.chosen)[1])

    def _wander(self, chosen: I64, price: F64) -> bool:
        """A round of the oscillation; after many without a gain it begins again, in turn at the incumbent and at what the dual chose last."""
        if not self.begun or self.since > _STALE:
            own = self.incumbent.chosen
            if own is not None and self.turn % 2:
                self.wanderer.begin(own, self.dual.best)
            else:
                self.wanderer.begin(chosen, price)
            self.begun, self.since = True, 0
        better = self.wanderer.round()
        self.since = 0 if better else self.since + 1
        return better

    def _fewest(self) -> None:
        """An answer at once where one is easy: fewest bytes, mended node by node."""
        m = self.m
        node = np.repeat(np.arange(len(m)), np.diff(m.ptr))
        chosen = np.lexsort((m.unary, m.usage, node))[m.ptr[:-1]] - m.ptr[:-1]
        held = memory.tree(m, chosen)
        if held[0, 1] > m.limit and not repair(m, chosen, held, np.zeros(len(m.unary))):
            return
        descend(m, chosen, np.arange(len(m)), held, rounds=5)
        self.incumbent.take(chosen)

    # ---- the answer

    def answer(self) -> I64:
        assert self.incumbent.chosen is not None
        return self.m.answer(self.incumbent.chosen)

    def proof(self) -> tuple[float, DualCertificate]:
        """(bound, the evidence for it), counted by `bound.py` from the instance."""
        evidence = certificate(self.m, self.dual.given, self.dual.best)
        return bound(self.problem.graph, evidence), evidence
