"""Constraint programming: all rules, all transfers and the largest stage as one CP-SAT model, exact on small instances, with a hint.

One Boolean for each op and chip, for each connection of two chips, for each way between two chips, and for each value, chip that sends it and chip
that reads it (the constraints of Xie et al., MLSys 2022; the solver is OR-tools', Perron et al. 2023). Times are rounded down to whole units of a
millionth of the hint's cost, so that the bound stays a bound; what it answers is priced as everything else.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.problem import Budget, Solver, SolverAnswer

_LARGEST = 60_000                                                       # Booleans
_GRAIN = 1_000_000


class CpSat(Solver):
    title = "CP-SAT over all rules and transfers"
    lever = "machine"
    answers = "chiplets"
    cites = ("perron2023", "xie2022")
    needs = ("ortools", "numba")
    gives = ("optimum", "bound")
    counts = "solver runs"

    def declines(self, problem: ChipletPartition) -> str | None:
        chips, w = problem.package.chips, problem.workload
        count = len(w) * chips + len(w.maker) * chips * (chips + 1) // 2 + chips**3 // 6
        if problem.compiler is not None:
            return "what a compiler refuses cannot be written as constraints"
        return f"the model would have {count:,} variables, more than {_LARGEST:,}" if count > _LARGEST else None

    def solve(self, problem: ChipletPartition, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        sampler, found = Sampler(problem), PartitionEvaluator(problem, budget)
        seconds = problem.workload.seconds
        middle = (np.cumsum(seconds) - seconds / 2) / max(float(seconds.sum()), 1e-30)
        hint = sampler.fix((middle * problem.package.chips).astype(np.int64))
        found.price(hint)
        found.price(problem.baseline() if not problem.broken(problem.baseline()) else None)
        chip, bound = _solved(problem, found, max(1.0, budget.left), seed)
        if chip is not None:
            found.price(chip)
        return SolverAnswer(found.answer(), min(bound, found.cost), {"trace": found.trace})


def _solved(problem: ChipletPartition, found: PartitionEvaluator, seconds: float, seed: int) -> tuple[np.ndarray | None, float]:
    """(the best partition, a bound in s)."""
    from ortools.sat.python import cp_model

    w, p, chips = problem.workload, problem.package, problem.package.chips
    unit = found.cost / _GRAIN if np.isfinite(found.cost) else max(problem.bound(), 1e-12) * chips / _GRAIN
    model = cp_model.CpModel()
    on = [[model.new_bool_var("") for _ in range(chips)] for _ in range(len(w))]
    for row in on:
        model.add_exactly_one(row)
    edges = _rules(model, problem, on)
    largest = model.new_int_var(int(problem.bound() / unit), _GRAIN if np.isfinite(found.cost) else 2**50, "")

    def ticks(value: float) -> int:
        return int(value / unit)

    load: list[list[object]] = [[] for _ in range(chips)]
    passing: dict[int, list[object]] = {}
    for c in range(chips):
        load[c] += [ticks(float(w.seconds[v])) * on[v][c] for v in range(len(w))]
        if w.base_seconds:
            load[c].append(ticks(w.base_seconds) * edges[c])
    for k in range(len(w.maker)):
        readers = w.readers.item[w.readers.ptr[k]: w.readers.ptr[k + 1]].tolist()
        for c in range(1, chips):
            there = model.new_bool_var("")
            for r in readers:
                model.add_implication(on[r][c], there)
            for a in range(c):
                sent = model.new_bool_var("")
                model.add_bool_or([on[int(w.maker[k])][a].Not(), there.Not(), sent])
                size = float(w.size[k])
                if p.copies[a, c]:
                    load[a].append(ticks(float(p.latency[a, c]) + size / float(p.rate[a, c])) * sent)
                for lane in p.lanes.item[p.lanes.ptr[a * chips + c]: p.lanes.ptr[a * chips + c + 1]].tolist():
                    passing.setdefault(lane, []).append(ticks(float(p.lane_latency[lane]) + size / float(p.lane_rate[lane])) * sent)
    for terms in (*load, *passing.values()):
        model.add(sum(terms) <= largest)                                # type: ignore[arg-type]
    model.minimize(largest)
    if found.best is not None:
        for v in range(len(w)):
            for c in range(chips):
                model.add_hint(on[v][c], int(found.best[v]) == c)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers, solver.parameters.random_seed = 1, seed
    solver.parameters.max_time_in_seconds, solver.parameters.max_deterministic_time = seconds, seconds
    status = solver.solve(model)
    chip = np.array([next(c for c in range(chips) if solver.value(row[c])) for row in on], np.int16) \
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None
    return chip, max(problem.bound(), float(solver.best_objective_bound) * unit if status != cp_model.UNKNOWN else 0.0)


def _rules(model, problem: ChipletPartition, on) -> list:  # type: ignore[no-untyped-def, type-arg]
    """State the rules; the Booleans "chip c is used"."""
    w, chips = problem.workload, problem.package.chips
    used = [model.new_bool_var("") for _ in range(chips)]
    for c in range(chips):
        model.add_max_equality(used[c], [row[c] for row in on])
        if c:
            model.add_implication(used[c], used[c - 1])
    joined = {(a, c): model.new_bool_var("") for a in range(chips) for c in range(a + 1, chips)}
    way = {(a, c): model.new_bool_var("") for a, c in joined}
    for a, c in joined:
        model.add_implication(joined[a, c], way[a, c])
        for b in range(a + 1, c):
            model.add_bool_or([way[a, b].Not(), way[b, c].Not(), way[a, c]])
            model.add_bool_or([joined[a, c].Not(), way[a, b].Not(), way[b, c].Not()])
    for u, v in zip(w.source.tolist(), w.target.tolist(), strict=True):
        for a in range(chips):
            for c in range(chips):
                model.add_bool_or([on[u][a].Not(), on[v][c].Not()] + ([joined[a, c]] if a < c else []) if a != c else [True])
    owner = np.repeat(np.arange(len(w)), np.diff(w.weights.ptr))
    for c in range(chips):
        held = []
        for q in range(len(w.weight)):
            here = model.new_bool_var("")
            for v in owner[w.weights.item == q].tolist():
                model.add_implication(on[v][c], here)
            held.append(int(w.weight[q]) * here)
        top = model.new_int_var(0, int(w.work.max(initial=0)) + 1, "")
        for v in range(len(w)):
            if w.work[v]:
                model.add(top >= int(np.ceil(w.work[v]))).only_enforce_if(on[v][c])
        model.add(sum(held) + top + int(w.base_bytes) <= int(problem.package.memory))
    return used
