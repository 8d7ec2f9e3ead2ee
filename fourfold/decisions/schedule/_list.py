"""List scheduling on plain arrays: ranks, and the insertion of tasks into the devices' idle gaps. What HEFT, CPOP, PEFT and METIS share.

T tasks on D devices: seconds f8[T, D] (inf: cannot run there), edges in CSR by successor and by predecessor with bytes; a transfer of b bytes from
a to
c takes wait[a, c] + b · pace[a, c] s and no transfer waits for another. Tasks of one `unit` share a device; `held` bytes of each task stay on its
device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

SCAN = 512                                                            # gaps looked at before a task goes to the end of the line


@dataclass(frozen=True)
class Dag:
    """What the kernels read. `order` is a topological order of the tasks."""

    seconds: np.ndarray
    succ_ptr: np.ndarray
    succ: np.ndarray
    succ_bytes: np.ndarray
    pred_ptr: np.ndarray
    pred: np.ndarray
    pred_bytes: np.ndarray
    order: np.ndarray
    wait: np.ndarray
    pace: np.ndarray
    unit: np.ndarray
    held: np.ndarray
    room: np.ndarray

    @classmethod
    def of(cls, seconds: np.ndarray, src: np.ndarray, dst: np.ndarray, size: np.ndarray, wait: np.ndarray, pace: np.ndarray,
           unit: np.ndarray | None = None, held: np.ndarray | None = None, room: np.ndarray | None = None) -> Dag:
        """From edges src[e] → dst[e] of size[e] bytes."""
        tasks, devices = seconds.shape
        forward, backward = np.argsort(src, kind="stable"), np.argsort(dst, kind="stable")
        succ_ptr, pred_ptr = (np.concatenate([[0], np.cumsum(np.bincount(end, minlength=tasks))]).astype(np.int64) for end in (src, dst))
        succ, pred = dst[forward].astype(np.int64), src[backward].astype(np.int64)
        return cls(np.ascontiguousarray(seconds, np.float64), succ_ptr, succ, size[forward].astype(np.float64), pred_ptr, pred,
                   size[backward].astype(np.float64), kahn(succ_ptr, succ, pred_ptr), wait.astype(np.float64), pace.astype(np.float64),
                   np.arange(tasks) if unit is None else unit.astype(np.int64), np.zeros(tasks) if held is None else held.astype(np.float64),
                   np.full(devices, np.inf) if room is None else room.astype(np.float64))

    @property
    def mean(self) -> np.ndarray:
        """f8[T] seconds of a task over the devices that can run it."""
        able = np.isfinite(self.seconds)
        return np.where(able, self.seconds, 0.0).sum(1) / np.maximum(able.sum(1), 1)

    @property
    def transfer(self) -> tuple[float, float]:
        """Mean latency and seconds per byte over pairs of different devices."""
        away = ~np.eye(len(self.wait), dtype=bool)
        return (float(self.wait[away].mean()), float(self.pace[away].mean())) if away.any() else (0.0, 0.0)


@njit(cache=True)
def kahn(succ_ptr, succ, pred_ptr):  # type: ignore[no-untyped-def]
    """A topological order, first come first served (Kahn 1962); shorter than T where there is a cycle."""
    tasks = len(succ_ptr) - 1
    left = pred_ptr[1:] - pred_ptr[:-1]
    order = np.empty(tasks, np.int64)
    tail = 0
    for t in range(tasks):
        if left[t] == 0:
            order[tail] = t
            tail += 1
    head = 0
    while head < tail:
        t = order[head]
        head += 1
        for e in range(succ_ptr[t], succ_ptr[t + 1]):
            s = succ[e]
            left[s] -= 1
            if left[s] == 0:
                order[tail] = s
                tail += 1
    return order[:tail]


@njit(cache=True)
def upward(mean, succ_ptr, succ, succ_bytes, order, wait, pace):  # type: ignore[no-untyped-def]
    """rank_u(i) = w_i + max_j (c_ij + rank_u(j)) over successors j (Topcuoglu et al. 2002, eq. 8)."""
    rank = np.zeros(len(mean))
    for k in range(len(order) - 1, -1, -1):
        t = order[k]
        best = 0.0
        for e in range(succ_ptr[t], succ_ptr[t + 1]):
            best = max(best, wait + succ_bytes[e] * pace + rank[succ[e]])
        rank[t] = mean[t] + best
    return rank


@njit(cache=True)
def downward(mean, pred_ptr, pred, pred_bytes, order, wait, pace):  # type: ignore[no-untyped-def]
    """rank_d(i) = max_j (rank_d(j) + w_j + c_ji) over predecessors j (Topcuoglu et al. 2002, eq. 10)."""
    rank = np.zeros(len(mean))
    for t in order:
        for e in range(pred_ptr[t], pred_ptr[t + 1]):
            rank[t] = max(rank[t], rank[pred[e]] + mean[pred[e]] + wait + pred_bytes[e] * pace)
    return rank


@njit(cache=True)
def optimistic(seconds, succ_ptr, succ, succ_bytes, order, wait, pace):  # type: ignore[no-untyped-def]
    """OCT(i, p) = max_j min_q (OCT(j, q) + w(j, q) + [p ≠ q] c_ij): f8[T, D] (Arabnejad and Barbosa 2014, eq. 5)."""
    tasks, devices = seconds.shape
    table = np.zeros((tasks, devices))
    for k in range(tasks - 1, -1, -1):
        t = order[k]
        for e in range(succ_ptr[t], succ_ptr[t + 1]):
            s, move = succ[e], wait + succ_bytes[e] * pace
            away = np.inf
            for q in range(devices):
                away = min(away, table[s, q] + seconds[s, q])
            for p in range(devices):
                table[t, p] = max(table[t, p], min(away + move, table[s, p] + seconds[s, p]))
    return table


@njit(cache=True)
def _sift(heap, count, key, task):  # type: ignore[no-untyped-def]
    """Add `task` to a binary heap, greatest key first, then lowest number."""
    i = count
    heap[i] = task
    while i:
        up = (i - 1) // 2
        a, b = heap[i], heap[up]
        if key[a] > key[b] or (key[a] == key[b] and a < b):
            heap[i], heap[up] = b, a
            i = up
        else:
            break


@njit(cache=True)
def _pull(heap, count, key):  # type: ignore[no-untyped-def]
    top = heap[0]
    count -= 1
    heap[0] = heap[count]
    i = 0
    while True:
        best = i
        for child in (2 * i + 1, 2 * i + 2):
            if child < count:
                a, b = heap[child], heap[best]
                if key[a] > key[b] or (key[a] == key[b] and a < b):
                    best = child
        if best == i:
            return top
        heap[i], heap[best] = heap[best], heap[i]
        i = best


@njit(cache=True)
def _gap(begin, end, count, ready, length, scan):  # type: ignore[no-untyped-def]
    """(start, place in line) of the first idle gap at or after `ready` that holds `length` seconds."""
    low, high = 0, count
    while low < high:                                                  # first interval that ends after `ready`
        middle = (low + high) // 2
        if end[middle] > ready:
            high = middle
        else:
            low = middle + 1
    free = ready
    for i in range(low, min(count, low + scan)):
        if begin[i] - free >= length:
            return free, i
        free = max(free, end[i])
    if low + scan >= count:
        return free, count
    return max(ready, end[count - 1]), count


@njit(cache=True)
def _units(seconds, unit, held, room, forced):  # type: ignore[no-untyped-def]
    """Of units, tasks that go together: bytes f8[U], s on each device f8[U, D], the device that is fixed or -1; and bytes left of `room` f8[D]."""
    tasks, devices = seconds.shape
    units = unit.max() + 1 if tasks else 0
    load, able, home = np.zeros(units), np.zeros((units, devices)), np.full(units, -1)
    for t in range(tasks):
        load[unit[t]] += held[t]
        for d in range(devices):
            able[unit[t], d] += seconds[t, d]
        if forced[t] >= 0:
            home[unit[t]] = forced[t]
    left = room.copy()
    for u in range(units):
        if home[u] >= 0:
            left[home[u]] -= load[u]
    return load, able, home, left


@njit(cache=True)
def insert(seconds, succ_ptr, succ, pred_ptr, pred, pred_bytes, wait, pace, unit, held, room, key, more, forced, scan):  # type: ignore[no-untyped-def]
    """Take ready tasks by falling `key`; put each on the device that minimises finish + more[t, d], into the first gap that holds it.

    `more` f8[T, D] is PEFT's table (zeros for HEFT), `forced` i8[T] a device or -1. A unit's first task decides for all; it goes where the whole
    unit's `held` bytes fit and every task of it can run. Returns (place i8[T], start f8[T], finish f8[T], whether all fitted).
    """
    tasks, devices = seconds.shape
    load, able, home, left = _units(seconds, unit, held, room, forced)
    place, start, finish = np.full(tasks, -1), np.zeros(tasks), np.zeros(tasks)
    begin, end, count = np.zeros((devices, tasks)), np.zeros((devices, tasks)), np.zeros(devices, np.int64)
    waiting = pred_ptr[1:] - pred_ptr[:-1]
    heap, ready = np.empty(tasks, np.int64), 0
    fitted = True
    for t in range(tasks):
        if waiting[t] == 0:
            _sift(heap, ready, key, t)
            ready += 1
    while ready:
        t = _pull(heap, ready, key)
        ready -= 1
        u = unit[t]
        best, where, best_start, best_slot = np.inf, -1, 0.0, 0
        for attempt in range(2):                                       # the second time whatever the memory: the caller mends or refuses
            for d in range(devices):
                if home[u] >= 0:
                    if d != home[u]:
                        continue
                elif not np.isfinite(able[u, d]) or (attempt == 0 and load[u] > left[d]):
                    continue
                arrival = 0.0
                for e in range(pred_ptr[t], pred_ptr[t + 1]):
                    p = pred[e]
                    moved = 0.0 if place[p] == d else wait[place[p], d] + pred_bytes[e] * pace[place[p], d]
                    arrival = max(arrival, finish[p] + moved)
                at, slot = _gap(begin[d], end[d], count[d], arrival, seconds[t, d], scan)
                value = at + seconds[t, d] + more[t, d]
                if value < best or where < 0:
                    best, where, best_start, best_slot = value, d, at, slot
            if where >= 0:
                break
            fitted = False
        if where < 0:
            return place, start, finish, False                         # a unit that no device can run
        if home[u] < 0:
            home[u] = where
            left[where] -= load[u]
        place[t], start[t], finish[t] = where, best_start, best_start + seconds[t, where]
        for i in range(count[where], best_slot, -1):
            begin[where, i], end[where, i] = begin[where, i - 1], end[where, i - 1]
        begin[where, best_slot], end[where, best_slot] = start[t], finish[t]
        count[where] += 1
        for e in range(succ_ptr[t], succ_ptr[t + 1]):
            waiting[succ[e]] -= 1
            if waiting[succ[e]] == 0:
                _sift(heap, ready, key, succ[e])
                ready += 1
    return place, start, finish, fitted


def assign(dag: Dag, key: np.ndarray, more: np.ndarray | None = None, forced: np.ndarray | None = None,
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """`insert` on a Dag."""
    return insert(dag.seconds, dag.succ_ptr, dag.succ, dag.pred_ptr, dag.pred, dag.pred_bytes, dag.wait, dag.pace, dag.unit, dag.held, dag.room, key,
                  np.zeros_like(dag.seconds) if more is None else more, np.full(len(key), -1) if forced is None else forced.astype(np.int64), SCAN)


def heft(dag: Dag, forced: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """(place, start, finish, fitted) by Topcuoglu et al. (2002)."""
    return assign(dag, upward(dag.mean, dag.succ_ptr, dag.succ, dag.succ_bytes, dag.order, *dag.transfer), None, forced)


def peft(dag: Dag, forced: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """(place, start, finish, fitted) by Arabnejad and Barbosa (2014)."""
    table = optimistic(dag.seconds, dag.succ_ptr, dag.succ, dag.succ_bytes, dag.order, *dag.transfer)
    table[~np.isfinite(table)] = 1e300
    return assign(dag, table.mean(1), table, forced)


def cpop(dag: Dag, forced: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """(place, start, finish, fitted) by Topcuoglu et al. (2002): the critical path on the one device that runs it soonest."""
    mean, (wait, pace) = dag.mean, dag.transfer
    key = upward(mean, dag.succ_ptr, dag.succ, dag.succ_bytes, dag.order, wait, pace)
    key = key + downward(mean, dag.pred_ptr, dag.pred, dag.pred_bytes, dag.order, wait, pace)
    forced = np.full(len(key), -1) if forced is None else forced.copy()
    path, longest = [], float(key.max(initial=0.0))
    for t in dag.order.tolist():
        follows = not path or path[-1] in dag.pred[dag.pred_ptr[t]:dag.pred_ptr[t + 1]]
        if abs(key[t] - longest) <= 1e-9 * longest and follows and (path or dag.pred_ptr[t] == dag.pred_ptr[t + 1]):
            path.append(t)
    together = dag.seconds[path].sum(0) if path else np.zeros(dag.seconds.shape[1])
    if np.isfinite(together).any() and dag.held[path].sum() <= dag.room[np.argmin(together)]:
        forced[[t for t in path if forced[t] < 0]] = np.argmin(together)
    return assign(dag, key, None, forced)


@njit(cache=True)
def contended(a, key, unit, held, room, forced, local, scan):  # type: ignore[no-untyped-def]
    """List scheduling in which a transfer waits for its lanes (Sinnen and Sousa 2005): ready tasks by falling `key`, each to the device where it ends
    first if what it reads is sent there now, once per value. `local` ≥ 0 seconds are added on devices that hold nothing it reads, so that chains stay
    together. Returns (place, start, whether all fitted)."""
    tasks, devices = a.seconds.shape
    load, able, home, left = _units(a.seconds, unit, held, room, forced)
    place, start, finish = np.full(tasks, -1), np.zeros(tasks), np.zeros(tasks)
    begin, end, count = np.zeros((devices, tasks)), np.zeros((devices, tasks)), np.zeros(devices, np.int64)
    there = np.full(len(a.producer) * devices, -1.0)                   # when a value is on a device
    lane, trial = np.zeros(max(1, a.lanes)), np.zeros(max(1, a.lanes))
    waiting = np.zeros(tasks, np.int64)
    heap, ready, fitted = np.empty(tasks, np.int64), 0, True
    for t in range(tasks):
        waiting[t] = a.in_ptr[t + 1] - a.in_ptr[t]
        if waiting[t] == 0:
            _sift(heap, ready, key, t)
            ready += 1
    while ready:
        t = _pull(heap, ready, key)
        ready -= 1
        u = unit[t]
        best, where, best_start, best_slot = np.inf, -1, 0.0, 0
        for attempt in range(2):
            for d in range(devices):
                if home[u] >= 0:
                    if d != home[u]:
                        continue
                elif not np.isfinite(able[u, d]) or (attempt == 0 and load[u] > left[d]):
                    continue
                trial[:] = lane
                arrival, near = 0.0, a.in_ptr[t] == a.in_ptr[t + 1]
                for e in range(a.in_ptr[t], a.in_ptr[t + 1]):
                    v = a.in_val[e]
                    near = near or place[a.producer[v]] == d
                    arrival = max(arrival, _arrives(a, v, d, place, finish, there, trial))
                at, slot = _gap(begin[d], end[d], count[d], arrival, a.seconds[t, d], scan)
                value = at + a.seconds[t, d] + (0.0 if near else local)
                if value < best or where < 0:
                    best, where, best_start, best_slot = value, d, at, slot
            if where >= 0:
                break
            fitted = False
        if where < 0:
            return place, start, False
        if home[u] < 0:
            home[u] = where
            left[where] -= load[u]
        for e in range(a.in_ptr[t], a.in_ptr[t + 1]):
            v = a.in_val[e]
            there[v * devices + where] = _arrives(a, v, where, place, finish, there, lane)
        place[t], start[t], finish[t] = where, best_start, best_start + a.seconds[t, where]
        for i in range(count[where], best_slot, -1):
            begin[where, i], end[where, i] = begin[where, i - 1], end[where, i - 1]
        begin[where, best_slot], end[where, best_slot] = start[t], finish[t]
        count[where] += 1
        for v in range(a.out_ptr[t], a.out_ptr[t + 1]):
            for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                r = a.use_task[e]
                waiting[r] -= 1
                if waiting[r] == 0:
                    _sift(heap, ready, key, r)
                    ready += 1
    return place, start, fitted


@njit(cache=True)
def _arrives(a, v, d, place, finish, there, lane):  # type: ignore[no-untyped-def]
    """When value v is on device d; where it has to be sent, the lanes of `lane` are taken for that."""
    devices = a.seconds.shape[1]
    p = a.producer[v]
    home = place[p]
    if home == d:
        return finish[p]
    if there[v * devices + d] >= 0:
        return there[v * devices + d]
    begin, row = finish[p], home * devices + d
    for i in range(a.route_ptr[row], a.route_ptr[row + 1]):
        begin = max(begin, lane[a.route_lane[i]])
    hold = a.size[v] / a.bandwidth[home, d]
    for i in range(a.route_ptr[row], a.route_ptr[row + 1]):
        lane[a.route_lane[i]] = begin + hold
    return begin + hold + a.latency[home, d]
