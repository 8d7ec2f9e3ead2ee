"""Cascades of finished points: a cheap member answers where it is sure, a dearer one the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fourfold.run.artefact import Assembly
from fourfold.run.finals import Point

if TYPE_CHECKING:
    from fourfold.rewrites.compress.cascade import Chain
    from fourfold.run.job import Job


def cascades(job: Job, most: int = 6) -> list[Point]:
    """Cascades, `most` at most, that on the search split promise the floor for less than any single point; their cost is still to be raced."""
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress.cascade import chains, expected
    from fourfold.rewrites.compress.combine import Candidate

    if job.task.kind != "classification" or job.work.objective == "memory":
        return []
    targets = np.asarray(job.splits.search.targets)
    usable = [p for p in job.points if p.status == "open" and p.search_records is not None and len(p.assembly.parts) == 1]
    rows = [p.search_records for p in usable if p.search_records is not None]
    base = float(job.task.metric.score(job.base_search, targets))
    sign = 1.0 if job.task.metric.greater_is_better else -1.0
    found = chains(
        [job.cost(p) for p in usable], rows, targets, lambda z: sign * float(job.task.metric.score(z, targets)) / base,
        fallback=[p.assembly.parts[0].words is None for p in usable],
    )
    made = []
    for number, chain in enumerate(_picked(found, job.work.floor, most)):
        members = [usable[i] for i in chain.members]
        name = f"cascade-{number}: {' → '.join(m.name for m in members)}"
        extra = {"members": members, "gates": list(chain.gates)}
        candidate = Candidate(f"cascade-{number}", "cascade", Recipe(()), {}, chain.cost, 2, extra=extra)
        parts = [replace(m.assembly.parts[0], name=f"member-{k}") for k, m in enumerate(members)]
        point = Point(name, candidate, Assembly(name, parts, list(chain.gates)), chain.logits, predicted=chain.cost)
        point.search = job.relative(chain.logits, "search")
        point.shares = expected(chain.gates, [m.search_records for m in members if m.search_records is not None])
        made.append(point)
    return made


def _picked(found: Sequence[Chain], floor: float, most: int) -> list[Chain]:
    """The cheapest chain for each of several qualities around the floor, no two of nearly the same cost."""
    margin = 0.012  # the search's own optimism: about one standard error of a paired ratio at two thousand rows
    picked: list[Chain] = []
    for wanted in (floor + 1.5 * margin, floor + 0.7 * margin, floor, floor - 0.02, floor - 0.04, min(0.995, floor + 0.02)):
        fit = [f for f in found if f.score >= wanted and all(f.cost < 0.97 * q.cost or f.cost > 1.03 * q.cost for q in picked)]
        if fit and len(picked) < most:
            picked.append(min(fit, key=lambda f: f.cost))
    return picked
