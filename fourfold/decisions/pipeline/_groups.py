"""A workload as groups and nets: what the solvers' kernels read. Shared by the techniques of this folder.

A group is what stays together: a class, and with `acyclic` the strongly connected components that classes close. A net is a node's output: the
groups of the node and of its readers; it costs each accelerator that holds some of them but not all (border(S) of problem.py is a hypergraph cut).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.errors import Infeasible
from fourfold.frontends.placement import PipelineWorkload


@dataclass(frozen=True)
class Groups:
    """G groups, H nets with P pins. of i4[N]: group of a node; fast (inf: cannot), slow (inf: no core), size f8[G]; nets in CSR by net and by group;
    edges between groups in the order of the forward pass (a backward edge counts turned round), and before, after: the same in CSR.
    """

    of: np.ndarray
    fast: np.ndarray
    slow: np.ndarray
    size: np.ndarray
    net_ptr: np.ndarray
    net_pin: np.ndarray
    net_cost: np.ndarray
    own_ptr: np.ndarray
    own_net: np.ndarray
    before_ptr: np.ndarray
    before: np.ndarray
    after_ptr: np.ndarray
    after: np.ndarray
    accelerators: int
    cores: int
    limit: float

    def __len__(self) -> int:
        return len(self.fast)

    @classmethod
    def of_workload(cls, w: PipelineWorkload, *, acyclic: bool = False, merged: np.ndarray | None = None) -> Groups:
        """Groups of `w`; `merged` i[N] names what must be together besides classes (default: nothing)."""
        of = _unite(len(w), w.color, merged)
        source, target = _flow(w, of)
        if acyclic:
            of = _components(of, source, target)
        count = int(of.max(initial=-1)) + 1
        able = (np.bincount(of, ~w.supported, count) == 0) & (w.accelerators > 0)
        fast = np.where(able, np.bincount(of, w.accelerator, count), np.inf)
        slow = np.bincount(of, w.core, count) if w.cores else np.full(count, np.inf)
        pins, costs = _nets(w, of)
        net_ptr = np.concatenate([[0], np.cumsum([len(p) for p in pins])]).astype(np.int64)
        net_pin = np.array([g for p in pins for g in p], np.int64)
        net = np.repeat(np.arange(len(pins)), np.diff(net_ptr))
        by = np.argsort(net_pin, kind="stable")
        own_ptr = np.concatenate([[0], np.cumsum(np.bincount(net_pin, minlength=count))]).astype(np.int64)
        a, b = of[source].astype(np.int64), of[target].astype(np.int64)
        edge = np.unique(np.stack([a[a != b], b[a != b]], 1), axis=0)
        before_ptr, before = _csr(edge[:, 1], edge[:, 0], count)
        after_ptr, after = _csr(edge[:, 0], edge[:, 1], count)
        size = np.bincount(of, w.size, count)
        fast = np.where(size <= w.limit, fast, np.inf)
        if (stuck := np.flatnonzero(np.isinf(fast) & np.isinf(slow))).size:
            node = w.called(int(np.flatnonzero(of == stuck[0])[0]))
            raise Infeasible(f"The nodes that must stay with {node} fit no machine.", "Raise the limit, or give a core.")
        return cls(of, fast, slow, size, net_ptr, net_pin, np.array(costs, float), own_ptr, net[by].astype(np.int64), before_ptr, before,
                   after_ptr, after, w.accelerators, w.cores, float(w.limit))

    @property
    def machines(self) -> int:
        return self.accelerators + self.cores

    @property
    def nets(self) -> Nets:
        return Nets(self.fast, self.slow, self.size, self.net_ptr, self.net_pin, self.net_cost, self.own_ptr, self.own_net, self.accelerators,
                    self.machines, self.limit)

    def order(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """A topological order of an acyclic grouping, depth first (what just became ready goes first); with `rng` ties fall at random."""
        return _depth_first(np.diff(self.before_ptr), self.after_ptr, self.after, rng)

    def breadth_first(self) -> np.ndarray:
        """The topological order that takes groups first come, first served (Kahn 1962)."""
        waits = np.diff(self.before_ptr)
        order = [int(g) for g in np.flatnonzero(waits == 0)]
        for g in order:
            for h in self.after[self.after_ptr[g]: self.after_ptr[g + 1]].tolist():
                waits[h] -= 1
                if waits[h] == 0:
                    order.append(h)
        return np.array(order, np.int64)

    def late(self) -> np.ndarray:
        """As `order`, but from the end: a group comes just before what reads it, so that weights do not come first."""
        return _depth_first(np.diff(self.after_ptr), self.before_ptr, self.before)[::-1].copy()

    def lean(self) -> np.ndarray:
        """i8[G]: the group that each may be merged into at no loss: a source with one reader, free on a core and no dearer on an accelerator than its
        transfer. Exact where memory cannot bind, otherwise a good guess.
        """
        into = np.arange(len(self))
        for g in range(len(self)):
            nets = self.own_net[self.own_ptr[g]: self.own_ptr[g + 1]]
            readers = self.after[self.after_ptr[g]: self.after_ptr[g + 1]]
            if self.before_ptr[g] == self.before_ptr[g + 1] and len(readers) == 1 and len(nets) <= 1 and self.slow[g] == 0:
                if self.fast[g] <= self.net_cost[nets].sum() and self.size[g] + self.size[readers[0]] <= self.limit:
                    into[g] = readers[0]
        for g in range(len(self)):                                      # follow to the end
            while into[into[g]] != into[g]:
                into[g] = into[into[g]]
        return into


def _unite(count: int, color: np.ndarray, merged: np.ndarray | None) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if merged is None:
        return np.unique(color, return_inverse=True)[1].astype(np.int64)
    links = [(np.arange(count), color.astype(np.int64)), (np.arange(count), int(color.max(initial=0)) + 1 + merged.astype(np.int64))]
    row, col = np.concatenate([r for r, _ in links]), count + np.concatenate([c for _, c in links])
    total = int(col.max(initial=0)) + 1
    label = connected_components(coo_matrix((np.ones(len(row)), (row, col)), (total, total)), directed=False)[1][:count]
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def _flow(w: PipelineWorkload, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges within the forward pass and within the backward pass, the latter turned round if that leaves more groups: backward nodes ride with their
    forward ones, and what is contiguous in a graph is so in its reverse.
    """
    ahead, back = ~w.backward[w.source] & ~w.backward[w.target], w.backward[w.source] & w.backward[w.target]
    straight = w.source[ahead | back], w.target[ahead | back]
    if not back.any():
        return straight
    turned = np.concatenate([w.source[ahead], w.target[back]]), np.concatenate([w.target[ahead], w.source[back]])
    return max((turned, straight), key=lambda ends: int(_components(of, *ends).max(initial=0)))


def _components(of: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = int(of.max(initial=-1)) + 1
    graph = coo_matrix((np.ones(len(source)), (of[source], of[target])), (count, count))
    return connected_components(graph, connection="strong")[1].astype(np.int64)[of]


def _nets(w: PipelineWorkload, of: np.ndarray) -> tuple[list[tuple[int, ...]], list[float]]:
    readers: list[set[int]] = [{int(g)} for g in of]
    for u, v in zip(w.source.tolist(), w.target.tolist(), strict=True):
        readers[u].add(int(of[v]))
    found: dict[tuple[int, ...], float] = {}
    for u, groups in enumerate(readers):
        if len(groups) > 1 and w.cost[u] > 0:
            key = tuple(sorted(groups))
            found[key] = found.get(key, 0.0) + float(w.cost[u])
    return list(found), list(found.values())


def _depth_first(waits: np.ndarray, ptr: np.ndarray, then: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """Groups, each once it waits for none, what just became ready first; `waits` i8[G] is counted down, `then` lists who waits for whom."""
    ready, done = [int(g) for g in np.flatnonzero(waits == 0)], []
    while ready:
        if rng is not None and len(ready) > 1 and rng.random() < 0.3:
            i = int(rng.integers(len(ready)))
            ready[i], ready[-1] = ready[-1], ready[i]
        g = ready.pop()
        done.append(g)
        for h in then[ptr[g]: ptr[g + 1]].tolist():
            waits[h] -= 1
            if waits[h] == 0:
                ready.append(h)
    return np.array(done, np.int64)


def _csr(row: np.ndarray, value: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    by = np.argsort(row, kind="stable")
    return np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))]).astype(np.int64), value[by].astype(np.int64)


class Nets(NamedTuple):
    """The arrays of `Groups` that say what a machine carries, for compiled code."""

    fast: np.ndarray
    slow: np.ndarray
    size: np.ndarray
    net_ptr: np.ndarray
    net_pin: np.ndarray
    net_cost: np.ndarray
    own_ptr: np.ndarray
    own_net: np.ndarray
    accelerators: int
    machines: int
    limit: float


class Loads(NamedTuple):
    """What machines carry: machine i8[G] of each group, pins of each net on each machine i4[H, M], load and bytes of each machine f8[M]."""

    machine: np.ndarray
    count: np.ndarray
    load: np.ndarray
    held: np.ndarray


@njit(cache=True)
def loads(nets, machine):  # type: ignore[no-untyped-def]
    """`Loads` of groups on `machine`, which is not copied."""
    count = np.zeros((len(nets.net_ptr) - 1, nets.machines), np.int32)
    for h in range(len(nets.net_ptr) - 1):
        for p in range(nets.net_ptr[h], nets.net_ptr[h + 1]):
            count[h, machine[nets.net_pin[p]]] += 1
    load, held = np.zeros(nets.machines), np.zeros(nets.machines)
    for g in range(len(machine)):
        load[machine[g]] += nets.fast[g] if machine[g] < nets.accelerators else nets.slow[g]
        held[machine[g]] += nets.size[g]
    for h in range(len(nets.net_cost)):
        pins = nets.net_ptr[h + 1] - nets.net_ptr[h]
        for m in range(nets.accelerators):
            if 0 < count[h, m] < pins:
                load[m] += nets.net_cost[h]
    return Loads(machine, count, load, held)


@njit(cache=True)
def supported(nets, g, m):  # type: ignore[no-untyped-def]
    """Whether group g can run on machine m."""
    return np.isfinite(nets.fast[g] if m < nets.accelerators else nets.slow[g])


@njit(cache=True)
def move(nets, s, g, b):  # type: ignore[no-untyped-def]
    """Put group g on machine b; the `Loads` s follow."""
    machine, count, load, held = s.machine, s.count, s.load, s.held
    a = machine[g]
    machine[g] = b
    load[a] -= nets.fast[g] if a < nets.accelerators else nets.slow[g]
    load[b] += nets.fast[g] if b < nets.accelerators else nets.slow[g]
    held[a] -= nets.size[g]
    held[b] += nets.size[g]
    for p in range(nets.own_ptr[g], nets.own_ptr[g + 1]):
        h = nets.own_net[p]
        pins = nets.net_ptr[h + 1] - nets.net_ptr[h]
        if a < nets.accelerators:
            if count[h, a] == pins:
                load[a] += nets.net_cost[h]                             # it was whole here
            elif count[h, a] == 1:
                load[a] -= nets.net_cost[h]
        if b < nets.accelerators:
            if count[h, b] == pins - 1:
                load[b] -= nets.net_cost[h]                             # now it is
            elif count[h, b] == 0:
                load[b] += nets.net_cost[h]
        count[h, a] -= 1
        count[h, b] += 1
