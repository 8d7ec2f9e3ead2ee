"""CP-SAT over retention intervals (Bartan et al. 2023): each node may run a few times, and each run keeps what it makes for an interval of steps.

Bartan et al. fix the order of first runs; here the order is free as well. A run takes a step of its own; a run that reads a value lies within an
interval in which it is kept; intervals of one value follow one another, so that the latest instance is the one that is read; the bytes of all
intervals, and the workspaces, are a cumulative constraint. The bound is that of the solver or, where that is lower, what a plan costs in which some
node runs more often than the model has runs for: so it holds for all plans.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._evict import evictions
from fourfold.decisions.rematerialise._lives import INVALID, measure, own_order
from fourfold.decisions.rematerialise._order import greedy_orders
from fourfold.decisions.rematerialise._plans import PricedPlan, candidate, fits, refusal, shrinking, target
from fourfold.decisions.rematerialise.instance import CoreGraph
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_NODES = 40                                                             # computing nodes; beyond, the model finds little
_FEW, _RUNS = 14, (3, 2)                                                # nodes up to which each may run three times; else two times
_STEP = 2e-3                                                            # deterministic seconds of CP-SAT in one evaluation
_SCALE = 1_000_000                                                      # units of the objective in the price of running all once
_SHRINK = (1.0, 0.97, 0.9)                                              # shares of the limit aimed at where offsets do not fit


class _Solved(NamedTuple):
    """A sequence or None; a price that no plan of the model is below; whether it is proven that the model has none."""

    sequence: NDArray[np.int32] | None
    bound: float
    none: bool


class _Runs:
    """Variables: `present`, `start` of each node's runs; `kept` intervals with their `ends`, of each value's."""

    def __init__(self, model: Any, core: CoreGraph, most: int) -> None:
        nodes = core.computing
        self.horizon = most * nodes
        self.count = [1 if core.once[n] or core.price[n] == 0 and not core.size[core.out_val[core.out_ptr[n]:core.out_ptr[n + 1]]].any() else most
                      for n in range(nodes)]
        self.present = [[model.new_bool_var("") for _ in range(self.count[n])] for n in range(nodes)]
        self.start = [[model.new_int_var(0, self.horizon - 1, "") for _ in range(self.count[n])] for n in range(nodes)]
        self.end = [[model.new_int_var(1, self.horizon, "") for _ in range(self.count[int(core.producer[v])])] for v in range(len(core.size))]


def _model(core: CoreGraph, limit: int, most: int) -> tuple[Any, _Runs]:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    runs, unit = _Runs(model, core, most), max(1, int(np.gcd.reduce(np.concatenate([core.size, core.workspace]))))
    steps, bytes_, demand = [], [], []
    for n in range(core.computing):
        model.add(runs.present[n][0] == 1)
        for k, (there, start) in enumerate(zip(runs.present[n], runs.start[n], strict=True)):
            steps.append(model.new_optional_fixed_size_interval_var(start, 1, there, ""))
            if core.workspace[n]:
                bytes_.append(steps[-1])
                demand.append(int(core.workspace[n]) // unit)
            if k:
                model.add_implication(there, runs.present[n][k - 1])
                model.add(start > runs.start[n][k - 1]).only_enforce_if(there)
    for v in range(len(core.size)):
        maker = int(core.producer[v])
        for k, end in enumerate(runs.end[v]):
            start, there = runs.start[maker][k], runs.present[maker][k]
            length = model.new_int_var(1, runs.horizon, "")
            bytes_.append(model.new_optional_interval_var(start, length, end, there, ""))
            demand.append(int(core.size[v]) // unit)
            if k:
                model.add(runs.end[v][k - 1] <= start).only_enforce_if(there)
        if core.pinned[v]:                                              # its last run keeps it to the end
            for k, (there, end) in enumerate(zip(runs.present[maker], runs.end[v], strict=True)):
                following = [runs.present[maker][k + 1].negated()] if k + 1 < len(runs.end[v]) else []
                model.add(end == runs.horizon).only_enforce_if([there, *following])
    model.add_no_overlap(steps)
    model.add_cumulative(bytes_, demand, limit // unit)
    _reads(model, core, runs)
    return model, runs


def _reads(model: Any, core: CoreGraph, runs: _Runs) -> None:
    """Each run lies within an interval in which what it reads is kept."""
    for n in range(core.computing):
        for v in core.in_val[core.in_ptr[n] : core.in_ptr[n + 1]].tolist():
            maker = int(core.producer[v])
            for there, at in zip(runs.present[n], runs.start[n], strict=True):
                ways = []
                for k, end in enumerate(runs.end[v]):
                    way = model.new_bool_var("")
                    model.add_implication(way, runs.present[maker][k])
                    model.add(at > runs.start[maker][k]).only_enforce_if(way)
                    model.add(at < end).only_enforce_if(way)
                    ways.append(way)
                model.add_bool_or([*ways, there.negated()])


def _hinted(model: Any, runs: _Runs, sequence: NDArray[np.int32]) -> None:
    """Start from a sequence, as far as the model has runs for it."""
    seen = [0] * len(runs.count)
    for step, n in enumerate(sequence.tolist()):
        if seen[n] < runs.count[n]:
            model.add_hint(runs.start[n][seen[n]], step)
            model.add_hint(runs.present[n][seen[n]], 1)
        seen[n] += 1
    for n, times in enumerate(seen):
        for k in range(times, runs.count[n]):
            model.add_hint(runs.present[n][k], 0)


def _solved(core: CoreGraph, limit: int, most: int, hint: NDArray[np.int32] | None, evaluations: int, seconds: float, seed: int) -> _Solved:
    from ortools.sat.python import cp_model

    model, runs = _model(core, limit, most)
    total = float(core.price.sum())
    unit = total / _SCALE if total > 0 else 1.0
    extra = [(int(core.price[n] / unit), there) for n in range(core.computing) for there in runs.present[n][1:]]       # rounded down
    model.minimize(sum(price * there for price, there in extra) if extra else 0)
    if hint is not None:
        _hinted(model, runs, hint)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers, solver.parameters.random_seed = 1, seed % 2**31
    solver.parameters.max_deterministic_time = max(_STEP, evaluations * _STEP)
    if np.isfinite(seconds):
        solver.parameters.max_time_in_seconds = max(0.1, seconds)
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return _Solved(None, float("inf"), True)
    bound = total + max(0.0, solver.best_objective_bound) * unit if status != cp_model.UNKNOWN else total
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return _Solved(None, bound, False)
    made = sorted((solver.value(start), n) for n in range(core.computing) for there, start in zip(runs.present[n], runs.start[n], strict=True)
                  if solver.value(there))
    return _Solved(np.array([n for _, n in made], np.int32), bound, False)


class RetentionIntervals(Solver):
    """The best of small graphs beside A*: few repeats, many orders."""

    title: ClassVar[str] = "CP-SAT over retention intervals, order free"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("bartan2023", "jain2020", "perron2023")
    needs: ClassVar[tuple[str, ...]] = ("ortools",)
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "of CP-SAT's deterministic seconds, 500 each"

    def declines(self, problem: Rematerialise) -> str | None:
        nodes = len(problem.core.node)
        if problem.far is not None:
            return "its model has one memory, and the question has two."
        return f"{nodes} computing ops are more than the {_NODES} that its model can take." if nodes > _NODES else None

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        limit, core = target(problem), problem.core
        orders = [own_order(core), greedy_orders(core)[0]]
        best: PricedPlan | None = shrinking(problem, limit, lambda room: evictions(core, room, orders, Budget(60.0, 40)))
        most = _RUNS[core.computing > _FEW]
        claimed, beyond = problem.bound() or 0.0, _beyond(core, most)
        for turn, share in enumerate(_SHRINK):
            found = _solved(core, int(limit * share), most, None if best is None else best.sequence,
                            max(1, (budget.evaluations - budget.spent) // (1 if turn == 0 else 2)), budget.left, seed)
            budget.spend(max(1, (budget.evaluations - budget.spent) // (2 if turn == 0 else 4)))
            if turn == 0:
                views = float(problem.price[problem.viewing].sum())
                claimed = max(claimed, (min(found.bound, beyond) + views) * (1 - 1e-12))
                if found.none and best is None and np.isinf(beyond):
                    raise Infeasible(f"No plan of {problem.graph.name or 'this graph'} fits {limit:,} bytes: CP-SAT proves it.", "Give more bytes.")
            if found.sequence is None or measure(core, found.sequence)[0] == INVALID:
                break
            one = candidate(problem, found.sequence)
            if fits(problem, one.peak):
                best = one if best is None or one.price < best.price else best
                break
        if best is None:
            raise refusal(problem)
        return SolverAnswer(best.answer, min(best.price, claimed), note="Optimum." if best.price <= claimed * (1 + 1e-6) else "")


def _beyond(core: CoreGraph, most: int) -> float:
    """A price that every plan reaches in which some node runs more than `most` times; inf where none may run twice."""
    again = core.price[: core.computing][~core.once[: core.computing]]
    return float(core.price.sum() + most * again.min()) if len(again) else float("inf")
