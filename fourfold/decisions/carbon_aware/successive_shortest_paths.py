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

from fourfold.decisions.carbon_aware._pricing import bound, no_flow, tables
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_OUT_OF_BUDGET = -2
_CELLS, _LONG, _MORE = 2_000_000, 336, 60                               # site-hours looked at whole; a long window; hours added at a time
_ENOUGH = 1e-9


class SuccessiveShortestPaths(Solver):
    default = True
    title = "Successive shortest paths: exact flow for years of hours"
    lever = "map"
    answers = "place"
    cites = ("ahuja1993", "wentges1997")
    needs = ("numba",)
    gives = ("optimum", "bound")
    counts = "augmenting paths"

    def declines(self, problem: Place) -> str | None:
        return no_flow(problem)

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        guess = _windows(problem)
        if guess is None:
            found, price, paths = _routed(problem, _whole(problem), budget)
            budget.spend(paths)
            return SolverAnswer(found, bound(problem, price), {"mu": price})
        listed, mu = guess
        low, best, rounds = bound(problem, mu), None, 0
        while best is None or problem.cost(best) - low > _ENOUGH * abs(low):
            try:
                found, price, paths = _routed(problem, listed, budget)
            except Infeasible:
                if best is not None:                                    # the budget of paths ends between two rounds
                    break
                found, price, paths = _routed(problem, _whole(problem), budget)
            best, rounds = found if best is None or problem.cost(found) < problem.cost(best) else best, rounds + 1
            for part in (1.0, 0.5, 0.2):                                # new prices swing where few looked; those between prove more (Wentges 1997)
                trial = part * price + (1 - part) * mu
                if (value := bound(problem, trial)) > low:
                    low, mu = value, trial
            more = _widened(problem, listed, found, price) | _widened(problem, listed, found, mu)
            if not more or not budget.spend(paths):
                break
        return SolverAnswer(best, low, {"mu": mu}, f"{rounds} rounds of {int(np.mean([len(hours) for hours in listed]))} hours a job")


def _whole(problem: Place) -> list[np.ndarray]:
    """Every hour of each window."""
    return [np.arange(first, last) for first, last in zip(problem.release, problem.deadline, strict=True)]


def _routed(problem: Place, listed: list[np.ndarray], budget: Budget) -> tuple[JobHours, np.ndarray, int]:
    """The optimum over the hours listed for each job, its prices of capacity [R, T], and the paths it took. Raises Infeasible."""
    p = tables(problem)
    room = np.where(np.isfinite(p.rate), np.minimum(problem.room / problem.width[0], 2.0**31), 0.0).astype(np.int64)
    order = np.lexsort((problem.deadline, problem.release))
    starts = np.concatenate([[0], np.cumsum([len(each) for each in listed])]).astype(np.int64)
    flat: list[object] = [np.array(part, order="C") for part in (p.rate, p.kw, p.hours, p.allowed, room)]   # one compiled form for all
    routed: Any = _route
    where, mu, lam, state, reached, hit = routed(*flat, starts, np.concatenate(listed).astype(np.int64), order, budget.evaluations - budget.spent)
    if state >= 0:
        raise Infeasible(*hall(problem, state, reached, hit))
    if state == _OUT_OF_BUDGET:
        raise Infeasible("The budget of augmenting paths was spent before every job had its hours.", "Give more time: --budget")
    total = problem.intensity.shape[1]
    shut = np.where(problem.room > 0, 0.0, lam.max(initial=0.0))        # keeps everybody out of an hour with no room, and costs nothing
    price = np.where(room > 0, np.maximum(mu, 0.0), shut) / problem.width[0]
    return JobHours(np.repeat(np.arange(len(problem.names)), problem.hours), where // total, where % total), price, len(where)


def _windows(problem: Place) -> tuple[list[np.ndarray], np.ndarray] | None:
    """Hours to begin with where windows are too long to look at whole: the cheapest at guessed prices of capacity; and these. None: look at all.

    Guess: the costliest jobs take the cheapest hours (rearrangement), one job after another. With full region-hours in the order of their rate, a job
    that went one further would pay its kW times the step in rate, so those steps add up to the price, down from the dearest hour in use.
    """
    window = problem.deadline - problem.release
    if int((window * problem.allowed.sum(axis=1)).sum()) <= _CELLS:
        return None
    p, left = tables(problem), np.where(np.isfinite(problem.intensity), problem.room / problem.width[0], 0.0)
    listed = [np.arange(first, last) if last - first <= _LONG else np.zeros(0, np.int64)
              for first, last in zip(problem.release, problem.deadline, strict=True)]
    mover, price = np.full(left.shape, np.inf), np.zeros(left.shape)    # kW of the job that would leave a region-hour first
    for j in np.lexsort((-problem.kw, window > _LONG)):
        first, last, need = int(problem.release[j]), int(problem.deadline[j]), int(problem.hours[j])
        rate = np.where(problem.allowed[j][:, None] & (left[:, first:last] >= 1), p.rate[:, first:last], np.inf)
        least = rate.min(axis=0)
        hour = np.argpartition(least, need - 1)[:need]
        hour = hour[np.isfinite(least[hour])]
        site = rate[:, hour].argmin(axis=0)
        left[site, first + hour] -= 1
        mover[site, first + hour] = np.minimum(mover[site, first + hour], problem.kw[j])
        listed[j] = np.union1d(listed[j], first + hour) if len(hour) == need else np.arange(first, last)
    chunk = int(np.median(window[window > _LONG])) if (window > _LONG).any() else _LONG
    for t in range(0, left.shape[1], chunk):
        site, hour = np.nonzero((left[:, t: t + chunk] < 1) & np.isfinite(mover[:, t: t + chunk]))
        order = np.argsort(p.rate[site, t + hour])[::-1]                # from the dearest down
        site, hour = site[order], t + hour[order]
        steps = -np.diff(p.rate[site, hour], prepend=p.rate[site, hour][:1])
        price[site, hour] = np.cumsum(steps * mover[site, hour])
    for j in np.flatnonzero([len(hours) < length for hours, length in zip(listed, window, strict=True)]):
        least = _priced(problem, p, int(j), price / problem.width[0]).min(axis=0)
        least *= 1 + 0.01 * np.random.default_rng(j).random(len(least))   # jobs alike should not all look at the same hours
        few = np.argpartition(least, min(len(least) - 1, 8 * problem.hours[j] + _MORE))[: 8 * problem.hours[j] + _MORE]
        listed[j] = np.union1d(listed[j], problem.release[j] + few)
    return listed, np.where(np.isfinite(problem.room), price, 0.0) / problem.width[0]


def _priced(problem: Place, p: Any, j: int, price: np.ndarray) -> np.ndarray:
    """Cost of an hour of job j with the price of capacity, [R, window]."""
    span = slice(int(problem.release[j]), int(problem.deadline[j]))
    cost = np.where(np.isfinite(p.rate[:, span]), problem.kw[j] * p.rate[:, span] + problem.width[j] * price[:, span], np.inf)
    return np.where(problem.allowed[j][:, None], cost, np.inf)


def _widened(problem: Place, listed: list[np.ndarray], found: JobHours, price: np.ndarray) -> bool:
    """Add to each job the hours that, at these prices, are cheaper than its dearest; False if there are none."""
    p, more = tables(problem), False
    ends = np.searchsorted(found.job, np.arange(len(problem.names) + 1))
    for j in range(len(problem.names)):
        first, last = int(problem.release[j]), int(problem.deadline[j])
        if len(listed[j]) == last - first:
            continue
        cost = _priced(problem, p, j, price)
        mine = slice(ends[j], ends[j + 1])
        dearest = cost[found.site[mine], found.hour[mine] - first].max()
        least = cost.min(axis=0)
        least[listed[j] - first] = np.inf
        better = np.flatnonzero(least < dearest * (1 - 1e-12))
        if len(better):
            better = better[np.argsort(least[better], kind="stable")[:_MORE]]
            listed[j], more = np.union1d(listed[j], first + better), True
    return more


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
def _push(keys: np.ndarray, nodes: np.ndarray, size: int, key: object, node: int) -> tuple[np.ndarray, np.ndarray, int]:
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
def _route(fee: np.ndarray, kw: np.ndarray, hours: np.ndarray, allowed: np.ndarray, room: np.ndarray, starts: np.ndarray, listed: np.ndarray,
           order: np.ndarray, budget: int) -> object:
    """(region-hour of every job-hour, prices [R, T], the jobs' potentials, -1 or the job without a path, jobs reached, region-hours reached).

    Job j may run in the hours listed[starts[j]: starts[j + 1]]. A region-hour without room is never entered.
    Long: search, potentials and the change along the path share 20 arrays, which a compiled function that is called for each step would be handed
    anew.
    """
    sites, total = fee.shape
    count, spots = len(kw), sites * total
    first = np.zeros(count + 1, np.int64)                               # first unit (job-hour) of each job
    for j in range(count):
        first[j + 1] = first[j] + hours[j]
    units = first[count]
    taken = np.zeros(len(listed), np.bool_)                             # the job holds that hour
    owner, entry = np.zeros(units, np.int64), np.full(units, -1, np.int64)   # of each unit: its job, its place in `listed`
    where, after, before = np.full(units, -1, np.int64), np.full(units, -1, np.int64), np.full(units, -1, np.int64)
    head, load = np.full(spots, -1, np.int64), np.zeros(spots, np.int64)
    rate, cap = fee.ravel(), room.ravel()
    mu, lam = np.zeros(spots), np.zeros(count)
    far, mark = np.zeros(spots + count), np.zeros(spots + count, np.int64)   # distance; stamp of the search that set it (negative = final)
    mover, place = np.full(spots + count, -1, np.int64), np.zeros(spots, np.int64)   # the unit that would come (of a job: leave), and its entry then
    keys, nodes = np.empty(1 << 14), np.empty(1 << 14, np.int64)
    final = np.empty(spots + count, np.int64)
    stamp = 0
    reached, hit = np.zeros(count, np.bool_), np.zeros((sites, total), np.bool_)
    for j in order:
        owner[first[j]: first[j + 1]] = j
    for j in order:
        for new in range(first[j], first[j + 1]):
            stamp += 1
            if stamp > budget:
                return where, mu.reshape(sites, total), lam, -2, reached, hit
            size, done, best, end = 0, 0, np.inf, -1
            least = np.inf                                              # the job's potential rises to its cheapest hour not held
            for r in range(sites):
                if allowed[j, r]:
                    for k in range(starts[j], starts[j + 1]):
                        v = r * total + listed[k]
                        if cap[v] > 0 and not taken[k] and kw[j] * rate[v] + mu[v] < least:
                            least, end, place[v] = kw[j] * rate[v] + mu[v], v, k
            lam[j] = max(lam[j], least)
            if end >= 0 and load[end] < cap[end]:                       # there is room: no search
                mover[end] = new
            else:
                end = -1
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
                        for k in range(starts[i], starts[i + 1]):
                            v = r * total + listed[k]
                            cost = base + kw[i] * rate[v] + mu[v]
                            if cost >= best or taken[k] or cap[v] == 0 or mark[v] == -stamp:
                                continue
                            if cost < key:                              # by rounding
                                cost = key
                            if mark[v] != stamp or cost < far[v]:
                                far[v], mark[v], mover[v], place[v] = cost, stamp, mover[node], k
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
                                    far[v], mark[v], mover[v], place[v] = cost, stamp, u, entry[u]
                                    keys, nodes, size = _push(keys, nodes, size, cost, v)
                                    if load[v] < cap[v]:
                                        best = cost
                        u = after[u]
            for n in range(done):
                node = final[n]
                if end < 0 and node >= spots:
                    reached[node - spots] = True
                elif end < 0:
                    hit[node // total, node % total] = True
                elif node < spots:
                    mu[node] += far[end] - far[node]
                else:
                    lam[node - spots] += far[end] - far[node]
            if end < 0:
                return where, mu.reshape(sites, total), lam, j, reached, hit
            v = end
            while v >= 0:                                               # back along the path: each unit moves up to where it was going
                u = mover[v]
                old = where[u]
                if old >= 0:
                    taken[entry[u]] = False
                    if before[u] >= 0:
                        after[before[u]] = after[u]
                    else:
                        head[old] = after[u]
                    if after[u] >= 0:
                        before[after[u]] = before[u]
                    load[old] -= 1
                entry[u] = place[v]
                taken[entry[u]] = True
                where[u], before[u], after[u] = v, -1, head[v]
                if head[v] >= 0:
                    before[head[v]] = u
                head[v] = u
                load[v] += 1
                v = old
    return where, mu.reshape(sites, total), lam, -1, reached, hit
