"""`fourfold shard`: a strategy for each operator of an instance, or of a model on a mesh, so that sharding costs least within the memory limit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, Trust, emit, progress_mode, table
from fourfold.errors import InputError

_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    app.command("shard", epilog="Example: fourfold shard instance.json.gz --budget 60s --out plan/")(shard)


def shard(
    source: Annotated[str, typer.Argument(metavar="FILE|MODEL", help="Instance in the public contest's format, .json or .json.gz; with --mesh what "
                                                                     "`plan` takes, or a size: gpt:1024x32x16.")],
    solver: Annotated[str, typer.Option(help="auto, or a technique that `fourfold list shard` names.")] = "auto",
    budget: Annotated[str, typer.Option(help="Time for the solver: 60s, 10min.")] = "60s",
    evaluations: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps of the solver; answers alike on every machine.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the plan: the choice, the instance, the certificate of the bound.")] = None,
    mesh: Annotated[str | None, typer.Option(help="Lay a model out on this mesh of devices: 2x4, or dp=2,tp=4.")] = None,
    machine: Annotated[str, typer.Option(help="With --mesh: here, a machine file, or a shipped system: v100x64 …")] = "here",
    train: Annotated[bool, typer.Option("--train", help="With --mesh: forward and backward.")] = False,
    microbatches: Annotated[int, typer.Option(min=1, help="With --mesh: microbatches a step; the inputs are one of them.")] = 1,
    memory: Annotated[str | None, typer.Option(help="With --mesh: limit of bytes a device: 16GiB.")] = None,
    dims: Annotated[list[str] | None, typer.Option("--dims", "--dim", help="With --mesh: sizes by name: batch=8,sequence=128.")] = None,
    trust: Trust = None,
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Choose a strategy for each node, so that node and edge costs are least and no time needs more bytes than the limit, with a bound."""
    mode = progress_mode(progress, as_json)
    instance = source.endswith((".json", ".json.gz"))
    if mesh is None and not instance:
        raise InputError(f"{source!r} is no instance (.json, .json.gz), and a model needs a mesh.", "Add --mesh 2x4.")
    if mesh is not None and instance:
        raise InputError(f"--mesh is for models; the strategies of {source} are in its file.", "Leave --mesh out.")
    if mesh is not None:
        from fourfold.cli._devices import sharded
        from fourfold.cli.plan import sizes

        return sharded(source, out, as_json, progress, mesh=mesh, machine=machine, train=train, microbatches=microbatches, memory=memory,
                       dims=sizes(dims), trust=trust or (), solver=solver, budget=budget, seed=seed)
    from fourfold.jobs.shard import shard_instance
    from fourfold.report.terminal import Progress

    with Progress(mode) as shown:
        made = shard_instance(source, solver=solver, budget=budget, evaluations=evaluations, seed=seed, out=out, progress=shown)
    if as_json:
        emit(made.to_json() | {"files": [str(out)] if out is not None else []})
    else:
        print("\n".join(made.sentences))
        if made.interrupted:
            print("Interrupted; this is the best so far.")
        if len(made.table) > 1:
            rows = sorted(made.table, key=lambda row: (row["cost"] is None, row["cost"] or 0.0))
            table([{"solver": row["solver"], "cost": "–" if row["cost"] is None else f"{row['cost']:,.6g}",
                    "solving": "–" if row["cost"] is None else f"{row['seconds']:.2f} s", "": row["note"]} for row in rows])
        for note in made.notes:
            print(f"Note: {note}")
        if out is not None:
            print(f"Wrote {out}.")
    return _INTERRUPTED if made.interrupted else 0
