"""Which piece of the arena each value lies in, step by step, and when nobody needs it any more: read off a sequence of a graph's nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fourfold.errors import InputError
from fourfold.graph import INTERMEDIATE, Graph


@dataclass(frozen=True)
class ArenaLayout:
    """A sequence i4[S] of a graph's nodes and what it makes: K pieces of memory in the order in which they are made.

    step, value i4[K]: which step makes the piece, and which value it holds; last i4[K]: the last step that needs it (S − 1 for what the program
    returns); offset, size i8[K]: bytes [offset, offset + size) of the arena, not rounded up; again b1[S]: steps whose node ran before. A step N + v
    (N nodes) fetches value v from the second memory, where its copy lies at place[v]; it is stored when its node has run first.
    """

    graph: Graph
    sequence: np.ndarray
    step: np.ndarray
    value: np.ndarray
    last: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    again: np.ndarray
    place: Mapping[int, int] = field(default_factory=dict)

    @property
    def far_top(self) -> int:
        """Bytes of the second memory up to the end of the highest copy."""
        return max((at + int(self.graph.size[v]) for v, at in self.place.items()), default=0)

    @property
    def top(self) -> int:
        """Bytes up to the end of the highest piece."""
        return int((self.offset + self.size).max(initial=0))

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self.step)


def laid_out(graph: Graph, sequence: Sequence[int] | np.ndarray, offset: Sequence[int] | np.ndarray,
             place: Mapping[int, int] | None = None) -> ArenaLayout:
    """What a plan says: `sequence` of nodes, and the offset (B) of each value that has memory of its own, step by step, in the order of the node's
    outputs; `place` (B): where in a second memory the copy of each value stands that the sequence fetches.

    A step reads the latest instance of each value. A view lies in the instance that it was taken from; inputs, parameters and constants lie outside.
    Raises InputError where a step reads what was not made, an output is missing, or offsets are too few, too many or negative.
    """
    order, where, copies = np.asarray(sequence, np.int32), np.asarray(offset, np.int64), dict(place or {})
    if order.size and not 0 <= int(order.min()) <= int(order.max()) < len(graph) + (len(graph.alias) if copies else 0):
        raise InputError(f"The plan runs node {int(order.max())}, and there are {len(graph)}.", "Make the plan again for this program.")
    fetched = {n - len(graph) for n in order.tolist() if n >= len(graph)}
    if fetched != set(copies) or any(far < 0 for far in copies.values()):
        raise InputError(f"The plan fetches {len(fetched)} values, and has places for {len(copies)} in the second memory.",
                         "Make the plan again for this program.")
    at: dict[int, int] = {v: -1 for v in np.flatnonzero(graph.role != INTERMEDIATE).tolist()}
    step, value, last = list[int](), list[int](), list[int]()
    seen, again = set[int](), np.zeros(len(order), bool)
    for s, n in enumerate(order.tolist()):
        again[s] = n in seen or n >= len(graph)
        seen.add(n)
        if n >= len(graph):
            if (v := n - len(graph)) not in at:
                raise InputError(f"Step {s} of the plan fetches what {graph.names[int(graph.producer[v])]} has not made.",
                                 "Make the plan again for this program.")
            at[v] = len(step)
            step.append(s)
            value.append(v)
            last.append(s)
            continue
        inputs, outputs = graph.inputs_of(n).tolist(), graph.outputs_of(n).tolist()
        for v in inputs:
            if v not in at:
                raise InputError(f"Step {s} of the plan ({graph.names[n]}) reads what {graph.names[int(graph.producer[v])]} has not made.",
                                 "Make the plan again for this program.")
            if at[v] >= 0:
                last[at[v]] = s
        for v in (v for v in outputs if graph.alias[v] == v):
            at[v] = len(step)
            step.append(s)
            value.append(v)
            last.append(s)
        for v in (v for v in outputs if graph.alias[v] != v):
            root = int(graph.alias[v])
            at[v] = at[next((u for u in inputs if graph.alias[u] == root), root)]
            if at[v] >= 0:
                last[at[v]] = s
    for v in graph.outputs.tolist():
        if v not in at:
            raise InputError(f"The plan does not make {graph.labels[v] or f'value {v}'}, which the program returns.", "Make the plan again.")
        if at[v] >= 0:
            last[at[v]] = len(order) - 1
    if where.shape != (len(step),) or (where < 0).any():
        raise InputError(f"The plan gives {where.size} offsets for {len(step)} values.", "Give one of at least 0 for each value that a step makes.")
    made = np.array(value, np.int32)
    return ArenaLayout(graph, order, np.array(step, np.int32), made, np.array(last, np.int32), where, graph.size[made], again, copies)
