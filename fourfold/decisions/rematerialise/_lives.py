"""When each value instance of a sequence is alive, and how many bytes are alive at each step: compiled, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.rematerialise.instance import CoreGraph, RematerialiseInstance
from fourfold.graph import INTERMEDIATE

INVALID = 1 << 62                                                       # peak of a sequence that reads what was never made


class Lives(NamedTuple):
    """K instances in the order in which they are made: step i4[K], value i4[K] (of the graph), lower, upper i8[K] (alive in [lower, upper) steps),
    size i8[K]; `wrong`: the first step that reads what was not made, -1 none."""

    step: NDArray[np.int32]
    value: NDArray[np.int32]
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    size: NDArray[np.int64]
    wrong: int


def lives(instance: RematerialiseInstance, sequence: NDArray[np.int32]) -> Lives:
    """The instances of a sequence of graph nodes."""
    g = instance.graph
    computed = sequence[sequence < len(g)]
    count = int(instance.instances_of[computed].sum()) + len(sequence) - len(computed) if len(sequence) else 0
    step, value = np.zeros(count, np.int32), np.zeros(count, np.int32)
    last = np.zeros(count, np.int64)
    memory = np.where(g.role == INTERMEDIATE, -1, -2).astype(np.int64)
    wrong = _simulate(sequence.astype(np.int32), g.in_ptr, g.in_val, g.out_ptr, g.out_val, instance.own, instance.source, g.outputs, memory, step,
                      value, last)
    return Lives(step, value, step.astype(np.int64), last + 1, instance.size[value], int(wrong))


def stays(instance: RematerialiseInstance, sequence: NDArray[np.int32], away: NDArray[np.int32]) -> Lives:
    """The copies of `away` in the second memory: each from the step that first makes its value to its last fetch."""
    first, last = np.full(len(away), -1, np.int64), np.full(len(away), -1, np.int64)
    nodes, maker = len(instance.graph), instance.graph.producer[away]
    for k, (v, n) in enumerate(zip(away.tolist(), maker.tolist(), strict=True)):
        runs, fetches = np.flatnonzero(sequence == n), np.flatnonzero(sequence == nodes + v)
        first[k], last[k] = runs[0] if len(runs) else -1, fetches[-1] if len(fetches) else -1
    return Lives(first.astype(np.int32), away, first, np.maximum(last, first) + 1, instance.size[away], -1)


@njit(cache=True)
def _simulate(sequence, in_ptr, in_val, out_ptr, out_val, own, source, outputs, memory, step, value, last):  # type: ignore[no-untyped-def]
    """`memory` i8[V]: instance that a value lies in, -1 not made, -2 outside. Fills step, value, last; the first wrong step or -1."""
    made, wrong, nodes = 0, -1, len(in_ptr) - 1
    for s in range(len(sequence)):
        n = sequence[s]
        if n >= nodes:                                                  # fetched from the second memory
            v = n - nodes
            if memory[v] == -1 and wrong < 0:
                wrong = s
            step[made], value[made], last[made] = s, v, s
            memory[v] = made
            made += 1
            continue
        for e in range(in_ptr[n], in_ptr[n + 1]):
            where = memory[in_val[e]]
            if where >= 0:
                last[where] = s
            elif where == -1 and wrong < 0:
                wrong = s
        for e in range(out_ptr[n], out_ptr[n + 1]):
            v = out_val[e]
            if own[v]:
                step[made], value[made], last[made] = s, v, s
                memory[v] = made
                made += 1
        for e in range(out_ptr[n], out_ptr[n + 1]):
            v = out_val[e]
            if not own[v]:
                memory[v] = memory[source[v]]
                if memory[v] >= 0:
                    last[memory[v]] = s
    for v in outputs:
        if memory[v] >= 0:
            last[memory[v]] = len(sequence) - 1
        elif memory[v] == -1 and wrong < 0:
            wrong = len(sequence)
    return wrong


@njit(cache=True)
def profile(core, sequence, length, alive, count, level):  # type: ignore[no-untyped-def]
    """(peak bytes, its step, price) of `length` steps of core nodes; what is computed again and not read is dropped from `sequence`, whose new length
    is the fourth. Fills level i8[length]: bytes alive while each step runs.

    alive b1[R] and count i4[M] are scratch. The peak is INVALID where a step reads or fetches what was not made before, a node never runs, or the
    copies take more than the second memory has.
    """
    nodes = core.computing
    count[:] = 0
    for s in range(length):
        count[sequence[s]] += 1
    for n in range(nodes):
        if count[n] == 0 or (core.once[n] and count[n] > 1):
            return INVALID, 0, np.inf, length
    now = 0
    for v in range(len(alive)):
        alive[v] = core.pinned[v]
        if alive[v]:
            now += core.size[v]
    peak, at, price, free = 0, 0, 0.0, length                           # kept steps move to the end of the array
    for s in range(length - 1, -1, -1):
        n = sequence[s]
        born = 0
        read = False
        for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
            if alive[core.out_val[e]]:
                read = True
            else:
                born += core.size[core.out_val[e]]
        if not read and (count[n] > 1 or n >= nodes):
            count[n] -= 1
            continue
        for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
            v = core.in_val[e]
            if not alive[v]:
                alive[v] = True
                now += core.size[v]
        free -= 1
        sequence[free] = n
        level[free] = now + born + core.workspace[n]
        if level[free] > peak:
            peak, at = level[free], free
        price += core.price[n]
        for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
            v = core.out_val[e]
            if alive[v]:
                alive[v] = False
                now -= core.size[v]
    if free:
        for s in range(free, length):
            sequence[s - free] = sequence[s]
            level[s - free] = level[s]
    for v in range(len(alive)):
        if alive[v]:
            return INVALID, 0, np.inf, length - free
    if nodes < len(core.once):
        stores, fits = _carried(core, sequence, length - free, alive, count)
        if not fits:
            return INVALID, 0, np.inf, length - free
        price += stores
    return peak, at - free, price, length - free


@njit(cache=True)
def _carried(core, sequence, length, made, count):  # type: ignore[no-untyped-def]
    """(price of the first copies, whether what is fetched was made before and the second memory has room for all copies at any time). `made` b1[R]
    all False, `count`: how often each node runs; both change. A copy is there from the value's first making to its last fetch."""
    price, now, most = 0.0, 0, 0
    for s in range(length):
        n = sequence[s]
        if n < core.computing:
            for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
                v = core.out_val[e]
                if not made[v]:
                    made[v] = True
                    if core.fetch[v] >= 0 and count[core.fetch[v]] > 0:
                        price += core.store[v]
                        now += core.size[v]
                        most = max(most, now)
            continue
        v = core.out_val[core.out_ptr[n]]
        if not made[v]:
            return 0.0, False
        count[n] -= 1
        if count[n] == 0:
            now -= core.size[v]
    return price, most <= core.far


def measure(core: CoreGraph, sequence: NDArray[np.int32]) -> tuple[int, float, NDArray[np.int32], NDArray[np.int64]]:
    """(peak bytes, price, the sequence without useless steps, bytes alive at each of its steps). Peak INVALID where it reads what was not made."""
    own = np.array(sequence, np.int32)
    level = np.zeros(len(own), np.int64)
    peak, _, price, length = profile(core, own, len(own), np.zeros(len(core.size), np.bool_), np.zeros(len(core.node), np.int32), level)
    return int(peak), float(price), own[:length].copy(), level[:length].copy()


def own_order(core: CoreGraph) -> NDArray[np.int32]:
    """Every node once, in the graph's order."""
    return np.arange(core.computing, dtype=np.int32)
