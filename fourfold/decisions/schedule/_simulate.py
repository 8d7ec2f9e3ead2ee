"""The simulator once more, for search: the same times and joules to the bit, without memory, in arrays that are allocated once, and with causes.

`quick` says of every task what it waited for last: nothing, a value made on its own device, a transfer, or its device (the task that ran there
before). From the task that ends last these causes lead back to the start: the critical path of the plan, where moves can help. `rank` gives upward
ranks under a placement (Topcuoglu et al. 2002, eq. 8, with the true devices and routes), which is how tasks are ordered once places are known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.cost.simulate import Arrays

NONE, LOCAL, TRANSFER, QUEUE = range(4)                                # what a task waited for last


class Scratch(NamedTuple):
    """Room for one evaluation of T tasks on D devices, E readings of values."""

    reads: np.ndarray                                                  # i4[T] values that each task reads
    order: np.ndarray                                                  # i8[T] a topological order
    missing: np.ndarray
    ready: np.ndarray
    start: np.ndarray
    finish: np.ndarray
    why: np.ndarray                                                    # i8[T] the task that it waited for, -1 none
    how: np.ndarray                                                    # i1[T]
    key: np.ndarray                                                    # [D·T] queues
    item: np.ndarray
    waiting: np.ndarray                                                # [D]
    running: np.ndarray
    before: np.ndarray
    done_at: np.ndarray
    free_at: np.ndarray
    stamp: np.ndarray
    busy: np.ndarray
    lane_free: np.ndarray
    lane_busy: np.ndarray
    at: np.ndarray                                                     # [E] arrivals: a heap
    code: np.ndarray
    value: np.ndarray                                                  # [E] transfers
    target: np.ndarray

    @classmethod
    def of(cls, a: Arrays, order: np.ndarray) -> Scratch:
        tasks, devices = a.seconds.shape
        edges = len(a.use_task) + 1
        return cls(np.diff(a.in_ptr).astype(np.int32), order.astype(np.int64), np.zeros(tasks, np.int32), np.zeros(tasks), np.zeros(tasks),
                   np.zeros(tasks), np.full(tasks, -1), np.zeros(tasks, np.int8), np.zeros(devices * tasks), np.zeros(devices * tasks, np.int32),
                   np.zeros(devices, np.int64), np.full(devices, -1), np.full(devices, -1), np.zeros(devices), np.zeros(devices),
                   np.full(devices, -1), np.zeros(devices), np.zeros(max(1, a.lanes)), np.zeros(max(1, a.lanes)), np.zeros(edges),
                   np.zeros(edges, np.int32), np.zeros(edges, np.int32), np.zeros(edges, np.int16))


@njit(cache=True, inline="always")
def _put(key, item, base, count, k, t):  # type: ignore[no-untyped-def]
    """Add (k, t) to the heap of `count` entries at `base`: least key first, then lowest number."""
    i = count
    while i > 0:
        up = (i - 1) >> 1
        if not (k < key[base + up] or (k == key[base + up] and t < item[base + up])):
            break
        key[base + i], item[base + i] = key[base + up], item[base + up]
        i = up
    key[base + i], item[base + i] = k, t


@njit(cache=True, inline="always")
def _drop(key, item, base, count):  # type: ignore[no-untyped-def]
    """Remove the first of `count` entries."""
    last = count - 1
    k, t = key[base + last], item[base + last]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= last:
            break
        if child + 1 < last:
            one, other = base + child, base + child + 1
            if key[other] < key[one] or (key[other] == key[one] and item[other] < item[one]):
                child += 1
        c = base + child
        if not (key[c] < k or (key[c] == k and item[c] < t)):
            break
        key[base + i], item[base + i] = key[c], item[c]
        i = child
    key[base + i], item[base + i] = k, t


@njit(cache=True)
def quick(a, s, place, priority):  # type: ignore[no-untyped-def]
    """(makespan s, seconds of the busiest device or lane, joules); start, finish, why and how are left in `s`. inf where something waits for ever."""
    tasks, devices = a.seconds.shape
    s.missing[:] = s.reads
    for d in range(devices):
        s.waiting[d] = 0
        s.running[d] = -1
        s.before[d] = -1
        s.stamp[d] = -1
        s.free_at[d] = 0.0
        s.busy[d] = 0.0
    s.lane_free[:] = 0.0
    s.lane_busy[:] = 0.0
    for t in range(tasks):
        if s.missing[t] == 0:
            d = np.int64(place[t])
            s.ready[t], s.why[t], s.how[t] = 0.0, -1, 0
            _put(s.key, s.item, d * tasks, s.waiting[d], -priority[t], t)
            s.waiting[d] += 1
    now, makespan, joules = 0.0, 0.0, 0.0
    sent, flying, done = 0, 0, 0
    while True:
        after = s.at[0] if flying > 0 else np.inf
        for d in range(devices):
            if s.running[d] < 0 and s.waiting[d] > 0:
                if s.free_at[d] > now:
                    after = min(after, s.free_at[d])
                else:
                    t = np.int64(s.item[d * tasks])
                    _drop(s.key, s.item, d * tasks, s.waiting[d])
                    s.waiting[d] -= 1
                    s.running[d] = t
                    s.start[t] = now
                    if now > s.ready[t] and s.before[d] >= 0:
                        s.why[t], s.how[t] = s.before[d], 3
                    took = a.seconds[t, d]
                    s.busy[d] += took
                    s.done_at[d] = now + took
            if s.running[d] >= 0:
                after = min(after, s.done_at[d])
        if after == np.inf:
            break
        now = after
        while True:                                                    # ends of this instant, by number
            item = np.int64(-1)
            for d in range(devices):
                if s.running[d] >= 0 and s.done_at[d] == now and (item < 0 or s.running[d] < item):
                    item = s.running[d]
            if item < 0:
                break
            d = np.int64(place[item])
            s.running[d] = -1
            s.before[d] = item
            s.finish[item] = now
            done += 1
            makespan = max(makespan, now)
            for v in range(a.out_ptr[item], a.out_ptr[item + 1]):
                away = False
                for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                    task = np.int64(a.use_task[e])
                    to = np.int64(place[task])
                    if to == d:
                        s.missing[task] -= 1
                        if s.missing[task] == 0:
                            s.ready[task], s.why[task], s.how[task] = now, item, 1
                            _put(s.key, s.item, d * tasks, s.waiting[d], -priority[task], task)
                            s.waiting[d] += 1
                    else:
                        s.stamp[to] = v
                        away = True
                if not away:
                    continue
                for to in range(devices):
                    if s.stamp[to] != v:
                        continue
                    size, row = a.size[v], d * devices + to
                    begin = now
                    if a.blocking[d, to]:
                        begin = max(begin, s.free_at[d])
                    for e in range(a.route_ptr[row], a.route_ptr[row + 1]):
                        begin = max(begin, s.lane_free[a.route_lane[e]])
                    hold = size / a.bandwidth[d, to]
                    for e in range(a.route_ptr[row], a.route_ptr[row + 1]):
                        s.lane_free[a.route_lane[e]] = begin + hold
                        s.lane_busy[a.route_lane[e]] += hold
                    if a.blocking[d, to]:
                        s.free_at[d] = begin + hold
                        s.busy[d] += hold
                    joules += size * a.energy[d, to]
                    s.value[sent], s.target[sent] = v, to
                    _put(s.at, s.code, 0, flying, begin + hold + a.latency[d, to], sent)
                    flying += 1
                    sent += 1
        while flying > 0 and s.at[0] == now:
            item = np.int64(s.code[0])
            _drop(s.at, s.code, 0, flying)
            flying -= 1
            makespan = max(makespan, now)
            v, to = np.int64(s.value[item]), np.int64(s.target[item])
            for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                task = np.int64(a.use_task[e])
                if place[task] == to:
                    s.missing[task] -= 1
                    if s.missing[task] == 0:
                        s.ready[task], s.why[task], s.how[task] = now, a.producer[v], 2
                        _put(s.key, s.item, to * tasks, s.waiting[to], -priority[task], task)
                        s.waiting[to] += 1
    if done < tasks:
        return np.inf, np.inf, np.inf
    busiest = 0.0
    for d in range(devices):
        joules += a.idle[d] * (makespan - s.busy[d]) + a.busy[d] * s.busy[d]
        busiest = max(busiest, s.busy[d])
    for lane in range(a.lanes):
        busiest = max(busiest, s.lane_busy[lane])
    return makespan, busiest, joules


@njit(cache=True)
def rank(a, s, place, into):  # type: ignore[no-untyped-def]
    """Upward ranks under `place`, into f8[T]."""
    for k in range(len(s.order) - 1, -1, -1):
        t = s.order[k]
        d = np.int64(place[t])
        best = 0.0
        for v in range(a.out_ptr[t], a.out_ptr[t + 1]):
            for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                r = np.int64(a.use_task[e])
                to = np.int64(place[r])
                tail = into[r]
                if to != d:
                    tail += a.latency[d, to] + a.size[v] / a.bandwidth[d, to]
                best = max(best, tail)
        into[t] = best + a.seconds[t, d]

