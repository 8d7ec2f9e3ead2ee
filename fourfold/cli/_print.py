"""What every command prints with: one JSON document, a line on stderr, a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.report.terminal import Mode

Trust = Annotated[list[str] | None, typer.Option(help="Package whose code the artefact may run, such as the model's own; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def emit(document: object) -> None:
    """Print `document` as JSON on stdout."""
    print(json.dumps(document, ensure_ascii=False, indent=2, default=str))


def progress_mode(progress: str, as_json: bool) -> Mode:
    """How `Progress` shows what --progress asks for: nothing for "none", nor for "auto" beside --json. Raises InputError for other words."""
    if progress not in ("auto", "plain", "json", "none"):
        raise InputError(f"--progress {progress!r} is not known.", "Choose from: auto, plain, json, none.")
    mode: Any = "silent" if progress == "none" or (as_json and progress == "auto") else progress
    return mode


def say(text: str) -> None:
    """Print a line on stderr: warnings, progress."""
    print(text, file=sys.stderr)


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows with the same keys as a table on stdout."""
    from rich.console import Console

    from fourfold.report.terminal import table as made

    Console(highlight=False).print(made(list(rows)))


def agreement(outputs: Sequence[Any], whose: str) -> None:
    """Whether outputs (with `equal`, `relative`, `tolerance`, `name`) are those of `whose` program, and by how much they are off."""
    wrong, worst = [one for one in outputs if not one.equal], max((one.relative for one in outputs), default=0.0)
    if wrong:
        first = wrong[0]
        print(f"{len(wrong)} of {len(outputs)} outputs differ from {whose}, {first.name or 'the answer'} by {first.relative:.2g} of its largest "
              f"magnitude (allowed {first.tolerance:g}).")
        return
    which = f"All {len(outputs)} outputs equal" if len(outputs) != 1 else "The output equals"
    print(f"{which} {whose}: {f'off by at most {worst:.2g} of the largest magnitude' if worst else 'no difference'}.")
