"""A clock that only moves when told to and meters with a known power curve: real classes that prove what is built on meters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fourfold.measure.rapl import MeterError


class FakeClock:
    """Wall and CPU seconds, moved by `advance` alone."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self._wall, self._cpu = wall, cpu

    def wall(self) -> float:
        return self._wall

    def cpu(self) -> float:
        return self._cpu

    def advance(self, wall: float, cpu: float | None = None) -> None:
        """Let `wall` seconds pass, in which `cpu` seconds of work were done (default: one busy core)."""
        self._wall += wall
        self._cpu += wall if cpu is None else cpu


class FakeMeter:
    """A counter driven by `curve`: watts at a wall time in seconds. Joules are its integral (Simpson's rule, `step` seconds), from time 0.

    `resolution` is the smallest step in joules that the counter shows; it dies at wall time `dies`, where given.
    """

    name = "fake"
    grade = "measured"
    error = 0.0
    method = "a known power curve"

    def __init__(self, curve: Callable[[float], float], clock: FakeClock, *, boundary: str = "host", resolution: float = 0.0,
                 dies: float | None = None, step: float = 0.01) -> None:
        self.boundary = boundary
        self._curve, self._clock, self._resolution, self._dies, self._step = curve, clock, resolution, dies, step

    def available(self) -> str | None:
        return None

    def joules(self, until: float) -> float:
        """The exact integral from 0 to `until` seconds."""
        pieces = max(1, round(until / self._step))
        width = until / pieces
        total = 0.0
        for piece in range(pieces):
            start = piece * width
            total += (self._curve(start) + 4 * self._curve(start + width / 2) + self._curve(start + width)) * width / 6
        return total

    def read(self) -> float:
        now = self._clock.wall()
        if self._dies is not None and now >= self._dies:
            raise MeterError(f"the fake meter died at {self._dies:g} s")
        joules = self.joules(now)
        return joules // self._resolution * self._resolution if self._resolution else joules


class FakePowercap:
    """A folder that looks like Linux's powercap tree: one package (with a core zone inside it) and its memory, all driven by fake meters.

    `reach` is the joules at which the counters wrap to 0. Call `refresh` after the clock moved.
    """

    def __init__(self, root: Path, package: FakeMeter, memory: FakeMeter | None = None, reach: float = 262144.0) -> None:
        self._reach = round(reach * 1e6)
        self._zones = {root / "intel-rapl:0": ("package-0", package), root / "intel-rapl:0:0": ("core", package)}
        if memory is not None:
            self._zones[root / "intel-rapl:0:1"] = ("dram", memory)
        for zone, (name, _) in self._zones.items():
            zone.mkdir(parents=True)
            (zone / "name").write_text(name + "\n")
            (zone / "max_energy_range_uj").write_text(f"{self._reach}\n")
        self.refresh()

    def refresh(self) -> None:
        for zone, (_, meter) in self._zones.items():
            (zone / "energy_uj").write_text(f"{round(meter.read() * 1e6) % self._reach}\n")


class FakeNvml:
    """Answers as pynvml does, for GPUs driven by fake meters."""

    class NVMLError(Exception):
        """What NVML raises."""

    def __init__(self, devices: list[FakeMeter], broken: str = "") -> None:
        self._devices, self._broken = devices, broken

    def nvmlInit(self) -> None:
        if self._broken:
            raise self.NVMLError(self._broken)

    def nvmlDeviceGetCount(self) -> int:
        return len(self._devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeMeter:
        return self._devices[index]

    def nvmlDeviceGetTotalEnergyConsumption(self, device: FakeMeter) -> int:
        """mJ since the driver was loaded."""
        try:
            return round(device.read() * 1e3)
        except MeterError as error:
            raise self.NVMLError(str(error)) from error
