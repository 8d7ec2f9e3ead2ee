"""TelaMalloc (Maas et al. 2023): a heuristic proposes, a propagator keeps every buffer's feasible range, boosted trees choose where to go back to.

Proposals come from the most contended phase: the longest life, the largest size, the largest area. At a dead end either a few levels are undone
(minor backtrack), or the whole group in the way (major); trees in the sense of Friedman (2001), learned on generated packings (`_learn.py`), choose
the level. Phases are tenths of the contention; the figures and the labels of the trees are our own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from fourfold.decisions.allocate import _backtrack as backtrack
from fourfold.decisions.allocate import _starts as starts
from fourfold.decisions.allocate._form import packing, pairs
from fourfold.decisions.allocate._restarts import StopFlag
from fourfold.decisions.allocate.instance import I64
from fourfold.decisions.allocate.problem import Allocate
from fourfold.problem import Budget, Solver, SolverAnswer

_PAIRS = 4_000_000                                                      # of neighbours
_PIECE, _ROUND, _PATIENCE, _NOISE = 500, 30, 8, 0.3                     # steps between looks; steps a buffer in a round; minor steps; spread of keys


class TelaMalloc(Solver):
    title: ClassVar[str] = "Heuristic proposals, feasible ranges by propagation, learned choice of the backtrack target"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "allocate"
    cites: ClassVar[tuple[str, ...]] = ("maas2023", "friedman2001")
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    counts: ClassVar[str] = "steps"

    def __init__(self, policy: int | None = None) -> None:
        self.policy = policy

    def declines(self, problem: Allocate) -> str | None:
        p = problem.buffers.parts()
        if len(p.base) > 1:
            return "it fills one bank, and here are several"
        return starts.too_many(pairs(p), _PAIRS)

    def solve(self, problem: Allocate, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that there is no packing, or where none within the capacity was found (the message says which)."""
        begin = starts.begin(problem, budget)
        found = begin.found
        if not begin.done:
            with StopFlag(budget) as stop:
                found = search(problem, found, budget, stop, seed, self.policy)
        return starts.answer(problem, found)


@cache
def trees() -> backtrack.Trees:
    """The trees that were learned; none (and then the policy is fixed) where their file is missing."""
    file = Path(__file__).with_name("telamalloc.npz")
    if not file.exists():
        none = np.zeros(0, np.int64)
        return backtrack.Trees(none, none, none, none, np.zeros(0), np.zeros(0))
    with np.load(file) as stored:
        return backtrack.Trees(*(stored[name] for name in backtrack.Trees._fields))


def search(problem: Allocate, found: I64, budget: Budget, stop: np.ndarray, seed: int = 0, policy: int | None = None) -> I64:
    """The best packing (units), no higher than `found`. policy: of `_backtrack`, default what was learned."""
    p = problem.buffers.parts()
    form, own = packing(p)
    decide = problem.decide and problem.capacity is not None
    least, bound = starts.bank_limits(problem, found, 0, own)
    goal = min(int(p.room[0]), least) if decide else bound
    while least > goal and not stop[0] and not budget.exhausted:
        cap = goal if decide else max(goal, least - max(1, (least - goal) // 2))
        offset = pack(PackingRounds(form, cap, seed), budget, stop, policy)
        if offset is None:
            return found
        found = found.copy()
        found[own] = offset
        least = int((offset + form.size).max(initial=0))
    return found


class PackingRounds:
    """One search within `cap`, begun again with disturbed keys whenever a round has used up its steps. `steps`, `dead`: so far."""

    def __init__(self, form: backtrack.Packing, cap: int, seed: int) -> None:
        self.form, self.cap, self.seed = form, cap, seed
        self.guide = backtrack.guide(form, cap)
        self.state = backtrack.levels(form, self.guide)
        self.rng, self.rounds, self.steps, self.dead = np.random.default_rng(seed), 0, 0, 0

    def again(self) -> None:
        """Begin the next round."""
        spread = _NOISE if self.rounds else 0.0
        self.noise = np.exp(self.rng.normal(0.0, spread, len(self.form.size)))
        backtrack.reset(self.form, self.guide, self.state, self.cap)
        self.rounds += 1
        self.left = len(self.form.size) * _ROUND

    def go(self, steps: int, policy: int, stop: np.ndarray) -> int:
        """Up to `steps` steps; a status of `_backtrack`."""
        before, dead = (int(self.state.at[i]) for i in (backtrack.STEPS, backtrack.DEAD))
        backtrack.sow((self.seed * 1_000_003 + self.steps) % 4294967291)
        status = backtrack.run(self.form, self.guide, self.state, self.cap, trees(), policy, _PATIENCE, self.noise, steps, stop)
        self.steps += int(self.state.at[backtrack.STEPS]) - before
        self.dead += int(self.state.at[backtrack.DEAD]) - dead
        self.left -= int(self.state.at[backtrack.STEPS]) - before
        return int(status)


def pack(rounds: PackingRounds, budget: Budget, stop: np.ndarray, policy: int | None = None) -> I64 | None:
    """Offsets of a packing within the capacity, or None when the budget is spent."""
    if (rounds.form.size > rounds.cap).any():
        return None
    chosen = (backtrack.LEARNED if len(trees().root) else backtrack.FIXED) if policy is None else policy
    while not budget.exhausted and not stop[0]:
        rounds.again()
        while rounds.left > 0 and not budget.exhausted and not stop[0]:
            steps = min(_PIECE, rounds.left, max(1, budget.evaluations - budget.spent))
            before = rounds.steps
            status = rounds.go(steps, chosen, stop)
            budget.spend(rounds.steps - before)
            if status == backtrack.PACKED:
                return rounds.state.offset.copy()
            if rounds.steps - before < steps:                           # the root has nothing left
                break
    return None
