"""`fourfold ledger`: show, verify, seal, export and import the account book of runs."""

from __future__ import annotations

from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, say, table

Run = Annotated[str, typer.Argument(help="A ledger file, a folder that holds one, or the id of a run; nothing: .fourfold/ledger.jsonl.")]
Site = Annotated[str | None, typer.Option(help="Where it ran, if the row does not say: FR, tokyo, gcp:us-central1.")]
Embodied = Annotated[str | None, typer.Option(help="Making of the hardware: luccioni-server, ecologits-server, … or a total such as 1300kg.")]
Life = Annotated[str | None, typer.Option(help="Years the hardware is in use: 4, or 30 months.")]
Share = Annotated[float | None, typer.Option(help="Resources reserved / total resources, 0 to 1.")]
Per = Annotated[str, typer.Option(help="Functional units the work gave: 1000requests. Default: the work on record, else runs.")]
_FOUND = 4                                                             # a ledger or a file whose figures do not hold


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="The account book of runs: hash-chained rows with raw counters.")
    for name, command, example in (("show", show, "fourfold ledger show"), ("verify", verify, "fourfold ledger verify --recompute"),
                                   ("seal", seal, "fourfold ledger seal"), ("export", export, "fourfold ledger export --csv runs.csv"),
                                   ("import", import_, "fourfold ledger import emissions.csv")):
        group.command(name, epilog=f"Example: {example}")(command)
    app.add_typer(group, name="ledger", epilog="Example: fourfold ledger show")


def show(
    run: Run = "",
    sci: Annotated[bool, typer.Option("--sci", help="The SCI score (ISO/IEC 21031), embodied carbon included.")] = False,
    per: Per = "",
    site: Site = None,
    embodied: Embodied = None,
    life: Life = None,
    share: Share = None,
    as_json: AsJson = False,
) -> None:
    """Tell what runs took, by component, each figure with grade and interval, and who holds it."""
    from fourfold.report import ledger

    book = ledger.find(run)
    found = ledger.document(book)
    score = _score(book, per, site, embodied, life, share)[1] if sci or per else None
    if as_json:
        emit({**found, "sci": score.to_json() if score else None})
        return
    if found["runs"]:
        table(ledger.overview(found["runs"]))
    if len(found["runs"]) == 1:
        table(ledger.components(found["runs"][0]))
    if book.account is not None and not found["faults"]:
        print(book.account.explain())
    if book.levers is not None and not found["faults"]:
        left = ("decision", "before", "after") if get_terminal_size().columns < 120 else ()     # --json has them
        table([{head: cell for head, cell in row.items() if head not in left} for row in ledger.decided(book.levers.rows)])
        for line in book.levers.lines():
            print(line)
    if not found["runs"] and found["account"] is None and found["levers"] is None and not found["faults"]:
        print(f"{book.path} holds no run and no account.")
    for line in ledger.lines(found):
        print(line)
    if score:
        for line in (f"{score}: {score.operational} operational + {score.embodied} embodied, per {score.per:g} {score.unit}.", *score.notes):
            print(line)


def verify(
    run: Run = "",
    recompute: Annotated[bool, typer.Option("--recompute", help="Work every run out again from its raw readings and stated models.")] = False,
    head: Annotated[str, typer.Option(help="The hash that `fourfold ledger seal` gave, kept apart from the file.")] = "",
    as_json: AsJson = False,
) -> None:
    """Find altered, missing, duplicated and reordered rows. Exit code 4 where there are any."""
    from fourfold.report import ledger

    book = ledger.find(run)
    faults, notes = ledger.audit(book, recompute, head)
    if as_json:
        emit({"path": str(book.path), "rows": len(book.rows), "sound": not faults, "faults": faults, "notes": notes})
    else:
        for line in faults:
            print(line)
        for line in notes:
            say(line)
        print(f"{book.path}: {len(book.rows)} rows, " + (f"{len(faults)} fault{'s' * (len(faults) > 1)}." if faults else "all as they were written."))
    if faults:
        raise typer.Exit(_FOUND)


def seal(run: Run = "", as_json: AsJson = False) -> None:
    """Write down how the ledger ends, so that rows cut off its end are found later."""
    from fourfold.ledger.hash_chain import seal as sealed
    from fourfold.report import ledger

    book = ledger.find(run)
    made = sealed(book.path)
    emit(made) if as_json else print(f"{made['rows']} rows, ending in {made['head']}\nKeep this hash elsewhere: fourfold ledger verify --head HASH")


def export(
    run: Run = "",
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this CSV file.")] = None,
    impact: Annotated[Path | None, typer.Option(help="Write the SCI score to this Impact Framework manifest (if-run -m FILE.yml).")] = None,
    sci: Annotated[bool, typer.Option("--sci", help="Print the SCI score (ISO/IEC 21031), embodied carbon included.")] = False,
    per: Per = "",
    site: Site = None,
    embodied: Embodied = None,
    life: Life = None,
    share: Share = None,
    as_json: AsJson = False,
) -> None:
    """Write runs to a CSV file or an Impact Framework manifest, or print their SCI score."""
    from fourfold.errors import InputError
    from fourfold.folder import headed, may_overwrite, starting
    from fourfold.report import ledger
    from fourfold.report.impact_framework import manifest, write

    if not (csv or impact or sci):
        raise InputError("It is not said what to export.", "Give --csv FILE, --impact FILE.yml or --sci.")
    book = ledger.find(run)
    if csv:
        may_overwrite(csv, "--csv", inputs=[book.path], kind=headed("start_utc", "lever"))
    if impact:
        may_overwrite(impact, "--impact", inputs=[book.path], kind=starting("name:"))
    rows = ledger.export(book, csv) if csv else 0
    pieces, score = _score(book, per, site, embodied, life, share) if impact or sci else ([], None)
    if impact and score:
        write(manifest(pieces, score, book.run or book.path.stem), impact)
    if as_json:
        emit({"csv": str(csv) if csv else None, "rows": rows, "impact": str(impact) if impact else None, "sci": score.to_json() if score else None})
        return
    if csv:
        print(f"{rows} rows in {csv}")
    if score:
        print(f"{score}{f', in {impact}' if impact else ''}")
        for line in score.notes:
            say(line)


def import_(
    file: Annotated[Path, typer.Argument(help="CodeCarbon's emissions.csv.")],
    to: Annotated[Path | None, typer.Option(help="Append the rows to this ledger too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Audit a CodeCarbon emissions.csv: which columns are constants in disguise, what each holds of the figure, what is wrong, what it should be.
    Exit code 4 where figures are wrong."""
    from fourfold.carbon.emissions_csv import audit
    from fourfold.report.ledger import append_rows

    found = audit(file)
    count = append_rows(to, found.ledger_rows()) if to else 0
    if as_json:
        emit({**found.to_json(), "appended": count})
    else:
        table(found.table())
        for line in found.lines():
            print(line)
        if to:
            print(f"{count} rows appended to {to}")
    if any(finding.kind == "fault" for finding in found.findings):
        raise typer.Exit(_FOUND)


def _score(book, per, site, embodied, life, share):  # type: ignore[no-untyped-def]
    from fourfold.report import ledger
    from fourfold.units.parse import duration

    years = None if life is None else duration(life, "--life", bare="yr", to="yr")
    pieces = ledger.owing(book, site=site, embodied=embodied, life=years, share=share)
    return pieces, ledger.score(pieces, *ledger.functional(book, per))
