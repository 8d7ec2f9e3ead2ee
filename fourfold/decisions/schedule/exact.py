"""Exact answers for small graphs: every plan of a tiny one, dynamic programming for a chain, CP-SAT with a proven bound and gap for the others.

Tiny (a few hundred thousand plans): each legal partition, each placement, each order of tasks is simulated. A chain (each op waits for the one
before): one
pass over (last op, its device), fused stretches as steps; nothing overlaps, so the sum is what the simulator finds. Otherwise CP-SAT (Perron et
al. 2023)
chooses groups out of all legal ones, devices and start times; it leaves out contention on links and memory, and rounds seconds down, so its bound
holds for every plan. Its plan is simulated, compared with the best heuristic one, and annealed for the time that is left.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numba import njit

from fourfold.decisions.schedule import anneal
from fourfold.decisions.schedule._parts import PartitionTasks, alone
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import Infeasible
from fourfold.graph import CONTRACTION, OPAQUE, REDUCTION
from fourfold.problem import Budget, Solver, SolverAnswer

if TYPE_CHECKING:

    pass

_PLANS, _TINY = 400_000, 7                                             # of a tiny problem: plans, ops
_NODES, _GROUPS, _TICKS = 120, 2500, 20_000                            # for CP-SAT: ops, candidate groups, resolution of the incumbent's time


@njit(cache=True)
def _every(a, places, orders, code, bounded):  # type: ignore[no-untyped-def]
    """(cost, which place, which order) of the best plan that fits; cost inf where none does."""
    best, best_place, best_order = np.inf, -1, -1
    for i in range(len(places)):
        for j in range(len(orders)):
            cost, over = anneal._price(a, places[i], orders[j], code, bounded)
            if over == 0.0 and cost < best:
                best, best_place, best_order = cost, i, j
    return best, best_place, best_order


def partitions(count: int) -> Iterator[list[int]]:
    """Every way to put 0 … count − 1 into groups, as restricted growth strings."""
    def grow(prefix: list[int], top: int) -> Iterator[list[int]]:
        if len(prefix) == count:
            yield prefix
            return
        for label in range(top + 1):
            yield from grow([*prefix, label], max(top, label + 1))

    return grow([], 0)


def legal(problem: Schedule) -> list[np.ndarray]:
    """Every partition that breaks no rule of fusion."""
    if problem.group is not None:
        return [problem.group]
    nodes = len(problem.graph)
    order = np.zeros(nodes)
    found = []
    for labels in partitions(nodes):
        trial = Answer(np.array(labels, np.int32), np.zeros(nodes, np.int16), order)
        if not problem._fusions(trial) and not problem._cycles(trial):
            found.append(trial.group)
    return found


def _placements(work: PartitionTasks) -> np.ndarray:
    if work.problem.place is not None:
        return work.forced[None].astype(np.int16)
    choices = [np.flatnonzero(able) for able in work.unit_able]
    if not all(len(one) for one in choices):
        return np.zeros((0, len(work.unit)), np.int16)
    return np.array(list(itertools.product(*choices)), np.int16)[:, work.unit]


def _orders(work: PartitionTasks) -> np.ndarray:
    if work.problem.priority is not None:
        return work.priorities(np.zeros(len(work.tasks)))[None]
    return np.array(list(itertools.permutations(range(len(work.tasks)))), np.float64)


def _few(problem: Schedule) -> tuple[list[np.ndarray], int] | None:
    """(legal partitions, plans) where all plans can be tried; None where there are too many."""
    if len(problem.graph) > _TINY and problem.group is None:
        return None
    groups = legal(problem)
    devices = 1 if problem.place is not None else len(problem.system)
    total = 0
    for count in (len(np.unique(group)) for group in groups):
        total += devices ** count * (1 if problem.priority is not None else math.factorial(count)) if count < 20 else _PLANS + 1
    return (groups, total) if total <= _PLANS else None


def enumerate_all(problem: Schedule, budget: Budget) -> SolverAnswer[Answer] | None:
    """The optimum of a tiny problem; None where there are too many plans. Raises Infeasible where no plan fits."""
    found = _few(problem)
    if found is None:
        return None
    groups, total = found
    best: tuple[float, PartitionTasks, np.ndarray, np.ndarray] | None = None
    for group in groups:
        work = PartitionTasks.of(problem, group)
        places, orders = _placements(work), _orders(work)
        if not len(places):
            continue
        cost, i, j = _every(work.plain, places, orders, anneal._CODE[problem.objective], problem.bounded)
        budget.spend(len(places) * len(orders))
        if best is None or cost < best[0]:
            best = cost, work, places[max(i, 0)], orders[max(j, 0)]
    if best is None or not np.isfinite(best[0]):
        raise Infeasible(f"None of the {total:,} plans of this graph fits the devices of {problem.system.name!r}.", "Use more or larger devices.")
    return SolverAnswer(best[1].answer(*best[2:]), best[0], note=f"Optimum of all {budget.spent:,} plans.")


def chain(problem: Schedule) -> SolverAnswer[Answer] | None:
    """The quickest plan of a chain, by dynamic programming; None where the graph is no chain, something is tied or fixed, or the plan lacks
    memory.
    """
    g, nodes, devices = problem.graph, len(problem.graph), len(problem.system)
    src, dst, value = g.edges()
    plain = problem.objective == "latency" and problem.group is None and problem.place is None
    single = len(src) == nodes - 1 and np.array_equal(np.sort(src), np.arange(nodes - 1)) and np.array_equal(np.sort(dst), np.arange(1, nodes))
    if not plain or not single or (dst - src != 1).any() or (np.unique(g.colocation[g.colocation >= 0], return_counts=True)[1] > 1).any():
        return None
    size = np.zeros(nodes)
    size[src] = np.minimum(g.size[value], g.size[g.alias[value]])
    from fourfold.cost.roofline import fused_seconds

    best, back = np.full((nodes + 1, devices), np.inf), np.zeros((nodes + 1, devices, 2), np.int64)
    best[0] = 0.0
    for end in range(1, nodes + 1):
        for begin in range(end - 1, max(-1, end - 1 - problem.most), -1):
            stretch = list(range(begin, end))
            if len(stretch) > 1 and any(True for _ in problem._unfit(stretch)):
                if _hopeless(problem, stretch):
                    break
                continue
            if len(stretch) > 1:
                label = np.arange(nodes)
                label[begin:end] = begin
                took = fused_seconds(g, label, problem.system)[begin]
            else:
                took = problem.seconds[begin]
            for d in range(devices):
                for p in range(devices):
                    route = problem.system.route(p, d)
                    moved = route.seconds(size[begin - 1]) if begin and p != d else 0.0
                    if best[begin, p] + moved + took[d] < best[end, d]:
                        best[end, d], back[end, d] = best[begin, p] + moved + took[d], (begin, p)
    if not np.isfinite(best[nodes]).any():
        return None
    group, place, end, d = np.zeros(nodes, np.int32), np.zeros(nodes, np.int16), nodes, int(best[nodes].argmin())
    total = float(best[nodes, d])
    while end:
        begin, before = back[end, d].tolist()
        group[begin:end], place[begin:end] = begin, d
        end, d = begin, before
    answer = Answer(group, place, -np.arange(nodes, dtype=np.float64) if problem.priority is None else problem.priority)
    relaxed = bool(problem.violations(answer))
    if relaxed:                                                        # the plan that may hold any amount of memory is still a bound
        return SolverAnswer(anneal.Anneal().solve(problem, Budget(5.0, 20_000)).answer, total * (1 - 1e-9), note="The quickest plan lacks memory.")
    return SolverAnswer(answer, total * (1 - 1e-9), note="Optimum of a chain, by dynamic programming.")


def _hopeless(problem: Schedule, nodes: list[int]) -> bool:
    """Whether no larger group may hold these nodes."""
    fusion = problem.graph.fusion[nodes]
    heavy = int((fusion == CONTRACTION).sum())
    return len(nodes) > problem.most or OPAQUE in fusion or heavy > 1 or bool(heavy and (fusion == REDUCTION).any())


def candidates(problem: Schedule) -> list[tuple[int, ...]] | None:
    """Every group that the rules allow, single ops among them; None where there are too many."""
    g, nodes = problem.graph, len(problem.graph)
    near: list[set[int]] = [set() for _ in range(nodes)]
    for v in range(len(g.producer)):
        around = [*g.readers_of(v).tolist(), *([int(g.producer[v])] if g.producer[v] >= 0 else [])]
        for a, b in itertools.permutations(around, 2):
            near[a].add(b)
    seen = {frozenset([n]) for n in range(nodes)}
    layer = [one for one in seen if g.fusion[next(iter(one))] != OPAQUE]
    while layer:
        following = []
        for one in layer:
            for n in set().union(*(near[m] for m in one)) - one:
                larger = one | {n}
                if larger not in seen and not _hopeless(problem, sorted(larger)):
                    seen.add(larger)
                    following.append(larger)
                    if len(seen) > _GROUPS:
                        return None
        layer = following
    return [tuple(sorted(one)) for one in sorted(seen, key=sorted) if len(one) == 1 or not any(True for _ in problem._unfit(sorted(one)))]


def model(problem: Schedule, groups: list[tuple[int, ...]], incumbent: float, hint: Answer, budget: Budget, seed: int) -> tuple[Answer | None, float]:
    """(plan or None, bound in s) of CP-SAT over these groups, in four fifths of what is left of `budget`; time and contention as the module's
    docstring says.
    """
    from ortools.sat.python import cp_model

    g, nodes, devices = problem.graph, len(problem.graph), len(problem.system)
    tick = incumbent / _TICKS
    price = _prices(problem, groups)
    cp, horizon = cp_model.CpModel(), _TICKS + 1
    start = [cp.new_int_var(0, horizon, f"s{n}") for n in range(nodes)]
    on = [[cp.new_bool_var(f"x{n},{d}") for d in range(devices)] for n in range(nodes)]
    of: list[list[tuple[int, int, cp_model.IntVar]]] = [[] for _ in range(nodes)]
    lines: list[list[cp_model.IntervalVar]] = [[] for _ in range(devices)]
    load: list[list[tuple[int, cp_model.IntVar]]] = [[] for _ in range(devices)]
    makespan = cp.new_int_var(0, horizon, "makespan")
    for i, members in enumerate(groups):
        for d in range(devices):
            if not np.isfinite(price[i, d]):
                continue
            chosen, ticks = cp.new_bool_var(f"y{i},{d}"), int(price[i, d] / tick)
            lines[d].append(cp.new_optional_fixed_size_interval_var(start[members[0]], ticks, chosen, f"i{i},{d}"))
            load[d].append((ticks, chosen))
            for n in members:
                of[n].append((i, d, chosen))
            for n in members[1:]:
                cp.add(start[n] == start[members[0]]).only_enforce_if(chosen)
    duration = []
    for n in range(nodes):
        cp.add_exactly_one(chosen for _, _, chosen in of[n])
        for d in range(devices):
            cp.add(on[n][d] == sum(chosen for _, e, chosen in of[n] if e == d))
        duration.append(sum(int(price[i, d] / tick) * chosen for i, d, chosen in of[n]))
        cp.add(start[n] + duration[n] <= makespan)
        if problem.place is not None:
            cp.add(on[n][int(problem.place[n])] == 1)
    for line in lines:
        cp.add_no_overlap(line)
    for parts in load:
        cp.add(sum(ticks * chosen for ticks, chosen in parts) <= makespan)
    for members in problem.classes:
        for n in members[1:].tolist():
            for d in range(devices):
                cp.add(on[n][d] == on[int(members[0])][d])
    src, dst, value = g.edges()
    inside = [{i for i, _, _ in of[n]} for n in range(nodes)]
    for u, v, w in zip(src.tolist(), dst.tolist(), value.tolist(), strict=True):
        together = [chosen for i, _, chosen in of[v] if i in inside[u]]
        same = cp.new_bool_var(f"b{u},{v},{w}")
        cp.add(same == sum(together))
        cp.add(start[v] >= start[u] + duration[u]).only_enforce_if(same.Not())
        size = min(int(g.size[w]), int(g.size[g.alias[w]]))
        if problem.free[w]:
            continue                                                   # views of what every device has are not sent
        for a in range(devices):
            for b in range(devices):
                if a != b:
                    moved = int(problem.system.route(a, b).seconds(size) / tick)
                    cp.add(start[v] >= start[u] + duration[u] + moved).only_enforce_if([on[u][a], on[v][b]])
    for n in range(nodes):
        for d in range(devices):
            cp.add_hint(on[n][d], int(hint.place[n] == d))
    cp.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.2, 0.8 * budget.left)
    solver.parameters.random_seed, solver.parameters.num_workers = seed % 2**31, 1
    status = _solved(solver, cp, budget)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, (solver.best_objective_bound * tick if status == cp_model.UNKNOWN else 0.0)
    group, place = np.zeros(nodes, np.int32), np.zeros(nodes, np.int16)
    for n in range(nodes):
        i, d = next((i, d) for i, d, chosen in of[n] if solver.boolean_value(chosen))
        group[n], place[n] = groups[i][0], d
    order = -np.array([solver.value(one) for one in start], np.float64)
    return Answer(group, place, order if problem.priority is None else problem.priority), solver.best_objective_bound * tick


def _prices(problem: Schedule, groups: list[tuple[int, ...]]) -> np.ndarray:
    """f8[G, D] s of each group on each device, fused where it holds several ops."""
    from fourfold.cost.roofline import fused_seconds

    price = np.zeros((len(groups), len(problem.system)))
    for i, (first, *others) in enumerate(groups):
        label = np.arange(len(problem.graph))
        label[others] = first
        price[i] = fused_seconds(problem.graph, label, problem.system)[first] if others else problem.seconds[first]
    return price


def _solved(solver: Any, cp: object, budget: Budget) -> object:
    """The status of `solver.solve(cp)`, which hears nobody while it runs: so it runs beside this thread, which looks at the budget (and lets a Ctrl-C
    spend it) and stops the search then."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(solver.solve(cp))
        except BaseException as error:  # noqa: BLE001 — raised again below, in the thread that asked
            found.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.1)
        if worker.is_alive() and budget.left <= 0:
            solver.stop_search()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


class Exact(Solver):
    """Enumeration, dynamic programming or CP-SAT, whichever the graph allows."""

    title: ClassVar[str] = "Exact: all plans of tiny graphs, dynamic programming for chains, CP-SAT with a proven gap"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("perron2023",)
    needs: ClassVar[tuple[str, ...]] = ("ortools",)
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "plans simulated"

    def declines(self, problem: Schedule) -> str | None:
        if problem.objective != "latency" and _few(problem) is None:
            return f"it can prove seconds of a step only, and {len(problem.graph)} ops have too many plans to try all for {problem.objective}."
        if len(problem.graph) > _NODES and not _is_chain(problem):
            return f"{len(problem.graph)} ops are more than the {_NODES} that can be solved exactly, and they are no chain."
        return None

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        if found := enumerate_all(problem, budget) or chain(problem):
            return found
        first = anneal.starts(problem, budget)[0][1]
        short = Budget(min(budget.left / 4, 5.0), max(0, budget.evaluations - budget.spent) // 2)
        best = anneal.improve(problem, first, short, seed)
        budget.spend(short.spent)
        groups = candidates(problem) if problem.group is None else _given(problem)
        if groups is None:
            return SolverAnswer(anneal.improve(problem, best, budget, seed), note="Annealed: too many groups could be formed for an exact model.")
        cost = problem.cost(best)
        found, bound = model(problem, groups, cost, best, budget, seed)
        bound = min(bound * (1 - 1e-9), cost)
        for answer in ([found] if found is not None else []):
            if not problem.violations(answer) and problem.cost(answer) < cost:
                best, cost = answer, problem.cost(answer)
        if cost > bound * (1 + 1e-6):
            best = anneal.improve(problem, best, budget, seed)
        return SolverAnswer(best, min(bound, problem.cost(best)), note=f"CP-SAT over {len(groups)} groups.")


def _is_chain(problem: Schedule) -> bool:
    src, dst, _ = problem.graph.edges()
    return len(src) == len(problem.graph) - 1 and bool((dst - src == 1).all())


def _given(problem: Schedule) -> list[tuple[int, ...]]:
    members: dict[int, list[int]] = {}
    for n, one in enumerate(np.asarray(alone(problem)).tolist()):
        members.setdefault(one if one >= 0 else -2 - n, []).append(n)
    return [tuple(nodes) for nodes in members.values()]
