"""What the plan is held against: the policies of the literature, time alone and place alone, and each region left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fourfold.decisions.carbon_aware._choose import ROUGH, planner
from fourfold.decisions.carbon_aware.flow import size
from fourfold.decisions.carbon_aware.forecast import Forecast
from fourfold.decisions.carbon_aware.greenest import Greenest
from fourfold.decisions.carbon_aware.home import Home
from fourfold.decisions.carbon_aware.now import Now
from fourfold.decisions.carbon_aware.oracle import Oracle
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.decisions.carbon_aware.threshold import Threshold
from fourfold.decisions.carbon_aware.waitawhile import LetsWaitAwhile
from fourfold.errors import FourfoldError
from fourfold.problem import Budget, Solution, Solver, solve
from fourfold.solvers.compare import entries

_LIGHT = 50_000                                                         # variables of a flow that is done in a second
_NAMES = {"now": "naive", "oracle": "oracle"}                           # technique → what it is in the table


def row(problem: Place, name: str, title: str, found: JobHours | None, kind: str = "other", why: str = "", prices: bool = True) -> dict[str, Any]:
    """One line of the table: value in the objective's unit, kg, usd (None without prices), delay, peak load, rules broken."""
    if found is None:
        return {"name": name, "title": title, "kind": kind, "value": None, "kg": None, "usd": None, "delay_h": None, "peak": None,
                "capacity_kept": None, "broken": [], "why": why}
    bill = problem.bill(found)
    broken = problem.violations(found)
    return {"name": name, "title": title, "kind": kind, "value": problem.cost(found), "kg": bill["kg"], "usd": bill["usd"] if prices else None,
            "delay_h": bill["delay_h"], "peak": int(found.load(problem.width, problem.intensity.shape).max(initial=0)),
            "capacity_kept": not broken, "broken": broken[:3], "why": why}


def policies(problem: Place, best: Solution[JobHours], *, error: float, draws: int, seed: int, budget: float,
             prices: bool) -> list[dict[str, object]]:
    """A row each: run now, home, greenest, Let's Wait Awhile, threshold, forecast, oracle. What draws noise is the mean of `draws`."""
    return list(_policies(problem, best, error=error, draws=draws, seed=seed, budget=budget, prices=prices))


def _policies(problem: Place, best: Solution[JobHours], *, error: float, draws: int, seed: int, budget: float,
              prices: bool) -> Iterator[dict[str, Any]]:
    solvers: list[tuple[Solver, int]] = [(Now(), 1), (Home(), 1), (Greenest(), 1), (LetsWaitAwhile(), draws), (Threshold(), 1),
                                         (Forecast(error), draws if _light(problem, best) else 1), (Oracle(), 1)]
    for solver, times in solvers:
        name = type(solver).__module__.rsplit(".", 1)[-1]
        kind = _NAMES.get(name, "other")
        made = []
        for one in entries(problem, {name: solver}, budget, range(seed, seed + times)):
            if one.solution is None:
                yield row(problem, name, solver.title, None, kind, one.row()["why"], prices)
                break
            made.append(row(problem, name, solver.title, one.solution.answer, kind, prices=prices))
        if len(made) < times:
            continue
        mean = {**made[0], "draws": times}
        for key in ("value", "kg", "usd", "delay_h"):
            mean[key] = None if made[0][key] is None else float(np.mean([each[key] for each in made]))
        mean["peak"] = max(each["peak"] for each in made)
        mean["capacity_kept"] = all(each["capacity_kept"] for each in made)
        if times > 1:
            mean["low"], mean["high"] = min(each["value"] for each in made), max(each["value"] for each in made)
        if name == "forecast":
            mean["error"], mean["regret"] = error, mean["value"] / best.cost - 1 if best.cost else None
        yield mean


def everything(problem: Place, best: Solution[JobHours], *, error: float, draws: int, seed: int, budget: float, prices: bool,
               limit: float) -> Iterator[tuple[str, dict[str, object]]]:
    """(part, row) of all that a plan is held against, one by one: policies, ablations, without."""
    for each in _policies(problem, best, error=error, draws=draws, seed=seed, budget=budget, prices=prices):
        yield "policies", each
    for each in ablations(problem, budget=budget, seed=seed, prices=prices):
        yield "ablations", each
    for each in without(problem, best, limit=limit, budget=budget, seed=seed, prices=prices) if len(problem.sites) > 1 else []:
        yield "without", each


def _light(problem: Place, best: Solution[JobHours]) -> bool:
    """Whether a plan takes a second at most, by its size and not by a clock: the same rows on a slow machine."""
    mu = best.evidence.get("mu")
    return size(problem) <= _LIGHT and (best.solver == "flow" or mu is not None and not np.any(mu))


def scored(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """The rows with `saving` against running now and `share` of the oracle's saving; None where either cannot be said."""
    naive = next((each["value"] for each in rows if each["kind"] == "naive"), None)
    most = next((each["value"] for each in rows if each["kind"] == "oracle"), None)
    for each in rows:
        each["saving"] = each["share"] = None
        if each["value"] is not None and naive:
            each["saving"] = 1 - each["value"] / naive
            if most is not None and naive - most > 1e-12 * naive:
                each["share"] = (naive - each["value"]) / (naive - most)
    return rows


def ablations(problem: Place, *, budget: float, seed: int, prices: bool) -> list[dict[str, object]]:
    """Waiting without moving, and moving without waiting, each planned exactly within the capacities."""
    stay = np.arange(len(problem.sites))[None, :] == problem.home[:, None]

    def only_time() -> Place:
        return problem.replace(allowed=stay & problem.allowed)

    def only_place() -> Place:
        return problem.replace(deadline=problem.release + problem.hours)

    return [_planned(problem, "time only", "Wait, never move", only_time, budget, seed, prices),
            _planned(problem, "place only", "Move, never wait", only_place, budget, seed, prices)]


def without(problem: Place, best: Solution[JobHours], *, limit: float, budget: float, seed: int, prices: bool) -> list[dict[str, object]]:
    """The plan with each region that `best` uses left out (jobs that may run nowhere else stay): how much of the saving hangs on it.

    Where planning again as often would take more than `limit` seconds, the jobs' separate optima stand in, which know no capacity: the row says so.
    """
    used = np.bincount(best.answer.site, minlength=len(problem.sites)) > 0
    relaxed = min(best.seconds, budget) * used.sum() > limit
    rows = []
    for r in np.flatnonzero(used):
        def closed(r: int = int(r)) -> Place:
            others = problem.allowed.copy()
            others[others.sum(axis=1) > 1, r] = False
            return problem.replace(allowed=others)

        rows.append(_planned(problem, str(problem.sites[r]), f"Without {problem.sites[r]}" + (" (capacity not looked at)" if relaxed else ""),
                             closed, budget, seed, prices, Oracle() if relaxed else None))
    return rows


def _planned(problem: Place, name: str, title: str, made: Callable[[], Place], budget: float, seed: int, prices: bool,
             solver: Solver | None = None) -> dict[str, object]:
    try:
        changed = made()
        found = solve(changed, solver or planner(changed, ROUGH), Budget(budget), seed)
    except FourfoldError as why:
        return {**row(problem, name, title, None, why=why.message), "bound": None}
    return {**row(problem, name, title, found.answer, prices=prices), "bound": found.bound}
