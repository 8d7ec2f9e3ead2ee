"""NVML: NVIDIA GPUs through the optional package nvidia-ml-py: the energy counter (Volta and later), else power sampled.

The counter moves about ten times a second, and on some GPUs the sensor behind it samples only part of the time (Yang et al., "Part-time power
measurements", arXiv:2312.02741), so short windows get a wide interval, and one in which the counter stood still is refused rather than read as zero.
Every process on a GPU is in its counter; `users` tells which those are. Not yet run on hardware by the authors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from fourfold.measure.counter import Count, MeterError, Sampled

_DRIVER = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia")         # where none of them is, there is nothing to ask


def _library(given: object) -> tuple[Any, str | None]:
    """(pynvml or what answers like it, why there is none)."""
    if given is not None:
        return given, None
    if os.name == "posix" and not any(os.path.exists(path) for path in _DRIVER):
        return None, "there is no NVIDIA driver (no /dev/nvidiactl)"
    try:
        return import_module("pynvml"), None
    except ImportError:
        return None, "nvidia-ml-py is not installed (pip install 'fourfold[gpu]')"


class Nvml:
    """Joules of all GPUs of this host since the drivers were loaded. `library` is the pynvml module or one that answers like it."""

    name = "nvml"
    boundary = "device"
    grade = "measured"
    error = 0.05                                                       # half-width of the 90 % interval, relative
    short = (5.0, 0.30)                                                # s: shorter windows catch the sensor at a random phase; their error
    every = None
    method = "NVML total energy counter"

    def __init__(self, library: object = None) -> None:
        self._devices: list[object] = []
        self._last: dict[int, int] = {}
        self._library, self._why = _library(library)
        if self._why is None:
            self._open()

    def _open(self) -> None:
        try:
            self._library.nvmlInit()
            self._devices = [self._library.nvmlDeviceGetHandleByIndex(index) for index in range(self._library.nvmlDeviceGetCount())]
            if not self._devices:
                self._why = "there is no NVIDIA GPU"
            for device in self._devices:
                self._probe(device)
        except self._library.NVMLError as error:
            self._why = f"NVML says: {error}"

    def _probe(self, device: object) -> None:
        self._library.nvmlDeviceGetTotalEnergyConsumption(device)

    def available(self) -> str | None:
        """Why this meter cannot be read here, or None where it can."""
        return self._why

    def restart(self) -> None:
        """Nobody measured since the last read."""
        self._last.clear()

    def counts(self) -> list[Count]:
        """One counter a GPU, in mJ. Raises MeterError where a GPU stopped answering or its counter was set back."""
        found = []
        for index, device in enumerate(self._devices):
            try:
                raw = int(self._library.nvmlDeviceGetTotalEnergyConsumption(device))
            except self._library.NVMLError as error:
                raise MeterError(f"NVML stopped answering: {error}") from error
            if raw < self._last.get(index, 0):
                raise MeterError(f"the counter of GPU {index} went back from {self._last[index] / 1e3:.0f} J to {raw / 1e3:.0f} J: driver reloaded?")
            self._last[index] = raw
            found.append(Count(f"gpu{index}", "gpu", raw, 1e-3))
        return found

    def read(self) -> float:
        """Joules of all GPUs, cumulative. Raises MeterError as `counts` does."""
        return sum(count.joules for count in self.counts())

    def users(self) -> dict[str, set[int]] | None:
        """GPU name → numbers of the processes on it (as seen from this process's namespace), or None where NVML does not tell."""
        if not hasattr(self._library, "nvmlDeviceGetComputeRunningProcesses"):
            return None
        try:
            return {f"gpu{index}": {int(process.pid) for process in self._library.nvmlDeviceGetComputeRunningProcesses(device)}
                    for index, device in enumerate(self._devices)}
        except self._library.NVMLError:
            return None


    def nodes(self) -> dict[str, str]:
        """GPU name → its device file, which a process that computes on it holds open."""
        minor = getattr(self._library, "nvmlDeviceGetMinorNumber", None)
        found = {}
        for index, device in enumerate(self._devices):
            try:
                found[f"gpu{index}"] = f"/dev/nvidia{minor(device) if minor else index}"
            except self._library.NVMLError:
                continue
        return found


class NvmlPower(Nvml):
    """The same GPUs by their power, sampled and summed: for GPUs without the energy counter (before Volta)."""

    name = "nvml-power"
    error = 0.15                                                       # averaged by the driver over a window that depends on the GPU
    every = 0.5
    method = "NVML power, sampled (trapezoids)"

    def __init__(self, library: object = None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sums: list[Sampled] = []
        super().__init__(library)
        self._sums = [Sampled(now) for _ in self._devices]

    def _probe(self, device: object) -> None:
        self._library.nvmlDeviceGetPowerUsage(device)

    def restart(self) -> None:
        for total in self._sums:
            total.restart()

    @property
    def doubt(self) -> float:
        """J that gaps between samples leave open."""
        return sum(total.doubt for total in self._sums)

    @property
    def gaps(self) -> float:
        """s without a sample, over all GPUs the longest."""
        return max((total.gaps for total in self._sums), default=0.0)

    def counts(self) -> list[Count]:
        """One sum a GPU, in J. Raises MeterError where a GPU stopped answering."""
        try:
            return [Count(f"gpu{index}", "gpu", total.add(self._library.nvmlDeviceGetPowerUsage(device) / 1e3))
                    for index, (device, total) in enumerate(zip(self._devices, self._sums, strict=True))]
        except self._library.NVMLError as error:
            raise MeterError(f"NVML stopped answering: {error}") from error
