"""File formats: one reader each to a `Table`. Unreadable, empty, wrongly encoded and truncated files get an error that names the line or column."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.datasets.table import PARTS, Table, of_columns
from fourfold.errors import InputError, MissingExtra

HEADINGS = frozenset(
    "text sentence sentence1 sentence2 review snippet content comment message body document utterance tweet question query input prompt title "
    "description label labels target class category sentiment intent polarity score rating stars similarity gold answer y value id idx index split "
    "premise hypothesis source output summary article file path filename audio image transcript date name".split()
)  # words that columns are called by and rows hardly ever consist of
csv.field_size_limit(2**31 - 1)


def decoded(path: Path) -> str:
    """Text of a UTF-8 file (a byte order mark is dropped). InputError with byte and line where it is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from None
    if not data.strip():
        raise InputError(f"{path.name} is empty.", "Give a file with at least a header and some rows.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        likely = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "CP1252"
        raise InputError(
            f"{path.name} is not UTF-8: byte {error.start} (0x{data[error.start]:02x}), line {line}.",
            f"It may be {likely}: iconv -f {likely} -t UTF-8 '{path.name}' > utf8{path.suffix}",
        ) from None


def _csv(path: Path) -> Table:
    text = decoded(path)
    if "\0" in text:
        raise InputError(
            f"{path.name}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}: a NUL character in a text file.", "Save it as plain CSV in UTF-8."
        )
    delimiter = delimiter_of(text, path.suffix.lower())
    rows, lines = _records(text, delimiter, path.name)
    header, notes = [" ".join(cell.split()) for cell in rows[0]], []
    sure = names_columns(header)
    if _is_row(rows, path.name):
        header, notes = [f"column {i + 1}" for i in range(len(header))], [f"{path.name} has no header: its columns are called column 1, column 2 …"]
        sure = True
    else:
        rows, lines = rows[1:], lines[1:]
    if not rows:
        raise InputError(f"{path.name} has a header and no rows.", "Give rows below the header.")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        places = " and ".join(str(i + 1) for i, name in enumerate(header) if name == twice)
        raise InputError(f"{path.name} has columns of the same name: {places} from the left.", "Rename one.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise InputError(
                f"{path.name}, line {line}: {len(row)} cells where the header has {len(header)}.",
                f"Put double quotes around texts that contain {delimiter!r}.",
            )
    columns = {name: list(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}
    return Table({name or "row number": cells for name, cells in columns.items()}, path.name, lines=lines, notes=notes, sure=sure)


def names_columns(header: list[str]) -> bool:
    """Whether a first line has a word that columns are called by."""
    return bool({word for cell in header for word in cell.lower().replace("-", "_").split("_")} & HEADINGS)


def _is_row(rows: list[list[str]], name: str) -> bool:
    """Whether the first line is a row like the others and no header. InputError where nothing tells."""
    first = [" ".join(cell.split()) for cell in rows[0]]
    if any(_number(cell) is not None for cell in first) or (len(first) > 1 and "" in first[1:]):
        return True
    if names_columns(first):
        return False
    below = [row for row in rows[1:] if len(row) == len(first) and row != rows[0]][:5_000]
    if not below:
        return False
    columns = list(zip(*below, strict=True))
    if any(sum(_number(cell) is not None for cell in column) > 0.9 * len(column) for column in columns):
        return False  # a word above a column of numbers names it
    if any(first[i] in {" ".join(cell.split()) for cell in column} for i, column in enumerate(columns)):
        return True
    if any(len(cell.split()) >= 5 for cell in first):
        raise InputError(
            f"{name}, line 1: it may be a header or a first row, and nothing tells which.", "Name the columns in the first line, e.g. text,label."
        )
    return False


def delimiter_of(text: str, suffix: str) -> str:
    """The character that cuts the first rows into the same number of cells, more than one; tabs first, then commas, semicolons, bars."""
    head = list(itertools.islice(io.StringIO(text, newline=""), 60))
    if suffix == ".tsv" and "\t" in head[0]:
        return "\t"
    best, cells = ",", 1
    for mark in ("\t", ",", ";", "|"):
        try:
            counts = [len(row) for row in itertools.islice(csv.reader(head, delimiter=mark), 20) if row]
        except csv.Error:
            continue
        if counts and counts[0] > 1 and counts.count(counts[0]) >= 0.8 * len(counts) and (cells == 1 or mark == "\t"):
            best, cells = mark, counts[0]
    if cells == 1:
        best = next((mark for mark in (",", "\t", ";", "|") if mark in head[0]), ",")
    return best


def _records(text: str, delimiter: str, name: str) -> tuple[list[list[str]], list[int]]:
    """Rows and the line each begins in. Tab-separated files often hold bare quotes: they are read without quoting where quoting does not fit."""
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=quoting == csv.QUOTE_MINIMAL, quoting=quoting)
        rows: list[list[str]] = []
        lines: list[int] = []
        begin = 1
        try:
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(begin)
                begin = reader.line_num + 1
        except csv.Error as error:
            if delimiter == "\t" and quoting == csv.QUOTE_MINIMAL:
                continue
            raise InputError(f"{name}, line {begin}: {error}.", 'Close every double quote, and write a quote inside a quoted text as "".') from None
        if quoting == csv.QUOTE_NONE or delimiter != "\t" or len(rows) + text.count("\n\n") >= text.count("\n"):
            return rows, lines
    return rows, lines


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _jsonl(path: Path) -> Table:
    rows: list[dict[str, object]] = []
    lines: list[int] = []
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            mend = 'Give one object per line, e.g. {"text": "…", "label": 1}.'
            raise InputError(f"{path.name}, line {number}: not JSON ({_fault(error)}).", mend) from None
        if not isinstance(row, dict):
            raise InputError(
                f"{path.name}, line {number}: {type(row).__name__}, not an object.", 'Give one object per line, e.g. {"text": "…", "label": 1}.'
            )
        rows.append(row)
        lines.append(number)
    return _objects(rows, path.name, lines)


def _objects(rows: list[dict[str, object]], source: str, lines: list[int] | None) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise InputError(f"{source} holds no columns.", 'Give objects such as {"text": "…", "label": 1}.')
    return Table({" ".join(name.split()): [row.get(name) for row in rows] for name in names}, source, lines=lines)


def _json(path: Path) -> Table | dict[str, Table]:
    try:
        data = json.loads(decoded(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":  # several objects, one a line, in a file called .json
            return _jsonl(path)
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path.name}{line}: not JSON ({_fault(error)}).", "Give a list of objects.") from None
    if isinstance(data, dict) and all(isinstance(value, list) for value in data.values()) and data:
        sides = {PARTS.get(name.lower()) for name in data}
        if "train" in sides and None not in sides:
            return {PARTS[name.lower()]: _objects(_checked(value, path.name), f"{path.name} ({name})", None) for name, value in data.items()}
        found = of_columns(data)
        return Table(found.columns, path.name, found.nature)
    if not isinstance(data, list) or not data:
        raise InputError(
            f"{path.name} holds {type(data).__name__ if data or not isinstance(data, list) else 'an empty list'}, not a list of objects.",
            'Give [{"text": "…", "label": 1}, …].',
        )
    return _objects(_checked(data, path.name), path.name, None)


def _fault(error: Exception) -> str:
    """What Python's reader of JSON found, without what stands there."""
    if not isinstance(error, json.JSONDecodeError):
        return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
    return f"{error.msg} at column {error.colno}"


def _checked(rows: list[Any], source: str) -> list[dict[str, object]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{source}, item {number}: {type(row).__name__}, not an object.", 'Give [{"text": "…", "label": 1}, …].')
    return rows


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra(f"{path.name}: reading Parquet needs pyarrow.", "Install it (pip install pyarrow), or give CSV or JSONL.") from None
    if path.stat().st_size == 0:
        raise InputError(f"{path.name} is empty.", "Give a file with rows.")
    try:
        data = parquet.read_table(path).to_pydict()
    except Exception as error:  # pyarrow's own errors have no common base
        raise InputError(f"{path.name} is not a readable Parquet file ({type(error).__name__}).", "Write it again, or give CSV or JSONL.") from None
    if not data or not len(next(iter(data.values()))):
        raise InputError(f"{path.name} has {len(data)} columns and no rows.", "Give rows.")
    return Table(data, path.name)


def _txt(path: Path) -> Table:
    text = decoded(path)
    return Table({"text": [text]}, path.name, "text")


def _npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except Exception as error:  # zipfile, numpy and OS errors alike
        raise InputError(
            f"{path.name} is not a readable NPZ file ({type(error).__name__}).",
            "Save arrays of numbers or fixed-width strings with numpy.savez.",
        ) from None
    lengths = {name: value.shape[0] if value.ndim else 0 for name, value in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"{path.name}: the arrays differ in length: {lengths}.", "Give one row per example in each.")
    return Table(arrays, path.name, "arrays")


READERS = {
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".pq": _parquet,
    ".txt": _txt,
    ".npz": _npz,
}
