"""`fourfold export`: an artefact's network as files that transformers, ONNX Runtime or OpenVINO open alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, Trust, emit


def register(app: typer.Typer) -> None:
    app.command("export", epilog="Example: fourfold export cheap/ --to onnx --out cheap-onnx/")(export)


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that `fourfold optimize --out` wrote.")],
    to: Annotated[str, typer.Option("--to", help="hf (a transformers folder), onnx or openvino.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    member: Annotated[str | None, typer.Option(help="Which member of a cascade.")] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Write the cheaper network for others to open, and check in a fresh process that it answers alike."""
    from fourfold.runtime.export import export as write

    done = write(folder, to, out, member=member, trust=trust or ())
    if as_json:
        emit(done)
    else:
        print(f"{done['member']} in {done['precision']}: {', '.join(done['files'])} in {done['folder']}. A fresh process answers alike.")
