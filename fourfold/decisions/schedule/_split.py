"""Contiguous splits: blocks (layers) in order, cut so that the slowest device is as fast as can be and each holds its part."""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.schedule._parts import PartitionTasks


def blocks(work: PartitionTasks, most: int = 4096) -> np.ndarray:
    """i8[U] the block of each unit: its layer, or that of what comes before it; blocks are numbered by their first node. Few or no layers: equal
    pieces
    of the topological order."""
    g, units = work.problem.graph, len(work.unit_able)
    start = np.full(units, len(g))
    np.minimum.at(start, work.unit, work.first)
    layer = g.layer[start].astype(np.int64)
    if len(np.unique(layer[layer >= 0])) < len(work.problem.system):
        order = np.argsort(start, kind="stable")
        label = np.empty(units, np.int64)
        label[order] = np.arange(units) * min(most, units) // max(1, units)
        return label
    forward = g.layer.astype(np.int64).copy()
    ptr, val, producer = g.in_ptr, g.in_val, g.producer
    for n in np.flatnonzero(forward < 0).tolist():                     # what belongs to no layer rides with what it reads
        before = producer[val[ptr[n]:ptr[n + 1]]]
        forward[n] = max((int(forward[p]) for p in before if p >= 0), default=-1)
    layer = forward[start]
    names, inverse = np.unique(layer, return_inverse=True)
    first = np.full(len(names), len(g))
    np.minimum.at(first, inverse, start)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(names))
    return rank[inverse]


@njit(cache=True)
def _match(ptr, other, weight, size, most):  # type: ignore[no-untyped-def]
    """i8[U] what each node is merged with (itself: nothing): pairs joined by the most bytes for their size, none above `most`."""
    count = len(ptr) - 1
    mate = np.full(count, -1)
    for k in range(count):
        u = k
        if mate[u] >= 0:
            continue
        best, chosen = 0.0, u
        for e in range(ptr[u], ptr[u + 1]):
            w = other[e]
            if w != u and mate[w] < 0 and size[u] + size[w] <= most:
                value = weight[e] / (size[u] * size[w]) ** 0.5
                if value > best:
                    best, chosen = value, w
        mate[u], mate[chosen] = chosen, u
    return mate


def bunches(work: PartitionTasks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units in bunches that may move together, at several levels: (of i8[L, U] the bunch of each unit, ptr i8[C+1], unit i8[·]).

    Layers; then heavy-edge matching (Karypis and Kumar 1998), again and again, each level half as many, down to twice the devices.
    """
    units, devices = len(work.unit_able), len(work.problem.system)
    levels = [blocks(work)]
    src, dst, value = work.tasks.edges()
    a, b, moved = work.unit[src], work.unit[dst], work.tasks.size[value].astype(np.float64)
    size = np.bincount(work.unit, work.dag.mean, units)
    size = np.maximum(size, 1e-6 * max(1e-30, float(size.mean())))
    label, most = np.arange(units), float(size.sum()) / devices
    for _ in range(24):
        if len(size) <= 2 * devices:
            break
        low, high = np.minimum(a, b), np.maximum(a, b)
        pairs, inverse = np.unique((low * len(size) + high)[low != high], return_inverse=True)
        weight = np.bincount(inverse, moved[low != high], len(pairs))
        ends, other = np.concatenate([pairs // len(size), pairs % len(size)]), np.concatenate([pairs % len(size), pairs // len(size)])
        order = np.argsort(ends, kind="stable")
        ptr = np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=len(size)))])
        mate = _match(ptr, other[order], np.tile(weight, 2)[order], size, most)
        names, merged = np.unique(np.minimum(np.arange(len(size)), mate), return_inverse=True)
        if len(names) > 0.95 * len(size):
            break
        size = np.bincount(merged, size, len(names))
        a, b, label = merged[a], merged[b], merged[label]
        levels.append(label)
    counts = [int(level.max()) + 1 for level in levels]
    shift = np.concatenate([[0], np.cumsum(counts)])
    of = np.array([level + more for level, more in zip(levels, shift.tolist(), strict=False)], np.int64)
    ptr = np.concatenate([[0], np.cumsum(np.bincount(of.ravel(), minlength=int(shift[-1])))]).astype(np.int64)
    return of, ptr, np.argsort(of.ravel(), kind="stable") % units


def cut(seconds: np.ndarray, held: np.ndarray, room: np.ndarray) -> np.ndarray | None:
    """i8[B] a device for each block: contiguous in the order of devices, the longest device time the least there is (bisection over greedy filling).
    `seconds` f8[B, D], `held` f8[B], `room` f8[D]; None where the blocks do not fit."""
    count, devices = seconds.shape

    def fill(limit: float) -> np.ndarray | None:
        place, d, time, memory = np.empty(count, np.int64), 0, 0.0, 0.0
        for b in range(count):
            while time + seconds[b, d] > limit or memory + held[b] > room[d]:
                d, time, memory = d + 1, 0.0, 0.0
                if d == devices:
                    return None
            place[b] = d
            time, memory = time + seconds[b, d], memory + held[b]
        return place

    finite = np.where(np.isfinite(seconds), seconds, 0.0)
    low, high = 0.0, float(finite.sum(0).max()) * (1 + 1e-9) + 1e-30  # sums in another order
    best = fill(high)
    for _ in range(30):
        if best is None:
            return None
        middle = (low + high) / 2
        found = fill(middle)
        best, low, high = (found, low, middle) if found is not None else (best, middle, high)
    return best


def stacks(work: PartitionTasks, by: np.ndarray) -> np.ndarray:
    """i8[B] the stack (encoder, decoder, …) of each block: the first part of its first op's module."""
    g = work.problem.graph
    start = np.full(len(work.unit_able), len(g))
    np.minimum.at(start, work.unit, work.first)
    first = np.full(int(by.max()) + 1, len(g))
    np.minimum.at(first, by, start)
    return np.unique([g.modules[n].split(".")[0] if n < len(g) else "" for n in first.tolist()], return_inverse=True)[1]


def split_stacks(work: PartitionTasks, devices: list[int], factor: float, by: np.ndarray) -> np.ndarray | None:
    """i8[T] place of each task when every stack by itself is cut over `devices`: for stacks that run one after the other, as encoder and decoder do.
    A stack of fewer blocks than devices fills up what is least busy. None where it does not fit."""
    count, stack = int(by.max()) + 1, stacks(work, by)
    block = by[work.unit]
    seconds = np.zeros((count, len(devices)))
    np.add.at(seconds, block, work.plain.seconds[:, devices])
    held, room = np.bincount(block, work.held * factor, count), work.dag.room[devices].copy()
    found, load = np.full(count, -1), np.zeros(len(devices))
    for one in sorted(range(int(stack.max()) + 1), key=lambda one: -int((stack == one).sum())):
        here = np.flatnonzero(stack == one)
        if len(here) >= len(devices):
            part = cut(seconds[here], held[here], room)
            if part is None:
                return None
            found[here] = part
            np.subtract.at(room, part, held[here])
            np.add.at(load, part, seconds[here, part])
            continue
        for b in here.tolist():
            end = np.where(held[b] <= room, load + seconds[b], np.inf)
            d = int(end.argmin())
            if not np.isfinite(end[d]):
                return None
            found[b], load[d], room[d] = d, end[d], room[d] - held[b]
    return _spread(work, devices, found, by)


def split(work: PartitionTasks, devices: list[int], factor: float, by: np.ndarray) -> np.ndarray | None:
    """i8[T] place of each task when `by` (block of each unit) is cut over `devices` in that order; None where it does not fit."""
    count = int(by.max()) + 1
    block = by[work.unit]
    seconds = np.zeros((count, len(devices)))
    np.add.at(seconds, block, work.plain.seconds[:, devices])
    held = np.bincount(block, work.held * factor, count)
    found = cut(seconds, held, work.dag.room[devices])
    return None if found is None else _spread(work, devices, found, by)


def _spread(work: PartitionTasks, devices: list[int], found: np.ndarray, by: np.ndarray) -> np.ndarray:
    """i8[T] from the device of each block; units that it cannot run go to the first that can."""
    place = np.array(devices)[found]
    units = place[by]
    units = np.where(work.unit_able[np.arange(len(units)), units], units, work.unit_able.argmax(1))
    return units[work.unit]
