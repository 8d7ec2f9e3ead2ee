"""Draws in place of first-order propagation, where a figure is known to no better than a factor of two (JCGM 101:2008)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from fourfold.units.figure import QuantityLike
from fourfold.units.provenance import walk
from fourfold.units.spread import crosses, deviations

_DRAWS = 4096


@functools.lru_cache(maxsize=128)
def _stream(source: str) -> Sequence[float]:
    """4,096 standard normal draws of one source: the middles of equal slices of the normal distribution, in an order that its name decides."""
    import hashlib
    import random
    from array import array
    from statistics import NormalDist

    order = random.Random(int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big"))
    keys = [order.random() for _ in range(_DRAWS)]
    ranks = sorted(range(_DRAWS), key=keys.__getitem__)
    normal = NormalDist().inv_cdf
    return array("d", (normal((rank + 0.5) / _DRAWS) for rank in ranks))


def sampled(part: QuantityLike) -> Sequence[float]:
    """4,096 draws of a figure, in its unit: from its errors where they say all, through its inputs where a wide sum is among them."""
    for node in walk(part, _pending):
        if _pending(node):
            made = _drawn_sum(node) if node.op in ("+", "-") else _drawn_product(node)
            centre = _centre(node)
            scale = node.value / centre if centre else 1.0               # the unit of the result, whatever those of the inputs
            node.__dict__["_drawn"] = [item * scale for item in made] if scale != 1.0 else made
    return part.__dict__["_drawn"] if part.__dict__["_wide"] else _leaf(part)


def _pending(node: QuantityLike) -> bool:
    return node.__dict__["_wide"] and "_drawn" not in node.__dict__


def _centre(node: QuantityLike) -> float:
    """The result of the inputs' best values, in their units."""
    first, *others = (child.value for child in node.inputs)
    if node.op in ("+", "-"):
        return math.fsum((first, *others)) if node.op == "+" else first - math.fsum(others)
    return first * others[0] if node.op == "*" else first / others[0]


def _drawn_sum(node: QuantityLike) -> list[float]:
    """Terms with the very same errors move together, so they are added before they are drawn."""
    alike: dict[tuple[tuple[str, float], ...], float] = {}
    terms: list[tuple[float, Sequence[float]]] = []
    for position, child in enumerate(node.inputs):
        sign = -1.0 if node.op == "-" and position else 1.0
        if child.__dict__["_wide"] or crosses(child) or not child.value:
            terms.append((sign, sampled(child)))
        else:
            key = tuple(child.errors.items())
            alike[key] = alike.get(key, 0.0) + sign * child.value
    made = [0.0] * _DRAWS
    for sign, drawn in [*terms, *((1.0, _lognormal(value, key)) for key, value in alike.items())]:
        made = [old + sign * new for old, new in zip(made, drawn, strict=True)]
    return made


def _drawn_product(node: QuantityLike) -> list[float]:
    first, second = (sampled(child) for child in node.inputs)
    if node.op == "*":
        return [a * b for a, b in zip(first, second, strict=True)]
    return [a / b if b else 0.0 for a, b in zip(first, second, strict=True)]


def _leaf(part: QuantityLike) -> list[float]:
    """Draws of a figure whose errors say all."""
    if part.value and not crosses(part):
        return _lognormal(part.value, tuple(part.errors.items()))
    made = [part.value] * _DRAWS
    for name, size in deviations(part).items():
        made = [old + size * draw for old, draw in zip(made, _stream(name), strict=True)]
    return made


def _lognormal(value: float, errors: tuple[tuple[str, float], ...]) -> list[float]:
    if not errors:
        return [value] * _DRAWS
    (name, size), *others = errors
    sums = [size * draw for draw in _stream(name)]
    for other, more in others:
        sums = [old + more * draw for old, draw in zip(sums, _stream(other), strict=True)]
    exp, most = math.exp, 700.0
    return [value * exp(item if item < most else most) for item in sums]


def quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])
