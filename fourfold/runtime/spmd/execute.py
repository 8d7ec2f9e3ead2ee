"""One rank's part of an SPMD program: load its pieces, run the steps, make whole what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from fourfold.runtime.spmd.move import Lines, entered, followed, mean_square, moved
from fourfold.runtime.spmd.program import LoopedPair, Move, OpCall, SpmdProgram, Step, floating
from fourfold.sharding.collectives import ALL_REDUCE, Transfer
from fourfold.sharding.simulate import part
from fourfold.sharding.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import fx

    from fourfold.letters import Piece


@dataclass(frozen=True)
class _Named:
    """What `run_piece` reads of an fx node."""

    target: object


class RankProgram:
    """The program as this rank runs it: pieces of all calls, and after which step a slot is read no more, worked out once."""

    def __init__(self, program: SpmdProgram, lines: Lines, device: str = "cpu") -> None:
        self.program, self.lines, self.device = program, lines, torch.device(device)
        last: dict[int, int] = {}
        for i, step in enumerate(program.steps):
            for slot in _read(step):
                last[slot] = i
        kept = {*program.inputs, *program.weights, *program.outputs, *program.answers, *program.entries, *program.exits,
                *(slot for step in program.finish for slot in _read(step))}
        self.free: list[list[int]] = [[] for _ in program.steps]
        for i, step in enumerate(program.steps):
            made = step.results if isinstance(step, OpCall) else (step.target,)
            for slot in (*made, *_read(step)):
                if slot not in kept and last.get(slot, i) == i and slot not in self.free[i]:
                    self.free[i].append(slot)

    @cached_property
    def calls(self) -> list[tuple[_Named, Piece] | None]:
        return [self._prepared(step) if isinstance(step, OpCall) else None for step in self.program.steps]

    @cached_property
    def entering(self) -> list[tuple[tuple[int, tuple[str, ...]], ...]]:
        """For each step the operands whose gradients are summed over axes, and these."""
        slots = self.program.slots
        return [tuple((k, axes) for k, axes in enumerate(step.entering(slots)) if axes) if isinstance(step, OpCall) else () for step in
                self.program.steps]

    def learn(self, pieces: Mapping[int, Tensor], at: Callable[[int], None] = lambda step: None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """(slots that `whole` needs, gradient of each learned parameter that takes part, laid out as it): of the mean square of the first
        floating-point output, or of that output where it is one number.
        """
        program = self.program
        own = {s: pieces[s].detach().requires_grad_() for s, _ in program.learned}
        values = self.run({**pieces, **own}, at)
        found = torch.autograd.grad(self.loss(values), list(own.values()), allow_unused=True)
        return ({key: one.detach() for key, one in values.items()},
                {s: gradient for s, gradient in zip(own, found, strict=True) if gradient is not None})

    def loss(self, values: Mapping[int, Tensor]) -> Tensor:
        """What gradients are taken of; equal on all ranks of the mesh."""
        program = self.program
        s = next(s for s in program.answers if floating(program.slots[s].dtype))
        slot, piece = program.slots[s], values[s]
        if slot.spec.partial:
            chain = tuple(Transfer(ALL_REDUCE, axis, 0.0, 0.0, Spec(slot.spec.dims, slot.spec.partial[i + 1 :]))
                          for i, axis in enumerate(slot.spec.partial))
            piece, slot = followed(piece, slot, chain, self.lines), replace(slot, spec=Spec(slot.spec.dims))
        return mean_square(piece, slot, self.lines) if slot.shape else piece

    def empty(self, s: int) -> Tensor:
        """A tensor of the size of this rank's piece of a slot."""
        slot = self.program.slots[s]
        local = [one.stop - one.start for one in slot.spec.slices(slot.shape, self.program.mesh, self.lines.rank)]
        return torch.empty(local, dtype=getattr(torch, slot.dtype), device=self.device)

    def whole_gradients(self, gradients: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """value of a parameter in the graph → its whole gradient."""
        made = dict[int, Tensor]()
        for s, chain in self.program.learned:
            if s in gradients:
                slot = self.program.slots[s]
                made[slot.value] = moved(gradients[s].contiguous(), replace(slot, spec=Spec(slot.spec.dims)), chain, self.lines)
        return made

    def _prepared(self, step: OpCall) -> tuple[_Named, Piece]:
        program = self.program
        shapes = [program.slots[s].shape for s in step.results]
        return _Named(resolve(step.target)), part(step.rule, dict(step.choices), step.layouts, shapes, program.mesh, self.lines.rank)

    def load(self, file: Path, slots: Sequence[int], suffix: str = "") -> dict[int, Tensor]:
        """This rank's pieces of inputs or weights (slot → tensor) from a safetensors file of whole values, named by their numbers and `suffix`."""
        from safetensors import safe_open

        made: dict[int, Tensor] = {}
        with safe_open(str(file), "pt") as stored:
            for s in slots:
                slot, name = self.program.slots[s], f"{self.program.slots[s].value}{suffix}"
                if not slot.spec.axes:
                    whole = stored.get_tensor(name)
                else:
                    whole = stored.get_slice(name)[slot.spec.slices(slot.shape, self.program.mesh, self.lines.rank)]
                if slot.spec.partial and any(self.lines.members[a][0] != self.lines.rank for a in slot.spec.partial):
                    whole = torch.zeros_like(whole)
                made[s] = whole.to(self.device).contiguous()
        return made

    def run(self, pieces: Mapping[int, Tensor], at: Callable[[int], None] = lambda step: None) -> dict[int, Tensor]:
        """Carry out the steps on what `load` gave; the slots that `whole` needs. `at` is told the number of each step before it runs.

        Pieces that require gradients get them as autograd goes back: the transposed collectives are run by it, in one order on all ranks.
        """
        from fourfold.frontends.letters.local import run_piece

        values, program = dict(pieces), self.program
        shared: dict[tuple[int, tuple[str, ...]], Tensor] = {}
        pairs = {pair.step: pair for pair in program.loops}
        for i, (step, call) in enumerate(zip(program.steps, self.calls, strict=True)):
            at(i)
            if i in pairs:
                values.update(self._looped(pairs[i], values))
            elif i - 1 in pairs:
                pass                                                    # done by the step before
            elif isinstance(step, Move):
                values[step.target] = followed(values[step.source], program.slots[step.source], step.chain, self.lines)
            else:
                assert call is not None
                operands = [values[s] for s in step.operands]
                for k, axes in self.entering[i]:
                    if operands[k].requires_grad:
                        key = (step.operands[k], axes)
                        if key not in shared:
                            shared[key] = entered(operands[k], axes, self.lines)
                        operands[k] = shared[key]
                made = run_piece(cast("fx.Node", call[0]), step.call, step.rule, operands, call[1])
                values.update(zip(step.results, made, strict=True))
            for slot in self.free[i]:
                values.pop(slot, None)
        return values

    def _looped(self, pair: LoopedPair, values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What a pair of steps makes, as one loop."""
        from fourfold.cost.overlap import GATHER
        from fourfold.runtime.overlap.looped_einsum import all_gather_einsum, einsum_reduce_scatter

        gathers = pair.kind == GATHER
        at = pair.step + gathers
        call, move = self.program.steps[at], self.program.steps[pair.step + (not gathers)]
        assert isinstance(call, OpCall) and isinstance(move, Move)
        operands = {k: values[move.source if gathers and k == pair.first else call.operands[k]]
                    for k in (pair.first, pair.second, pair.bias) if k is not None}
        for k, axes in self.entering[at]:
            rest = tuple(axis for axis in axes if not (gathers and k == pair.first and axis == pair.axis))     # the loop's gradient sums over that
            if rest and k in operands and operands[k].requires_grad:
                operands[k] = entered(operands[k], rest, self.lines)
        run = all_gather_einsum if gathers else einsum_reduce_scatter
        made = run(pair.equation, operands[pair.first], operands[pair.second], pair.letter, self.lines.groups[pair.axis], way=pair.way)
        if pair.bias is not None:
            made = made + operands[pair.bias]
        return {call.results[0] if gathers else move.target: made}

    def whole(self, values: Mapping[int, Tensor]) -> list[Tensor]:
        """The program's outputs, whole on every rank."""
        made = dict(values)
        for step in self.program.finish:
            made[step.target] = moved(made[step.source], self.program.slots[step.source], step.chain, self.lines)
        return [made[s] for s in self.program.outputs]


def resolve(target: str) -> object:
    """The operator that "aten.mm.default" names."""
    found: object = torch.ops
    for name in target.split("."):
        found = getattr(found, name)
    return found


def largest(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], gradients: frozenset[str]) -> tuple[dict[str, float], dict[str, float]]:
    """(largest relative difference of each output, of each gradient) by name. A tensor's difference is a share of its largest magnitude, a gradient's
    of that or a thousandth of the largest of all gradients, whichever is more: gradients that cancel out are rounding alone. inf where shapes differ
    or one is missing.
    """
    scale = max((_size(theirs[name]) for name in gradients), default=0.0) * 1e-3
    found = {name: _apart(ours[name], b, scale if name in gradients else 0.0) if name in ours else float("inf") for name, b in theirs.items()}
    return ({name: gap for name, gap in found.items() if name not in gradients}, {name: gap for name, gap in found.items() if name in gradients})


def _size(tensor: Tensor) -> float:
    return float(tensor.double().abs().max()) if tensor.numel() and not tensor.is_complex() else 0.0


def _apart(a: Tensor, b: Tensor, least: float) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not b.numel():
        return 0.0
    a, b = a.cpu(), b.cpu()
    if not b.is_floating_point():
        return float((a != b).double().mean())
    same = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), same) or not torch.equal(a[~same], b[~same]) and not bool(b[~same].isnan().all()):
        return float("inf")
    gap = float((a[same].double() - b[same].double()).abs().max()) if bool(same.any()) else 0.0
    scale = max(_size(b[same]), least)
    return gap / scale if scale else float(gap > 0) * float("inf") if gap else 0.0


def _read(step: Step) -> tuple[int, ...]:
    return step.operands if isinstance(step, OpCall) else (step.source,)


__all__ = ["RankProgram", "largest", "resolve"]
