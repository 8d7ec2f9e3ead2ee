"""The event loop over plain arrays, compiled once for two uses: `play`, with all that `simulate` tells, and `quick`, for searches that ask thousands
of times: the same times and joules to the bit, without memory, in arrays that are allocated once, and with causes.

What happens at one instant, in this order: tasks end (by number), transfers arrive, transfers begin, idle devices start tasks.
"""

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

NONE, LOCAL, TRANSFER, QUEUE = range(4)                                 # what a task waited for last


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


class Scratch(NamedTuple):
    """Room for one run of T tasks on D devices, E readings of values; after `quick` it holds the times of the run and what each task waited for."""

    reads: NDArray[np.int32]                                            # [T] values that each task reads
    missing: NDArray[np.int32]                                          # [T] of these, not there yet
    ready: NDArray[np.float64]                                          # [T] s
    start: NDArray[np.float64]                                          # [T] s
    finish: NDArray[np.float64]                                         # [T] s
    why: NDArray[np.int64]                                              # [T] the task that it waited for last, -1 none
    how: NDArray[np.int8]                                               # [T] NONE, LOCAL, TRANSFER or QUEUE
    key: NDArray[np.float64]                                            # [D·T] a heap a device: tasks that may start, by falling priority
    item: NDArray[np.int32]
    waiting: NDArray[np.int64]                                          # [D] entries of its heap
    running: NDArray[np.int64]                                          # [D] task, -1 none
    before: NDArray[np.int64]                                           # [D] the task that ended there last, -1 none
    done_at: NDArray[np.float64]                                        # [D] s when the running task ends
    free_at: NDArray[np.float64]                                        # [D] s until which it copies what it sends
    stamp: NDArray[np.int64]                                            # [D] the last value found to be read there from elsewhere
    busy: NDArray[np.float64]                                           # [D] s
    lane_free: NDArray[np.float64]                                      # [lanes] s
    lane_busy: NDArray[np.float64]                                      # [lanes] s
    at: NDArray[np.float64]                                             # [E] a heap of what is on its way
    code: NDArray[np.int32]
    value: NDArray[np.int32]                                            # [E] transfers
    target: NDArray[np.int32]

    @classmethod
    def of(cls, a: Arrays) -> Scratch:
        """Room for runs of `a`, to be used for any number of them, one after the other."""
        return _scratch(a)


class Resident(NamedTuple):
    """What is kept besides where bytes are counted too; `refs`: how many still need the bytes of value v on device d, at v·D + d."""

    strict: bool
    log: bool
    refs: NDArray[np.int32]                                             # [V·D]
    held: NDArray[np.int64]                                             # [D] B
    peak: NDArray[np.int64]
    peak_at: NDArray[np.float64]
    over_at: NDArray[np.float64]
    dropped: NDArray[np.int64]                                          # [V+1] a stack of cells that nobody needs: a view, what it views, …
    source: NDArray[np.int32]                                           # [X]
    asked: NDArray[np.float64]
    begun: NDArray[np.float64]
    arrived: NDArray[np.float64]
    log_at: NDArray[np.float64]
    log_device: NDArray[np.int32]
    log_bytes: NDArray[np.int64]


@njit(cache=True)
def _scratch(a):  # noqa: ANN001, ANN202 — numba types
    tasks, devices = a.seconds.shape
    edges, lanes = len(a.use_task) + 1, max(1, a.lanes)
    reads = np.empty(tasks, np.int32)
    for t in range(tasks):
        reads[t] = a.in_ptr[t + 1] - a.in_ptr[t]
    return Scratch(reads, np.empty(tasks, np.int32), np.full(tasks, np.nan), np.full(tasks, np.nan), np.full(tasks, np.nan), np.full(tasks, -1),
                   np.zeros(tasks, np.int8), np.empty(devices * tasks), np.empty(devices * tasks, np.int32), np.empty(devices, np.int64),
                   np.empty(devices, np.int64), np.empty(devices, np.int64), np.empty(devices), np.empty(devices), np.empty(devices, np.int64),
                   np.empty(devices), np.empty(lanes), np.empty(lanes), np.empty(edges), np.empty(edges, np.int32), np.empty(edges, np.int32),
                   np.empty(edges, np.int32))


@njit(cache=True, inline="always")
def _put(key, item, base, count, k, t):  # noqa: ANN001, ANN202
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
def _drop(key, item, base, count):  # noqa: ANN001, ANN202
    """Remove the first of `count` entries; the rest stays a heap of count − 1."""
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
def _loop(a, s, m, place, priority):  # noqa: ANN001, ANN202
    """Run all tasks: → (makespan s, s of the busiest device or lane, J, tasks that ended, transfers, of these those that their senders copy). Times
    and causes are left in `s`. Where something waits for ever, fewer than T tasks end and the rest of the answer means nothing.

    m None: times only. numba then compiles neither the bytes nor the begins of transfers, which change no time (in `m is not None` it drops the
    branch); m Resident: bytes, transfers and, if asked, the log are left there.
    Long: as parts, each would get a hundred arrays as arguments at every event, which costs a search more time than the events do.
    """
    tasks, devices = a.seconds.shape
    strict = False
    if m is not None:
        strict = m.strict
    begins = len(s.at)                                                  # codes: transfer x arrives, x + begins: it begins; that is their order too
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
            s.ready[t], s.why[t], s.how[t] = 0.0, -1, NONE
        if s.missing[t] == 0 or strict:                                 # with `strict` the heap is the order, and its first task is waited for
            d = np.int64(place[t])
            _put(s.key, s.item, d * tasks, s.waiting[d], -priority[t], t)
            s.waiting[d] += 1
    now, makespan, joules = 0.0, 0.0, 0.0
    sent, flying, done, copies = 0, 0, 0, 0
    logged = devices                                                    # a first entry of each device is there
    while True:
        after, active = (s.at[0] if flying > 0 else np.inf), flying > 0
        for d in range(devices):                                        # every idle device takes its next task
            if s.running[d] < 0 and s.waiting[d] > 0:
                t = np.int64(s.item[d * tasks])
                if s.free_at[d] > now:
                    after = min(after, s.free_at[d])
                elif not strict or s.missing[t] == 0:
                    _drop(s.key, s.item, d * tasks, s.waiting[d])
                    s.waiting[d] -= 1
                    s.running[d] = t
                    s.start[t] = now
                    if now > s.ready[t] and s.before[d] >= 0:
                        s.why[t], s.how[t] = s.before[d], QUEUE
                    took = a.seconds[t, d]
                    s.busy[d] += took
                    s.done_at[d] = now + took
                    if m is not None:
                        more = a.workspace[t]
                        for v in range(a.out_ptr[t], a.out_ptr[t + 1]):
                            more += a.hold[v]
                        if more != 0:
                            m.held[d] += more
                            if m.held[d] > m.peak[d]:
                                m.peak[d], m.peak_at[d] = m.held[d], now
                            if m.held[d] > a.limit[d] and m.over_at[d] == np.inf:
                                m.over_at[d] = now
                            if m.log:
                                m.log_at[logged], m.log_device[logged], m.log_bytes[logged] = now, d, m.held[d]
                                logged += 1
            if s.running[d] >= 0:
                after = min(after, s.done_at[d])
                active = True
        if after == np.inf and (m is None or not active):               # with bytes, what takes for ever ends at inf
            break
        now = after
        ending = True
        while True:                                                     # what happens at this instant: first ends of tasks, by number
            item, drops, freed = np.int64(-1), 0, False
            if ending:
                for d in range(devices):
                    if s.running[d] >= 0 and s.done_at[d] == now and (item < 0 or s.running[d] < item):
                        item = s.running[d]
                ending = item >= 0
            if ending:
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
                                s.ready[task], s.why[task], s.how[task] = now, item, LOCAL
                                if not strict:
                                    _put(s.key, s.item, d * tasks, s.waiting[d], -priority[task], task)
                                    s.waiting[d] += 1
                        else:
                            s.stamp[to] = v
                            away = True
                    if away:
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
                                copies += 1
                            joules += size * a.energy[d, to]
                            s.value[sent], s.target[sent] = v, to
                            when, code = begin + hold + a.latency[d, to], sent
                            if m is not None:                               # its bytes live from its begin
                                m.source[sent], m.asked[sent], m.begun[sent], m.arrived[sent] = d, now, begin, when
                                m.refs[v * devices + d] += 1                # needed here until it is there
                                when, code = begin, begins + sent
                            _put(s.at, s.code, 0, flying, when, code)
                            flying += 1
                            sent += 1
                    if m is not None and m.refs[v * devices + d] == 0:
                        m.dropped[drops] = v * devices + d
                        drops += 1
                if m is not None:
                    m.held[d] -= a.workspace[item]
                    for e in range(a.in_ptr[item], a.in_ptr[item + 1]):
                        cell = a.in_val[e] * devices + d
                        m.refs[cell] -= 1
                        if m.refs[cell] == 0:
                            m.dropped[drops] = cell
                            drops += 1
                    freed = a.workspace[item] != 0
            elif flying > 0 and s.at[0] == now:
                item = np.int64(s.code[0])
                _drop(s.at, s.code, 0, flying)
                flying -= 1
                if m is not None and item >= begins:
                    item -= begins
                    d, more = np.int64(s.target[item]), a.size[s.value[item]]
                    if more != 0:
                        m.held[d] += more
                        if m.held[d] > m.peak[d]:
                            m.peak[d], m.peak_at[d] = m.held[d], now
                        if m.held[d] > a.limit[d] and m.over_at[d] == np.inf:
                            m.over_at[d] = now
                        if m.log:
                            m.log_at[logged], m.log_device[logged], m.log_bytes[logged] = now, d, m.held[d]
                            logged += 1
                    _put(s.at, s.code, 0, flying, m.arrived[item], item)
                    flying += 1
                    continue
                makespan = max(makespan, now)
                v, to = np.int64(s.value[item]), np.int64(s.target[item])
                for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
                    task = np.int64(a.use_task[e])
                    if place[task] == to:
                        s.missing[task] -= 1
                        if s.missing[task] == 0:
                            s.ready[task], s.why[task], s.how[task] = now, a.producer[v], TRANSFER
                            if not strict:
                                _put(s.key, s.item, to * tasks, s.waiting[to], -priority[task], task)
                                s.waiting[to] += 1
                if m is not None:
                    d = np.int64(m.source[item])
                    m.refs[v * devices + d] -= 1
                    if m.refs[v * devices + d] == 0:
                        m.dropped[0], drops = v * devices + d, 1
            else:
                break
            if m is not None:                                           # device d gives back what nobody needs any more
                while drops > 0:
                    drops -= 1
                    cell = m.dropped[drops]
                    v = cell // devices
                    if place[a.producer[v]] == d:
                        m.held[d] -= a.hold[v]
                        freed = freed or a.hold[v] != 0
                        if a.base[v] >= 0:
                            cell = a.base[v] * devices + d
                            m.refs[cell] -= 1
                            if m.refs[cell] == 0:
                                m.dropped[drops] = cell
                                drops += 1
                    else:
                        m.held[d] -= a.size[v]
                        freed = freed or a.size[v] != 0
                if m.log and freed:
                    m.log_at[logged], m.log_device[logged], m.log_bytes[logged] = now, d, m.held[d]
                    logged += 1
    busiest = 0.0
    for d in range(devices):
        joules += a.idle[d] * (makespan - s.busy[d]) + a.busy[d] * s.busy[d]
        busiest = max(busiest, s.busy[d])
    for lane in range(a.lanes):
        busiest = max(busiest, s.lane_busy[lane])
    return makespan, busiest, joules, done, sent, copies, logged


@njit(cache=True)
def quick(a, s, place, priority):  # noqa: ANN001, ANN202
    """(makespan s, seconds of the busiest device or lane, joules) of a plan, without its memory and in the arrays of a Scratch `s`; inf where
    something waits or takes for ever.

    start, finish, why and how are left in `s`. A task waited last for: nothing, a value made on its own device, a transfer, or its device (`why`: the
    task that ran there before). From the task that ends last these causes lead back to the start: the critical path of the plan.
    """
    makespan, busiest, joules, done, _, _, _ = _loop(a, s, None, place, priority)
    if done < len(place) or makespan == np.inf:
        return np.inf, np.inf, np.inf
    return makespan, busiest, joules


@njit(cache=True)
def _resident(a, place, strict, log):  # noqa: ANN001, ANN202
    """(Resident as it is before the first task starts, transfers that there will be)."""
    count, devices = a.seconds.shape
    values = len(a.producer)
    refs = np.zeros(values * devices, np.int32)
    transfers = 0
    for v in range(values):
        home = place[a.producer[v]]
        for e in range(a.use_ptr[v], a.use_ptr[v + 1]):
            to = place[a.use_task[e]]
            cell = v * devices + to
            if to != home and refs[cell] == 0:
                transfers += 1
            refs[cell] += 1
        if a.keep[v]:
            refs[v * devices + home] += 1
    for v in range(values):
        if a.base[v] >= 0:
            refs[a.base[v] * devices + place[a.producer[v]]] += 1
    held, over_at, seen = np.zeros(devices, np.int64), np.full(devices, np.inf), np.full(devices, -1, np.int64)
    for f in range(len(a.fixed_size)):
        for e in range(a.fixed_ptr[f], a.fixed_ptr[f + 1]):
            d = place[a.fixed_task[e]]
            if seen[d] != f:
                seen[d] = f
                held[d] += a.fixed_size[f]
    logs = devices + 2 * count + 2 * (values + transfers) if log else 0
    m = Resident(strict, log, refs, held, held.copy(), np.zeros(devices), over_at, np.zeros(values + 1, np.int64),
                 np.zeros(transfers, np.int32), np.zeros(transfers), np.zeros(transfers), np.zeros(transfers), np.zeros(logs),
                 np.zeros(logs, np.int32), np.zeros(logs, np.int64))
    for d in range(devices):
        if held[d] > a.limit[d]:
            over_at[d] = 0.0
        if log:
            m.log_device[d], m.log_bytes[d] = d, held[d]
    return m, transfers


@njit(cache=True)
def play(a, place, priority, strict, log):  # noqa: ANN001, ANN202
    """`simulate` on plain arrays, for kernels and solvers: a Arrays, place i2[T], priority f8[T], strict and log bools → Played. Checks nothing."""
    s = _scratch(a)
    m, transfers = _resident(a, place, strict, log)
    makespan, _, joules, done, sent, copies, logged = _loop(a, s, m, place, priority)
    if done < len(place) or makespan == np.inf:
        makespan, joules = np.inf, np.inf
    s.value[sent: transfers], s.target[sent: transfers] = 0, 0          # what never began
    logged = logged if log else 0
    return Played(done, done + 2 * sent + copies, makespan, s.start, s.finish, s.ready, s.busy, s.lane_busy[:a.lanes], m.peak, m.peak_at, m.over_at,
                  joules, s.value[:transfers], m.source, s.target[:transfers], m.asked, m.begun, m.arrived, m.log_at[:logged], m.log_device[:logged],
                  m.log_bytes[:logged])


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
