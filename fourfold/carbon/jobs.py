"""Jobs to be placed, from a CSV file (or a JSON list of objects with the same keys).

| column | what | if absent |
|---|---|---|
| name | unlike all others | needed |
| hours | how long it runs; a begun hour is held whole, its energy unchanged | needed |
| kw, energy_kwh | mean power of the whole job, or its energy, at the machines' plugs (without PUE) | one of them is needed |
| release | first moment it may run: ISO 8601 with an offset or Z, or local with `zone`; rounded up to the hour | needed |
| deadline, slack | when it must be done (rounded down), or how long it may wait ("24h", "90min", "2d") | the slack given for all |
| zone | IANA time zone of local times in this row ("Europe/Berlin") | times need an offset |
| home | the site where it would run if nobody decided | the first site |
| sites | where it may run, separated by ";" | everywhere |
| width | units of a site's capacity it holds while it runs | 1 |
| interruptible | yes: it may pause and go on elsewhere; no: one piece | yes |
| data_gb | moves with it when it runs elsewhere than before | 0 |
| startup_kwh, checkpoint_kwh | energy at the start and at the end of each uninterrupted run | 0 |
| known | when it becomes known, for online planning | from the start |
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from fourfold.errors import Infeasible, InputError
from fourfold.text import shown
from fourfold.text import text as decoded
from fourfold.units.parse import duration

COLUMNS = ("name", "hours", "kw", "energy_kwh", "release", "deadline", "slack", "zone", "home", "sites", "width", "interruptible", "data_gb",
           "startup_kwh", "checkpoint_kwh", "known")
_YES, _NO = ("yes", "y", "true", "1"), ("no", "n", "false", "0")
_HOUR, _EPOCH = timedelta(hours=1), datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class BatchJob:
    """One job. `kw` while it runs, `hours` whole hours held; release, deadline and known aware UTC, the first two on the hour; `sites` empty =
    everywhere; `home` empty = the first site.
    """

    name: str
    kw: float
    hours: int
    release: datetime
    deadline: datetime
    home: str = ""
    width: int = 1
    interruptible: bool = True
    sites: tuple[str, ...] = ()
    data_gb: float = 0.0
    startup_kwh: float = 0.0
    checkpoint_kwh: float = 0.0
    known: datetime | None = None
    rounded: bool = False                                               # its times or its length were no whole hours


def read_jobs(ref: str | Path | Iterable[Mapping[str, object]], *, slack: str | float | None = None, contiguous: bool = False,
              zone: str | None = None) -> tuple[BatchJob, ...]:
    """Jobs from a .csv or .json file or from rows. `slack` for rows that give neither deadline nor slack; `contiguous`: none may pause; `zone` for
    local times.

    Raises InputError naming line and column (unknown columns with the nearest, negative or missing figures, names given twice, local times without a
    zone or that do not exist), and Infeasible for deadlines that cannot be met: which job, by how much.
    """
    rows = _rows(Path(ref)) if isinstance(ref, str | Path) else [(f"job {i + 1}", dict(row)) for i, row in enumerate(ref)]
    if not rows:
        raise InputError("There are no jobs.", "Give one row a job, with name, hours, kw and release at least.")
    _columns({key for _, row in rows for key in row})
    jobs = [_job(where, {key: cell for key, cell in row.items() if cell is not None and str(cell).strip()}, slack, zone)
            for where, row in rows]
    seen: dict[str, str] = {}
    for (where, _), job in zip(rows, jobs, strict=True):
        if job.name in seen:
            raise InputError(f"{where} and {seen[job.name]} both name a job {job.name}.", "Give each job a name of its own.")
        seen[job.name] = where
    late = [(job, job.hours - int((job.deadline - job.release) / _HOUR)) for job in jobs]
    late = [(job, missing) for job, missing in late if missing > 0]
    if late:
        job, missing = late[0]
        others = ", ".join(f"{other.name}: {short} h" for other, short in late[1:4])
        more = f"; so are {len(late) - 1} others ({others})" if others else ""
        window = job.hours - missing
        whole = " (in whole hours: release rounded up, deadline down, a begun hour held whole)" if job.rounded else ""
        raise Infeasible(f"Job {job.name} cannot meet its deadline: it needs {job.hours} h and has {max(0, window)} h{whole}, "
                         f"{missing} h too few{more}.",
                         "Release it earlier, set the deadline later, or shorten it.")
    return tuple(replace(job, interruptible=False) for job in jobs) if contiguous else tuple(jobs)


def span(text: str | float, what: str = "slack") -> timedelta:
    """A length of time of 0 or more, as `duration` reads it: "24h", "90s", "1h 30min", "2d"; a bare number is hours. Raises InputError."""
    try:
        return timedelta(seconds=duration(text, what, bare="h", said=shown(text)))
    except OverflowError:
        raise InputError(f"{what} is {shown(text)}, which is out of range.", "Give one such as 24h or 2d.") from None


def _rows(path: Path) -> list[tuple[str, dict[str, object]]]:
    try:
        text = decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"Cannot read jobs from {path}: {error.strerror or error}.", "Give a CSV file with a row a job.") from None
    if path.suffix.lower() == ".json":
        try:
            data = json.loads(text)
            return [(f"job {i + 1}", dict(row)) for i, row in enumerate(data)]
        except (ValueError, TypeError) as error:
            what = f"{error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise InputError(f"{path} is not a JSON list of jobs ({what}).", 'Give [{"name": …, "hours": …, "kw": …, "release": …}, …].') from None
    lines = text.splitlines()
    head = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    mark = max(",;\t", key=head.count)
    body = "\n".join("" if line.startswith("#") else line for line in lines)
    reader = csv.reader(io.StringIO(body), delimiter=mark)
    names: list[str] | None = None
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if names is None:
            names = [cell.strip().lower() for cell in cells]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                places = " and ".join(str(i + 1) for i, name in enumerate(names) if name == twice)
                raise InputError(f"Columns {places} of {path.name} have the same name.", "Give each column once.")
            continue
        if len(cells) > len(names):
            raise InputError(f"Line {reader.line_num} of {path.name} has {len(cells)} cells, and there are {len(names)} columns.",
                             "Quote cells that hold the separator.")
        rows.append((f"line {reader.line_num}", dict(zip(names, cells, strict=False))))
    return rows


def _columns(given: set[str]) -> None:
    for key in sorted(given - set(COLUMNS)):
        near = difflib.get_close_matches(key, COLUMNS, n=2, cutoff=0.6)
        called = repr(key) if near else shown(key)                       # a first line that is no header is not told
        mend = f"Did you mean {' or '.join(near)}?" if near else f"Columns: {', '.join(COLUMNS)}."
        raise InputError(f"A column is called {called}, which none of jobs is.", mend)
    for key in ("name", "hours", "release"):
        if key not in given:
            raise InputError(f"Jobs need a column {key!r}.", f"Given: {', '.join(sorted(given))}.")


def _job(where: str, row: Mapping[str, Any], slack: str | float | None, zone: str | None) -> BatchJob:
    for key in ("name", "hours", "release"):
        if key not in row:
            raise InputError(f"{where}: {key} is empty.", "Every job needs it.")
    name = str(row["name"]).strip()
    where = f"{where} ({name})"
    length = _number(row, "hours", where)
    if length <= 0:
        raise InputError(f"{where}: hours is {length:g}.", "A job runs for more than 0 hours.")
    held = max(1, math.ceil(length - 1e-9))
    if ("kw" in row) == ("energy_kwh" in row):
        raise InputError(f"{where}: give kw or energy_kwh, {'not both' if 'kw' in row else 'one of them'}.",
                         "kw: mean power; energy_kwh: of the whole job.")
    energy = _number(row, "energy_kwh", where) if "energy_kwh" in row else _number(row, "kw", where) * length
    zone = str(row.get("zone", zone or "")).strip() or None
    release = _moment(row["release"], zone, where, "release")
    if "deadline" in row and "slack" in row:
        raise InputError(f"{where}: give deadline or slack, not both.", "Leave one of them empty.")
    first, due = _EPOCH - (_EPOCH - release) // _HOUR * _HOUR, None     # up to the hour
    if "deadline" in row:
        last = due = _moment(row["deadline"], zone, where, "deadline")
    else:
        given = row.get("slack", slack)
        last = first + held * _HOUR + span(0 if given is None else given, f"{where}: slack")
    last = _EPOCH + (last - _EPOCH) // _HOUR * _HOUR                    # down to the hour
    rounded = first != release or due not in (None, last) or length != held
    if due is not None and last - first < held * _HOUR and release + timedelta(hours=length) <= due + timedelta(seconds=1):
        begin = _EPOCH + (release - _EPOCH) // _HOUR * _HOUR            # it fits its window: the hours that it touches from its release on hold it
        if release + timedelta(hours=length) <= begin + held * _HOUR + timedelta(seconds=1):
            first, last = begin, begin + held * _HOUR
    width = _number(row, "width", where) if "width" in row else 1.0
    if width < 1 or width != int(width):
        raise InputError(f"{where}: width is {width:g}.", "It is a whole number of units of capacity, 1 or more.")
    known = _moment(row["known"], zone, where, "known") if "known" in row else None
    listed = row.get("sites", ())
    sites = tuple(part.strip() for part in re.split(r"[;|]", listed) if part.strip()) if isinstance(listed, str) else tuple(map(str, listed))
    extra = {key: _number(row, key, where) for key in ("data_gb", "startup_kwh", "checkpoint_kwh") if key in row}
    pauses = _flag(row.get("interruptible", True), where)
    home = str(row.get("home", "")).strip()
    return BatchJob(name, energy / held, held, first, last, home, int(width), pauses, sites, known=known, rounded=rounded, **extra)


def _number(row: Mapping[str, Any], key: str, where: str) -> float:
    try:
        value = float(row[key])
    except (TypeError, ValueError):
        raise InputError(f"{where}: {key} is {shown(row[key])}, not a number.", "Write it with a decimal point and without a unit.") from None
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{where}: {key} is {value:g}.", "It must be a finite number of 0 or more.")
    return value


def _flag(value: object, where: str) -> bool:
    text = str(value).strip().lower()
    if text not in _YES + _NO:
        raise InputError(f"{where}: interruptible is {shown(value)}.", "Write yes or no.")
    return text in _YES


def _moment(value: object, zone: str | None, where: str, key: str) -> datetime:
    """Aware UTC. A local time must exist once: those that summer time skips or repeats are refused."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise InputError(f"{where}: {key} is {shown(value)}, not a time.", "Write it as 2022-05-01T08:00-07:00 or 2022-05-01T15:00Z.") from None
    if moment.tzinfo is not None:
        return moment.astimezone(UTC)
    if zone is None:
        full = value if re.search(r"[T ]\d", str(value).strip()) else f"{str(value).strip()}T00:00"
        raise InputError(f"{where}: {key} {value} has no time zone.",
                         f"Append an offset ({full}+00:00), fill the zone column, or give --zone.")
    try:
        place = ZoneInfo(zone)
    except Exception:
        said = f"{where}: the time zone is {shown(zone)}, which is none."
        raise InputError(said, "Use an IANA name such as Europe/Berlin or America/Los_Angeles.") from None
    early, late = (moment.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (0, 1))
    if early.astimezone(place).replace(tzinfo=None) != moment:
        raise InputError(f"{where}: {key} {value} does not exist in {zone}: the clocks go forward over it.", "Give the time with its offset.")
    if early != late:
        raise InputError(f"{where}: {key} {value} comes twice in {zone}: the clocks go back over it.",
                         f"Say which: {early.astimezone(place).isoformat()} or {late.astimezone(place).isoformat()}.")
    return early
