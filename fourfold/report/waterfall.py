"""The four levers as bars on a log axis, from 1 to the total: the picture of Patterson et al. 2022's 4M, with each factor's grade and interval."""

from __future__ import annotations

import math
from collections.abc import Callable

from fourfold.report.schema import FigureRow, Levers

NAMES = {"model": "Model", "machine": "Machine", "mechanization": "Mechanization", "map": "Map"}
_TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
_MOST = 6                                                              # ticks on the axis


def bars(levers: Levers) -> dict[str, object]:
    """Where bars, whiskers and ticks stand, in per cent of the axis: one row a lever, each beginning where the last one ended, and the total from 1.

    A lever that makes things dearer points back. `levers` is `fourfold.report.schema.Levers`.
    """
    ends, reached = [1.0], 1.0
    for row in levers["rows"]:
        reached *= row["factor"]["value"]
        ends.append(reached)
    total = levers["total"]
    reach = [value for value in (*ends, total["low"], total["high"]) if value]
    low, high = min(1.0, *reach), max(2.0, *reach)
    room = (math.log(high) - math.log(low)) * 0.02

    def at(value: float) -> float:
        return 100 * (math.log(value) - math.log(low) + room) / (math.log(high) - math.log(low) + 2 * room)

    rows = [_bar(at, row["factor"], start, end) | {"row": row, "name": NAMES[row["lever"]]}
            for row, start, end in zip(levers["rows"], ends, ends[1:], strict=False)]
    ticks = [{"at": f"{at(tick):.2f}", "text": f"{tick:,}"} for tick in _axis(low, high)]
    return {"rows": rows, "total": _bar(at, total, 1.0, total["value"]), "ticks": ticks, "one": f"{at(1.0):.2f}"}


def _bar(at: Callable[[float], float], figure: FigureRow, start: float, end: float) -> dict[str, object]:
    """Left, width and whisker of a bar from `start` to `end`; the whisker is the factor's own interval, set at the bar's end."""
    left, right = sorted((at(start), at(end)))
    bar = {"left": f"{left:.2f}", "width": f"{max(right - left, 0.5):.2f}", "end": f"{at(end):.2f}", "back": end < start, "whisker": None}
    low, high = figure["low"], figure["high"]
    if low and high and low < high:
        first, last = (min(100.0, max(0.0, at(start * side))) for side in (low, high))
        bar["whisker"] = {"left": f"{first:.2f}", "width": f"{max(last - first, 0.3):.2f}"}
    return bar


def _axis(low: float, high: float) -> list[int]:
    found = [tick for tick in _TICKS if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    tens = [tick for tick in found if math.log10(tick).is_integer()]
    return found if len(found) <= _MOST else tens if len(tens) <= _MOST else tens[:: math.ceil(len(tens) / _MOST)]
