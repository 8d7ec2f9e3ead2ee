"""A model split over the chips of a package, for its readers: what each stage takes, in sentences what decides the throughput, and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.report import format
from fourfold.report.html import asset
from fourfold.report.json import replace

_BOUNDS = {"average": "all compute shared out evenly", "op": "the longest op",
           "pair": "an edge and all that stands between its ends, on two chips at most"}


def stages(problem: ChipletPartition, chip: np.ndarray, names: Sequence[str]) -> list[dict[str, object]]:
    """A row a chip: name, ops, compute_s, sending_s (0 where the link moves bytes beside the compute), share of the slowest, bytes, limit_bytes."""
    compute, sending, _ = problem.stages(chip)
    top = float((compute + sending).max(initial=0.0))
    ops = np.bincount(chip, minlength=problem.package.chips)
    return [{"name": name, "ops": int(ops[c]), "compute_s": float(compute[c]), "sending_s": float(sending[c]),
             "share": float((compute[c] + sending[c]) / top) if top else 0.0, "bytes": problem.held(chip, c) if ops[c] else 0.0,
             "limit_bytes": problem.package.memory} for c, name in enumerate(names)]


def sentences(problem: ChipletPartition, chip: np.ndarray, names: Sequence[str], total: int) -> list[str]:
    """What decides the throughput, a sentence each. total: ops of the captured program, those done on every chip included."""
    w = problem.workload
    compute, sending, passing = problem.stages(chip)
    stage = compute + sending
    full, used = int(np.argmax(stage)), int(chip.max(initial=0)) + 1
    said = [f"{used} of {len(names)} chips hold the {len(w):,} ops; every op sends to its own chip or a later one, and no chip is skipped."]
    if total > len(w):
        early = format.span(w.base_seconds)
        said.append(f"{total - len(w):,} ops that depend on inputs alone (masks, positions) are done on every chip: {early} each.")
    slowest = float(passing.max(initial=0.0))
    copied = f" and {format.span(float(sending[full]))} of sending" if sending[full] else ""
    least, computing = format.span(float(stage[full])), format.span(float(compute[full]))
    said.append(f"The slowest stage is {names[full]}: {computing} of compute{copied}; the package gives a sample every {least}."
                if slowest <= stage[full] else
                f"The slowest stage is a link: its transfers take {format.span(slowest)} a sample, the fullest chip {least}.")
    parts = problem.parts
    best = max(parts, key=lambda name: parts[name])
    said.append(f"What bounds it before any search is {_BOUNDS[best]}: {format.span(parts[best])}.")
    value = np.repeat(np.arange(len(w.maker)), np.diff(w.readers.ptr))
    away = np.unique(np.stack([value, chip[w.readers.item].astype(np.int64)], 1)[chip[w.readers.item] != chip[w.maker[value]]], axis=0)
    moved = float(w.size[away[:, 0]].sum()) if len(away) else 0.0
    said.append(f"{len(away):,} copies of values cross between chips, {format.size(moved)} a sample." if len(away) else
                "Nothing crosses between chips.")
    held = max(range(used), key=lambda c: problem.held(chip, c))
    said.append(f"{names[held]} holds most: {format.size(problem.held(chip, held))} of {format.size(problem.package.memory)}.")
    return said


def write_page(solution: Mapping[str, object], workload: Mapping[str, object], machine: Mapping[str, object], file: Path) -> Path:
    """Write the page of a partition. Returns its path."""
    replace(file, page(solution, workload, machine))
    return file


def page(solution: Mapping[str, object], workload: Mapping[str, object], machine: Mapping[str, object]) -> str:
    """The page as HTML text: the stages as bars, compute and sending, with the bound; why; the solvers asked."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    facts = {"solution": solution, "workload": workload, "machine": machine, "w": format, "bars": Markup(bars(solution)),
             "css": Markup(asset("page.css")), "hash": json.dumps(solution["hash"])}
    return environment.from_string(asset("chiplets.html")).render(facts)


def bars(solution: Mapping[str, object], wide: int = 920, high: int = 260) -> str:
    """An SVG of the stages: a bar a chip, compute below and sending above, and a line at the bound."""
    rows = [row for row in solution["stages"] if isinstance(row, Mapping)]             # type: ignore[attr-defined]
    bound = solution["bound"]
    top = max([row["compute_s"] + row["sending_s"] for row in rows] + [float(bound) if isinstance(bound, float) else 0.0]) or 1.0
    step, base = wide / max(1, len(rows)), high - 20
    drawn = [f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="Seconds of each of {len(rows)} stages">']
    for k, row in enumerate(rows):
        x, width = k * step + 0.1 * step, 0.8 * step
        first, more = row["compute_s"] / top * (base - 10), row["sending_s"] / top * (base - 10)
        told = f"{row['name']}: {row['ops']} ops, compute {format.span(row['compute_s'])}, sending {format.span(row['sending_s'])}"
        drawn.append(f'<g><title>{told}</title><rect x="{x:.1f}" y="{base - first:.1f}" width="{width:.1f}" height="{first:.1f}" fill="#4477aa"/>'
                     f'<rect x="{x:.1f}" y="{base - first - more:.1f}" width="{width:.1f}" height="{more:.1f}" fill="#ee8866"/></g>')
        if len(rows) <= 40:
            drawn.append(f'<text x="{x + width / 2:.1f}" y="{high - 6}" font-size="9" text-anchor="middle" fill="currentColor">{k}</text>')
    if isinstance(bound, float):
        y = base - bound / top * (base - 10)
        drawn.append(f'<line x1="0" x2="{wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-dasharray="6 4"/>')
    return "".join([*drawn, "</svg>"])
