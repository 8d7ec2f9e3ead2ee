"""`fourfold meter -- CMD`: joules, CO2e and cost of any command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.commands._print import emit, say


def register(app: typer.Typer) -> None:
    app.command("meter", epilog="Example: fourfold meter --site tokyo -- python train.py", context_settings={"allow_interspersed_args": False})(meter)


def meter(
    command: Annotated[list[str], typer.Argument(metavar="-- CMD…", help="The command; its output, exit code and signals are its own.")],
    site: Annotated[str | None, typer.Option(help="Where it runs, for CO2e and cost: tokyo, FR, US-CA, gcp:us-central1 …")] = None,
    ledger: Annotated[Path, typer.Option(help="File that the run is written down in.")] = Path(".fourfold/ledger.jsonl"),
    no_ledger: Annotated[bool, typer.Option("--no-ledger", help="Write nothing down.")] = False,
    hz: Annotated[float, typer.Option(help="Samples a second of children, memory and sampled meters.")] = 10.0,
    name: Annotated[str, typer.Option(help="What to call the run.")] = "",
    reserve: Annotated[float | None, typer.Option(help="Cores held for this work: charged their idle power all the time.")] = None,
    wall: Annotated[Path | None, typer.Option(help="A wall meter's own CSV (time,W or time,J) that covers the run.")] = None,
    measured_only: Annotated[bool, typer.Option("--measured-only", help="No power model: what no meter reads stays unknown.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON document to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON document on stdout once the command has ended.")] = False,
) -> int:
    """Run a command and tell what it took: joules by component, CO2e and cost, each with its grade and interval.

    The report goes to stderr. The exit code is the command's (128 + N where signal N ended it; 127 where there is no such command).
    """
    from fourfold.measure.command import run

    meters = None
    if wall is not None:
        from fourfold.measure.external import External
        from fourfold.measure.meter import known

        meters = [External(wall), *known()]
    use = run(command, site=site, ledger=None if no_ledger else ledger, hz=hz, name=name, reserve=reserve, model=not measured_only, meters=meters)
    if out is not None:
        import json

        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(use.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    emit(use.to_json()) if as_json else say(str(use))
    return use.code or 0
