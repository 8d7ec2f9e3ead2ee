"""The one table of units: what each spelling means, its size and its exponents; ratios of known units are units too.

A spelling is a symbol with a prefix (kWh, GiB, TFLOP) or a word (hour, lb, cent). Case decides where it must: a lower-case m is milli, a capital M
mega, b is no byte. Everywhere else it does not matter, and a plural s is dropped. "w" is a week where a time is meant and a watt where a power is,
so a unit is always looked up for a dimension.
"""

from __future__ import annotations

import functools
import re
from itertools import product

from fourfold.errors import InputError

NAMES = ("J", "s", "B", "gCO2e", "USD", "FLOP")
Powers = tuple[int, ...]                                               # exponents of J s B gCO2e USD FLOP

DECIMAL = {"p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
           "Z": 1e21}                                                  # SI; micro as u, as the sign (U+00B5) and as the Greek letter (U+03BC)
BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60}   # IEC 80000-13
GASES = ("", "co2", "co2e", "co2eq", "co₂", "co₂e")                    # a mass of carbon may say of what


def _powers(**exponents: int) -> Powers:
    return tuple(exponents.get(name, 0) for name in NAMES)


_NONE, _ENERGY, _POWER, _TIME, _BYTES, _MASS, _MONEY, _WORK = (
    _powers(), _powers(J=1), _powers(J=1, s=-1), _powers(s=1), _powers(B=1), _powers(gCO2e=1), _powers(USD=1), _powers(FLOP=1))

SYMBOLS: dict[str, tuple[float, Powers, str, bool]] = {                # symbol → size, exponents, decimal prefixes, whether binary ones too
    "J": (1.0, _ENERGY, "pnuµμmkMGTP", False), "Wh": (3600.0, _ENERGY, "mkMGT", False), "W": (1.0, _POWER, "nuµμmkMG", False),
    "s": (1.0, _TIME, "pnuµμm", False), "B": (1.0, _BYTES, "kMGTPE", True), "bit": (0.125, _BYTES, "kMGTP", False),
    "FLOP": (1.0, _WORK, "kMGTPEZ", False),
}
WORDS: dict[str, tuple[float, Powers]] = {                             # lower case
    **dict.fromkeys(("1", "x", "×", "times"), (1.0, _NONE)), "%": (0.01, _NONE),
    **dict.fromkeys(("sec", "second"), (1.0, _TIME)), **dict.fromkeys(("m", "min", "minute"), (60.0, _TIME)),
    **dict.fromkeys(("h", "hr", "hour", "chip-hour", "chiphour"), (3600.0, _TIME)), **dict.fromkeys(("d", "day"), (86400.0, _TIME)),
    **dict.fromkeys(("w", "wk", "week"), (604800.0, _TIME)), "month": (2628000.0, _TIME),   # 730 hours
    **dict.fromkeys(("y", "yr", "year"), (31536000.0, _TIME)),         # of 365 days, as the SCI specification's own example counts
    "watt": (1.0, _POWER), "kilowatt": (1e3, _POWER),
    **{f"{mass}{gas}": (grams, _MASS) for gas in GASES
       for mass, grams in (("mg", 1e-3), ("g", 1.0), ("kg", 1e3), ("t", 1e6), ("lb", 453.59237), ("lbs", 453.59237))},
    **dict.fromkeys(("usd", "$"), (1.0, _MONEY)), **dict.fromkeys(("cent", "ct"), (0.01, _MONEY)),
}


@functools.cache
def spellings() -> dict[str, tuple[float, Powers]]:
    """Every symbol with every prefix that it takes, as it is written → (size in base units, exponents)."""
    found: dict[str, tuple[float, Powers]] = {}
    for symbol, (size, powers, prefixes, binary) in SYMBOLS.items():
        for prefix in ("", *prefixes, *(BINARY if binary else ())):
            found[f"{prefix}{symbol}"] = ((DECIMAL.get(prefix) or BINARY[prefix]) * size, powers)
    return found


@functools.cache
def _folded() -> dict[str, list[str]]:
    """Spellings by their lower case, those of bytes and bits left out: GB and Gb are not the same."""
    found: dict[str, list[str]] = {}
    for spelling, (_, powers) in spellings().items():
        if powers != _BYTES:
            found.setdefault(spelling.casefold(), []).append(spelling)
    return found


@functools.lru_cache(maxsize=1024)
def _readings(word: str, below: bool) -> tuple[tuple[float, Powers], ...]:
    """What one word of a unit may mean, the likeliest first: (size, exponents). `below` the line of a ratio no energy is milli: lb/mwh is lb/MWh."""
    found: list[tuple[float, Powers]] = []
    for text in (word, word[:-1]) if word[-1:] in ("s", "S") and len(word) > 1 else (word,):
        alike = _folded().get(text.casefold(), [])
        energy = any(spellings()[name][1] == _ENERGY for name in alike)
        if text in spellings() and not (below and energy and text[0] == "m") and (text == word or spellings()[text][1] != _BYTES):
            found.append(spellings()[text])
        if text.casefold() in WORDS:
            found.append(WORDS[text.casefold()])
        if len({spellings()[name][0] for name in alike}) > 1:          # mWh and MWh: a capital says mega, mwh alone says nothing
            alike = [name for name in alike if name[0].isupper() and (text[0].isupper() or (below and energy))]
        found += [spellings()[name] for name in alike]
    return tuple(found)


def _words(unit: str) -> list[str]:
    """The words of a unit: "g CO2e per kWh", gCO2e/kWh and g_co2e_per_kwh are one."""
    plain = re.sub(r"[\s_]", "", unit)
    return ["%"] if plain.casefold() == "percent" else re.split(r"/|per", plain, flags=re.IGNORECASE)


@functools.lru_cache(maxsize=1024)
def scale(unit: str, target: str) -> float | None:
    """How many `target` one `unit` is; None where it is no unit, or measures something else."""
    mine, theirs = _words(unit), _words(target)
    goal = _read(theirs, None)
    found = _read(mine, goal[1]) if goal else None
    if not found or not goal:
        return None
    if len(found[0]) == len(goal[0]):                                  # part by part: lb/MWh are 453.59237 / 1000 g/kWh, not a bit more
        sizes = [a / b for a, b in zip(found[0], goal[0], strict=True)]
    else:
        sizes = [functools.reduce(lambda a, b: a / b, found[0]) / functools.reduce(lambda a, b: a / b, goal[0])]
    return functools.reduce(lambda a, b: a / b, sizes)


def _read(words: list[str], wanted: Powers | None) -> tuple[tuple[float, ...], Powers] | None:
    """Sizes of the parts, and the exponents of their ratio: the first reading that has those `wanted`."""
    for parts in product(*(_readings(word, place > 0) for place, word in enumerate(words))):
        powers = parts[0][1]
        for _, below in parts[1:]:
            powers = tuple(a - b for a, b in zip(powers, below, strict=True))
        if wanted is None or powers == wanted:
            return tuple(size for size, _ in parts), powers
    return None


def _stated(name: str) -> tuple[float, Powers]:
    sizes, powers = _read(_words(name), None) or ((), ())
    return functools.reduce(lambda a, b: a / b, sizes), powers


UNITS: dict[str, tuple[float, Powers]] = {name: _stated(name) for name in (  # of a Quantity: unit → (size in base units, exponents)
    "1", "%", "mJ", "J", "kJ", "Wh", "kWh", "MWh", "s", "ms", "us", "min", "h", "d", "yr", "W", "mW", "kW", "MW", "B", "kB", "MB", "GB", "TB", "KiB",
    "MiB", "GiB", "B/s", "mgCO2e", "gCO2e", "kgCO2e", "tCO2e", "gCO2e/J", "gCO2e/kWh", "USD", "USD/J", "USD/kWh", "FLOP", "GFLOP", "FLOP/s",
    "FLOP/J")}


@functools.lru_cache(maxsize=512)
def sized(name: str) -> tuple[float, tuple[int, ...]]:
    """Size in base units and exponents; ratios of known units ("W/GB", "USD/h") are units too."""
    if name in UNITS:
        return UNITS[name]
    parts = name.split("/") if isinstance(name, str) else []
    if len(parts) < 2 or any(part not in UNITS for part in parts):
        raise InputError(f"{name!r} is not a unit that fourfold knows.", f"Use one of: {', '.join(UNITS)}; or a ratio of them, such as W/GB.")
    size, powers = UNITS[parts[0]]
    for part in parts[1:]:
        size, powers = size / UNITS[part][0], tuple(a - b for a, b in zip(powers, UNITS[part][1], strict=True))
    return size, powers


def based(dimension: tuple[int, ...]) -> str:
    for name, (size, powers) in UNITS.items():
        if powers == dimension and size == 1.0:
            return name
    above = [name for name, power in zip(NAMES, dimension, strict=True) if power == 1]
    below = [name for name, power in zip(NAMES, dimension, strict=True) if power == -1]
    if len(above) <= 1 and len(above) + len(below) == sum(map(abs, dimension)):
        return "/".join([*(above or ["1"]), *below])
    parts = " ".join(f"{name}^{power}" for name, power in zip(NAMES, dimension, strict=True) if power)
    raise InputError(f"The result would have the unit {parts}, which has no name here.", "Convert or divide the parts first.")
