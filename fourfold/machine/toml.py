"""Machine files: a TOML document to the parts of a machine, each figure with its unit, source and grade, and back. `fourfold.machine` shows one."""

from __future__ import annotations

import fnmatch
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fourfold.errors import InputError
from fourfold.host import chip
from fourfold.machine.device import CURVES, Device, Efficiency, Link, plain_dtype
from fourfold.units import GRADES, Quantity
from fourfold.units.parse import DIMENSIONS, quantity

FIGURES = {"bandwidth": "rate", "launch": "time", "memory": "size", "idle": "power", "busy": "power"}
_LINK_FIGURES = {"latency": "time", "bandwidth": "rate", "energy": "energy per byte"}


class Parts(NamedTuple):
    """What a machine is made of, in the order in which its class takes it."""

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    fingerprint: str
    hubs: tuple[str, ...]
    figures: Mapping[str, Quantity]


def read(text: str, source: str = "machine file") -> Parts:
    """The parts that a TOML document describes; `source` names it in errors and figures. Raises InputError where it is broken."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not TOML: {error}.", "Mend the line, or make a file with: fourfold calibrate") from None
    return _Reader(source, data).parts()


class _Reader:
    """One document on its way to a machine; `where` in every error names file, table and key."""

    def __init__(self, source: str, data: Mapping[str, object]) -> None:
        self.source, self.data = source, data
        self.figures: dict[str, Quantity] = {}

    def parts(self) -> Parts:
        known = ("name", "device", "link", "hubs", "fingerprint", "note", "grade", "source")
        self._only(self.data, known, "at its top")
        devices = [device for table in self._tables("device") for device in self._devices(table)]
        called = [device.name for device in devices]
        hubs = tuple(name for hub in self._texts(self.data.get("hubs", []), "hubs") for name in fnmatch.filter(called, hub) or [hub])
        links = [link for table in self._tables("link") for link in self._links(table, called, hubs)]
        name = self.data.get("name", Path(self.source).stem)
        return Parts(str(name), tuple(devices), tuple(links), str(self.data.get("fingerprint", "")), hubs, self.figures)

    def _tables(self, key: str) -> Sequence[Mapping[str, object]]:
        tables = self.data.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise InputError(f"{self.source}: {key} is not a list of tables.", f"Begin each with a line [[{key}]].")
        return tables

    def _only(self, table: Mapping[str, object], known: Iterable[str], where: str) -> None:
        strange = [key for key in table if key not in known]
        if strange:
            import difflib

            near = difflib.get_close_matches(strange[0], list(known), n=1)
            raise InputError(f"{self.source} has the unknown key {strange[0]!r} {where}.", (f"Did you mean {near[0]!r}? " if near else "")
                             + f"Known: {', '.join(known)}.")

    def _texts(self, value: object, where: str) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise InputError(f"{self.source}: {where} = {value!r} is not a list of names.", f'Write it as {where} = ["first", "second"].')
        return value

    def _figure(self, value: object, what: str, where: str, low: float = 0.0, strict: bool = True) -> Quantity:
        """A figure in base units with what it says of itself; those of a file's top (`grade`, `source`) hold where it says nothing."""
        full = f"{self.source}: {where}"
        facts = value if isinstance(value, dict) else {"value": value}
        self._only(facts, ("value", "unit", "grade", "source", "low", "high"), f"in {where}")
        unit = facts.get("unit")

        def read(part: object) -> float:
            if unit is None or isinstance(part, str):
                return quantity(part, what, full)
            if isinstance(part, bool) or not isinstance(part, int | float):
                raise InputError(f"{full} = {part!r} is not a number.", f'Write it as "{DIMENSIONS[what].example}".')
            return quantity(f"{part!r} {unit}", what, full)

        if "value" not in facts:
            raise InputError(f"{full} has no value.",
                             f'Write it as "{DIMENSIONS[what].example}", or as {{ value = …, unit = "…", grade = "…", source = "…" }}.')
        size = read(facts["value"])
        if not math.isfinite(size) or size < low or (strict and size == low):
            raise InputError(f"{full} = {facts['value']!r} is out of range.", f"It must be {'above' if strict else 'at least'} {low:g}.")
        grade = facts.get("grade", self.data.get("grade", "assumed"))
        if grade not in GRADES:
            raise InputError(f"{full} has the grade {grade!r}.", f"Known grades: {', '.join(GRADES)}.")
        ends = {end: read(facts[end]) for end in ("low", "high") if end in facts}
        low_end, high_end = (ends.get(end, size) if ends else None for end in ("low", "high"))
        return Quantity(size, DIMENSIONS[what].base, grade, low_end, high_end, source=str(facts.get("source", self.data.get("source", self.source))))

    def _keep(self, name: str, figure: Quantity) -> float:
        self.figures[name] = figure
        return figure.value

    def _devices(self, table: Mapping[str, Any]) -> list[Device]:
        known = ("name", "names", "kind", "chip", "peak", "efficiency", "unsupported", "cold", "note", *FIGURES)
        names = self._texts(table["names"], "names") if "names" in table else [table.get("name")]
        if not all(isinstance(name, str) and name for name in names):
            raise InputError(f"{self.source}: a [[device]] has no name.", 'Write name = "gpu0" into it.')
        where = f"device {names[0]!r}"
        self._only(table, known, f"in {where}")
        figures = _of_chip(table["chip"]) if "chip" in table else {}
        for key, what in FIGURES.items():
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
            raise InputError(f"{self.source}: {where} lacks {listed(missing)}.", "Write the figures with their units, or name a chip that has them.")
        curves = {family: self._curve(family, value, where, figures) for family, value in table.get("efficiency", {}).items()}
        cold = self._times(table.get("cold", []), f"cold of {where}")
        found = []
        for name in names:
            values = {key: self._keep(f"{name}.{key}", figure) for key, figure in figures.items()}
            peak = {key.removeprefix("peak."): value for key, value in values.items() if key.startswith("peak.")}
            found.append(Device(str(name), str(table.get("kind", "device")), peak, efficiency=curves,
                                cold=cold, unsupported=tuple(self._texts(table.get("unsupported", []), "unsupported")),
                                **{key: values[key] for key in FIGURES if key in values}))
        return found

    def _times(self, value: object, where: str) -> tuple[tuple[float, float], ...]:
        """Points (bytes, seconds) in growing size."""
        if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
            raise InputError(f"{self.source}: {where} = {value!r}.", 'Write points [["1 MB", "2 us"], ["8 MB", "9 us"]].')
        points = tuple((quantity(x, "size", f"{self.source}: {where}"), quantity(y, "time", f"{self.source}: {where}")) for x, y in value)
        if any(b[0] <= a[0] for a, b in zip(points, points[1:], strict=False)) or any(x <= 0 or y < 0 for x, y in points):
            raise InputError(f"{self.source}: the sizes in {where} do not grow, or a time is negative.", "Order the points by size, above zero.")
        return points

    def _curve(self, family: str, value: object, where: str, figures: dict[str, Quantity]) -> Efficiency:
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

    def _points(self, value: object, what: str, top: float, where: str) -> tuple[tuple[float, float], ...]:
        pairs = [[1.0, value]] if isinstance(value, int | float) else value
        if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise InputError(f"{self.source}: {where} = {value!r}.", "Write a share, or points [size, share] in growing size.")
        points = []
        for size, share in pairs:
            bare = isinstance(size, int | float) and (not what or len(pairs) == 1)
            at = float(size) if bare else quantity(size, what, f"{self.source}: {where}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= top:
                raise InputError(f"{self.source}: {where} has the share {share!r}.", f"A share is a number above 0 and at most {top:g}.")
            points.append((at, float(share)))
        if any(b[0] <= a[0] for a, b in zip(points, points[1:], strict=False)) or points[0][0] <= 0:
            raise InputError(f"{self.source}: the sizes in {where} do not grow.", "Order the points by size, above zero.")
        return tuple(points)

    def _links(self, table: Mapping[str, Any], devices: Sequence[str], hubs: Sequence[str]) -> list[Link]:
        self._only(table, ("a", "b", "between", "along", "duplex", "overlap", "note", *_LINK_FIGURES), "in a [[link]]")
        ends = list(dict.fromkeys([*devices, *hubs]))

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
        elif "along" in table:
            chain = self._texts(table["along"], "along")
            if unknown := [name for name in chain if name not in ends]:
                raise InputError(f"{self.source}: a [[link]] leads along {unknown[0]!r}, and there is no such device or hub.",
                                 f"Known: {', '.join(ends)}.")
            if len(chain) < 2:
                raise InputError(f"{self.source}: a [[link]] leads along fewer than two ends.", "Name at least two devices or hubs in order.")
            pairs = list(zip(chain, chain[1:], strict=False))
        else:
            pairs = [(one, other) for one in matching("a") for other in matching("b") if one != other]
        duplex, overlap = table.get("duplex", True), table.get("overlap", True)
        for key, value in (("duplex", duplex), ("overlap", overlap)):
            if not isinstance(value, bool):
                raise InputError(f"{self.source}: {key} = {value!r}.", f"Write {key} = true or {key} = false.")
        missing = [key for key in ("latency", "bandwidth") if key not in table]
        if missing:
            raise InputError(f"{self.source}: the [[link]] {pairs[0][0]}-{pairs[0][1]} lacks {listed(missing)}.",
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


def written(system: Parts) -> str:
    """The document that `read` gives back equal, grades and sources included."""
    lines = [f"name = {_quoted(system.name)}", f"fingerprint = {_quoted(system.fingerprint)}", f"hubs = {json.dumps(list(system.hubs))}"]
    for device in system.devices:
        lines += ["", "[[device]]", f"name = {_quoted(device.name)}", f"kind = {_quoted(device.kind)}"]
        lines += [f"unsupported = {json.dumps(list(device.unsupported))}"]
        lines += ["cold = [" + ", ".join(f'["{x!r} B", "{y!r} s"]' for x, y in device.cold) + "]"]
        lines += [f"{key} = {_stated_as(system, f'{device.name}.{key}', getattr(device, key), what)}" for key, what in FIGURES.items()]
        lines += ["[device.peak]", *(f"{_quoted(d)} = {_stated_as(system, f'{device.name}.peak.{d}', v, 'speed')}" for d, v in device.peak.items())]
        for family, curve in device.efficiency.items():
            lines.append(f"[device.efficiency.{_quoted(family)}]")
            if curve.launch is not None:
                lines.append(f"launch = {_stated_as(system, f'{device.name}.efficiency.{family}.launch', curve.launch, 'time')}")
            lines += [f"{part} = {_points_as(getattr(curve, part), unit)}" for part, unit in zip(CURVES, ("FLOP", "B", ""), strict=True)]
            if math.isfinite(curve.relay):
                lines.append(f'relay = "{curve.relay!r} B/s"')
    for link in system.links:
        lines += ["", "[[link]]", f"a = {_quoted(link.a)}", f"b = {_quoted(link.b)}", f"duplex = {str(link.duplex).lower()}"]
        lines += [f"overlap = {str(link.overlap).lower()}"]
        lines += [f"{key} = {_stated_as(system, f'{link.a}-{link.b}.{key}', getattr(link, key), what)}" for key, what in _LINK_FIGURES.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _stated_as(system: Parts, name: str, value: float, what: str) -> str:
    base, figure = DIMENSIONS[what].base, system.figures.get(name)
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


def listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:-1]) + (" and " if len(names) > 1 else "") + repr(names[-1])
