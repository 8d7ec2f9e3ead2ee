"""Hourly carbon intensity from a CSV file, on a grid of whole UTC hours. docs/intensity.md has the format.

A file is long (time, site, g_per_kwh) or wide (time and one column a site), hourly or finer, plain or gzipped. Nothing is made up in silence: what
was filled, resampled, missing or looks wrong is marked hour by hour and told in `notes`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from fourfold.carbon.parse import ABSENT, COMMENT, PLACES, SIGNALS, TIMES, VALUES, readings, unpacked
from fourfold.carbon.quality_flags import ANNUAL, ESTIMATED, FILLED, FORECAST, MISSING, PARTIAL, READ, STALE, SUSPECT
from fourfold.carbon.resample import ABSURD, KILOGRAMS, MOST, Cells, bridge, gridded, odd
from fourfold.carbon.timestamps import HOUR, aware, zoned
from fourfold.errors import InputError
from fourfold.folder import write
from fourfold.site import data as shipped
from fourfold.site import files, sigma, sources
from fourfold.units import Quantity

__all__ = ["ABSENT", "ABSURD", "ANNUAL", "ESTIMATED", "FILLED", "FORECAST", "KILOGRAMS", "MISSING", "MOST", "PARTIAL", "PLACES", "READ", "SIGNALS",
           "STALE", "SUSPECT", "TIMES", "VALUES", "Hours", "bundled", "from_readings", "read_hours"]

_WORDS = {FILLED: "filled", SUSPECT: "unlikely", PARTIAL: "from part of the hour", FORECAST: "forecast", STALE: "stale",
          ANNUAL: "annual average stands in", ESTIMATED: "estimated by the provider"}
_Z90 = 1.6448536269514722


@dataclass(frozen=True, eq=False)
class Hours:
    """Carbon intensity of R sites in T consecutive hours.

    `names` [R]; `start` the first hour's beginning, aware UTC, on the hour; `values` [R, T] float64 in gCO2e/kWh, NaN where missing; `signal` average
    or marginal; `source` where from; `marks` [R, T] uint8, a sum of FILLED, MISSING, SUSPECT, PARTIAL, FORECAST, STALE, ANNUAL (a year's average
    stands in) and ESTIMATED (by the provider), 0 where read as it is; `notes` what was done, in sentences; `sha256` of the file as it lay on disk.
    Raises InputError where the parts do not fit each other.
    """

    names: tuple[str, ...]
    start: datetime
    values: np.ndarray
    signal: str = "average"
    source: str = ""
    marks: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    notes: tuple[str, ...] = ()
    sha256: str = ""

    def __post_init__(self) -> None:
        values = np.array(self.values, np.float64)
        names = tuple(self.names)
        if values.ndim != 2 or values.shape[0] != len(names) or not values.size:
            raise InputError(f"Hours need values of shape [{len(names)} sites, hours], got {list(values.shape)}.", "Give one row of hours a site.")
        if len(set(names)) < len(names):
            raise InputError(f"A site is named twice: {', '.join(names)}.", "Give each site once.")
        if self.start.tzinfo is None or self.start.timestamp() % HOUR:
            raise InputError(f"Hours start at a whole hour with a time zone, got {self.start.isoformat()}.", "Example: 2022-05-01T00:00+00:00")
        if self.signal not in SIGNALS:
            raise InputError(f"{self.signal!r} is not a carbon signal.", "Use average or marginal.")
        marks = np.array(self.marks, np.uint8) if np.size(self.marks) else np.zeros(values.shape, np.uint8)
        if marks.shape != values.shape:
            raise InputError(f"Marks of shape {list(marks.shape)} do not fit values of {list(values.shape)}.", "Give one mark an hour and site.")
        marks[np.isnan(values)] |= MISSING
        values.setflags(write=False)
        marks.setflags(write=False)
        for name, made in (("names", names), ("start", self.start.astimezone(UTC)), ("values", values), ("marks", marks)):
            object.__setattr__(self, name, made)

    @property
    def end(self) -> datetime:
        """The end of the last hour."""
        return self.start + timedelta(hours=self.values.shape[1])

    @property
    def missing(self) -> int:
        """Cells without a value."""
        return int(np.isnan(self.values).sum())

    def index(self, when: datetime | str) -> int:
        """Which hour holds `when` (aware, or text with a zone or date alone for UTC midnight). Raises InputError outside the span."""
        moment = aware(when)
        hour = int((moment - self.start).total_seconds() // HOUR)
        if not 0 <= hour < self.values.shape[1]:
            raise InputError(f"{moment:%Y-%m-%d %H:%M} UTC is outside the hours on file.", f"They run from {_span(self)}.")
        return hour

    def window(self, start: datetime | str, end: datetime | str) -> Hours:
        """The hours from the one that holds `start` up to `end`, which is left out. Raises InputError outside the span or where nothing is left."""
        first, moment = self.index(start), aware(end)
        last = math.ceil((moment - self.start).total_seconds() / HOUR)
        if last <= first:
            raise InputError(f"The window from {start} to {end} is empty.", "Give an end after the start.")
        if last > self.values.shape[1]:
            raise InputError(f"{moment:%Y-%m-%d %H:%M} UTC is after the last hour on file.", f"The hours run from {_span(self)}.")
        return replace(self, start=self.start + timedelta(hours=first), values=self.values[:, first:last], marks=self.marks[:, first:last])

    def only(self, names: Iterable[str]) -> Hours:
        """Those sites, in that order. Raises InputError for one that is not here."""
        wanted = list(names)
        absent = [name for name in wanted if name not in self.names]
        if absent or not wanted:
            raise InputError(f"No hours for {', '.join(absent) or 'no site'}.", f"There are: {', '.join(self.names)}.")
        rows = [self.names.index(name) for name in wanted]
        return replace(self, names=tuple(wanted), values=self.values[rows], marks=self.marks[rows])

    def filled(self, most: int) -> Hours:
        """Missing runs of up to `most` hours between two known ones filled linearly and marked; never beyond the ends."""
        values, marks = self.values.copy(), self.marks.copy()
        done = sum(bridge(values[row], marks[row], most) for row in range(len(self.names)))
        note = (f"{done} missing hours were filled linearly (runs of up to {most}).",) if done else ()
        return replace(self, values=values, marks=marks, notes=self.notes + note)

    def climatology(self, zone: str = "UTC") -> np.ndarray:
        """Mean by hour of day, [R, 24] g/kWh, hour 0 being midnight in `zone`; NaN where an hour of day was never seen."""
        clock = np.array([moment.astimezone(zoned(zone)).hour for moment in _moments(self)])
        made = np.full((len(self.names), 24), np.nan)
        for hour in range(24):
            chosen = self.values[:, clock == hour]
            known = ~np.isnan(chosen)
            counts = known.sum(1)
            np.divide(np.where(known, chosen, 0.0).sum(1), counts, out=made[:, hour], where=counts > 0)
        return made

    def at(self, name: str, when: datetime | str) -> Quantity | None:
        """The intensity of a site in the hour that holds `when`; None where missing.

        The 90 % interval is 10 % (our choice), or an annual figure's where one stands in. Filled, forecast, estimated and stale hours are modelled.
        """
        row, hour = self.only([name]), self.index(when)
        value, mark = float(row.values[0, hour]), int(row.marks[0, hour])
        return None if math.isnan(value) else self._quantity(name, value, mark)

    def mean(self, name: str) -> Quantity | None:
        """The mean over all known hours of a site; None without one. 90 % interval of 10 %: the errors of hours are shared, so none average out."""
        known = self.only([name]).values[0]
        known = known[~np.isnan(known)]
        return self._quantity(name, float(known.mean()), int(np.bitwise_or.reduce(self.only([name]).marks[0]))) if known.size else None

    def describe(self) -> list[dict[str, object]]:
        """One row of statistics a site: hours, missing, filled, suspect; mean, min, p10, median, p90, max in g/kWh; swing.

        `swing` is the mean range of a whole day (UTC) over the mean; None without a whole day.
        """
        skip = -self.start.hour % 24
        days = self.values[:, skip : skip + (self.values.shape[1] - skip) // 24 * 24].reshape(len(self.names), -1, 24)   # whole days, UTC
        rows: list[dict[str, object]] = []
        for row, name in enumerate(self.names):
            known = self.values[row][~np.isnan(self.values[row])]
            marks = {"missing": MISSING, "filled": FILLED, "suspect": SUSPECT}
            counts = {word: int((self.marks[row] & mark > 0).sum()) for word, mark in marks.items()}
            shown: dict[str, float | None] = {word: None for word in ("mean", "min", "p10", "median", "p90", "max", "swing")}
            if known.size:
                low, tenth, middle, ninetieth, high = (float(value) for value in np.percentile(known, (0, 10, 50, 90, 100)))
                mean, whole = float(known.mean()), days[row][~np.isnan(days[row]).any(1)]
                swing = float(np.ptp(whole, axis=1).mean()) / mean if mean and whole.size else None
                shown = {"mean": mean, "min": low, "p10": tenth, "median": middle, "p90": ninetieth, "max": high, "swing": swing}
            rows.append({"site": name, "hours": self.values.shape[1], **counts, **shown})
        return rows

    def write(self, path: str | Path) -> Path:
        """Write the wide form that `read_hours` reads, gzipped where the name ends in .gz. Missing hours stay empty; marks are not kept."""
        file = Path(path)
        text = io.StringIO()
        text.write(f"# unit: gCO2e/kWh\n# signal: {self.signal}\n# source: {' '.join(self.source.split())}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["time_utc", *self.names])
        for hour, moment in enumerate(_moments(self)):
            writer.writerow([f"{moment:%Y-%m-%dT%H:%MZ}", *("" if math.isnan(value) else repr(float(value)) for value in self.values[:, hour])])
        data = text.getvalue().encode()
        return write(file, gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)

    def _quantity(self, name: str, value: float, mark: int) -> Quantity:
        annual = bool(mark & ANNUAL)
        grade = "assumed" if annual else "modelled" if mark & (FILLED | FORECAST | STALE | ESTIMATED) else "published"
        spread = math.exp(_Z90 * sigma(value)) if annual else 1.1
        low, high = (value / spread, value * spread) if annual else (value * 0.9, value * spread)
        words = [word for flag, word in _WORDS.items() if mark & flag]
        method = f"hourly {self.signal}" + (f" ({', '.join(words)})" if words else "")
        return Quantity(value, "gCO2e/kWh", grade, low, high, method=method, source=f"{self.source or 'hours'}:{name}", signal=self.signal)


def read_hours(ref: str | Path, fill: int = 3, *, zone: str | None = None, unit: str | None = None, signal: str | None = None,
               suspects: str = "keep", local: str | None = None, sites: Sequence[str] = ()) -> Hours:
    """Hours from a CSV file (`.gz` too), or the bundled set of that name ("eia-2022").

    `fill` is the longest run of missing hours filled linearly; `zone` the IANA zone of times without an offset, whatever the file says, and `local`
    the same where the file says none; `unit` and `signal` override or state what the file does not say; `suspects`: keep (marked) or drop (missing)
    values that a robust z-score finds unlikely; `sites` the columns to read of a wide file, or the one name of a series that has none. Raises
    InputError for unreadable or unfit files, naming the line: no unit, columns that are no sites, times without a zone, overlapping hours that
    differ, negative or absurd values.
    """
    if not isinstance(fill, int) or fill < 0:
        raise InputError(f"fill is a number of hours from 0 up, got {fill!r}.", "Example: fill=3")
    if suspects not in ("keep", "drop"):
        raise InputError(f"suspects is keep or drop, got {suspects!r}.", "keep marks unlikely values, drop takes them for missing.")
    if str(ref) in _bundles() and not Path(ref).exists():
        return bundled(str(ref), fill, suspects=suspects)
    path = Path(ref)
    try:
        data = path.read_bytes()
    except OSError as error:
        known = ", ".join(_bundles())
        raise InputError(f"Cannot read hours from {path}: {error.strerror or error}.", f"Give a CSV file, or a bundled set: {known}.") from None
    return _parsed(data, path.name, fill, zone, unit, signal, suspects, local, sites)


def bundled(name: str, fill: int = 3, *, suspects: str = "keep") -> Hours:
    """Hours that are shipped: "eia-2022", 8 US balancing areas in 2022, production average with life-cycle factors (docs/intensity.md).

    Raises InputError for another name, or where the file is not the one whose sha256 is on record.
    """
    known = _bundles()
    if name not in known:
        raise InputError(f"There are no bundled hours called {name!r}.", f"There are: {', '.join(known)}.")
    file, record, source = known[name]
    data = shipped(file)
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise InputError(f"The bundled hours {name} are not the file that was shipped.", "Install fourfold again.")
    return replace(_parsed(data, file, fill, None, "g/kWh", "average", suspects), source=f"{source['title']} ({source['licence']})")


def from_readings(name: str, seconds: Sequence[float], values: Sequence[float], *, signal: str, source: str, marks: Sequence[int] | None = None,
                  start: datetime | None = None, end: datetime | None = None, step: int | None = None, notes: Sequence[str] = (),
                  fill: int = 3) -> Hours:
    """Hours of one site from readings: `seconds` since 1970, `values` in g/kWh, `marks` of each; cut and padded to [start, end) where given.

    `step` is the readings' distance in seconds, found from them if left out. Raises InputError as `read_hours` does, and where nothing is left.
    """
    first, last = (edge and int(aware(edge).timestamp() // HOUR * HOUR) for edge in (start, end))
    kept = [index for index, second in enumerate(seconds) if (first is None or second >= first) and (last is None or second < last)]
    if not kept:
        raise InputError(f"{source} has no hours of {name} in that time.", "Ask for another time.")
    at, flags = [int(seconds[index]) for index in kept], [int(marks[index]) if marks else READ for index in kept]
    cells = Cells([name], at, [0] * len(kept), [float(values[index]) for index in kept], [index + 1 for index in kept], True, signal, list(notes))
    begin, grid, grades = gridded(cells, source, step)
    for second, flag in zip(at, flags, strict=True):
        grades[0, (second - int(begin.timestamp())) // HOUR] |= flag
    before = int(begin.timestamp() - first) // HOUR if first is not None else 0
    after = int(last - begin.timestamp()) // HOUR - grid.shape[1] if last is not None else 0
    room = ((0, 0), (before, max(0, after)))
    padded = np.pad(grid, room, constant_values=np.nan)
    made = Hours((name,), begin - timedelta(hours=before), padded, signal, source, np.pad(grades, room), tuple(cells.notes))
    return made.filled(fill)


def _bundles() -> dict[str, tuple[str, Mapping[str, object], Mapping[str, object]]]:
    return {file.partition(".")[0]: (file, record, sources()[record["source"]]) for file, record in files().items() if file.endswith(".csv.gz")}


def _parsed(data: bytes, name: str, fill: int, zone: str | None, unit: str | None, signal: str | None, suspects: str,
            local: str | None = None, sites: Sequence[str] = ()) -> Hours:
    lines = unpacked(data, name)
    facts = {found[1].lower(): found[2] for line in lines if (found := COMMENT.match(line))}
    if unit:
        facts["unit"] = unit
    if signal:
        facts["signal"] = signal
    if zone:
        facts["zone"] = zone
    if local:
        facts["local"] = local
    cells = readings(lines, name, facts, sites)
    made = gridded(cells, name)
    source = facts.get("source") or name
    hours = Hours(tuple(cells.names), made[0], made[1], cells.signal, source, made[2], tuple(cells.notes), hashlib.sha256(data).hexdigest())
    return _screened(hours, suspects).filled(fill)


def _screened(hours: Hours, suspects: str) -> Hours:
    """Unlikely values marked, or dropped.

    An hour's residual is its distance from the median of the 49 hours around it; the robust z-score divides that by 1.4826 times the median absolute
    residual of the site (the MAD, Rousseeuw and Croux 1993). Within 3 hours of a missing one, 6 is unlikely; elsewhere 15.
    """
    marks = hours.marks.copy()
    found: list[str] = []
    for row, name in enumerate(hours.names):
        unlikely = odd(hours.values[row])
        marks[row][unlikely] |= SUSPECT
        if unlikely.any():
            at = [f"{hours.start + timedelta(hours=int(hour)):%Y-%m-%d %H:%M}Z ({hours.values[row, hour]:g})" for hour in np.flatnonzero(unlikely)]
            found.append(f"{name}: {int(unlikely.sum())} unlikely value(s) {'kept' if suspects == 'keep' else 'dropped'}: {', '.join(at[:5])}"
                         f"{' …' if len(at) > 5 else ''}.")
    values = np.where(marks & SUSPECT, np.nan, hours.values) if suspects == "drop" else hours.values
    return replace(hours, values=values, marks=marks, notes=hours.notes + tuple(found))


def _moments(hours: Hours) -> list[datetime]:
    return [hours.start + timedelta(hours=hour) for hour in range(hours.values.shape[1])]


def _span(hours: Hours) -> str:
    return f"{hours.start:%Y-%m-%d %H:%M} to {hours.end:%Y-%m-%d %H:%M} UTC"
