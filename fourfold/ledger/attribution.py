"""Which lever saved what: an exact split of before / after, whose parts multiply (factors) or add up (amounts) to the whole, in any order.

Where the cost is a product with one factor a lever, ln(before / after) is a sum and `logs` splits it. Where levers interact (embodied carbon, several
sites, money beside energy), no order of pulling them is the right one, and the Shapley value is the average over all orders (Shapley 1953,
"A value for n-person games"; additive, symmetric and exact, and equal to `logs` for pure products): 2^n costs, 16 for four levers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

from fourfold.errors import InputError
from fourfold.units import GRADES, Quantity

_Z90 = 1.6448536269514722                                              # half-width of a 90 % interval in standard deviations
_MOST = 12                                                             # levers: 4,096 costs

Figure = TypeVar("Figure", float, Quantity)


def logs(before: Mapping[str, Figure], after: Mapping[str, Figure]) -> dict[str, Figure]:
    """The factor before / after of each lever of a cost that is a product: work × (W / rate) × PUE × intensity, say. 4.0 = four times cheaper.

    The factors multiply to product(before) / product(after). Quantities give Quantities of unit "1": shared errors cancel, others set the interval;
    the same Quantity on both sides is exactly 1.
    Raises InputError where the levers of the two differ, units do not match, or a figure is not positive.
    """
    if set(before) != set(after):
        odd = ", ".join(sorted(set(before) ^ set(after)))
        raise InputError(f"Both sides need the same levers; only one side has: {odd}.", "Give every lever before and after, changed or not.")
    factors = {}
    for lever, old in before.items():
        new = after[lever]
        for figure in (old, new):
            _positive(figure.value if isinstance(figure, Quantity) else figure, lever)
        factor: Any = Quantity(1.0, "1", "counted") if old is new and isinstance(old, Quantity) else old / new
        if isinstance(factor, Quantity) and factor.unit != "1":
            raise InputError(f"{lever}: the figures before and after have different units.", "Give both in units of one kind.")
        factors[lever] = factor
    return factors


def shapley(value: Callable[[frozenset[str]], float], levers: Iterable[str], *, log: bool = False) -> dict[str, float]:
    """The part of each of n levers in value(nothing pulled) - value(all pulled), which the parts sum to.

    `value(S)` is the cost when the levers in S stand as after and all others as before; it is asked once for each of the 2^n sets.
    phi_i = sum over S without i of |S|! (n-1-|S|)! / n! × (value(S) - value(S + i)). With `log`, the same of ln value, returned as factors
    exp(phi_i), which multiply to value(nothing) / value(all). Equal, bit for bit, for any order of `levers`.
    Raises InputError for repeated or too many levers, and values that are not finite (with `log`: not positive).
    """
    names = _names(levers)
    costs = {pulled: float(value(pulled)) for pulled in _subsets(names)}
    for pulled, cost in costs.items():
        if log:
            _positive(cost, _said(pulled))
        elif not math.isfinite(cost):
            raise InputError(f"The cost of {_said(pulled)} is {cost!r}, not a finite number.", "Give a cost for every combination of levers.")
    if not log:
        return _parts(costs, names)
    start = costs[frozenset()]
    return {lever: math.exp(part) for lever, part in _parts({pulled: math.log(cost / start) for pulled, cost in costs.items()}, names).items()}


@dataclass(frozen=True)
class Attribution:
    """A cost before and after, and what each lever did: `factors` (unit "1") multiply to `total`; `amounts` (in the cost's unit) sum to `saved`."""

    before: Quantity
    after: Quantity
    factors: dict[str, Quantity]
    amounts: dict[str, Quantity]

    @property
    def total(self) -> Quantity:
        """before / after: how many times cheaper."""
        return self.before / self.after

    @property
    def saved(self) -> Quantity:
        """before - after, in the cost's unit."""
        return self.before - self.after

    def to_json(self) -> dict[str, object]:
        return {"before": self.before.to_json(), "after": self.after.to_json(), "total": self.total.to_json(), "saved": self.saved.to_json(),
                "factors": {lever: factor.to_json() for lever, factor in self.factors.items()},
                "amounts": {lever: amount.to_json() for lever, amount in self.amounts.items()}, "shares": shares(self.factors)}


def split(cost: Callable[[frozenset[str]], Quantity], levers: Iterable[str]) -> Attribution:
    """Shapley values of a cost in Quantities, of its logarithm (factors) and of itself (amounts), with the intervals that the sources of error leave.

    First order in log space: a source that moves every cost alike cancels out of a factor, and not out of an amount. A part's grade is the weakest
    that, with those still weaker, holds more than 5 % of its variance; a lever that changes nothing is counted. Raises InputError as `shapley` does,
    and where costs are not of one kind, boundary and signal.
    """
    names = _names(levers)
    asked = {pulled: cost(pulled) for pulled in _subsets(names)}
    start = asked[frozenset()]
    costs = {pulled: figure.to(start.unit) for pulled, figure in asked.items()}
    for pulled, figure in costs.items():
        _positive(figure.value, _said(pulled))
        if (figure.boundary, figure.signal) != (start.boundary, start.signal):
            raise InputError(f"The cost of {_said(pulled)} has another boundary or signal than that of nothing pulled.", "Bring all to one first.")
    weakest = max((figure.grade for figure in costs.values()), key=GRADES.index)
    origin = {share.source: share.grade for figure in costs.values() for share in figure.shares()}
    sources = sorted({name for figure in costs.values() for name in figure.errors})
    logs_, plain = ({pulled: math.log(figure.value / start.value) for pulled, figure in costs.items()},
                    {pulled: figure.value for pulled, figure in costs.items()})
    parts, amounts = _parts(logs_, names), _parts(plain, names)
    relative: dict[str, dict[str, float]] = {lever: {} for lever in names}
    absolute: dict[str, dict[str, float]] = {lever: {} for lever in names}
    for name in sources:
        for lever, part in _parts({pulled: figure.errors.get(name, 0.0) for pulled, figure in costs.items()}, names).items():
            relative[lever][name] = part
        for lever, part in _parts({pulled: figure.value * figure.errors.get(name, 0.0) for pulled, figure in costs.items()}, names).items():
            absolute[lever][name] = part
    factors, kept = {}, {}
    for lever in names:
        still = all(costs[pulled].value == costs[pulled | {lever}].value for pulled in costs)
        facts: dict[str, Any] = {"boundary": start.boundary, "signal": start.signal}
        left = _clean(relative[lever])
        facts["grade"] = "counted" if still and not left else _grade(left, origin, weakest)
        factors[lever] = Quantity(math.exp(parts[lever]), "1", errors=left, method="Shapley value of the logarithm", **facts)
        if not still:
            facts["grade"] = _grade(absolute[lever], origin, weakest)
        kept[lever] = _amount(amounts[lever], absolute[lever], start.unit, facts)
    return Attribution(start, costs[frozenset(names)], factors, kept)


def product(factors: Mapping[str, Quantity]) -> Quantity:
    """All factors multiplied, unit "1"; errors that they share add up or cancel as they should."""
    total = Quantity(1.0, "1", GRADES[0])
    for factor in factors.values():
        total = total * factor
    return total


def shares(factors: Mapping[str, float | Quantity]) -> dict[str, float | None]:
    """ln factor / ln product of each lever: parts of the whole that sum to 1 (negative: that lever made it dearer). None where the product is 1."""
    values = {lever: math.log(factor.value if isinstance(factor, Quantity) else factor) for lever, factor in factors.items()}
    total = math.fsum(values.values())
    return {lever: value / total if abs(total) > 1e-12 else None for lever, value in values.items()}


def _grade(errors: Mapping[str, float], origin: Mapping[str, str], weakest: str) -> str:
    """The weakest grade that, with those still weaker, holds more than 5 % of the variance; `weakest` where no error is left to tell by."""
    whole = math.fsum(part * part for part in errors.values())
    held = 0.0
    for grade in reversed(GRADES) if whole else ():
        held += math.fsum(part * part for name, part in errors.items() if origin.get(name, weakest) == grade)
        if held > 0.05 * whole:
            return grade
    return weakest


def _amount(value: float, absolute: Mapping[str, float], unit: str, facts: Mapping[str, Any]) -> Quantity:
    spread = _Z90 * math.sqrt(math.fsum(part * part for part in absolute.values()))
    return Quantity(value, unit, low=value - spread, high=value + spread, method="Shapley value", **facts)


def _clean(errors: Mapping[str, float]) -> dict[str, float]:
    """Without what is only rounding: an error that cancels leaves 1e-17, not nothing."""
    return {name: part for name, part in errors.items() if abs(part) > 1e-12}


def _parts(values: Mapping[frozenset[str], float], levers: Sequence[str]) -> dict[str, float]:
    """Shapley's sum for each lever. `fsum` rounds once, so that the order of the sets does not matter."""
    n = len(levers)
    weight = [math.factorial(k) * math.factorial(n - 1 - k) / math.factorial(n) for k in range(n)]
    return {lever: math.fsum(weight[len(pulled)] * (value - values[pulled | {lever}]) for pulled, value in values.items() if lever not in pulled)
            for lever in levers}


def _subsets(levers: Sequence[str]) -> list[frozenset[str]]:
    return [frozenset(chosen) for size in range(len(levers) + 1) for chosen in combinations(levers, size)]


def _names(levers: Iterable[str]) -> list[str]:
    names = list(levers)
    if not names or len(set(names)) != len(names) or len(names) > _MOST:
        raise InputError(f"Cannot split a saving over these levers: {', '.join(names) or 'none'}.", f"Give 1 to {_MOST} levers, each once.")
    return names


def _positive(value: float, what: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what}: a factor needs costs above zero, got {value!r}.", "Unknown is not zero: leave out what has no figure.")


def _said(pulled: frozenset[str]) -> str:
    return " + ".join(sorted(pulled)) or "nothing pulled"
