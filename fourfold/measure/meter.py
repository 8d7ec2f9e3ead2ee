"""What a piece of work took: joules by component, CO2e and money, each figure with its grade and interval, or None and a reason.

    with Meter("epoch", site="tokyo") as m:
        train()
    print(m.result)

Windows nest (the inner one's time is inside the outer's), open in threads and async tasks, and survive forks. CPU time belongs to the process, so two
windows of one process that overlap without one lying inside the other are flagged and charged equal shares.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fourfold.errors import FourfoldError, InputError
from fourfold.measure import use as _use
from fourfold.measure.host_lock import forked
from fourfold.measure.recompute import Charge, differences, recompute
from fourfold.measure.sampler import Station, Window
from fourfold.measure.use import Use

__all__ = ["Charge", "Meter", "Use", "differences", "known", "recompute"]

LEDGER = Path(".fourfold/ledger.jsonl")                                # where runs are written down unless told otherwise
OUTER = "FOURFOLD_RUN"                                                 # environment: the run that this process is inside of
_current: ContextVar[Window | None] = ContextVar("fourfold_window", default=None)
_stations: dict[tuple[object, ...], Station] = {}


class Meter:
    """Measure a window: `with`, `async with`, `start`/`stop`, or as a decorator of functions and coroutines (each call a window of its own).

    `site` (a name or Site) gives CO2e and cost; `unit` names the work that `add` counts (one where nothing is added); `ledger` is a file (True: the
    usual one) that each window is written to; `meters` replaces the known ones, `clock` the system's; `hz` is how often children, memory and sampled
    meters are looked at (0: at both ends only); `reserve` is the number of cores held for this work, charged their idle power all the time;
    `model` False leaves everything None that no meter reads; `scope` "cgroup" counts the control group, not this process and its children.
    `result` is the last window's Use. Raises InputError for an unknown site or impossible options.
    """

    def __init__(self, name: str = "", *, site: object = None, unit: str | None = None, ledger: Path | str | bool | None = None,
                 meters: Sequence[object] | None = None, clock: object = None, hz: float = 10.0, reserve: float | None = None, model: bool = True,
                 scope: str = "process") -> None:
        if callable(name):
            raise InputError("@Meter needs brackets.", 'Write @Meter("step") or @Meter().')
        if not 0 <= hz <= 1000:
            raise InputError(f"hz is {hz!r}.", "Expected 0 (no sampling) to 1000 samples a second.")
        if reserve is not None and not 0 < reserve <= 1e6:
            raise InputError(f"reserve is {reserve!r}.", "Expected a number of cores above 0.")
        if scope not in ("process", "cgroup"):
            raise InputError(f"scope is {scope!r}.", 'Expected "process" or "cgroup".')
        self.name, self.unit, self.hz, self.reserve, self.model, self.scope = name, unit, hz, reserve, model, scope
        self.ledger = LEDGER if ledger is True else Path(ledger) if ledger else None
        self.site = _site(site)
        self._meters, self._clock = meters, clock
        self._open: list[tuple[Window, Station, float]] = []
        self._done = 0.0
        self.results: deque[Use] = deque(maxlen=1000)

    @property
    def result(self) -> Use:
        """The last finished window. Raises InputError while there is none."""
        if not self.results:
            raise InputError(f"The window {self.name!r} has not ended yet.", "Read `result` after the `with` block.")
        return self.results[-1]

    def add(self, count: float = 1) -> None:
        """Count work done, in `unit`s. Raises InputError where no unit was named, and for negative counts."""
        if self.unit is None or not count >= 0:
            raise InputError(f"{count!r} {self.unit or 'units of nothing'} cannot be added.",
                             'Name the unit: Meter("train", unit="epoch"); counts are 0 or more.')
        self._done += count

    def sample(self) -> None:
        """Read all counters now: between the samples of the thread, or in their place where there is none."""
        for _, station, _ in self._open[-1:]:
            station.sample()

    # ---- the window --------------------------------------------------------------------------------------------------------------------------

    def start(self) -> Meter:
        """Open a window."""
        station = _station(self._meters, self._clock, self.scope)
        window = station.enter(self.name, _new_id(), _current.get(), self.hz)
        self._open.append((window, station, self._done))
        _current.set(window)
        return self

    def stop(self, failed: str = "") -> Use:
        """Close the innermost window of this meter (in this task), and return what it used."""
        at = self._mine()
        window, station, done = self._open.pop(at)
        if _current.get() is window:
            _current.set(window.outer)
        if window.pid != os.getpid():
            raise InputError(f"The window {self.name!r} was opened before this process was forked.", "Open a window in the child itself.")
        readings = [*station.leave(window), _stated(self.reserve, self.model), *([{"kind": "site", **self.site}] if self.site else [])]
        parent = window.outer.id if window.outer is not None else os.environ.get(OUTER)
        work = {self.unit: self._done - done or 1.0} if self.unit else {}
        use = Use(readings, self.name, window.id, parent, work, site=self.site, failed=failed)
        self.results.append(use)
        if self.ledger is not None:
            _write(self.ledger, use)
        return use

    def _mine(self) -> int:
        """Which open window to close: this task's own, else the last."""
        if not self._open:
            raise InputError(f"The meter {self.name!r} has no open window.", "Call start() first, or use `with`.")
        here = _current.get()
        return next((at for at, (window, _, _) in enumerate(self._open) if window is here), len(self._open) - 1)

    def __enter__(self) -> Meter:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._open and self._open[self._mine()][0].pid != os.getpid():   # leaving a block that the parent process entered
            self._open.pop(self._mine())
            return
        self.stop(f"{kind.__name__}" if kind else "")

    async def __aenter__(self) -> Meter:
        return self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, work: Callable[..., object]) -> Callable[..., object]:
        """Decorate a function or a coroutine function: each call is a window. Raises InputError for generators, whose work is the caller's too."""
        import inspect

        if inspect.isgeneratorfunction(work) or inspect.isasyncgenfunction(work):
            raise InputError(f"{work.__name__} is a generator: between its values the caller works.",
                             "Measure the loop that consumes it: with Meter(…).")
        self.name = self.name or getattr(work, "__qualname__", "")
        if inspect.iscoroutinefunction(work):
            @functools.wraps(work)
            async def waiting(*given: object, **named: object) -> object:
                async with self:
                    return await work(*given, **named)
            return waiting

        @functools.wraps(work)
        def working(*given: object, **named: object) -> Any:
            with self:
                return work(*given, **named)
        return working


# ---- parts -----------------------------------------------------------------------------------------------------------------------------------------


@functools.cache
def known() -> tuple[Any, ...]:
    """The meters that fourfold knows, best first; ask each `available()`."""
    from fourfold.measure.meters.battery import Battery
    from fourfold.measure.meters.hwmon import Hwmon
    from fourfold.measure.meters.nvml import Nvml, NvmlPower
    from fourfold.measure.meters.rapl import Rapl

    gpus = Nvml()
    return Rapl(), Hwmon(), Battery(), gpus, *([] if gpus.available() is None else [NvmlPower()])


def _station(meters: Sequence[object] | None, clock: object, scope: str) -> Station:
    """The station for these meters and this clock; made once a process."""
    key = (tuple(id(meter) for meter in meters) if meters is not None else None, id(clock) if clock is not None else None, scope)
    station = _stations.get(key)
    if station is None:
        with _use.guard:
            if key not in _stations:
                _machine()                                             # now: it imports, and a fork meanwhile would leave the child an import lock
                _forget()                                              # that nobody holds
                _stations[key] = _make(known() if meters is None else meters, clock, scope)
            station = _stations[key]
    return station


def _make(meters: Sequence[object], clock: Any, scope: str) -> Station:
    if clock is not None:                                              # whoever gives a clock tells with it what was used
        return Station(meters, clock=clock, body=clock.body(), host=clock.host, in_use=clock.in_use, claim=getattr(clock, "claim", None))
    if scope == "cgroup":
        from fourfold.measure.meters.cgroup import Group

        return Station(meters, body=Group())
    return Station(meters)


def _forget() -> None:
    """Stations of given meters live as long as they have windows; `id` may be used again afterwards."""
    for key in [key for key, station in _stations.items() if key[:2] != (None, None) and not station.open]:
        del _stations[key]


_paused: list[Station] = []


def _before_fork() -> None:
    _use.guard.acquire()                                               # no station is made meanwhile
    _paused[:] = _stations.values()
    for station in _paused:
        station.pause()


def _after_fork_here() -> None:
    for station in _paused:
        station.resume()
    _paused.clear()
    _use.guard.release()


def _after_fork_child() -> None:
    _use.guard = threading.Lock()
    _paused.clear()
    _stations.clear()                                                  # windows and threads are the parent's
    forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_here, after_in_child=_after_fork_child)


def _new_id() -> str:
    """A name for a run: when, and 8 random digits."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(4).hex()}"


def _site(site: Any) -> dict[str, Any] | None:
    """What a window needs to know of a place, as plain data. Raises InputError for one that nobody knows."""
    if site is None:
        return None
    if isinstance(site, str):
        from fourfold.site import site as find

        site = find(site)
    if isinstance(site, Mapping):
        return dict(site)
    return {"id": site.id, "title": site.title, "country": site.country, "intensity": site.intensity.to_json(), "pue": site.pue.to_json(),
            "price": site.price.to_json() if site.price is not None else None, "why": dict(getattr(site, "why", {}) or {})}


@functools.cache
def _machine() -> dict[str, Any]:
    """The stated power of this machine, and the cores that this process is confined to."""
    from fourfold.host import here, power
    from fourfold.measure.meters.disk import drive

    machine, cores = here(), os.cpu_count() or 1
    row = power(machine)
    return {"kind": "model", "title": row.title, "busy": row.busy.to_json(), "idle": row.idle.to_json(), "host_cores": cores,
            "confined": machine.cores if machine.cores < cores else None, "drive": drive().to_json()}


def _stated(reserve: float | None, model: bool) -> dict[str, Any]:
    """The model as a reading, with the cores that are reserved and why."""
    row = dict(_machine())
    confined = row.pop("confined")
    ranks = _ranks()
    if reserve is not None:
        row |= {"reserved": reserve, "reserved_why": "as stated"}
    elif confined is not None:
        shared = ranks > 1 and confined * ranks > row["host_cores"]    # one confinement for all ranks, not one each
        row |= {"reserved": confined / ranks if shared else confined,
                "reserved_why": f"affinity or control group{f', shared by {ranks} ranks' if shared else ''}"}
    return row if model else row | {"declined": True}


def _ranks() -> int:
    """How many ranks of one job share this host, as launchers tell."""
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"):
        text = os.environ.get(name, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return 1


def _write(path: Path, use: Use) -> None:
    """Append the run. The work is done by now: a ledger that cannot be written is a warning, not the end of it."""
    from fourfold.ledger.hash_chain import append

    try:
        append(path, use.row())
    except (FourfoldError, OSError) as error:
        warnings.warn(f"the run {use.id} was not written to {path}: {error}", RuntimeWarning, stacklevel=4)
