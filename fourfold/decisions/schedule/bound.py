"""A cost that no plan can beat, whatever it fuses, places and orders. Every step of the proof is a relaxation.

Nodes stand for tasks. `_bound_terms.py` gives seconds p[n, d] of which a task on d takes at least the sum over its members. So every plan is a
schedule of the single nodes, too: lay each task's members, in topological order, into its time. They run one at a time on their device, after what
they read, and a transfer later where that was made elsewhere. (Where fusion is fixed, the tasks themselves are the nodes.) What bounds such
schedules bounds plans:
 · path: the longest path, quickest devices, nothing sent; once more with fusion looked at stretch by stretch (`_stretches`): between two edges that
   cannot be fused a task pays its launch and the largest of its sums;
 · work: seconds shared among the devices at will (unrelated machines, preemptive). Weights w ≥ 0, Σ w = 1 prove Σ_c min_d w_d · p[c, d] over
   colocation classes c; equal devices need w = 1 / D, unlike ones the best weights that cutting planes find (Kelley 1960);
 · class: what must share a device, on the best one;
 · heads (`_heads`): if v starts at T, every ancestor u that could not reach v by T from another device is on v's own, which runs them one after the
   other: T ≥ h + Σ p of those that start at h or later, for every h; so T is at least this or the least such arrival (Papadimitriou and
   Yannakakis 1990, without duplicates). Tails: the same backwards;
 · windows: what cannot start before h and has t to follow takes all devices from h to the end less t;
 · clusters (`refuted`): were the makespan at most T, any edge u → v with head + p + transfer + p + tail > T would stay on one device, and
   what hangs together by such edges runs there one after the other and must fit its memory; if it cannot by T, the makespan is above T. Under that
   assumption heads and tails grow, since it says who shares v's device.
Latency is at least all of these; throughput the work, the class, and the clusters of edges whose transfer alone would hold a lane for longer
than T. Joules: devices cost the lesser of idle and busy watts for the whole step, and the difference while they work. Memory: one device holds what
the largest class reads, one at least its share of all that is resident, and each node's the bytes that it reads and writes whatever is fused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numba import njit

from fourfold.decisions.schedule import _bound_terms
from fourfold.decisions.schedule._bound_terms import united
from fourfold.decisions.schedule.instance import ScheduleInstance
from fourfold.graph import OPAQUE, VIEW

_LOOKS = 4e7                                                           # ancestors² × nodes that heads look at
_NEVER = 1e30                                                          # s on a device that cannot run it, where inf · 0 would not be a number
_CAREFUL = 4000                                                        # nodes up to which clusters and heads are worked out together


@dataclass(frozen=True, eq=False)
class Nodes:
    """What is scheduled, in topological order: p f8[N, D] s (inf: cannot run there), edges src → dst by dst with `sure` s of transfer that
    cannot be avoided, `away` s that it takes where the ends are on different devices, `lane` s that a lane is held then; `kin` i8[N], equal = on
    one device.
    """

    p: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    sure: np.ndarray
    away: np.ndarray
    lane: np.ndarray
    kin: np.ndarray
    roots: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None     # node, resident thing, its bytes
    rooms: np.ndarray = field(default_factory=lambda: np.zeros(0))     # [D] B
    stretch: float = 0.0                                               # the path with fusion looked at

    def __len__(self) -> int:
        return len(self.p)


def nodes_of(problem: ScheduleInstance) -> Nodes:
    """The problem as nodes: ops with their charges, or tasks where fusion is fixed."""
    g, stretch = problem.graph, 0.0
    if problem.group is not None:
        tasks = problem.tasks(problem.group)
        p, task = tasks.seconds, tasks.group.astype(np.int64)
        src, dst, value = (part.astype(np.int64) for part in tasks.edges())
        size = tasks.size[value]
    else:
        duty = _bound_terms.duties(problem)
        p, launch, parts = _bound_terms.charges(problem, duty)
        task, src, dst = np.arange(len(g)), duty.src, duty.dst
        size = np.minimum(g.size, g.size[g.alias])[duty.value]
        least = np.where(problem.able[None], parts, np.inf).min(axis=2)
        by = np.argsort(dst, kind="stable")
        stretch = _stretches(g.fusion, launch.min(axis=1), least, _pointer(dst, len(g)), src[by], duty.apart[by])
    kin, place = _kin(problem, task, len(p))
    system, devices = problem.system, range(len(problem.system))
    pairs = [(a, b) for a in devices for b in devices if a != b]
    if place is not None:
        p = np.where(np.arange(len(system)) == place[:, None], p, np.inf)
    wait, pace = (np.array([[route(a, b) for b in devices] for a in devices]) for route in (
        lambda a, b: system.route(a, b).latency if a != b else 0.0, lambda a, b: 1.0 / system.route(a, b).bandwidth if a != b else 0.0))
    if not pairs:
        away, lane, sure = np.full(len(src), np.inf), np.full(len(src), np.inf), np.zeros(len(src))
    elif place is not None:
        a, b = place[src], place[dst]
        lane = np.where(a == b, np.inf, size * pace[a, b])
        away = np.where(a == b, np.inf, wait[a, b] + lane)
        sure = np.where(a == b, 0.0, away)
    else:
        kinds = np.unique([[wait[pair], pace[pair]] for pair in pairs], axis=0)
        away, lane = np.full(len(src), np.inf), size * kinds[:, 1].min()
        for latency, rate in kinds:
            away = np.minimum(away, latency + size * rate)
        sure = np.zeros(len(src))
    order = _topological(len(p), src, dst)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    src, dst = rank[src], rank[dst]
    by = np.lexsort((src, dst))
    reader = np.repeat(np.arange(len(g)), np.diff(g.in_ptr))
    free = problem.free[g.in_val]
    roots = (rank[task[reader[free]]], g.alias[g.in_val[free]].astype(np.int64), g.size) if problem.bounded else None
    return Nodes(p[order], src[by], dst[by], sure[by], away[by], lane[by], kin[order], roots, np.array([d.memory for d in system.devices]), stretch)


def _kin(problem: ScheduleInstance, task: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(label of nodes that share a device whatever the plan, their fixed place or None)."""
    label = problem.label
    kin = united(count + int(label.max()) + 1, task, count + label)[:count]
    if problem.place is None:
        return kin, None
    place = np.zeros(count, np.int64)
    place[task] = problem.place
    return np.unique(place, return_inverse=True)[1].reshape(-1), place


def _pointer(key: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(key, minlength=count))]).astype(np.int64)


def _topological(count: int, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    if (src < dst).all():
        return np.arange(count)
    by = np.argsort(src, kind="stable")
    found = _order(_pointer(src, count), dst[by], np.bincount(dst, minlength=count))
    return found if len(found) == count else np.concatenate([found, np.setdiff1d(np.arange(count), found)])


@njit(cache=True)
def _order(ptr, succ, waiting):  # type: ignore[no-untyped-def]
    order, tail, head = np.empty(len(waiting), np.int64), 0, 0
    for n in range(len(waiting)):
        if waiting[n] == 0:
            order[tail] = n
            tail += 1
    while head < tail:
        for e in range(ptr[order[head]], ptr[order[head] + 1]):
            waiting[succ[e]] -= 1
            if waiting[succ[e]] == 0:
                order[tail] = succ[e]
                tail += 1
        head += 1
    return order[:tail]


@njit(cache=True)
def _stretches(fusion, launch, parts, ptr, pred, apart):  # type: ignore[no-untyped-def]
    """s of the dearest path. On a path a task's nodes follow one another; it ends before an edge whose ends are apart, if not sooner, which
    costs no less. Its launch is that of its first node that is no view, then come its sums of parts 0, 1, 2, or one part 3."""
    nodes, sums = len(fusion), len(parts) - 1
    with_sum, waiting = np.full((nodes, sums), -np.inf), np.full(nodes, -np.inf)     # after n: launched, with so much of each sum; with no part yet
    picked, views, done = np.full(nodes, -np.inf), np.full(nodes, -np.inf), np.zeros(nodes)
    longest = 0.0
    for n in range(nodes):
        begin = 0.0
        for e in range(ptr[n], ptr[n + 1]):
            if apart[e]:
                begin = max(begin, done[pred[e]])
        for e in range(ptr[n], ptr[n + 1]):
            if not apart[e]:
                begin = max(begin, views[pred[e]])
        if fusion[n] == OPAQUE:
            done[n] = begin + launch[n] + parts[0, n]
        else:
            if fusion[n] == VIEW:
                views[n] = begin
            else:
                begin += launch[n]
            for k in range(sums):
                best = begin
                for e in range(ptr[n], ptr[n + 1]):
                    if not apart[e]:
                        best = max(best, with_sum[pred[e], k])
                with_sum[n, k] = best + parts[k, n]
                done[n] = max(done[n], with_sum[n, k])
            waiting[n] = begin
            for e in range(ptr[n], ptr[n + 1]):
                if not apart[e]:
                    waiting[n] = max(waiting[n], waiting[pred[e]])
                    picked[n] = max(picked[n], picked[pred[e]])
            picked[n] = max(picked[n], waiting[n] + parts[sums, n])
            done[n] = max(done[n], picked[n])
        longest = max(longest, done[n])
    return longest


@njit(cache=True)
def _heads(p, ptr, pred, sure, away, kin, looks):  # type: ignore[no-untyped-def]
    """f8[N] s before which no node starts; p f8[N], edges by target, at most `looks` ancestors of a node looked at."""
    nodes = len(p)
    head, stamp = np.zeros(nodes), np.full(nodes, -1)
    here, there = np.zeros(nodes), np.zeros(nodes)                     # from the start of x to that of v, where x is on v's device or on another
    heap, found, arrival = np.empty(nodes, np.int64), np.empty(looks, np.int64), np.empty(looks)
    since, from_head = np.empty(looks), np.empty(looks)
    for v in range(nodes):
        best, inputs = 0.0, 0
        for e in range(ptr[v], ptr[v + 1]):
            u = pred[e]
            best = max(best, head[u] + p[u] + sure[e])
            inputs += u != pred[ptr[v]]
        if inputs == 0:                                                # one producer: it is here or, later, elsewhere
            head[v] = best
            continue
        count, size = 0, 0
        for e in range(ptr[v], ptr[v + 1]):
            u = pred[e]
            if stamp[u] != v:
                stamp[u], here[u], there[u] = v, 0.0, 0.0
                i = size                                               # onto a heap, last node first
                size += 1
                while i > 0 and heap[(i - 1) >> 1] < u:
                    heap[i] = heap[(i - 1) >> 1]
                    i = (i - 1) >> 1
                heap[i] = u
            here[u] = max(here[u], p[u] + sure[e])
            there[u] = max(there[u], p[u] + away[e])
        while size > 0 and count < looks:
            x = heap[0]
            size -= 1
            last, i = heap[size], 0
            while True:
                child = 2 * i + 1
                if child >= size:
                    break
                if child + 1 < size and heap[child + 1] > heap[child]:
                    child += 1
                if heap[child] <= last:
                    break
                heap[i] = heap[child]
                i = child
            heap[i] = last
            found[count] = x
            arrival[count] = np.inf if kin[x] == kin[v] else head[x] + there[x]
            count += 1
            for e in range(ptr[x], ptr[x + 1]):
                u = pred[e]
                if stamp[u] != v:
                    stamp[u], here[u], there[u] = v, 0.0, 0.0
                    i = size
                    size += 1
                    while i > 0 and heap[(i - 1) >> 1] < u:
                        heap[i] = heap[(i - 1) >> 1]
                        i = (i - 1) >> 1
                    heap[i] = u
                here[u] = max(here[u], p[u] + sure[e] + here[x])
                there[u] = max(there[u], p[u] + min(away[e] + here[x], there[x]))
        order = np.argsort(-arrival[:count])
        serial = 0.0
        for k in range(count):
            x = found[order[k]]
            if arrival[order[k]] <= best:
                break
            # one after the other on v's device, those that start at since[i] or later from there on
            mine = head[x] + p[x]
            for i in range(k):
                if since[i] <= head[x]:
                    from_head[i] += p[x]
                    serial = max(serial, from_head[i])
                if since[i] >= head[x]:
                    mine += p[found[order[i]]]
            since[k], from_head[k] = head[x], mine
            serial = max(serial, mine)
            best = max(best, min(serial, arrival[order[k]]))
            if serial >= arrival[order[k]]:
                break
        head[v] = best
    return head


@njit(cache=True)
def _together(kin, src, dst, least, limit):  # type: ignore[no-untyped-def]
    """i8[N]: components of nodes of one kin and of edges that cannot be cut within `limit`."""
    nodes, used = len(kin), len(kin)
    first = np.full(nodes, -1)
    a, b = np.empty(nodes + len(src), np.int64), np.empty(nodes + len(src), np.int64)
    for n in range(nodes):
        if first[kin[n]] < 0:
            first[kin[n]] = n
        a[n], b[n] = n, first[kin[n]]
    for e in range(len(src)):
        if least[e] > limit:
            a[used], b[used] = src[e], dst[e]
            used += 1
    return united(nodes, a[:used], b[:used])


@njit(cache=True)
def _one_by_one(p, head, tail, by_head, label):  # type: ignore[no-untyped-def]
    """f8[N] by label: s until all of a label is done where one device, of seconds p f8[N], runs it, head and tail included."""
    total, after, longest = np.zeros(len(p)), np.full(len(p), np.inf), np.zeros(len(p))
    for n in by_head:                                                  # falling heads
        c = label[n]
        total[c] += p[n]
        after[c] = min(after[c], tail[n])
        longest[c] = max(longest[c], head[n] + total[c] + after[c])
    return longest


class _Prover:
    """Heads, tails and what they refute."""

    def __init__(self, nodes: Nodes, throughput: bool = False) -> None:
        self.nodes, count = nodes, len(nodes)
        self.least, self.throughput = nodes.p.min(axis=1), throughput
        self.columns = np.unique(nodes.p, axis=1)
        self.ptr, turned = _pointer(nodes.dst, count), np.lexsort((-nodes.dst, -nodes.src))
        self.back = turned, _pointer(count - 1 - nodes.src, count), (count - 1 - nodes.dst)[turned]
        self.looks = int(np.clip((_LOOKS / max(1, count)) ** 0.5, 8, min(count, 400)) if count > 8 else max(1, count))
        self.weight = weights(self.columns_by(nodes.kin))
        self.serial = float(np.where(np.isfinite(nodes.p), nodes.p, 0.0).max(axis=1).sum())
        self.priced = (np.where(np.isfinite(nodes.p), nodes.p, _NEVER) * self.weight).min(axis=1)

    def columns_by(self, label: np.ndarray) -> np.ndarray:
        """f8[C, D] seconds of each label."""
        names, back = np.unique(label, return_inverse=True)
        total = np.zeros((len(names), self.nodes.p.shape[1]))
        np.add.at(total, back.reshape(-1), self.nodes.p)
        return total

    def ends(self, kin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(heads, tails) where what has one `kin` shares a device."""
        if self.throughput:
            return np.zeros(len(self.nodes)), np.zeros(len(self.nodes))
        n, (turned, ptr, pred) = self.nodes, self.back
        head = _heads(self.least, self.ptr, n.src, n.sure, n.away, kin, self.looks)
        tail = _heads(self.least[::-1].copy(), ptr, pred, n.sure[turned], n.away[turned], kin[::-1].copy(), self.looks)[::-1]
        return head, tail

    def windows(self, head: np.ndarray, tail: np.ndarray) -> float:
        """max over (h, t) of h + work of what starts at h or later and has t or more to follow, on all devices + t."""
        edges = [np.unique(np.quantile(part, np.linspace(0, 1, 49), method="lower")) for part in (head, tail)]
        i, j = (np.searchsorted(edge, part, side="right") - 1 for edge, part in zip(edges, (head, tail), strict=True))
        table = np.bincount(i * len(edges[1]) + j, self.priced, len(edges[0]) * len(edges[1])).reshape(len(edges[0]), len(edges[1]))
        table = table[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]
        return float(np.where(table > 0, edges[0][:, None] + table + edges[1][None], 0.0).max())

    def clusters(self, head: np.ndarray, tail: np.ndarray, limit: float) -> tuple[bool, np.ndarray]:
        """(whether what must share a device within `limit` cannot, its labels)."""
        n = self.nodes
        least = n.lane if self.throughput else head[n.src] + self.least[n.src] + n.away + self.least[n.dst] + tail[n.dst]
        label = _together(n.kin, n.src, n.dst, least, limit)
        by_head = np.argsort(-head, kind="stable")
        longest = np.min([_one_by_one(column, head, tail, by_head, label) for column in self.columns.T.copy()], axis=0)
        return bool(longest.max() > limit) or self.crowded(label), label

    def crowded(self, label: np.ndarray) -> bool:
        """Whether a label reads more than any device holds."""
        if self.nodes.roots is None:
            return False
        node, root, size = self.nodes.roots
        if size[np.unique(root)].sum() <= self.nodes.rooms.max(initial=0.0):
            return False
        pair = np.unique(label[node] * len(size) + root)
        return bool(np.bincount(pair // len(size), size[pair % len(size)]).max(initial=0.0) > self.nodes.rooms.max())


def _search(least: float, most: float, refuted: Callable[[float], bool], steps: int) -> float:
    """The largest value tried between `least` and `most` that is refuted as a makespan, else `least`."""
    for _ in range(steps):
        if not most > least * (1 + 1e-4):
            break
        middle = (least * most) ** 0.5 if least > 0 else most / 2
        least, most = (middle, most) if refuted(middle) else (least, middle)
    return least


def weights(table: np.ndarray) -> np.ndarray:
    """w f8[D] ≥ 0, Σ w = 1, that (nearly) maximise Σ_c min_d w_d · table[c, d] (inf: cannot run there). Equal devices get equal weights."""
    devices = table.shape[1]
    able = np.where(np.isfinite(table), table, _NEVER)
    if (able == able[:, :1]).all():
        return np.full(devices, 1.0 / devices)
    from scipy.optimize import linprog

    kinds, back, twins = np.unique(able, axis=1, return_inverse=True, return_counts=True)
    back, many = back.reshape(-1), kinds.shape[1]
    best, weight, value = -1.0, np.full(many, 1.0 / devices), np.full(many, 1.0 / devices)
    cuts: list[np.ndarray] = []
    for _ in range(40):
        priced = kinds * value
        chosen = priced.argmin(axis=1)
        bound = float(priced[np.arange(len(kinds)), chosen].sum())
        if bound > best:
            best, weight = bound, value
        cuts.append(np.bincount(chosen, kinds[np.arange(len(kinds)), chosen], many))       # bound ≤ cut · w for every w
        scale = max(1e-300, max(float(cut.max()) for cut in cuts))
        found = linprog(np.append(np.zeros(many), -1.0), np.column_stack([-np.array(cuts) / scale, np.ones(len(cuts))]), np.zeros(len(cuts)),
                        np.append(twins, 0.0)[None], [1.0], bounds=[(0, 1)] * many + [(None, None)])
        if found.x is None or -found.fun * scale <= best * (1 + 3e-5):
            break
        value = np.maximum(found.x[:-1], 0.0)
        value = 0.7 * value / max(1e-12, float((value * twins).sum())) + 0.3 * weight      # between the cuts' corner and the best so far
    return weight[back] / float(weight[back].sum())


def work(table: np.ndarray) -> float:
    """The least that the busiest device can do of `table` f8[C, D], parts of a row shared at will; proven by the weights found."""
    return float((np.where(np.isfinite(table), table, _NEVER) * weights(table)).min(axis=1).sum())


def _busiest(prover: _Prover, table: np.ndarray) -> float:
    """s that the busiest device works: all of it shared, or the largest class."""
    return max(float((np.where(np.isfinite(table), table, _NEVER) * prover.weight).min(axis=1).sum()), float(table.min(axis=1).max(initial=0.0)))


def latency(nodes: Nodes) -> float:
    """s of the latency bound."""
    prover = _Prover(nodes)
    head, tail = prover.ends(nodes.kin)
    table = prover.columns_by(nodes.kin)
    best = max(nodes.stretch, float((head + prover.least + tail).max()), _busiest(prover, table), prover.windows(head, tail))
    serial = best + prover.serial + float(nodes.away[np.isfinite(nodes.away)].max(initial=0.0))
    best = _search(best, serial, lambda limit: prover.clusters(head, tail, limit)[0], 24)

    def refuted(limit: float) -> bool:
        early, late = head, tail
        for _ in range(3):
            over, label = prover.clusters(early, late, limit)
            if over:
                return True
            new = tuple(np.maximum(one, other) for one, other in zip(prover.ends(label), (early, late), strict=True))
            if max(float((new[0] + prover.least + new[1]).max()), prover.windows(*new)) > limit:
                return True
            if np.array_equal(new[0], early) and np.array_equal(new[1], late):
                break
            early, late = new
        return False

    return _search(best, min(serial, 2 * best), refuted, 7) if len(nodes) <= _CAREFUL and len(nodes.rooms) > 1 else best


def throughput(nodes: Nodes) -> float:
    """s of the throughput bound."""
    prover = _Prover(nodes, throughput=True)
    best, still = _busiest(prover, prover.columns_by(nodes.kin)), np.zeros(len(nodes))
    serial = best + prover.serial + float(nodes.lane[np.isfinite(nodes.lane)].max(initial=0.0))
    return _search(best, serial, lambda limit: prover.clusters(still, still, limit)[0], 24)


def memory(problem: ScheduleInstance) -> float:
    """B of the memory bound."""
    best = max(int(problem.stands.max()), -(-int(problem.resident.sum()) // len(problem.system)))
    if problem.group is not None:
        return float(best)
    return float(max(best, int((problem.stands[problem.label] + _bound_terms.duties(problem).held).max())))


def least(problem: ScheduleInstance) -> float:
    """The bound in the problem's unit, a hair below what the arithmetic gives (sums in another order)."""
    if problem.objective == "memory":
        return memory(problem)
    nodes = nodes_of(problem)
    if problem.objective == "throughput":
        return (1 - 1e-9) * throughput(nodes)
    soonest = latency(nodes)
    if problem.objective == "energy":
        devices = problem.system.devices
        more = np.array([max(0.0, device.busy - device.idle) for device in devices])
        spent = float(np.where(np.isfinite(nodes.p), np.where(np.isfinite(nodes.p), nodes.p, 0.0) * more, np.inf).min(axis=1).sum())
        return (1 - 1e-9) * (sum(min(device.idle, device.busy) for device in devices) * soonest + spent)
    return (1 - 1e-9) * soonest
