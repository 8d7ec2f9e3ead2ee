"""A captured program and layouts of some of its values → an SPMD program: how each node is split, and what is moved between.

Layouts that are given are kept. A node whose layouts are not given takes, of all ways to split it that its letters allow, the one whose operands are
cheapest to bring there and whose own work is shared best (α–β prices, `sharding.collectives`): a step ahead only, as eager DTensor decides it, not a
plan. A plan gives a layout for every value, and then nothing is left to decide.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fourfold.errors import InputError, ModelError
from fourfold.graph import PARAMETER, VIEW, Graph, bytes_of
from fourfold.letters import Choice, ShardingRule
from fourfold.program import Captured
from fourfold.runtime.spmd.program import HeldValue, Move, OpCall, SpmdProgram, Step, floating
from fourfold.sharding.collectives import ALL_GATHER, ALL_REDUCE, KEEP, SLICE, Transfer, all_gather, all_reduce, reshard
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import Placed, options, rules
from fourfold.sharding.rules import placed as placed_as
from fourfold.sharding.spec import Spec

if TYPE_CHECKING:
    from fourfold.frontends.fx_graph import TorchProgram
    from fourfold.frontends.letters import OpLetters

FLOPS, BYTES = 3e10, 5e9                                                # a second of one rank, assumed, where work is weighed against traffic
Taken = tuple[tuple[tuple[str, Choice], ...], Placed]


def lower(found: Captured, mesh: Mesh, layouts: Mapping[int, Spec], gradients: int = 0,
          choices: Mapping[int, Mapping[str, Choice]] | None = None, part: StagePart | None = None) -> SpmdProgram:
    """The SPMD program of `found` on `mesh` with values laid out as `layouts` (value → Spec) say; inputs and weights that are left out are whole.

    `gradients`: how many outputs, counted from the end, are gradients. `choices`: node → what is done along each axis, where that is decided; a
    choice that ranks cannot carry out (pieces that do not nest) is decided anew. `part`: one stage of it. Raises ModelError for a program that is
    not torch's or calls what cannot be named, InputError for a layout that does not fit its value.
    """
    if found.program.dialect != "torch":
        raise ModelError(f"the program is of {found.program.dialect}, and only torch's are carried out in pieces", "Capture the torch model.")
    for value, spec in layouts.items():
        _fits(found.graph, value, spec, mesh)
    return _Assembly(found, mesh, layouts, gradients, choices or {}, part).program()


def _fits(graph: Graph, value: int, spec: Spec, mesh: Mesh) -> None:
    shape, label = graph.shape_of(value), graph.labels[value] or f"value {value}"
    for axis in (*spec.axes, *spec.partial):
        mesh.axis(axis)
    if spec.ndim != len(shape):
        raise InputError(f"{label} has {len(shape)} dimensions, and its layout {spec} has {spec.ndim}.", "Give a layout an entry a dimension.")
    if not steady(spec, shape, mesh):
        raise InputError(f"{label} of {list(shape)} cannot be laid out as {spec} on {mesh}: a rank would hold nothing, or pieces do not nest.",
                         "Split a dimension that the devices divide.")


def steady(spec: Spec, shape: Sequence[int], mesh: Mesh) -> bool:
    """Whether every rank holds something, and a dimension that several axes split is split evenly, so that pieces nest."""
    for size, axes in zip(shape, spec.dims, strict=True):
        parts = mesh.lengths(axes)
        if parts > 1 and size % parts and (len(axes) > 1 or (parts - 1) * -(-size // parts) >= size):
            return False
    return True


def chain_of(have: Spec, want: Spec, shape: Sequence[int], itemsize: float, mesh: Mesh) -> tuple[Transfer, ...]:
    """The cheapest chain from `have` to `want` that ranks can carry out: where pieces are uneven on the way, through the whole value."""
    chain = tuple(reshard(have, want, shape, itemsize, mesh))
    if all(step.to.even(shape, mesh) for step in chain) and have.even(shape, mesh):
        return chain
    made, at = list[Transfer](), have
    for axis in at.partial:
        if axis not in want.partial:
            at = at.without(axis)
            size = itemsize * math.prod(at.local_shape(shape, mesh))
            made.append(Transfer(ALL_REDUCE, axis, size, all_reduce(size, mesh, axis), at))
    for dim, axes in enumerate(have.dims):
        for axis in reversed(axes):
            if at.dims[dim] == want.dims[dim]:
                break
            size = itemsize * math.prod(at.local_shape(shape, mesh)) * mesh.length(axis)
            at = at.with_dim(dim, at.dims[dim][:-1])
            made.append(Transfer(ALL_GATHER, axis, size, all_gather(size, mesh, axis), at))
    for dim, axes in enumerate(want.dims):
        for axis in axes[len(at.dims[dim]):]:
            at = at.with_dim(dim, (*at.dims[dim], axis))
            made.append(Transfer(SLICE, axis, 0.0, 0.0, at))
    for axis in want.partial:
        if axis not in at.partial:
            at = Spec(at.dims, (*at.partial, axis))
            made.append(Transfer(KEEP, axis, 0.0, 0.0, at))
    return tuple(made)


@dataclass(frozen=True)
class StagePart:
    """A stage of a program: its `nodes`, the values that come in, those that go out with the `layouts` they must have, and whether it is the last."""

    nodes: frozenset[int]
    entries: tuple[int, ...] = ()
    exits: tuple[int, ...] = ()
    layouts: Mapping[int, Spec] = field(default_factory=dict)
    last: bool = True


@dataclass
class _Assembly:
    found: Captured
    mesh: Mesh
    layouts: Mapping[int, Spec]
    gradients: int
    choices: Mapping[int, Mapping[str, Choice]]
    part: StagePart | None = None
    slots: list[HeldValue] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    held: dict[int, dict[Spec, int]] = field(default_factory=dict)       # value → its layouts so far → slot

    @property
    def graph(self) -> Graph:
        return self.found.graph

    def program(self) -> SpmdProgram:
        graph, part = self.graph, self.part
        made = [v for v in range(len(graph.producer)) if graph.producer[v] < 0 and (part is None or part.nodes & set(graph.readers_of(v).tolist()))]
        for v in (*made, *(part.entries if part is not None else ())):
            self.slot(v, self.layouts.get(v, Spec.replicated(len(graph.shape_of(v)))))
        bound = self.found.program.weights()
        weights = tuple(next(iter(self.held[v].values())) for v in made if v in bound)
        inputs = tuple(next(iter(self.held[v].values())) for v in made if v not in bound)
        for node, rule in enumerate(rules(self.found)):
            if part is None or node in part.nodes:
                self.node(node, rule)
        exits = tuple(self.brought(v, part.layouts.get(v, self.summed(v))) for v in part.exits) if part is not None else ()
        finish, outputs, before = list[Move](), list[int](), len(self.steps)
        results = [v for v in graph.outputs.tolist() if v in self.held] if part is None or part.last else []
        answers = tuple(list(self.held[v].values())[-1] for v in results)
        for v in results:
            outputs.append(self.brought(v, Spec.replicated(len(graph.shape_of(v)))))
        finish = [step for step in self.steps[before:] if isinstance(step, Move)]
        learned, followed = [], self.followed()
        for s in weights:
            slot = self.slots[s]
            if graph.role[slot.value] == PARAMETER and floating(slot.dtype) and slot.value not in followed:
                whole = Spec.replicated(len(slot.shape))
                learned.append((s, chain_of(Spec(slot.spec.dims), whole, slot.shape, self.item(slot.value), self.mesh)))
        return SpmdProgram(graph.name, self.mesh, tuple(self.slots), tuple(self.steps[:before]), tuple(finish), inputs, weights, tuple(outputs),
                           self.gradients, tuple(learned), answers, tuple(next(iter(self.held[v].values())) for v in part.entries) if part else (),
                           exits)

    def summed(self, value: int) -> Spec:
        """The layout of a value with its sums made."""
        return Spec(next(reversed(self.held[value])).dims)

    def followed(self) -> set[int]:
        """Statistics that a normalisation follows; they are no parameters, and autograd refuses to differentiate by them."""
        calls = [step for step in self.steps if isinstance(step, OpCall) and "running_mean" in step.call.args]
        found = [(step, step.call.tensor(name)) for step in calls for name in ("running_mean", "running_var")]
        return {step.rule.reads[one.position] for step, one in found if one is not None}

    def slot(self, value: int, spec: Spec) -> int:
        graph = self.graph
        self.slots.append(HeldValue(value, graph.labels[value], graph.shape_of(value), graph.dtype[value], spec))
        self.held.setdefault(value, {})[spec] = len(self.slots) - 1
        return len(self.slots) - 1

    def item(self, value: int) -> int:
        return bytes_of((1,), self.graph.dtype[value])

    def brought(self, value: int, want: Spec) -> int:
        """The slot of `value` laid out as `want`; moved there from the nearest layout that it has, unless it is there."""
        there = self.held[value]
        if want not in there:
            have, chain = self.nearest(value, want)
            source = there[have]
            self.steps.append(Move(source, self.slot(value, want), chain))
        return there[want]

    def nearest(self, value: int, want: Spec) -> tuple[Spec, tuple[Transfer, ...]]:
        shape, item = self.graph.shape_of(value), self.item(value)
        ways = [(have, chain_of(have, want, shape, item, self.mesh)) for have in self.held[value]]
        return min(ways, key=lambda way: (sum(step.seconds for step in way[1]), len(way[1])))

    def node(self, node: int, rule: ShardingRule) -> None:
        choices, (reads, makes) = self.chosen(node, rule)
        operands = tuple(next(iter(self.held[v].values())) if i in rule.unread else self.brought(v, reads[i]) for i, v in enumerate(rule.reads))
        target, call = self.named(node, rule)
        results = tuple(self.slot(v, spec) for v, spec in zip(rule.makes, makes, strict=True))
        self.steps.append(OpCall(node, target, call, rule, choices, makes, operands, results))
        for v in rule.makes:
            if v in self.layouts:
                self.brought(v, self.layouts[v])

    def named(self, node: int, rule: ShardingRule) -> tuple[str, OpLetters]:

        from fourfold.frontends import letters

        program: TorchProgram = self.found.program                      # type: ignore[assignment]
        fx_node, graph = program.nodes[node], self.graph
        target = str(fx_node.target)
        if not hasattr(fx_node.target, "_schema"):
            raise ModelError(f"{graph.names[node]} calls {target}, which is no operator of torch's that ranks can name", "Export the model again.")
        call = copy.copy(letters.OpLetters(rule.kind, fx_node, program.values, rule.makes, [graph.shape_of(v) for v in rule.makes]))
        call.values = {}
        return target, call

    def chosen(self, node: int, rule: ShardingRule) -> Taken:
        """The cheapest way to split a node: bringing operands there, its share of the work, and what its results owe."""
        graph, best, least = self.graph, None, math.inf
        work = (graph.flops[node] + graph.steps[node]) / FLOPS + (graph.reads[node] + graph.writes[node]) / BYTES
        for choices, placed in self.ways(rule, self.choices.get(node)):
            split = math.prod(self.mesh.length(axis) for axis, choice in choices.items() if isinstance(choice, str))
            price = work / split if graph.fusion[node] != VIEW else 0.0
            for i, v in enumerate(rule.reads):
                if i not in rule.unread and price < least:
                    price += sum(step.seconds for step in self.nearest(v, placed[0][i])[1])
            for v, spec in zip(rule.makes, placed[1], strict=True):
                if price >= least:
                    break
                price += self.owed(v, spec)
            if price < least:
                best, least = (tuple((axis, choice) for axis, choice in choices.items() if choice is not None), placed), price
        if best is None:
            raise ModelError(f"{graph.names[node]} cannot be carried out on {self.mesh}", "Plan for another mesh.")
        return best

    def ways(self, rule: ShardingRule, decided: Mapping[str, Choice] | None) -> Iterator[tuple[Mapping[str, Choice], Placed]]:
        """What is decided, where ranks can carry it out; else all that they can."""
        graph = self.graph

        def possible(placed: Placed) -> bool:
            return all(steady(spec, graph.shape_of(v), self.mesh) for spec, v in zip((*placed[0], *placed[1]), (*rule.reads, *rule.makes),
                                                                                     strict=True))

        if decided is not None:
            given = placed_as(rule, decided, self.mesh)
            if given is not None and possible(given):
                yield decided, given
                return
        for choices, given in options(rule, self.mesh):
            if possible(given):
                yield choices, given

    def owed(self, value: int, spec: Spec) -> float:
        """Seconds to bring a result to the layout that it must have, or to sum it up once somebody needs it."""
        want = self.layouts.get(value)
        if want is None:
            want = Spec(spec.dims)
        if want == spec:
            return 0.0
        return sum(step.seconds for step in chain_of(spec, want, self.graph.shape_of(value), self.item(value), self.mesh))


__all__ = ["StagePart", "chain_of", "lower", "steady"]
