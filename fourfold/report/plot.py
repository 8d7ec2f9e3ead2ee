"""The front as a picture: relative quality against relative energy, drawn as SVG by hand (the axes of NTT DATA's green-AI compression study).

On one machine and one grid, relative emission equals relative energy. Left is cheaper, up is better; crosses are 90 % intervals; the floor is a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Literal

from fourfold.report import format
from fourfold.report.schema import Ends, Report
from fourfold.report.summary import quality_of

_EM = 6.7  # average advance of a 12.5 px sans-serif letter, in px: only label placement rests on it


@dataclass(frozen=True)
class PlotMark:
    """One mark. `x` relative energy, `y` relative quality, as intervals; `index` into candidates, None for the original and the simple baselines."""

    kind: Literal["original", "simple", "front", "other"]
    x: Ends
    y: Ends
    name: str
    index: int | None = None
    tags: tuple[str, ...] = ()  # "chosen", "knee"
    tested: bool = True


@dataclass(frozen=True)
class Frame:
    """Where data lie on the canvas: pixel box and data ranges."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x0: float
    x1: float
    y0: float
    y1: float
    log: bool

    def x(self, value: float) -> float:
        share = math.log(max(value, self.x0) / self.x0) / math.log(self.x1 / self.x0) if self.log else (value - self.x0) / (self.x1 - self.x0)
        return self.left + min(max(share, 0.0), 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0)
        return self.bottom - min(max(share, 0.0), 1.0) * (self.bottom - self.top)


def points(report: Report) -> list[PlotMark]:
    """Everything with both figures, the faint first so that what matters is drawn last."""
    front, found = set(report["front"]), []
    for index, candidate in enumerate(report["candidates"]):
        quality, cost = quality_of(candidate), candidate["relative_energy"]
        if quality is None or cost is None or cost["value"] <= 0:
            continue
        tags = tuple(tag for tag, at in (("chosen", report["best"]), ("knee", report["knee"])) if at == index)
        kind = "front" if index in front or tags else "other"
        found.append(PlotMark(kind, cost, quality, candidate["name"], index, tags, candidate["test_quality"] is not None))
    for simple in report["simple"]:
        if simple["relative_energy"] and simple["relative_energy"]["value"] > 0:
            found.append(PlotMark("simple", simple["relative_energy"], simple["relative_quality"], simple["name"]))
    one: Ends = {"value": 1.0, "low": None, "high": None}
    found.append(PlotMark("original", one, one, "original"))
    return sorted(found, key=lambda point: (point.kind != "other", "chosen" in point.tags))


def _end(figure: Ends, end: Literal["low", "high"]) -> float:
    found = figure[end]
    return figure["value"] if found is None else found


def frame(report: Report, marks: list[PlotMark], width: int, height: int, log: bool) -> Frame:
    """Ranges that hold the front, the floor and the baselines; what lies far below is drawn on the lower edge."""
    key = [mark for mark in marks if mark.kind != "other"]
    floor = report["floor"]
    low = max(min([floor, *(_end(mark.y, "low") for mark in key)]), floor - 0.45)
    high = max([1.0, floor, *(_end(mark.y, "high") for mark in key)])
    pad = 0.06 * (high - low) + 0.004
    largest = min(max([1.0, *(_end(mark.x, "high") for mark in marks)]), 2.0 * max([1.0, *(_end(mark.x, "high") for mark in key)]))
    smallest = max(min(_end(mark.x, "low") for mark in marks), min(mark.x["value"] for mark in marks) / 3)
    x0, x1 = (smallest / 1.35, largest * 1.2) if log else (0.0, largest * 1.05)
    narrow = width < 500
    return Frame(width, height, 42 if narrow else 52, width - (10 if narrow else 22), 34, height - 46, x0, x1, low - pad, high + pad, log)


def _nice(span: float, most: int) -> float:
    """The smallest of 1, 2, 5 × 10ⁿ that cuts `span` into at most `most` parts."""
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))


def _ticks(low: float, high: float, log: bool, most: int) -> list[float]:
    if not log:
        step = _nice(high - low, most)
        return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(found) <= most:
            break
    return found


def _tick(value: float) -> str:
    return f"{value * 100:.10g} %"


def _axes(box: Frame, floor: float) -> Iterator[str]:
    narrow = box.width < 500
    under = min(max(box.y(floor), box.top), box.bottom)
    yield f'<rect class="under" x="{box.left}" y="{under:.1f}" width="{box.right - box.left}" height="{box.bottom - under:.1f}"/>'
    for value in _ticks(box.y0, box.y1, False, 6):
        y = box.y(value)
        yield f'<line class="grid" x1="{box.left}" x2="{box.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        shown = format.percent(round(value, 6), not narrow)
        yield f'<text class="tick" x="{box.left - 7}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
    for value in _ticks(box.x0, box.x1, box.log, 5 if narrow else 10):
        x = box.x(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{box.top}" y2="{box.bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{box.bottom + 17}" text-anchor="middle">{_tick(value)}</text>'
    scale = ", log scale" if box.log else ""
    yield f'<text class="axis" x="{4 if narrow else box.left}" y="16">Quality, relative to the original{" (%)" if narrow else ""}</text>'
    yield f'<text class="axis" x="{box.right}" y="{box.bottom + 37}" text-anchor="end">Energy, relative to the original{scale}</text>'
    yield f'<line class="floor" x1="{box.left}" x2="{box.right}" y1="{under:.1f}" y2="{under:.1f}"/>'


def _stair(box: Frame, marks: list[PlotMark]) -> str:
    """The front as steps: what is right of and below the line is dominated."""
    members = sorted((mark for mark in marks if mark.kind == "front"), key=lambda mark: mark.x["value"])
    path, best = [], -math.inf
    for mark in members:
        if mark.y["value"] <= best:
            continue
        best = mark.y["value"]
        x, y = box.x(mark.x["value"]), box.y(best)
        path.append(f"M{x:.1f},{y:.1f}" if not path else f"H{x:.1f}V{y:.1f}")
    return f'<path class="stair" d="{"".join(path)}H{box.right}"/>' if path else ""


def _cross(box: Frame, mark: PlotMark) -> str:
    """Both intervals, as far as they are known."""
    x, y = box.x(mark.x["value"]), box.y(mark.y["value"])
    lines = ""
    if mark.x["low"] is not None and mark.x["high"] is not None:
        lines += f"M{box.x(mark.x['low']):.1f},{y:.1f}H{box.x(mark.x['high']):.1f}"
    if mark.y["low"] is not None and mark.y["high"] is not None:
        lines += f"M{x:.1f},{box.y(mark.y['low']):.1f}V{box.y(mark.y['high']):.1f}"
    return f'<path class="cross" d="{lines}"/>' if lines else ""


def _symbol(box: Frame, mark: PlotMark) -> str:
    x, y = box.x(mark.x["value"]), box.y(mark.y["value"])
    if mark.y["value"] < box.y0:  # below the picture: an arrow on its lower edge
        return f'<path class="dot" d="M{x - 4:.1f},{box.bottom - 7}h8l-4,6z"/>'
    if "chosen" in mark.tags:
        return f'<circle class="halo" cx="{x:.1f}" cy="{y:.1f}" r="11"/><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    if "knee" in mark.tags:
        return f'<path class="dot" d="M{x:.1f},{y - 7:.1f}l7,7l-7,7l-7,-7z"/>'
    if mark.kind in ("original", "simple"):
        return f'<rect class="dot" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{4.5 if mark.kind == "front" else 3}"/>'


def _faint(box: Frame, marks: list[PlotMark]) -> str:
    """The dominated, in as few bytes as they need; what they are is told when they are pointed at."""
    dots = [_symbol(box, mark).replace('class="dot"', f'class="dot" data-c="{mark.index}"') for mark in marks if mark.kind == "other"]
    return f'<g class="other" aria-hidden="true">{"".join(dots)}</g>'


def _mark(box: Frame, mark: PlotMark) -> str:
    classes = " ".join(["point", mark.kind, *mark.tags, *([] if mark.tested else ["untested"])])
    told = f"{mark.name}: quality {format.interval(mark.y)}, energy {format.interval(mark.x)}"
    cross = _cross(box, mark) if mark.kind in ("front", "simple") and mark.y["value"] >= box.y0 else ""
    reach = f'<circle class="reach" cx="{box.x(mark.x["value"]):.1f}" cy="{box.y(mark.y["value"]):.1f}" r="13"/>'
    handle = ' role="img"' if mark.index is None else f' tabindex="0" role="button" data-c="{mark.index}"'
    return f'<g class="{classes}"{handle} aria-label="{escape(told)}"><title>{escape(told)}</title>{reach}{cross}{_symbol(box, mark)}</g>'


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def clear(self, other: _Box) -> bool:
        return self.right <= other.left or other.right <= self.left or self.bottom <= other.top or other.bottom <= self.top


def _labels(box: Frame, marks: list[PlotMark], floor: float) -> Iterator[str]:
    """Names of the marks that matter, each put where it covers nothing; one that fits nowhere is left to the tooltip."""
    taken = [
        _Box(box.x(m.x["value"]) - 6, box.y(m.y["value"]) - 6, box.x(m.x["value"]) + 6, box.y(m.y["value"]) + 6) for m in marks if m.kind != "other"
    ]
    under = box.y(floor)
    taken.append(_Box(box.left, under - 19, box.left + 82, under + 2))  # the left end: cheap and good is where nothing lies
    yield f'<text class="label floorname" x="{box.left + 6}" y="{under - 6:.1f}">floor {format.percent(floor)}</text>'
    order = {"chosen": 0, "knee": 1, "original": 2, "simple": 3}
    named = [(order.get(next(iter(mark.tags), mark.kind), 9), mark) for mark in marks]
    for _, mark in sorted((pair for pair in named if pair[0] < 9), key=lambda pair: pair[0]):
        text = ", ".join(mark.tags) or mark.name
        if "chosen" in mark.tags:
            text = f"{text}: {format.percent(mark.y['value'])} at {format.percent(mark.x['value'])}"
        spot = _spot(box, mark, len(text) * _EM, taken)
        if spot:
            taken.append(spot)
            classes = " ".join(["label", mark.kind, *mark.tags])
            yield f'<text class="{classes}" x="{spot.left:.1f}" y="{spot.bottom - 4:.1f}">{escape(text)}</text>'


def _spot(box: Frame, mark: PlotMark, length: float, taken: list[_Box]) -> _Box | None:
    x, y = box.x(mark.x["value"]), box.y(mark.y["value"])
    tries = [(x + 13, y - 24), (x - length - 13, y - 24), (x + 13, y + 8), (x - length - 13, y + 8), (x + 14, y - 8), (x - length - 14, y - 8),
             (x - length / 2, y - 30), (x - length / 2, y + 15), (x + 13, y - 42), (x - length - 13, y - 42), (x + 13, y + 26)]  # fmt: skip
    for left, top in tries:
        spot = _Box(left, top, left + length, top + 16)
        inside = spot.left >= box.left and spot.right <= box.right and spot.top >= box.top - 6 and spot.bottom <= box.bottom
        if inside and all(spot.clear(other) for other in taken):
            return spot
    return None


def draw(report: Report, width: int = 880, height: int = 470, log: bool = True, style: str = "") -> str:
    """The front as an SVG element of `width` × `height` px; `style` is CSS put inside, for a file that stands alone."""
    marks = points(report)
    box = frame(report, marks, width, height, log)
    key = [mark for mark in marks if mark.kind != "other"]
    parts = [
        *_axes(box, report["floor"]),
        _stair(box, marks),
        _faint(box, marks),
        *(_mark(box, mark) for mark in key),
        *_labels(box, marks, report["floor"]),
    ]
    told = (
        f"Quality against energy, relative to the original: {len(report['front'])} candidates on the front, floor {format.percent(report['floor'])}."
    )
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="group" aria-label="{escape(told)}" class="plot">'
    return opening + (f"<style>{style}</style>" if style else "") + "".join(parts) + "</svg>"
