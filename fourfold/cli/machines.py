"""`fourfold machines`: the processors and accelerators in the table, and where each figure is from."""

from __future__ import annotations

from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, table


def register(app: typer.Typer) -> None:
    app.command("machines", epilog="Example: fourfold machines H100")(machines)


def machines(
    name: Annotated[str, typer.Argument(metavar="[CHIP]", help="One chip, with the source of each figure: V100, TPUv4, A100-PCIe …")] = "",
    as_json: AsJson = False,
) -> None:
    """List processors and accelerators: peak, memory, bandwidth, TDP, and measured system power where published."""
    from fourfold.host import chip, chips

    if as_json:
        emit(chip(name).to_json() if name else {"chips": [one.to_json() for one in chips()]})
    elif name:
        from fourfold.report.hardware_table import figures

        table(figures(chip(name)))
    else:
        from fourfold.report.hardware_table import overview

        table([overview(one) for one in chips()])
