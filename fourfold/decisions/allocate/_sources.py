"""Buffers from where users have them: a CSV file, or a captured program whose nodes run in a given order."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fourfold.decisions.allocate.instance import FREE, Buffers
from fourfold.frontends.buffers import read_buffers
from fourfold.graph import ELEMENTWISE, INTERMEDIATE, Graph

GRAIN = 64                                                              # bytes: a cache line, what torch aligns to on a CPU


def of_file(path: str | Path, banks: Sequence[int] = (), names: Sequence[str] = (), alignment: int = 1) -> Buffers:
    """Buffers of a CSV file (`frontends/buffers.py`) in banks of so many bytes; none: without limit. `alignment` holds where the file has no such
    column.

    Raises InputError as the reader and `Buffers` do.
    """
    columns = read_buffers(path, names or [str(i) for i in range(len(banks))])
    if alignment > 1 and "alignment" not in columns:
        columns["alignment"] = np.full(len(columns["ids"]), alignment, np.int64)
    return Buffers(**columns, banks=np.array(banks, np.int64), bank_names=tuple(names))


def of_graph(graph: Graph, order: np.ndarray | None = None, *, banks: Sequence[int] = (), names: Sequence[str] = (), alignment: int = GRAIN,
             in_place: bool = False) -> Buffers:
    """Buffers of a program whose nodes run in `order` i[N] (node numbers; default the graph's): one for each value that has memory of its own.

    Time t is the t-th node that runs. A root lives from its producer to the last use of any of its views, outputs to the end; a value that nobody
    reads lives while it is made. Parameters, inputs and constants stand outside. Sizes are rounded up to the `alignment`. `in_place`: an
    elementwise node may write over an operand of equal size that it reads last, and then shares its memory (`alias`).
    """
    n = len(graph)
    at = np.empty(n, np.int64)
    at[np.arange(n) if order is None else np.asarray(order, np.int64)] = np.arange(n)
    root = graph.alias.astype(np.int64)
    own = np.flatnonzero((root == np.arange(len(root))) & (graph.role == INTERMEDIATE) & (graph.producer >= 0) & (graph.size > 0))
    last = np.full(len(root), -1, np.int64)
    reader = at[np.repeat(np.arange(n), np.diff(graph.in_ptr))] if n else np.zeros(0, np.int64)
    np.maximum.at(last, root[graph.in_val], reader)
    made = np.flatnonzero(graph.producer >= 0)
    np.maximum.at(last, root[made], at[graph.producer[made]])
    last[root[graph.outputs]] = n - 1
    index = np.full(len(root), -1, np.int64)
    index[own] = np.arange(len(own))
    alias = _in_place(graph, at, own, index, last) if in_place else np.arange(len(own))
    producer = graph.producer[own]
    return Buffers(_called(graph, own), at[producer], last[own] + 1, -(-graph.size[own] // alignment) * alignment,
                   np.full(len(own), alignment, np.int64), alias=alias.astype(np.int32), banks=np.array(banks, np.int64), bank_names=tuple(names),
                   modules=tuple(graph.modules[p] for p in producer.tolist()))


def _called(graph: Graph, own: np.ndarray) -> tuple[str, ...]:
    """A unique name for each value: its node's, with the number of the output where it has several."""
    found = []
    for v, p in zip(own.tolist(), graph.producer[own].tolist(), strict=True):
        outputs = graph.outputs_of(p).tolist()
        found.append(graph.names[p] + (f":{outputs.index(v)}" if len(outputs) > 1 else ""))
    return tuple(found)


def _in_place(graph: Graph, at: np.ndarray, own: np.ndarray, index: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The buffer that each may be written over, as roots: the operand has its shape and element size, dies there, and is read once, as it lies."""
    alias = np.arange(len(own))
    taken = np.zeros(len(own), bool)
    for i in np.argsort(at[graph.producer[own]], kind="stable").tolist():
        v, node = int(own[i]), int(graph.producer[own[i]])
        if graph.fusion[node] != ELEMENTWISE or len(graph.outputs_of(node)) != 1:
            continue
        read = graph.inputs_of(node)
        roots = graph.alias[read].tolist()
        for operand in read.tolist():
            j = index[operand]
            alike = graph.shape_of(operand) == graph.shape_of(v) and graph.size[operand] == graph.size[v]
            if j >= 0 and not taken[j] and last[operand] == at[node] and alike and roots.count(operand) == 1:
                alias[i], taken[j] = alias[j], True
                break
    return alias


def written(b: Buffers, offsets: np.ndarray | None = None) -> str:
    """The buffers as a CSV file that `of_file` reads, with `offsets` where they are given (read again, they are fixed there)."""
    columns: dict[str, list[str]] = {"id": list(b.ids), **{name: list(map(str, getattr(b, name).tolist())) for name in ("lower", "upper", "size")}}
    place = b.fixed if offsets is None else np.asarray(offsets, np.int64)
    for name, values, default in (("offset", place, FREE), ("alignment", b.alignment, 1), ("hint", b.hint, FREE)):
        if (values != default).any() or (name == "offset" and offsets is not None):
            columns[name] = [str(value) if value != default else "" for value in values.tolist()]
    if (b.bank != FREE).any():
        columns["bank"] = [b.bank_names[k] if k >= 0 else "" for k in b.bank.tolist()]
    if len(b.gap_lower):
        texts = [f"{a}-{z}" + (f":{f}-{t}" if f != FREE else "") for a, z, f, t in zip(
            *(getattr(b, name).tolist() for name in ("gap_lower", "gap_upper", "gap_from", "gap_to")), strict=True)]
        columns["gaps"] = [";".join(texts[b.gap_ptr[i]:b.gap_ptr[i + 1]]) for i in range(len(b))]
    if (b.alias != np.arange(len(b))).any():
        columns["alias"] = [b.ids[root] if root != i else "" for i, root in enumerate(b.alias.tolist())]
    if any(b.modules):
        columns["module"] = list(b.modules)
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(columns)
    rows.writerows(zip(*columns.values(), strict=True))
    return out.getvalue()
