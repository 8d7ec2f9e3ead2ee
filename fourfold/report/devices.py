"""A plan over several devices for its readers: sentences, a page with meshes, tensors, collectives and the pipeline's timeline, a Perfetto trace."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fourfold.cost.pipeline import PipelineTimeline, play
from fourfold.report import format
from fourfold.report.html import asset
from fourfold.report.json import replace
from fourfold.report.trace import save

if TYPE_CHECKING:
    from fourfold.plans import Document

Row = Mapping[str, object]
_DRAWN = 32                                                             # microbatches drawn


def _rows(value: object) -> Sequence[Row]:
    return cast(Sequence[Row], value)


def _number(value: object) -> float:
    return float(cast(float, value))


def sentences(facts: Mapping[str, object], cost: float, before: float | None) -> list[str]:
    """What was decided and why, a sentence each."""
    stages, by_hand = _rows(facts["stages"]), _rows(facts["by_hand"])
    used = sum(len(cast(Sequence[int], stage["devices"])) for stage in stages)
    devices = int(_number(facts["hosts"])) * int(_number(facts["each"]))
    said = [f"{len(stages)} stage{'s' * (len(stages) != 1)} on {used} of {devices} devices; {format.span(cost)} a step of "
            f"{facts['microbatches']} microbatch{'es' * (facts['microbatches'] != 1)}."]
    for s, stage in enumerate(stages):
        first, last = cast(Sequence[int], stage["layers"])
        split = [row for row in _rows(stage["tensors"]) if row["parameter"] and "'" in str(row["spec"])]
        largest = next((row for row in _rows(stage["tensors"]) if row["parameter"]), None)
        what = f"layers {first} to {last}" if first != last else f"layer {first}"
        lies = "" if largest is None else f"; its largest tensor {largest['name']} lies as {largest['spec']}"
        said.append(f"Stage {s} holds {what} on a mesh {stage['mesh']}: {format.span(_number(stage['seconds']))} a microbatch, "
                    f"{format.size(_number(stage['bytes']))} a device{lies}"
                    + (f"; {len(split)} of its {len(_rows(stage['tensors']))} largest are split." if split else "; no parameter is split."))
        if len(stages) > 8 and s == 2:
            said.append(f"Stages 3 to {len(stages) - 1} likewise: the page shows each.")
            break
    times = [_number(stage["seconds"]) for stage in stages]
    if len(times) > 1:
        worst = max(range(len(times)), key=times.__getitem__)
        said.append(f"Stage {worst} is the slowest and sets the pace: while the pipeline is full, devices wait "
                    f"{format.percent(1 - sum(times) / len(times) / max(times))} of the time on average.")
    for row in by_hand:
        if row["cost"] is None:
            said.append(f"{str(row['plan'])[:1].upper()}{str(row['plan'])[1:]} does not fit: {row['why']}")
        else:
            more = f"{_number(row['cost']) / cost:.3g}"
            said.append(f"{str(row['plan'])[:1].upper()}{str(row['plan'])[1:]} takes {format.span(_number(row['cost']))}, "
                        + ("as long." if more == "1" else f"{more} times as long."))
    relaxation = facts.get("relaxation")
    if relaxation is not None:
        said.append(f"No pipeline of this table takes less than {format.span(_number(relaxation))} by a relaxation that knows no solver; the layouts "
                    f"inside of stages are proven the quickest on {facts['exact']} of {facts['meshes']} meshes, each for the whole program.")
    return said


# ---- page and trace


def timeline(solution: Mapping[str, object], most: int = _DRAWN) -> PipelineTimeline:
    """The first microbatches of the plan, played."""
    told = cast(Mapping[str, Sequence[float]], solution["timeline"])
    count = min(most, int(_number(solution["microbatches"])))
    return play(list(told["forward"]), list(told["backward"]), count, str(solution["schedule"]))


def trace(document: Document) -> dict[str, object]:
    """The pipeline in the Trace Event Format: a thread a stage, a slice a pass of a microbatch, in microseconds."""
    solution = document.solutions["stages"]
    played = timeline(solution, 256)
    events: list[dict[str, object]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "predicted"}}]
    for s, stage in enumerate(_rows(solution["stages"])):
        events.append({"ph": "M", "pid": 1, "tid": s + 1, "name": "thread_name", "args": {"name": f"stage {s}: {stage['config']}"}})
    for one in sorted(played.passes, key=lambda p: (p.device, p.start)):
        if one.end > one.start:
            events.append({"ph": "X", "pid": 1, "tid": one.device + 1, "name": f"{'backward' if one.backward else 'forward'} {one.microbatch}",
                           "ts": round(1e6 * one.start, 3), "dur": round(1e6 * (one.end - one.start), 3),
                           "args": {"stage": one.stage, "microbatch": one.microbatch}})
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"graph": document.workload["name"], "system": document.machine["name"]}}


def write(document: Document, folder: Path) -> list[Path]:
    """Write the page (devices.html where a schedule's plan.html stands there already) and trace.json."""
    page_file = folder / ("devices.html" if "schedule" in document.solutions else "plan.html")
    replace(page_file, page(document))
    return [page_file, save(json.dumps(trace(document)).encode(), folder)]


def page(document: Document) -> str:
    """One file that loads nothing from elsewhere."""
    solution, e = document.solutions["stages"], html.escape
    stages = _rows(solution["stages"])
    title = f"{document.workload['name']} on {solution['hosts']} × {solution['each']} devices of {document.machine['name']}"
    parts = [f"<header class='top'><p class='eyebrow'>{e(title)}</p><h1>{e(format.span(_number(solution['cost'])))} a step</h1>",
             "<ul class='why'>", *(f"<li>{e(str(line))}</li>" for line in cast(Sequence[str], solution["sentences"])), "</ul></header><main>",
             "<section><h2>The pipeline</h2>", _drawn(solution),
             _table(("schedule", "step", "idle", "activations of the fullest device"),
                    [(str(row["schedule"]), format.span(_number(row["seconds"])), format.percent(_number(row["bubble"])),
                      format.size(max(cast(Sequence[float], row["bytes"]))))
                     for row in _rows(cast(Mapping[str, object], solution["timeline"])["schedules"])]), "</section>",
             "<section><h2>By hand</h2>",
             _table(("plan", "step", "against this plan"),
                    [(str(row["plan"]), "–" if row["cost"] is None else format.span(_number(row["cost"])),
                      str(row["why"]) if row["cost"] is None else f"× {_number(row['cost']) / _number(solution['cost']):.3g}")
                     for row in _rows(solution["by_hand"])]), "</section>"]
    for s, stage in enumerate(stages):
        ranks = ", ".join(map(str, cast(Sequence[int], stage["devices"])))
        parts += [f"<section><h2>Stage {s}: {e(str(stage['config']))}</h2>",
                  f"<p>Devices {ranks}; mesh {e(str(stage['mesh']))}; {stage['nodes']} operations of "
                  f"{e(', '.join(cast(Sequence[str], stage['modules'])[:12]))}; {e(format.span(_number(stage['seconds'])))} a microbatch, "
                  f"{e(format.size(_number(stage['bytes'])))} a device.</p>",
                  _table(("tensor", "shape", "layout", "a device"),
                         [(str(row["name"]), "×".join(map(str, cast(Sequence[int], row["shape"]))) + f" {row['dtype']}",
                           str(row["spec"]) + " + split state" * bool(row["state"]), format.size(_number(row["bytes"])))
                          for row in _rows(stage["tensors"])]),
                  _table(("collective", "axis", "number", "bytes", "time"),
                         [(str(row["collective"]), str(row["axis"]), f"{row['count']:,}", format.size(_number(row["bytes"])),
                           format.span(_number(row["seconds"]))) for row in _rows(stage["collectives"])]) if stage["collectives"] else
                  "<p>Nothing is communicated in the forward pass.</p>", "</section>"]
    style = ("table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em .2em 0;text-align:left;font-variant-numeric:tabular-nums}"
             "section{overflow-x:auto}.f{fill:#4c78a8}.b{fill:#f2a541}svg{width:100%;height:auto}")
    return ("<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
            "<meta name='color-scheme' content='light dark'>"
            "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<title>{e(title)}</title><style>{asset('page.css')}{style}</style></head><body>{''.join(parts)}</main></body></html>\n")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    e = html.escape
    head = "".join(f"<th scope='col'>{e(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>" + "".join(
        "<tr>" + "".join(f"<td>{e(cell)}</td>" for cell in row) + "</tr>" for row in rows) + "</tbody></table>"


def _drawn(solution: Mapping[str, object]) -> str:
    """A strip a stage, a box a pass."""
    played, count = timeline(solution), len(_rows(solution["stages"]))
    wide, high = 1000.0, 22.0
    scale = wide / played.seconds if played.seconds else 0.0
    boxes = [f"<rect class='{'b' if one.backward else 'f'}' x='{scale * one.start:.2f}' y='{high * one.device + 2:.1f}' "
             f"width='{max(0.3, scale * (one.end - one.start) - 0.4):.2f}' height='{high - 4:.1f}'/>" for one in played.passes if one.end > one.start]
    shown = min(_DRAWN, int(_number(solution["microbatches"])))
    return (f"<svg viewBox='0 0 {wide:.0f} {high * count:.0f}' role='img' aria-label='Pipeline of {count} stages over {shown} microbatches: forward "
            f"passes blue, backward passes orange'>{''.join(boxes)}</svg><p>{shown} of {solution['microbatches']} microbatches, forward blue, "
            f"backward orange; {format.percent(played.bubble)} of the time devices are idle.</p>")


__all__ = ["page", "sentences", "timeline", "trace", "write"]
