"""hwmon: power and energy sensors of Linux's /sys/class/hwmon: `energy*_input` (µJ, cumulative) and `power*_input` or `power*_average` (µW).

What a sensor covers is known from its driver's name; one whose place on the board nobody can tell from that is listed and left alone.
Units: kernel documentation, hwmon sysfs interface. Not yet run on hardware by the authors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fourfold.measure.counter import Count, MeterError, Sampled

_COVERS = {                                                            # driver → what its sensors count
    "amd_energy": "cpu", "zenpower": "cpu", "fam15h_power": "cpu", "zenergy": "cpu",
    "power_meter": "host", "acpi_power_meter": "host", "macsmc_hwmon": "host",
}


class Hwmon:
    """Joules of the sensors under `root` whose driver says what they cover; the processors' own go before the whole computer's."""

    name = "hwmon"
    boundary = "host"
    grade = "measured"
    error = 0.10
    every = 0.5

    def __init__(self, root: Path = Path("/sys/class/hwmon"), now: Callable[[], float] = time.monotonic) -> None:
        self._root, self._now = root, now
        found: dict[str, list[tuple[Path, str]]] = {"cpu": [], "host": []}
        self.unplaced: list[str] = []                                  # sensors of power that nobody can place
        for folder in sorted(root.glob("hwmon*")):
            driver = _text(folder / "name")
            files = _sensors(folder)
            if files and driver in _COVERS:
                found[_COVERS[driver]] += [(file, f"{driver} {file.name}") for file in files]
            elif files:
                self.unplaced.append(driver or folder.name)
        self._covers = "cpu" if found["cpu"] else "host"
        self._sensors = found["cpu"] or found["host"]
        self.method = "hwmon " + ", ".join(name for _, name in self._sensors)
        self._sums: dict[Path, Sampled] = {file: Sampled(now) for file, _ in self._sensors if not file.name.startswith("energy")}
        self._last: dict[Path, int] = {}
        if not self._sums:
            self.every = 30.0

    def available(self) -> str | None:
        """Why this meter cannot be read here, or None where it can."""
        if not self._root.is_dir():
            return f"there is no {self._root}: no hardware sensors (usual in virtual machines)"
        if not self._sensors:
            rest = f" (power sensors of {', '.join(self.unplaced)} are there, but not what they cover)" if self.unplaced else ""
            return f"no sensor under {self._root} tells the power of processor or computer{rest}"
        try:
            for file, _ in self._sensors:
                int(file.read_text())
        except PermissionError:
            return f"only root may read {file}"
        except (OSError, ValueError) as error:
            return f"{file} cannot be read: {error}"
        return None

    def restart(self) -> None:
        """Nobody measured since the last read."""
        self._last.clear()
        for total in self._sums.values():
            total.restart()

    @property
    def doubt(self) -> float:
        """J that gaps between samples leave open."""
        return sum(total.doubt for total in self._sums.values())

    @property
    def gaps(self) -> float:
        """s without a sample, over all sensors the longest."""
        return max((total.gaps for total in self._sums.values()), default=0.0)

    def counts(self) -> list[Count]:
        """One counter a sensor. Raises MeterError where one stopped answering or was set back."""
        found = []
        for file, name in self._sensors:
            try:
                value = int(file.read_text())
            except (OSError, ValueError) as error:
                raise MeterError(f"{name} stopped answering: {error}") from error
            if file in self._sums:
                found.append(Count(name, self._covers, self._sums[file].add(value / 1e6)))
                continue
            if value < self._last.get(file, value):
                raise MeterError(f"{name} went backwards: the counter was set back")
            self._last[file] = value
            found.append(Count(name, self._covers, value, 1e-6))
        return found


def _sensors(folder: Path) -> list[Path]:
    """Energy counters where there are any, else power; of a sensor with both instant and mean power the mean. amd_energy counts sockets and cores."""
    energy = sorted(folder.glob("energy*_input"))
    if energy:
        sockets = [file for file in energy if _text(folder / file.name.replace("_input", "_label")).lower().startswith("esocket")]
        return sockets or energy
    means = {file.name.split("_")[0]: file for file in sorted(folder.glob("power*_average"))}
    instants = {file.name.split("_")[0]: file for file in sorted(folder.glob("power*_input"))}
    return list({**instants, **means}.values())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
