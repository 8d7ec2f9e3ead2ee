"""From the evidence to its readers: terminal, page, picture, card, JSON. All of them draw one document, `fourfold.report.schema.Report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write(report: Any, path: Path | str) -> Path:
    """Write `report` (a dict of the schema) to `path` in the form that its ending names: .html, .json, .svg or .md. Returns the path.

    Raises InputError for another ending, ArtefactError for a report that breaks the schema (.json).
    """
    from fourfold.errors import InputError
    from fourfold.report import html, json, markdown

    path = Path(path)
    ways = {".html": html.write, ".json": json.write, ".svg": html.picture, ".md": markdown.write}
    if path.suffix.lower() not in ways:
        raise InputError(f"a report cannot be written as {path.suffix or 'a file without an ending'!r}.", f"Choose an ending of: {', '.join(ways)}.")
    return ways[path.suffix.lower()](report, path)


def with_levers(report: Any, **place: Any) -> dict[str, Any]:
    """A finished report with its four levers put in, or put in anew; what was measured is not touched.

    `site`, `to_site`, `hall`, `pue` and the errors raised as in `fourfold.run.levers.levers`.
    """
    from fourfold.report.schema import SCHEMA
    from fourfold.run.levers import levers

    return {**report, "schema": SCHEMA, "levers": levers(report, **place)}
