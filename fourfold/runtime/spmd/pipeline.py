"""A rank's part of a pipeline: its stage as a module, run by the schedules of torch.distributed.pipelining.

Ranks of equal coordinates in all stages form a line; along it pieces of activations and gradients pass as they lie. Within a stage the mesh's own
collectives run as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fourfold.runtime.spmd.execute import RankProgram
from fourfold.runtime.spmd.move import Lines
from fourfold.runtime.spmd.program import StagedProgram

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class StageModule(nn.Module):
    """A stage's program on this rank as a module: entries in, exits out; it keeps the answers of the last stage by microbatch."""

    def __init__(self, mine: RankProgram, pieces: Mapping[int, Tensor], inputs: Sequence[Mapping[int, Tensor]], learn: bool,
                 at: Callable[[int], None]) -> None:
        super().__init__()
        self.mine, self.inputs, self.learn, self.at = mine, inputs, learn, at
        self.own = {s: pieces[s].detach().requires_grad_() for s, _ in mine.program.learned} if learn else {}
        self.pieces = {**pieces, **self.own}
        self.answers: dict[int, dict[int, Tensor]] = {}

    def forward(self, *entries: Tensor, microbatch: Tensor) -> Tensor | tuple[Tensor, ...]:
        number, program = int(microbatch[0]), self.mine.program
        given = dict(zip(program.entries, entries, strict=True))
        values = self.mine.run({**self.pieces, **self.inputs[number], **given}, self.at)
        if program.exits:
            made = tuple(values[s].view_as(values[s]) if s in given else values[s] for s in program.exits)
            return made if len(made) != 1 else made[0]
        self.answers[number] = {s: one.detach() for s, one in values.items()}
        return self.mine.loss(values).reshape(1) if self.learn else torch.zeros(1, device=self.mine.device)


class RankPipeline:
    """Stages in this process: one stage of `staged`, whose ranks are `lines`, and the `line` of this rank through all stages."""

    def __init__(self, staged: StagedProgram, rank: int, lines: Lines, line: ProcessGroup, device: str) -> None:
        self.staged, self.line, self.device = staged, line, torch.device(device)
        self.number = staged.stage_of(rank)
        self.program = staged.stages[self.number]
        self.mine = RankProgram(self.program, lines, device)

    def load(self, file: Path, learn: bool, at: Callable[[int], None]) -> StageModule:
        """Weights, and the inputs of every microbatch: "7" of the first, "7@1" of the second …"""
        pieces = self.mine.load(file, self.program.weights)
        inputs = [self.mine.load(file, self.program.inputs, f"@{m}" if m else "") for m in range(self.staged.microbatches)]
        return StageModule(self.mine, pieces, inputs, learn, at)

    def step(self, module: StageModule) -> dict[int, Tensor]:
        """All microbatches through all stages; gradients (slot → piece) of the mean loss, {} where nothing is learned."""
        for leaf in module.own.values():
            leaf.grad = None
        count = self.staged.microbatches
        numbers = torch.arange(count)
        if len(self.staged.stages) > 1:
            self.passed(module, numbers)
        else:
            for m in range(count):
                loss = module(microbatch=numbers[m : m + 1])
                if module.learn:
                    loss.sum().backward()
        return self.summed(module, {s: leaf.grad / count for s, leaf in module.own.items() if leaf.grad is not None})

    def passed(self, module: StageModule, numbers: Tensor) -> None:
        """The schedule of a step. Only the numbers of microbatches are handed in: every stage has its own inputs."""
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

        learn, program = module.learn, self.program
        entries = tuple(self.mine.empty(s).requires_grad_(learn) for s in program.entries)
        exits = tuple(self.mine.empty(s).requires_grad_(learn) for s in program.exits) or (torch.empty(1, device=self.device).requires_grad_(learn),)
        stage = PipelineStage(module, self.number, len(self.staged.stages), self.device, entries, exits, group=self.line)
        kind = ScheduleGPipe if self.staged.schedule == "gpipe" else Schedule1F1B
        schedule = kind(stage, len(numbers), loss_fn=(lambda loss, target: loss.sum()) if learn else None, scale_grads=False)
        target = torch.zeros(len(numbers)) if learn and not program.exits else None
        schedule.step(target=target, microbatch=numbers)

    def summed(self, module: StageModule, gradients: dict[int, Tensor]) -> dict[int, Tensor]:
        """With the gradients of parameters that several stages hold summed over these."""
        mine = {self.program.slots[s].value: s for s in module.own}
        held = {stage.slots[s].value: (stage.slots[s], stage.mesh) for stage in self.staged.stages for s, _ in stage.learned}
        for value in self.staged.tied if module.learn else ():
            slot, (like, mesh) = mine.get(value), held[value]
            local = [s.stop - s.start for s in like.spec.slices(like.shape, mesh, self.mine.lines.rank)]
            piece = torch.zeros(local, dtype=getattr(torch, like.dtype), device=self.device)
            if slot is not None and slot in gradients:
                piece += gradients[slot]
            dist.all_reduce(piece, group=self.line)
            if slot is not None:
                gradients[slot] = piece
        return gradients


__all__ = ["RankPipeline", "StageModule"]
