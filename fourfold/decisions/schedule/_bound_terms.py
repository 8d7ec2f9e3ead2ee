"""What every plan must pay, node by node, however it fuses: charges f8[N, D] such that a task on device d takes at least the sum over its members.

Apart. A path from a to b lies in one group with them, or leaves it and comes back (a cycle). So a and b are in different groups wherever their
kinds clash (opaque; two contractions; a contraction and a reduction) or a path between them holds an opaque op, a contraction that reads what is
computed on the way, or, after a contraction, a reduction (`separated`, exact over all paths, 64 targets at a time).

Bytes. Where the producer of a storage is apart from one of its readers, or the program returns it, the producer's task writes it, once; where a
reader is apart from the producer (or the storage is there from the start), the reader's task reads it. Readers that might be in one group
share the charge: the largest of each cluster pays, or each contraction, of which a group has one.

Clusters. Nodes that might be in one group directly are united; a group lies in one cluster. A task takes launch + max(arithmetic, bytes moved, cold
parameters, what a contraction alone must wait for): each is a sum over members, so for each cluster and device the one with the largest total is a
valid charge. Launches: a contraction pays its own; a reduction a share of one among the reductions with which a group without contractions
could hold it; other nodes a share among their cluster, where that holds neither. A node never pays more than it takes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from fourfold.cost.roofline import fusing
from fourfold.decisions.schedule.instance import ScheduleInstance
from fourfold.graph import CONTRACTION, INTERMEDIATE, OPAQUE, PARAMETER, REDUCTION, VIEW, Graph
from fourfold.machine import Efficiency

_PAIRS = 1_500_000                                                     # pairs of readers that are looked at; readers of further values are united


@njit(cache=True)
def separated(fusion, succ_ptr, succ, first, second, ptr):  # type: ignore[no-untyped-def]
    """bool [P]: whether a path from first[i] to second[i] holds what no group with both may hold. Pairs by `second`, ptr [N+1]; nodes topological."""
    nodes = len(fusion)
    reach, bad = np.zeros(nodes, np.uint64), np.zeros(nodes, np.uint64)           # one bit a target
    through, reduced = np.zeros(nodes, np.uint64), np.zeros(nodes, np.uint64)     # by views into a contraction; by a reduction
    apart = np.zeros(len(first), np.bool_)
    for low in range(0, nodes, 64):
        high = min(nodes, low + 64)
        lowest = high
        for i in range(ptr[low], ptr[high]):
            lowest = min(lowest, first[i])
        for n in range(high - 1, lowest - 1, -1):
            r = np.uint64(1) << np.uint64(n - low) if n >= low else np.uint64(0)
            b, c, q = np.uint64(0), np.uint64(0), np.uint64(0)
            view = fusion[n] == VIEW
            for e in range(succ_ptr[n], succ_ptr[n + 1]):
                s = succ[e]
                if s >= high:
                    continue
                r |= reach[s]
                b |= bad[s]
                q |= reduced[s]
                into = through[s] if fusion[s] == VIEW else reach[s] if fusion[s] == CONTRACTION else np.uint64(0)
                if fusion[s] == OPAQUE:
                    b |= reach[s]
                elif view:
                    c |= into
                else:
                    b |= into
            if fusion[n] == REDUCTION:
                q = r
            if fusion[n] == CONTRACTION:
                b |= q
            reach[n], bad[n], through[n], reduced[n] = r, b, c, q
        for i in range(ptr[low], ptr[high]):
            apart[i] = (bad[first[i]] >> np.uint64(second[i] - low)) & np.uint64(1)
    return apart


@njit(cache=True)
def united(count, a, b):  # type: ignore[no-untyped-def]
    """i8[count]: the least member of each node's component, edges a – b."""
    parent = np.arange(count)
    for i in range(len(a)):
        x, y = a[i], b[i]
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        while parent[y] != y:
            parent[y] = parent[parent[y]]
            y = parent[y]
        parent[max(x, y)] = min(x, y)
    for n in range(count):
        parent[n] = parent[parent[n]]
    return parent


@dataclass(frozen=True, eq=False)
class Duties:
    """`reads`, `writes`, `params` f8[N] bytes that a node's task moves for it whatever else it holds; `cluster` i8[N], `light` the same without
    contractions; edges src, dst, value along which something is waited for, and whether their ends are `apart`; `held` f8[N] bytes that must be on
    the device of a node while it runs, parameters, inputs and constants aside.
    """

    reads: np.ndarray
    writes: np.ndarray
    params: np.ndarray
    held: np.ndarray
    cluster: np.ndarray
    light: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    value: np.ndarray
    apart: np.ndarray


def _clash(g: Graph, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool: kinds that no group holds both of."""
    one, other = g.fusion[a], g.fusion[b]
    heavy, light = one == CONTRACTION, other == CONTRACTION
    return (one == OPAQUE) | (other == OPAQUE) | (heavy & (light | (other == REDUCTION))) | (light & (one == REDUCTION))


class _Apart:
    """Answers whether pairs a < b are sure to be in different groups, of the pairs that were asked about first."""

    def __init__(self, g: Graph, src: np.ndarray, dst: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.g, nodes = g, len(g)
        order = np.argsort(src, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(src, minlength=nodes))])
        a, b = (np.concatenate(ends).astype(np.int64) for ends in zip(*pairs, strict=True))
        ask = ~_clash(g, a, b)
        by_second = np.sort(b[ask] * nodes + a[ask])
        first, second = by_second % nodes, by_second // nodes
        ptr = np.concatenate([[0], np.cumsum(np.bincount(second, minlength=nodes))])
        self.known, self.found = by_second, separated(g.fusion, start, dst[order], first, second, ptr)

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        clash, key = _clash(self.g, a, b), b.astype(np.int64) * len(self.g) + a
        if not len(self.known):
            return clash
        at = np.minimum(np.searchsorted(self.known, key), len(self.known) - 1)
        return clash | ((self.known[at] == key) & self.found[at])


def duties(problem: ScheduleInstance) -> Duties:
    """What the docstring of this file derives from the graph alone."""
    g = problem.graph
    nodes, values = len(g), len(g.producer)
    node, value = np.repeat(np.arange(nodes), np.diff(g.in_ptr)), g.in_val.astype(np.int64)
    root, free, by = g.alias[value].astype(np.int64), problem.free[value], g.producer[value].astype(np.int64)
    edge = ~free & (by >= 0)
    src, dst = by[edge], node[edge]
    maker = np.where(free, -1, g.producer[root]).astype(np.int64)
    ours = maker >= 0
    one, other, loose = _readers(g, node, value)
    made = by >= 0                                                      # views of what is there from the start tie groups together, too
    apart = _Apart(g, src, dst, [(by[made], node[made]), (maker[ours], node[ours]), (one, other)])
    divided, near, may = apart(src, dst), ~apart(by[made], node[made]), ~apart(one, other)
    a, b = (np.concatenate(ends) for ends in ((by[made][near], one[may], loose[0]), (node[made][near], other[may], loose[1])))
    cluster = united(nodes, a, b)
    plain = (g.fusion[a] != CONTRACTION) & (g.fusion[b] != CONTRACTION)
    light = united(nodes, a[plain], b[plain])
    # bytes
    must = ours.copy()
    must[ours] = apart(maker[ours], node[ours])
    leaves = np.zeros(values, bool)
    leaves[root[must]] = True
    leaves[g.alias[g.outputs]] = True
    leaves &= (g.role == INTERMEDIATE) & (g.producer >= 0)
    writes = np.bincount(g.producer[leaves], g.size[leaves], nodes)
    taken = (must | free) & (g.fusion[node] != VIEW)
    whole = np.minimum(g.size[value], g.size[root])[taken].astype(np.float64)
    pair, back = np.unique(root[taken] * nodes + node[taken], return_inverse=True)
    moved, held = np.zeros(len(pair)), np.zeros(len(pair))
    np.maximum.at(held, back.reshape(-1), whole)
    np.maximum.at(moved, back.reshape(-1), np.minimum(whole, g.reads[node[taken]]))
    root, node = pair // nodes, pair % nodes
    heavy = g.fusion[node] == CONTRACTION
    # readers of a storage in one cluster: the largest pays, or every contraction
    share, back = np.unique(root * nodes + cluster[node], return_inverse=True)
    back = back.reshape(-1)
    order = np.lexsort((-moved, back))
    first = np.zeros(len(pair), bool)
    first[order[np.concatenate([[True], back[order][1:] != back[order][:-1]])] if len(order) else order] = True
    each = np.bincount(back, moved * heavy, len(share)) >= np.bincount(back, moved * first, len(share))
    paid = np.where(each[back], moved * heavy, moved * first)
    from_start = problem.free[root]
    return Duties(np.bincount(node, paid, nodes), writes, np.minimum(g.params, np.bincount(node, paid * (g.role[root] == PARAMETER), nodes)),
                  writes + np.bincount(node, held * ~from_start, nodes), cluster, light, src, dst, value[edge], divided)


def _readers(g: Graph, node: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(a, b) all pairs of readers of one value, a < b, and (c, d) links that join all readers of values with too many pairs for that."""
    order = np.lexsort((node, value))
    reader = node[order].astype(np.int64)
    count = np.bincount(value, minlength=len(g.producer))
    start = np.concatenate([[0], np.cumsum(count)])
    light = np.zeros(len(count), bool)                                  # contractions alone are never in one group
    light[value[g.fusion[node] != CONTRACTION]] = True
    several = np.flatnonzero((count > 1) & light)
    several = several[np.argsort(count[several], kind="stable")]
    fits = np.cumsum(count[several] * (count[several] - 1) // 2) <= _PAIRS
    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(count[several[fits]]).tolist():
        i, j = np.triu_indices(size, 1)
        begin = start[several[fits & (count[several] == size)]]
        first.append(reader[(begin[:, None] + i).ravel()])
        second.append(reader[(begin[:, None] + j).ravel()])
    links = [np.arange(int(start[v]), int(start[v + 1]) - 1) for v in several[~fits].tolist()]
    chain = np.concatenate(links) if links else np.zeros(0, np.int64)
    return np.concatenate(first), np.concatenate(second), (reader[chain], reader[chain + 1])


def charges(problem: ScheduleInstance, duty: Duties) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(charges f8[N, D]; launches f8[N, D] that the task of a node pays at least; parts f8[4, N, D] of which a task pays the largest of the sums of
    the first three and of any single one of the last, besides its launch). Where a device cannot run a node: charges inf.
    """
    g, prices, able = problem.graph, problem.prices, problem.able
    nodes, devices = able.shape
    heavy, opaque, view, reduces = (g.fusion == kind for kind in (CONTRACTION, OPAQUE, VIEW, REDUCTION))
    launch, parts = np.zeros(able.shape), np.zeros((4, *able.shape))
    moved = duty.reads + duty.writes
    for d, device in enumerate(problem.system.devices):
        least = prices.launch[:, d]
        if (fused := device.efficiency.get("fused")) is not None and fused.launch is not None:
            least = np.where(heavy | opaque, least, np.minimum(least, fused.launch))
        launch[:, d] = np.where(view, 0.0, least)
        curve = fusing(device)
        work, cold = np.where(view, 0.0, prices.arithmetic[:, d]), prices.cold(device, curve, duty.params)
        best_share = max(share for _, share in curve.bandwidth)
        # a group moves this and perhaps more: the best share at this size or above
        steps = sorted(curve.bandwidth)
        above = np.maximum.accumulate([share for _, share in steps][::-1])[::-1]
        later = np.append(above, 0.0)[np.searchsorted([size for size, _ in steps], moved)]
        own = np.maximum(Efficiency.at(curve.bandwidth, np.maximum(moved, 1.0)), later)
        alone = np.where(able[:, d], prices.alone[:, d] - prices.launch[:, d], 0.0)
        single = np.maximum(np.maximum(work, cold), moved / (device.bandwidth * own))
        for part, seconds in enumerate((work, moved / (device.bandwidth * best_share), cold, single)):
            parts[part, :, d] = np.where(opaque, alone, np.minimum(seconds, alone))
    counted = parts.copy()
    counted[3, ~(heavy | opaque)] = 0.0                                 # of a group's nodes at most one has a last part
    total = np.stack([[np.bincount(duty.cluster, counted[part, :, d], nodes) for d in range(devices)] for part in range(4)])
    best = total.argmax(axis=0).T[duty.cluster]                         # [N, D]
    chosen = np.take_along_axis(counted, best[None], axis=0)[0]
    with_heavy = np.bincount(duty.cluster, heavy, nodes)[duty.cluster] > 0
    peers = np.bincount(duty.light, reduces, nodes)[duty.light]
    any_reduces = np.bincount(duty.cluster, reduces, nodes)[duty.cluster] > 0
    others = np.bincount(duty.cluster, ~view, nodes)[duty.cluster]
    share = np.where(heavy | opaque, 1.0, 0.0)
    share = np.where(reduces, 1 / np.clip(peers, 1, problem.most), share)
    share = np.where(~with_heavy & ~any_reduces & ~heavy & ~opaque & ~view, 1 / np.clip(others, 1, problem.most), share)
    return np.where(able, chosen + share[:, None] * launch, np.inf), launch, parts
