"""The commands beside the main job, one file a command or group of them; the folder listing is the registry.

Each file exports `register(app)` and a function that is a thin wrapper on one library call.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add every command of this folder to `app`, in name order."""
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        if file.stem != "main":
            import_module(f"{__name__}.{file.stem}").register(app)
