"""From whatever the user hands over to one `Table`: named columns of equal length, and where each row came from."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.errors import InputError, MissingExtra, ModelError

PARTS = {
    "train": "train",
    "training": "train",
    "search": "search",
    "validation": "search",
    "valid": "search",
    "val": "search",
    "dev": "search",
    "test": "test",
    "heldout": "test",
}
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
HEADINGS = frozenset(
    "text sentence sentence1 sentence2 review snippet content comment message body document utterance tweet question query input prompt title "
    "description label labels target class category sentiment intent polarity score rating stars similarity gold answer y value id idx index split "
    "premise hypothesis source output summary article file path filename audio image transcript date name".split()
)  # words that columns are called by and rows hardly ever consist of
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
MANY = 1_000_000  # rows after which an iterable is taken to have no end
csv.field_size_limit(2**31 - 1)


@dataclass
class Table:
    """Columns by name, each with one entry per row. `nature`: "table" (texts and numbers), "text" (documents), "arrays", "images" or "audio" (columns
    file, label/text).

    `lines[i]` is the line (from 1) in which row i begins; without it rows are counted from 1 themselves. `sure`: the names are names beyond doubt;
    else they may be the first row of a file without a header, which no message tells.
    """

    columns: dict[str, Any]
    source: str
    nature: str = "table"
    lines: Sequence[int] | None = None
    notes: list[str] = field(default_factory=list)
    sure: bool = True

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def called(self, name: str) -> str:
        """A column for a message: 'label' in quotes, or which one it is from the left."""
        return repr(name) if self.sure else f"number {list(self.columns).index(name) + 1}"

    def listed(self, most: int = 12) -> str:
        """All columns for a message."""
        names = list(self.columns)
        if not self.sure:
            return f"{len(names)} column{'s' * (len(names) != 1)} of other names"
        return ", ".join([name if len(name) <= 40 else f"{name[:39]}…" for name in names[:most]] + ["…"] * (len(names) > most))

    def where(self, rows: Iterable[int]) -> str:
        """'reviews.csv, lines 3, 7 and 12' (six at most)."""
        rows = list(rows)
        kind = "line" if self.lines else "row"
        numbers = [str(self.lines[row] if self.lines else row + 1) for row in rows[:6]]
        listed = " and ".join([", ".join(numbers[:-1]), numbers[-1]]) if len(numbers) > 1 else numbers[0]
        return f"{self.source}, {kind}{'s' * (len(rows) > 1)} {listed}{' …' if len(rows) > 6 else ''}"


# ------------------------------------------------------------------------------------------------------------------ which


def read(ref: Any) -> Table | dict[str, Table]:
    """One table, or tables by part ("train", "search", "test") where the user brought their own parts.

    ref: "package.module:factory", which is called and whose result is read; path of a CSV, TSV, JSONL, JSON, Parquet, TXT, NPZ file or of a folder
    (train.csv/test.csv, images by class, WAV by class or with a manifest, texts); dict of parts, columns or arrays; (X, y); (train, test) or
    (train, search, test); pandas DataFrame; anything with column_names; any iterable of (inputs, target). Raises InputError where it cannot be read,
    naming file and line; MissingExtra where a reader is not installed.
    """
    if isinstance(ref, str) and _FACTORY.fullmatch(ref) and not Path(ref).exists():
        return read(_made(ref))
    if isinstance(ref, str | Path):
        return _path(Path(ref))
    if isinstance(ref, Table):
        return ref
    if isinstance(ref, Mapping):
        return _mapping(ref)
    if isinstance(ref, tuple) and len(ref) in (2, 3) and (found := _tuple(ref)) is not None:
        return found
    return _object(ref)


def _made(ref: str) -> Any:
    """What the factory that "package.module:name" names gives; the thing itself where it is none."""
    from fourfold.trust import imported

    try:
        found = imported(ref)
    except ModelError as error:
        said = error.message.removeprefix("the model needs ")
        raise InputError(f"The data are {ref}, but {said}.", "Check the name; its module must be importable from here.") from None
    try:
        return found() if callable(found) else found
    except Exception as error:  # whatever a user's code raises is the finding; its words may hold rows
        raise InputError(f"The factory {ref} of the data raised {type(error).__name__}.", "Call it by itself to see why.") from error


def _object(ref: Any) -> Table:
    if hasattr(ref, "column_names") and hasattr(ref, "__getitem__"):
        return Table({name: list(ref[name]) for name in ref.column_names}, "the data set")
    if hasattr(ref, "to_dict") and hasattr(ref, "columns"):
        return Table({str(name): ref[name].tolist() for name in ref.columns}, "the data frame")
    return _pairs(ref)


def _path(path: Path) -> Table | dict[str, Table]:
    if not path.exists():
        near = sorted(other.name for other in path.parent.iterdir() if other.suffix in (*TABLES, ".txt", ".npz"))[:5] if path.parent.is_dir() else []
        raise InputError(f"There is no file or folder {str(path)!r}.", f"In its folder are: {', '.join(near)}." if near else "Check the path.")
    if path.is_dir():
        return _folder(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path.name}: files ending in {path.suffix or 'nothing'!r} are not read.", f"Give one of {', '.join(READERS)}, or a folder."
        )
    table = reader(path)
    return _of_files(table, path.parent) if _names_files(table) else table


def _mapping(ref: Mapping[str, Any]) -> Table | dict[str, Table]:
    names = {PARTS.get(str(name).lower()) for name in ref}
    if "train" in names and None not in names:
        return _parts({str(name): value for name, value in ref.items()})
    columns = {str(name): value for name, value in ref.items()}
    lengths = {}
    for name, value in columns.items():
        if not hasattr(value, "__len__") or isinstance(value, str):
            raise InputError(
                f"data[{name!r}] is {type(value).__name__}, not a column.", 'Give a dict of columns or arrays, or of parts: {"train": …, "test": …}.'
            )
        lengths[name] = len(value)
    if len(set(lengths.values())) != 1:
        least, most = min(lengths.values(), default=0), max(lengths.values(), default=0)
        said = f"The columns differ in length, from {least:,} to {most:,} rows." if lengths else "The data has no columns."
        raise InputError(said, "Give one entry per row in each.")
    return _named(columns, "the data")


def _parts(ref: Mapping[str, Any]) -> dict[str, Table]:
    parts: dict[str, Table] = {}
    for name, value in ref.items():
        side, found = PARTS[name.lower()], read(value)
        if isinstance(found, dict):
            raise InputError(f"The part {name!r} is itself split into parts.", "Give one table for each of train, search and test.")
        if side in parts:
            raise InputError(f"Two parts are meant for {side!r} (one is {name!r}).", "Name them train, search (or validation) and test.")
        parts[side] = found
    return parts


def _tuple(ref: tuple[Any, ...]) -> Table | dict[str, Table] | None:
    if all(
        isinstance(item, str | Path | Mapping) or hasattr(item, "column_names") or (hasattr(item, "to_dict") and hasattr(item, "columns"))
        for item in ref
    ):
        if (
            len(ref) == 2
            and isinstance(ref[0], Mapping)
            and not any(isinstance(value, str) for value in ref[0].values())
            and PARTS.keys().isdisjoint(map(str, ref[0]))
            and not isinstance(ref[1], Mapping)
        ):
            return None
        return _parts(dict(zip(("train", "test") if len(ref) == 2 else ("train", "search", "test"), ref, strict=True)))
    if all(isinstance(item, tuple) for item in ref) and all(
        len(item) == 2 and hasattr(item[0], "__len__") and not isinstance(item[0], str) for item in ref
    ):
        return _parts(dict(zip(("train", "test") if len(ref) == 2 else ("train", "search", "test"), ref, strict=True)))
    if len(ref) == 2 and all(hasattr(item, "__len__") and not isinstance(item, str) for item in ref) and not isinstance(ref[1], Mapping):
        return _xy(ref[0], ref[1])
    return None


def _xy(x: Any, y: Any) -> Table:
    columns = {str(name): _array(value) for name, value in x.items()} if isinstance(x, Mapping) else {"x": _array(x)}
    target = _array(y)
    for name, value in columns.items():
        if len(value) != len(target):
            raise InputError(f"(X, y): {name} has {len(value)} rows, y has {len(target)}.", "Give one target per row.")
    return _named({**columns, "y": target}, "(X, y)")


def _named(columns: dict[str, Any], source: str) -> Table:
    """A table of texts and numbers, or one of arrays if any column holds numbers with more than one axis."""
    arrays = {name: value if isinstance(value, np.ndarray) and value.dtype != object else _array(value) for name, value in columns.items()}
    if any(isinstance(value, np.ndarray) and value.ndim > 1 for value in arrays.values()) or any(_is_ragged(value) for value in arrays.values()):
        return Table(arrays, source, "arrays")
    return Table({name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in arrays.items()}, source)


def _is_ragged(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, np.ndarray) and item.ndim == 1 for item in value)


def _array(value: Any) -> Any:
    """numpy array where all rows have one shape; a list of 1-D arrays where they are ragged; else the list itself (texts)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value if value.dtype != object else _array(value.tolist())
    if not hasattr(value, "__len__") or isinstance(value, str | Mapping):
        raise InputError(f"A column of the data is {type(value).__name__}, not an array or a list.", "Give one entry per row.")
    items = [item.detach().cpu().numpy() if hasattr(item, "detach") else item for item in value]
    if not items or any(isinstance(item, str) or item is None for item in items):
        return items
    try:
        return np.stack([np.asarray(item) for item in items])
    except (ValueError, TypeError):
        pass
    try:
        rows = [np.asarray(item) for item in items]
    except ValueError:
        return items
    return rows if all(row.ndim == 1 and row.dtype.kind in "iufb" for row in rows) else items


def _pairs(ref: Any) -> Table:
    """Any iterable of (inputs, target); a loader of batches is taken apart into examples."""
    loader = hasattr(ref, "batch_size") and hasattr(ref, "dataset")
    expected = "Give an iterable of (inputs, target), e.g. [('a good film', 1), …], or a path."
    try:
        rows = iter(ref) if hasattr(ref, "__iter__") else (ref[i] for i in range(len(ref)))
    except TypeError:
        raise InputError(f"Data of type {type(ref).__name__} cannot be read.", expected) from None
    inputs, targets = [], []
    for number, row in enumerate(itertools.islice(rows, MANY)):
        if not isinstance(row, tuple | list) or len(row) != 2:
            what = f"{type(row).__name__}" + (f" of {len(row)}" if isinstance(row, tuple | list) else "")
            raise InputError(f"The data's item {number} is a {what}, not (inputs, target).", expected)
        for one, answer in _unbatched(row) if loader else [row]:
            inputs.append(one)
            targets.append(answer)
    if not inputs:
        raise InputError("The data holds no examples.", expected)
    columns = _columns(inputs)
    if any(isinstance(value[0], str) for value in columns.values()):
        return Table({**columns, "label": [_scalar(answer) for answer in targets]}, "the data")
    arrays = {name: _array(value) for name, value in columns.items()}
    for name, value in arrays.items():
        if (not isinstance(value, np.ndarray) or value.dtype.kind not in "iufb") and not _is_ragged(value):
            raise InputError(f"The data's inputs {name!r} are neither texts nor arrays of one shape (item 0: {type(inputs[0]).__name__}).", expected)
    answered = {} if all(answer is None for answer in targets) else {"y": _array(targets)}
    return Table({**arrays, **answered}, "the data", "arrays")


def _columns(inputs: list[Any]) -> dict[str, list[Any]]:
    """Inputs by name. InputError where they are not all of one kind."""
    first, kind = inputs[0], _kind(inputs[0])
    for number, one in enumerate(inputs):
        if _kind(one) != kind:
            raise InputError(
                f"The data's inputs are of different types: item 0 is {type(first).__name__}, item {number} {type(one).__name__}.",
                "Give texts, pairs of texts, arrays or dicts of arrays throughout.",
            )
        if kind == "mapping" and one.keys() != first.keys():
            raise InputError(f"The data's item {number} has inputs {list(one)}, item 0 has {list(first)}.", "Give the same names in each.")
    if kind == "mapping":
        return {str(key): [one[key] for one in inputs] for key in first}
    if kind == "pair":
        return {"text_a": [one[0] for one in inputs], "text_b": [one[1] for one in inputs]}
    return {"text" if kind == "text" else "x": inputs}


def _kind(one: Any) -> str:
    if isinstance(one, Mapping):
        return "mapping"
    if isinstance(one, tuple | list) and len(one) == 2 and all(isinstance(part, str) for part in one):
        return "pair"
    return "text" if isinstance(one, str) else "array"


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _unbatched(batch: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    x, y = batch
    for i in range(len(y)):
        yield ({key: value[i] for key, value in x.items()} if isinstance(x, Mapping) else x[i]), _scalar(y[i])


# ------------------------------------------------------------------------------------------------------------------ files


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
    rows: list[dict[str, Any]] = []
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


def _objects(rows: list[dict[str, Any]], source: str, lines: list[int] | None) -> Table:
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
        if {PARTS.get(name.lower()) for name in data} <= {"train", "search", "test"} and "train" in data:
            return {PARTS[name.lower()]: _objects(_checked(value, path.name), f"{path.name} ({name})", None) for name, value in data.items()}
        found = _mapping(data)
        assert isinstance(found, Table)
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


def _checked(rows: list[Any], source: str) -> list[dict[str, Any]]:
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


# ---------------------------------------------------------------------------------------------------------------- folders


def _folder(path: Path) -> Table | dict[str, Table]:
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    parts = {
        entry.stem if entry.is_file() else entry.name: entry
        for entry in entries
        if PARTS.get((entry.stem if entry.is_file() else entry.name).lower()) and (entry.is_dir() or entry.suffix.lower() in READERS)
    }
    if "train" in {PARTS[name.lower()] for name in parts}:
        return _parts(parts)
    tables = [entry for entry in entries if entry.suffix.lower() in READERS and entry.suffix.lower() not in (".txt",)]
    sounds = sorted(path.rglob("*.wav")) + sorted(path.rglob("*.WAV"))
    if sounds:
        return _manifest(path, tables[0]) if tables else _by_class(path, sounds, "audio")
    pictures = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
    if pictures:
        return _manifest(path, tables[0]) if tables and all(picture.parent == path for picture in pictures) else _by_class(path, pictures, "images")
    texts = sorted(path.rglob("*.txt"))
    if texts and not tables:
        return Table({"text": [decoded(file) for file in texts]}, path.name, "text")
    if len(tables) == 1:
        return _path(tables[0])
    if tables:
        raise InputError(
            f"The folder {path.name!r} holds {len(tables)} data files ({', '.join(entry.name for entry in tables[:5])}).",
            "Call them train, search and test, or give one.",
        )
    raise InputError(
        f"The folder {path.name!r} holds no data: no images, WAV files, texts or tables.",
        "Put images or sounds into one subfolder per class, or give a file.",
    )


def _by_class(path: Path, files: list[Path], nature: str) -> Table:
    """One subfolder per class."""
    loose = [file for file in files if file.parent == path]
    if loose:
        raise InputError(
            f"The folder {path.name!r} holds files outside class folders, e.g. {loose[0].name}.",
            f"Put each into a subfolder called like its class, or add a CSV with the columns file and {'text' if nature == 'audio' else 'label'}.",
        )
    return Table({"file": [str(file) for file in files], "label": [file.relative_to(path).parts[0] for file in files]}, path.name, nature)


def _manifest(path: Path, table: Path) -> Table:
    """A table beside the files, with the column file (or path, audio, image) and label or text."""
    found = _path(table)
    if isinstance(found, dict):
        raise InputError(f"{table.name} holds parts, not one table of files.", "Give one row per file.")
    if _file_column(found) is None:
        raise InputError(
            f"{table.name} has no column 'file' (it has {found.listed()}).", "Add one with each file's path inside the folder."
        )
    return found if found.nature in ("images", "audio") else _of_files(found, path)


def _file_column(table: Table) -> str | None:
    """The column that names files, by its header."""
    return next((name for name in table.columns if name.lower() in ("file", "path", "filename", "file_name", "audio", "image", "wav")), None)


def _names_files(table: Table) -> bool:
    """Whether a table's rows are images or sounds that lie in files: a column is called so, and its first entry ends like one."""
    name = _file_column(table) if table.nature == "table" else None
    return name is not None and len(table.columns[name]) > 0 and Path(str(table.columns[name][0])).suffix.lower() in (*IMAGES, ".wav")


def _of_files(found: Table, folder: Path) -> Table:
    """The table with its files' paths, which are relative to `folder`, in the column "file"."""
    name = _file_column(found)
    assert name is not None
    files = [str(folder / str(entry)) for entry in found.columns.pop(name)]
    missing = [i for i, file in enumerate(files) if not Path(file).is_file()]
    if missing:
        raise InputError(f"{found.where(missing)}: there is no such file.", "Give paths inside the folder of the table.")
    found.columns = {"file": files, **found.columns}
    found.nature = "images" if Path(files[0]).suffix.lower() in IMAGES else "audio"
    return found


# ------------------------------------------------------------------------------------------------------- pictures, sounds


def picture(path: str, channels: int) -> Any:
    """A PIL image in grey (1 channel), RGB or RGBA (4), turned as its EXIF data say; 16 bits a channel are scaled to 8.

    InputError naming a file that is damaged, or whose numbers have no range that the file states (32-bit integers and floats).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I;16") or image.mode == "I" and image.format == "PNG"  # older Pillow opens PNG's 16 bits as 32
            ranged = deep or image.mode not in ("I", "F")
            image.load()
            turned = ImageOps.exif_transpose(image)
            if deep:
                turned = Image.fromarray(np.round(np.asarray(turned).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
            made = turned.convert({1: "L", 4: "RGBA"}.get(channels, "RGB")) if ranged else None
    except Exception as error:  # PIL raises OSError, SyntaxError and ValueError for damaged files
        raise InputError(f"{path} is not a readable image ({type(error).__name__}).", "Replace or delete it.") from None
    if made is None:
        raise InputError(
            f"{path} holds 32-bit numbers, and nothing says which of them is black and which white.", "Save the images with 8 or 16 bits a channel."
        )
    return made


def sound(path: str, rate: int) -> np.ndarray:
    """Mono samples in [−1, 1] as float32 [T] at `rate` Hz. InputError naming a file that is damaged or silent."""
    import warnings

    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown chunks are harmless
            found, samples = wavfile.read(path)
    except Exception as error:  # scipy raises ValueError, struct.error and others
        raise InputError(f"{path} is not a readable WAV file ({type(error).__name__}).", "Save it as PCM WAV, or delete it.") from None
    if not len(samples):
        raise InputError(f"{path} holds no samples.", "Replace or delete it.")
    if samples.dtype.kind == "u":
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / np.iinfo(samples.dtype).max
    samples = samples.astype(np.float32)
    samples = samples.mean(axis=1) if samples.ndim > 1 else samples
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds NaN or infinite samples.", "Save it again.")
    if found != rate:
        shared = math.gcd(found, rate)
        samples = resample_poly(samples, rate // shared, found // shared).astype(np.float32)
    return samples
