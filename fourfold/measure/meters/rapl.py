"""RAPL: the energy counters of x86 processors, as Linux's powercap tree shows them.

Requirements met here: packages and their memory are added, never a package and its own cores; a counter that wraps is unwrapped; a gap that could
hide two wraps is refused, and so is a counter that was set back; files that only root may read, and virtual machines where there are none, are
reasons in words. The tree's root can be given, so that a folder of plain files stands in for hardware. Not yet run on hardware by the authors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fourfold.measure.counter import Count, MeterError

__all__ = ["MeterError", "Rapl"]

_FASTEST = 1000.0                                                      # W: no package draws more, so a counter cannot wrap faster than range / this


class Rapl:
    """Joules of all processor packages (and their memory, where counted apart) of this host since the meter was made."""

    name = "rapl"
    boundary = "host"
    grade = "measured"
    error = 0.05                                                       # half-width of the 90 % interval, relative (bare metal)
    every = 30.0                                                       # s: no counter wraps twice unseen in that time

    def __init__(self, root: Path = Path("/sys/class/powercap"), now: Callable[[], float] = time.monotonic) -> None:
        self.zones = [folder for folder in sorted(root.glob("intel-rapl:*")) if _counts(folder)]
        self.method = "RAPL " + ", ".join(_text(zone / "name") for zone in self.zones)
        self._now = now
        self._last: dict[Path, tuple[int, float]] = {}                 # zone → counter in µJ, and when it was read
        self._wraps: dict[Path, int] = {}
        self._first: dict[Path, float] = {}                            # zone → J at the first read
        self._root = root

    def available(self) -> str | None:
        """Why this meter cannot be read here, or None where it can."""
        if not self._root.is_dir():
            return f"there is no {self._root}: the kernel shows no RAPL counters (usual in virtual machines)"
        if not self.zones:
            return f"{self._root} lists no processor package"
        try:
            for zone in self.zones:
                _counter(zone)
        except PermissionError:
            return f"only root may read {zone}/energy_uj"
        except (OSError, ValueError) as error:
            return f"{zone.name} cannot be read: {error}"
        return None

    def restart(self) -> None:
        """Nobody measured since the last read: how often the counters wrapped meanwhile does not matter."""
        self._last.clear()

    def counts(self) -> list[Count]:
        """One counter a zone, in µJ. Raises MeterError where one is gone, was set back, or may have wrapped twice."""
        return [self._zone(zone) for zone in self.zones]

    def read(self) -> float:
        """Joules since the first read. Raises MeterError as `counts` does."""
        total = 0.0
        for zone in self.zones:
            joules = self._zone(zone).joules
            total += joules - self._first.setdefault(zone, joules)
        return total

    def _zone(self, zone: Path) -> Count:
        try:
            counter, reach = _counter(zone), int(_text(zone / "max_energy_range_uj") or 0)
        except (OSError, ValueError) as error:
            raise MeterError(f"{zone.name} stopped answering: {error}") from error
        now = self._now()
        before, then = self._last.get(zone, (counter, now))
        if reach and now - then > reach / 1e6 / _FASTEST:
            raise MeterError(f"{zone.name} was not read for {now - then:.0f} s and may have wrapped more than once")
        if counter < before:
            if not reach:
                raise MeterError(f"{zone.name} went backwards and does not tell its range")
            if (counter - before + reach) / 1e6 > _FASTEST * max(now - then, 0.001):
                raise MeterError(f"{zone.name} went from {before / 1e6:.0f} J back to {counter / 1e6:.0f} J: it was set back, it did not wrap")
            self._wraps[zone] = self._wraps.get(zone, 0) + 1
        self._last[zone] = counter, now
        name = _text(zone / "name")
        return Count(f"{zone.name} {name}", "memory" if name == "dram" else "cpu", counter, 1e-6, self._wraps.get(zone, 0), reach)


def _counts(zone: Path) -> bool:
    """Packages, and memory beside them. Cores and graphics lie inside their package; the platform zone would count all of them again."""
    name = _text(zone / "name")
    return name.startswith("package") or name == "dram"


def _counter(zone: Path) -> int:
    counter = int((zone / "energy_uj").read_text())
    if counter < 0:
        raise ValueError(f"it reads {counter} µJ")
    return counter


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
