"""Draft by copying: where the last tokens stood before in the text, what followed them then is the draft, and costs next to nothing.

Yang et al. 2023 ("Inference with reference") copy from given documents, Saxena's prompt lookup decoding of the same year from the prompt itself. It
pays where the output repeats its input: summaries with quotations, extraction, editing, code. The length is the one of fewest seconds on the known
continuations, fixed or following what was right, with or without pauses where nothing was.
"""

from __future__ import annotations

from fourfold.decisions.drafting._lengths import cheapest
from fourfold.decisions.drafting.instance import LOOKUP
from fourfold.decisions.drafting.problem import DraftChoice, Drafting
from fourfold.problem import Budget, Solver, SolverAnswer


class PromptLookupDrafting(Solver):
    """The copied draft of fewest seconds a token, or none."""

    title = "Drafts copied from the text so far (prompt lookup)"
    default = True
    lever = "machine"
    answers = "drafting"
    cites = ("yang2023reference", "leviathan2023")
    counts = "lengths"

    def declines(self, problem: object) -> str | None:
        if isinstance(problem, Drafting) and not problem.of_kind(LOOKUP):
            return "no draft that copies from the text was tried."
        return None

    def solve(self, problem: Drafting, budget: Budget, seed: int = 0) -> SolverAnswer[DraftChoice]:
        return cheapest(problem, problem.of_kind(LOOKUP), budget, ((False, False), (True, False), (False, True), (True, True)))
