"""An SPMD program: the one list of steps that every rank of a mesh carries out on its own pieces, as plain data.

A step is an `OpCall` (an operator on the pieces of its operands) or a `Move` (a value brought to another layout by a chain of collectives). Values
stand in numbered slots; a value in two layouts has two. Nothing in it depends on the rank: pieces, offsets and groups follow from mesh and
coordinates. It holds no weights, so it is small, and equal programs have equal digests.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fourfold.graph import bytes_of
from fourfold.letters import Choice, ShardingRule
from fourfold.sharding.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    KEEP,
    PERMUTE,
    REDUCE_SCATTER,
    SLICE,
    Transfer,
    all_gather,
    all_reduce,
)
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec

if TYPE_CHECKING:
    from fourfold.frontends.letters import OpLetters


@dataclass(frozen=True)
class HeldValue:
    """A value as a rank holds it: the graph's `value`, its label, whole shape, type, and layout."""

    value: int
    label: str
    shape: tuple[int, ...]
    dtype: str
    spec: Spec


@dataclass(frozen=True)
class OpCall:
    """Node `node` of the graph on pieces: operator `target` ("aten.mm.default") with arguments `call`, letters `rule`, split as `choices` say;
    `operands` and `results` are slots.
    """

    node: int
    target: str
    call: OpLetters
    rule: ShardingRule
    choices: tuple[tuple[str, Choice], ...]
    layouts: tuple[Spec, ...]
    operands: tuple[int, ...]
    results: tuple[int, ...]

    def entering(self, slots: Sequence[HeldValue]) -> tuple[tuple[str, ...], ...]:
        """For each operand the axes along which ranks use the same piece for different parts of the work: its gradient is summed over them."""
        working = [axis for axis, choice in self.choices if choice is not None]
        return tuple(() if i in self.rule.unread else tuple(a for a in working if a not in slots[s].spec.axes and a not in slots[s].spec.partial)
                     for i, s in enumerate(self.operands))


@dataclass(frozen=True)
class Move:
    """HeldValue `source` brought into slot `target` by `chain`, one collective or local step after another."""

    source: int
    target: int
    chain: tuple[Transfer, ...]


Step = OpCall | Move


@dataclass(frozen=True)
class LoopedPair:
    """Steps `step` and `step` + 1 of a program carried out as one loop (`runtime.overlap`): a gather and the product that reads it, or a product and
    the scatter of its sum, along mesh axis `axis`. `kind`, `way`, `equation` and `letter` are those of the looped einsum; `first`, `second`, `bias`:
    positions of its operands in the call, the first being the gathered one.
    """

    step: int
    kind: str
    way: str
    axis: str
    equation: str
    letter: str
    first: int
    second: int
    bias: int | None


@dataclass(frozen=True)
class SpmdProgram:
    """`steps` of every rank of `mesh`, and `finish`, the moves that make whole outputs of what a step leaves (a check asks for them, nothing else).

    `inputs`, `weights`: slots that are there before; `outputs`: slots of whole outputs after `finish`; `gradients`: how many of them, counted from
    the end, are gradients. `learned`: floating-point parameters, with the chain that makes their gradient whole; it lies as its parameter does.
    `answers`: slots that hold the outputs as a step leaves them. Of a stage, `entries` come from the stage before and `exits` go to the next. `name`
    is the model's. `loops`: pairs of steps that are carried out as one (`runtime.overlap`).
    """

    name: str
    mesh: Mesh
    slots: tuple[HeldValue, ...]
    steps: tuple[Step, ...]
    finish: tuple[Move, ...]
    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    outputs: tuple[int, ...]
    gradients: int = 0
    learned: tuple[tuple[int, tuple[Transfer, ...]], ...] = ()
    answers: tuple[int, ...] = ()
    entries: tuple[int, ...] = ()
    exits: tuple[int, ...] = ()
    loops: tuple[LoopedPair, ...] = ()

    @cached_property
    def digest(self) -> str:
        """sha256 of all that decides what ranks do together: mesh, layouts, operators, collectives. Prices (α, β, seconds) do not count."""
        found = hashlib.sha256(f"{self.mesh.names} {self.mesh.shape} {self.outputs} {self.gradients}\n".encode())
        for slot in self.slots:
            found.update(f"{slot.shape} {slot.dtype} {slot.spec.dims} {slot.spec.partial}\n".encode())
        found.update(f"{self.inputs} {self.weights} {self.entries} {self.exits}\n".encode())
        found.update(f"{self.loops}\n".encode() if self.loops else b"")
        for step in (*self.steps, *self.finish):
            if isinstance(step, Move):
                told = [(t.collective, t.axis, t.to.dims, t.to.partial) for t in step.chain]
                found.update(f"{step.source} {step.target} {told}\n".encode())
            else:
                found.update(f"{step.target} {step.operands} {step.results} {step.choices} {step.call.args}\n".encode())
        return found.hexdigest()

    def transfers(self, learn: bool = False) -> Iterator[Transfer]:
        """Every collective of a step, in order; what a rank does by itself is left out. `learn`: with those of the way back, which autograd runs."""
        entered: set[tuple[int, tuple[str, ...]]] = set()
        moving = self.moving if learn else frozenset[int]()
        for step in self.steps:
            if isinstance(step, Move):
                back = reverse(self.slots[step.source], step.chain, self.mesh) if step.source in moving else ()
                yield from (one for one in (*step.chain, *back) if one.collective not in (SLICE, KEEP))
                continue
            for slot, axes in zip(step.operands, step.entering(self.slots), strict=True):
                if axes and slot in moving and (slot, axes) not in entered:
                    entered.add((slot, axes))
                    held = self.slots[slot]
                    size = bytes_of(held.spec.local_shape(held.shape, self.mesh), held.dtype)
                    for axis in axes:
                        yield Transfer(ALL_REDUCE, axis, size, all_reduce(size, self.mesh, axis), Spec(held.spec.dims))

    @cached_property
    def moving(self) -> frozenset[int]:
        """Slots that have a gradient: floating-point parameters and what is made of them."""
        found = {slot for slot, _ in self.learned}
        for step in self.steps:
            if isinstance(step, Move):
                found |= {step.target} if step.source in found else set()
            elif any(slot in found for i, slot in enumerate(step.operands) if i not in step.rule.unread):
                found |= {slot for slot in step.results if floating(self.slots[slot].dtype)}
        return frozenset(found)

    def traffic(self, learn: bool = False) -> dict[str, tuple[int, float]]:
        """collective → (how often in a step, bytes as its groups see them)."""
        found: dict[str, tuple[int, float]] = {}
        for one in self.transfers(learn):
            count, size = found.get(one.collective, (0, 0.0))
            found[one.collective] = (count + 1, size + one.size)
        return found

    def to_bytes(self) -> bytes:
        """For ranks of this run; never kept."""
        return pickle.dumps(self)


@dataclass(frozen=True)
class StagedProgram:
    """A pipeline: the program of each stage, the ranks of each in the row-major order of its mesh, and how microbatches pass ("gpipe" or "1f1b").

    `tied`: values of parameters that several stages hold, whose gradients are summed over them.
    """

    stages: tuple[SpmdProgram, ...]
    devices: tuple[tuple[int, ...], ...]
    microbatches: int = 1
    schedule: str = "1f1b"
    tied: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.stages[0].name

    @property
    def ranks(self) -> int:
        return sum(len(one) for one in self.devices)

    @cached_property
    def digest(self) -> str:
        """sha256 of the stages' digests, their ranks and the schedule."""
        told = f"{[stage.digest for stage in self.stages]} {self.devices} {self.microbatches} {self.schedule} {self.tied}"
        return hashlib.sha256(told.encode()).hexdigest()

    def stage_of(self, rank: int) -> int:
        return next(s for s, ranks in enumerate(self.devices) if rank in ranks)

    def to_bytes(self) -> bytes:
        """For ranks of this run; never kept."""
        return pickle.dumps(self)


def floating(dtype: str) -> bool:
    """Whether values of a type of torch's have gradients."""
    return dtype.startswith(("float", "bfloat", "complex"))


def reverse(slot: HeldValue, chain: Sequence[Transfer], mesh: Mesh) -> tuple[Transfer, ...]:
    """The chain that brings the gradient of what `chain` makes back to where the value in `slot` lies.

    A gradient lies as its value does, and is whole along axes over which the value is partial: so a gathered value's gradient is sliced, a sliced
    one's gathered, a scattered sum's gathered; sums, and values kept by one rank, hand theirs on as it is.
    """
    specs = [Spec(spec.dims) for spec in (slot.spec, *(step.to for step in chain))]
    back: list[Transfer] = []
    for step, before, after in reversed(list(zip(chain, specs, specs[1:], strict=False))):
        size = bytes_of(after.local_shape(slot.shape, mesh), slot.dtype) * mesh.length(step.axis)
        if step.collective == ALL_GATHER:
            back.append(Transfer(SLICE, step.axis, 0.0, 0.0, before))
        elif step.collective in (REDUCE_SCATTER, SLICE):
            back.append(Transfer(ALL_GATHER, step.axis, size, all_gather(size, mesh, step.axis), before))
        elif step.collective in (ALL_TO_ALL, PERMUTE):
            back.append(Transfer(step.collective, step.axis, step.size, step.seconds, before))
    return tuple(back)


__all__ = ["LoopedPair", "OpCall", "Move", "HeldValue", "SpmdProgram", "StagedProgram", "Step", "floating", "reverse"]
