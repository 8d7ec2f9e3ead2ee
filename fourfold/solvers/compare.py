"""Several solvers asked the same question under equal wall time: one row a solver and seed, every answer examined by `solve`.

`entries` yields them one by one, for callers that tell as they go or stop early; `compare` collects them in a `SolverTable`. With a journal a row is
made once for its key and recalled from then on; what is recalled holds no answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from fourfold.errors import FourfoldError
from fourfold.problem import Budget, Problem, Solution, Solver, solve

A = TypeVar("A")
EVALUATIONS, ENDLESS = 1_000_000, 10**12                               # a solver's, as of `Budget`; and so many that the clock stops first


class JournalLike(Protocol):
    """What remembers rows: a `Journal`, or anything with its `once`."""

    def once(self, key: str, fn: Callable[[], object]) -> Any: ...


@dataclass(frozen=True)
class SolverRow(Generic[A]):
    """What `solver` gave for `seed`: a checked solution, or why there is none (`error`, and `declined` where it cannot answer the problem at all).

    `seconds` and `cpu` are the solver's and the check's together, of this process.
    """

    solver: str
    title: str
    seed: int
    solution: Solution[A] | None
    error: Exception | None
    declined: str
    seconds: float
    cpu: float

    def row(self) -> dict[str, Any]:
        """Plain data: cost, bound, gap and note of the answer, or None and why; `solver_s` without the check."""
        found = self.solution
        head = {"solver": self.solver, "title": self.title, "seed": self.seed, "seconds": self.seconds, "cpu_s": self.cpu}
        if found is None:
            why = self.error.message if isinstance(self.error, FourfoldError) else (str(self.error) or repr(self.error)).splitlines()[0]
            return {**head, "cost": None, "bound": None, "gap": None, "evaluations": 0, "solver_s": None, "note": "", "why": why}
        return {**head, "cost": found.cost, "bound": found.bound, "gap": None if found.gap is None or math.isinf(found.gap) else found.gap,
                "evaluations": found.evaluations, "solver_s": found.seconds, "note": found.note, "why": "",
                **({"table": list(found.evidence["table"])} if found.evidence.get("table") else {})}


@dataclass(frozen=True)
class SolverTable(Generic[A]):
    """`rows` as of `SolverRow.row`, in the order asked, and the entries behind those that were made now (none where all were recalled)."""

    rows: tuple[dict[str, Any], ...]
    entries: tuple[SolverRow[A], ...]

    @property
    def best(self) -> Solution[A] | None:
        """The cheapest of the answers made now; the first asked of those that cost the same."""
        return min((entry.solution for entry in self.entries if entry.solution is not None), key=lambda found: found.cost, default=None)

    @property
    def bound(self) -> float | None:
        """The greatest bound that any row proves."""
        return max((row["bound"] for row in self.rows if row["bound"] is not None), default=None)

    def of(self, solver: str) -> list[dict[str, Any]]:
        """The rows of one solver, by seed."""
        return [row for row in self.rows if row["solver"] == solver]


def entries(problem: Problem[A], solvers: Mapping[str, Solver], seconds: float | Mapping[str, float] = 60.0,
            seeds: Iterable[int] | Mapping[str, Iterable[int]] = (0,), *, evaluations: int = EVALUATIONS,
            faults: tuple[type[Exception], ...] = (FourfoldError,)) -> Iterator[SolverRow[A]]:
    """Ask each of `solvers` (by the name that the table shall bear) in turn, with each of `seeds`, for `seconds` each: one for all, or by name.

    What is of `faults` becomes the entry's `error`; anything else a solver raises goes on to the caller.
    """
    for name, solver, seed, mine in _asks(solvers, seconds, seeds):
        yield _asked(problem, name, solver, Budget(mine, evaluations), seed, faults)


def compare(problem: Problem[A], solvers: Mapping[str, Solver], seconds: float | Mapping[str, float] = 60.0,
            seeds: Iterable[int] | Mapping[str, Iterable[int]] = (0,), journal: JournalLike | None = None, *, key: str = "",
            evaluations: int = EVALUATIONS, faults: tuple[type[Exception], ...] = (FourfoldError,),
            tell: Callable[[dict[str, object]], None] | None = None) -> SolverTable[A]:
    """The table of `entries`. `key` names the problem in the journal (all that it depends on: graph, machine, objective); `tell` hears every row as
    soon as it is there.
    """
    made: list[SolverRow[A]] = []
    rows: list[dict[str, object]] = []
    for name, solver, seed, mine in _asks(solvers, seconds, seeds):
        def ask(name: str = name, solver: Solver = solver, seed: int = seed, mine: float = mine) -> dict[str, Any]:
            made.append(_asked(problem, name, solver, Budget(mine, evaluations), seed, faults))
            return made[-1].row()

        rows.append(ask() if journal is None else journal.once(f"{key}/{name}/{seed}/{mine:g}", ask))
        if tell is not None:
            tell(rows[-1])
    return SolverTable(tuple(rows), tuple(made))


def _asks(solvers: Mapping[str, Solver], seconds: float | Mapping[str, float],
          seeds: Iterable[int] | Mapping[str, Iterable[int]]) -> Iterator[tuple[str, Solver, int, float]]:
    for name, solver in solvers.items():
        for seed in list(cast(Mapping[str, Iterable[int]], seeds)[name] if isinstance(seeds, Mapping) else seeds):
            yield name, solver, seed, float(seconds[name] if isinstance(seconds, Mapping) else seconds)


def _asked(problem: Problem[A], name: str, solver: Solver, budget: Budget, seed: int, faults: tuple[type[Exception], ...]) -> SolverRow[A]:
    wall, cpu = time.perf_counter(), time.process_time()
    solution, error, declined = None, None, ""
    try:
        solution = solve(problem, solver, budget, seed)
    except faults as fault:
        error, declined = fault, solver.declines(problem) or ""
    return SolverRow(name, solver.title, seed, solution, error, declined, time.perf_counter() - wall, time.process_time() - cpu)
