"""Examples: columns of model inputs, with their targets; batches of them; the three splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fourfold.datasets import split
from fourfold.datasets.task import IGNORE


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

    def take(self, index: Sequence[int] | np.ndarray) -> Ragged:
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

    def with_targets(self, targets: object) -> Examples:
        """The same inputs with other targets (the original's own answers, where there are no labels)."""
        return replace(self, targets=targets)

    def collate(self, index: object, multiple: int = 1) -> dict[str, np.ndarray]:
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

    def collate_targets(self, index: object) -> object:
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
    were read from (see `fourfold.datasets.table.Table`)."""

    train: Examples
    search: Examples
    test: Examples
    note: str
    nature: str = "table"


# ------------------------------------------------------------------------------------------------------------------- load

