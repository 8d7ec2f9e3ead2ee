"""`fourfold formats`: which file format a table is read from for the least."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, table


def register(app: typer.Typer) -> None:
    app.command("formats", epilog="Example: fourfold formats data.csv --to parquet")(formats)


def formats(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Table: .csv, .jsonl, .parquet, .arrow, .safetensors, .npz.")],
    to: Annotated[str | None, typer.Option(help="Convert to csv, jsonl, parquet, arrow, safetensors or npz, values compared.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to convert to. [beside DATA]")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Column of the partial read. May be repeated. [the first two]")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger that the saving is booked in.")] = None,
    as_json: AsJson = False,
) -> int:
    """Measure what reading the table takes in each format, whole and by column, and convert when asked."""
    from fourfold.jobs.formats import formats as compared

    found = compared(data, to=to, out=out, columns=column or (), ledger=ledger)
    if as_json:
        emit(found.to_json())
        return 0
    table([{"format": one.kind, "bytes": f"{one.bytes:,}", "CPU ms": f"{1e3 * one.whole:.1f}",
            f"{len(found.columns)} columns": f"{1e3 * one.part:.1f}", "joules": f"{one.joules.value:.3g}"} for one in found.costs])
    print("\n".join([*found.sentences, *([f"Wrote {found.written}."] if found.written else [])]))
    return 0
