"""What solvers of schedules share: greedy fusion that keeps the groups' graph acyclic, tasks as a Dag with units and memory, plans made to fit.

Fusion keeps a level for every group (its longest path from the start), raised as nodes join, so that a search for a cycle looks only at groups
between two
levels (Katriel and Bodlaender 2006, online topological ordering).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit

from fourfold.cost.simulate import Arrays, Tasks, arrays, play
from fourfold.decisions.schedule._list import Dag
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import Infeasible
from fourfold.graph import CONTRACTION, OPAQUE, REDUCTION, VIEW

_LOOK = 400                                                            # groups that a search for a cycle visits before the fusion is left out


@njit(cache=True)
def _circle(node, g, group, level, head, after, in_ptr, in_val, producer, seen, stamp, stack, look):  # type: ignore[no-untyped-def]
    """Whether a path leaves group g and comes to `node` through other groups (or too many groups would have to be looked at)."""
    count, visited = 0, 0
    for e in range(in_ptr[node], in_ptr[node + 1]):
        p = producer[in_val[e]]
        if p >= 0 and group[p] != g and level[group[p]] > level[g] and seen[group[p]] != stamp:
            seen[group[p]] = stamp
            stack[count] = group[p]
            count += 1
    while count:
        count -= 1
        n = head[stack[count]]
        visited += 1
        if visited > look:
            return True
        while n >= 0:
            for e in range(in_ptr[n], in_ptr[n + 1]):
                p = producer[in_val[e]]
                if p < 0:
                    continue
                h = group[p]
                if h == g:
                    return True
                if level[h] > level[g] and seen[h] != stamp:
                    seen[h] = stamp
                    stack[count] = h
                    count += 1
            n = after[n]
    return False


@njit(cache=True)
def _crossing(node, g, group, head, after, in_ptr, in_val, out_ptr, out_val, use_ptr, use_node, kept, producer, mark, stamp):  # type: ignore[no-untyped-def]
    """Values that group g with `node` reads from elsewhere or hands on."""
    total, n = 0, node
    while n >= 0:
        for e in range(in_ptr[n], in_ptr[n + 1]):
            v = in_val[e]
            p = producer[v]
            if (p < 0 or (group[p] != g and p != node)) and mark[v] != stamp:
                mark[v] = stamp
                total += 1
        for e in range(out_ptr[n], out_ptr[n + 1]):
            v = out_val[e]
            out = kept[v]
            for k in range(use_ptr[v], use_ptr[v + 1]):
                out = out or (group[use_node[k]] != g and use_node[k] != node)
            total += out
        n = head[g] if n == node else after[n]
    return total


@njit(cache=True)
def fused(want, fusion, space, place, loose, tie, able, in_ptr, in_val, out_ptr, out_val, use_ptr, use_node, producer, size, kept, most, streams,
          look):  # type: ignore[no-untyped-def]
    """(group i4[N], place i8[N]) after every node that `want`s has joined the producer that hands it most bytes, where the rules of fusion allow.
    `place`: what is equal within a group (a device); `loose`: nodes that take the place of the group that they join."""
    nodes = len(fusion)
    group, level, where = np.full(nodes, -1, np.int32), np.zeros(nodes, np.int64), place.copy()
    head, after, count = np.full(nodes, -1), np.full(nodes, -1), np.zeros(nodes, np.int64)
    heavy, wide = np.zeros(nodes, np.bool_), np.ones(nodes, np.int64)
    tied, can = tie.copy(), able.copy()
    seen, mark, stack, tried = np.full(nodes, -1), np.full(len(producer), -1), np.empty(nodes + 1, np.int64), np.full(nodes, -1)
    todo = np.empty(4 * nodes + 4, np.int64)
    stamp = 0
    for n in range(nodes):
        best = -1
        while want[n] and fusion[n] != OPAQUE and fusion[n] != CONTRACTION:
            chosen, bytes_ = -1, -1
            for e in range(in_ptr[n], in_ptr[n + 1]):
                p = producer[in_val[e]]
                if p >= 0 and tried[group[p]] != n and size[in_val[e]] > bytes_:
                    chosen, bytes_ = group[p], size[in_val[e]]
            if chosen < 0:
                break
            g = chosen
            tried[g] = n
            if fusion[head[g]] == OPAQUE or count[g] >= most or (heavy[g] and fusion[n] == REDUCTION):
                continue
            if where[head[g]] != where[n] and not (loose[n] and (able[n] >> where[head[g]]) & 1):
                continue
            if (tied[g] >= 0 and tie[n] >= 0 and tied[g] != tie[n]) or (can[g] & able[n]) == 0:
                continue
            if fusion[n] != VIEW and wide[g] % space[n] and space[n] % wide[g]:
                continue
            stamp += 1
            if _crossing(n, g, group, head, after, in_ptr, in_val, out_ptr, out_val, use_ptr, use_node, kept, producer, mark, stamp) > streams:
                continue
            if _circle(n, g, group, level, head, after, in_ptr, in_val, producer, seen, stamp, stack, look):
                continue
            best = g
            break
        if best >= 0:
            where[n] = where[head[best]]
        g = best if best >= 0 else n
        group[n] = g
        after[n] = head[g]
        head[g] = n
        count[g] += 1
        heavy[g] |= fusion[n] == CONTRACTION
        if fusion[n] != VIEW:
            wide[g] = max(wide[g], space[n])
        if tie[n] >= 0:
            tied[g] = tie[n]
        can[g] &= able[n]
        depth = level[g]
        for e in range(in_ptr[n], in_ptr[n + 1]):
            p = producer[in_val[e]]
            if p >= 0 and group[p] != g:
                depth = max(depth, level[group[p]] + 1)
        if depth > level[g]:                                           # raise what follows
            level[g] = depth
            todo[0], left = g, 1
            while left:
                left -= 1
                h = todo[left]
                m = head[h]
                while m >= 0:
                    for e in range(out_ptr[m], out_ptr[m + 1]):
                        for k in range(use_ptr[out_val[e]], use_ptr[out_val[e] + 1]):
                            o = group[use_node[k]]
                            if o >= 0 and o != h and level[o] <= level[h]:
                                level[o] = level[h] + 1
                                if left < len(todo):
                                    todo[left] = o
                                    left += 1
                    m = after[m]
    return group, where


def fuse(problem: Schedule, label: np.ndarray | None = None, most: int | None = None) -> np.ndarray:
    """i4[N] groups: each node joins the producer that hands it most bytes, where the rules allow and `label`s (devices) are equal."""
    if problem.group is not None:
        return problem.group
    g = problem.graph
    label = problem.place if label is None else label
    kept = np.zeros(len(g.producer), bool)
    kept[g.outputs] = True
    able = (problem.able.astype(np.int64) << np.arange(problem.able.shape[1])).sum(1)
    place = np.zeros(len(g), np.int64) if label is None else np.asarray(label, np.int64)
    return fused(np.ones(len(g), bool), g.fusion, problem.space, place, np.zeros(len(g), bool), g.colocation, able, g.in_ptr, g.in_val, g.out_ptr,
                 g.out_val, g.use_ptr, g.use_node, g.producer, g.size, kept, min(most or problem.most, problem.most), problem.streams, _LOOK)[0]


def alone(problem: Schedule) -> np.ndarray:
    """i4[N] nothing fused, unless that is fixed."""
    return np.arange(len(problem.graph), dtype=np.int32) if problem.group is None else problem.group


@dataclass(frozen=True, eq=False)
class PartitionTasks:
    """Tasks of one partition, ready for kernels. `unit` i8[T]: tasks that must share a device; `unit_able` bool [U, D]; `forced` i8[T] a fixed
    device or
    -1; `held` f8[T] an estimate of the bytes that a task keeps on its device; `first` i8[T] its first node."""

    problem: Schedule
    group: np.ndarray
    tasks: Tasks
    plain: Arrays
    dag: Dag
    unit: np.ndarray
    unit_able: np.ndarray
    forced: np.ndarray
    held: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, problem: Schedule, group: np.ndarray) -> PartitionTasks:
        tasks = problem.tasks(group)
        plain = arrays(tasks, problem.system)
        unit = _units(tasks, problem.graph.colocation)
        able = np.ones((unit.max() + 1, len(problem.system)), bool)
        np.logical_and.at(able, unit, np.isfinite(tasks.seconds))
        first = np.full(len(tasks), len(problem.graph))
        np.minimum.at(first, tasks.group, np.arange(len(problem.graph)))
        forced = np.full(len(tasks), -1) if problem.place is None else problem.place[first].astype(np.int64)
        src, dst, value = tasks.edges()
        held = _held(problem, tasks, plain)
        wait, pace = plain.latency, np.where(np.isfinite(plain.bandwidth), 1.0 / plain.bandwidth, 0.0)
        room = plain.limit if problem.bounded else np.full(len(plain.limit), np.inf)
        dag = Dag.of(tasks.seconds, src, dst, tasks.size[value], wait, pace, unit, held, room)
        return cls(problem, group, tasks, plain, dag, unit, able, forced, held, first)

    def answer(self, place: np.ndarray, priority: np.ndarray) -> Answer:
        """Node by node; parts that the problem fixes stay as they are."""
        found = self.problem.of_nodes(self.tasks, place, priority)
        return Answer(self.group, found.place, found.priority if self.problem.priority is None else self.problem.priority)

    def priorities(self, priority: np.ndarray) -> np.ndarray:
        """f8[T] `priority`, or what a fixed order makes of it."""
        if self.problem.priority is None:
            return np.asarray(priority, np.float64)
        fixed = np.full(len(self.tasks), -np.inf)
        np.maximum.at(fixed, self.tasks.group, self.problem.priority)
        return fixed

    def over(self, place: np.ndarray, priority: np.ndarray) -> tuple[float, np.ndarray]:
        """(cost in the problem's unit, bytes above the limit f8[D])."""
        run = play(self.plain, np.asarray(place, np.int16), self.priorities(priority), False, False)
        over = np.maximum(0.0, run.peak - self.plain.limit) if self.problem.bounded else np.zeros(len(run.peak))
        cost = {"latency": run.makespan, "throughput": max(run.busy.max(), run.lane_busy.max(initial=0.0)), "energy": run.joules,
                "memory": float(run.peak.max())}[self.problem.objective]
        return float(cost), over


def _units(tasks: Tasks, colocation: np.ndarray) -> np.ndarray:
    """i8[T]: numbers of the connected components that colocation classes make of tasks."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    tied = np.flatnonzero(colocation >= 0)
    if not len(tied):
        return np.arange(len(tasks))
    classes, label = np.unique(colocation[tied], return_inverse=True)
    size = len(tasks) + len(classes)
    links = coo_matrix((np.ones(len(tied)), (tasks.group[tied], len(tasks) + label)), (size, size))
    found = connected_components(links, directed=False)[1][:len(tasks)]
    return np.unique(found, return_inverse=True)[1]


def _held(problem: Schedule, tasks: Tasks, plain: Arrays) -> np.ndarray:
    """f8[T]: shares of resident things by their readers, and of the values that it makes, scaled to what they hold at once on one device."""
    held = np.zeros(len(tasks))
    readers = np.diff(tasks.fixed_ptr)
    share = np.repeat(tasks.fixed_size / np.maximum(readers, 1), readers)
    np.add.at(held, tasks.fixed_task, share)
    made = np.zeros(len(tasks))
    np.add.at(made, tasks.producer, tasks.hold.astype(np.float64))
    fastest = int(np.argmin(np.nan_to_num(tasks.seconds, posinf=0.0).sum(0)))
    one = play(plain._replace(seconds=np.nan_to_num(plain.seconds, posinf=0.0)), np.full(len(tasks), fastest, np.int16),
               -np.arange(len(tasks), dtype=np.float64), False, False)
    at_once = float(one.peak.max()) - float(tasks.fixed_size.sum())
    return held + made * min(1.0, at_once / max(1.0, made.sum()))


Plan = Callable[[PartitionTasks, float], tuple[np.ndarray, np.ndarray]]           # (work, factor on `held`) → place i[T], priority f8[T]


def fit(work: PartitionTasks, plan: Plan, tries: Iterable[float] = (1.0, 1.3, 1.7, 2.2)) -> tuple[np.ndarray, np.ndarray]:
    """The first plan that holds its memory: planned with ever more cautious estimates, each mended by moving units; else as `spread` finds one.

    Raises Infeasible where nothing that was tried fits, saying by how many bytes the nearest misses.
    """
    nearest, by = np.inf, 0
    for factor in tries:
        place, priority = plan(work, factor)
        if (place < 0).any():
            continue
        place, over = mend(work, place, priority)
        if not over.any():
            return place, priority
        nearest, by = (float(over.sum()), int(np.argmax(over))) if over.sum() < nearest else (nearest, by)
    for place, priority in spread(work):
        place, over = mend(work, place, priority)
        if not over.any():
            return place, priority
        nearest, by = (float(over.sum()), int(np.argmax(over))) if over.sum() < nearest else (nearest, by)
    raise Infeasible(f"No plan was found that fits: the nearest holds {int(nearest):,} bytes too many, most of them on "
                     f"{work.problem.system.devices[by].name}.", "Use more or larger devices, a smaller batch or a smaller type.")


def mend(work: PartitionTasks, place: np.ndarray, priority: np.ndarray, rounds: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Move units from devices that hold too much to those with room, those first that talk most with the other side; (place, bytes over f8[D])."""
    _, over = work.over(place, priority)
    if not over.any() or work.problem.place is not None:
        return place, over
    units = len(work.unit_able)
    load = np.bincount(work.unit, work.held, units)
    src, dst, value = work.tasks.edges()
    size = work.tasks.size[value].astype(np.float64)
    best, least = place, over
    for _ in range(rounds):
        run = play(work.plain, place.astype(np.int16), work.priorities(priority), False, False)
        excess = run.peak - work.plain.limit
        worst, target = int(np.argmax(excess)), int(np.argmin(excess))
        if excess[worst] <= 0 or worst == target:
            break
        talk = np.zeros(units)
        for a, b in ((src, dst), (dst, src)):
            np.add.at(talk, work.unit[a], np.where(place[b] == target, size, np.where(place[b] == worst, -size, 0.0)))
        here = np.zeros(units, bool)
        here[work.unit[place == worst]] = True
        free = np.flatnonzero(here & work.unit_able[:, target] & (load > 0))
        if not len(free):
            break
        free = free[np.argsort(-talk[free] / load[free], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(load[free]), min(excess[worst], max(1.0, -excess[target] / 2)))) + 1
        moved = np.zeros(units, bool)
        moved[free[:enough]] = True
        place = np.where(moved[work.unit], target, place)
        _, over = work.over(place, priority)
        if over.sum() < least.sum():
            best, least = place, over
    return best, least


def spread(work: PartitionTasks) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Last resorts: units in topological order, each device filled in proportion to its memory; then each device filled up in turn."""
    units = len(work.unit_able)
    start = np.full(units, len(work.first))
    np.minimum.at(start, work.unit, work.first)
    load = np.bincount(work.unit, work.held, units)
    order = np.argsort(start, kind="stable")
    share = np.cumsum(work.plain.limit / work.plain.limit.sum())
    for edges in (share, np.cumsum(np.minimum(1.0, work.plain.limit / max(1.0, load.sum())))):
        filled = np.cumsum(load[order]) / max(1.0, load.sum())
        device = np.empty(units, np.int64)
        device[order] = np.minimum(np.searchsorted(edges, filled - 1e-12), len(share) - 1)
        device = np.where(work.unit_able[np.arange(units), device], device, work.unit_able.argmax(1))
        place = device[work.unit]
        if work.problem.place is not None:
            place = work.forced
        for priority in (-np.arange(len(place), dtype=np.float64), np.arange(len(place), dtype=np.float64)):
            yield place, priority
