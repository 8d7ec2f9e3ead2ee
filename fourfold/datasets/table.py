"""A `Table`: named columns of equal length, and where each row came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fourfold.errors import InputError

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


def of_columns(ref: Mapping[str, Any]) -> Table:
    """A table of columns or arrays by name. Raises InputError where they differ in length, or where one is no column."""
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
    return table_of(columns, "the data")


def table_of(columns: dict[str, object], source: str) -> Table:
    """A table of texts and numbers, or one of arrays if any column holds numbers with more than one axis."""
    arrays = {name: value if isinstance(value, np.ndarray) and value.dtype != object else array_of(value) for name, value in columns.items()}
    if any(isinstance(value, np.ndarray) and value.ndim > 1 for value in arrays.values()) or any(is_ragged(value) for value in arrays.values()):
        return Table(arrays, source, "arrays")
    return Table({name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in arrays.items()}, source)


def is_ragged(value: object) -> bool:
    """Whether a column is a list of arrays of one axis."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, np.ndarray) and item.ndim == 1 for item in value)


def array_of(value: Any) -> Any:
    """numpy array where all rows have one shape; a list of 1-D arrays where they are ragged; else the list itself (texts)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value if value.dtype != object else array_of(value.tolist())
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
