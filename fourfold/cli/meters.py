"""`fourfold meters`: what this machine can and cannot measure, and why."""

from __future__ import annotations

import typer

from fourfold.cli._print import AsJson, emit, table


def register(app: typer.Typer) -> None:
    app.command("meters", epilog="Example: fourfold meters")(meters)


def meters(as_json: AsJson = False) -> None:
    """Tell what can be measured, counted and modelled on this machine, at what grade, and why not the rest."""
    from fourfold.measure.discover import survey

    rows = survey()
    if as_json:
        emit({"meters": rows})
    else:
        keys = ("name", "tells", "grade")
        table([{**{key: row[key] for key in keys}, "here": "yes" if row["available"] else "no", "why": row["why"]} for row in rows])
