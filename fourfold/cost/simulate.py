"""Simulate: when each task starts and ends, what waits for what, how much memory each device holds and what it all costs. Event-driven, in numba.

    tasks = tasks_of(graph, group, system)
    timeline = simulate(tasks, place, priority, system)

Rules
 1. A task runs on its device `place[t]` for `seconds[t, place[t]]`, without a break; a device runs one task at a time.
 2. A task is *ready* when every value it reads is on its device. An idle device takes the ready task of largest priority (ties: the lower number), at
    once: no device idles while a task of its own is ready (work conservation). With `strict`, a device takes its tasks in falling priority whether or
    not they are ready, and waits for the next one, as an executor with a fixed order does.
 3. A value read on another device than the one that made it is sent there once, however many tasks read it, as soon as its producer ends.
    Transfers are asked for in the order in which producers end (ties: task, value, destination, each by number).
 4. A transfer takes every lane of its route together, for bytes / (least bandwidth of the route); each lane serves its transfers in the order in
    which they were asked for. It arrives the route's latency after that. A duplex link has a lane each way, any other one lane. Zero bytes still pay
    latency.
 5. Compute and transfers overlap, unless a link of the route says `overlap = false`: then the sender copies the bytes itself, its transfers begin one
    after the other, and it starts no task while it copies.
 6. Memory of a device = resident bytes (parameters, inputs, constants, each once, of all tasks placed there, all the time) + live values + workspace
    of the task that runs. A value is live on the device that makes it from the start of its producer until its last reader there has ended and its
    last copy has arrived elsewhere; a copy, from the start of its transfer until its last reader there has ended; outputs of the program to the end,
    where they were made. A view holds no bytes and keeps what it views alive. At one instant, what ends frees its bytes before what begins takes its
    own. More than the limit is reported, not prevented.
 7. Joules = idle watts × idle time and busy watts × busy time of every device until the makespan + joules per byte of every transfer.

Everything is a function of its arguments: same input, same output, to the bit.

What follows from the rules (each is a test)
 · makespan ≥ the longest path through seconds and uncontended transfers, ≥ the load of the busiest device, ≥ the load of the busiest lane;
 · more bandwidth never hurts where orders cannot change: with `strict`, where each lane carries what one device sends (a duplex link for each
   pair) and all links overlap; also without `strict` where moreover the tasks of each device form a chain. Start times are then maxima of sums of
   task and transfer times. Otherwise it can hurt (Graham 1969: a list schedule may get longer when a task gets shorter; `tests/test_simulate.py`
   holds an instance of five tasks); what always holds is that `bound`, the makespan's lower bound above, does not rise.

An event is one entry of the event queue: the end of a task, the start of a transfer, the arrival of a transfer, the end of a sender's copying.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from fourfold.errors import InputError
from fourfold.machine import System

if TYPE_CHECKING:
    from fourfold.graph import Graph

_END, _ARRIVAL, _TRANSFER, _WAKE = 0, 1, 2, 3                           # kinds of events, in the order in which those of one instant happen


@dataclass(frozen=True, eq=False)
class Tasks:
    """T tasks, V values that pass between them (ordered by producer), F things that stay resident.

    `seconds` f8[T, D]: inf where the device cannot. `producer` i4[V]; `size` i8[V] bytes sent; `hold` i8[V] bytes of memory where it is made, 0 for a
    view; `base` i4[V] the value (read or made by the same task) whose memory a view keeps alive, -1 none; `keep` b1[V] an output.
    `use_ptr` i4[V+1], `use_task`: readers of each value, each once. `fixed_size` i8[F], `fixed_ptr`, `fixed_task`: resident things and the tasks that
    read them. `workspace` i8[T]. `group` i4[N]: the task of each node of a graph, empty otherwise. Raises InputError where arrays do not fit.
    """

    seconds: NDArray[np.float64]
    producer: NDArray[np.int32]
    size: NDArray[np.int64]
    use_ptr: NDArray[np.int32]
    use_task: NDArray[np.int32]
    hold: NDArray[np.int64]
    base: NDArray[np.int32]
    keep: NDArray[np.bool_]
    workspace: NDArray[np.int64]
    fixed_size: NDArray[np.int64]
    fixed_ptr: NDArray[np.int32]
    fixed_task: NDArray[np.int32]
    names: tuple[str, ...] = ()
    group: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self) -> None:
        count, values = len(self.seconds), len(self.producer)
        sound = (self.seconds.ndim == 2 and all(len(part) == values for part in (self.size, self.hold, self.base, self.keep))
                 and len(self.use_ptr) == values + 1 and len(self.workspace) == count and len(self.fixed_ptr) == len(self.fixed_size) + 1
                 and bool(np.all(np.diff(self.producer) >= 0)) and all(part.size == 0 or (part.min() >= 0 and part.max() < count)
                                                                       for part in (self.producer, self.use_task, self.fixed_task)))
        if not sound:
            raise InputError("The arrays of Tasks do not fit together.", "Order values by producer and number tasks from 0; or use Tasks.of.")
        if np.isnan(self.seconds).any() or (self.seconds < 0).any():
            raise InputError("A task has a negative or unknown time.", "Give seconds ≥ 0; inf where a device cannot run it.")

    @classmethod
    def of(cls, seconds: ArrayLike, values: Iterable[tuple[int, int, Sequence[int]]] = (), *, keep: Iterable[int] = (),
           fixed: Iterable[tuple[int, Sequence[int]]] = (), workspace: ArrayLike | None = None, names: Sequence[str] = ()) -> Tasks:
        """From plain lists: `values` (producer, bytes, readers) — numbered anew by producer —, `keep` positions in `values` that are outputs, `fixed`
        (bytes, tasks)."""
        table, rows, outputs = np.array(seconds, dtype=np.float64), list(values), set(keep)
        order = sorted(range(len(rows)), key=lambda v: rows[v][0])
        uses, stay = [sorted(set(rows[v][2])) for v in order], list(fixed)
        size = np.array([rows[v][1] for v in order], np.int64)
        makers = np.array([rows[v][0] for v in order], np.int32)
        return cls(table, makers, size, _pointer(uses), _flat(uses), size.copy(), np.full(len(rows), -1, np.int32),
                   np.array([v in outputs for v in order], bool),
                   np.zeros(len(table), np.int64) if workspace is None else np.array(workspace, np.int64),
                   np.array([one for one, _ in stay], np.int64), _pointer([list(t) for _, t in stay]), _flat([list(t) for _, t in stay]),
                   tuple(names))

    def __len__(self) -> int:
        return len(self.seconds)

    @cached_property
    def reads(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(ptr i4[T+1], value i4[·]): values that each task reads, ascending."""
        value = np.repeat(np.arange(len(self.producer), dtype=np.int32), np.diff(self.use_ptr))
        order = np.argsort(self.use_task, kind="stable")
        return _starts(self.use_task, len(self)), value[order]

    def edges(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """(src [E], dst [E], value [E]): task dst reads `value`, which task src makes."""
        value = np.repeat(np.arange(len(self.producer), dtype=np.int32), np.diff(self.use_ptr))
        return self.producer[value], self.use_task, value

    def name(self, task: int) -> str:
        return self.names[task] if task < len(self.names) else f"task {task}"


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


@dataclass(frozen=True)
class Transfers:
    """X transfers in the order in which they were asked for: value, source and target device i4[X]; asked, start, finish s f8[X]."""

    value: NDArray[np.int32]
    source: NDArray[np.int32]
    target: NDArray[np.int32]
    asked: NDArray[np.float64]
    start: NDArray[np.float64]
    finish: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Timeline:
    """What happens: `start`, `finish`, `ready` s f8[T]; `makespan` s; `busy` s f8[D]; `link_busy` s f8[L] (both lanes together); `peak_bytes` i8[D]
    and when; `joules`; `transfers`; `events` handled; `memory` (if asked for): per device the times f8[·] at which its bytes change, and bytes i8[·].
    """

    start: NDArray[np.float64]
    finish: NDArray[np.float64]
    ready: NDArray[np.float64]
    makespan: float
    busy: NDArray[np.float64]
    link_busy: NDArray[np.float64]
    peak_bytes: NDArray[np.int64]
    peak_at: NDArray[np.float64]
    over_at: NDArray[np.float64]
    joules: float
    transfers: Transfers
    events: int
    limits: tuple[tuple[str, float], ...] = ()
    unsupported: tuple[str, ...] = ()
    memory: tuple[tuple[NDArray[np.float64], NDArray[np.int64]], ...] = ()

    def violations(self) -> list[str]:
        """A sentence for every device that holds more than it may (by how many bytes, from when, worst when) and every task it cannot run."""
        told = [f"{name} holds {peak:,} bytes, {peak - int(limit):,} more than its {int(limit):,}: from {over:.6g} s on, most at {at:.6g} s."
                for (name, limit), peak, over, at in zip(self.limits, *(part.tolist() for part in (self.peak_bytes, self.over_at, self.peak_at)),
                                                         strict=True) if peak > limit]
        return [*self.unsupported, *told]

    def to_json(self) -> dict[str, Any]:
        return {"makespan": self.makespan, "joules": self.joules, "busy": self.busy.tolist(), "link_busy": self.link_busy.tolist(),
                "peak_bytes": self.peak_bytes.tolist(), "transfers": len(self.transfers), "events": self.events,
                "start": self.start.tolist(), "finish": self.finish.tolist(), "violations": self.violations()}


def arrays(tasks: Tasks, system: System) -> Arrays:
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
        _starts(tasks.producer, len(tasks)), tasks.use_ptr, tasks.use_task, in_ptr, in_val,
        tasks.workspace, tasks.fixed_size, tasks.fixed_ptr, tasks.fixed_task,
        _pointer([list(route.lanes) for route in routes]), _flat([list(route.lanes) for route in routes]),
        np.array([route.latency for route in routes]).reshape(square), np.array([route.bandwidth for route in routes]).reshape(square),
        np.array([route.energy for route in routes]).reshape(square),
        np.array([not all(system.links[lane // 2].overlap for lane in route.lanes) for route in routes]).reshape(square),
        np.array([device.memory for device in system.devices], np.float64), np.array([device.idle for device in system.devices], np.float64),
        np.array([device.busy for device in system.devices], np.float64), 2 * len(system.links))


def simulate(tasks: Tasks, place: ArrayLike, priority: ArrayLike, system: System, *, strict: bool = False, memory: bool = False) -> Timeline:
    """Run `tasks` with device `place` i2[T] and `priority` f8[T] each (larger first) on `system`, by the rules above.

    `strict`: devices keep to the order of priorities and wait. `memory`: keep the memory curve. Raises InputError where arrays have another length, a
    place is no device, a priority is NaN, tasks wait for one another in a circle, or (`strict`) an order can never finish.
    """
    plain = arrays(tasks, system)
    where, wanted = np.asarray(place).astype(np.int64), np.asarray(priority, np.float64)
    if where.shape != (len(tasks),) or wanted.shape != (len(tasks),):
        raise InputError(f"There are {len(tasks)} tasks, {where.size} places and {wanted.size} priorities.", "Give one of each per task.")
    if len(tasks) and (where.min() < 0 or where.max() >= len(system)):
        raise InputError(f"A task is placed on device {int(where.max() if where.max() >= len(system) else where.min())}.",
                         f"{system.name!r} has devices 0 to {len(system) - 1}.")
    if np.isnan(wanted).any():
        raise InputError(f"{tasks.name(int(np.argmax(np.isnan(wanted))))} has no priority (NaN).", "Give a number for each task.")
    run = play(plain, where.astype(np.int16), wanted, strict, memory)
    if run.done < len(tasks):
        stuck = np.flatnonzero(np.isnan(run.finish))
        told = ", ".join(tasks.name(int(t)) for t in stuck[:4]) + (", …" if len(stuck) > 4 else "")
        raise InputError(f"{len(stuck)} tasks wait for one another for ever: {told}.",
                         "Give an order that follows the dataflow on every device." if strict else "Choose groups whose graph has no cycle.")
    cannot = np.flatnonzero(np.isinf(tasks.seconds[np.arange(len(tasks)), where]))
    lanes = run.lane_busy.reshape(-1, 2).sum(axis=1) if plain.lanes else np.zeros(0)
    curve = tuple((run.log_at[run.log_device == d], run.log_bytes[run.log_device == d]) for d in range(len(system))) if memory else ()
    return Timeline(run.start, run.finish, run.ready, run.makespan, run.busy, lanes, run.peak, run.peak_at, run.over_at, run.joules,
                    Transfers(run.value, run.source, run.target, run.asked, run.begun, run.arrived), run.events,
                    tuple((device.name, device.memory) for device in system.devices),
                    tuple(f"{tasks.name(int(t))} cannot run on {system.devices[where[t]].name}." for t in cannot), curve)


def bound(tasks: Tasks, place: ArrayLike, system: System) -> float:
    """The fluid bound, s: no schedule of these tasks at these places is shorter, whatever the order. The largest of the longest path (transfers
    without contention included), the load of each device and the load of each lane."""
    plain = arrays(tasks, system)
    return float(_bound(plain, np.asarray(place, np.int16)))


def simulate_many(tasks: Tasks, places: ArrayLike, priorities: ArrayLike, system: System, *, strict: bool = False,
                  ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """(makespan f8[B] s, peak bytes i8[B, D], joules f8[B]) of B plans: places [B, T], priorities [B, T]. A plan that cannot finish takes inf."""
    where = np.ascontiguousarray(places, np.int16)
    return play_many(arrays(tasks, system), where, np.ascontiguousarray(np.broadcast_to(np.asarray(priorities, np.float64), where.shape)), strict)


# ---- kernels -------------------------------------------------------------------------------------------------------------------------------------

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
def _bound(a, place):  # noqa: ANN001, ANN202
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


# ---- tasks of a graph ----------------------------------------------------------------------------------------------------------------------------

def tasks_of(graph: Graph, group: ArrayLike, system: System, seconds: NDArray[np.float64] | None = None) -> Tasks:
    """The tasks that fusion `group` i4[N] makes of `graph` (equal number = one task; -1 = a task of its own), priced for `system`.

    Tasks are numbered by their first node; `Tasks.group` gives the task of each node. What lies inside a task is in registers and costs no memory.
    Parameters, inputs, constants and views of them are resident wherever they are read. `seconds` f8[T, D] replaces the roofline's. Raises InputError
    where `group` has another length.
    """
    from fourfold.graph import INTERMEDIATE

    task, count = number(group, len(graph))
    dst = np.repeat(np.arange(len(graph)), np.diff(graph.in_ptr))
    value = graph.in_val.astype(np.int64)
    free = graph.role[graph.alias] != INTERMEDIATE                      # storage that is there from the start
    reader = task[dst]
    # resident things: (root, task), each once
    fixed = _unique_pairs(graph.alias[value[free[value]]].astype(np.int64), reader[free[value]])
    roots = np.unique(fixed[:, 0])
    # values between tasks: (value, reader), each once
    maker = np.where(graph.producer >= 0, task[graph.producer], -1)
    crossing = ~free[value] & (maker[value] != reader)
    pairs = _unique_pairs(value[crossing], reader[crossing])
    kept = np.unique(graph.outputs[~free[graph.outputs]]).astype(np.int64)
    passed = np.union1d(pairs[:, 0], kept)
    passed = passed[np.lexsort((passed, maker[passed]))]
    place = np.full(len(graph.producer), -1, np.int64)
    place[passed] = np.arange(len(passed))
    hold, base = _storage(graph, passed, maker, pairs, place)
    order = np.lexsort((pairs[:, 1], place[pairs[:, 0]]))
    root = graph.alias[passed]
    if seconds is None:
        from fourfold.cost.roofline import fused_seconds

        seconds = fused_seconds(graph, task, system)
    first = np.full(count, len(graph), np.int64)
    np.minimum.at(first, task, np.arange(len(graph)))
    names = tuple(graph.names[n] for n in first.tolist())
    return Tasks(seconds, maker[passed].astype(np.int32), np.minimum(graph.size[passed], graph.size[root]),
                 _starts(place[pairs[order, 0]], len(passed)), pairs[order, 1].astype(np.int32), hold, base, np.isin(passed, kept),
                 np.zeros(count, np.int64), graph.size[roots].copy(), _starts(np.searchsorted(roots, fixed[:, 0]), len(roots)),
                 fixed[:, 1].astype(np.int32), names, task.astype(np.int32))


def number(group: ArrayLike, nodes: int) -> tuple[NDArray[np.int64], int]:
    """(task i8[N], T): groups numbered from 0 by their first node; every -1 is a group of its own. Raises InputError for another length."""
    given = np.asarray(group, np.int64)
    if given.shape != (nodes,):
        raise InputError(f"There are {nodes} nodes and {given.size} group numbers.", "Give one group number per node.")
    alone = given < 0
    distinct = np.where(alone, given.max(initial=0) + 1 + np.arange(nodes), given)
    _, first, inverse = np.unique(distinct, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse.reshape(-1)], len(first)


def _storage(graph: Graph, passed: NDArray[np.int64], maker: NDArray[Any], pairs: NDArray[np.int64], place: NDArray[np.int64],
             ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Bytes that each passed value holds, and the passed value whose memory it shares."""
    hold, base = graph.size[passed].copy(), np.full(len(passed), -1, np.int32)
    shared = np.flatnonzero(graph.alias[passed] != passed)
    if not len(shared):
        return hold, base
    values = len(graph.alias)
    root, task = graph.alias[passed].astype(np.int64), maker[passed]
    cell = task * values + root                                         # (making task, root)
    abroad = maker[root] != task
    # by which passed value the making task reads the root: the first of them
    among = np.isin(graph.alias[pairs[:, 0]], root[shared])
    read, first = np.unique(pairs[among, 1] * values + graph.alias[pairs[among, 0]], return_index=True)
    owner = place[pairs[among, 0]][first]
    far = shared[abroad[shared]]
    at = np.minimum(np.searchsorted(read, cell[far]), max(0, len(read) - 1))
    found = read[at] == cell[far] if len(read) else np.zeros(len(far), bool)
    base[far[found]] = owner[at[found]]
    # its own root's bytes, where those are passed on too; else the first view holds them for the rest
    near = np.flatnonzero(~abroad & ((graph.alias[passed] == passed) | np.isin(cell, cell[shared])))
    near = near[np.lexsort((near, graph.alias[passed[near]] != passed[near], cell[near]))]
    lead = np.concatenate([[True], cell[near][1:] != cell[near][:-1]]) if len(near) else np.zeros(0, bool)
    leader = near[np.flatnonzero(lead)[np.cumsum(lead) - 1]] if len(near) else near
    base[near[~lead]] = leader[~lead]
    alone = np.concatenate([far[~found], near[lead]])
    hold[alone] = graph.size[root[alone]]
    hold[base >= 0] = 0
    return hold, base


def _unique_pairs(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """[P, 2] the pairs, each once, sorted."""
    if not len(first):
        return np.zeros((0, 2), np.int64)
    wide = int(second.max()) + 1
    code = np.unique(first * wide + second)
    return np.stack([code // wide, code % wide], axis=1)


def _starts(keys: NDArray[Any], count: int) -> NDArray[np.int32]:
    """i4[count+1]: where each key's entries begin, once they are sorted by key."""
    return np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=count))]).astype(np.int32)


def _pointer(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)


def _flat(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.array([entry for row in rows for entry in row], dtype=np.int32)


def chain_of(timeline: Timeline, place: ArrayLike) -> Mapping[int, list[int]]:
    """Device → its tasks in the order in which they ran."""
    where = np.asarray(place)
    return {int(d): [int(t) for t in np.flatnonzero(where == d)[np.argsort(timeline.start[where == d], kind="stable")]] for d in np.unique(where)}
