"""A network split over devices, for its readers: what each device holds and takes, and in sentences what decides the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from fourfold.decisions.pipeline.problem import Latency, MaxLoad, Split, average, heaviest
from fourfold.report import format


class DeviceRow(TypedDict):
    """One device of a pipeline; times in ms a sample, `share` of the fullest device's load, `limit_bytes` None where there is none."""

    name: str
    kind: str
    nodes: int
    compute_ms: float
    transfers_ms: float
    load_ms: float
    share: float
    bytes: float
    limit_bytes: float | None


def devices(question: MaxLoad | Latency, split: Split, names: Sequence[str]) -> list[DeviceRow]:
    """A row a device: name, nodes, compute (ms), transfers (ms), load (their sum), share of the fullest's, bytes, limit (None: none), seconds of all.

    For latency all cores are one pool, "cores", where nodes run side by side: its compute is the sum of theirs.
    """
    w, k = question.workload, question.workload.accelerators
    pool = isinstance(question, Latency) and w.cores > 0
    called = [*names[:k], "cores"] if pool else list(names)
    count = len(called)
    held = split.machine < k
    compute = np.bincount(split.machine, np.where(held, w.accelerator, w.core), count)
    moved = np.array([_border(question, split, m) if m < k else 0.0 for m in range(count)])
    load = compute + moved
    top = float(load.max(initial=0.0))
    size, nodes = np.bincount(split.machine, w.size, count), np.bincount(split.machine, minlength=count)
    return [{"name": name, "kind": "accelerator" if m < k else "core", "nodes": int(nodes[m]), "compute_ms": float(compute[m]),
             "transfers_ms": float(moved[m]), "load_ms": float(load[m]), "share": float(load[m] / top) if top else 0.0, "bytes": float(size[m]),
             "limit_bytes": w.limit if m < k else None} for m, name in enumerate(called)]


def _border(question: MaxLoad | Latency, split: Split, m: int) -> float:
    """ms to move outputs over the border of accelerator m, each once a part."""
    w, total = question.workload, 0.0
    for part in np.unique(split.part[split.machine == m]):
        inside = (split.machine == m) & (split.part == part)
        crossing = inside[w.source] != inside[w.target]
        total += float(w.cost[np.unique(w.source[crossing])].sum())
    return total


def sentences(question: MaxLoad | Latency, split: Split, rows: Sequence[DeviceRow]) -> list[str]:
    """What decides the cost, a sentence each."""
    w = question.workload
    used = [row for row in rows if row["nodes"]]
    full = max(used, key=lambda row: row["load_ms"])
    idle = [row["name"] for row in rows if not row["nodes"]]
    spent = sum(row["transfers_ms"] for row in rows)
    said = [f"{len(used)} of {len(rows)} devices hold the {len(w):,} nodes" + (f"; nothing runs on {_listed(idle)}." if idle else ".")]
    if isinstance(question, MaxLoad):
        said.append(f"The fullest is {full['name']}: {full['nodes']:,} nodes, {_ms(full['compute_ms'])} of compute and "
                    f"{_ms(full['transfers_ms'])} of transfers a sample; the pipeline gives a sample every {_ms(full['load_ms'])}.")
        shared = average(w)
        what = ("all work shared out evenly, transfers free" if shared >= heaviest(w) else "the heaviest class of nodes on its better device")
        said.append(f"What bounds it before any search is {what}: {_ms(max(shared, heaviest(w)))}.")
        said.append("No path leaves an accelerator and returns to it." if question.contiguous else "A path may leave an accelerator and return.")
    else:
        said.append(f"One sample is done after {_ms(question.cost(split))}; {full['name']} works longest of it, {_ms(full['load_ms'])}.")
    crossing = np.unique(w.source[split.machine[w.source] != split.machine[w.target]])
    said.append(f"{len(crossing):,} outputs cross between devices, {_ms(spent)} of transfers counted at both ends." if len(crossing)
                else "No output crosses between devices.")
    tight = [row for row in used if row["limit_bytes"] and row["bytes"] > 0.9 * row["limit_bytes"]]
    said += [f"{row['name']} holds {format.size(row['bytes'])} of its {format.size(row['limit_bytes'])}: memory is near its limit." for row in tight]
    return said


def _ms(value: float) -> str:
    return f"{value:.4g} ms"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
