"""Tasks: what a fused graph asks of the devices, and the values that pass between its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fourfold.cost.roofline import fused_seconds
from fourfold.errors import InputError
from fourfold.graph import INTERMEDIATE, Graph, number

if TYPE_CHECKING:
    from fourfold.machine import Machine


@dataclass(frozen=True, eq=False)
class Tasks:
    """T tasks, V values that pass between them (ordered by producer), F things that stay resident.

    `seconds` f8[T, D]: inf where the device cannot. `producer` i4[V]; `size` i8[V] bytes sent; `hold` i8[V] bytes of memory where it is made, 0 for a
    view; `base` i4[V] the value (read or made by the same task) whose memory a view keeps alive, -1 none; `keep` b1[V] an output.
    `use_ptr` i4[V+1], `use_task`: readers of each value, each once. `fixed_size` i8[F], `fixed_ptr`, `fixed_task`: resident things and the tasks that
    read them. `workspace` i8[T]. `group` i4[N]: the task of each node of a graph, empty otherwise. Raises InputError where arrays do not fit.
    """

    seconds: NDArray[np.float64]
    producer: NDArray[np.int32]
    size: NDArray[np.int64]
    use_ptr: NDArray[np.int32]
    use_task: NDArray[np.int32]
    hold: NDArray[np.int64]
    base: NDArray[np.int32]
    keep: NDArray[np.bool_]
    workspace: NDArray[np.int64]
    fixed_size: NDArray[np.int64]
    fixed_ptr: NDArray[np.int32]
    fixed_task: NDArray[np.int32]
    names: tuple[str, ...] = ()
    group: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self) -> None:
        count, values = len(self.seconds), len(self.producer)
        sound = (self.seconds.ndim == 2 and all(len(part) == values for part in (self.size, self.hold, self.base, self.keep))
                 and len(self.use_ptr) == values + 1 and len(self.workspace) == count and len(self.fixed_ptr) == len(self.fixed_size) + 1
                 and bool(np.all(np.diff(self.producer) >= 0)) and all(part.size == 0 or (part.min() >= 0 and part.max() < count)
                                                                       for part in (self.producer, self.use_task, self.fixed_task)))
        if not sound:
            raise InputError("The arrays of Tasks do not fit together.", "Order values by producer and number tasks from 0; or use Tasks.of.")
        if np.isnan(self.seconds).any() or (self.seconds < 0).any():
            raise InputError("A task has a negative or unknown time.", "Give seconds ≥ 0; inf where a device cannot run it.")

    @classmethod
    def of(cls, seconds: ArrayLike, values: Iterable[tuple[int, int, Sequence[int]]] = (), *, keep: Iterable[int] = (),
           fixed: Iterable[tuple[int, Sequence[int]]] = (), workspace: ArrayLike | None = None, names: Sequence[str] = ()) -> Tasks:
        """From plain lists: `values` (producer, bytes, readers) — numbered anew by producer —, `keep` positions in `values` that are outputs, `fixed`
        (bytes, tasks)."""
        table, rows, outputs = np.array(seconds, dtype=np.float64), list(values), set(keep)
        order = sorted(range(len(rows)), key=lambda v: rows[v][0])
        uses, stay = [sorted(set(rows[v][2])) for v in order], list(fixed)
        size = np.array([rows[v][1] for v in order], np.int64)
        makers = np.array([rows[v][0] for v in order], np.int32)
        return cls(table, makers, size, pointer(uses), flat(uses), size.copy(), np.full(len(rows), -1, np.int32),
                   np.array([v in outputs for v in order], bool),
                   np.zeros(len(table), np.int64) if workspace is None else np.array(workspace, np.int64),
                   np.array([one for one, _ in stay], np.int64), pointer([list(t) for _, t in stay]), flat([list(t) for _, t in stay]),
                   tuple(names))

    def __len__(self) -> int:
        return len(self.seconds)

    @cached_property
    def reads(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(ptr i4[T+1], value i4[·]): values that each task reads, ascending."""
        value = np.repeat(np.arange(len(self.producer), dtype=np.int32), np.diff(self.use_ptr))
        order = np.argsort(self.use_task, kind="stable")
        return starts(self.use_task, len(self)), value[order]

    def edges(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """(src [E], dst [E], value [E]): task dst reads `value`, which task src makes."""
        value = np.repeat(np.arange(len(self.producer), dtype=np.int32), np.diff(self.use_ptr))
        return self.producer[value], self.use_task, value

    def name(self, task: int) -> str:
        return self.names[task] if task < len(self.names) else f"task {task}"


def tasks_of(graph: Graph, group: ArrayLike, system: Machine, seconds: NDArray[np.float64] | None = None) -> Tasks:
    """The tasks that fusion `group` i4[N] makes of `graph` (equal number = one task; -1 = a task of its own), priced for `system`.

    Tasks are numbered by their first node; `Tasks.group` gives the task of each node. What lies inside a task is in registers and costs no memory.
    Parameters, inputs, constants and views of them are resident wherever they are read. `seconds` f8[T, D] replaces the roofline's. Raises InputError
    where `group` has another length.
    """
    task, count = number(group, len(graph))
    dst = np.repeat(np.arange(len(graph)), np.diff(graph.in_ptr))
    value = graph.in_val.astype(np.int64)
    free = graph.role[graph.alias] != INTERMEDIATE                      # storage that is there from the start
    reader = task[dst]
    # resident things: (root, task), each once
    fixed = _unique_pairs(graph.alias[value[free[value]]].astype(np.int64), reader[free[value]])
    roots = np.unique(fixed[:, 0])
    # values between tasks: (value, reader), each once
    maker = np.where(graph.producer >= 0, task[graph.producer], -1)
    crossing = ~free[value] & (maker[value] != reader)
    pairs = _unique_pairs(value[crossing], reader[crossing])
    kept = np.unique(graph.outputs[~free[graph.outputs]]).astype(np.int64)
    passed = np.union1d(pairs[:, 0], kept)
    passed = passed[np.lexsort((passed, maker[passed]))]
    place = np.full(len(graph.producer), -1, np.int64)
    place[passed] = np.arange(len(passed))
    hold, base = _storage(graph, passed, maker, pairs, place)
    order = np.lexsort((pairs[:, 1], place[pairs[:, 0]]))
    root = graph.alias[passed]
    if seconds is None:
        seconds = fused_seconds(graph, task, system)
    first = np.full(count, len(graph), np.int64)
    np.minimum.at(first, task, np.arange(len(graph)))
    names = tuple(graph.names[n] for n in first.tolist())
    return Tasks(seconds, maker[passed].astype(np.int32), np.minimum(graph.size[passed], graph.size[root]),
                 starts(place[pairs[order, 0]], len(passed)), pairs[order, 1].astype(np.int32), hold, base, np.isin(passed, kept),
                 np.zeros(count, np.int64), graph.size[roots].copy(), starts(np.searchsorted(roots, fixed[:, 0]), len(roots)),
                 fixed[:, 1].astype(np.int32), names, task.astype(np.int32))


def _storage(graph: Graph, passed: NDArray[np.int64], maker: np.ndarray, pairs: NDArray[np.int64], place: NDArray[np.int64],
             ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Bytes that each passed value holds, and the passed value whose memory it shares."""
    hold, base = graph.size[passed].copy(), np.full(len(passed), -1, np.int32)
    shared = np.flatnonzero(graph.alias[passed] != passed)
    if not len(shared):
        return hold, base
    values = len(graph.alias)
    root, task = graph.alias[passed].astype(np.int64), maker[passed]
    cell = task * values + root                                         # (making task, root)
    abroad = maker[root] != task
    # by which passed value the making task reads the root: the first of them
    among = np.isin(graph.alias[pairs[:, 0]], root[shared])
    read, first = np.unique(pairs[among, 1] * values + graph.alias[pairs[among, 0]], return_index=True)
    owner = place[pairs[among, 0]][first]
    far = shared[abroad[shared]]
    at = np.minimum(np.searchsorted(read, cell[far]), max(0, len(read) - 1))
    found = read[at] == cell[far] if len(read) else np.zeros(len(far), bool)
    base[far[found]] = owner[at[found]]
    # its own root's bytes, where those are passed on too; else the first view holds them for the rest
    near = np.flatnonzero(~abroad & ((graph.alias[passed] == passed) | np.isin(cell, cell[shared])))
    near = near[np.lexsort((near, graph.alias[passed[near]] != passed[near], cell[near]))]
    lead = np.concatenate([[True], cell[near][1:] != cell[near][:-1]]) if len(near) else np.zeros(0, bool)
    leader = near[np.flatnonzero(lead)[np.cumsum(lead) - 1]] if len(near) else near
    base[near[~lead]] = leader[~lead]
    alone = np.concatenate([far[~found], near[lead]])
    hold[alone] = graph.size[root[alone]]
    hold[base >= 0] = 0
    return hold, base


def _unique_pairs(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """[P, 2] the pairs, each once, sorted."""
    if not len(first):
        return np.zeros((0, 2), np.int64)
    wide = int(second.max()) + 1
    code = np.unique(first * wide + second)
    return np.stack([code // wide, code % wide], axis=1)


def starts(keys: np.ndarray, count: int) -> NDArray[np.int32]:
    """i4[count+1]: where each key's entries begin, once they are sorted by key."""
    return np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=count))]).astype(np.int32)


def pointer(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)


def flat(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.array([entry for row in rows for entry in row], dtype=np.int32)
