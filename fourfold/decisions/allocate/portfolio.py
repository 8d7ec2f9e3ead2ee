"""Portfolio (Rice 1976; Huberman et al. 1997): complementary packers side by side on two cores, all stopped at the first answer or proof.

Greedy packings, then the canonical search; after half a second, beside it, learned backtracking for a while and CP-SAT. What one packs lower, or
proves, the answer has. Where there are too many buffers for a search, local search answers alone.
"""

from __future__ import annotations

import contextvars
import importlib.util
import threading
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from fourfold.decisions.allocate import _starts as starts
from fourfold.decisions.allocate import exact, local_search, minimalloc, telamalloc
from fourfold.decisions.allocate._form import NEIGHBOURS, pairs
from fourfold.decisions.allocate._restarts import StopFlag
from fourfold.decisions.allocate.instance import I64
from fourfold.decisions.allocate.problem import Allocate
from fourfold.problem import Budget, Solver, SolverAnswer

_ALONE, _LEARNED = 0.5, 0.1                                             # s before a second one begins; share of the time for learned backtracking
_REPEATABLE = 10_000                                                    # evaluations: up to here the canonical search works alone, to answer alike


class Portfolio(Solver):
    default = True
    title: ClassVar[str] = "Portfolio: greedy, canonical search, learned backtracking and CP-SAT side by side"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "allocate"
    cites: ClassVar[tuple[str, ...]] = ("rice1976", "huberman1997", "moffitt2023", "maas2023", "perron2023")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "thousands of nodes of the canonical search"

    def solve(self, problem: Allocate, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that there is no packing, or where none within the capacity was found (the message says which)."""
        if pairs(problem.buffers.parts()) > NEIGHBOURS:
            return local_search.PackingNeighbourhoods().solve(problem, budget, seed)
        begin = starts.begin(problem, budget)
        if begin.done or budget.exhausted:
            return starts.answer(problem, begin.found)
        shared = _Shared(problem, begin.found, budget)
        with StopFlag(budget) as stop:
            helper = _Helper(shared, budget, stop, seed) if budget.evaluations > _REPEATABLE else None
            shared.take("minimalloc", *minimalloc.search(problem, begin.found, budget, stop, seed))
            if not shared.closed and helper is not None and not budget.exhausted:
                helper.join()                                           # the canonical search gave up: the other one has the rest
            stop[0] = 1
            if helper is not None:
                helper.join()
        return starts.answer(problem, shared.found, shared.bound, f"Packed by {shared.by}." if shared.by else "")


class _Shared:
    """The best packing and the best proof of all."""

    def __init__(self, problem: Allocate, found: I64, budget: Budget) -> None:
        self.problem, self.found, self.budget, self.bound, self.by = problem, found, budget, None, ""
        self._lock, self._key = threading.Lock(), self._value(found)

    def _value(self, found: I64) -> tuple[bool, int]:
        p = self.problem.buffers.parts()
        return not starts.within(p, found), p.height(found)

    def take(self, name: str, found: I64 | None, bound: int | None) -> None:
        with self._lock:
            if bound is not None:
                self.bound = max(bound, self.bound or 0)
            if found is not None and (value := self._value(found)) < self._key:
                self.found, self._key, self.by = found, value, name
                self.budget.improve(value[1] * self.problem.buffers.parts().unit)

    @property
    def closed(self) -> bool:
        """Whether nothing is left to ask: packed as low as is asked, or proven that it cannot be."""
        unit, capacity = self.problem.buffers.parts().unit, self.problem.capacity
        known = max(self.problem.target, 0 if self.bound is None or self.problem.decide and capacity is not None else self.bound * unit)
        refuted = self.bound is not None and capacity is not None and self.bound * unit > capacity
        return refuted or (not self._key[0] and self._key[1] * unit <= known)


class _Helper:
    """A thread that asks the others, one after another, until `stop[0]`, and sets it where the question is closed."""

    def __init__(self, shared: _Shared, budget: Budget, stop: np.ndarray, seed: int) -> None:
        self.shared, self.budget, self.stop, self.seed = shared, budget, stop, seed
        self.failure: BaseException | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _work(self) -> None:
        try:
            pause = threading.Event()
            while not pause.wait(0.02) and not self.stop[0]:
                if self.budget.seconds - self.budget.left >= min(_ALONE, self.budget.seconds / 4):
                    break
            for name, ask in self._asked():
                if self.stop[0] or self.budget.exhausted or self.shared.closed:
                    return
                self.shared.take(name, *ask())
                if self.shared.closed:
                    self.stop[0] = 1
        except BaseException as failure:                                # what goes wrong here is told where it is waited for
            self.failure, self.stop[0] = failure, 1

    def _asked(self) -> list[tuple[str, Callable[[], tuple[I64 | None, int | None]]]]:
        problem, found = self.shared.problem, self.shared.found
        asked: list[tuple[str, Callable[[], tuple[I64 | None, int | None]]]] = []
        if telamalloc.TelaMalloc().declines(problem) is None:
            part = Budget(self.budget.left * _LEARNED)
            asked.append(("telamalloc", lambda: (telamalloc.search(problem, found, part, self.stop, self.seed), None)))
        if exact.ExactPacking().declines(problem) is None and importlib.util.find_spec("ortools") is not None:
            asked.append(("exact", lambda: exact.search(problem, self.shared.found, self.budget, self.stop, self.seed)))
        return asked
