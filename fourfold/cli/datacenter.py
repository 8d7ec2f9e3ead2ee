"""`fourfold datacenter`: what a hall takes on top of its servers, and what each means would save."""

from __future__ import annotations

import sys
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from fourfold.cli._print import AsJson, emit, table


def register(app: typer.Typer) -> None:
    example = "Example: fourfold datacenter --it-kw 800 --pue 1.58 --temperatures hourly.csv --utilisation 0.3"
    app.command(epilog=example)(datacenter)
    app.command("hall", hidden=True, epilog=example)(_hall)


def datacenter(
    it_kw: Annotated[str, typer.Option(help="Mean IT load, in kW: 800, or 1.2MW.")] = "1000",
    rated_kw: Annotated[str | None, typer.Option(help="IT load that the hall is built for, in kW. The peak load where left out.")] = None,
    pue: Annotated[float | None, typer.Option(help="Known PUE, 1.0 or more. The model's where left out.")] = None,
    temperatures: Annotated[Path | None, typer.Option(help="CSV of hourly outside temperatures: time, temperature in °C.")] = None,
    set_point: Annotated[float, typer.Option(help="Supply air now, in °C.")] = 18.0,
    to_set_point: Annotated[float, typer.Option(help="Warmest supply air allowed, in °C.")] = 27.0,
    cooling: Annotated[str, typer.Option(help="How the hall is cooled now: chiller, economiser or immersion.")] = "chiller",
    hold: Annotated[int, typer.Option(min=1, help="Hours that a cooling mode is kept at least.")] = 1,
    utilisation: Annotated[float, typer.Option(help="Mean use of the servers, 0 to 1.")] = 0.3,
    load: Annotated[Path | None, typer.Option(help="CSV with a column load, 0 to 1 of the servers' capacity, a line an hour.")] = None,
    servers: Annotated[int, typer.Option(help="Servers, all on now.")] = 100,
    idle: Annotated[float | None, typer.Option(help="Power of an idle server over that of a busy one. 0.30 [0.17, 0.50] where left out.")] = None,
    headroom: Annotated[float, typer.Option(help="Fullest a server may be, 0 to 1.")] = 0.8,
    spare: Annotated[int, typer.Option(min=0, help="Servers kept on beyond need.")] = 0,
    start_kwh: Annotated[str, typer.Option(help="Energy of starting a server, in kWh.")] = "0",
    call_ms: Annotated[str, typer.Option(help="Fixed time of a call, in ms: with --item-ms and --latency-ms batching is told too.")] = "0",
    item_ms: Annotated[str, typer.Option(help="Time of an item in a call, in ms.")] = "0",
    latency_ms: Annotated[str, typer.Option(help="Latency allowed, in ms.")] = "0",
    ledger: Annotated[Path | None, typer.Option(help="Ledger that what all means together save is booked in.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a hall's PUE apart, and tell what outside air, a warmer set point, immersion, control and fewer servers would save."""
    from fourfold.jobs.booking import book_hall, may_book
    from fourfold.jobs.datacenter import study
    from fourfold.units.parse import duration, quantity

    if ledger is not None:
        may_book(ledger)
    call, item, latency = (duration(text, option, bare="ms", to="ms") / 1e3 for text, option in (
        (call_ms, "--call-ms"), (item_ms, "--item-ms"), (latency_ms, "--latency-ms")))
    rated = None if rated_kw is None else quantity(rated_kw, "power", "--rated-kw", bare="kW", to="kW")
    document = study(
        it_kw=quantity(it_kw, "power", "--it-kw", bare="kW", to="kW"), rated_kw=rated, pue=pue, temperatures=temperatures, set_point=set_point,
        limit=to_set_point, cooling=cooling, hold=hold, load=load or utilisation, servers=servers, idle=idle, headroom=headroom, spare=spare,
        start_kwh=quantity(start_kwh, "energy", "--start-kwh", bare="kWh", to="kWh", least=0.0), call_s=call, item_s=item, latency_s=latency,
    )  # fmt: skip
    if ledger is not None:
        book_hall(ledger, document)
    if as_json:
        emit(document)
    else:
        _show(document)


@wraps(datacenter)
def _hall(*arguments: Any, **options: object) -> None:
    print("hint: `fourfold hall` is now `fourfold datacenter`.", file=sys.stderr)
    datacenter(*arguments, **options)


def _show(document: dict[str, Any]) -> None:
    hall, pue, parts = document["hall"], document["pue"], document["parts"]
    print(f"PUE {_figure(pue)} at {hall['it_kw']:g} kW of IT, {hall['utilisation']:.0%} of the rating; {document['weather']}.")
    table([{"part": "IT", "kW per kW of IT": "1", "kW": f"{hall['it_kw']:,.0f}"},
           *({"part": name, "kW per kW of IT": _figure(part, 3), "kW": f"{part['value'] * hall['it_kw']:,.0f}"} for name, part in parts.items())])
    print("PUE by load: " + ", ".join(f"{row['load']:.0%} {row['pue']:.2f}" for row in document["by_load"][1::3])
          + "; by outside temperature: " + ", ".join(f"{row['celsius']:g} °C {row['pue']:.2f}" for row in document["by_temperature"][2::3]) + ".")
    table([_row(option) for option in document["options"]])
    both = document["together"]
    if both:
        print(f"Together ({', '.join(both['means'])}): {_figure(both['factor'])} times less energy of the hall, {both['factor']['grade']}; "
              f"PUE {_figure(both['pue_after'])}.")
    print("\n".join(f"Note: {text}" for text in document["notes"]))


def _row(option: dict[str, Any]) -> dict[str, object]:
    told = option["why"]
    if option["factor"]:
        hours, off = option.get("hours"), option.get("servers_off")
        parts = [f"{hours['free']:,} free hours, {hours['partial']:,} partly, of {sum(hours.values()):,}"] if hours else []
        parts += [f"set point {option['set_point']:g} °C"] if option["name"] == "set_point" else []
        parts += [f"{off['mean']:,.0f} servers off on average, {off['least']} to {off['most']}"] if off else []
        parts += [f"{option['batch']['mean']:.0f} items a call"] if option["name"] == "batching" else []
        told = "; ".join(parts)
    return {"option": option["title"], "factor": _figure(option["factor"]) if option["factor"] else "–",
            "grade": option["factor"]["grade"] if option["factor"] else "",
            "PUE after": _figure(option["pue_after"]) if option.get("pue_after") else "", "": told}


def _figure(figure: dict[str, Any], digits: int = 2) -> str:
    ends = f" [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]" if figure["low"] < figure["high"] else ""
    return f"{figure['value']:.{digits}f}{ends}"
