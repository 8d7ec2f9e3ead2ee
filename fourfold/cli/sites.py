"""`fourfold sites`: the places there are, their carbon intensity and whose figure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli._print import AsJson, emit, say, table

if TYPE_CHECKING:
    from fourfold.carbon.hourly import Hours
    from fourfold.site import Site

_USES = {"value": "the figure", "interval": "in interval", "history": "older", "market": "kept apart"}


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: fourfold sites tokyo")(sites)


def sites(
    query: Annotated[str | None, typer.Argument(metavar="[SITE]", help="A place: FR, US-CA, CISO, gcp:us-west1, tokyo … or part of a name.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only one kind: country, state, area, city, cloud.")] = None,
    online: Annotated[bool, typer.Option("--online", help="Also ask a live service for this hour; needs its token outside Britain.")] = False,
    service: Annotated[str | None, typer.Option(help="Which one: carbonintensity, electricitymaps or watttime.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell where the grid is how clean: grams of CO2e per kWh with interval and source, PUE, time zone."""
    from fourfold import site as room

    found = room.search(query) if query else room.sites(kind)
    chosen = [place for place in found if kind in (None, place.kind)]
    now = _now(found, online, service)
    if as_json:
        emit({"sites": [place.to_json() for place in chosen], **({"now": now} if now else {})})
    elif len(chosen) == 1 and query:
        _one(chosen[0])
        if now:
            print(f"now        {now['intensity']['value']:.4g} gCO2e/kWh, {now['start']} UTC, {now['source']}")
            for note in now["notes"]:
                say(note)
    else:
        table([_line(place) for place in chosen])


def _now(found: tuple[Site, ...], online: bool, service: str | None) -> dict[str, Any] | None:
    from fourfold.errors import InputError

    if not online:
        return None
    if len(found) != 1:
        raise InputError(f"--online asks for one place, and {len(found)} fit.", "Give its id.")
    from fourfold.carbon import live

    hours: Hours = live.hours(found[0], "latest", service=service, online=True)
    figure = hours.at(hours.names[0], hours.start)
    return {"intensity": figure and figure.to_json(), "start": f"{hours.start:%Y-%m-%d %H:%M}", "source": hours.source, "notes": list(hours.notes)}


def _one(place: Site) -> None:
    print(f"{place.title} ({place.id})")
    print(f"intensity  {place.intensity}: {place.intensity.method}")
    print(f"PUE        {place.pue}: {place.pue.source}")
    print(f"price      {place.price or place.why.get('price', 'not known')}")
    print(f"time zone  {place.zone or place.why.get('zone', 'not known')}")
    if "intensity" in place.why:
        print(f"note       {place.why['intensity']}")
    table([{"value": f"{row.value:g}", "unit": row.unit, "year": row.year or "?", "use": _USES[row.use], "source": row.source} for row in place.rows])
    for source, words in dict.fromkeys((row.source, f"{row.title}. Of {row.site}; {row.basis}; {row.licence}.") for row in place.rows):
        print(f"{source}: {words}")


def _line(place: Site) -> dict[str, object]:
    low, high = place.intensity.bounds
    row = place.value_row
    name = place.title.removesuffix(", United States")
    return {"id": place.id, "name": name, "g/kWh": f"{place.intensity.value:.4g}", "90 %": f"{low:.3g}–{high:.3g}",
            "year": (row.year if row else None) or "?", "grade": place.intensity.grade, "PUE": f"{place.pue.value:g}"}
