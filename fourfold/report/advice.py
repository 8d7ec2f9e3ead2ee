"""What a reader asks after the figures: why the cheaper points lost, which floor would have let one through, what the winner is in absolute terms,
and what to do next."""

from __future__ import annotations

import math
import re
import shlex
from importlib.util import find_spec

from fourfold.report.format import absolute, energy, percent, span
from fourfold.report.schema import CandidateRow, Ends, Report
from fourfold.trust import option

NEAR = 0.03  # a floor missed by more than this is no near miss
TOLD = 4  # cheaper points told by name
ASKED = {
    "texts": ('--text "…"', "new.csv"), "pairs": ("--data new.csv", "new.csv"), "images": ("--data pictures/", "labelled/"),
    "sounds": ("--data sounds/", "labelled/"), "arrays": ("--data new.npz", "labelled.npz"), "rows": ("--data FILE", "FILE"),
}  # what a row is → how `predict` and `verify` are given new ones


def cost_of(report: Report, candidate: CandidateRow) -> float | None:
    """The candidate's relative figure for the objective; None where it was not measured."""
    if report["objective"] == "memory":
        return candidate["relative_memory"]
    figure = candidate["relative_latency" if report["objective"] == "latency" else "relative_energy"]
    return None if figure is None else figure["value"]


def cheaper(report: Report) -> list[int]:
    """Candidates left of the winner (of the original where there is none), those that are nearest in quality first."""
    best = None if report["best"] is None else cost_of(report, report["candidates"][report["best"]])
    limit = 1.0 if best is None else best
    found = []
    for index, row in enumerate(report["candidates"]):
        cost, quality = cost_of(report, row), row["test_quality"] or row["search_quality"]
        if index != report["best"] and cost is not None and cost < limit and quality is not None:
            found.append((row["test_quality"] is None, -(_low(quality)), index))
    return [index for *_, index in sorted(found)]


def why(report: Report, index: int) -> str:
    """Why that candidate is not the answer, in words; "" for the answer itself."""
    row, best = report["candidates"][index], report["best"]
    if index == best:
        return ""
    if row["reason"]:
        return row["reason"]
    test, cost = row["test_quality"], cost_of(report, row)
    if test is None:
        return "it was not among the points that were tested on unseen data"
    if test["low"] is not None and test["low"] < report["floor"]:
        missed = 100 * (report["floor"] - test["low"])
        return f"its lower bound {percent(test['low'])} is {f'{missed:.1f} points' if missed >= 0.05 else 'just'} below the floor"
    if best is None or cost is None:
        return "it is not cheaper than the original beyond doubt"
    if cost > (cost_of(report, report["candidates"][best]) or math.inf):
        return "it holds the floor, and costs more than the chosen one"
    return "it holds the floor taken alone, but not after correction for the points that were tested"


def lost(report: Report) -> list[str]:
    """A line for each of the cheaper points that came nearest."""
    rows = cheaper(report)
    lines = [f"{report['candidates'][i]['name']} at {percent(cost_of(report, report['candidates'][i]))}: {why(report, i)}" for i in rows[:TOLD]]
    return lines + ([f"and {len(rows) - TOLD:,} more, farther below"] if len(rows) > TOLD else [])


def near_miss(report: Report) -> str:
    """The cheaper point that would have passed at the highest lower floor: "c004 at 5.0 % of the cost would have passed at a floor of 96.5 %:
    `--floor 96.5%`."; "" where none is near. What passes is the corrected proof's to say ("passes_at"), never the plain interval's."""
    floor = report["floor"]
    rows = [report["candidates"][index] for index in cheaper(report)]
    close = [row for row in rows if floor - NEAR <= (row.get("passes_at") or 0.0) < floor]
    if not close:
        return ""
    row = max(close, key=lambda one: one.get("passes_at") or 0.0)
    passing = row.get("passes_at") or 0.0
    return (f"{row['name']} at {percent(cost_of(report, row))} of the cost would have passed at a floor of {100 * passing:.1f} %: "
            f"`--floor {100 * passing:.1f}%`.")


def absolute_quality(report: Report, candidate: CandidateRow) -> Ends | None:
    """The candidate's own score in the metric's unit, from the original's and its share of it: {"value", "low", "high"}."""
    from fourfold.datasets.metrics import METRICS

    relative, base = candidate["test_quality"] or candidate["search_quality"], report["baseline"]["quality"]["value"]
    if relative is None:
        return None
    known = METRICS.get(report["data"]["metric"])

    def score(share: float) -> float:
        if known is not None and known.ceiling == "complement":
            return 1 - (1 - base) * share
        return base * share if report["data"]["greater_is_better"] else base / max(share, 1e-12)

    ends = tuple(None if end is None else score(end) for end in (relative["low"], relative["high"]))
    low, high = ends if report["data"]["greater_is_better"] else ends[::-1]
    return {"value": score(relative["value"]), "low": low, "high": high}


def winner(report: Report) -> str:
    """The chosen point in absolute terms: "Chosen: accuracy 0.837 [0.829, 0.845], 2.5 J (modelled), 340 ms CPU and 350 ms per 1,000 examples."."""
    if report["best"] is None:
        return ""
    best, baseline = report["candidates"][report["best"]], report["baseline"]
    parts = [f"{report['data']['metric']} {absolute(absolute_quality(report, best))}"]
    share, slow, joules = best["relative_energy"], best["relative_latency"], baseline["joules_per_1000"]
    if share is not None:
        parts += [energy({**joules, "value": joules["value"] * share["value"]})] if joules else []
        parts.append(f"{span(baseline['cpu_s_per_1000'] * share['value'])} CPU time")
    if slow is not None:
        parts.append(f"{span(baseline['wall_s_per_1000'] * slow['value'])} from first to last")
    return f"Chosen: {', '.join(parts)} per 1,000 examples."


def steps(report: Report) -> list[tuple[str, str]]:
    """(what to do next, how) for a saved winner; [] where nothing was saved. What this version has no command for is not told."""
    if not report["folder"] or report["best"] is None:
        return []
    folder, trust = shlex.quote(report["folder"]), report.get("trust") or []
    more, loaded = option(trust), f", trust={trust!r}" if trust else ""
    ask, check = ASKED.get(report["data"].get("inputs", "texts" if report["data"]["task"] == "classification" else "rows"), ASKED["rows"])
    name = str(report["model"]["name"])
    original = f" --original {shlex.quote(name)}" if re.fullmatch(r"[\w.]+:[\w.]+|.*\.onnx", name) else ""   # a manifest never makes a factory run
    exported = shlex.quote(report["folder"].rstrip("/") + "-onnx")
    found = [
        ("use", f"fourfold predict {folder} {ask}{more}"),
        ("in Python", f"model = fourfold.load({report['folder']!r}{loaded}); model.predict(inputs)"),
        ("check on new data", f"fourfold verify {folder} --data {check}{original}{more}"),
        ("export", f"fourfold export {folder} --to onnx --out {exported}{more}") if find_spec("fourfold.cli.export") else ("", ""),
        ("on another machine", f"fourfold race {folder}{more}"),
    ]
    if report.get("generation"):
        found[:2] = [("use", f'fourfold predict {folder} --text "…" --stream{more}'),
                     ("in Python", f"model = fourfold.load({report['folder']!r}{loaded}); model.generate([…])")]
        found[3:] = [("on another machine", "the same command there")]
    return [step for step in found if step[0]]


def agrees(report: Report, candidate: CandidateRow, ends: bool = True) -> str:
    """How far the answers are the original's: "88.1 % [86.9, 89.2]", a rank correlation for values; "" where it was not measured."""
    figure = candidate.get("agreement")
    if figure is None:
        return ""
    if report["data"]["task"] == "regression":
        return absolute(figure if ends else {**figure, "low": None})
    shown = f"{percent(figure['value'], False, 1)} %"
    return shown + (f" [{percent(figure['low'], False, 1)}, {percent(figure['high'], False, 1)}]" if ends and figure["low"] is not None else "")


def _low(figure: Ends) -> float:
    return figure["value"] if figure["low"] is None else figure["low"]
