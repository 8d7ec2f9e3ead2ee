"""The one grammar of figures with units: "330", "0.33 kW", "12 GB/s", "1h 30min", "429 g/kWh ± 10 %", "1.1 [1.08, 1.15]".

    figure   = number [unit] | number unit {number unit}               the second only where a time is meant: its parts add up
    number   = digits, with _ between them, a decimal point, an exponent; a decimal comma only where a share is meant
    unit     = word {("/" | "per") word}                               as `units/dimension.py` has them; blanks do not matter

What a bare number means is the caller's: so many of the unit `bare`, or refused. `quantity`, `duration` and `figure` give plain numbers in a base
unit; `given` gives a Quantity, with an interval of its own or the default one of its kind, graded assumed unless the user says where it is from.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from fourfold.errors import InputError
from fourfold.units import Quantity
from fourfold.units.dimension import scale

_Z90 = 1.6448536269514722
_DIGITS = r"\d+(?:_\d+)*"
_NUMBER = rf"[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.\d+)(?:[eE][-+]?\d+)?"
_FIRST = re.compile(_NUMBER)
_PART = re.compile(rf"\s*(?P<number>(?![-+]){_NUMBER})\s*(?P<unit>[^\W\d_]+(?:-[^\W\d_]+)?)")   # of a duration in several units
_INTERVAL = re.compile(r"(?P<head>[^±\[\]]*?)\s*(?:(?:±|\+/?-)\s*(?P<half>[^±\[\]]*?)"
                       r"|\[\s*(?P<low>[^\[\]]*?)\s*(?:,|;|\.\.|–|to)\s*(?P<high>[^\[\]]*?)\s*\])?\s*")


@dataclass(frozen=True)
class Dimension:
    """What a figure measures: the unit that it is given back in, the units that errors tell of, and how one is written. `noun`: what text that is no
    figure fails to be."""

    base: str
    known: tuple[str, ...]
    example: str
    noun: str = "a figure"


DIMENSIONS = {
    "time": Dimension("s", ("ns", "us", "ms", "s", "min", "h", "d", "week", "month", "year"), "90s, 10min, 1h 30min or 2d", "a length of time"),
    "size": Dimension("B", ("B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"), "16 GB"),
    "rate": Dimension("B/s", ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s", "Mbit/s", "Gbit/s"), "12 GB/s"),
    "speed": Dimension("FLOP/s", ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"), "9.3 TFLOP/s"),
    "work": Dimension("FLOP", ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"), "1 GFLOP"),
    "power": Dimension("W", ("mW", "W", "kW", "MW"), "250 W"),
    "energy": Dimension("J", ("J", "kJ", "MJ", "GJ", "Wh", "kWh", "MWh", "GWh", "TWh"), "0.5 kWh"),
    "energy per byte": Dimension("J/B", ("J/B", "mJ/B", "uJ/B", "nJ/B", "pJ/B"), "60 pJ/B"),
    "carbon": Dimension("gCO2e", ("g", "kg", "t", "lb"), "1300kg"),
    "carbon intensity": Dimension("gCO2e/kWh", ("g/kWh", "kg/kWh", "kg/MWh", "t/MWh", "lb/MWh", "g/MJ"), "429 g/kWh"),
    "carbon per hour": Dimension("gCO2e/h", ("g/h", "kg/h"), "0.0104 kg/h"),
    "price of energy": Dimension("USD/kWh", ("USD/kWh", "USD/MWh", "$/MWh", "ct/kWh"), "80 USD/MWh"),
    "price of carbon": Dimension("USD/tCO2e", ("USD/t", "USD/kg"), "100 USD/t"),
    "price of traffic": Dimension("USD/GB", ("USD/GB", "USD/TB"), "0.02 USD/GB"),
    "share": Dimension("1", ("%",), "97% or 0.97"),
    "factor": Dimension("1", ("x", "%"), "1.1"),
}


class Figure(NamedTuple):
    """A figure as read: `value` in the unit asked for, `number` and `unit` as they were written ("" for a bare number)."""

    value: float
    number: float
    unit: str


def figure(text: object, dimension: str, what: str = "", *, bare: str | None = None, to: str = "", said: str = "", example: str = "",
           least: float = -math.inf) -> Figure:
    """`text` ("12 GB/s", or a number) in the unit `to`, by default the base unit of its `dimension` (a key of DIMENSIONS).

    `bare` is the unit of a number that has none; None refuses such. `what` names the figure in errors ("bandwidth of device 'a'"); `said` stands
    there for what was given, where that must not be told; `example` for the dimension's.
    Raises InputError for what is no figure, has no unit, has one that measures something else, is not finite, or is below `least` (in `to`).
    """
    kind = DIMENSIONS[dimension]
    to = to or kind.base

    def refused(fault: str, more: str = "") -> InputError:
        shape = "a number" if bare == "1" else f"a number with a unit of {dimension}"
        known = "" if bare == "1" else f" (known: {', '.join(kind.known)})"
        default = f"; a bare number is in {bare}" if bare not in (None, "1") else ""
        return InputError(f"{what or 'The ' + dimension} is {said or _clipped(text)}, {fault}.",
                          f"Write {shape}, such as {example or kind.example}{known}{default}.{more}")

    def factor(unit: str) -> float:
        size = scale(unit, to)
        if size is None and said:
            raise refused(f"not {kind.noun}")
        if size is None:
            others = [name for name, one in DIMENSIONS.items() if scale(unit, one.base) is not None]
            other = next((name for name in others if unit in DIMENSIONS[name].known), others[0] if others else "")   # W is a watt before a week
            raise refused(f"and {unit!r} is a unit of {other}, not of {dimension}" if other else f"and {unit!r} is not a unit known here")
        return size

    def finite(value: float) -> float:
        if not math.isfinite(value):
            raise refused("which is out of range")
        if value < least:
            raise refused(f"not {kind.noun} of {least:g} or more")
        return value

    if isinstance(text, bool) or not isinstance(text, str | Real):
        raise refused("which has no unit" if bare is None else f"not {kind.noun}")
    if not isinstance(text, str):
        if bare is None:
            raise refused("which has no unit")
        try:
            number = float(text)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise refused(f"not {kind.noun}")
        return Figure(finite(number * factor(bare)), number, "")
    words = text.strip()
    if dimension == "share":
        words = re.sub(r"(?<!\d)(\d*),(\d+)", r"\1.\2", words, count=1)
    first = _FIRST.match(words)
    unit = words[first.end():].strip() if first else ""
    if not first or unit[:1].isdigit() or unit[:1] in tuple(".,+-_"):
        raise refused(f"not {kind.noun}", " Use a decimal point." if re.search(r"\d,\d", words) else "")
    number = float(first[0])
    if not unit and bare is None:
        raise refused("which has no unit")
    if dimension == "time" and scale(unit, to) is None and any(letter.isdigit() for letter in unit):
        at, parts = 0, []
        while at < len(words):
            part = _PART.match(words, at)
            if not part:
                raise refused(f"not {kind.noun}")
            parts.append(float(part["number"]) * factor(part["unit"]))
            at = part.end()
        return Figure(finite(sum(parts)), number, unit)
    size = factor(unit or bare or "")
    return Figure(finite(number / 100 if size == 0.01 and kind.base == "1" else number * size), number, unit)


def _clipped(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:60]} … ({len(shown):,} characters)"


def quantity(text: object, dimension: str, what: str = "", *, bare: str | None = None, to: str = "", said: str = "",
             least: float = -math.inf) -> float:
    """The value of `figure`: "0.5 kWh" as "energy" is 1.8e6 (J). Raises InputError."""
    return figure(text, dimension, what, bare=bare, to=to, said=said, least=least).value


def duration(text: object, what: str = "The duration", *, bare: str | None = "s", to: str = "s", said: str = "") -> float:
    """A length of time of 0 or more, in seconds or in `to`: "90s", "10min", "1h 30min", "2d", "1.5 weeks"; a bare number is in `bare`.

    Raises InputError for what is none.
    """
    return figure(text, "time", what, bare=bare, to=to, said=said, least=0.0).value


def memory(text: object, what: str = "The size of the memory", least: int = 1) -> int:
    """A whole number of bytes: "4MiB", "512 kB", 1048576; a letter alone counts in 1024s, as linkers do: "512K", "512k" and "512Ki" are 524,288.

    Raises InputError for what is no size, no whole number of bytes, or below `least`.
    """
    short = re.fullmatch(rf"\s*({_NUMBER})\s*([kKMGT])i?\s*", text) if isinstance(text, str) else None
    plain = re.fullmatch(r"\s*(\d+(?:_\d+)*)\s*", text) if isinstance(text, str) else None
    if plain or (isinstance(text, int) and not isinstance(text, bool)):  # not through a float: 2^62 + 1 stays what it is
        value: float = int(text)                                        # type: ignore[call-overload]
    else:
        value = quantity(f"{short[1]}{short[2].upper()}iB" if short else text, "size", what, bare="B", to="B")
    if value != int(value) or value < least:
        raise InputError(f"{what} is {_clipped(text)}, which is {f'below {least:,} bytes' if value < least else 'no whole number of bytes'}.",
                         "Give bytes such as 1048576, or 512K, 4MiB, 16GB.")
    return int(value)


def size_of(unit: str, dimension: str, to: str = "") -> float | None:
    """How many `to` (by default the base unit of `dimension`) one `unit` is; None where it is no unit of that dimension."""
    return scale(unit, to or DIMENSIONS[dimension].base)


# ---- quantities ----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What a figure may be: its dimension, the unit of its Quantity (divided by `per` where it is a rate), the unit of a bare number, least and most
    (in `unit`), its default 90 % interval (± as a share).

    `least` itself is refused where `open`; `example` shows the right form.
    """

    what: str
    dimension: str
    unit: str
    bare: str
    least: float
    most: float
    example: str
    spread: float = 0.0
    open: bool = True
    most_says: str = ""
    least_says: str = ""
    per: str = ""

    @property
    def title(self) -> str:
        return self.what[0].upper() + self.what[1:]

    def read(self, text: object, bare: str = "") -> Figure:
        """`text` in the kind's unit. Raises InputError, also for milliwatts and millijoules, which are megawatts and megajoules ill written."""
        found = figure(text, self.dimension, self.title, bare=bare or self.bare, to=self.unit + self.per, example=self.example)
        if self.dimension in ("power", "energy") and re.match(r"m\s*[wj]", found.unit, re.IGNORECASE) and found.unit[0] == "m":
            raise InputError(f"{self.title} is {text!r}, and {found.unit!r} is not a unit of so much {self.dimension}: it is milli.",
                             f"Write M for mega, such as {found.number:g} M{found.unit[1:].lstrip()}, or {self.example}.")
        return found


POWER = Kind("power per chip", "power", "W", "W", 0.0, 50_000.0, "330W or 0.33kW", 0.10, most_says="that is a rack, not a chip")
TIME = Kind("time", "time", "h", "h", 0.0, 1e12, "355.2h or 14.8 days")
DAYS = Kind("time in days", "time", "h", "d", 0.0, 1e12, "14.8")
ENERGY = Kind("energy at the hall's meter", "energy", "kWh", "kWh", 0.0, 1e15, "1287MWh")
PUE = Kind("PUE", "factor", "1", "1", 1.0, 10.0, "1.1", 0.03, open=False, least_says="a hall cannot use less than its machines")
INTENSITY = Kind("carbon intensity", "carbon intensity", "gCO2e/kWh", "kg/kWh", 0.0, 2000.0, "0.429 (kg/kWh) or 429g/kWh", open=False,
                 most_says="no grid emits so much; a bare number is kg per kWh")
PRICE = Kind("price", "price of energy", "USD/kWh", "USD/kWh", 0.0, 10.0, "0.08 (USD/kWh) or 80USD/MWh", open=False)
EMBODIED = Kind("embodied carbon per chip-hour", "carbon per hour", "gCO2e", "kg/h", 0.0, 10_000.0, "luccioni, or 0.0104kg/h", open=False, per="/h")
WORK = Kind("work", "work", "FLOP", "FLOP", 0.0, 1e40, "3.14e23", 0.0)
FACTOR = Kind("factor", "factor", "1", "1", 0.0, 1e12, "4")


def given(kind: Kind, value: str | float | Quantity, *, source: str, grade: str = "assumed", spread: float | None = None, boundary: str = "",
          signal: str = "") -> Quantity:
    """`value` as a Quantity of `kind`, in its unit, with `grade` (a Quantity keeps its own). `source` names the figure and its error.

    `spread` replaces the default interval (± as a share, log-symmetric). Raises InputError for text that is no number, another kind of unit, a figure
    that is not finite, and one outside the kind's limits.
    """
    if isinstance(value, Quantity):
        made = value.to(kind.unit)
        _check(kind, made.value, str(value))
        return made
    read, low, high = _read(kind, value)
    size = _check(kind, read.value, str(value))
    facts: dict[str, Any] = {"boundary": boundary, "signal": signal, "source": source}
    if low is not None and high is not None:
        if not 0 <= low <= size <= high:
            raise InputError(f"{value!r}: the interval does not hold the figure.", f"Expected low <= {kind.what} <= high, such as 330 [300, 360].")
        _check(kind, low, str(value))
        errors = {source: math.log(high / low) / (2 * _Z90)} if 0 < low < high else {}
        return Quantity(size, kind.unit, grade, low, high, method="given with its interval", errors=errors, **facts)
    share = kind.spread if spread is None else spread
    errors = {source: math.log1p(share) / _Z90} if share and size else {}
    method = f"given, with the default interval of ±{share:.0%}" if errors else "given"
    low = max(kind.least, size / (1 + share)) if errors else None
    return Quantity(size, kind.unit, grade, low, method=method, errors=errors, **facts)


def count(what: str, value: str | float) -> int:
    """A whole number of at least 1: 10000, "10,000", 1e4. Raises InputError otherwise."""
    text = str(value).strip()
    plain = text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else text
    try:
        number = float(plain)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < 1 or number != int(number):
        raise InputError(f"{what} must be a whole number of at least 1, got {value!r}.", "Write it as 10000 or 10,000.")
    return int(number)


def _read(kind: Kind, value: object) -> tuple[Figure, float | None, float | None]:
    """The figure, and the ends of the interval where one was written, in the kind's unit."""
    found = _INTERVAL.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found or (found["half"] is None and found["low"] is None):
        return kind.read(value), None, None
    read = kind.read(found["head"])
    if found["half"] is None:
        return read, kind.read(found["low"], read.unit).value, kind.read(found["high"], read.unit).value
    share = re.fullmatch(rf"({_NUMBER})\s*%[^%]*", found["half"])
    if share:
        half = abs(read.value) * (float(share[1]) / 100)
    else:
        width = kind.read(found["half"], read.unit)
        read = read if read.unit else kind.read(found["head"], width.unit)   # 330 ± 10 W
        half = width.value
    return read, read.value - half, read.value + half


def _check(kind: Kind, size: float, text: str) -> float:
    """`size` in the kind's unit if it can be. Raises InputError."""
    if size < kind.least or (kind.open and size == kind.least):
        why = kind.least_says or ("it is negative" if size < 0 else "it must be above zero")
        raise InputError(f"A {kind.what} of {text} cannot be: {why}.", f"Give it such as {kind.example}.")
    if size > kind.most:
        why = kind.most_says or f"the most that is believed is {kind.most:g}{'' if kind.unit == '1' else ' ' + kind.unit}"
        hint = f"Did you mean {text}g/kWh? " if kind is INTENSITY and re.fullmatch(_NUMBER, text.strip()) and size / 1000 <= kind.most else ""
        raise InputError(f"A {kind.what} of {text} cannot be: {why}.", f"{hint}Give it such as {kind.example}.")
    return size
