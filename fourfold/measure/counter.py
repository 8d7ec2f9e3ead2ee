"""What every meter answers with: raw counters, which never run backwards without a reason, and the sum of a sampled power."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

COMPONENTS = ("cpu_dynamic", "cpu_idle", "memory", "disk", "gpu")       # what energy is told apart into


class MeterError(Exception):
    """A meter that answered before stopped answering; the text says why."""


@dataclass(frozen=True, slots=True)
class Count:
    """One cumulative counter as read: `raw` units of `scale` joules, after `wraps` times round a register that holds `reach` raw units.

    `covers` says what it counts: "cpu" (dynamic and idle), "memory", "disk", "gpu" or "host" (the whole computer, GPUs too).
    """

    name: str
    covers: str
    raw: float
    scale: float = 1.0
    wraps: int = 0
    reach: float = 0.0

    @property
    def joules(self) -> float:
        """Since the counter's own zero."""
        return (self.raw + self.wraps * self.reach) * self.scale

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class Source(Protocol):
    """A meter. `error` is the half-width of its 90 % interval, relative; `every` the longest time in seconds that it may go unread (None: any)."""

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

    @property
    def every(self) -> float | None: ...

    def available(self) -> str | None: ...

    def counts(self) -> list[Count]: ...


class Sampled:
    """Joules from readings of power: trapezoids between them. A stretch of more than `limit` seconds without a reading is a gap.

    A gap is bridged by the mean of its ends, and `doubt` grows by what the lowest and highest power seen so far would have made of it.
    """

    def __init__(self, now: Callable[[], float], limit: float = 2.0) -> None:
        self.joules = 0.0
        self.doubt = 0.0                                               # J that may have been missed or invented in gaps
        self.gaps = 0.0                                                # s
        self._now, self._limit = now, limit
        self._last: tuple[float, float] | None = None                  # when, watts
        self._low, self._high = float("inf"), 0.0

    def restart(self) -> None:
        """Forget the last reading: what passed since is nobody's."""
        self._last = None

    def add(self, watts: float) -> float:
        """Take a reading; joules so far. Raises MeterError on power below 0 or not a number."""
        if not 0 <= watts < 1e7:
            raise MeterError(f"it reads {watts:g} W, which no computer draws")
        now = self._now()
        self._low, self._high = min(self._low, watts), max(self._high, watts)
        if self._last is not None:
            then, before = self._last
            length = now - then
            if length < 0:
                raise MeterError("its clock ran backwards")
            self.joules += length * (watts + before) / 2
            if length > self._limit:
                mean = (watts + before) / 2
                self.gaps += length
                self.doubt += length * max(self._high - mean, mean - self._low)
        self._last = now, watts
        return self.joules
