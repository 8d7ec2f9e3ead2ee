"""What the user said of a few tensors → layouts of values: patterns over names, checked."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

from fourfold.errors import InputError
from fourfold.graph import INTERMEDIATE, Graph
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import P, Spec

Annotations = Mapping[str, P | Spec]


@dataclass(frozen=True)
class Annotated:
    """A value that the user spoke of: its layout, which dimensions are left open, and the pattern that named it."""

    spec: Spec
    open: tuple[bool, ...]
    pattern: str


def names_of(graph: Graph) -> dict[str, list[int]]:
    """Name → values. Inputs, parameters and constants by label; a computed value by the name of its node, and the last of a module by its path."""
    found: dict[str, list[int]] = {}
    for value, label in enumerate(graph.labels):
        if graph.role[value] != INTERMEDIATE and label:
            found.setdefault(label, []).append(value)
    last: dict[str, int] = {}
    for node in range(len(graph)):
        made = graph.outputs_of(node).tolist()
        if made:
            found.setdefault(graph.names[node], []).append(made[0])
            last[graph.modules[node]] = made[0]
    for module, value in last.items():
        if module and module not in found:
            found[module] = [value]
    return found


def annotated(graph: Graph, annotations: Annotations, mesh: Mesh) -> dict[int, Annotated]:
    """Value → what was said of it. Patterns are those of a shell, over the names of `names_of`; a pattern of parameters names no computed value.

    Raises InputError for a pattern that names no tensor (with the nearest name), two that contradict each other, an unknown axis, more entries than
    dimensions.
    """
    names = names_of(graph)
    leaves = {name for name, values in names.items() if graph.role[values[0]] != INTERMEDIATE}
    found: dict[int, Annotated] = {}
    for pattern, what in annotations.items():
        matched = [name for name in leaves if fnmatch.fnmatchcase(name, pattern)]
        matched = matched or [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise InputError(f"{pattern!r} names no tensor of {graph.name}.", _nearest(pattern, names, leaves))
        for name in sorted(matched):
            for value in names[name]:
                shape = graph.shape_of(value)
                said = _said(what, shape, mesh, name, pattern)
                if (before := found.get(value)) is not None and before != said and (before.spec, before.open) != (said.spec, said.open):
                    raise InputError(f"{name} is {before.spec} by {before.pattern!r} and {said.spec} by {pattern!r}.",
                                     "Say one layout of it: narrow one of the two patterns.")
                found[value] = said
    return found


def _said(what: P | Spec, shape: tuple[int, ...], mesh: Mesh, name: str, pattern: str) -> Annotated:
    if isinstance(what, Spec):
        P(*what.dims).check(len(shape), mesh, name)
        if what.ndim != len(shape):
            raise InputError(f"{what} of {name} has {what.ndim} entries, and the tensor has {len(shape)} dimensions.", "Give an entry a dimension.")
        return Annotated(what, (False,) * len(shape), pattern)
    spec = what.spec(len(shape), mesh, name)
    for d, (size, axes) in enumerate(zip(shape, spec.dims, strict=True)):
        if axes and mesh.lengths(axes) > size:
            raise InputError(f"{what} splits dimension {d} of {name}, which has {size} elements, over {mesh.lengths(axes)} devices.",
                             "Split a longer dimension, or over fewer devices.")
    return Annotated(spec, what.open(len(shape)), pattern)


def _nearest(pattern: str, names: Mapping[str, list[int]], leaves: set[str]) -> str:
    bare = pattern.replace("*", "").strip(".") or pattern
    tails = {name[-len(bare):]: name for name in sorted(names)} | {name[-len(bare):]: name for name in sorted(leaves)}
    near = difflib.get_close_matches(pattern, sorted(leaves), 1, 0.5) or [tails[t] for t in difflib.get_close_matches(bare, sorted(tails), 1, 0.5)]
    some = ", ".join(sorted(leaves)[:3])
    return f"The nearest is {near[0]!r}." if near else f"Its tensors are: {some}{', …' if len(leaves) > 3 else ''}"


__all__ = ["Annotated", "Annotations", "annotated", "names_of"]
