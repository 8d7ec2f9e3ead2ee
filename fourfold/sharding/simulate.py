"""A node of a program carried out on shards in one process: what a layout claims, tried.

Every device's pieces are cut from the whole operands; a partial operand is dealt out in random parts that add up. Each device runs the operator on
its pieces alone, and the pieces of each result are put together again as its layout says.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fourfold.letters import Choice, Piece, ShardingRule
from fourfold.program import Captured
from fourfold.sharding.lower import Lowered
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import combining, placed
from fourfold.sharding.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


def cut(full: Tensor, spec: Spec, mesh: Mesh, seed: int = 0) -> list[Tensor]:
    """The piece of every device. Along partial axes the value is dealt out in parts that add up to it: random ones by `seed`, the last the rest."""
    import torch

    parts: dict[tuple[int, ...], Tensor] = {}
    ways = [range(mesh.length(axis)) for axis in spec.partial]
    rest, maker = full.clone(), torch.Generator().manual_seed(seed)
    for place in itertools.product(*ways):
        last = all(p == len(way) - 1 for p, way in zip(place, ways, strict=True))
        if last or not full.is_floating_point():
            part = rest if last else torch.zeros_like(full)
        else:
            part = torch.randn(full.shape, generator=maker, dtype=torch.float64).to(full.dtype)
            rest = rest - part
        parts[place] = part
    found = []
    for rank in range(mesh.size):
        here = dict(zip(mesh.names, mesh.coordinates(rank), strict=True))
        found.append(parts[tuple(here[axis] for axis in spec.partial)][spec.slices(tuple(full.shape), mesh, rank)].contiguous())
    return found


def join(pieces: Sequence[Tensor], spec: Spec, shape: Sequence[int], mesh: Mesh) -> Tensor:
    """The whole that the `pieces` of all devices make under `spec`: parts summed over partial axes, copies taken from the first that holds them.

    Raises ValueError where a piece has not the shape that the layout says.
    """
    made = pieces[0].new_zeros(tuple(shape))
    for rank, piece in enumerate(pieces):
        here = dict(zip(mesh.names, mesh.coordinates(rank), strict=True))
        where = spec.slices(shape, mesh, rank)
        if tuple(piece.shape) != tuple(s.stop - s.start for s in where):
            raise ValueError(f"device {rank} made {tuple(piece.shape)} where {spec} says {tuple(s.stop - s.start for s in where)}")
        if all(here[axis] == 0 for axis in mesh.names if axis not in spec.axes and axis not in spec.partial):
            made[where] += piece
    return made


def simulate(found: Captured, node: int, rule: ShardingRule, choices: Mapping[str, Choice], mesh: Mesh, operands: Sequence[Tensor],
             seed: int = 0) -> list[Tensor] | None:
    """The whole results of a node of which every device did its part; None where `choices` are impossible together.

    `operands`: the whole operands in the rule's order. Raises ValueError where a device's piece has another shape than its layout says.
    """
    layouts = placed(rule, choices, mesh)
    if layouts is None:
        return None
    reads, makes = layouts
    pieces = [cut(full, spec, mesh, seed + i) for i, (full, spec) in enumerate(zip(operands, reads, strict=True))]
    shapes = [found.graph.shape_of(v) for v in rule.makes]
    made = [found.program.piece(node, rule, [one[rank] for one in pieces], part(rule, choices, makes, shapes, mesh, rank))
            for rank in range(mesh.size)]
    made = combined(made, rule, choices, mesh)
    return [join([one[o] for one in made], spec, shape, mesh) for o, (spec, shape) in enumerate(zip(makes, shapes, strict=True))]


def combined(made: Sequence[Sequence[Tensor]], rule: ShardingRule, choices: Mapping[str, Choice], mesh: Mesh) -> list[list[Tensor]]:
    """[rank][result], extremes over split letters combined along their axes."""
    found = [list(one) for one in made]
    for o, what in rule.extremes:
        for axis in combining(rule, choices, o):
            for line in mesh.lines(axis):
                best = found[line[0]][o]
                for rank in line[1:]:
                    best = best.maximum(found[rank][o]) if what == "max" else best.minimum(found[rank][o])
                for rank in line:
                    found[rank][o] = best
    return found


def part(rule: ShardingRule, choices: Mapping[str, Choice], makes: Sequence[Spec], shapes: Sequence[Sequence[int]], mesh: Mesh,
         rank: int) -> Piece:
    """What device `rank` does of a node whose results are laid out as `makes` under `choices`."""
    here = dict(zip(mesh.names, mesh.coordinates(rank), strict=True))
    position: dict[str, int] = {}
    parts: dict[str, int] = {}
    for axis, choice in choices.items():
        if isinstance(choice, str):
            position[choice] = position.get(choice, 0) * mesh.length(axis) + here[axis]
            parts[choice] = parts.get(choice, 1) * mesh.length(axis)
    offsets, share = {}, 1.0
    averaged = frozenset(a for o in rule.means for a in rule.sums[o])
    for letter, n in parts.items():
        size = rule.size[letter]
        piece = -(-size // n)
        offsets[letter] = min(position[letter] * piece, size)
        if letter in averaged:
            share *= (min(offsets[letter] + piece, size) - offsets[letter]) / size
    local = tuple(tuple(s.stop - s.start for s in spec.slices(shape, mesh, rank)) for spec, shape in zip(makes, shapes, strict=True))
    return Piece(local, offsets, parts, share)


def carry_out(found: Captured, lowered: Lowered, mesh: Mesh, every: Sequence[ShardingRule], *inputs: object) -> list[Tensor]:
    """The program's outputs, every node done in parts as `lowered` says and every value handed on in the layouts that it says.

    A value's pieces are put together and cut anew where a reader wants another layout: what collectives do, without them.
    """
    values = {**found.program.weights(), **found.program.feed(*inputs)}
    held = {v: cut(full, lowered.specs[v], mesh, v) for v, full in values.items()}
    for node, rule in enumerate(every):
        choices = dict(lowered.choices[node])
        layouts = placed(rule, choices, mesh)
        assert layouts is not None
        pieces = [cut(join(held[v], lowered.specs[v], found.graph.shape_of(v), mesh), want, mesh, v)
                  for v, want in zip(rule.reads, layouts[0], strict=True)]
        shapes = [found.graph.shape_of(v) for v in rule.makes]
        made = [found.program.piece(node, rule, [one[rank] for one in pieces], part(rule, choices, layouts[1], shapes, mesh, rank))
                for rank in range(mesh.size)]
        made = combined(made, rule, choices, mesh)
        for o, (value, spec, shape) in enumerate(zip(rule.makes, layouts[1], shapes, strict=True)):
            held[value] = cut(join([one[o] for one in made], spec, shape, mesh), lowered.specs[value], mesh, value)
    return [join(held[v], lowered.specs[v], found.graph.shape_of(v), mesh) for v in found.graph.outputs.tolist()]


__all__ = ["carry_out", "cut", "join", "part", "simulate"]
