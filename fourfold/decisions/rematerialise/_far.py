"""A second memory behind a link: what a value may be copied to while it is idle, and fetched from instead of computed again.

A value that is fetched anywhere is stored once, when its node has run first, and its copy stays until the last fetch. Transfers are not hidden behind
computing: each counts in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.machine import Machine


@dataclass(frozen=True)
class FarMemory:
    """`room` bytes behind a link of `bandwidth` B/s and `latency` s, `energy` J/B. Raises InputError for figures that cannot be."""

    room: int
    bandwidth: float
    latency: float = 0.0
    energy: float = 0.0
    name: str = "far memory"

    def __post_init__(self) -> None:
        if self.room < 1 or not 0 < self.bandwidth < np.inf or not 0 <= self.latency < np.inf or not 0 <= self.energy < np.inf:
            raise InputError(f"A second memory of {self.room} B, {self.bandwidth:g} B/s, {self.latency:g} s and {self.energy:g} J/B cannot be.",
                             "Give at least a byte, a bandwidth above 0, and a latency and an energy of at least 0.")

    def seconds(self, size: NDArray[np.int64]) -> NDArray[np.float64]:
        """s of one transfer of so many bytes."""
        return self.latency + size / self.bandwidth

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FarMemory:
        """Raises KeyError, TypeError, ValueError or InputError for something else."""
        return cls(int(data["room"]), float(data["bandwidth"]), float(data["latency"]), float(data["energy"]), str(data["name"]))

    @classmethod
    def of(cls, machine: Machine, name: str, device: int = 0) -> FarMemory:
        """The memory of another device of a machine, at the end of the quickest route from `device`. Raises InputError for an unknown device, for
        the same one, and where the machine does not say how much memory it has."""
        other = machine.index(name)
        if other == device:
            raise InputError(f"{name} is the device that is planned for.", "Name another device of the machine, or give 64MiB@8GB/s.")
        route, room = machine.route(device, other), machine.devices[other].memory
        if not np.isfinite(room) or room < 1:
            raise InputError(f"The machine {machine.name!r} does not say how much memory {name} has.", "Give it as 64MiB@8GB/s.")
        return cls(int(room), route.bandwidth, route.latency, route.energy, name)

    @classmethod
    def read(cls, text: str, machine: Machine, device: int = 0) -> FarMemory:
        """"64MiB@8GB/s", "64MiB@8GB/s,10us" (latency), or the name of a device of the machine. Raises InputError for anything else."""
        from fourfold.units.parse import quantity

        room, at, link = text.partition("@")
        if not at:
            return cls.of(machine, text.strip(), device)
        bandwidth, _, latency = link.partition(",")
        return cls(int(quantity(room, "size", "size of --far", bare="B", least=1.0)), quantity(bandwidth, "rate", "bandwidth of --far", bare="B/s"),
                   quantity(latency, "time", "latency of --far", bare="s", least=0.0) if latency.strip() else 0.0)
