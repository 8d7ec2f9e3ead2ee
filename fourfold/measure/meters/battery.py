"""Battery: what a laptop on battery draws, from /sys/class/power_supply: `power_now` (µW), or `current_now` × `voltage_now` (µA × µV).

It covers the whole computer, screen and all, and only while every battery discharges: on mains it tells what the charger does.
Units: kernel documentation, ABI of sysfs-class-power. Not yet run on hardware by the authors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fourfold.measure.counter import Count, MeterError, Sampled


class Battery:
    """Joules drawn from the batteries under `root` since the first read."""

    name = "battery"
    boundary = "host"
    grade = "measured"
    error = 0.10
    every = 0.5
    method = "power drawn from the battery, sampled (trapezoids); the whole computer, screen and all"

    def __init__(self, root: Path = Path("/sys/class/power_supply"), now: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._batteries = [folder for folder in sorted(root.glob("*")) if _text(folder / "type") == "Battery" and _text(folder / "scope") != "Device"]
        self._sum = Sampled(now)

    def available(self) -> str | None:
        """Why this meter cannot be read here, or None where it can."""
        if not self._batteries:
            return f"there is no battery under {self._root}"
        try:
            self._watts()
        except MeterError as error:
            return str(error)
        return None

    def _watts(self) -> float:
        total = 0.0
        for folder in self._batteries:
            status = _text(folder / "status")
            if status != "Discharging":
                raise MeterError(f"{folder.name} is {status.lower() or 'in an unknown state'}: on mains the battery tells nothing about the computer")
            power, current, voltage = (_number(folder / name) for name in ("power_now", "current_now", "voltage_now"))
            if power is None and (current is None or voltage is None):
                raise MeterError(f"{folder.name} tells neither power nor current and voltage")
            total += abs(power) / 1e6 if power is not None else abs(current or 0.0) * abs(voltage or 0.0) / 1e12
        return total

    def restart(self) -> None:
        """Nobody measured since the last read."""
        self._sum.restart()

    @property
    def doubt(self) -> float:
        """J that gaps between samples leave open."""
        return self._sum.doubt

    @property
    def gaps(self) -> float:
        """s without a sample."""
        return self._sum.gaps

    def counts(self) -> list[Count]:
        """One sum for all batteries. Raises MeterError once a charger is plugged in."""
        return [Count("battery", "host", self._sum.add(self._watts()))]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
