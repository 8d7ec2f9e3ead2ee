"""The steps that bring a rank's piece of a value to another layout: collectives of torch.distributed, and what a rank does alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fourfold.runtime.spmd.program import HeldValue, reverse
from fourfold.sharding.collectives import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, KEEP, PERMUTE, REDUCE_SCATTER, SLICE, Transfer
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx
    from torch.distributed import ProcessGroup

_WIDE = {torch.bool: torch.uint8}                                       # types that gloo does not send as they are


@dataclass
class Lines:
    """The groups in which this rank communicates: for every axis of `mesh` the ranks of its line, and the group. Ranks are counted on the mesh;
    `devices` are their numbers in the world. `tick` is told what it waits for.
    """

    mesh: Mesh
    rank: int
    devices: tuple[int, ...] = ()
    groups: dict[str, ProcessGroup | None] = field(default_factory=dict)
    members: dict[str, list[int]] = field(default_factory=dict)
    tick: Callable[[bool], None] = lambda entered: None

    @classmethod
    def of(cls, mesh: Mesh, rank: int, devices: Sequence[int] = (), tick: Callable[[bool], None] = lambda entered: None) -> Lines | None:
        """Make the groups of `mesh` on these `devices` (default: the first of the world); None where `rank` is not among them.

        Every rank of the world must call this with the same arguments, in the same order of calls.
        """
        places = tuple(devices) or tuple(range(mesh.size))
        me = places.index(rank) if rank in places else -1
        found = cls(mesh, me, places, tick=tick)
        for axis in mesh.names:
            for line in mesh.lines(axis):
                group = dist.new_group([places[place] for place in line])
                if me in line:
                    found.groups[axis], found.members[axis] = cast("ProcessGroup", group), line
        return found if me >= 0 else None


def moved(piece: Tensor, slot: HeldValue, chain: Sequence[Transfer], lines: Lines) -> Tensor:
    """`piece` of the value in `slot`, after the steps of `chain`."""
    at = slot.spec
    for step in chain:
        piece = _STEPS[step.collective](piece, slot.shape, at, step, lines)
        at = step.to
    return piece


class _Moved(torch.autograd.Function):
    """`moved`, whose gradient goes back by the reversed chain."""

    @staticmethod
    def forward(ctx: FunctionCtx, piece: Tensor, slot: HeldValue, chain: Sequence[Transfer], lines: Lines) -> Tensor:
        ctx.back = (slot, chain, lines)                                 # type: ignore[attr-defined]
        made = moved(piece, slot, chain, lines)
        return made.view_as(made) if made is piece else made

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        slot, chain, lines = ctx.back                                   # type: ignore[attr-defined]
        after = replace(slot, spec=Spec((chain[-1].to if chain else slot.spec).dims))
        return moved(gradients[0].contiguous(), after, reverse(slot, chain, lines.mesh), lines), None, None, None


class _Entered(torch.autograd.Function):
    """The same value; ranks along `axes` use it for different parts of the work, so its gradient is summed over them."""

    @staticmethod
    def forward(ctx: FunctionCtx, piece: Tensor, axes: Sequence[str], lines: Lines) -> Tensor:
        ctx.back = (axes, lines)                                        # type: ignore[attr-defined]
        return piece.view_as(piece)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        axes, lines = ctx.back                                          # type: ignore[attr-defined]
        return summed(gradients[0], axes, lines), None, None


class _MeanSquare(torch.autograd.Function):
    """The mean square of a value of which every rank holds a piece."""

    @staticmethod
    def forward(ctx: FunctionCtx, piece: Tensor, slot: HeldValue, lines: Lines) -> Tensor:
        ctx.save_for_backward(piece)
        ctx.back = math.prod(slot.shape)                                # type: ignore[attr-defined]
        return summed(piece.square().sum(), sorted(slot.spec.axes), lines) / ctx.back    # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (piece,) = ctx.saved_tensors                                    # type: ignore[attr-defined]
        return piece * (2.0 / ctx.back) * gradients[0], None, None      # type: ignore[attr-defined]


def followed(piece: Tensor, slot: HeldValue, chain: Sequence[Transfer], lines: Lines) -> Tensor:
    """`moved`, with a gradient where the piece has one."""
    return cast(Tensor, _Moved.apply(piece, slot, chain, lines)) if piece.requires_grad else moved(piece, slot, chain, lines)


def entered(piece: Tensor, axes: Sequence[str], lines: Lines) -> Tensor:
    """The same piece, its gradient summed over `axes`."""
    return cast(Tensor, _Entered.apply(piece, axes, lines))


def mean_square(piece: Tensor, slot: HeldValue, lines: Lines) -> Tensor:
    """The mean square of a value that is partial over no axis, whole on every rank, with a gradient."""
    return cast(Tensor, _MeanSquare.apply(piece, slot, lines))


def summed(piece: Tensor, axes: Sequence[str], lines: Lines) -> Tensor:
    """The sum over the ranks of all `axes`."""
    order = sorted(range(piece.ndim), key=lambda d: -piece.stride(d))   # a weight's gradient comes transposed: summed as it lies, nothing is turned
    total = piece.clone() if piece.permute(order).is_contiguous() else piece.clone(memory_format=torch.contiguous_format)
    flat = total.permute(order) if not total.is_contiguous() else total
    for axis in axes:
        _waited(lines, lambda axis=axis: dist.all_reduce(flat, group=lines.groups[axis]))
    return total


def _gather(piece: Tensor, shape: Sequence[int], at: Spec, step: Transfer, lines: Lines) -> Tensor:
    """Pieces of the minor axis of a dimension, put together in the order of their ranks; uneven ones travel padded."""
    dim, ranks = _dim(at, step.axis), lines.members[step.axis]
    sizes = [_length(at.slices(shape, lines.mesh, rank)[dim]) for rank in ranks]
    most = max(sizes)
    sent = _sendable(piece if piece.shape[dim] == most else _padded(piece, dim, most))
    made = sent.new_empty(len(ranks) * sent.numel())
    _waited(lines, lambda: dist.all_gather_single(made, sent.view(-1), group=lines.groups[step.axis]))
    parts = made.view(len(ranks), *sent.shape)
    return torch.cat([part.narrow(dim, 0, n) for part, n in zip(parts, sizes, strict=True)], dim).to(piece.dtype)


def _reduce(piece: Tensor, shape: Sequence[int], at: Spec, step: Transfer, lines: Lines) -> Tensor:
    return summed(piece, (step.axis,), lines)


def _scatter(piece: Tensor, shape: Sequence[int], at: Spec, step: Transfer, lines: Lines) -> Tensor:
    dim = _dim(step.to, step.axis)
    parts = torch.stack(piece.chunk(len(lines.members[step.axis]), dim))
    made = parts.new_empty(parts.shape[1:])
    _waited(lines, lambda: dist.reduce_scatter_single(made.view(-1), parts.view(-1), group=lines.groups[step.axis]))
    return made


def _exchange(piece: Tensor, shape: Sequence[int], at: Spec, step: Transfer, lines: Lines) -> Tensor:
    """All-to-all: what was split along one dimension is split along another."""
    before, after, n = _dim(at, step.axis), _dim(step.to, step.axis), len(lines.members[step.axis])
    sent = _sendable(torch.stack(piece.chunk(n, after)))
    made = torch.empty_like(sent)
    _waited(lines, lambda: dist.all_to_all_single(made.view(-1), sent.view(-1), group=lines.groups[step.axis]))
    return torch.cat(list(made), before).to(piece.dtype)


def _permute(piece: Tensor, shape: Sequence[int], at: Spec, step: Transfer, lines: Lines) -> Tensor:
    """Every rank's new piece is one that another holds: who sends to whom follows from the two layouts alone."""
    mesh, me = lines.mesh, lines.rank
    holders: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for rank in range(mesh.size):
        holders.setdefault(_place(at, shape, mesh, rank), []).append(rank)
    source, taken = dict[int, int](), dict[tuple[tuple[int, int], ...], int]()
    for rank in range(mesh.size):
        place = _place(step.to, shape, mesh, rank)
        ranks = holders[place]
        source[rank] = rank if rank in ranks else ranks[taken.get(place, 0) % len(ranks)]
        taken[place] = taken.get(place, 0) + (source[rank] != rank)
    sent = _sendable(piece)
    local = [s.stop - s.start for s in step.to.slices(shape, mesh, me)]
    made = sent if source[me] == me else sent.new_empty(local)
    wants = [dist.P2POp(dist.isend, sent, lines.devices[rank]) for rank in range(mesh.size) if source[rank] == me and rank != me]
    if source[me] != me:
        wants.append(dist.P2POp(dist.irecv, made, lines.devices[source[me]]))

    def exchange() -> None:
        for work in dist.batch_isend_irecv(wants) if wants else []:
            work.wait()

    _waited(lines, exchange)
    return made.to(piece.dtype)


def _slice(piece: Tensor, shape: Sequence[int], at: Spec, step: Transfer, lines: Lines) -> Tensor:
    dim = _dim(step.to, step.axis)
    have, want = (spec.slices(shape, lines.mesh, lines.rank)[dim] for spec in (at, step.to))
    return piece.narrow(dim, want.start - have.start, _length(want)).contiguous()


def _keep(piece: Tensor, shape: Sequence[int], at: Spec, step: Transfer, lines: Lines) -> Tensor:
    """A whole value as a sum still to be made: the first rank of the line holds it, the others zeros."""
    return piece if lines.members[step.axis][0] == lines.rank else torch.zeros_like(piece)


_STEPS: dict[str, Callable[[Tensor, Sequence[int], Spec, Transfer, Lines], Tensor]] = {
    ALL_GATHER: _gather, ALL_REDUCE: _reduce, REDUCE_SCATTER: _scatter, ALL_TO_ALL: _exchange, PERMUTE: _permute, SLICE: _slice, KEEP: _keep}


def _waited(lines: Lines, collective: Callable[[], object]) -> None:
    lines.tick(True)
    collective()
    lines.tick(False)


def _dim(spec: Spec, axis: str) -> int:
    dim = spec.dim_of(axis)
    assert dim is not None
    return dim


def _length(part: slice) -> int:
    return part.stop - part.start


def _place(spec: Spec, shape: Sequence[int], mesh: Mesh, rank: int) -> tuple[tuple[int, int], ...]:
    return tuple((s.start, s.stop) for s in spec.slices(shape, mesh, rank))


def _padded(piece: Tensor, dim: int, size: int) -> Tensor:
    wide = piece.new_zeros((*piece.shape[:dim], size, *piece.shape[dim + 1 :]))
    wide.narrow(dim, 0, piece.shape[dim]).copy_(piece)
    return wide


def _sendable(piece: Tensor) -> Tensor:
    return piece.to(_WIDE.get(piece.dtype, piece.dtype)).contiguous()


__all__ = ["Lines", "entered", "followed", "mean_square", "moved", "summed"]
