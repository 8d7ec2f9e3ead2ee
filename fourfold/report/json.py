"""report.json: written whole or not at all, read back with its faults named."""

from __future__ import annotations

import json
from pathlib import Path

from fourfold import folder
from fourfold.errors import ArtefactError, InputError
from fourfold.report.schema import Report, validate

NAME = "report.json"


def write(report: Report, path: Path | str) -> Path:
    """Write `report` to `path` (a file, or a folder that gets report.json) by renaming a finished file; the path written.

    Raises ArtefactError naming the first fault if the report is not sound (fourfold.report.schema).
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    _check(report, path)
    replace(path, json.dumps(report, indent=1, allow_nan=False))  # the very bytes whose sha256 an artefact's manifest holds
    return path


def read(path: Path | str) -> Report:
    """The report in a file, or in an artefact's folder.

    Raises InputError if there is none, ArtefactError if it is not JSON or breaks the schema.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no report at {file}.", "Give the folder that `fourfold optimize --out` wrote, or a report.json.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{file} is not a JSON report ({error}).", "Run `fourfold optimize` again: it goes on from its journal.") from None
    _check(report, file)
    return report


def replace(path: Path, text: str | bytes) -> None:
    """Put `text` (as UTF-8) at `path` in one step, so that a kill or a full disk leaves the old file whole; see `fourfold.folder.write`."""
    folder.write(path, text, parents=True)


def _check(report: Report, path: Path) -> None:
    faults = validate(report)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ArtefactError(f"{path} is not a sound report: {faults[0]}{more}.", "It must follow fourfold.report.schema.")
