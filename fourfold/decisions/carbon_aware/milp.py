"""Jobs in one piece, of several widths, or that pay for starts, checkpoints and moves: an integer programme, with its bound and gap.

Prices of capacity come from the linear relaxation (HiGHS) where it fits, else from the flow relaxation and a subgradient ascent (Held & Karp 1971);
at any prices the jobs' separate optima are a Lagrangean bound (Geoffrion 1974), which `validate.py` can check. The schedule comes from guided
insertion, ruin and recreate (Schrimpf et al. 2000), and HiGHS' branch and bound where the instance is small enough; the better is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fourfold.decisions.carbon_aware._local import PartialSchedule
from fourfold.decisions.carbon_aware._pricing import BLOCK, FREE, kinds, separate, tables
from fourfold.decisions.carbon_aware.problem import JobHours, Place, joined
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_RELAXED, _SMALL = 250_000, 2_000                                       # columns: HiGHS relaxes no more; branches at once on fewer
_CORE, _WINDOW = 24, 60                                                 # columns a job in the first core; jobs that are planned anew together
_ENOUGH, _TIGHTER = 1e-9, 6                                             # a gap that is rounding; rounds of rows that tighten the relaxation


class Milp(Solver):
    default = True
    title = "Integer programme: pieces, widths, starts and moves, with bound and gap"
    lever = "map"
    answers = "place"
    cites = ("geoffrion1974", "held1971", "schrimpf2000", "huangfu2018")
    needs = ("scipy", "numba")
    gives = ("bound",)
    counts = "ruins, nodes and price steps"

    def __init__(self, enough: float = _ENOUGH) -> None:
        """`enough`: the gap between schedule and bound, as a share of the bound, at which HiGHS may stop."""
        self.enough = enough

    def solve(self, problem: Place, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        mu = np.zeros(problem.intensity.shape)
        cost, alone = separate(problem)
        if not (alone.load(problem.width, problem.intensity.shape) > problem.room).any():
            return SolverAnswer(alone, float(cost.sum()), {"mu": mu}, "no capacity binds")
        size = variables(problem)
        if size > _RELAXED:
            return self._large(problem, budget, seed)
        model = IntegerProgram(problem)
        mu = model.prices(max(1.0, budget.left / 3))
        if not model.priced:                                            # a machine too slow for the relaxation: as if the instance were larger
            return self._large(problem, budget, seed)
        mu, low = model.tighten(mu, budget)
        best, note = None, ""
        if size > _SMALL:
            if model.paying and len(problem.names) <= _WINDOW:          # starts and moves are hard on HiGHS, and easy on insertion
                best = construct(problem, mu, budget, seed)
            if best is None:
                best, note = model.core(budget.left / 2, budget, max(self.enough, 1e-3))
            best = construct(problem, mu, budget, seed) if best is None else best
            if best is not None and len(problem.names) > _WINDOW:
                best, _ = self._windows(problem, best, Budget(budget.left / 2, budget.evaluations // 2), seed)
        if best is not None and (problem.cost(best) - low <= self.enough * abs(low) or self.enough > _ENOUGH and note.startswith("optimal")):
            return SolverAnswer(best, low, {"mu": mu}, note or f"within {self.enough:g} of the bound")
        within = np.inf if best is None else problem.cost(best) - model.value
        if within > _ENOUGH * abs(low):                                 # no better schedule uses a column whose reduced cost is above that
            found, note = model.integer(budget.left / 2, budget, within * (1 + 1e-9) + 1e-12,
                                        self.enough if self.enough > _ENOUGH else 0.0)
            if found is not None and (best is None or problem.cost(found) < problem.cost(best)):
                best = found
        if best is None:
            best = construct(problem, mu, budget, seed)
        if best is None:
            raise _none(note == "infeasible")
        if not note.startswith("optimal"):
            best = polished(problem, best, low, mu, budget, seed)
        return SolverAnswer(best, low, {"mu": mu}, note)

    def _large(self, problem: Place, budget: Budget, seed: int) -> SolverAnswer[JobHours]:
        """Prices by ascent, a schedule by insertion, then window after window planned anew by the integer programme."""
        mu = _flow_prices(problem)
        best = construct(problem, mu, Budget(budget.left / 4), seed)
        if best is None:
            raise _none(False)
        mu, low = ascend(problem, mu, problem.cost(best), Budget(budget.left / 3, 200))
        if len(problem.names) <= _WINDOW:
            return SolverAnswer(polished(problem, best, low, mu, budget, seed), low, {"mu": mu}, "insertion, ruin and recreate")
        best, count = self._windows(problem, best, budget, seed)
        return SolverAnswer(best, low, {"mu": mu}, f"{count} windows of {_WINDOW} jobs planned anew")

    def _windows(self, problem: Place, best: JobHours, budget: Budget, seed: int) -> tuple[JobHours, int]:
        """`best` with jobs of one window of time after another planned anew, until a whole round gains nothing or the budget ends; and how many."""
        dice, order = np.random.default_rng(seed), np.argsort(problem.release, kind="stable")
        count, stale, rounds = 0, 0, -(-2 * len(order) // _WINDOW)
        while stale < rounds and budget.spend():
            if count % rounds == 0:
                shift = int(dice.integers(_WINDOW))
            begin = count % rounds * _WINDOW // 2 - shift
            count += 1
            jobs = np.sort(order[max(0, begin): max(0, begin + _WINDOW)])
            stale += 1
            if not len(jobs):
                continue
            rest = np.isin(best.job, jobs, invert=True)
            others = JobHours(best.job[rest], best.site[rest], best.hour[rest])
            part, first = problem.part(jobs, others.load(problem.width, problem.intensity.shape))
            mine = JobHours(np.searchsorted(jobs, best.job[~rest]), best.site[~rest], best.hour[~rest] - first)
            try:
                found = self.solve(part, Budget(min(5.0, budget.left), 500), seed).answer
            except Infeasible:                                          # none in time: `mine` stays
                continue
            if part.cost(found) < part.cost(mine) * (1 - 1e-9):
                best, stale = joined(others, JobHours(jobs[found.job], found.site.astype(np.int64), found.hour.astype(np.int64) + first)), 0
        return best, count


def _none(proven: bool) -> Infeasible:
    said = "There is no schedule that" if proven else "No schedule was found in time that"
    return Infeasible(f"{said} meets every deadline within the capacities.", "Raise the capacity, the slack, the number of sites, or the budget.")


def construct(problem: Place, mu: np.ndarray, budget: Budget, seed: int) -> JobHours | None:
    """A valid schedule by insertion at prices mu, displacement and ruins, or None."""
    search = PartialSchedule(problem, seed, mu)
    search.build()
    search.settle(Budget(budget.left / 2, 20 * len(problem.names) + 200))
    if search.homeless:
        return None
    search.improve(Budget(budget.left / 4, 10 * len(problem.names) + 300))
    return search.schedule()


def polished(problem: Place, best: JobHours, low: float, mu: np.ndarray, budget: Budget, seed: int) -> JobHours:
    """`best` after ruins in what is left of the budget, unless it is proven best already."""
    if problem.cost(best) - low <= _ENOUGH * abs(low):
        return best
    search = PartialSchedule(problem, seed + 1, mu)
    search.adopt(best)
    search.improve(budget)
    return search.schedule()


def ascend(problem: Place, mu: np.ndarray, above: float | None, budget: Budget) -> tuple[np.ndarray, float]:
    """Prices of capacity by projected subgradient steps (Polyak's length towards `above`), and the best bound seen."""
    room, limited = problem.room, np.isfinite(problem.room)
    scale = 1.0
    best, low, stale = mu, -np.inf, 0
    while budget.spend():
        cost, schedule = separate(problem, mu)
        value = float(cost.sum() - (mu[limited] * room[limited]).sum())
        stale = 0 if value > low else stale + 1
        if value > low:
            best, low = mu, value
        over = np.where(limited, schedule.load(problem.width, room.shape) - np.where(limited, room, 0), 0.0)
        over[(mu <= 0) & (over < 0)] = 0.0
        norm = float((over * over).sum())
        if norm == 0:
            break
        if stale >= 5:
            scale, stale, mu = scale / 2, 0, best
        top = above if above is not None else low + 0.05 * abs(low)
        if top - low <= _ENOUGH * abs(top) or scale < 1e-3:
            break
        mu = np.maximum(0.0, mu + scale * max(top - value, 0.0) / norm * over)
    return best, low


def _flow_prices(problem: Place) -> np.ndarray:
    """Prices of the flow that lets every job pause for nothing, where widths are alike: a good place to start from. Zeros else."""
    from fourfold.decisions.carbon_aware.successive_shortest_paths import SuccessiveShortestPaths

    easy = problem.replace(interruptible=True, startup_kwh=0.0, checkpoint_kwh=0.0, data_gb=0.0)
    if SuccessiveShortestPaths().declines(easy):
        return np.zeros(problem.intensity.shape)
    return SuccessiveShortestPaths().solve(easy, Budget(evaluations=2**62)).evidence["mu"]   # Infeasible with pauses: then without them too


def variables(problem: Place) -> int:
    """Columns of `IntegerProgram`, before any are left out."""
    kind, window = kinds(problem), problem.deadline - problem.release
    sites = problem.allowed.sum(axis=1)
    each = np.where(kind == BLOCK, sites * (window - problem.hours + 1), sites * window)
    each = each * np.where((kind == BLOCK) | (kind == FREE), 1, 3) + (problem.data_gb > 0) * (kind > BLOCK) * window * 3 * len(problem.sites)
    return int(each.sum())


class IntegerProgram:
    """The integer programme: y[j, r, s] a piece from hour s, x[j, r, t] an hour; z, e starts and ends of runs; l where the data are, and moves."""

    def __init__(self, problem: Place) -> None:
        self.problem, self.p = problem, tables(problem)
        self.cost: list[np.ndarray] = []
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.low: list[np.ndarray] = []
        self.high: list[np.ndarray] = []
        self.count, self.height = 0, 0
        self.runs: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, int]] = []   # job, column, site, hour, length
        self.paying: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []   # job that pays for starts: its columns; x, site, hour
        kind = kinds(problem)
        for j in range(len(problem.names)):
            first = self.count
            (self._piece if kind[j] == BLOCK else self._hours)(j, bool(kind[j] > BLOCK))
            if kind[j] > BLOCK:
                self.paying.append((j, np.arange(first, self.count), *self.runs[-1][1:4]))
        self._capacity()
        self.value, self.reduced, self.priced = 0.0, np.zeros(self.count), False   # of the relaxation, once `prices` has solved it

    def _columns(self, cost: np.ndarray) -> np.ndarray:
        self.cost.append(np.asarray(cost, float))
        self.count += len(cost)
        return np.arange(self.count - len(cost), self.count)

    def _rows(self, row: Any, column: Any, value: Any, low: object, high: object) -> None:
        """Rows numbered from 0 within this call; low and high one value a row."""
        row, column, value = np.broadcast_arrays(row, column, value)
        low, high = np.broadcast_arrays(np.atleast_1d(np.asarray(low, float)), np.asarray(high, float))
        self.rows.append((row.ravel() + self.height, column.ravel(), value.ravel().astype(float)))
        self.low.append(low)
        self.high.append(high)
        self.height += len(low)

    def _piece(self, j: int, _: bool) -> None:
        p, need = self.p, int(self.p.hours[j])
        starts = np.arange(p.release[j], p.deadline[j] - need + 1)
        rate = p.rate[:, p.release[j]: p.deadline[j]]
        known = np.isfinite(rate) & p.allowed[j][:, None]
        view = np.lib.stride_tricks.sliding_window_view
        site, k = np.nonzero(view(known, need, axis=1).all(axis=2))
        whole = view(np.where(known, rate, 0.0), need, axis=1).sum(axis=2)[site, k]
        start = starts[k]
        cost = p.kw[j] * whole + p.startup[j] * p.rate[site, start] + p.checkpoint[j] * p.rate[site, start + need - 1]
        home = int(p.home[j])
        if p.data[j]:
            far = np.where(np.isfinite(p.net[home, start]), p.net[home, start], p.net[site, start])
            cost = cost + np.where(site == home, 0.0, p.data[j] * (far + p.net[site, start] + p.out[home]))
        columns = self._columns(cost)
        self._rows(np.zeros(len(columns), int), columns, 1.0, [1.0], [1.0])
        self.runs.append((j, columns, site, start, need))

    def _hours(self, j: int, costly: bool) -> None:
        p, first = self.p, int(self.p.release[j])
        rate = p.rate[:, first: p.deadline[j]]
        site, i = np.nonzero(np.isfinite(rate) & p.allowed[j][:, None])
        x = self._columns(p.kw[j] * rate[site, i])
        self._rows(np.zeros(len(x), int), x, 1.0, [p.hours[j]], [p.hours[j]])
        used, place = np.unique(i, return_inverse=True)
        self._rows(place, x, 1.0, np.full(len(used), -np.inf), np.ones(len(used)))
        self.runs.append((j, x, site, i + first, 1))
        if not costly:
            return
        grid = np.full((rate.shape[0], rate.shape[1] + 2), -1)          # column of x by site and hour, with an empty hour at both ends
        grid[site, i + 1] = x
        rows = np.arange(len(x))
        for energy, neighbour in ((p.startup[j], grid[site, i]), (p.checkpoint[j], grid[site, i + 2])):
            if energy:                                                  # z ≥ x[t] - x[t - 1], e ≥ x[t] - x[t + 1]
                z = self._columns(energy * rate[site, i])
                near = neighbour >= 0
                self._rows(np.concatenate([rows, rows, rows[near]]), np.concatenate([x, z, neighbour[near]]),
                           np.concatenate([np.ones(len(x)), -np.ones(len(x)), -np.ones(near.sum())]), np.full(len(x), -np.inf), np.zeros(len(x)))
        if p.data[j]:
            self._moves(j, grid[:, 1:-1], first)

    def _moves(self, j: int, grid: np.ndarray, first: int) -> None:
        """l[r, t]: the data are at r in hour t; in[r, t], out[r, t]: they come to a run that begins there, and leave for one elsewhere.

        A move costs what each end pays, so ends need no pairing; but where an hour of the end they leave is unknown it is priced like the other end,
        and then each move f[a, b, t] has a column of its own.
        """
        p, (sites, window) = self.p, grid.shape
        at = self._columns(np.zeros(sites * window)).reshape(window, sites)
        stays = np.arange(sites)
        for i in range(window):
            t, targets = first + i, np.flatnonzero(grid[:, i] >= 0)
            if np.isfinite(p.net[:, t]).all():
                b, a = targets, stays
                come, go = self._columns(p.data[j] * p.net[b, t]), self._columns(p.data[j] * (p.net[a, t] + p.out[a]))
            else:
                a, b = (part.ravel() for part in np.meshgrid(stays, targets, indexing="ij"))
                a, b = a[a != b], b[a != b]
                far = np.where(np.isfinite(p.net[a, t]), p.net[a, t], p.net[b, t])
                come = go = self._columns(p.data[j] * (far + p.net[b, t] + p.out[a]))
            gains = np.concatenate([np.ones(sites), -np.ones(len(come)), np.ones(len(go))])
            if i:                                                       # l[r, t] = l[r, t - 1] + in - out
                self._rows(np.concatenate([stays, stays, b, a]), np.concatenate([at[i], at[i - 1], come, go]),
                           np.concatenate([gains[:sites], -np.ones(sites), gains[sites:]]), np.zeros(sites), np.zeros(sites))
            else:
                start = (stays == p.home[j]).astype(float)
                self._rows(np.concatenate([stays, b, a]), np.concatenate([at[0], come, go]), gains, start, start)
            # the data are at one place (what comes has left elsewhere); it runs only where they are, and they come only to a run
            self._rows(np.zeros(sites, int), at[i], 1.0, [1.0], [1.0])
            self._rows(np.arange(len(targets)).repeat(2), np.stack([grid[targets, i], at[i, targets]], 1).ravel(), np.tile([1.0, -1.0], len(targets)),
                       np.full(len(targets), -np.inf), np.zeros(len(targets)))
            self._rows(np.concatenate([np.searchsorted(targets, b), np.arange(len(targets))]), np.concatenate([come, grid[targets, i]]),
                       np.concatenate([np.ones(len(come)), -np.ones(len(targets))]), np.full(len(targets), -np.inf), np.zeros(len(targets)))

    def _capacity(self) -> None:
        total = self.problem.intensity.shape[1]
        spot = np.concatenate([((site * total + start)[:, None] + np.arange(length)).ravel() for _, _, site, start, length in self.runs])
        column = np.concatenate([columns.repeat(length) for _, columns, _, _, length in self.runs])
        width = np.concatenate([np.full(len(columns) * length, self.p.width[j]) for j, columns, _, _, length in self.runs])
        room = self.problem.room.ravel()
        tight = np.bincount(spot, width, len(room)) > room
        keep = tight[spot]
        self.spots, row = np.unique(spot[keep], return_inverse=True)
        self.first_spot = self.height
        self._rows(row, column[keep], width[keep], np.full(len(self.spots), -np.inf), room[self.spots])

    def _matrix(self) -> tuple[Any, np.ndarray, np.ndarray]:
        from scipy.sparse import csr_matrix

        row, column, value = (np.concatenate(part) for part in zip(*self.rows, strict=True))
        return csr_matrix((value, (row, column)), (self.height, self.count)), np.concatenate(self.low), np.concatenate(self.high)

    def prices(self, seconds: float) -> np.ndarray:
        """Prices of capacity [R, T] from the linear relaxation; zeros where it is not solved in time. Raises Infeasible where it has no solution."""
        from scipy.optimize import linprog
        from scipy.sparse import vstack

        matrix, low, high = self._matrix()
        equal = low == high
        above, below = ~equal & np.isfinite(high), ~equal & np.isfinite(low)
        upper = vstack([matrix[above], -matrix[below]])
        solved = linprog(np.concatenate(self.cost), upper, np.concatenate([high[above], -low[below]]), matrix[equal], high[equal], (0, 1),
                         method="highs", options={"time_limit": seconds})
        if solved.status == 2:
            raise Infeasible("No schedule meets every deadline within the capacities: not even one that splits hours and pauses at will.",
                             "Raise the capacity, the slack, or the number of sites.")
        mu = np.zeros(self.problem.intensity.size)
        if solved.status == 0:
            self.priced, self.value, self.reduced = True, float(solved.fun), np.where(self._whole(), solved.lower.marginals, 0.0)
            where = np.searchsorted(np.flatnonzero(above), np.arange(self.first_spot, self.first_spot + len(self.spots)))
            mu[self.spots] = np.maximum(0.0, -solved.ineqlin.marginals[where])
        return mu.reshape(self.problem.intensity.shape)

    def tighten(self, mu: np.ndarray, budget: Budget) -> tuple[np.ndarray, float]:
        """The best prices found and their Lagrangean bound, with rows that raise the relaxation to it. At prices mu a job that pays for starts or
        moves costs at least what dynamic programming finds, but the relaxation's split one may not (Kelley 1960: such rows until they gain nothing).
        """
        cost, room = separate(self.problem, mu)[0], np.where(np.isfinite(self.problem.room), self.problem.room, 0.0)
        best, low = mu, float(cost.sum() - (mu * room).sum())
        flat = np.concatenate(self.cost)
        for _ in range(_TIGHTER if self.paying else 0):
            if not budget.spend() or low - self.value <= _ENOUGH * abs(low):
                break
            for j, columns, x, site, hour in self.paying:
                value = flat[columns]
                value[x - columns[0]] += self.p.width[j] * mu[site, hour]
                self._rows(np.zeros(len(columns), int), columns, value, [cost[j] - 1e-9 * abs(cost[j])], [np.inf])
            mu = self.prices(max(1.0, budget.left / 3))
            if not self.priced:
                break
            cost = separate(self.problem, mu)[0]
            best, low = max((best, low), (mu, float(cost.sum() - (mu * room).sum())), key=lambda pair: pair[1])
        return best, low

    def _whole(self) -> np.ndarray:
        """bool [columns]: those that must be whole."""
        whole = np.zeros(self.count, bool)
        for _, columns, _, _, _ in self.runs:
            whole[columns] = True
        return whole

    def core(self, seconds: float, budget: Budget, enough: float) -> tuple[JobHours | None, str]:
        """The best whole schedule, to a gap of `enough`, of the columns that the relaxation finds nearly as good as its own; more of them until there
        is one. And what HiGHS says of it: "optimal" where the columns left out, at their reduced costs, could not mend that gap either."""
        costs, count = np.sort(self.reduced[self._whole()]), _CORE * len(self.problem.names)
        for _ in range(4):
            seconds /= 2
            within = float(costs[min(count, len(costs) - 1)])
            found, note = self.integer(seconds, budget, within, enough)
            if found is not None or count >= len(costs):
                done = found is not None and (count >= len(costs) or self.problem.cost(found) - self.value <= within)
                return found, note if done else ""
            count *= 2
        return None, ""

    def integer(self, seconds: float, budget: Budget, within: float = np.inf, enough: float = 0.0) -> tuple[JobHours | None, str]:
        """HiGHS' best whole schedule of columns with a reduced cost of at most `within`, to a gap of `enough`; None if it found none. What it says.
        Its nodes count as evaluations."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        matrix, low, high = self._matrix()
        whole, used = self._whole(), np.flatnonzero(self.reduced <= within)
        rules: object = LinearConstraint(matrix[:, used], low, high)       # type: ignore[arg-type]  # arrays, whatever the stubs say
        solved = milp(np.concatenate(self.cost)[used], constraints=rules, bounds=Bounds(0, 1), integrality=whole[used],
                      options={"time_limit": max(0.1, seconds), "mip_rel_gap": enough, "node_limit": max(1, budget.evaluations - budget.spent)})
        budget.spend(max(1, int(solved.mip_node_count or 0)))
        if solved.status == 2:
            return None, "infeasible"
        if solved.x is None:
            return None, "HiGHS found no whole schedule in time"
        chosen = np.zeros(self.count)
        chosen[used] = solved.x
        entries = []
        for j, columns, site, start, length in self.runs:
            for k in np.flatnonzero(chosen[columns] > 0.5):
                entries.append((np.full(length, j), np.full(length, site[k]), start[k] + np.arange(length)))
        found = JobHours(*(np.concatenate(part) for part in zip(*entries, strict=True)))
        said = "optimal" if solved.status == 0 else "not finished"
        return found, f"{said}: HiGHS' own bound {solved.mip_dual_bound:.9g}, gap {solved.mip_gap:.2g}, {solved.mip_node_count} nodes"
