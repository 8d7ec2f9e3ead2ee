"""Recompute all: nothing of the forward pass is kept for the backward pass; each of its steps runs again all that it needs of the forward pass, from
the program's inputs on. One end of the trade of Griewank and Walther (2008): least memory for values kept, quadratic work.

What must not run twice (random draws) is kept, and what the program returns.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fourfold.decisions.rematerialise._plans import candidate
from fourfold.decisions.rematerialise._segments import has_backward
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.graph import FORWARD
from fourfold.problem import Budget, Solver, SolverAnswer

_STEPS = 500_000                                                        # more than these are not worth writing down


def _needed(problem: Rematerialise) -> list[list[int]]:
    """Per core node behind the forward pass: the forward nodes, in order, that must run for its inputs; [] for forward nodes."""
    core = problem.core
    forward = problem.graph.phase[core.node] == FORWARD
    kept = core.once[core.producer] if len(core.producer) else np.zeros(0, bool)
    below: list[frozenset[int]] = []                                    # of forward nodes: themselves and what they are made of
    found: list[list[int]] = []
    for m in range(len(core.node)):
        makers = {int(core.producer[v]) for v in core.in_val[core.in_ptr[m] : core.in_ptr[m + 1]].tolist() if not kept[v]}
        before = frozenset().union(*(below[p] for p in makers if forward[p]))
        below.append(before | {m} if forward[m] else frozenset())
        found.append([] if forward[m] else sorted(before))
    return found


class RecomputeAll(Solver):
    """The forward pass runs again for every step of the backward pass that reads of it."""

    title: ClassVar[str] = "Recompute all forward values at each use"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("griewank2008",)
    ignores: ClassVar[tuple[str, ...]] = ("memory",)
    counts: ClassVar[str] = "plans"

    def declines(self, problem: Rematerialise) -> str | None:
        if not has_backward(problem):
            return "the graph has no backward pass, so there are no forward values to recompute."
        steps = sum(map(len, _needed(problem)))
        return f"the sequence would have {steps:,} steps, more than {_STEPS:,}." if steps > _STEPS else None

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        budget.spend()
        sequence: list[int] = []
        for m, again in enumerate(_needed(problem)):
            sequence += [*again, m]
        return SolverAnswer(candidate(problem, np.array(sequence, np.int32)).answer)
