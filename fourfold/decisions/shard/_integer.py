"""The question as an integer program for CP-SAT (Perron et al. 2023), for instances of some thousand table entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.shard._model import BIG, PairwiseModel
from fourfold.decisions.shard.instance import I64

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel

STRATEGIES, ENTRIES = 1500, 40_000                                      # the most that is tried
_SCALE, _MOST = 2.0**40, 2.0**55


@dataclass(frozen=True)
class IntegerResult:
    """What CP-SAT found: a choice or None, a bound on the model's cost, whether it is proven that there is no choice."""

    chosen: I64 | None
    floor: float
    impossible: bool


def small(m: PairwiseModel) -> bool:
    return len(m.unary) <= STRATEGIES and len(m.table) <= ENTRIES and m.sections * len(m) <= 2_000_000


def search(m: PairwiseModel, whole: bool, seconds: float, work: float, seed: int = 0, hint: I64 | None = None, workers: int = 1,
           better: Callable[[float], None] = lambda value: None) -> IntegerResult:
    """Solve for at most `seconds`, and for `work` units of CP-SAT's own clock. Costs that are no whole numbers are scaled, and
    rounded down for the bound."""
    from ortools.sat.python import cp_model

    least, rounded = _whole_costs(m, whole)
    model = cp_model.CpModel()
    x: list[Any] = [model.new_bool_var("") for _ in range(len(m.unary))]
    terms: list[tuple[Any, int]] = [(x[s], int(cost)) for s, cost in enumerate(rounded[: len(m.unary)])]
    for i in range(len(m)):
        model.add_exactly_one(x[m.ptr[i] : m.ptr[i + 1]])
    for e in range(len(m.a)):
        terms += _pair(model, m, x, e, rounded[len(m.unary) + m.tptr[e] : len(m.unary) + m.tptr[e + 1]])
    for t in range(m.sections):
        live = np.flatnonzero((m.first <= t) & (t < m.last))
        used = np.concatenate([np.arange(m.ptr[i], m.ptr[i + 1]) for i in live.tolist()]) if len(live) else np.zeros(0, np.int64)
        if sum(int(m.usage[m.ptr[i] : m.ptr[i + 1]].max()) for i in live.tolist()) > m.limit:
            model.add(sum(int(m.usage[s]) * x[s] for s in used.tolist() if m.usage[s]) <= m.limit)
    model.minimize(sum(cost * variable for variable, cost in terms if cost))
    if hint is not None:
        taken = set((m.ptr[:-1] + hint).tolist())
        for s, variable in enumerate(x):
            model.add_hint(variable, s in taken)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.max_deterministic_time = max(0.01, seconds), work
    solver.parameters.num_workers, solver.parameters.random_seed = workers, seed
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return IntegerResult(None, np.inf, True)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return IntegerResult(None, -np.inf, False)
    values = np.array([solver.boolean_value(variable) for variable in x])
    chosen = np.array([int(np.argmax(values[m.ptr[i] : m.ptr[i + 1]])) for i in range(len(m))], np.int64)
    return IntegerResult(chosen, solver.best_objective_bound * least, False)


def _whole_costs(m: PairwiseModel, whole: bool) -> tuple[float, np.ndarray]:
    """(the unit, costs of strategies then of table entries in it): 1 and the costs themselves where they are whole and small enough."""
    costs = np.concatenate([m.unary, m.table])
    finite = np.where(costs < BIG / 10, costs, 0.0)
    total = float(np.abs(finite).sum())
    unit = 1.0 if whole and total < _MOST else max(total, 1e-300) / _SCALE
    return unit, np.where(costs < BIG / 10, np.floor(finite / unit), BIG)


def _pair(model: CpModel, m: PairwiseModel, x: list[Any], e: int, costs: np.ndarray) -> list[tuple[Any, int]]:
    """The table of an edge: a variable for each pair that may stand together, summing up to its row's and to its column's strategy."""
    a, b = int(m.a[e]), int(m.b[e])
    ka, kb = int(m.ptr[a + 1] - m.ptr[a]), int(m.ptr[b + 1] - m.ptr[b])
    table = costs.reshape(ka, kb)
    y: list[list[Any]] = [[model.new_bool_var("") if table[s, t] < BIG else None for t in range(kb)] for s in range(ka)]
    for s in range(ka):
        model.add(sum(one for one in y[s] if one is not None) == x[m.ptr[a] + s])
    for t in range(kb):
        model.add(sum(row[t] for row in y if row[t] is not None) == x[m.ptr[b] + t])
    return [(y[s][t], int(table[s, t])) for s in range(ka) for t in range(kb) if y[s][t] is not None]
