"""The split that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.pipeline._graph import of_graph
from fourfold.decisions.pipeline.problem import Latency, MaxLoad, Split
from fourfold.frontends.placement import read_placement

if TYPE_CHECKING:
    from fourfold.plans import Document

FILE = "workload.json"                                                  # a public placement file, as it was given


def problem(workload: Any, objective: str, contiguous: bool = False, expert: Split | None = None) -> MaxLoad | Latency:
    """The question that an objective asks of a workload: throughput (the fullest device) or latency (one sample)."""
    return Latency(workload) if objective == "latency" else MaxLoad(workload, contiguous, expert)


def rebuild(document: Document) -> tuple[MaxLoad | Latency, Split]:
    """(problem, answer). Raises ArtefactError where a file is damaged, KeyError or ValueError where the document lacks something."""
    solution = document.solutions["pipeline"]
    about = solution.get("workload", document.workload)
    if about["kind"] == "placement":
        document.whole((FILE,))
        workload = replace(read_placement(document.folder / FILE), name=about["name"])
    else:
        workload, _ = of_graph(document.graph, document.system)
    answer = solution["answer"]
    return (problem(workload, solution["objective"], solution["contiguous"]),
            Split(np.array(answer["machine"], np.int16), np.array(answer["part"], np.int16)))
