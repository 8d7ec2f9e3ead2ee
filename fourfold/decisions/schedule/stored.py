"""The schedule that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourfold.decisions.schedule.problem import Answer, Schedule

if TYPE_CHECKING:
    from fourfold.plans import Document


def rebuild(document: Document) -> tuple[Schedule, Answer]:
    """(problem, answer). Raises ArtefactError where a file is damaged, KeyError or ValueError where the document lacks something."""
    solution = document.solutions["schedule"]
    answer = solution["answer"]
    problem = Schedule(document.graph, document.system, solution["objective"])
    return problem, Answer(np.array(answer["group"], np.int32), np.array(answer["place"], np.int16), np.array(answer["priority"], float))
