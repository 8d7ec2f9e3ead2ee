"""Strategies of nodes and costs between them as a struct of arrays: the pairwise form that the public contest of 2025 shares with Alpa (2022)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError

I64, F64 = NDArray[np.int64], NDArray[np.float64]
Costs = NDArray[np.int64] | NDArray[np.float64]
Row = Sequence[float] | Costs
FORBIDDEN = 10**18                                                      # a cost of so much or more may not be chosen
MOST = 2**61                                                            # sums of usages stay below


@dataclass(frozen=True, eq=False)
class StrategyGraph:
    """n nodes, S strategies in all, m edges. Arrays are read-only.

      ptr        i8[n+1]  strategies of node i are ptr[i] … ptr[i+1]-1
      cost       [S]      of each strategy: i8, exact, or f8 (seconds)
      usage      i8[S]    bytes that the node's value takes while it lives
      lower      i8[n]    and `upper`: the life [lower, upper) of each value; empty (upper <= lower): it takes no memory
      edge       i8[m, 2] pairs of nodes; parallel edges add up, a self edge costs its diagonal
      table_ptr  i8[m+1]  table of edge e: table[table_ptr[e] : table_ptr[e+1]], flattened, a row per strategy of the first node
      table      [T]      as `cost`
      limit      bytes that values alive at one time may take together; None: no limit
      names      [n]      for messages; "" by default

    Costs of 1e18 and more (`FORBIDDEN`), infinity among them, may not be chosen. `whole`: costs are i8 and sums of them exact. Raises InputError for
    lengths that do not fit, no node, a node without strategies, negative usages, costs that are no number.
    """

    ptr: I64
    cost: Costs
    usage: I64
    lower: I64
    upper: I64
    edge: I64
    table_ptr: I64
    table: Costs
    limit: int | None = None
    names: tuple[str, ...] = ()
    title: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        whole = all(np.asarray(part).dtype.kind in "iu" for part in (self.cost, self.table) if np.asarray(part).size)
        for name in ("ptr", "usage", "lower", "upper", "table_ptr"):
            _set(self, name, _whole(name, getattr(self, name)))
        _set(self, "edge", _whole("edge", np.asarray(self.edge).reshape(-1)).reshape(-1, 2))
        for name in ("cost", "table"):
            _set(self, name, _costs(name, getattr(self, name), whole))
        object.__setattr__(self, "names", tuple(self.names) or ("",) * (len(self.ptr) - 1))
        object.__setattr__(self, "limit", None if self.limit is None else int(self.limit))
        _lengths(self)
        _values(self)

    @classmethod
    def of(cls, costs: Sequence[Sequence[float]], usages: Sequence[Sequence[int]], edges: Sequence[Sequence[int]] = (),
           tables: Sequence[Row] = (), lives: Sequence[Sequence[int]] | None = None, limit: int | None = None,
           names: Sequence[str] = (), title: str = "") -> StrategyGraph:
        """From lists: `costs[i][s]`, `usages[i][s]`, pairs of nodes, `tables[e]` flattened (arrays of any shape), lives [] or [start, end).

        Raises InputError as the class does, and where lengths differ.
        """
        n = len(costs)
        if len(usages) != n:
            raise InputError(f"There are costs of {n} nodes and usages of {len(usages)}.", "Give one list of each for every node.")
        if len(edges) != len(tables):
            raise InputError(f"There are {len(edges)} edges and {len(tables)} tables of costs.", "Give one table for every edge.")
        lives = [(0, 1)] * n if lives is None else lives
        if len(lives) != n:
            raise InputError(f"There are {n} nodes and {len(lives)} intervals.", "Give one for every node, [] where it takes no memory.")
        for i, (own, bytes_) in enumerate(zip(costs, usages, strict=True)):
            if len(own) != len(bytes_):
                raise InputError(f"Node {i} has {len(own)} costs and {len(bytes_)} usages.", "Give one of each for every strategy.")
        for i, life in enumerate(lives):
            if len(life) not in (0, 2):
                raise InputError(f"The interval of node {i} has {len(life)} entries: {list(life)}.", "Give [start, end), or [] for no memory.")
        for e, pair in enumerate(edges):
            if len(pair) != 2:
                raise InputError(f"Edge {e} joins {len(pair)} nodes: {list(pair)}.", "Give pairs of nodes.")
        span = np.array([tuple(life) if len(life) else (0, 0) for life in lives], np.int64).reshape(-1, 2)
        flat: list[Row] = [table.reshape(-1) if isinstance(table, np.ndarray) else table for table in tables]
        return cls(_pointer(costs), _flat(costs), cast(I64, _flat(usages, True)), span[:, 0], span[:, 1], np.array(edges, np.int64).reshape(-1, 2),
                   _pointer(flat), _flat(flat), limit, tuple(names), title)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def edges(self) -> int:
        return len(self.edge)

    @property
    def whole(self) -> bool:
        """Whether costs are whole numbers, whose sums are exact."""
        return self.cost.dtype == np.int64

    @cached_property
    def hash(self) -> str:
        """sha256 of all but names and title."""
        digest = hashlib.sha256(f"strategies {self.limit} {self.cost.dtype.kind}".encode())
        for name in ("ptr", "cost", "usage", "lower", "upper", "edge", "table"):
            value = getattr(self, name)
            digest.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    @cached_property
    def strategies(self) -> I64:
        """i8[n] how many each node has."""
        return np.diff(self.ptr)

    def name(self, node: int) -> str:
        return self.names[node] or f"node {node}"


def _set(graph: StrategyGraph, name: str, value: Costs) -> None:
    value = value.copy() if value.flags.writeable and value.base is not None else value
    value.flags.writeable = False
    object.__setattr__(graph, name, value)


def _pointer(rows: Sequence[Row]) -> I64:
    return np.concatenate([[0], np.cumsum(np.fromiter((len(row) for row in rows), np.int64, len(rows)))]).astype(np.int64)


def _flat(rows: Sequence[Row], usage: bool = False) -> Costs:
    """All rows one after another: i8 where all are whole numbers (those beyond 64 bits become FORBIDDEN), else f8."""
    count = sum(map(len, rows))
    try:
        return np.fromiter(_whole_numbers(rows), np.int64, count)
    except OverflowError:
        return np.fromiter((min(int(value), FORBIDDEN if not usage else 2**63 - 1) for row in rows for value in row), np.int64, count)
    except TypeError:
        return np.fromiter((float(value) for row in rows for value in row), np.float64, count)


def _whole_numbers(rows: Sequence[Row]) -> Iterator[int]:
    for row in rows:
        if isinstance(row, np.ndarray):
            if row.dtype.kind not in "iu":
                raise TypeError
            yield from row.tolist()
            continue
        if float in set(map(type, row)):
            raise TypeError
        yield from cast(Sequence[int], row)


def _whole(name: str, value: object) -> I64:
    array = np.asarray(value)
    if array.size and array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.floor(array)).all() and (abs(array) < 2**63).all():
        return array.astype(np.int64)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"{name} has type {array.dtype} and shape {list(array.shape)}.", "Give whole numbers of 64 bits.")
    return array.astype(np.int64)


def _costs(name: str, value: object, whole: bool) -> Costs:
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuf"):
        raise InputError(f"{name} has type {array.dtype} and shape {list(array.shape)}.", "Give numbers, flattened.")
    if not whole:
        array = array.astype(np.float64)
        if np.isnan(array).any() or (array == -math.inf).any():
            raise InputError(f"{name} holds what is no number (NaN or minus infinity).", "Give a cost, or infinity for what may not be chosen.")
        return np.minimum(array, float(FORBIDDEN))
    if array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(FORBIDDEN))
    return np.minimum(array.astype(np.int64), FORBIDDEN)


def _lengths(g: StrategyGraph) -> None:
    n = len(g.ptr) - 1
    if n < 1:
        raise InputError("There is no node.", "Give at least one node with a strategy.")
    if g.ptr[0] != 0 or (np.diff(g.ptr) < 0).any() or g.ptr[-1] != len(g.cost):
        raise InputError(f"ptr does not fit {len(g.cost)} costs.", "Give n + 1 ascending pointers from 0 to the number of strategies.")
    if (g.strategies == 0).any():
        i = int(np.flatnonzero(g.strategies == 0)[0])
        raise InputError(f"{g.name(i) if g.names else f'node {i}'} has no strategy.".capitalize(), "Give each node at least one.")
    for name, count in (("usage", len(g.cost)), ("lower", n), ("upper", n), ("names", n)):
        if len(getattr(g, name)) != count:
            raise InputError(f"{name} has {len(getattr(g, name))} entries, and {count} are expected.", "Give one for each.")
    if len(g.table_ptr) != g.edges + 1 or g.table_ptr[0] != 0 or g.table_ptr[-1] != len(g.table) or (np.diff(g.table_ptr) < 0).any():
        raise InputError("table_ptr does not fit edges and tables.", "Give m + 1 ascending pointers from 0 to the number of entries.")
    if g.edges and (wrong := (g.edge < 0) | (g.edge >= n)).any():
        e = int(np.flatnonzero(wrong.any(1))[0])
        raise InputError(f"Edge {e} joins nodes {g.edge[e].tolist()}; there are {n}, numbered from 0.", "Name nodes that exist.")
    size = g.strategies[g.edge[:, 0]] * g.strategies[g.edge[:, 1]]
    if (wrong := size != np.diff(g.table_ptr)).any():
        e = int(np.flatnonzero(wrong)[0])
        a, b = g.edge[e].tolist()
        held = f"nodes {a} and {b} have {g.strategies[a]} × {g.strategies[b]} strategies"
        raise InputError(f"Edge {e} has {int(np.diff(g.table_ptr)[e])} costs; {held}.",
                         f"Give {int(size[e])} costs, a row for each strategy of node {a}.")


def _values(g: StrategyGraph) -> None:
    if (g.usage < 0).any():
        s = int(np.flatnonzero(g.usage < 0)[0])
        i = int(np.searchsorted(g.ptr, s, "right")) - 1
        raise InputError(f"Strategy {s - int(g.ptr[i])} of node {i} has usage {int(g.usage[s])}.", "Give bytes, 0 or more.")
    if float(np.maximum.reduceat(g.usage, g.ptr[:-1]).astype(float).sum()) >= MOST:
        raise InputError("The usages come to more than 2^61 bytes.", "Give them in larger units.")
    if g.limit is not None and g.limit < 0:
        raise InputError(f"The usage limit is {g.limit}.", "Give bytes, 0 or more.")
    for name in ("cost", "table"):
        values = getattr(g, name)
        if values.size and float(values.min()) <= -FORBIDDEN:
            raise InputError(f"{name} has an entry of {values.min()}.", "Give costs above -1e18.")
