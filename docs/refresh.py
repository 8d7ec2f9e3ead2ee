"""Writes every table and picture of README, docs and benchmarks/README anew from benchmarks/results and claims (`make tables`):

    python docs/refresh.py                                                        all tables, docs/*.svg
    python docs/refresh.py fourfold-bench/demo/idle-0/cheap/report.json           README's picture from this run's report, then all
    python docs/refresh.py --check                                                write nothing; exit code 1 where something would change

docs/tables.py has the generators. Nobody types a figure. docs/plan.png is another matter: python docs/picture.py draws it in a browser.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "benchmarks"), str(ROOT)]

from tables import OLDER, RESULTS, TABLES, drawn  # noqa: E402


def between(text: str, name: str, new: str, page: str = "README.md") -> str:
    """`text` with `new` between the marks `<!-- name -->` and `<!-- /name -->`. Raises SystemExit where the marks are missing."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(opening) != 1 or text.count(closing) != 1:
        raise SystemExit(f"{page} wants {opening} … {closing} exactly once.")
    return re.sub(f"{re.escape(opening)}.*?{re.escape(closing)}", lambda _: f"{opening}\n{new}\n{closing}", text, flags=re.S)


def pages() -> dict[Path, str]:
    """Every page that has generated tables, as it should be."""
    found: dict[Path, str] = {}
    for table in TABLES:
        path = ROOT / table.page
        text = found.get(path) or path.read_text(encoding="utf-8")
        found[path] = between(text, table.mark, drawn(table), table.page)
    return found


def pictures() -> dict[Path, str]:
    """Every picture that is drawn from a results file, as it should be."""
    import scale

    found = {HERE / "scale.svg": scale.picture(json.loads((RESULTS / "scale.json").read_text(encoding="utf-8")))}
    features, masks = (RESULTS / f"layers_{part}.json" for part in ("features", "masks"))
    if features.is_file() and masks.is_file():
        import layers_features

        found[HERE / "features.svg"] = layers_features.picture(*(json.loads(path.read_text(encoding="utf-8")) for path in (features, masks)))
    chosen = RESULTS / "selection.json"
    if chosen.is_file():
        import selection

        found[HERE / "selection.svg"] = selection.picture(json.loads(chosen.read_text(encoding="utf-8")))
    front = RESULTS / "demo-front.json"
    if front.is_file():
        found[HERE / "front.svg"] = svg(json.loads(front.read_text(encoding="utf-8"))["report"])
    return found


def svg(report: Any) -> str:
    """The front of a report, as text."""
    from fourfold.report.html import picture

    with tempfile.TemporaryDirectory() as folder:
        return picture(report, Path(folder) / "front.svg").read_text(encoding="utf-8")


def kept(path: Path) -> None:
    """Keep a finished run's report as benchmarks/results/demo-front.json, with the provenance of benchmarks/results/demo.json."""
    import demo
    from provenance import publish

    from fourfold.report.json import read

    runs = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    publish(RESULTS / "demo-front.json", {"about": runs["about"], "run": path.resolve().parent.parent.name, "report": demo.front(read(path))})


def differing(found: Iterable[tuple[Path, str]]) -> list[Path]:
    """The files that hold something else; whether a table says that it is older than the code may differ, since that changes with any commit."""
    def said(text: str) -> str:
        return text.replace(f" {OLDER}", "")

    return [path for path, text in found if not path.is_file() or said(path.read_text(encoding="utf-8")) != said(text)]


def main(words: list[str]) -> int:
    """Write what differs. Returns the exit code."""
    if words and words != ["--check"]:
        kept(Path(words[0]))
    found = [*pages().items(), *pictures().items()]
    if words == ["--check"]:
        wrong = differing(found)
        told = [f"{path.relative_to(ROOT)} is not what its results say; run make tables." for path in wrong]
        print("\n".join(told) or "All tables are those of the results.")
        return int(bool(wrong))
    for path, text in found:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit("usage: python docs/refresh.py [--check | REPORT.json]")
    sys.exit(main(sys.argv[1:]))
