"""Layouts of serving for their readers: what decides each phase in sentences, the front of latency against throughput as a picture, one page with
both.

The picture has the axes of figure 1 of Pope et al. (2022): latency to the right, chip-seconds a token upwards, both logarithmic; down and left is
better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.report import format
from fourfold.report.html import asset
from fourfold.report.json import replace

if TYPE_CHECKING:
    from fourfold.cost.serving import ServingCost
    from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem
    from fourfold.plans import Document

PAGE = "layout.html"
WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 920, 460, 84, 24, 34, 56         # of the picture, px
_PARTS = (("projections", "products with weights"), ("attention", "attention"), ("launches", "starting kernels"),
          ("exposed", "collectives of activations"), ("gather", "waiting for gathered weights"), ("head", "logits"))
_CLASSES = {"WS-1D": "simple", "WS-2D": "front", "WG-X": "knee", "WG-XY": "knee", "WG-XYZ": "original"}
_CHOICES = {"WS-1D": "weights stay, the feed-forward dimension split over all chips", "WS-2D": "weights stay, split in both dimensions",
            "WG-X": "weights gathered over one axis", "WG-XY": "weights gathered over two axes", "WG-XYZ": "every chip gathers each layer whole"}


def sentences(problem: ServingLayoutProblem, answer: Layouts) -> list[str]:
    """What decides each phase: the layout, where its time goes, what a chip holds, and how far behind the others are."""
    from fourfold.decisions.layout._candidates import every
    from fourfold.decisions.layout.problem import faults

    said = []
    for phase, layout, cost in zip(problem.phases, answer, problem.parts(answer), strict=True):
        title = layout.title(problem.chips)
        along = f", {' and '.join(layout.x)} for {'the width' if layout.scheme == 'ws-2d' else 'the batch'}" if layout.x else ""
        a_pass = f"{format.span(cost.step)} a token" if phase.kind == "decode" else f"{format.span(cost.seconds)}"
        said.append(f"{phase.kind.capitalize()} of {phase.batch:,} × {phase.tokens:,} tokens takes {a_pass} at {format.percent(cost.mfu)} of peak "
                    f"with {title} ({_CHOICES[title]}{along}), queries and cache split by {layout.attention}.")
        parts = sorted(((getattr(cost, key) / cost.seconds, what) for key, what in _PARTS), reverse=True)
        said.append(f"Its time: {', '.join(f'{format.percent(part)} {what}' for part, what in parts if part >= 0.005)}"
                    + (f"; {format.span(cost.hidden)} of gathering weights is hidden behind computing." if cost.hidden else "."))
        said.append(f"A chip holds {format.size(cost.resident)} of {format.size(problem.chips.memory)}: "
                    f"{', '.join(f'{what} {format.size(size)}' for what, size in cost.bytes.items() if size)}.")
        rest: dict[str, float] = {}
        for other in every(problem.chips):
            if (name := other.title(problem.chips)) != title and not faults(problem.dims, problem.chips, phase, other):
                value = _cost(problem, phase, other).seconds
                rest[name] = min(value, rest.get(name, math.inf))
        if rest:
            behind = sorted(rest.items(), key=lambda item: item[1])
            said.append(f"Behind it: {', '.join(f'{name} {value / cost.seconds:.3g} × as long' for name, value in behind)}.")
    return said


def _cost(problem: ServingLayoutProblem, phase: object, layout: object) -> ServingCost:
    from fourfold.cost.serving import serving_cost

    return serving_cost(problem.dims, phase, problem.chips, layout)    # pyright: ignore[reportArgumentType]


# ---- the picture

def picture(rows: Sequence[Mapping[str, object]], phase: str, chosen: int) -> str:
    """The front of a phase as SVG: a mark for each batch size, the chosen one ringed. Rows without a layout are left out."""
    marks = [(float(str(row["latency"])), float(str(row["chip_seconds"])), row) for row in rows if row["latency"] is not None]
    if not marks:
        return ""
    x0, x1 = _range([x for x, _, _ in marks])
    y0, y1 = _range([y for _, y, _ in marks])

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / x0) / math.log(x1 / x0)
        up = math.log(y / y0) / math.log(y1 / y0)
        return LEFT + across * (WIDE - LEFT - RIGHT), HIGH - BOTTOM - up * (HIGH - TOP - BOTTOM)

    parts = [f'<svg class="plot" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(phase)}: chip-seconds a token against latency, a mark a '
             f'batch size"><style>{asset("plot.css")}</style><rect width="{WIDE}" height="{HIGH}" fill="var(--paper)"/>']
    for value in _decades(x0, x1):
        x, _ = at(value, y0)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HIGH - BOTTOM}"/>'
                     f'<text x="{x:.1f}" y="{HIGH - BOTTOM + 18}" text-anchor="middle">{escape(format.span(value))}</text>')
    for value in _decades(y0, y1):
        _, y = at(x0, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(format.span(value))}</text>')
    latency = "Latency of the prefill" if phase == "prefill" else "Latency of a token"
    parts.append(f'<text class="axis" x="{LEFT}" y="18">Chip-seconds a token</text>'
                 f'<text class="axis" x="{WIDE - RIGHT}" y="{HIGH - 12}" text-anchor="end">{latency}</text>')
    line = sorted((x, y) for x, y, row in marks if row["front"])
    parts.append(f'<path class="stair" d="M{" L".join(f"{a:.1f},{b:.1f}" for a, b in (at(x, y) for x, y in line))}"/>' if len(line) > 1 else "")
    for i, (x, y, row) in enumerate(sorted(marks, key=lambda mark: mark[0])):
        a, b = at(x, y)
        kind = _CLASSES.get(str(row["title"]), "other")
        ring = f'<circle class="halo" cx="{a:.1f}" cy="{b:.1f}" r="11"/>' if row["batch"] == chosen else ""
        name = f"{row['batch']} · {row['title']}" if row["front"] or row["batch"] == chosen else str(row["batch"])
        under = i % 2 == 1                                              # names of neighbours stand above and below in turn
        told = f'<title>batch {row["batch"]}, {escape(str(row["title"]))}</title>'
        centre = min(max(a, LEFT + 40), WIDE - RIGHT - 44)
        parts.append(f'<g class="{kind}">{ring}<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="6">{told}</circle>'
                     f'<text x="{centre:.1f}" y="{b + (24 if under else -14):.1f}" text-anchor="middle">{escape(name)}</text></g>')
    return "".join(parts) + "</svg>"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low / 1.3, high * 1.3) if high / low < 1e6 else (low, high)


def _decades(low: float, high: float) -> list[float]:
    found: list[float] = []
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in mantissas
                 if low <= m * 10.0**d <= high]
        if len(found) <= 8:
            break
    return found


# ---- the page

def write(document: Document, folder: Path) -> list[Path]:
    """Write layout.html and a picture a phase (prefill.svg, decode.svg) into `folder`; their paths."""
    solution = document.solutions["layout"]
    written = [folder / PAGE]
    replace(written[0], page(document))
    for row in solution["rows"]:
        written.append(folder / f"{row['phase']['kind']}.svg")
        drawn = picture(row["front"], row["phase"]["kind"], row["phase"]["batch"])
        replace(written[-1], drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n")
    return written


def page(document: Document) -> str:
    """The page as HTML text."""
    from jinja2 import Environment
    from markupsafe import Markup

    solution = document.solutions["layout"]
    facts = {"name": document.workload["name"], "machine": document.machine["name"], "parameters": document.workload["parameters"],
             "solution": solution, "css": Markup(asset("page.css")), "w": format, "choices": _CHOICES,
             "pictures": [Markup(picture(row["front"], row["phase"]["kind"], row["phase"]["batch"])) for row in solution["rows"]]}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("serving_layout.html")).render(**facts)
