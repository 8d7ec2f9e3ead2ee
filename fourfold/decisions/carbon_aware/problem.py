"""The question in arrays: sites × hours, jobs, and what a schedule of whole job-hours costs and may not do.

The model, in the objective's unit. rate[r, t] = PUE[r, t] · (kg[r, t] · carbon + price[r, t] · money) for one kWh of IT energy; a job pays
    kw · rate in every hour it runs,
    startup_kwh · rate in the first hour of each run (a run: consecutive hours at one site), checkpoint_kwh · rate in its last,
    data_gb · (kwh_per_gb · mean of both ends' intensity and price + egress[from]) when it runs at another site than before, at home to begin with.
Written without looking at any solver. Hours are indices into the horizon; release is the first hour a job may run, deadline the first it may not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fourfold.errors import Infeasible, InputError
from fourfold.problem import Problem

SITE_FIELDS = ("intensity", "pue", "price", "capacity")                # [R, T]
JOB_FIELDS = ("kw", "hours", "release", "deadline", "home", "width", "interruptible", "startup_kwh", "checkpoint_kwh", "data_gb")   # [J]
_WHOLE = ("hours", "release", "deadline", "home", "width")


@dataclass(frozen=True)
class JobHours:
    """Job-hours: `job[i]` runs at `site[i]` in `hour[i]`; int32 [N] each, sorted by job, then hour."""

    job: np.ndarray
    site: np.ndarray
    hour: np.ndarray

    def __post_init__(self) -> None:
        parts = [np.asarray(getattr(self, name)) for name in ("job", "site", "hour")]
        if any(part.ndim != 1 or len(part) != len(parts[0]) for part in parts):
            raise InputError(f"A schedule is three lists of one length, got shapes {[part.shape for part in parts]}.", "Give job, site and hour.")
        if any(part.size and not np.issubdtype(part.dtype, np.integer) for part in parts):
            raise InputError("A schedule counts in whole jobs, sites and hours.", "Give integers.")
        order = np.lexsort((parts[2], parts[0]))
        for name, part in zip(("job", "site", "hour"), parts, strict=True):
            object.__setattr__(self, name, part[order].astype(np.int32))

    def __len__(self) -> int:
        return len(self.job)

    def load(self, width: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Units of capacity in use, int64 [R, T]."""
        used = np.zeros(shape, np.int64)
        np.add.at(used, (self.site, self.hour), width[self.job])
        return used

    def starts(self) -> np.ndarray:
        """bool [N]: True where a run begins (the job's first hour, after a pause, or at another site)."""
        fresh = np.ones(len(self), bool)
        fresh[1:] = (np.diff(self.job) != 0) | (np.diff(self.hour) != 1) | (np.diff(self.site) != 0)
        return fresh


def joined(first: JobHours, second: JobHours) -> JobHours:
    """Both together."""
    return JobHours(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("job", "site", "hour")))


@dataclass(frozen=True)
class Place(Problem[JobHours]):
    """Sites, hours and jobs. Arrays are broadcast: a number stands for all sites, hours or jobs.

    sites   names [R]; intensity gCO2e/kWh, pue, price (USD/kWh), capacity (units, inf = no limit): [R, T]; NaN intensity = the hour cannot be used
    jobs    names [J]; kw: IT power of the whole job while it runs; hours, release, deadline: int [J]; home: site index; width: units of capacity
            it holds; interruptible: bool; startup_kwh, checkpoint_kwh, data_gb: [J]; allowed: bool [J, R]
    money   kwh_per_gb and egress (USD per GB leaving a site, [R]) for moving data
    carbon, money   weights of kg CO2e and USD in `cost`; `unit` says what comes out. signal: "average" or "marginal" intensity

    Raises InputError on shapes that do not fit, values out of range (named), and jobs longer than the
    horizon; Infeasible for a job whose hours do not fit its window (by how much).
    """

    sites: tuple[str, ...]
    intensity: np.ndarray
    names: tuple[str, ...]
    kw: np.ndarray
    hours: np.ndarray
    release: np.ndarray
    deadline: np.ndarray
    home: Any = 0
    width: Any = 1
    interruptible: Any = True
    pue: Any = 1.0
    price: Any = 0.0
    capacity: Any = np.inf
    startup_kwh: Any = 0.0
    checkpoint_kwh: Any = 0.0
    data_gb: Any = 0.0
    allowed: Any = True
    kwh_per_gb: float = 0.001
    egress: Any = 0.0
    carbon: float = 1.0
    money: float = 0.0
    unit: str = "kgCO2e"
    signal: str = "average"
    rate: np.ndarray = field(init=False, repr=False)                    # [R, T] objective per kWh of IT energy; NaN where the hour cannot be used

    question: ClassVar[str] = "place"
    lever: ClassVar[str] = "map"
    rules: ClassVar[tuple[str, ...]] = ("capacity",)

    def __post_init__(self) -> None:
        shape, jobs = np.shape(self.intensity), len(self.names)
        if len(shape) != 2 or shape[0] != len(self.sites) or 0 in shape:
            raise InputError(f"Intensity must be [sites, hours] = [{len(self.sites)}, T], got {list(shape)}.", "Give one row a site.")
        self._array("allowed", (jobs, shape[0]), bool)
        self._array("egress", shape[:1], np.float64)
        for name in SITE_FIELDS:
            self._array(name, shape, np.float64)
        for name in JOB_FIELDS:
            self._array(name, (jobs,), bool if name == "interruptible" else np.int64 if name in _WHOLE else np.float64)
        self._examine()
        object.__setattr__(self, "rate", self.pue * (self.carbon * self.intensity / 1000 + (self.money * self.price if self.money else 0.0)))
        if not (self.rate[~np.isnan(self.rate)] >= 0).all():            # the certificates and the planner's prunings rest on it
            raise InputError("The objective must not be negative in any hour: running more would pay.", "Cut negative prices at 0, or choose carbon.")

    def _array(self, name: str, shape: tuple[int, ...], kind: type) -> None:
        given = np.asarray(getattr(self, name))
        if len(shape) == 2 and name != "allowed" and given.ndim == 1 and len(given) == shape[0]:
            given = given[:, None]                                      # one value a site, whatever the hour
        try:
            value = np.array(np.broadcast_to(given, shape), kind)
        except ValueError:
            raise InputError(f"{name} must have the shape {list(shape)}, got {list(given.shape)}.", "Give one value, or one for each.") from None
        if kind is np.int64 and not np.array_equal(value, given if given.ndim else np.broadcast_to(given, shape)):
            raise InputError(f"{name} must be whole numbers.", "Round the hours up; a job holds an hour that it has begun.")
        value.setflags(write=False)
        object.__setattr__(self, name, value)

    def _examine(self) -> None:
        """Values out of range, then jobs that cannot fit whatever the others do."""
        known = ~np.isnan(self.intensity)
        rows = (("intensity", self.intensity, (self.intensity >= 0) & np.isfinite(self.intensity) | ~known, "0 or more, in gCO2e/kWh"),
                ("PUE", self.pue, (self.pue >= 1) & np.isfinite(self.pue), "1 or more: it is the hall's energy over the machines'"),
                ("price", self.price, np.isfinite(self.price), "a number, in USD/kWh"), ("capacity", self.capacity, self.capacity >= 0, "0 or more"))
        for name, value, good, expected in rows:
            if not good.all():
                r, t = np.argwhere(~good)[0]
                raise InputError(f"{name} of {self.sites[r]} in hour {t} is {value[r, t]:g}.", f"It must be {expected}.")
        for name in ("kw", "startup_kwh", "checkpoint_kwh", "data_gb"):
            for j in np.flatnonzero(~((getattr(self, name) >= 0) & np.isfinite(getattr(self, name))))[:1]:
                raise InputError(f"{name} of job {self.names[j]} is {getattr(self, name)[j]:g}.", "It must be 0 or more.")
        for name in ("hours", "width"):
            for j in np.flatnonzero(getattr(self, name) < 1)[:1]:
                raise InputError(f"{name} of job {self.names[j]} is {getattr(self, name)[j]}.", "It must be 1 or more.")
        for j in np.flatnonzero((self.home < 0) | (self.home >= len(self.sites)))[:1]:
            raise InputError(f"The home of job {self.names[j]} is site number {self.home[j]}.", f"There are {len(self.sites)} sites.")
        for j in np.flatnonzero(~self.allowed.any(axis=1))[:1]:
            raise InputError(f"Job {self.names[j]} may run nowhere.", "Allow it at least one site.")
        self._fit()

    def _fit(self) -> None:
        total = self.intensity.shape[1]
        for j in np.flatnonzero(self.hours > total)[:1]:
            raise InputError(f"Job {self.names[j]} needs {self.hours[j]} h, and the horizon has {total} h: {self.hours[j] - total} h too few.",
                             "Give intensities for a longer time, or split the job.")
        for j in np.flatnonzero((self.release < 0) | (self.deadline > total))[:1]:
            raise InputError(f"Job {self.names[j]} may run in hours {self.release[j]} to {self.deadline[j]}, outside the horizon of 0 to {total}.",
                             "Give intensities for that time, or move its release or deadline.")
        missing = self.hours - (self.deadline - self.release)
        for j in np.flatnonzero(missing > 0)[:1]:
            window = self.deadline[j] - self.release[j]
            raise Infeasible(f"Job {self.names[j]} cannot meet its deadline: it needs {self.hours[j]} h and has {window} h, {missing[j]} h too few.",
                             "Release it earlier, set the deadline later, or shorten it.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(jobs, sites, hours)."""
        return len(self.names), len(self.sites), self.intensity.shape[1]

    def part(self, jobs: np.ndarray, used: np.ndarray) -> tuple[Place, int]:
        """Those jobs (indices) in the room that `used` units [R, T] leave, in the hours of their windows alone; and which hour is its hour 0."""
        few = self.only(jobs)
        first, last = int(few.release.min()), int(few.deadline.max())
        hours = {name: getattr(self, name)[:, first:last] for name in SITE_FIELDS if name != "capacity"}
        left = np.maximum(self.room - used, 0.0)[:, first:last]
        return few.replace(**hours, capacity=left, release=few.release - first, deadline=few.deadline - first), first

    @property
    def room(self) -> np.ndarray:
        """Capacity rounded down to what jobs can fill: to a multiple of the greatest common divisor of their widths. Float [R, T], inf = no limit."""
        unit = float(np.gcd.reduce(self.width)) if len(self.width) else 1.0
        return np.where(np.isfinite(self.capacity), np.floor(self.capacity / unit + 1e-9) * unit, np.inf)

    def replace(self, **changes: object) -> Place:
        """A copy with other fields."""
        return dataclasses.replace(self, **changes)

    def only(self, jobs: np.ndarray) -> Place:
        """The same sites and hours with those jobs (indices) alone."""
        picked = {name: getattr(self, name)[jobs] for name in (*JOB_FIELDS, "allowed")}
        return self.replace(names=tuple(self.names[j] for j in jobs), **picked)

    def relaxed(self, rules: tuple[str, ...]) -> Place:
        return self.replace(capacity=np.inf) if "capacity" in rules and np.isfinite(self.capacity).any() else self

    def baseline(self) -> JobHours:
        """Every job at home from its release on, without pause, whether that is allowed or not."""
        job = np.repeat(np.arange(len(self.names)), self.hours)
        first = np.repeat(np.cumsum(self.hours) - self.hours, self.hours)
        return JobHours(job, self.home[job], self.release[job] + np.arange(len(job)) - first)

    # ---- what it may not do ----

    def violations(self, answer: JobHours) -> list[str]:
        """Sentences: wrong indices, hours outside the window, sites not allowed, unknown intensity, double hours, wrong number, pauses, capacity."""
        count, sites, total = self.shape
        outside = (answer.job < 0) | (answer.job >= count) | (answer.site < 0) | (answer.site >= sites) | (answer.hour < 0) | (answer.hour >= total)
        if outside.any():
            i = int(np.flatnonzero(outside)[0])
            return [f"entry {i} names job {answer.job[i]}, site {answer.site[i]}, hour {answer.hour[i]}, which do not all exist"]
        return [*self._single(answer), *self._counts(answer), *self._split(answer), *self._crowded(answer)]

    def _say(self, answer: JobHours, wrong: np.ndarray, what: str) -> list[str]:
        job, site, hour = answer.job, answer.site, answer.hour
        return [f"job {self.names[job[i]]} runs at {self.sites[site[i]]} in hour {hour[i]}, {what}" for i in np.flatnonzero(wrong)]

    def _single(self, answer: JobHours) -> list[str]:
        job, site, hour = answer.job, answer.site, answer.hour
        twice = np.zeros(len(answer), bool)
        twice[1:] = (np.diff(job) == 0) & (np.diff(hour) == 0)
        return [*self._say(answer, hour < self.release[job], "before its release"),
                *self._say(answer, hour >= self.deadline[job], "after its deadline"),
                *self._say(answer, ~self.allowed[job, site], "where it is not allowed"),
                *self._say(answer, np.isnan(self.intensity[site, hour]), "for which no intensity is known"),
                *self._say(answer, twice, "a second time in that hour")]

    def _counts(self, answer: JobHours) -> list[str]:
        done = np.bincount(answer.job, minlength=len(self.names))
        return [f"job {self.names[j]} runs {done[j]} h and needs {self.hours[j]} h" for j in np.flatnonzero(done != self.hours)]

    def _split(self, answer: JobHours) -> list[str]:
        runs = np.bincount(answer.job[answer.starts()], minlength=len(self.names))
        return [f"job {self.names[j]} may not pause or move, and runs in {runs[j]} pieces" for j in np.flatnonzero((runs > 1) & ~self.interruptible)]

    def _crowded(self, answer: JobHours) -> list[str]:
        load = answer.load(self.width, self.intensity.shape)
        return [f"{self.sites[r]} holds {load[r, t]} units in hour {t}, {load[r, t] - self.capacity[r, t]:g} more than its capacity"
                for r, t in np.argwhere(load > self.capacity)]

    # ---- what it costs ----

    def cost(self, answer: JobHours) -> float:
        """In `unit`."""
        bill = self.bill(answer)
        return self.carbon * bill["kg"] + self.money * bill["usd"]

    def bill(self, answer: JobHours) -> dict[str, float]:
        """kg (CO2e), usd, it_kwh, hall_kwh (with PUE and the network), moved_gb, delay_h (mean over jobs from release + hours to the end)."""
        job, site, hour, starts = answer.job, answer.site, answer.hour, answer.starts()
        ends = np.ones(len(answer), bool)
        ends[:-1] = starts[1:]
        it = self.kw[job] + starts * self.startup_kwh[job] + ends * self.checkpoint_kwh[job]
        hall = it * self.pue[site, hour]
        first = np.ones(len(answer), bool)
        first[1:] = np.diff(job) != 0
        before = np.where(first, self.home[job], np.roll(site, 1))
        gb = np.where(before != site, self.data_gb[job], 0.0)
        moved = gb > 0
        net = gb[moved] * self.kwh_per_gb / 2                           # half at each end
        b, s, t = before[moved], site[moved], hour[moved]
        far = np.where(np.isnan(self.intensity[b, t]), s, b)            # an end whose hour is unknown is counted like the other
        kg = float(hall @ self.intensity[site, hour]) / 1000 + float(net @ (self.intensity[far, t] + self.intensity[s, t])) / 1000
        usd = float(hall @ self.price[site, hour]) + float(net @ (self.price[far, t] + self.price[s, t])) + float(gb[moved] @ self.egress[b])
        last = np.ones(len(answer), bool)
        last[:-1] = first[1:]
        late = hour[last] + 1 - (self.release + self.hours)[job[last]]
        return {"kg": kg, "usd": usd, "it_kwh": float(it.sum()), "hall_kwh": float(hall.sum() + 2 * net.sum()), "moved_gb": float(gb.sum()),
                "delay_h": float(late.mean()) if len(late) else 0.0}

    @classmethod
    def sample(cls, seed: int) -> Place:
        """A few jobs and sites, with capacities that a hidden schedule fits into."""
        dice = np.random.default_rng(seed)
        jobs, sites, total = int(dice.integers(1, 5)), int(dice.integers(1, 4)), int(dice.integers(3, 8))
        hours = dice.integers(1, min(3, total) + 1, jobs)
        release = np.array([dice.integers(0, total - d + 1) for d in hours])
        deadline = np.array([dice.integers(r + d, total + 1) for r, d in zip(release, hours, strict=True)])
        plain = cls(sites=tuple(f"site{r}" for r in range(sites)), intensity=dice.uniform(10, 600, (sites, total)).round(3),
                    names=tuple(f"job{j}" for j in range(jobs)), kw=dice.choice([1.0, 2.6, 5.2], jobs), hours=hours, release=release,
                    deadline=deadline, home=dice.integers(0, sites, jobs), interruptible=dice.random(jobs) < 0.5,
                    pue=dice.uniform(1.05, 1.6, sites).round(2))
        load = plain.baseline().load(plain.width, plain.intensity.shape)
        return plain.replace(capacity=load + dice.integers(0, 2, load.shape))
