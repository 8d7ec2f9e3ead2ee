"""A graph whose values compete for one arena, as arrays; and its core: the same without views, on which the techniques work.

A step of a sequence runs one node and reads the latest instance of each value it needs. A value instance lives from the step that makes it to the
last step that reads it before the value is made again; the last instance of a program's output lives to the end. Views (`Graph.alias`) have no memory
of their own: an instance of a view keeps the instance of the root alive that it was taken from. Inputs, parameters and constants lie outside the
arena. Where there is a second memory (`_far.py`), the step N + v of a sequence (N nodes) fetches value v from it: a new instance, made of nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError
from fourfold.graph import INTERMEDIATE, Graph

if TYPE_CHECKING:
    from fourfold.decisions.rematerialise._far import FarMemory
    from fourfold.machine import Machine

I64, I32, F64, B1 = NDArray[np.int64], NDArray[np.int32], NDArray[np.float64], NDArray[np.bool_]
ALIGNMENT = 64                                                          # bytes: offsets and sizes are multiples of it
# ops that draw from a generator whose state is not among their inputs (JAX's read a key, so they may be repeated)
RANDOM = (
    "bernoulli", "binomial", "cauchy_", "dropout", "exponential", "geometric", "log_normal", "multinomial", "native_dropout", "normal", "poisson",
    "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random", "random_", "randomnormal", "randomnormallike", "randomuniform",
    "randomuniformlike", "randperm", "rrelu_with_noise", "uniform", "uniform_",
)  # fmt: skip


def random_ops(graph: Graph) -> B1:
    """b1[N] nodes that draw random numbers from a generator outside of the program."""
    from fourfold.cost.roofline import short

    drawn = np.array([short(kind) in RANDOM for kind in graph.kinds], bool)
    return drawn[graph.kind] if len(graph) else np.zeros(0, bool)


class CoreGraph(NamedTuple):
    """The graph without views: M nodes that compute, R roots (values with memory in the arena), renumbered from 0, in CSR.

    `node` i4[M] number in the graph; in_ptr, in_val: roots a node reads, through views or directly; out_ptr, out_val: roots it makes; producer i4[R];
    size i8[R] bytes, aligned; price f8[M]; once b1[M] may run once only; pinned b1[R] must be there at the end; workspace i8[M].
    With a second memory (`RematerialiseInstance.linked`) nodes from `computing` on are fetches, which need not run: node N + v makes v of nothing.
    fetch i4[R] that node of a root, -1 where it has none; store f8[R] price of its first copy; far: bytes of the second memory.
    """

    node: I32
    in_ptr: I32
    in_val: I32
    out_ptr: I32
    out_val: I32
    producer: I32
    size: I64
    price: F64
    once: B1
    pinned: B1
    workspace: I64
    computing: int
    fetch: I32
    store: F64
    far: int


@dataclass(frozen=True, eq=False)
class RematerialiseInstance:
    """A graph, a limit and prices.

      limit      bytes of the arena; None: no limit
      price      f8[N] what each run of a node costs, in seconds (or joules)
      workspace  i8[N] bytes that a node needs beside its outputs while it runs; they lie above the highest value that is alive then
      once       b1[N] nodes that must not run twice: random draws whose seed is not kept, side effects
      far        a second memory that values may be copied to; None: there is none
      transfer   f8[V] what one copy of a value there, or back, costs; inf: it cannot be copied

    Raises InputError for arrays of another length, negative or infinite prices and a limit below 0.
    """

    graph: Graph
    limit: int | None = None
    price: F64 = field(default_factory=lambda: np.zeros(0))
    workspace: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    once: B1 = field(default_factory=lambda: np.zeros(0, bool))
    far: FarMemory | None = None
    transfer: F64 = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        nodes = len(self.graph)
        given = {"price": (np.float64, np.zeros(nodes)), "workspace": (np.int64, np.zeros(nodes)), "once": (np.bool_, random_ops(self.graph))}
        for name, (kind, default) in given.items():
            value = np.asarray(getattr(self, name))
            value = np.array(value if value.size or not nodes else default, kind)
            if value.shape != (nodes,):
                raise InputError(f"{name} has shape {list(value.shape)} for {nodes} nodes.", "Give one number per node.")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        _transfers(self)
        if nodes and (not np.isfinite(self.price).all() or (self.price < 0).any()):
            bad = int(np.flatnonzero(~np.isfinite(self.price) | (self.price < 0))[0])
            raise InputError(f"The price of {self.graph.names[bad]} is {self.price[bad]}.", "Give seconds or joules of at least 0.")
        if nodes and (self.workspace < 0).any():
            raise InputError(f"The workspace of {self.graph.names[int(np.argmin(self.workspace))]} is negative.", "Give bytes of at least 0.")
        if self.limit is not None and self.limit < 0:
            raise InputError(f"The limit is {self.limit} bytes.", "Give at least 0, or None for no limit.")

    # ---- values

    @cached_property
    def own(self) -> B1:
        """b1[V] values with memory of their own in the arena."""
        g = self.graph
        return (g.role == INTERMEDIATE) & (g.alias == np.arange(len(g.alias)))

    @cached_property
    def size(self) -> I64:
        """i8[V] bytes in the arena, rounded up to the alignment; 0 for views and what lies outside."""
        return np.where(self.own, -(-self.graph.size // ALIGNMENT) * ALIGNMENT, 0).astype(np.int64)

    @cached_property
    def source(self) -> I32:
        """i4[V] from which value an instance takes its memory: itself where it has its own or lies outside; a view the input with the same root (the
        first one), or the root where no input has it."""
        g = self.graph
        source = np.arange(len(g.alias), dtype=np.int32)
        for v in np.flatnonzero((g.role == INTERMEDIATE) & ~self.own).tolist():
            inputs = g.inputs_of(int(g.producer[v]))
            same = inputs[g.alias[inputs] == g.alias[v]]
            source[v] = same[0] if len(same) else g.alias[v]
        return source

    @cached_property
    def instances_of(self) -> I32:
        """i4[N] how many values with memory of their own each node makes: as many offsets has each of its steps."""
        g = self.graph
        maker = np.repeat(np.arange(len(g)), np.diff(g.out_ptr))
        return np.bincount(maker, weights=self.own[g.out_val], minlength=len(g)).astype(np.int32)

    def fetched(self, sequence: NDArray[np.int32]) -> I32:
        """The values that a sequence of graph nodes fetches, ascending, each once: those that are copied to the second memory."""
        return np.unique(sequence[sequence >= len(self.graph)] - len(self.graph)).astype(np.int32)

    # ---- without views

    @cached_property
    def viewing(self) -> B1:
        """b1[N] nodes whose outputs are all views, and that may be repeated: they cost no memory and are taken again where one is needed."""
        g = self.graph
        maker = np.repeat(np.arange(len(g)), np.diff(g.out_ptr))
        makes = np.bincount(maker, minlength=len(g))
        views = np.bincount(maker, weights=g.alias[g.out_val] != g.out_val, minlength=len(g))
        return (makes > 0) & (views == makes) & ~self.once

    @cached_property
    def reads(self) -> tuple[tuple[int, ...], ...]:
        """[V] per value: the values of other than viewing nodes, made in the program, that must be alive where it is read."""
        g = self.graph
        found: list[tuple[int, ...]] = [()] * len(g.alias)
        for n in range(len(g)):
            below = tuple(dict.fromkeys(w for v in g.inputs_of(n).tolist() for w in found[v]))
            for v in g.outputs_of(n).tolist():
                root = int(g.alias[v])
                if self.viewing[n]:
                    found[v] = below
                elif root == v or g.producer[root] < 0:
                    found[v] = (v,)
                else:                                                  # a view made beside computed values: it needs the root's memory, and its maker
                    found[v] = (v, root)
        return tuple(found)

    @cached_property
    def core(self) -> CoreGraph:
        """The graph without views. A view that a computing node makes is a value of 0 bytes here; its maker and its root's then run once only."""
        g = self.graph
        nodes = np.flatnonzero(~self.viewing)
        values = np.array([v for n in nodes.tolist() for v in g.outputs_of(n).tolist()], np.int64)
        number = np.full(len(g.alias), -1, np.int64)
        number[values] = np.arange(len(values))
        once = self.once.copy()
        for v in values[g.alias[values] != values].tolist():
            once[g.producer[v]] = True
            if g.producer[g.alias[v]] >= 0:
                once[g.producer[g.alias[v]]] = True
        rows = [sorted({int(number[w]) for v in g.inputs_of(n).tolist() for w in self.reads[v]}) for n in nodes.tolist()]
        outs = [[int(number[v]) for v in g.outputs_of(n).tolist()] for n in nodes.tolist()]
        pinned = np.zeros(len(values), bool)
        pinned[[int(number[w]) for v in g.outputs.tolist() for w in self.reads[v]]] = True
        maker = np.full(len(g), -1, np.int32)
        maker[nodes] = np.arange(len(nodes))
        return CoreGraph(nodes.astype(np.int32), *_rows(rows), *_rows(outs), maker[g.producer[values]] if len(values) else np.zeros(0, np.int32),
                         self.size[values], self.price[nodes], once[nodes], pinned, self.workspace[nodes], len(nodes),
                         np.full(len(values), -1, np.int32), np.zeros(len(values)), 0)

    @cached_property
    def linked(self) -> CoreGraph:
        """The core with a fetch for each value that the second memory has room for; the core itself where there is none."""
        core, g = self.core, self.graph
        if self.far is None or not len(core.size):
            return core
        values = np.array([v for n in core.node.tolist() for v in g.outputs_of(n).tolist()], np.int64)
        some = np.flatnonzero((core.size > 0) & (core.size <= self.far.room) & np.isfinite(self.transfer[values]))
        fetch = np.full(len(values), -1, np.int32)
        fetch[some] = core.computing + np.arange(len(some))
        price, zeros = self.transfer[values[some]], np.zeros(len(some), np.int64)
        store = np.zeros(len(values))
        store[some] = price
        return core._replace(
            node=np.concatenate([core.node, len(g) + values[some]]).astype(np.int32), fetch=fetch, store=store, far=self.far.room,
            in_ptr=np.concatenate([core.in_ptr, np.full(len(some), core.in_ptr[-1])]).astype(np.int32),
            out_ptr=np.concatenate([core.out_ptr, core.out_ptr[-1] + 1 + np.arange(len(some))]).astype(np.int32),
            out_val=np.concatenate([core.out_val, some]).astype(np.int32), price=np.concatenate([core.price, price]),
            once=np.concatenate([core.once, zeros > 0]), workspace=np.concatenate([core.workspace, zeros]))

    def expand(self, sequence: Iterable[int]) -> I32:
        """i4[S] the sequence of graph nodes for one of core nodes: each view is taken where it is read, anew where its root was made again."""
        return _Expansion(self).run(sequence)

    def collapse(self, sequence: Iterable[int]) -> I32:
        """The computing nodes of a sequence of graph nodes, as numbers of the core."""
        number = np.full(len(self.graph) + len(self.graph.alias), -1, np.int32)
        number[self.linked.node] = np.arange(len(self.linked.node))
        found = number[np.asarray(list(sequence), np.int64)] if len(self.graph) else np.zeros(0, np.int32)
        return found[found >= 0].astype(np.int32)


def prices(graph: Graph, machine: Machine | None = None, device: int = 0, *, energy: bool = False) -> F64:
    """f8[N] s (or J) of each node by the roofline, on `device` of `machine` (default: the processor of the stated system `cpux2`).

    Raises InputError where the device cannot run a node.
    """
    from fourfold.cost.roofline import joules, seconds
    from fourfold.machine import Machine

    system = machine if machine is not None else Machine.read("cpux2")
    found = (joules if energy else seconds)(graph, system)[:, device]
    if not np.isfinite(found).all():
        bad = int(np.flatnonzero(~np.isfinite(found))[0])
        raise InputError(f"{system.devices[device].name} cannot run {graph.names[bad]} ({graph.kinds[graph.kind[bad]]}).", "Choose another device.")
    return found


class _Expansion:
    """Views put back into a sequence. `memory` [V]: which instance a value's current instance lies in; -1 not made yet, 0 outside of the arena."""

    def __init__(self, instance: RematerialiseInstance) -> None:
        self.of, self.graph = instance, instance.graph
        g = self.graph
        self.inputs = [g.inputs_of(n).tolist() for n in range(len(g))]
        self.outputs = [g.outputs_of(n).tolist() for n in range(len(g))]
        self.producer, self.source = g.producer.tolist(), instance.source.tolist()
        self.viewing, self.own = instance.viewing.tolist(), instance.own.tolist()
        self.memory = np.where(g.role == INTERMEDIATE, -1, 0).tolist()
        self.steps: list[int] = []
        self.missing = [len({self.producer[w] for w in instance.reads[self.outputs[n][0]]}) if self.viewing[n] else -1 for n in range(len(g))]
        self.after: dict[int, list[int]] = {}
        for n in np.flatnonzero(instance.viewing).tolist():
            for maker in {self.producer[w] for w in instance.reads[self.outputs[n][0]]}:
                self.after.setdefault(maker, []).append(n)

    def run(self, sequence: Iterable[int]) -> I32:
        useful = self._useful()
        ran = [False] * len(self.graph)
        for n in [n for n in range(len(self.graph)) if self.missing[n] == 0 and not useful[n]]:
            self._ensure(self.outputs[n][0])
        for n in (int(self.of.linked.node[m]) for m in sequence):
            if n >= len(self.graph):                                    # fetched: an instance of its own, made of nothing
                self.steps.append(n)
                self.memory[n - len(self.graph)] = len(self.steps)
                continue
            for v in self.inputs[n]:
                self._ensure(v)
            self._run(n)
            first, ran[n] = not ran[n], True
            for view in self.after.get(n, ()) if first else ():
                self.missing[view] -= 1
                if self.missing[view] == 0 and not useful[view]:       # nobody reads it: it is taken while what it needs is there
                    self._ensure(self.outputs[view][0])
        for v in self.graph.outputs.tolist():
            self._ensure(v)
        return np.array(self.steps, np.int32)

    def _useful(self) -> list[bool]:
        """Viewing nodes that a computing node reads, directly or through views, or that the program returns."""
        useful, g = [not viewing for viewing in self.viewing], self.graph
        for v in g.outputs.tolist():
            useful[self.producer[v]] = useful[self.producer[v]] or self.producer[v] >= 0
        for n in range(len(g) - 1, -1, -1):
            if useful[n]:
                for v in self.inputs[n]:
                    if self.producer[v] >= 0:
                        useful[self.producer[v]] = True
        return useful

    def _ensure(self, value: int) -> None:
        """Take the views again that `value` is made of, where they lie in an old instance."""
        n = self.producer[value]
        if n < 0 or not self.viewing[n]:
            return
        for v in self.inputs[n]:
            self._ensure(v)
        if self.memory[value] < 0 or self.memory[value] != self.memory[self.source[value]]:
            self._run(n)

    def _run(self, node: int) -> None:
        self.steps.append(node)
        for v in self.outputs[node]:
            if self.own[v]:
                self.memory[v] = len(self.steps)
        for v in self.outputs[node]:
            if not self.own[v]:
                self.memory[v] = self.memory[self.source[v]]


def _transfers(instance: RematerialiseInstance) -> None:
    """The prices of copies: by default the seconds that the link takes for values with memory of their own, inf for others."""
    values, given = len(instance.graph.alias), np.array(instance.transfer, np.float64)
    if not given.size:
        given = np.full(values, np.inf)
        if instance.far is not None:
            given[instance.own] = instance.far.seconds(instance.size[instance.own])
    if given.shape != (values,) or np.isnan(given).any() or (given < 0).any():
        raise InputError(f"transfer has shape {list(given.shape)} for {values} values, or holds what is no price.",
                         "Give a price of at least 0 a value.")
    given[~instance.own] = np.inf
    given.flags.writeable = False
    object.__setattr__(instance, "transfer", given)


def _rows(rows: list[list[int]]) -> tuple[I32, I32]:
    pointer = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=pointer[1:]) if rows else None
    return pointer, np.array([entry for row in rows for entry in row], np.int32)
