"""The layouts that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.cost.serving import ServingChips, ServingLayout, ServingPhase
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem
from fourfold.zoo.decoders import DecoderDims

if TYPE_CHECKING:
    from fourfold.plans import Document


def rebuild(document: Document) -> tuple[ServingLayoutProblem, Layouts]:
    """(problem, answer). Raises KeyError, TypeError or InputError where the document lacks something."""
    solution = document.solutions["layout"]
    chips = {**solution["chips"], "names": tuple(solution["chips"]["names"]), "shape": tuple(solution["chips"]["shape"])}
    phases = tuple(ServingPhase(**one) for one in solution["phases"])
    problem = ServingLayoutProblem(DecoderDims.from_json(solution["model"]), ServingChips(**chips), phases)
    return problem, tuple(ServingLayout(one["scheme"], tuple(one["x"]), one["attention"]) for one in solution["answer"])
