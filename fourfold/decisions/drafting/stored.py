"""The draft that a plan's folder names, as a problem and an answer again, for `fourfold.plans.verify` and `explain`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.drafting.instance import MeasuredDraft
from fourfold.decisions.drafting.problem import DraftChoice, Drafting

if TYPE_CHECKING:
    from fourfold.plans import Document

FILE = "drafting.json"


def plain(problem: Drafting) -> dict[str, object]:
    """The problem as `FILE` holds it."""
    return {"lengths": problem.lengths, "step": problem.step.tolist(), "drafts": [draft.to_json() for draft in problem.drafts]}


def rebuild(document: Document) -> tuple[Drafting, DraftChoice]:
    """(problem, answer). Raises ArtefactError where the file is damaged, KeyError or ValueError where it lacks something."""
    document.whole((FILE,))
    data = json.loads((document.folder / FILE).read_text(encoding="utf-8"))
    problem = Drafting(data["lengths"], np.asarray(data["step"]), tuple(MeasuredDraft.from_json(one) for one in data["drafts"]))
    return problem, DraftChoice.from_json(document.solutions["drafting"]["answer"])


def sentences(solution: Mapping[str, Any]) -> list[str]:
    """What was decided, in words."""
    answer, evidence = DraftChoice.from_json(solution["answer"]), solution.get("evidence") or {}
    if not answer.draft:
        return ["No draft is checked: none was faster than a step a token."]
    how = ", as many as were right of late" * answer.adapt + ", with pauses where none is right" * answer.pause
    said = f"Up to {answer.length} tokens of the draft {answer.draft} are checked at once{how}."
    if not evidence:
        return [said]
    return [said, f"Of its tokens {100 * evidence['acceptance']:.0f} % are accepted, each for {100 * evidence['ratio']:.1f} % of a step: "
                  f"{evidence['walked']:.2f} times as fast on the texts it was tried on."]
