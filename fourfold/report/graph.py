"""plan.html: a plan in one file that loads nothing from elsewhere: figures, decisions, timelines, memory, the graph as boxes, the solvers."""

from __future__ import annotations

import base64
import json
import zlib
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.report import format, trace
from fourfold.report import timeline as strips
from fourfold.report.graph_layout import GROUP, MODULE, OP, Item, boxes
from fourfold.report.html import asset
from fourfold.report.json import replace
from fourfold.report.modules import shape

if TYPE_CHECKING:
    from fourfold.plans import Plan

_FLOW = 8                                                               # a box of more layers, all of them narrow, reads like lines of text
_NARROW = 3


def write(plan: Plan, folder: Path | str, execution: object = None) -> list[Path]:
    """Write plan.html and trace.json (trace.json.gz where large) into `folder`, with what was measured where an `Execution` is given; the paths."""
    root = Path(folder)
    replace(root / "plan.html", page(plan, execution).encode("utf-8", "replace"))
    return [root / "plan.html", trace.write(plan, root, execution)]


def page(plan: Plan, execution: object = None) -> str:
    """The page as HTML text."""
    from jinja2 import Environment
    from markupsafe import Markup

    timeline = plan.timeline(memory=True)
    root = boxes(plan)
    rows, held = strips.strips(plan, timeline, execution), strips.curves(plan, timeline)
    last = "predicted" if execution is None else "measured"              # the strip of a device above its memory
    whole = max([timeline.makespan, *(float(row.finish.max()) for row in rows if len(row.finish))])
    task = _items_of_tasks(plan, root)
    facts = {
        "plan": plan, "timeline": timeline, "execution": execution, "w": format, "size": format.size,
        "headline": headline(plan), "proof": proof(plan), "cost": lambda value: amount(plan, value),
        "devices": _devices(plan, timeline), "sentences": plan.sentences, "groups": root.groups, "whole": whole,
        "table": sorted(plan.table, key=lambda row: (row["cost"] is None, row["cost"] or 0.0)),
        "strips": [(row, Markup(strips.drawn(row, whole)), next((c for c in held if row.kind == last and c.device == row.device), None))
                   for row in rows],
        "area": lambda curve: Markup(strips.area(curve, whole)), "wide": strips.WIDE, "high": strips.HIGH, "low": strips.LOW,
        "boxes": Markup(_drawn(plan, root)), "shown": sum(len(item.items) for item in root.walk() if item.open),
        "data": Markup(packed(_data(plan, root, rows, held, whole, task))),
        "css": Markup(asset("page.css") + asset("place.css") + asset("plan.css")), "script": Markup(asset("plan.js")),
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("plan.html")).render(**facts)


# ---- words

def amount(plan: Plan, value: float | None) -> str:
    """A cost in the plan's unit, as a reader reads it."""
    if value is None:
        return "–"
    if plan.unit == "J":
        return format.joules(value)
    return format.size(value) if plan.unit == "B" else format.span(value)


def headline(plan: Plan) -> tuple[str, str, str]:
    """(before, figure, after) of the page's title."""
    what = {"latency": "A step in {}", "throughput": "A step every {}", "energy": "A step for {}", "memory": "{} on the fullest device"}
    now = what.get(plan.objective, "{}").format(amount(plan, plan.cost))
    if plan.before is None or plan.saving is None:
        return f"{now}, where the default cannot run." if plan.why else f"{now}.", "", ""
    if abs(plan.saving) < 0.0005:
        return f"{now}, as by default.", "", ""
    return f"{now} instead of {amount(plan, plan.before)}: ", format.percent(abs(plan.saving)), f" {'less' if plan.saving > 0 else 'more'}."


def proof(plan: Plan) -> str:
    """How near to the best the plan is proven to be."""
    if plan.bound is None or plan.gap is None:
        return "How far from the best it may be is not proven."
    if plan.gap <= 1e-9:
        return f"Proven optimal: no valid plan is below {amount(plan, plan.bound)}."
    if plan.gap > 9:
        return f"No valid plan is below {amount(plan, plan.bound)}, a bound that says little here."
    return f"No valid plan is below {amount(plan, plan.bound)}; this one is at most {format.percent(plan.gap)} above it."


def _devices(plan: Plan, timeline: Any) -> list[dict[str, object]]:
    place, _ = plan.of_tasks
    return [{"name": device.name, "colour": d % 8, "share": float(timeline.busy[d] / timeline.makespan) if timeline.makespan else 0.0,
             "peak": int(timeline.peak_bytes[d]), "limit": device.memory, "tasks": int((place == d).sum())}
            for d, device in enumerate(plan.system.devices)]


# ---- boxes

def flows(item: Item) -> bool:
    """Whether its layers stand side by side, in lines, as text does: many of them, all narrow."""
    return len(item.rows) >= _FLOW and max(map(len, item.rows)) <= _NARROW


def told(plan: Plan, item: Item) -> str:
    """The small print of a box."""
    seconds = float(item.seconds.sum())
    where = [plan.system.devices[d].name for d in np.flatnonzero(_shares(item))]
    parts = [f"{item.ops:,} ops"] * (item.kind != OP) + [format.span(seconds)] * (seconds > 0) + where[:1] * (len(where) == 1)
    return " · ".join(parts)


def _shares(item: Item) -> np.ndarray:
    """f8[D] of its seconds; of its place alone where it takes no time."""
    return item.seconds / item.seconds.sum() if item.seconds.sum() > 0 else np.zeros_like(item.seconds)


def _colour(plan: Plan, item: Item) -> tuple[int, str]:
    """(the device, or −1 where there are several; the colours of its bar)."""
    shares = _shares(item)
    used = np.flatnonzero(shares)
    if len(used) <= 1:
        device = int(used[0]) if len(used) else int(plan.place[item.first])
        return device, f"var(--d{device % 8})"
    ends = np.cumsum(shares[used]) * 100
    stops = ",".join(f"var(--d{d % 8}) {a:.1f}% {b:.1f}%" for d, a, b in zip(used.tolist(), [0.0, *ends[:-1]], ends, strict=True))
    return -1, f"linear-gradient(90deg,{stops})"


def _drawn(plan: Plan, item: Item) -> str:
    """The boxes of the first view as HTML; the script makes those that are opened later in the same form."""
    device, colours = _colour(plan, item)
    kind = {MODULE: "m", GROUP: "g", OP: "o"}[item.kind]
    tint = f"--c:var(--d{device % 8});" if device >= 0 else ""
    name = escape(item.name or plan.graph.name or "graph")
    head = f'<span class="n">{name}</span><small>{escape(told(plan, item))}</small>'
    if item.items:
        head = f'<button type="button" class="h" aria-expanded="{str(item.open).lower()}">{head}</button>'
    else:
        head = f'<span class="h" tabindex="0">{head}</span>'
    inner = ""
    if item.open:
        rows = "".join(f'<div class="r">{"".join(_drawn(plan, item.items[spot]) for spot in row)}</div>' for row in item.rows)
        inner = f'<div class="rows{" flow" * flows(item)}">{rows}</div>'
    return (f'<div class="box {kind}{" on" * (device >= 0)}{" open" * item.open}" data-i="{item.number}" title="{escape(item.title)}" '
            f'style="{tint}--g:{colours}">{head}<i class="bar"></i>{inner}</div>')


# ---- what the script reads

def _items_of_tasks(plan: Plan, root: Item) -> list[int]:
    """The box of each task."""
    found = [0] * len(plan.tasks)
    for item in root.walk():
        if item.kind == GROUP or item.kind == OP and (item.parent is None or item.parent.kind != GROUP):
            found[int(plan.tasks.group[item.nodes[0]])] = item.number
    return found


def _data(plan: Plan, root: Item, rows: list[strips.Strip], held: list[strips.Curve], whole: float, task: list[int]) -> dict[str, object]:
    """Columns over all boxes, and the strips; times in whole nanoseconds."""
    graph, items = plan.graph, list(root.walk())
    shares = {item.number: [float(f"{one:.3g}") for one in _shares(item)] for item in items if item.kind == MODULE and (_shares(item) > 0).sum() > 1}
    outs = {item.number: ", ".join(shape(graph, int(v)) for v in graph.outputs_of(item.nodes[0])[:4]) for item in items if item.kind == OP}
    made: dict[str, int] = {}
    tasks, sent = plan.tasks, plan.timeline().transfers
    return {
        "graph": graph.name, "devices": [device.name for device in plan.system.devices],
        "kind": "".join({MODULE: "m", GROUP: "g", OP: "o"}[item.kind] for item in items),
        "name": [item.name for item in items], "title": [item.title for item in items],
        "parent": [-1 if item.parent is None else item.parent.number for item in items],
        "device": [_colour(plan, item)[0] for item in items], "shares": shares,
        "ops": [item.ops for item in items], "groups": [item.groups for item in items],
        "flops": [float(f"{item.flops:.4g}") for item in items], "bytes": [item.bytes for item in items],
        "ns": [round(float(item.seconds.sum()) * 1e9) for item in items],
        "shape": [made.setdefault(outs[item.number], len(made)) if item.number in outs else -1 for item in items], "shapes": list(made),
        "rows": {item.number: item.rows for item in items if item.items}, "flow": [item.number for item in items if item.items and flows(item)],
        "edges": {item.number: [one for edge in item.edges for one in edge] for item in items if item.edges},
        "whole": round(whole * 1e9), "task": task,
        "strips": [{"title": row.title, "kind": row.kind, "device": row.device, "start": _ns(row.start), "finish": _ns(row.finish),
                    "what": row.what.tolist()} for row in rows],
        "sent": {"bytes": tasks.size[sent.value].tolist(), "from": tasks.producer[sent.value].tolist(), "to": sent.target.tolist()},
        "curves": [{"at": _ns(curve.at), "held": curve.held.tolist(), "end": round(curve.end * 1e9), "top": curve.top, "limit": curve.limit,
                    "peak": curve.peak} for curve in held],
    }


def _ns(seconds: np.ndarray) -> list[int]:
    return np.round(seconds * 1e9).astype(np.int64).tolist()


def packed(data: object) -> str:
    """JSON, deflated, as base64: safe in any element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode()
