"""Which columns of a table tell another one: the library call behind `fourfold select`, on `fourfold.select.SequentialAttention`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.datasets.columns import absent, number
from fourfold.datasets.sources import read
from fourfold.datasets.table import Table
from fourfold.errors import InputError, unwritable

_NUMBERS = 10  # whole numbers of more different values than this are values, not classes


@dataclass(frozen=True)
class Selection:
    """What was chosen of a table. `columns`: the first first; `scores`: the attention by which each was, relative to an even one; `of`: all that
    could be; `rows`, `target`, `task`, `seed`, `notes`."""

    columns: tuple[str, ...]
    scores: tuple[float, ...]
    of: tuple[str, ...]
    rows: int
    target: str
    task: str
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        kept, whole = len(self.columns), len(self.of)
        return (
            f"{kept:,} of {whole:,} columns tell {self.target!r} ({self.task}, {self.rows:,} rows), chosen one after the other for what each adds.",
            f"A first layer, and rows as they are stored and read, shrink to {kept / whole:.1%} of what they were.",
        )

    def to_json(self) -> dict[str, object]:
        """One document."""
        return {"columns": list(self.columns), "scores": list(self.scores), "of": len(self.of), "rows": self.rows, "target": self.target,
                "task": self.task, "seed": self.seed, "sentences": list(self.sentences), "notes": list(self.notes)}

    def write(self, path: str | Path) -> Path:
        """A column name a line, the first chosen first. Raises InputError where it cannot be written."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{name}\n" for name in self.columns), encoding="utf-8")
        except OSError as error:
            raise unwritable(path, error, "the list of columns") from None
        return path


def select(
    data: str | Path | Mapping[str, object], target: str, count: int | float | None = None, *, task: str = "auto", ignore: Sequence[str] = (),
    linear: bool = False, epochs: int = 60, seed: int = 0, progress: Any = None,
) -> Selection:  # fmt: skip
    """Choose `count` columns (a number, or a share below 1; None: half) of a table of numbers by what column `target` needs.

    `data` is a file that the main job reads (CSV, JSONL, Parquet …) or columns by name; `ignore` leaves columns out; `linear`: a linear model, whose
    order is that of orthogonal matching pursuit under regression. Raises InputError for columns that are not there, hold words or miss values.
    """
    table = read(str(data) if isinstance(data, Path) else data)
    if not isinstance(table, Table):
        raise InputError(f"{data} has parts of its own ({', '.join(table)}).", "Give the table of the training rows.")
    for name in (target, *ignore):
        if name not in table.columns:
            raise InputError(f"{table.source} has no column {name!r}; it has {table.listed()}.", "Name one of these.")
    from fourfold.select import SequentialAttention  # raises MissingExtra, before anything is read in full

    names = [name for name in table.columns if name != target and name not in ignore]
    if not names:
        raise InputError(f"{table.source} has no columns to choose from besides {target!r}.", "Ignore fewer columns.")
    X = np.stack([_numbers(table, name) for name in names], 1)
    y, kind = _target(table, target, task)
    model = SequentialAttention(count, task=kind, hidden_layer_sizes=() if linear else (67,), epochs=epochs, random_state=seed)
    begun = False

    def told(done: int, whole: int) -> None:
        nonlocal begun
        if progress is not None:
            if not begun:
                progress.stage("selecting columns", whole)
            begun = True
            progress.advance()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, y, progress=told)
    notes = (*table.notes, *(str(one.message) for one in caught if issubclass(one.category, UserWarning) and "vary" in str(one.message)))
    order = model.order_.tolist()
    return Selection(tuple(names[i] for i in order), tuple(float(model.scores_[i]) for i in order), tuple(names), len(X), target, kind, seed, notes)


def _numbers(table: Table, name: str) -> np.ndarray:
    """A column float64 [N]."""
    values = table.columns[name]
    values = values.tolist() if isinstance(values, np.ndarray) else values
    empty = [row for row, value in enumerate(values) if absent(value) or isinstance(value, str) and value.strip().lower() == "nan"]
    if empty:
        raise InputError(f"{table.where(empty)}: no value in column {table.called(name)}.", f"Fill it in, or leave the column out: --ignore {name}")
    found = [number(value) for value in values]
    words = [row for row, value in enumerate(found) if value is None]
    if words:
        raise InputError(
            f"{table.where(words)}: column {table.called(name)} holds words, not numbers.",
            f"Make a column of 0 and 1 of each word, or leave it out: --ignore {name}",
        )
    array = np.array(found, dtype=np.float64)
    wild = np.flatnonzero(~np.isfinite(array)).tolist()
    if wild:
        raise InputError(f"{table.where(wild)}: column {table.called(name)} is infinite.", f"Replace these values, or leave it out: --ignore {name}")
    return array


def _target(table: Table, name: str, task: str) -> tuple[np.ndarray, str]:
    """The target column, and "classification" or "regression": words and a few whole numbers are classes unless told otherwise."""
    values = table.columns[name]
    values = values.tolist() if isinstance(values, np.ndarray) else values
    empty = [row for row, value in enumerate(values) if absent(value)]
    if empty:
        raise InputError(f"{table.where(empty)}: no value in column {table.called(name)}.", "Fill them in or delete these rows.")
    found = [number(value) for value in values]
    wordy = any(value is None for value in found)
    if task == "auto":
        whole = not wordy and all(float(value or 0).is_integer() for value in found) and len(set(found)) <= _NUMBERS
        task = "classification" if wordy or whole else "regression"
    return (np.array([str(value) for value in values]), task) if task == "classification" else (_numbers(table, name), task)
