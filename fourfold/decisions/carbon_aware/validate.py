"""The proof that travels with a plan, and its checker: numpy only, no solver, no code of the techniques.

A certificate holds prices: mu[r, t] ≥ 0 on each unit of capacity of a region-hour, and lambda[j] per job. Whatever they are, weak duality gives
    bound = sum_j L_j - sum_rt mu[r, t] · capacity[r, t]
    L_j   = lambda_j d_j + sum_t min(0, min_r(cost_jrt + width_j mu_rt) - lambda_j)       a job that may pause and move freely: lambda_j an hour
    L_j   = min(lambda_j, cheapest priced schedule of j)                                 else, by a sliding window or dynamic programming
and no valid schedule costs less. `verify` recomputes hashes, rules, cost and bound from the data; a change anywhere is reported in a sentence.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.decisions.carbon_aware.problem import JOB_FIELDS, SITE_FIELDS, JobHours, Place
from fourfold.errors import ArtefactError
from fourfold.folder import write

_ARRAYS = (*SITE_FIELDS, *JOB_FIELDS, "allowed", "egress")
_WORDS = ("sites", "names", "unit", "signal")
_NUMBERS = ("kwh_per_gb", "carbon", "money")
_ROUNDING = 1e-9                                                        # of the value: sums taken in another order
FORMAT = "fourfold place certificate 1"


@dataclass(frozen=True)
class Certificate:
    """value and bound in `unit`; gap = (value - bound) / bound; lam [J]; mu [R, T]; hashes of every input and of the schedule.

    `loose`: jobs that may pause at a price are bounded as if starts, pauses and moves cost nothing, which proves less and is quick.
    """

    value: float
    bound: float
    gap: float
    unit: str
    signal: str
    lam: np.ndarray
    mu: np.ndarray
    hashes: Mapping[str, str]
    loose: bool = False

    def to_json(self) -> dict[str, object]:
        """Plain data; only prices above zero are listed."""
        site, hour = np.nonzero(self.mu)
        return {"format": FORMAT, "value": self.value, "bound": self.bound, "gap": self.gap, "unit": self.unit, "signal": self.signal,
                "loose": self.loose, "lambda": self.lam.tolist(), "hashes": dict(self.hashes),
                "mu": {"site": site.tolist(), "hour": hour.tolist(), "price": self.mu[site, hour].tolist()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], shape: tuple[int, int]) -> Certificate:
        """Raises ArtefactError where a field is missing or names a region-hour that does not exist."""
        try:
            mu = np.zeros(shape)
            site, hour = np.array(data["mu"]["site"], int), np.array(data["mu"]["hour"], int)
            if (site < 0).any() or (hour < 0).any():
                raise IndexError("negative index")
            mu[site, hour] = data["mu"]["price"]
            return cls(float(data["value"]), float(data["bound"]), float(data["gap"]), str(data["unit"]), str(data["signal"]),
                       np.array(data["lambda"], float), mu, dict(data["hashes"]), data.get("loose") is True)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ArtefactError(f"The certificate cannot be read: {type(error).__name__} {error}.",
                                "Take the file as `fourfold map` wrote it.") from None


def digests(problem: Place, schedule: JobHours) -> dict[str, str]:
    """sha256 of each array (type, shape, bytes) and word list that the value and the bound rest on."""
    found = {name: _digest(getattr(problem, name)) for name in _ARRAYS}
    for name in (*_WORDS, *_NUMBERS):
        found[name] = hashlib.sha256(json.dumps(getattr(problem, name)).encode()).hexdigest()
    found["schedule"] = _digest(np.stack([schedule.job, schedule.site, schedule.hour]))
    return found


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def certify(problem: Place, schedule: JobHours, mu: np.ndarray | None = None, *,
            proof: tuple[np.ndarray, float, bool] | None = None) -> Certificate:
    """The certificate of `schedule` with capacity prices mu [R, T] (0 = none known: the bound of jobs that are alone).

    `proof`: (lambda [J], the bound that it and mu prove, loose), where that is known already.
    """
    mu = np.where(np.isfinite(problem.capacity), np.maximum(np.zeros(problem.intensity.shape) if mu is None else mu, 0.0), 0.0)
    value = problem.cost(schedule)
    lam, low, loose = proof or _best(problem, mu)
    bound = min(low, value)
    return Certificate(value, bound, _gap(value, bound), problem.unit, problem.signal, lam, mu, digests(problem, schedule), loose)


def _best(problem: Place, mu: np.ndarray) -> tuple[np.ndarray, float, bool]:
    lam = np.array([_price(problem, j, mu) for j in range(len(problem.names))])
    return lam, lower(problem, lam, mu), False


def verify(problem: Place, schedule: JobHours, certificate: Certificate) -> list[str]:
    """What is wrong, a sentence each; [] = the schedule is valid, costs what is claimed, and nothing valid costs less than the bound claimed."""
    wrong = []
    hashes = digests(problem, schedule)
    for name in hashes.keys() | certificate.hashes.keys():
        if hashes.get(name) != certificate.hashes.get(name):
            now, then = str(hashes.get(name))[:12], str(certificate.hashes.get(name))[:12]
            wrong.append(f"{name} is not what was certified (sha256 {now}…, certified {then}…)")
    broken = problem.violations(schedule)
    if broken:
        return [*sorted(wrong), *broken[:5]]
    value = problem.cost(schedule)
    scale = max(abs(value), abs(certificate.value), 1e-300)
    if not abs(value - certificate.value) <= _ROUNDING * scale:
        wrong.append(f"the schedule costs {value:.12g} {problem.unit}, not {certificate.value:.12g}")
    if len(certificate.lam) != len(problem.names) or certificate.mu.shape != problem.intensity.shape:
        return [*sorted(wrong), "the prices do not have the shape of the problem"]
    if not (np.isfinite(certificate.mu).all() and (certificate.mu >= 0).all() and np.isfinite(certificate.lam).all()):
        return [*sorted(wrong), "a price is negative or not a number, so it proves nothing"]
    if certificate.mu[~np.isfinite(problem.capacity)].any():
        wrong.append("a price is put on a capacity that has no limit")
    bound = lower(problem, certificate.lam, certificate.mu, certificate.loose)
    if not certificate.bound <= bound + _ROUNDING * scale:
        wrong.append(f"the prices prove a bound of {bound:.12g} {problem.unit}, not {certificate.bound:.12g}")
    if not abs(_gap(certificate.value, certificate.bound) - certificate.gap) <= _ROUNDING:
        wrong.append(f"the gap is {_gap(certificate.value, certificate.bound):.3g}, not {certificate.gap:.3g}")
    if (problem.unit, problem.signal) != (certificate.unit, certificate.signal):
        wrong.append(f"the certificate speaks of {certificate.signal} {certificate.unit}, the problem of {problem.signal} {problem.unit}")
    return sorted(wrong)


def lower(problem: Place, lam: np.ndarray, mu: np.ndarray, loose: bool = False) -> float:
    """The bound that prices lam [J] and mu [R, T] ≥ 0 prove, in the objective's unit; `loose` as of `Certificate`."""
    limited = np.isfinite(problem.capacity)
    total = -float((np.where(limited, mu, 0.0)[limited] * problem.room[limited]).sum())
    for j in range(len(problem.names)):
        total += _share(problem, j, mu, float(lam[j]), loose)
    return total


def seconds(problem: Place, count: int = 16) -> float:
    """About how long one look at every job takes here (`verify` takes one, `certify` two), from `count` of them."""
    jobs = np.linspace(0, len(problem.names) - 1, min(count, len(problem.names))).astype(int)
    zero, began = np.zeros(problem.intensity.shape), time.perf_counter()
    for j in jobs.tolist():
        _share(problem, j, zero, 0.0, True)
    return (time.perf_counter() - began) * len(problem.names) / max(1, len(jobs))


def _gap(value: float, bound: float) -> float:
    return 0.0 if value == bound else (value - bound) / (abs(bound) or abs(value))


def _plain(problem: Place, j: int) -> bool:
    """May pause and move at no cost."""
    return bool(problem.interruptible[j] and not (problem.startup_kwh[j] or problem.checkpoint_kwh[j] or problem.data_gb[j]))


def _priced(problem: Place, j: int, mu: np.ndarray) -> np.ndarray:
    """Cost of an hour of job j with the price of its width, [R, window]; inf where it cannot run."""
    span = slice(problem.release[j], problem.deadline[j])
    cost = problem.kw[j] * problem.rate[:, span] + problem.width[j] * mu[:, span]
    cost = np.where(np.isnan(cost), np.inf, cost)
    cost[~problem.allowed[j]] = np.inf
    return cost


def _price(problem: Place, j: int, mu: np.ndarray) -> float:
    """The lambda that makes the job's share of the bound largest."""
    cost = _priced(problem, j, mu)
    return float(np.sort(cost.min(axis=0))[problem.hours[j] - 1]) if _plain(problem, j) else _whole(problem, j, cost)


def _share(problem: Place, j: int, mu: np.ndarray, lam: float, loose: bool = False) -> float:
    cost = _priced(problem, j, mu)
    if _plain(problem, j) or loose and problem.interruptible[j] and problem.hours[j] > 1:
        return lam * float(problem.hours[j]) + float(np.minimum(0.0, cost.min(axis=0) - lam).sum())
    return min(lam, _whole(problem, j, cost))


def _whole(problem: Place, j: int, cost: np.ndarray) -> float:
    """Cost of the cheapest priced schedule of a job in one piece, or that pays for starts, ends and moves."""
    sites, window = cost.shape
    need, first = int(problem.hours[j]), int(problem.release[j])
    rate = np.where(np.isnan(problem.rate), np.inf, problem.rate)[:, first: first + window] if problem.startup_kwh[j] or problem.checkpoint_kwh[j] \
        else np.zeros((sites, window))
    begin = problem.startup_kwh[j] * rate if problem.startup_kwh[j] else np.zeros((sites, window))
    finish = problem.checkpoint_kwh[j] * rate if problem.checkpoint_kwh[j] else np.zeros((sites, window))
    if problem.interruptible[j] and need > 1:
        return _pausing(problem, j, cost, begin, finish)
    if not problem.data_gb[j]:
        known = np.isfinite(cost)
        total, gaps = (np.pad(np.cumsum(part, axis=1), ((0, 0), (1, 0))) for part in (np.where(known, cost, 0.0), ~known))
        whole = total[:, need:] - total[:, : window - need + 1] + begin[:, : window - need + 1] + finish[:, need - 1:]
        whole[gaps[:, need:] > gaps[:, : window - need + 1]] = np.inf
        return float(whole.min())
    best = np.inf
    for s in range(window - need + 1):
        whole = cost[:, s: s + need].sum(axis=1) + begin[:, s] + finish[:, s + need - 1] + _transfer(problem, j, first + s)[problem.home[j]]
        best = min(best, float(whole.min()))
    return best


def _pausing(problem: Place, j: int, cost: np.ndarray, begin: np.ndarray, finish: np.ndarray) -> float:
    """Least cost over (hours done, where the data are, running or at rest), hour by hour."""
    sites, window = cost.shape
    need, first = int(problem.hours[j]), int(problem.release[j])
    rest, running = np.full((need + 1, sites), np.inf), np.full((need + 1, sites), np.inf)
    rest[0, problem.home[j]] = 0.0
    for i in range(window):
        arrive = (rest[:, :, None] + _transfer(problem, j, first + i)[None]).min(axis=1) + begin[:, i]
        on = np.full_like(running, np.inf)
        on[1:] = np.minimum(running, arrive)[:-1] + cost[:, i]
        running = on
        rest = np.minimum(rest, running + finish[:, i])
    return float(rest[need].min())


def _transfer(problem: Place, j: int, hour: int) -> np.ndarray:
    """Cost of bringing job j's data from a site to another in that hour, [from, to]; inf where the arrival's hour is unknown."""
    sites = len(problem.sites)
    if not problem.data_gb[j]:
        return np.zeros((sites, sites))
    worth = problem.carbon * problem.intensity[:, hour] / 1000 + (problem.money * problem.price[:, hour] if problem.money else 0.0)
    there = np.broadcast_to(worth[None, :], (sites, sites))
    here = np.where(np.isnan(worth)[:, None], there, worth[:, None])
    each = problem.kwh_per_gb / 2 * (here + there) + problem.money * problem.egress[:, None]
    moved = problem.data_gb[j] * np.where(np.isnan(each), np.inf, each)
    np.fill_diagonal(moved, 0.0)
    return moved


# ---- files ----


def save(folder: Path, problem: Place, schedule: JobHours, certificate: Certificate) -> Path:
    """Write certificate.json, problem.npz (all inputs) and schedule.csv (job, site, hour) into `folder`; the path of the first."""
    arrays = {name: getattr(problem, name) for name in _ARRAYS}
    words = {name: getattr(problem, name) for name in (*_WORDS, *_NUMBERS)}
    packed, table = io.BytesIO(), io.StringIO(newline="")
    np.savez_compressed(packed, words=np.array(json.dumps(words)), **arrays)
    writer = csv.writer(table)
    writer.writerow(("job", "site", "hour"))
    writer.writerows((problem.names[j], problem.sites[r], t) for j, r, t in zip(schedule.job, schedule.site, schedule.hour, strict=True))
    write(folder / "problem.npz", packed.getvalue(), parents=True)
    write(folder / "schedule.csv", table.getvalue())
    return write(folder / "certificate.json", json.dumps(certificate.to_json()))


def load(path: Path) -> tuple[Place, JobHours, Certificate]:
    """What `save` wrote, from certificate.json or its folder. Raises ArtefactError naming the file that is missing or damaged."""
    folder = path if path.is_dir() else path.parent
    file = folder / "certificate.json" if path.is_dir() else path
    problem = _problem(folder / "problem.npz")
    schedule = _schedule(folder / "schedule.csv", problem)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read: {error}.", "Take the folder as `fourfold map --out` wrote it.") from None
    return problem, schedule, Certificate.from_json(data, problem.intensity.shape)


def _problem(file: Path) -> Place:
    try:
        with np.load(file, allow_pickle=False) as stored:
            words = json.loads(str(stored["words"]))
            arrays = {name: stored[name] for name in _ARRAYS}
    except Exception as error:                                          # numpy raises whatever the damage provokes
        raise ArtefactError(f"{file} cannot be read: {error}.", "Take the folder as `fourfold map --out` wrote it.") from None
    return Place(**{**words, "sites": tuple(words["sites"]), "names": tuple(words["names"])}, **arrays)


def _schedule(file: Path, problem: Place) -> JobHours:
    jobs, sites = ({name: i for i, name in enumerate(names)} for names in (problem.names, problem.sites))
    try:
        with open(file, newline="", encoding="utf-8") as stored:
            rows = [(jobs[row["job"]], sites[row["site"]], int(row["hour"])) for row in csv.DictReader(stored)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read: {type(error).__name__} {error}.", "Take the folder as `fourfold map --out` wrote it.") from None
    return JobHours(*(np.array(column, np.int64) for column in (zip(*rows, strict=True) if rows else ([], [], []))))
