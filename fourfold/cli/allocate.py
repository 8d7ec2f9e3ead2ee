"""`fourfold allocate`: where in memory the buffers of a program stand, given when each is alive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, Trust, emit, progress_mode, table

_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    app.command("allocate", epilog="Example: fourfold allocate buffers.csv --capacity 1MiB --out offsets.csv --html map.html")(allocate)


def allocate(
    source: Annotated[str, typer.Argument(metavar="BUFFERS|MODEL", help="CSV file of buffers (id,lower,upper,size …), a plan's folder, or a model as "
                                                                        "`fourfold plan` takes it.")],
    capacity: Annotated[str | None, typer.Option(help="Bytes that there are: 1048576, 512K, 4MiB. Left out: as few as possible.")] = None,
    banks: Annotated[str | None, typer.Option(help="Several memories, none of which a buffer may straddle: 512K,512K or sram=512K,dram=4M.")] = None,
    alignment: Annotated[str | None, typer.Option(help="Offsets are multiples of it where the file has no such column. [1; a model: 64]")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Model: an elementwise op may write over an operand that dies there.")] = False,
    minimise: Annotated[bool, typer.Option("--minimise", help="As few bytes as possible, below the capacity too.")] = False,
    solver: Annotated[str, typer.Option(help="auto, or a technique that `fourfold list allocate` names.")] = "auto",
    budget: Annotated[str, typer.Option(help="Time for the solver: 60s, 10min.")] = "60s",
    evaluations: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps of the solver; answers alike on every machine.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    train: Annotated[bool, typer.Option("--train", help="Model: forward and backward pass together.")] = False,
    dims: Annotated[list[str] | None, typer.Option("--dims", "--dim", help="Model: sizes by name: batch=8,sequence=128. May be repeated.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="Model: example inputs, an .npz file with an array for each.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file for the offsets.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page with the memory map.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Folder whose plan the offsets are added to; a new one begins a plan.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger that bytes before and after are booked in.")] = None,
    trust: Trust = None,
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Give each buffer an offset, so that none alive at one time share a byte, within a capacity or in the least memory, with a bound."""
    mode = progress_mode(progress, as_json)
    import fourfold
    from fourfold.cli.plan import sizes
    from fourfold.report.terminal import Progress

    with Progress(mode) as shown:
        made = fourfold.allocate(source, inputs, capacity=capacity, banks=banks, alignment=alignment, in_place=in_place, minimise=minimise,
                                 solver=solver, budget=budget, evaluations=evaluations, seed=seed, train=train, dims=sizes(dims), out=out,
                                 html=html, plan=plan, ledger=ledger, trust=trust or (), progress=shown)
    files = [str(path) for path in (out, html, plan, ledger) if path is not None]
    if as_json:
        emit(made.to_json() | {"files": files})
    else:
        print("\n".join(made.sentences))
        if made.interrupted:
            print("Interrupted; this is the best so far.")
        if len(made.table) > 1:
            table([{"solver": row["solver"], "height": "–" if row["cost"] is None else f"{row['cost']:,.0f} B",
                    "solving": "–" if row["cost"] is None else f"{row['seconds']:.2f} s", "": row["note"]}
                   for row in sorted(made.table, key=lambda row: (row["cost"] is None, row["cost"] or 0.0))])
        for note in made.notes:
            print(f"Note: {note}")
        if files:
            print(f"Wrote {', '.join(files)}.")
    return _INTERRUPTED if made.interrupted else 0
