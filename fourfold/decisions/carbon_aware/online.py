"""Rolling horizon: every hour a new forecast, a new plan, and only the coming hour is carried out. No deadline that was feasible is missed.

The invariant: at every hour there is a reservation, a whole valid schedule of all that is known and not yet done, within all capacities. A new plan
replaces it only if it is such a schedule too; forecasts change its price, never its validity. So by induction every deadline holds that could be
held when its job became known. (For jobs that become known later no online rule can promise more: with two or more machines none is optimal without
knowing the arrivals, Dertouzos & Mok 1989.) Replans are exact where the open jobs are a flow, else reinsertion from the reservation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fourfold.decisions.carbon_aware._choose import planner
from fourfold.decisions.carbon_aware._forecasts import noisy, shrunk
from fourfold.decisions.carbon_aware._local import PartialSchedule
from fourfold.decisions.carbon_aware._pricing import FREE, kinds
from fourfold.decisions.carbon_aware.problem import JobHours, Place, joined
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_UNSEEN = 400.0                                                         # g/kWh, for an hour without a forecast at a site without a past
Forecasts = Callable[[int], np.ndarray]                                # hour of issue → intensity forecast [R, T], of which only later hours are read


class Online(Solver):
    """`forecasts(now)` gives the forecast issued in hour `now`; without it, errors grow from nothing to `error` × the site's mean. `known` [J] is the
    hour in which each job becomes known (0 = from the start); `every` the hours between replans; `ahead` how far before release a job is replanned.
    """

    title = "Rolling horizon with reservations: replans hourly, keeps every feasible deadline"
    lever = "map"
    answers = "place"
    cites = ("dertouzos1989", "efron1975")
    needs = ("scipy", "numba")
    counts = "replans"

    def __init__(self, forecasts: Forecasts | None = None, error: float = 0.2, known: np.ndarray | None = None, every: int = 1,
                 ahead: int = 48) -> None:
        self.forecasts, self.error, self.known, self.every, self.ahead = forecasts, error, known, every, ahead

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        total = problem.intensity.shape[1]
        known = np.zeros(len(problem.names), np.int64) if self.known is None else np.minimum(np.asarray(self.known), problem.release)
        done, plan, kept = _empty(), _empty(), 0
        for now in range(int(known.min(initial=0)), total):
            fresh = np.flatnonzero(known == now) if now else np.flatnonzero(known <= 0)
            here = (problem.release <= now + self.ahead) & (problem.deadline > now) & (known <= now)
            if len(fresh) or (here.any() and now % self.every == 0 and not budget.exhausted):
                guess = problem.replace(intensity=self._seen(problem, now, seed))
                if len(fresh):
                    plan = _admit(guess, done, plan, fresh, now)
                open_ = _pending(guess, done, plan, np.flatnonzero(here), now)
                if len(open_):
                    budget.spend()
                    better = _replan(guess, done, plan, open_, now, seed)
                    if better is None:
                        kept += 1
                    else:
                        plan = better
            due = plan.hour == now
            done, plan = joined(done, _part(plan, due)), _part(plan, ~due)
        return SolverAnswer(done, note=f"{budget.spent} replans; {kept} times the reservation was kept")

    def _seen(self, problem: Place, now: int, seed: int) -> np.ndarray:
        """The forecast as it may be used: shrunk where it is ours, never below 0, defined exactly where the truth is; the past as it was."""
        if self.forecasts is None:
            made = noisy(problem.intensity, self.error, seed * 100_003 + now, start=now) if self.error else problem.intensity
            made = np.array(shrunk(made, self.error)) if self.error else np.array(made)
        else:
            made = np.array(np.broadcast_to(self.forecasts(now), problem.intensity.shape), float)
        past = problem.intensity[:, : now + 1]
        seen = (~np.isnan(past)).sum(axis=1, keepdims=True)
        usual = np.where(seen > 0, np.nansum(past, axis=1, keepdims=True) / np.maximum(seen, 1), _UNSEEN)
        made = np.where(np.isfinite(made), np.clip(made, 0.0, 1e6), usual)
        made[:, : now + 1] = problem.intensity[:, : now + 1]
        return np.where(np.isnan(problem.intensity), np.nan, made)


def _empty() -> JobHours:
    nothing = np.zeros(0, np.int64)
    return JobHours(nothing, nothing, nothing)


def _part(schedule: JobHours, chosen: np.ndarray) -> JobHours:
    return JobHours(schedule.job[chosen], schedule.site[chosen], schedule.hour[chosen])


def _pending(problem: Place, done: JobHours, plan: JobHours, jobs: np.ndarray, now: int) -> np.ndarray:
    """Those of `jobs` that have hours left and may still be moved: a piece that has begun runs on as it was."""
    left, begun = np.isin(jobs, plan.job), np.isin(jobs, done.job)
    pinned = begun & (kinds(problem)[jobs] != FREE)
    return jobs[left & ~pinned]


def _rest(problem: Place, done: JobHours, plan: JobHours, jobs: np.ndarray, now: int) -> Place:
    """What is left of `jobs` from hour `now` on, as a problem of its own in the room that all others leave; its hour 0 is `now`."""
    others = _part(plan, ~np.isin(plan.job, jobs))
    room = problem.room - others.load(problem.width, problem.intensity.shape)
    part = problem.only(jobs)
    hours = part.hours - np.bincount(done.job, minlength=len(problem.names))[jobs]
    last = int(part.deadline.max())
    return part.replace(intensity=part.intensity[:, now:last], pue=part.pue[:, now:last], price=part.price[:, now:last],
                        capacity=np.maximum(room[:, now:last], 0.0), hours=hours, release=np.maximum(part.release - now, 0),
                        deadline=part.deadline - now)


def _back(found: JobHours, jobs: np.ndarray, now: int) -> JobHours:
    return JobHours(jobs[found.job], found.site.astype(np.int64), found.hour.astype(np.int64) + now)


def _admit(problem: Place, done: JobHours, plan: JobHours, fresh: np.ndarray, now: int) -> JobHours:
    """A reservation that holds the fresh jobs too: in the room there is, else by planning anew all that may still be moved. Raises Infeasible."""
    every = np.union1d(fresh, _pending(problem, done, plan, np.unique(plan.job), now))
    rest = _rest(problem, done, plan, every, now)
    if not len(plan):
        return joined(plan, _back(planner(rest).solve(rest, Budget(60.0)).answer, every, now))
    alone = _rest(problem, done, plan, fresh, now)
    for part, jobs in ((alone, fresh), (rest, every)):
        try:
            found = planner(part).solve(part, Budget(20.0)).answer
        except Infeasible:
            continue
        return joined(_part(plan, ~np.isin(plan.job, jobs)), _back(found, jobs, now))
    names = ", ".join(problem.names[j] for j in fresh[:5])
    raise Infeasible(f"In hour {now}, when {names} became known, no schedule could hold them beside what was promised.",
                     "Raise the capacity or the slack, or announce jobs earlier.")


def _replan(problem: Place, done: JobHours, plan: JobHours, jobs: np.ndarray, now: int, seed: int) -> JobHours | None:
    """A cheaper reservation on this forecast, valid and whole; None to keep the one there is."""
    rest = _rest(problem, done, plan, jobs, now)
    mine = np.isin(plan.job, jobs)
    held = JobHours(np.searchsorted(jobs, plan.job[mine]), plan.site[mine].astype(np.int64), plan.hour[mine].astype(np.int64) - now)
    if (kinds(rest) == FREE).all() and len(np.unique(rest.width)) == 1:
        try:
            found = planner(rest).solve(rest, Budget(20.0)).answer
        except Infeasible:                                              # cannot be, for `held` is a schedule; but the reservation is what counts
            return None
    else:
        search = PartialSchedule(rest, seed)
        search.adopt(held)
        search.improve(Budget(5.0, 4 * len(jobs)))
        found = search.schedule()
    if rest.violations(found) or rest.cost(found) > rest.cost(held):
        return None
    return joined(_part(plan, ~mine), _back(found, jobs, now))
