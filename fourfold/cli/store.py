"""`fourfold store`: checkpoints that cannot be torn, saved, looked at, proved, resharded, collected and exported."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourfold.cli._print import AsJson, emit, table
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.runtime.store.checkpointer import Checkpointer, SavedStep

Root = Annotated[str, typer.Argument(metavar="DIR", help="The store: a folder, or s3://bucket/prefix.")]
Step = Annotated[int | None, typer.Option(help="Which step. [the newest]")]
Endpoint = Annotated[str | None, typer.Option(help="Address of an S3-like server of your own.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Checkpoints that cannot be torn.", epilog="Example: fourfold store verify checkpoints/", rich_markup_mode=None)
    group.command("save", epilog="Example: fourfold store save checkpoints/ model/ --step 1")(save)
    group.command("show", epilog="Example: fourfold store show checkpoints/")(show)
    group.command("verify", epilog="Example: fourfold store verify checkpoints/")(verify)
    group.command("reshard", epilog="Example: fourfold store reshard checkpoints/ --shards 4 --axis 1 --to 2")(reshard)
    group.command("gc", epilog="Example: fourfold store gc checkpoints/ --keep 3")(gc)
    group.command("export", epilog="Example: fourfold store export checkpoints/ --out model.safetensors")(export)
    app.add_typer(group, name="store")


def save(
    root: Root,
    source: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A .safetensors file, or a model's folder of them.")],
    step: Annotated[int | None, typer.Option(help="Its number. [one above the newest]")] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="Steps to keep; older ones are removed. [all]")] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> int:
    """Save weights as a step; chunks that the store holds already are not written again."""
    from fourfold.store import Checkpointer, save_weights

    with Checkpointer(root, keep=keep, endpoint=endpoint) as store:
        number = _next(store) if step is None else step
        made = save_weights(store, number, source)
    return _saved(made, as_json)


def show(root: Root, step: Step = None, endpoint: Endpoint = None, as_json: AsJson = False) -> int:
    """What the store holds: its steps, or the tensors of one step."""
    from fourfold.store import Checkpointer

    with Checkpointer(root, endpoint=endpoint) as store:
        numbers = [step] if step is not None else store.steps()
        if step is None:
            store.latest()
        rows, seen = [], set()
        for number in numbers:
            found = store.open(number)
            names = set(found.manifest.objects)
            rows.append({"step": number, "tensors": len(found), "chunks": len(names), "bytes": found.manifest.bytes,
                         "new": sum(found.manifest.objects[name].size for name in names - seen), "shards": found.manifest.world})
            seen |= names
        tensors = [{"name": name, "dtype": one.dtype, "shape": list(one.shape)} for name, one in store.open(step).items()] if step is not None else []
        values = store.open(step).values() if step is not None else {}
    if as_json:
        emit({"root": root, "steps": rows, "tensors": tensors, "values": values})
        return 0
    if not rows:
        print("No committed step.")
    elif step is None:
        table([{key: f"{value:,}" for key, value in row.items()} for row in rows])
    else:
        table([{"tensor": str(one["name"]), "type": str(one["dtype"]), "shape": "×".join(map(str, one["shape"])) or "scalar"} for one in tensors])  # type: ignore[call-overload]
        for name, value in values.items():
            print(f"{name} = {value}")
    return 0


def verify(
    root: Root,
    step: Step = None,
    repair: Annotated[bool, typer.Option("--repair", help="Write LATEST again where it is wrong. Chunks cannot be repaired.")] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> int:
    """Read and compare every byte. Exit code 4: something is damaged or missing."""
    from fourfold.store import Checkpointer

    with Checkpointer(root, endpoint=endpoint) as store:
        from fourfold.runtime.store.check import repair as mended

        done = mended(store.backend) if repair else None
        found = store.verify(None if step is None else [step])
    if as_json:
        emit({**found.to_json(), "repaired": done})
        return 0 if found.good else 4
    if done:
        print(f"{done}.")
    for fault in found.faults:
        print(f"FAULT {fault}.")
    whole = f"{len(found.steps)} step{'s' * (len(found.steps) != 1)} whole" + (f" ({', '.join(map(str, found.steps[-8:]))})" if found.steps else "")
    print(f"{whole}; {found.chunks:,} chunks, {found.bytes:,} bytes read; {'no fault' if found.good else f'{len(found.faults)} faults'}.")
    for note in found.notes:
        print(f"Note: {note}.")
    return 0 if found.good else 4


def reshard(
    root: Root,
    shards: Annotated[int, typer.Option(min=1, help="Parts of each tensor.")],
    axis: Annotated[int, typer.Option(help="Along which axis.")] = 0,
    step: Step = None,
    to: Annotated[int | None, typer.Option(help="Number of the new step. [one above the newest]")] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> int:
    """Save a step again in other shards. Any shards can read any step without it; this makes just these reads the cheapest."""
    from fourfold.runtime.store.weights import resharded
    from fourfold.store import Checkpointer

    with Checkpointer(root, endpoint=endpoint) as store:
        source = store.open(step).step
        made = resharded(store, source, _next(store) if to is None else to, shards, axis)
    return _saved(made, as_json)


def gc(
    root: Root,
    keep: Annotated[int | None, typer.Option(min=1, help="Newest steps to keep. [all]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> int:
    """Remove old steps and what no step needs. Safe beside saves that are under way."""
    from fourfold.store import Checkpointer

    with Checkpointer(root, endpoint=endpoint) as store:
        found = store.collect(keep, dry_run)
    if as_json:
        emit(found.to_json())
        return 0
    size = "" if found.bytes is None else f", {found.bytes:,} bytes"
    print(f"{'Would go' if dry_run else 'Gone'}: {len(found.steps)} steps, {found.chunks:,} chunks, {found.packs} packs, "
          f"{found.tries} unfinished saves{size}. Kept: {', '.join(map(str, found.kept)) or 'no step'}."
          + f" {found.under_way} saves are under way." * bool(found.under_way))
    return 0


def export(
    root: Root,
    out: Annotated[Path, typer.Option(help="A .safetensors file, or a folder for files and their index.")],
    step: Step = None,
    names: Annotated[list[str] | None, typer.Option("--name", help="Only tensors of this name; * and ? stand for any. May be repeated.")] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> int:
    """Write the tensors of a step as safetensors."""
    from fourfold.store import Checkpointer
    from fourfold.store import export as exported

    with Checkpointer(root, endpoint=endpoint) as store:
        found = store.open(step)
        wanted = [name for name in found if not names or any(fnmatch.fnmatchcase(name, one) for one in names)]
        if not wanted:
            raise InputError(f"Step {found.step} has no tensor named {' or '.join(names or [])}.", "`fourfold store show DIR --step N` lists them.")
        written = exported(found, out, names=wanted)
    if as_json:
        emit({"step": found.step, "tensors": len(wanted), "files": [str(path) for path in written]})
        return 0
    print(f"Wrote {len(wanted):,} tensors of step {found.step} to {', '.join(map(str, written))}.")
    return 0


def _next(store: Checkpointer) -> int:
    return max([*store.steps(), 0]) + 1


def _saved(made: SavedStep, as_json: bool) -> int:
    if as_json:
        emit(made.to_json())
        return 0
    print(f"Step {made.step}: {made.bytes:,} bytes, {made.new:,} of them new to the store, {made.seconds:.2f} s.")
    for note in made.notes:
        print(f"Note: {note}")
    return 0
