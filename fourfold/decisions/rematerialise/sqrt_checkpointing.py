"""Checkpoints at the borders of about √n segments of n blocks; the inside of a segment runs again when the backward pass comes to it (Chen et al.
2016).

Blocks are the model's repeated ones (`Graph.layer`), or stretches of the forward pass where it has none.
"""

from __future__ import annotations

import math
from typing import ClassVar

from fourfold.decisions.rematerialise._plans import candidate
from fourfold.decisions.rematerialise._segments import blocks, has_backward, segmented
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.problem import Budget, Solver, SolverAnswer


class SqrtCheckpointing(Solver):
    """One extra forward pass at most, √n of the memory."""

    title: ClassVar[str] = "Checkpointing of √n segments of blocks"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("chen2016",)
    ignores: ClassVar[tuple[str, ...]] = ("memory",)
    counts: ClassVar[str] = "plans"

    def declines(self, problem: Rematerialise) -> str | None:
        return None if has_backward(problem) else "the graph has no backward pass, so there is nothing to keep for it."

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        budget.spend()
        _, count = blocks(problem)
        segments = max(1, math.ceil(math.sqrt(count)))
        return SolverAnswer(candidate(problem, segmented(problem, segments)).answer, note=f"{count} blocks in {segments} segments.")
