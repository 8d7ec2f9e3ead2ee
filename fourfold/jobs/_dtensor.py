"""What DTensor does not know, or mistakes, told to it once a process: attention on CPUs by example and head, convolutions by example and channel, and
whatever it cannot carry out on the layouts that its operands have, on whole ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import implicit_replication, register_sharding
from torch.distributed.tensor.placement_types import Placement
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

Way = tuple[tuple[Placement, ...], tuple[Placement, ...]]               # of operands, of results, along one mesh axis
WHOLE, FIRST, SECOND = Replicate(), Shard(0), Shard(1)
aten = torch.ops.aten


@cache
def registered() -> None:
    """Register it all; again does nothing. Convolutions over points that are split stay DTensor's own."""
    def attention(tensors: int, results: int) -> Callable[..., object]:
        return lambda *_, **__: [([how] * results, [*[how] * tensors, None, None]) for how in (WHOLE, FIRST, SECOND)]

    register_sharding(aten._scaled_dot_product_flash_attention_for_cpu.default)(attention(3, 2))    # type: ignore[arg-type]
    register_sharding(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)(attention(6, 3))    # type: ignore[arg-type]
    handlers = DTensor._op_dispatcher._custom_op_handlers
    for op, ours in ((aten.convolution.default, convolution), (aten.convolution_backward.default, convolution_backward)):
        handlers[op] = _guarded(ours, handlers.get(op))


def _guarded(ours: Callable[..., object], theirs: Callable[..., object] | None) -> Callable[..., object]:
    def handler(op: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        points = any(isinstance(p, Shard) and p.dim > 1 for one in args if isinstance(one, DTensor) for p in one.placements)
        return theirs(op, args, kwargs) if points and theirs is not None else ours(op, args)

    return handler


def convolution(op: Callable[..., object], args: tuple[object, ...]) -> object:
    """x, weight, bias, …, transposed at 6, groups at 8."""
    x, weight, bias = args[:3]
    out, into = (SECOND, FIRST) if args[6] else (FIRST, SECOND)
    ways: list[Way] = [((WHOLE, WHOLE, WHOLE), (WHOLE,)), ((FIRST, WHOLE, WHOLE), (FIRST,))]
    if args[8] == 1:
        ways += [((WHOLE, out, FIRST), (SECOND,)), ((SECOND, into, Partial()), (Partial(),))]
    given = [one for one in (x, weight, bias) if isinstance(one, DTensor)]
    local, chosen = _laid(given, ways)
    made = cast(Tensor, op(*local, *[None] * (3 - len(local)), *args[3:]))
    return DTensor.from_local(made, given[0].device_mesh, [way[1][0] for way in chosen], run_check=False)


def convolution_backward(op: Callable[..., object], args: tuple[object, ...]) -> object:
    """gradient, x, weight, the bias's sizes, …, transposed at 7, groups at 9, what is asked for at 10."""
    out, into = (SECOND, FIRST) if args[7] else (FIRST, SECOND)
    ways: list[Way] = [((WHOLE,) * 3, (WHOLE,) * 3), ((FIRST, FIRST, WHOLE), (FIRST, Partial(), Partial()))]
    if args[9] == 1:
        ways += [((SECOND, WHOLE, out), (Partial(), out, FIRST)), ((WHOLE, SECOND, into), (SECOND, into, WHOLE))]
    given = [one for one in args[:3] if isinstance(one, DTensor)]
    local, chosen = _laid(given, ways)
    sizes = [local[0].shape[1]] if args[3] is not None else None
    made = cast("tuple[Tensor | None, ...]", op(*local, sizes, *args[4:]))
    return tuple(None if one is None else DTensor.from_local(one, given[0].device_mesh, [way[1][i] for way in chosen], run_check=False)
                 for i, one in enumerate(made))


def _laid(given: Sequence[DTensor], ways: Sequence[Way]) -> tuple[list[Tensor], list[Way]]:
    """Local pieces of operands under the way that moves least along each mesh axis, and those ways: of those by which something is split already, in
    even pieces, or whole.
    """
    mesh = given[0].device_mesh
    chosen: list[Way] = []

    def even(way: Way, axis: int) -> bool:
        for i, (one, want) in enumerate(zip(given, way[0], strict=False)):
            if isinstance(want, Shard):
                parts = mesh.size(axis) * math.prod(mesh.size(a) for a, earlier in enumerate(chosen) if earlier[0][i] == want)
                if one.shape[want.dim] % parts:
                    return False
        return True

    def price(way: Way, axis: int) -> float:
        """Elements to be moved."""
        return sum(one.numel() * (1.0 + have.is_partial()) for one, want in zip(given, way[0], strict=False)
                   if (have := one.placements[axis]) != want and not have.is_replicate())

    for axis in range(mesh.ndim):
        fit = [way for way in ways[1:] if even(way, axis) and any(isinstance(want, Shard) and one.placements[axis] == want
                                                                  for one, want in zip(given, way[0], strict=False))]
        chosen.append(min([*fit, ways[0]], key=lambda way: price(way, axis)))
    with torch.no_grad():
        local = [one.redistribute(mesh, [way[0][i] for way in chosen]).to_local() for i, one in enumerate(given)]
    return local, chosen


class Completing(TorchDispatchMode):
    """Inside, what is made of nothing is a whole DTensor, and an operation that DTensor cannot carry out is done on whole operands."""

    def __init__(self, devices: DeviceMesh) -> None:
        super().__init__()
        self.devices = devices

    def wrapped(self, made: object) -> object:
        """Tensors that every device has alike, as DTensors."""
        ways = [WHOLE] * self.devices.ndim
        return _pytree.tree_map_only(Tensor, lambda one: one if isinstance(one, DTensor) else DTensor.from_local(one, self.devices, ways,
                                                                                                               run_check=False), made)

    def __torch_dispatch__(self, func: Callable[..., object], types: object, args: tuple[object, ...] = (),
                           kwargs: dict[str, object] | None = None) -> object:
        tensors = [one for one in _pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if not tensors:
            return self.wrapped(func(*args, **(kwargs or {})))
        try:
            return func(*args, **(kwargs or {}))
        except (RuntimeError, NotImplementedError, ValueError, AssertionError):
            if not any(isinstance(one, DTensor) for one in tensors):
                raise
            with torch.no_grad():
                args, kwargs = _pytree.tree_map_only(DTensor, whole, (args, kwargs or {}))
            return self.wrapped(func(*args, **(kwargs or {})))


def whole(one: DTensor) -> Tensor:
    """All of it, on every device."""
    return one.redistribute(one.device_mesh, [WHOLE] * one.device_mesh.ndim).to_local()


@contextmanager
def completing(devices: DeviceMesh, plain: bool) -> Iterator[None]:
    """Inside, plain tensors count as whole on every device, and what DTensor cannot do is completed. `plain`: recurrent layers go step by step;
    fused, they hand their backward a workspace that is no DTensor.
    """
    before = torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(before and not plain)
        with implicit_replication(), Completing(devices):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)


__all__ = ["Completing", "completing", "registered", "whole"]
