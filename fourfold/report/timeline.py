"""Timelines and memory over time as strips of a picture: what fits into its width, merged where more happens than a pixel can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.report.modules import lanes
from fourfold.report.trace import telling

if TYPE_CHECKING:
    from fourfold.cost.simulate import Timeline
    from fourfold.plans import Plan

WIDE, HIGH, LOW = 1000, 26, 44                                          # of the picture, of a strip, of a memory curve
_OWN = 1.5                                                              # narrower ones are merged
_POINTS = 4000                                                          # of a memory curve for the script
_LEVELS = 5                                                             # shades of merged ones


@dataclass(frozen=True, eq=False)
class Strip:
    """What one device or one direction of a link does: `start`, `finish` s ascending, `what` a number each (a task; of a link: a transfer)."""

    title: str
    kind: str                                                           # predicted, measured, link
    device: int                                                         # colour; −1 for links
    start: np.ndarray
    finish: np.ndarray
    what: np.ndarray


def strips(plan: Plan, timeline: Timeline, execution: Any = None) -> list[Strip]:
    """For each device what is predicted and, if given, what was measured; then each direction of a link that carries anything."""
    place, _ = plan.of_tasks
    found = []
    for d, device in enumerate(plan.system.devices):
        found.append(_strip(device.name, "predicted", d, timeline.start, timeline.finish, np.flatnonzero(place == d)))
        if execution is not None:
            ran = sorted({t for region in execution.regions if region.device == d for t in region.tasks})
            found.append(_strip("measured", "measured", d, execution.start, execution.finish, np.array(ran, np.int64)))
    sent = timeline.transfers
    for lane, name in lanes(plan.system):
        on = [x for x, (a, b) in enumerate(zip(sent.source.tolist(), sent.target.tolist(), strict=True)) if lane in plan.system.route(a, b).lanes]
        if on:
            found.append(_strip(name, "link", -1, sent.start, sent.finish, np.array(on)))
    return found


def _strip(title: str, kind: str, device: int, start: object, finish: object, chosen: np.ndarray) -> Strip:
    start, finish = np.asarray(start, float)[chosen], np.asarray(finish, float)[chosen]
    known = np.isfinite(start) & np.isfinite(finish)
    order = np.flatnonzero(known)[np.argsort(start[known], kind="stable")]
    return Strip(title, kind, device, start[order], finish[order], chosen[order])


def drawn(strip: Strip, whole: float) -> str:
    """The strip as SVG shapes on a ground `WIDE` × `HIGH`, for `whole` seconds; at most about 1,700 of them."""
    if not whole or not len(strip.start):
        return ""
    left, right = strip.start / whole * WIDE, np.maximum.accumulate(strip.finish) / whole * WIDE
    left = np.concatenate([left[:1], np.maximum(left[1:], right[:-1])])  # what overlaps (transfers still on their way) is cut short
    right = np.maximum(left, right)
    large = right - left >= _OWN
    shapes = [f'<rect x="{a:.2f}" width="{b - a:.2f}" height="{HIGH}" class="t{n % 2}"/>'
              for n, (a, b) in enumerate(zip(left[large], right[large], strict=True))]
    if (~large).any():
        a, b = left[~large], right[~large]
        ends = np.stack([a, b], axis=1).ravel()
        spent = np.stack([np.concatenate([[0.0], np.cumsum(b - a)[:-1]]), np.cumsum(b - a)], axis=1).ravel()
        edges = np.linspace(0, WIDE, WIDE + 1)
        share = np.diff(np.interp(edges, ends, spent, left=0.0, right=spent[-1]))
        level = np.where(share > 0, np.clip(np.ceil(share * _LEVELS), 1, _LEVELS), 0).astype(int)
        cuts = np.flatnonzero(np.diff(level)) + 1
        for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), WIDE], strict=True):
            if level[first]:
                shapes.append(f'<rect x="{first}" width="{last - first}" height="{HIGH}" class="s{level[first]}"/>')
    return "".join(shapes)


@dataclass(frozen=True, eq=False)
class Curve:
    """Bytes on a device over time: `at` s, `held` bytes from then on; `peak`, `limit` bytes; `top`: what the picture's height stands for; `end` s."""

    device: int
    at: np.ndarray
    held: np.ndarray
    peak: int
    limit: float
    top: float
    end: float

    @property
    def shows_limit(self) -> bool:
        return self.limit <= self.top


def curves(plan: Plan, timeline: Timeline) -> list[Curve]:
    """Of each device, all on one scale that shows a limit where some device comes within a third of its own."""
    peak = int(timeline.peak_bytes.max(initial=0))
    near = [device.memory for device, most in zip(plan.system.devices, timeline.peak_bytes, strict=True) if most > device.memory / 3]
    top = max([peak, *near]) * 1.08 or 1.0
    return [Curve(d, at, held, int(timeline.peak_bytes[d]), float(device.memory), top, timeline.makespan)
            for d, (device, (at, held)) in enumerate(zip(plan.system.devices, (thinned(*curve) for curve in timeline.memory), strict=True))]


def thinned(at: np.ndarray, held: np.ndarray, points: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A curve of at most about twice `points` points: of each stretch of time its highest value and its last. The peak stays."""
    keep = telling(at, held)
    at, held = at[keep], held[keep]
    if len(at) <= points:
        return at, held
    bins = np.minimum((at / (at[-1] or 1.0) * points).astype(int), points - 1)
    first = np.flatnonzero(np.concatenate([[True], np.diff(bins) > 0]))
    last = np.concatenate([first[1:], [len(at)]]) - 1
    high = first + np.array([int(np.argmax(held[a:b + 1])) for a, b in zip(first, last, strict=True)])
    keep = np.union1d(high, last)
    return at[keep], held[keep]


def area(curve: Curve, whole: float) -> str:
    """The curve as the path of a stepped area on a ground `WIDE` × `LOW`."""
    if not whole or not len(curve.at):
        return ""
    at, held = thinned(curve.at, curve.held, WIDE // 2)
    x, y = at / whole * WIDE, LOW - held / curve.top * LOW
    steps = "".join(f"H{a:.1f}V{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    return f"M0,{LOW}{steps}H{curve.end / whole * WIDE:.1f}V{LOW}Z"
