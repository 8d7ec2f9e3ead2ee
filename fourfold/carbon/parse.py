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

from fourfold.carbon.exports import Export, no_site, rate, recognised
from fourfold.carbon.resample import Cells, spacing
from fourfold.carbon.timestamps import epoch, zoned
from fourfold.errors import InputError
from fourfold.text import shown
from fourfold.text import text as decoded
from fourfold.units.parse import size_of

SIGNALS = ("average", "marginal")                                     # market-based figures are no intensity of a grid
TIMES = ("time", "timestamp", "datetime", "date_time", "time_utc", "timestamp_utc", "datetime_utc", "utc", "utc_time", "date", "start", "from",
         "period_start", "time_end", "hour_ending", "period_end", "time_local", "local_time", "point_time")   # fmt: skip
PLACES = ("site", "zone_id", "region", "zone", "area", "place", "grid", "zone_name", "country", "name", "balancing_area")   # the first that is there
VALUES = ("intensity", "value", "ci", "avg_ci")                        # and what begins with carbon_intensity or is a unit
ABSENT = ("", "nan", "na", "n/a", "null", "none", "-", "--")
_UNIT = re.compile(r"^(g|kg|lb|lbs|t)(co2(e|eq)?)?(per|/)?(kwh|mwh|gwh|mj)$")
_INTENSITY = re.compile(r"^carbon_?intensity(.*?)(avg|average|direct|life_?cycle|lca)?$")
COMMENT = re.compile(r"^#\s*(unit|signal|source|zone|site|time)\s*[:=]\s*(.+?)\s*$", re.IGNORECASE)
_ENDING = re.compile(r"_((?:g|kg|lbs?|t)_?(?:co2_?(?:eq?)?)?_?(?:per|/)_?(?:kwh|mwh|gwh|mj))$")
_TITLED = re.compile(r"^(.+?)[\s_]*[\[(]?(?:g|kg|lbs?|t)[\s_]*(?:co2(?:eq?)?)?[\s_]*(?:per|/)[\s_]*(?:kwh|mwh|gwh|mj)[\])]?$", re.IGNORECASE)
_MORE_TIMES = ("to", "end", "until", "updatedat", "createdat", "updated_at", "created_at", "generated_at", "last_updated",
               "datetime_local", "local_datetime", "timestamp_local", "local_timestamp")   # beside the one to read
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


def readings(lines: Sequence[str], name: str, facts: Mapping[str, str], sites: Sequence[str] = ()) -> Cells:
    """The readings of a file's lines. `facts`: what a person or its comments say (unit, signal, zone, "local": the zone of times that say none);
    `sites`: columns to read of a wide file, where it has them all. Raises InputError naming line and column."""
    rows = _rows(lines, name)
    _, header = next(rows, (0, []))
    keys = [_key(cell) for cell in header]
    times = [index for index, key in enumerate(keys) if key in TIMES] or [0] * (keys[:1] == [""])   # pandas leaves the name of its index empty
    if "hour" in keys and "date" in keys:
        raise InputError(f"{name} has the date and the hour in two columns.", "Join them to one: 2022-05-01T13:00Z.")
    if not times:
        raise InputError(f"{name} has no time column among its {len(header)}.", "Call it time: time,site,g_per_kwh or time,SITE,SITE…")
    if len({cell.strip() for cell in header}) < len(header):
        raise InputError(f"{name} has two columns of the same name.", "Give each site one column.")
    time = next((index for index in times if "utc" in keys[index]), times[0])
    clock = _Clock(keys[time], facts, name)
    named = {cell.strip().casefold() for cell in header}
    layout = _Layout(header, keys, time, facts, name, sites if len(sites) == 1 or all(site.casefold() in named for site in sites) else ())
    cells = Cells([], [], [], [], [], "unit" in facts, "", [])
    numbers: dict[str, int] = {}
    signals: dict[str, int] = {}
    body = list(rows)
    if len(body) > 1 and body[0][1][time] > body[-1][1][time]:   # newest first: the order tells the two hours of one name apart in autumn
        body.reverse()
    for line, row in body:
        here = list(layout.read(row, line))
        moment = clock.read(row[time], line, [place for place, *_ in here])
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
    if layout.said is not None and layout.said.least and not cells.stated:
        _above(cells, layout.said, name)
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
        said = facts.get("zone") or ("UTC" if "utc" in key else None) or facts.get("local")
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
            said = f"{self.name}, line {line}: the time is {shown(text)}, which is none."
            raise InputError(said, "Write 2022-05-01T13:00Z, or 2022-05-01T13:00+02:00.") from None
        if self.aware is None:
            self.aware = moment.tzinfo is not None
        if self.aware != (moment.tzinfo is not None):
            raise InputError(f"{self.name}, line {line}: some times have an offset from UTC and some have none.", "Give all of them one, or none.")
        if moment.tzinfo is not None:
            self.last = (text, epoch(moment))
            return dict.fromkeys(places, self.last[1])
        if self.zone is None:
            raise InputError(f"{self.name}, line {line}: {shown(text)} has no time zone.",
                             "Say it: --zone Europe/Berlin or --zone UTC, a first line '# zone: UTC' in the file, or offsets: 13:00+02:00.")
        return {place: self._local(moment, line, place) for place in places}

    def _local(self, moment: datetime, line: int, place: str) -> int:
        first, second = (moment.replace(tzinfo=self.zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() == second.utcoffset():
            return epoch(first)
        if first.astimezone(UTC).astimezone(self.zone).replace(tzinfo=None) != moment:
            raise InputError(
                f"{self.name}, line {line}: {moment:%Y-%m-%d %H:%M} does not exist in {self.label}: the clocks went forward.",
                "If the file keeps one offset all year, say so in its first line: '# zone: UTC' or '# zone: +01:00'.",
            )
        times = self.seen[place, moment] = self.seen.get((place, moment), 0) + 1
        note = f"{moment:%Y-%m-%d %H} o'clock comes twice in {self.label}: the first reading is summer time, the second winter time."
        if note not in self.notes:
            self.notes.append(note)
        return epoch(first if times == 1 else second)


class _Layout:
    """Where the sites and values of a row are: long or wide, or as a known maker exports them (`exports.py`)."""

    def __init__(self, header: Sequence[str], keys: Sequence[str], time: int, facts: Mapping[str, str], name: str, sites: Sequence[str] = ()) -> None:
        self.name = name
        self.notes: list[str] = []
        self.said: Export | None = None
        extra = {word: keys.index(word) for word in ("unit", "signal") if word in keys}
        self.unit, self.signal = extra.get("unit"), extra.get("signal")
        clocks = [index for index, key in enumerate(keys) if key in TIMES or key in _MORE_TIMES]
        bare = [index for index, key in enumerate(keys[:1]) if not key or re.fullmatch(r"unnamed:?_*\d+", key)]   # pandas' index
        figures = [index for index in range(len(keys)) if index not in (time, *clocks, *bare, *extra.values())]
        if not figures:
            raise InputError(f"{name} has times but no values.", "Add a column a site, or the columns site and g_per_kwh.")
        titles = [header[index].strip() for index in range(len(header))]
        asked = [index for index in figures if titles[index].casefold() in {site.casefold() for site in sites}]
        export = None if asked else recognised(header, keys, name, facts.get("signal", "").lower())
        places = sorted((index for index in figures if keys[index] in PLACES), key=lambda index: PLACES.index(keys[index]))
        self.place = places[0] if places and not asked else None
        lone = facts.get("site") or (sites[0] if len(sites) == 1 else "") or "site"
        stated: dict[int, str] = {}
        if export is not None:
            chosen, stated = list(export.columns), dict.fromkeys(export.columns, export.unit)
            self.said, self.place = export, export.place if export.place is not None else self.place
            self.notes += [export.note] if export.note else []
            one = len(chosen) == 1 and self.place is None
            title = {chosen[0]: facts.get("site") or export.site or lone} if one else {}
        else:
            chosen, title = self._unknown(titles, keys, figures, asked, lone)
        unused = [titles[index] for index in figures if index not in (*chosen, self.place, *bare) and index not in clocks]
        if unused:
            self.notes.append(f"Columns that were not used: {', '.join(unused)}.")
        if export is not None and len(chosen) > 1 and self.place is not None:
            raise InputError(f"{name} has {len(chosen)} columns of intensity: {', '.join(titles[index] for index in chosen)}.", "Keep one of them.")
        scales = [self._scale_of(keys[index], facts, stated.get(index, "")) for index in chosen]
        self.columns = [(index, title.get(index, titles[index]), scale) for index, scale in zip(chosen, scales, strict=True)]
        unsaid = [titles[index] for index, _, scale in self.columns if scale is None]
        if unsaid and self.unit is None:
            raise InputError(f"{name} does not say in which unit {', '.join(unsaid[:6])}{' …' if len(unsaid) > 6 else ''} "
                             f"{'is' if len(unsaid) == 1 else 'are'}.",
                             "Say it: --unit g/kWh, lb/MWh or kg/MWh, or a first line '# unit: g/kWh' in the file (units are never guessed).")
        if self.place is None and not all(title for _, title, _ in self.columns):
            raise InputError(f"{name} has a column without a name.", "Name every column after its site.")

    def _unknown(self, titles: Sequence[str], keys: Sequence[str], figures: list[int], asked: list[int],
                 lone: str) -> tuple[list[int], dict[int, str]]:
        """The columns to read of a file whose maker is not known, and what the sites of some are called."""
        sure = [index for index in figures if _INTENSITY.match(keys[index]) or _scale(keys[index]) is not None]
        values = self._one_basis(sure, keys) or [index for index in figures if keys[index] in VALUES]
        if self.place is not None and len(values) != 1:
            raise InputError(f"{self.name} has a column of sites but {len(values) or 'no'} columns of values.", "Expected time,site,g_per_kwh.")
        if self.place is not None:
            return values, {}
        if asked:
            return asked, {}
        if len(values) == 1 and (sure or len(figures) == 1):
            return values, {values[0]: lone}
        odd = [titles[index] for index in figures if no_site(titles[index], keys[index])]
        if odd:
            raise InputError(f"{self.name} has columns that are no sites: {', '.join(odd)}.",
                             "Name the columns to read (--sites FR,DE), or leave the others out of the file.")
        return figures, {index: _bare(titles[index]) for index in figures}

    def _scale_of(self, key: str, facts: Mapping[str, str], export: str) -> float | None:
        """g/kWh a unit of that column: as a person says, else as the column's own name says, else as its maker does; None where nobody does."""
        if "unit" in facts:
            return _known_scale(facts["unit"], self.name)
        return _scale(key) or _ending(key) or (_scale(export) if export else None)

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
        if self.said is not None and self.signal is None:
            said = self._rate(row, line) if self.said.said is not None else self.said.signal
        for index, title, scale in self.columns:
            if self.place is not None:
                title = row[self.place].strip()
                if not title:
                    raise InputError(f"{self.name}, line {line}: the site is empty.", "Name the site of every line.")
            if self.unit is not None:
                scale = _known_scale(row[self.unit], f"{self.name}, line {line}")
            assert scale is not None
            yield title, self._number(row[index], line, title) * scale, said

    def _rate(self, row: Sequence[str], line: int) -> str:
        """The signal that a row of WattTime's names: one that is no rate of CO2 is refused."""
        assert self.said is not None and self.said.said is not None
        word = row[self.said.said]
        found = rate(word)
        if found is None:
            said = f"{self.name}, line {line}: the signal is {shown(word)}, no rate of CO2."
            raise InputError(said, "Export co2_moer (marginal) or co2_aoer (average).")
        return found

    def _number(self, text: str, line: int, title: str) -> float:
        word = text.strip()
        if word.lower() in ABSENT:
            return math.nan
        try:
            value = float(word)
        except ValueError:
            raise InputError(f"{self.name}, line {line}: {title} is {shown(word)}, not a number.",
                             "Write it bare, with a decimal point, and its unit in the header; leave a missing hour empty.") from None
        if math.isinf(value):
            raise InputError(f"{self.name}, line {line}: {title} is {shown(word)}, not an intensity.", "Leave a missing hour empty.")
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
    return size_of(f"{found[1]}/{found[5]}", "carbon intensity") if found else None


def _ending(key: str) -> float | None:
    """The unit that a column's name ends in: fr_g/kwh, north_scotland_gco2_per_kwh."""
    found = _ENDING.search(key)
    return _scale(found[1]) if found else None


def _bare(title: str) -> str:
    """A column's name without the unit that it ends in."""
    found = _TITLED.match(title)
    return found[1].strip() if found else title


def _known_scale(unit: str, name: str) -> float:
    scale = _scale(unit) or size_of(unit, "carbon intensity")
    if scale is None:
        said = f"{name}: the unit is {shown(unit)}, which is none of carbon intensity."
        raise InputError(said, "Use g/kWh, kg/kWh, kg/MWh, lb/MWh, t/MWh or g/MJ.")
    return scale


def _above(cells: Cells, export: Export, name: str) -> None:
    """Refuse what the maker also exports in another unit: an index in percent never rises above 100."""
    scale = _known_scale(export.unit, name)
    most = max((value / scale for value in cells.values if not math.isnan(value)), default=math.inf)
    if most <= export.least:
        raise InputError(f"{name}: no value is above {most:.4g}, as in {export.maker}'s index, which is in percent and no intensity.", export.mend)


def _one_signal(seen: Mapping[str, int], facts: Mapping[str, str], name: str) -> str:
    said = {facts["signal"].strip().lower()} if "signal" in facts else {word or "average" for word in seen}
    if len(said) > 1:
        raise InputError(f"{name} mixes the signals {' and '.join(word if word in SIGNALS else shown(word) for word in sorted(said))}.",
                         "Average and marginal intensity answer different questions: give each a file.")
    if not said <= set(SIGNALS):
        raise InputError(f"{name}: the signal is {shown(said.pop())}, which is none of carbon.", "Use average or marginal.")
    return said.pop()
