"""The event loop over plain arrays, compiled: what `simulate`, and solvers that ask it thousands of times, run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.cost.simulate.tasks import flat, pointer, starts
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.cost.simulate.tasks import Tasks
    from fourfold.machine import Machine

_END, _ARRIVAL, _TRANSFER, _WAKE = 0, 1, 2, 3                           # kinds of events, in the order in which those of one instant happen


class Arrays(NamedTuple):
    """Tasks and system as plain arrays, for kernels; `arrays` makes them once, `play` runs on them as often as a solver likes."""

    seconds: NDArray[np.float64]                                        # [T, D]
    producer: NDArray[np.int32]
    size: NDArray[np.int64]
    hold: NDArray[np.int64]
    base: NDArray[np.int32]
    keep: NDArray[np.bool_]
    out_ptr: NDArray[np.int32]                                          # [T+1] values that each task makes
    use_ptr: NDArray[np.int32]
    use_task: NDArray[np.int32]
    in_ptr: NDArray[np.int32]                                           # [T+1] values that each task reads
    in_val: NDArray[np.int32]
    workspace: NDArray[np.int64]
    fixed_size: NDArray[np.int64]
    fixed_ptr: NDArray[np.int32]
    fixed_task: NDArray[np.int32]
    route_ptr: NDArray[np.int32]                                        # [D·D+1] lanes of the route from a to b: row a·D + b
    route_lane: NDArray[np.int32]
    latency: NDArray[np.float64]                                        # [D, D] s
    bandwidth: NDArray[np.float64]                                      # [D, D] B/s
    energy: NDArray[np.float64]                                         # [D, D] J/B
    blocking: NDArray[np.bool_]                                         # [D, D] the sender copies itself
    limit: NDArray[np.float64]                                          # [D] B
    idle: NDArray[np.float64]                                           # [D] W
    busy: NDArray[np.float64]                                           # [D] W
    lanes: int


class Played(NamedTuple):
    """What `play` tells; `Timeline` without comfort. `done` < T: something waits for ever."""

    done: int
    events: int
    makespan: float
    start: NDArray[np.float64]                                          # [T]
    finish: NDArray[np.float64]                                         # [T]
    ready: NDArray[np.float64]                                          # [T]
    busy: NDArray[np.float64]                                           # [D] s of computing, and of copying where the sender does that
    lane_busy: NDArray[np.float64]                                      # [lanes] s
    peak: NDArray[np.int64]                                             # [D] B
    peak_at: NDArray[np.float64]                                        # [D] s
    over_at: NDArray[np.float64]                                        # [D] s when the limit was first passed, inf never
    joules: float
    value: NDArray[np.int32]                                            # [X] transfers: what, from, to, when asked, begun and there
    source: NDArray[np.int32]
    target: NDArray[np.int32]
    asked: NDArray[np.float64]
    begun: NDArray[np.float64]
    arrived: NDArray[np.float64]
    log_at: NDArray[np.float64]                                         # [·] memory over time, if logged: when, which device, bytes from then on
    log_device: NDArray[np.int32]
    log_bytes: NDArray[np.int64]


def arrays(tasks: Tasks, system: Machine) -> Arrays:
    """What the kernels need. Raises InputError where tasks were priced for another number of devices."""
    count = len(system)
    if tasks.seconds.shape[1] != count:
        raise InputError(f"The tasks are priced for {tasks.seconds.shape[1]} devices, {system.name!r} has {count}.",
                         "Price them again for this system.")
    routes = [route for row in system.routes for route in row]
    square = (count, count)
    in_ptr, in_val = tasks.reads
    return Arrays(
        np.ascontiguousarray(tasks.seconds), tasks.producer, tasks.size, tasks.hold, tasks.base, tasks.keep,
        starts(tasks.producer, len(tasks)), tasks.use_ptr, tasks.use_task, in_ptr, in_val,
        tasks.workspace, tasks.fixed_size, tasks.fixed_ptr, tasks.fixed_task,
        pointer([list(route.lanes) for route in routes]), flat([list(route.lanes) for route in routes]),
        np.array([route.latency for route in routes]).reshape(square), np.array([route.bandwidth for route in routes]).reshape(square),
        np.array([route.energy for route in routes]).reshape(square),
        np.array([not all(system.links[lane // 2].overlap for lane in route.lanes) for route in routes]).reshape(square),
        np.array([device.memory for device in system.devices], np.float64), np.array([device.idle for device in system.devices], np.float64),
        np.array([device.busy for device in system.devices], np.float64), 2 * len(system.links))


@njit(cache=True, inline="always")
def _earlier(at: float, code: int, at2: float, code2: int) -> bool:
    return at < at2 or (at == at2 and code < code2)


@njit(cache=True)
def _push(times, codes, count, at, code):  # noqa: ANN001, ANN202 — numba types
    """Add (at, code) to the binary heap of `count` entries."""
    i = count
    while i > 0:
        up = (i - 1) >> 1
        if not _earlier(at, code, times[up], codes[up]):
            break
        times[i], codes[i] = times[up], codes[up]
        i = up
    times[i], codes[i] = at, code


@njit(cache=True)
def _pop(times, codes, count):  # noqa: ANN001, ANN202
    """Remove the first of `count` entries; the rest stays a heap of count − 1."""
    last = count - 1
    at, code = times[last], codes[last]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= last:
            break
        if child + 1 < last and _earlier(times[child + 1], codes[child + 1], times[child], codes[child]):
            child += 1
        if not _earlier(times[child], codes[child], at, code):
            break
        times[i], codes[i] = times[child], codes[child]
        i = child
    times[i], codes[i] = at, code


@njit(cache=True)
def play(a, place, priority, strict, log):  # noqa: ANN001, ANN202
    """`simulate` on plain arrays, for kernels and solvers: a Arrays, place i2[T], priority f8[T], strict and log bools → Played. Checks nothing."""
    count, devices = a.seconds.shape
    values = len(a.producer)
    width = np.int64(devices)
    # who reads what where; refs: how many still need the bytes of value v on device d
    refs = np.zeros(values * width, np.int32)
    missing = np.zeros(count, np.int32)
    transfers, wakes = 0, 0
    for v in range(values):
        home = place[a.producer[v]]
        for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
            task = a.use_task[e]
            missing[task] += 1
            cell = v * width + place[task]
            if refs[cell] == 0 and place[task] != home:
                transfers += 1
                if a.blocking[home, place[task]]:
                    wakes += 1
            refs[cell] += 1
        if a.keep[v]:
            refs[v * width + home] += 1
    for v in range(values):
        if a.base[v] >= 0:
            refs[a.base[v] * width + place[a.producer[v]]] += 1
    # resident bytes
    memory, peak = np.zeros(devices, np.int64), np.zeros(devices, np.int64)
    peak_at, over_at = np.zeros(devices), np.full(devices, np.inf)
    seen = np.full(devices, -1, np.int64)
    for f in range(len(a.fixed_size)):
        for e in range(a.fixed_ptr[f], a.fixed_ptr[f + 1]):
            d = place[a.fixed_task[e]]
            if seen[d] != f:
                seen[d] = f
                memory[d] += a.fixed_size[f]
    for d in range(devices):
        peak[d] = memory[d]
        if memory[d] > a.limit[d]:
            over_at[d] = 0.0
    logs = devices + 2 * count + 2 * (values + transfers) if log else 0
    log_at, log_device, log_bytes, logged = np.zeros(logs), np.zeros(logs, np.int32), np.zeros(logs, np.int64), 0
    if log:
        for d in range(devices):
            log_device[logged], log_bytes[logged] = d, memory[d]
            logged += 1
    # queues: one segment a device, a heap by (−priority, number); with `strict` the whole order, sorted
    segment = np.zeros(devices + 1, np.int64)
    for t in range(count):
        segment[place[t] + 1] += 1
    for d in range(devices):
        segment[d + 1] += segment[d]
    queue_key, queue_task = np.zeros(count), np.zeros(count, np.int64)
    waiting = np.zeros(devices, np.int64)
    ready, start, finish = np.full(count, np.nan), np.full(count, np.nan), np.full(count, np.nan)
    if strict:
        filled = segment[:-1].copy()
        for t in range(count):
            d = place[t]
            base = segment[d]
            _push(queue_key[base:], queue_task[base:], filled[d] - base, -priority[t], t)
            filled[d] += 1
        for d in range(devices):                                        # heaps into order, by taking them apart
            base, left = segment[d], segment[d + 1] - segment[d]
            keys, found = np.zeros(left), np.zeros(left, np.int64)
            for i in range(left):
                keys[i], found[i] = queue_key[base], queue_task[base]
                _pop(queue_key[base:], queue_task[base:], left - i)
            queue_key[base: base + left], queue_task[base: base + left] = keys, found
    for t in range(count):
        if missing[t] == 0:
            ready[t] = 0.0
            if not strict:
                d = place[t]
                _push(queue_key[segment[d]:], queue_task[segment[d]:], waiting[d], -priority[t], t)
                waiting[d] += 1
    taken = np.zeros(devices, np.int64)                                 # with `strict`: how many of its order a device has started
    # events
    space = devices + 2 * transfers + wakes + 1
    times, codes, queued = np.zeros(space), np.zeros(space, np.int64), 0
    shift = np.int64(max(count, transfers, devices) + 1)
    running, free_at = np.full(devices, -1, np.int64), np.zeros(devices)
    lane_free, lane_busy = np.zeros(a.lanes), np.zeros(a.lanes)
    busy = np.zeros(devices)
    value, source, target = np.zeros(transfers, np.int32), np.zeros(transfers, np.int32), np.zeros(transfers, np.int32)
    asked, begun, arrived = np.zeros(transfers), np.zeros(transfers), np.zeros(transfers)
    sent, done, events = 0, 0, 0
    now, makespan, joules = 0.0, 0.0, 0.0
    dropped = np.zeros(values + 1, np.int64)                            # stack of cells to free: a view, what it views, …
    while True:
        # every idle device takes its next task
        for d in range(devices):
            if running[d] >= 0 or free_at[d] > now:
                continue
            t = np.int64(-1)
            base = segment[d]
            if strict:
                if base + taken[d] < segment[d + 1]:
                    t = queue_task[base + taken[d]]
                    if missing[t] == 0:
                        taken[d] += 1
                    else:
                        t = np.int64(-1)
            elif waiting[d] > 0:
                t = queue_task[base]
                _pop(queue_key[base:], queue_task[base:], waiting[d])
                waiting[d] -= 1
            if t < 0:
                continue
            running[d] = t
            start[t] = now
            took = a.seconds[t, d]
            busy[d] += took
            more = a.workspace[t]
            for v in range(a.out_ptr[t], a.out_ptr[t + 1]):
                more += a.hold[v]
            if more != 0:
                memory[d] += more
                if memory[d] > peak[d]:
                    peak[d], peak_at[d] = memory[d], now
                if memory[d] > a.limit[d] and over_at[d] == np.inf:
                    over_at[d] = now
                if log:
                    log_at[logged], log_device[logged], log_bytes[logged] = now, d, memory[d]
                    logged += 1
            _push(times, codes, queued, now + took, _END * shift + t)
            queued += 1
        if queued == 0:
            break
        now = times[0]
        while queued > 0 and times[0] == now:
            code = codes[0]
            _pop(times, codes, queued)
            queued -= 1
            events += 1
            kind, item = code // shift, code % shift
            drops = 0
            if kind == _END:
                d = np.int64(place[item])
                running[d] = -1
                finish[item] = now
                done += 1
                makespan = max(makespan, now)
                memory[d] -= a.workspace[item]
                freed = a.workspace[item] != 0
                for v in range(a.out_ptr[item], a.out_ptr[item + 1]):
                    for to in range(devices):                           # send
                        if to == d or refs[v * width + to] == 0:
                            continue
                        size = a.size[v]
                        begin = now
                        if a.blocking[d, to]:
                            begin = max(begin, free_at[d])
                        row = d * width + to
                        for e in range(a.route_ptr[row], a.route_ptr[row + 1]):
                            begin = max(begin, lane_free[a.route_lane[e]])
                        hold = size / a.bandwidth[d, to]
                        for e in range(a.route_ptr[row], a.route_ptr[row + 1]):
                            lane_free[a.route_lane[e]] = begin + hold
                            lane_busy[a.route_lane[e]] += hold
                        if a.blocking[d, to]:
                            free_at[d] = begin + hold
                            busy[d] += hold
                            _push(times, codes, queued, free_at[d], _WAKE * shift + d)
                            queued += 1
                        joules += size * a.energy[d, to]
                        value[sent], source[sent], target[sent] = v, d, to
                        asked[sent], begun[sent], arrived[sent] = now, begin, begin + hold + a.latency[d, to]
                        _push(times, codes, queued, begin, _TRANSFER * shift + sent)
                        queued += 1
                        sent += 1
                        refs[v * width + d] += 1                        # needed here until it is there
                    if refs[v * width + d] == 0:
                        dropped[drops] = v * width + d
                        drops += 1
                    for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                        task = a.use_task[e]
                        if place[task] == d:
                            missing[task] -= 1
                            if missing[task] == 0:
                                ready[task] = now
                                if not strict:
                                    _push(queue_key[segment[d]:], queue_task[segment[d]:], waiting[d], -priority[task], task)
                                    waiting[d] += 1
                for e in range(a.in_ptr[item], a.in_ptr[item + 1]):
                    cell = a.in_val[e] * width + d
                    refs[cell] -= 1
                    if refs[cell] == 0:
                        dropped[drops] = cell
                        drops += 1
            elif kind == _TRANSFER:
                d = np.int64(target[item])
                freed = False
                if a.size[value[item]] != 0:
                    memory[d] += a.size[value[item]]
                    if memory[d] > peak[d]:
                        peak[d], peak_at[d] = memory[d], now
                    if memory[d] > a.limit[d] and over_at[d] == np.inf:
                        over_at[d] = now
                    if log:
                        log_at[logged], log_device[logged], log_bytes[logged] = now, d, memory[d]
                        logged += 1
                _push(times, codes, queued, arrived[item], _ARRIVAL * shift + item)
                queued += 1
            elif kind == _ARRIVAL:
                v, to = value[item], np.int64(target[item])
                makespan = max(makespan, now)
                for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                    task = a.use_task[e]
                    if place[task] == to:
                        missing[task] -= 1
                        if missing[task] == 0:
                            ready[task] = now
                            if not strict:
                                _push(queue_key[segment[to]:], queue_task[segment[to]:], waiting[to], -priority[task], task)
                                waiting[to] += 1
                d = np.int64(source[item])
                freed = False
                cell = v * width + d
                refs[cell] -= 1
                if refs[cell] == 0:
                    dropped[drops] = cell
                    drops += 1
            else:
                d = item
                freed = False
            while drops > 0:                                            # nobody needs these bytes any more
                drops -= 1
                cell = dropped[drops]
                v = cell // width
                if place[a.producer[v]] == d:
                    memory[d] -= a.hold[v]
                    freed = freed or a.hold[v] != 0
                    if a.base[v] >= 0:
                        cell = a.base[v] * width + d
                        refs[cell] -= 1
                        if refs[cell] == 0:
                            dropped[drops] = cell
                            drops += 1
                else:
                    memory[d] -= a.size[v]
                    freed = freed or a.size[v] != 0
            if log and freed:
                log_at[logged], log_device[logged], log_bytes[logged] = now, d, memory[d]
                logged += 1
    if done < count:
        makespan = np.inf
    for d in range(devices):
        if np.isinf(makespan):
            joules = np.inf
        else:
            joules += a.idle[d] * (makespan - busy[d]) + a.busy[d] * busy[d]
    return Played(done, events, makespan, start, finish, ready, busy, lane_busy, peak, peak_at, over_at, joules, value, source, target, asked, begun,
                  arrived, log_at[:logged], log_device[:logged], log_bytes[:logged])


@njit(cache=True)
def play_many(a, places, priorities, strict):  # noqa: ANN001, ANN202
    """`play` for B plans: makespan f8[B], peak i8[B, D], joules f8[B]."""
    plans, devices = len(places), a.seconds.shape[1]
    makespan, peak, joules = np.zeros(plans), np.zeros((plans, devices), np.int64), np.zeros(plans)
    for b in range(plans):
        run = play(a, places[b], priorities[b], strict, False)
        makespan[b], joules[b] = run.makespan, run.joules
        peak[b] = run.peak
    return makespan, peak, joules


@njit(cache=True)
def fluid_bound(a, place):  # noqa: ANN001, ANN202
    count, devices = a.seconds.shape
    load, lane = np.zeros(devices), np.zeros(a.lanes)
    missing, reach = np.zeros(count, np.int64), np.zeros(count)
    for e in range(len(a.use_task)):
        missing[a.use_task[e]] += 1
    stack, height = np.zeros(count, np.int64), 0
    for t in range(count):
        load[place[t]] += a.seconds[t, place[t]]
        if missing[t] == 0:
            stack[height] = t
            height += 1
    best, sent = 0.0, np.full(devices, -1, np.int64)
    while height > 0:
        height -= 1
        t = stack[height]
        d = np.int64(place[t])
        end = reach[t] + a.seconds[t, d]
        best = max(best, end)
        for v in range(a.out_ptr[t], a.out_ptr[t + 1]):
            for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                other = a.use_task[e]
                to = np.int64(place[other])
                there = end
                if to != d:
                    hold = a.size[v] / a.bandwidth[d, to]
                    there = end + hold + a.latency[d, to]
                    if sent[to] != v:
                        sent[to] = v
                        if a.blocking[d, to]:
                            load[d] += hold
                        row = d * devices + to
                        for i in range(a.route_ptr[row], a.route_ptr[row + 1]):
                            lane[a.route_lane[i]] += hold
                reach[other] = max(reach[other], there)
                missing[other] -= 1
                if missing[other] == 0:
                    stack[height] = other
                    height += 1
    return max(best, max(load.max(), lane.max() if a.lanes else 0.0))
