"""One look at every job at given prices of capacity, compiled, a few hundred jobs at a time: between two parts a budget or a Ctrl-C is heard.

`price` gives the Lagrangean bound of prices (what `_pricing.separate` does job by job), `insert` puts jobs one after another where they are cheapest
in the room that is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from numba import njit

from fourfold.decisions.carbon_aware._pricing import BLOCK, FREE, tables
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.errors import Infeasible

_PART = 30_000_000                                                      # site-hours looked at between two looks at the clock: about 0.1 s


class Passes:
    """The arrays of a problem for the kernels. `loose` jobs (that pause at a price) are bounded as if pauses, starts and moves cost nothing."""

    def __init__(self, problem: Place) -> None:
        self.problem, p = problem, tables(problem)
        self.rate = np.array(p.rate, order="C")
        self.net = np.array(p.net, order="C")
        self.limited = np.isfinite(problem.room)
        self.kind = p.kind.copy()
        self.p = p
        self.loose = bool(((p.kind != FREE) & (p.kind != BLOCK)).any())
        self.starts = np.concatenate([[0], np.cumsum(p.hours)]).astype(np.int64)

    @staticmethod
    def _parts(order: np.ndarray, work: np.ndarray) -> list[np.ndarray]:
        cuts = np.searchsorted(np.cumsum(work[order]), np.arange(_PART, max(_PART, int(work.sum())) + 1, _PART))
        return [part for part in np.split(order, np.unique(cuts)) if len(part)]

    def price(self, mu: np.ndarray, more: Callable[[], bool]) -> tuple[float, np.ndarray, JobHours] | None:
        """(bound, lambda [J] as of `validate.py`, the jobs' separate optima) at prices mu [R, T]; None where `more` says to stop.

        Raises Infeasible for a job that has no schedule even alone.
        """
        mu = np.where(self.limited, mu, 0.0)
        found = self._run(mu, np.full(mu.shape, np.inf), np.arange(len(self.problem.names)), False, more)
        if found is None:
            return None
        lam, share, schedule = found
        for j in np.flatnonzero(~np.isfinite(lam))[:1]:
            piece = "in one piece " if self.kind[j] == BLOCK else ""
            raise Infeasible(f"Job {self.problem.names[j]} finds no {self.problem.hours[j]} h {piece}with known intensity in its window.",
                             "Fill the missing hours, or widen its window.")
        room = np.where(self.limited, self.problem.room, 0.0)
        return float(share.sum() - (mu * room).sum()), lam, schedule

    def insert(self, mu: np.ndarray, order: np.ndarray, more: Callable[[], bool],
               windows: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[JobHours, np.ndarray] | None:
        """(schedule of the jobs that found room, those that found none), put in that order at prices mu; None where `more` says to stop. `windows`:
        (first hour, hour after the last) [J] to look at, within each job's own."""
        mu, left = np.where(self.limited, mu, 0.0), np.where(self.limited, self.problem.room, np.inf)
        found = self._run(mu, left, order, True, more, windows)
        return None if found is None else (found[2], np.flatnonzero(~np.isfinite(found[0])))

    def _run(self, mu: np.ndarray, left: np.ndarray, order: np.ndarray, take: bool,
             more: Callable[[], bool], windows: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray, JobHours] | None:
        p, count = self.p, len(self.problem.names)
        lam, share = np.zeros(count), np.zeros(count)
        site, hour = np.zeros(int(self.starts[-1]), np.int64), np.zeros(int(self.starts[-1]), np.int64)
        release, deadline = windows or (p.release, p.deadline)
        each = (p.kw, p.hours, release, deadline, p.home, p.width, self.kind, p.startup, p.checkpoint, p.data)
        fixed = (self.rate, self.net, np.array(p.out), *(np.array(part) for part in each), np.array(p.allowed, order="C"))
        kernel = cast("Callable[..., None]", _pass)
        for part in self._parts(order, (deadline - release) * len(self.problem.sites)):
            if not more():
                return None
            kernel(part, *fixed, mu, left, take, self.starts, site, hour, lam, share)
        job = np.repeat(np.arange(count), p.hours)
        good = np.isfinite(lam)[job]
        return lam, share, JobHours(job[good], site[good], hour[good])


@njit(cache=True, nogil=True)
def _piece(j: int, rate: np.ndarray, net: np.ndarray, out: np.ndarray, kw: float, need: int, first: int, last: int, home: int, width: float,
           startup: float, checkpoint: float, data: float, allowed: np.ndarray, mu: np.ndarray, left: np.ndarray) -> tuple[float, int, int]:
    """(cost, site, first hour) of the cheapest piece where `left` has room; cost inf where there is none."""
    best, where, when = np.inf, -1, -1
    for r in range(rate.shape[0]):
        if not allowed[j, r]:
            continue
        total, run = 0.0, 0
        for t in range(first, last):
            cost = kw * rate[r, t] + width * mu[r, t]
            if not cost < np.inf or left[r, t] < width:
                total, run = 0.0, 0
                continue
            total += cost
            run += 1
            if run > need:
                total -= kw * rate[r, t - need] + width * mu[r, t - need]
            if run >= need:
                s = t - need + 1
                whole = total + startup * rate[r, s] + checkpoint * rate[r, t]
                if data > 0.0 and r != home:                            # the data come in its first hour; an end with an unknown hour as the other
                    there = net[home, s] if net[home, s] < np.inf else net[r, s]
                    whole += data * (there + net[r, s] + out[home])
                if whole < best:
                    best, where, when = whole, r, s
    return best, where, when


@njit(cache=True, nogil=True)
def _pass(part: np.ndarray, rate: np.ndarray, net: np.ndarray, out: np.ndarray, kw: np.ndarray, hours: np.ndarray, release: np.ndarray,
          deadline: np.ndarray, home: np.ndarray, width: np.ndarray, kind: np.ndarray, startup: np.ndarray, checkpoint: np.ndarray, data: np.ndarray,
          allowed: np.ndarray, mu: np.ndarray, left: np.ndarray, take: bool, starts: np.ndarray, site: np.ndarray, hour: np.ndarray, lam: np.ndarray,
          share: np.ndarray) -> None:
    """Each job's cheapest hours where `left` has room, into site and hour; `take`: they leave less room to the next, and what pauses at a price is
    tried in one piece first. lam inf: it found none."""
    least = np.empty(rate.shape[1])
    j: int
    for j in part:
        need, first, last, at, w, k = hours[j], release[j], deadline[j], starts[j], width[j], kw[j]
        if kind[j] == 1 or (take and kind[j] != 0):
            cost, r, s = _piece(j, rate, net, out, k, need, first, last, home[j], w, startup[j], checkpoint[j], data[j], allowed, mu, left)
            lam[j] = share[j] = cost
            if r >= 0:
                for i in range(need):
                    site[at + i], hour[at + i] = r, s + i
                    if take:
                        left[r, s + i] -= w
            if r >= 0 or kind[j] == 1:
                continue
        for t in range(first, last):
            least[t - first] = np.inf
        for r in range(rate.shape[0]):
            if allowed[j, r]:
                a, b, c = rate[r, first:last], mu[r, first:last], left[r, first:last]
                for t in range(last - first):                           # a plain loop of selects, which the compiler does several at a time
                    cost = k * a[t] + w * b[t]
                    cost = cost if c[t] >= w else np.inf
                    least[t] = cost if cost < least[t] else least[t]
        dearest = _nth(least, last - first, need)
        lam[j], share[j] = dearest, np.inf
        if not dearest < np.inf:
            continue
        cheaper, total = 0, 0.0
        for i in range(last - first):
            if least[i] < dearest:
                cheaper, total = cheaper + 1, total + least[i]
        equal, n = need - cheaper, 0
        share[j] = total + equal * dearest
        for i in range(last - first):
            if least[i] > dearest or (least[i] == dearest and equal == 0):
                continue
            if least[i] == dearest:
                equal -= 1                                              # of equal hours the earliest
            t = first + i
            for r in range(rate.shape[0]):
                if allowed[j, r] and left[r, t] >= w and k * rate[r, t] + w * mu[r, t] <= least[i]:
                    site[at + n], hour[at + n] = r, t
                    if take:
                        left[r, t] -= w
                    break
            n += 1


@njit(cache=True, nogil=True)
def _nth(values: np.ndarray, count: int, need: int) -> float:
    """The need-th least of the first `count` values: a heap of the least `need`, largest on top."""
    heap = values[:need].copy()
    for i in range(need // 2 - 1, -1, -1):
        _sink(heap, i)
    for i in range(need, count):
        if values[i] < heap[0]:
            heap[0] = values[i]
            _sink(heap, 0)
    return heap[0]


@njit(cache=True, nogil=True)
def _sink(heap: np.ndarray, i: int) -> None:
    size = len(heap)
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= heap[i]:
            return
        heap[i], heap[child] = heap[child], heap[i]
        i = child
