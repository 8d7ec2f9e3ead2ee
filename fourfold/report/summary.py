"""A report told in sentences: the decision, its evidence, and what was done where and why."""

from __future__ import annotations

from fourfold.report.advice import agrees, lost, near_miss, winner
from fourfold.report.format import chain, count, energy, factor, grams, interval, percent, setting, span, times
from fourfold.report.schema import CandidateRow, Ends, Factor, Interval, Levers, Report, StackRow
from fourfold.report.waterfall import NAMES

_SPENT = {"energy": "energy", "latency": "time", "memory": "memory"}
SAME = 0.99  # agreement from which on "the same work" is said
_FEW = 4  # refusals told by name


def quality_of(candidate: CandidateRow) -> Interval | None:
    """Relative quality on the unseen split, or, where it never got there, on the search split."""
    return candidate["test_quality"] or candidate["search_quality"]


def spent(candidate: CandidateRow, objective: str) -> Ends | None:
    """The candidate's relative figure for the objective, as an interval."""
    if objective == "memory":
        value = candidate["relative_memory"]
        return None if value is None else {"value": value, "low": None, "high": None}
    return candidate["relative_latency" if objective == "latency" else "relative_energy"]


def headline(report: Report) -> str:
    """The decision in a few words."""
    if report["best"] is None:
        return f"Nothing cheaper clears the floor of {percent(report['floor'])}."
    best = report["candidates"][report["best"]]
    cost = spent(best, report["objective"])
    what = _SPENT[report["objective"]]
    if cost is None:
        return f"The floor of {percent(report['floor'])} is met."
    agreed = best.get("agreement")
    if agreed is not None and agreed["value"] >= SAME:
        return f"The same work for {percent(cost['value'])} of the {what}."
    named = report["data"]["greater_is_better"] and report["data"]["metric"] != "agreement"
    quality = quality_of(best)
    kept = f"{percent(None if quality is None else quality['value'])} of the {report['data']['metric'] if named else 'quality'}"
    told = f"{kept} for {percent(cost['value'])} of the {what}"
    if agreed is None:
        return f"{told}."
    if report["data"]["task"] == "regression":
        return f"{told}; rank correlation with the original's answers {agrees(report, best, False)}."
    return f"{told}; answers agree with the original's on {agrees(report, best, False)}."


def decision(report: Report) -> str:
    """The decision with its evidence, in one or two sentences."""
    data = report["data"]
    if report["best"] is None:
        return _missed(report)
    quality = quality_of(report["candidates"][report["best"]])
    tested = report["candidates"][report["best"]]["test_quality"] is not None
    split = f"{data['test'] if quality is None else quality.get('n', data['test']):,} unseen examples" if tested else "the search split"
    floor = f"the floor is {percent(report['floor'])} ({data['metric']}, lower 95 % bound)"
    agreed = agrees(report, report["candidates"][report["best"]])
    how = "; rank correlation with its answers " if data["task"] == "regression" else "; it answers as the original does on "
    return f"Quality is {interval(quality)} of the original's on {split}{how + agreed if agreed else ''}; {floor}."


def _missed(report: Report) -> str:
    miss = report["infeasible"]
    text = miss["reason"] if miss else "no candidate reached it"
    text = text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
    if miss and miss["nearest"]:
        near = miss["nearest"][0]
        candidate = report["candidates"][near["candidate"]]
        text += f" Nearest: {candidate['name']}, {interval(quality_of(candidate))} of the quality"
        text += f" at {interval(candidate['relative_energy'])} of the energy, {near['shortfall'] * 100:.1f} points short."
    return text


def break_even(report: Report) -> str:
    """When the optimisation has paid for itself; nothing where nothing was chosen."""
    runs = report["cost"]["break_even"]
    if report["best"] is None:
        return ""
    if runs is None:
        return "The optimisation does not pay for itself in energy."
    return f"The optimisation pays for itself after {count(runs)} inferences."


def story(report: Report) -> list[str]:
    """What was done where and why, a sentence or two a line. Where the floor was missed: why, and what came nearest."""
    model, data, baseline = report["model"], report["data"], report["baseline"]
    scores = f"scores {data['metric']} {baseline['quality']['value']:.3f}"
    price = f"spends {energy(baseline['joules_per_1000'])} per 1,000 examples at its own best, {setting(baseline['setting'])}"
    lines = [f"{model['name']} ({model['family']}, {count(model['parameters'])} parameters) {scores} and {price}."]
    lines += [_simple(report)] if report["simple"] else []
    lines += [headline(report) + " " + decision(report)]
    index = report["best"]
    if index is not None:
        best = report["candidates"][index]
        lines.append(f"{best['name']}: {best['how']}. It has {count(best['parameters'])} parameters and runs on {setting(best['setting'])}.")
        lines += [sentence for stack in best["structure"] for sentence in _stack(stack)]
        lines += _vocabulary(best) + _cascade(best)
        lines += [_factor(row) for row in report["factors"]]
        lines.append(winner(report))
    lines += [note for note in report["notes"] if note.startswith("Raced again")]
    lines += [near_miss(report)] if near_miss(report) else []
    lines += [f"Cheaper, and not chosen: {'; '.join(lost(report))}."] if lost(report) else []
    lines += levers(report)
    lines += _refused(report)
    cost = report["cost"]
    lines.append(f"Finding it took {span(cost['wall_s'])} and {energy(cost['joules'])}. {break_even(report)}".rstrip())
    return lines


def levers(report: Report) -> list[str]:
    """The four levers multiplied, in a sentence or two; nothing where the report has none, or none was pulled."""
    found = report.get("levers")
    if not found or not any(row["given"] for row in found["rows"]):
        return []
    printed, whole = chain([row["factor"]["value"] for row in found["rows"]], found["total"]["value"])
    parts = [f"{NAMES[row['lever']]} {shown} ({row['factor']['grade'] or row['title']})" for row, shown in zip(found["rows"], printed, strict=True)]
    lines = [f"{' × '.join(parts)} = {factor(found['total'], whole)} less {unit_of(found)} ({found['total']['grade']})."]
    carbon = found["carbon"]
    if carbon:
        lines.append(f"{carbon['run']}: {grams(carbon['before'])} before, {grams(carbon['after'])} after ({carbon['after']['grade']}, "
                     f"{found['signal']} intensity).")
    return lines


def unit_of(levers: Levers) -> str:
    """What the product of the levers counts: CO2e where the grid is known or the hall, else energy."""
    return "CO2e" if levers["site"] is not None else "energy"


def _simple(report: Report) -> str:
    simple = max(report["simple"], key=lambda row: row["relative_quality"]["value"])
    return f"Without any network, {simple['name']} reaches {interval(simple['relative_quality'])} of that quality."


def _refused(report: Report) -> list[str]:
    """What the race turned down, the chosen candidate's own first; a few by name, the rest by number."""
    rows = [row for row in report["race"] if not row["accepted"]]
    rows.sort(key=lambda row: row["candidate"] != report["best"])
    few = "; ".join(f"{row['name']} ({row['reason']})" for row in rows[:_FEW])
    more = f"; and {len(rows) - _FEW} more" if len(rows) > _FEW else ""
    return [f"Refused in the race: {few}{more}."] if rows else []


def _factor(row: Factor) -> str:
    title = row["title"][:1].upper() + row["title"][1:]
    change = f"energy from {percent(row['before'])} to {percent(row['after'])}, {times(row['before'] / row['after'])} cheaper"
    evidence = row.get("evidence", "")
    rests = f"; {evidence}" if evidence else ""
    return f"{title} ({row['technique']}, the {row['lever']} lever): {change}{rests}."


def _stack(stack: StackRow) -> list[str]:
    """Which blocks went, and how much of each kind of unit is left in a stack."""
    gone = [block["name"] for block in stack["blocks"] if block["removed"]]
    absent = [f"{block['name']}.{unit['name']}" for block in stack["blocks"] if not block["removed"] for unit in block["units"] if unit["absent"]]
    totals: dict[str, list[int]] = {}
    for unit in (unit for block in stack["blocks"] for unit in block["units"] if unit["what"]):
        kept = totals.setdefault(unit["what"], [0, 0])
        kept[0] += unit["kept"]
        kept[1] += unit["total"]
    left = ", ".join(f"{kept:,} of {total:,} {what}" for what, (kept, total) in totals.items())
    parts = [
        f"In the {stack['name']}, {len(stack['blocks']) - len(gone)} of {len(stack['blocks'])} blocks stay"
        + (f" (gone: {', '.join(gone)})" if gone else "")
    ]
    parts += [f"{left} are left"] if left else []
    parts += [f"whole sub-layers gone: {', '.join(absent)}"] if absent else []
    return ["; ".join(parts) + "."]


def _vocabulary(candidate: CandidateRow) -> list[str]:
    words = candidate.get("vocabulary")
    return [f"The vocabulary keeps {words['kept']:,} of {words['total']:,} entries."] if words and words["kept"] < words["total"] else []


def _cascade(candidate: CandidateRow) -> list[str]:
    cascade = candidate["cascade"]
    if not cascade:
        return []
    shares = ", then ".join(f"{name} answers {percent(share)}" for name, share in zip(cascade["members"], cascade["shares"], strict=True))
    return [f"A cascade: {shares}."]
