"""`fourfold clean`: give back the room that a finished search's journal takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit


def register(app: typer.Typer) -> None:
    app.command("clean", epilog="Example: fourfold clean cheap/ --dry-run")(clean)


def clean(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What was given to `fourfold optimize --out`.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the journal of a finished search. The artefact stays; the search can no longer be resumed."""
    from fourfold.jobs.clean import clean as remove
    from fourfold.report.format import size

    done = remove(folder, dry_run)
    if as_json:
        emit(done)
    else:
        print(f"{'Would free' if dry_run else 'Freed'} {size(done['bytes'])}: {', '.join(done['removed'])}")
