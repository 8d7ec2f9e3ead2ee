"""The portfolio: cheap techniques first, an exact one where the graph is small, the learned policy, then a search from the best few.

No technique is best on every graph (Rice 1976, the algorithm selection problem), and running several and keeping the best is never worse than any of
them (Huberman, Lukose and Hogg 1997). Every part's plan is priced by the simulator; what is left of the budget goes to annealing, first a little from
each of the best distinct plans, then all from the one that got furthest. `evidence["table"]` has a row for every part: cost, seconds, evaluations,
note. GO is left out where the shipped record (`evidence.json`, from training graphs on which `auto` is not ranked) shows that the search without it
did better in equal time, whichever of these graphs are drawn (the 90 % interval over them).
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from fourfold.decisions.schedule import anneal
from fourfold.decisions.schedule.exact import Exact
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import FourfoldError, Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer
from fourfold.registry import names, technique

CHEAP = ("default", "expert", "heft", "peft", "metis")
_GO, _NETWORK = 0.15, 5e-4                                             # share of the time that GO may take; s per op of its least work
_SIZES = (300, 1000, 3000, 10_000, 30_000)                             # of graphs, nodes: the classes of the record


@dataclass
class _Part:
    """What one technique gave."""

    name: str
    answer: Answer | None
    cost: float
    seconds: float
    evaluations: int
    bound: float | None = None
    note: str = ""

    def row(self) -> dict[str, object]:
        return {"solver": self.name, "cost": self.cost if math.isfinite(self.cost) else None, "seconds": self.seconds,
                "evaluations": self.evaluations, "note": self.note}


class Auto(Solver):
    """The best of the cheap techniques, exact search, GO and annealing."""

    default = True
    title: ClassVar[str] = "Portfolio: list schedules and splits, exact where small, GO, then annealing from the best"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("rice1976", "huberman1997")
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "plans simulated"

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        parts = [_ask(problem, name, _slice(budget, 0.25), budget, seed) for name in CHEAP]
        if not any(part.answer for part in parts):
            raise Infeasible("; ".join(sorted({part.note for part in parts})) or "No plan was found.", "Use more or larger devices.")
        bound = problem.bound()
        if not _proven(parts, bound) and Exact().declines(problem) is None and importlib.util.find_spec("ortools") is not None:
            parts.append(_ask(problem, "exact", _slice(budget, 0.4), budget, seed))
        why = _skips(problem, budget)
        if why:
            parts.append(_Part("go", None, math.inf, 0.0, 0, note=why))
        elif not _proven(parts, bound) and not budget.exhausted:
            parts.append(_ask(problem, "go", _slice(budget, _GO), budget, seed))
        if not _proven(parts, bound) and not budget.exhausted:
            parts.append(_polish(problem, parts, budget, seed))
        best = min(parts, key=lambda part: part.cost)
        assert best.answer is not None
        known = [part.bound for part in parts if part.bound is not None]
        return SolverAnswer(best.answer, min(max(known), best.cost) if known else None, {"table": [part.row() for part in parts]},
                        f"Best of {len(parts)}: {best.name}." + (f" {best.note}" if best.note else ""))


def _slice(budget: Budget, share: float) -> Budget:
    return Budget(budget.left * share, max(1, int((budget.evaluations - budget.spent) * share)))


def _ask(problem: Schedule, name: str, part: Budget, whole: Budget, seed: int) -> _Part:
    """One technique's plan, priced; why there is none in the note. Charges `whole`."""
    start = time.perf_counter()
    try:
        solver: Solver = technique(f"schedule/{name}")(**({"polish": False} if name == "go" else {}))
        missing = [need for need in solver.needs if importlib.util.find_spec(need) is None]
        why = f"needs {', '.join(missing)}, which is not installed" if missing else solver.declines(problem)
        if why:
            return _Part(name, None, math.inf, 0.0, 0, note=why)
        found = solver.solve(problem, part, seed)
        cost = anneal.price(problem, found.answer)
        note = found.note if math.isfinite(cost) else "its plan does not fit the devices' memory"
        answer, bound = found.answer if math.isfinite(cost) else None, found.bound
    except (FourfoldError, ImportError, OSError) as error:                # OSError: a part without its weights
        answer, cost, bound, note = None, math.inf, None, str(error).splitlines()[0]
    whole.spend(part.spent)
    return _Part(name, answer, cost, time.perf_counter() - start, part.spent, bound, note)


def _proven(parts: list[_Part], bound: float | None) -> bool:
    """Whether nothing can be better than the best so far."""
    known = [one for one in (bound, *(part.bound for part in parts)) if one is not None]
    return bool(known) and min(part.cost for part in parts) <= max(known) * (1 + 1e-6)


def _polish(problem: Schedule, parts: list[_Part], budget: Budget, seed: int) -> _Part:
    """Annealing from the best of all parts' plans and of its own starts."""
    start, spent = time.perf_counter(), budget.spent
    found = [(part.cost, part.answer) for part in parts if part.answer is not None]
    try:
        found += anneal.starts(problem, budget)
    except Infeasible:                                                 # what the parts found is enough
        pass
    rest = Budget(budget.left, max(0, budget.evaluations - budget.spent))
    answer = anneal.race(problem, found, rest, seed)
    budget.spend(rest.spent)
    return _Part("anneal", answer, anneal.price(problem, answer), time.perf_counter() - start, budget.spent - spent, note="From the best few plans.")


# ---- where GO is not worth its time

def _skips(problem: Schedule, budget: Budget) -> str:
    """Why GO is not asked, or ""."""
    if "go" not in names("schedule"):
        return "not installed"
    if (least := _NETWORK * len(problem.graph)) > _GO * budget.left:   # what it does at least cannot be cut short
        return f"left out: its network would take {least:.3g} s, more than {100 * _GO:.0f} % of the {budget.left:.3g} s that are left"
    cell = record().get(f"{size(len(problem.graph))}", {})
    if cell.get("cases", 0) >= 3 and cell.get("low", 0.0) > 1.0:        # beyond what the choice of graphs explains
        more = f"{100 * (cell['ratio'] - 1):.1f} %"
        return f"left out: on {cell['cases']} graphs of about this size its polished plan cost {more} more than the search without it in equal time"
    return ""


def size(nodes: int) -> int:
    """The class of a graph in the record: the least of its limits that is not below `nodes`, 0 above all."""
    return next((limit for limit in _SIZES if nodes <= limit), 0)


@cache
def record() -> dict[str, dict[str, float]]:
    """Class of size → {"ratio": cost of GO with polish / of annealing in equal time (geometric mean), "low", "high": its 90 % interval over graphs,
    "cases"}; written by benchmarks/portfolio.py.
    """
    file = Path(__file__).with_name("evidence.json")
    return json.loads(file.read_text(encoding="utf-8"))["classes"] if file.exists() else {}
