"""What a model is asked to answer: anything that holds a row an answer. A row that cannot be read costs that row, with the reason in words.

A string is a text, whatever it says ("", "5", "nan"), except where it is the path of a file or folder that is there and can be read; a `Path` is
always one. A text file is a row a line. Reasons never hold what the user wrote.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets import columns as roles
from fourfold.datasets.readers import READERS, decoded, delimiter_of, names_columns
from fourfold.datasets.sources import IMAGES, read
from fourfold.datasets.table import Table
from fourfold.datasets.unread import Unread
from fourfold.errors import FourfoldError, InputError

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.frontends.subject import Subject

MOST = 1_000_000  # rows after which an iterable is taken to have no end


@dataclass
class Asked:
    """`columns`: what was given, one entry a row (None where a row lacks it), all rows; `errors`: reasons by row number; `nature` and `sure`: see
    `Table`."""

    columns: dict[str, list[Any] | np.ndarray]
    source: str
    nature: str = "table"
    errors: dict[int, str] = field(default_factory=dict)
    sure: bool = True

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def table(self, rows: Sequence[int]) -> Table:
        """The rows of these numbers."""
        columns = {n: v[np.asarray(rows, np.int64)] if isinstance(v, np.ndarray) else [v[i] for i in rows] for n, v in self.columns.items()}
        return Table(columns, self.source, self.nature, lines=[row + 1 for row in rows], sure=self.sure)


def asked(ref: Any, subject: Subject | None) -> Asked:
    """ref: a text, a path, a list, series, array, dict, generator or data frame of texts, pairs, rows or arrays. Raises InputError for what has no
    rows at all."""
    if isinstance(ref, str) and not _is_data(ref, _nature(subject)):
        if Path(ref).suffix.lower() in READERS and not any(c.isspace() for c in ref):
            raise InputError(f"There is no file {ref!r}.", "Check the path; a text of that form is given as a list: [text].")
        ref = [ref]
    if isinstance(ref, str | Path):
        return _file(Path(ref), subject)
    if isinstance(ref, Table):
        return Asked(dict(ref.columns), ref.source, ref.nature, sure=ref.sure)
    if isinstance(ref, Mapping):
        return _mapping(ref)
    if hasattr(ref, "to_dict") and hasattr(ref, "columns"):
        return Asked({str(name): ref[name].tolist() for name in ref.columns}, "the data frame")
    if hasattr(ref, "column_names") and hasattr(ref, "__getitem__"):
        return Asked({name: list(ref[name]) for name in ref.column_names}, "the data set")
    if hasattr(ref, "detach"):
        ref = ref.detach().cpu().numpy()
    if isinstance(ref, np.ndarray) and ref.dtype.kind in "iufb" and ref.ndim > 1:
        return Asked({"x": ref}, "the array", "arrays")
    if not isinstance(ref, Iterable):
        raise InputError(f"{type(ref).__name__} holds no rows to answer.", "Give texts, pairs of texts, dicts, arrays, a data frame or a path.")
    rows: list[object] = []
    for row in ref.tolist() if isinstance(ref, np.ndarray) else ref:
        rows.append(row)
        if len(rows) > MOST:
            raise InputError(f"More than {MOST:,} rows were given, or rows without end.", "Give them in portions.")
    return _list(rows, subject)


def lines(stream: Iterable[str], subject: Subject | None = None) -> Asked:
    """A stream's lines: a JSON object each where the first is one, else a text each."""
    rows = [line.rstrip("\r\n") for line in stream]
    if rows and rows[0].lstrip().startswith("{"):
        return _objects(rows, "standard input")
    return _list(rows, subject)


def encoded(
    what: Asked, task: Task, subject: Subject | None, columns: Mapping[str, str] | None = None, max_length: int | None = None
) -> tuple[Examples | Unread | None, np.ndarray]:
    """The rows that can be read, as the model reads them (None where none can), and their numbers; `what.errors` gets the reasons of the others."""
    good = np.array([row for row in range(len(what)) if row not in what.errors], np.int64)
    told = dict(columns or {})
    if what.nature in ("table", "text"):
        told = told or _roles(what, task)
        names = [told[key] for key in ("text", "pair") if key in told]
        texts: dict[str, list[Any]] = {name: list(what.columns[name]) for name in names}
        for row in good.tolist():
            for name in names:
                texts[name][row], reason = _text(texts[name][row])
                if reason:
                    what.errors.setdefault(row, reason)
        good = np.array([row for row in good.tolist() if row not in what.errors], np.int64)
        if task.kind in ("classification", "regression"):
            raw = [texts[names[0]][i] for i in good] if len(names) == 1 else [tuple(texts[name][i] for name in names) for i in good]
            if not raw:
                return None, good
            if subject is not None:
                return Unread(raw, subject, max_length), good
            from fourfold.datasets.examples import Examples

            return Examples({"row": np.arange(len(raw))}, raw=raw, groups=np.zeros(len(raw), np.int64)), good
        what.columns = {**what.columns, **texts}

    from fourfold.datasets.encode import load_inputs

    made: dict[tuple[int, ...], Examples | Unread] = {}

    def encode(rows: Sequence[int]) -> Examples | Unread:
        key = tuple(rows)
        if key not in made:
            made.clear()  # only the last one can be asked for again
            made[key] = load_inputs(what.table(rows), task, subject, columns=told or None, max_length=max_length)
        return made[key]

    good = np.array(_readable(good.tolist(), encode, what.errors), np.int64)
    return (encode(good.tolist()) if len(good) else None), good


def _readable(rows: list[int], encode: Callable[[Sequence[int]], object], errors: dict[int, str]) -> list[int]:
    """The rows that `encode` takes; those that it does not, found by halving, get its reason."""
    if not rows:
        return []
    try:
        encode(rows)
    except (FourfoldError, ValueError, TypeError, OSError) as error:
        if len(rows) == 1:
            errors[rows[0]] = error.message if isinstance(error, FourfoldError) else type(error).__name__
            return []
        half = len(rows) // 2
        found = _readable(rows[:half], encode, errors) + _readable(rows[half:], encode, errors)
        if not found:
            raise  # no row is readable: the fault is of all
        return found
    return rows


def _text(value: object) -> tuple[str, str | None]:
    """(the text, why there is none)."""
    if isinstance(value, str):
        return value, None
    if value is None or isinstance(value, float | np.floating) and math.isnan(value):
        return "", "there is no text"
    if isinstance(value, bool | int | float | np.generic):
        return str(value), None
    if isinstance(value, bytes):
        return "", "bytes are no text: decode them"
    return "", f"{type(value).__name__} is no text"


def _roles(what: Asked, task: Task) -> dict[str, str]:
    """Which columns are the text, or the pair: by name, else the only one, else by what they hold."""
    lower = {name.lower(): name for name in what.columns}
    for first, second in roles.TWO if task.kind in ("classification", "regression") else ():
        if first in lower and second in lower:
            return {"text": lower[first], "pair": lower[second]}
    for name in ("text", "text_a", *roles.TEXT):
        if name in lower:
            return {"text": lower[name]}
    if len(what.columns) == 1:
        return {"text": next(iter(what.columns))}
    kind = task.kind if task.kind in ("classification", "regression") else "causal_lm"
    role = roles.roles_of(what.table(range(len(what))), None, None, kind, labelled=False)
    return {key: name for key, name in (("text", role.text), ("pair", role.pair)) if name}


# ---- forms ---------------------------------------------------------------------------------------------------------------------------------------


def _is_data(text: str, nature: str) -> bool:
    """Whether the string is the path of a folder or file that can be read. For a model of texts, a folder's bare name is a word like any other."""
    try:
        path = Path(text)
        if path.is_file():
            return path.suffix.lower() in (*READERS, *IMAGES, ".wav")
        return bool(text.strip()) and path.is_dir() and (nature != "table" or "/" in text or "\\" in text)
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _nature(subject: Subject | None) -> str:
    """What the model reads, by the name of its first input."""
    first = subject.inputs[0] if subject is not None and subject.inputs else ""
    return {"pixel_values": "images", "input_values": "audio", "input_features": "audio"}.get(first, "table")


def _list(rows: list[Any], subject: Subject | None) -> Asked:
    first = next((row for row in rows if row is not None), None)
    nature = _nature(subject)
    if nature != "table" and isinstance(first, str | Path):
        return Asked({"file": [str(row) for row in rows]}, "the files", nature)
    if isinstance(first, Mapping):
        errors = {i: f"{type(row).__name__} where others are dicts" for i, row in enumerate(rows) if not isinstance(row, Mapping)}
        names = list(dict.fromkeys(str(name) for row in rows if isinstance(row, Mapping) for name in row))
        columns: dict[str, Any] = {name: [row.get(name) if isinstance(row, Mapping) else None for row in rows] for name in names}
        arrays = {name for name, values in columns.items() if any(hasattr(value, "shape") and getattr(value, "ndim", 0) for value in values)}
        return Asked(columns, "the rows", "arrays" if arrays else "table", errors)
    if isinstance(first, tuple | list) and len(first) == 2 and all(isinstance(part, str) or part is None for part in first):
        errors = {i: "this is no pair of texts" for i, row in enumerate(rows) if not isinstance(row, tuple | list) or len(row) != 2}
        sides = [[row[side] if i not in errors else None for i, row in enumerate(rows)] for side in (0, 1)]
        return Asked({"text_a": sides[0], "text_b": sides[1]}, "the pairs", errors=errors)
    if hasattr(first, "detach") or isinstance(first, np.ndarray) or isinstance(first, list | tuple):
        return _arrays([row.detach().cpu().numpy() if hasattr(row, "detach") else row for row in rows])
    return Asked({"text": rows}, "the texts")


def _arrays(rows: list[object]) -> Asked:
    """Rows of numbers; one that is no array, or has another number of axes or other sizes (where there are several) than most, is left out."""
    made: list[Any] = []
    errors: dict[int, str] = {}
    for i, row in enumerate(rows):
        try:
            made.append(np.asarray(row))
        except ValueError:
            made.append(np.zeros(0))
        if made[-1].dtype.kind not in "iufb" or made[-1].ndim == 0:
            errors[i] = f"{type(row).__name__} is no array of numbers"
    shapes = [row.shape if row.ndim > 1 else (row.ndim,) for i, row in enumerate(made) if i not in errors]
    usual: tuple[int, ...] = max(set(shapes), key=shapes.count, default=(1,))
    for i, row in enumerate(made):
        if i not in errors and (row.shape if row.ndim > 1 else (row.ndim,)) != usual:
            errors[i] = f"an array of shape {list(row.shape)} where most have {list(usual) if len(usual) > 1 else 'one axis'}"
    return Asked({"x": made}, "the arrays", "arrays", errors)


def _mapping(ref: Mapping[str, object]) -> Asked:
    """Columns, or one row."""
    if all(isinstance(value, str) or not hasattr(value, "__len__") for value in ref.values()):
        return Asked({str(name): [value] for name, value in ref.items()}, "the row")
    table = read(ref)
    if isinstance(table, dict):
        raise InputError("The data are in parts (train, test).", "Give the part that is to be answered.")
    return Asked(dict(table.columns), table.source, table.nature, sure=table.sure)


def _file(path: Path, subject: Subject | None) -> Asked:
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".txt":
        rows = decoded(path).splitlines()
        return Asked({"text": rows}, path.name)
    if path.is_file() and suffix in (".jsonl", ".ndjson"):
        return _objects(decoded(path).splitlines(), path.name)
    if path.is_file() and suffix in (".csv", ".tsv"):
        return _csv(path)
    if path.is_file() and suffix in (*IMAGES, ".wav"):
        return _list([path], subject)
    kinds = {"images": IMAGES, "audio": (".wav",)}.get(_nature(subject), ())
    if kinds and path.is_dir() and all(entry.is_file() and entry.suffix.lower() in kinds for entry in _seen(path)):
        return _list(sorted(_seen(path)), subject)
    table = read(path)
    if isinstance(table, dict):
        from fourfold.datasets.parts import joined

        table = table["test"] if "test" in table else joined(table)[0]
    return Asked(dict(table.columns), table.source, table.nature, sure=table.sure)


def _seen(folder: Path) -> list[Path]:
    """What lies in the folder, but for hidden files; InputError where there is nothing."""
    found = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if not found:
        raise InputError(f"The folder {folder.name!r} is empty.", "Put the files to be answered into it.")
    return found


def _objects(rows: list[str], source: str) -> Asked:
    """One JSON object a line; blank lines are none."""
    found: list[Any] = []
    errors: dict[int, str] = {}
    for line in rows:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            errors[len(found)] = "the line is not a JSON object"
            row = {}
        found.append(row)
    names = list(dict.fromkeys(name for row in found for name in row))
    if not names:
        raise InputError(f"{source} holds no JSON objects.", 'Give one object per line, e.g. {"text": "…"}.')
    return Asked({name: [row.get(name) for row in found] for name in names}, source, errors=errors)


def _csv(path: Path) -> Asked:
    """A table as `read` takes it; where it is refused, row by row, so that a row of another width costs that row."""
    try:
        table = read(path)
        assert isinstance(table, Table)
        return Asked(dict(table.columns), table.source, sure=table.sure)
    except InputError:
        text = decoded(path)
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text, path.suffix.lower())) if row]
        head = [" ".join(cell.split()) for cell in rows[0]] if rows else []
        if len(set(head)) < len(head) or not any(len(row) == len(head) for row in rows[1:]):
            raise
        errors = {i: f"{len(row)} cells where the header has {len(head)}" for i, row in enumerate(rows[1:]) if len(row) != len(head)}
        columns: dict[str, Any] = {name: [row[at] if i not in errors else None for i, row in enumerate(rows[1:])] for at, name in enumerate(head)}
        return Asked(columns, path.name, errors=errors, sure=names_columns(head))
