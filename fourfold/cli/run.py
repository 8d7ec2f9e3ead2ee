"""`fourfold run`: carry out a plan on this machine, and print what was predicted beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourfold.cli._print import AsJson, Trust, agreement, emit, say, table

if TYPE_CHECKING:
    from fourfold.plans import Plan
    from fourfold.runtime.local.check import Check
    from fourfold.runtime.local.race import Race

_DEVICES = "stages"                                                     # the question that a plan over several devices answers
_DIFFERS = 4                                                            # exit code: outputs are not the original's


def register(app: typer.Typer) -> None:
    app.command("run", epilog="Example: fourfold run plan/ --check")(run)


def run(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Folder that `fourfold plan --out` wrote.")],
    check: Annotated[bool, typer.Option("--check", help="Fail (exit 4) unless outputs equal the original's; tell kinds of op and regions.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Runs that are timed, after two that are not.")] = 15,
    race: Annotated[bool | None, typer.Option("--race/--no-race", help="Race engines and store the choice in the plan; or run every region "
                                              "eagerly. Left out: race where no choice of this processor is stored.")] = None,
    one: Annotated[bool, typer.Option("--one-process", help="Everything in this process, whatever the placement.")] = False,
    inputs: Annotated[Path | None, typer.Option(help="Inputs by name, .npz or .safetensors. [those that the plan was made with]")] = None,
    model: Annotated[str | None, typer.Option(help="The model, where it is no longer where it was planned from.")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Carry out the folder's plan of memory, where it holds a schedule too.")] = False,
    nproc: Annotated[int | None, typer.Option(min=1, help="Processes of a plan over several devices, on all hosts. [as many as its devices]")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts that run a share of these processes each, with this command.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Which of the hosts this is, from 0.")] = 0,
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where the processes meet, on host 0. [this host, a free port]")] = None,
    patience: Annotated[float, typer.Option(min=1.0, help="Seconds without progress until a process counts as hung.")] = 30.0,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Carry out a plan on this machine: devices as processes, order and groups as planned, transfers through shared memory."""
    from fourfold import plans

    questions = plans.answers(plan)
    if nproc is not None or _DEVICES in questions and plans.SCHEDULE not in questions and not memory:
        from fourfold.cli._spmd import carried_out as on_ranks

        code = on_ranks(plan, model, _inputs(inputs), repeat, check, as_json, trust or (), nproc=nproc, nodes=nodes, node_rank=node_rank,
                        address=address, patience=patience)
        if code:
            raise typer.Exit(code)
        return
    if memory or "rematerialise" in questions and plans.SCHEDULE not in questions:
        from fourfold.cli._memory import carried_out

        code = carried_out(plan, model, _inputs(inputs), repeat, check, as_json, trust or ())
        if code:
            raise typer.Exit(code)
        return
    from fourfold.report.graph import write
    from fourfold.runtime.local.check import check as checked
    from fourfold.runtime.local.check import inputs_of, opened
    from fourfold.runtime.local.executor import ONE
    from fourfold.runtime.local.race import race as raced

    found, captured = opened(plan, model, _inputs(inputs), trust or ())
    folder, result = _kept(plan), None
    if race or (race is None and not one and not _stored(found)):
        result = raced(found, captured.program, inputs_of(captured), folder=folder, say=say)
        found = found.replace(engines=dict(result.engines))
        found.save(plan)
    engines: object = {"*": "eager"} if race is False else None
    if one:
        engines = {"*": "eager"} | (dict(found.engines) if found.engines.get("placement") == ONE else {}) | {"placement": ONE}
    done = checked(found, model=captured, repeat=repeat, engines=engines, folder=folder)
    written = write(found, folder.parent, done.execution)
    document = done.to_json() | {"race": [dict(row) for row in result.rows] if result else None, "plan": found.hash}
    if as_json:
        emit(document)
    else:
        _tell(found, done, result, check)
        print(f"Wrote what was measured beside what was predicted into {' and '.join(str(path) for path in written)}.")
    if check and not done.equal:
        raise typer.Exit(_DIFFERS)


def _inputs(path: Path | None) -> object:
    """Tensors or arrays by name."""
    if path is None or path.suffix != ".safetensors":
        return path
    from fourfold.errors import InputError

    try:
        from safetensors.torch import load_file

        return load_file(str(path))
    except Exception as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:160]}.",
                         "Give an .npz or .safetensors file of inputs by name.") from None


def _kept(plan: Path) -> Path:
    """Where compiled regions are kept between runs."""
    from fourfold.errors import unwritable

    folder = (plan if plan.is_dir() else plan.parent) / "engines"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, "compiled regions") from None
    return folder


def _stored(plan: Plan) -> bool:
    from fourfold.host import here

    return plan.engines.get("fingerprint") == here().fingerprint


def _tell(plan: Plan, done: Check, race: Race | None, whole: bool) -> None:
    if race is not None:
        rows = [{"region": row["region"], "engine": row["engine"], "time": _ms(row["seconds"]),
                 "to eager": f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if row["ratio"] is not None else "–", "why not": row["why"]}
                for row in race.rows]
        table(rows[:24])
    ran, eager = done.execution, done.eager
    devices = len({r.device for r in ran.regions})
    print(f"Placement: {ran.placement}, {devices} device{'s' * (devices != 1)}; {len(ran.regions)} region{'s' * (len(ran.regions) != 1)}, "
          f"{len(ran.transfers)} transfer{'s' * (len(ran.transfers) != 1)}.")
    rows = [{"": "predicted", "time": _ms(done.predicted), "90 %": "", "prediction off by": ""},
            {"": "measured, " + ", ".join(sorted(set(ran.engines.values()))), "time": _ms(ran.seconds), "90 %": _span(ran.low, ran.high),
             "prediction off by": f"{100 * done.error:+.1f} %"}]
    if eager is not ran:
        rows.append({"": "measured, eager", "time": _ms(eager.seconds), "90 %": _span(eager.low, eager.high),
                     "prediction off by": f"{100 * ((done.unfused or done.predicted) / eager.seconds - 1):+.1f} %"})
    table(rows)
    if whole:
        print("Ops run one by one")
        table([{"op": row["op"], "tasks": row["tasks"], "predicted": _ms(row["predicted"]), "measured": _ms(row["measured"])}
               for row in [*done.kinds[:16], {"op": "sum", "tasks": sum(row["tasks"] for row in done.kinds),
                                              "predicted": sum(row["predicted"] for row in done.kinds),
                                              "measured": sum(row["measured"] for row in done.kinds)}]])
        if len(done.regions) > 1:
            print("Regions")
            table([{"region": row["region"], "device": plan.system.devices[row["device"]].name, "engine": row["engine"], "tasks": row["tasks"],
                    "predicted": _ms(row["predicted"]), "measured": _ms(row["measured"])} for row in done.regions[:24]])
    agreement(done.outputs, "the original's")
    for note in done.notes:
        print(note)


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3f} ms"


def _span(low: float, high: float) -> str:
    return f"[{1e3 * low:.3f}, {1e3 * high:.3f}]"
