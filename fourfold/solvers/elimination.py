"""Bucket elimination (Dechter 1999): the exact least sum of tables over variables with few values, where the graph of the tables is thin.

Variables of a group that touch no other group go first, so that groups which are alike (the repeated blocks of a network) are eliminated alike, and a
table that was made once is taken again: a model of 32 equal blocks costs what three cost. What remains, the borders of the groups, goes last.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Table = tuple[tuple[int, ...], F64]                                     # the variables, and a value for each choice of all of them


class TooWide(Exception):
    """A table of more than the allowed entries would have to be made; `entries` says how many."""

    def __init__(self, entries: int) -> None:
        super().__init__(f"a table of {entries:,} entries would be needed")
        self.entries = entries


@dataclass(frozen=True)
class Eliminated:
    """The best choice i8[n] of every variable, its sum (exact up to rounding), tables made, tables taken again, and the largest table's entries."""

    choice: NDArray[np.int64]
    value: float
    made: int
    again: int
    widest: int


def eliminate(sizes: Sequence[int], tables: Sequence[Table], groups: Sequence[int] = (), most: int = 1 << 24) -> Eliminated:
    """Minimise Σ tables: variable v has the values 0 … sizes[v] − 1. Tables that are the same object are known to be equal.

    Raises TooWide where a table would get more than `most` entries.
    """
    work = _Elimination(list(sizes), tables, most)
    groups = list(groups) or [0] * len(sizes)
    inside = [v for v in range(len(sizes)) if all(groups[other] == groups[v] for other in work.near(v))]
    work.run(inside)
    work.run([v for v in range(len(sizes)) if v not in work.gone])
    return work.result()


class _Elimination:
    def __init__(self, sizes: list[int], tables: Sequence[Table], most: int) -> None:
        self.sizes, self.most = sizes, most
        self.tables: dict[int, Table] = {}
        self.at: list[dict[int, None]] = [{} for _ in sizes]            # variable → its tables, in order
        self.gone: dict[int, tuple[tuple[int, ...], NDArray[np.integer]]] = {}
        self.order: list[int] = []
        self.memo: dict[tuple[object, ...], tuple[F64, NDArray[np.integer]]] = {}
        self.kept: list[F64] = []                                       # so that ids stay theirs
        self.constant, self.made, self.again, self.widest, self.next = 0.0, 0, 0, 0, 0
        for scope, table in tables:
            self._add(scope, table)

    def _add(self, scope: tuple[int, ...], table: F64) -> None:
        if not scope:
            self.constant += float(table)
            return
        self.tables[self.next] = (scope, table)
        self.kept.append(table)
        for v in scope:
            self.at[v][self.next] = None
        self.next += 1

    def near(self, v: int) -> list[int]:
        return list(dict.fromkeys(u for t in self.at[v] for u in self.tables[t][0] if u != v))

    def _weight(self, v: int) -> int:
        return math.prod(self.sizes[u] for u in self.near(v)) * self.sizes[v]

    def run(self, variables: list[int]) -> None:
        """Eliminate these, always the one whose table is smallest."""
        left = set(variables)
        queue = [(self._weight(v), v) for v in variables]
        heapq.heapify(queue)
        while left:
            weight, v = heapq.heappop(queue)
            if v not in left:
                continue
            if (now := self._weight(v)) != weight:
                heapq.heappush(queue, (now, v))
                continue
            near = self.near(v)
            self._eliminate(v, near, weight)
            left.discard(v)
            for u in near:
                if u in left:
                    heapq.heappush(queue, (self._weight(u), u))

    def _eliminate(self, v: int, near: list[int], weight: int) -> None:
        if weight > self.most:
            raise TooWide(weight)
        self.widest = max(self.widest, weight)
        bucket = list(self.at[v])
        place = {u: i for i, u in enumerate((*near, v))}
        key = (tuple(self.sizes[u] for u in place), *((id(self.tables[t][1]), tuple(place[u] for u in self.tables[t][0])) for t in bucket))
        if (found := self.memo.get(key)) is None:
            total = np.zeros(tuple(self.sizes[u] for u in place))
            for t in bucket:
                scope, table = self.tables[t]
                axes = sorted(range(len(scope)), key=lambda i, scope=scope: place[scope[i]])
                shape = [1] * len(place)
                for u in scope:
                    shape[place[u]] = self.sizes[u]
                total += table.transpose(axes).reshape(shape)
            best = total.argmin(axis=-1)
            found = np.take_along_axis(total, best[..., None], axis=-1)[..., 0], best.astype(np.int32)
            self.memo[key] = found
            self.made += 1
        else:
            self.again += 1
        for t in bucket:
            for u in self.tables.pop(t)[0]:
                self.at[u].pop(t)
        self.gone[v] = (tuple(near), found[1])
        self.order.append(v)
        self._add(tuple(near), found[0])

    def result(self) -> Eliminated:
        choice = np.zeros(len(self.sizes), np.int64)
        for v in reversed(self.order):
            near, best = self.gone[v]
            choice[v] = best[tuple(choice[u] for u in near)]
        return Eliminated(choice, self.constant, self.made, self.again, self.widest)


__all__ = ["Eliminated", "Table", "TooWide", "eliminate"]
