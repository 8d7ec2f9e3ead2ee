"""The data of the question as arrays that rules, bound and solvers read: a graph, a system, what is fixed, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fourfold.cost.roofline import Prices, fused_seconds
from fourfold.cost.simulate import Arrays, Tasks, arrays, tasks_of
from fourfold.graph import CONTRACTION, GATHER, INTERMEDIATE, Graph
from fourfold.machine import Machine


@dataclass(frozen=True, eq=False)
class ScheduleInstance:
    """`group` i4[N], `place` i2[N] and `priority` f8[N] are the parts of the answer that are fixed, None where they are asked; `most` ops and
    `streams` values limit a fused group; `bounded` says whether memory is limited. Everything else is computed when it is first read, and kept."""

    graph: Graph
    system: Machine
    objective: str = "latency"
    group: np.ndarray | None = None
    place: np.ndarray | None = None
    priority: np.ndarray | None = None
    most: int = 64
    streams: int = 32
    bounded: bool = True
    _kept: dict[bytes, Tasks] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def seconds(self) -> np.ndarray:
        """f8[N, D] of each node alone; inf where the device cannot run it."""
        return self.prices.alone

    @cached_property
    def prices(self) -> Prices:
        """The roofline's figures of every node on every device."""
        return Prices(self.graph, self.system)

    @cached_property
    def able(self) -> np.ndarray:
        """bool [N, D]."""
        return np.isfinite(self.seconds)

    @cached_property
    def free(self) -> np.ndarray:
        """bool [V]: values whose storage is there from the start (parameters, inputs, constants and views of them)."""
        return self.graph.role[self.graph.alias] != INTERMEDIATE

    @cached_property
    def resident(self) -> np.ndarray:
        """i8[R] bytes of each parameter, input and constant that some op reads."""
        roots = np.unique(self.graph.alias[self.graph.in_val[self.free[self.graph.in_val]]])
        return self.graph.size[roots]

    def standing(self, nodes: Sequence[int] | np.ndarray) -> int:
        """Bytes of parameters, inputs and constants that these nodes read, each once."""
        g = self.graph
        read = np.concatenate([g.inputs_of(int(n)) for n in nodes]) if len(nodes) else np.zeros(0, np.int32)
        return int(g.size[np.unique(g.alias[read[self.free[read]]])].sum())

    @cached_property
    def classes(self) -> tuple[np.ndarray, ...]:
        """Nodes that share a device: one array for each colocation class, one for each other node."""
        order = np.argsort(self.label, kind="stable")
        return tuple(np.split(order, np.flatnonzero(np.diff(self.label[order])) + 1))

    @cached_property
    def label(self) -> np.ndarray:
        """i8[N] which of `classes` a node belongs to: colocation classes first, in the order of their numbers, then all others one by one."""
        tie = self.graph.colocation.astype(np.int64)
        return np.unique(np.where(tie >= 0, tie, 2**31 + np.arange(len(tie))), return_inverse=True)[1].reshape(-1)

    @cached_property
    def fits(self) -> np.ndarray:
        """bool [C, D]: devices that can run all of a class."""
        found = np.ones((int(self.label.max()) + 1, len(self.system)), bool)
        np.logical_and.at(found, self.label, self.able)
        return found

    @cached_property
    def stands(self) -> np.ndarray:
        """i8[C] `standing` of each class."""
        g = self.graph
        reader = np.repeat(np.arange(len(g)), np.diff(g.in_ptr))
        free = self.free[g.in_val]
        pairs = np.unique(self.label[reader[free]] * len(g.alias) + g.alias[g.in_val[free]])
        return np.bincount(pairs // len(g.alias), g.size[pairs % len(g.alias)], int(self.label.max()) + 1).astype(np.int64)

    @cached_property
    def space(self) -> np.ndarray:
        """i8[N] elements that a node runs over: of its largest output or, where it is neither contraction nor gather, of what it reads that was
        computed or given."""
        g = self.graph
        elements, some = np.ones(len(g.producer), np.int64), np.flatnonzero(np.diff(g.shape_ptr) > 0)
        if len(some):
            elements[some] = np.multiply.reduceat(g.shape, g.shape_ptr[some])
        wide = np.ones(len(g), np.int64)
        made = g.producer >= 0
        np.maximum.at(wide, g.producer[made], elements[made])
        reader = np.repeat(np.arange(len(g)), np.diff(g.in_ptr))
        counts = (g.role[g.alias[g.in_val]] < 2) & ~np.isin(g.fusion[reader], (CONTRACTION, GATHER))
        np.maximum.at(wide, reader[counts], elements[g.in_val[counts]])
        return wide

    def tasks(self, group: np.ndarray) -> Tasks:
        """The tasks that a partition makes, priced; the last few are kept."""
        key = np.asarray(group, np.int64).tobytes()
        if key not in self._kept:
            if len(self._kept) >= 4:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = tasks_of(self.graph, group, self.system, fused_seconds(self.graph, group, self.system, self.prices))
        return self._kept[key]

    def plain(self, group: np.ndarray) -> Arrays:
        """`tasks` as arrays for kernels."""
        return arrays(self.tasks(group), self.system)
