"""A system: devices that compute, links that carry bytes between them, each figure with its unit, source and grade. Frozen data; TOML files hold it.

    name = "two P100 over PCIe"
    hubs = ["root"]                            # ends of links that do not compute: switches, host bridges

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
    a = "gpu*"                                 # a shell pattern: one link for each match; between = "gpu*" in place of a and b: one for each pair
    b = "root"
    latency = "10 us"
    bandwidth = "11.7 GB/s"                    # of one direction
    duplex = true                              # both directions at once; false: one after the other
    overlap = true                             # the link moves bytes while the sender computes; false: the sender copies them itself
    energy = "0 pJ/B"                          # optional

Known units: s ms us ns · B kB MB GB TB KiB MiB GiB TiB · B/s to TB/s, GiB/s, Gbit/s · FLOP, FLOP/s with k M G T P · W mW kW · J/B nJ/B pJ/B.
"""

from __future__ import annotations

import fnmatch
import hashlib
import heapq
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.errors import InputError
from fourfold.folder import write
from fourfold.host import Machine, chip
from fourfold.host import here as this_machine
from fourfold.host import power as stated_power
from fourfold.units import GRADES, Quantity

if TYPE_CHECKING:
    import numpy as np

_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BYTES = {f"{prefix}B": scale for prefix, scale in {**_DECIMAL, **_BINARY}.items() if prefix != "P"}
UNITS: dict[str, tuple[str, dict[str, float]]] = {                      # what is measured → base unit, unit → factor
    "time": ("s", {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}),
    "size": ("B", _BYTES),
    "rate": ("B/s", {f"{unit}/s": scale for unit, scale in _BYTES.items()} | {f"{p}bit/s": s / 8 for p, s in _DECIMAL.items() if p in "kMGT" and p}),
    "speed": ("FLOP/s", {f"{prefix}FLOP/s": scale for prefix, scale in _DECIMAL.items()}),
    "work": ("FLOP", {f"{prefix}FLOP": scale for prefix, scale in _DECIMAL.items()}),
    "power": ("W", {"W": 1.0, "mW": 1e-3, "kW": 1e3}),
    "energy per byte": ("J/B", {"J/B": 1.0, "mJ/B": 1e-3, "uJ/B": 1e-6, "nJ/B": 1e-9, "pJ/B": 1e-12}),
}
_EXAMPLES = {"time": "5 us", "size": "16 GB", "rate": "12 GB/s", "speed": "9.3 TFLOP/s", "work": "1 GFLOP", "power": "250 W",
             "energy per byte": "60 pJ/B"}
_FIGURES = {"bandwidth": "rate", "launch": "time", "memory": "size", "idle": "power", "busy": "power"}
_LINK_FIGURES = {"latency": "time", "bandwidth": "rate", "energy": "energy per byte"}
_CURVES = ("peak", "bandwidth", "narrow")
_NUMBER = re.compile(r"^\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*$")
_DTYPES = {"fp64": "float64", "fp32": "float32", "tf32": "tf32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8", "half": "float16",
           "float": "float32", "double": "float64", "f64": "float64", "f32": "float32", "f16": "float16", "uint8": "int8"}
_WIDER = {"int4": ("int8", "float16", "bfloat16", "float32"), "int8": ("float16", "bfloat16", "float32"),
          "float8": ("float16", "bfloat16", "float32"),
          "float16": ("float32",), "bfloat16": ("float32",), "int16": ("float32",), "int32": ("float32",), "int64": ("float32", "float64"),
          "bool": ("int8", "float32"), "float32": ("float64",), "complex64": ("float32", "float64"), "complex128": ("float64",)}
_NOMINAL = 2.0**20                                                      # B: routes are the quickest for a transfer of this size


@dataclass(frozen=True)
class Efficiency:
    """How much of a device one family of ops gets. Each curve is points (size, share), straight on double logarithmic paper, level outside.

    `launch` s a call costs besides its work, None: the device's. `peak`: FLOP of the op → share of peak, 0 to 1. `bandwidth`: bytes that pass until
    the same ones are used again → share of bandwidth; above 1 where caches hold them. `narrow`: least side of a matrix product → factor on `peak`.
    `relay` B/s at which each call lays its weights out anew before it computes; inf: it need not.
    """

    launch: float | None = None
    peak: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    bandwidth: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    narrow: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    relay: float = math.inf

    @staticmethod
    def at(curve: tuple[tuple[float, float], ...], size: Any) -> np.ndarray:
        """The share of `curve` at `size` (a number or an array of any shape)."""
        import numpy as np

        points = np.log(np.asarray(curve, dtype=float))
        return np.exp(np.interp(np.log(np.maximum(np.asarray(size, dtype=float), 1e-9)), points[:, 0], points[:, 1]))


@dataclass(frozen=True)
class Device:
    """One place that runs ops, one at a time.

    `peak` FLOP/s by dtype (torch's names: float32, bfloat16, int8), `bandwidth` B/s of its memory, `launch` s of fixed cost per op, `memory` B it may
    hold, `idle` and `busy` W, `efficiency` by family or kind of op, `unsupported` patterns of kinds of op, `cold` points (B, s): what a call costs
    more once so many bytes have passed, since one of its kind ran, through the caches that hold the framework's own code and data.
    """

    name: str
    kind: str
    peak: Mapping[str, float]
    bandwidth: float
    launch: float
    memory: float
    idle: float = 0.0
    busy: float = 0.0
    efficiency: Mapping[str, Efficiency] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    cold: tuple[tuple[float, float], ...] = ()

    def chill(self, size: Any) -> np.ndarray:
        """s that a call costs more once `size` bytes (a number or an array) have passed: 0 below the first point, level above the last."""
        import numpy as np

        moved = np.maximum(np.asarray(size, dtype=float), 1.0)
        if not self.cold:
            return np.zeros(moved.shape)
        points = np.array(self.cold)
        return np.interp(np.log(moved), np.log(points[:, 0]), points[:, 1], left=0.0)

    def speed(self, dtype: str) -> float:
        """Peak FLOP/s in `dtype`; a type without a figure runs as the next wider one that has. 0 where there is none: the device cannot."""
        dtype = plain_dtype(dtype)
        return next((self.peak[name] for name in (dtype, *_WIDER.get(dtype, ())) if name in self.peak), 0.0)

    def supports(self, kind: str) -> bool:
        return not any(fnmatch.fnmatchcase(kind, pattern) for pattern in self.unsupported)


@dataclass(frozen=True)
class Link:
    """A wire between `a` and `b`, devices or hubs: `latency` s, `bandwidth` B/s of one direction, `duplex` (both at once), `energy` J/B,
    `overlap`: bytes move while the sender computes; if not, it copies them itself."""

    a: str
    b: str
    latency: float
    bandwidth: float
    duplex: bool = True
    energy: float = 0.0
    overlap: bool = True


@dataclass(frozen=True)
class Route:
    """The way from one device to another: lanes in order, `latency` s in all, `bandwidth` B/s of the narrowest, `energy` J/B in all.

    Lane 2·l is link l from its `a` to its `b`; 2·l + 1 the other way, the same lane 2·l where the link is not duplex.
    """

    lanes: tuple[int, ...]
    latency: float
    bandwidth: float
    energy: float

    def seconds(self, size: float) -> float:
        """Of a transfer of `size` bytes that waits for nobody; 0 where both ends are the same device."""
        return self.latency + size / self.bandwidth if self.lanes else 0.0


@dataclass(frozen=True)
class System:
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
        twice = sorted({name for name in names if names.count(name) > 1})
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
            raise InputError(f"In the system {self.name!r} no links lead from {start!r} to {_listed(lost)}.",
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
    def read(cls, path: str | Path) -> System:
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
    def parse(cls, text: str, source: str = "machine file") -> System:
        """The system that a TOML document describes; `source` names it in errors and figures."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{source} is not TOML: {error}.", "Mend the line, or make a file with: fourfold calibrate") from None
        return _Reader(source, data).system()

    @classmethod
    def here(cls, workers: int | None = None, folder: str | Path = ".") -> System:
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
    def from_json(cls, data: Mapping[str, Any]) -> System:
        """What `to_json` gave. Raises InputError where a field is missing."""
        try:
            devices = tuple(Device(**{**one, "unsupported": tuple(one["unsupported"]), "cold": tuple((x, y) for x, y in one["cold"]), "efficiency": {
                family: Efficiency(curve["launch"], relay=curve.get("relay", math.inf),
                                   **{part: tuple((x, y) for x, y in curve[part]) for part in _CURVES})
                for family, curve in one["efficiency"].items()}}) for one in data["devices"])
            return cls(data["name"], devices, tuple(Link(**one) for one in data["links"]), data["fingerprint"], tuple(data["hubs"]),
                       {name: Quantity.from_json(figure) for name, figure in data.get("figures", {}).items()})
        except (KeyError, TypeError) as error:
            raise InputError(f"A stored system lacks or mistakes a field: {error}.", "Store it again with System.to_json.") from None

    def to_json(self, figures: bool = True) -> dict[str, Any]:
        def plain(device: Device) -> dict[str, Any]:
            data = {name: getattr(device, name) for name in ("name", "kind", "bandwidth", "launch", "memory", "idle", "busy")}
            curves = {family: {"launch": one.launch, **{part: [list(point) for point in getattr(one, part)] for part in _CURVES},
                               **({"relay": one.relay} if math.isfinite(one.relay) else {})} for family, one in device.efficiency.items()}
            return data | {"peak": dict(device.peak), "efficiency": curves, "unsupported": list(device.unsupported),
                           "cold": [list(point) for point in device.cold]}

        data: dict[str, Any] = {"name": self.name, "fingerprint": self.fingerprint, "hubs": list(self.hubs),
                                "devices": [plain(device) for device in self.devices], "links": [dict(vars(link)) for link in self.links]}
        return data | {"figures": {name: figure.to_json() for name, figure in self.figures.items()}} if figures else data

    def write(self, path: str | Path) -> None:
        """Store it as a TOML file that `read` gives back equal, grades and sources included; an old one stays whole till then."""
        write(path, _written(self))

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(device.name for device in self.devices)}; {len(self.links)} link{'s' * (len(self.links) != 1)}"


def systems() -> tuple[str, ...]:
    """Names of the systems that come with the package."""
    folder = resources.files("fourfold").joinpath("systems")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def plain_dtype(dtype: str) -> str:
    """torch's name of a dtype: "torch.float32", "fp32", "f32" → "float32"."""
    dtype = dtype.rsplit(".", 1)[-1].lower()
    return _DTYPES.get(dtype, dtype)


def parse_figure(value: Any, what: str, where: str) -> float:
    """A text such as "12 GB/s" in base units. `what` is a key of UNITS, `where` names the figure in errors.

    Raises InputError where there is no number, no unit, or the unit of something else.
    """
    base, units = UNITS[what]
    expected = f'Write it as text with a unit of {what}, such as "{_EXAMPLES[what]}" (known: {", ".join(units)}).'
    if isinstance(value, bool) or not isinstance(value, str):
        raise InputError(f"{where} = {value!r} has no unit.", expected)
    found = _NUMBER.match(value)
    if not found or not found[2]:
        raise InputError(f"{where} = {value!r} is not a number with a unit.", expected)
    if found[2] not in units:
        other = next((name for name, (_, known) in UNITS.items() if found[2] in known), "")
        wrong = f"is a unit of {other}, not of {what}." if other else "is not a unit known here."
        raise InputError(f"{where} = {value!r}: {found[2]!r} {wrong}", expected)
    return float(found[1]) * units[found[2]]


# ---- reading -------------------------------------------------------------------------------------------------------------------------------------

class _Reader:
    """One document on its way to a System; `where` in every error names file, table and key."""

    def __init__(self, source: str, data: Mapping[str, Any]) -> None:
        self.source, self.data, self.figures = source, data, {}

    def system(self) -> System:
        known = ("name", "device", "link", "hubs", "fingerprint", "note", "grade", "source")
        self._only(self.data, known, "at its top")
        devices = [device for table in self._tables("device") for device in self._devices(table)]
        hubs = tuple(self._texts(self.data.get("hubs", []), "hubs"))
        links = [link for table in self._tables("link") for link in self._links(table, [device.name for device in devices], hubs)]
        name = self.data.get("name", Path(self.source).stem)
        return System(str(name), tuple(devices), tuple(links), str(self.data.get("fingerprint", "")), hubs, self.figures)

    def _tables(self, key: str) -> Sequence[Mapping[str, Any]]:
        tables = self.data.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise InputError(f"{self.source}: {key} is not a list of tables.", f"Begin each with a line [[{key}]].")
        return tables

    def _only(self, table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
        strange = [key for key in table if key not in known]
        if strange:
            import difflib

            near = difflib.get_close_matches(strange[0], list(known), n=1)
            raise InputError(f"{self.source} has the unknown key {strange[0]!r} {where}.", (f"Did you mean {near[0]!r}? " if near else "")
                             + f"Known: {', '.join(known)}.")

    def _texts(self, value: Any, where: str) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise InputError(f"{self.source}: {where} = {value!r} is not a list of names.", f'Write it as {where} = ["first", "second"].')
        return value

    def _figure(self, value: Any, what: str, where: str, low: float = 0.0, strict: bool = True) -> Quantity:
        """A figure in base units with what it says of itself; those of a file's top (`grade`, `source`) hold where it says nothing."""
        full = f"{self.source}: {where}"
        facts = value if isinstance(value, dict) else {"value": value}
        self._only(facts, ("value", "unit", "grade", "source", "low", "high"), f"in {where}")
        unit = facts.get("unit")

        def read(part: Any) -> float:
            if unit is None or isinstance(part, str):
                return parse_figure(part, what, full)
            if isinstance(part, bool) or not isinstance(part, int | float):
                raise InputError(f"{full} = {part!r} is not a number.", f'Write it as "{_EXAMPLES[what]}".')
            return parse_figure(f"{part!r} {unit}", what, full)

        if "value" not in facts:
            raise InputError(f"{full} has no value.",
                             f'Write it as "{_EXAMPLES[what]}", or as {{ value = …, unit = "…", grade = "…", source = "…" }}.')
        size = read(facts["value"])
        if not math.isfinite(size) or size < low or (strict and size == low):
            raise InputError(f"{full} = {facts['value']!r} is out of range.", f"It must be {'above' if strict else 'at least'} {low:g}.")
        grade = facts.get("grade", self.data.get("grade", "assumed"))
        if grade not in GRADES:
            raise InputError(f"{full} has the grade {grade!r}.", f"Known grades: {', '.join(GRADES)}.")
        ends = {end: read(facts[end]) for end in ("low", "high") if end in facts}
        low_end, high_end = (ends.get(end, size) if ends else None for end in ("low", "high"))
        return Quantity(size, UNITS[what][0], grade, low_end, high_end, source=str(facts.get("source", self.data.get("source", self.source))))

    def _keep(self, name: str, figure: Quantity) -> float:
        self.figures[name] = figure
        return figure.value

    def _devices(self, table: Mapping[str, Any]) -> list[Device]:
        known = ("name", "names", "kind", "chip", "peak", "efficiency", "unsupported", "cold", "note", *_FIGURES)
        names = self._texts(table["names"], "names") if "names" in table else [table.get("name")]
        if not all(isinstance(name, str) and name for name in names):
            raise InputError(f"{self.source}: a [[device]] has no name.", 'Write name = "gpu0" into it.')
        where = f"device {names[0]!r}"
        self._only(table, known, f"in {where}")
        figures = _of_chip(table["chip"]) if "chip" in table else {}
        for key, what in _FIGURES.items():
            if key in table:
                figures[key] = self._figure(table[key], what, f"{key} of {where}", strict=key in ("bandwidth", "memory"))
        peaks = table.get("peak", {})
        if not isinstance(peaks, dict):
            raise InputError(f"{self.source}: peak of {where} is {peaks!r}.", 'Write it by dtype: peak = { float32 = "9.3 TFLOP/s" }.')
        for dtype, value in peaks.items():
            figures[f"peak.{plain_dtype(dtype)}"] = self._figure(value, "speed", f"peak {dtype} of {where}")
        missing = [key for key in ("bandwidth", "memory", "launch") if key not in figures]
        missing += [] if any(key.startswith("peak.") for key in figures) else ["peak"]
        if missing:
            raise InputError(f"{self.source}: {where} lacks {_listed(missing)}.", "Write the figures with their units, or name a chip that has them.")
        curves = {family: self._curve(family, value, where, figures) for family, value in table.get("efficiency", {}).items()}
        cold = self._times(table.get("cold", []), f"cold of {where}")
        found = []
        for name in names:
            values = {key: self._keep(f"{name}.{key}", figure) for key, figure in figures.items()}
            peak = {key.removeprefix("peak."): value for key, value in values.items() if key.startswith("peak.")}
            found.append(Device(str(name), str(table.get("kind", "device")), peak, efficiency=curves,
                                cold=cold, unsupported=tuple(self._texts(table.get("unsupported", []), "unsupported")),
                                **{key: values[key] for key in _FIGURES if key in values}))
        return found

    def _times(self, value: Any, where: str) -> tuple[tuple[float, float], ...]:
        """Points (bytes, seconds) in growing size."""
        if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
            raise InputError(f"{self.source}: {where} = {value!r}.", 'Write points [["1 MB", "2 us"], ["8 MB", "9 us"]].')
        points = tuple((parse_figure(x, "size", f"{self.source}: {where}"), parse_figure(y, "time", f"{self.source}: {where}")) for x, y in value)
        if any(b[0] <= a[0] for a, b in zip(points, points[1:], strict=False)) or any(x <= 0 or y < 0 for x, y in points):
            raise InputError(f"{self.source}: the sizes in {where} do not grow, or a time is negative.", "Order the points by size, above zero.")
        return points

    def _curve(self, family: str, value: Any, where: str, figures: dict[str, Quantity]) -> Efficiency:
        place = f"efficiency {family} of {where}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = {"peak": value, "bandwidth": value}
        if not isinstance(value, dict):
            raise InputError(f"{self.source}: {place} = {value!r}.", "Write a share such as 0.8, or a table with launch, peak, bandwidth.")
        self._only(value, ("launch", "peak", "bandwidth", "narrow", "relay", "grade", "source"), f"in {place}")
        launch = None
        if "launch" in value:
            told = value["launch"] if isinstance(value["launch"], dict) else {"value": value["launch"]}
            graded = {key: value[key] for key in ("grade", "source") if key in value} | told
            figures[f"efficiency.{family}.launch"] = figure = self._figure(graded, "time", f"launch in {place}", strict=False)
            launch = figure.value
        parts = {"peak": ("work", 1.0), "bandwidth": ("size", 1000.0), "narrow": ("", 1.0)}
        relay = self._figure(value["relay"], "rate", f"relay in {place}").value if "relay" in value else math.inf
        return Efficiency(launch, relay=relay, **{part: self._points(value.get(part, 1.0), what, top, f"{part} in {place}")
                                                  for part, (what, top) in parts.items()})

    def _points(self, value: Any, what: str, top: float, where: str) -> tuple[tuple[float, float], ...]:
        pairs = [[1.0, value]] if isinstance(value, int | float) else value
        if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise InputError(f"{self.source}: {where} = {value!r}.", "Write a share, or points [size, share] in growing size.")
        points = []
        for size, share in pairs:
            bare = isinstance(size, int | float) and (not what or len(pairs) == 1)
            at = float(size) if bare else parse_figure(size, what, f"{self.source}: {where}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= top:
                raise InputError(f"{self.source}: {where} has the share {share!r}.", f"A share is a number above 0 and at most {top:g}.")
            points.append((at, float(share)))
        if any(b[0] <= a[0] for a, b in zip(points, points[1:], strict=False)) or points[0][0] <= 0:
            raise InputError(f"{self.source}: the sizes in {where} do not grow.", "Order the points by size, above zero.")
        return tuple(points)

    def _links(self, table: Mapping[str, Any], devices: Sequence[str], hubs: Sequence[str]) -> list[Link]:
        self._only(table, ("a", "b", "between", "duplex", "overlap", "note", *_LINK_FIGURES), "in a [[link]]")
        ends = [*devices, *hubs]

        def matching(key: str) -> list[str]:
            pattern = table.get(key)
            if not isinstance(pattern, str):
                raise InputError(f"{self.source}: a [[link]] has no {key}.", 'Write a = "gpu0" and b = "gpu1", or between = "gpu*".')
            found = fnmatch.filter(ends, pattern)
            if not found:
                raise InputError(f"{self.source}: a [[link]] has {key} = {pattern!r}, and there is no such device or hub.",
                                 f"Known: {', '.join(ends)}.")
            return found

        if "between" in table:
            among = matching("between")
            pairs = [(one, other) for number, one in enumerate(among) for other in among[number + 1:]]
            if not pairs:
                raise InputError(f"{self.source}: between = {table['between']!r} matches {among[0]!r} alone.", "A link needs two ends.")
        else:
            pairs = [(one, other) for one in matching("a") for other in matching("b") if one != other]
        duplex, overlap = table.get("duplex", True), table.get("overlap", True)
        for key, value in (("duplex", duplex), ("overlap", overlap)):
            if not isinstance(value, bool):
                raise InputError(f"{self.source}: {key} = {value!r}.", f"Write {key} = true or {key} = false.")
        missing = [key for key in ("latency", "bandwidth") if key not in table]
        if missing:
            raise InputError(f"{self.source}: the [[link]] {pairs[0][0]}-{pairs[0][1]} lacks {_listed(missing)}.",
                             'Write latency = "10 us" and bandwidth = "12 GB/s".')
        found = []
        for one, other in pairs:
            figures = {key: self._figure(table[key], what, f"{key} of the link {one}-{other}", strict=key == "bandwidth")
                       for key, what in _LINK_FIGURES.items() if key in table}
            values = {key: self._keep(f"{one}-{other}.{key}", figure) for key, figure in figures.items()}
            found.append(Link(one, other, values["latency"], values["bandwidth"], duplex, values.get("energy", 0.0), overlap))
        return found


def _of_chip(name: Any) -> dict[str, Quantity]:
    """The figures of a chip in the table, in base units."""
    found = chip(name)
    figures = {f"peak.{plain_dtype(dtype)}": peak for dtype, peak in found.peak.items()}
    if found.bandwidth is not None:
        figures["bandwidth"] = found.bandwidth
    if found.memory is not None:
        figures["memory"] = found.memory.to("B")
    if found.chip is not None or found.tdp is not None:
        figures["busy"] = found.chip or found.stand_in                  # of the device alone; the host's share is not its own
    return figures


def _stated(machine: Machine, workers: int) -> System:
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
    facts: dict[str, Any] = {key: values[key].value for key in _FIGURES}
    devices = tuple(Device(f"cpu{k}", "cpu", peak, efficiency={"view": Efficiency(1e-6)}, **facts) for k in range(workers))
    links = tuple(Link(f"cpu{a}", f"cpu{b}", 50e-6, 5e9) for a in range(workers) for b in range(a + 1, workers))
    figures = {f"{device.name}.{key}": value for device in devices for key, value in values.items()}
    for link in links:
        figures |= {f"{link.a}-{link.b}.latency": figure(link.latency, "s"), f"{link.a}-{link.b}.bandwidth": figure(link.bandwidth, "B/s")}
    return System(f"{machine.name} as {workers} worker{'s' * (workers > 1)}, not measured", devices, links, machine.fingerprint, (), figures)


# ---- writing -------------------------------------------------------------------------------------------------------------------------------------

def ours(head: bytes) -> bool:
    """Whether a file that begins so is a machine file as `System.write` writes it."""
    return head.startswith(b"name = ") and b"\nfingerprint = " in head


def _written(system: System) -> str:
    lines = [f"name = {_quoted(system.name)}", f"fingerprint = {_quoted(system.fingerprint)}", f"hubs = {json.dumps(list(system.hubs))}"]
    for device in system.devices:
        lines += ["", "[[device]]", f"name = {_quoted(device.name)}", f"kind = {_quoted(device.kind)}"]
        lines += [f"unsupported = {json.dumps(list(device.unsupported))}"]
        lines += ["cold = [" + ", ".join(f'["{x!r} B", "{y!r} s"]' for x, y in device.cold) + "]"]
        lines += [f"{key} = {_stated_as(system, f'{device.name}.{key}', getattr(device, key), what)}" for key, what in _FIGURES.items()]
        lines += ["[device.peak]", *(f"{_quoted(d)} = {_stated_as(system, f'{device.name}.peak.{d}', v, 'speed')}" for d, v in device.peak.items())]
        for family, curve in device.efficiency.items():
            lines.append(f"[device.efficiency.{_quoted(family)}]")
            if curve.launch is not None:
                lines.append(f"launch = {_stated_as(system, f'{device.name}.efficiency.{family}.launch', curve.launch, 'time')}")
            lines += [f"{part} = {_points_as(getattr(curve, part), unit)}" for part, unit in zip(_CURVES, ("FLOP", "B", ""), strict=True)]
            if math.isfinite(curve.relay):
                lines.append(f'relay = "{curve.relay!r} B/s"')
    for link in system.links:
        lines += ["", "[[link]]", f"a = {_quoted(link.a)}", f"b = {_quoted(link.b)}", f"duplex = {str(link.duplex).lower()}"]
        lines += [f"overlap = {str(link.overlap).lower()}"]
        lines += [f"{key} = {_stated_as(system, f'{link.a}-{link.b}.{key}', getattr(link, key), what)}" for key, what in _LINK_FIGURES.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _stated_as(system: System, name: str, value: float, what: str) -> str:
    base, figure = UNITS[what][0], system.figures.get(name)
    if figure is None:
        return f'"{value!r} {base}"'
    parts = [f"value = {value!r}", f'unit = "{base}"', f"grade = {_quoted(figure.grade)}", f"source = {_quoted(figure.source)}"]
    if figure.low is not None and figure.high is not None:
        parts += [f"low = {figure.low!r}", f"high = {figure.high!r}"]
    return "{ " + ", ".join(parts) + " }"


def _points_as(points: tuple[tuple[float, float], ...], unit: str) -> str:
    if len(points) == 1:
        return f"{points[0][1]!r}"
    return "[" + ", ".join(f'["{x!r} {unit}", {y!r}]' if unit else f"[{x!r}, {y!r}]" for x, y in points) + "]"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:-1]) + (" and " if len(names) > 1 else "") + repr(names[-1])

