"""Cascades of finished points: a cheap member answers where it is sure, a dearer one the rest. Each set of members is one family of gates, from
cautious to bold, so that the test split can choose among them (`fourfold.measure.sequence`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fourfold.jobs.optimize.final_race import Gated, Point
from fourfold.runtime.artefact import Assembly

if TYPE_CHECKING:
    from fourfold.gate import Chain
    from fourfold.jobs.optimize.state import Job


CASCADES = 0.9
"""Share of the 5 % error that families of cascades may spend where there are any; the rest is for single models."""


def cascades(job: Job, points: Sequence[Point], label: str = "cascade") -> list[Gated]:
    """The families of cascades of `points` that promise most, from the search split; [] where answers have no confidence to gate on."""
    from fourfold.gate import Members, Proof
    from fourfold.jobs.optimize.proposals import asked
    from fourfold.measure.sequence import LEVEL
    from fourfold.rewrite import Rewrite

    if job.task.kind != "classification" or job.work.objective == "memory" or job.splits.search.targets is None:
        return []
    targets = np.asarray(job.splits.search.targets)
    usable = [p for p in points if p.search_records is not None and len(p.assembly.parts) == 1]
    rows = [p.search_records for p in usable if p.search_records is not None]
    if len(usable) < 2 or len(targets) < 60:
        return []
    base = float(job.task.metric.score(job.base_search, targets))
    sign = 1.0 if job.task.metric.greater_is_better else -1.0
    spread = _spread(job, usable)

    def sure(point: Point) -> bool:
        """Whether it would surely pass by itself."""
        assert point.search is not None and point.search_records is not None
        return point.search.value - 3.5 * spread(point.search_records)[1] >= job.work.floor

    proof = Proof(job.work.floor, spread, LEVEL * CASCADES, min((job.cost(p) for p in usable if sure(p)), default=1.0))
    members = Members(
        [job.cost(p) for p in usable], rows, targets, lambda z: sign * float(job.task.metric.score(z, targets)) / base,
        [p.assembly.parts[0].words is None for p in usable], job.work.seed,
    )
    families: list[Gated] = []
    for id, rewrite in asked(job, Rewrite.join):
        for path in rewrite.join(members, proof):
            family = Gated(f"{label}-{len(families)}", [usable[i] for i in path.members], share=path.share, technique=id)
            family.points = [_point(job, family, chain, step) for step, chain in enumerate(path.chains)]
            families.append(family)
    return families


def _point(job: Job, family: Gated, chain: Chain, step: int) -> Point:
    """One setting of a family's gates as a point; its cost is the arithmetic of its members' until it is raced itself."""
    from fourfold.gate import expected
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress._bench import Candidate

    name = f"{family.name}{chr(ord('a') + step)}: {' → '.join(m.name for m in family.members)}"
    extra = {"members": family.members, "gates": list(chain.gates)}
    candidate = Candidate(f"{family.name}{chr(ord('a') + step)}", "cascade", Recipe(()), {}, chain.cost, 2, extra=extra,
                          technique=family.technique, techniques=(family.technique.removeprefix("compress/"),))
    parts = [replace(m.assembly.parts[0], name=f"member-{k}") for k, m in enumerate(family.members)]
    point = Point(name, candidate, Assembly(name, parts, list(chain.gates)), chain.logits, predicted=chain.cost)
    point.search = job.relative(chain.logits, "search")
    point.shares = expected(chain.gates, [m.search_records for m in family.members if m.search_records is not None])
    return point


def _spread(job: Job, usable: list[Point]) -> Callable[[np.ndarray], tuple[float, float]]:
    """Standard errors of a relative quality on the search and on the test split. Answers that are the original's own add nothing to it, so it grows
    with the root of how many are not; the factor is that of the points at hand, whose intervals were bootstrapped."""
    own = job.base_search.argmax(1)

    def apart(records: np.ndarray) -> float:
        return math.sqrt(max(float((records.argmax(1) != own).mean()), 1.0 / len(own)))

    judged = [p for p in usable if p.search is not None and p.search_records is not None and p.search.high > p.search.low]
    factor = float(np.median([(p.search.high - p.search.low) / (2 * 1.645) / apart(p.search_records) for p in judged])) if judged else 1.0  # type: ignore[union-attr,arg-type]
    more = math.sqrt(len(job.splits.search) / max(1, len(job.splits.test)))

    def spread(records: np.ndarray) -> tuple[float, float]:
        here = factor * apart(records)
        return here, here * more

    return spread
