"""Cool with outside air whenever it is cold enough: chiller, both, or outside air alone, chosen for each hour with a shortest path over modes.

Hours of free cooling are those whose outside dry bulb lies below the set point less a margin; up to the return air's temperature outside air takes
part of the heat (integrated economiser). A mode once entered is held for the hours that the problem asks. Model and ranges: Lei & Masanet 2020;
exact by Bellman's principle (Bellman 1957). Humidity is not looked at. """

from __future__ import annotations

from typing import Any

import numpy as np

from fourfold.cost import datacenter
from fourfold.decisions.datacenter.problem import CHILLER, MIXED, OUTSIDE, Cool
from fourfold.problem import Budget, Solver, SolverAnswer


class Economiser(Solver):
    """A path through (mode, hours held), one column an hour."""

    default = True
    title = "Outside air by the hour: chiller, mixed, or free cooling"
    lever = "mechanization"
    answers = "cool"
    cites = ("lei2020", "rasmussen2007", "bellman1957")
    gives = ("optimum",)
    counts = "hours"

    def declines(self, problem: Cool) -> str | None:
        if problem.hall.cooling == "immersion":
            return "the servers are immersed; no outside air reaches them."
        if "outside air" not in problem.allowed and problem.hall.cooling != "economiser":
            return "outside air is not allowed in this hall."
        return None if problem.weather.hourly else "there are no hourly outside temperatures to choose by."

    def solve(self, problem: Cool, budget: Budget, seed: int = 0) -> SolverAnswer[dict[str, object]]:
        """The cheapest modes. Claims the optimum where outside air is all that the problem allows."""
        answer = {**problem.baseline(), "modes": [CHILLER] * len(problem.outside)}
        price = np.stack([_prices(problem, answer, mode) for mode in (CHILLER, MIXED, OUTSIDE)], axis=1)
        modes = _path(price, problem.hold)
        budget.spend(len(modes))
        answer["modes"] = [int(mode) for mode in modes]
        alone = problem.allowed <= {"outside air"}
        bound = float(price[np.arange(len(modes)), modes].sum()) if alone else None
        return SolverAnswer(answer, bound=bound, evidence={"hours": problem.hours(answer)})


def _prices(problem: Cool, answer: dict[str, Any], mode: int) -> np.ndarray:
    """kWh of every hour [T] in `mode`; infinite where that mode cannot keep the set point."""
    spent = np.sum(list(problem.hourly({**answer, "modes": [mode] * len(problem.outside)}).values()), axis=0)
    left = datacenter.share_by_chiller(problem.outside, float(answer["set_point"]), problem.drawn)
    able = {CHILLER: np.ones(len(left), bool), MIXED: left < 1, OUTSIDE: left <= 0}[mode]
    return np.where(able, spent, np.inf)


def _path(price: np.ndarray, hold: int) -> np.ndarray:
    """The cheapest row of modes [T] for prices [T, M] with every mode held `hold` hours (a run cut by either end may be shorter)."""
    hours, count = price.shape
    if hold == 1:
        return count - 1 - np.argmin(price[:, ::-1], axis=1)            # of equals, outside air alone
    best = np.full((count, hold), np.inf)                               # cost of arriving with mode m held k + 1 hours; the last k: "or more"
    best[:, hold - 1] = price[0]                                        # the run that was under way before the first hour
    step = np.zeros((hours, count, hold, 2), np.int32)
    for t in range(1, hours):
        free = best[:, hold - 1]
        new = np.full_like(best, np.inf)
        for mode in range(count):
            others = [other for other in range(count) if other != mode]
            source = min(others, key=lambda other: free[other])
            new[mode, 0] = free[source] + price[t, mode]
            step[t, mode, 0] = source, hold - 1
            for k in range(1, hold):
                held = k if k == hold - 1 and best[mode, k] <= best[mode, k - 1] else k - 1
                new[mode, k] = best[mode, held] + price[t, mode]
                step[t, mode, k] = mode, held
        best = new
    mode, held = (int(i) for i in np.unravel_index(int(np.argmin(best)), best.shape))
    modes = np.zeros(hours, int)
    for t in range(hours - 1, -1, -1):
        modes[t] = mode
        mode, held = (int(i) for i in step[t, mode, held])
    return modes
