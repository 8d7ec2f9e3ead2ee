"""Fills README's result, table and picture from `benchmarks/results/demo.json` and one run's report: `python docs/refresh.py
fourfold-bench/demo/idle-0/cheap/report.json`. Nobody types a number."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from fourfold.report import write
from fourfold.report.json import read

ROOT = Path(__file__).resolve().parent.parent


def between(text: str, name: str, new: str) -> str:
    """`text` with `new` between the marks `<!-- name -->` and `<!-- /name -->`. Raises SystemExit where the marks are missing."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(opening) != 1 or text.count(closing) != 1:
        raise SystemExit(f"README.md wants {opening} … {closing} exactly once.")
    return re.sub(f"{re.escape(opening)}.*?{re.escape(closing)}", lambda _: f"{opening}\n{new}\n{closing}", text, flags=re.S)


def spread(figure: dict[str, float], form: str) -> str:
    """Median and range: "4.1 % (3.0 to 6.2 %)"."""
    unit = " %" if form.endswith("%") else " s"
    scale = 100 if unit == " %" else 1
    digits = 1 if unit == " %" else 0
    value, low, high = (f"{scale * figure[key]:.{digits}f}" for key in ("median", "least", "most"))
    return f"{value}{unit}" if low == high else f"{value}{unit} ({low} to {high}{unit})"


def result(runs: Any, report: Any) -> str:
    """Medians and ranges over the runs of `benchmarks/demo.py`, every run, and what they rest on."""
    whole, about = runs["summary"]["all"], runs["about"]
    n = whole["energy"]["n"]
    where = ", ".join(name for name in runs["summary"] if name != "all")
    seeds = len({row["seed"] for row in runs["runs"]})
    lines = [
        f"**Answers for {spread(whole['energy'], '%')} of the energy** ({'one run' if n == 1 else f'median and range over {n} runs, {seeds} seeds'}, "
        f"{where}): text in, "
        f"answer out, measured again by `fourfold verify` in a fresh process. Quality is {spread(whole['quality'], '%')} of the original's on "
        f"{report['data']['test']:,} unseen examples (floor 97 %, lower 95 % bound); answers are the original's own on "
        f"{spread(whole['agreement'], '%')} of them. The whole run took {spread(whole['wall_s'], 's')} after installation; the first figure stood "
        f"on the screen after "
        f"{spread(whole['first_s'], 's')}.",
        "",
        "| run | energy stated | energy verified | quality | agreement | total | answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in runs["runs"]:
        stated = row["stated"]
        if not stated:
            lines.append(f"| {row['condition']}, seed {row['seed']} | – | – | – | – | {row['wall_s']:.0f} s | no cheaper model was proved |")
            continue
        checks = row["verified"].get("checks", [])
        again = next((c["measured"] for c in checks if isinstance(c, dict) and c["name"] == "energy" and c["measured"]), None)
        lines.append(
            f"| {row['condition']}, seed {row['seed']} | {format.interval(stated['relative_energy'])} | {format.interval(again) if again else '–'} "
            f"| {format.interval(stated['test_quality'])} | {format.interval(stated['agreement'])} | {row['wall_s']:.0f} s | {stated['how']} |"
        )
    lines += ["", f"{about['machine'].get('name', '')}, {about['date'][:10]}, load {', '.join(f'{x:.1f}' for x in about['load'] or [])}; energy is "
              f"{report['energy']['grade']} ({report['energy']['method']}). Brackets are 90 % intervals. `python benchmarks/demo.py` runs them all."]
    if runs.get("note"):
        lines += ["", runs["note"]]
    return "\n".join(lines)


def floors(data: Any) -> str:
    """What `benchmarks/compress.py` proved at each floor, and what it raced against."""
    about = data["about"]
    lines = [
        f"One search of {about['options']['budget']}, seed {about['seed']}; the original at its best takes {data['original']['cpu_ms']:.1f} ms of "
        f"CPU time a row. Every cost is of the whole service, of the same race; *proved*: what a search at that floor would have chosen.",
        "",
        "| floor | proved by structure alone: quality, energy | proved by everything: quality, energy |",
        "|---|---|---|",
    ]

    def cell(found: dict[str, Any] | None) -> str:
        return "–" if found is None else f"{format.interval(found['quality'])}, {format.interval(found['energy'])}"

    whole = {row["floor"]: row for row in data["everything"]}
    for row in data["structure"]:
        both = [cell(row.get("by_proof")), cell(whole.get(row["floor"], {}).get("by_proof"))]
        lines.append(f"| {100 * row['floor']:.0f} % | {' | '.join(both)} |")
    if data["peers"]:
        lines += ["", "| peer, same race | quality | energy | outside our front |", "|---|---|---|---|"]
        judged = {row["peer"]: row for row in data["outside"]}
        for row in sorted(data["peers"], key=lambda r: r["energy"]["value"]):
            verdict = judged[row["name"]]
            out = "yes" if verdict["surely"] else "by the bare estimates" if verdict["by_estimate"] else "no"
            lines.append(f"| {row['name']} | {format.interval(row['quality'])} | {format.interval(row['energy'])} | {out} |")
    lines += ["", f"{about['machine'].get('name', '')}, {about['date'][:10]}. Brackets are 90 % intervals."]
    return "\n".join(lines)


def refresh(runs: Any, report: Any, readme: Path, picture: Path, compress: Any = None) -> None:
    """Write `picture` (SVG) of one run and put the result of all, the picture and the table of `compress` into `readme`."""
    write(report, picture)
    link = picture.relative_to(readme.parent).as_posix()
    text = between(readme.read_text(encoding="utf-8"), "table", result(runs, report))
    if compress is not None:
        text = between(text, "compress", floors(compress))
    text = between(text, "picture", f"![Relative quality against relative energy, with intervals and the floor]({link})")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/refresh.py FOLDER|REPORT.JSON")
    runs, compress = (
        json.loads(path.read_text(encoding="utf-8")) if (path := ROOT / "benchmarks" / "results" / f"{name}.json").is_file() else None
        for name in ("demo", "compress")
    )
    refresh(runs, read(Path(sys.argv[1])), ROOT / "README.md", ROOT / "docs" / "front.svg", compress)
    print("README.md and docs/front.svg are written; look at both before you commit them.")
