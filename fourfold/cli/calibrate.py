"""`fourfold calibrate`: measure this machine into a machine file that plans are made for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, say, table


def register(app: typer.Typer) -> None:
    app.command("calibrate", epilog="Example: fourfold calibrate --workers 2 --out machine.toml")(calibrate)


def calibrate(
    out: Annotated[Path, typer.Option(help="Where to write the machine file; plans for `here` find it in the default place.")] = Path(
        ".fourfold/machine.toml"),
    workers: Annotated[int | None, typer.Option(help="Processes that share the cores evenly. Default: one per two cores.")] = None,
    seconds: Annotated[str, typer.Option(help="About how long to measure: 150, 3min. Under 30 s leaves out large sizes.")] = "150",
    quick: Annotated[bool, typer.Option("--quick", help="25 seconds, without large sizes: rough, to see that it works.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what this machine reaches by kind and size of operation, what a call costs and what handing a tensor to another process costs."""
    from fourfold.errors import unwritable
    from fourfold.folder import may_overwrite
    from fourfold.jobs.calibrate import calibrate as measure
    from fourfold.machine import ours
    from fourfold.units.parse import duration

    limit = duration(seconds, "--seconds")
    may_overwrite(out, "--out", kind=ours)
    try:
        system = measure(workers, min(limit, 25.0) if quick else limit, say)
    except KeyboardInterrupt:
        say(f"Interrupted; {out} stays as it was." if out.exists() else f"Interrupted; {out} was not written.")
        raise typer.Exit(130) from None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        system.write(out)
    except OSError as error:
        raise unwritable(out, error, "the machine file") from None
    if as_json:
        emit(system.to_json() | {"file": str(out)})
        return
    say(f"{system.name} → {out}")
    first = system.devices[0]
    rows = [{"figure": f"peak {dtype}", "value": f"{value / 1e9:.1f} GFLOP/s"} for dtype, value in first.peak.items()]
    rows += [{"figure": "memory bandwidth", "value": f"{first.bandwidth / 1e9:.1f} GB/s"}]
    rows += [{"figure": f"one call: {family}", "value": f"{(curve.launch or 0.0) * 1e6:.1f} us"} for family, curve in first.efficiency.items()]
    rows += [{"figure": f"{link.a} to {link.b}", "value": f"{link.latency * 1e6:.0f} us + {link.bandwidth / 1e9:.1f} GB/s"} for link in system.links]
    table(rows)
