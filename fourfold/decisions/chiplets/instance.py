"""A captured program on a package of chips, as arrays: what the chiplet question is asked about.

Ops that stand before everything heavy (masks, positions, casts of inputs) are done on every chip: a value that all layers read would otherwise tie
all of them to two chips (the triangle rule). Their time and bytes are charged in full to every chip, used or not by what is there. Inputs come to the
chip that reads them free of charge, weights lie where they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.cost.roofline import seconds as roofline
from fourfold.errors import InputError
from fourfold.graph import CONTRACTION, PARAMETER, VIEW, Graph
from fourfold.machine import Machine

I64, F64 = NDArray[np.int64], NDArray[np.float64]
MOST_CHIPS = 64                                                         # domains of ops are bits of one word
MOST_OPS = 30_000                                                       # bits of one op's descendants for each op
_EARLY = 1e-3                                                           # share of all time that ops done everywhere may take together
_ALIKE = ("peak", "bandwidth", "launch", "memory", "efficiency", "unsupported")
_TABLE = 1 << 16                                                        # B of weights that an op done everywhere may read


class Csr(NamedTuple):
    """Rows of numbers: row i is `item[ptr[i]:ptr[i + 1]]`, i8."""

    ptr: I64
    item: I64

    @classmethod
    def of(cls, rows: int, row: np.ndarray, item: np.ndarray) -> Csr:
        order = np.lexsort((item, row))
        return cls(np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]).astype(np.int64), np.asarray(item, np.int64)[order])


@dataclass(frozen=True, eq=False)
class ChipletWorkload:
    """N ops in a topological order, E edges, V values, P weights.

    `seconds` f8[N] of each op on a chip, `work` f8[N] bytes that it reads and makes beside weights; `source` < `target` i8[E], each pair once;
    `maker` i8[V] and `size` f8[V] of each value that another op reads, `readers` its readers; `weights` Csr of the weights that each op reads,
    `weight` f8[P] bytes. `base_seconds`, `base_bytes`: what is done and held on every chip. `node` i8[N]: the op's number in the graph it is of.
    """

    name: str
    seconds: F64
    work: F64
    source: I64
    target: I64
    maker: I64
    size: F64
    readers: Csr
    weights: Csr
    weight: F64
    node: I64
    base_seconds: float = 0.0
    base_bytes: float = 0.0

    def __len__(self) -> int:
        return len(self.seconds)

    @cached_property
    def before(self) -> Csr:
        """The ops that each op reads from."""
        return Csr.of(len(self), self.target, self.source)

    @cached_property
    def after(self) -> Csr:
        """The ops that read each op."""
        return Csr.of(len(self), self.source, self.target)

    @cached_property
    def descendants(self) -> NDArray[np.uint64]:
        """u8[N, W]: bit w of row v is set where w comes after v; v itself is not."""
        return _closure(len(self), self.after.ptr, self.after.item, True)

    @cached_property
    def ancestors(self) -> NDArray[np.uint64]:
        """u8[N, W]: bit w of row v is set where w comes before v."""
        return _closure(len(self), self.before.ptr, self.before.item, False)


@dataclass(frozen=True, eq=False)
class Package:
    """C chips in the order in which data go. For a transfer from chip a to chip c > a: `latency` s and `rate` B/s [C, C], whether the sender copies
    it itself (`copies` bool[C, C]), and the lanes that it takes, row a·C + c of `lanes`; each lane has `lane_latency` s and `lane_rate` B/s. `memory`
    B a chip holds.
    """

    chips: int
    latency: F64
    rate: F64
    copies: NDArray[np.bool_]
    lanes: Csr
    lane_latency: F64
    lane_rate: F64
    memory: float

    @classmethod
    def of(cls, machine: Machine) -> Package:
        """The package that a machine's devices make, in their order. Raises InputError where they are not alike, or more than 64."""
        devices, count = machine.devices, len(machine)
        if count > MOST_CHIPS:
            raise InputError(f"{machine.name!r} has {count} chips; a package has at most {MOST_CHIPS}.", "Describe a smaller one.")
        for other in devices[1:]:
            if any(getattr(devices[0], name) != getattr(other, name) for name in _ALIKE):
                raise InputError(f"{devices[0].name} and {other.name} of {machine.name!r} are not alike, as the chips of a package are.",
                                 "Ask for a schedule (fourfold plan), or describe a machine of equal devices.")
        latency, rate, copies = np.zeros((count, count)), np.full((count, count), np.inf), np.zeros((count, count), bool)
        pair: list[int] = []
        lane: list[int] = []
        for a in range(count):
            for c in range(a + 1, count):
                way = machine.route(a, c)
                latency[a, c], rate[a, c] = way.latency, way.bandwidth
                copies[a, c] = any(not machine.links[one // 2].overlap for one in way.lanes)
                pair += [a * count + c] * len(way.lanes)
                lane += way.lanes
        ptr = np.concatenate([[0], np.cumsum(np.bincount(np.array(pair, np.int64), minlength=count * count))]).astype(np.int64)
        links = [link for link in machine.links for _ in range(2)]
        return cls(count, latency, rate, copies, Csr(ptr, np.array(lane, np.int64)), np.array([link.latency for link in links], float),
                   np.array([link.bandwidth for link in links], float), float(devices[0].memory))


@njit(cache=True)
def _closure(count, ptr, item, backwards):  # type: ignore[no-untyped-def]
    words = (count + 63) // 64
    found = np.zeros((count, words), np.uint64)
    for k in range(count):
        v = count - 1 - k if backwards else k
        for e in range(ptr[v], ptr[v + 1]):
            w = item[e]
            for i in range(words):
                found[v, i] |= found[w, i]
            found[v, w >> 6] |= np.uint64(1) << np.uint64(w & 63)
    return found


@njit(cache=True)
def _early(fusion, heavy, seconds, table, in_ptr, in_val, producer, most, largest):  # type: ignore[no-untyped-def]
    """Which nodes depend on nothing heavy, while all of them together stay within `most` seconds."""
    early, spent = np.zeros(len(fusion), np.bool_), 0.0
    for n in range(len(fusion)):
        if fusion[n] == heavy or table[n] > largest or spent + seconds[n] > most:
            continue
        fits = True
        for e in range(in_ptr[n], in_ptr[n + 1]):
            p = producer[in_val[e]]
            if p >= 0 and not early[p]:
                fits = False
        if fits:
            early[n] = True
            spent += seconds[n]
    return early


def of_graph(graph: Graph, machine: Machine) -> ChipletWorkload:
    """A captured graph as ops of a chip, priced by the roofline. Raises InputError where a chip cannot run an op, or there are too many."""
    seconds = roofline(graph, machine)[:, 0]
    if (stuck := np.flatnonzero(~np.isfinite(seconds))).size:
        raise InputError(f"{graph.names[stuck[0]]} ({graph.kinds[graph.kind[stuck[0]]]}) cannot run on {machine.devices[0].name}.",
                         "Describe a chip that runs every op.")
    reader = np.repeat(np.arange(len(graph)), np.diff(graph.in_ptr))
    root = graph.alias[graph.in_val].astype(np.int64)
    weighs = (graph.role[root] == PARAMETER) & (graph.fusion[reader] != VIEW)
    table = np.bincount(reader[weighs], graph.size[root[weighs]], len(graph))
    early = _early(graph.fusion, CONTRACTION, seconds, table, graph.in_ptr, graph.in_val, graph.producer, _EARLY * float(seconds.sum()), _TABLE)
    node = np.flatnonzero(~early)
    if not 0 < len(node) <= MOST_OPS:
        raise InputError(f"{graph.name} has {len(node):,} ops to share out; there must be 1 to {MOST_OPS:,}.",
                         "Capture the model in fewer ops, or a part of it.")
    number = np.full(len(graph) + 1, -1)
    number[node] = np.arange(len(node))
    source, target, value = (part.astype(np.int64) for part in graph.edges())
    kept = ~early[source] & ~early[target]
    pairs = np.unique(number[np.stack([source[kept], target[kept]], 1)], axis=0).reshape(-1, 2)
    sent, back = np.unique(value[kept], return_inverse=True)
    made = graph.in_val[~weighs]
    moved = np.bincount(reader[~weighs], graph.size[made], len(graph)) + graph.writes
    own, weight = np.unique(np.stack([reader[weighs], root[weighs]], 1), axis=0).T if weighs.any() else np.zeros((2, 0), np.int64)
    mine = ~early[own]
    kinds, index = np.unique(weight[mine], return_inverse=True)
    shared = np.unique(weight[~mine])
    return ChipletWorkload(
        graph.name, seconds[node], np.where(graph.fusion == VIEW, 0.0, moved)[node], pairs[:, 0], pairs[:, 1], number[graph.producer[sent]],
        graph.size[sent].astype(float), Csr.of(len(sent), back.reshape(-1), number[target[kept]]),
        Csr.of(len(node), number[own[mine]], index.reshape(-1)),
        graph.size[kinds].astype(float), node, float(seconds[early].sum()), float(graph.size[shared].sum()))
