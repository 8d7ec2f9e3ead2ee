"""What every command prints with: one JSON document, a line on stderr, a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def emit(document: object) -> None:
    """Print `document` as JSON on stdout."""
    print(json.dumps(document, ensure_ascii=False, indent=2, default=str))


def say(text: str) -> None:
    """Print a line on stderr: warnings, progress."""
    print(text, file=sys.stderr)


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows with the same keys as a table on stdout."""
    from rich.console import Console

    from fourfold.report.terminal import table as made

    Console(highlight=False).print(made(list(rows)))
