"""`fourfold footprint`: the energy, carbon and money of a training run, from chips, hours and watts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, say, table
from fourfold.errors import InputError

Text = str | None


def register(app: typer.Typer) -> None:
    app.command("footprint", epilog="Example: fourfold footprint --chips 10000 --chip V100 --watts 330 --days 14.8 --pue 1.1 --intensity 0.429")(
        footprint)


def footprint(
    chips: Annotated[Text, typer.Option(help="How many chips.")] = None,
    chip: Annotated[Text, typer.Option(help="Which: V100, TPUv4, A100-PCIe … (fourfold machines). Fills in --watts.")] = None,
    watts: Annotated[Text, typer.Option(help="Mean power of the system per chip: 330, 0.33kW, 330±5%; or tdp.")] = None,
    days: Annotated[Text, typer.Option(help="How long it ran: 14.8; or with a unit.")] = None,
    hours: Annotated[Text, typer.Option(help="How long it ran, instead of --days.")] = None,
    chip_hours: Annotated[Text, typer.Option(help="Chips × hours, instead of --chips and a time.")] = None,
    energy: Annotated[Text, typer.Option(help="Energy at the hall's meter (1287MWh), instead of chips, time and watts.")] = None,
    pue: Annotated[Text, typer.Option(help="Power usage effectiveness of the hall, from 1 up.")] = None,
    intensity: Annotated[Text, typer.Option(help="Carbon intensity of the grid: 0.429 (kg/kWh) or 429g/kWh.")] = None,
    net_intensity: Annotated[Text, typer.Option(help="Market-based intensity, after contracts; kept apart from the grid's.")] = None,
    site: Annotated[Text, typer.Option(help="Where it ran: FR, tokyo, gcp:us-central1 … Fills in intensity, PUE and price.")] = None,
    embodied: Annotated[Text, typer.Option(help="Count the making of the hardware: luccioni, ecologits, or kg per chip-hour.")] = None,
    chips_per_server: Annotated[str, typer.Option(help="Chips that share a server, for --embodied.")] = "8",
    price: Annotated[Text, typer.Option(help="Price of electricity: 0.08 (USD/kWh) or 80USD/MWh.")] = None,
    runs_paid: Annotated[str, typer.Option(help="Runs it took in all, search and repeats included.")] = "1",
    name: Annotated[str, typer.Option(help="What to call the run.")] = "run",
    toml: Annotated[Path | None, typer.Option(help="Read the run, or several [[run]], from this file instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a training run took: energy, carbon (gross and net apart), embodied carbon and money, each with grade and interval."""
    from fourfold.cost.footprint import footprint as reckon
    from fourfold.cost.footprint import read
    from fourfold.report.footprint import heading, notes, overview, rows

    facts = {"chips": chips, "chip": chip, "watts": watts, "days": days, "hours": hours, "chip_hours": chip_hours, "energy": energy, "pue": pue,
             "intensity": intensity, "net_intensity": net_intensity, "site": site, "embodied": embodied, "price": price}
    used = {key: value for key, value in facts.items() if value is not None}
    if toml and used:
        raise InputError(f"--toml and --{next(iter(used)).replace('_', '-')} were both given.", "Write all figures into the file, or none.")
    found = read(toml) if toml else [reckon(name=name, chips_per_server=chips_per_server, runs_paid=runs_paid, **used)]
    if as_json:
        emit({"runs": [one.to_json() for one in found]})
        return
    if len(found) > 1:
        table(overview(found))
    for one in found:
        if len(found) == 1:
            print(heading(one))
            table(rows(one))
        for line in notes(one):
            say(line if len(found) == 1 else f"{one.name}: {line}")
