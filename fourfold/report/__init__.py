"""From the evidence to its readers: terminal, page, picture, card, JSON. All of them draw one document, `fourfold.report.schema.Report`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourfold.report.schema import Report


def write(report: Report, path: Path | str) -> Path:
    """Write `report` (a dict of the schema) to `path` in the form that its ending names: .html, .json, .svg or .md. Returns the path.

    Raises InputError for another ending and for a file there that is no report, ArtefactError for a report that breaks the schema (.json).
    """
    from fourfold.report import html, json, markdown

    path = may_write(path)
    return {".html": html.write, ".json": json.write, ".svg": html.picture, ".md": markdown.write}[path.suffix.lower()](report, path)


def may_write(path: Path | str, option: str = "a report", inputs: Iterable[object] = ()) -> Path:
    """The path, where a report may be written there. Raises InputError for another ending and for a file that is no report."""
    from fourfold.errors import InputError
    from fourfold.folder import may_overwrite
    from fourfold.report.markdown import ours

    path, endings = Path(path), (".html", ".json", ".svg", ".md")
    if path.suffix.lower() not in endings:
        what = path.suffix or "a file without an ending"
        raise InputError(f"a report cannot be written as {what!r}.", f"Choose an ending of: {', '.join(endings)}.")
    return may_overwrite(path, option, inputs=inputs, kind=ours if path.suffix.lower() == ".md" else None)
