"""A clock that only moves when told to and meters with a known power curve: real classes that prove what is built on meters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fourfold.measure.counter import Count, MeterError
from fourfold.measure.host_lock import HostLock
from fourfold.measure.process_tree import Used


class FakeClock:
    """All clocks of a computer, moved by `advance`, `sleep` and `set` alone; it tells too what work was done meanwhile, by whom.

    `held` is the memory the work holds and `taken` what the whole host has in use, in bytes, `moved` what it read and wrote: set them as you like;
    `pids` and `files` are the work's processes and what they hold open. Its host is this process's alone, unless a `claim` says who else is on it.
    """

    tick = 0.0

    def __init__(self, wall: float = 0.0, cpu: float = 0.0, *, utc: float = 1.7e9, claim: HostLock | None = None) -> None:
        self._wall, self._cpu, self._others = wall, cpu, 0.0
        self._boot, self._utc = wall, utc
        self.held, self.taken, self.moved = 0, 0, (0, 0)
        self.pids, self.files, self.claim = {1}, set[str](), claim

    def wall(self) -> float:
        return self._wall

    def cpu(self) -> float:
        return self._cpu

    def boot(self) -> float:
        return self._boot

    def utc(self) -> float:
        return self._utc

    def host(self) -> float | None:
        """CPU seconds of everybody."""
        return self._cpu + self._others

    def in_use(self) -> int | None:
        return self.taken or None

    def advance(self, wall: float, cpu: float | None = None, others: float = 0.0) -> None:
        """Let `wall` seconds pass, in which `cpu` seconds of work were done (default: one busy core) and `others` by neighbours."""
        self._wall, self._boot, self._utc = self._wall + wall, self._boot + wall, self._utc + wall
        self._cpu += wall if cpu is None else cpu
        self._others += others

    def sleep(self, seconds: float) -> None:
        """The computer is suspended: the monotonic clock stands still."""
        self._boot, self._utc = self._boot + seconds, self._utc + seconds

    def set(self, seconds: float) -> None:
        """The calendar's clock is set forwards or back; nothing else moves."""
        self._utc += seconds

    # What a station asks: the clock is the work's own book.
    def body(self) -> FakeClock:
        return self

    def take(self, walk: bool | None = None, thorough: bool = True) -> Used:
        return Used(own=self._cpu, read=self.moved[0], written=self.moved[1], held=self.held)

    def members(self) -> set[int]:
        return self.pids

    def opened(self, prefix: str) -> set[str]:
        return {file for file in self.files if file.startswith(prefix)}


class FakeMeter:
    """A counter driven by `curve`: watts at a wall time in seconds. Joules are its integral (Simpson's rule, `step` seconds), from time 0.

    `resolution` is the smallest step in joules that the counter shows; it dies at wall time `dies`, where given.
    """

    grade = "measured"
    error = 0.0
    every = None
    method = "a known power curve"

    def __init__(self, curve: Callable[[float], float], clock: FakeClock, *, boundary: str = "host", resolution: float = 0.0,
                 dies: float | None = None, step: float = 0.01, covers: str = "cpu", name: str = "fake") -> None:
        self.boundary, self.covers, self.name = boundary, covers, name
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

    def counts(self) -> list[Count]:
        """The whole reading as one counter."""
        return [Count(self.name, "gpu" if self.boundary == "device" else self.covers, self.read())]

    def watts(self) -> float:
        """Power now. Raises MeterError once it is dead."""
        if self._dies is not None and self._clock.wall() >= self._dies:
            raise MeterError(f"the fake meter died at {self._dies:g} s")
        return self._curve(self._clock.wall())

    def read(self) -> float:
        """Joules so far. Raises MeterError once it is dead."""
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

    def __init__(self, devices: list[FakeMeter], broken: str = "", pids: list[set[int]] | None = None, counter: bool = True) -> None:
        self._devices, self._broken, self._counter = devices, broken, counter
        if pids is not None:
            users = dict(zip(map(id, devices), pids, strict=True))
            self.nvmlDeviceGetComputeRunningProcesses = lambda device: [FakeProcess(pid) for pid in users[id(device)]]

    def nvmlInit(self) -> None:
        if self._broken:
            raise self.NVMLError(self._broken)

    def nvmlDeviceGetCount(self) -> int:
        return len(self._devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeMeter:
        return self._devices[index]

    def nvmlDeviceGetTotalEnergyConsumption(self, device: FakeMeter) -> int:
        """mJ since the driver was loaded."""
        if not self._counter:
            raise self.NVMLError("Not Supported")
        try:
            return round(device.read() * 1e3)
        except MeterError as error:
            raise self.NVMLError(str(error)) from error

    def nvmlDeviceGetPowerUsage(self, device: FakeMeter) -> int:
        """mW now."""
        try:
            return round(device.watts() * 1e3)
        except MeterError as error:
            raise self.NVMLError(str(error)) from error


class FakeProcess:
    """A row of NVML's list of processes."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


class FakeSensor:
    """A folder that looks like one of hwmon's: a driver's name and a sensor of power (µW) or energy (µJ) driven by a fake meter. `refresh` after the
    clock moved."""

    def __init__(self, root: Path, driver: str, meter: FakeMeter, file: str = "power1_input") -> None:
        self._file, self._meter = root / "hwmon0" / file, meter
        self._file.parent.mkdir(parents=True, exist_ok=True)
        (self._file.parent / "name").write_text(driver + "\n")
        self.refresh()

    def refresh(self) -> None:
        value = self._meter.read() if self._file.name.startswith("energy") else self._meter.watts()
        self._file.write_text(f"{round(value * 1e6)}\n")


class FakeBattery:
    """A folder that looks like a laptop's battery, driven by a fake meter. `refresh` after the clock moved; set `status` when the charger comes."""

    def __init__(self, root: Path, meter: FakeMeter) -> None:
        self._folder, self._meter, self.status = root / "BAT0", meter, "Discharging"
        self._folder.mkdir(parents=True)
        (self._folder / "type").write_text("Battery\n")
        (self._folder / "voltage_now").write_text("12000000\n")
        self.refresh()

    def refresh(self) -> None:
        (self._folder / "status").write_text(self.status + "\n")
        (self._folder / "current_now").write_text(f"{round(self._meter.watts() / 12 * 1e6)}\n")
