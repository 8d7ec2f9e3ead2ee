"""From readings at any moment to values on a grid of whole UTC hours, checked and marked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from fourfold.carbon.quality_flags import FILLED, MISSING, PARTIAL, READ
from fourfold.carbon.timestamps import HOUR
from fourfold.errors import InputError

ABSURD = 5000.0                                                        # g/kWh: above any grid there is (oil in an old plant gives about 1,200)
UNUSUAL = 2000.0                                                       # g/kWh: no grid's average is above, so a site's usual value is not either
KILOGRAMS = 2.0                                                        # g/kWh: a series that never rises above may be in kg/kWh, which is asked
MOST = 24 * 366 * 30                                                   # hours a file may span; more is a mistyped year


@dataclass
class Cells:
    """Readings as they come: seconds since 1970, site number, g/kWh (NaN where absent) and the line."""

    names: list[str]
    seconds: list[int]
    sites: list[int]
    values: list[float]
    lines: list[int]
    stated: bool                                                       # the unit was said by a person, so values near zero are believed
    signal: str
    notes: list[str]


def _lasting(seconds: np.ndarray, sites: np.ndarray, step: int) -> np.ndarray:
    """How long each reading stands, in seconds: its distance to the nearer neighbour of its site where that divides the hour, else `step`.

    So a series that turns from hours to quarters of an hour midway is read right. `seconds` in order within each site.
    """
    ahead = np.where(np.diff(sites, append=-1) == 0, np.diff(seconds, append=0), MOST * HOUR)
    nearer = np.minimum(ahead, np.concatenate(([MOST * HOUR], ahead[:-1])))
    return np.where((nearer <= HOUR) & (HOUR % np.maximum(nearer, 1) == 0), nearer, step)


def spacing(cells: Cells) -> int:
    """The commonest distance between readings of a site, in seconds."""
    seconds, sites = np.array(cells.seconds, np.int64), np.array(cells.sites)
    gaps = np.concatenate([np.diff(np.unique(seconds[sites == number])) for number in range(len(cells.names))])
    if not gaps.size:
        return HOUR
    sizes, counts = np.unique(gaps, return_counts=True)
    return int(sizes[np.argmax(counts)])


def gridded(cells: Cells, name: str, step: int | None = None) -> tuple[datetime, np.ndarray, np.ndarray]:
    """First hour, values [R, T] and marks [R, T]: means over the readings within each hour."""
    seconds, sites = np.array(cells.seconds, np.int64), np.array(cells.sites)
    values, lines = np.array(cells.values), np.array(cells.lines)
    _check_values(cells, values, name)
    _check_span(int(seconds.min()), int(seconds.max()), name)
    told, step = step, step or spacing(cells)
    if step > HOUR or HOUR % step:
        every = f"{step / HOUR:g} h" if step > HOUR else f"{step / 60:g} min"
        raise InputError(f"{name} has one value each {every}.", "Expected hourly values, or a step that divides the hour: 5, 10, 15, 20 or 30 min.")
    seconds, sites, values = _once(seconds, sites, values, lines, cells, name)
    hours = seconds // HOUR
    first, count = int(hours.min()), int(hours.max() - hours.min()) + 1
    shape = (len(cells.names), count)
    known = ~np.isnan(values)
    place = (sites[known], hours[known] - first)
    lasts = np.full(seconds.shape, step) if told else _lasting(seconds, sites, step)
    total, seen = np.zeros(shape), np.zeros(shape)
    weights = lasts[known] / HOUR                                     # 1 for a whole hour: its value comes through to the last bit
    np.add.at(total, place, values[known] * weights)
    np.add.at(seen, place, weights)
    grid = np.divide(total, seen, out=np.full(shape, np.nan), where=seen > 0.5 - 1e-9)
    marks = np.where((seen < 1 - 1e-9) & ~np.isnan(grid), PARTIAL, READ).astype(np.uint8)
    finer = sorted({int(size) for size in lasts if size < HOUR})
    if finer:
        every = " or ".join(f"{size / 60:g}" for size in finer)
        cells.notes.append(f"Readings every {every} min were averaged over each hour; an hour with less than half of them is missing.")
    elif np.any(seconds % HOUR):
        cells.notes.append("Times within an hour were taken for the hour that holds them.")
    absent = int(np.isnan(grid).sum())
    if absent:
        cells.notes.append(f"{absent} of {grid.size} hours are missing in the file.")
    return datetime.fromtimestamp(first * HOUR, UTC), grid, marks


def _check_span(first: int, last: int, name: str) -> None:
    if last - first > MOST * HOUR:
        years = (last - first) / HOUR / 8766
        ends = [datetime.fromtimestamp(edge, UTC) for edge in (first, last)]
        raise InputError(f"{name} spans {years:.0f} years, from {ends[0]:%Y-%m-%d} to {ends[1]:%Y-%m-%d}.",
                         "Look for a mistyped year, or split the file.")


def _check_values(cells: Cells, values: np.ndarray, name: str) -> None:
    worst = int(np.nanargmax(values)) if not np.isnan(values).all() else -1
    if worst < 0:
        raise InputError(f"{name} holds no value at all.", "Expected numbers in g/kWh.")
    if values[worst] > ABSURD:
        title = cells.names[cells.sites[worst]]
        raise InputError(f"{name}, line {cells.lines[worst]}: {title} has {values[worst]:g} g/kWh, more than any grid.",
                         "Say the file's unit, such as --unit kg/MWh or '# unit: kg/MWh' in its first line, or leave the hour empty.")
    sites = np.array(cells.sites)
    for number, title in enumerate(cells.names):
        known = values[sites == number]
        known = known[~np.isnan(known)]
        if not known.size:
            continue
        usual, most = float(np.median(known)), float(known.max())
        if usual > UNUSUAL and not cells.stated:
            raise InputError(f"{name}: {title} is at {usual:g} g/kWh as a rule, and no grid is above {UNUSUAL:g}.",
                             "Say the file's unit: --unit lb/MWh, kg/MWh or, if it is so, g/kWh.")
        if most > UNUSUAL:
            count = int((known > UNUSUAL).sum())
            cells.notes.append(f"{title}: {count} value(s) above {UNUSUAL:g} g/kWh, more than any grid's average: is the unit right?")
        elif most <= KILOGRAMS and np.any(known != np.round(known)):
            cells.notes.append(f"{title} never rises above {most:g} g/kWh: if those are kilograms, say --unit kg/kWh.")


def _once(seconds: np.ndarray, sites: np.ndarray, values: np.ndarray, lines: np.ndarray, cells: Cells,
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


def bridge(values: np.ndarray, marks: np.ndarray, most: int) -> int:
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


def odd(values: np.ndarray, half: int = 24, reach: int = 3) -> np.ndarray:
    known = ~np.isnan(values)
    if known.sum() < 2 * half:
        return np.zeros(values.shape, bool)                            # too short to say what is usual
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    residual = np.zeros(values.shape)
    residual[known] = np.abs(values[known] - np.nanmedian(windows[known], axis=1))
    scale = max(1.4826 * float(np.median(residual[known])), 0.02 * float(np.median(values[known])), 0.5)
    gaps = np.convolve(~known, np.ones(2 * reach + 1), "same") > 0
    return known & (residual / scale > np.where(gaps, 6.0, 15.0))
