"""The partition that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify`. A compiler is not stored: the rules are
checked, what it said is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourfold.decisions.chiplets.instance import Package, of_graph
from fourfold.decisions.chiplets.problem import ChipletPartition

if TYPE_CHECKING:
    from fourfold.plans import Document


def rebuild(document: Document) -> tuple[ChipletPartition, np.ndarray]:
    """(problem, answer). Raises ArtefactError where a file is damaged, KeyError or ValueError where the document lacks something."""
    solution = document.solutions["chiplets"]
    system = document.system
    problem = ChipletPartition(of_graph(document.graph, system), Package.of(system))
    return problem, np.array(solution["answer"]["chip"], np.int16)


def proof(document: Document) -> list[str]:
    """What is wrong with the stages that a stored plan tells."""
    solution = document.solutions["chiplets"]
    problem, answer = rebuild(document)
    if problem.violations(answer):
        return []
    compute, sending, _ = problem.stages(answer)
    wrong = []
    for row, a, b in zip(solution["stages"], compute.tolist(), sending.tolist(), strict=False):
        if abs(row["compute_s"] - a) > 1e-6 * max(a, 1e-12) or abs(row["sending_s"] - b) > 1e-6 * max(b, 1e-12):
            wrong.append(f"the plan says that {row['name']} takes {row['compute_s'] + row['sending_s']:.6g} s, counted again it is {a + b:.6g} s")
    return wrong[:3]
