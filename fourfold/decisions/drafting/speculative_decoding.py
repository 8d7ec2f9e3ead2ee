"""Draft by a smaller model: it makes g tokens one after the other, the large model checks them in one step.

Leviathan et al. 2023 and Chen et al. 2023. With acceptance a and cost ratio c the speed-up is (1 − a^(g+1)) / ((1 − a)(c g + 1)), so a draft that
costs much of the model itself cannot pay, however right it is: at c = 0.5 and a = 0.8 the best g gains 1.2 times, before a wide step costs more than
a narrow one. The length here is the one of fewest seconds on the known continuations.
"""

from __future__ import annotations

from fourfold.decisions.drafting._lengths import cheapest
from fourfold.decisions.drafting.instance import MODEL
from fourfold.decisions.drafting.problem import DraftChoice, Drafting
from fourfold.problem import Budget, Solver, SolverAnswer


class SpeculativeDecoding(Solver):
    """The draft model and length of fewest seconds a token, or none."""

    title = "Drafts of a smaller model (speculative decoding)"
    lever = "machine"
    answers = "drafting"
    cites = ("leviathan2023", "chen2023speculative")
    counts = "lengths"

    def declines(self, problem: object) -> str | None:
        if isinstance(problem, Drafting) and not problem.of_kind(MODEL):
            return "no draft of a smaller model was tried."
        return None

    def solve(self, problem: Drafting, budget: Budget, seed: int = 0) -> SolverAnswer[DraftChoice]:
        return cheapest(problem, problem.of_kind(MODEL), budget, ((False, False), (False, True)))
