"""Prices of all reshardings between lists of layouts at once: shortest paths between all layouts of a tensor, in a numba kernel.

`collectives.reshard` searches from one layout; a table of strategies needs thousands of pairs. Here a layout is a number for each mesh axis: the
dimension it splits, −1 for none, −2 where the value is partial over it. Axes that share a dimension nest in the mesh's order, so an axis can
leave or join a dimension only where no later axis stands in it. Every step is one of `collectives`, so a price is that of a chain which can be
carried out: the cheapest that keeps to this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

from fourfold.sharding.collectives import SECONDS, Constants
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec

F64 = NDArray[np.float64]
_WHOLE, _PARTIAL = -1, -2
_MOST = 4                                                               # dimensions through which a detour is looked for


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


def seconds(have: NDArray[np.int64], want: NDArray[np.int64], ndim: int, size: float, mesh: Mesh, constants: Constants = SECONDS) -> F64:
    """f8[have, want] seconds to bring a tensor of `ndim` dimensions and `size` bytes in all from each layout to each (`codes`)."""
    dims = max(min(ndim, _MOST), 1 + max(int(have.max(initial=0)), int(want.max(initial=0))))
    table = _paths(dims, float(size), mesh, constants)
    base = (dims + 2) ** np.arange(len(mesh.shape))
    return table[np.ix_((have + 2) @ base, (want + 2) @ base)]


@lru_cache(maxsize=128)
def _paths(dims: int, size: float, mesh: Mesh, c: Constants) -> F64:
    extra = np.array([c.all_gather, c.all_reduce, c.reduce_scatter, c.all_to_all, c.hops])
    return _shortest(dims, size, np.array(mesh.shape, np.float64), np.array(mesh.alpha), np.array(mesh.beta), extra)


@numba.njit(cache=True)
def _shortest(dims, size, n, alpha, beta, extra):  # noqa: ANN001, ANN202 — numba types
    """f8[N, N], N = (dims + 2)^axes: seconds of the cheapest chain between all layouts (Floyd–Warshall)."""
    axes, base = len(n), dims + 2
    count = base**axes
    table, code, other = np.full((count, count), np.inf), np.zeros(axes, np.int64), 0
    for at in range(count):
        table[at, at] = 0.0
        rest, piece = at, size
        for a in range(axes):
            code[a] = rest % base - 2
            rest //= base
            if code[a] >= 0:
                piece /= n[a]
        for a in range(axes):
            step = base**a
            minor = True                                                # no later axis stands in the dimension that this one would leave
            for b in range(a + 1, axes):
                minor &= not (code[a] >= 0 and code[b] == code[a] and n[b] > 1)
            if not minor:
                continue
            share = (n[a] - 1) / n[a]
            for to in range(-2, dims):
                if to == code[a]:
                    continue
                joins = True
                for b in range(a + 1, axes):
                    joins &= not (to >= 0 and code[b] == to and n[b] > 1)
                if not joins:
                    continue
                if n[a] == 1:
                    cost = 0.0
                elif code[a] == -1:
                    cost = 0.0
                elif code[a] == -2 and to == -1:
                    cost = alpha[a] + 2 * beta[a] * share * piece + extra[1]
                elif code[a] == -2:
                    cost = alpha[a] + beta[a] * share * piece + extra[2]
                elif to == -1:
                    cost = alpha[a] + beta[a] * share * piece * n[a] + extra[0]
                elif to == -2:
                    continue                                            # gathered, then kept on one: two steps
                else:
                    cost = alpha[a] + beta[a] * share * piece * max(1.0, n[a] * extra[4]) + extra[3]
                other = at + (to - code[a]) * step
                table[at, other] = min(table[at, other], cost)
    for k in range(count):
        for i in range(count):
            if table[i, k] < np.inf:
                for j in range(count):
                    whole = table[i, k] + table[k, j]
                    if whole < table[i, j]:
                        table[i, j] = whole
    return table


__all__ = ["codes", "seconds"]
