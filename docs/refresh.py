"""Fills README's result, table and picture from a finished run: `python docs/refresh.py fourfold-demo/cheap/report.json`. Nobody types a number."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from fourfold.report import markdown, story, words, write
from fourfold.report.json import read

ROOT = Path(__file__).resolve().parent.parent


def between(text: str, name: str, new: str) -> str:
    """`text` with `new` between the marks `<!-- name -->` and `<!-- /name -->`. Raises SystemExit where the marks are missing."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(opening) != 1 or text.count(closing) != 1:
        raise SystemExit(f"README.md wants {opening} … {closing} exactly once.")
    return re.sub(f"{re.escape(opening)}.*?{re.escape(closing)}", lambda _: f"{opening}\n{new}\n{closing}", text, flags=re.S)


def result(report: Any) -> str:
    """The decision, the table, and what both rest on."""
    data, cost = report["data"], report["cost"]
    ground = (
        f"{report['model']['name'].rstrip('/').rsplit('/', 1)[-1]} ({words.count(report['model']['parameters'])} parameters), {data['metric']}, "
        f"{data['test']:,} unseen examples, {report['machine']['name']}; energy is {report['energy']['grade']} ({report['energy']['method']}). "
        f"Brackets are 90 % intervals. Finding it took {words.span(cost['wall_s'])}. {story.break_even(report)}"
    )
    return f"**{story.headline(report)}** {story.decision(report)}\n\n{markdown.table(report)}\n\n{ground.strip()}"


def refresh(report: Any, readme: Path, picture: Path) -> None:
    """Write `picture` (SVG) and put result and picture into `readme`."""
    write(report, picture)
    link = picture.relative_to(readme.parent).as_posix()
    text = between(readme.read_text(encoding="utf-8"), "table", result(report))
    text = between(text, "picture", f"![Relative quality against relative energy, with intervals and the floor]({link})")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/refresh.py FOLDER|REPORT.JSON")
    refresh(read(Path(sys.argv[1])), ROOT / "README.md", ROOT / "docs" / "front.svg")
    print("README.md and docs/front.svg are written; look at both before you commit them.")
