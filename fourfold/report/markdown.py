"""The report as a card in Markdown: for a README, a model repository or a ticket."""

from __future__ import annotations

from pathlib import Path

from fourfold.report import advice, format, summary
from fourfold.report.json import replace
from fourfold.report.schema import Report


def write(report: Report, path: Path | str) -> Path:
    """Write the card to `path`; the path written."""
    path = Path(path)
    replace(path, card(report))
    return path


def ours(head: bytes) -> bool:
    """Whether a file that begins so is a card of ours."""
    return head.lstrip().startswith(b"# ") and b", made cheaper" in head.split(b"\n", 1)[0]


def card(report: Report) -> str:
    """Decision, front, how it came about and how to reproduce it."""
    parts = [f"# {report['model']['name']}, made cheaper", f"**{summary.headline(report)}** {summary.decision(report)}", table(report)]
    parts += ["\n".join(f"- {line}" for line in summary.story(report)[1:])]
    parts += [f"Energy: {report['energy']['grade']}, {report['energy']['method']}. {format.sentence(report['valid'])}"]
    parts += ["Next:\n\n" + "\n".join(f"- {what}: `{how}`" for what, how in advice.steps(report))] if advice.steps(report) else []
    parts += [f"```\n{report['command']}\n```"]
    return "\n\n".join(parts) + "\n"


def table(report: Report) -> str:
    """The front as a Markdown table, dearest first, with what needs no network below."""
    rows = [("original", "100 %", "100 %", format.count(report["model"]["parameters"]), format.setting(report["baseline"]["setting"]))]
    for candidate in sorted((report["candidates"][i] for i in report["front"]), key=lambda c: -(c["relative_energy"] or {"value": 0})["value"]):
        name = f"**{candidate['name']}**" if report["best"] is not None and candidate is report["candidates"][report["best"]] else candidate["name"]
        quality = format.interval(summary.quality_of(candidate)) + ("" if candidate["test_quality"] else " (search split)")
        quality += f"; agrees on {advice.agrees(report, candidate)}" if candidate.get("agreement") else ""
        rows.append((name, quality, format.interval(candidate["relative_energy"]), format.count(candidate["parameters"]), candidate["how"]))
    for simple in report["simple"]:
        quality, cost = format.interval(simple["relative_quality"]), format.interval(simple["relative_energy"])
        rows.append((simple["name"], quality, cost, format.count(simple.get("parameters")), "no network"))
    head = "| | relative quality | relative energy | parameters | how |\n|---|---|---|---|---|\n"
    return head + "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
