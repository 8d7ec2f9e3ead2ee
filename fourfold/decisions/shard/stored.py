"""The choice that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify`; its certificate is counted again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.shard._contest import read_contest
from fourfold.decisions.shard.bound import DualCertificate, bound
from fourfold.decisions.shard.problem import ShardProblem

if TYPE_CHECKING:
    from fourfold.plans import Document

FILE, CHOICE = "instance.json", "certificate.npz"                       # beside plan.json: the instance, and the evidence for the bound
_ROUNDING = 1e-9


def rebuild(document: Document) -> tuple[ShardProblem, np.ndarray]:
    """(problem, answer). Raises ArtefactError where a file is damaged, KeyError or ValueError where the document lacks something."""
    document.whole((FILE,))
    solution = document.solutions["shard"]
    return ShardProblem(read_contest(document.folder / FILE), str(solution["unit"])), np.array(solution["answer"]["strategies"], np.int64)


def proof(document: Document) -> list[str]:
    """Whether the bound that the plan claims follows from its certificate."""
    solution = document.solutions["shard"]
    claimed = solution["bound"]
    if claimed is None:
        return []
    graph = rebuild(document)[0].graph
    if CHOICE in document.files:
        document.whole((CHOICE,))
        evidence = DualCertificate.load(document.folder / CHOICE)
        try:
            known = bound(graph, evidence)
        except (ValueError, KeyError, IndexError) as error:
            return [f"the certificate does not fit the instance: {error}"]
    else:
        known = bound(graph)
    proven = claimed <= known + _ROUNDING * abs(known) or bool(solution.get("searched"))
    return [] if proven else [f"the bound of {claimed:,.6g} does not follow from the certificate, which gives {known:,.6g}"]


def amount(value: float, unit: str) -> str:
    """A cost in words: whole numbers in full, seconds with four digits."""
    return f"{value:.4g} {unit}" if unit else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


def sentences(solution: Mapping[str, Any]) -> list[str]:
    """What was decided and how good it is, a sentence each."""
    if "nodes" not in solution:
        return [f"{len(solution['answer']['strategies']):,} nodes have a strategy, at {amount(solution['cost'], solution['unit'])}."]
    unit, cost, floor, before = solution["unit"], solution["cost"], solution["bound"], solution["before"]
    said = [f"{solution['nodes']:,} nodes with {solution['choices']:,} strategies and {solution['edges']:,} edges cost "
            f"{amount(cost, unit)}, by {solution['solver']}."]
    if floor is not None:
        above = cost - floor
        said.append("No choice costs less, which is proven." if above <= 0 else
                    f"No choice costs less than {amount(floor, unit)}: this one is at most {100 * solution['gap']:.3g} % above the least.")
    if solution["limit"] is not None:
        limit, peak = solution["limit"], solution["peak"]
        said.append(f"At its fullest it takes {peak:,} of {limit:,} bytes" + (f" ({100 * peak / limit:.3g} %)." if limit else "."))
    if before is not None:
        times = f", {before / cost:.3g} times as much" if cost > 0 else ""
        said.append(f"Each node's own cheapest strategy would cost {amount(before, unit)}{times}.")
    else:
        said.append(f"Each node's own cheapest strategy is {solution['why']}.")
    return said
