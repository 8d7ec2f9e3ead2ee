"""`fourfold list`, `explain`, `cite`: the techniques there are, in their own words, and the papers behind a result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, table
from fourfold.errors import InputError

Subject = Annotated[str, typer.Argument(metavar="FOLDER|TECHNIQUE",
                                        help="Artefact folder or report.json (explain: a plan's folder too), or a technique of `fourfold list`.")]


def register(app: typer.Typer) -> None:
    app.command("list", epilog="Example: fourfold list")(list_techniques)
    app.command(epilog="Example: fourfold explain cheap/")(explain)
    app.command(epilog="Example: fourfold cite cheap/ > references.bib")(cite)


def list_techniques(
    question: Annotated[str | None, typer.Argument(help="Only the techniques of this question.")] = None,
    prototype: Annotated[bool, typer.Option("--prototype", help="Those too that do not pass every check yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the techniques there are by question: their lever, what each needs, and whether it is used by default."""
    from itertools import groupby

    from fourfold.registry import techniques

    known = techniques(prototypes=prototype)
    if question is not None and question not in (questions := sorted({id.split("/")[0] for id in known})):
        raise InputError(f"There is no question {question!r}.", f"There are: {', '.join(questions)}.")
    rows = [_technique_row(id) for id in known if question in (None, id.split("/")[0])]
    if as_json:
        emit({"techniques": rows})
        return
    from shutil import get_terminal_size

    narrow = get_terminal_size().columns < 100
    keys = ("name", "lever", "use", "title", *([] if narrow else ["needs"]), "installed")
    for title, some in groupby(rows, lambda row: row["question"]):
        print(title)
        table([{key: row[key] for key in keys} for row in some])


def explain(subject: Subject, as_json: AsJson = False) -> None:
    """Say in sentences what was done to a model where and why, or what a technique does."""
    lines = _story(subject)
    emit({"subject": subject, "text": lines}) if as_json else print("\n".join(lines))


def cite(subject: Subject, as_json: AsJson = False) -> None:
    """Print the papers that a result or a technique rests on, as BibTeX."""
    entries = _papers(subject)
    emit({"subject": subject, "bibtex": entries}) if as_json else print("\n\n".join(entry.strip() for entry in entries))


def _technique_row(name: str) -> dict[str, object]:
    """A technique's facts, and what of its needs is missing here."""
    from importlib.util import find_spec

    from fourfold.registry import facts

    found = facts(name)
    missing = [need for need in found.needs if find_spec(need.split(".")[0]) is None]
    row = {"id": found.id, "question": found.question, "name": found.name, "use": found.status}
    row |= {"lever": found.lever, "title": found.title, "needs": list(found.needs), "installed": not missing}
    return {**row, "missing": missing, "summary": found.summary, "cites": list(found.cites)}


def _story(subject: str) -> list[str]:
    """A result's story, a plan's, or a technique's own words."""
    if Path(subject).exists():
        from fourfold import plans

        if plans.holds_plan(subject):
            return plans.explain(subject)
        from fourfold.report.json import read
        from fourfold.report.summary import story

        return story(read(subject))
    import ast
    from importlib.util import find_spec

    from fourfold.registry import facts

    found = facts(subject)
    spec = find_spec(found.module)
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    words = ast.get_docstring(ast.parse(source)) or found.summary
    return [f"{found.title} ({found.lever} lever)", "", *words.splitlines()]


def _papers(subject: str) -> list[str]:
    """BibTeX entries of a result or a technique."""
    if Path(subject).exists():
        from fourfold.report.json import read

        return [row["bibtex"] for row in read(subject)["citations"]]
    from fourfold.cite import paper
    from fourfold.registry import facts

    return [paper(key).bibtex(key) for key in facts(subject).cites]
