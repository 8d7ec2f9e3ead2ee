"""How many joules a piece of work took: a meter where there is one, else counted CPU time × a stated power model, and which of the two it was.

    with window() as used:
        work()
    print(used.joules, used.cpu, used.wall)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from fourfold.machine import Machine, here, power
from fourfold.measure.clock import Clock, SystemClock
from fourfold.measure.nvml import Nvml
from fourfold.measure.rapl import MeterError, Rapl
from fourfold.units import Quantity

_POLL = 30.0                                                           # s between reads inside a window, so that no counter wraps twice unseen


class Meter(Protocol):
    """A cumulative counter of joules. `error` is the half-width of its 90 % interval, relative."""

    @property
    def name(self) -> str: ...

    @property
    def boundary(self) -> str: ...

    @property
    def grade(self) -> str: ...

    @property
    def method(self) -> str: ...

    @property
    def error(self) -> float: ...

    def available(self) -> str | None: ...

    def read(self) -> float: ...


def modelled(cpu: float, machine: Machine | None = None) -> Quantity:
    """Joules of `cpu` seconds of processor time under the stated power of a busy logical core of `machine` (default: this one).

    J = CPU seconds × W per busy logical core. Linear: a core's share of idle power is in the busy figure and an idle core is charged to nobody, so
    two half-loaded machines cost what one full machine does. The error of the watts is shared, and cancels in ratios on one machine.
    """
    row = power(machine or here())
    joules = row.busy * Quantity(cpu, "s", "counted", boundary="process", method="CPU time of all threads and finished children")
    return replace(joules, grade="modelled", method=f"CPU time × {row.busy.value:g} W per busy core ({row.title}, {row.busy.grade})")


@dataclass
class Energy:
    """What a window saw, filled when it closes: `wall` and `cpu` seconds, `joules` of the processors, `device` joules of the GPUs (None: no meter).

    `why` says of each meter that was not used why not.
    """

    wall: float = 0.0
    cpu: float = 0.0
    joules: Quantity | None = None
    device: Quantity | None = None
    why: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """How `joules` was got, in words."""
        return self.joules.method if self.joules else "the window is still open"


class _Reading:
    """One meter inside one window: read at both ends and often enough between, from its own thread where the clock is the system's."""

    def __init__(self, meter: Meter, poll: float | None) -> None:
        self.meter = meter
        self.why = meter.available()
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._start = self._end = 0.0
        if self.why is None:
            self._read()
            self._start = self._end
        self._thread = threading.Thread(target=self._poll, args=(poll,), daemon=True) if self.why is None and poll else None
        if self._thread:
            self._thread.start()

    def _read(self) -> None:
        with self._guard:
            try:
                self._end = self.meter.read()
            except MeterError as error:
                self.why = str(error)

    def _poll(self, every: float) -> None:
        while not self._stop.wait(every) and self.why is None:
            self._read()

    def close(self, cpu: float) -> Quantity | None:
        """Joules between both ends, or None with `why` set."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self.why is None:
            self._read()
        if self.why is None and self._end <= self._start and cpu > 0.05:
            self.why = "its counter did not move while the processor worked: the window is too short for it, or the counter is not real"
        if self.why is not None:
            return None
        meter, joules = self.meter, self._end - self._start
        return Quantity(joules, "J", meter.grade, low=joules * (1 - meter.error), high=joules * (1 + meter.error), method=meter.method,
                        source=f"meter {meter.name}", boundary=meter.boundary)


def known() -> list[Meter]:
    """The meters that fourfold knows, best first for each boundary; ask each `available()`."""
    return [Rapl(), Nvml()]


@contextmanager
def window(given: Sequence[Meter] | None = None, clock: Clock | None = None, machine: Machine | None = None) -> Iterator[Energy]:
    """Measure what runs inside the `with` block. Its Energy is filled when the block ends, also by an exception.

    `given` meters replace the known ones (tests, a wall meter); `clock` replaces the system's. A meter that dies midway leaves the modelled
    figure and its reason. Joules of a host meter count everything that ran on the host; the model counts this process alone: `boundary` says which.
    """
    clock, used = clock or SystemClock(), Energy()
    readings = [_Reading(meter, _POLL if isinstance(clock, SystemClock) else None) for meter in (known() if given is None else given)]
    wall, cpu = clock.wall(), clock.cpu()
    try:
        yield used
    finally:
        used.wall, used.cpu = clock.wall() - wall, clock.cpu() - cpu
        for reading in readings:
            joules = reading.close(used.cpu)
            if joules is None:
                used.why[reading.meter.name] = reading.why or ""
            elif reading.meter.boundary == "device":
                used.device = joules
            else:
                used.joules = used.joules or joules
        used.joules = used.joules or modelled(used.cpu, machine)
