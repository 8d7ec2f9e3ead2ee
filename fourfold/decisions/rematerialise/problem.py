"""The question: a sequence of a graph's nodes, repeats allowed, and an offset for each value it makes, within a limit of bytes, at the least price;
where there is a second memory, also which values are copied there and fetched.

`Rematerialise.of(graph, limit)` prices nodes by the roofline; give `price` where seconds were measured. The rules are those of `instance.py`; they
are examined by `validate.py`. The rule "memory" is the limit: techniques that know none (store all, checkpoint each block) openly ignore it, and
`solve` then tells what they broke.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fourfold.decisions.rematerialise import bound, validate
from fourfold.decisions.rematerialise._far import FarMemory
from fourfold.decisions.rematerialise._lives import lives, stays
from fourfold.decisions.rematerialise._pack import Packer, pack
from fourfold.decisions.rematerialise.instance import RematerialiseInstance, prices, random_ops
from fourfold.errors import InputError
from fourfold.graph import BACKWARD, ELEMENTWISE, FORWARD, VIEW, Builder, Graph
from fourfold.problem import Problem

UNITS = ("s", "J")


@dataclass(frozen=True, eq=False)
class Rematerialisation:
    """`sequence` i4[S]: node of each step; N + v (N nodes) fetches value v. `offset` i8[K]: where in the arena each value with memory of its own
    stands, by step, then in the order of the node's outputs. `away` i4[A]: values that are fetched, ascending, and `place` i8[A]: where their copies
    stand in the second memory. Raises InputError where they are no such arrays.
    """

    sequence: NDArray[np.int32]
    offset: NDArray[np.int64]
    away: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    place: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        for name, kind in (("sequence", np.int32), ("offset", np.int64), ("away", np.int32), ("place", np.int64)):
            given = np.asarray(getattr(self, name))
            if given.ndim != 1 or given.size and not np.issubdtype(given.dtype, np.integer):
                raise InputError(f"{name} of a plan is an array of {given.dtype} with {given.ndim} dimensions.", f"Give {kind.__name__}[·].")
            value = np.array(given, kind)
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.sequence)

    def to_json(self) -> dict[str, object]:
        far = {"away": self.away.tolist(), "place": self.place.tolist()} if len(self.away) else {}
        return {"sequence": self.sequence.tolist(), "offset": self.offset.tolist(), **far}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Rematerialisation:
        return cls(np.array(data["sequence"], np.int32), np.array(data["offset"], np.int64), np.array(data.get("away", ()), np.int32),
                   np.array(data.get("place", ()), np.int64))


@dataclass(frozen=True, eq=False)
class Rematerialise(RematerialiseInstance, Problem[Rematerialisation]):
    """A graph whose values must fit an arena of `limit` bytes. `unit` says what prices are: "s" or "J". What is idle may be dropped and computed
    again or, where there is a second memory, copied there and fetched.

    Raises InputError as `RematerialiseInstance` does, for a unit that is neither, and for a graph without nodes.
    """

    question: ClassVar[str] = "rematerialise"
    lever: ClassVar[str] = "machine"
    rules: ClassVar[tuple[str, ...]] = ("memory",)

    unit: str = "s"                                                     # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in UNITS:
            raise InputError(f"The unit of prices is {self.unit!r}.", f"Choose one of: {', '.join(UNITS)}.")
        if not len(self.graph):
            raise InputError("The graph has no op to run.", "Capture a model that computes something.")

    @classmethod
    def of(cls, graph: Graph, limit: int | None = None, *, price: ArrayLike | None = None, machine: Any = None, unit: str = "s",
           workspace: ArrayLike = (), seeds_kept: Iterable[int] = (), far: FarMemory | None = None, transfer: ArrayLike = ()) -> Rematerialise:
        """The problem of a graph; `price` f8[N] of each node, else the roofline's on the first device of `machine` (default: a common processor).

        `seeds_kept`: random ops that whoever runs the plan repeats with the same seed; others are never repeated. `far`: a second memory; `transfer`
        f8[V]: the price of a copy of each value, by default what its link takes.
        """
        cost = prices(graph, machine, energy=unit == "J") if price is None else np.asarray(price, np.float64)
        once = random_ops(graph)
        once[np.array(list(seeds_kept), np.int64)] = False
        return cls(graph, limit, cost, np.asarray(workspace, np.int64), once, far, np.asarray(transfer, np.float64), unit=unit)

    def within(self, limit: int | None) -> Rematerialise:
        """The same graph under another limit; what follows from the graph alone is not worked out again."""
        made = replace(self, limit=limit)
        for name in ("own", "size", "source", "instances_of", "viewing", "reads", "core", "linked"):
            if name in self.__dict__:
                object.__setattr__(made, name, self.__dict__[name])
        return made

    def plan(self, sequence: ArrayLike, packer: Packer = pack) -> Rematerialisation:
        """The answer that runs `sequence` (graph nodes), with offsets by `packer`."""
        steps = np.asarray(sequence, np.int32)
        away = self.fetched(steps)
        return Rematerialisation(steps, packer(lives(self, steps)), away, packer(stays(self, steps, away)))

    def far_peak(self, answer: Rematerialisation) -> int:
        """Bytes of the second memory that a valid answer takes."""
        return int((answer.place + self.size[answer.away]).max(initial=0))

    def carried(self, answer: Rematerialisation) -> int:
        """Steps that fetch a value from the second memory."""
        return int((answer.sequence >= len(self.graph)).sum())

    def peak(self, answer: Rematerialisation) -> int:
        """Bytes of the arena that a valid answer takes."""
        return validate.peak(self, answer.sequence, answer.offset)

    def repeated(self, answer: Rematerialisation) -> int:
        """Steps that compute something again; views, which compute nothing, are not counted."""
        ran = answer.sequence[answer.sequence < len(self.graph)]
        computing = ran[~self.viewing[ran]]
        return len(computing) - len(np.unique(computing))

    # ---- the contract

    def baseline(self) -> Rematerialisation:
        """The graph's own order, every value kept until its last use."""
        return self.plan(np.arange(len(self.graph)))

    def violations(self, answer: Rematerialisation) -> list[str]:
        """Sentences: reads, outputs, repeats, offsets, overlaps, copies; the limit only where all else holds."""
        if broken := validate.unsound(self, answer.sequence, answer.offset) or validate.misplaced(self, answer.sequence, answer.away, answer.place):
            return broken
        if self.limit is not None and (peak := self.peak(answer)) > self.limit:
            return [f"it takes {peak:,} bytes, {peak - self.limit:,} more than the limit of {self.limit:,}"]
        return []

    def relaxed(self, rules: tuple[str, ...]) -> Rematerialise:
        return self.within(None) if "memory" in rules and self.limit is not None else self

    def cost(self, answer: Rematerialisation) -> float:
        """Sum of the prices of its steps, and of one copy of each value that is fetched."""
        nodes = len(self.graph)
        ran, fetched = answer.sequence[answer.sequence < nodes], answer.sequence[answer.sequence >= nodes] - nodes
        return float(self.price[ran].sum() + self.transfer[fetched].sum() + self.transfer[answer.away].sum())

    def bound(self) -> float | None:
        return bound.least_price(self)

    def least_peak(self) -> int:
        """Bytes that no plan of this graph can do without."""
        return bound.least_peak(self)

    @classmethod
    def sample(cls, seed: int) -> Rematerialise:
        """A random graph of 4 to 40 nodes with views, several outputs and, for odd seeds, a backward pass; the limit is one that some plan meets.
        From seed 5 on every sixth has a second memory, faster than most ops."""
        from fourfold.decisions.rematerialise._evict import evicted
        from fourfold.decisions.rematerialise._lives import own_order

        problem = cls.of(_sample(np.random.default_rng(seed), bool(seed % 2), 3 + 4 * (seed % 4)))
        if seed % 6 == 5:
            problem = cls.of(problem.graph, far=FarMemory(6144, 4096 / float(np.median(problem.price[problem.price > 0]))))
        least, own = problem.least_peak(), problem.peak(problem.baseline())
        for share in (0.3, 0.5, 0.7) if seed % 3 else ():
            limit = int(least + share * (own - least))
            found = evicted(problem.core, own_order(problem.core), limit, 1.0, 1.0)
            if found is not None and problem.peak(problem.plan(problem.expand(found))) <= limit:
                return problem.within(limit)
        return problem.within(own)


def _sample(dice: np.random.Generator, train: bool, length: int) -> Graph:
    """A network of random elementwise and reducing ops with skips and views; with `train`, an op a forward op backwards that reads what it read."""
    build = Builder("sample")
    shapes = [int(n) for n in dice.choice((16, 64, 100, 256), 3)]
    values = [(build.input((shapes[0],), "float32"), shapes[0])]
    weights = [build.parameter((n,), "float32") for n in shapes]
    tape: list[tuple[tuple[int, ...], int, int]] = []
    for i in range(length):
        reads = [values[j] for j in {len(values) - 1, int(dice.integers(len(values)))}]
        wide = int(dice.choice(shapes))
        inputs = tuple(v for v, _ in reads)
        weight = weights[int(dice.integers(len(weights)))]
        (made,) = build.node("aten.add", (*inputs, weight), [((wide,), "float32")], steps=float(wide * (1 + i % 5)), fusion=ELEMENTWISE,
                             phase=FORWARD, layer=i // 3)
        tape.append((inputs, made, wide))
        if dice.random() < 0.4:
            (made,) = build.node("aten.view", (made,), [((wide,), "float32")], fusion=VIEW, alias=[made], phase=FORWARD, layer=i // 3)
        values.append((made, wide))
    if not train:
        build.output(values[-1][0])
        build.output(values[len(values) // 2][0])
        return build.build()
    wide = values[-1][1]
    gradient = build.node("aten.ones_like", (values[-1][0],), [((wide,), "float32")], steps=float(wide), fusion=ELEMENTWISE, phase=BACKWARD)[0]
    for i, (inputs, _, wide) in enumerate(reversed(tape)):
        (gradient,) = build.node("aten.mul", (gradient, *inputs), [((wide,), "float32")], steps=float(wide), fusion=ELEMENTWISE, phase=BACKWARD,
                                 layer=(length - 1 - i) // 3)
        if i % 3 == 0:
            build.output(gradient)
    build.output(gradient)
    return build.build()
