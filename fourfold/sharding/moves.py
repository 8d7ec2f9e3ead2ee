"""Prices of all reshardings between two lists of layouts at once, as arrays: an axis at a time, in an order that never moves more than it must.

`collectives.reshard` finds the cheapest chain for one pair by search; a table of strategies needs thousands of pairs. Here each axis does its own
step: slices first (they are free and make the rest smaller), then reduce-scatters, all-to-alls, all-reduces, and all-gathers last. Layouts of
strategies name the axes of a dimension in the mesh's order, so that no axes only change places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fourfold.sharding.collectives import SECONDS, Constants
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec

F64 = NDArray[np.float64]
_WHOLE, _PARTIAL = -1, -2


def codes(specs: Sequence[Spec], mesh: Mesh) -> NDArray[np.int64]:
    """i8[n, axes]: the dimension that each axis splits, -1 where it splits none, -2 where the value is partial over it."""
    found = np.full((len(specs), len(mesh.names)), _WHOLE, np.int64)
    for i, spec in enumerate(specs):
        for dim, axes in enumerate(spec.dims):
            for axis in axes:
                found[i, mesh.axis(axis)] = dim
        for axis in spec.partial:
            found[i, mesh.axis(axis)] = _PARTIAL
    return found


def seconds(have: NDArray[np.int64], want: NDArray[np.int64], size: float, mesh: Mesh, constants: Constants = SECONDS) -> F64:
    """f8[have, want] seconds to bring a tensor of `size` bytes in all from each layout to each (`codes`)."""
    a, b = have[:, None, :], want[None, :, :]
    n = np.array(mesh.shape, float)
    alpha, beta = np.array(mesh.alpha), np.array(mesh.beta)
    piece = size / np.prod(np.where(have >= 0, n, 1.0), axis=1)[:, None] * np.ones((1, len(want)))
    total = np.zeros(piece.shape)
    c = constants
    first = piece
    for axis in range(len(n)):                                          # free: each device takes its own part, unless a major axis is yet to come
        later = np.zeros(piece.shape, bool)
        for major in range(axis):
            later |= (b[..., major] == b[..., axis]) & (a[..., major] != b[..., major]) & (a[..., major] != _WHOLE)
        piece = np.where((a[..., axis] == _WHOLE) & (b[..., axis] >= 0) & ~later, piece / n[axis], piece)
    for kind in ("reduce-scatter", "all-to-all", "all-reduce", "all-gather"):
        for axis in reversed(range(len(n))) if kind == "all-gather" else range(len(n)):        # minor axes are gathered first
            x, y, k = a[..., axis], b[..., axis], n[axis]
            if k == 1:
                continue
            part = (k - 1) / k
            if kind == "reduce-scatter":
                mask, cost = (x == _PARTIAL) & (y >= 0), alpha[axis] + beta[axis] * part * piece + c.reduce_scatter
                after = piece / k
            elif kind == "all-to-all":
                mask = (x >= 0) & (y >= 0) & (x != y)
                cost, after = alpha[axis] + beta[axis] * part / k * (piece * k) * max(1.0, k * c.hops) + c.all_to_all, piece
            elif kind == "all-reduce":
                mask, cost = (x == _PARTIAL) & (y == _WHOLE), alpha[axis] + 2 * beta[axis] * part * piece + c.all_reduce
                after = piece
            else:
                mask = (x >= 0) & (y < 0)
                cost, after = alpha[axis] + beta[axis] * part * piece * k + c.all_gather, piece * k
            total += np.where(mask, cost, 0.0)
            piece = np.where(mask, after, piece)
    return total + _turned(a, b, np.maximum(first, piece), mesh, c)


def _turned(a: NDArray[np.int64], b: NDArray[np.int64], piece: F64, mesh: Mesh, c: Constants) -> F64:
    """Seconds of the permutes that let a major axis leave, or join, a dimension that a minor one keeps."""
    total = np.zeros(piece.shape)
    for major in range(len(mesh.shape)):
        for minor in range(major + 1, len(mesh.shape)):
            if mesh.shape[major] == 1 or mesh.shape[minor] == 1:
                continue
            stays = (a[..., minor] == b[..., minor]) & (b[..., minor] >= 0)
            moves = (a[..., major] != b[..., major]) & ((a[..., major] == a[..., minor]) | (b[..., major] == a[..., minor]))
            cost = max(mesh.alpha[major], mesh.alpha[minor]) + max(mesh.beta[major], mesh.beta[minor]) * piece + c.permute
            total += np.where(stays & moves, cost, 0.0)
    return total


__all__ = ["codes", "seconds"]
