"""`fourfold plan`: which ops of a model run as one, on which device, in which order; written as a folder that `fourfold run` carries out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli._print import AsJson, emit, table
from fourfold.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    app.command("plan", epilog="Example: fourfold plan model/ --dims batch=8,sequence=128 --machine p100x4 --out plan/")(plan)


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face style folder, package.module:factory (or :function of JAX), "
                                                               ".onnx or .pt2 file.")],
    machine: Annotated[str, typer.Option(help="here (measured by `fourfold calibrate`), a machine file, or a shipped system: p100x4 …")] = "here",
    objective: Annotated[str, typer.Option(help="latency, throughput, energy or memory.")] = "latency",
    solver: Annotated[str, typer.Option(help="auto, go, heft, peft, cpop, metis, expert, default, anneal or exact.")] = "auto",
    train: Annotated[bool, typer.Option("--train", help="Plan the forward and the backward pass together.")] = False,
    dims: Annotated[list[str] | None, typer.Option("--dims", "--dim", help="Sizes by name: batch=8,sequence=128. May be repeated.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="Example inputs: an .npz file with an array for each.")] = None,
    data: Annotated[str | None, typer.Option(help="Data as `optimize` reads it; its first batch is the example.")] = None,
    budget: Annotated[str, typer.Option(help="Time for the solver: 60s, 10min.")] = "60s",
    evaluations: Annotated[int | None, typer.Option(min=1, help="Stop after so many plans priced; answers alike on every machine.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    finetune: Annotated[bool, typer.Option("--finetune", help="Let the learned solver train on this one graph first.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the plan, its trace and its page.")] = Path("plan"),
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Choose groups of ops that run as one, their devices and their order, with a bound that says how good the choice is."""
    if progress not in ("auto", "plain", "json", "none"):
        raise InputError(f"--progress {progress!r} is not known.", "Choose from: auto, plain, json, none.")
    if inputs is not None and data is not None:
        raise InputError("Both --inputs and --data were given.", "Give one of them.")
    import fourfold
    from fourfold.report.terminal import Progress

    mode: Any = "silent" if progress == "none" or (as_json and progress == "auto") else progress
    with Progress(mode) as shown:
        made = fourfold.plan(model, inputs or data, machine=machine, objective=objective, solver=solver, train=train, budget=budget,
                             evaluations=evaluations, seed=seed, dims=_sizes(dims), finetune=finetune, out=out, progress=shown)
    document = made.to_json()
    if as_json:
        emit(document | {"out": str(out)})
    else:
        for heading, rows in _told(document):
            print(heading)
            if rows:
                table(rows)
        print(f"Wrote {', '.join(sorted(file.name for file in out.iterdir() if file.is_file()))} to {out}."
              + (f" Carry it out with: fourfold run {out}" if made.system.local else ""))
    return _INTERRUPTED if made.interrupted else 0


def _sizes(given: list[str] | None) -> dict[str, int] | None:
    """Sizes by name. Raises InputError for what is not name=number."""
    found: dict[str, int] = {}
    for text in [part.strip() for each in given or [] for part in each.split(",") if part.strip()]:
        name, _, size = text.partition("=")
        if not name or not size.strip().isdecimal() or int(size) < 1:
            raise InputError(f"--dims {text!r} is not name=number.", "Example: --dims batch=8,sequence=128")
        found[name.strip()] = int(size)
    return found or None


def _told(document: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Headings, each with the rows of its table."""
    from fourfold.plans import amount
    from fourfold.report.format import percent, size

    graph, unit = document["graph"], document["unit"]
    fused = f"{_counted(graph['fused_groups'], 'fused group')} of up to {graph['largest_group']} ops" if graph["fused_groups"] else "nothing fused"
    yield f"{graph['name']}: {_counted(graph['nodes'], 'op')} in {_counted(graph['tasks'], 'task')} ({fused}) on {document['system']['name']}.", []
    before = f"default {amount(document['before'], unit)}" if document["before"] is not None else f"default {document['why']}"
    saved = f"; {percent(document['saving'])} saved" if document["saving"] is not None else ""
    what = {"latency": " a step", "throughput": " between steps", "energy": " a step", "memory": " on the fullest device"}[document["objective"]]
    yield f"Plan of {document['solver']}: {amount(document['cost'], unit)}{what}; {before}{saved}.", []
    if document["bound"] is not None:
        gap = f"{percent(document['gap'])} above it at most" if document["gap"] else "the plan is optimal"
        yield f"No plan can take less than {amount(document['bound'], unit)}: {gap}.", []
    if document["interrupted"]:
        yield "Interrupted; this is the best so far.", []
    yield "\nSolvers", [{"solver": row["solver"], "cost": amount(row["cost"], unit), "solving": amount(row["seconds"], "s"),
                         "plans tried": f"{row['evaluations']:,}", "": row["note"]}
                        for row in sorted(document["table"], key=lambda row: (row["cost"] is None, row["cost"] or 0.0))]
    yield "Devices", [{"device": row["name"], "busy": percent(row["share"]), "tasks": f"{row['tasks']:,}", "memory": size(row["peak_bytes"]),
                       "limit": size(row["limit_bytes"])} for row in document["devices"]]
    if document["sentences"]:
        yield "\n".join(["Why", *(f" · {line}" for line in document["sentences"])]), []
    if graph["unknown"]:
        yield f"Assumed costs of unknown kinds of op: {', '.join(graph['unknown'])}.", []
    for note in document["notes"]:
        yield f"Note: {note}", []


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
