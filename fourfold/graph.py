"""Graph: what a tensor program is made of, as a struct of arrays that numba kernels read directly.

A node is one operation, a value one tensor (an edge of the dataflow graph, or an input, parameter or constant). Nodes stand in a topological order: a
node reads only what inputs, parameters, constants and earlier nodes provide. Captures (`frontends`) make graphs with `Builder`; decisions read
them. Nothing here knows torch, ONNX or JAX.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fourfold.errors import InputError
from fourfold.folder import write

SCHEMA = 1
FORMAT = "fourfold graph"

OPAQUE, ELEMENTWISE, REDUCTION, CONTRACTION, VIEW, GATHER = range(6)  # Graph.fusion
FUSION = ("opaque", "elementwise", "reduction", "contraction", "view", "gather")
FORWARD, BACKWARD, OPTIMISER = range(3)  # Graph.phase
PHASES = ("forward", "backward", "optimiser")
INTERMEDIATE, INPUT, PARAMETER, CONSTANT = range(4)  # Graph.role
ROLES = ("intermediate", "input", "parameter", "constant")

# bits per element, under torch's names; ONNX and numpy spell most of them alike
BITS = {
    "bool": 8, "uint8": 8, "int8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64,
    "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64, "complex32": 32, "complex64": 64, "complex128": 128,
    "float8_e4m3fn": 8, "float8_e5m2": 8, "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8, "float8_e8m0fnu": 8,
    "float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2,
}  # fmt: skip

_DTYPES: dict[str, type[np.generic]] = {
    "kind": np.int16, "flops": np.float64, "steps": np.float64, "reads": np.int64, "writes": np.int64, "params": np.int64,
    "fusion": np.int8, "phase": np.int8,
    "colocation": np.int32, "layer": np.int32, "producer": np.int32, "size": np.int64, "shape_ptr": np.int32, "shape": np.int64, "role": np.int8,
    "outputs": np.int32, "alias": np.int32, "in_ptr": np.int32, "in_val": np.int32, "out_ptr": np.int32, "out_val": np.int32,
    "use_ptr": np.int32, "use_node": np.int32,
}  # fmt: skip
_TEXTS = ("kinds", "names", "modules", "dtype", "labels", "unknown")
_PER_NODE = ("kind", "flops", "steps", "reads", "writes", "params", "fusion", "phase", "colocation", "layer", "names", "modules")
_PER_VALUE = ("producer", "size", "role", "alias", "dtype", "labels")


def bytes_of(shape: Iterable[int], dtype: str) -> int:
    """Bytes of a dense tensor; 0 where `dtype` has no fixed element size (a string, a sequence)."""
    return -(-math.prod(shape) * BITS.get(dtype, 0) // 8)


@dataclass(frozen=True, eq=False)
class Graph:
    """A tensor program: N nodes in a topological order, V values. Arrays are read-only.

    Nodes
      kinds       the op vocabulary ("aten.mm", "Conv"); kind i2[N] indexes it
      names, modules   [N] unique name; dotted module path, "" where unknown
      flops       f8[N] of contractions (matmul, conv, attention), a multiply-add counting two, exactly as torch's FlopCounterMode counts; others 0
      steps       f8[N] scalar operations of all others, by the conventions of `frontends/flops.py`; of unknown kinds assumed
      reads, writes    i8[N] bytes moved if the node runs alone: parameters included, views 0, a gather what it picks
      params      i8[N] the part of `reads` that comes from parameters
      fusion      i1[N] OPAQUE 0, ELEMENTWISE 1, REDUCTION 2, CONTRACTION 3 (matmul, conv), VIEW 4 (moves nothing), GATHER 5
      phase       i1[N] FORWARD 0, BACKWARD 1, OPTIMISER 2
      colocation  i4[N] -1 none; nodes of equal number must share a device
      layer       i4[N] index of the repeated block the node belongs to, in order of appearance; -1 none
    Values
      producer    i4[V] the node that makes it; -1 for inputs, parameters and constants
      size        i8[V] bytes, dense; of a view its own, so memory is `size[alias[v]]`
      dtype, labels    [V] element type under torch's name; what the framework calls the value, "" where it has no name
      shape_ptr, shape   i4[V+1], i8[·] in CSR
      role        i1[V] INTERMEDIATE 0, INPUT 1, PARAMETER 2, CONSTANT 3
      outputs     i4[·] values that the program returns
      alias       i4[V] root value whose memory it shares; itself when its own
    Edges, in CSR: in_ptr i4[N+1], in_val (node → values read, each once) · out_ptr i4[N+1], out_val (node → values made) · use_ptr i4[V+1], use_node
    (value → readers, ascending)
      unknown     kinds that no table knows, whose flops and steps are assumed
    """

    name: str
    kinds: tuple[str, ...]
    kind: NDArray[np.int16]
    names: tuple[str, ...]
    modules: tuple[str, ...]
    flops: NDArray[np.float64]
    steps: NDArray[np.float64]
    reads: NDArray[np.int64]
    writes: NDArray[np.int64]
    params: NDArray[np.int64]
    fusion: NDArray[np.int8]
    phase: NDArray[np.int8]
    colocation: NDArray[np.int32]
    layer: NDArray[np.int32]
    producer: NDArray[np.int32]
    size: NDArray[np.int64]
    dtype: tuple[str, ...]
    labels: tuple[str, ...]
    shape_ptr: NDArray[np.int32]
    shape: NDArray[np.int64]
    role: NDArray[np.int8]
    outputs: NDArray[np.int32]
    alias: NDArray[np.int32]
    in_ptr: NDArray[np.int32]
    in_val: NDArray[np.int32]
    out_ptr: NDArray[np.int32]
    out_val: NDArray[np.int32]
    use_ptr: NDArray[np.int32]
    use_node: NDArray[np.int32]
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            array = np.array(getattr(self, name), dtype=dtype)  # a copy: nobody else can write to it
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        for name in _TEXTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.kind)

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, {len(self)} nodes, {len(self.producer)} values)"

    def __eq__(self, other: object) -> bool:
        """Equal content; the title `name` does not count."""
        return isinstance(other, Graph) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def shape_of(self, value: int) -> tuple[int, ...]:
        return tuple(self.shape[self.shape_ptr[value] : self.shape_ptr[value + 1]].tolist())

    def inputs_of(self, node: int) -> NDArray[np.int32]:
        """Values that `node` reads."""
        return self.in_val[self.in_ptr[node] : self.in_ptr[node + 1]]

    def outputs_of(self, node: int) -> NDArray[np.int32]:
        """Values that `node` makes."""
        return self.out_val[self.out_ptr[node] : self.out_ptr[node + 1]]

    def readers_of(self, value: int) -> NDArray[np.int32]:
        return self.use_node[self.use_ptr[value] : self.use_ptr[value + 1]]

    def edges(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """(src [E], dst [E], value [E]): node dst reads `value`, which node src made. By dst, then in the order of its inputs."""
        src = self.producer[self.in_val]
        made = src >= 0
        dst = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.in_ptr))
        return src[made], dst[made], self.in_val[made]

    @cached_property
    def hash(self) -> str:
        """sha256 of all content but the title `name`, as hex; equal on every machine and in every process."""
        digest = hashlib.sha256(f"{FORMAT} {SCHEMA}".encode())
        for name in _DTYPES:
            array = getattr(self, name)
            digest.update(f"\n{name} {array.size} ".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        digest.update(_json({name: getattr(self, name) for name in _TEXTS}))
        return digest.hexdigest()

    # --- checks -------------------------------------------------------------------------------------------------------------------------------------

    def validate(self) -> list[str]:
        """Every rule that the arrays break, a sentence each; [] = sound. Later rules are only examined where earlier ones hold."""
        return _lengths(self) or _ranges(self) or _flow(self) + _memory(self)

    # --- files --------------------------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write an .npz (arrays, and texts as JSON; nothing pickled). Raises InputError where the file cannot be written."""
        head = {"format": FORMAT, "schema": SCHEMA, "name": self.name, "hash": self.hash} | {name: getattr(self, name) for name in _TEXTS}
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _DTYPES}
        arrays["json"] = np.frombuffer(_json(head), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        try:
            write(path, buffer.getvalue())
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.", "Give a path in a folder that exists.") from error

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Read what `save` wrote, and check it. Raises InputError where the file is missing, damaged, altered, newer, or something else."""
        again = "Capture the model again."
        try:
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(file["json"].tobytes().decode("utf-8"))
                arrays = {name: file[name] for name in _DTYPES if name in file.files}
        except FileNotFoundError as error:
            raise InputError(f"There is no file {path}.", "Give a graph that fourfold saved.") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.error) as error:
            raise InputError(f"{path} is damaged or no fourfold graph: {_line(error)}.", again) from error
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise InputError(f"{path} is no fourfold graph.", again)
        if head.get("schema") != SCHEMA:
            raise InputError(f"{path} has schema {head.get('schema')!r}; this fourfold reads {SCHEMA}.", again)
        lacking = [name for name in (*_DTYPES, *_TEXTS) if name not in arrays and name not in head]
        if lacking:
            raise InputError(f"{path} lacks {lacking[0]}.", again)
        columns: dict[str, Any] = {**arrays, **{name: tuple(map(str, head[name])) for name in _TEXTS}}
        graph = cls(name=str(head.get("name", "")), **columns)
        if graph.hash != head.get("hash"):
            raise InputError(f"{path} does not hold what was saved: its content hash differs.", again)
        if wrong := graph.validate():
            raise InputError(f"{path} is not sound: {wrong[0]}", again)
        return graph

    # --- figures ------------------------------------------------------------------------------------------------------------------------------------

    def live(self) -> NDArray[np.int64]:
        """i8[N] bytes of intermediates alive while each node runs, in the graph's order: a root lives from its producer to the last use of any of its
        aliases, outputs to the end; inputs, parameters and constants are not counted.
        """
        n, root = len(self), self.alias
        last = np.full(len(root), -1, dtype=np.int64)
        dst = np.repeat(np.arange(n), np.diff(self.in_ptr))
        np.maximum.at(last, root[self.in_val], dst)
        made = np.flatnonzero(self.producer >= 0)
        np.maximum.at(last, root[made], self.producer[made])
        last[root[self.outputs]] = n - 1
        own = made[root[made] == made]
        change = np.zeros(n + 1, dtype=np.int64)
        np.add.at(change, self.producer[own], self.size[own])
        np.add.at(change, last[own] + 1, -self.size[own])
        return np.cumsum(change)[:n]

    def depth(self) -> NDArray[np.int32]:
        """i4[N] nodes on the longest path that ends in each node, itself included."""
        depth = [1] * len(self)
        src, dst, _ = self.edges()
        for s, d in zip(src.tolist(), dst.tolist(), strict=True):  # by dst, and every src is done before
            if depth[s] >= depth[d]:
                depth[d] = depth[s] + 1
        return np.array(depth, dtype=np.int32)

    def statistics(self) -> dict[str, object]:
        """Counts and sums as plain data: nodes, values, edges, depth, flops, bytes, parameters, peak live bytes; by op, fusion class and phase."""
        count = Counter(self.kind.tolist())
        own = self.alias == np.arange(len(self.alias))

        def total(role: int) -> int:
            return int(self.size[own & (self.role == role)].sum())

        return {
            "name": self.name,
            "hash": self.hash,
            "nodes": len(self),
            "values": len(self.producer),
            "edges": len(self.edges()[0]),
            "depth": int(self.depth().max(initial=0)),
            "layers": int(self.layer.max(initial=-1)) + 1,
            "flops": float(self.flops.sum()),
            "steps": float(self.steps.sum()),
            "reads": int(self.reads.sum()),
            "writes": int(self.writes.sum()),
            "inputs": total(INPUT),
            "parameters": total(PARAMETER),
            "constants": total(CONSTANT),
            "outputs": len(self.outputs),
            "peak_live": int(self.live().max(initial=0)),
            "ops": {self.kinds[k]: c for k, c in sorted(count.items(), key=lambda item: (-item[1], self.kinds[item[0]]))},
            "fusion": {FUSION[c]: k for c in range(6) if (k := int((self.fusion == c).sum()))},
            "phase": {PHASES[c]: k for c in range(3) if (k := int((self.phase == c).sum()))},
            "unknown": list(self.unknown),
        }


def _json(data: object) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:160].rstrip(".")


def _lengths(g: Graph) -> list[str]:
    n, v = len(g.kind), len(g.producer)
    wrong = [f"{name} has {len(getattr(g, name))} entries for {n} nodes." for name in _PER_NODE if len(getattr(g, name)) != n]
    wrong += [f"{name} has {len(getattr(g, name))} entries for {v} values." for name in _PER_VALUE if len(getattr(g, name)) != v]
    wrong += [f"{name} has {getattr(g, name).ndim} dimensions, expected 1." for name in _DTYPES if getattr(g, name).ndim != 1]
    for pointer, content, rows in (("in_ptr", g.in_val, n), ("out_ptr", g.out_val, n), ("use_ptr", g.use_node, v), ("shape_ptr", g.shape, v)):
        p = getattr(g, pointer)
        if len(p) != rows + 1 or p[0] != 0 or p[-1] != len(content) or (np.diff(p) < 0).any():
            wrong.append(f"{pointer} is no row pointer: expected {rows + 1} ascending entries from 0 to {len(content)}.")
    return wrong


def _ranges(g: Graph) -> list[str]:
    n, v = len(g.kind), len(g.producer)
    limits = (
        ("kind", g.kind, 0, len(g.kinds), "kinds"), ("fusion", g.fusion, 0, 6, "fusion classes"), ("phase", g.phase, 0, 3, "phases"),
        ("role", g.role, 0, 4, "roles"), ("producer", g.producer, -1, n, "nodes"), ("alias", g.alias, 0, v, "values"),
        ("outputs", g.outputs, 0, v, "values"), ("in_val", g.in_val, 0, v, "values"), ("out_val", g.out_val, 0, v, "values"),
        ("use_node", g.use_node, 0, n, "nodes"), ("colocation", g.colocation, -1, 2**31, "groups"), ("layer", g.layer, -1, 2**31, "layers"),
    )  # fmt: skip
    wrong = []
    for name, array, low, high, what in limits:
        if (bad := np.flatnonzero((array < low) | (array >= high))).size:
            wrong.append(f"{name}[{bad[0]}] is {array[bad[0]]}, but there are {high} {what}.")
    for name in ("reads", "writes", "params", "size", "shape"):
        if (bad := np.flatnonzero(getattr(g, name) < 0)).size:
            wrong.append(f"{name}[{bad[0]}] is negative.")
    for name in ("flops", "steps"):
        array = getattr(g, name)
        if (bad := np.flatnonzero(~(np.isfinite(array) & (array >= 0)))).size:
            wrong.append(f"{name}[{bad[0]}] is {array[bad[0]]}, expected a finite number of at least 0.")
    if (bad := np.flatnonzero(g.params > g.reads)).size:
        wrong.append(f"node {bad[0]} ({g.names[bad[0]]}) reads {g.params[bad[0]]} bytes of parameters but {g.reads[bad[0]]} bytes in all.")
    wrong += [f"two nodes are called {name!r}." for name, count in Counter(g.names).items() if count > 1][:1]
    wrong += [f"unknown lists {name!r}, which is no op of this graph." for name in g.unknown if name not in g.kinds][:1]
    return wrong


def _flow(g: Graph) -> list[str]:
    n, v = len(g.kind), len(g.producer)
    wrong: list[str] = []
    reader = np.repeat(np.arange(n, dtype=np.int64), np.diff(g.in_ptr))
    source = g.producer[g.in_val]
    if (bad := np.flatnonzero(source >= reader)).size:
        b = bad[0]
        wrong.append(f"node {reader[b]} ({g.names[reader[b]]}) reads value {g.in_val[b]}, made by node {source[b]} at or after it.")
    maker = np.repeat(np.arange(n, dtype=np.int64), np.diff(g.out_ptr))
    if (bad := np.flatnonzero(g.producer[g.out_val] != maker)).size:
        b = bad[0]
        wrong.append(f"node {maker[b]} ({g.names[maker[b]]}) lists value {g.out_val[b]}, whose producer is {g.producer[g.out_val[b]]}.")
    listed = np.bincount(g.out_val, minlength=v)
    if (bad := np.flatnonzero(listed != (g.producer >= 0))).size:
        wrong.append(f"value {bad[0]} is listed by {listed[bad[0]]} nodes as an output, expected {int(g.producer[bad[0]] >= 0)}.")
    pair = reader * max(v, 1) + g.in_val
    if len(np.unique(pair)) != len(pair):
        wrong.append("a node lists the same value twice among its inputs.")
    by_value = np.lexsort((reader, g.in_val))
    readers = np.cumsum(np.bincount(g.in_val, minlength=v))
    if not np.array_equal(g.use_ptr[1:], readers) or not np.array_equal(g.use_node, reader[by_value]):
        wrong.append("use_ptr and use_node do not list the readers that in_ptr and in_val name.")
    if (bad := np.flatnonzero((g.role == INTERMEDIATE) != (g.producer >= 0))).size:
        wrong.append(f"value {bad[0]} is {ROLES[g.role[bad[0]]]} but its producer is {g.producer[bad[0]]}.")
    return wrong


def _memory(g: Graph) -> list[str]:
    wrong: list[str] = []
    if (bad := np.flatnonzero(g.alias[g.alias] != g.alias)).size:
        wrong.append(f"value {bad[0]} shares the memory of value {g.alias[bad[0]]}, which is itself an alias.")
    if (bad := np.flatnonzero(g.producer[g.alias] > g.producer)).size:
        wrong.append(f"value {bad[0]} shares the memory of value {g.alias[bad[0]]}, which is made later.")
    for v in range(len(g.producer)):
        shape = g.shape_of(v)
        if g.dtype[v] in BITS and int(g.size[v]) != bytes_of(shape, g.dtype[v]):
            wrong.append(f"value {v} has {g.size[v]} bytes, but its shape {shape} of {g.dtype[v]} needs {bytes_of(shape, g.dtype[v])}.")
            break
    return wrong


def topological(count: int, src: ArrayLike, dst: ArrayLike, names: Sequence[str] = ()) -> NDArray[np.int64]:
    """An order of `count` nodes in which every edge src[e] → dst[e] points forward; among ready nodes the lowest index first (Kahn 1962).

    Raises InputError naming the nodes of a cycle where there is one.
    """
    import heapq

    s, d = np.asarray(src, dtype=np.int64), np.asarray(dst, dtype=np.int64)
    waiting = np.bincount(d, minlength=count).tolist()
    by_src = np.argsort(s, kind="stable")
    pointer = np.searchsorted(s[by_src], np.arange(count + 1)).tolist()
    after = d[by_src].tolist()
    ready = [i for i in range(count) if not waiting[i]]
    order: list[int] = []
    while ready:
        node = heapq.heappop(ready)
        order.append(node)
        for follower in after[pointer[node] : pointer[node + 1]]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, follower)
    if len(order) < count:
        cycle = _cycle(count, s.tolist(), d.tolist(), set(order))
        told = " → ".join(names[i] if i < len(names) and names[i] else f"node {i}" for i in cycle[:6]) + (" → …" if len(cycle) > 6 else "")
        raise InputError(f"The graph has a cycle: {told}.", "A tensor program is acyclic; unroll loops, or mend the file.")
    return np.array(order, dtype=np.int64)


def _cycle(count: int, src: list[int], dst: list[int], done: set[int]) -> list[int]:
    """The nodes of one cycle, closed (first = last). Every node that is not `done` has a predecessor that is not."""
    before = {d: s for s, d in zip(src, dst, strict=True) if s not in done and d not in done}
    node = next(i for i in range(count) if i not in done)
    seen: dict[int, int] = {}
    path: list[int] = []
    while node not in seen:
        seen[node] = len(path)
        path.append(node)
        node = before[node]
    return [*path[seen[node] :], node][::-1]


class Builder:
    """Makes a Graph node by node, in a topological order: a value exists before it is read.

    `input`, `parameter`, `constant` give a value; `node` gives the values it makes; `output` marks what the program returns; `build` closes it.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._kinds: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._unknown: dict[str, None] = {}
        self._node: dict[str, list[Any]] = {key: [] for key in _PER_NODE}
        self._value: dict[str, list[Any]] = {key: [] for key in (*_PER_VALUE, "shapes")}
        self._in: list[tuple[int, ...]] = []
        self._out: list[tuple[int, ...]] = []
        self._outputs: list[int] = []

    def input(self, shape: Sequence[int], dtype: str, label: str = "", *, size: int | None = None) -> int:
        """A value that the caller provides."""
        return self._new(shape, dtype, label, INPUT, -1, None, size)

    def parameter(self, shape: Sequence[int], dtype: str, label: str = "", *, size: int | None = None) -> int:
        """A value that belongs to the model: a weight or a buffer."""
        return self._new(shape, dtype, label, PARAMETER, -1, None, size)

    def constant(self, shape: Sequence[int], dtype: str, label: str = "", *, size: int | None = None) -> int:
        """A value written into the program."""
        return self._new(shape, dtype, label, CONSTANT, -1, None, size)

    def node(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[tuple[Sequence[int], str]],
        *,
        name: str = "",
        module: str = "",
        flops: float = 0.0,
        steps: float = 0.0,
        fusion: int = OPAQUE,
        phase: int = FORWARD,
        reads: int | None = None,
        writes: int | None = None,
        params: int | None = None,
        alias: Sequence[int | None] = (),
        labels: Sequence[str] = (),
        sizes: Sequence[int | None] = (),
        colocation: int = -1,
        layer: int = -1,
        known: bool = True,
    ) -> tuple[int, ...]:
        """Add an operation; the values it makes, one per (shape, dtype) of `outputs`.

        Bytes default to the sizes of what it reads and of what it makes that is not an alias, or to 0 for a VIEW. `alias` names, output by output, a
        value whose memory it shares (None: its own). `sizes` overrides bytes where there is no shape to count from. `known=False` lists the kind
        among `Graph.unknown`. Names are made unique by a number. Raises InputError where an input does not exist.
        """
        if bad := [v for v in inputs if not 0 <= v < len(self._value["size"])]:
            raise InputError(f"node {name or kind!r} reads value {bad[0]}, which does not exist yet.", "Add nodes in a topological order.")
        n = len(self._in)
        inputs = tuple(dict.fromkeys(inputs))
        made = tuple(
            self._new(shape, dtype, _at(labels, i, ""), INTERMEDIATE, n, _at(alias, i, None), _at(sizes, i, None))
            for i, (shape, dtype) in enumerate(outputs)
        )
        size, root, role = self._value["size"], self._value["alias"], self._value["role"]
        if params is None:
            params = 0 if fusion == VIEW else sum(min(size[v], size[root[v]]) for v in inputs if role[root[v]] == PARAMETER)
            params = params if reads is None else min(params, reads)
        if reads is None:
            reads = 0 if fusion == VIEW else sum(min(size[v], size[root[v]]) for v in inputs)  # an expanded view is no longer than its root
        if writes is None:
            writes = 0 if fusion == VIEW else sum(size[v] for v in made if root[v] == v)
        if not known:
            self._unknown[kind] = None
        code = self._kinds.setdefault(kind, len(self._kinds))
        row = (code, flops, steps, reads, writes, params, fusion, phase, colocation, layer, self._unique(name or kind), module)
        for column, entry in zip(self._node.values(), row, strict=True):
            column.append(entry)
        self._in.append(inputs)
        self._out.append(made)
        return made

    def output(self, value: int) -> None:
        """Mark a value as returned by the program; in the order of calls, repeats allowed."""
        self._outputs.append(value)

    def size_of(self, value: int) -> int:
        """Bytes of a value so far."""
        return self._value["size"][value]

    def spec_of(self, value: int) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a value so far."""
        return self._value["shapes"][value], self._value["dtype"][value]

    def phases(self, phases: Sequence[int]) -> None:
        """Set the phase of every node, where it is only known at the end."""
        self._node["phase"] = list(phases)

    def build(self) -> Graph:
        """The finished graph. Raises InputError with the first broken rule where it is not sound."""
        count, nodes = len(self._value["size"]), len(self._in)
        arrays: dict[str, Any] = {**self._node, **{key: column for key, column in self._value.items() if key != "shapes"}}
        for key, rows in (("in", self._in), ("out", self._out)):
            arrays[f"{key}_ptr"], arrays[f"{key}_val"] = _csr(rows)
        arrays["shape_ptr"], arrays["shape"] = _csr(self._value["shapes"])
        arrays["use_ptr"] = np.concatenate([[0], np.cumsum(np.bincount(arrays["in_val"], minlength=count))])
        arrays["use_node"] = np.repeat(np.arange(nodes), np.diff(arrays["in_ptr"]))[np.argsort(arrays["in_val"], kind="stable")]
        arrays["outputs"] = np.array(self._outputs, dtype=np.int64)
        graph = Graph(name=self.name, kinds=tuple(self._kinds), unknown=tuple(self._unknown), **arrays)
        if wrong := graph.validate():
            raise InputError(f"The graph {self.name!r} is not sound: {wrong[0]}", "Correct the capture or the calls to Builder.")
        return graph

    def _new(self, shape: Sequence[int], dtype: str, label: str, role: int, producer: int, alias: int | None, size: int | None) -> int:
        v, value = len(self._value["size"]), self._value
        value["producer"].append(producer)
        value["size"].append(bytes_of(shape, dtype) if size is None else size)
        value["role"].append(role)
        value["alias"].append(v if alias is None else value["alias"][alias])
        value["dtype"].append(dtype)
        value["labels"].append(label)
        value["shapes"].append(tuple(shape))
        return v

    def _unique(self, name: str) -> str:
        seen = self._taken.get(name)
        if seen is None:
            self._taken[name] = 1
            return name
        while (other := f"{name}_{seen}") in self._taken:
            seen += 1
        self._taken[name], self._taken[other] = seen + 1, 1
        return other


def number(group: ArrayLike, nodes: int) -> tuple[NDArray[np.int64], int]:
    """(task i8[N], T): groups numbered from 0 by their first node; every -1 is a group of its own. Raises InputError for another length."""
    given = np.asarray(group, np.int64)
    if given.shape != (nodes,):
        raise InputError(f"There are {nodes} nodes and {given.size} group numbers.", "Give one group number per node.")
    alone = given < 0
    distinct = np.where(alone, given.max(initial=0) + 1 + np.arange(nodes), given)
    _, first, inverse = np.unique(distinct, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse.reshape(-1)], len(first)


def _at(items: Sequence[object], index: int, default: object) -> Any:
    return items[index] if index < len(items) else default


def _csr(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pointer = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=pointer[1:]) if rows else None
    return pointer, np.array([entry for row in rows for entry in row], dtype=np.int64)
