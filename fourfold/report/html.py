"""report.html: the whole evidence in one file that loads nothing from elsewhere; and the front alone as an SVG picture."""

from __future__ import annotations

import json
import math
import re
from functools import cache, partial
from importlib import resources
from pathlib import Path

from fourfold.report import advice, format, plot, summary, waterfall
from fourfold.report.json import replace
from fourfold.report.schema import BlockRow, CandidateRow, Ends, Report, StackRow, Unit

_WIDE, _NARROW = (920, 480), (374, 400)  # px: what a desktop column and a phone show


def write(report: Report, path: Path | str) -> Path:
    """Write the page for `report` (a dict of fourfold.report.schema.Report) to `path`; a folder gets report.html. Returns the file's path."""
    path = Path(path)
    path = path / "report.html" if path.is_dir() else path
    replace(path, page(report))
    return path


def picture(report: Report, path: Path | str, width: int = _WIDE[0], height: int = _WIDE[1], log: bool = True) -> Path:
    """Write the front alone as an SVG file of `width` × `height` px, light or dark as its viewer is. Returns the file's path."""
    path = Path(path)
    replace(path, plot.draw(report, width, height, log, style=asset("plot.css")) + "\n")
    return path


def page(report: Report) -> str:
    """The page as HTML text. Raises nothing of its own for a sound report."""
    from jinja2 import Environment
    from markupsafe import Markup

    best = None if report["best"] is None else report["candidates"][report["best"]]
    knee = None if report["knee"] is None else report["candidates"][report["knee"]]
    near = report["infeasible"]["nearest"] if report["infeasible"] else []
    subject = best or (report["candidates"][near[0]["candidate"]] if near else None)
    sizes = {"wide": _WIDE, "narrow": _NARROW}
    plots = {f"{name}_{scale}": Markup(plot.draw(report, *size, log=scale == "log")) for name, size in sizes.items() for scale in ("log", "linear")}
    told, pulled = _told(report), report.get("levers")
    facts = {
        "report": report,
        "best": best,
        "knee": knee,
        "subject": subject,
        "quality": summary.quality_of(subject) if subject else None,
        "headline": summary.headline(report),
        "headline_marked": _marked(report),
        "decision": _unbroken(summary.decision(report)),
        "order": _order(report),
        "break_even": summary.break_even(report),
        "near_miss": advice.near_miss(report),
        "lost": advice.lost(report),
        "steps": advice.steps(report),
        "agreed": advice.agrees(report, subject) if subject else "",
        "own": advice.absolute_quality(report, best) if best else None,
        "chained": format.chain([row["factor"]["value"] for row in pulled["rows"]], pulled["total"]["value"])[0] if pulled else [],
        "plots": plots,
        "any_untested": any(not point.tested for point in plot.points(report) if point.kind == "front"),
        "shapes": _shapes(report, subject),
        "falls": _falls(report),
        "levers": pulled,
        "water": waterfall.bars(pulled) if pulled else None,
        "timeline": _timeline(report),
        "first": told.get(next((i for i, row in enumerate(report["candidates"]) if row is subject), -1)),
        "told": Markup(script_safe(json.dumps(told, ensure_ascii=False))),
        "css": Markup(asset("page.css") + asset("plot.css")),
        "script": Markup(asset("page.js")),
    }
    ways = {
        "w": format,
        "bounds": _bounds,
        "limits": _limits,
        "ratio": _ratio,
        "joules": partial(_joules, report),
        "columns": _columns,
        "unit_of": _unit_of,
        "noun": _noun,
        "sublayer": _sublayer,
        "kept_blocks": _kept_blocks,
        "lever_unit": summary.unit_of,
        "why": partial(advice.why, report),
        "agrees": partial(advice.agrees, report),
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("page.html")).render(**facts, **ways)


@cache
def asset(name: str) -> str:
    return (resources.files("fourfold.report") / "templates" / name).read_text(encoding="utf-8")


def script_safe(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _marked(report: Report) -> str:
    """The headline with its figure emphasised."""
    from markupsafe import Markup, escape

    text = summary.headline(report)
    best = None if report["best"] is None else summary.spent(report["candidates"][report["best"]], report["objective"])
    figure = format.percent(report["floor"] if best is None else best["value"])
    before, found, after = str(escape(text)).rpartition(f" {figure}")
    return Markup(f"{before} <em>{figure}</em>{after}") if found else escape(text)


def _unbroken(text: str) -> str:
    """Figures, their intervals and their signs kept on one line (no-break spaces)."""
    return re.sub(r"(?<=\d) (?=%)|(?<=%) (?=\[)|(?<=,) (?=[\d.]+\])", "\u00a0", text)


def _order(report: Report) -> list[int]:
    """All candidates: the front by energy, then the others."""
    front = set(report["front"])

    def key(index: int) -> tuple[bool, float]:
        cost = report["candidates"][index]["relative_energy"]
        return index not in front, math.inf if cost is None else -cost["value"]

    return sorted(range(len(report["candidates"])), key=key)


def _told(report: Report) -> dict[int, list[str]]:
    """What the picture says of a candidate that is pointed at."""
    told = {}
    for index, candidate in enumerate(report["candidates"]):
        quality, test = summary.quality_of(candidate), candidate["test_quality"] is not None
        parts = [candidate["name"], candidate["how"]]
        parts += [f"quality {format.interval(quality)}{'' if test else ' on the search split'}"] if quality else []
        parts += [f"energy {format.interval(candidate['relative_energy'])}", f"{format.count(candidate['parameters'])} parameters"]
        parts += [format.setting(candidate["setting"])] if candidate["setting"] else []
        agreed = advice.agrees(report, candidate)
        parts[3:3] = [f"agrees with the original on {agreed}"] if agreed else []
        reason = advice.why(report, index)
        parts += [reason] if reason else []
        told[index] = parts
    return told


def _shapes(report: Report, subject: CandidateRow | None) -> list[CandidateRow]:
    """Candidates whose layers or cascades are worth showing: the chosen or nearest first, then the knee and the rest of the front."""
    order = [subject, *(report["candidates"][i] for i in ([report["knee"]] if report["knee"] is not None else []) + report["front"])]
    seen: list[CandidateRow] = []
    for candidate in order:
        if candidate is not None and (candidate["structure"] or candidate["cascade"]) and not any(candidate is other for other in seen):
            seen.append(candidate)
    return seen


def _columns(stack: StackRow) -> list[str]:
    """Kinds of sub-layers in a stack, in order of first sight."""
    return list(dict.fromkeys(unit["name"] for block in stack["blocks"] for unit in block["units"]))


def _unit_of(block: BlockRow, name: str) -> Unit | None:
    return next((unit for unit in block["units"] if unit["name"] == name), None)


def _sublayer(name: str) -> str:
    return {"ffn": "feed-forward", "conv": "convolution", "cross_attention": "cross-attention"}.get(name, name.replace("_", " "))


def _noun(stack: StackRow, name: str) -> str:
    """What is counted in that kind of sub-layer: ", heads"."""
    nouns = {unit["what"] for block in stack["blocks"] for unit in block["units"] if unit["name"] == name} - {""}
    return f", {' or '.join(sorted(nouns))}" if nouns else ""


def _joules(report: Report, relative: Ends | None) -> str:
    """Energy per 1,000 examples of something, from the original's and its own share of it."""
    whole = report["baseline"]["joules_per_1000"]
    return "–" if relative is None or whole is None else format.energy({**whole, "value": whole["value"] * relative["value"]})


def _kept_blocks(stack: StackRow) -> int:
    return sum(not block["removed"] for block in stack["blocks"])


def _falls(report: Report) -> list[dict[str, object]]:
    """The factors as bars on a log axis, in per cent of its length; right is the original."""
    rows = report["factors"]
    values = [value for row in rows for value in (row["before"], row["after"])]
    if not values:
        return []
    high = math.log(max(values))
    low = math.log(min(values)) - 0.22 * (high - math.log(min(values)) or 1.0)  # room on the left for the last bar's figure
    spots, (printed, _) = [], format.chain([row["before"] / row["after"] for row in rows], report["total"] or rows[0]["before"] / rows[-1]["after"])
    for row, fall in zip(rows, printed, strict=True):
        ends = sorted((math.log(row["before"]), math.log(row["after"])))
        left, right = (100 * (end - low) / (high - low) for end in ends)
        place = f"right:{100 - left + 1:.2f}%"
        now = format.percent(row["after"])
        spots.append(
            {
                **row,
                "left": f"{left:.2f}",
                "width": f"{max(right - left, 0.4):.2f}",
                "place": place,
                "times": fall,
                "was": format.percent(row["before"]),
                "now": now,
            }
        )
    return spots


def _timeline(report: Report) -> list[dict[str, object]]:
    events = report["timeline"]
    whole = max([report["cost"]["wall_s"], *(event["t"] + event["seconds"] for event in events)], default=0.0) or 1.0
    return [{"best": None, **event, "left": f"{100 * event['t'] / whole:.2f}", "width": f"{100 * event['seconds'] / whole:.2f}"} for event in events]


def _bounds(figure: Ends | None) -> str:
    if figure is None or (figure["low"] is None and figure["high"] is None):
        return "interval not known"
    text = format.interval(figure, False)
    return text[text.index("[") :]


def _limits(figure: Ends | None) -> str:
    text = format.absolute(figure)
    return text[text.index("[") :] if "[" in text else ""


def _ratio(figure: Ends | None) -> str:
    from markupsafe import Markup

    if figure is None:
        return "–"
    ends = "" if figure["low"] is None or figure["high"] is None else f"<br><small>[{figure['low']:.2f}, {figure['high']:.2f}]</small>"
    return Markup(f"{figure['value']:.2f}{ends}")
