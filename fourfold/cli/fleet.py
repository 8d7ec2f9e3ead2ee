"""`fourfold fleet`: gangs of processes on a Ray cluster, started, watched, drained; the scheduler simulated beyond this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from fourfold.cli._print import AsJson, emit, say, table
from fourfold.errors import InputError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Gangs of processes on a Ray cluster.", epilog="Example: fourfold fleet up --devices 4", rich_markup_mode=None)
    group.command("up", epilog="Example: fourfold fleet up --devices 4 --tenant research=1 --tenant product=3")(up)
    group.command("submit", epilog="Example: fourfold fleet submit --ranks 4 -- python train.py",
                  context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(submit)
    group.command("status", epilog="Example: fourfold fleet status --json")(status)
    group.command("end", epilog="Example: fourfold fleet end 3")(end)
    group.command("drain", epilog="Example: fourfold fleet drain")(drain)
    group.command("down", epilog="Example: fourfold fleet down")(down)
    group.command("simulate", epilog="Example: fourfold fleet simulate --executors 10000 --tenants 1000 --programs 2000 --deaths 0.001")(simulate)
    app.add_typer(group, name="fleet")


def up(
    devices: Annotated[int | None, typer.Option(min=1, help="Places of executors. [the cores]")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="NAME=WEIGHT: its share of places. Repeatable.")] = None,
    as_json: AsJson = False,
) -> int:
    """Start a fleet on this host. It goes on after this command."""
    from fourfold.host import here
    from fourfold.runtime.fleet.cluster import up as start

    weights = {}
    for pair in tenant or []:
        name, _, weight = pair.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
        if not name or not weights[name] > 0:
            raise InputError(f"{pair!r} is no tenant and weight.", "Write it like --tenant research=2")
    made = start(devices or here().cores, weights)
    if as_json:
        emit({"address": made.address, "devices": made.devices, "logs": made.folder})
    else:
        say(f"A fleet of {made.devices} places is up at {made.address}; logs of jobs go to {made.folder}.")
    return 0


def submit(
    command: Annotated[list[str], typer.Argument(help="The program, after --.")],
    ranks: Annotated[int, typer.Option(min=1, help="Processes of the gang.")] = 1,
    tenant: Annotated[str, typer.Option(help="Whose it is.")] = "me",
    priority: Annotated[int, typer.Option(help="Of a higher one, lower ones are taken back to make room.")] = 0,
    restarts: Annotated[int, typer.Option(min=0, help="How often the whole gang starts again when a rank dies.")] = 3,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 5 where it failed.")] = False,
    as_json: AsJson = False,
) -> int:
    """Run a program as a gang: torch.distributed's variables are set, and FOURFOLD_GENERATION counts its starts."""
    from fourfold.runtime.fleet.cluster import asked, known
    from fourfold.runtime.fleet.island import log_of

    if ranks > (there := known().devices):
        raise InputError(f"A gang of {ranks} ranks on a fleet of {there} places.", f"Ask for at most {there}, or start a larger fleet.")
    number = cast(int, asked("submit", command, ranks, tenant, priority, restarts, str(Path.cwd()), log_of(Path(known().folder)), {}))
    row = _waited(number) if wait else {"job": number, "state": "submitted"}
    if as_json:
        emit(row)
    else:
        say(f"job {number}: {row['state']}" + (f", {row['why']}" if row.get("why") else ""))
    return 5 if row["state"] == "failed" else 0


def _waited(number: int) -> dict[str, object]:
    import time

    import ray

    from fourfold.runtime.fleet.cluster import connected, known
    from fourfold.runtime.fleet.island import ISLAND

    with connected(known()):
        handle = ray.get_actor(ISLAND)
        while True:
            rows = cast("dict[str, list[dict[str, object]]]", ray.get(handle.status.remote()))["jobs"]
            row = next(row for row in rows if row["job"] == number)
            if row["state"] not in ("waiting", "running"):
                return row
            time.sleep(0.1)


def status(as_json: AsJson = False) -> int:
    """What the fleet does."""
    from fourfold.runtime.fleet.cluster import asked

    found = cast("dict[str, object]", asked("status"))
    if as_json:
        emit(found)
        return 0
    say(f"{found['free']} of {found['devices']} places free" + (", draining" if found["draining"] else ""))
    jobs = cast("list[dict[str, object]]", found["jobs"])
    if jobs:
        table([{"job": row["job"], "tenant": row["tenant"], "ranks": row["ranks"], "generation": row["generation"],
                "state": f"{row['state']}{': ' + str(row['why']) if row['why'] else ''}", "command": " ".join(cast("list[str]", row["command"]))[:60]}
               for row in jobs])
    return 0


def end(job: Annotated[int, typer.Argument(help="Its number.")], as_json: AsJson = False) -> int:
    """End a job."""
    from fourfold.runtime.fleet.cluster import asked

    if not asked("end", job):
        raise InputError(f"Job {job} neither waits nor runs.", "See `fourfold fleet status`.")
    emit({"job": job, "state": "ended"}) if as_json else say(f"job {job}: ended")
    return 0


def drain(as_json: AsJson = False) -> int:
    """Take no new work; what runs and waits goes on to its end."""
    from fourfold.runtime.fleet.cluster import asked

    asked("drain")
    emit({"draining": True}) if as_json else say("The fleet takes no new work.")
    return 0


def down(as_json: AsJson = False) -> int:
    """End the fleet and all that runs on it; nothing else of Ray on this machine is touched."""
    from fourfold.runtime.fleet.cluster import down as stop

    found = stop()
    emit({"address": found.address, "down": True}) if as_json else say(f"The fleet at {found.address} is down.")
    return 0


def simulate(
    executors: Annotated[int, typer.Option(min=2, help="Executors of the island.")] = 1000,
    tenants: Annotated[int, typer.Option(min=1, help="Tenants.")] = 100,
    programs: Annotated[int, typer.Option(min=1, help="Programs of one to three computations whose slices cross.")] = 500,
    slices: Annotated[int, typer.Option(min=2, help="Executors of the largest slice.")] = 64,
    deaths: Annotated[float, typer.Option(min=0, max=1, help="Chance of a death at each step.")] = 0.001,
    seed: Annotated[int, typer.Option(help="Of delays, deaths and programs.")] = 0,
    as_json: AsJson = False,
) -> int:
    """The scheduler's state machine under random delays and deaths, every message followed; and the same programs without it."""
    from fourfold.runtime.fleet.simulate import scaled

    found = scaled(executors, tenants, programs, slices, deaths, seed)
    if as_json:
        emit(found)
    else:
        say(f"{found['done']:,} programs done, {found['failed']:,} failed for lost inputs, of {programs:,}; {found['deaths']:,} deaths, "
            f"{found['restarts']:,} restarts, {found['late']:,} late messages dropped")
        say(f"deadlocks: {found['deadlocks']} (without the scheduler: {found['unscheduled']}); broken: {len(cast(list, found['broken']))}, "
            f"in {cast(float, found['cpu_s']):.1f} CPU s")
    return 0 if not found["deadlocks"] and not found["broken"] else 1
