"""Figures as a user writes them: "330", "0.33 kW", "429 g/kWh ± 10 %", "1.1 [1.08, 1.15]", "2 weeks"; wrong kinds and impossible sizes are refused.

A figure without an interval of its own gets the default one of its kind, and says so. It is graded assumed, unless the user says where it is from.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Any

from fourfold.errors import InputError
from fourfold.units import Quantity

_Z90 = 1.6448536269514722
_NUMBER = r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WORDS = re.compile(rf"(?P<value>{_NUMBER})(?![\d,])\s*(?P<unit>[^\d\s±+\[][^±\[]*?)?\s*"
                    rf"(?:(?:±|\+/?-)\s*(?P<half>{_NUMBER})\s*(?P<share>%?)[^\[\]%]*?"
                    rf"|\[\s*(?P<low>{_NUMBER})\s*(?:,|;|\.\.|–|to)\s*(?P<high>{_NUMBER})\s*\])?\s*")
_LB = 453.59237                                                        # grams in a pound

# spelling → (unit of a Quantity, factor); lower case, without blanks
_TIME = {"s": ("s", 1.0), "sec": ("s", 1.0), "second": ("s", 1.0), "min": ("min", 1.0), "minute": ("min", 1.0), "h": ("h", 1.0), "hr": ("h", 1.0),
         "hour": ("h", 1.0), "d": ("h", 24.0), "day": ("h", 24.0), "week": ("h", 168.0), "wk": ("h", 168.0), "month": ("h", 730.0),
         "y": ("h", 8760.0), "yr": ("h", 8760.0), "year": ("h", 8760.0)}
_POWER = {"w": ("W", 1.0), "watt": ("W", 1.0), "kw": ("W", 1e3), "kilowatt": ("W", 1e3), "mw": ("W", 1e6)}
_ENERGY = {"j": ("J", 1.0), "kj": ("kJ", 1.0), "mj": ("kJ", 1e3), "gj": ("kJ", 1e6), "wh": ("Wh", 1.0), "kwh": ("kWh", 1.0), "mwh": ("MWh", 1.0),
           "gwh": ("MWh", 1e3), "twh": ("MWh", 1e6)}
_CARBON = {f"{mass}{gas}/{energy}": ("gCO2e/kWh", grams / kwh)
           for mass, grams in (("g", 1.0), ("kg", 1e3), ("t", 1e6), ("lb", _LB), ("lbs", _LB)) for gas in ("", "co2", "co2e", "co2eq", "co₂", "co₂e")
           for energy, kwh in (("kwh", 1.0), ("mwh", 1e3), ("wh", 1e-3))}
_MONEY = {f"{coin}/{energy}": ("USD/kWh", size / kwh) for coin, size in (("usd", 1.0), ("$", 1.0), ("cent", 0.01), ("ct", 0.01))
          for energy, kwh in (("kwh", 1.0), ("mwh", 1e3))}
_EMBODIED = {f"{mass}{gas}/{time}": ("gCO2e", grams / hours) for mass, grams in (("g", 1.0), ("kg", 1e3)) for gas in ("", "co2", "co2e")
             for time, hours in (("h", 1.0), ("hour", 1.0), ("chip-hour", 1.0), ("chiphour", 1.0))}
_WORK = {f"{prefix}flop": ("FLOP", 10.0**power) for prefix, power in (("", 0), ("g", 9), ("t", 12), ("p", 15), ("e", 18), ("z", 21))}


@dataclass(frozen=True)
class Kind:
    """What a figure may be: its units by spelling, the unit of a bare number, least and most (in `unit`), its default 90 % interval (± as a share).

    `least` itself is refused where `open`; `example` shows the right form.
    """

    what: str
    unit: str
    bare: str
    spellings: dict[str, tuple[str, float]]
    least: float
    most: float
    example: str
    spread: float = 0.0
    open: bool = True
    most_says: str = ""
    least_says: str = ""

    @property
    def title(self) -> str:
        return self.what[0].upper() + self.what[1:]


POWER = Kind("power per chip", "W", "w", _POWER, 0.0, 50_000.0, "330W or 0.33kW", 0.10, most_says="that is a rack, not a chip")
TIME = Kind("time", "h", "h", _TIME, 0.0, 1e12, "355.2h or 14.8 days")
DAYS = Kind("time in days", "h", "d", _TIME, 0.0, 1e12, "14.8")
ENERGY = Kind("energy at the hall's meter", "kWh", "kwh", _ENERGY, 0.0, 1e15, "1287MWh")
PUE = Kind("PUE", "1", "", {"": ("1", 1.0)}, 1.0, 10.0, "1.1", 0.03, open=False, least_says="a hall cannot use less than its machines")
INTENSITY = Kind("carbon intensity", "gCO2e/kWh", "kg/kwh", _CARBON, 0.0, 2000.0, "0.429 (kg/kWh) or 429g/kWh", open=False,
                 most_says="no grid emits so much; a bare number is kg per kWh")
PRICE = Kind("price", "USD/kWh", "usd/kwh", _MONEY, 0.0, 10.0, "0.08 (USD/kWh) or 80USD/MWh", open=False)
EMBODIED = Kind("embodied carbon per chip-hour", "gCO2e", "kg/h", _EMBODIED, 0.0, 10_000.0, "luccioni, or 0.0104kg/h", open=False)
WORK = Kind("work", "FLOP", "flop", _WORK, 0.0, 1e40, "3.14e23", 0.0)
FACTOR = Kind("factor", "1", "", {"": ("1", 1.0), "x": ("1", 1.0), "×": ("1", 1.0), "times": ("1", 1.0)}, 0.0, 1e12, "4")


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
    number, unit, low, high = _read(kind, value)
    name, factor = kind.spellings[unit]
    scale = Quantity(1.0, name, "counted").to(kind.unit).value * factor
    size = _check(kind, number * scale, str(value))
    facts: dict[str, Any] = {"boundary": boundary, "signal": signal, "source": source}
    if low is not None and high is not None:
        if not 0 <= low <= number <= high:
            raise InputError(f"{value!r}: the interval does not hold the figure.", f"Expected low <= {kind.what} <= high, such as 330 [300, 360].")
        _check(kind, low * scale, str(value))
        errors = {source: math.log(high / low) / (2 * _Z90)} if 0 < low < high else {}
        return Quantity(size, kind.unit, grade, low * scale, high * scale, method="given with its interval", errors=errors, **facts)
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


def _read(kind: Kind, value: str | float) -> tuple[float, str, float | None, float | None]:
    """Number, spelling of its unit, and the ends of the interval where one was written, in that unit."""
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise InputError(f"{kind.title}: {value!r} is not a figure.", f"Write it as {kind.example}.")
    text = str(value).strip()
    found = _WORDS.fullmatch(text)
    if not found:
        comma = " Use a decimal point." if re.search(r"\d,\d", text) else ""
        raise InputError(f"{kind.title}: {text!r} is not a figure.", f"Write it as {kind.example}.{comma}")
    number = float(found["value"])
    unit = re.sub(r"\s", "", found["unit"] or "").casefold()
    if not math.isfinite(number):
        raise InputError(f"{kind.title} must be finite, got {text!r}.", f"Write it as {kind.example}.")
    unit = _unit(kind, unit, found["unit"] or "", text)
    if found["low"]:
        return number, unit, float(found["low"]), float(found["high"])
    if found["half"]:
        half = float(found["half"]) * (abs(number) / 100 if found["share"] else 1.0)
        return number, unit, number - half, number + half
    return number, unit, None, None


def _unit(kind: Kind, unit: str, written: str, text: str) -> str:
    if not unit:
        return kind.bare
    milli = written.strip().startswith("m") and unit[:3] in ("mw", "mwh", "mj")         # case tells milli from mega; nobody means milli here
    for spelling in (unit, unit.removesuffix("s"), unit.replace("per", "/"), unit.replace("per", "/").removesuffix("s")):
        if spelling in kind.spellings and not milli:
            return spelling
    words = f"in {kind.unit}" if kind.unit != "1" else "without a unit"
    raise InputError(f"{text!r}: {written.strip()!r} is not a unit of {kind.what}.", f"Give it {words}, such as {kind.example}.")


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
