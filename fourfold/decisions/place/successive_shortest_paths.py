"""The exact min-cost flow by successive shortest augmenting paths with potentials, for instances too large for a general LP code.

Job-hours are sent one by one along the cheapest path of the residual network: a job-hour takes the cheapest hour there is, and where that is full it
may push another job to its next best, and so on (Dijkstra on reduced costs; Ahuja, Magnanti & Orlin 1993, section 9.7). The network is never built: a
job's arcs are its window. Potentials of full region-hours are the dual prices of capacity. A job-hour with no path is a proof that there is no
schedule: the region-hours it could reach are all full of jobs that can go nowhere else (Hall's condition).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fourfold.decide import Budget, Proposal, Solver
from fourfold.decisions.place._pricing import FREE, bound, kinds, tables
from fourfold.decisions.place.problem import Place, Schedule
from fourfold.errors import Infeasible

_OUT_OF_BUDGET = -2


class SuccessiveShortestPaths(Solver):
    title = "Successive shortest paths: exact flow for years of hours"
    lever = "map"
    answers = "place"
    cites = ("ahuja1993",)
    needs = ("numba",)
    gives = ("optimum", "bound")
    counts = "augmenting paths"

    def declines(self, problem: Place) -> str | None:
        if (kinds(problem) != FREE).any():
            j = int(np.flatnonzero(kinds(problem) != FREE)[0])
            return f"job {problem.names[j]} may not pause or pays for it, so this is no network flow."
        if len(np.unique(problem.width)) > 1:
            return "jobs of different widths make it no network flow."
        return None

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> Proposal[Schedule]:
        p = tables(problem)
        room = np.minimum(problem.room / problem.width[0], 2.0**31).astype(np.int64)
        order = np.lexsort((problem.deadline, problem.release))
        flat: Any = [np.array(part, order="C") for part in (p.rate, p.kw, p.hours, p.release, p.deadline, p.allowed, room)]   # one compiled form
        routed: Any = _route
        where, mu, lam, state, reached, hit = routed(*flat, order, budget.evaluations)
        if state >= 0:
            raise Infeasible(*hall(problem, state, reached, hit))
        if state == _OUT_OF_BUDGET:
            raise Infeasible("The budget of augmenting paths was spent before every job had its hours.", "Allow more evaluations.")
        budget.spend(len(where))
        sites, total = problem.intensity.shape
        answer = Schedule(np.repeat(np.arange(len(problem.names)), problem.hours), where // total, where % total)
        shut = lam.max(initial=0.0)                                     # enough to keep everybody out of an hour with no room; it costs nothing
        price = np.where(room > 0, np.maximum(mu, 0.0), shut) / problem.width[0]
        return Proposal(answer, bound(problem, price), {"mu": price})


def hall(problem: Place, job: int, reached: np.ndarray, hit: np.ndarray) -> tuple[str, str]:
    """What went wrong and how to mend it, from the jobs and region-hours that a job-hour without a path could reach."""
    jobs, hours = np.flatnonzero(reached), np.flatnonzero(hit.any(axis=0))
    if not len(hours):
        return f"Job {problem.names[job]} finds no hour with known intensity and room in its window.", "Extend its window or the intensities."
    names = ", ".join(problem.names[j] for j in jobs[:5]) + (f" and {len(jobs) - 5} more" if len(jobs) > 5 else "")
    need = int(problem.hours[jobs].sum())
    slots = np.where(hit & np.isfinite(problem.intensity), problem.room / problem.width[0], 0.0).sum(axis=0)
    able = [((problem.release[jobs] <= t) & (problem.deadline[jobs] > t)).sum() for t in range(len(slots))]
    room = int(np.minimum(slots, able).sum())                           # a job has one hour in an hour
    return (f"No schedule meets every deadline: {names} need{'s' * (len(jobs) == 1)} {need} job-hours, and in hours {hours[0]} to {hours[-1]} "
            f"there is room for {room}: {max(1, need - room)} too few.", "Raise the capacity, the slack, or the number of sites.")


@njit(cache=True)
def _push(keys: np.ndarray, nodes: np.ndarray, size: int, key: Any, node: int) -> tuple[np.ndarray, np.ndarray, int]:
    if size == len(keys):
        keys, nodes = np.concatenate((keys, np.empty(size))), np.concatenate((nodes, np.empty(size, np.int64)))
    i = size
    while i > 0:
        up = (i - 1) >> 1
        if keys[up] <= key:
            break
        keys[i], nodes[i] = keys[up], nodes[up]
        i = up
    keys[i], nodes[i] = key, node
    return keys, nodes, size + 1


@njit(cache=True)
def _pop(keys: np.ndarray, nodes: np.ndarray, size: int) -> tuple[float, int, int]:
    top, which = keys[0], nodes[0]
    size -= 1
    key, node, i = keys[size], nodes[size], 0
    while True:
        down = 2 * i + 1
        if down >= size:
            break
        if down + 1 < size and keys[down + 1] < keys[down]:
            down += 1
        if keys[down] >= key:
            break
        keys[i], nodes[i] = keys[down], nodes[down]
        i = down
    keys[i], nodes[i] = key, node
    return top, which, size


@njit(cache=True)
def _route(fee: np.ndarray, kw: np.ndarray, hours: np.ndarray, release: np.ndarray, deadline: np.ndarray, allowed: np.ndarray, room: np.ndarray,
           order: np.ndarray, budget: int) -> Any:
    """(region-hour of every job-hour, prices [R, T], the jobs' potentials, -1 or the job without a path, jobs reached, region-hours reached)."""
    sites, total = fee.shape
    count, spots = len(kw), sites * total
    first = np.zeros(count + 1, np.int64)                               # first unit (job-hour) of each job
    held = np.zeros(count + 1, np.int64)                                # where each job's window begins in `taken`
    for j in range(count):
        first[j + 1] = first[j] + hours[j]
        held[j + 1] = held[j] + deadline[j] - release[j]
    units = first[count]
    taken = np.zeros(held[count], np.bool_)                             # the job holds that hour
    owner = np.zeros(units, np.int64)
    where, after, before = np.full(units, -1, np.int64), np.full(units, -1, np.int64), np.full(units, -1, np.int64)
    head, load = np.full(spots, -1, np.int64), np.zeros(spots, np.int64)
    rate, cap = fee.ravel(), room.ravel()
    mu, lam = np.zeros(spots), np.zeros(count)
    far, mark = np.zeros(spots + count), np.zeros(spots + count, np.int64)   # distance; stamp of the search that set it (negative = final)
    mover = np.full(spots + count, -1, np.int64)                        # the unit that would come here; for a job: the unit that would leave
    keys, nodes = np.empty(1 << 14), np.empty(1 << 14, np.int64)
    final = np.empty(spots + count, np.int64)
    stamp, paths = 0, 0
    reached, hit = np.zeros(count, np.bool_), np.zeros((sites, total), np.bool_)
    for j in order:
        owner[first[j]: first[j + 1]] = j
    for j in order:
        for new in range(first[j], first[j + 1]):
            paths += 1
            if paths > budget:
                return where, mu.reshape(sites, total), lam, -2, reached, hit
            stamp += 1
            size, done, best, end = 0, 0, np.inf, -1
            least, spot = np.inf, -1                                    # the job's potential rises to its cheapest hour not held
            for r in range(sites):
                if allowed[j, r]:
                    for t in range(release[j], deadline[j]):
                        v = r * total + t
                        if rate[v] < np.inf and cap[v] > 0 and not taken[held[j] + t - release[j]]:
                            cost = kw[j] * rate[v] + mu[v]
                            if cost < least:
                                least, spot = cost, v
            lam[j] = max(lam[j], least)
            if spot >= 0 and load[spot] < cap[spot]:                    # there is room: no search
                taken[held[j] + spot % total - release[j]] = True
                where[new], after[new] = spot, head[spot]
                if head[spot] >= 0:
                    before[head[spot]] = new
                head[spot] = new
                load[spot] += 1
                continue
            keys, nodes, size = _push(keys, nodes, size, 0.0, spots + j)
            far[spots + j], mark[spots + j], mover[spots + j] = 0.0, stamp, new
            while size > 0:
                key, node, size = _pop(keys, nodes, size)
                if mark[node] == -stamp or key > far[node]:
                    continue
                mark[node] = -stamp
                if node < spots and load[node] < cap[node]:
                    end = node
                    break
                final[done] = node
                done += 1
                if node >= spots:                                       # a job: to every hour it does not hold
                    i = node - spots
                    base = key - lam[i]
                    for r in range(sites):
                        if not allowed[i, r]:
                            continue
                        for t in range(release[i], deadline[i]):
                            v = r * total + t
                            cost = base + kw[i] * rate[v] + mu[v]
                            if cost >= best or taken[held[i] + t - release[i]] or cap[v] == 0 or mark[v] == -stamp:
                                continue
                            if cost < key:                              # by rounding
                                cost = key
                            if mark[v] != stamp or cost < far[v]:
                                far[v], mark[v], mover[v] = cost, stamp, mover[node]
                                keys, nodes, size = _push(keys, nodes, size, cost, v)
                                if load[v] < cap[v]:
                                    best = cost
                else:                                                   # a full region-hour: one of its units makes room
                    t = node % total
                    u = head[node]
                    while u >= 0:
                        i = owner[u]
                        paid = kw[i] * rate[node] + mu[node]
                        cost = key + max(0.0, lam[i] - paid)
                        if cost < best and mark[spots + i] != -stamp and (mark[spots + i] != stamp or cost < far[spots + i]):
                            far[spots + i], mark[spots + i], mover[spots + i] = cost, stamp, u
                            keys, nodes, size = _push(keys, nodes, size, cost, spots + i)
                        for r in range(sites):                          # … to another site in the same hour
                            v = r * total + t
                            if allowed[i, r] and cap[v] > 0 and mark[v] != -stamp:
                                cost = key + max(0.0, kw[i] * rate[v] + mu[v] - paid)
                                if cost < best and (mark[v] != stamp or cost < far[v]):
                                    far[v], mark[v], mover[v] = cost, stamp, u
                                    keys, nodes, size = _push(keys, nodes, size, cost, v)
                                    if load[v] < cap[v]:
                                        best = cost
                        u = after[u]
            if end < 0:
                for n in range(done):
                    if final[n] >= spots:
                        reached[final[n] - spots] = True
                    else:
                        hit[final[n] // total, final[n] % total] = True
                return where, mu.reshape(sites, total), lam, j, reached, hit
            for n in range(done):
                node = final[n]
                if node < spots:
                    mu[node] += far[end] - far[node]
                else:
                    lam[node - spots] += far[end] - far[node]
            v = end
            while v >= 0:                                               # back along the path: each unit moves up to where it was going
                u = mover[v]
                old, i = where[u], owner[u]
                if old >= 0:
                    taken[held[i] + old % total - release[i]] = False
                    if before[u] >= 0:
                        after[before[u]] = after[u]
                    else:
                        head[old] = after[u]
                    if after[u] >= 0:
                        before[after[u]] = before[u]
                    load[old] -= 1
                taken[held[i] + v % total - release[i]] = True
                where[u], before[u], after[u] = v, -1, head[v]
                if head[v] >= 0:
                    before[head[v]] = u
                head[v] = u
                load[v] += 1
                v = old
    return where, mu.reshape(sites, total), lam, -1, reached, hit
