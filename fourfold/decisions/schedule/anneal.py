"""Simulated annealing over place, order and fusion, every plan simulated in full; large neighbourhoods where the graph is large.

Kirkpatrick et al. (1983) for acceptance; Shaw (1998) for changing a whole stretch at once. It starts from the best of the list schedules and
splits. A
move takes a unit, a stretch of the topological order or a layer to another device, follows a neighbour, swaps two units, or changes priorities.
Memory
above a limit is a penalty, so that the search may pass through plans that do not fit; only plans that fit are answers. Between rounds groups are
taken apart or fused anew within devices, and kept where that is no slower.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numba import njit

from fourfold.cost.simulate import arrays, play
from fourfold.decide import Budget, Proposal, Solver
from fourfold.decisions.schedule import cpop, expert, heft, peft
from fourfold.decisions.schedule._parts import Work, alone, fit, fuse
from fourfold.decisions.schedule._split import blocks
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import Infeasible

_WORK = 4e7                                                            # tasks × evaluations of a round
_CHUNK = 2e6                                                           # tasks × evaluations between two looks at the clock
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


@njit(cache=True)
def _anneal(a, place, priority, unit_ptr, unit_task, unit, order, block_ptr, block_unit, able, near_ptr, near, movable, sortable, code, bounded,
            state, heat, cool, count, seed):  # type: ignore[no-untyped-def]
    """`count` evaluations from `state` = (cost, over, best cost); heat falls to cool. Changes place and priority in place; returns the best plan that
    fits (place, priority, state)."""
    np.random.seed(seed)
    units, devices, tasks = len(unit_ptr) - 1, able.shape[1], len(place)
    room = max(1.0, a.limit.sum() / devices)
    cost, over, best = state[0], state[1], state[2]
    found_place, found_priority = place.copy(), priority.copy()
    old_place, old_priority = place.copy(), priority.copy()
    blocks = len(block_ptr) - 1
    for step in range(count):
        temperature = heat * (cool / heat) ** (step / count) * best
        dice = np.random.random()
        if movable and (dice < 0.7 or not sortable):
            kind = np.random.random()
            u = np.random.randint(units)
            d = np.random.randint(devices)
            if kind < 0.25:                                            # follow a neighbour
                t = unit_task[unit_ptr[u] + np.random.randint(unit_ptr[u + 1] - unit_ptr[u])]
                if near_ptr[t + 1] > near_ptr[t]:
                    d = place[near[near_ptr[t] + np.random.randint(near_ptr[t + 1] - near_ptr[t])]]
                if able[u, d]:
                    for e in range(unit_ptr[u], unit_ptr[u + 1]):
                        place[unit_task[e]] = d
            elif kind < 0.4:                                           # one unit
                if able[u, d]:
                    for e in range(unit_ptr[u], unit_ptr[u + 1]):
                        place[unit_task[e]] = d
            elif kind < 0.55:                                          # swap
                w = np.random.randint(units)
                du, dw = place[unit_task[unit_ptr[u]]], place[unit_task[unit_ptr[w]]]
                if able[u, dw] and able[w, du]:
                    for e in range(unit_ptr[u], unit_ptr[u + 1]):
                        place[unit_task[e]] = dw
                    for e in range(unit_ptr[w], unit_ptr[w + 1]):
                        place[unit_task[e]] = du
            elif kind < 0.85 or blocks < 2:                            # a stretch of the order: shifts a boundary
                long = 1 + int(np.exp(np.random.random() * np.log(max(2.0, units / 4.0))))
                first = np.random.randint(units)
                only = place[unit_task[unit_ptr[order[first]]]]
                same = np.random.random() < 0.5
                if np.random.random() < 0.5 and first > 0:
                    d = place[unit_task[unit_ptr[order[first - 1]]]]
                for k in range(first, min(units, first + long)):
                    w = order[k]
                    if able[w, d] and (not same or place[unit_task[unit_ptr[w]]] == only):
                        for e in range(unit_ptr[w], unit_ptr[w + 1]):
                            place[unit_task[e]] = d
            else:                                                      # a layer, or a run of layers
                b = np.random.randint(blocks)
                for c in range(b, min(blocks, b + 1 + np.random.randint(3))):
                    for k in range(block_ptr[c], block_ptr[c + 1]):
                        w = block_unit[k]
                        if able[w, d]:
                            for e in range(unit_ptr[w], unit_ptr[w + 1]):
                                place[unit_task[e]] = d
        elif sortable:
            t, s = np.random.randint(tasks), np.random.randint(tasks)
            kind = np.random.random()
            if kind < 0.4:
                priority[t], priority[s] = priority[s], priority[t]
            elif kind < 0.8:
                priority[t] = priority[s] + (np.random.random() - 0.5) * 1e-9 * abs(priority[s])
            else:                                                      # a whole unit
                shift = priority[s] - priority[t]
                for e in range(unit_ptr[unit[t]], unit_ptr[unit[t] + 1]):
                    priority[unit_task[e]] += shift
        new, excess = _price(a, place, priority, code, bounded)
        gain = (cost + 10.0 * best * over / room) - (new + 10.0 * best * excess / room)
        if gain >= 0 or np.random.random() < np.exp(gain / max(1e-300, temperature)):
            cost, over = new, excess
            old_place[:] = place
            old_priority[:] = priority
            if over == 0.0 and cost < best:
                best = cost
                found_place[:] = place
                found_priority[:] = priority
        else:
            place[:] = old_place
            priority[:] = old_priority
    return found_place, found_priority, (cost, over, best)


class _Search:
    """One partition's arrays for the kernel."""

    def __init__(self, work: Work) -> None:
        self.work, problem = work, work.problem
        units = len(work.unit_able)
        order = np.argsort(work.unit, kind="stable")
        start = np.full(units, len(problem.graph))
        np.minimum.at(start, work.unit, work.first)
        by = blocks(work)
        src, dst, _ = work.tasks.edges()
        both = np.argsort(np.concatenate([src, dst]), kind="stable")
        count = len(work.tasks)
        self.fixed = (_pointer(work.unit, units), order, work.unit, np.argsort(start, kind="stable"), _pointer(by, int(by.max()) + 1),
                      np.argsort(by * len(start) + np.argsort(np.argsort(start)), kind="stable"), work.unit_able,
                      _pointer(np.concatenate([src, dst]), count), np.concatenate([dst, src])[both].astype(np.int64), problem.place is None
                      and len(problem.system) > 1, problem.priority is None, _CODE[problem.objective], problem.bounded)
        self.round = int(min(max(100, _WORK / count), 20_000, 200 + 40 * count))
        self.chunk = int(np.clip(_CHUNK / count, 8, 20_000))

    def price(self, place: np.ndarray, priority: np.ndarray) -> tuple[float, float]:
        code, bounded = self.fixed[-2:]
        return _price(self.work.plain, np.asarray(place, np.int16), self.work.priorities(priority), code, bounded)

    def run(self, place: np.ndarray, priority: np.ndarray, heat: float, budget: Budget, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        """A round of annealing from a plan that fits; the best found."""
        place, priority = np.array(place, np.int16), self.work.priorities(priority).copy()
        cost, over = self.price(place, priority)
        best, state = (place.copy(), priority.copy()), (cost, over, cost)
        total, done, cool = self.round, 0, 1e-5
        while done < total and not budget.exhausted:
            count = min(self.chunk, total - done, max(1, budget.evaluations - budget.spent))
            a, b = (heat * (cool / heat) ** (part / total) for part in (done, done + count))
            before = state[2]
            p, q, state = _anneal(self.work.plain, place, priority, *self.fixed, state, a, b, count, (seed * 1_000_003 + done) % 2**31)
            best = (p, q) if state[2] < before else best
            done += count
            budget.spend(count)
        return best[0], best[1], float(state[2])


def _pointer(label: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(label, minlength=count))]).astype(np.int64)


def starts(problem: Schedule, budget: Budget) -> tuple[Work, np.ndarray, np.ndarray, float]:
    """The best plan of the cheap techniques, on fused and on single ops. Raises Infeasible where none fits."""
    best: tuple[float, Work, np.ndarray, np.ndarray] | None = None
    refused: Infeasible | None = None
    for group in (fuse(problem), *([alone(problem)] if problem.group is None and len(problem.graph) <= 20_000 else [])):
        work = Work.of(problem, group)
        found = [one[1:] for one in expert.plans(work)[:1]]
        for plan in (heft.plan, peft.plan, cpop.plan):
            if found and budget.exhausted:
                break
            try:
                found.append(fit(work, plan))
            except Infeasible as error:
                refused = error
        for place, priority in found:
            cost, over = work.over(place, priority)
            budget.spend()
            if not over.any() and (best is None or cost < best[0]):
                best = cost, work, place, priority
    if best is None:
        raise refused or Infeasible("No plan was found that fits the devices' memory.", "Use more or larger devices.")
    return best[1], best[2], best[3], best[0]


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
        changed[loose[cut:] if cut else loose] = changed.max() + 1 + (0 if cut else np.arange(len(loose)))
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


def improve(problem: Schedule, answer: Answer, budget: Budget, seed: int = 0, heat: float = 0.02) -> Answer:
    """Anneal from an answer that fits (a policy's, a solver's) until the budget is spent; never worse than `answer`."""
    dice = np.random.default_rng(seed)
    search = _Search(Work.of(problem, answer.group))
    _, place, priority = problem.of_tasks(answer)
    best = search.price(place, priority)[0]
    turn, tries = 0, 4 + 20_000 // len(problem.graph)                   # a new partition is priced anew, which takes as long as many simulations
    while not budget.exhausted:
        place, priority, best = search.run(place, priority, heat * (0.3 ** (turn % 4)), budget, seed * 7919 + turn)
        turn += 1
        for _ in range(min(tries, 200) if problem.group is None else 0):
            if budget.exhausted:
                break
            nodes = place[search.work.tasks.group]
            other = _nearby(problem, search.work.group, dice, nodes)
            if np.array_equal(other, search.work.group):
                continue
            work = Work.of(problem, other)
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

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> Proposal[Answer]:
        work, place, priority, _ = starts(problem, budget)
        return Proposal(improve(problem, work.answer(place, priority), budget, seed))
