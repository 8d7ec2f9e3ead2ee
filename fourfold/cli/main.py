"""The command line: each command is a thin wrapper on one library call. `--json` prints exactly one JSON document; errors are two lines at most."""

from __future__ import annotations

import copy
import functools
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from fourfold import cli
from fourfold.cli._print import AsJson, Trust, emit, progress_mode, say, table
from fourfold.errors import FourfoldError, InputError

if TYPE_CHECKING:
    from fourfold.report.schema import Report

_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects

app = typer.Typer(
    name="fourfold",
    help="Make a trained model cheaper on your machine, above a quality floor, and prove it.",
    epilog="Example: fourfold optimize model/ --data reviews.csv --floor 97% --out cheap/",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
)

At = Annotated[str | None, typer.Option("--site", help="Where it runs now: tokyo, FR, gcp:us-central1 … Puts CO2e and the Map lever in the report.")]
ToSite = Annotated[str | None, typer.Option("--to-site", help="Where it will run.")]
InHall = Annotated[str | None, typer.Option("--hall", help="PUE before and after, 1.58:1.10; means, 1.58:immersion; or a file of datacenter --json.")]
OnePue = Annotated[str | None, typer.Option("--pue", help="The hall's PUE, before and after alike.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that `fourfold optimize --out` wrote.")]


def _configured(context: typer.Context, path: Path | None) -> Path | None:
    """Options of a TOML file as this command's defaults; what the command line says wins. Raises InputError for a file that cannot be read so."""
    if path is None:
        return None
    import tomllib

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror or error}.", "Give a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not TOML ({error}).", 'Write a line an option: floor = "97%".') from None
    found = {**{key: value for key, value in found.items() if not isinstance(value, dict)}, **found.get(context.command.name or "", {})}
    names = {option.lstrip("-").replace("-", "_"): one for one in context.command.params for option in (one.name or "", *one.opts)}
    unknown = [key for key in found if key.replace("-", "_") not in names or key in ("config", "help")]
    if unknown:
        known = ", ".join(sorted({(one.name or "").replace("_", "-") for one in names.values()} - {"config", "as-json"}))
        raise InputError(f"--config {path}: there is no option {unknown[0]!r}.", f"There are: {known}.")
    values: dict[str, object] = {}
    for key, value in found.items():
        one = names[key.replace("-", "_")]
        many = getattr(one, "multiple", False)
        listed = isinstance(value, list)
        values[one.name or key] = [value] if many and not listed else ",".join(map(str, value)) if listed and not many else value
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _version(asked: bool) -> None:
    if asked:
        import fourfold

        print(fourfold.__version__)
        raise typer.Exit()


@app.callback()
def _fourfold(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


# ---- the main job --------------------------------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: fourfold optimize model/ --data reviews.csv --floor 97% --budget 10min --out cheap/")
def optimize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face style folder, hub id in the local cache, package.module:factory, or .onnx file.")
    ],
    data: Annotated[str, typer.Option(help="CSV, JSONL, Parquet, text file, folder of images or WAVs, or package.module:factory.")],
    floor: Annotated[str, typer.Option(help="Least share of the original's quality: 97%, 97 or 0.97.")] = "97%",
    budget: Annotated[str, typer.Option(help="Time to spend: 90s, 10min, 1h.")] = "10min",
    objective: Annotated[str, typer.Option(help="What to make small: energy, latency or memory.")] = "energy",
    out: Annotated[Path, typer.Option(help="Folder for the cheaper model and its report; the journal lies beside it.")] = Path("cheap"),
    metric: Annotated[str | None, typer.Option(help="accuracy, f1, spearman, perplexity, wer … or package.module:function.")] = None,
    task: Annotated[
        str | None, typer.Option(help="classification, regression, causal_lm, seq2seq, ctc. Found from model and data where left out.")
    ] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="Column with the text; twice for pairs.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the label.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column that says train, search or test.")] = None,
    search_data: Annotated[str | None, typer.Option(help="Data to choose candidates by. Split off --data where left out.")] = None,
    test_data: Annotated[str | None, typer.Option(help="Unseen data that the floor is proven on. Split off --data where left out.")] = None,
    engines: Annotated[str | None, typer.Option(help="Back ends to race, separated by commas. All that run here where left out.")] = None,
    techniques: Annotated[str | None, typer.Option(help="Further techniques to offer, separated by commas: attend, route/sparse_mlp …")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same answer.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Most threads to use. Raced where left out.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest input kept, in tokens or samples.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh/--resume", help="Start anew, or go on from the journal beside --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Where --out holds anything else, move that aside (cheap.before-1) when done.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the HTML report here too.")] = None,
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    site: At = None,
    to_site: ToSite = None,
    hall: InHall = None,
    pue: OnePue = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer, where its files do not lie beside the model.")] = None,
    agree: Annotated[str | None, typer.Option(help="Second floor: share of answers that must be the original's own, e.g. 95%.")] = None,
    config: Annotated[
        Path | None, typer.Option(callback=_configured, is_eager=True, help="TOML file of these options; the command line wins over it.")
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Fetch MODEL from the Hugging Face hub where it is not on this machine.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on though the original is no better than the most frequent class, or its classes look reordered.")
    ] = False,
    workload: Annotated[str | None, typer.Option(help="generate: MODEL continues prompts, and what is made small is reading and writing.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Tokens of a prompt, for --workload generate. Read off the data where left out.")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer, likewise.")] = None,
    batch: Annotated[str | None, typer.Option(help="Prompts answered at once, likewise: one number, or several that are served alike: 1,8.")] = None,
    as_json: AsJson = False,
) -> int:
    """Search for a model that does the same work for less, prove its quality on unseen data, and save it.

    Exit code 3: no candidate clears the floor; the nearest ones are shown. Exit code 1: the answer could not be saved.
    \f
    Long: a parameter an option, each handed on by name.
    """
    columns = _columns(text_column, label_column, split_column)
    mode = progress_mode(progress, as_json)
    import fourfold
    from fourfold import engines as registry
    from fourfold.engines.decode import decoder
    from fourfold.frontends.hub import resolved
    from fourfold.report import may_write
    from fourfold.report.terminal import Progress
    from fourfold.workload import Workload

    del config  # its values have become this command's own
    if report is not None:  # before hours of work, not after
        may_write(report, "--report", [model, data, search_data, test_data])
    # Options that cannot be are told before a model is looked for, which may take a download.
    Workload(model=model, data=str(data), floor=floor, objective=objective, budget=budget, seed=seed)  # type: ignore[arg-type]
    backs = [name.strip() for name in engines.split(",") if name.strip()] if engines else None
    for name in backs or ():
        decoder(name) if workload == "generate" else registry.engine(name)
    with Progress(mode) as shown:
        front: object = fourfold.optimize(
            resolved(model, online=online),
            _sources(data, search_data, test_data),
            floor=floor,
            budget=budget,
            objective=objective,
            out=out,
            metric=metric,
            task=task,
            columns=columns,
            seed=seed,
            engines=backs,
            threads=threads,
            max_length=max_length,
            fresh=fresh,
            force=force,
            progress=shown,
            site=site,
            to_site=to_site,
            hall=hall,
            pue=pue,
            agree=agree,
            anyway=anyway,
            tokenizer=tokenizer,
            techniques=techniques,
            workload=workload,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batch=batch,
        )
    if report:
        front.report(report)
    _show(front.report_data, as_json)
    if front.unsaved is not None:
        return _fail(f"not written to {out}: {front.unsaved.message}\n{front.unsaved.mend}", 1, False)  # standard output holds the result
    if front.job.interrupted:
        say("Interrupted; this is the best so far. The same command goes on from here.")
        return _INTERRUPTED
    return 0 if front.best is not None else 3


@app.command(epilog='Example: fourfold predict cheap/ --text "A joy from start to end." --text "Two hours I will not get back."')
def predict(
    folder: Folder,
    text: Annotated[list[str] | None, typer.Option(help="An input; may be given several times.")] = None,
    data: Annotated[str | None, typer.Option(help="File of inputs, a row each (a text file: a line each); - reads standard input.")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="Column with the text; twice for pairs.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="The score of each class too.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="The probability of each class too.")] = False,
    identity: Annotated[str | None, typer.Option("--id", help="Column of the input that names its rows, put before the answers.")] = None,
    with_inputs: Annotated[bool, typer.Option("--with-inputs", help="The columns of the input too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the answers to this file: .csv, .tsv or .jsonl.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Of a model that generates: print each answer as it grows.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of a model that generates: most tokens of an answer.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of a model that generates: 0 is greedy, above it answers are sampled.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of what is sampled.")] = 0,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Answer with the cheaper model. A row that cannot be read costs that row."""
    if (text is None) == (data is None):
        raise InputError("predict takes inputs from --text or from --data, and needs one of them.", 'Add --text "…" or --data new.csv.')
    if out is not None and out.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        raise InputError(f"--out {out} is none of .csv, .tsv and .jsonl.", "Choose one of these endings.")
    import fourfold
    from fourfold.datasets.asked import lines
    from fourfold.folder import headed, may_overwrite
    from fourfold.runtime.answers import answer, table

    if out is not None:
        may_overwrite(out, "--out", inputs=[data], kind=headed("prediction"))
    model = fourfold.load(folder, trust=trust or ())
    if stream or max_new_tokens is not None or temperature > 0:
        if text is None:
            raise InputError("--stream, --max-new-tokens and --temperature take inputs from --text.", 'Add --text "…".')
        from fourfold.cli._generate import told

        told(model, text, stream and not as_json, as_json, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return
    given: object = text if data is None else lines(sys.stdin, model.assembly.reader()) if data == "-" else Path(data)
    found = answer(model, given, _columns(text_column, None, None))
    rows = table(model, found, scores=scores, probabilities=probabilities, identity=identity, inputs=with_inputs)
    for warning in [] if as_json else model.warnings:
        say(f"warning: {warning}")
    for row, reason in [] if as_json else list(found.errors.items())[:20]:
        say(f"row {row + 1}: {reason}")
    plain = not (scores or probabilities or identity or with_inputs)
    if out:
        _write_rows(rows, out)
    if as_json:
        answers = [_plain(one) for one in (found if plain else rows)]
        errors = {"errors": {str(row + 1): reason for row, reason in found.errors.items()}} if found.errors else {}
        emit({"predictions": answers, "warnings": model.warnings, **errors, **({"file": str(out)} if out else {})})
    elif out:
        print(f"{len(found) - len(found.errors):,} predictions in {out}")
    elif plain:
        print("\n".join("" if one is None else _line(_plain(one)) for one in found))
    else:
        _write_csv(rows, sys.stdout, ",")


@app.command(epilog="Example: fourfold race cheap/ --data new.csv")
def race(
    folder: Folder,
    data: Annotated[str | None, typer.Option(help="Rows to race on. With labels another precision may win, if they prove the floor.")] = None,
    original: Annotated[str | None, typer.Option(help="The model that was optimised, to prove the floor against.")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="Column with the text; twice for pairs.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the label.")] = None,
    engines: Annotated[str | None, typer.Option(help="Back ends that may run, separated by commas. All where left out.")] = None,
    budget: Annotated[str, typer.Option(help="Time to spend: 90s, 10min, 1h.")] = "60s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would change, and write nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Put back the choice that ran before the last race.")] = False,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Race precisions and back ends again, on this machine, and keep what wins. Nothing is removed: --undo goes back."""
    from fourfold.workload import seconds

    if undo:
        from fourfold.jobs.optimize.choices import undo as go_back

        outcome = go_back(folder, dry_run=dry_run)
    else:
        from fourfold.jobs.race import rerace

        names = [name.strip() for name in engines.split(",") if name.strip()] if engines else None
        columns = _columns(text_column, label_column, None)
        outcome = rerace(
            folder, data, budget=seconds(budget), columns=columns, original=original, engines=names, trust=trust or (), dry_run=dry_run,
            log=None if as_json else say,
        )
    if as_json:
        emit(outcome)
    else:
        from fourfold.report.terminal import show_race

        show_race(outcome)


# ---- reading what was found ----------------------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: fourfold report cheap/ --html report.html")
def report(
    path: Annotated[Path, typer.Argument(metavar="FOLDER|REPORT.JSON", help="Artefact folder, or a report.json.")],
    html: Annotated[Path | None, typer.Option(help="Write the self-contained HTML report here.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the picture of the front here.")] = None,
    site: At = None,
    to_site: ToSite = None,
    hall: InHall = None,
    pue: OnePue = None,
    as_json: AsJson = False,
) -> None:
    """Show what was found, and how sure it is; with a site or a hall, all four levers. Nothing is run again."""
    from fourfold.folder import may_overwrite
    from fourfold.report.json import read

    for file, option in ((html, "--html"), (svg, "--svg")):
        if file:
            may_overwrite(file, option, inputs=[path if path.is_file() else path / "report.json"])
    document = read(path)
    if (site, to_site, hall, pue) != (None, None, None, None):
        from fourfold.jobs.levers import with_levers

        document = with_levers(document, site=site, to_site=to_site, hall=hall, pue=pue)
    if html:
        from fourfold.report.html import write

        write(document, html)
    if svg:
        from fourfold.report.html import picture

        picture(document, svg)
    if as_json or not (html or svg):
        _show(document, as_json)
    else:
        print("\n".join(str(file) for file in (html, svg) if file))


@app.command(epilog="Example: fourfold doctor")
def doctor(as_json: AsJson = False) -> None:
    """Tell what this machine offers: instructions, back ends, energy meters, versions, and why something is missing."""
    from fourfold.jobs.doctor import examine, tell

    facts = examine()
    emit(facts) if as_json else print("\n".join(tell(facts)))


@app.command(epilog="Example: fourfold claims")
def claims(as_json: AsJson = False) -> None:
    """Print published figures beside what this project measured for them, missed ones included."""
    from fourfold.report.claims import claims as gather
    from fourfold.report.claims import counted, tables

    found = gather()
    if as_json:
        emit({"claims": [claim.to_json() for claim in found]})
        return
    for heading, rows in tables(found):
        print(heading)
        table(rows)
    print(counted(found))


@app.command(epilog="Example: fourfold demo --out fourfold-demo/")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in; a second run goes on where the first stopped.")] = Path("fourfold-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the search and of the fine-tuning.")] = 0,
    progress: Annotated[str, typer.Option(help="auto, plain, json or none.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Run the main job on a real model and real reviews, from download to report."""
    from fourfold.jobs import demo as room
    from fourfold.report.terminal import Progress

    mode: Any = "silent" if progress == "none" or as_json else progress
    with Progress(mode) as shown:
        front: object = room.run(out, seed=seed, progress=shown)
    page = out / "report.html"
    front.report(page)
    _show(front.report_data, as_json)
    if not as_json:
        print(f"Report: {page}")


cli.register(app)


# ---- inside --------------------------------------------------------------------------------------------------------------------------------------


def _show(document: Report, as_json: bool) -> None:
    if as_json:
        emit(document)
    else:
        from fourfold.report.terminal import show

        show(document)


def _plain(value: object) -> object:
    """Numpy scalars and arrays, dataclasses and paths as plain JSON values."""
    import dataclasses

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    as_list = getattr(value, "tolist", None)  # numpy's scalars and arrays
    return _plain(as_list()) if callable(as_list) else str(value)


def _line(answer: object) -> str:
    return "\t".join(str(item) for item in answer.values()) if isinstance(answer, dict) else str(answer)


def _write_rows(rows: list[dict[str, object]], path: Path) -> None:
    """Rows as CSV, TSV or JSON lines, by the file's ending."""
    from fourfold.errors import unwritable
    from fourfold.folder import write

    text = io.StringIO(newline="")
    if path.suffix.lower() == ".jsonl":
        import json

        text.writelines(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows)
    else:
        _write_csv(rows, text, "\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        write(path, text.getvalue())
    except OSError as error:
        raise unwritable(path, error, "the answers") from None


def _write_csv(rows: list[dict[str, Any]], file: Any, delimiter: str) -> None:
    import csv

    writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)) or ["prediction"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)


def _sources(train: str, search: str | None, test: str | None) -> object:
    """What `optimize` reads: one reference, or the parts that were given."""
    parts = {"train": train, "search": search, "test": test}
    return {name: ref for name, ref in parts.items() if ref} if search or test else train


def _columns(text: list[str] | None, label: str | None, split: str | None) -> dict[str, str] | None:
    """Roles of columns by name. Raises InputError for more than two texts."""
    if text and len(text) > 2:
        raise InputError(f"--text-column was given {len(text)} times.", "Give it once, or twice for pairs of texts.")
    roles = {**dict(zip(("text", "pair"), text or [], strict=False)), "label": label, "split": split}
    return {role: name for role, name in roles.items() if name} or None


def _fail(message: str, code: int, as_json: bool) -> int:
    """Report an error: one JSON document on stdout, or at most two lines on stderr."""
    if as_json:
        emit({"error": {"message": message, "exit_code": code}})
    else:
        say("\n".join(line for line in ("error: " + message).splitlines()[:2]))
    return code


@functools.cache
def _program(name: str) -> typer.core.TyperGroup:
    """The program with its command `name` alone, where that is one: to build all of them takes a tenth of a second."""
    lean = copy.copy(app)
    lean.registered_commands = [known for known in app.registered_commands if (known.name or getattr(known.callback, "__name__", "")) == name]
    lean.registered_groups = [known for known in app.registered_groups if known.name == name]
    found = typer.main.get_command(lean if lean.registered_commands or lean.registered_groups else app)
    assert isinstance(found, typer.core.TyperGroup)                     # since it has a callback
    return found


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code. Never raises for what a user can do, and never prints a traceback unless FOURFOLD_DEBUG is set."""
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)   # what follows is another command's
    try:
        if arguments[:1] == ["meter"]:
            from fourfold.cli.meter import lean

            code = lean(arguments[1:])
            if code is not None:
                return code
        command = _program(arguments[0] if arguments else "")
        with command.make_context("fourfold", list(arguments) or ["--help"]) as context:
            outcome = command.invoke(context)
        return outcome if isinstance(outcome, int) else 0
    except typer.Exit as done:
        return done.exit_code
    except FourfoldError as error:
        return _fail(str(error), error.exit_code, as_json)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted. What was measured is kept; the same command goes on from there.", _INTERRUPTED, as_json)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if os.environ.get("FOURFOLD_DEBUG"):
            raise
        return _unexpected(error, as_json)


def _unexpected(error: Exception, as_json: bool) -> int:
    import errno

    usage = getattr(error, "format_message", None)  # typer's own: a bad option, a missing argument
    if usage:
        context = getattr(error, "ctx", None)
        return _fail(f"{usage()}\nTry '{context.command_path if context else 'fourfold'} --help'.", 2, as_json)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" ({error.filename})" if error.filename else ""
        return _fail(f"the disk is full{place}.\nWhat was written before is whole; make room and run the same command again.", 1, as_json)
    more = "This is not foreseen; run with FOURFOLD_DEBUG=1 for its words and the traceback."
    return _fail(f"{type(error).__name__} {_place(error)}.\n{more}", 1, as_json)


def _place(error: Exception) -> str:
    """Where in our own files an error that nobody foresaw came about. Its words may hold a user's texts, and stay unsaid."""
    import traceback

    home = Path(__file__).parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(home)]
    return f"at fourfold/{Path(frames[-1].filename).relative_to(home)}:{frames[-1].lineno}" if frames else "outside fourfold"


def _quiet() -> None:
    """Other libraries' warnings and bars are theirs, not the user's; FOURFOLD_DEBUG shows them."""
    import logging
    import warnings

    if not os.environ.get("FOURFOLD_DEBUG"):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TQDM_DISABLE", "1")
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")


def main() -> None:
    """Entry point of the `fourfold` command."""
    if "_FOURFOLD_COMPLETE" in os.environ:                             # a shell asks what may come next
        app(prog_name="fourfold")
    if sys.argv[1:2] != ["meter"]:                                     # the metered command gets the environment that the user has
        _quiet()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?", not a traceback
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
