"""Hourly outside temperatures from a CSV file, every hour there or named."""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from fourfold.cost.datacenter import Weather
from fourfold.errors import InputError
from fourfold.text import text as decoded

_TIMES = ("time", "timestamp", "datetime", "date", "time_utc", "utc")
_VALUES = ("temperature", "temperature_c", "celsius", "temp", "temp_c", "dry_bulb", "outside", "t2m", "temperature_2m")
_HOUR = timedelta(hours=1)


def read(path: str | Path) -> Weather:
    """Dry-bulb temperatures in °C by hour from a CSV with a time column (ISO 8601; without an offset it is taken as UTC) and a temperature column.

    Raises InputError for a file that cannot be read, unknown columns, values that no outside air has, and hours that are missing or there twice.
    """
    path = Path(path)
    try:
        rows = [row for row in csv.reader(io.StringIO(decoded(path.read_bytes(), str(path)), newline="")) if any(cell.strip() for cell in row)]
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.", "Name a CSV file with the columns time and temperature.") from None
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file in UTF-8 ({error}).", "Save it as UTF-8 text with commas.") from None
    if len(rows) < 2:
        raise InputError(f"{path} holds no hours.", "It needs a line of column names and a line an hour.")
    when, what = (_column(rows[0], names, path) for names in (_TIMES, _VALUES))
    read = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= max(when, what):
            raise InputError(f"{path}, line {number} has {len(row)} columns, the first line has {len(rows[0])}.", "Give every line the same columns.")
        hour, celsius = _time(row[when], path, number), _celsius(row[what], path, number)
        if hour in read:
            raise InputError(f"{path}, line {number}: the hour {hour:%Y-%m-%dT%H:%MZ} is there twice.",
                             "Keep one; times of a clock that is put back need their offset (+02:00, +01:00).")
        read[hour] = celsius
    hours = sorted(read)
    _whole(hours, path)
    return Weather(np.array([read[hour] for hour in hours]), True, f"{path.name}: {len(hours):,} hours from {hours[0]:%Y-%m-%dT%H:%MZ}",
                   hours[0].isoformat())


def read_load(path: str | Path, name: str = "load") -> np.ndarray:
    """An hourly load [T], 0 to 1 of the fleet's capacity, from a CSV with a column `name` (or "utilisation"), one line an hour in order.

    Raises InputError as `read` does, and for shares outside 0 to 1.
    """
    path = Path(path)
    try:
        rows = [row for row in csv.reader(io.StringIO(decoded(path.read_bytes(), str(path)), newline="")) if any(cell.strip() for cell in row)]
    except (OSError, csv.Error) as error:
        raise InputError(f"Cannot read {path}: {error}.", f"Name a CSV file with the column {name}.") from None
    if len(rows) < 2:
        raise InputError(f"{path} holds no hours.", "It needs a line of column names and a line an hour.")
    column = _column(rows[0], (name, "utilisation", "utilization", "share"), path)
    shares = []
    for number, row in enumerate(rows[1:], 2):
        text = row[column].strip() if column < len(row) else ""
        try:
            share = float(text)
        except ValueError:
            raise InputError(f"{path}, line {number}: {text!r} is not a load.", "Give a share of the capacity, 0 to 1.") from None
        if not 0 <= share <= 1:
            raise InputError(f"{path}, line {number}: a utilisation of {share:g} cannot be.", "Give a share of the capacity, 0 to 1.")
        shares.append(share)
    return np.array(shares)


def _column(head: list[str], names: tuple[str, ...], path: Path) -> int:
    found = [name.strip().lower().replace(" ", "_") for name in head]
    for name in names:
        if name in found:
            return found.index(name)
    raise InputError(f"{path} has the columns {', '.join(head)}.", f"One must be called {names[0]} (or {', '.join(names[1:4])}).")


def _time(text: str, path: Path, number: int) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise InputError(f"{path}, line {number}: {text!r} is not a time.", "Write 2022-01-31T13:00Z, or with an offset.") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if moment.minute or moment.second or moment.microsecond:
        raise InputError(f"{path}, line {number}: {text!r} is not a full hour.", "Give one line an hour, on the hour.")
    return moment


def _celsius(text: str, path: Path, number: int) -> float:
    try:
        value = float(text.strip())
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {number}: {text.strip()!r} is not a temperature, so that hour is missing.", "Fill the hour before.")
    if not -90 <= value <= 60:
        raise InputError(f"{path}, line {number}: outside air is never at {value:g} °C.", "Give degrees Celsius, not Fahrenheit or kelvin.")
    return value


def _whole(hours: list[datetime], path: Path) -> None:
    gaps = [(a + _HOUR, b - _HOUR) for a, b in zip(hours, hours[1:], strict=False) if b - a > _HOUR]
    if gaps:
        count = sum(int((last - first) / _HOUR) + 1 for first, last in gaps)
        first, last = gaps[0]
        raise InputError(f"{path}: {count} hours are missing, the first from {first:%Y-%m-%dT%H:%MZ} to {last:%Y-%m-%dT%H:%MZ}.",
                         "Give every hour between the first and the last.")
