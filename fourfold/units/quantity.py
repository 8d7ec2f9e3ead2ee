"""The figure itself and its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from fourfold.errors import InputError
from fourfold.units.dimension import based, sized
from fourfold.units.draws import quantile, sampled
from fourfold.units.grade import BOUNDARIES, GRADES, SIGNALS, graded, origins, weakest
from fourfold.units.provenance import holdings, walk, worded
from fourfold.units.spread import Z90, cancelled, crosses, deviations, edge, exact, width

_WIDE = 0.5                                                            # log-sd from which a sum is drawn, not linearised
_ROUNDING = 2e-15                                                       # of the terms of a sum: less than this is what rounding leaves


@dataclass(frozen=True)
class Share:
    """What one source holds of a figure: `variance` of its log variance, `value` of its sum (None: the source is not a term of it)."""

    source: str
    grade: str
    variance: float
    value: float | None

    def to_json(self) -> dict[str, object]:
        return {"source": self.source, "grade": self.grade, "variance": self.variance, "value": self.value}

    def __str__(self) -> str:
        parts = [f"{held:.0%} of the {word}" for held, word in ((self.value, "value"), (self.variance, "variance")) if held]
        return f"{' and '.join(parts) or 'nothing'} from {self.source} ({self.grade})"


@dataclass(frozen=True)
class Quantity:
    """A figure with its evidence.

    `low`, `high` bound a 90 % interval in `unit`; both absent means exact (a count) unless `errors` is given. `errors` maps a source of error to its
    log-standard deviation in this figure (signed: equal ids cancel in ratios); it is derived from the interval where not given.
    `boundary` says whose cost it is, `signal` which carbon signal, `method` how it was got, `source` where from. `inputs` and `op` ("+", "-", "*",
    "/") say what it was computed from; arithmetic fills them, and two figures are equal whatever they were computed from.
    The grade of a result is the weakest whose sources, with those of still weaker grades, hold more than 5 % of its log variance. A measured or
    counted part without an interval is exact and weakens nothing; any other part without one has only left its error out, and weakens the whole where
    it holds more than 5 % of the value.
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
    errors: Mapping[str, float] = field(default_factory=dict, hash=False)
    inputs: tuple[Quantity, ...] = field(default=(), compare=False, repr=False)
    op: str = field(default="", compare=False, repr=False)

    __array_ufunc__ = None                                             # numpy's numbers scale a quantity; numpy never takes one apart

    def __post_init__(self) -> None:
        sized(self.unit)
        for name, given, known in (("grade", self.grade, GRADES), ("boundary", self.boundary, BOUNDARIES), ("signal", self.signal, SIGNALS)):
            if given not in known:
                raise InputError(f"{given!r} is not a {name}.", f"Use one of: {', '.join(repr(word) for word in known)}.")
        for number in (self.value, *(end for end in (self.low, self.high) if end is not None), *self.errors.values()):
            if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
                raise InputError(f"A quantity must be a finite number, got {number!r} {self.unit}.",
                                 "Report an unknown figure as None with a reason.")
        sigma = math.sqrt(sum(part * part for part in self.errors.values()))
        low = self.low if self.low is not None else edge(self.value, -sigma)
        high = self.high if self.high is not None else edge(self.value, sigma)
        if not low <= self.value <= high:
            raise InputError(f"The interval [{low:g}, {high:g}] does not hold the value {self.value:g} {self.unit}.", "Give low <= value <= high.")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        if not self.errors and low < high and self.value:
            straddles = not (0 < low or high < 0)
            part = (high - low) / abs(self.value) if straddles else abs(math.log(high / low))
            object.__setattr__(self, "errors", {self._name(): part / (2 * Z90)})
        object.__setattr__(self, "errors", {name: float(part) for name, part in sorted(self.errors.items()) if part})
        object.__setattr__(self, "inputs", tuple(self.inputs))
        self._keep(dict.fromkeys(self.errors, self.grade), {self.grade: 1.0} if not self.errors else {}, False)

    def _keep(self, origin: dict[str, str], plain: dict[str, float], wide: bool) -> None:
        """What results need to know of this one: the grade of each source of error, the share of the value that parts without a stated error hold by
        grade, and whether its interval was drawn. Not fields, so that nothing of it is compared, printed or stored."""
        self.__dict__.update(_origin=origin, _plain=plain, _wide=wide)

    def _name(self) -> str:
        return self.source or self.method or f"{self.value!r} {self.unit} [{self.low!r}, {self.high!r}]"

    # Arithmetic. Bare numbers may scale a quantity, never be added to it or compared with it.
    def __add__(self, other: Quantity) -> Quantity:
        return _sum((self, other), 1.0)

    def __sub__(self, other: Quantity) -> Quantity:
        return _sum((self, other), -1.0)

    def __radd__(self, other: object) -> Quantity:
        raise InputError(f"Cannot add {self.unit} to the bare number {other!r}.", "Wrap it in a Quantity; for a list of them use units.total.")

    __rsub__ = __radd__

    def __mul__(self, other: Quantity | float) -> Quantity:
        return _product(self, _quantity(other), 1)

    __rmul__ = __mul__

    def __truediv__(self, other: Quantity | float) -> Quantity:
        return _product(self, _quantity(other), -1)

    def __rtruediv__(self, other: float) -> Quantity:
        return _product(_quantity(other), self, -1)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Real):
            raise InputError(f"Cannot compare {self.unit} with the bare number {other!r}.", "Compare `.value`, or wrap the number in a Quantity.")
        if not isinstance(other, Quantity):
            return NotImplemented
        return _key(self) == _key(other)

    def __lt__(self, other: Quantity) -> bool:
        return self.value < self._like(other).value

    def __le__(self, other: Quantity) -> bool:
        return self.value <= self._like(other).value

    def __gt__(self, other: Quantity) -> bool:
        return self.value > self._like(other).value

    def __ge__(self, other: Quantity) -> bool:
        return self.value >= self._like(other).value

    def __float__(self) -> float:
        raise InputError(f"A quantity in {self.unit} is not a bare number.", "Ask for `.value`, or `.to(unit).value`.")

    def _like(self, other: Quantity) -> Quantity:
        """`other` in this unit. Raises InputError unless both are of one kind, boundary and signal."""
        if not isinstance(other, Quantity):
            raise InputError(f"Cannot compare {self.unit} with the bare number {other!r}.", "Wrap it in a Quantity that says what it is.")
        _alike((self, other), "compare")
        return other.to(self.unit)

    def to(self, unit: str) -> Quantity:
        """The same quantity in another unit of its kind. Raises InputError for another kind."""
        if unit == self.unit:
            return self
        (scale, dimension), (new_scale, new_dimension) = sized(self.unit), sized(unit)
        if dimension != new_dimension:
            raise InputError(f"{self.unit} cannot be turned into {unit}: they measure different things.", "Ask for a unit of the same kind.")
        factor = scale / new_scale
        low, high = self.bounds
        return self._same(replace(self, value=self.value * factor, unit=unit, low=low * factor, high=high * factor))

    def at(self, boundary: str, method: str = "") -> Quantity:
        """The same figure, declared to hold for another boundary: the one way from a host's joules to a hall's. `method` says by what right."""
        return self._same(replace(self, boundary=boundary, method=_join([self.method, method])))

    def _same(self, other: Quantity) -> Quantity:
        other._keep(self.__dict__["_origin"], self.__dict__["_plain"], self.__dict__["_wide"])
        return other

    @property
    def bounds(self) -> tuple[float, float]:
        """The 90 % interval (low, high), in `unit`."""
        low, high = self.low, self.high
        assert low is not None and high is not None
        return low, high

    # Provenance
    def shares(self) -> list[Share]:
        """Which source holds what share of the variance, and of the value where this is a sum (times factors): largest first."""
        origin, whole = self.__dict__["_origin"], sum(part * part for part in self.errors.values())
        terms = holdings(self)
        names = [*self.errors, *(name for name in terms if name not in self.errors)]
        found = [Share(name, origin[name] if name in origin else terms[name][1], self.errors.get(name, 0.0) ** 2 / whole if whole else 0.0,
                       terms[name][0] if name in terms else None) for name in names]
        return sorted(found, key=lambda share: (-(share.value or 0.0), -share.variance, share.source))

    def tree(self) -> str:
        """What this was computed from, a line a figure, indented by depth; a figure used twice is drawn out once."""
        lines: list[str] = []
        seen: set[int] = set()
        stack: list[tuple[Quantity, str, int]] = [(self, "", 0)]
        while stack:
            node, sign, depth = stack.pop()
            facts = "; ".join(part for part in (node.method, node.source if node.source != node.method else "",
                                                " ".join(word for word in (node.boundary, node.signal) if word)) if part and not node.inputs)
            again = " (drawn out above)" if id(node) in seen and node.inputs else ""
            lines.append(f"{'  ' * depth}{sign}{worded(node)}{': ' + facts if facts else ''}{again}")
            if id(node) not in seen:
                seen.add(id(node))
                below = list(node.inputs)
                while below and node.op == "+" and below[0].op == "+":      # a sum made step by step reads as one sum
                    below[:1] = below[0].inputs
                signs = ["= ", *[f"{node.op} "] * (len(below) - 1)]
                stack += reversed([(child, word, depth + 1) for child, word in zip(below, signs, strict=False)])
        return "\n".join(lines)

    def explain(self) -> str:
        """The tree, then who holds the value and the uncertainty."""
        return "\n".join([self.tree(), *(str(share) for share in self.shares() if share.variance or share.value is not None)])

    def __str__(self) -> str:
        low, high = self.bounds
        interval = f" [{low:.4g}, {high:.4g}]" if low < high else ""
        return f"{self.value:.4g}{'' if self.unit == '1' else ' ' + self.unit}{interval} ({self.grade})"

    def to_json(self, deep: bool = False) -> dict[str, object]:
        """Plain data; `from_json` gives back an equal Quantity. `deep` adds `op`, `inputs` and the `nodes` that they name: every figure this one was
        computed from, written once under the first 16 digits of its sha256."""
        if not deep:
            low, high = self.bounds
            return {"value": self.value, "unit": self.unit, "grade": self.grade, "low": low, "high": high, "method": self.method,
                    "source": self.source, "boundary": self.boundary, "signal": self.signal, "errors": dict(self.errors)}
        import hashlib
        import json

        keys: dict[int, str] = {}
        nodes: dict[str, dict[str, object]] = {}
        for node in walk(self):
            data = {**node.to_json(), "op": node.op, "inputs": [keys[id(child)] for child in node.inputs]}
            key = hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
            keys[id(node)] = key
            nodes[key] = data
        root = nodes.pop(keys[id(self)])
        return {**root, "nodes": nodes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Quantity:
        """Raises InputError where a field is missing or unknown, or an input is not among the nodes."""
        try:
            if "nodes" not in data:
                return cls(**{**data, "inputs": ()}) if not data.get("inputs") else cls._dangling(data["inputs"])
            made: dict[str, Quantity] = {}
            for key, node in [*data["nodes"].items(), ("", {name: item for name, item in data.items() if name != "nodes"})]:
                if any(child not in made for child in node["inputs"]):
                    return cls._dangling(node["inputs"])
                made[key] = _restored(cls(**{**node, "inputs": tuple(made[child] for child in node["inputs"])}))
            return made[""]
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"This is not a stored quantity: {error}.",
                             "Expected value, unit, grade, low, high, method, source, boundary.") from None

    @classmethod
    def _dangling(cls, names: object) -> Quantity:
        raise InputError(f"A stored quantity names inputs that are not stored before it: {names}.", "Store it with to_json(deep=True).")


def total(parts: Iterable[Quantity]) -> Quantity:
    """The sum of one or more quantities, in the first one's unit, as one step. Raises InputError for none, and for unlike ones."""
    terms = tuple(parts)
    if not terms:
        raise InputError("There is nothing to add.", "Report a figure without parts as None with a reason.")
    return terms[0] if len(terms) == 1 else _sum(terms, 1.0)


def _key(node: Quantity) -> tuple[object, ...]:
    return (node.value, node.unit, node.grade, node.low, node.high, node.method, node.source, node.boundary, node.signal, node.errors)


def _quantity(other: object) -> Quantity:
    if isinstance(other, Quantity):
        return other
    if isinstance(other, bool) or not isinstance(other, Real):
        raise InputError(f"A quantity can be scaled by a number or a quantity, not by {type(other).__name__}.", "Give a number.")
    return Quantity(float(other), "1", "measured", op="number")


def _alike(parts: Sequence[Quantity], word: str) -> None:
    """Raises InputError unless all can be in one sum."""
    first = parts[0]
    for other in parts:
        if not isinstance(other, Quantity):
            raise InputError(f"Cannot {word} the bare number {other!r} to {first.unit}.", "Wrap it in a Quantity that says what it is.")
        if sized(first.unit)[1] != sized(other.unit)[1]:
            raise InputError(f"Cannot {word} {first.unit} and {other.unit}: they measure different things.", "Convert one of them first.")
        for name in ("boundary", "signal"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                raise InputError(f"Cannot {word} figures of different {name}: {mine or 'none'} and {theirs or 'none'}.",
                                 f"Bring both to one {name} first.")


def _sum(terms: Sequence[Quantity], sign: float) -> Quantity:
    """terms[0] + sign × each of the others."""
    _alike(terms, "add" if sign > 0 else "subtract")
    first = terms[0]
    parts = [first, *(part.to(first.unit) for part in terms[1:])]
    signs = [1.0] + [sign] * (len(parts) - 1)
    value = math.fsum(s * part.value for s, part in zip(signs, parts, strict=True))
    whole = math.fsum(abs(part.value) for part in parts)
    value = value if abs(value) > _ROUNDING * whole else 0.0            # what is left of two equal figures is no figure
    absolute: dict[str, float] = {}
    for s, part in zip(signs, parts, strict=True):
        for name, size in deviations(part).items():
            absolute[name] = absolute.get(name, 0.0) + s * size
    spread = math.sqrt(sum(size * size for size in absolute.values()))
    plain: dict[str, float] = {}
    for part in parts:
        for grade, held in part.__dict__["_plain"].items():
            plain[grade] = plain.get(grade, 0.0) + (held * abs(part.value) / whole if whole else held / len(parts))
    errors = {name: amount / value for name, amount in absolute.items()} if value else {}
    ends: tuple[float, float] | None = None
    if not (value > 2 * spread or (sign > 0 and min(part.value for part in parts) > 0)):   # else log space is right: the figure is surely positive
        ends = value - Z90 * spread, value + Z90 * spread
    wide = any(part.__dict__["_wide"] or width(part) > _WIDE for part in parts)
    return _made(value, first.unit, errors, ends, tuple(parts), "+" if sign > 0 else "-", plain, wide,
                 boundary=first.boundary, signal=first.signal)


def _product(first: Quantity, other: Quantity, power: int) -> Quantity:
    if power < 0 and other.value == 0:
        raise InputError(f"Cannot divide {first.value:g} {first.unit} by zero {other.unit}.", "Report the ratio as None with a reason.")
    facts: dict[str, str] = {}
    for name in ("boundary", "signal"):
        mine, theirs = getattr(first, name), getattr(other, name)
        if mine and theirs and mine != theirs:
            raise InputError(f"Cannot {'multiply' if power > 0 else 'divide'} a {mine} figure and a {theirs} figure ({name}).",
                             f"Bring both to one {name} first.")
        facts[name] = mine or theirs
    (scale, mine), (other_scale, theirs) = sized(first.unit), sized(other.unit)
    plain_number = not any(theirs) and other_scale == 1.0               # scaling by a pure number keeps the unit as it was written
    unit = first.unit if plain_number else based(tuple(a + power * b for a, b in zip(mine, theirs, strict=True)))
    if plain_number:
        value = first.value * other.value if power > 0 else first.value / other.value
    else:
        value = (first.value * scale) * (other.value * other_scale) ** power
    if not math.isfinite(value):
        raise InputError(f"{first.value:g} {first.unit} and {other.value:g} {other.unit} have no finite {'product' if power > 0 else 'ratio'}.",
                         "Check the figures and their units.")
    errors = {name: cancelled(first.errors.get(name, 0.0), power * other.errors.get(name, 0.0)) for name in {*first.errors, *other.errors}}
    plain = {grade: 1 - (1 - first.__dict__["_plain"].get(grade, 0.0)) * (1 - other.__dict__["_plain"].get(grade, 0.0))
             for grade in {*first.__dict__["_plain"], *other.__dict__["_plain"]}}
    ends: tuple[float, float] | None = None
    if exact(other) and first.value:                                # the interval scales as it is, lopsided or not
        low, high = sorted(end * (value / first.value) for end in first.bounds)
        ends = low, high
    elif exact(first) and other.value and power > 0:
        low, high = sorted(end * (value / other.value) for end in other.bounds)
        ends = low, high
    elif first.value == 0 or other.value == 0:
        divisors = [end for end in other.bounds if end] if power < 0 else list(other.bounds)
        corners = [a * scale * (b * other_scale) ** power if not plain_number else a * b**power for a in first.bounds for b in divisors]
        ends = min(corners), max(corners)
    elif crosses(first) or crosses(other):
        spread = abs(value) * math.sqrt(sum(part * part for part in errors.values()))
        ends = value - Z90 * spread, value + Z90 * spread
    wide = first.__dict__["_wide"] or other.__dict__["_wide"]
    return _made(value, unit, errors, ends, (first, other), "*" if power > 0 else "/", plain, wide, **facts)


def _made(value: float, unit: str, errors: dict[str, float], ends: tuple[float, float] | None, inputs: tuple[Quantity, ...], op: str,
          plain: dict[str, float], wide: bool, **facts: str) -> Quantity:
    """A result with its grade, interval and provenance."""
    origin = origins(inputs)
    errors = {name: part for name, part in errors.items() if part}
    real = [part for part in inputs if part.op != "number"] or list(inputs)
    grade = graded(errors, origin, plain) or weakest(part.grade for part in real)
    low, high = (min(ends[0], value), max(ends[1], value)) if ends else (None, None)
    text: dict[str, object] = {name: _join([getattr(part, name) for part in inputs]) for name in ("method", "source")}
    result = Quantity(value, unit, grade, low, high, errors=errors, inputs=inputs, op=op, **text, **facts)
    plain = plain if errors else {grade: 1.0}
    result._keep({name: origin[name] if name in origin else grade for name in result.errors}, plain, wide)
    if wide and not (op in "*/" and (exact(inputs[0]) or exact(inputs[1]))):
        drawn = sorted(sampled(result))
        object.__setattr__(result, "low", min(quantile(drawn, 0.05), value))
        object.__setattr__(result, "high", max(quantile(drawn, 0.95), value))
    return result


def _restored(node: Quantity) -> Quantity:
    """A result read from a file, with what arithmetic had known of it."""
    if node.inputs and node.op in ("+", "-", "*", "/"):
        origin = origins(node.inputs)
        wide = any(part.__dict__["_wide"] or (node.op in "+-" and width(part) > _WIDE) for part in node.inputs)
        node._keep({name: origin.get(name, node.grade) for name in node.errors}, {} if node.errors else {node.grade: 1.0}, wide)
    return node


def _join(texts: Iterable[str]) -> str:
    """All provenances, each named once, in order."""
    parts = [part for text in texts for part in text.split(" + ") if part]
    return " + ".join(dict.fromkeys(parts))
