"""What GO's network reads of a problem: numbers of each op, device and pair that know no names, no numbers of nodes and no units of time.

Times are measured against the problem's own mean op, bytes against its own transfers, memory against its own devices, so that one policy serves
graphs of 30 and of 80,000 nodes and systems of any speed. Nodes stand in a topological order that follows from structure (longest path from the
start, then depth, then what is left to do), so that renumbering a graph changes nothing. Devices that are alike are told apart by a slot, a number
within their class; permuting devices permutes slots with them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.cost.roofline import short
from fourfold.decisions.schedule.problem import OBJECTIVES, Schedule
from fourfold.graph import CONTRACTION, OPAQUE

KINDS = 128                                                            # buckets that names of ops are hashed into
WAVES = (1, 2, 4)                                                      # frequencies at which a node's place in the structure is told
SLOTS = (1, 2, 3, 4, 6, 8)                                             # frequencies at which a device's slot is told


class Feedback(NamedTuple):
    """What the last answer did, B answers at once: `place` i8[B, N] devices, `level` i8[B, N], `join` f4[B, N], `node` f4[B, N, 7],
    `pair` f4[B, N, D, 5], `device` f4[B, D, 3], `graph` f4[B, 3]."""

    place: np.ndarray
    level: np.ndarray
    join: np.ndarray
    node: np.ndarray
    pair: np.ndarray
    device: np.ndarray
    graph: np.ndarray


@njit(cache=True)
def _levels(seconds, in_ptr, in_val, producer, wire, wait):  # type: ignore[no-untyped-def]
    """(start, rest, depth): longest path before a node, from its start to the end, and in hops before it; transfers are not counted."""
    count = len(seconds)
    start, rest, depth = np.zeros(count), np.zeros(count), np.zeros(count, np.int64)
    for n in range(count):
        for e in range(in_ptr[n], in_ptr[n + 1]):
            p = producer[in_val[e]]
            if p >= 0:
                start[n] = max(start[n], start[p] + seconds[p])
                depth[n] = max(depth[n], depth[p] + 1)
    for n in range(count - 1, -1, -1):
        rest[n] += seconds[n]
        for e in range(in_ptr[n], in_ptr[n + 1]):
            p = producer[in_val[e]]
            if p >= 0:
                rest[p] = max(rest[p], rest[n])
    return start, rest, depth


@njit(cache=True)
def _deep(rank, ptr, child, waiting):  # type: ignore[no-untyped-def]
    """Position of each node in a topological order that follows one branch to its end before the next; children by `rank`."""
    count = len(rank)
    left, position, stack, high, now = waiting.copy(), np.zeros(count, np.int64), np.empty(count, np.int64), 0, 0
    for k in range(count - 1, -1, -1):
        if left[rank[k]] == 0:
            stack[high] = rank[k]
            high += 1
    while high:
        high -= 1
        n = stack[high]
        position[n] = now
        now += 1
        for e in range(ptr[n + 1] - 1, ptr[n] - 1, -1):                # children are sorted by rank: the first is popped first
            left[child[e]] -= 1
            if left[child[e]] == 0:
                stack[high] = child[e]
                high += 1
    return position


@njit(cache=True)
def _inherit(layer, in_ptr, in_val, producer):  # type: ignore[no-untyped-def]
    """A layer for every node: what belongs to none rides with what it reads."""
    found = layer.copy()
    for n in range(len(layer)):
        if found[n] < 0:
            for e in range(in_ptr[n], in_ptr[n + 1]):
                p = producer[in_val[e]]
                if p >= 0:
                    found[n] = max(found[n], found[p])
    return found


@njit(cache=True)
def _arrivals(start, finish, place, src, dst, cost, devices):  # type: ignore[no-untyped-def]
    """f8[N, D] when the inputs of each node would be on each device, were the rest as it is."""
    found = np.zeros((len(start), devices))
    for e in range(len(src)):
        p, n = src[e], dst[e]
        for d in range(devices):
            there = finish[p] + (0.0 if place[p] == d else cost[e])
            if there > found[n, d]:
                found[n, d] = there
    return found


def _bucket(kind: str) -> int:
    return zlib.crc32(short(kind).encode()) % KINDS


def _log(x: np.ndarray, scale: float = 3.0) -> np.ndarray:
    return np.clip(np.log(np.maximum(x, 1e-6)) / scale, -3.0, 3.0)


@dataclass(frozen=True, eq=False)
class GraphFeatures:
    """`order` i8[N]: nodes in the order in which the network reads them; all arrays [N, …] stand in that order, `src`, `dst` i8[E] (sorted by dst)
    and `candidate` (the producer whose group a node may join, -1 none) count in it.

    `kind` i8[N], `node` f4[N, F], `pair` f4[N, D, 3], `device` f4[D, P], `graph` f4[G]; `unit` i8[N] colocation classes, `mask` bool [U, D] where
    a unit may go; `cost` f8[E] s of a transfer along an edge; `scale` s that costs are measured against.
    """

    problem: Schedule
    order: np.ndarray
    kind: np.ndarray
    node: np.ndarray
    pair: np.ndarray
    device: np.ndarray
    graph: np.ndarray
    unit: np.ndarray
    mask: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    cost: np.ndarray
    candidate: np.ndarray
    alike: np.ndarray                                                  # i8[D] class of devices that nothing tells apart
    slot: np.ndarray                                                   # i8[D] number within the class
    mean: np.ndarray                                                   # f8[N] mean seconds
    scale: float

    def __len__(self) -> int:
        return len(self.order)

    @property
    def devices(self) -> int:
        return self.mask.shape[1]

    @cached_property
    def back(self) -> np.ndarray:
        """i8[N]: where in `order` each node of the graph stands."""
        back = np.empty(len(self.order), np.int64)
        back[self.order] = np.arange(len(self.order))
        return back

    @classmethod
    def of(cls, problem: Schedule) -> GraphFeatures:
        g, system = problem.graph, problem.system
        table, able = problem.seconds, problem.able
        count, devices = table.shape
        mean = np.where(able, table, 0.0).sum(1) / able.sum(1)
        total, typical = float(mean.sum()), float(mean.mean())
        wait, pace = _wires(system)
        start, rest, depth = _levels(mean, g.in_ptr, g.in_val, g.producer, 0.0, 0.0)
        longest = max(float((start + rest).max()), 1e-30)
        edges = g.edges()
        src, dst, moved = edges[0].astype(np.int64), edges[1].astype(np.int64), wait + g.size[edges[2]] * pace
        out, into = np.zeros(count), np.zeros(count)
        first = np.unique(edges[2], return_index=True)[1]               # a value is sent once, however many read it
        np.add.at(out, src[first], moved[first])
        np.add.at(into, dst, moved)
        fan_in, fan_out = np.bincount(dst, minlength=count), np.bincount(src, minlength=count)
        order = np.lexsort((np.arange(count), -out, -into, fan_out, -mean, -rest, depth, start))
        back = np.empty(count, np.int64)
        back[order] = np.arange(count)
        src, dst = back[src], back[dst]
        by = np.lexsort((src, dst))
        src, dst, moved = src[by], dst[by], moved[by]
        work = mean[order]
        child = np.lexsort((dst, src))
        deep = _deep(np.arange(count), np.concatenate([[0], np.cumsum(np.bincount(src, minlength=count))]), dst[child],
                     np.bincount(dst, minlength=count))
        along = np.empty(count)
        along[np.argsort(deep, kind="stable")] = np.cumsum(work[np.argsort(deep, kind="stable")]) / total
        layer = _inherit(g.layer.astype(np.int64), g.in_ptr, g.in_val, g.producer)[order]
        by_layer = np.bincount(layer + 1, work)
        within = (np.cumsum(by_layer) - by_layer / 2)[layer + 1] / total
        width = np.bincount((64 * start[order] / longest).astype(int).clip(0, 63), work, 64) * 64 / longest
        unit, classes, mask, held = _units(problem, order)
        room = np.array([device.memory for device in system.devices]) if problem.bounded else np.full(devices, np.inf)
        crowd = float(problem.resident.sum()) / max(1.0, float(np.where(np.isfinite(room), room, 1e30).sum()))
        t, r = start[order] / longest, rest[order] / longest
        returned = np.zeros(count, bool)
        returned[g.producer[g.outputs][g.producer[g.outputs] >= 0]] = True
        launch = np.array([device.launch for device in system.devices]).mean()
        waves = [wave(np.pi * k * x) for x in (t, along, within) for k in WAVES for wave in (np.cos, np.sin)]
        mass = np.bincount(unit, work)[unit]
        node = np.stack([
            _log(work / typical), np.log1p(100 * work / total), _log(out[order] / typical), _log(out[order] / np.maximum(work, 1e-30)),
            _log(into[order] / typical), t, r, t + r, along, within, (g.layer[order] >= 0).astype(float), np.log1p(fan_in[order]) / 2,
            np.log1p(fan_out[order]) / 2, np.minimum(1.0, launch / np.maximum(work, 1e-30)), _log(held[unit] / max(1.0, held.mean())),
            np.clip(held[unit] / max(1.0, room.min()), 0, 1), np.log1p(classes[unit]) / 3, (classes[unit] > 1).astype(float), _log(mass / typical),
            returned[order].astype(float), np.log1p(width[(64 * t).astype(int).clip(0, 63)]), *waves,
            *[(g.fusion[order] == f).astype(float) for f in range(6)], *[(g.phase[order] == f).astype(float) for f in range(3)],
        ], 1)
        least = np.where(able, table, np.inf).min(1)[order]
        slower = np.where(able[order], _log(np.where(able[order], table[order], 1.0) / np.maximum(least[:, None], 1e-30)), 3.0)
        pair = np.stack([slower, able[order].astype(float), np.clip(held[unit][:, None] / np.maximum(room, 1.0), 0, 1)], 2)
        device, alike, slot = _devices(problem, np.where(able, table, 0.0).sum(0), total, room)
        graph = np.array([
            min(0.75, np.log(count) / 10), devices / 8, min(5.0, np.log(total / longest)), _log(np.array([out.sum() / total]))[0],
            _log(np.array([into.sum() / total]))[0], float((g.phase == 1).any()), min(2.0, crowd), min(1.0, launch / typical),
            float(len(set(alike.tolist())) > 1), len(classes) / count, *[float(problem.objective == name) for name in OBJECTIVES]])
        names = np.array([_bucket(kind) for kind in g.kinds], np.int64)
        f4 = np.float32
        return cls(problem, order, names[g.kind[order]], node.astype(f4), pair.astype(f4), device.astype(f4), graph.astype(f4), unit, mask, src, dst,
                   moved, _candidates(problem, order, back), alike, slot, work, _scale(problem, mean))

    def feedback(self, plans: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]]) -> Feedback:
        """Of plans (place [N], level [N], join [N], start [N], finish [N], ready [N] s, cost / scale), all in `order`."""
        rows = [self._echo(*plan) for plan in plans]
        return Feedback(*(np.stack(part) for part in zip(*rows, strict=True)))

    def _echo(self, place: np.ndarray, level: np.ndarray, join: np.ndarray, start: np.ndarray, finish: np.ndarray, ready: np.ndarray,
              cost: float) -> tuple[np.ndarray, ...]:
        count, devices = len(self), self.devices
        end = max(float(finish.max()), 1e-30)
        on = np.zeros((count, devices))
        on[np.arange(count), place] = 1.0
        near = np.zeros((2, count, devices))
        np.add.at(near[0], (self.dst, place[self.src]), self.cost)
        np.add.at(near[1], (self.src, place[self.dst]), self.cost)
        near /= np.maximum(near.sum(2, keepdims=True), 1e-30)
        arrive = _arrivals(start, finish, place, self.src, self.dst, self.cost, devices)
        sooner = (start[:, None] - arrive) / end
        load = np.bincount(place, self.mean, devices)
        load = load / max(load.sum(), 1e-30) * devices
        away = place[self.src] != place[self.dst]
        cut = np.zeros(count)
        np.add.at(cut, self.dst[away], self.cost[away])
        held = np.zeros(count)
        np.add.at(held, self.src[away], self.cost[away])
        node = np.stack([start / end, finish / end, np.clip(10 * (start - ready) / end, 0, 3), _log(1e-3 + cut / max(float(self.mean.mean()), 1e-30)),
                         _log(1e-3 + held / max(float(self.mean.mean()), 1e-30)), load[place] - 1.0,
                         np.clip(8 * (start - arrive[np.arange(count), place]) / end, -3, 3)], 1)
        pair = np.stack([on, near[0], near[1], np.clip(8 * sooner, -3, 3), np.broadcast_to(load - 1.0, (count, devices))], 2)
        first = np.full(devices, end)
        np.minimum.at(first, place, start)
        last = np.zeros(devices)
        np.maximum.at(last, place, finish)
        device = np.stack([load - 1.0, first / end, last / end], 1)
        graph = np.array([1.0, np.log(max(cost, 1e-9)), float(len(np.unique(place))) / devices])
        f4 = np.float32
        return place, level, join.astype(f4), node.astype(f4), pair.astype(f4), device.astype(f4), graph.astype(f4)


NODE, PAIR, GRAPH = 21 + 6 * len(WAVES) + 9, 3, 10 + len(OBJECTIVES)
DEVICE = 8 + len(SLOTS)


def _wires(system) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Mean latency and seconds per byte between two different devices."""
    pairs = [system.route(a, b) for a in range(len(system)) for b in range(len(system)) if a != b]
    return (float(np.mean([way.latency for way in pairs])), float(np.mean([1.0 / way.bandwidth for way in pairs]))) if pairs else (0.0, 0.0)


def _units(problem: Schedule, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(unit i8[N], members f8[U], mask bool [U, D], held f8[U] resident bytes): what shares a device, numbered by its first node in `order`."""
    g = problem.graph
    tied = g.colocation[order].astype(np.int64)
    label = np.where(tied >= 0, tied, tied.max(initial=-1) + 1 + np.arange(len(order)))
    _, first, unit = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    unit = rank[unit]
    mask = np.ones((len(first), len(problem.system)), bool)
    np.logical_and.at(mask, unit, problem.able[order])
    node = np.repeat(np.arange(len(g)), np.diff(g.in_ptr))
    free = problem.free[g.in_val]
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    pairs = np.unique(unit[back[node[free]]] * len(g.producer) + g.alias[g.in_val[free]].astype(np.int64))
    held = np.bincount(pairs // len(g.producer), g.size[pairs % len(g.producer)].astype(float), len(first))
    if problem.bounded:
        fits = held[:, None] <= np.array([device.memory for device in problem.system.devices])
        some = np.asarray(np.any(mask & fits, axis=1))
        mask &= np.where(some[:, None], fits, True)
    if problem.place is not None:
        mask = np.zeros_like(mask)
        mask[unit, problem.place[order]] = True
    return unit, np.bincount(unit).astype(float), mask, held


def _devices(problem: Schedule, seconds: np.ndarray, total: float, room: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features f8[D, P], class i8[D], slot i8[D])."""
    system, count = problem.system, len(problem.system)
    need = max(1.0, float(problem.resident.sum()))
    ways = [[system.route(a, b) for b in range(count) if b != a] for a in range(count)]
    wait, pace = _wires(system)
    delay = np.array([np.mean([way.latency for way in row]) / max(wait, 1e-30) if row else 1.0 for row in ways])
    speed = np.array([np.mean([1 / way.bandwidth for way in row]) / max(pace, 1e-30) if row else 1.0 for row in ways])
    watts = np.array([[device.idle, device.busy] for device in system.devices])
    share = problem.able.mean(0)
    key = np.round(np.stack([seconds / total, -np.where(np.isfinite(room), room, 1e30) / need, delay, speed, *watts.T, -share], 1), 9)
    kinds, alike = np.unique(key, axis=0, return_inverse=True)
    alike = alike.reshape(-1)
    slot = np.array([int((alike[:d] == alike[d]).sum()) for d in range(count)])
    size = np.bincount(alike)[alike]
    angle = np.pi * slot / np.maximum(size - 1, 1)
    features = np.stack([_log(seconds / total), np.clip(np.where(np.isfinite(room), room, 1e30) * count / need, 0, 8) / 8, _log(delay), _log(speed),
                         share, size / 8, angle / np.pi, watts[:, 1] / max(1e-30, float(watts[:, 1].max())),
                         *[np.cos(k * angle) * (size > 1) for k in SLOTS]], 1)
    return features, alike, slot


def _candidates(problem: Schedule, order: np.ndarray, back: np.ndarray) -> np.ndarray:
    """i8[N] the producer that hands a node most bytes and whose kind can be fused with; -1 where the node itself cannot join, or fusion is fixed."""
    g = problem.graph
    found = np.full(len(order), -1, np.int64)
    if problem.group is not None:
        return found
    src, dst, value = g.edges()
    fits = (g.fusion[dst] != OPAQUE) & (g.fusion[dst] != CONTRACTION) & (g.fusion[src] != OPAQUE)
    src, dst, size = src[fits], dst[fits], g.size[value[fits]]
    by = np.lexsort((-src, size, dst))                                  # the last of a node's: most bytes, then the earliest
    found[back[dst[by]]] = back[src[by]]
    return found


def _scale(problem: Schedule, mean: np.ndarray) -> float:
    """What costs are measured against, in the problem's unit."""
    match problem.objective:
        case "energy":
            return float(mean.sum()) * max(1e-30, sum(device.busy for device in problem.system.devices))
        case "memory":
            return float(problem.resident.sum()) + float(problem.graph.size.max()) + 1.0
        case _:
            return float(mean.sum())
