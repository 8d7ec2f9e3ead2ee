"""A value that says what it is: unit, grade, 90 % interval, method, source, boundary and signal.

Intervals are carried as log-standard deviations by source, so that an error shared by two figures (the same power model, the same meter) cancels in
their ratio and adds up in their sum (first-order propagation in log space; GUM, JCGM 100:2008, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fourfold.errors import InputError

GRADES = ("measured", "counted", "modelled", "published", "assumed")   # strongest first; a result is as good as its weakest part
BOUNDARIES = ("", "process", "host", "device", "hall")                  # "" = a property of nothing in particular (a constant, a ratio)
SIGNALS = ("", "average", "marginal")                                   # only carbon has one

_NAMES = ("J", "s", "B", "gCO2e", "USD", "FLOP")
_SCALES: dict[str, tuple[float, dict[str, int]]] = {
    "1": (1.0, {}), "%": (0.01, {}),
    "J": (1.0, {"J": 1}), "kJ": (1e3, {"J": 1}), "Wh": (3600.0, {"J": 1}), "kWh": (3.6e6, {"J": 1}), "MWh": (3.6e9, {"J": 1}),
    "s": (1.0, {"s": 1}), "ms": (1e-3, {"s": 1}), "us": (1e-6, {"s": 1}), "min": (60.0, {"s": 1}), "h": (3600.0, {"s": 1}),
    "W": (1.0, {"J": 1, "s": -1}), "mW": (1e-3, {"J": 1, "s": -1}), "kW": (1e3, {"J": 1, "s": -1}), "MW": (1e6, {"J": 1, "s": -1}),
    "B": (1.0, {"B": 1}), "kB": (1e3, {"B": 1}), "MB": (1e6, {"B": 1}), "GB": (1e9, {"B": 1}),
    "KiB": (2.0**10, {"B": 1}), "MiB": (2.0**20, {"B": 1}), "GiB": (2.0**30, {"B": 1}), "B/s": (1.0, {"B": 1, "s": -1}),
    "gCO2e": (1.0, {"gCO2e": 1}), "kgCO2e": (1e3, {"gCO2e": 1}), "tCO2e": (1e6, {"gCO2e": 1}),
    "gCO2e/J": (1.0, {"gCO2e": 1, "J": -1}), "gCO2e/kWh": (1 / 3.6e6, {"gCO2e": 1, "J": -1}),
    "USD": (1.0, {"USD": 1}), "USD/J": (1.0, {"USD": 1, "J": -1}), "USD/kWh": (1 / 3.6e6, {"USD": 1, "J": -1}),
    "FLOP": (1.0, {"FLOP": 1}), "GFLOP": (1e9, {"FLOP": 1}), "FLOP/s": (1.0, {"FLOP": 1, "s": -1}), "FLOP/J": (1.0, {"FLOP": 1, "J": -1}),
}
UNITS: dict[str, tuple[float, tuple[int, ...]]] = {
    unit: (scale, tuple(powers.get(name, 0) for name in _NAMES)) for unit, (scale, powers) in _SCALES.items()
}                                                                      # unit → (size in base units, exponents of J s B gCO2e USD FLOP)
_Z90 = 1.6448536269514722                                              # half-width of a 90 % interval in standard deviations


def _unit(name: str) -> tuple[float, tuple[int, ...]]:
    if name not in UNITS:
        raise InputError(f"{name!r} is not a unit that fourfold knows.", f"Use one of: {', '.join(UNITS)}.")
    return UNITS[name]


def _base_unit(dimension: tuple[int, ...]) -> str:
    for name, (scale, powers) in UNITS.items():
        if powers == dimension and scale == 1.0:
            return name
    parts = " ".join(f"{name}^{power}" for name, power in zip(_NAMES, dimension, strict=True) if power)
    raise InputError(f"The result would have the unit {parts}, which has no name here.", "Convert or divide the parts first.")


@dataclass(frozen=True)
class Quantity:
    """A figure with its evidence.

    `low`, `high` bound a 90 % interval in `unit`; both absent means exact (a count) unless `errors` is given. `errors` maps a source of error to its
    log-standard deviation in this figure (signed: equal ids cancel in ratios); it is derived from the interval where not given.
    `boundary` says whose cost it is, `signal` which carbon signal, `method` how it was got, `source` where from.
    Raises InputError on unknown units, grades, boundaries, non-finite values, and intervals that do not hold the value.
    """

    value: float
    unit: str
    grade: str
    low: float | None = None
    high: float | None = None
    method: str = ""
    source: str = ""
    boundary: str = ""
    signal: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _unit(self.unit)
        for name, given, known in (("grade", self.grade, GRADES), ("boundary", self.boundary, BOUNDARIES), ("signal", self.signal, SIGNALS)):
            if given not in known:
                raise InputError(f"{given!r} is not a {name}.", f"Use one of: {', '.join(repr(word) for word in known)}.")
        if not math.isfinite(self.value):
            raise InputError(f"A quantity must be a finite number, got {self.value!r} {self.unit}.",
                             "Report an unknown figure as None with a reason.")
        sigma = math.sqrt(sum(part * part for part in self.errors.values()))
        low = self.low if self.low is not None else _spread(self.value, -sigma)
        high = self.high if self.high is not None else _spread(self.value, sigma)
        if not low <= self.value <= high:
            raise InputError(f"The interval [{low:g}, {high:g}] does not hold the value {self.value:g} {self.unit}.", "Give low <= value <= high.")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        if not self.errors and 0 < low < high:
            name = self.source or self.method or f"{self.value!r} {self.unit} [{low!r}, {high!r}]"
            object.__setattr__(self, "errors", {name: math.log(high / low) / (2 * _Z90)})
        object.__setattr__(self, "errors", {name: float(part) for name, part in sorted(self.errors.items()) if part})

    # Arithmetic. Bare numbers may scale a quantity, never be added to it.
    def __add__(self, other: Quantity) -> Quantity:
        return self._sum(other, 1.0)

    def __sub__(self, other: Quantity) -> Quantity:
        return self._sum(other, -1.0)

    def __mul__(self, other: Quantity | float) -> Quantity:
        return self._product(other, 1)

    __rmul__ = __mul__

    def __truediv__(self, other: Quantity | float) -> Quantity:
        return self._product(other, -1)

    def to(self, unit: str) -> Quantity:
        """The same quantity in another unit of its kind. Raises InputError for another kind."""
        (scale, dimension), (new_scale, new_dimension) = _unit(self.unit), _unit(unit)
        if dimension != new_dimension:
            raise InputError(f"{self.unit} cannot be turned into {unit}: they measure different things.", "Ask for a unit of the same kind.")
        factor = scale / new_scale
        return replace(self, value=self.value * factor, unit=unit, low=self.bounds[0] * factor, high=self.bounds[1] * factor)

    @property
    def bounds(self) -> tuple[float, float]:
        """The 90 % interval (low, high), in `unit`."""
        low, high = self.low, self.high
        assert low is not None and high is not None
        return low, high

    def _shared(self, other: Quantity, word: str) -> dict[str, Any]:
        """Grade, boundary and signal of a result of both; refuses what cannot be in one sum or ratio."""
        facts: dict[str, Any] = {"grade": max(self.grade, other.grade, key=GRADES.index)}
        for name in ("boundary", "signal"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and mine != theirs:
                raise InputError(f"Cannot {word} a {mine} figure and a {theirs} figure ({name}).", f"Bring both to one {name} first.")
            facts[name] = mine or theirs
        return facts

    def _sum(self, other: Quantity, sign: float) -> Quantity:
        if not isinstance(other, Quantity):
            raise InputError(f"Cannot add the bare number {other!r} to {self.unit}.", "Wrap it in a Quantity that says what it is.")
        word = "add" if sign > 0 else "subtract"
        if _unit(self.unit)[1] != _unit(other.unit)[1]:
            raise InputError(f"Cannot {word} {self.unit} and {other.unit}: they measure different things.", "Convert one of them first.")
        other = other.to(self.unit)
        for name in ("boundary", "signal"):
            if getattr(self, name) != getattr(other, name):
                mine, theirs = getattr(self, name) or "none", getattr(other, name) or "none"
                raise InputError(f"Cannot {word} figures of different {name}: {mine} and {theirs}.", f"Bring both to one {name} first.")
        value = self.value + sign * other.value
        absolute = {name: self.value * self.errors.get(name, 0.0) + sign * other.value * other.errors.get(name, 0.0)
                    for name in {*self.errors, *other.errors}}
        facts: dict[str, Any] = dict(**self._shared(other, word), method=_join(self.method, other.method), source=_join(self.source, other.source))
        spread = math.sqrt(sum(part * part for part in absolute.values()))
        if value > 2 * spread or (sign > 0 and min(self.value, other.value) > 0):   # log space is right: the figure is surely positive
            return Quantity(value, self.unit, errors={name: part / value for name, part in absolute.items()}, **facts)
        return Quantity(value, self.unit, low=value - _Z90 * spread, high=value + _Z90 * spread, **facts)

    def _product(self, other: Quantity | float, power: int) -> Quantity:
        if not isinstance(other, Quantity):
            other = Quantity(float(other), "1", "measured")
        if power < 0 and other.value == 0:
            raise InputError(f"Cannot divide {self.value:g} {self.unit} by zero {other.unit}.", "Report the ratio as None with a reason.")
        (scale, mine), (other_scale, theirs) = _unit(self.unit), _unit(other.unit)
        facts = self._shared(other, "multiply" if power > 0 else "divide")
        plain = not any(theirs) and other_scale == 1.0                  # scaling by a pure number keeps the unit as it was written
        unit = self.unit if plain else _base_unit(tuple(a + power * b for a, b in zip(mine, theirs, strict=True)))
        value = self.value * other.value**power if plain else (self.value * scale) * (other.value * other_scale) ** power
        errors = {name: self.errors.get(name, 0.0) + power * other.errors.get(name, 0.0) for name in {*self.errors, *other.errors}}
        return Quantity(value, unit, errors=errors, method=_join(self.method, other.method), source=_join(self.source, other.source), **facts)

    def __str__(self) -> str:
        low, high = self.bounds
        interval = f" [{low:.4g}, {high:.4g}]" if low < high else ""
        return f"{self.value:.4g}{'' if self.unit == '1' else ' ' + self.unit}{interval} ({self.grade})"

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives back an equal Quantity."""
        low, high = self.bounds
        return {"value": self.value, "unit": self.unit, "grade": self.grade, "low": low, "high": high, "method": self.method, "source": self.source,
                "boundary": self.boundary, "signal": self.signal, "errors": dict(self.errors)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quantity:
        """Raises InputError where a field is missing or unknown."""
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(f"This is not a stored quantity: {error}.",
                             "Expected value, unit, grade, low, high, method, source, boundary.") from None


def _spread(value: float, sigma: float) -> float:
    """One end of the 90 % interval of a log-normal figure; signed sigma picks the end, for negative values too."""
    return value * math.exp(_Z90 * (sigma if value >= 0 else -sigma))


def _join(first: str, second: str) -> str:
    """Both provenances, each named once, in order."""
    parts = [part for text in (first, second) for part in text.split(" + ") if part]
    return " + ".join(dict.fromkeys(parts))
