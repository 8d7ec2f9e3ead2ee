"""`fourfold verify`: whether an artefact still is what its manifest says, on data that the user brings. The gate for CI and the alarm for drift."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourfold.cli._print import AsJson, Trust, emit, say, table

if TYPE_CHECKING:
    from fourfold.jobs.verify import FigureCheck, Verification
    from fourfold.report.schema import Ends


def register(app: typer.Typer) -> None:
    app.command("verify", epilog="Example: fourfold verify cheap/ --data new.csv --floor 97%")(verify)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that `fourfold optimize --out` wrote.")],
    data: Annotated[str, typer.Option(help="Rows with labels, as `optimize` reads them; of parts, the test part.")],
    floor: Annotated[str | None, typer.Option(help="Least share of the original's quality. The manifest's where left out.")] = None,
    original: Annotated[
        str | None, typer.Option(help="Folder or package.module:factory of the original. Its folder or its stored answers where left out.")
    ] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="Column with the text; twice for pairs.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the label.")] = None,
    budget: Annotated[str, typer.Option(help="Time that the race of both services may take.")] = "20s",
    cost: Annotated[bool, typer.Option("--cost/--no-cost", help="Race the artefact against the original too.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="The lower 95 % bound must clear the floor, not the estimate alone.")] = False,
    trust: Trust = None,
    as_json: AsJson = False,
) -> int:
    """Measure quality, agreement and cost again on data of your own, and compare with what was stated.

    Exit code 3: the floor does not hold. 4: a stated figure does not.
    """
    import fourfold

    roles = {**dict(zip(("text", "pair"), text_column or [], strict=False)), "label": label_column}
    columns = {role: name for role, name in roles.items() if name} or None
    found = fourfold.verify(folder, data, floor=floor, original=original, columns=columns, budget=budget, cost=cost, strict=strict, trust=trust or ())
    if as_json:
        emit(found.to_json())
        return found.exit_code
    print(f"{folder} on {found.rows:,} rows of {data}, against {found.original}.")
    table([_row(check) for check in found.checks])
    for warning in found.warnings:
        say(f"warning: {warning}")
    print(_verdict(found))
    return found.exit_code


def _row(check: FigureCheck) -> dict[str, str]:
    from fourfold.report import format

    said = check.stated
    stated: Ends | None = None
    if isinstance(said, int | float):
        stated = {"value": float(said), "low": None, "high": None} if said else None
    else:
        stated = said
    verdict = check.verdict + (f": {check.why}" if check.why else "")
    return {"": check.name, "stated": format.interval(stated), "measured": format.interval(check.measured), "verdict": verdict}


def _verdict(found: Verification) -> str:
    if found.holds:
        skipped = [check.name for check in found.checks if check.verdict == "not checked"]
        return "All that was checked holds" + (f" (not checked: {', '.join(skipped)})." if skipped else ".")
    return "Does not hold: " + "; ".join(f"{check.name}, {check.why}" for check in found.failed) + "."
