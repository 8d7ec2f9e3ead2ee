"""A wall meter's own record: a CSV with a column of times and one of power or of energy, read once the work is done.

    time,W                              time,J  (or Wh, kWh: cumulative)
    2026-03-01T12:00:00Z,83.2           2026-03-01T12:00:00+09:00,120933.1

Times are ISO 8601 with a zone, or seconds since 1970. The record must reach from before the window to after it. That the logger's clock agrees with
this computer's cannot be seen from here: MLPerf Power allows 800 ms, and `skew` carries that into the interval.
"""

from __future__ import annotations

import csv
import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fourfold.errors import InputError
from fourfold.measure.counter import Count, MeterError
from fourfold.units.parse import size_of

_FACTOR = 5.0                                                          # readings further apart than this many usual steps are a gap


@dataclass(frozen=True)
class Between:
    """Joules between two moments; `doubt` J that gaps and the clocks' skew leave open, `gaps` s without a reading."""

    joules: float
    doubt: float
    gaps: float
    samples: int


class External:
    """A wall meter's record at `path`. Raises InputError where the file cannot be used; says at which line."""

    name = "external"
    boundary = "host"
    grade = "measured"
    error = 0.02                                                       # a plug-in meter; state the accuracy of yours
    every = None

    def __init__(self, path: Path | str, *, error: float = 0.02, skew: float = 0.8, covers: str = "host") -> None:
        self.path, self.error, self.skew, self.covers = Path(path), error, skew, covers
        self.method = f"wall meter, {self.path.name}"

    def available(self) -> str | None:
        """Why the record cannot be read, or None where it can (or will be written while the work runs)."""
        return None if self.path.parent.is_dir() else f"there is no folder {self.path.parent}"

    def counts(self) -> list[Count]:
        """Nothing while the work runs: the record is read afterwards."""
        return []

    def between(self, start: float, end: float) -> Between:
        """Joules between two moments in seconds since 1970. Raises MeterError where the record does not reach, InputError where it is no record."""
        if not self.path.exists():
            raise MeterError(f"{self.path} was not written")
        times, values, cumulative = self._rows()
        if not times or times[0] > start or times[-1] < end:
            reach = f"from {_iso(times[0])} to {_iso(times[-1])}" if times else "over no time at all"
            raise MeterError(f"{self.path.name} reaches {reach}, not from {_iso(start)} to {_iso(end)}")
        joules = _at(times, values, end) - _at(times, values, start) if cumulative else _area(times, values, start, end)
        if cumulative and any(b < a for a, b in zip(values, values[1:], strict=False)):
            raise MeterError(f"{self.path.name}: the cumulative energy falls; the meter was set back")
        steps = sorted(b - a for a, b in zip(times, times[1:], strict=False))
        usual = steps[len(steps) // 2]
        inside = [(max(a, start), min(b, end), b - a) for a, b in zip(times, times[1:], strict=False) if b > start and a < end]
        gaps = sum(b - a for a, b, step in inside if step > _FACTOR * usual)
        watts = [(v - u) / (b - a) for a, b, u, v in zip(times, times[1:], values, values[1:], strict=False)] if cumulative else values
        spread = max(watts) - min(watts)
        return Between(joules, gaps * spread + min(self.skew, end - start) * spread, gaps,
                       bisect_right(times, end) - bisect_left(times, start))

    def _rows(self) -> tuple[list[float], list[float], bool]:
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                table = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row and any(cell.strip() for cell in row)]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path} cannot be read: {error}.", "Give a UTF-8 CSV with the columns time,W or time,J.") from None
        heads = [cell.strip() for cell in table[0][1]] if table else []
        unit, key = next(((head, bare) for head in heads[1:] for bare in [re.sub("_cumulative", "", head, flags=re.IGNORECASE)]
                          if size_of(bare, "energy") or size_of(bare, "power")), (None, ""))
        if len(heads) < 2 or unit is None:
            raise InputError(f"{self.path}: the first line is {','.join(heads)[:60]!r}.",
                             "Expected time,W (power) or time,J, time,Wh, time,kWh (cumulative).")
        joules = size_of(key, "energy")
        place, scale, cumulative = heads.index(unit), joules or size_of(key, "power") or 1.0, joules is not None
        times, values = [], []
        for number, row in table[1:]:
            try:
                when, value = _moment(row[0].strip()), float(row[place]) * scale
            except (ValueError, IndexError) as error:
                raise InputError(f"{self.path}, line {number}: {','.join(row)[:60]!r} is not a reading ({error}).",
                                 "Expected an ISO time with a zone (or seconds since 1970) and a number.") from None
            if not math.isfinite(value) or value < 0:
                raise InputError(f"{self.path}, line {number}: {row[place]} {unit} is not a possible reading.", "Power and energy are 0 or more.")
            if times and when <= times[-1]:
                raise InputError(f"{self.path}, line {number}: its time is not after the line before.",
                                 "Sort the record by time, one line a moment, in UTC.")
            times.append(when)
            values.append(value)
        if len(times) == 1:
            raise InputError(f"{self.path} holds one reading.", "Two are needed to tell energy.")
        return times, values, cumulative


def _moment(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            raise ValueError("the time has no zone; write Z for UTC") from None
        return when.timestamp()
    if not 1e8 < value < 1e11:
        raise ValueError("seconds since 1970 look like 1772366400")
    return value


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _at(times: list[float], values: list[float], when: float) -> float:
    """Linear between readings; `when` lies inside."""
    place = min(max(bisect_right(times, when), 1), len(times) - 1)
    a, b = times[place - 1], times[place]
    return values[place - 1] + (values[place] - values[place - 1]) * (when - a) / (b - a)


def _area(times: list[float], watts: list[float], start: float, end: float) -> float:
    inner = [(t, w) for t, w in zip(times, watts, strict=True) if start < t < end]
    points = [(start, _at(times, watts, start)), *inner, (end, _at(times, watts, end))]
    return sum((b - a) * (u + v) / 2 for (a, u), (b, v) in zip(points, points[1:], strict=False))
