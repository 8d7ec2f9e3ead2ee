"""CP-SAT (Perron et al. 2023): rectangles that do not overlap in two dimensions, a cumulative constraint over time, energetic reasoning.

Lives are ranks, sizes are in units of their greatest common divisor. Within a capacity any packing will do, and a proof that there is none counts;
otherwise the height is minimised, with the solver's bound. Greedy packings come first and serve as hint.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fourfold.decisions.allocate import _starts as starts
from fourfold.decisions.allocate._restarts import StopFlag
from fourfold.decisions.allocate.instance import FREE, I64, Rectangles
from fourfold.decisions.allocate.problem import Allocate
from fourfold.problem import Budget, Solver, SolverAnswer

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel

_MOST = 5000                                                            # rectangles


class ExactPacking(Solver):
    title: ClassVar[str] = "CP-SAT: no overlap in two dimensions, cumulative, energetic reasoning"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "allocate"
    cites: ClassVar[tuple[str, ...]] = ("perron2023",)
    needs: ClassVar[tuple[str, ...]] = ("ortools",)
    gives: ClassVar[tuple[str, ...]] = ("optimum", "bound")
    counts: ClassVar[str] = "models solved"

    def declines(self, problem: Allocate) -> str | None:
        count = len(problem.buffers.parts().owner)
        return f"its model has {count:,} rectangles, and it takes {_MOST:,} at most" if count > _MOST else None

    def solve(self, problem: Allocate, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that there is no packing, or where none within the capacity was found (the message says which)."""
        begin = starts.begin(problem, budget)
        found, bound = begin.found, None
        if not begin.done and not budget.exhausted:
            with StopFlag(budget) as stop:
                better, bound = search(problem, found, budget, stop, seed)
            found = found if better is None else better
            budget.spend()
        return starts.answer(problem, found, bound)


def search(problem: Allocate, hint: I64, budget: Budget, stop: np.ndarray, seed: int = 0, workers: int = 1) -> tuple[I64 | None, int | None]:
    """(a packing in units or None, a height that is proven or None) by CP-SAT; it ends when `stop[0]` is set."""
    from ortools.sat.python import cp_model

    p = problem.buffers.parts()
    if stop[0]:
        return None, None
    model = cp_model.CpModel()
    offset, height = _model(model, p, problem, hint)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers, solver.parameters.random_seed = workers, seed % 2**31
    solver.parameters.use_energetic_reasoning_in_no_overlap_2d = True
    ended = threading.Event()

    if stop[0]:
        return None, None
    if type(budget).left is Budget.left and np.isfinite(left := budget.left):      # its limit counts wall seconds; another clock has only the flag
        solver.parameters.max_time_in_seconds = max(0.1, left)

    def watch() -> None:
        while not ended.wait(0.05):
            if stop[0]:
                solver.stop_search()                                    # again until it ends: what comes before the search began is not heard

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        status = solver.solve(model)
    finally:
        ended.set()
        thread.join()
    packed = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    found = np.array([int(solver.value(x)) for x in offset], np.int64) if packed else None
    if height is None:
        return found, int(p.room.sum()) + 1 if status == cp_model.INFEASIBLE else None
    if status == cp_model.INFEASIBLE:
        return None, int(p.room.sum()) + 1 if problem.capacity is not None else None
    return found, int(np.ceil(solver.best_objective_bound - 1e-6)) if status != cp_model.UNKNOWN else None


def _model(model: CpModel, p: Rectangles, problem: Allocate, hint: I64) -> tuple[list[Any], object]:
    """Fill `model`; (offset variables, the height's expression or None where only a packing is asked)."""
    from ortools.sat.python import cp_model

    decide = problem.decide and problem.capacity is not None
    most = p.height(hint) if len(p.base) == 1 else int(p.base[-1] + min(int(p.room[-1]), int(p.extent.sum())))
    offset: list[Any] = []
    for v in range(len(p.extent)):
        ranges = []
        for b in range(len(p.base)) if p.bank[v] == FREE else [int(p.bank[v])]:
            end = int(p.base[b]) + min(int(p.room[b]), max(most, 1))
            if end - int(p.extent[v]) >= p.base[b]:
                ranges.append([int(p.base[b]), end - int(p.extent[v])])
        if p.fixed[v] != FREE:
            ranges = [[int(p.fixed[v])] * 2]
        x = model.new_int_var_from_domain(cp_model.Domain.from_intervals(ranges), f"x{v}")
        if p.alignment[v] > 1 and p.fixed[v] == FREE:
            model.add(x == int(p.alignment[v]) * model.new_int_var(0, ranges[-1][1] // int(p.alignment[v]) if ranges else 0, ""))
        if not decide:
            model.add_hint(x, int(hint[v]))
        offset.append(x)
    xs, ys, sizes = [], [], p.size.tolist()
    for r, v in enumerate(p.owner.tolist()):
        xs.append(model.new_fixed_size_interval_var(int(p.lower[r]), int(p.upper[r] - p.lower[r]), ""))
        ys.append(model.new_fixed_size_interval_var(offset[v] + int(p.shift[r]), sizes[r], ""))
    model.add_no_overlap_2d(xs, ys)
    if decide:
        model.add_cumulative(xs, sizes, int(p.room.sum()))
        return offset, None
    return offset, _height(model, p, problem, offset, xs, most)


def _height(model: CpModel, p: Rectangles, problem: Allocate, offset: list[Any], xs: list[Any], most: int) -> object:
    """Minimise what is used of the banks, each up to its highest address."""
    least = -(-problem.bound() // p.unit)
    if len(p.base) == 1:
        height = model.new_int_var(min(least, most), most, "height")
        for v, x in enumerate(offset):
            model.add(x + int(p.extent[v]) <= height)
        model.add_cumulative(xs, p.size.tolist(), height)
        model.minimize(height)
        return height
    used, where = [], [[] for _ in offset]
    for b in range(len(p.base)):
        top = model.new_int_var(0, int(min(p.room[b], p.extent.sum())), f"used{b}")
        used.append(top)
        for v, x in enumerate(offset):
            if p.bank[v] not in (FREE, b) or p.extent[v] > p.room[b]:
                continue
            here = model.new_bool_var("")
            model.add(x >= int(p.base[b])).only_enforce_if(here)
            model.add(x + int(p.extent[v]) <= int(p.base[b]) + top).only_enforce_if(here)
            where[v].append(here)
    for literals in where:
        model.add_exactly_one(literals)
    model.minimize(sum(used))
    return used
