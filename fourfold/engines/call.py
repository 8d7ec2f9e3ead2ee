"""Calls: one node of a program as a plain function call, and the region whose calls run between two transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Outs: TypeAlias = "int | list[Outs] | None"                              # what a call makes: a value, None (left out), or a list of such


@dataclass(frozen=True)
class Ref:
    """Stands for the tensor of a value among the arguments of a call."""

    value: int


@dataclass(frozen=True)
class Call:
    """One node: `target(*args, **kwargs)`, whose result has the structure `outs`: a value, None (left out), or a list of such."""

    task: int
    node: int
    target: Callable[..., Any]
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    outs: Outs


@dataclass(frozen=True)
class Region:
    """Number, device, tasks and nodes in the order in which they run; `reads` values from outside (no weights), `weights`, `makes` values that others
    need; `sends` (value, device) for other devices; `needs` values that come from other devices; `drops` values that nobody reads here after.
    """

    number: int
    device: int
    tasks: tuple[int, ...]
    nodes: tuple[tuple[int, int], ...]                                  # (node, task)
    reads: tuple[int, ...]
    weights: tuple[int, ...]
    makes: tuple[int, ...]
    sends: tuple[tuple[int, int], ...] = ()
    needs: tuple[int, ...] = ()
    drops: tuple[int, ...] = ()


def refs(part: object) -> Iterator[int]:
    """Values among arguments."""
    if isinstance(part, Ref):
        yield part.value
    elif isinstance(part, list | tuple):
        for one in part:
            yield from refs(one)
    elif isinstance(part, Mapping):
        for one in part.values():
            yield from refs(one)


def mapped(part: object, change: Callable[[object], object]) -> Any:
    """`part` with every leaf that is no list, tuple or mapping changed."""
    if isinstance(part, list | tuple):
        return type(part)([mapped(one, change) for one in part])
    if isinstance(part, Mapping):
        return {key: mapped(one, change) for key, one in part.items()}
    return change(part)


def values(outs: Outs) -> list[int]:
    """Values in the structure of a call's result."""
    if isinstance(outs, list):
        return [v for part in outs for v in values(part)]
    return [] if outs is None else [outs]
