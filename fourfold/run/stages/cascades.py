"""Cascades of finished points: a cheap member answers where it is sure, a dearer one the rest. Each set of members is one family of gates, from
cautious to bold, so that the test split can choose among them (`fourfold.measure.sequence`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from fourfold.run.artefact import Assembly
from fourfold.run.finals import Point

if TYPE_CHECKING:
    from fourfold.rewrites.compress.cascade import Chain
    from fourfold.run.job import Job


@dataclass
class Gated:
    """A family: `members`, cheapest first, and a point for each setting of the gates between them, from cautious to bold."""

    name: str
    members: list[Point]
    points: list[Point] = field(default_factory=list)


def cascades(job: Job, most: int = 4) -> list[Gated]:
    """The `most` likeliest families of cascades, by what they promise on the search split; [] where answers have no confidence to gate on."""
    from fourfold.rewrites.compress.cascade import paths

    if job.task.kind != "classification" or job.work.objective == "memory" or job.splits.search.targets is None:
        return []
    targets = np.asarray(job.splits.search.targets)
    usable = [p for p in job.points if p.status == "open" and p.search_records is not None and len(p.assembly.parts) == 1]
    rows = [p.search_records for p in usable if p.search_records is not None]
    if len(usable) < 2 or len(targets) < 60:
        return []
    base = float(job.task.metric.score(job.base_search, targets))
    sign = 1.0 if job.task.metric.greater_is_better else -1.0
    found = paths(
        [job.cost(p) for p in usable], rows, targets, lambda z: sign * float(job.task.metric.score(z, targets)) / base,
        wanted=job.work.floor + 1.645 * _error(job, usable), fallback=[p.assembly.parts[0].words is None for p in usable], most=most,
    )
    families = []
    for number, path in enumerate(found):
        family = Gated(f"cascade-{number}", [usable[i] for i in path.members])
        family.points = [_point(job, family, chain, step) for step, chain in enumerate(path.chains)]
        families.append(family)
    return families


def _point(job: Job, family: Gated, chain: Chain, step: int) -> Point:
    """One setting of a family's gates as a point; its cost is the arithmetic of its members' until it is raced itself."""
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress.cascade import expected
    from fourfold.rewrites.compress.combine import Candidate

    name = f"{family.name}{chr(ord('a') + step)}: {' → '.join(m.name for m in family.members)}"
    extra = {"members": family.members, "gates": list(chain.gates)}
    candidate = Candidate(f"{family.name}{chr(ord('a') + step)}", "cascade", Recipe(()), {}, chain.cost, 2, extra=extra)
    parts = [replace(m.assembly.parts[0], name=f"member-{k}") for k, m in enumerate(family.members)]
    point = Point(name, candidate, Assembly(name, parts, list(chain.gates)), chain.logits, predicted=chain.cost)
    point.search = job.relative(chain.logits, "search")
    point.shares = expected(chain.gates, [m.search_records for m in family.members if m.search_records is not None])
    return point


def _error(job: Job, usable: list[Point]) -> float:
    """Standard error on the test split of relative qualities near the floor: that of the point nearest to it on the search split, scaled by rows."""
    near = min((p for p in usable if p.search is not None), key=lambda p: abs(p.search.value - job.work.floor - 0.01))  # type: ignore[union-attr]
    assert near.search is not None
    spread = (near.search.high - near.search.low) / (2 * 1.645)
    return spread * float(np.sqrt(len(job.splits.search) / max(1, len(job.splits.test))))
