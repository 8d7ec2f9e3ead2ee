"""`fourfold primer`: would Primer's block train cheaper than the plain one on this text?"""

from __future__ import annotations

from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit


def register(app: typer.Typer) -> None:
    app.command("primer", epilog="Example: fourfold primer book.txt --steps 300")(primer)


def primer(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A text file; its bytes are the data.")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each model.")] = 300,
    width: Annotated[int, typer.Option(min=1, help="Residual width; MLPs are four times as wide.")] = 96,
    layers: Annotated[int, typer.Option(min=1, help="Blocks.")] = 3,
    heads: Annotated[int, typer.Option(min=1, help="Heads of an attention.")] = 4,
    length: Annotated[int, typer.Option(min=1, help="Bytes of a window.")] = 96,
    batch: Annotated[int, typer.Option(min=1, help="Windows of a step.")] = 16,
    rate: Annotated[float, typer.Option(help="Learning rate of AdamW.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights and windows.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Runs, each from a seed of its own.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train Primer's block beside the plain one on a text: steps and processor seconds to the same loss."""
    from fourfold.jobs.primer import primer as train

    found = train(text, steps=steps, width=width, layers=layers, heads=heads, length=length, batch=batch, rate=rate, seed=seed, seeds=seeds)
    if as_json:
        emit(found.to_json())
    else:
        print("\n".join(found.sentences))
