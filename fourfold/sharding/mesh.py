"""A mesh: devices in a grid with named axes, and what a message costs along each axis.

Device r of a mesh stands at the coordinates of r in row-major order: the last axis counts fastest. α (seconds) and β (seconds a byte) of an axis
describe one step between neighbours on it while all lines of that axis communicate at once, as collectives do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError
from fourfold.machine import Machine

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ALPHA = 1e-5                                                            # s, and
BETA = 1e-10                                                            # s a byte (10 GB/s), of an axis of which nothing is known: assumed
NAMES = ("x", "y", "z", "w")


@dataclass(frozen=True)
class Mesh:
    """`shape[i]` devices along axis `names[i]`; `alpha[i]` seconds a message and `beta[i]` seconds a byte along it.

    Raises InputError where a name is taken twice or is no name, a size is below one, or the fields differ in length.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    alpha: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, default in (("alpha", ALPHA), ("beta", BETA)):
            given = tuple(float(x) for x in getattr(self, name))
            object.__setattr__(self, name, given or (default,) * len(self.shape))
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if not self.shape or not len(self.names) == len(self.shape) == len(self.alpha) == len(self.beta):
            raise InputError(f"A mesh of {len(self.names)} names, {len(self.shape)} sizes, {len(self.alpha)} alphas and {len(self.beta)} betas.",
                             "Give every axis a name, a size, an alpha and a beta.")
        if twice := sorted({n for n in self.names if self.names.count(n) > 1}):
            raise InputError(f"Two axes of the mesh are called {twice[0]!r}.", "Give every axis a name of its own.")
        if min(self.shape) < 1 or not all(re.fullmatch(r"\w+", name) for name in self.names):
            raise InputError(f"{self} is not a mesh: sizes are whole numbers of at least 1, names are words.", "Write it like 2x4 or dp=2,tp=4.")

    # ---- questions

    @property
    def size(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)

    def axis(self, name: str) -> int:
        """Position of the axis of that name. Raises InputError for an unknown one."""
        if name not in self.names:
            raise InputError(f"The mesh {self} has no axis {name!r}.", f"Its axes are: {', '.join(self.names)}.")
        return self.names.index(name)

    def length(self, name: str) -> int:
        """Devices along the axis of that name."""
        return self.shape[self.axis(name)]

    def lengths(self, names: Sequence[str]) -> int:
        """Devices along several axes, multiplied."""
        return math.prod(self.length(name) for name in names)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Axis name → devices along it."""
        return dict(zip(self.names, self.shape, strict=True))

    def coordinates(self, rank: int) -> tuple[int, ...]:
        """Where device `rank` stands on every axis."""
        return tuple(int(x) for x in np.unravel_index(rank, self.shape))

    def rank(self, coordinates: Sequence[int]) -> int:
        """The device that stands there."""
        return int(np.ravel_multi_index(tuple(coordinates), self.shape))

    def lines(self, name: str) -> list[list[int]]:
        """Devices that communicate along one axis: a list of ranks for every choice of the other coordinates."""
        grid = np.moveaxis(np.arange(self.size).reshape(self.shape), self.axis(name), -1)
        return [[int(rank) for rank in line] for line in grid.reshape(-1, grid.shape[-1])]

    def __str__(self) -> str:
        return ",".join(f"{name}={n}" for name, n in zip(self.names, self.shape, strict=True))

    # ---- making one

    @classmethod
    def parse(cls, text: str, names: Sequence[str] = (), alpha: Sequence[float] = (), beta: Sequence[float] = ()) -> Mesh:
        """The mesh that "2x4" (axes x, y, z, w, or `names`) or "dp=2,tp=4" describes. Raises InputError for any other text."""
        plain = re.fullmatch(r"\s*\d+(\s*[x×*]\s*\d+)*\s*", text)
        named = re.fullmatch(r"\s*\w+\s*=\s*\d+(\s*,\s*\w+\s*=\s*\d+)*\s*", text)
        if plain is None and named is None:
            raise InputError(f"{text!r} is not a mesh.", "Write sizes, like 2x4, or names and sizes, like dp=2,tp=4.")
        if named is not None:
            pairs = [part.split("=") for part in text.split(",")]
            return cls(tuple(name.strip() for name, _ in pairs), tuple(int(n) for _, n in pairs), tuple(alpha), tuple(beta))
        shape = tuple(int(n) for n in re.split(r"[x×*]", text))
        if not names and len(shape) > len(NAMES):
            raise InputError(f"The mesh {text!r} has {len(shape)} axes; without names there are at most {len(NAMES)}.", "Name them: a=2,b=2,…")
        return cls(tuple(names) or NAMES[: len(shape)], shape, tuple(alpha), tuple(beta))

    @classmethod
    def of(cls, machine: Machine | str, text: str, names: Sequence[str] = ()) -> Mesh:
        """The mesh `text` on the first devices of `machine` (one, or what `Machine.read` takes), in its order, with α and β from its links.

        α of an axis: the largest latency between neighbours of its rings. β: the reciprocal of the least bandwidth that a step of all its rings at
        once leaves to one; a lane that several steps use is shared between them. Raises InputError where the mesh does not divide the devices.
        """
        machine = Machine.read(machine) if isinstance(machine, str) else machine
        mesh = cls.parse(text, names)
        if len(machine) % mesh.size:
            raise InputError(f"The mesh {mesh} takes {mesh.size} devices, and {machine.name!r} has {len(machine)}, which it does not divide.",
                             f"Choose sizes whose product divides {len(machine)}.")
        prices = [_price(machine, mesh.lines(name)) for name in mesh.names]
        return cls(mesh.names, mesh.shape, tuple(a for a, _ in prices), tuple(b for _, b in prices))

    @classmethod
    def of_torch(cls, mesh: DeviceMesh) -> Mesh:
        """The same grid as a torch.distributed DeviceMesh; unnamed axes are x, y, z, w."""
        shape = tuple(mesh.shape)
        return cls(tuple(mesh.mesh_dim_names or NAMES[: len(shape)]), shape)


def _price(machine: Machine, lines: list[list[int]]) -> tuple[float, float]:
    """(α, β) of a step in which every device of every line sends to the next one of its ring."""
    pairs = [(line[i], line[(i + 1) % len(line)]) for line in lines if len(line) > 1 for i in range(len(line))]
    if not pairs:
        return 0.0, 0.0
    routes = [machine.route(a, b) for a, b in pairs]
    load: dict[int, int] = {}
    for route in routes:
        for lane in route.lanes:
            load[lane] = load.get(lane, 0) + 1
    latency = max(route.latency for route in routes)
    slowest = max((load[lane] / machine.links[lane // 2].bandwidth for route in routes for lane in route.lanes), default=0.0)
    return latency, slowest


__all__ = ["ALPHA", "BETA", "NAMES", "Mesh"]
