"""What it costs to bring a tensor from one layout on a mesh to another: the α–β price of each collective, and the cheapest chain of them.

Prices follow Alpa (Zheng et al., OSDI 2022, device mesh): with n devices on the axis, α seconds, β seconds a byte, and B the bytes of the tensor as
the group sees it (each member's piece × n where the axis splits it; other axes that split it divide B):

    all-gather       α + β (n−1)/n · B
    reduce-scatter   α + β (n−1)/n · B
    all-reduce       α + 2 β (n−1)/n · B
    all-to-all       α + β (n−1)/n² · B · max(1, n·h)    h = ½: pieces for far devices pass others on a ring
    permute          α + β · B/n                          every device sends its piece to another

and a constant each that orders equals: of two plans of one price the one with fewer, lighter collectives is taken.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec

ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, ALL_TO_ALL, PERMUTE = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "permute"
SLICE, KEEP = "slice", "keep"           # local: take one's own piece; keep the value on the first device, zeros elsewhere


@dataclass(frozen=True)
class Constants:
    """What is added to each collective, in seconds, and `hops`, the share of the ring that an all-to-all's piece travels."""

    all_gather: float = 1e-7
    all_reduce: float = 1e-8
    reduce_scatter: float = 1e-9
    all_to_all: float = 1e-9
    permute: float = 1e-9
    hops: float = 0.5


SECONDS = Constants()                                                   # Alpa's constants, read as microseconds
ALPA = Constants(0.1, 0.01, 0.001, 0.001, 0.001)                        # for α and β in Alpa's own units (α = 1, β = 0.1)


def all_gather(size: float, mesh: Mesh, axis: str, constants: Constants = SECONDS) -> float:
    """Seconds until each device along `axis` has the whole of `size` bytes, of which each holds a piece."""
    n, a, b = _axis(mesh, axis)
    return a + b * (n - 1) / n * size + constants.all_gather if n > 1 else 0.0


def all_reduce(size: float, mesh: Mesh, axis: str, constants: Constants = SECONDS) -> float:
    """Seconds until each device along `axis` has the sum of what all have, `size` bytes each."""
    n, a, b = _axis(mesh, axis)
    return a + 2 * b * (n - 1) / n * size + constants.all_reduce if n > 1 else 0.0


def reduce_scatter(size: float, mesh: Mesh, axis: str, constants: Constants = SECONDS) -> float:
    """Seconds until each device along `axis` has its piece of the sum of what all have, `size` bytes each."""
    n, a, b = _axis(mesh, axis)
    return a + b * (n - 1) / n * size + constants.reduce_scatter if n > 1 else 0.0


def all_to_all(size: float, mesh: Mesh, axis: str, constants: Constants = SECONDS) -> float:
    """Seconds to split another dimension of `size` bytes, of which each device along `axis` holds a piece."""
    n, a, b = _axis(mesh, axis)
    return a + b * (n - 1) / n**2 * size * max(1.0, n * constants.hops) + constants.all_to_all if n > 1 else 0.0


def permute(size: float, mesh: Mesh, axis: str, constants: Constants = SECONDS) -> float:
    """Seconds until each device along `axis` has handed its piece of `size` bytes to another."""
    n, a, b = _axis(mesh, axis)
    return a + b * size / n + constants.permute if n > 1 else 0.0


def _axis(mesh: Mesh, axis: str) -> tuple[int, float, float]:
    i = mesh.axis(axis)
    return mesh.shape[i], mesh.alpha[i], mesh.beta[i]


@dataclass(frozen=True)
class Transfer:
    """One step of a resharding: `collective` along `axis`, `size` bytes as its group sees the tensor, `seconds`, and the layout `to` it leads to."""

    collective: str
    axis: str
    size: float
    seconds: float
    to: Spec

    def __str__(self) -> str:
        return f"{self.collective} over {self.axis}"


def reshard(have: Spec, want: Spec, shape: Sequence[int], itemsize: float, mesh: Mesh, constants: Constants = SECONDS) -> list[Transfer]:
    """The cheapest chain of steps from `have` to `want` of a tensor of `shape` with `itemsize` bytes an element; [] where they are the same.

    Dijkstra's algorithm over all layouts. Raises InputError where the two have different numbers of dimensions, or an axis is unknown.
    """
    if have.ndim != want.ndim or have.ndim != len(shape):
        raise InputError(f"A tensor of {len(shape)} dimensions cannot go from {have} to {want}.", "Give both layouts an entry a dimension.")
    return list(_chain(have, want, tuple(shape), itemsize, mesh, constants))


def reshard_seconds(have: Spec, want: Spec, shape: Sequence[int], itemsize: float, mesh: Mesh, constants: Constants = SECONDS) -> float:
    """Seconds of `reshard`."""
    return math.fsum(step.seconds for step in reshard(have, want, shape, itemsize, mesh, constants)) if have != want else 0.0


def reshard_table(
    haves: Sequence[Spec], wants: Sequence[Spec], shape: Sequence[int], itemsize: float, mesh: Mesh, constants: Constants = SECONDS
) -> NDArray[np.float64]:
    """f8[haves, wants] seconds of `reshard` from each to each: one search a row."""
    table = np.zeros((len(haves), len(wants)))
    for i, have in enumerate(haves):
        if any(have != want for want in wants):
            reached = _reached(have, tuple(shape), itemsize, mesh, constants)
            table[i] = [reached[want][0] for want in wants]
    return table


@lru_cache(maxsize=1 << 16)
def _chain(have: Spec, want: Spec, shape: tuple[int, ...], itemsize: float, mesh: Mesh, constants: Constants) -> tuple[Transfer, ...]:
    if have == want:
        return ()
    reached = _reached(have, shape, itemsize, mesh, constants)
    steps: list[Transfer] = []
    while (step := reached[want][1]) is not None:
        steps.append(step)
        want = reached[want][2]
    return tuple(reversed(steps))


@lru_cache(maxsize=4096)
def _reached(
    have: Spec, shape: tuple[int, ...], itemsize: float, mesh: Mesh, constants: Constants
) -> dict[Spec, tuple[float, Transfer | None, Spec]]:
    """Layout → (seconds, last step, layout before it) of the cheapest chain from `have`; of equals the one with fewer steps."""
    for axis in (*have.axes, *have.partial):
        mesh.axis(axis)
    done: dict[Spec, tuple[float, Transfer | None, Spec]] = {}
    queue: list[tuple[float, int, int, Spec, Transfer | None, Spec]] = [(0.0, 0, 0, have, None, have)]
    count = 0
    while queue:
        seconds, steps, _, at, last, before = heapq.heappop(queue)
        if at in done:
            continue
        done[at] = (seconds, last, before)
        for step in _moves(at, shape, itemsize, mesh, constants):
            if step.to not in done:
                count += 1
                heapq.heappush(queue, (seconds + step.seconds, steps + 1, count, step.to, step, at))
    return done


def _moves(at: Spec, shape: tuple[int, ...], itemsize: float, mesh: Mesh, constants: Constants) -> Iterator[Transfer]:
    """Every layout that one step leads to, with its price. Only the minor axis of a dimension can be gathered: the pieces then lie in order."""
    piece = itemsize * math.prod(at.local_shape(shape, mesh))
    free = [axis for axis in mesh.names if axis not in at.axes and axis not in at.partial]
    for dim, axes in enumerate(at.dims):
        if axes:
            axis = axes[-1]
            size = piece * mesh.length(axis)
            less = at.with_dim(dim, axes[:-1])
            yield Transfer(ALL_GATHER, axis, size, all_gather(size, mesh, axis, constants), less)
            for other in range(at.ndim):
                if other != dim:
                    yield Transfer(ALL_TO_ALL, axis, size, all_to_all(size, mesh, axis, constants), less.with_dim(other, (*at.dims[other], axis)))
            for before in free:                                         # the same pieces, numbered along another axis of that length
                if mesh.length(before) == mesh.length(axis):
                    worst = max((axis, before), key=lambda a: permute(size, mesh, a, constants))
                    yield Transfer(PERMUTE, worst, size, permute(size, mesh, worst, constants), less.with_dim(dim, (*axes[:-1], before)))
        for i in range(len(axes) - 1):                                  # the same pieces, on other devices
            turned = (*axes[:i], axes[i + 1], axes[i], *axes[i + 2 :])
            worst = max(axes[i : i + 2], key=lambda a: permute(piece * mesh.length(a), mesh, a, constants))
            size = piece * mesh.length(worst)
            yield Transfer(PERMUTE, worst, size, permute(size, mesh, worst, constants), at.with_dim(dim, turned))
        for axis in free:
            yield Transfer(SLICE, axis, piece, 0.0, at.with_dim(dim, (*axes, axis)))
    for axis in at.partial:
        less = at.without(axis)
        yield Transfer(ALL_REDUCE, axis, piece, all_reduce(piece, mesh, axis, constants), less)
        for dim, axes in enumerate(at.dims):
            yield Transfer(REDUCE_SCATTER, axis, piece, reduce_scatter(piece, mesh, axis, constants), less.with_dim(dim, (*axes, axis)))
    for axis in free:
        yield Transfer(KEEP, axis, piece, 0.0, Spec(at.dims, (*at.partial, axis)))


__all__ = [
    "ALL_GATHER", "ALL_REDUCE", "ALL_TO_ALL", "ALPA", "KEEP", "PERMUTE", "REDUCE_SCATTER", "SECONDS", "SLICE", "Constants", "Transfer", "all_gather",
    "all_reduce", "all_to_all", "permute", "reduce_scatter", "reshard", "reshard_seconds", "reshard_table",
]  # fmt: skip
