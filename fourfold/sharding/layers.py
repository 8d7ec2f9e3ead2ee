"""A program's operations in L layers: runs of about equal work that hand as few bytes as can be on (Zheng et al., OSDI 2022, section 5.2)."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError
from fourfold.graph import CONSTANT, INPUT, PARAMETER, Graph

_SLACK = 0.6                                                            # share by which a layer's work may exceed the mean, at first


@numba.njit(cache=True)
def _cut(work, crossing, layers, most):  # noqa: ANN001, ANN202 — numba types
    """Ends (exclusive) of `layers` runs, each of at most `most` work, with the least sum of bytes at the cuts and of squared work; none: empty."""
    count = len(work)
    done = np.zeros(count + 1)
    for v in range(count):
        done[v + 1] = done[v] + work[v]
    value, choice = np.full((layers + 1, count + 1), np.inf), np.zeros((layers + 1, count + 1), np.int64)
    value[0, 0] = 0.0
    mean = done[count] / layers + 1e-300
    for layer in range(1, layers + 1):
        for end in range(layer, count + 1):
            for start in range(end - 1, layer - 2, -1):
                own = done[end] - done[start]
                if own > most and end - start > 1:
                    break
                if crossing[start] == np.inf:
                    continue
                whole = value[layer - 1, start] + crossing[start] + 0.5 * (own / mean) ** 2
                if whole < value[layer, end]:
                    value[layer, end], choice[layer, end] = whole, start
    ends = np.zeros(layers, np.int64)
    if value[layers, count] == np.inf:
        return ends[:0]
    end = count
    for layer in range(layers, 0, -1):
        ends[layer - 1] = end
        end = choice[layer, end]
    return ends


def crossings(graph: Graph) -> NDArray[np.float64]:
    """f8[N + 1]: bytes of values made before each position in the graph's order and read at or after it; what is given counts for nothing."""
    found = np.zeros(len(graph) + 1)
    last = np.full(len(graph.producer), -1, np.int64)
    reader = np.repeat(np.arange(len(graph)), np.diff(graph.in_ptr))
    np.maximum.at(last, graph.in_val, reader)
    given = np.isin(graph.role, (INPUT, PARAMETER, CONSTANT))
    for v in np.flatnonzero(~given & (last > graph.producer)):
        found[graph.producer[v] + 1] += graph.size[v]
        found[last[v] + 1] -= graph.size[v]
    return np.cumsum(found)


def layers(graph: Graph, count: int) -> NDArray[np.int64]:
    """i8[N]: the layer of each node, 0 … count − 1, ascending along the graph's order.

    Raises InputError where there are fewer nodes than layers.
    """
    if not 1 <= count <= len(graph):
        raise InputError(f"{graph.name} has {len(graph)} operations, which cannot be {count} layers.", f"Ask for 1 to {len(graph)} layers.")
    work = graph.flops + 1e-6 * (graph.flops.sum() + 1.0) / len(graph)
    cost = crossings(graph)
    scale = cost[cost > 0].mean() if (cost > 0).any() else 1.0
    blocks = graph.layer.astype(np.int64)
    starts = np.flatnonzero(np.diff(blocks, prepend=-1) > 0)            # a repeated block is not cut where there are enough of them
    if len(starts) >= count > 1 and (np.diff(blocks[blocks >= 0]) >= 0).all():
        inner = np.ones(len(cost), bool)
        inner[[0, *starts.tolist(), len(graph)]] = False
        cost = np.where(inner, np.inf, cost)
    most = work.sum() / count * (1 + _SLACK)
    ends = _cut(work, cost / scale, count, most)
    while not len(ends):                                                # blocks of unequal work
        most *= 1.5
        ends = _cut(work, cost / scale, count, most)
    return np.searchsorted(ends, np.arange(len(graph)), side="right").astype(np.int64)


def default_layers(graph: Graph, most: int = 16) -> int:
    """How many layers a program is cut into unless told: its repeated blocks, or the largest divisor of their number up to `most`; else `most`, or as
    many as it has contractions."""
    blocks = int(graph.layer.max(initial=-1)) + 1
    if blocks > 1:
        return max(d for d in range(1, most + 1) if blocks % d == 0)
    return max(1, min(most, int((graph.flops > 0).sum())))


__all__ = ["crossings", "default_layers", "layers"]
