"""The automatic rewrite: in an SPMD program, an all-gather that one product alone reads, and a product of which only a reduce-scatter is read, become
one looped step each, where the gate of their mesh axis says that it pays.

What is looked for, for an axis and a dimension that it splits evenly:

    move [all-gather along the axis] → call of a product that alone reads the whole value          all_gather_einsum
    call of a product whose result is a sum over the axis → move [reduce-scatter along the axis]    einsum_reduce_scatter

A product is aten's mm, addmm, bmm, linear or matmul of matrices; a bias is added after a gathered product, and keeps a scattered one from being
looped. Steps keep their order but that a pair stands together. With gradients a gathered operand must be one whose gradient is summed over the axis
(ranks do different work with it), which is what the loop's own gradient does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fourfold.cost.overlap import GATHER, MARGIN, PLAIN, SCATTER, OverlapDecision, OverlapGate
from fourfold.runtime.spmd.check import carried_out
from fourfold.runtime.spmd.program import LoopedPair, Move, OpCall, SpmdProgram, Step
from fourfold.sharding.collectives import ALL_GATHER, PERMUTE, REDUCE_SCATTER

if TYPE_CHECKING:
    from fourfold.program import Captured
    from fourfold.runtime.spmd.check import SpmdRun
    from fourfold.runtime.spmd.launch import RankPool
    from fourfold.runtime.spmd.link import LinkPrice
    from fourfold.runtime.spmd.program import HeldValue
    from fourfold.sharding.mesh import Mesh

_WORDS = {"aten.mm.default": ("ab,bc->ac", 0, 1, None), "aten.addmm.default": ("ab,bc->ac", 1, 2, 0),
          "aten.bmm.default": ("hab,hbc->hac", 0, 1, None)}


@dataclass(frozen=True)
class ProductOf:
    """A product among a program's calls: einsum, positions of its two factors among the operands, and of its bias (None: none)."""

    equation: str
    first: int
    second: int
    bias: int | None


def product(call: OpCall, slots: tuple[HeldValue, ...]) -> ProductOf | None:
    """The einsum that a call is, or None."""
    ranks = [len(slots[s].shape) for s in call.operands]
    if call.target in _WORDS and len(call.operands) in (2, 3):
        equation, first, second, bias = _WORDS[call.target]
        plain = bias is None or call.target == "aten.addmm.default" and not {"beta", "alpha"} & set(call.call.args)
        return ProductOf(equation, first, second, bias) if plain and len(call.operands) > second else None
    if call.target == "aten.linear.default" and len(ranks) >= 2 and 2 <= ranks[0] <= 6:
        middle = "defgh"[: ranks[0] - 2]
        return ProductOf(f"a{middle}b,cb->a{middle}c", 0, 1, 2 if len(ranks) > 2 else None)
    if call.target == "aten.matmul.default" and ranks == [2, 2]:
        return ProductOf("ab,bc->ac", 0, 1, None)
    return None


def looped(program: SpmdProgram, gates: Mapping[str, OverlapGate], *, learn: bool = False) -> tuple[SpmdProgram, list[OverlapDecision]]:
    """(the program with pairs joined where the gate of their axis chooses a loop, every decision). Axes without a gate are left alone."""
    steps: list[Step] = list(program.steps)
    pairs: list[tuple[OpCall, Move, LoopedPair]] = []
    told: list[OverlapDecision] = []
    readers: dict[int, list[Step]] = {}
    for step in (*steps, *program.finish):
        for slot in step.operands if isinstance(step, OpCall) else (step.source,):
            readers.setdefault(slot, []).append(step)
    kept = {*program.outputs, *program.answers}
    taken: set[int] = set()
    for step in steps:
        found = step if isinstance(step, OpCall) else None
        words = product(found, program.slots) if found is not None else None
        if found is None or words is None:
            continue
        for pair, move, decision in _candidates(program, found, words, readers, kept, gates, learn):
            told.append(decision)
            if decision.way != PLAIN and id(found) not in taken:
                taken.add(id(found))
                pairs.append((found, move, pair))
    moved = {id(move) for _, move, _ in pairs}
    by_call = {id(call): (move, pair) for call, move, pair in pairs}
    order: list[Step] = []
    loops: list[LoopedPair] = []
    for step in steps:
        if id(step) in moved:
            continue
        if id(step) in by_call:
            move, pair = by_call[id(step)]
            loops.append(replace(pair, step=len(order)))
            order += [move, step] if pair.kind == GATHER else [step, move]
        else:
            order.append(step)
    return replace(program, steps=tuple(order), loops=tuple(loops)), told


def gates_of(link: LinkPrice, mesh: Mesh, rate: float) -> dict[str, OverlapGate]:
    """A gate for each axis of several ranks, from what collectives were measured to take; `rate` FLOP/s of a product on one rank."""
    alpha, beta = link.wall[PERMUTE]
    gather_alpha, gather_beta = link.wall[ALL_GATHER]
    return {axis: OverlapGate(mesh.length(axis), alpha, beta, rate, start=alpha / 2, twofold=2.0, collective_alpha=gather_alpha,
                              collective_beta=gather_beta) for axis in mesh.names if mesh.length(axis) > 1}


def raced(found: Captured, plain: SpmdRun, inputs: object, pool: RankPool, gates: Mapping[str, OverlapGate], *, check: bool = True,
          repeat: int = 5) -> tuple[SpmdRun, str]:
    """(the run that stands, what to say of it). `plain` was carried out on `pool`; where gates choose loops its program is run again with them, and
    stands where it is equal and a step takes less by more than what a gate asks. ("" where no pair is looped.)"""
    if not isinstance(plain.program, SpmdProgram):
        return plain, ""
    program, _ = looped(plain.program, gates, learn=plain.learn)
    if not program.loops:
        return plain, ""
    done = carried_out(found, program, inputs, pool, check=check, repeat=repeat, learn=plain.learn)
    pairs = f"{len(program.loops)} collective{'s' * (len(program.loops) > 1)} behind the products that need them"
    times = f"{1e3 * done.seconds:.3g} ms a step in place of {1e3 * plain.seconds:.3g} ms"
    if done.equal and done.seconds < plain.seconds * (1 - MARGIN):
        return done, f"With {pairs}: {times}."
    return plain, f"Hiding {pairs} was tried and left: {times}."


def _candidates(program: SpmdProgram, call: OpCall, words: ProductOf, readers: Mapping[int, list[Step]], kept: set[int],
                gates: Mapping[str, OverlapGate], learn: bool) -> list[tuple[LoopedPair, Move, OverlapDecision]]:
    """The pairs that a product stands in, the gathers first."""
    slots, mesh = program.slots, program.mesh
    entering = call.entering(slots)
    makers = {step.target: step for step in program.steps if isinstance(step, Move)}
    left, output = words.equation.split("->")
    names = dict(zip((words.first, words.second), left.split(","), strict=True))
    found = list[tuple[LoopedPair, Move, OverlapDecision]]()
    sizes = {x: n for k, word in names.items() for x, n in zip(word, slots[call.operands[k]].spec.local_shape(slots[call.operands[k]].shape, mesh),
                                                                strict=True)}
    flops = 2.0
    for n in sizes.values():
        flops *= n
    item = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}.get(slots[call.results[0]].dtype)
    if item is None:
        return found
    for k, word in names.items():
        slot = call.operands[k]
        move = makers.get(slot)
        if move is None or len(move.chain) != 1 or move.chain[0].collective != ALL_GATHER or move.chain[0].axis not in gates:
            continue
        axis, held = move.chain[0].axis, slots[move.source]
        dim = next(d for d, axes in enumerate(held.spec.dims) if axes and axes[-1] == axis)
        alone = len(readers.get(slot, ())) == 1 and list(call.operands).count(slot) == 1 and slot not in kept
        summed = axis in entering[k] or not learn or slot not in program.moving
        if alone and summed and held.spec.even(held.shape, mesh) and len(held.spec.dims[dim]) == 1:
            other = words.second if k == words.first else words.first
            equation = f"{word},{names[other]}->{output}"
            moved = float(item)
            for n in held.spec.local_shape(held.shape, mesh):
                moved *= n
            decision = gates[axis].decide(GATHER, flops, moved)
            found.append((LoopedPair(0, GATHER, decision.way, axis, equation, word[dim], k, other, words.bias), move, decision))
    result = call.results[0]
    after = readers.get(result, ())
    if words.bias is None and len(after) == 1 and isinstance(after[0], Move) and after[0] in program.steps and result not in kept:
        move = after[0]
        if len(move.chain) == 1 and move.chain[0].collective == REDUCE_SCATTER and move.chain[0].axis in gates:
            axis, made = move.chain[0].axis, move.chain[0].to
            dim = next(d for d, axes in enumerate(made.dims) if axes and axes[-1] == axis)
            if made.even(slots[result].shape, mesh) and len(made.dims[dim]) == 1:
                moved = float(item)
                for n in made.local_shape(slots[result].shape, mesh):
                    moved *= n
                decision = gates[axis].decide(SCATTER, flops, moved)
                pair = LoopedPair(0, SCATTER, decision.way, axis, words.equation, output[dim], words.first, words.second, None)
                found.append((pair, move, decision))
    return found


__all__ = ["ProductOf", "gates_of", "looped", "product", "raced"]
