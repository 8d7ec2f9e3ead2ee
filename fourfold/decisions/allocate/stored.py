"""The offsets that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.allocate._sources import of_file, of_graph
from fourfold.decisions.allocate.instance import Buffers
from fourfold.decisions.allocate.problem import Allocate

if TYPE_CHECKING:
    from fourfold.plans import Document

FILE = "buffers.csv"                                                    # beside plan.json, where the buffers are no captured program's


def buffers(document: Document) -> Buffers:
    """The buffers that a plan's solution is about: of its graph in the order that it keeps, or of its file. Raises as `rebuild` does."""
    solution = document.solutions["allocate"]
    memory = solution["memory"]
    banks, names = [int(size) for size in memory["banks"]], tuple(map(str, memory["names"]))
    if solution.get("workload", document.workload)["kind"] != "graph":
        document.whole((FILE,))
        return of_file(document.folder / FILE, banks, names)
    source = solution["source"]
    order = None if source["order"] is None else np.array(source["order"], np.int64)
    return of_graph(document.graph, order, banks=banks, names=names, alignment=int(source["alignment"]), in_place=bool(source["in_place"]))


def rebuild(document: Document) -> tuple[Allocate, np.ndarray]:
    """(problem, answer). Raises ArtefactError where a file is damaged, KeyError or ValueError where the document lacks something."""
    solution = document.solutions["allocate"]
    return Allocate(buffers(document), bool(solution["decide"])), np.array(solution["answer"]["offsets"], np.int64)


def proof(document: Document) -> list[str]:
    """Whether the bound that the plan claims is one that can be proven again without a search."""
    solution = document.solutions["allocate"]
    if solution["bound"] is None or solution["bound"] <= Allocate(buffers(document)).bound():
        return []
    return [] if solution.get("searched") else [f"the bound of {solution['bound']:.0f} B cannot be proven again"]


def sentences(solution: Mapping[str, Any]) -> list[str]:
    """What was decided, where the document holds no sentences of its own."""
    return [f"{len(solution['answer']['offsets']):,} buffers stand in {solution['cost']:,.0f} bytes, by {solution['solver']}."]
