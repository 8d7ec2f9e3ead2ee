"""What reports call the parts of a graph: labels of fused tasks, module paths as tuples, ops of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby

import numpy as np

from fourfold.cost import roofline
from fourfold.graph import PHASES, VIEW, Graph
from fourfold.machine import Machine

_SHOWN = 4                                                              # kinds that a label of a fused task lists


short = cache(roofline.short)


def label(graph: Graph, nodes: Sequence[int]) -> str:
    """One op's short kind ("layer_norm"), or those of a fused group in order, views left out where anything else is there: "mm + add ×2 + gelu"."""
    kinds = [short(graph.kinds[graph.kind[n]]) for n in nodes if graph.fusion[n] != VIEW] or [short(graph.kinds[graph.kind[n]]) for n in nodes]
    runs = [(kind, len(list(same))) for kind, same in groupby(kinds)]
    rest = sum(count for _, count in runs[_SHOWN:])
    return " + ".join(f"{kind} ×{count}" if count > 1 else kind for kind, count in runs[:_SHOWN]) + (f" + {rest} more" if rest else "")


def members(task: np.ndarray, count: int) -> list[list[int]]:
    """Nodes of each task, ascending; `task` i[N] numbers from 0 to `count` − 1."""
    order = np.argsort(task, kind="stable")
    cuts = np.cumsum(np.bincount(task, minlength=count))[:-1]
    return [part.tolist() for part in np.split(order, cuts)]


def paths(graph: Graph) -> list[tuple[str, ...]]:
    """The module path of each node; where a graph has several phases they come first ("backward", "encoder", "layer", "0"). A node without a module
    stands in its layer, where it has one.
    """
    phases = len(set(graph.phase.tolist())) > 1
    known: dict[tuple[str, int, int], tuple[str, ...]] = {}
    found = []
    for module, layer, phase in zip(graph.modules, graph.layer.tolist(), graph.phase.tolist(), strict=True):
        key = (module, layer, phase)
        if key not in known:
            path = tuple(part for part in module.split(".") if part) or ((f"layer {layer}",) if layer >= 0 else ())
            known[key] = ((PHASES[phase], *path) if phases else path)
        found.append(known[key])
    return found


def shape(graph: Graph, value: int) -> str:
    """"float32[8, 128, 768]"."""
    return f"{graph.dtype[value]}[{', '.join(map(str, graph.shape_of(value)))}]"


def lanes(system: Machine) -> list[tuple[int, str]]:
    """(lane, name) of every lane that carries bytes: "gpu0 → root", or "gpu0 – root" where both directions share it."""
    named = []
    for number, link in enumerate(system.links):
        if link.duplex:
            named += [(2 * number, f"{link.a} → {link.b}"), (2 * number + 1, f"{link.b} → {link.a}")]
        else:
            named.append((2 * number, f"{link.a} – {link.b}"))
    return named


@dataclass
class Box:
    """A module: `name` as its parent sees it, `path` in full, modules inside in the order of their first op, and `ops` that stand in it directly."""

    name: str
    path: str
    children: list[Box] = field(default_factory=list)
    ops: list[int] = field(default_factory=list)

    def all(self) -> list[int]:
        """Every op below, ascending."""
        found, stack = [], [self]
        while stack:
            box = stack.pop()
            found += box.ops
            stack += box.children
        return sorted(found)


def tree(graph: Graph) -> Box:
    """The modules of a graph as a tree; the root is the whole."""
    root = Box("", "")
    known: dict[tuple[str, ...], Box] = {(): root}

    def box(path: tuple[str, ...]) -> Box:
        if path not in known:
            known[path] = made = Box(path[-1], ".".join(path))
            box(path[:-1]).children.append(made)
        return known[path]

    for node, path in enumerate(paths(graph)):
        box(path).ops.append(node)
    return root


def named(path: str) -> str:
    """A module's path, so that nobody takes it for a number: "module 3"."""
    return f"module {path}" if path[:1].isdigit() else path


def span(first: str, last: str, count: int) -> str:
    """What `count` siblings in a row are called: "encoder.layer.6 to 11"."""
    if count == 1:
        return first
    head, _, end = last.rpartition(".")
    same = head and first.startswith(f"{head}.")
    return f"{first} {'and' if count == 2 else 'to'} {end if same else last}"
