"""NVML: the energy counters of NVIDIA GPUs (Volta and later), through the optional package nvidia-ml-py.

The counter moves about ten times a second, and on some GPUs the sensor behind it samples only part of the time (Yang et al., "Part-time power
measurements", arXiv:2312.02741), so short windows are refused rather than read as zero. Every process on a GPU is in its counter.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fourfold.measure.rapl import MeterError


class Nvml:
    """Joules of all GPUs of this host since the drivers were loaded. `library` is the pynvml module or one that answers like it."""

    name = "nvml"
    boundary = "device"
    grade = "measured"
    error = 0.05                                                       # half-width of the 90 % interval, relative; windows over 5 s
    method = "NVML total energy counter"

    def __init__(self, library: Any = None) -> None:
        self._devices: list[Any] = []
        self._why: str | None = None
        if library is None:
            try:
                library = import_module("pynvml")
            except ImportError:
                self._why = "nvidia-ml-py is not installed (pip install 'fourfold[gpu]')"
                return
        self._library = library
        try:
            library.nvmlInit()
            self._devices = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
            if not self._devices:
                self._why = "there is no NVIDIA GPU"
            for device in self._devices:
                library.nvmlDeviceGetTotalEnergyConsumption(device)
        except library.NVMLError as error:
            self._why = f"NVML says: {error}"

    def available(self) -> str | None:
        """Why this meter cannot be read here, or None where it can."""
        return self._why

    def read(self) -> float:
        """Joules of all GPUs, cumulative. Raises MeterError where a GPU stopped answering."""
        try:
            return sum(self._library.nvmlDeviceGetTotalEnergyConsumption(device) for device in self._devices) / 1e3   # mJ → J
        except self._library.NVMLError as error:
            raise MeterError(f"NVML stopped answering: {error}") from error
