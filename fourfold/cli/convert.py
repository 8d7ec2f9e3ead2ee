"""`fourfold convert`: attentions or MLPs of a model swapped for a cheaper kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, progress_mode


def register(app: typer.Typer) -> None:
    app.command("convert", epilog="Example: fourfold convert model/ --to topk-mlp --layers 0-3 --data reviews.csv --out converted/")(convert)


def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id in the local cache, or package.module:factory.")],
    to: Annotated[str, typer.Option("--to", help="What to convert to; `fourfold list attend`, `route` say what there is.")],
    layers: Annotated[str, typer.Option(help="Numbers of blocks: 0-3, or 0,2,5-7; or all.")] = "all",
    data: Annotated[str | None, typer.Option(help="Rows to recover, judge and race on, as for optimize. Without: swapped and saved only.")] = None,
    budget: Annotated[str, typer.Option(help="Time for recovery, judging and racing: 90s, 10min.")] = "5min",
    floor: Annotated[str | None, typer.Option(help="Least share of the original's quality; exit code 3 where it is missed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the converted model.")] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, f1, perplexity … or package.module:function.")] = None,
    task: Annotated[str | None, typer.Option(help="classification, regression, causal_lm, seq2seq, ctc; found where left out.")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="Column with the text; twice for pairs.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the label.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest input kept, in tokens or samples.")] = None,
    dims: Annotated[list[str] | None, typer.Option("--dims", "--dim", help="Without data: sizes of the sample, batch=1,length=2048.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer, where its files do not lie beside the model.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings, each from a seed of its own; the first is kept.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be converted and count; change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Where --out holds anything else, move that aside when done.")] = False,
    ledger: Annotated[Path | None, typer.Option(help="Ledger that the saving is booked in.")] = None,
    online: Annotated[bool, typer.Option("--online", help="Fetch MODEL from the Hugging Face hub where it is not on this machine.")] = False,
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Swap a model's attentions or MLPs for a cheaper kind, win back quality from the original, and race both."""
    mode = progress_mode(progress, as_json)
    import fourfold
    from fourfold.cli.plan import sizes
    from fourfold.frontends.hub import resolved
    from fourfold.jobs.convert import technique_of
    from fourfold.report.terminal import Progress

    technique_of(to)  # before a model is looked for, which may take a download
    columns = {**dict(zip(("text", "pair"), text_column or [], strict=False)), **({"label": label_column} if label_column else {})}
    with Progress(mode) as shown:
        made = fourfold.convert(
            resolved(model, online=online), to, layers=layers, data=data, floor=floor, budget=budget, out=out, columns=columns or None, task=task,
            metric=metric, max_length=max_length, dims=sizes(dims), tokenizer=tokenizer, seed=seed, seeds=seeds, dry_run=dry_run, force=force,
            ledger=ledger, progress=shown,
        )  # fmt: skip
    if as_json:
        emit(made.to_json())
    else:
        print("\n".join([*made.sentences, *(f"Note: {note}" for note in made.notes), *([f"Wrote {made.folder}."] if made.folder else [])]))
    return made.exit_code
