"""Every way to lay a program over a mesh, as tables: what each strategy of each operation costs, and each pair of strategies along each edge.

The program is the captured *forward* pass. Training is derived from it: an operation and its gradient share a strategy, the gradient of an operand
comes out partial along an axis that splits a letter which the operand does not bear, and layouts are changed back on the way back. A variable is

    a stored value      (input, parameter, constant): the layouts in which it may be kept, and for parameters whether the optimiser's state is split
                        over the axes that leave the parameter whole (ZeRO, stage 1)
    an operation        what is done along each mesh axis: split a letter, keep operands partial, or nothing (`rules.options`)

Seconds are those of one microbatch; what is paid once a step (sums of gradients) counts by its share of a microbatch. Compute is divided by the
devices that split the work (Zheng et al., OSDI 2022, section 4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fourfold.graph import BITS, CONSTANT, INPUT, INTERMEDIATE, PARAMETER, VIEW, Graph
from fourfold.letters import Choice, ShardingRule
from fourfold.sharding import moves
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import options
from fourfold.sharding.spec import Spec

F64 = NDArray[np.float64]
_FLOAT = ("float", "bfloat", "complex")
_GRADIENT_WORK = 2.0                                                    # a gradient's share of the forward work: one product for each operand
_TIE = 1e-10                                                            # s: of equal layouts, the one that moves less


@dataclass(frozen=True)
class Regime:
    """How a program is run. `train`: forward and backward; `again`: what a layer computes is computed again in the backward pass and not kept;
    `microbatches` a step; `state`: bytes of optimiser state (and fp32 copy) for a parameter element, by its itemsize, Adam's by default."""

    train: bool = False
    again: bool = False
    microbatches: int = 1
    state: tuple[tuple[int, float], ...] = ((2, 12.0), (4, 8.0), (8, 16.0), (1, 12.0))

    @property
    def passes(self) -> float:
        """Forward passes' worth of work."""
        return 1.0 if not self.train else 1.0 + _GRADIENT_WORK + self.again

    def state_bytes(self, itemsize: float) -> float:
        return dict(self.state).get(int(itemsize), 12.0) if self.train else 0.0


@dataclass(eq=False)
class StrategyVariable:
    """A choice to be made: of a `value` that is stored (node −1), or of an operation (`node`). Strategy s has layouts `out[s]` of the value (of an
    operation: of its results) and `into[s]` of the operands; `seconds` f8[S], `held` f8[S] bytes kept all the time, `kept` f8[S] bytes of results."""

    name: str
    value: int
    node: int
    layer: int
    out: list[tuple[Spec, ...]]
    into: list[tuple[Spec, ...]]
    choices: list[dict[str, Choice]]
    split_state: NDArray[np.bool_]
    seconds: F64
    held: F64
    kept: F64

    def __len__(self) -> int:
        return len(self.out)


@dataclass(eq=False)
class Edge:
    """Value `value` goes from variable `a` to operand `operand` of variable `b`: `table` f8[a, b] seconds of a microbatch."""

    a: int
    b: int
    value: int
    operand: int
    table: F64


@dataclass(eq=False)
class Strategies:
    """All variables and edges of a program on a mesh. `result` is the table of an assignment (`assignment` i8[variables])."""

    graph: Graph
    rules: tuple[ShardingRule, ...]
    mesh: Mesh
    regime: Regime
    variables: list[StrategyVariable] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    of_value: dict[int, int] = field(default_factory=dict)              # value → variable that makes or stores it
    of_node: dict[int, int] = field(default_factory=dict)

    def cost(self, assignment: NDArray[np.int64]) -> float:
        """Seconds of a microbatch under an assignment, counted from the tables."""
        own = math.fsum(float(v.seconds[s]) for v, s in zip(self.variables, assignment, strict=True))
        return own + math.fsum(float(e.table[assignment[e.a], assignment[e.b]]) for e in self.edges)

    def spec(self, value: int, assignment: NDArray[np.int64]) -> Spec:
        """The layout in which `value` is made or stored."""
        v = self.variables[self.of_value[value]]
        found = v.out[int(assignment[self.of_value[value]])]
        return found[0] if v.node < 0 else found[self.rules[v.node].makes.index(value)]


def build(graph: Graph, rules: Sequence[ShardingRule], mesh: Mesh, regime: Regime, seconds: F64, layer: NDArray[np.int64]) -> Strategies:
    """Variables and edges of `graph`. seconds: f8[N] of each node's forward work on one device, whole; layer: i8[N] the layer of each node."""
    made = Strategies(graph, tuple(rules), mesh, regime)
    tables = _Tables(mesh)
    readers: dict[int, list[tuple[int, int]]] = {}
    for node, rule in enumerate(rules):
        for i, value in enumerate(rule.reads):
            readers.setdefault(value, []).append((node, i))
    for value in np.flatnonzero(graph.role != INTERMEDIATE).tolist():
        if readers.get(value):
            made.of_value[value] = len(made.variables)
            made.variables.append(_stored(graph, value, mesh, regime, int(layer[readers[value][0][0]]), tables))
    outputs = set(graph.outputs.tolist())
    for node, rule in enumerate(rules):
        made.of_node[node] = len(made.variables)
        for value in rule.makes:
            made.of_value[value] = len(made.variables)
        made.variables.append(_operation(graph, node, rule, mesh, regime, float(seconds[node]), int(layer[node]), outputs, tables))
    for node, rule in enumerate(rules):
        for i, value in enumerate(rule.reads):
            if value in made.of_value and i not in rule.unread:
                a, b = made.of_value[value], made.of_node[node]
                made.edges.append(Edge(a, b, value, i, _edge(made, a, b, value, i, rule, tables)))
    return made


# ---- variables


class _Tables:
    """Arrays that many nodes share: the same object where the same was asked, so that equal blocks are seen to be equal."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.kept: dict[tuple[object, ...], tuple[object, ...]] = {}

    def once(self, key: tuple[object, ...], make: Callable[[], tuple[object, ...]]) -> tuple[object, ...]:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def itemsize(graph: Graph, value: int) -> float:
    """Bytes of an element."""
    return BITS.get(graph.dtype[value], 8 * int(graph.size[value])) / 8


def floating(graph: Graph, value: int) -> bool:
    return graph.dtype[value].startswith(_FLOAT)


def local_bytes(graph: Graph, value: int, spec: Spec, mesh: Mesh) -> float:
    """Bytes of a device's piece."""
    return itemsize(graph, value) * math.prod(spec.local_shape(graph.shape_of(value), mesh))


def layouts(shape: Sequence[int], mesh: Mesh) -> list[Spec]:
    """Layouts in which a stored tensor of `shape` may be kept: every axis splits nothing, or a dimension that it divides evenly; whole first."""
    found: list[Spec] = []
    for dims in itertools.product(*[(-1, *range(len(shape)))] * len(mesh.names)):
        split = [tuple(axis for axis, dim in zip(mesh.names, dims, strict=True) if dim == d) for d in range(len(shape))]
        if all(size % mesh.lengths(axes) == 0 for size, axes in zip(shape, split, strict=True)):
            found.append(Spec(tuple(split)))
    return found


def _stored(graph: Graph, value: int, mesh: Mesh, regime: Regime, layer: int, tables: _Tables) -> StrategyVariable:
    shape, role = graph.shape_of(value), int(graph.role[value])
    learns = regime.train and role == PARAMETER and floating(graph, value)

    def make() -> tuple[object, ...]:
        specs, zero, held = [], [], []
        size = itemsize(graph, value)
        for spec in layouts(shape, mesh):
            whole = [axis for axis in mesh.names if axis not in spec.axes and mesh.length(axis) > 1]
            piece = math.prod(spec.local_shape(shape, mesh))
            for split in (False, True) if learns and whole else (False,):
                specs.append((spec,))
                zero.append(split)
                state = regime.state_bytes(size) / (mesh.lengths(whole) if split else 1)
                held.append(piece * (size * (2 if learns else 1) + (state if learns else 0.0)) if role in (PARAMETER, CONSTANT) else 0.0)
        tie = np.array([_TIE * zero[s] for s in range(len(specs))])
        return specs, np.array(zero), tie, np.array(held), np.zeros(len(specs))

    specs, zero, seconds, held, kept = tables.once(("stored", shape, graph.dtype[value], role, learns), make)
    name = graph.labels[value] or f"value {value}"
    return StrategyVariable(name, value, -1, layer, specs, [()] * len(specs), [{}] * len(specs), zero, seconds, held, kept)  # type: ignore[arg-type]


def _operation(graph: Graph, node: int, rule: ShardingRule, mesh: Mesh, regime: Regime, seconds: float, layer: int, outputs: set[int],
               tables: _Tables) -> StrategyVariable:
    view = graph.fusion[node] == VIEW
    answer = tuple(i for i, v in enumerate(rule.makes) if v in outputs)
    first = rule.makes[0] if rule.makes else -1

    def make() -> tuple[object, ...]:
        chosen, into, out, cost, kept = [], [], [], [], []
        every = set(range(len(rule.inputs))) - rule.unread
        seen: dict[object, int] = {}
        for choice, (reads, makes) in options(rule, mesh):
            if any(isinstance(c, int) and not every <= rule.linear[c] for c in choice.values()):
                continue                                                # partial operands beside whole ones: never cheaper than summing first
            if (reads, makes) in seen:
                continue
            seen[reads, makes] = len(chosen)
            parts = math.prod(mesh.length(axis) for axis, c in choice.items() if isinstance(c, str))
            own = 0.0 if view else seconds * regime.passes / parts
            for i in answer:                                            # what the program returns must be summed
                code = moves.codes([makes[i]], mesh)
                ndim, size = len(graph.shape_of(rule.makes[i])), float(graph.size[rule.makes[i]])
                own += float(moves.seconds(code, np.where(code == -2, -1, code), ndim, size, mesh)[0, 0])
            own += _TIE * sum(c is None for c in choice.values())
            chosen.append(choice)
            into.append(reads)
            out.append(makes)
            cost.append(own)
            kept.append(0.0 if view else sum(local_bytes(graph, v, spec, mesh) for v, spec in zip(rule.makes, makes, strict=True)
                                             if graph.alias[v] == v))
        return chosen, into, out, np.array(cost), np.array(kept)

    key = ("operation", rule.kind, rule.inputs, rule.outputs, rule.sizes, rule.splits, rule.sums, rule.linear, rule.addends, answer, view, seconds,
           tuple(graph.dtype[v] for v in rule.makes), tuple(graph.alias[v] == v for v in rule.makes))
    chosen, into, out, cost, kept = tables.once(key, make)
    count = len(chosen)                                                 # type: ignore[arg-type]
    none = tables.once(("none", count), lambda: (np.zeros(count, np.bool_), np.zeros(count)))
    return StrategyVariable(graph.names[node], first, node, layer, out, into, chosen, none[0], cost, none[1], kept)  # type: ignore[arg-type]


# ---- edges


def _edge(made: Strategies, a: int, b: int, value: int, operand: int, rule: ShardingRule, tables: _Tables) -> F64:
    """f8[a, b] seconds of a microbatch to bring the value from its layout to the operand's, and its gradient back."""
    graph, mesh, regime = made.graph, made.mesh, made.regime
    source, reader = made.variables[a], made.variables[b]
    place = 0 if source.node < 0 else made.rules[source.node].makes.index(value)
    role = int(graph.role[value])
    key = ("edge", id(source.out), id(reader.into), place, operand, graph.shape_of(value), graph.dtype[value], role, id(reader.choices))

    def make() -> tuple[object, ...]:
        size, ndim = float(graph.size[value]), len(graph.shape_of(value))
        have = moves.codes([specs[place] for specs in source.out], mesh)
        want = moves.codes([specs[operand] for specs in reader.into], mesh)
        table = moves.seconds(have, want, ndim, size, mesh)
        if regime.train and floating(graph, value) and role != INPUT:
            back = moves.codes([_gradient(rule, choice, spec[operand], operand) for choice, spec in zip(reader.choices, reader.into, strict=True)],
                               mesh)
            summed = moves.seconds(back, np.where(have == -2, -1, have), ndim, size, mesh).T
            if role == PARAMETER:
                gathered = table > 0
                table = np.where(gathered, 2 * table + summed, summed / regime.microbatches)
            else:
                table = table * (1 + regime.again) + summed
        return (table,)

    (table,) = tables.once(key, make)
    return table                                                        # type: ignore[return-value]


def _gradient(rule: ShardingRule, choice: dict[str, Choice], spec: Spec, operand: int) -> Spec:
    """The layout of an operand's gradient as the backward operation makes it: partial along axes whose letter the operand does not bear."""
    own = {letter for dim in rule.inputs[operand] for letter in dim}
    partial = [axis for axis, c in choice.items() if isinstance(c, str) and c not in own]
    return Spec(spec.dims, tuple(partial))


__all__ = ["Edge", "Regime", "Strategies", "StrategyVariable", "build", "floating", "itemsize", "layouts", "local_bytes"]
