"""From jobs and intensities to a checked, certified and compared plan: the library call behind `fourfold map`."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold import plans
from fourfold.decisions.carbon_aware import _compare
from fourfold.decisions.carbon_aware._choose import planner
from fourfold.decisions.carbon_aware.online import Online
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.decisions.carbon_aware.stored import sentences
from fourfold.decisions.carbon_aware.validate import Certificate, certify, save, seconds, verify
from fourfold.errors import Infeasible, InputError, unwritable
from fourfold.folder import may_fill, write
from fourfold.problem import Budget, Solution, Watch, solve

if TYPE_CHECKING:
    from fourfold.carbon.hourly import Hours
    from fourfold.carbon.jobs import BatchJob

_HOUR = timedelta(hours=1)
QUESTION = "carbon_aware"
FILES = ("plan.json", "schedule.csv", "schedule.json", "certificate.json", "problem.npz")
SENTENCES = {
    "average": "Average intensity says whose share of a grid's emissions this work is; moving load does not cut what the grids emit one for one.",
    "marginal": "Marginal intensity is a model of what one more kWh makes a grid emit; it must not be added to, or compared with, average figures.",
}
_OBJECTIVES = ("carbon", "cost", "mixed")


@dataclass(frozen=True)
class ShiftingPlan:
    """A schedule with its proof and what it is held against.

    `to_json()` is one document:
      sites      [{name, pue, price_usd_kwh (None = unknown), capacity (None = none or hourly), peak, job_hours, mean_g_kwh}]
      start_utc  ISO time of hour 0; intensity [R][T] g/kWh (None = unknown); signal, sentence, unit, objective
      jobs       [{name, kw, hours, release, deadline, home, width, interruptible, baseline_kg, start_utc, end_utc}] (hours count from start_utc)
      schedule   [{job, site, hours: [...]}], one entry per job and site
      value, bound, gap, before, saving, kg, usd, delay_h, technique, seconds
      comparators  [{name, title, kind (naive, plan, oracle, other), value, kg, usd, saving, share (of the oracle's saving), delay_h, peak,
                    capacity_kept, broken, why, and low, high, draws, error, regret where drawn}]
      ablations, without   rows alike: time only, place only; each used region left out
      dearest    [{site, hour, utc, price}], the ten region-hours where one more unit of capacity is worth most
      certificate  {value, bound, gap, unit, lambda, mu: {site, hour, price}, hashes}; verified: sentences, [] = sound,
                   None = not looked at within the budget; stopped: by Ctrl-C
      notes      sentences on what was assumed, filled or cut
    """

    problem: Place
    solution: Solution[JobHours]
    certificate: Certificate
    start: datetime
    comparators: tuple[dict[str, object], ...]
    ablations: tuple[dict[str, object], ...]
    without: tuple[dict[str, object], ...]
    priced: bool                                                        # every site's price is known
    objective: str
    notes: tuple[str, ...] = ()
    verified: tuple[str, ...] | None = field(default=())                # None: not looked at for want of time
    stopped: bool = False                                               # by Ctrl-C: the best so far

    @property
    def schedule(self) -> list[dict[str, object]]:
        """[{job, site, hours: [...]}], one entry per job and site."""
        answer = self.solution.answer
        rows: dict[tuple[int, int], list[int]] = {}
        for j, r, t in zip(answer.job.tolist(), answer.site.tolist(), answer.hour.tolist(), strict=True):
            rows.setdefault((j, r), []).append(t)
        return [{"job": self.problem.names[j], "site": self.problem.sites[r], "hours": hours} for (j, r), hours in rows.items()]

    @property
    def dearest(self) -> list[dict[str, object]]:
        """The ten region-hours with the highest price of capacity, in the objective's unit per unit of capacity."""
        mu = self.certificate.mu
        order = np.argsort(-mu, axis=None, kind="stable")[:10]
        spots = [(int(i) // mu.shape[1], int(i) % mu.shape[1]) for i in order]
        return [{"site": self.problem.sites[r], "hour": t, "utc": self._when(t), "price": float(mu[r, t])} for r, t in spots if mu[r, t] > 0]

    def _when(self, hour: Any) -> str:
        return f"{self.start + int(hour) * _HOUR:%Y-%m-%dT%H:%MZ}"

    def to_json(self) -> dict[str, object]:
        """The document described above."""
        problem, solution = self.problem, self.solution
        bill = problem.bill(solution.answer)
        intensity = [[None if np.isnan(value) else value for value in row] for row in np.round(problem.intensity, 6).tolist()]
        return {
            "kind": "map", "sites": self._sites(), "start_utc": self._when(0), "intensity": intensity, "signal": problem.signal,
            "sentence": SENTENCES[problem.signal], "unit": problem.unit, "objective": self.objective, "jobs": self._jobs(),
            "schedule": self.schedule, "value": solution.cost, "bound": self.certificate.bound, "gap": self.certificate.gap,
            "before": solution.before, "before_why": solution.why,
            "saving": solution.saving, "kg": bill["kg"], "usd": bill["usd"] if self.priced else None, "it_kwh": bill["it_kwh"],
            "hall_kwh": bill["hall_kwh"], "moved_gb": bill["moved_gb"], "delay_h": bill["delay_h"], "technique": solution.solver,
            "solver_note": solution.note, "seconds": solution.seconds, "comparators": list(self.comparators), "ablations": list(self.ablations),
            "without": list(self.without), "dearest": self.dearest, "certificate": self.certificate.to_json(), 
            "verified": None if self.verified is None else list(self.verified), "stopped": self.stopped,
            "notes": list(self.notes),
        }

    def _sites(self) -> list[dict[str, object]]:
        problem, answer = self.problem, self.solution.answer
        load = answer.load(problem.width, problem.intensity.shape)
        busy = np.bincount(answer.site, minlength=len(problem.sites))
        rows = []
        for r, name in enumerate(problem.sites):
            one = problem.capacity[r].min() == problem.capacity[r].max() and np.isfinite(problem.capacity[r, 0])
            known = problem.intensity[r][~np.isnan(problem.intensity[r])]
            rows.append({"name": name, "pue": float(problem.pue[r].mean()), "price_usd_kwh": float(problem.price[r].mean()) if self.priced else None,
                         "capacity": float(problem.capacity[r, 0]) if one else None, "peak": int(load[r].max(initial=0)), "job_hours": int(busy[r]),
                         "mean_g_kwh": float(known.mean()) if known.size else None})
        return rows

    def _jobs(self) -> list[dict[str, object]]:
        problem, answer, base = self.problem, self.solution.answer, self.problem.baseline()
        home = problem.kw[base.job] * problem.pue[base.site, base.hour] * problem.intensity[base.site, base.hour] / 1000
        kg = np.bincount(base.job, home, len(problem.names))
        ends = np.searchsorted(answer.job, np.arange(len(problem.names) + 1))
        return [{"name": name, "kw": float(problem.kw[j]), "hours": int(problem.hours[j]), "release": int(problem.release[j]),
                 "deadline": int(problem.deadline[j]), "home": problem.sites[problem.home[j]], "width": int(problem.width[j]),
                 "interruptible": bool(problem.interruptible[j]), "baseline_kg": None if np.isnan(kg[j]) else float(kg[j]),
                 "start_utc": self._when(answer.hour[ends[j]]), "end_utc": self._when(answer.hour[ends[j + 1] - 1] + 1)}
                for j, name in enumerate(problem.names)]

    def save(self, folder: str | Path, add: bool = False) -> list[Path]:
        """Write plan.json, schedule.csv, schedule.json, certificate.json and problem.npz into `folder`; their paths.

        plan.json is one document (`fourfold.plans`) with the solution of the question carbon_aware; `add`: beside those of the plan that is there.
        """
        import csv
        import io
        import json
        import shutil
        from functools import partial

        folder = may_add(folder) if add else may_save(folder)
        try:
            certificate = save(folder, self.problem, self.solution.answer, self.certificate)
            table, answer = io.StringIO(newline=""), self.solution.answer
            writer = csv.writer(table)
            writer.writerow(("job", "site", "hour", "start_utc"))
            writer.writerows((self.problem.names[j], self.problem.sites[r], t, self._when(t))
                             for j, r, t in zip(answer.job, answer.site, answer.hour, strict=True))
            write(folder / "schedule.csv", table.getvalue())
            write(folder / "schedule.json", json.dumps(self.schedule))
            document = self.to_json()
            workload = {"kind": "jobs", "name": _counted(len(self.problem.names), "job"), "hash": self.subject}
            machine = {"name": _counted(len(self.problem.sites), "site"), "hash": plans.identify(self.problem.sites, document["intensity"])}
            plans.store(folder, QUESTION, self.stored(document), workload, machine,
                        {name: partial(shutil.copyfile, folder / name) for name in FILES[1:]}, add=add)
        except OSError as error:
            raise unwritable(folder, error, "the plan") from error
        return [folder / "plan.json", folder / "schedule.csv", folder / "schedule.json", certificate, folder / "problem.npz"]

    def stored(self, document: Mapping[str, object]) -> dict[str, object]:
        """What a plan's document keeps: `to_json()`, with the words that all questions have."""
        facts = {"cost": document["value"], "solver": document["technique"], "why": document["before_why"], "hash": self.id}
        return {**document, **facts, "sentences": sentences({**document, **facts}), "interrupted": self.stopped}

    @property
    def subject(self) -> str:
        """sha256 of the jobs: what they are and when they may run, whatever was decided."""
        problem = self.problem
        return plans.identify(self._when(0), problem.names, *(getattr(problem, name).tolist() for name in (
            "kw", "hours", "release", "deadline", "home", "width", "interruptible")))

    @property
    def id(self) -> str:
        """sha256 of the certificate: of every input, the schedule, its value and its bound."""
        return plans.identify(self.certificate.to_json())


def plan(jobs: str | Path | Iterable[Mapping[str, object]], *, sites: Sequence[str] | None = None, intensity: str | Path | Hours | None = None,
         capacity: float | Mapping[str, float] | None = None, slack: str | float | None = None, objective: str = "carbon",
         carbon_price: float | None = None, contiguous: bool = False, online: bool = False, budget: float = 60.0,
         pue: float | Mapping[str, float] | None = None, price: float | Mapping[str, float] | None = None, zone: str | None = None,
         replay: bool = False, error: float = 0.2, seed: int = 0, kwh_per_gb: float = 0.001, egress: float = 0.0, compare: bool = True,
         unit: str | None = None, signal: str | None = None) -> ShiftingPlan:
    """Plan where and when jobs run.

    jobs        a file or rows as `fourfold.carbon.jobs` reads them; `slack`, `contiguous` and `zone` as there (`zone` for an hourly file too that
                says none); unit, signal: of an hourly file that says none, or says it wrongly
    sites       names to choose from; intensity: an hourly file, "eia-2022" or Hours (default: eia-2022 where it has all sites and the time, else the
                sites' yearly averages, which leave only the place to choose); replay: move its year to the jobs' (weekdays kept)
    capacity    units at once, for all sites or by name; pue, price (USD/kWh) likewise, from the sites' tables where not given
    objective   carbon (kg CO2e), cost (USD) or mixed (USD + carbon_price USD per tonne)
    online      plan on forecasts that are renewed every hour, with error `error` × mean, in place of knowing the hours
    budget      seconds for all of it, from the call on: reading, planning, comparing. Where an exact technique would take longer, the best schedule
                so far stands with what bound is proved; comparators that there is no time for are left out. The first Ctrl-C ends it likewise
    kwh_per_gb, egress   energy and USD of moving a GB between sites (assumed)

    Raises InputError for what cannot be read or does not fit, Infeasible where deadlines and capacities cannot be met or a price is missing.
    """
    from fourfold.carbon.jobs import read_jobs

    began = time.monotonic()
    listed = read_jobs(jobs, slack=slack, contiguous=contiguous, zone=zone)
    problem, start, priced, notes = build(listed, sites=sites, intensity=intensity, capacity=capacity, objective=objective,
                                          carbon_price=carbon_price, pue=pue, price=price, replay=replay, kwh_per_gb=kwh_per_gb, egress=egress,
                                          zone=zone, unit=unit, signal=signal)
    known = np.array([0 if job.known is None else max(0, -((start - job.known) // _HOUR)) for job in listed])
    solver = Online(error=error, known=known) if online else None
    return study(problem, start=start, solver=solver, budget=budget, error=error, seed=seed, priced=priced, objective=objective, notes=notes,
                 compare=compare, began=began)


def study(problem: Place, *, start: datetime | None = None, solver: Any = None, budget: float = 60.0, error: float = 0.2, seed: int = 0,
          priced: bool = True, objective: str = "carbon", notes: Sequence[str] = (), compare: bool = True,
          began: float | None = None) -> ShiftingPlan:
    """Plan a problem given as arrays, certify it, and hold it against the comparators. `solver` replaces the technique that suits the instance;
    `began` is when the budget's clock started (`time.monotonic()`; now if not given)."""
    from fourfold.decisions.carbon_aware import _apart

    end = (time.monotonic() if began is None else began) + budget
    if solver is None and not _apart.light(problem):
        with Watch() as watch:
            return _by_the_clock(problem, watch, end, start or datetime(1970, 1, 1, tzinfo=UTC), budget, error, seed, priced, objective, list(notes),
                                 compare)
    found = solve(problem, solver or planner(problem), Budget(budget), seed)
    mu, notes = found.evidence.get("mu"), list(notes)
    if mu is None and solver is not None:                               # an online plan proves nothing itself; the plan with all known does
        known = solve(problem, planner(problem), Budget(budget), seed)
        mu = known.evidence.get("mu")
        notes.append(f"Online: with all hours known the plan would take {known.cost:.6g} {problem.unit}; {found.note}.")
    certificate = certify(problem, found.answer, mu)
    share = budget / 4                                                  # only integer programmes take it all
    options = {"error": error, "draws": 5, "seed": seed, "budget": share, "prices": priced, "limit": 2 * budget}
    rows = list(_compare.everything(problem, found, **options)) if compare else []
    wrong = verify(problem, found.answer, certificate)
    return _plan(problem, found, certificate, start or datetime(1970, 1, 1, tzinfo=UTC), rows, priced, objective, notes, tuple(wrong))


def _by_the_clock(problem: Place, watch: Watch, end: float, start: datetime, budget: float, error: float, seed: int, priced: bool, objective: str,
                  notes: list[str], compare: bool) -> ShiftingPlan:
    """The same where an exact technique may take longer than there is time: what is done by `end`."""
    from fourfold.decisions.carbon_aware import _apart

    left = end - time.monotonic()
    try:
        found, certificate = _apart.within(problem, (0.55 if compare else 0.85) * left, left, seed)
    except Infeasible:
        if watch.stopped:                                               # before there was any plan
            raise KeyboardInterrupt from None
        raise
    options = {"error": error, "draws": 5, "seed": seed, "budget": budget / 8, "prices": priced, "limit": budget / 4}
    rows: list[tuple[str, dict[str, object]]] = []
    if compare and not watch.stopped:
        rows = list(_apart.rows(problem, found, lambda: not watch.stopped and time.monotonic() < end - 0.05 * budget, **options))
    wrong: tuple[str, ...] | None = None
    if not watch.stopped and seconds(problem) < end - time.monotonic():
        wrong = tuple(verify(problem, found.answer, certificate))
    else:
        notes.append("The certificate was not verified here, for want of time: `fourfold map verify` on the saved folder does.")
    if compare and not any(part == "without" for part, _ in rows):
        notes.append("Comparators that there was no time for are left out.")
    if watch.stopped:
        notes.append("Interrupted: this is the best plan so far, and the bound is what was proved so far.")
    return _plan(problem, found, certificate, start, rows, priced, objective, notes, wrong, watch.stopped)


def _plan(problem: Place, found: Solution[JobHours], certificate: Certificate, start: datetime, rows: list[tuple[str, dict[str, object]]],
          priced: bool, objective: str, notes: Sequence[str], wrong: tuple[str, ...] | None, stopped: bool = False) -> ShiftingPlan:
    policies, cuts, out = ([row for part, row in rows if part == wanted] for wanted in ("policies", "ablations", "without"))
    mine = _compare.row(problem, "plan", "This plan", found.answer, "plan", prices=priced)
    scored = _compare.scored([*policies, mine, *cuts, *out])
    count = len(policies) + 1
    return ShiftingPlan(problem, found, certificate, start, tuple(scored[:count]), tuple(scored[count: count + len(cuts)]),
                        tuple(scored[count + len(cuts):]), priced, objective, tuple(notes), wrong, stopped)


# ---- from jobs and files to arrays ----


def build(jobs: Sequence[BatchJob], *, sites: Sequence[str] | None = None, intensity: object = None, capacity: object = None,
          objective: str = "carbon", carbon_price: float | None = None, pue: object = None, price: object = None,
          replay: bool = False, kwh_per_gb: float = 0.001,
          egress: float = 0.0, zone: str | None = None, unit: str | None = None,
          signal: str | None = None) -> tuple[Place, datetime, bool, list[str]]:
    """(the problem in arrays, the moment of hour 0, whether all prices are known, notes); arguments as of `plan`."""
    notes: list[str] = []
    start, end = min(job.release for job in jobs), max(job.deadline for job in jobs)
    wanted: list[str] = list(dict.fromkeys([*(sites or []), *(name for job in jobs for name in (*job.sites, *([job.home] if job.home else [])))]))
    if intensity is not None and isinstance(intensity, str | Path):
        from fourfold.carbon.hourly import read_hours

        intensity = read_hours(intensity, local=zone, unit=unit, signal=signal, sites=tuple(sites or ()))
    elif unit is not None or signal is not None:
        raise InputError("A unit or a signal is that of an hourly file, and none is given.", "Give the file: --intensity hours.csv")
    hours, names = _hours(wanted, sites, intensity, replay, start, end, notes)
    values, start, total = _cut(hours, jobs, start, end, notes)
    index = {name.casefold(): r for r, name in enumerate(names)}

    def place(name: str, job: str) -> int:
        if name.casefold() not in index:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
            raise InputError(f"Job {job} names the site {name!r}, which is not among those to choose from.",
                             f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(names[:20])}.")
        return index[name.casefold()]

    allowed = np.ones((len(jobs), len(names)), bool)
    for j, job in enumerate(jobs):
        if job.sites:
            allowed[j] = np.isin(np.arange(len(names)), [place(name, job.name) for name in job.sites])
    tabled, prices, priced = _facts(names, hours, pue, price, notes)
    weights = _weights(objective, carbon_price, priced, names, prices)
    release = np.array([(job.release - start) // _HOUR for job in jobs])
    deadline = np.minimum([(job.deadline - start) // _HOUR for job in jobs], total)
    problem = Place(sites=tuple(names), intensity=values, names=tuple(job.name for job in jobs), kw=np.array([job.kw for job in jobs]),
                    hours=np.array([job.hours for job in jobs]), release=release, deadline=deadline,
                    home=np.array([place(job.home, job.name) if job.home else 0 for job in jobs]), width=np.array([job.width for job in jobs]),
                    interruptible=np.array([job.interruptible for job in jobs]), pue=tabled, price=np.nan_to_num(prices),
                    capacity=_by_site(capacity, names, np.full(len(names), np.inf), "capacity"),
                    startup_kwh=np.array([job.startup_kwh for job in jobs]), checkpoint_kwh=np.array([job.checkpoint_kwh for job in jobs]),
                    data_gb=np.array([job.data_gb for job in jobs]), allowed=allowed, kwh_per_gb=kwh_per_gb, egress=egress,
                    signal=hours.signal if hours is not None else "average", **weights)
    if rounded := sum(job.rounded for job in jobs):
        notes.append(f"Plans are in whole hours: times or lengths of {rounded} job{'s' * (rounded > 1)} were rounded (release up, deadline down, a "
                     "begun hour held whole, its energy unchanged).")
    if problem.data_gb.any():
        notes.append(f"Moving data takes {kwh_per_gb:g} kWh and {egress:g} USD per GB (assumed).")
    return problem, start, priced, notes


def _weights(objective: str, carbon_price: float | None, priced: bool, names: Sequence[str], prices: np.ndarray) -> dict[str, Any]:
    if objective not in _OBJECTIVES:
        raise InputError(f"{objective!r} is not an objective.", f"Use one of: {', '.join(_OBJECTIVES)}.")
    if carbon_price is not None and not (np.isfinite(carbon_price) and carbon_price >= 0):
        raise InputError(f"A carbon price of {carbon_price:g} USD per tonne cannot be used.", "Give 0 or more.")
    if objective == "mixed" and carbon_price is None:
        raise InputError("The mixed objective needs a price of carbon.", "Give it in USD per tonne of CO2e: --carbon-price 100")
    if objective != "carbon" and not priced:
        absent = [name for name, value in zip(names, prices, strict=True) if np.isnan(value)]
        raise Infeasible(f"No electricity price is known for {', '.join(absent[:5])}.",
                         "Give prices in USD/kWh (--price 0.1, or --price SITE=0.1), or choose --objective carbon.")
    if objective == "carbon":
        return {"carbon": 1.0, "money": 0.0, "unit": "kgCO2e"}
    return {"carbon": (carbon_price or 0.0) / 1000 if objective == "mixed" else 0.0, "money": 1.0, "unit": "USD"}


def _hours(wanted: list[str], sites: Sequence[str] | None, intensity: object, replay: bool, start: datetime, end: datetime,
           notes: list[str]) -> tuple[Hours | None, list[str]]:
    """The hourly series of the sites to choose from, and their names as the user knows them; yearly averages stand in where there are none."""
    from dataclasses import replace

    from fourfold.carbon.hourly import Hours, bundled

    if intensity is None:
        default = bundled("eia-2022")
        have = {name.casefold() for name in default.names}
        inside = replay or (default.start <= start and end <= default.end)
        if inside and all(name.casefold() in have for name in wanted):
            intensity = default
        else:
            return _yearly(wanted, start, end, notes), wanted
    assert isinstance(intensity, Hours)
    hours = intensity
    notes.extend(hours.notes)
    names = list(sites) if sites else list(hours.names)
    columns = [_column(name, hours) for name in names]
    hours = replace(hours, names=tuple(names), values=hours.values[columns], marks=hours.marks[columns])
    if replay:
        weeks = round((start - hours.start) / timedelta(weeks=52))
        moved = hours.start + weeks * timedelta(weeks=52)
        moved += timedelta(weeks=52) * ((end > moved + hours.values.shape[1] * _HOUR) - (start < moved))
        if moved != hours.start:
            notes.append(f"The hours of {hours.start:%Y-%m-%d} on stand in for {moved:%Y-%m-%d} on (52-week years, weekdays kept).")
        hours = replace(hours, start=moved)
    return hours, names


def _column(name: str, hours: Hours) -> int:
    """Which row of `hours` a site's name means: its own, or that of the grid it is on."""
    from fourfold.site import site

    index = {known.casefold(): r for r, known in enumerate(hours.names)}
    if name.casefold() in index:
        return index[name.casefold()]
    try:
        grid = site(name).grid
    except InputError:
        grid = ""
    if grid.casefold() in index:
        return index[grid.casefold()]
    near = difflib.get_close_matches(name.upper(), [known.upper() for known in hours.names], n=3, cutoff=0.3)
    raise InputError(f"There are no hours for the site {name!r}.",
                     f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(hours.names)}.")


def _yearly(wanted: list[str], start: datetime, end: datetime, notes: list[str]) -> Hours:
    from fourfold.carbon.hourly import ANNUAL, Hours
    from fourfold.site import site

    if not wanted:
        raise InputError("There are no sites to choose from.", "Name sites (--sites FR,DE), give homes in the jobs, or an hourly file (--intensity).")
    total = max(1, -((start - end) // _HOUR))
    level = np.array([site(name).intensity.value for name in wanted])
    notes.append("Yearly averages stand in for hours: only the place can be chosen, waiting gains nothing. Give hourly intensities to plan hours.")
    values = np.repeat(level[:, None], total, axis=1)
    return Hours(tuple(wanted), start, values, "average", "yearly averages of the sites' tables", np.full(values.shape, ANNUAL, np.uint8))


def _cut(hours: Hours | None, jobs: Sequence[BatchJob], start: datetime, end: datetime, notes: list[str]) -> tuple[np.ndarray, datetime, int]:
    """The hours between the first release and the last deadline: values [R, T], the moment of hour 0, T. Raises where a job does not fit."""
    assert hours is not None
    total = hours.values.shape[1]
    last = hours.start + total * _HOUR
    for job in jobs:
        if job.hours > total:
            raise InputError(f"Job {job.name} needs {job.hours} h, and there are {total} h of intensity: {job.hours - total} h too few.",
                             "Give intensities for a longer time, or split the job.")
        if job.release < hours.start or job.release >= last:
            raise InputError(f"Job {job.name} is released at {job.release:%Y-%m-%d %H:%M} UTC; the hours run from {hours.start:%Y-%m-%d %H:%M} to "
                             f"{last:%Y-%m-%d %H:%M}.", "Give intensities for that time, or let those of another year stand in: --replay")
        short = job.hours - (last - job.release) // _HOUR
        if short > 0:
            window = job.hours - short
            raise Infeasible(f"Job {job.name} cannot end before the hours do: it needs {job.hours} h and has {window} h, {short} h too few.",
                             "Give intensities for a longer time, or release it earlier.")
    if end > last:
        late = sum(job.deadline > last for job in jobs)
        notes.append(f"{late} deadline{'s lie' if late > 1 else ' lies'} after the last hour of intensity ({last:%Y-%m-%d %H:%M} UTC) and "
                     f"{'were' if late > 1 else 'was'} cut to it.")
        end = last
    first, stop = (start - hours.start) // _HOUR, (end - hours.start) // _HOUR
    return hours.values[:, first:stop], start, stop - first


def _facts(names: Sequence[str], hours: Hours | None, pue: object, price: object, notes: list[str]) -> tuple[np.ndarray, np.ndarray, bool]:
    """PUE [R] and price [R] (NaN = unknown) from the sites' tables, then from what was given; whether all prices are known."""
    from fourfold.site import pue as usual
    from fourfold.site import site

    table = np.full((2, len(names)), np.nan)
    unknown = []
    for r, name in enumerate(names):
        try:
            found = site(name)
        except InputError:
            table[0, r] = usual().value
            unknown.append(name)
            continue
        table[0, r] = found.pue.value
        if found.pue.grade == "assumed":
            unknown.append(name)
        table[1, r] = np.nan if found.price is None else found.price.value
    if unknown and pue is None:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        notes.append(f"No PUE is on record for {', '.join(unknown[:5])}{more}: the usual {usual().value:g} is assumed.")
    prices = _by_site(price, names, table[1], "price")
    return _by_site(pue, names, table[0], "PUE"), prices, bool(np.isfinite(prices).all())


def _by_site(given: Any, names: Sequence[str], default: np.ndarray, what: str) -> np.ndarray:
    """A number for all sites, or by name over `default` [R]."""
    made = np.array(default, float)
    if given is None:
        return made
    if not isinstance(given, Mapping):
        return np.full(len(names), float(given))
    index = {name.casefold(): r for r, name in enumerate(names)}
    for name, value in given.items():
        if name.casefold() not in index:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
            raise InputError(f"{what} is given for {name!r}, which is not among the sites.",
                             f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(names)}.")
        made[index[name.casefold()]] = float(value)
    return made


def may_save(folder: str | Path, inputs: Iterable[object] = ()) -> Path:
    """The folder, where a plan may be written into it: one that has none of its files, or an earlier plan of jobs. Raises InputError otherwise."""
    return may_fill(folder, FILES, lambda held: _proven(held) and plans.answers(held) <= {QUESTION}, inputs=inputs)


def may_add(folder: str | Path, inputs: Iterable[object] = ()) -> Path:
    """The folder, where it holds a plan that an answer may be added to. Raises InputError or ArtefactError otherwise."""
    plans.read(folder)
    return may_fill(folder, FILES[1:], _proven, inputs=inputs)


def _proven(held: Path) -> bool:
    return _keys(held / "certificate.json") >= {"format", "bound", "gap"}


def _keys(path: Path) -> set[str]:
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    return set(found) if isinstance(found, dict) else set()


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
