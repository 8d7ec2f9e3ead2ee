"""`fourfold profile`: where a model's time goes, how many hidden units matter, and which conversion could pay."""

from __future__ import annotations

from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, table


def register(app: typer.Typer) -> None:
    app.command("profile", epilog="Example: fourfold profile model/ --data reviews.csv")(profile)


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id in the local cache, or package.module:factory.")],
    data: Annotated[str, typer.Option(help="Rows, as for optimize; labels are not needed.")],
    rows: Annotated[int, typer.Option(min=2, help="Rows that are watched and raced on together.")] = 16,
    rounds: Annotated[int, typer.Option(min=5, help="Passes that are timed, and rounds of each race.")] = 7,
    to: Annotated[list[str] | None, typer.Option("--to", help="Conversion to race; may be repeated. Left out: all there are.")] = None,
    race: Annotated[bool, typer.Option("--race/--no-race", help="Race conversions.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [all that this process may use]")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="Column with the text; twice for pairs.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the label, which is not read as an input.")] = None,
    task: Annotated[str | None, typer.Option(help="classification, regression, causal_lm, seq2seq, ctc; found where left out.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest input kept, in tokens or samples.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of the tokenizer, where its files do not lie beside the model.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    online: Annotated[bool, typer.Option("--online", help="Fetch MODEL from the Hugging Face hub where it is not on this machine.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a model on your own rows: time of attention, MLPs and the rest, units that are zero, and conversions that could pay, raced untrained."""
    import fourfold
    from fourfold.frontends.hub import resolved

    roles = {**dict(zip(("text", "pair"), text_column or [], strict=False)), "label": label_column}
    found = fourfold.profile(resolved(model, online=online), data, rows=rows, rounds=rounds, conversions=(to or None) if race else [],
                             threads=threads, columns={key: name for key, name in roles.items() if name} or None, task=task, max_length=max_length,
                             tokenizer=tokenizer, seed=seed)
    if as_json:
        emit(found.to_json())
        return
    parts = found.probe.parts
    active = {one.name: one for one in found.probe.activities}
    print("\n".join(found.sentences[:2]))
    table([{"part": name, "time": f"{100 * parts[name].value:.1f} %" if name in parts else "–",
            "not zero": f"{100 * active[name].nonzero:.1f} %" if name in active else "–",
            "hold 99 %": f"{100 * active[name].needed:.1f} %" if name in active else "–"} for name in dict.fromkeys([*parts, *active])])
    print("\n".join(found.sentences[2:]))
