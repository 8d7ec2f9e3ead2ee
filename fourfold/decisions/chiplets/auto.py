"""What answers unless a technique is named: dynamic programming, then even shares, then annealing from the best of them.

The learned policy is not asked: on graphs that it had not seen the contiguous stages are better at a fraction of the time (`docs/chiplets.md`; the
same order of worth as in Xie et al., MLSys 2022, holds between policy, annealing and random search, which had no dynamic programming beside them).
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._moves import anneal
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.errors import FourfoldError
from fourfold.problem import Budget, Solver, SolverAnswer
from fourfold.registry import technique

_FIRST = ("contiguous", "greedy_balance")


class AutoPartition(Solver):
    title = "Contiguous stages, then annealing from them"
    default = True
    lever = "machine"
    answers = "chiplets"
    cites = ("narayanan2019", "kirkpatrick1983", "xie2022")
    needs = ("numba",)
    counts = "partitions priced"

    def solve(self, problem: ChipletPartition, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        found, table = PartitionEvaluator(problem, budget), []
        for name in _FIRST:
            mine = Budget(0.4 * budget.left, max(1, min(40, (budget.evaluations - budget.spent) // 3)))
            mine.restart()
            try:
                answer = technique(f"chiplets/{name}")().solve(problem, mine, seed).answer
            except FourfoldError as error:
                table.append({"solver": name, "cost": None, "seconds": 0.0, "evaluations": mine.spent, "note": error.message})
                continue
            budget.spend(max(0, mine.spent - 1 - problem.price * (problem.compiler is not None)))
            cost = found.price(answer)
            table.append({"solver": name, "cost": cost, "seconds": mine.seconds - mine.left, "evaluations": mine.spent, "note": ""})
        chip = found.answer()
        anneal(found, Sampler(problem), chip, found.cost, np.random.default_rng(seed), hot=0.02)
        return SolverAnswer(found.answer(), evidence={"trace": found.trace, "table": table})
