"""From the text of an intensity file, long or wide, to its readings: columns, units, signals, and times by offset, zone and summer time."""

from __future__ import annotations

import csv
import gzip
import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from fourfold.errors import InputError
from fourfold.ingest.grid import Cells, spacing
from fourfold.ingest.moments import epoch, zoned
from fourfold.ingest.text import text as decoded

SIGNALS = ("average", "marginal")                                     # market-based figures are no intensity of a grid
TIMES = ("time", "timestamp", "datetime", "date_time", "time_utc", "timestamp_utc", "datetime_utc", "utc", "utc_time", "date", "start", "from",
         "period_start", "time_end", "hour_ending", "period_end", "time_local", "local_time", "point_time")   # fmt: skip
PLACES = ("site", "zone_id", "region", "zone", "area", "place", "grid", "zone_name", "country", "name", "balancing_area")   # the first that is there
VALUES = ("intensity", "value", "ci", "avg_ci")                        # and what begins with carbon_intensity or is a unit
ABSENT = ("", "nan", "na", "n/a", "null", "none", "-", "--")
_UNIT = re.compile(r"^(g|kg|lb|lbs|t)(co2(e|eq)?)?(per|/)?(kwh|mwh|gwh|mj)$")
_INTENSITY = re.compile(r"^carbon_?intensity(.*?)(avg|average|direct|life_?cycle|lca)?$")
_MASS = {"g": 1.0, "kg": 1e3, "lb": 453.59237, "lbs": 453.59237, "t": 1e6}
_ENERGY = {"kwh": 1.0, "mwh": 1e3, "gwh": 1e6, "mj": 1 / 3.6}
COMMENT = re.compile(r"^#\s*(unit|signal|source|zone|site|time)\s*[:=]\s*(.+?)\s*$", re.IGNORECASE)
_ZULU = re.compile(r"\s*(UTC|GMT|Z)$", re.IGNORECASE)


def unpacked(data: bytes, name: str) -> list[str]:
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


def readings(lines: Sequence[str], name: str, facts: Mapping[str, str]) -> Cells:
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
    cells = Cells([], [], [], [], [], layout.stated, "", [])
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
    step = spacing(cells)
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
        self.zone = zoned(said) if said else None
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
            self.last = (text, epoch(moment))
            return dict.fromkeys(places, self.last[1])
        if self.zone is None:
            raise InputError(f"{self.name}, line {line}: {text!r} has no time zone.",
                             "Say zone='Europe/Berlin' or zone='UTC', or write offsets: 13:00+02:00.")
        return {place: self._local(moment, line, place) for place in places}

    def _local(self, moment: datetime, line: int, place: str) -> int:
        first, second = (moment.replace(tzinfo=self.zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() == second.utcoffset():
            return epoch(first)
        if first.astimezone(UTC).astimezone(self.zone).replace(tzinfo=None) != moment:
            raise InputError(
                f"{self.name}, line {line}: {moment:%Y-%m-%d %H:%M} does not exist in {self.label}: the clocks went forward.",
                "If the file keeps one offset all year, say so: zone='UTC' or zone='+01:00'.",
            )
        times = self.seen[place, moment] = self.seen.get((place, moment), 0) + 1
        note = f"{moment:%Y-%m-%d %H} o'clock comes twice in {self.label}: the first reading is summer time, the second winter time."
        if note not in self.notes:
            self.notes.append(note)
        return epoch(first if times == 1 else second)


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
