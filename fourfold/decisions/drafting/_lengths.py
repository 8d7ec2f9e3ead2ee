"""What the techniques share: all lengths of a draft tried on the continuations, fixed and following, and no draft among them."""

from __future__ import annotations

from collections.abc import Iterable

from fourfold.decisions.drafting.instance import MeasuredDraft, speedup
from fourfold.decisions.drafting.problem import DraftChoice, Drafting
from fourfold.problem import Budget, SolverAnswer


def cheapest(problem: Drafting, drafts: Iterable[MeasuredDraft], budget: Budget, ways: tuple[tuple[bool, bool], ...]) -> SolverAnswer[DraftChoice]:
    """The cheapest length of these drafts, walked in each of `ways` (adapt, pause); no draft where none is cheaper. The evidence has what the formula
    says of it."""
    best, least = problem.baseline(), problem.cost(problem.baseline())
    for draft in drafts:
        for length in range(1, problem.longest + 1):
            for adapt, pause in ways:
                choice = DraftChoice(draft.name, length, adapt, pause)
                cost = problem.cost(choice)
                if cost < least:
                    best, least = choice, cost
                if not budget.spend():
                    return SolverAnswer(best, evidence=evidence(problem, best))
    return SolverAnswer(best, evidence=evidence(problem, best))


def evidence(problem: Drafting, choice: DraftChoice) -> dict[str, float]:
    """Acceptance a, cost ratio c, the formula's speed-up, and the one walked."""
    if not choice.draft:
        return {}
    draft = problem.draft(choice.draft)
    ratio = draft.seconds / float(problem.step[0])
    return {"acceptance": draft.acceptance, "ratio": ratio, "formula": speedup(draft.acceptance, ratio, choice.length),
            "walked": problem.cost(problem.baseline()) / problem.cost(choice)}
