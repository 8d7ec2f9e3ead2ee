"""`fourfold whatif`: a run beside what it would be with other levers pulled: four factors, their product, who saved what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, say, table

Text = str | None


def register(app: typer.Typer) -> None:
    app.command("whatif", epilog="Example: fourfold whatif run.toml --model 4 --machine P100:TPUv4 --hall 1.58:1.10 --site US:FR")(whatif)


def whatif(
    run: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="The run: [run] as in `fourfold footprint`; [after] what differs, if known.")],
    model: Annotated[Text, typer.Option(help="How many times less work the new model takes: 4, or 4 [3, 5].")] = None,
    machine: Annotated[Text, typer.Option(help="Old and new chip, P100:TPUv4; or how many times less energy for the same work.")] = None,
    hall: Annotated[Text, typer.Option(help="PUE before and after, 1.58:1.10; or after alone.")] = None,
    site: Annotated[Text, typer.Option(help="Site before and after, FR:SE; or intensities, 0.429:0.080 (kg/kWh); or after alone.")] = None,
    embodied: Annotated[Text, typer.Option(help="Count the making of the hardware on both sides: luccioni, ecologits, or kg per chip-hour.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell which lever saves what: Model, Machine, Mechanization and Map, for energy and carbon, exactly."""
    from fourfold.cost.whatif import read
    from fourfold.report.whatif import headings, notes

    found = read(run, model=model, machine=machine, hall=hall, site=site, embodied=embodied)
    if as_json:
        emit(found.to_json())
        return
    for title, rows in headings(found):
        print(title)
        table(rows)
    for line in notes(found):
        say(line)
