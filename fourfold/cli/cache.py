"""`fourfold cache simulate`: which policy a cache should keep its objects by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, progress_mode, table


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Caches: which policy misses least.", epilog="Example: fourfold cache simulate requests.csv", rich_markup_mode=None)
    group.callback()(_cache)
    group.command("simulate", epilog="Example: fourfold cache simulate requests.csv --sizes 1%,10%,64MiB --policies lru,s3fifo")(simulate)
    app.add_typer(group, name="cache")


def _cache() -> None:
    pass


def simulate(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="oracleGeneral, keys or CSV; plain, .gz, .bz2, .xz or .zst.")],
    sizes: Annotated[str, typer.Option(help="Sizes of the cache, separated by commas: shares of all objects' bytes, or bytes.")] = "0.1%,1%,10%",
    policies: Annotated[str | None, typer.Option(help="Policies, separated by commas. [all that a live cache can use]")] = None,
    format: Annotated[str | None, typer.Option(help="oracle, keys, u32 or csv. [as its name and first bytes look]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of policies that draw.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture here.")] = None,
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Replay a trace of requests under each policy, at each size: objects and bytes missed, against LRU and against what none can beat."""
    mode = progress_mode(progress, as_json)
    from fourfold.jobs.cache import simulate as simulated
    from fourfold.report import cache
    from fourfold.report.terminal import Progress

    with Progress(mode) as shown:
        found = simulated(trace, sizes=_words(sizes), policies=_words(policies or ""), format=format, seed=seed, progress=shown)
    document = found.to_json()
    files = [str(cache.write_page(document, html))] if html is not None else []
    if as_json:
        emit(document | {"files": files})
        return 0
    print(f"{found.trace}: {found.requests:,} requests of {found.objects:,} objects, {found.footprint:,} B in all.")
    table(cache.rows(document))
    print("\n".join([*found.sentences, *(f"Note: {note}" for note in found.notes), *(f"Wrote {file}." for file in files)]))
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
