"""A machine: devices that compute, links that carry bytes between them, each figure with its unit, source and grade. Frozen data; TOML files hold it.

    name = "two P100 over PCIe"
    hubs = ["root"]                            # ends of links that pass on what is not theirs: switches, host bridges; devices that route ("chip*")

    [[device]]
    name = "gpu0"                              # or names = ["gpu0", "gpu1"]: one such device under each name
    kind = "gpu"
    chip = "P100-PCIe"                         # optional: peak, bandwidth, memory and busy from `fourfold machines`; what is written here wins
    bandwidth = "732 GB/s"                     # a figure is text with a unit, or a table that also says where it is from:
    launch = { value = 7, unit = "us", grade = "published", source = "…", low = 5, high = 9 }
    memory = "16 GB"
    idle = "30 W"
    busy = "250 W"
    unsupported = ["aten.nonzero*"]            # optional: kinds of op that it cannot run (shell patterns)
    cold = [["1 MB", "2 us"], ["8 MB", "9 us"]]           # optional: what a call costs more once so many bytes passed since one of its kind
    peak = { float32 = "9.3 TFLOP/s", float16 = "18.7 TFLOP/s" }
    [device.efficiency]
    matmul = 0.8                               # share of peak and of bandwidth that a family (or one kind, "aten.gelu") of ops gets
    [device.efficiency.conv]                   # or by size: straight lines between the points on double logarithmic paper, level outside them
    launch = "9 us"                            # what one call costs besides; without it the device's
    peak = [["1 MFLOP", 0.2], ["1 GFLOP", 0.8]]           # size of the op, share of peak
    bandwidth = [["64 kB", 4.0], ["64 MB", 1.0]]          # bytes until they are used again, share of bandwidth; above 1 in caches
    narrow = [[1, 0.1], [64, 1.0]]                        # least side of the matrix product (a convolution: its depth), factor on the share of peak
    relay = "7 GB/s"                                      # how fast weights are laid out anew by every call; without it they are not

    [[link]]
    a = "gpu*"                                 # a shell pattern: one link for each match; between = "gpu*" in place of a and b: one for each pair;
                                               # along = ["gpu0", "gpu1", "gpu2"]: one from each to the next
    b = "root"
    latency = "10 us"
    bandwidth = "11.7 GB/s"                    # of one direction
    duplex = true                              # both directions at once; false: one after the other
    overlap = true                             # the link moves bytes while the sender computes; false: the sender copies them itself
    energy = "0 pJ/B"                          # optional

Units are those of `fourfold.units`: s ms us ns · B kB MB GB TB KiB MiB GiB TiB · GB/s, GiB/s, Gbit/s · FLOP, FLOP/s with k M G T P · W kW · pJ/B.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.folder import write
from fourfold.host import Host
from fourfold.host import here as this_machine
from fourfold.host import power as stated_power
from fourfold.machine import toml
from fourfold.machine.device import CURVES, Device, Efficiency, Link, Route, plain_dtype
from fourfold.units import Quantity

__all__ = ["Device", "Efficiency", "Link", "Machine", "Route", "ours", "plain_dtype", "systems"]

_NOMINAL = 2.0**20                                                      # B: routes are the quickest for a transfer of this size


@dataclass(frozen=True)
class Machine:
    """Devices, links and hubs. `fingerprint`: that of the machine it was measured on ("" = a description of no particular machine). `figures` holds
    every figure with its unit, grade and source, by "device.figure" or "a-b.figure".

    Raises InputError where names clash, links lead nowhere, a figure is out of range or two devices cannot reach each other (each is named).
    """

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    fingerprint: str = ""
    hubs: tuple[str, ...] = ()
    figures: Mapping[str, Quantity] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        names = [*(device.name for device in self.devices), *self.hubs]
        if not self.devices:
            raise InputError(f"The system {self.name!r} has no device.", "Give at least one [[device]].")
        hubs = set(self.hubs)
        twice = sorted({name for name in names if names.count(name) > 1 + (name in hubs and self.hubs.count(name) == 1)})
        if twice:
            raise InputError(f"The system {self.name!r} uses a name twice: {', '.join(twice)}.", "Give every device and hub a name of its own.")
        for link in self.links:
            for end in (link.a, link.b):
                if end not in names:
                    raise InputError(f"A link of {self.name!r} leads from {link.a!r} to {link.b!r}, but there is no {end!r}.",
                                     f"Known ends: {', '.join(names)}. Write a switch into hubs = [\"{end}\"].")
            if link.a == link.b:
                raise InputError(f"A link of {self.name!r} leads from {link.a!r} to itself.", "Give it two ends.")
        start = self.devices[0].name
        lost = [device.name for device in self.devices[1:] if self._way(start, device.name) is None]
        if lost:
            raise InputError(f"In the system {self.name!r} no links lead from {start!r} to {toml.listed(lost)}.",
                             "Add a [[link]] to each, or leave out the devices that cannot be reached.")

    # ---- questions

    def __len__(self) -> int:
        return len(self.devices)

    def index(self, name: str) -> int:
        """Number of the device of that name. Raises InputError for an unknown one."""
        for number, device in enumerate(self.devices):
            if device.name == name:
                return number
        raise InputError(f"The system {self.name!r} has no device {name!r}.", f"It has: {', '.join(device.name for device in self.devices)}.")

    def route(self, a: int | str, b: int | str) -> Route:
        """The quickest way (for 1 MiB; then fewest hops, then links in order) from device `a` to device `b`, by number or name."""
        first, second = (self.index(end) if isinstance(end, str) else int(end) for end in (a, b))
        return self.routes[first][second]

    @cached_property
    def routes(self) -> tuple[tuple[Route, ...], ...]:
        """[D][D] the route of every pair of devices."""
        return tuple(tuple(self._route(one.name, other.name) for other in self.devices) for one in self.devices)

    @property
    def local(self) -> bool:
        """Whether it was measured on the machine that this process runs on."""
        return self.fingerprint != "" and self.fingerprint == this_machine().fingerprint

    @property
    def hash(self) -> str:
        """16 hex digits of all that decides what it costs to run something; names of the devices among it, sources not."""
        return hashlib.sha256(json.dumps(self.to_json(figures=False), sort_keys=True).encode()).hexdigest()[:16]

    def _edges(self) -> dict[str, list[tuple[str, int, Link]]]:
        """End → (other end, lane, link), in the order of the links."""
        found: dict[str, list[tuple[str, int, Link]]] = {}
        for number, link in enumerate(self.links):
            found.setdefault(link.a, []).append((link.b, 2 * number, link))
            found.setdefault(link.b, []).append((link.a, 2 * number + link.duplex, link))
        return found

    def _way(self, a: str, b: str) -> tuple[tuple[int, Link], ...] | None:
        """Lanes and links from `a` to `b` by Dijkstra's algorithm, through hubs only; None where there is no way."""
        edges, done = self._edges(), set()
        queue: list[tuple[float, int, tuple[int, ...], str, tuple[tuple[int, Link], ...]]] = [(0.0, 0, (), a, ())]
        while queue:
            cost, hops, lanes, at, way = heapq.heappop(queue)
            if at == b:
                return way
            if at in done or (at != a and at not in self.hubs):
                continue
            done.add(at)
            for other, lane, link in edges.get(at, []):
                if other not in done:
                    more = link.latency + _NOMINAL / link.bandwidth
                    heapq.heappush(queue, (cost + more, hops + 1, (*lanes, lane), other, (*way, (lane, link))))
        return None

    def _route(self, a: str, b: str) -> Route:
        way = self._way(a, b) or ()
        return Route(tuple(lane for lane, _ in way), math.fsum(link.latency for _, link in way),
                     min((link.bandwidth for _, link in way), default=math.inf), math.fsum(link.energy for _, link in way))

    # ---- making one

    @classmethod
    def read(cls, path: str | Path) -> Machine:
        """The system of a TOML file, or a shipped one by name (`systems()`), or "here".

        Raises InputError where the file is missing or broken, a unit is not what the figure needs, or a device cannot be reached.
        """
        if str(path) == "here":
            return cls.here()
        if not str(path).endswith(".toml") and str(path) in systems():
            text = resources.files("fourfold").joinpath("systems", f"{path}.toml").read_text(encoding="utf-8")
            return cls.parse(text, f"{path}.toml")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"The machine file {path} cannot be read: {error.strerror or error}.",
                             f"Give a TOML file, or one of: here, {', '.join(systems())}.") from None
        except UnicodeDecodeError:
            raise InputError(f"The machine file {path} is not UTF-8 text.", "Write it as a TOML file; fourfold calibrate makes one.") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str = "machine file") -> Machine:
        """The system that a TOML document describes; `source` names it in errors and figures."""
        return cls(*toml.read(text, source))

    @classmethod
    def here(cls, workers: int | None = None, folder: str | Path = ".") -> Machine:
        """This machine as `workers` processes (default: one per two cores, at least one) that share its cores and memory evenly.

        Measured where `fourfold calibrate` has left its file (`.fourfold/machine.toml` in `folder`, same processor, same number of workers or none
        given); else stated figures, graded assumed. Raises InputError for fewer than one worker.
        """
        file = Path(folder) / ".fourfold" / "machine.toml"
        if file.is_file():
            system = cls.read(file)
            if system.local and workers in (None, len(system)):
                return system
        return _stated(this_machine(), workers if workers is not None else max(1, this_machine().cores // 2))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """What `to_json` gave. Raises InputError where a field is missing."""
        try:
            devices = tuple(Device(**{**one, "unsupported": tuple(one["unsupported"]), "cold": tuple((x, y) for x, y in one["cold"]), "efficiency": {
                family: Efficiency(curve["launch"], relay=curve.get("relay", math.inf),
                                   **{part: tuple((x, y) for x, y in curve[part]) for part in CURVES})
                for family, curve in one["efficiency"].items()}}) for one in data["devices"])
            return cls(data["name"], devices, tuple(Link(**one) for one in data["links"]), data["fingerprint"], tuple(data["hubs"]),
                       {name: Quantity.from_json(figure) for name, figure in data.get("figures", {}).items()})
        except (KeyError, TypeError) as error:
            raise InputError(f"A stored system lacks or mistakes a field: {error}.", "Store it again with Machine.to_json.") from None

    def to_json(self, figures: bool = True) -> dict[str, object]:
        def plain(device: Device) -> dict[str, object]:
            data = {name: getattr(device, name) for name in ("name", "kind", "bandwidth", "launch", "memory", "idle", "busy")}
            curves = {family: {"launch": one.launch, **{part: [list(point) for point in getattr(one, part)] for part in CURVES},
                               **({"relay": one.relay} if math.isfinite(one.relay) else {})} for family, one in device.efficiency.items()}
            return data | {"peak": dict(device.peak), "efficiency": curves, "unsupported": list(device.unsupported),
                           "cold": [list(point) for point in device.cold]}

        data: dict[str, object] = {"name": self.name, "fingerprint": self.fingerprint, "hubs": list(self.hubs),
                                "devices": [plain(device) for device in self.devices], "links": [dict(vars(link)) for link in self.links]}
        return data | {"figures": {name: figure.to_json() for name, figure in self.figures.items()}} if figures else data

    def write(self, path: str | Path) -> None:
        """Store it as a TOML file that `read` gives back equal, grades and sources included; an old one stays whole till then."""
        write(path, self.to_toml())

    def to_toml(self) -> str:
        """What `write` stores."""
        return toml.written(toml.Parts(self.name, self.devices, self.links, self.fingerprint, self.hubs, self.figures))

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(device.name for device in self.devices)}; {len(self.links)} link{'s' * (len(self.links) != 1)}"


def systems() -> tuple[str, ...]:
    """Names of the systems that come with the package."""
    folder = resources.files("fourfold").joinpath("systems")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def _stated(machine: Host, workers: int) -> Machine:
    """A machine nobody has measured: figures that processors of its sort have."""
    if workers < 1:
        raise InputError(f"A system of {workers} workers cannot run anything.", "Give at least one worker.")
    share = machine.cores / workers
    wide = 64 if machine.has("avx512f") else 32 if machine.has("avx2", "fma") else 16
    power = stated_power(machine)
    core = 2.5e9 * wide / 2                                             # clock × FLOP a cycle of two fused multiply-adds, halved for what is reached
    text = f"stated for {machine.name}, not measured"

    def figure(value: float, unit: str) -> Quantity:
        return Quantity(value, unit, "assumed", low=value / 2, high=value * 2, source=text)

    values = {"bandwidth": figure(10e9 * max(1.0, share), "B/s"), "launch": figure(4e-6, "s"),
              "memory": figure((machine.memory or 8 * 2**30) / workers, "B"), "idle": power.idle * share, "busy": power.busy * share,
              "peak.float32": figure(core * share, "FLOP/s"), "peak.float64": figure(core * share / 2, "FLOP/s")}
    if machine.has("amx_bf16") or machine.has("avx512_bf16"):
        values["peak.bfloat16"] = figure(core * share * 2, "FLOP/s")
    peak = {key.removeprefix("peak."): value.value for key, value in values.items() if key.startswith("peak.")}
    facts: dict[str, Any] = {key: values[key].value for key in toml.FIGURES}
    devices = tuple(Device(f"cpu{k}", "cpu", peak, efficiency={"view": Efficiency(1e-6)}, **facts) for k in range(workers))
    links = tuple(Link(f"cpu{a}", f"cpu{b}", 50e-6, 5e9) for a in range(workers) for b in range(a + 1, workers))
    figures = {f"{device.name}.{key}": value for device in devices for key, value in values.items()}
    for link in links:
        figures |= {f"{link.a}-{link.b}.latency": figure(link.latency, "s"), f"{link.a}-{link.b}.bandwidth": figure(link.bandwidth, "B/s")}
    return Machine(f"{machine.name} as {workers} worker{'s' * (workers > 1)}, not measured", devices, links, machine.fingerprint, (), figures)


def ours(head: bytes) -> bool:
    """Whether a file that begins so is a machine file as `Machine.write` writes it."""
    return head.startswith(b"name = ") and b"\nfingerprint = " in head
