"""A trace under cache policies, for its readers: rows of a table, and a page with bars for each size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from fourfold.errors import unwritable
from fourfold.report.html import asset
from fourfold.report.json import replace


class _Row(TypedDict):
    size: str
    policy: str
    object_miss: float
    byte_miss: float
    against_lru: float | None
    requests_per_cpu_s: float


def rows(document: Mapping[str, object]) -> list[dict[str, str]]:
    """What the terminal shows: a row a policy and size, and the bound under each size."""
    found: list[dict[str, str]] = []
    for size, least in cast(Mapping[str, float], document["least_byte_miss"]).items():
        for row in cast(Sequence[_Row], document["rows"]):
            if row["size"] == size:
                against = "–" if row["against_lru"] is None else f"{row['against_lru']:+.1%}"
                found.append({"size": size, "policy": row["policy"], "object miss": f"{row['object_miss']:.2%}",
                              "byte miss": f"{row['byte_miss']:.2%}", "against LRU": against, "requests/CPU s": f"{row['requests_per_cpu_s']:,.0f}"})
        found.append({"size": size, "policy": "(bound)", "object miss": "", "byte miss": f"{least:.2%}", "against LRU": "", "requests/CPU s": ""})
    return found


def write_page(document: Mapping[str, object], file: Path) -> Path:
    """Write the page of a simulation's document. Returns its path. Raises InputError where it cannot be written."""
    try:
        replace(file, page(document))
    except OSError as error:
        raise unwritable(file, error, "the page") from None
    return file


def page(document: Mapping[str, object]) -> str:
    """The page as HTML text: bars of bytes missed, the bound dashed; sentences; the table."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    plots = [(size, Markup(_bars([row for row in cast(Sequence[_Row], document["rows"]) if row["size"] == size], least)))
             for size, least in cast(Mapping[str, float], document["least_byte_miss"]).items()]
    return environment.from_string(asset("cache.html")).render(document=document, table=rows(document), plots=plots, css=Markup(asset("page.css")))


def _bars(rows: Sequence[_Row], least: float) -> str:
    """An SVG: a bar a policy, from no byte missed to all; the bound as a dashed line. Names are ids of techniques: nothing to escape."""
    height, left, wide = 26 * len(rows) + 12, 110, 620
    parts = [f'<svg viewBox="0 0 {left + wide + 90} {height}" role="img" aria-label="Share of bytes missed" style="width:100%;height:auto">']
    for place, row in enumerate(rows):
        y, long = 6 + 26 * place, wide * row["byte_miss"]
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end" font-size="13" fill="currentColor">{row["policy"]}</text>'
                     f'<rect x="{left}" y="{y}" width="{long:.1f}" height="18" fill="currentColor" opacity="{0.8 if not place else 0.4}"/>'
                     f'<text x="{left + long + 6:.1f}" y="{y + 14}" font-size="13" fill="currentColor">{row["byte_miss"]:.2%}</text>')
    at = left + wide * least
    parts.append(f'<path d="M{at:.1f} 0V{height}" stroke="currentColor" stroke-dasharray="4 3"/></svg>')
    return "".join(parts)
