"""Layouts of values → what every operation does on each mesh axis, which collectives lie between, and what it all costs.

Node by node in the graph's order: of the choices that the layouts around an operation suggest, the cheapest, counting what it takes to bring operands
there, to bring results to where they are wanted, and the work that a device is left with. A sum that only one reader sees stays partial as long as
that costs nothing more. A value is brought to each layout once, however many readers want it there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fourfold.graph import BITS, VIEW, Graph
from fourfold.letters import Choice, ShardingRule
from fourfold.sharding.annotate import Annotated
from fourfold.sharding.collectives import ALL_REDUCE, Transfer, all_reduce, reshard, reshard_seconds
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import Placed, combining, placed
from fourfold.sharding.spec import Spec


@dataclass(frozen=True)
class DeviceRates:
    """What a device computes: `peak` FLOP/s of products, `bandwidth` B/s of everything else. Assumed where nothing is said."""

    peak: float = 1e13
    bandwidth: float = 5e11


@dataclass(frozen=True)
class Conflict:
    """An operation whose operands did not lie as it wants them: what was done, `seconds` of its collectives, and what else there was, in words."""

    node: int
    seconds: float
    sentence: str


@dataclass(frozen=True)
class Lowered:
    """specs [V] how each value lies when it is made; choices [N] (axis, choice) pairs; wants [N] layouts of the operands, in the rule's order;
    transfers (value, steps) in the order of the graph; `communication` and `compute` seconds, one after the other.
    """

    specs: tuple[Spec, ...]
    choices: tuple[tuple[tuple[str, Choice], ...], ...]
    wants: tuple[tuple[Spec, ...], ...]
    transfers: tuple[tuple[int, tuple[Transfer, ...]], ...]
    communication: float
    compute: float
    conflicts: tuple[Conflict, ...] = field(default=(), repr=False)

    @property
    def seconds(self) -> float:
        return self.communication + self.compute


def work(graph: Graph, node: int, rates: DeviceRates) -> float:
    """Seconds of a node on one device: its flops at the peak or its bytes at the bandwidth, whichever takes longer; views take none."""
    if int(graph.fusion[node]) == VIEW:
        return 0.0
    return max(float(graph.flops[node]) / rates.peak, float(graph.reads[node] + graph.writes[node]) / rates.bandwidth)


def lower(graph: Graph, every: Sequence[ShardingRule], targets: Sequence[Spec], said: Mapping[int, Annotated], mesh: Mesh, rates: DeviceRates
          ) -> Lowered:
    """Choose for every node, given where propagation wants each value (`targets`) and what the user said."""
    return _Lowering(graph, every, targets, said, mesh, rates).run()


class _Lowering:
    def __init__(self, graph: Graph, every: Sequence[ShardingRule], targets: Sequence[Spec], said: Mapping[int, Annotated], mesh: Mesh,
                 rates: DeviceRates) -> None:
        self.graph, self.rules, self.targets, self.said, self.mesh, self.rates = graph, every, targets, said, mesh, rates
        self.have: list[Spec] = list(targets)
        self.results = set(graph.outputs.tolist())
        self.moved: dict[tuple[int, Spec], tuple[Transfer, ...]] = {}
        self.conflicts: list[Conflict] = []

    def run(self) -> Lowered:
        choices: list[tuple[tuple[str, Choice], ...]] = []
        wants: list[tuple[Spec, ...]] = []
        compute = []
        for node, rule in enumerate(self.rules):
            choice, layouts = self.decide(node, rule)
            choices.append(tuple(choice.items()))
            wants.append(layouts[0])
            compute.append(self.left(node, choice))
            for i, (value, want) in enumerate(zip(rule.reads, layouts[0], strict=True)):
                if i not in rule.unread:
                    self.bring(value, self.have[value], want)
            for o, (value, made) in enumerate(zip(rule.makes, layouts[1], strict=True)):
                if steps := self.combined(rule, choice, o, made):
                    self.moved[value, replace(made, partial=tuple(step.axis for step in steps))] = steps
                self.have[value] = self.kept(value, made)
        for value in self.graph.outputs.tolist():
            if self.have[value].partial and value not in self.said:
                self.bring(value, self.have[value], self.targets[value])
        transfers = tuple((value, steps) for (value, _), steps in self.moved.items())
        communication = math.fsum(step.seconds for _, steps in transfers for step in steps)
        return Lowered(tuple(self.have), tuple(choices), tuple(wants), transfers, communication, math.fsum(compute), tuple(self.conflicts))

    def size(self, value: int) -> float:
        return BITS.get(self.graph.dtype[value], 32) / 8

    def price(self, value: int, have: Spec, want: Spec) -> float:
        return reshard_seconds(have, want, self.graph.shape_of(value), self.size(value), self.mesh)

    def bring(self, value: int, have: Spec, want: Spec) -> None:
        if have != want and (value, want) not in self.moved:
            self.moved[value, want] = tuple(reshard(have, want, self.graph.shape_of(value), self.size(value), self.mesh))

    def combined(self, rule: ShardingRule, choice: Mapping[str, Choice], o: int, made: Spec) -> tuple[Transfer, ...]:
        """All-reduces of a maximum or minimum over split letters."""
        value = rule.makes[o]
        size = self.size(value) * math.prod(made.local_shape(self.graph.shape_of(value), self.mesh))
        return tuple(Transfer(ALL_REDUCE, axis, size, all_reduce(size, self.mesh, axis), made) for axis in combining(rule, choice, o))

    def kept(self, value: int, made: Spec) -> Spec:
        """How a value lies for its readers: as the user said; a sum that several see, as propagation wants it; else as it was made."""
        if value in self.said and not any(self.said[value].open) or made.partial and not self.alone(value):
            want = self.targets[value]
            if made != want:
                self.moved[value, want] = tuple(reshard(made, want, self.graph.shape_of(value), self.size(value), self.mesh))
            return want
        return made

    def alone(self, value: int) -> bool:
        """Whether one reader sees the value, once, or none does, and the program does not return it."""
        readers = self.graph.readers_of(value).tolist()
        return value not in self.results and (not readers or len(readers) == 1 and self.rules[readers[0]].reads.count(value) == 1)

    def left(self, node: int, choice: Mapping[str, Choice]) -> float:
        parts = math.prod(self.mesh.length(axis) for axis, one in choice.items() if isinstance(one, str))
        return work(self.graph, node, self.rates) / parts

    # ---- one operation

    def decide(self, node: int, rule: ShardingRule) -> tuple[dict[str, Choice], Placed]:
        """The cheapest choice; of equals the one that keeps more sums partial, then the first."""
        priced: list[tuple[float, int, int, dict[str, Choice], Placed, float]] = []
        for number, choice in enumerate(self.suggested(rule)):
            layouts = placed(rule, choice, self.mesh)
            if layouts is None:
                continue
            brought = math.fsum(self.price(v, self.have[v], want) for i, (v, want) in enumerate(zip(rule.reads, layouts[0], strict=True))
                                if i not in rule.unread)
            after = math.fsum(self.price(v, made, self.targets[v]) for v, made in zip(rule.makes, layouts[1], strict=True))
            inside = math.fsum(step.seconds for o, made in enumerate(layouts[1]) for step in self.combined(rule, choice, o, made))
            total = brought + inside + after + self.left(node, choice)
            kept = sum(isinstance(one, int) for one in choice.values())
            priced.append((float(f"{total:.9e}"), -kept, number, choice, layouts, brought))
        best = min(priced, key=lambda one: one[:3])
        self.told(node, rule, best, priced)
        return best[3], best[4]

    def suggested(self, rule: ShardingRule) -> Iterator[dict[str, Choice]]:
        """Choices for all axes together: along each nothing, the letters that it splits in some operand or result, sums that may wait."""
        ways: list[tuple[Choice, ...]] = []
        tensors = [*((self.have[v], letters) for v, letters in zip(rule.reads, rule.inputs, strict=True)),
                   *((self.targets[v], letters) for v, letters in zip(rule.reads, rule.inputs, strict=True)),
                   *((self.targets[v], letters) for v, letters in zip(rule.makes, rule.outputs, strict=True))]
        order = list(rule.size)
        for axis in self.mesh.names:
            letters = {letter for spec, names in tensors for axes, dim in zip(spec.dims, names, strict=True) if axis in axes for letter in dim
                       if letter in rule.splits}
            sums = [k for k, members in enumerate(rule.linear)
                    if any(axis in self.have[rule.reads[i]].partial and self.alone(rule.reads[i]) for i in members)]
            ways.append((*sorted(letters, key=order.index), *sums, None))
        for together in itertools.product(*ways):
            named: dict[str, Choice] = dict(zip(self.mesh.names, together, strict=True))
            yield named
            if len(set(together)) < len(together):                      # several axes split one letter: as its tensors nest them
                nested = {axes for spec, _ in tensors for axes in spec.dims if len(axes) > 1}
                for axes in sorted(nested):
                    if list(axes) != sorted(axes, key=self.mesh.axis) and all(axis in named for axis in axes):
                        yield {**{axis: named[axis] for axis in axes}, **{a: c for a, c in named.items() if a not in axes}}

    def told(self, node: int, rule: ShardingRule, best: tuple[float, int, int, dict[str, Choice], Placed, float],
             priced: Sequence[tuple[float, int, int, dict[str, Choice], Placed, float]]) -> None:
        """Write down an operation whose operands had to be moved, and the dearer alternatives."""
        moved = [(v, self.have[v], want) for v, want in zip(rule.reads, best[4][0], strict=True)
                 if not self.have[v].partial and self.price(v, self.have[v], want) > 0]
        if not moved:
            return
        steps = [f"{label(self.graph, v)} from {have} to {want} ({', '.join(map(str, self.steps(v, have, want)))})" for v, have, want in moved]
        where = self.graph.modules[node] or self.graph.names[node]
        sentence = f"{where} ({rule.kind}) {described(self.graph, rule, best[3])}: brings {' and '.join(steps)}, {best[5] * 1e6:.1f} µs"
        others = sorted((one for one in priced if one is not best and one[3] != best[3]), key=lambda one: one[:3])
        if others:
            sentence += f"; to have it {described(self.graph, rule, others[0][3])} would cost {(others[0][0] - best[0]) * 1e6:.1f} µs more"
        self.conflicts.append(Conflict(node, best[5], sentence + "."))

    def steps(self, value: int, have: Spec, want: Spec) -> list[Transfer]:
        return reshard(have, want, self.graph.shape_of(value), self.size(value), self.mesh)


def label(graph: Graph, value: int) -> str:
    """What a reader calls a value."""
    producer = int(graph.producer[value])
    return graph.labels[value] or (graph.names[producer] if producer >= 0 else f"value {value}")


def described(graph: Graph, rule: ShardingRule, choice: Mapping[str, Choice]) -> str:
    """A choice in words, by the first tensor that bears each letter."""
    told = []
    tensors = [*zip(rule.reads, rule.inputs, strict=True), *zip(rule.makes, rule.outputs, strict=True)]
    for axis, one in choice.items():
        if isinstance(one, str):
            value, d = next((v, d) for v, letters in tensors for d, dim in enumerate(letters) if one in dim)
            told.append(f"split over {axis} along dimension {d} of {label(graph, value)}")
        elif isinstance(one, int):
            told.append(f"partial over {axis}")
    return " and ".join(told) or "whole on every device"


__all__ = ["Conflict", "Lowered", "DeviceRates", "described", "label", "lower", "work"]
