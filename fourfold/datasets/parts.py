"""The parts that the user brought (train, search, test) as one table below one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fourfold.datasets import columns as roles
from fourfold.datasets.table import Table
from fourfold.errors import InputError


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


def _stacked(values: Sequence[Sequence[object] | np.ndarray], name: str) -> object:
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) == len(values):
        shapes = sorted({value.shape[1:] for value in arrays})
        if len(shapes) > 1:
            raise InputError(f"{name!r} has rows of shape {shapes[0]} in one part and {shapes[1]} in another.", "Give equal shapes.")
        return np.concatenate(arrays)
    return [item for value in values for item in value]


@dataclass
class Stacked(Table):
    """Several tables below one another; says of a row where it came from."""

    pieces: list[Table] = field(default_factory=list)

    def where(self, rows: Iterable[int]) -> str:
        rows = [int(row) for row in rows]
        begin = 0
        for piece in self.pieces:
            here = [row - begin for row in rows if begin <= row < begin + len(piece)]
            if here:
                return piece.where(here)
            begin += len(piece)
        return super().where(rows)
