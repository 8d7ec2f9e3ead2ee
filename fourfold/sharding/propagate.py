"""A few annotated tensors → a layout of every value: propagation to a fixed point, then the operations' layouts by cost.

After GSPMD (Xu et al., 2021) and Shardy: the axes that split a dimension belong to its letter, and go to every dimension of the operation that bears
the letter, forwards and backwards. Element-wise operations and movements first, then products, then broadcasts and reductions, each to a fixed point.
A layout is only ever refined, and never one that the user gave. All operations of a round see the same state, so that the answer does not depend on
how nodes are numbered; what they ask for differently is settled by what the loser would pay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fourfold.graph import BITS, CONTRACTION, ELEMENTWISE, GATHER, VIEW, Graph
from fourfold.letters import ShardingRule
from fourfold.program import Captured
from fourfold.sharding.annotate import Annotated, Annotations, annotated
from fourfold.sharding.collectives import reshard_seconds
from fourfold.sharding.lower import DeviceRates, Lowered, lower
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import placed, rules
from fourfold.sharding.spec import Spec

Dims = tuple[tuple[str, ...], ...]
FIRST = frozenset({ELEMENTWISE, VIEW, GATHER})
WIDENING = ("expand", "broadcast", "repeat")                            # views that are broadcasts


@dataclass(frozen=True)
class Propagation:
    """Where everything lies. `targets`: for each value the layout that propagation gave it. `lowered`: what each operation does, and the collectives.

    `passes`: rounds until nothing changed; `unknown`: kinds without letters, whole on every device; `annotated`: values that the user spoke of.
    """

    graph: Graph = field(repr=False)
    mesh: Mesh
    rules: tuple[ShardingRule, ...] = field(repr=False)
    targets: tuple[Spec, ...] = field(repr=False)
    lowered: Lowered = field(repr=False)
    annotated: Mapping[int, Annotated] = field(repr=False)
    passes: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def specs(self) -> tuple[Spec, ...]:
        """For each value the layout in which its producer leaves it; inputs and parameters as they are to be distributed."""
        return self.lowered.specs

    @property
    def seconds(self) -> float:
        """Of all collectives, and of what the slowest device computes, by the model of `lower`."""
        return self.lowered.seconds

    def spec_of(self, name: str) -> Spec:
        """The layout of the input, parameter or node of that name. Raises KeyError where there is none."""
        for value, label in enumerate(self.graph.labels):
            if label == name:
                return self.specs[value]
        return self.specs[self.graph.outputs_of(self.graph.names.index(name))[0]] if name in self.graph.names else _missing(name)

    def parameters(self) -> dict[str, Spec]:
        """Label → layout of every parameter."""
        from fourfold.graph import PARAMETER

        return {self.graph.labels[v]: self.specs[v] for v in range(len(self.graph.producer)) if self.graph.role[v] == PARAMETER}

    def sentences(self) -> list[str]:
        """What was settled, and what is not known, in words; the dearest conflict first."""
        told = [conflict.sentence for conflict in sorted(self.lowered.conflicts, key=lambda c: -c.seconds)]
        if self.unknown:
            told.append(f"No letters are known for {', '.join(self.unknown)}: whole on every device.")
        return told


def _missing(name: str) -> Spec:
    raise KeyError(name)


def propagate(found: Captured, annotations: Annotations, mesh: Mesh, *, rates: DeviceRates | None = None) -> Propagation:
    """Complete `annotations` (name pattern → P or Spec; names are those of `annotate.names_of`) over a captured program.

    `rates`: how fast a device computes, which weighs work that every device does alike against collectives. Raises InputError as `annotated` does.
    """
    graph = found.graph
    said = annotated(graph, annotations, mesh)
    every = rules(found)
    state = _Fixpoint(graph, every, mesh, said)
    passes = state.run()
    targets = tuple(Spec(dims, said[v].spec.partial if v in said else ()) for v, dims in enumerate(state.dims))
    lowered = lower(graph, every, targets, said, mesh, rates or DeviceRates())
    unknown = tuple(sorted({rule.kind for rule in every if not rule.known and rule.reads}))
    return Propagation(graph, mesh, every, targets, lowered, said, passes, unknown)


def split_of(letters: Dims, dims: Dims, rule: ShardingRule, mesh: Mesh) -> dict[str, tuple[str, ...]]:
    """Letter → axes that split it, where a tensor of those `letters` lies as `dims`; axes that fit no letter are left out.

    The axes of a dimension go to its major letter until that has a device for each element, then to the next.
    """
    found: dict[str, tuple[str, ...]] = {}
    for names, axes in zip(letters, dims, strict=True):
        left = list(axes)
        for letter in names:
            taken: list[str] = []
            parts = 1
            while left and parts < rule.size[letter]:
                more = parts * mesh.length(left[0])
                if letter in rule.even and rule.size[letter] % more or more > rule.size[letter]:
                    break
                parts = more
                taken.append(left.pop(0))
            if taken:
                found[letter] = tuple(taken)
            if parts < rule.size[letter]:
                break
    return found


class _Fixpoint:
    """Layouts of all values while they are refined, in rounds."""

    def __init__(self, graph: Graph, every: Sequence[ShardingRule], mesh: Mesh, said: Mapping[int, Annotated]) -> None:
        self.graph, self.rules, self.mesh, self.said = graph, every, mesh, said
        self.dims: list[Dims] = [said[v].spec.dims if v in said else ((),) * len(graph.shape_of(v)) for v in range(len(graph.producer))]
        self.level = [_level(graph, node, rule) for node, rule in enumerate(every)]

    def run(self) -> int:
        """Refine until nothing changes at any level; rounds that changed something."""
        passes = 0
        for level in (0, 1, 2):
            awake = {node for node in range(len(self.rules)) if self.level[node] <= level}
            while awake:
                asked: dict[int, list[tuple[Dims, float]]] = {}
                for node in awake:
                    for value, dims, stake in self.asks(node):
                        asked.setdefault(value, []).append((dims, stake))
                changed = {value for value, wishes in asked.items() if self.settle(value, wishes)}
                passes += bool(changed)
                awake = {node for value in changed for node in self.beside(value) if self.level[node] <= level}
        return passes

    def beside(self, value: int) -> Iterable[int]:
        producer = int(self.graph.producer[value])
        return (*self.graph.readers_of(value).tolist(), *((producer,) if producer >= 0 else ()))

    def bytes_of(self, value: int) -> float:
        return BITS.get(self.graph.dtype[value], 32) / 8

    # ---- what one operation asks for

    def asks(self, node: int) -> list[tuple[int, Dims, float]]:
        """(value, dims, stake): layouts that the letters of `node` give its operands and results, where they refine what is; stake in seconds."""
        rule = self.rules[node]
        if not rule.splits:
            return []
        tensors = [*zip(rule.reads, rule.inputs, strict=True), *zip(rule.makes, rule.outputs, strict=True)]
        tensors = [pair for i, pair in enumerate(tensors) if i not in rule.unread]
        split = [split_of(letters, self.dims[value], rule, self.mesh) for value, letters in tensors]
        over = self.agreed(rule, tensors, split)
        if not over:
            return []
        found = []
        for value, letters in tensors:
            dims = self.extended(value, letters, over)
            if dims is not None:
                stake = max((reshard_seconds(Spec(self.dims[v]), Spec(d), self.graph.shape_of(v), self.bytes_of(v), self.mesh)
                             for v, d in ((v, self.extended(v, ls, over)) for v, ls in tensors) if d is not None), default=0.0)
                found.append((value, dims, stake))
        return found

    def agreed(self, rule: ShardingRule, tensors: Sequence[tuple[int, Dims]], split: Sequence[Mapping[str, tuple[str, ...]]]
               ) -> dict[str, tuple[str, ...]]:
        """Letter → axes, from all tensors together: an axis that several letters claim goes to the one whose choice costs the operation least."""
        claims: dict[str, set[str]] = {}
        longest: dict[str, tuple[str, ...]] = {}
        for one in split:
            for letter, axes in one.items():
                if letter not in rule.splits:
                    continue
                for axis in axes:
                    claims.setdefault(axis, set()).add(letter)
                before = longest.get(letter, ())
                longest[letter] = max(before, axes, key=lambda a: (len(a), [-self.mesh.axis(x) for x in a]))
        owner = {axis: next(iter(letters)) if len(letters) == 1 else self.cheapest(rule, tensors, axis, sorted(letters))
                 for axis, letters in claims.items()}
        over: dict[str, tuple[str, ...]] = {}
        for letter, base in longest.items():
            more = [axis for axis in self.mesh.names if owner.get(axis) == letter and axis not in base]
            kept = tuple(axis for axis in (*base, *more) if owner[axis] == letter)
            while kept and not self.fits(rule, letter, kept):
                kept = kept[:-1]
            if kept:
                over[letter] = kept
        while over and not rule.allows(self.mesh.sizes, [(axis, letter) for letter, axes in over.items() for axis in axes]):
            over.pop(max(over, key=lambda a: list(rule.size).index(a)))
        return over

    def fits(self, rule: ShardingRule, letter: str, axes: Sequence[str]) -> bool:
        """Whether there is an element for each device, and pieces are even where they must be."""
        parts = self.mesh.lengths(axes)
        return parts <= rule.size[letter] and (letter not in rule.even or rule.size[letter] % parts == 0)

    def cheapest(self, rule: ShardingRule, tensors: Sequence[tuple[int, Dims]], axis: str, letters: Sequence[str]) -> str:
        """The letter that `axis` had best split: least to bring operands there, and to make sums of what comes out."""
        def price(letter: str) -> tuple[float, int]:
            layouts = placed(rule, {axis: letter}, self.mesh)
            if layouts is None:
                return float("inf"), 0
            total = 0.0
            for value, want in zip(rule.reads, layouts[0], strict=True):
                have = Spec(tuple(tuple(a for a in axes if a == axis) for axes in self.dims[value]))
                total += reshard_seconds(have, want, self.graph.shape_of(value), self.bytes_of(value), self.mesh)
            for value, have in zip(rule.makes, layouts[1], strict=True):
                want = Spec(tuple(tuple(a for a in axes if a == axis) for axes in self.dims[value]))
                total += reshard_seconds(have, want, self.graph.shape_of(value), self.bytes_of(value), self.mesh)
            return total, list(rule.size).index(letter)

        return min(letters, key=price)

    def extended(self, value: int, letters: Dims, over: Mapping[str, tuple[str, ...]]) -> Dims | None:
        """The layout of a value with the axes of its letters; None where it is no refinement, or nothing new."""
        now, said = self.dims[value], self.said.get(value)
        wished = [tuple(axis for letter in names for axis in over.get(letter, ())) for names in letters]
        used = {axis: d for d, axes in enumerate(now) for axis in axes}
        made: list[tuple[str, ...]] = []
        for d, (have, want) in enumerate(zip(now, wished, strict=True)):
            closed = said is not None and not said.open[d]
            kept = want[: next((i for i, axis in enumerate(want) if used.get(axis, d) != d), len(want))]
            made.append(kept if not closed and len(kept) > len(have) and kept[: len(have)] == have else have)
        return tuple(made) if tuple(made) != now else None

    # ---- what the operations around a value agree on

    def settle(self, value: int, wishes: Sequence[tuple[Dims, float]]) -> bool:
        """Refine a value by what is asked for: axis by axis where wishes go together, by cost where they do not. Whether it changed."""
        shape, size, now = self.graph.shape_of(value), self.bytes_of(value), self.dims[value]
        options = sorted(set(dims for dims, _ in wishes))
        weight = {dims: max(s for d, s in wishes if d == dims) for dims in options}

        def loss(dims: Dims) -> tuple[float, float, Dims]:
            others = math.fsum(reshard_seconds(Spec(dims), Spec(other), shape, size, self.mesh) for other, _ in wishes)
            return others, -weight[dims], dims

        best = min(options, key=loss)
        for other in sorted(options, key=loss)[1:]:                     # what else was asked for, as far as it goes with the best
            used = {axis: d for d, axes in enumerate(best) for axis in axes}
            best = tuple(theirs if len(theirs) > len(mine) and theirs[: len(mine)] == mine and all(used.get(a, d) == d for a in theirs) else mine
                         for d, (mine, theirs) in enumerate(zip(best, other, strict=True)))
        if best == now:
            return False
        self.dims[value] = best
        return True


def _level(graph: Graph, node: int, rule: ShardingRule) -> int:
    """0: element-wise and movements; 1: products; 2: broadcasts, reductions and all else."""
    fusion, op = int(graph.fusion[node]), rule.kind.rpartition(".")[2]
    if fusion == CONTRACTION:
        return 1
    return 0 if fusion in FIRST and not op.startswith(WIDENING) else 2


__all__ = ["Propagation", "propagate", "split_of"]
