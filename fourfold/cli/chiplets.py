"""`fourfold chiplets`: which chip of a multi-chip module holds which op of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli._print import AsJson, Trust, emit, progress_mode, table

if TYPE_CHECKING:
    from collections.abc import Mapping

_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    app.command("chiplets", epilog="Example: fourfold chiplets model/ --dims batch=1,length=128 --machine mcm36 --out plan/")(chiplets)


def chiplets(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model as `fourfold plan` takes it, a size (gpt:768x12x12), a saved "
                                                     "graph (.npz), or a plan's folder.")],
    machine: Annotated[str, typer.Option(help="mcm36 (36 chips, a ring), mcm36-mesh, or a machine file of equal devices.")] = "mcm36",
    budget: Annotated[str, typer.Option(help="Partitions priced (200) or time (60s).")] = "200",
    solver: Annotated[str, typer.Option(help="auto, or a technique that `fourfold list chiplets` names.")] = "auto",
    train: Annotated[bool, typer.Option("--train", help="Split the forward and the backward pass together.")] = False,
    dims: Annotated[list[str] | None, typer.Option("--dims", "--dim", help="Sizes by name: batch=8,sequence=128. May be repeated.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="Example inputs: an .npz file with an array for each.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the plan and its page.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger that what the decision saves is booked in.")] = None,
    trust: Trust = None,
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Give each op of a model a chip, so that the slowest stage of the pipeline takes least, under the rules of multi-chip modules."""
    mode = progress_mode(progress, as_json)
    from fourfold.cli.plan import sizes
    from fourfold.jobs.chiplets import QUESTION
    from fourfold.jobs.chiplets import chiplets as split
    from fourfold.report.terminal import Progress

    with Progress(mode) as shown:
        document = split(model, inputs, machine=machine, solver=solver, budget=budget, train=train, seed=seed, dims=sizes(dims), out=out,
                         ledger=ledger, trust=trust or (), progress=shown)
    solution = document.solutions[QUESTION]
    if as_json:
        emit({name: value for name, value in solution.items() if name != "answer"}
             | {"question": QUESTION, "workload": dict(document.workload), "machine": dict(document.machine), "out": str(out) if out else None})
    else:
        _told(document.to_json(), solution)
        if out is not None:
            print(f"Wrote plan.json, graph.npz, system.toml and chiplets.html to {out}. Check it with: fourfold plan verify {out}")
    return _INTERRUPTED if solution["interrupted"] else 0


def _told(document: Mapping[str, Any], solution: Mapping[str, Any]) -> None:
    from fourfold.plans import amount
    from fourfold.report.format import percent, size

    unit = solution["unit"]
    print(f"{document['workload']['name']}: {document['workload']['nodes']:,} ops on {document['machine']['name']}.")
    before = amount(solution["before"], unit) if solution["before"] is not None else solution["why"]
    every, chips = amount(solution["cost"], unit), solution["chips"]
    print(f"Partition of {solution['solver']}: a sample every {every} on {chips} chips; all on one chip {before}.")
    gap = f"{percent(solution['gap'])} above it at most" if solution["gap"] else "the partition is optimal"
    print(f"No partition can take less than {amount(solution['bound'], unit)}: {gap}.")
    if solution["interrupted"]:
        print("Interrupted; this is the best so far.")
    print("\nTechniques")
    table([{"technique": row["solver"], "slowest stage": amount(row["cost"], unit), "priced": f"{row['evaluations']:,}",
            "solving": f"{row['seconds']:.2f} s", "": row["note"]}
           for row in sorted(solution["table"], key=lambda row: (row["cost"] is None, row["cost"] or 0.0))])
    print("Stages")
    rows = [row for row in solution["stages"] if row["ops"]]
    table([{"chip": row["name"], "stage": amount(row["compute_s"] + row["sending_s"], "s"), "of the slowest": percent(row["share"]),
            "sending": amount(row["sending_s"], "s"), "ops": f"{row['ops']:,}", "memory": size(row["bytes"])} for row in rows])
    print("\n".join(["Why", *(f" · {line}" for line in solution["sentences"])]))
    for note in solution["notes"]:
        print(f"Note: {note}")
