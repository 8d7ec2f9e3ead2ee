"""RAPL: the energy counters of x86 processors, as Linux's powercap tree shows them.

Requirements met here: packages and their memory are added, never a package and its own cores; a counter that wraps is unwrapped; a gap that could
hide two wraps is refused; files that only root may read, and virtual machines where there are none, are reasons in words. The tree's root can be
given, so that a folder of plain files stands in for hardware. Not yet run on hardware by the authors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_FASTEST = 1000.0                                                      # W: no package draws more, so a counter cannot wrap faster than range / this


class MeterError(Exception):
    """A meter that answered before stopped answering; the text says why."""


class Rapl:
    """Joules of all processor packages (and their memory, where counted apart) of this host since the meter was made."""

    name = "rapl"
    boundary = "host"
    grade = "measured"
    error = 0.05                                                       # half-width of the 90 % interval, relative (bare metal)

    def __init__(self, root: Path = Path("/sys/class/powercap"), now: Callable[[], float] = time.monotonic) -> None:
        self.zones = [folder for folder in sorted(root.glob("intel-rapl:*")) if _counts(folder)]
        self.method = "RAPL " + ", ".join(_text(zone / "name") for zone in self.zones)
        self._now = now
        self._last: dict[Path, tuple[int, float]] = {}                 # zone → counter in µJ, and when it was read
        self._total = 0                                                # µJ
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
            return f"only root may read {self.zones[0]}/energy_uj"
        except (OSError, ValueError) as error:
            return f"{self.zones[0].name} cannot be read: {error}"
        return None

    def read(self) -> float:
        """Joules since the first read. Raises MeterError where a counter is gone or may have wrapped twice."""
        for zone in self.zones:
            try:
                counter, reach = _counter(zone), int(_text(zone / "max_energy_range_uj") or 0)
            except (OSError, ValueError) as error:
                raise MeterError(f"{zone.name} stopped answering: {error}") from error
            now = self._now()
            before, then = self._last.get(zone, (counter, now))
            step = counter - before
            if step < 0:
                if not reach:
                    raise MeterError(f"{zone.name} went backwards and does not tell its range")
                step += reach
            if reach and now - then > reach / 1e6 / _FASTEST:
                raise MeterError(f"{zone.name} was not read for {now - then:.0f} s and may have wrapped more than once")
            self._total += step
            self._last[zone] = counter, now
        return self._total / 1e6


def _counts(zone: Path) -> bool:
    """Packages, and memory beside them. Cores and graphics lie inside their package; the platform zone would count all of them again."""
    name = _text(zone / "name")
    return name.startswith("package") or name == "dram"


def _counter(zone: Path) -> int:
    return int((zone / "energy_uj").read_text())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
