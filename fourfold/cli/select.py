"""`fourfold select`: which columns of a table tell another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, progress_mode, table


def register(app: typer.Typer) -> None:
    app.command("select", epilog="Example: fourfold select data.csv --target y -k 20 --out columns.txt")(select)


def select(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Table of numbers: .csv, .tsv, .jsonl, .json, .parquet, .npz.")],
    target: Annotated[str, typer.Option(help="Column that the others are to tell.")],
    count: Annotated[float | None, typer.Option("-k", "--count", help="Columns to choose: a number, or a share below 1. [half]")] = None,
    task: Annotated[str, typer.Option(help="auto, classification or regression.")] = "auto",
    ignore: Annotated[list[str] | None, typer.Option(help="Column that may not be chosen. May be repeated.")] = None,
    linear: Annotated[bool, typer.Option("--linear", help="A linear model: under regression the order of orthogonal matching pursuit.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File for the names, one a line, the first chosen first.")] = None,
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Choose the columns that a network needs, one after the other, in one training run (Sequential Attention)."""
    mode = progress_mode(progress, as_json)
    from fourfold.jobs.select import select as chosen
    from fourfold.report.terminal import Progress

    size = int(count) if count is not None and count >= 1 and count.is_integer() else count
    with Progress(mode) as shown:
        found = chosen(data, target, size, task=task, ignore=ignore or (), linear=linear, epochs=epochs, seed=seed, progress=shown)
    files = [str(found.write(out))] if out is not None else []
    if as_json:
        emit(found.to_json() | {"files": files})
        return 0
    print("\n".join(found.sentences))
    table([{"": str(place), "column": name, "attention": f"{score:.3g}"} for place, (name, score) in
           enumerate(zip(found.columns, found.scores, strict=True), 1)])
    for note in found.notes:
        print(f"Note: {note}")
    if files:
        print(f"Wrote {', '.join(files)}.")
    return 0
