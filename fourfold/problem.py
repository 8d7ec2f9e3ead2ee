"""Problem · Solver · Solution · solve(): one question, one technique, one checked answer.

A decision changes only how, on what, where or when something runs, so it owes a validity proof. `solve` is the one place that calls a solver: it
asks, has the answer examined by the problem's own validator (which knows no solver), and prices it. A solver is never believed about feasibility or
cost.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from fourfold.errors import FourfoldError, InputError
from fourfold.interrupts import Interrupts

A = TypeVar("A")                                                        # what an answer is; each problem says
_ROUNDING = 1e-9                                                        # a bound may exceed the cost by this share of it: sums in another order


class Rejected(FourfoldError):
    """A solver whose answer broke the problem's rules, or who claimed a bound that its own answer refutes. A fault of the solver, not of the user."""

    exit_code = 1


class Watch:
    """Looks on while solvers work: `with Watch(tell):`. `tell(seconds since it began)` is called when they look at a budget, each `every` s; `better`
    with a cost, where a solver says that it has an answer which is better than what it had.

    The first Ctrl-C meanwhile spends all budgets (`stopped`), so that a solver hands back the best it has; the second interrupts as ever.
    """

    def __init__(self, tell: Callable[[float], None] = lambda seconds: None, every: float = 1.0,
                 better: Callable[[float], None] = lambda cost: None) -> None:
        self.tell, self.every, self.better, self.stopped = tell, every, better, False
        self.start = self._told = time.monotonic()

    def __enter__(self) -> Watch:
        self._token, self._interrupts = _WATCH.set(self), Interrupts(self._stop)
        self._interrupts.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        _WATCH.reset(self._token)
        self._interrupts.__exit__(*exc)

    def look(self) -> None:
        now = time.monotonic()
        if now - self._told >= self.every:
            self._told = now
            self.tell(now - self.start)

    def _stop(self) -> None:
        self.stopped = True


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


class Budget:
    """What a solver may spend: wall seconds and evaluations (of a move, a node, a replan: the solver says in `Solver.counts`).

    A run that stops by evaluations answers alike on every machine; one that stops by seconds does not. Raises InputError where either is negative.
    """

    def __init__(self, seconds: float = 60.0, evaluations: int = 1_000_000) -> None:
        if seconds < 0 or evaluations < 0:
            raise InputError(f"A budget cannot be negative, got {seconds:g} s and {evaluations} evaluations.", "Give zero or more of each.")
        self.seconds, self.evaluations, self.spent = float(seconds), int(evaluations), 0
        self._start = time.monotonic()

    def restart(self) -> None:
        """Start the clock and the count from zero; `solve` calls it."""
        self.spent, self._start = 0, time.monotonic()

    def spend(self, evaluations: int = 1) -> bool:
        """Count `evaluations`; True while there is something left."""
        self.spent += evaluations
        return not self.exhausted

    def improve(self, cost: float) -> None:
        """Tell who watches that there is an answer of this cost; not checked, and no part of the answer."""
        if (watch := _WATCH.get()) is not None:
            watch.better(cost)

    @property
    def left(self) -> float:
        """Seconds left, never negative; none once a `Watch` was told to stop."""
        if (watch := _WATCH.get()) is not None:
            watch.look()
            if watch.stopped:
                return 0.0
        return max(0.0, self.seconds - (time.monotonic() - self._start))

    @property
    def exhausted(self) -> bool:
        return self.left <= 0.0 or self.spent >= self.evaluations


class Problem(ABC, Generic[A]):
    """One question with all its data. Subclasses are frozen and search nothing.

    `question` is its folder's name ("place"), `lever` the one it belongs to, `unit` what `cost` counts; less is better. `rules` are the names that a
    solver may openly ignore (`Solver.ignores`).
    """

    question: ClassVar[str]
    lever: ClassVar[str]
    rules: ClassVar[tuple[str, ...]] = ()

    unit: str = ""                                                      # of `cost`; a class attribute, a field or a property

    @abstractmethod
    def baseline(self) -> A:
        """What would happen without a decision. May break rules: then `solve` reports "impossible, because …" in place of its cost."""

    @abstractmethod
    def violations(self, answer: A) -> list[str]:
        """Every rule that `answer` breaks, a sentence each; [] = valid. Written without looking at any solver."""

    def relaxed(self, rules: tuple[str, ...]) -> Problem[A]:
        """The same problem without those of its `rules`; what a solver that openly ignores them is checked against."""
        return self

    @abstractmethod
    def cost(self, answer: A) -> float:
        """The price of an answer in `unit`, recomputed from the problem's data."""

    def bound(self) -> float | None:
        """A cost that no valid answer can beat, where one is known without solving."""
        return None

    @classmethod
    @abstractmethod
    def sample(cls, seed: int) -> Problem[A]:
        """A small random instance with at least one valid answer, for the contract tests."""


@dataclass(frozen=True)
class SolverAnswer(Generic[A]):
    """What a solver hands back: an answer, a bound that it claims, the evidence for it (dual prices), and what it wants said."""

    answer: A
    bound: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


class Solver(ABC):
    """One technique, in a file under its name in the literature. No state between calls.

    `answers` is the question; `cites` are keys of `fourfold.cite.BIBLIOGRAPHY`; `needs` importable modules; `gives` what it promises beyond a
    valid answer ("optimum", "bound"); `ignores` the rules it does not look at (a policy that knows no capacity); `counts` what an evaluation is.
    """

    title: ClassVar[str]
    default: ClassVar[bool] = False                                     # what is asked unless another is named
    lever: ClassVar[str]
    answers: ClassVar[str]
    cites: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ()
    ignores: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[str] = ""

    def declines(self, problem: object) -> str | None:
        """Why this technique cannot answer `problem` (a sentence), or None if it can."""
        return None

    @abstractmethod
    def solve(self, problem: Any, budget: Budget, seed: int = 0) -> SolverAnswer[Any]:
        """An answer within `budget`; the same seed and evaluations give the same answer. Raises Infeasible where there is none."""


@dataclass(frozen=True)
class Solution(Generic[A]):
    """A checked answer. `before` is the baseline's cost, or None with the reason in `why`; `bound` and `gap` are None where nothing is proven;
    `broken` lists the rules that the technique openly ignores and broke, in sentences ([] = valid in full).
    """

    question: str
    solver: str
    answer: A
    cost: float
    unit: str
    before: float | None
    why: str
    bound: float | None
    gap: float | None
    broken: tuple[str, ...]
    seconds: float
    evaluations: int
    evidence: Mapping[str, Any] = field(default_factory=dict, repr=False)
    note: str = ""

    @property
    def saving(self) -> float | None:
        """Share of the baseline's cost that is saved; None where the baseline is impossible or free."""
        return 1.0 - self.cost / self.before if self.before else None


def gap(cost: float, bound: float | None) -> float | None:
    """How far `cost` may be above the optimum, as a share of the bound (of the cost where the bound is not positive). None without a bound."""
    if bound is None:
        return None
    scale = abs(bound) if bound > 0 else abs(cost)
    return 0.0 if cost == bound else (cost - bound) / scale if scale else math.inf


def solve(problem: Problem[A], solver: Solver, budget: Budget | None = None, seed: int = 0) -> Solution[A]:
    """Ask `solver`, check its answer with the problem's validator, price it.

    Raises InputError where the solver answers another question or declines, Rejected where its answer breaks a rule that it does not openly ignore or
    where it claims a bound above its own cost, and whatever the solver raises (Infeasible).
    """
    name = type(solver).__module__.rsplit(".", 1)[-1]
    if solver.answers != problem.question:
        raise InputError(f"{name} answers {solver.answers!r}, not {problem.question!r}.", "Choose a technique from the question's folder.")
    if why := solver.declines(problem):
        raise InputError(f"{name} declines: {why}", "Choose another technique.")
    budget = budget or Budget()
    budget.restart()
    start = time.perf_counter()
    found = solver.solve(problem, budget, seed)
    seconds = time.perf_counter() - start
    if broken := problem.relaxed(solver.ignores).violations(found.answer):
        raise Rejected(f"{name} broke {len(broken)} rule{'s' * (len(broken) > 1)} of {type(problem).__name__}; first: {broken[0]}",
                       "This is a fault of the technique; its answer was not used.")
    cost = problem.cost(found.answer)
    if not math.isfinite(cost):
        raise Rejected(f"{name} gave an answer of {type(problem).__name__} that costs {cost!r} {problem.unit}.", "Its answer was not used.")
    if found.bound is not None and found.bound > cost + _ROUNDING * max(abs(cost), abs(found.bound)):
        raise Rejected(f"{name} claims that nothing costs less than {found.bound:.12g} {problem.unit}, yet its own answer costs {cost:.12g}.",
                       "This is a fault of the technique; its answer was not used.")
    known = [bound for bound in (found.bound, problem.bound()) if bound is not None]
    bound = min(max(known), cost) if known else None                    # rounding must not turn a proof into a negative gap
    before, reason = appraise(problem, problem.baseline())
    rest = tuple(problem.violations(found.answer)) if solver.ignores else ()
    return Solution(problem.question, name, found.answer, cost, problem.unit, before, reason, bound, gap(cost, bound), rest, seconds, budget.spent,
                    found.evidence, found.note)


def appraise(problem: Problem[A], answer: A) -> tuple[float | None, str]:
    """(cost, "") of a valid answer, or (None, "impossible, because …")."""
    broken = problem.violations(answer)
    if not broken:
        return problem.cost(answer), ""
    more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    return None, f"impossible, because {broken[0]}{more}"
