"""One station a process: it reads every counter at once, runs the one sampling thread, and knows which windows are open.

All windows of a process share it, so that ten nested windows cost one thread, and so that windows that overlap without being nested are seen to:
what is used while k of them are open is charged to each in equal shares, and no joule is charged twice.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fourfold.measure.counter import Count, MeterError
from fourfold.measure.host_lock import HOST, HostLock
from fourfold.measure.meters.memory import in_use
from fourfold.measure.process_tree import Tree, Used, host_cpu
from fourfold.measure.race import SystemClock

_LINGER = 3.0                                                          # s that the thread outlives the last window, so that the next one is cheap
_LEAST = 0.5                                                           # s: power over less than that says little about the least power
_GAP = 3.0                                                             # sampling periods without a sample make a gap
_CENSUS = 1.0                                                          # s between looks at who is on the GPUs


class Body(Protocol):
    """Whose use is counted."""

    tick: float

    def take(self, walk: bool | None = None, thorough: bool = True) -> Used: ...

    def members(self) -> set[int]: ...

    def opened(self, prefix: str) -> set[str]: ...


@dataclass(slots=True)
class Snapshot:
    """Every counter at one moment; `meters` holds what each meter counted, or why it no longer does."""

    wall: float
    boot: float
    utc: float
    used: Used
    host: float | None
    byte_seconds: float
    host_byte_seconds: float
    meters: dict[int, list[Count] | str]                               # of those that were available
    doubts: dict[int, tuple[float, float]]                             # J in doubt and s of gaps, a meter


@dataclass
class Window:
    """An open window: where it began, what is not its own, and what was seen meanwhile."""

    name: str
    id: str
    parent: Window | None                                              # the one around it in this process
    start: Snapshot
    outer: Window | None = None                                        # the one around it, be it in the process that this one was forked from
    pid: int = field(default_factory=os.getpid)
    overhead: float = 0.0                                              # CPU seconds of the sampling thread when it began
    elsewhere: dict[str, float] = field(default_factory=dict)          # what overlapping windows are charged: cpu, wall, bytes, byte_seconds
    overlap: dict[str, None] = field(default_factory=dict)             # their names
    died: dict[int, str] = field(default_factory=dict)                 # meter → why it did not see the window's end
    lowest: dict[int, float] = field(default_factory=dict)             # meter → least power seen, W
    before: dict[int, tuple[float, float]] = field(default_factory=dict)   # meter → when and at how many J that was last asked
    users: dict[int, dict[str, dict[str, int]]] = field(default_factory=dict)   # meter → GPU → processes of ours and of others
    samples: int = 0
    gaps: float = 0.0
    peak: int = 0
    open: bool = True
    already: frozenset[tuple[int, int]] = frozenset()                  # descendants that were there before it began


class Station:
    """Counters of `body` (default: this process and its children), `meters` and `host` CPU time by `clock`.

    The open window that asks for the most samples a second sets `hz`. Not `threaded`, or with a clock that is not the system's, only
    calls of `sample` take samples. `claim` settles which process reports the host's joules (None: no other process is on that host).
    """

    def __init__(self, meters: Sequence[Any], *, clock: Any = None, body: Body | None = None, threaded: bool = True,
                 host: Callable[[], float | None] = host_cpu, in_use: Callable[[], int | None] = in_use, claim: HostLock | None = HOST) -> None:
        self.clock, self.hz, self.meters = clock or SystemClock(), 0.0, list(meters)
        self.body: Body = body or Tree()
        self.why = {index: meter.available() for index, meter in enumerate(self.meters)}
        self.live = [index for index, why in self.why.items() if why is None]
        self._absent = {index: {**_facts(meter), "error": meter.error, "start": [], "end": [], "why": self.why[index]}
                        for index, meter in enumerate(self.meters) if self.why[index] is not None}
        self.posthoc = {index for index in self.live if hasattr(self.meters[index], "between")}
        self.at_host = any(self.meters[index].boundary == "host" for index in self.live)
        self.open: list[Window] = []
        self.overhead = 0.0                                            # CPU seconds of the sampling thread
        self._threaded = threaded and isinstance(self.clock, SystemClock)
        self._spent = 0.0                                              # of threads that have ended
        self._host, self._in_use, self._claim = host, in_use, claim
        self._pid, self._lock, self._stop = os.getpid(), threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._last: Snapshot | None = None
        self._event: Snapshot | None = None                            # at the last opening or closing of a window
        self._dead: dict[int, str] = {}
        self._census = -1e9
        self._writer = False                                           # whether this process is the one to report the host's joules

    # ---- reading -----------------------------------------------------------------------------------------------------------------------------

    def _read(self, thorough: bool = True) -> Snapshot:
        """Read everything now, and carry the integrals on."""
        clock, last = self.clock, self._last
        wall = clock.wall()
        boot = clock.boot() if hasattr(clock, "boot") else wall
        used = self.body.take(None, thorough)
        host = self._host() if self.at_host else None
        taken = self._in_use() if self.at_host else None
        held, area, host_area = used.held or 0, 0.0, 0.0
        if last is not None:
            length = wall - last.wall
            area = last.byte_seconds + length * (held + (last.used.held or 0)) / 2
            host_area = last.host_byte_seconds + length * (taken or 0)
            if not held and last.used.held and not used.processes:     # the last process held its memory until it ended
                area += length * last.used.held / 2
        meters = {index: self._counts(index) for index in self.live}
        doubts = {index: (getattr(self.meters[index], "doubt", 0.0), getattr(self.meters[index], "gaps", 0.0)) for index in self.live}
        self._last = Snapshot(wall, boot, clock.utc() if hasattr(clock, "utc") else 0.0, used, host, area, host_area, meters, doubts)
        return self._last

    def _counts(self, index: int) -> list[Count] | str:
        if index in self._dead:
            return self._dead[index]
        try:
            return self.meters[index].counts()
        except MeterError as error:
            self._dead[index] = str(error)
            return self._dead[index]

    @property
    def rate(self) -> float:
        """Samples a second: as asked, and as often as the meters need it; 0 = at both ends only."""
        return max([self.hz, *(1.0 / self.meters[index].every for index in self.live if self.meters[index].every)])

    def sample(self) -> None:
        """Read everything now, for all open windows."""
        with self._lock:
            before = self._last
            now = self._read(thorough=False)
            for window in self.open:
                self._watch(window, now, before)
            self._look(now)

    def _watch(self, window: Window, now: Snapshot, before: Snapshot | None) -> None:
        window.samples += 1
        window.peak = max(window.peak, now.used.held or 0)
        since = now.wall - max(before.wall, window.start.wall) if before else 0.0
        if self.rate and since > max(_GAP / self.rate, 1.0):
            window.gaps += since
        for index in self.live:
            counts = now.meters[index]
            if isinstance(counts, str):
                window.died.setdefault(index, counts)
            elif self.meters[index].boundary == "host" and counts:
                joules = sum(count.joules for count in counts if count.covers in ("cpu", "host"))
                then, had = window.before.get(index, (window.start.wall, _joules(window.start.meters[index])))
                if now.wall - then >= _LEAST:
                    window.lowest[index] = min(window.lowest.get(index, float("inf")), (joules - had) / (now.wall - then))
                    window.before[index] = now.wall, joules

    def _look(self, now: Snapshot) -> None:
        """Who is on the GPUs, about once a second: by NVML's list of processes, or, where that speaks of another process namespace (containers),
        by the device files that ours hold open."""
        if now.wall - self._census < _CENSUS or not self.open:
            return
        self._census = now.wall
        for index in self.live:
            users = self.meters[index].users() if hasattr(self.meters[index], "users") else None
            nodes = self.meters[index].nodes() if users else {}
            held = self.body.opened("/dev/nvidia") if users else set()
            for gpu, pids in (users or {}).items():
                ours = len(pids & self.body.members())
                named = ours or nodes.get(gpu) in held                  # if only by its file, one of the numbers listed is ours under another name
                others = len(pids) - ours if ours or not named else max(0, len(pids) - 1)
                for window in self.open:
                    seen = window.users.setdefault(index, {}).setdefault(gpu, {"ours": 0, "others": 0})
                    seen["ours"], seen["others"] = max(seen["ours"], ours or int(named)), max(seen["others"], others)

    # ---- windows -----------------------------------------------------------------------------------------------------------------------------

    def enter(self, name: str, id: str, outer: Window | None = None, hz: float = 10.0) -> Window:
        """Open a window inside `outer`, or beside whatever else is open."""
        with self._lock:
            if not self.open:
                self._begin()
            self.hz = max(self.hz, hz) if self.open else hz
            now = self._read()
            self._share(now)
            parent = outer if outer in self.open else None
            births = getattr(self.body, "births", None)
            window = Window(name, id, parent, now, outer, overhead=self.overhead, peak=now.used.held or 0, 
                            already=births() if births else frozenset())
            for other in self.open:
                if not _related(window, other):
                    window.overlap[other.name or other.id] = other.overlap[name or id] = None
            self.open.append(window)
            if now.wall - self._census >= _CENSUS:
                self._look(now)
            self._start()
            return window

    def leave(self, window: Window) -> list[dict[str, object]]:
        """Close a window: its readings, apart from what only the caller knows (model, site)."""
        with self._lock:
            before = self._last
            now = self._read()
            self._watch(window, now, before)
            self._census = -1e9 if any(hasattr(self.meters[index], "users") for index in self.live) else self._census
            self._look(now)
            self._share(now)
            window.open = False
            self.open.remove(window)
            readings = self._readings(window, now)
            if not self.open and self._writer and self._claim is not None:
                self._claim.give()
            return readings

    def _begin(self) -> None:
        """The first window after a time in which nobody measured."""
        self._dead.clear()
        self._last = None
        for index in self.live:
            if hasattr(self.meters[index], "restart"):
                self.meters[index].restart()
        self._writer = self.at_host and (self._claim is None or self._claim.take())

    def _share(self, now: Snapshot) -> None:
        """Between two events each window is charged its parent's share over the number of its parent's open windows; the rest is elsewhere."""
        then, self._event = self._event, now
        if then is None or len(self.open) < 2:
            return
        above = [_above(window) for window in self.open]
        beside: dict[int, int] = {}
        for around in above:
            beside[id(around)] = beside.get(id(around), 0) + 1
        weights: dict[int, float] = {}
        for window, around in zip(self.open, above, strict=True):      # those around open before those inside
            weights[id(window)] = (weights[id(around)] if around is not None else 1.0) / beside[id(around)]
        grown = _grown(then, now)
        for window in self.open:
            rest = 1.0 - weights[id(window)]
            if rest > 1e-12:
                for what, amount in grown.items():
                    window.elsewhere[what] = window.elsewhere.get(what, 0.0) + amount * rest

    # ---- the thread --------------------------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None and self.rate > 0 and self._threaded:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name="fourfold-meter", daemon=True)
            self._thread.start()

    def _run(self, stop: threading.Event) -> None:
        idle = 0.0
        while not stop.wait(1.0 / self.rate if self.rate else _LINGER):
            if self.open:
                idle = 0.0
                self.sample()
            else:
                idle += 1.0 / self.rate if self.rate else _LINGER
            self.overhead = self._spent + time.thread_time()
            if idle >= _LINGER:
                with self._lock:
                    if not self.open:                                  # nobody opened one since
                        if self._thread is threading.current_thread():
                            self._thread = None
                        break
        self._spent = self.overhead

    def pause(self) -> None:
        """Stop the thread and hold the lock, so that a fork copies neither a thread nor a lock that somebody else holds."""
        while True:
            self._lock.acquire()
            thread = self._thread
            if thread is None or thread is threading.current_thread():
                return
            self._stop.set()
            self._thread = None
            self._lock.release()                                       # the thread may want it before it sees that it should stop
            thread.join()

    def resume(self) -> None:
        """In the parent, after the fork."""
        if self.open:
            self._start()
        self._lock.release()

    # ---- what is kept ------------------------------------------------------------------------------------------------------------------------

    def _readings(self, window: Window, now: Snapshot) -> list[dict[str, object]]:
        start, wall = window.start, now.wall - window.start.wall
        passed = now.boot - start.boot
        rows: list[dict[str, object]] = [
            {"kind": "window", "id": window.id, "name": window.name, "parent": window.parent.id if window.parent else None, "wall_s": wall,
             "start_utc": start.utc, "end_utc": start.utc + passed, "step_s": (now.utc - start.utc) - passed if start.utc else 0.0,
             "slept_s": max(0.0, passed - wall), "overlap": list(window.overlap), "elsewhere_s": window.elsewhere.get("wall", 0.0),
             "samples": window.samples + 2, "gaps_s": window.gaps, "hz": self.hz, "sampler_cpu_s": self.overhead - window.overhead},
            self._cpu(window, now), self._memory(window, now),
            {"kind": "disk", "start": _moved(start.used), "end": _moved(now.used), "elsewhere": window.elsewhere.get("bytes", 0.0),
             **({"why": why} if (why := now.used.why.get("disk") or start.used.why.get("disk")) else {})}]
        return rows + [self._meter(index, window, now) if index in self.live else self._absent[index] for index in range(len(self.meters))]

    def _cpu(self, window: Window, now: Snapshot) -> dict[str, object]:
        start = window.start
        return {"kind": "cpu", "scope": getattr(self.body, "scope", "process and its children"), "start": _parts(start.used), "end": _parts(now.used),
                "elsewhere_s": window.elsewhere.get("cpu", 0.0), "tick_s": self.body.tick, "living_start": start.used.living,
                "living_end": now.used.living, **self._left(window, now),
                "unseen": now.used.unseen - start.used.unseen, "period_s": 1.0 / self.rate if self.rate else now.wall - start.wall,
                "host_start": start.host, "host_end": now.host,
                "why": {what: why for what, why in now.used.why.items() if what not in ("disk", "memory")}}

    def _left(self, window: Window, now: Snapshot) -> dict[str, list[str]]:
        """The names of processes that began within the window and outlive it, where the body knows its processes."""
        names = getattr(self.body, "names", None)
        return {"left": names(window.already)} if now.used.living and names else {}

    def _memory(self, window: Window, now: Snapshot) -> dict[str, object]:
        row: dict[str, object] = {"kind": "memory", "held_start": window.start.used.held, "held_end": now.used.held,
                               "peak": max(window.peak, now.used.held or 0)}
        why = now.used.why.get("memory") or window.start.used.why.get("memory")
        why = why or (None if row["peak"] else "it ended before its memory could be looked at")
        if why or now.used.held is None or window.start.used.held is None:
            return {**row, "byte_seconds": None, "why": why or "the memory held is unknown"}
        beside = now.host_byte_seconds - window.start.host_byte_seconds
        return {**row, "byte_seconds": now.byte_seconds - window.start.byte_seconds, "elsewhere": window.elsewhere.get("byte_seconds", 0.0),
                "host_byte_seconds": beside if self.at_host and beside > 0 else None}

    def _meter(self, index: int, window: Window, now: Snapshot) -> dict[str, object]:
        meter, start = self.meters[index], window.start
        row: dict[str, Any] = {**_facts(meter), "error": _error(meter, now.wall - start.wall)}
        began, ended = start.meters[index], now.meters[index]
        why = window.died.get(index) or next((end for end in (began, ended) if isinstance(end, str)), None)
        row |= {"start": [] if isinstance(began, str) else [count.to_json() for count in began],
                "end": [] if isinstance(ended, str) else [count.to_json() for count in ended],
                "doubt_j": now.doubts[index][0] - start.doubts[index][0], "gaps_s": now.doubts[index][1] - start.doubts[index][1]}
        if index in self.posthoc and why is None:
            row |= _afterwards(meter, start.utc, start.utc + now.boot - start.boot)
        if why:
            row["why"] = f"it died midway, and a part is not passed off as the whole: {why}"
        if index in window.lowest:
            row["lowest_w"] = window.lowest[index]
        if hasattr(meter, "users"):
            row["users"] = window.users.get(index)
        if meter.boundary == "host" and not self._writer:
            row |= {"writer": False, "writer_why": "another process on this host reports the host's joules; this one reports its share"}
        return row


def _facts(meter: Any) -> dict[str, Any]:
    return {"kind": "meter", "name": meter.name, "boundary": meter.boundary, "grade": meter.grade, "method": meter.method}


def _afterwards(meter: Any, start: float, end: float) -> dict[str, object]:
    """The reading of a record that is read once the work is done."""
    try:
        found = meter.between(start, end)
    except MeterError as error:
        return {"why": str(error)}
    ends = [Count(meter.name, meter.covers, joules).to_json() for joules in (0.0, found.joules)]
    return {"start": ends[:1], "end": ends[1:], "doubt_j": found.doubt, "gaps_s": found.gaps}


def _error(meter: Any, wall: float) -> float:
    """A meter's relative error over so many seconds."""
    short = getattr(meter, "short", None)                              # (seconds, error in windows under that)
    return max(meter.error, short[1]) if short and wall < short[0] else meter.error


def _parts(used: Used) -> dict[str, float]:
    return {"own": used.own, "reaped": used.reaped, "live": used.live, "gone": used.gone}


def _moved(used: Used) -> list[int] | None:
    return [used.read, used.written] if used.read is not None and used.written is not None else None


def _joules(counts: Iterable[Count] | str) -> float:
    return 0.0 if isinstance(counts, str) else sum(count.joules for count in counts if count.covers in ("cpu", "host"))


def _grown(then: Snapshot, now: Snapshot) -> dict[str, float]:
    before, after = _moved(then.used), _moved(now.used)
    return {"cpu": now.used.cpu - then.used.cpu, "wall": now.wall - then.wall, "byte_seconds": now.byte_seconds - then.byte_seconds,
            "bytes": float(sum(after) - sum(before)) if before and after else 0.0}


def _related(window: Window, other: Window) -> bool:
    """Whether one of the two lies inside the other."""
    for inner, outer in ((window, other), (other, window)):
        step: Window | None = inner
        while step is not None:
            if step is outer:
                return True
            step = step.parent
    return False


def _above(window: Window) -> Window | None:
    """The nearest window around this one that is still open."""
    step = window.parent
    while step is not None and not step.open:
        step = step.parent
    return step
