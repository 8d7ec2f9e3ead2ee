"""The user's data as columns of model inputs, tokenised once, and split so that what proves the result was never seen by the search."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets import columns as roles
from fourfold.datasets import split
from fourfold.datasets.metrics import probe
from fourfold.datasets.readers import Table, read
from fourfold.datasets.task import IGNORE, Task, default_metric
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.datasets.metrics import Metric
    from fourfold.frontends.subject import Subject


class Ragged(Sequence[np.ndarray]):
    """Rows of different length in one flat array: `values[offsets[i] : offsets[i + 1]]` is row i."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, rows: Sequence[Any], dtype: Any = None) -> Ragged:
        """From rows of any kind: lists of token ids, arrays."""
        sizes = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        flat = np.concatenate([np.asarray(row) for row in rows]) if len(rows) and sizes.sum() else np.zeros(0, dtype=dtype or np.int64)
        return cls(flat.astype(dtype or (np.int64 if flat.dtype.kind in "iub" else np.float32), copy=False), np.r_[0, np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[int(i)]
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, index: np.ndarray) -> Ragged:
        sizes = self.sizes()[index]
        offsets = np.r_[0, np.cumsum(sizes)]
        where = np.arange(offsets[-1]) + np.repeat(self.offsets[index] - offsets[:-1], sizes)
        return Ragged(self.values[where], offsets)

    def padded(self, index: np.ndarray, pad: float, left: bool = False, least: int = 1) -> np.ndarray:
        """[B, longest] (at least [B, least]) with `pad` at the right, or at the left."""
        sizes, starts = self.sizes()[index], self.offsets[index]
        steps = np.arange(max(int(sizes.max(initial=0)), least))
        at = steps - (len(steps) - sizes[:, None]) if left else np.broadcast_to(steps, (len(index), len(steps)))
        real = (at >= 0) & (at < sizes[:, None])
        out = (
            self.values[np.clip(starts[:, None] + at, 0, len(self.values) - 1)]
            if len(self.values)
            else np.zeros((len(index), len(steps)), self.values.dtype)
        )
        return np.where(real, out, np.asarray(pad, dtype=self.values.dtype))


@dataclass
class Examples:
    """Columns of inputs, one entry per example, and what is asked of them.

    columns: input name → [N, …] array of equal shapes, or ragged 1-D rows (lists of arrays are made `Ragged`). targets: int64 [N] classes, float64
    [N] values, ragged int64 tokens, any list for custom tasks, or None. lengths: int64 [N], what batches are sorted by. pad: padding value by
    column; left: the columns that are padded at the left, the others are at the right.
    raw: what the user gave (texts, pairs of texts), or None. groups: int64 [N], equal for duplicates and for pieces of one document. `cut`
    counts texts that were longer than the model reads; limit: tokens that it reads of a text, 0 where the inputs are no texts.
    """

    columns: dict[str, Any]
    targets: Any = None
    lengths: Any = None
    pad: dict[str, float] = field(default_factory=dict)
    raw: list[Any] | None = None
    groups: Any = None
    cut: int = 0
    left: tuple[str, ...] = ()
    limit: int = 0

    def __post_init__(self) -> None:
        self.columns = {name: value if isinstance(value, np.ndarray | Ragged) else Ragged.of(value) for name, value in self.columns.items()}
        if (
            isinstance(self.targets, list)
            and self.targets
            and all(isinstance(row, np.ndarray) and row.ndim == 1 and row.dtype.kind in "iu" for row in self.targets)
        ):
            self.targets = Ragged.of(self.targets)
        ragged = [value.sizes() for value in self.columns.values() if isinstance(value, Ragged)]
        if self.lengths is None:
            self.lengths = np.max(ragged, axis=0) if ragged else np.ones(len(self), dtype=np.int64)
        if self.groups is None:
            self.groups = np.array(
                [split.group_of({name: value[i] for name, value in self.columns.items()}) for i in range(len(self))], dtype=np.int64
            )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, index: Any) -> Examples:
        """The examples at `index` (int array, slice or boolean mask), in that order."""
        index = np.arange(len(self))[index]
        columns = {name: value.take(index) if isinstance(value, Ragged) else value[index] for name, value in self.columns.items()}
        targets = self.targets
        targets = (
            targets.take(index)
            if isinstance(targets, Ragged)
            else targets[index]
            if isinstance(targets, np.ndarray)
            else None
            if targets is None
            else [targets[i] for i in index]
        )
        return replace(
            self,
            columns=columns,
            targets=targets,
            lengths=self.lengths[index],
            raw=None if self.raw is None else [self.raw[i] for i in index],
            groups=self.groups[index],
        )

    def read(self) -> Examples:
        """Themselves: they were read when they were made (`fourfold.datasets.unread.Unread` reads later)."""
        return self

    def with_targets(self, targets: Any) -> Examples:
        """The same inputs with other targets (the original's own answers, where there are no labels)."""
        return replace(self, targets=targets)

    def collate(self, index: Any, multiple: int = 1) -> dict[str, np.ndarray]:
        """A padded batch of inputs: int64 or float32 arrays [B, …], padded to the longest row at the side that the tokenizer names.

        multiple: tokens of texts are padded on to a multiple of it, as far as the model reads (`limit`): an engine that prepares itself for every
        new shape then meets few of them.
        """
        index = np.asarray(index)
        longest = int(self.lengths[index].max(initial=1)) if multiple > 1 and self.limit else 1
        least = max(1, min(self.limit, -(-longest // multiple) * multiple)) if multiple > 1 and self.limit else 1
        return {
            name: value.padded(index, self.pad.get(name, 0), name in self.left, least) if isinstance(value, Ragged) else value[index]
            for name, value in self.columns.items()
        }

    def collate_targets(self, index: Any) -> Any:
        """Targets of a batch: class numbers int64 [B], values float32 [B], tokens int64 [B, T] padded with −100; lists as they are; None where there
        are none."""
        index = np.asarray(index)
        if isinstance(self.targets, Ragged):
            return self.targets.padded(index, IGNORE)
        if isinstance(self.targets, np.ndarray):
            some = self.targets[index]
            return some.astype(np.float32) if some.dtype.kind == "f" else some
        return None if self.targets is None else [self.targets[i] for i in index]

    def batches(self, size: int, bucket: bool = True, seed: int | None = None) -> list[np.ndarray]:
        """Row numbers of each batch. seed None (inference): sorted by length, longest first, so that memory peaks at once, and every row once. Else
        (training): shuffled, and sorted by length only inside blocks of 16 batches, whose batches are shuffled again. bucket False: no sorting."""
        count = len(self)
        if seed is None:
            order = np.argsort(-self.lengths, kind="stable") if bucket else np.arange(count)
            return [order[i : i + size] for i in range(0, count, size)]
        rng = np.random.default_rng(seed)
        order = rng.permutation(count)
        if bucket:
            blocks = [order[i : i + 16 * size] for i in range(0, count, 16 * size)]
            order = np.concatenate([block[np.argsort(self.lengths[block], kind="stable")] for block in blocks]) if blocks else order
        found = [order[i : i + size] for i in range(0, count, size)]
        return [found[i] for i in rng.permutation(len(found))]

    def digest(self) -> str:
        """sha256 of inputs and targets: equal on every machine, different if anything differs."""
        total = hashlib.sha256(",".join(sorted(self.left)).encode())
        for name, value in sorted({**self.columns, "": self.targets}.items()):
            parts = (
                (value.values, value.offsets)
                if isinstance(value, Ragged)
                else (value,)
                if isinstance(value, np.ndarray)
                else tuple(np.asarray(row) for row in value or ())
            )
            total.update(name.encode())
            for part in parts:
                total.update(f"{part.dtype.str}{part.shape}".encode())
                total.update(np.ascontiguousarray(part).tobytes() if part.dtype != object else repr(part.tolist()).encode())
        return total.hexdigest()


@dataclass(frozen=True)
class Splits:
    """train recovers, search steers, test proves. `note` tells how they were made and what was noticed on the way, in sentences; `nature` what they
    were read from (see `fourfold.datasets.readers.Table`)."""

    train: Examples
    search: Examples
    test: Examples
    note: str
    nature: str = "table"


# ------------------------------------------------------------------------------------------------------------------- load


def load_data(
    ref: Any,
    task_hint: str | None,
    subject: Subject,
    *,
    columns: Mapping[str, str] | None = None,
    splits: Any = None,
    seed: int = 0,
    max_length: int | None = None,
    metric: str | Metric | Callable[[Any, Any], float] | None = None,
) -> tuple[Splits, Task]:
    """Read, encode and split the user's data.

    ref: see `fourfold.datasets.readers.read`. task_hint: a kind of task, or None to infer it from model and data. columns: {"text": …, "pair": …,
    "label": …, "split": …} where names do not tell. splits: shares of train, search and test, or the name of a column that says which. max_length:
    tokens (samples) per example; by default what the model can read, and at most 256 for language modelling. metric: a name, a `Metric` or a
    function (predictions, targets) -> float; the default suits the task.

    Raises InputError naming file and line wherever the data cannot be used, MissingExtra where a reader is not installed.
    """
    from fourfold.datasets.encode import encode

    found = read(ref)
    parts = found if isinstance(found, dict) else {"all": found}
    table, side = joined(parts)
    given = dict(columns or {})
    if isinstance(splits, str):
        given["split"], splits = splits, None
    part_shares = split.fractions(splits)
    role = roles.roles_of(table, given, subject, task_hint, labelled=metric != "agreement")
    if metric == "agreement":  # judged by the original's own answers, whatever the labels say
        role = replace(role, label=None)
    kind = roles.kind_of(task_hint, subject, table, None if role.label is None else table.columns[role.label])
    if kind in ("classification", "regression") and role.label is None and metric != "agreement":
        raise roles.unlabelled(table, role)
    if role.side:
        side = roles.sides_of(table, role.side)
    examples, task, origin, notes = encode(table, role, kind, subject, max_length)
    if metric is not None:
        task = task.with_metric(metric)
    where, how = _divide(examples, side[origin], part_shares, seed, table.source)
    made = {name: examples.take(rows) for name, rows in where.items()}
    _check_sides(made, task, table.source)
    if callable(metric) or isinstance(metric, str) and ":" in metric:
        rehearse(task, made["search"])
    note = " ".join([how, *table.notes, *notes])
    return Splits(made["train"], made["search"], made["test"], note, table.nature), task


def joined(parts: dict[str, Table]) -> tuple[Table, np.ndarray]:
    """All parts below one another, and the part of each row. Columns that are not in every part are left out."""
    tables = list(parts.values())
    side = np.repeat(list(parts), [len(table) for table in tables])
    if len(tables) == 1:
        return tables[0], side
    if len({table.nature for table in tables}) > 1:
        raise InputError(
            f"The parts are of different kinds: {', '.join(f'{table.source} is {table.nature}' for table in tables)}.",
            "Give train and test in one format.",
        )
    names = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
    for table in tables[1:]:
        lost = [name for name in tables[0].columns if name not in table.columns]
        if lost and (not names or any(name.lower() in roles.LABEL or name.lower() in roles.TEXT for name in lost)):
            raise InputError(
                f"{table.source} has no column {tables[0].called(lost[0])} (it has {table.listed()}), {tables[0].source} has.",
                "Give the same columns in every part.",
            )
    columns = {name: _stacked([table.columns[name] for table in tables], name) for name in names}
    notes, sure = [note for table in tables for note in table.notes], all(table.sure for table in tables)
    return Stacked(columns, tables[0].source, tables[0].nature, notes=notes, sure=sure, pieces=tables), side


def _stacked(values: list[Any], name: str) -> Any:
    if all(isinstance(value, np.ndarray) for value in values):
        shapes = sorted({value.shape[1:] for value in values})
        if len(shapes) > 1:
            raise InputError(f"{name!r} has rows of shape {shapes[0]} in one part and {shapes[1]} in another.", "Give equal shapes.")
        return np.concatenate(values)
    return [item for value in values for item in value]


@dataclass
class Stacked(Table):
    """Several tables below one another; says of a row where it came from."""

    pieces: list[Table] = field(default_factory=list)

    def where(self, rows: Any) -> str:
        rows = [int(row) for row in rows]
        begin = 0
        for piece in self.pieces:
            here = [row - begin for row in rows if begin <= row < begin + len(piece)]
            if here:
                return piece.where(here)
            begin += len(piece)
        return super().where(rows)


def _divide(examples: Examples, side: np.ndarray, shares: dict[str, float] | None, seed: int, source: str) -> tuple[dict[str, np.ndarray], str]:
    """Row numbers of train, search and test, and how they came about."""
    given = set(side.tolist())
    stratum = split.strata(examples.targets) if not isinstance(examples.targets, Ragged | None) else np.zeros(len(examples), dtype=np.int64)
    rows = {name: np.flatnonzero(side == name) for name in given}
    said = []
    if "train" in rows:
        for name in ("search", "test"):
            before = [rows[other] for other in ("train", "search") if other in rows and other != name]
            if name in rows:
                seen = np.isin(examples.groups[rows[name]], examples.groups[np.concatenate(before)])
                if seen.any():
                    earlier = "train or search" if len(before) == 2 else "train"
                    said.append(f"{int(seen.sum()):,} {name} rows that also occur in {earlier} were dropped.")
                    rows[name] = rows[name][~seen]
    elif given != {"all"}:
        raise InputError(f"{source}: no row belongs to train.", "Give train and test, or one table to be split.")
    whole = rows.pop("all", rows.get("train", np.zeros(0, dtype=np.int64)))
    units = len(np.unique(examples.groups[whole]))
    missing = [name for name in ("search", "test") if name not in rows]
    if units < (split.FEWEST if missing else 8):
        fewest = split.FEWEST if missing else 8
        raise InputError(
            f"{source}: {units} different rows to learn from; at least {fewest} are needed.",
            "Bring more rows: some 2,000 for the test alone let a loss of one point be seen.",
        )
    all_shares = split.shares_for(units, shares)
    wanted = {name: all_shares[name] for name in ("train", *missing)}
    if missing == ["search"] and shares is None:
        wanted = {"train": 0.8, "search": 0.2}
    carved = split.sides(examples.groups[whole], stratum[whole], wanted, seed) if missing else {"train": np.arange(len(whole))}
    rows.update({name: whole[index] for name, index in carved.items()})
    doubles = len(whole) - units
    if missing:
        what = "train, search and test" if len(missing) == 2 else f"{missing[0]} (taken from train)"
        said.insert(
            0, f"Split into {what} by content, seed {seed}, stratified" + (f"; {doubles:,} duplicates stay with their twins." if doubles else ".")
        )
    else:
        said.insert(0, "Split as given.")
    said[0] += f" {len(rows['train']):,} train, {len(rows['search']):,} search, {len(rows['test']):,} test."
    return {name: np.sort(rows[name]) for name in ("train", "search", "test")}, " ".join(said)


def rehearse(task: Task, examples: Examples) -> None:
    """Call the user's metric twice on answers that are mostly right, before anything dear is run. MetricError as `probe` does."""
    targets, spoilt = examples.targets, np.arange(len(examples)) % 5 == 0
    if task.kind == "classification" and task.classes and targets is not None:
        probe(task.metric, np.eye(len(task.classes))[np.where(spoilt, (targets + 1) % len(task.classes), targets)], targets)
    elif task.kind == "regression" and targets is not None:
        probe(task.metric, (targets + spoilt * targets.std())[:, None], targets)


def _check_sides(made: dict[str, Examples], task: Task, source: str) -> None:
    for name, examples in made.items():
        if len(examples) < 4:
            raise InputError(f"{source}: only {len(examples)} rows for {name}; at least 4 are needed.", "Bring more rows, or other shares (splits).")
    if task.kind == "classification" and made["train"].targets is not None:
        only = np.unique(made["train"].targets)
        if len(only) == 1:
            raise InputError(
                f"{source}: all train rows have the label {task.classes[only[0]] if task.classes else only[0]!r}.",
                "Give rows of at least two classes.",
            )


__all__ = ["Examples", "Ragged", "Splits", "default_metric", "load_data"]
