"""The integer programme for throughput of Tarnawski et al. (2020), solved by CP-SAT (Perron et al. 2023), with a proven bound.

x[g, m]: group g on machine m. cut[h, m] ≥ x[u, m] - x[v, m] and ≥ x[v, m] - x[u, m] for the output h of u and its readers v. Load of m ≤ T;
minimise T. Contiguous: for each accelerator and phase z[v] ≤ z[u], x[v] ≤ z[v] ≤ x[v] - x[u] + 1 on edges u → v. Times are counted in whole units
of T/10^5, rounded down, so that the optimum is a bound. It starts from stages along topological orders and a short annealing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.pipeline._groups import Groups
from fourfold.decisions.pipeline._stages import stages
from fourfold.decisions.pipeline.problem import MaxLoad, Split
from fourfold.frontends.placement import PipelineWorkload
from fourfold.problem import Budget, Solver, SolverAnswer

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel

_UNITS, _LARGEST, _SMALL = 100_000, 60_000, 400                         # units of a load; booleans at most; up to these one worker and one answer


class ThroughputIp(Solver):
    title = "Integer programme for the greatest load, with a proven bound"
    lever = "machine"
    answers = "partition"
    cites = ("tarnawski2020", "perron2023")
    needs = ("ortools", "numba", "scipy")
    gives = ("bound",)
    counts = "branches (an answer of a small problem depends on them alone)"

    def declines(self, problem: MaxLoad) -> str | None:
        size = len(problem.workload) * problem.machines
        return f"its {size:,} yes-or-no choices are more than the {_LARGEST:,} it can hold" if size > _LARGEST else None

    def solve(self, problem: MaxLoad, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        from ortools.sat.python import cp_model

        g = Groups.of_workload(problem.workload)
        first = np.unique(g.of, return_index=True)[1]
        start = stages(problem.workload, seed, 4)[0][first].astype(np.int64)
        value = problem.cost(Split(start[g.of]))
        if not problem.contiguous and len(g) * g.machines > _SMALL:
            from fourfold.decisions.pipeline._moves import improve

            start, value, _ = improve(g, [start], problem.bound(), Budget(budget.left / 4, 2**62), seed)
        model, x, unit = _model(problem, g, value)
        for group in range(len(g)):
            for m in range(g.machines):
                model.add_hint(x[group][m], bool(start[group] == m))
        solver = cp_model.CpSolver()
        small = len(g) * g.machines <= _SMALL
        solver.parameters.num_workers = 1 if small else min(8, os.cpu_count() or 1)
        solver.parameters.random_seed = seed % 2**31
        solver.parameters.max_time_in_seconds = max(0.1, budget.left)
        if small:
            solver.parameters.max_deterministic_time = max(0.1, min(5.0, budget.evaluations * 1e-3))
        status = solver.solve(model)
        budget.spend(int(solver.num_branches))
        bound = max(problem.bound(), solver.best_objective_bound * unit)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            machine = np.array([[solver.boolean_value(x[group][m]) for m in range(g.machines)] for group in range(len(g))]).argmax(1)
            if problem.cost(Split(machine[g.of])) < value:
                start, value = machine, problem.cost(Split(machine[g.of]))
        return SolverAnswer(Split(start[g.of].astype(np.int16)), min(bound, value), note=solver.status_name(status).lower())


def _model(problem: MaxLoad, g: Groups, value: float) -> tuple[Any, list[list[Any]], float]:
    """(model, x, time of a unit)."""
    from ortools.sat.python import cp_model

    unit = value / _UNITS if value else 1.0
    model = cp_model.CpModel()
    x = [[model.new_bool_var("") for _ in range(g.machines)] for _ in range(len(g))]
    top = model.new_int_var(int(problem.bound() / unit), _UNITS + 1, "top")
    scale = max(1.0, g.limit) / 2**40
    for group in range(len(g)):
        model.add_exactly_one(x[group])
        for m in range(g.machines):
            if not np.isfinite(g.fast[group] if m < g.accelerators else g.slow[group]):
                model.add(x[group][m] == 0)
    whole = lambda values: [int(v / unit) if np.isfinite(v) else 0 for v in values]   # noqa: E731
    fast, slow, cost = whole(g.fast), whole(g.slow), whole(g.net_cost)
    for m in range(g.accelerators):
        cuts = []
        for h in range(len(g.net_cost)):
            cut = model.new_bool_var("")
            pins = g.net_pin[g.net_ptr[h]: g.net_ptr[h + 1]].tolist()
            for pin in pins[1:]:
                model.add_bool_or([x[pins[0]][m].Not(), x[pin][m], cut])
                model.add_bool_or([x[pins[0]][m], x[pin][m].Not(), cut])
            cuts.append(cut)
        model.add(sum(f * x[i][m] for i, f in enumerate(fast)) + sum(c * cut for c, cut in zip(cost, cuts, strict=True)) <= top)
        model.add(sum(int(s / scale) * x[i][m] for i, s in enumerate(g.size)) <= int(g.limit / scale))
        if problem.contiguous:
            _contiguous(model, problem.workload, g, [row[m] for row in x])
    for m in range(g.accelerators, g.machines):
        model.add(sum(s * x[i][m] for i, s in enumerate(slow)) <= top)
    model.minimize(top)
    return model, x, unit


def _contiguous(model: CpModel, w: PipelineWorkload, g: Groups, x: list[Any]) -> None:
    for phase in (~w.backward, w.backward):
        z = [model.new_bool_var("") for _ in range(len(w))]
        for v in range(len(w)):
            if phase[v]:
                model.add_implication(x[g.of[v]], z[v])
        for u, v in zip(w.source.tolist(), w.target.tolist(), strict=True):
            model.add_implication(z[v], z[u])
            if phase[u]:                                                # z[v] ≤ x[v] - x[u] + 1
                model.add_bool_or([z[v].Not(), x[g.of[u]].Not()] + ([x[g.of[v]]] if phase[v] else []))
