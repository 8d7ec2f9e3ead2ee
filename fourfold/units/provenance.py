"""The graph of figures that a figure was computed from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from fourfold.units.dimension import sized
from fourfold.units.figure import QuantityLike
from fourfold.units.grade import weakest

F = TypeVar("F", bound=QuantityLike)


def walk(root: F, into: Callable[[F], bool] = lambda node: True) -> list[F]:
    """Every figure below `root` once, inputs before results; without recursion, for sums may be thousands deep. `into` says whose inputs to visit."""
    done: dict[int, F] = {}
    stack: list[tuple[F, bool]] = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if id(node) in done:
            continue
        if ready or not into(node):
            done[id(node)] = node
        else:
            stack.append((node, True))
            stack += [(child, False) for child in reversed(node.inputs)]
    return list(done.values())


def holdings(root: QuantityLike) -> dict[str, tuple[float, str]]:
    """Share of the value and grade of each term of a sum, by the term's name; the terms of a product are those of the factor that is a sum."""
    found: dict[int, dict[str, tuple[float, str]]] = {}
    for node in walk(root):
        mine: dict[str, tuple[float, str]] = {node._name(): (1.0, node.grade)}
        below = [found[id(child)] for child in node.inputs]
        size = math.fsum(abs(child.value) for child in node.inputs)
        if node.op in ("+", "-") and size:
            mine = {}
            for position, (child, terms) in enumerate(zip(node.inputs, below, strict=True)):
                sign = -1.0 if node.op == "-" and position else 1.0
                for name, (held, grade) in terms.items():
                    before = mine.get(name, (0.0, grade))
                    mine[name] = before[0] + sign * held * child.value / (node.value or size) * _rescale(node), weakest((grade, before[1]))
        elif node.op in ("*", "/"):
            sums = [terms for terms in (below if node.op == "*" else below[:1]) if len(terms) > 1]
            mine = sums[0] if sums else mine
        found[id(node)] = mine
    return found[id(root)]


def _rescale(node: QuantityLike) -> float:
    """Size of the inputs' unit in the node's: inputs of a sum share a unit, which `to` may since have changed."""
    return sized(node.inputs[0].unit)[0] / sized(node.unit)[0]


def worded(node: QuantityLike) -> str:
    return f"the number {node.value:g}" if node.op == "number" else str(node)
