"""Simulated annealing over place, order and fusion, every plan simulated in full; large neighbourhoods where the graph is large.

Kirkpatrick et al. (1983) for acceptance; Shaw (1998) for changing a whole stretch at once. It starts from the best of the list schedules and splits.
A move takes a unit, its bunch (a layer, or what heavy-edge matching puts together, at several levels) or a stretch of the topological order to
another device, swaps two, or changes priorities; after some, all priorities follow the ranks under the new placement. Every second move is where
the plan waits: at a task of the critical path that waited for a transfer or for its device (for throughput and memory: on the fullest device).
Memory above a limit is a penalty, so that the search may pass through plans that do not fit; only plans that fit are answers. Between rounds groups
are taken apart or fused anew within devices, and kept where that is no slower.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
from numba import njit

from fourfold.cost.simulate import Arrays, Scratch, arrays, play, quick
from fourfold.decisions.schedule import cpop, expert, heft, peft
from fourfold.decisions.schedule._list import SCAN, contended, upward
from fourfold.decisions.schedule._parts import PartitionTasks, Plan, alone, fit, fuse
from fourfold.decisions.schedule._split import bunches
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer
from fourfold.solvers.anneal import Cooling, anneal, piecewise

_WORK = 4e7                                                            # tasks × evaluations of a round
_CHUNK = 2e6                                                           # tasks × evaluations between two looks at the clock
_NEAR = 0.7                                                            # share of a limit from which on memory is looked at always
_HEAT = (1.0, 4.0, 0.4, 0.1)                                           # of the rounds, in turn
_FEW = 3                                                               # plans that it starts from
_SINGLE = 5000                                                         # nodes up to which plans of single ops are tried too
_CODE = {"latency": 0, "throughput": 1, "energy": 2, "memory": 3}


@njit(cache=True)
def _price(a, place, priority, code, bounded):  # type: ignore[no-untyped-def]
    """(cost, bytes over all limits)."""
    run = play(a, place, priority, False, False)
    over = 0.0
    if bounded:
        for d in range(len(run.peak)):
            over += max(0.0, run.peak[d] - a.limit[d])
    if code == 0:
        cost = run.makespan
    elif code == 1:
        cost = run.busy.max()
        for lane in run.lane_busy:
            cost = max(cost, lane)
    elif code == 2:
        cost = run.joules
    else:
        cost = float(run.peak.max())
    return cost, over


class _Units(NamedTuple):
    """What moves: tasks of each unit in CSR, unit of a task, units in topological order, tasks in such an order (`sequence`), devices that can run a
    unit b1[U, D], neighbours of a task in CSR, bunches of units at several levels; and what may be changed and is asked for.
    """

    unit_ptr: np.ndarray
    unit_task: np.ndarray
    unit: np.ndarray
    order: np.ndarray
    sequence: np.ndarray
    able: np.ndarray
    near_ptr: np.ndarray
    near: np.ndarray
    of: np.ndarray
    bunch_ptr: np.ndarray
    bunch_unit: np.ndarray
    movable: bool
    sortable: bool
    code: int
    bounded: bool


class _State(NamedTuple):
    """A plan being annealed, the one before the move being tried, and the best that fits. `causes` i8[3, T]: tasks on the critical path (or on what
    is fullest), why and how each waited, `length` of them; `trial` = cost of the move being tried and its bytes over all limits; `close`: whether
    the plan is near a limit; `room`: mean limit of a device, bytes.
    """

    a: Arrays
    s: Scratch
    units: _Units
    place: np.ndarray
    priority: np.ndarray
    old_place: np.ndarray
    old_priority: np.ndarray
    found_place: np.ndarray
    found_priority: np.ndarray
    causes: np.ndarray
    length: np.ndarray
    ranks: np.ndarray
    peak: np.ndarray
    trial: np.ndarray
    close: np.ndarray
    room: float


@njit(cache=True)
def _shift(n, place, u, d, only):  # type: ignore[no-untyped-def]
    """Unit u to device d if it can run there and (unless `only` is -1) is on `only`."""
    if n.able[u, d] and (only < 0 or place[n.unit_task[n.unit_ptr[u]]] == only):
        for e in range(n.unit_ptr[u], n.unit_ptr[u + 1]):
            place[n.unit_task[e]] = d


@njit(cache=True)
def _bunch(n, place, u, d, level):  # type: ignore[no-untyped-def]
    """What of u's bunch at this level is on u's device goes to device d."""
    if level < 0:
        _shift(n, place, u, d, -1)
        return
    only = place[n.unit_task[n.unit_ptr[u]]]
    c = n.of[level, u]
    for k in range(n.bunch_ptr[c], n.bunch_ptr[c + 1]):
        _shift(n, place, n.bunch_unit[k], d, only)


@njit(cache=True)
def _rank(n, a, place, into):  # type: ignore[no-untyped-def]
    """Upward ranks under `place`, into f8[T] (Topcuoglu et al. 2002, eq. 8, with the true devices and routes): how tasks are ordered once places are
    known.
    """
    for k in range(len(n.sequence) - 1, -1, -1):
        t = n.sequence[k]
        d = np.int64(place[t])
        best = 0.0
        for v in range(a.out_ptr[t], a.out_ptr[t + 1]):
            for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                r = np.int64(a.use_task[e])
                to = np.int64(place[r])
                tail = into[r]
                if to != d:
                    tail += a.latency[d, to] + a.size[v] / a.bandwidth[d, to]
                best = max(best, tail)
        into[t] = best + a.seconds[t, d]


@njit(cache=True)
def _move(n, a, place, priority, ranks, causes, length):  # type: ignore[no-untyped-def]
    """Change place or priority a little."""
    units, devices, tasks, levels = len(n.unit_ptr) - 1, n.able.shape[1], len(place), len(n.of)
    level = np.random.randint(-2, levels) if levels else -1
    dice = np.random.random()
    if length > 0 and dice < 0.45:                                     # where the plan waits
        i = np.random.randint(length)
        for _ in range(4):
            if causes[2, i] >= 2:
                break
            i = np.random.randint(length)
        t, q, how = causes[0, i], causes[1, i], causes[2, i]
        if n.sortable and how == 3 and (not n.movable or np.random.random() < 0.4):
            priority[t] = priority[q] + 1e-9 * abs(priority[q])
            return
        if n.movable:
            x, y = (t, q) if q < 0 or np.random.random() < 0.5 else (q, t)
            d = np.random.randint(devices)
            if how == 2 and y >= 0 and np.random.random() < 0.8:
                d = place[y]
            elif n.near_ptr[x + 1] > n.near_ptr[x] and np.random.random() < 0.5:
                d = place[n.near[n.near_ptr[x] + np.random.randint(n.near_ptr[x + 1] - n.near_ptr[x])]]
            _bunch(n, place, n.unit[x], d, level)
            if n.sortable and np.random.random() < 0.2:
                _rank(n, a, place, priority)
            return
    if n.movable and (dice < 0.85 or not n.sortable):
        kind = np.random.random()
        u = np.random.randint(units)
        d = np.random.randint(devices)
        if kind < 0.3:                                                 # follow a neighbour
            t = n.unit_task[n.unit_ptr[u] + np.random.randint(n.unit_ptr[u + 1] - n.unit_ptr[u])]
            if n.near_ptr[t + 1] > n.near_ptr[t]:
                d = place[n.near[n.near_ptr[t] + np.random.randint(n.near_ptr[t + 1] - n.near_ptr[t])]]
            _bunch(n, place, u, d, level)
        elif kind < 0.55:                                              # anywhere
            _bunch(n, place, u, d, level)
        elif kind < 0.75:                                              # swap
            w = np.random.randint(units)
            du, dw = place[n.unit_task[n.unit_ptr[u]]], place[n.unit_task[n.unit_ptr[w]]]
            if n.able[u, dw] and n.able[w, du]:
                _bunch(n, place, u, dw, level)
                _bunch(n, place, w, du, level)
        else:                                                          # a stretch of the order: shifts a boundary
            long = 1 + int(np.exp(np.random.random() * np.log(max(2.0, units / 4.0))))
            first = np.random.randint(units)
            only = place[n.unit_task[n.unit_ptr[n.order[first]]]] if np.random.random() < 0.5 else -1
            if np.random.random() < 0.5 and first > 0:
                d = place[n.unit_task[n.unit_ptr[n.order[first - 1]]]]
            for k in range(first, min(units, first + long)):
                _shift(n, place, n.order[k], d, only)
        if n.sortable and np.random.random() < 0.2:
            _rank(n, a, place, priority)
    elif n.sortable:
        t, other = np.random.randint(tasks), np.random.randint(tasks)
        kind = np.random.random()
        if kind < 0.3:
            priority[t], priority[other] = priority[other], priority[t]
        elif kind < 0.6:
            priority[t] = priority[other] + (np.random.random() - 0.5) * 1e-9 * abs(priority[other])
        elif kind < 0.8:                                               # a whole unit
            more = priority[other] - priority[t]
            for e in range(n.unit_ptr[n.unit[t]], n.unit_ptr[n.unit[t] + 1]):
                priority[n.unit_task[e]] += more
        else:                                                          # all by rank, some of them shaken
            _rank(n, a, place, ranks)
            share = np.random.random() * 0.2
            for k in range(tasks):
                priority[k] = ranks[k] * (1.0 + share * (np.random.random() - 0.5))


@njit(cache=True)
def _causes(a, s, place, code, peak, causes):  # type: ignore[no-untyped-def]
    """Where to look for a better plan; how many tasks `causes` then holds."""
    tasks, devices = a.seconds.shape
    count = 0
    if code == 0 or code == 2:
        t = np.argmax(s.finish)
        while t >= 0 and count < tasks:
            causes[0, count], causes[1, count], causes[2, count] = t, s.why[t], s.how[t]
            count += 1
            t = s.why[t]
        return count
    worst = np.int64(-1)
    if code == 1:
        most = 0.0
        for d in range(devices):
            if s.busy[d] > most:
                most, worst = s.busy[d], d
        for lane in range(a.lanes):
            if s.lane_busy[lane] > most:
                return 0
    else:
        worst = np.argmax(peak)
    for t in range(tasks):
        if place[t] == worst:
            causes[0, count], causes[1, count], causes[2, count] = t, -1, 2
            count += 1
    return count


@njit(cache=True)
def _run(state, now, best, cooling):  # type: ignore[no-untyped-def]
    """(energy of the plan in which the run ends, least cost of a plan that fits)."""
    a, place, priority, code = state.a, state.place, state.priority, state.units.code
    state.close[0] = True
    if code == 3:
        state.peak[:] = play(a, place, priority, False, False).peak
    else:
        quick(a, state.s, place, priority)
    state.length[0] = _causes(a, state.s, place, code, state.peak, state.causes)
    return anneal(_propose, _energy, _commit, _undo, _keep, state, now, best, cooling, 0.0, True, True)


@njit(inline="always")
def _propose(state, step):  # type: ignore[no-untyped-def]
    _move(state.units, state.a, state.place, state.priority, state.ranks, state.causes, state.length[0])
    return True


@njit(inline="always")
def _energy(state, best, ceiling):  # type: ignore[no-untyped-def]
    """Cost, and ten times the best cost for memory beyond the limits as large as one device's. Far from the limits memory is looked at only where
    the plan may be an answer.
    """
    a, code, peak, excess = state.a, state.units.code, state.peak, 0.0
    if code == 3:
        peak[:] = play(a, state.place, state.priority, False, False).peak
        cost = float(peak.max())
    else:
        makespan, busiest, joules = quick(a, state.s, state.place, state.priority)
        cost = makespan if code == 0 else busiest if code == 1 else joules
    if state.units.bounded and cost <= ceiling and (state.close[0] or cost < best):
        if code != 3:
            peak[:] = play(a, state.place, state.priority, False, False).peak
        close = False
        for d in range(len(peak)):
            excess += max(0.0, peak[d] - a.limit[d])
            close |= peak[d] > _NEAR * a.limit[d]
        state.close[0] = close
    state.trial[0], state.trial[1] = cost, excess
    return cost + 10.0 * best * excess / state.room


@njit(inline="always")
def _commit(state, energy):  # type: ignore[no-untyped-def]
    state.old_place[:] = state.place
    state.old_priority[:] = state.priority
    state.length[0] = _causes(state.a, state.s, state.place, state.units.code, state.peak, state.causes)
    return state.trial[0] if state.trial[1] == 0.0 else np.inf


@njit(inline="always")
def _undo(state):  # type: ignore[no-untyped-def]
    state.place[:] = state.old_place
    state.priority[:] = state.old_priority


@njit(inline="always")
def _keep(state):  # type: ignore[no-untyped-def]
    state.found_place[:] = state.place
    state.found_priority[:] = state.priority


class _Search:
    """One partition's arrays for the kernel."""

    def __init__(self, work: PartitionTasks) -> None:
        self.work, problem = work, work.problem
        units = len(work.unit_able)
        order = np.argsort(work.unit, kind="stable")
        start = np.full(units, len(problem.graph))
        np.minimum.at(start, work.unit, work.first)
        src, dst, _ = work.tasks.edges()
        both = np.argsort(np.concatenate([src, dst]), kind="stable")
        count = len(work.tasks)
        of, bunch_ptr, bunch_unit = bunches(work)
        self.scratch = Scratch.of(work.plain)
        self.units = _Units(_pointer(work.unit, units), order, work.unit, np.argsort(start, kind="stable"), work.dag.order.astype(np.int64),
                            work.unit_able, _pointer(np.concatenate([src, dst]), count), np.concatenate([dst, src])[both].astype(np.int64),
                            of, bunch_ptr, bunch_unit, problem.place is None and len(problem.system) > 1, problem.priority is None,
                            _CODE[problem.objective], _tight(work))
        self.round = int(min(max(100, _WORK / count), 20_000, 200 + 40 * count))
        self.chunk = int(np.clip(_CHUNK / count, 8, 20_000))

    def price(self, place: np.ndarray, priority: np.ndarray) -> tuple[float, float]:
        return _price(self.work.plain, np.asarray(place, np.int16), self.work.priorities(priority), self.units.code, self.units.bounded)

    def run(self, place: np.ndarray, priority: np.ndarray, heat: float, budget: Budget, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        """A round of annealing from a plan that fits; the best found."""
        place, priority = np.array(place, np.int16), self.work.priorities(priority).copy()
        (tasks, devices), limit = self.work.plain.seconds.shape, self.work.plain.limit
        room = max(1.0, float(limit.sum()) / devices)
        best, over = self.price(place, priority)
        now = best + 10.0 * best * over / room
        state = _State(self.work.plain, self.scratch, self.units, place, priority, place.copy(), priority.copy(), place.copy(), priority.copy(),
                       np.zeros((3, tasks), np.int64), np.zeros(1, np.int64), np.zeros(tasks), np.zeros(devices, np.int64), np.zeros(2),
                       np.zeros(1, np.bool_), room)

        def piece(cooling: Cooling) -> None:
            nonlocal now, best
            now, best = _run(state, now, best, cooling._replace(seed=cooling.seed % 2**31))

        piecewise(piece, heat, 1e-5, min(self.round, max(1, budget.evaluations - budget.spent)), self.chunk, budget, seed * 1_000_003, hurry=True)
        return state.found_place, state.found_priority, float(best)


def _tight(work: PartitionTasks) -> bool:
    """Whether a plan could hold more than a device may: all that is resident and all that is ever made, on each device."""
    tasks = work.tasks
    most = float(tasks.fixed_size.sum() + np.maximum(tasks.hold, tasks.size).sum() + tasks.workspace.max(initial=0))
    return work.problem.bounded and bool((work.plain.limit < most).any())


def _pointer(label: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(label, minlength=count))]).astype(np.int64)


def starts(problem: Schedule, budget: Budget) -> list[tuple[float, Answer]]:
    """(cost, plan) of the cheap techniques, on fused and on single ops, cheapest first, equal ones once. Raises Infeasible where none fits."""
    found: list[tuple[float, Answer]] = []
    refused: Infeasible | None = None
    for group in (fuse(problem), *([alone(problem)] if problem.group is None and len(problem.graph) <= _SINGLE else [])):
        work = PartitionTasks.of(problem, group)
        ready: list[tuple[np.ndarray, np.ndarray]] = [one[1:] for one in expert.plans(work)[:2]]
        for plan in (heft.plan, peft.plan, cpop.plan, *_contended(work)):
            if found and budget.exhausted:
                break
            try:
                ready.append(fit(work, plan))
            except Infeasible as error:
                refused = error
        for place, priority in ready:
            cost, over = work.over(place, priority)
            budget.spend()
            if not over.any():
                found.append((cost, work.answer(place, priority)))
    if not found:
        raise refused or Infeasible("No plan was found that fits the devices' memory.", "Use more or larger devices.")
    return _distinct(found)


def _contended(work: PartitionTasks) -> list[Plan]:
    """List schedules whose transfers wait for their lanes, the less willing to spread the more `local`."""
    key = upward(work.dag.mean, work.dag.succ_ptr, work.dag.succ, work.dag.succ_bytes, work.dag.order, *work.dag.transfer)
    total = float(work.dag.mean.sum())

    def plan(work: PartitionTasks, factor: float, local: float) -> tuple[np.ndarray, np.ndarray]:
        place, start, _ = contended(work.plain, key, work.dag.unit, work.held * factor, work.dag.room, work.forced, local * total, SCAN)
        return place, -start

    return [partial(plan, local=local) for local in (0.0, 1e-4, 1e-3)]


def _distinct(found: list[tuple[float, Answer]]) -> list[tuple[float, Answer]]:
    """Cheapest first; of those that cost the same only the first."""
    ranked: list[tuple[float, Answer]] = []
    for cost, answer in sorted(found, key=lambda one: one[0]):
        if not ranked or cost > ranked[-1][0] * (1 + 1e-9):
            ranked.append((cost, answer))
    return ranked


def race(problem: Schedule, found: list[tuple[float, Answer]], budget: Budget, seed: int) -> Answer:
    """Anneal a little (a tenth of what is left) from each of the best plans, then from the one that got furthest until the budget is spent."""
    ranked = _distinct(found)[:_FEW]
    if len(ranked) > 1:
        better = []
        for _, answer in ranked:
            short = Budget(budget.left * 0.1, int((budget.evaluations - budget.spent) * 0.1))
            answer = improve(problem, answer, short, seed)
            budget.spend(short.spent)
            better.append((price(problem, answer), answer))
        ranked = _distinct(better)
    return improve(problem, ranked[0][1], budget, seed + 1)


def price(problem: Schedule, answer: Answer) -> float:
    """Cost in the problem's unit, inf where it holds more than a device may."""
    tasks, place, priority = problem.of_tasks(answer)
    cost, over = _price(arrays(tasks, problem.system), place, priority, _CODE[problem.objective], problem.bounded)
    return math.inf if over else float(cost)


def _nearby(problem: Schedule, group: np.ndarray, dice: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """A partition near `group`: two neighbours on one device made one, a group taken apart, or all fused anew within devices or to another size."""
    kind, changed = dice.random(), np.asarray(group, np.int64).copy()
    if kind < 0.6:
        return _joined(problem, changed, dice, place)
    if kind < 0.7:
        return fuse(problem, label=place)
    if kind < 0.8:
        return fuse(problem, label=place, most=int(dice.integers(2, problem.most + 1)))
    names, counts = np.unique(changed, return_counts=True)
    fused = names[counts > 1]
    if len(fused):
        loose = np.flatnonzero(changed == dice.choice(fused))
        cut = int(dice.integers(0, len(loose)))                        # 0: every op alone
        halves = loose[:cut], loose[cut:]
        whole = cut > 0 and not any(len(half) > 1 and any(True for _ in problem._unfit(half.tolist())) for half in halves)
        changed[loose[cut:] if whole else loose] = changed.max() + 1 + (0 if whole else np.arange(len(loose)))
    return changed.astype(np.int32)


def _joined(problem: Schedule, group: np.ndarray, dice: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """`group` with two groups made one that pass on or both read a value, if the rules allow (a cycle is left for the caller to see)."""
    g = problem.graph
    for _ in range(8):
        value = int(dice.integers(len(g.producer)))
        around = [*g.readers_of(value).tolist(), *([int(g.producer[value])] if g.producer[value] >= 0 else [])]
        if len(around) < 2:
            continue
        a, b = dice.choice(around, 2, replace=False).tolist()
        both = np.flatnonzero((group == group[a]) | (group == group[b]))
        if group[a] == group[b] or place[a] != place[b] or len(both) > problem.most:
            continue
        if not any(True for _ in problem._unfit(both.tolist())):
            group[both] = group[a]
            break
    return group.astype(np.int32)


def improve(problem: Schedule, answer: Answer, budget: Budget, seed: int = 0, heat: float = 0.005) -> Answer:
    """Anneal from an answer that fits (a policy's, a solver's) until the budget is spent; never worse than `answer`."""
    dice = np.random.default_rng(seed)
    search = _Search(PartitionTasks.of(problem, answer.group))
    _, place, priority = problem.of_tasks(answer)
    best = search.price(place, priority)[0]
    turn, tries = 0, 4 + 20_000 // len(problem.graph)                   # a new partition is priced anew, which takes as long as many simulations
    while not budget.exhausted:
        place, priority, best = search.run(place, priority, heat * _HEAT[turn % 4], budget, seed * 7919 + turn)
        turn += 1
        for k in range(min(tries, 200) if problem.group is None else 0):
            if budget.exhausted:
                break
            nodes = place[search.work.tasks.group]
            other = _nearby(problem, search.work.group, dice, nodes) if k else fuse(problem, label=nodes)
            if np.array_equal(other, search.work.group):
                continue
            work = PartitionTasks.of(problem, other)
            if len(work.dag.order) < len(work.tasks):                  # a cycle
                continue
            first = search.work.answer(place, priority)
            _, moved, sorted_ = problem.of_tasks(Answer(other, first.place, first.priority))
            cost, over = work.over(moved, sorted_)
            budget.spend()
            if not over.any() and cost <= best:
                search, place, priority, best = _Search(work), moved, sorted_, cost
    return search.work.answer(place, priority)


class Anneal(Solver):
    """Annealing of place, order and fusion from the best cheap plan."""

    title: ClassVar[str] = "Annealing of placement, order and fusion, every plan simulated"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("kirkpatrick1983", "shaw1998")
    counts: ClassVar[str] = "simulations"

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        return SolverAnswer(race(problem, starts(problem, budget), budget, seed))
