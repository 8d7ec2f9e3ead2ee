"""The page of `fourfold map`: intensity over time by site with the chosen hours painted in, savings against each comparator, prices of capacity,
jobs.

One file that loads nothing from elsewhere. It is drawn from the plan document of `jobs.map`; a year of hours travels as quantised
numbers (0.1 g/kWh) that the page draws at any zoom, thousands of jobs as a table that shows a page at a time.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.errors import InputError
from fourfold.report import format
from fourfold.report.html import asset, script_safe
from fourfold.report.json import replace

_CELLS = 600_000                                                       # site-hours that a page carries one by one; more are averaged in blocks
_MISSING = 65_535
_DEAREST = 10
_COLUMNS = ("name", "kw", "hours", "where", "first", "last", "wait", "kwh", "kg", "base")
_KINDS = {"naive": "naive", "run_now": "naive", "run now": "naive", "baseline": "naive", "oracle": "oracle", "plan": "plan", "this plan": "plan"}
AVERAGE = ("Average intensity says what share of a grid's emissions is this work's (attributional). Moving load does not cut what the grids emit one "
           "for one: whether it does is a question for a marginal signal.")
MARGINAL = ("Marginal intensity says what one more kilowatt-hour makes a grid emit (consequential). It is a model's estimate, cannot be metered, and "
            "must not be added to average figures.")


def write(document: object, path: Path | str) -> Path:
    """Write the page for a plan document to `path`; a folder gets map.html. Returns the file's path. Raises InputError for what is not a plan."""
    path = Path(path)
    path = path / "map.html" if path.is_dir() else path
    replace(path, page(document))
    return path


def page(document: object) -> str:
    """The page as HTML text. Raises InputError where the document lacks a part."""
    from jinja2 import Environment
    from markupsafe import Markup

    plan = _Plan(document)
    facts = {
        "plan": plan,
        "document": document,
        "groups": [("", "", plan.comparators()), *plan.groups()] if plan.comparators() else [],
        "dearest": plan.dearest(),
        "signal": AVERAGE if plan.signal == "average" else MARGINAL,
        "data": Markup(script_safe(json.dumps(plan.data(), ensure_ascii=False, allow_nan=False))),
        "css": Markup(asset("page.css") + asset("place.css")),
        "script": Markup(asset("place.js")),
        "w": format,
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("place.html")).render(**facts)


class _Plan:
    """A plan document in arrays. `names` of R sites, `intensity` [R, T] g/kWh (NaN = no figure), `kw` [R, T] and `count` [R, T] of what runs
    there.
    """

    def __init__(self, document: Any) -> None:
        try:
            self.document = document
            self.names = [str(_of(site, "title", "name", "id")) for site in document["sites"]]
            self.start = _moment(document["start_utc"])
            self.intensity = np.array([[np.nan if value is None else float(value) for value in row] for row in document["intensity"]], float)
            self.jobs = [_Job(number, job) for number, job in enumerate(document["jobs"])]
            self.signal = str(document.get("signal") or "average")
            sites, hours = self.intensity.shape
            self.pue = _pues(document, sites, hours)
            if sites != len(self.names):
                raise ValueError(f"{len(self.names)} sites and {sites} rows of intensity")
            self._place(document["schedule"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"This is not a plan of `fourfold map` ({type(error).__name__}: {error}).", "Give what `fourfold map --json` printed."
                             ) from None

    def _place(self, schedule: Any) -> None:
        """Lay the schedule's rows on the grid of hours, and give each job its own figures."""
        index = {name: number for number, name in enumerate(self.names)} | {str(_of(site, "id", "name", "title")): number
                                                                             for number, site in enumerate(self.document["sites"])}
        by_name = {job.name: job for job in self.jobs}
        self.kw, self.count = np.zeros_like(self.intensity), np.zeros(self.intensity.shape, int)
        for row in schedule:
            site = row["site"] if isinstance(row["site"], int) else index[str(row["site"])]
            job = self.jobs[row["job"]] if isinstance(row["job"], int) else by_name[str(row["job"])]
            hours = np.asarray(row["hours"], int)
            if hours.size and (hours.min() < 0 or hours.max() >= self.intensity.shape[1]):
                raise ValueError(f"{job.name} runs in an hour beyond the horizon")
            self.kw[site, hours] += job.kw
            self.count[site, hours] += 1
            job.runs(site, hours, self.intensity[site, hours] * self.pue[site, hours])

    @property
    def hours(self) -> int:
        return self.intensity.shape[1]

    @property
    def unit(self) -> str:
        return str(self.document.get("unit") or "kgCO2e")

    @property
    def headline(self) -> str:
        naive, value = self._naive(), self.value
        if not naive or value is None:
            return "Where and when to run"
        return f"The same work for {format.percent(value / naive)} of what it {'costs' if self.unit != 'kgCO2e' else 'emits'} at home, at once."

    @property
    def value(self) -> float | None:
        return _number(self.document.get("value", (self.document.get("certificate") or {}).get("value")))

    @property
    def bound(self) -> float | None:
        return _number(self.document.get("bound"))

    @property
    def gap(self) -> float | None:
        return _number(self.document.get("gap"))

    @property
    def gap_words(self) -> str:
        return "not known" if self.gap is None else "0" if self.gap == 0 else f"{self.gap:.1e}"

    def _naive(self) -> float | None:
        return next((row["value"] for row in self.comparators() if row["kind"] == "naive" and row["value"]), None)

    def proof(self) -> str:
        """How near to the best the plan is proven to be, in words."""
        bound, gap = self.bound, self.gap
        if bound is None or gap is None:
            return "How far from the best it may be is not proven."
        if gap <= 1e-9:
            return f"Proven optimal: no valid schedule is below {self.say(bound)} (gap {self.gap_words})."
        return f"No valid schedule is below {self.say(bound)}; this one is at most {format.percent(gap)} above it."

    def say(self, value: float | None) -> str:
        """A figure in the plan's unit."""
        if value is None:
            return "–"
        return format.mass(value * 1000) if self.unit == "kgCO2e" else f"{value:,.4g} {self.unit}"

    def comparators(self) -> list[dict[str, Any]]:
        """The policies and the plan itself, dearest first, impossible ones last; bars in per cent of the dearest."""
        rows = self._rows("comparators")
        if self.value is not None and not any(row["kind"] == "plan" for row in rows):
            rows.append(self._row({"name": "plan", "title": "this plan", "value": self.value}))
        return self._ranked(rows, rows)

    def groups(self) -> list[tuple[str, str, list[dict[str, object]]]]:
        """Further rows on the same axis: time alone and place alone, and each region left out."""
        axis = self.comparators()
        kinds = (("Which of it is time, which is place", "Each planned by itself, as well as it can be.", "ablations"),
                 ("Without a region", "The best plan if that region were not there: how much rests on it.", "without"))
        return [(title, lead, self._ranked(rows, axis)) for title, lead, key in kinds if (rows := self._rows(key))]

    def _rows(self, key: str) -> list[dict[str, Any]]:
        return [self._row(row) for row in self.document.get(key) or []]

    def _row(self, row: object) -> dict[str, object]:
        name = str(_of(row, "name", "policy", default="?"))
        return {"name": name, "title": str(_of(row, "title", "name", "policy", default="?")),
                "value": _number(_of(row, "value", "cost", default=None)), "kind": str(_of(row, "kind", default=_KINDS.get(name, "other"))),
                "why": str(_of(row, "why", "reason", default="")),
                "broken": _broken(row), **{field: _number(_of(row, field, default=None)) for field in ("saving", "share", "low", "high")}}

    def _ranked(self, rows: list[dict[str, Any]], axis: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with bars and savings on the axis that `axis` spans."""
        naive = next((row["value"] for row in axis if row["kind"] == "naive" and row["value"]), None)
        most = max((row[end] for row in axis for end in ("value", "high") if row[end] is not None), default=0.0) or 1.0
        for row in rows:
            value, low, high = row["value"], row["low"], row["high"]
            row["width"] = f"{min(100.0, max(100 * value / most, 0.4)):.2f}" if value is not None else "0"
            row["reach"] = None
            if low is not None and high is not None and low < high:
                row["reach"] = (f"{100 * low / most:.2f}", f"{100 * (high - low) / most:.2f}")
            if row["saving"] is None and value is not None and naive:
                row["saving"] = 1 - value / naive
        return sorted(rows, key=lambda row: (row["value"] is None, -(row["value"] or 0.0)))

    def oracle(self) -> str | None:
        """Where the oracle's mark stands on the bars' axis, in per cent; the plan's bound where there is no oracle."""
        rows = self.comparators()
        most = max((row[end] for row in rows for end in ("value", "high") if row[end] is not None), default=0.0)
        best = next((row["value"] for row in rows if row["kind"] == "oracle" and row["value"] is not None), _number(self.document.get("bound")))
        return None if best is None or not most else f"{100 * best / most:.2f}"

    def dearest(self) -> list[dict[str, object]]:
        """The region-hours whose capacity is worth most: what one more unit there would save."""
        mu = (self.document.get("certificate") or {}).get("mu") or {}
        rows = sorted(zip(mu.get("price", []), mu.get("site", []), mu.get("hour", []), strict=False), reverse=True)
        return [{"site": self.names[site], "when": self.when(hour), "price": price} for price, site, hour in rows[:_DEAREST] if price > 0]

    def priced(self) -> int:
        """How many region-hours have a price at all."""
        return sum(price > 0 for price in ((self.document.get("certificate") or {}).get("mu") or {}).get("price", []))

    def when(self, hour: int) -> str:
        return f"{self.start + timedelta(hours=int(hour)):%Y-%m-%d %H:%M}"

    def sites(self) -> list[dict[str, object]]:
        """Each site's mean intensity, the mean of the hours chosen there weighted by energy, and its part of the work."""
        rows, whole = [], float(self.kw.sum())
        for name, grams, kw in zip(self.names, self.intensity, self.kw, strict=True):
            known = np.isfinite(grams)
            used = float(kw[known].sum())
            rows.append({"name": name, "mean": float(grams[known].mean()) if known.any() else None,
                         "chosen": float((kw[known] * grams[known]).sum() / used) if used else None,
                         "share": float(kw.sum()) / whole if whole else 0.0, "busy": int((kw > 0).sum()), "peak": float(kw.max()),
                         "missing": int((~known).sum())})
        return rows

    def data(self) -> dict[str, object]:
        """What the page's script draws: quantised arrays and one list a column of the job table."""
        sites, hours = self.intensity.shape
        step = -(-sites * hours // _CELLS)
        blocks = -(-hours // step)
        pad = blocks * step - hours

        def blocked(values: np.ndarray, fill: float) -> np.ndarray:
            return np.pad(values.astype(float), ((0, 0), (0, pad)), constant_values=fill).reshape(sites, blocks, step)

        with np.errstate(all="ignore"):
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)         # blocks without any figure
                grams = np.nanmean(blocked(self.intensity, np.nan), axis=2)
        return {
            "sites": self.names, "start": self.start.isoformat().replace("+00:00", "Z"), "step": step, "hours": blocks,
            "intensity": _packed(grams), "kw": _packed(blocked(self.kw, 0.0).mean(axis=2)), "count": _packed(blocked(self.count, 0.0).max(axis=2)),
            "jobs": {name: [getattr(job, name) for job in self.jobs] for name in _COLUMNS},
            "names": [[site, self.names[site]] for site in range(sites)],
        }


class _Job:
    """One job with what its schedule makes of it. `base` kg is what the document says that it emits at home, at once; None where it does not."""

    def __init__(self, number: int, job: object) -> None:
        self.name = str(_of(job, "name", "id", "job", default=f"job {number + 1}"))
        self.kw = float(_of(job, "kw", "power_kw", "power", default=0.0))
        self.release = int(_of(job, "release", default=0))
        self.base = _rounded(_number(_of(job, "baseline_kg", "naive_kg", "before_kg", default=None)))
        self.hours, self.where, self.first, self.last, self.wait = 0, [], None, None, None
        self.kwh: float | None = None
        self.kg: float | None = None

    def runs(self, site: int, hours: np.ndarray, grams: np.ndarray) -> None:
        """Take in hours [N] at a site, with PUE × intensity there in g per kWh of IT."""
        if not hours.size:
            return
        self.hours += int(hours.size)
        self.where = sorted({*self.where, site})
        self.first = int(hours.min()) if self.first is None else min(self.first, int(hours.min()))
        self.last = int(hours.max()) if self.last is None else max(self.last, int(hours.max()))
        self.wait = self.first - self.release
        self.kwh = _rounded((self.kwh or 0.0) + self.kw * int(hours.size))
        if np.isfinite(grams).all():
            self.kg = _rounded((self.kg or 0.0) + self.kw * float(grams.sum()) / 1000.0)


def _of(row: object, *names: str, default: object = ...) -> Any:
    """The first of `names` that a mapping has; a bare string or number is itself."""
    if not isinstance(row, dict):
        return row
    for name in names:
        if row.get(name) is not None:
            return row[name]
    if default is ...:
        raise KeyError(names[0])
    return default


def _number(value: Any) -> float | None:
    value = value.get("value") if isinstance(value, dict) else value
    return None if value is None or isinstance(value, bool | str) or not np.isfinite(value) else float(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _broken(row: object) -> str:
    broken = _of(row, "broken", "violations", default="") if isinstance(row, dict) else ""
    if not isinstance(broken, list | tuple):
        return str(broken)
    return "; ".join(map(str, broken[:1])) + (f" (and {len(broken) - 1} more)" if len(broken) > 1 else "")


def _moment(text: object) -> datetime:
    moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _pues(document: Any, sites: int, hours: int) -> np.ndarray:
    """PUE [R, T], from the document's own row of them or from its sites; 1 where it names none."""
    given = document.get("pue")
    if given is None:
        given = [_number(_of(site, "pue", default=1.0)) if isinstance(site, dict) else 1.0 for site in document["sites"]]
    rows = np.asarray(given, float)
    return np.broadcast_to(rows[:, None] if rows.ndim == 1 else rows, (sites, hours))


def _packed(values: np.ndarray) -> dict[str, object]:
    """[R, T] as base64 of little-endian 16-bit numbers times a scale; the highest number stands for a missing value."""
    known = np.isfinite(values)
    most = float(values[known].max()) if known.any() else 0.0
    low = min(0.0, float(values[known].min())) if known.any() else 0.0
    scale = (most - low) / (_MISSING - 1) or 1.0
    numbers = np.where(known, np.round((np.where(known, values, low) - low) / scale), _MISSING).astype("<u2")
    return {"scale": scale, "low": low, "base64": base64.b64encode(numbers.tobytes()).decode()}
