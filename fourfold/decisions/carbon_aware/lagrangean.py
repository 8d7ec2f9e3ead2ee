"""A plan and a bound at any time: jobs put one after another where they are cheapest at prices of capacity, and prices that rise where too many look.

Insertion in order of need gives a schedule within seconds, whatever the size; jobs left without room go first in the next round. Prices come from
that schedule (full region-hours in order of their rate) and a subgradient ascent (Held & Karp 1971); at any prices the jobs' separate optima are a
bound (Geoffrion 1974), and insertion at new prices mends the schedule (a Lagrangean heuristic). It is not exact: the exact techniques run beside it,
and this is what there is when their time is up.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.carbon_aware._passes import Passes
from fourfold.decisions.carbon_aware._pricing import BLOCK
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_LOOK = 168                                                             # hours of a window that a first schedule looks at
_ENOUGH, _FINE = 1e-9, 1e-3                                             # a gap that is rounding; steps too short to gain anything


class Lagrangean(Solver):
    title = "Lagrangean heuristic: insertion at prices of capacity, with a bound"
    lever = "map"
    answers = "place"
    cites = ("geoffrion1974", "held1971")
    needs = ("numba",)
    gives = ("bound",)
    counts = "passes over all jobs"

    def __init__(self, first: Budget | None = None) -> None:
        """`first`: what the first schedule may take, where that is more than the budget: without one there is nothing to give."""
        self.first = first

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        passes, mu = Passes(problem), np.zeros(problem.intensity.shape)

        def more() -> bool:
            return budget.left > 0

        best = self._first(problem, passes, mu, budget, seed)
        if best is None:
            raise Infeasible("No schedule was found in time that meets every deadline within the capacities.",
                             "Raise the capacity, the slack, the number of sites, or the budget.")
        value = problem.cost(best)
        for turn in (1, 3):                                             # the costliest first: dearer to mend, and often far better
            if budget.spend() and (again := passes.insert(mu, _order(problem, turn), more)) is not None and not len(again[1]):
                best, value = min((best, value), (again[0], problem.cost(again[0])), key=lambda pair: pair[1])
        lam = _floor(problem, passes)                                   # a bound to begin with, before the first pass over all hours
        low = float((lam * np.where(passes.kind == BLOCK, 1, problem.hours)).sum())
        trial, scale, stale, count = mu, 1.0, 0, 1
        guess: np.ndarray | None = None
        while scale > _FINE and value - low > _ENOUGH * abs(value) and budget.spend():
            found = passes.price(trial, more)
            if found is None:
                break
            count += 1
            stale = 0 if found[0] > low + 1e-5 * abs(low) else stale + 1
            if found[0] > low:
                low, lam, mu = found[0], found[1], trial
            if guess is None:                                           # prices read off the schedule, once: the best step there is
                guess = trial = _guess(problem, best)
                continue
            load = found[2].load(problem.width, problem.intensity.shape)
            over = np.where(passes.limited, load - np.where(passes.limited, problem.room, 0.0), 0.0)
            over[(trial <= 0) & (over < 0)] = 0.0
            norm = float((over * over).sum())
            if not norm:
                break
            step = scale * max(value - found[0], 0.0) / norm * over
            if stale >= 4:
                scale, stale, trial = scale / 2, 0, mu                  # from the best prices on, in shorter steps
            trial = np.maximum(0.0, trial + step)
            if count % 4 == 0 and budget.spend() and (again := passes.insert(mu, _order(problem, count // 4), more)) is not None:
                if not len(again[1]) and (cost := problem.cost(again[0])) < value:
                    best, value = again[0], cost
        return SolverAnswer(best, min(low, value), {"mu": mu, "lam": lam, "low": low, "loose": passes.loose}, f"{count} passes over all jobs")

    def _first(self, problem: Place, passes: Passes, mu: np.ndarray, budget: Budget, seed: int) -> JobHours | None:
        """A valid schedule, by need; jobs without room go first in the next round. Of long windows a part is looked at, somewhere in them, and the
        whole only by jobs that found no room there."""
        order, dice = _order(problem, 0), np.random.default_rng(seed)
        spare = np.maximum(0, problem.deadline - problem.release - problem.hours - _LOOK)
        begin = problem.release + (dice.random(len(spare)) * spare).astype(np.int64)
        end = np.minimum(problem.deadline, begin + problem.hours + _LOOK)
        begin = np.where(spare > 0, begin, problem.release)
        for _ in range(50):
            budget.spend()
            if (self.first or budget).left <= 0 or budget.spent > budget.evaluations:
                return None
            found = passes.insert(mu, order, lambda: (self.first or budget).left > 0, (begin, end))
            if found is None:
                return None
            if not len(found[1]):
                return found[0]
            homeless = np.isin(order, found[1])
            order = np.concatenate([order[homeless], order[~homeless]])
            begin[found[1]], end[found[1]] = problem.release[found[1]], problem.deadline[found[1]]
        return None


def _floor(problem: Place, passes: Passes) -> np.ndarray:
    """Lambda [J] where no job pays less than the cheapest hour of any site in its window: an hour, or for a piece all its hours."""
    least = np.where(np.isfinite(passes.rate), passes.rate, np.inf).min(axis=0)
    hour = np.array([least[first:last].min() for first, last in zip(problem.release, problem.deadline, strict=True)])
    return np.where(np.isfinite(hour), hour, 0.0) * problem.kw * np.where(passes.kind == BLOCK, problem.hours, 1)


def _order(problem: Place, turn: int) -> np.ndarray:
    """Jobs by need: least slack first, then the costliest; in every other turn the costliest first, by slack only where it is under a day."""
    slack = problem.deadline - problem.release - problem.hours
    return np.lexsort((-problem.kw / problem.width, slack if turn % 3 == 0 else np.minimum(slack, 24) // 24))


def _guess(problem: Place, best: JobHours) -> np.ndarray:
    """Prices of full region-hours: in order of their rate a job that went one further would pay its kW times the step, so the steps add up."""
    load = best.load(problem.width, problem.intensity.shape)
    mover = np.full(load.shape, np.inf)
    np.minimum.at(mover, (best.site, best.hour), (problem.kw / problem.width)[best.job])
    price = np.zeros(load.shape)
    full = np.isfinite(problem.room) & (problem.room - load < problem.width.min()) & np.isfinite(mover)
    window = int(np.median(problem.deadline - problem.release))
    for t in range(0, load.shape[1], max(1, window)):
        site, hour = np.nonzero(full[:, t: t + window])
        if not len(site):
            continue
        hour = hour + t
        order = np.argsort(problem.rate[site, hour])[::-1]
        site, hour = site[order], hour[order]
        steps = -np.diff(problem.rate[site, hour], prepend=problem.rate[site, hour][:1])
        price[site, hour] = np.cumsum(steps * mover[site, hour])
    return price
