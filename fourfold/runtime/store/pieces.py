"""What of a checkpoint a process holds: whole tensors, declared shards, or DTensors of torch, each as a piece of a named global tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_FLOAT = "__float__"                                                   # key of an infinity or NaN, which JSON has no word for
Value = bool | int | float | str | None | list[object] | dict[str, object]


@dataclass(frozen=True, eq=False)
class Shard:
    """A box of a global tensor: `local` (a tensor or array) stands at `offset` of a tensor of `shape`. Raises InputError where it does not fit."""

    local: Tensor | np.ndarray
    shape: tuple[int, ...]
    offset: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "offset", tuple(int(size) for size in self.offset))
        own = tuple(self.local.shape)
        if not len(own) == len(self.shape) == len(self.offset) or any(
            not 0 <= start <= start + size <= whole for start, size, whole in zip(self.offset, own, self.shape, strict=True)
        ):
            raise InputError(f"A shard of shape {own} at {self.offset} does not lie in a tensor of shape {self.shape}.",
                             "Give the global shape, and where the shard's first element stands in it.")


@dataclass(frozen=True, eq=False)
class TensorPiece:
    """`local` (torch tensor) at `offset` of the tensor `name` of `shape`; `owned`: this process writes it (another holds the same otherwise)."""

    name: str
    local: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    owned: bool = True


def split(state: Mapping[str, object]) -> tuple[list[TensorPiece], dict[str, Value]]:
    """Tensors and plain values of a nested state: names are the keys joined by dots. Raises InputError for what is neither, and for names twice."""
    pieces: list[TensorPiece] = []
    values: dict[str, Value] = {}
    seen: set[str] = set()
    for name, leaf in leaves(state):
        if name in seen:
            raise InputError(f"Two values are named {name!r}.", "Names are the keys joined by dots; rename one.")
        seen.add(name)
        found = pieces_of(name, leaf)
        if found is None:
            values[name] = plain(leaf, name)
        pieces += found or []
    return pieces, values


def leaves(state: object, name: str = "") -> Iterator[tuple[str, object]]:
    """(name, leaf) of a nested mapping; lists that hold tensors are gone through by number, other lists are leaves."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            if not isinstance(key, str | int):
                raise InputError(f"A key of the state is {key!r}.", "Keys are names or numbers.")
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, list | tuple) and any(_holds(one) for one in state):
        for index, value in enumerate(state):
            yield from leaves(value, f"{name}.{index}")
    else:
        yield name, state


def _holds(value: object) -> bool:
    import torch

    if isinstance(value, Mapping):
        return any(_holds(one) for one in value.values())
    return any(_holds(one) for one in value) if isinstance(value, list | tuple) else isinstance(value, torch.Tensor | np.ndarray | Shard)


def pieces_of(name: str, leaf: object) -> list[TensorPiece] | None:
    """The pieces of a tensor, array, shard or DTensor; None for anything else. Raises InputError for a tensor that has no plain elements."""
    import torch

    if isinstance(leaf, Shard):
        local = tensor(leaf.local, name)
        return [TensorPiece(name, local, leaf.shape, leaf.offset)]
    if isinstance(leaf, torch.Tensor) and hasattr(leaf, "device_mesh"):
        return _of_dtensor(name, leaf)
    if isinstance(leaf, torch.Tensor | np.ndarray | np.generic):
        local = tensor(leaf, name)
        return [TensorPiece(name, local, tuple(local.shape), (0,) * local.ndim)]
    return None


def tensor(leaf: object, name: str) -> Tensor:
    """A torch tensor on the same memory, without gradient. Raises InputError for what has no plain elements (sparse, quantised, objects, texts)."""
    import torch

    try:
        found = leaf.detach() if isinstance(leaf, torch.Tensor) else torch.from_numpy(np.asarray(leaf))
    except TypeError:
        raise InputError(f"{name} is an array of {getattr(leaf, 'dtype', type(leaf).__name__)}.", "Give numbers or booleans.") from None
    if found.layout != torch.strided or found.is_quantized:
        raise InputError(f"{name} is a {'quantised' if found.is_quantized else 'sparse'} tensor.", "Give its parts as tensors of their own.")
    return found.resolve_conj().resolve_neg()


def _of_dtensor(name: str, leaf: Tensor) -> list[TensorPiece]:
    """A process's box of a DTensor. It is written by the first process of those that hold the same."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(leaf, DTensor)
    if any(placement.is_partial() for placement in leaf.placements):
        raise InputError(f"{name} holds partial sums.", "Redistribute it to shards or replicas before it is saved.")
    mesh, local = leaf.device_mesh, leaf.to_local()
    shape, offset = compute_local_shape_and_global_offset(leaf.shape, mesh, leaf.placements)
    place = mesh.get_coordinate()
    first = place is not None and all(at == 0 for at, placement in zip(place, leaf.placements, strict=True) if placement.is_replicate())
    if place is None or 0 in tuple(shape) and 0 not in tuple(leaf.shape):
        return [TensorPiece(name, tensor(local, name), tuple(leaf.shape), (0,) * leaf.ndim, owned=False)]
    return [TensorPiece(name, tensor(local, name), tuple(leaf.shape), tuple(int(start) for start in offset), owned=first)]


def plain(value: object, name: str) -> Value:
    """A value that JSON holds exactly. Raises InputError otherwise: nothing is pickled."""
    import math

    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: repr(value)}
    if isinstance(value, list | tuple):
        return [plain(one, name) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and set(value) != {_FLOAT}:
        return {str(key): plain(one, name) for key, one in value.items()}
    raise InputError(f"{name} is a {type(value).__name__}; a store holds tensors, numbers, texts and lists of them.",
                     "Turn it into these, or into an array of bytes: nothing is pickled.")


def unplain(value: Value) -> object:
    """What `plain` was given."""
    if isinstance(value, dict):
        return float(str(value[_FLOAT])) if set(value) == {_FLOAT} else {key: unplain(one) for key, one in value.items()}  # type: ignore[arg-type]
    return [unplain(one) for one in value] if isinstance(value, list) else value  # type: ignore[arg-type]


def filled(state: object, found: Mapping[str, object], name: str = "") -> object:
    """`state` again, with each leaf replaced by `found` of its name; leaves that are not in `found` stay."""
    if isinstance(state, Mapping):
        return {key: filled(value, found, f"{name}.{key}" if name else str(key)) for key, value in state.items()}
    if isinstance(state, list | tuple) and any(_holds(one) for one in state):
        made: Sequence[object] = [filled(value, found, f"{name}.{index}") for index, value in enumerate(state)]
        return made if isinstance(state, list) else tuple(made)
    return found.get(name, state)
