"""`fourfold meter -- CMD`: joules, CO2e and cost of any command."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from fourfold.cli._print import emit, say


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
    from fourfold.folder import KINDS, may_overwrite
    from fourfold.measure.command import run

    if out is not None and out.exists():                               # before the command runs; a place that fails later costs only the file
        may_overwrite(out, "--out", inputs=[wall, None if no_ledger else ledger], kind=KINDS[".json"])
    meters = None
    if wall is not None:
        from fourfold.measure.meter import known
        from fourfold.measure.meters.external import External

        meters = [External(wall), *known()]
    with warnings.catch_warnings(record=True) as told:                 # such as a ledger that cannot be written: two lines, not Python's three
        warnings.simplefilter("always", RuntimeWarning)
        use = run(command, site=site, ledger=None if no_ledger else ledger, hz=hz, name=name, reserve=reserve, model=not measured_only, meters=meters)
    for warning in told:
        say(f"warning: {warning.message}")
    written = out is None or _written(use.to_json(), out)
    emit(use.to_json()) if as_json else say(str(use))
    return use.code or (0 if written else 2)


def _written(document: dict[str, object], path: Path) -> bool:
    """Whether the document could be written. The command has run by now, so what it took is told all the same."""
    import json

    from fourfold.errors import unwritable
    from fourfold.folder import write

    try:
        write(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n", parents=True)
    except OSError as error:
        say(f"error: {unwritable(path, error, 'the document')}")
        return False
    return True


def lean(arguments: list[str]) -> int | None:
    """Run the command from its words as they are, without loading what reads options for all other commands: half the time to start.

    The options are those of `meter` above. None, with nothing run, for whatever needs more care: --help, and words that do not fit.
    """
    flags = {}
    for name, hint in get_type_hints(meter, include_extras=True).items():
        if name not in ("command", "return"):
            kind, info = get_args(hint)
            declared = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str) and word.startswith("--")]
            flags[declared[0] if declared else "--" + name.replace("_", "-")] = name, kind
    given: dict[str, Any] = {}
    words = list(arguments)
    while words and words[0].startswith("-") and words[0] != "--":
        flag, equals, value = words.pop(0).partition("=")
        name, kind = flags.get(flag, ("", None))
        if not name or (kind is bool and equals) or (kind is not bool and not equals and not words):
            return None
        if kind is bool:
            given[name] = True
            continue
        try:
            given[name] = _made(kind, value if equals else words.pop(0))
        except ValueError:
            return None
    command = words[1:] if words[:1] == ["--"] else words
    return meter(command, **given) if command else None


def _made(kind: Any, word: str) -> object:
    """A word as what an option wants: text, number or path, each of them perhaps optional."""
    return next(part for part in (get_args(kind) or (kind,)) if part is not type(None))(word)
