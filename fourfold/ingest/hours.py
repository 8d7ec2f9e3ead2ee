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
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from fourfold.errors import InputError
from fourfold.ingest.text import text as decoded
from fourfold.site import data as shipped
from fourfold.site import files, sigma, sources
from fourfold.units import Quantity

SIGNALS = ("average", "marginal")                                     # market-based figures are no intensity of a grid
READ, FILLED, MISSING, SUSPECT, PARTIAL, FORECAST, STALE, ANNUAL, ESTIMATED = 0, 1, 2, 4, 8, 16, 32, 64, 128   # marks, added up
ABSURD = 5000.0                                                        # g/kWh: above any grid there is (oil in an old plant gives about 1,200)
KILOGRAMS = 2.0                                                        # g/kWh: a series that never rises above is rather in kg/kWh
MOST = 24 * 366 * 30                                                   # hours a file may span; more is a mistyped year
TIMES = ("time", "timestamp", "datetime", "date_time", "time_utc", "timestamp_utc", "datetime_utc", "utc", "utc_time", "date", "start", "from",
         "period_start", "time_end", "hour_ending", "period_end", "time_local", "local_time", "point_time")   # fmt: skip
PLACES = ("site", "zone_id", "region", "zone", "area", "place", "grid", "zone_name", "country", "name", "balancing_area")   # the first that is there
VALUES = ("intensity", "value", "ci", "avg_ci")                        # and what begins with carbon_intensity or is a unit
ABSENT = ("", "nan", "na", "n/a", "null", "none", "-", "--")
_UNIT = re.compile(r"^(g|kg|lb|lbs|t)(co2(e|eq)?)?(per|/)?(kwh|mwh|gwh|mj)$")
_INTENSITY = re.compile(r"^carbon_?intensity(.*?)(avg|average|direct|life_?cycle|lca)?$")
_MASS = {"g": 1.0, "kg": 1e3, "lb": 453.59237, "lbs": 453.59237, "t": 1e6}
_ENERGY = {"kwh": 1.0, "mwh": 1e3, "gwh": 1e6, "mj": 1 / 3.6}
_COMMENT = re.compile(r"^#\s*(unit|signal|source|zone|site|time)\s*[:=]\s*(.+?)\s*$", re.IGNORECASE)
_ZULU = re.compile(r"\s*(UTC|GMT|Z)$", re.IGNORECASE)
_HOUR = 3600
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
        if self.start.tzinfo is None or self.start.timestamp() % _HOUR:
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
        moment = _moment(when)
        hour = int((moment - self.start).total_seconds() // _HOUR)
        if not 0 <= hour < self.values.shape[1]:
            raise InputError(f"{moment:%Y-%m-%d %H:%M} UTC is outside the hours on file.", f"They run from {_span(self)}.")
        return hour

    def window(self, start: datetime | str, end: datetime | str) -> Hours:
        """The hours from the one that holds `start` up to `end`, which is left out. Raises InputError outside the span or where nothing is left."""
        first, moment = self.index(start), _moment(end)
        last = math.ceil((moment - self.start).total_seconds() / _HOUR)
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
        done = sum(_fill(values[row], marks[row], most) for row in range(len(self.names)))
        note = (f"{done} missing hours were filled linearly (runs of up to {most}).",) if done else ()
        return replace(self, values=values, marks=marks, notes=self.notes + note)

    def climatology(self, zone: str = "UTC") -> np.ndarray:
        """Mean by hour of day, [R, 24] g/kWh, hour 0 being midnight in `zone`; NaN where an hour of day was never seen."""
        clock = np.array([moment.astimezone(_zone(zone)).hour for moment in _moments(self)])
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

    def describe(self) -> list[dict[str, Any]]:
        """One row of statistics a site: hours, missing, filled, suspect; mean, min, p10, median, p90, max in g/kWh; swing.

        `swing` is the mean range of a whole day (UTC) over the mean; None without a whole day.
        """
        skip = -self.start.hour % 24
        days = self.values[:, skip : skip + (self.values.shape[1] - skip) // 24 * 24].reshape(len(self.names), -1, 24)   # whole days, UTC
        rows: list[dict[str, Any]] = []
        for row, name in enumerate(self.names):
            known = self.values[row][~np.isnan(self.values[row])]
            marks = {"missing": MISSING, "filled": FILLED, "suspect": SUSPECT}
            counts = {word: int((self.marks[row] & mark > 0).sum()) for word, mark in marks.items()}
            shown: dict[str, Any] = dict.fromkeys(("mean", "min", "p10", "median", "p90", "max", "swing"))
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
        file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
        return file

    def _quantity(self, name: str, value: float, mark: int) -> Quantity:
        annual = bool(mark & ANNUAL)
        grade = "assumed" if annual else "modelled" if mark & (FILLED | FORECAST | STALE | ESTIMATED) else "published"
        spread = math.exp(_Z90 * sigma(value)) if annual else 1.1
        low, high = (value / spread, value * spread) if annual else (value * 0.9, value * spread)
        words = [word for flag, word in _WORDS.items() if mark & flag]
        method = f"hourly {self.signal}" + (f" ({', '.join(words)})" if words else "")
        return Quantity(value, "gCO2e/kWh", grade, low, high, method=method, source=f"{self.source or 'hours'}:{name}", signal=self.signal)


def read_hours(ref: str | Path, fill: int = 3, *, zone: str | None = None, unit: str | None = None, signal: str | None = None,
               suspects: str = "keep") -> Hours:
    """Hours from a CSV file (`.gz` too), or the bundled set of that name ("eia-2022").

    `fill` is the longest run of missing hours filled linearly; `zone` the IANA zone of times without an offset; `unit` and `signal` override or state
    what the file does not say; `suspects`: keep (marked) or drop (missing) values that a robust z-score finds unlikely. Raises InputError for
    unreadable or unfit files, naming the line: times without a zone, overlapping hours that differ, negative or absurd values, likely kilograms.
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
    return _parsed(data, path.name, fill, zone, unit, signal, suspects)


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
    first, last = (edge and int(_moment(edge).timestamp() // _HOUR * _HOUR) for edge in (start, end))
    kept = [index for index, second in enumerate(seconds) if (first is None or second >= first) and (last is None or second < last)]
    if not kept:
        raise InputError(f"{source} has no hours of {name} in that time.", "Ask for another time.")
    at, flags = [int(seconds[index]) for index in kept], [int(marks[index]) if marks else READ for index in kept]
    cells = _Cells([name], at, [0] * len(kept), [float(values[index]) for index in kept], [index + 1 for index in kept], True, signal, list(notes))
    begin, grid, grades = _gridded(cells, source, step)
    for second, flag in zip(at, flags, strict=True):
        grades[0, (second - int(begin.timestamp())) // _HOUR] |= flag
    before = int(begin.timestamp() - first) // _HOUR if first is not None else 0
    after = int(last - begin.timestamp()) // _HOUR - grid.shape[1] if last is not None else 0
    room = ((0, 0), (before, max(0, after)))
    padded = np.pad(grid, room, constant_values=np.nan)
    made = Hours((name,), begin - timedelta(hours=before), padded, signal, source, np.pad(grades, room), tuple(cells.notes))
    return made.filled(fill)


# ---- from text to cells --------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Cells:
    """Readings as they come: seconds since 1970, site number, g/kWh (NaN where absent) and the line."""

    names: list[str]
    seconds: list[int]
    sites: list[int]
    values: list[float]
    lines: list[int]
    stated: bool                                                       # the unit was said by a person, so values near zero are believed
    signal: str
    notes: list[str]


def _bundles() -> dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    return {file.partition(".")[0]: (file, record, sources()[record["source"]]) for file, record in files().items() if file.endswith(".csv.gz")}


def _parsed(data: bytes, name: str, fill: int, zone: str | None, unit: str | None, signal: str | None, suspects: str) -> Hours:
    lines = _lines(data, name)
    facts = {found[1].lower(): found[2] for line in lines if (found := _COMMENT.match(line))}
    if unit:
        facts["unit"] = unit
    if signal:
        facts["signal"] = signal
    if zone:
        facts["zone"] = zone
    cells = _cells(lines, name, facts)
    made = _gridded(cells, name)
    source = facts.get("source") or name
    hours = Hours(tuple(cells.names), made[0], made[1], cells.signal, source, made[2], tuple(cells.notes), hashlib.sha256(data).hexdigest())
    return _screened(hours, suspects).filled(fill)


def _lines(data: bytes, name: str) -> list[str]:
    """Text lines of a plain or gzipped file. Raises InputError for what is no Unicode text, empty or truncated."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise InputError(f"{name} is a damaged or truncated gzip file.", "Fetch or compress it again.") from None
    text = decoded(data, name)
    if not text.strip():
        raise InputError(f"{name} is empty.", "Expected a header such as time,site,g_per_kwh and a line an hour.")
    return text.splitlines()


def _cells(lines: Sequence[str], name: str, facts: Mapping[str, str]) -> _Cells:
    rows = _rows(lines, name)
    _, header = next(rows, (0, []))
    keys = [_key(cell) for cell in header]
    times = [index for index, key in enumerate(keys) if key in TIMES] or [0] * (keys[:1] == [""])   # pandas leaves the name of its index empty
    if "hour" in keys and "date" in keys:
        raise InputError(f"{name} has the date and the hour in two columns.", "Join them to one: 2022-05-01T13:00Z.")
    if not times:
        raise InputError(f"{name} has no time column; its columns are {', '.join(header)}.", "Call it time: time,site,g_per_kwh or time,SITE,SITE…")
    if len({cell.strip() for cell in header}) < len(header):
        raise InputError(f"{name} has two columns of the same name: {', '.join(header)}.", "Give each site one column.")
    clock = _Clock(keys[times[0]], facts, name)
    layout = _Layout(header, keys, times[0], facts, name)
    cells = _Cells([], [], [], [], [], layout.stated, "", [])
    numbers: dict[str, int] = {}
    signals: dict[str, int] = {}
    body = list(rows)
    if len(body) > 1 and body[0][1][times[0]] > body[-1][1][times[0]]:   # newest first: the order tells the two hours of one name apart in autumn
        body.reverse()
    for line, row in body:
        here = list(layout.read(row, line))
        moment = clock.read(row[times[0]], line, [place for place, *_ in here])
        for place, value, said in here:
            signals.setdefault(said, line)
            cells.seconds.append(moment[place])
            cells.sites.append(numbers.setdefault(place, len(numbers)))
            cells.values.append(value)
            cells.lines.append(line)
    if not cells.seconds:
        raise InputError(f"{name} has a header but no hours.", "Expected a line an hour.")
    cells.names = list(numbers)
    cells.signal = _one_signal(signals, facts, name)
    cells.notes += [*layout.notes, *clock.notes]
    step = _step(cells)
    if clock.ending:
        cells.seconds = [second - step for second in cells.seconds]
        cells.notes.append("Times mark the end of their period and were moved to its start.")
    return cells


def _rows(lines: Sequence[str], name: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the header and each row after it, comments and blank lines left out. Raises InputError for rows of another length."""
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    head = kept[0][1] if kept else ""
    mark = "," if "," in head else ";" if ";" in head else "\t"
    width = 0
    for number, line in kept:
        try:
            row = next(csv.reader([line], delimiter=mark, strict=True)) if '"' in line else line.split(mark)
        except (csv.Error, StopIteration):
            raise InputError(f"{name}, line {number}: not a line of CSV.", "Quote cells that hold quotes or line breaks.") from None
        width = width or len(row)
        if len(row) != width:
            raise InputError(f"{name}, line {number}: {len(row)} cells, but the header has {width}.", "Give every line one cell a column.")
        yield number, [cell.replace(",", ".") for cell in row] if mark == ";" else row   # a semicolon file writes 345,6


class _Clock:
    """Reads times into seconds since 1970. `ending`: they mark the end of a period."""

    def __init__(self, key: str, facts: Mapping[str, str], name: str) -> None:
        self.name = name
        self.notes: list[str] = []
        said = facts.get("zone") or ("UTC" if "utc" in key else None)
        self.zone = _zone(said) if said else None
        self.label = said or ""
        self.ending = "end" in key or "end" in facts.get("time", "").lower()
        self.aware: bool | None = None
        self.seen: dict[tuple[str, datetime], int] = {}
        self.last: tuple[str, int] = ("", 0)                           # of times with an offset: a long file repeats each for every site

    def read(self, text: str, line: int, places: Sequence[str]) -> dict[str, int]:
        """Seconds by site; they differ in the hour that summer time's end repeats, where some sites are at their second reading."""
        if text == self.last[0]:
            return dict.fromkeys(places, self.last[1])
        words = text.strip()
        try:
            moment = datetime.fromisoformat(_ZULU.sub("+00:00", words) if words[-1:] in "TtCcZz" else words)
        except ValueError:
            raise InputError(f"{self.name}, line {line}: {text!r} is not a time.", "Write 2022-05-01T13:00Z, or 2022-05-01T13:00+02:00.") from None
        if self.aware is None:
            self.aware = moment.tzinfo is not None
        if self.aware != (moment.tzinfo is not None):
            raise InputError(f"{self.name}, line {line}: some times have an offset from UTC and some have none.", "Give all of them one, or none.")
        if moment.tzinfo is not None:
            self.last = (text, _seconds(moment))
            return dict.fromkeys(places, self.last[1])
        if self.zone is None:
            raise InputError(f"{self.name}, line {line}: {text!r} has no time zone.",
                             "Say zone='Europe/Berlin' or zone='UTC', or write offsets: 13:00+02:00.")
        return {place: self._local(moment, line, place) for place in places}

    def _local(self, moment: datetime, line: int, place: str) -> int:
        first, second = (moment.replace(tzinfo=self.zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() == second.utcoffset():
            return _seconds(first)
        if first.astimezone(UTC).astimezone(self.zone).replace(tzinfo=None) != moment:
            raise InputError(
                f"{self.name}, line {line}: {moment:%Y-%m-%d %H:%M} does not exist in {self.label}: the clocks went forward.",
                "If the file keeps one offset all year, say so: zone='UTC' or zone='+01:00'.",
            )
        times = self.seen[place, moment] = self.seen.get((place, moment), 0) + 1
        note = f"{moment:%Y-%m-%d %H} o'clock comes twice in {self.label}: the first reading is summer time, the second winter time."
        if note not in self.notes:
            self.notes.append(note)
        return _seconds(first if times == 1 else second)


class _Layout:
    """Where the sites and values of a row are: long or wide."""

    def __init__(self, header: Sequence[str], keys: Sequence[str], time: int, facts: Mapping[str, str], name: str) -> None:
        self.name = name
        self.notes: list[str] = []
        extra = {word: keys.index(word) for word in ("unit", "signal") if word in keys}
        figures = [index for index in range(len(keys)) if index not in (time, *extra.values()) and not (index == 0 and not keys[0])]
        places = sorted((index for index in figures if keys[index] in PLACES), key=lambda index: PLACES.index(keys[index]))
        sure = [index for index in figures if _INTENSITY.match(keys[index]) or _scale(keys[index]) is not None]
        values = self._one_basis(sure, keys) or [index for index in figures if keys[index] in VALUES]
        self.unit, self.signal = extra.get("unit"), extra.get("signal")
        self.stated = "unit" in facts or self.unit is not None
        self.place = places[0] if places else None
        if not figures:
            raise InputError(f"{name} has times but no values.", "Add a column a site, or the columns site and g_per_kwh.")
        if self.place is not None and len(values) != 1:
            raise InputError(f"{name} has a column of sites but {len(values) or 'no'} columns of values.", "Expected time,site,g_per_kwh.")
        lone_value = len(figures) == len(values) == 1 or (not places and sure and len(values) == 1)
        chosen = values if self.place is not None or lone_value else figures
        if lone_value and len(figures) > 1:
            unused = ", ".join(header[index].strip() for index in figures if index not in values)
            self.notes.append(f"Columns that were not used: {unused}.")
        lone = facts.get("site", "site") if self.place is None and chosen == values else ""
        self.columns = [(index, lone or header[index].strip(), _known_scale(facts, keys[index], name)) for index in chosen]
        if self.place is None and not all(title for _, title, _ in self.columns):
            raise InputError(f"{name} has a column without a name.", "Name every column after its site.")

    def _one_basis(self, values: list[int], keys: Sequence[str]) -> list[int]:
        """Of columns that differ in what they count, the life-cycle one."""
        cycle = [index for index in values if re.search(r"life_?cycle|lca", keys[index])]
        if len(values) > 1 and len(cycle) == 1:
            self.notes.append("Of the columns of intensity the life-cycle one was read.")
            return cycle
        return values

    def read(self, row: Sequence[str], line: int) -> Iterable[tuple[str, float, str]]:
        """(site, g/kWh, signal) of each value of a row."""
        said = row[self.signal].strip().lower() if self.signal is not None else ""
        for index, title, scale in self.columns:
            if self.place is not None:
                title = row[self.place].strip()
                if not title:
                    raise InputError(f"{self.name}, line {line}: the site is empty.", "Name the site of every line.")
            if self.unit is not None:
                scale = _known_scale({"unit": row[self.unit]}, "", f"{self.name}, line {line}")
            yield title, self._number(row[index], line, title) * scale, said

    def _number(self, text: str, line: int, title: str) -> float:
        word = text.strip()
        if word.lower() in ABSENT:
            return math.nan
        try:
            value = float(word)
        except ValueError:
            raise InputError(f"{self.name}, line {line}: {word!r} of {title} is not a number.",
                             "Write it bare, with a decimal point, and its unit in the header; leave a missing hour empty.") from None
        if math.isinf(value):
            raise InputError(f"{self.name}, line {line}: {word!r} of {title} is not an intensity.", "Leave a missing hour empty.")
        if value < 0:
            raise InputError(f"{self.name}, line {line}: {title} has {word}, and a carbon intensity is not negative.", "Leave a missing hour empty.")
        return value


def _key(cell: str) -> str:
    """A column's name for comparison: lower case, underscores for spaces and brackets, plain digits."""
    return re.sub(r"[\s_()\[\]]+", "_", unicodedata.normalize("NFKC", cell).strip().lower()).strip("_")


def _scale(text: str) -> float | None:
    """What one of a unit such as kgCO2e/MWh, g_per_kwh or carbon_intensity_gco2eq/kwh_direct is in g/kWh; None where there is no such unit."""
    named = _INTENSITY.match(_key(text))
    found = _UNIT.match(re.sub(r"[\s_()\[\]-]", "", named[1] if named else unicodedata.normalize("NFKC", text).lower()))
    return _MASS[found[1]] / _ENERGY[found[5]] if found else None


def _known_scale(facts: Mapping[str, str], key: str, name: str) -> float:
    if "unit" not in facts:
        return _scale(key) or 1.0                                      # documented: g/kWh unless the file says otherwise
    scale = _scale(facts["unit"])
    if scale is None:
        raise InputError(f"{name}: {facts['unit']!r} is not a unit of carbon intensity.", "Use g/kWh, kg/kWh, kg/MWh, lb/MWh, t/MWh or g/MJ.")
    return scale


def _one_signal(seen: Mapping[str, int], facts: Mapping[str, str], name: str) -> str:
    said = {facts["signal"].strip().lower()} if "signal" in facts else {word or "average" for word in seen}
    if len(said) > 1:
        raise InputError(f"{name} mixes the signals {' and '.join(sorted(said))}.",
                         "Average and marginal intensity answer different questions: give each a file.")
    if not said <= set(SIGNALS):
        raise InputError(f"{name}: {said.pop()!r} is not a carbon signal.", "Use average or marginal.")
    return said.pop()


# ---- from cells to hours -------------------------------------------------------------------------------------------------------------------------


def _lasting(seconds: np.ndarray, sites: np.ndarray, step: int) -> np.ndarray:
    """How long each reading stands, in seconds: its distance to the nearer neighbour of its site where that divides the hour, else `step`.

    So a series that turns from hours to quarters of an hour midway is read right. `seconds` in order within each site.
    """
    ahead = np.where(np.diff(sites, append=-1) == 0, np.diff(seconds, append=0), MOST * _HOUR)
    nearer = np.minimum(ahead, np.concatenate(([MOST * _HOUR], ahead[:-1])))
    return np.where((nearer <= _HOUR) & (_HOUR % np.maximum(nearer, 1) == 0), nearer, step)


def _step(cells: _Cells) -> int:
    """The commonest distance between readings of a site, in seconds."""
    seconds, sites = np.array(cells.seconds, np.int64), np.array(cells.sites)
    gaps = np.concatenate([np.diff(np.unique(seconds[sites == number])) for number in range(len(cells.names))])
    if not gaps.size:
        return _HOUR
    sizes, counts = np.unique(gaps, return_counts=True)
    return int(sizes[np.argmax(counts)])


def _gridded(cells: _Cells, name: str, step: int | None = None) -> tuple[datetime, np.ndarray, np.ndarray]:
    """First hour, values [R, T] and marks [R, T]: means over the readings within each hour."""
    seconds, sites = np.array(cells.seconds, np.int64), np.array(cells.sites)
    values, lines = np.array(cells.values), np.array(cells.lines)
    _check_values(cells, values, name)
    _check_span(int(seconds.min()), int(seconds.max()), name)
    told, step = step, step or _step(cells)
    if step > _HOUR or _HOUR % step:
        every = f"{step / _HOUR:g} h" if step > _HOUR else f"{step / 60:g} min"
        raise InputError(f"{name} has one value each {every}.", "Expected hourly values, or a step that divides the hour: 5, 10, 15, 20 or 30 min.")
    seconds, sites, values = _once(seconds, sites, values, lines, cells, name)
    hours = seconds // _HOUR
    first, count = int(hours.min()), int(hours.max() - hours.min()) + 1
    shape = (len(cells.names), count)
    known = ~np.isnan(values)
    place = (sites[known], hours[known] - first)
    lasts = np.full(seconds.shape, step) if told else _lasting(seconds, sites, step)
    total, seen = np.zeros(shape), np.zeros(shape)
    weights = lasts[known] / _HOUR                                     # 1 for a whole hour: its value comes through to the last bit
    np.add.at(total, place, values[known] * weights)
    np.add.at(seen, place, weights)
    grid = np.divide(total, seen, out=np.full(shape, np.nan), where=seen > 0.5 - 1e-9)
    marks = np.where((seen < 1 - 1e-9) & ~np.isnan(grid), PARTIAL, READ).astype(np.uint8)
    finer = sorted({int(size) for size in lasts if size < _HOUR})
    if finer:
        every = " or ".join(f"{size / 60:g}" for size in finer)
        cells.notes.append(f"Readings every {every} min were averaged over each hour; an hour with less than half of them is missing.")
    elif np.any(seconds % _HOUR):
        cells.notes.append("Times within an hour were taken for the hour that holds them.")
    absent = int(np.isnan(grid).sum())
    if absent:
        cells.notes.append(f"{absent} of {grid.size} hours are missing in the file.")
    return datetime.fromtimestamp(first * _HOUR, UTC), grid, marks


def _check_span(first: int, last: int, name: str) -> None:
    if last - first > MOST * _HOUR:
        years = (last - first) / _HOUR / 8766
        ends = [datetime.fromtimestamp(edge, UTC) for edge in (first, last)]
        raise InputError(f"{name} spans {years:.0f} years, from {ends[0]:%Y-%m-%d} to {ends[1]:%Y-%m-%d}.",
                         "Look for a mistyped year, or split the file.")


def _check_values(cells: _Cells, values: np.ndarray, name: str) -> None:
    worst = int(np.nanargmax(values)) if not np.isnan(values).all() else -1
    if worst < 0:
        raise InputError(f"{name} holds no value at all.", "Expected numbers in g/kWh.")
    if values[worst] > ABSURD:
        title = cells.names[cells.sites[worst]]
        raise InputError(f"{name}, line {cells.lines[worst]}: {title} has {values[worst]:g} g/kWh, more than any grid.",
                         "State the unit of the file, such as unit='kg/MWh', or leave the hour empty.")
    if cells.stated:
        return
    sites = np.array(cells.sites)
    for number, title in enumerate(cells.names):
        known = values[sites == number]
        known = known[~np.isnan(known)]
        if known.size and known.max() <= KILOGRAMS:
            raise InputError(f"{name}: {title} never rises above {known.max():g} g/kWh, which looks like kilograms.",
                             "Say unit='kg/kWh' if it is, or unit='g/kWh' if it is not.")


def _once(seconds: np.ndarray, sites: np.ndarray, values: np.ndarray, lines: np.ndarray, cells: _Cells,
          name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Readings in order, each site and time once. Raises InputError where two readings of one time differ."""
    order = np.lexsort((np.isnan(values), seconds, sites))             # of two readings the one with a value comes first
    seconds, sites, values, lines = (array[order] for array in (seconds, sites, values, lines))
    again = np.concatenate(([False], (np.diff(seconds) == 0) & (np.diff(sites) == 0)))
    if again.any():
        for index in np.flatnonzero(again):
            if not np.isnan(values[index]) and values[index] != values[index - 1]:
                moment = datetime.fromtimestamp(int(seconds[index]), UTC)
                raise InputError(
                    f"{name}: lines {min(lines[index - 1 : index + 1])} and {max(lines[index - 1 : index + 1])} give {cells.names[sites[index]]} "
                    f"{values[index - 1]:g} and {values[index]:g} g/kWh for the same time, {moment:%Y-%m-%d %H:%M} UTC.", "Keep one of them.")
            values[index] = values[index - 1] if np.isnan(values[index]) else values[index]
        cells.notes.append(f"{int(again.sum())} readings come twice with the same value and were taken once.")
    return seconds[~again], sites[~again], values[~again]


def _fill(values: np.ndarray, marks: np.ndarray, most: int) -> int:
    """Fill runs of NaN of up to `most` between known hours, in place; how many hours that were."""
    known = np.flatnonzero(~np.isnan(values))
    done = 0
    for before, after in zip(known[:-1], known[1:], strict=True):
        run = after - before - 1
        if 0 < run <= most:
            inside = np.arange(before + 1, after)
            values[inside] = np.interp(inside, [before, after], [values[before], values[after]])
            marks[inside] = (marks[inside] & ~np.uint8(MISSING)) | FILLED
            done += int(run)
    return done


def _screened(hours: Hours, suspects: str) -> Hours:
    """Unlikely values marked, or dropped.

    An hour's residual is its distance from the median of the 49 hours around it; the robust z-score divides that by 1.4826 times the median absolute
    residual of the site (the MAD, Rousseeuw and Croux 1993). Within 3 hours of a missing one, 6 is unlikely; elsewhere 15.
    """
    marks = hours.marks.copy()
    found: list[str] = []
    for row, name in enumerate(hours.names):
        unlikely = _unlikely(hours.values[row])
        marks[row][unlikely] |= SUSPECT
        if unlikely.any():
            at = [f"{hours.start + timedelta(hours=int(hour)):%Y-%m-%d %H:%M}Z ({hours.values[row, hour]:g})" for hour in np.flatnonzero(unlikely)]
            found.append(f"{name}: {int(unlikely.sum())} unlikely value(s) {'kept' if suspects == 'keep' else 'dropped'}: {', '.join(at[:5])}"
                         f"{' …' if len(at) > 5 else ''}.")
    values = np.where(marks & SUSPECT, np.nan, hours.values) if suspects == "drop" else hours.values
    return replace(hours, values=values, marks=marks, notes=hours.notes + tuple(found))


def _unlikely(values: np.ndarray, half: int = 24, reach: int = 3) -> np.ndarray:
    known = ~np.isnan(values)
    if known.sum() < 2 * half:
        return np.zeros(values.shape, bool)                            # too short to say what is usual
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    residual = np.zeros(values.shape)
    residual[known] = np.abs(values[known] - np.nanmedian(windows[known], axis=1))
    scale = max(1.4826 * float(np.median(residual[known])), 0.02 * float(np.median(values[known])), 1e-9)
    gaps = np.convolve(~known, np.ones(2 * reach + 1), "same") > 0
    return known & (residual / scale > np.where(gaps, 6.0, 15.0))


# ---- times ---------------------------------------------------------------------------------------------------------------------------------------


def _zone(name: str) -> tzinfo:
    words = name.strip()
    if words.upper() in ("UTC", "Z", "GMT"):
        return UTC
    offset = re.fullmatch(r"(?:UTC|GMT)?([+-])(\d{1,2}):?(\d{2})?", words)
    if offset:
        return timezone((1 if offset[1] == "+" else -1) * timedelta(hours=int(offset[2]), minutes=int(offset[3] or 0)))
    try:
        return ZoneInfo(words)
    except (KeyError, ValueError, OSError):
        raise InputError(f"There is no time zone called {name!r}.", "Use an IANA name such as Europe/Berlin, UTC, or an offset: +01:00.") from None


def _seconds(moment: datetime) -> int:
    return math.floor(moment.timestamp())


def _moment(when: datetime | str) -> datetime:
    """An aware time in UTC. A date alone is its midnight in UTC. Raises InputError for a time of day without a zone."""
    moment: datetime
    if isinstance(when, datetime):
        moment = when
    else:
        try:
            moment = datetime.fromisoformat(re.sub(r"Z$", "+00:00", when.strip()))
        except (ValueError, AttributeError):
            raise InputError(f"{when!r} is not a time.", "Write 2022-05-01T13:00Z.") from None
        if len(when.strip()) == len("2022-05-01"):
            moment = moment.replace(tzinfo=UTC)
    if moment.tzinfo is None:
        raise InputError(f"{when} has no time zone.", "Write 2022-05-01T13:00Z, or with an offset.")
    return moment.astimezone(UTC)


def _moments(hours: Hours) -> list[datetime]:
    return [hours.start + timedelta(hours=hour) for hour in range(hours.values.shape[1])]


def _span(hours: Hours) -> str:
    return f"{hours.start:%Y-%m-%d %H:%M} to {hours.end:%Y-%m-%d %H:%M} UTC"
