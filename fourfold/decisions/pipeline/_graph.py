"""A captured graph on a machine as a workload of this folder's questions: every op with its time on an accelerator and on a core.

A node's time is the roofline's (`cost/roofline`), its bytes are the parameters that it reads and the outputs that it makes (all live at once, the
most that a full pipeline holds of one sample); the price of moving its outputs is that of the slowest route between two accelerators, paid by both
ends. Nodes of one `colocation` share a device; in a training graph so do all nodes that read one parameter, as a layer's backward pass must.
"""

from __future__ import annotations

import numpy as np

from fourfold.cost.roofline import seconds
from fourfold.errors import InputError
from fourfold.frontends.placement import PipelineWorkload
from fourfold.graph import FORWARD, PARAMETER, VIEW, Graph
from fourfold.machine import Machine

_MS = 1e3                                                               # the questions count in ms, as the public workloads do


def of_graph(graph: Graph, system: Machine) -> tuple[PipelineWorkload, tuple[int, ...]]:
    """(the workload in ms and bytes, device of the system for each machine: accelerators first, then cores).

    Where the system has devices of several kinds its processors ("cpu") are the cores and the others the accelerators; where all are of one kind,
    they are all accelerators. Raises InputError where the accelerators, or the cores, are not alike.
    """
    accelerators, cores = _sides(system)
    alone = seconds(graph, system)
    fast = alone[:, accelerators[0]]
    slow = alone[:, cores[0]] if cores else np.zeros(len(graph))
    if cores and not np.isfinite(slow).all():
        node = int(np.flatnonzero(~np.isfinite(slow))[0])
        raise InputError(f"{graph.names[node]} ({graph.kinds[graph.kind[node]]}) cannot run on {system.devices[cores[0]].name}.",
                         "Describe a processor that runs every op, or leave processors out of the machine file.")
    source, target, value = graph.edges()
    pairs = np.unique(np.stack([source, target], 1), axis=0) if len(source) else np.zeros((0, 2), np.int64)
    read = np.unique(np.stack([source, value], 1), axis=0) if len(source) else np.zeros((0, 2), np.int64)
    moved = np.bincount(read[:, 0], graph.size[read[:, 1]], len(graph))
    latency, rate = _route(system, accelerators)
    cost = np.where(moved > 0, latency + moved / rate, 0.0)
    weights, made = _weights(graph), np.bincount(graph.producer[graph.producer >= 0], graph.size[graph.producer >= 0], len(graph))
    held = np.where(graph.fusion == VIEW, 0.0, made) + weights
    limit = float(system.devices[accelerators[0]].memory)
    workload = PipelineWorkload(graph.name, len(accelerators), len(cores), limit, np.arange(len(graph)), slow * _MS,
                                np.where(np.isfinite(fast), fast, 0.0) * _MS, held, pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32),
                                cost * _MS, np.isfinite(fast), graph.phase != FORWARD, _classes(graph), graph.names)
    return workload, (*accelerators, *cores)


def _sides(system: Machine) -> tuple[list[int], list[int]]:
    """(accelerators, cores) by device number."""
    kinds = [device.kind for device in system.devices]
    mixed = len(set(kinds)) > 1
    sides = ([d for d, kind in enumerate(kinds) if not mixed or kind != "cpu"], [d for d, kind in enumerate(kinds) if mixed and kind == "cpu"])
    for side in sides:
        for d in side[1:]:
            first, other = system.devices[side[0]], system.devices[d]
            figures = ("peak", "bandwidth", "launch", "memory", "efficiency", "unsupported", "cold")
            if any(getattr(first, name) != getattr(other, name) for name in figures):
                raise InputError(f"{first.name} and {other.name} of {system.name!r} are not alike, as the question wants its devices to be.",
                                 "Ask for a schedule (--question schedule), or describe a machine of equal devices.")
    return sides


def _route(system: Machine, devices: list[int]) -> tuple[float, float]:
    """(s, B/s) of the slowest way between two of the devices."""
    ways = [system.route(a, b) for a in devices for b in devices if a != b]
    return (max(way.latency for way in ways), min(way.bandwidth for way in ways)) if ways else (0.0, np.inf)


def _readers(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """(node, parameter) of every parameter that a node reads itself or through views, each pair once; views read nothing."""
    node = np.repeat(np.arange(len(graph)), np.diff(graph.in_ptr))
    root = graph.alias[graph.in_val].astype(np.int64)
    mine = (graph.role[root] == PARAMETER) & (graph.fusion[node] != VIEW)
    pairs = np.unique(np.stack([node[mine], root[mine]], 1), axis=0) if mine.any() else np.zeros((0, 2), np.int64)
    return pairs[:, 0], pairs[:, 1]


def _weights(graph: Graph) -> np.ndarray:
    """f8[N] bytes of the parameters that each node reads. In a training graph readers of one parameter are together: its first reader holds it."""
    node, parameter = _readers(graph)
    if (graph.phase != FORWARD).any():
        _, first = np.unique(parameter, return_index=True)
        node, parameter = node[first], parameter[first]
    return np.bincount(node, graph.size[parameter], len(graph))


def _classes(graph: Graph) -> np.ndarray:
    """i4[N] equal number = one device."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    together = np.flatnonzero(graph.colocation >= 0)
    ends = [(together, len(graph) + graph.colocation[together].astype(np.int64))]
    top = len(graph) + int(graph.colocation.max(initial=-1)) + 1
    if (graph.phase != FORWARD).any():
        node, parameter = _readers(graph)
        ends.append((node, top + parameter))
    row, column = (np.concatenate([pair[side] for pair in ends]) for side in (0, 1))
    size = top + len(graph.producer)
    label = connected_components(coo_matrix((np.ones(len(row)), (row, column)), (size, size)), directed=False)[1][: len(graph)]
    return np.unique(label, return_inverse=True)[1].astype(np.int32)
