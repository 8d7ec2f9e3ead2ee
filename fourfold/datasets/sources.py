"""From whatever the user hands over to one `Table`: files by their ending, folders, objects in memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.datasets.readers import READERS, decoded
from fourfold.datasets.table import PARTS, Table, array_of, is_ragged, of_columns, table_of
from fourfold.errors import InputError, ModelError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
MANY = 1_000_000  # rows after which an iterable is taken to have no end


def read(ref: object) -> Table | dict[str, Table]:
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


def _made(ref: str) -> object:
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


def _mapping(ref: Mapping[str, object]) -> Table | dict[str, Table]:
    names = {PARTS.get(str(name).lower()) for name in ref}
    if "train" in names and None not in names:
        return _parts({str(name): value for name, value in ref.items()})
    return of_columns(ref)


def _parts(ref: Mapping[str, object]) -> dict[str, Table]:
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


def _xy(x: object, y: object) -> Table:
    columns = {str(name): array_of(value) for name, value in x.items()} if isinstance(x, Mapping) else {"x": array_of(x)}
    target = array_of(y)
    for name, value in columns.items():
        if len(value) != len(target):
            raise InputError(f"(X, y): {name} has {len(value)} rows, y has {len(target)}.", "Give one target per row.")
    return table_of({**columns, "y": target}, "(X, y)")


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
    arrays = {name: array_of(value) for name, value in columns.items()}
    for name, value in arrays.items():
        if (not isinstance(value, np.ndarray) or value.dtype.kind not in "iufb") and not is_ragged(value):
            raise InputError(f"The data's inputs {name!r} are neither texts nor arrays of one shape (item 0: {type(inputs[0]).__name__}).", expected)
    answered = {} if all(answer is None for answer in targets) else {"y": array_of(targets)}
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


def _kind(one: object) -> str:
    if isinstance(one, Mapping):
        return "mapping"
    if isinstance(one, tuple | list) and len(one) == 2 and all(isinstance(part, str) for part in one):
        return "pair"
    return "text" if isinstance(one, str) else "array"


def _scalar(value: Any) -> object:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _unbatched(batch: Sequence[Any]) -> Iterable[tuple[object, object]]:
    x, y = batch
    for i in range(len(y)):
        yield ({key: value[i] for key, value in x.items()} if isinstance(x, Mapping) else x[i]), _scalar(y[i])


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
