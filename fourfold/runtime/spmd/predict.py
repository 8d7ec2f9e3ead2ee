"""The seconds of an SPMD program's step: what a rank computes by the roofline of its pieces, what it waits for by α and β."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fourfold.graph import BACKWARD, CONTRACTION, FORWARD, INPUT, INTERMEDIATE, PARAMETER, Builder, Graph, bytes_of
from fourfold.machine import Machine
from fourfold.program import Captured
from fourfold.runtime.spmd.program import OpCall, SpmdProgram, StagedProgram
from fourfold.sharding.collectives import PERMUTE

if TYPE_CHECKING:
    from fourfold.runtime.spmd.link import LinkPrice


@dataclass(frozen=True)
class Predicted:
    """Seconds of a step on one rank: `compute` of its operators and `handing`, what the interpreter adds to each; `communicate` by the wall clock and
    `driving`, the processor's part of that. `wall` and `cpu` are the sums.
    """

    compute: float
    handing: float
    communicate: float
    driving: float

    @property
    def wall(self) -> float:
        return self.compute + self.handing + self.communicate

    @property
    def cpu(self) -> float:
        return self.compute + self.handing + self.driving


def rank_graph(found: Captured, program: SpmdProgram) -> Graph:
    """The operators of one rank on its pieces (the largest that any rank has), as a graph that `cost` prices; collectives are left out."""
    graph, builder, mesh = found.graph, Builder(program.name), program.mesh
    value: dict[int, int] = {}

    def local(slot: int) -> tuple[tuple[int, ...], str]:
        return program.slots[slot].spec.local_shape(program.slots[slot].shape, mesh), program.slots[slot].dtype

    for slot in (*program.weights, *program.inputs, *program.entries):
        role = int(graph.role[program.slots[slot].value])
        make = builder.parameter if role == PARAMETER else builder.input if role in (INPUT, INTERMEDIATE) else builder.constant
        value[slot] = make(*local(slot), program.slots[slot].label)
    for step in program.steps:
        if not isinstance(step, OpCall):
            value[step.target] = builder.input(*local(step.target))
            continue
        parts = math.prod(mesh.length(axis) for axis, choice in step.choices if isinstance(choice, str))
        node = step.node
        roots = [value.get(step.operands[0]) if graph.alias[v] != v and step.operands else None for v in step.rule.makes]
        made = builder.node(graph.kinds[graph.kind[node]], [value[s] for s in step.operands], [local(s) for s in step.results],
                            name=graph.names[node], flops=float(graph.flops[node]) / parts, steps=float(graph.steps[node]) / parts,
                            fusion=int(graph.fusion[node]), phase=BACKWARD if graph.phase[node] == BACKWARD else FORWARD, alias=roots)
        value.update(zip(step.results, made, strict=True))
    return builder.build()


def predicted(found: Captured, program: SpmdProgram | StagedProgram, machine: Machine, link: LinkPrice | None, learn: bool = False) -> Predicted:
    """What a step takes by `machine`'s first device and `link`. `learn`: with the gradients, whose share of the forward work is `back`.

    A pipeline of S stages and B microbatches takes, of the slowest stage, B + S − 1 times what a microbatch takes by the wall clock (the others wait
    for it) and B times by the processor's; what passes between stages counts as a permute.
    """
    if not isinstance(program, StagedProgram):
        return _stage(found, program, machine, link, learn)
    stages = [_passing(_stage(found, stage, machine, link, learn), stage, link, learn) for stage in program.stages]
    worst, count = max(stages, key=lambda one: one.wall), program.microbatches
    fill = (count + len(stages) - 1) / count
    return Predicted(worst.compute * count, worst.handing * count, (worst.wall * fill - worst.compute - worst.handing) * count, worst.driving * count)


def _passing(one: Predicted, stage: SpmdProgram, link: LinkPrice | None, learn: bool) -> Predicted:
    """With what comes in and goes out of a stage, there and back where there are gradients."""
    if link is None or PERMUTE not in link.wall:
        return one
    slots = [stage.slots[s] for s in (*stage.entries, *stage.exits)]
    sizes = [bytes_of(slot.spec.local_shape(slot.shape, stage.mesh), slot.dtype) for slot in slots] * (1 + learn)
    wall, cpu = (math.fsum(price[0] + price[1] * size for size in sizes) for price in (link.wall[PERMUTE], link.cpu[PERMUTE]))
    return replace(one, communicate=one.communicate + wall, driving=one.driving + cpu)


def _stage(found: Captured, program: SpmdProgram, machine: Machine, link: LinkPrice | None, learn: bool) -> Predicted:
    from fourfold.cost.roofline import Prices

    graph = rank_graph(found, program)
    prices = Prices(graph, machine)
    moving = program.moving if learn else frozenset[int]()
    compute = handing = 0.0
    for n, step in enumerate(step for step in program.steps if isinstance(step, OpCall)):
        alone, launch = float(prices.alone[n, 0]), float(prices.launch[n, 0])
        compute += alone
        handing += link.handing if link is not None else 0.0
        if any(slot in moving for slot in step.results):
            compute += (alone - launch) * back(int(graph.fusion[n]), sum(slot in moving for slot in step.operands[:2]))
            handing += link.following if link is not None else launch
    wall = cpu = 0.0
    if link is not None:
        for one in program.transfers(learn):
            wall += link.seconds(one, program.mesh, "wall")
            cpu += link.seconds(one, program.mesh, "cpu")
    return Predicted(compute * (link.pace if link is not None else 1.0), handing, wall, cpu)


def back(fusion: int, moving: int) -> float:
    """A gradient's share of the forward work of an operator: of a contraction one more for each operand that has a gradient; of others the gradient
    and what was kept are read and one tensor is written, three passes for two.
    """
    return float(moving) if fusion == CONTRACTION else 1.5


__all__ = ["Predicted", "back", "predicted", "rank_graph"]
