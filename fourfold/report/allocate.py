"""Where buffers stand, for readers: sentences, and one page with the memory map (time × address) and contention over time.

The page loads nothing from elsewhere. Up to 5,000 rectangles are drawn as SVG, with names to point at; more are drawn on a canvas by its script.
"""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourfold.decisions.allocate.instance import Rectangles
from fourfold.decisions.allocate.problem import Allocate
from fourfold.problem import Solution
from fourfold.report import format
from fourfold.report.html import asset, script_safe
from fourfold.report.json import replace

if TYPE_CHECKING:
    from fourfold.jobs.allocate import Allocation
    from fourfold.report.memory import MemoryMap

WIDE, HIGH, LOW = 1000, 520, 160                                        # of the pictures, px before they are stretched
DRAWN = 5000                                                            # rectangles as SVG; more go on a canvas
_COLOURS = 8
_CURVE = 2000                                                           # points of the contention curve
_ROOMY = 1.3                                                            # a capacity so many times above what is used is not drawn


def size(value: float) -> str:
    """Bytes as memory is counted: 1,048,576 → "1 MiB", 5,120 → "5 KiB", 4,609 → "4,609 B"; other figures keep four digits."""
    for step, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= step:
            scaled = value / step
            return f"{scaled:,.0f} {unit}" if scaled == round(scaled) or scaled >= 1000 else f"{scaled:.4g} {unit}"
    return f"{value:,.0f} B"


def share(part: float, whole: float) -> str:
    """A small gap as a share: "0.4 %"; more digits where it is smaller."""
    value = 100 * part / whole if whole else 0.0
    return f"{value:.3g} %"


def modules(names: tuple[str, ...], most: int = _COLOURS - 1) -> list[str]:
    """A group for each buffer: its module path down to where paths vary. What holds more than half of the buffers is split one level further, again
    and again ("bert" → "bert.encoder.layer.3"); numbered siblings that are more than `most` stand together in stretches ("layer.0–1"). What is left
    beyond the largest `most` groups is "" (the rest).
    """
    paths = [tuple(part for part in name.split(".") if part) for name in names]
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, path in enumerate(paths):
        if path:
            groups.setdefault(path[:1], []).append(i)
    total = sum(map(len, groups.values()))
    while groups:
        largest = max(groups, key=lambda path: len(groups[path]))
        members, depth = groups[largest], len(largest) + 1
        finer: dict[tuple[str, ...], list[int]] = {}
        for i in members:
            finer.setdefault(paths[i][:depth], []).append(i)
        if 2 * len(members) <= total and len(groups) > 2 or list(finer) == [largest] or len(groups) > 2 * most:
            break
        groups = {path: one for path, one in groups.items() if path != largest} | finer
    called = [""] * len(names)
    for path, members in _stretches(groups, most).items():
        for i in members:
            called[i] = path
    kept = {name for name, _ in Counter(name for name in called if name).most_common(most)}
    return [name if name in kept else "" for name in called]


def _stretches(groups: dict[tuple[str, ...], list[int]], most: int) -> dict[str, list[int]]:
    """Groups by name; where they are more than `most`, the largest family of numbered siblings in so many stretches that all may be named."""
    families: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in groups:
        if path[-1].isdecimal():
            families.setdefault(path[:-1], []).append(path)
    family = sorted(max(families.values(), key=len, default=[]), key=lambda path: int(path[-1]))
    found = {".".join(path): members for path, members in groups.items() if path not in family}
    room = max(2, most - len(found)) if len(groups) > most else len(family)
    length = max(1, -(-len(family) // max(1, room)))
    for at in range(0, len(family), length):
        part = family[at : at + length]
        name = ".".join(part[0]) + (f"–{part[-1][-1]}" if len(part) > 1 else "")
        found[name] = [i for path in part for i in groups[path]]
    return found


# ---- sentences

def sentences(problem: Allocate, found: Solution[np.ndarray]) -> list[str]:
    """What was decided and how good it is, a sentence each."""
    b, p, height = problem.buffers, problem.buffers.parts(), int(found.cost)
    total = int(b.size.sum())
    times = f", {total / height:.3g} times less than one place for each" if height and total > height else ""
    said = [f"{len(b):,} buffer{'s' * (len(b) != 1)} of {size(total)} together {'stand' if len(b) != 1 else 'stands'} in {size(height)} "
            f"({height:,} bytes), by {found.solver}{times}."]
    if b.capacity is not None:
        left = b.capacity - height
        what = f"the capacity of {size(b.capacity)}" if len(b.banks) == 1 else f"the {len(b.banks)} banks of {size(b.capacity)} together"
        said.append(f"That fits {what}; {size(left)} ({share(left, b.capacity)}) stay free." if left else f"That fills {what} to the last byte.")
    if found.bound is not None:
        above = height - found.bound
        said.append(f"No packing needs less than {size(found.bound)}, so this one is optimal." if above <= 0 else
                    f"No packing needs less than {size(found.bound)}: this one is {size(above)} ({share(above, found.bound)}) above that at most.")
    if found.before is not None:
        gain = found.before - height
        said.append(f"An allocator that meets the buffers as they are born (best fit) needs {size(found.before)}"
                    + (f": {size(gain)} ({share(gain, found.before)}) saved." if gain > 0 else ", as many."))
    elif b.capacity is not None:
        said.append(f"An allocator that meets the buffers as they are born (best fit) does not fit: {_baseline(problem)}.")
    return [*said, *_fullest(problem, p)]


def _baseline(problem: Allocate) -> str:
    need = problem.cost(problem.baseline())
    over = need - (problem.capacity or 0)
    return f"it needs {size(need)}, {size(over)} too many" if over > 0 else "it puts some buffer where it must not be"


def _fullest(problem: Allocate, p: Rectangles) -> list[str]:
    b = problem.buffers
    if not p.sections:
        return []
    at = int(np.argmax(p.load))
    live = np.flatnonzero((p.lower <= at) & (at < p.upper))
    order = live[np.argsort(-p.size[live], kind="stable")]
    names = _owners(p, b.ids)
    top = ", ".join(f"{names[int(p.owner[r])]} ({size(int(p.size[r]) * p.unit)})" for r in order[:3])
    peak = int(p.load[at]) * p.unit
    said = [f"Memory is fullest from time {p.times[at]} to {p.times[at + 1]}: {len(live):,} buffer{'s' * (len(live) != 1)} of {size(peak)}"
            + (f", {share(peak, b.capacity)} of the capacity" if b.capacity else "") + f"; the largest: {top}."]
    groups = modules(b.modules)
    first = np.zeros(len(p.extent), np.int64)
    first[p.variable[::-1]] = np.arange(len(b))[::-1]
    held: Counter[str] = Counter()
    for r in live.tolist():
        held[groups[int(first[p.owner[r]])]] += int(p.size[r]) * p.unit
    told = [f"{name} {share(amount, peak)}" for name, amount in held.most_common() if name][:3]
    return [*said, f"By module, of these bytes: {', '.join(told)}."] if told else said


def _owners(p: Rectangles, ids: tuple[str, ...]) -> list[str]:
    """A name for each offset: its first member's."""
    names = [""] * len(p.extent)
    for i in range(len(ids) - 1, -1, -1):
        names[int(p.variable[i])] = ids[i]
    return names


# ---- the page

def write(made: Allocation | MemoryMap, path: Path | str) -> Path:
    """Write the page to `path`. Returns the file's path."""
    path = Path(path)
    replace(path, page(made).encode("utf-8", "replace"))
    return path


def page(made: Allocation | MemoryMap) -> str:
    """The page as HTML text."""
    from jinja2 import Environment
    from markupsafe import Markup

    b, found = made.problem.buffers, made.solution
    picture = _Map(made)
    facts = {
        "name": made.workload.get("name") or "Buffers", "buffers": len(b), "found": found, "size": size, "w": format, "sentences": made.sentences,
        "height": int(found.cost), "capacity": b.capacity, "banks": [*zip(b.bank_names, b.banks.tolist(), strict=True)] if len(b.banks) > 1 else [],
        "top": picture.top, "shows": picture.shows,
        "groups": picture.groups, "drawn": len(picture.rows) <= DRAWN, "count": len(picture.rows), "wide": WIDE, "high": HIGH,
        "low": LOW, "map": Markup(picture.svg()), "lines": Markup(picture.lines()), "curve": Markup(picture.curve()), "first": picture.first,
        "last": picture.last, "table": sorted(made.table, key=lambda row: (row["cost"] is None, row["cost"] or 0.0)), "notes": made.notes,
        "largest": picture.largest(), "data": Markup(script_safe(json.dumps(picture.data(), ensure_ascii=False, allow_nan=False))),
        "css": Markup(asset("page.css") + asset("place.css") + asset("allocate.css")), "script": Markup(asset("allocate.js")),
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("allocate.html")).render(**facts)


class _Map:
    """The rectangles on a plane of sections × bytes: `rows` [k] (offset, first section, last + 1, address, bytes), `groups` of modules, `top`."""

    def __init__(self, made: Allocation | MemoryMap) -> None:
        b, p = made.problem.buffers, made.problem.buffers.parts()
        self.made, self.parts = made, p
        self.names = _owners(p, b.ids)
        offsets = np.zeros(len(p.extent), np.int64)
        offsets[p.variable] = made.offsets
        self.at = offsets[p.owner] + p.shift * p.unit
        self.rows = np.stack([p.owner, p.lower, p.upper, self.at, p.size * p.unit], 1).astype(np.int64)
        used = int(max(int((made.offsets + b.size).max(initial=1)), int(made.solution.bound or 0)))
        room = b.capacity or 0
        self.top = max(used, room) if len(b.banks) > 1 or room <= _ROOMY * used else used   # a capacity far above would leave the map empty
        self.shows = room <= self.top
        groups = modules(b.modules)
        self.groups = sorted({name for name in groups if name})
        index = {name: i for i, name in enumerate(self.groups)}
        plain = not self.groups                                         # no modules: colours tell neighbours apart
        self.colour = np.zeros(len(p.extent), np.int64)
        for i in range(len(b) - 1, -1, -1):
            v = int(p.variable[i])
            self.colour[v] = v % (_COLOURS - 1) if plain else index.get(groups[i], _COLOURS - 1)
        self.first, self.last = (int(p.times[0]), int(p.times[-1])) if p.sections else (0, 0)

    def svg(self) -> str:
        """The rectangles, where they are few; their titles name them."""
        if len(self.rows) > DRAWN or not self.parts.sections:
            return ""
        wide, high = WIDE / self.parts.sections, HIGH / self.top
        times = self.parts.times
        out = []
        for v, low, up, at, bytes_ in self.rows.tolist():
            title = f"{self.names[v]}: {size(bytes_)} at {at:,}, from {times[low]} to {times[up]}"
            out.append(f'<rect class="c{self.colour[v]}" x="{low * wide:.2f}" y="{HIGH - (at + bytes_) * high:.2f}" width="{(up - low) * wide:.2f}" '
                       f'height="{max(bytes_ * high, 0.2):.2f}"><title>{escape(title)}</title></rect>')
        return "".join(out)

    def lines(self) -> str:
        """Capacity, borders of banks, and the bound, as lines over the map."""
        return "".join(f'<line class="{kind}" x1="0" x2="{WIDE}" y1="{HIGH - y / self.top * HIGH:.2f}" y2="{HIGH - y / self.top * HIGH:.2f}"/>'
                       for kind, y in self.marks())

    def marks(self) -> list[tuple[str, int]]:
        """(limit or bound, address) of each line."""
        b = self.made.problem.buffers
        marks = [("limit", int(end)) for end in np.cumsum(b.banks).tolist() if end <= self.top]
        return marks + ([("bound", int(self.made.solution.bound))] if self.made.solution.bound is not None and len(b.banks) < 2 else [])

    def curve(self) -> str:
        """Bytes alive over time as an area, with capacity and bound; where there are many sections, the most of each stretch."""
        p, b = self.parts, self.made.problem.buffers
        if not p.sections:
            return ""
        load = p.load * p.unit
        edges = np.linspace(0, p.sections, min(p.sections, _CURVE) + 1).astype(int)
        tops = np.maximum.reduceat(load, edges[:-1])
        scale = LOW / self.top
        path = "".join(f"V{LOW - top * scale:.1f}H{end / p.sections * WIDE:.1f}" for top, end in zip(tops.tolist(), edges[1:].tolist(), strict=True))
        shown = f'<path d="M0,{LOW}{path}V{LOW}Z"/>'
        for kind, y in (("limit", b.capacity), ("bound", self.made.solution.bound)):
            if y is not None and y <= self.top:
                shown += f'<line class="{kind}" x1="0" x2="{WIDE}" y1="{LOW - y * scale:.2f}" y2="{LOW - y * scale:.2f}"/>'
        return shown

    def largest(self, most: int = 20) -> list[dict[str, object]]:
        """The buffers with most bytes × time, for a table."""
        p = self.parts
        area = np.zeros(len(p.extent))
        np.add.at(area, p.owner, p.size.astype(float) * (p.times[p.upper].astype(float) - p.times[p.lower]) if len(p.owner) else np.zeros(0))
        b = self.made.problem.buffers
        rows = []
        for v in np.argsort(-area, kind="stable")[:most].tolist():
            i = int(np.flatnonzero(p.variable == v)[0])
            rows.append({"name": b.ids[i], "module": b.modules[i], "size": int(b.size[i]), "lower": int(b.lower[i]), "upper": int(b.upper[i]),
                         "offset": int(self.made.offsets[i])})
        return rows

    def data(self) -> dict[str, object]:
        """What the script draws and names, where there are too many rectangles for SVG; addresses as shares of 65,535, finer than a screen."""
        if len(self.rows) <= DRAWN:
            return {}
        scale = 65_535 / self.top
        v, low, up, at, bytes_ = self.rows.T
        return {"sections": self.parts.sections, "owner": v.tolist(), "lower": low.tolist(), "upper": up.tolist(),
                "at": np.round(at * scale).astype(int).tolist(), "high": np.maximum(1, np.round(bytes_ * scale)).astype(int).tolist(),
                "size": bytes_.tolist(), "colour": self.colour.tolist(), "names": self.names, "top": self.top,
                "marks": [[kind, round(y * scale)] for kind, y in self.marks()]}
