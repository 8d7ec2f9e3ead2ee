"""Device-placement workloads in the JSON format of the suite of Tarnawski et al. (2020), https://github.com/msr-fiddle/dnn-partitioning (MIT).

| key | meaning |
|---|---|
| maxFPGAs, maxCPUs, maxSizePerFPGA | accelerators, CPU cores, bytes that one accelerator holds (cores have no limit) |
| nodes[].id, cpuLatency, fpgaLatency, size | unique whole number; time on a core and on an accelerator; bytes on an accelerator |
| nodes[].supportedOnFpga, isBackwardNode | true or 1: it may run on an accelerator (default true), it is of the backward pass (default false) |
| nodes[].colorClass, name | nodes of one class share a device (default: a class of its own); for messages |
| edges[].sourceId, destId, cost | data dependence; time to move the *source's output* between an accelerator and the host, alike on its out-edges |

The files name no unit of time; the edges' bytes over cost are 2 GiB/s if it is a millisecond, except in the suite's `throughput-inputs/LayerGraphs`,
whose transfers are a thousand times cheaper. Figures published for the suite use the files as they are, and so do we.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.errors import InputError
from fourfold.text import shown

_TOP = ("maxFPGAs", "maxCPUs", "maxSizePerFPGA", "nodes", "edges")
_NODE = ("id", "cpuLatency", "fpgaLatency", "size")
_EDGE = ("sourceId", "destId", "cost")


@dataclass(frozen=True)
class PipelineWorkload:
    """N nodes and E edges between their indices (not ids). Times in the file's unit, sizes in bytes.

    ids i8[N], names [N]; core, accelerator f8[N]: time on either; size f8[N]; supported, backward bool[N]; color i4[N]: 0, 1, …, equal = one device;
    source, target i4[E]: each pair once; cost f8[N]: time to move a node's output over the border of an accelerator; accelerators, cores, limit.
    `notes` say what was read leniently. Raises InputError where the arrays do not fit or the edges have a cycle.
    """

    name: str
    accelerators: int
    cores: int
    limit: float
    ids: np.ndarray
    core: np.ndarray
    accelerator: np.ndarray
    size: np.ndarray
    source: np.ndarray
    target: np.ndarray
    cost: np.ndarray
    supported: np.ndarray
    backward: np.ndarray
    color: np.ndarray
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    order: np.ndarray = field(init=False, repr=False)                   # a topological order, i4[N]

    def __post_init__(self) -> None:
        count = len(self.ids)
        for name in ("core", "accelerator", "size", "cost", "supported", "backward", "color"):
            if len(getattr(self, name)) != count:
                raise InputError(f"{self.name}: {count} nodes, but {len(getattr(self, name))} values of {name!r}.", "Give one a node.")
        order = _order(count, self.source, self.target)
        if len(order) < count:
            raise InputError(f"{self.name}: the edges have a cycle: {' → '.join(map(self.called, _cycle(count, self.source, self.target, order)))}.",
                             "A workload is acyclic; unroll loops.")
        object.__setattr__(self, "order", order)

    def __len__(self) -> int:
        return len(self.ids)

    def called(self, node: int) -> str:
        """Node by index, as a reader knows it: "12 (encoder.0.lstm)"."""
        name = self.names[node] if self.names else ""
        return f"{self.ids[node]} ({name})" if name else str(self.ids[node])


def read_placement(path: str | Path) -> PipelineWorkload:
    """A workload from a file of the suite, unchanged.

    Raises InputError: not JSON, missing keys, wrong types, ids given twice or unknown, edges from a node to itself, negative or infinite figures, a
    cycle (naming its nodes), a node or class that no device can take (by how many bytes).
    """
    path = Path(path)
    data = _json(path)
    for key in _TOP:
        if key not in data:
            raise InputError(f"{path.name} has no {key!r}; it holds {', '.join(map(repr, data)) or 'nothing'}.",
                             "A placement workload has maxFPGAs, maxCPUs, maxSizePerFPGA, nodes and edges.")
    nodes, edges = data["nodes"], data["edges"]
    if not isinstance(nodes, list) or not isinstance(edges, list) or not nodes:
        raise InputError(f"{path.name}: 'nodes' and 'edges' are lists, and at least one node is needed.", "Give nodes as [{\"id\": 0, …}, …].")
    accelerators, cores = (_whole(path, key, data[key]) for key in ("maxFPGAs", "maxCPUs"))
    limit = _number(f"{path.name}: maxSizePerFPGA", data["maxSizePerFPGA"])
    rows = [_node(path, i, node) for i, node in enumerate(nodes)]
    ids = np.array([row["id"] for row in rows], np.int64)
    index: dict[int, int] = {}
    for i, key in enumerate(ids.tolist()):
        if key in index:
            raise InputError(f"{path.name}: nodes {index[key]} and {i} (counted from 0) share the id {key}.", "Give each node an id of its own.")
        index[key] = i
    source, target, cost, notes = _edges(path, edges, index)
    colors: dict[object, int] = {}
    color = np.array([colors.setdefault(row["color"], len(colors)) for row in rows], np.int32)
    core, accelerator, size = (np.array([row[key] for row in rows], float) for key in _NODE[1:])
    supported, backward = (np.array([row[key] for row in rows], bool) for key in ("supported", "backward"))
    workload = PipelineWorkload(path.stem, accelerators, cores, limit, ids, core, accelerator, size, source, target, cost, supported, backward, color,
                        tuple(row["name"] for row in rows), notes)
    _fits(path, workload)
    return workload


def read_split(path: str | Path, workload: PipelineWorkload) -> np.ndarray:
    """The machine of each node, i2[N], from a split of the suite: {"fpgas": [{"nodes": [id, …]}, …], "cpus": […]}; accelerators are 0 … k-1, cores
    from k on. Loads and maxLoad in the file are ignored (the suite's hold placeholders). Raises InputError for unknown, repeated or forgotten
    nodes.
    """
    path = Path(path)
    data = _json(path)
    index = {key: i for i, key in enumerate(workload.ids.tolist())}
    machine = np.full(len(workload), -1, np.int16)
    for key, first, count in (("fpgas", 0, workload.accelerators), ("cpus", workload.accelerators, workload.cores)):
        parts = data.get(key)
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) and isinstance(part.get("nodes"), list) for part in parts):
            raise InputError(f"{path.name}: {key!r} is a list of objects with 'nodes'.", "Give {\"fpgas\": [{\"nodes\": [ids]}], \"cpus\": […]}.")
        if len(parts) > count:
            raise InputError(f"{path.name} uses {len(parts)} {key}, {workload.name} has {count}.", "Use the split of this workload.")
        for m, part in enumerate(parts):
            for node in part["nodes"]:
                if node not in index:
                    raise InputError(f"{path.name}: {key}[{m}] holds node {shown(node)}, which {workload.name} has not.",
                                     "Use the split of this workload.")
                if machine[index[node]] >= 0:
                    raise InputError(f"{path.name}: node {node} is on two machines.", "Name each node once.")
                machine[index[node]] = first + m
    if (lost := np.flatnonzero(machine < 0)).size:
        raise InputError(f"{path.name} forgets {lost.size} nodes; first: {workload.called(int(lost[0]))}.", "Name each node once.")
    return machine


def _json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from None
    except ValueError as error:
        raise InputError(f"{path.name} is not JSON ({type(error).__name__}).", "Give a file of the placement suite.") from None
    if not isinstance(data, dict):
        raise InputError(f"{path.name} holds a JSON {type(data).__name__}, not an object.", "Give a file of the placement suite.")
    return data


def _node(path: Path, i: int, node: object) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise InputError(f"{path.name}: nodes[{i}] is not an object.", "Give {\"id\": …, \"cpuLatency\": …, \"fpgaLatency\": …, \"size\": …}.")
    for key in _NODE:
        if key not in node:
            raise InputError(f"{path.name}: nodes[{i}] (id {node.get('id', 'missing')}) has no {key!r}.", f"Every node needs {', '.join(_NODE)}.")
    where = f"{path.name}: node {node['id']!r}:"
    if isinstance(node["id"], bool) or not isinstance(node["id"], int):
        raise InputError(f"{path.name}: nodes[{i}] has the id {shown(node['id'])}.", "An id is a whole number.")
    color = node.get("colorClass")
    row = {key: _number(f"{where} {key}", node[key]) for key in _NODE[1:]}
    return row | {"id": node["id"], "color": ("own", i) if color is None else ("class", color), "name": str(node.get("name") or ""),
                  "supported": _flag(where, "supportedOnFpga", node.get("supportedOnFpga", True)),
                  "backward": _flag(where, "isBackwardNode", node.get("isBackwardNode", False))}


def _edges(path: Path, edges: list[object], index: dict[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """(source, target, cost of each node's output, notes); edges given twice are one."""
    pairs: dict[tuple[int, int], None] = {}
    cost, uneven = np.full(len(index), np.nan), []
    for e, edge in enumerate(edges):
        if not isinstance(edge, Mapping) or any(key not in edge for key in _EDGE):
            raise InputError(f"{path.name}: edges[{e}] needs {', '.join(_EDGE)}.", "Give all three.")
        for key in _EDGE[:2]:
            if isinstance(edge[key], list | dict) or edge[key] not in index:
                raise InputError(f"{path.name}: edges[{e}] has the {key} {shown(edge[key])}, no node's id.", "Name nodes that are in 'nodes'.")
        u, v = index[edge["sourceId"]], index[edge["destId"]]
        if u == v:
            raise InputError(f"{path.name}: edges[{e}] goes from node {edge['sourceId']} to itself.", "A workload is acyclic; unroll loops.")
        price = _number(f"{path.name}: edges[{e}] cost", edge["cost"])
        if not np.isnan(cost[u]) and not math.isclose(cost[u], price, rel_tol=1e-9, abs_tol=1e-12):
            uneven.append(edge["sourceId"])
        cost[u] = np.fmax(cost[u], price)
        pairs[u, v] = None
    ends = np.array(list(pairs), np.int32).reshape(-1, 2)
    notes = (f"{len(set(uneven))} nodes have out-edges of unlike cost (first: {uneven[0]}); the greatest is used.",) if uneven else ()
    return ends[:, 0], ends[:, 1], np.nan_to_num(cost), notes


def _fits(path: Path, workload: PipelineWorkload) -> None:
    size = np.bincount(workload.color, workload.size)
    able = np.bincount(workload.color, ~workload.supported) == 0
    if workload.accelerators + workload.cores < 1:
        raise InputError(f"{path.name} has neither accelerators nor cores.", "Give maxFPGAs or maxCPUs of at least 1.")
    if workload.cores:
        return
    for c in np.flatnonzero(~able | (size > workload.limit)):
        node = workload.called(int(np.flatnonzero(workload.color == c)[0]))
        if not able[c]:
            raise InputError(f"{path.name}: node {node} or its class cannot run on an accelerator, and there is no core.",
                             "Give maxCPUs of at least 1.")
        raise InputError(f"{path.name}: the class of node {node} needs {size[c] - workload.limit:,.0f} bytes more than the {workload.limit:,.0f} of "
                         "an accelerator, and there is no core.", "Raise maxSizePerFPGA or maxCPUs.")


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InputError(f"{what} is {shown(value)}.", "Give a finite number, zero or more.")
    return float(value)


def _whole(path: Path, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 <= value < 10_000:
        raise InputError(f"{path.name}: {key} is {shown(value)}.", "Give a whole number from 0 to 9999.")
    return int(value)


def _flag(where: str, key: str, value: object) -> bool:
    if value not in (0, 1):
        raise InputError(f"{where} {key} is {shown(value)}.", "Give true or false, or 1 or 0.")
    return bool(value)


def _order(count: int, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """A topological order; shorter than `count` where there is a cycle (Kahn 1962)."""
    left = np.bincount(target, minlength=count)
    after: list[list[int]] = [[] for _ in range(count)]
    for u, v in zip(source.tolist(), target.tolist(), strict=True):
        after[u].append(v)
    order = [v for v in range(count) if left[v] == 0]
    for u in order:
        for v in after[u]:
            left[v] -= 1
            if left[v] == 0:
                order.append(v)
    return np.array(order, np.int32)


def _cycle(count: int, source: np.ndarray, target: np.ndarray, order: np.ndarray) -> list[int]:
    """Nodes of one cycle, the first again at the end."""
    rest = np.ones(count, bool)
    rest[order] = False
    before = {int(v): int(u) for u, v in zip(source, target, strict=True) if rest[u] and rest[v]}
    seen: list[int] = [next(iter(before))]
    while before[seen[-1]] not in seen:
        seen.append(before[seen[-1]])
    loop = seen[seen.index(before[seen[-1]]):][::-1]
    return [loop[-1], *loop] if len(loop) < 12 else [*loop[:11], loop[0]]
