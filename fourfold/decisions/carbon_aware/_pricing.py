"""The cheapest schedule of one job at given prices of capacity, exactly; all techniques that shift jobs ask it.

With a price mu[r, t] on each unit of capacity the jobs no longer hinder one another (Lagrangean relaxation: Geoffrion 1974), and each is solved
alone: FREE (may pause and move at no cost) by its d cheapest hours, BLOCK (one piece) by a sliding window, GENERAL (may pause, pays for starts,
checkpoints or moves) by dynamic programming over (hours done, place, running or not).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.errors import Infeasible

FREE, BLOCK, GENERAL = 0, 1, 2


class Tables(NamedTuple):
    """A `Place` as plain arrays for the kernels; `rate` and `net` are inf where an hour cannot be used."""

    rate: np.ndarray                                                    # [R, T] objective per kWh of IT energy
    net: np.ndarray                                                     # [R, T] objective per GB moved, at this end
    out: np.ndarray                                                     # [R] objective per GB leaving
    kw: np.ndarray
    hours: np.ndarray
    release: np.ndarray
    deadline: np.ndarray
    home: np.ndarray
    width: np.ndarray
    kind: np.ndarray
    allowed: np.ndarray
    startup: np.ndarray
    checkpoint: np.ndarray
    data: np.ndarray


def kinds(problem: Place) -> np.ndarray:
    """FREE, BLOCK or GENERAL of each job, int64 [J]. A job of one hour is one piece."""
    costly = (problem.startup_kwh > 0) | (problem.checkpoint_kwh > 0) | (problem.data_gb > 0)
    block = ~problem.interruptible | (problem.hours == 1) & costly
    return np.where(block, BLOCK, np.where(costly, GENERAL, FREE)).astype(np.int64)


def no_flow(problem: Place) -> str | None:
    """Why a problem is no network flow, in words; None where it is one."""
    other = np.flatnonzero(kinds(problem) != FREE)
    if len(other):
        return f"job {problem.names[other[0]]} may not pause, or pays for it, so this is no network flow."
    return "jobs of different widths make it no network flow." if len(np.unique(problem.width)) > 1 else None


def tables(problem: Place) -> Tables:
    """The arrays of `problem`, writable copies where the kernels need them contiguous."""
    unknown = np.isnan(problem.intensity)
    worth = problem.carbon * problem.intensity / 1000 + (problem.money * problem.price if problem.money else 0.0)
    return Tables(np.where(unknown, np.inf, problem.rate), np.where(unknown, np.inf, problem.kwh_per_gb / 2 * worth), problem.money * problem.egress,
                  problem.kw, problem.hours, problem.release, problem.deadline, problem.home, problem.width, kinds(problem), problem.allowed,
                  problem.startup_kwh, problem.checkpoint_kwh, problem.data_gb)


def _cells(p: Tables, j: int, mu: np.ndarray) -> np.ndarray:
    """Priced cost of running job j for an hour, [R, window]; inf where it cannot."""
    window = slice(p.release[j], p.deadline[j])
    rate = p.rate[:, window]
    usable = p.allowed[j][:, None] & np.isfinite(rate) & np.isfinite(mu)
    with np.errstate(invalid="ignore"):
        return np.where(usable, p.kw[j] * rate + p.width[j] * mu, np.inf)


def _moves(p: Tables, j: int, origin: Any, hour: Any) -> np.ndarray:
    """Cost of moving job j's data from `origin` (sites) in `hour`, to each site: [.., R]."""
    here = p.net[:, hour].T                                             # [.., R]: an end whose hour is unknown is counted like the other
    there = p.net[origin, hour][..., None]
    with np.errstate(invalid="ignore"):
        cost = p.data[j] * (np.where(np.isfinite(there), there, here) + here + np.asarray(p.out[origin])[..., None])
    return np.where(np.arange(len(p.out)) == np.asarray(origin)[..., None], 0.0, cost) if p.data[j] else np.zeros_like(cost)


def _free(p: Tables, j: int, price: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    where = price.argmin(axis=0)
    least = price[where, np.arange(price.shape[1])]
    hour = np.sort(np.argsort(least, kind="stable")[: p.hours[j]])      # of equal hours the earliest, and never more than asked for
    return float(least[hour].sum()), where[hour], hour + p.release[j]


def _block(p: Tables, j: int, price: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    need, first = int(p.hours[j]), int(p.release[j])
    starts = np.arange(price.shape[1] - need + 1)
    known = np.isfinite(price)
    total, gaps = (np.pad(np.cumsum(part, axis=1), ((0, 0), (1, 0))) for part in (np.where(known, price, 0.0), ~known))
    with np.errstate(invalid="ignore"):
        extra = p.startup[j] * p.rate[:, first + starts] + p.checkpoint[j] * p.rate[:, first + starts + need - 1]
        cost = total[:, need:] - total[:, : len(starts)] + extra + _moves(p, j, np.full(len(starts), p.home[j]), first + starts).T
    cost[gaps[:, need:] > gaps[:, : len(starts)]] = np.inf
    site, start = divmod(int(cost.argmin()), len(starts))
    if not np.isfinite(cost[site, start]):
        return np.inf, starts[:0], starts[:0]
    exact = float(price[site, start: start + need].sum() + extra[site, start])   # without the rounding of the running sum
    return exact + float(_moves(p, j, p.home[j], first + start)[site]), np.full(need, site), first + start + np.arange(need)


def _general(p: Tables, j: int, price: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    sites, window = price.shape
    need, first = int(p.hours[j]), int(p.release[j])
    run, idle = np.full((need + 1, sites), np.inf), np.full((need + 1, sites), np.inf)   # best with k hours done, running at r just now, or not
    idle[0, p.home[j]] = 0.0
    came = np.full((window, need + 1, sites), -1, np.int16)             # running in hour i: -1 = it ran there before, a = fresh from site a
    ended = np.zeros((window + 1, need + 1, sites), bool)               # not running in hour i: it ran in hour i - 1
    for i in range(window + 1):
        if i:
            stop = run + p.checkpoint[j] * np.where(np.isfinite(price[:, i - 1]), p.rate[:, first + i - 1], 0.0)
            ended[i] = stop < idle
            idle = np.minimum(stop, idle)
        if i == window:
            break
        if p.data[j]:
            move = _moves(p, j, np.arange(sites), np.full(sites, first + i))
            arrive = idle[:-1, :, None] + np.where(np.isfinite(move), move, np.inf)      # [k, from, to]
            origin = arrive.argmin(axis=1)
            least = np.take_along_axis(arrive, origin[:, None], axis=1)[:, 0]
        else:                                                           # wherever it was
            origin = idle[:-1].argmin(axis=1)[:, None]
            least = np.take_along_axis(idle[:-1], origin, axis=1)
        usable = np.isfinite(price[:, i])
        start = p.startup[j] * np.where(usable, p.rate[:, first + i], 0.0)
        fresh = least + start
        came[i, 1:] = np.where(fresh < run[:-1], origin, -1)
        run = np.concatenate([np.full((1, sites), np.inf), np.minimum(fresh, run[:-1]) + price[:, i]])
    site, hour = np.zeros(need, np.int64), np.zeros(need, np.int64)
    r = int(idle[need].argmin())
    total, k, i, running = float(idle[need, r]), need, window, False
    while k > 0 and np.isfinite(total):
        if running:
            k -= 1
            site[k], hour[k] = r, first + i
            if came[i, k + 1, r] >= 0:                                  # fresh from site a, which it may have left only now
                r, running = int(came[i, k + 1, r]), False
            else:
                i -= 1
        else:
            running = bool(ended[i, k, r])
            i -= 1
    return total, site, hour


def cheapest(p: Tables, j: int, mu: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(priced cost, sites, hours) of job j's cheapest schedule at prices mu [R, its window]; inf blocks an hour. Cost inf where it has none."""
    return (_free, _block, _general)[p.kind[j]](p, j, _cells(p, j, mu))


def separate(problem: Place, mu: np.ndarray | None = None) -> tuple[np.ndarray, JobHours]:
    """Every job's cheapest schedule at prices mu [R, T] (0 if not given), and its priced cost [J]. Raises Infeasible for a job that has none."""
    p, price = tables(problem), np.zeros(problem.intensity.shape) if mu is None else mu
    found = [cheapest(p, j, price[:, p.release[j]: p.deadline[j]]) for j in range(len(problem.names))]
    cost = np.array([each[0] for each in found])
    for j in np.flatnonzero(~np.isfinite(cost))[:1]:
        piece = "in one piece " if p.kind[j] == BLOCK else ""
        raise Infeasible(f"Job {problem.names[j]} finds no {problem.hours[j]} h {piece}with known intensity in its window.",
                         "Fill the missing hours, or widen its window.")
    return cost, assemble(found)


def assemble(found: list[tuple[float, np.ndarray, np.ndarray]]) -> JobHours:
    """One schedule of what `cheapest` gave for each job."""
    sites, hours = [each[1] for each in found], [each[2] for each in found]
    job = np.repeat(np.arange(len(found)), [len(each) for each in sites])
    return JobHours(job, np.concatenate(sites).astype(np.int64), np.concatenate(hours).astype(np.int64))


def bound(problem: Place, mu: np.ndarray) -> float:
    """The Lagrangean bound at prices mu ≥ 0: sum of the jobs' cheapest priced costs, less what the whole capacity would fetch."""
    limited = np.isfinite(problem.room)
    return float(separate(problem, np.where(limited, mu, 0.0))[0].sum() - (mu[limited] * problem.room[limited]).sum())


def at_home(problem: Place) -> tuple[Place, str | None]:
    """The same jobs kept at home, and why they cannot be (None if they can)."""
    count, sites, _ = problem.shape
    away = np.flatnonzero(~problem.allowed[np.arange(count), problem.home])
    if len(away):
        return problem, f"job {problem.names[away[0]]} may not run at its home {problem.sites[problem.home[away[0]]]}."
    return problem.replace(allowed=np.arange(sites)[None, :] == problem.home[:, None]), None
