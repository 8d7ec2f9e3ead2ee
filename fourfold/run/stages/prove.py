"""The proof: quality on the unseen split, and which point is the answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fourfold.run.finals import Point
    from fourfold.run.job import Job


def prove(job: Job) -> None:
    """Quality on the unseen split. Which point wins is settled by the fallback procedure (Wiens 2003): points in the order of their chance to
    pass, as the search split predicts it; the first has four fifths of the 5 % error, the others share the rest, and a point that passes hands
    its level on to the next. The chance that any point passes wrongly stays below 5 %, and one failure does not end the sequence. The answer
    is the cheapest that passed.
    """
    field_ = [p for p in job.points if p.status == "open" and p.search is not None]
    front = _undominated(job, field_)
    job.listener.stage("proving on the unseen split", len(front))
    for point in front:
        _test(job, point)
        job.listener.advance()
    chance = {p.name: _chance(job, p) for p in front}
    sequence = sorted((p for p in front if chance[p.name] >= 0.05 and job.pays(p)), key=lambda p: (-round(chance[p.name], 3), job.cost(p)))
    passed: list[Point] = []
    rest = len(sequence) - 1
    shares, carried = [0.04, *[0.01 / max(1, rest)] * rest], 0.0  # the likeliest first holds most of the level, and hands it on when it passes
    for share, point in zip(shares, sequence, strict=False):
        job.order.append(point.name)
        level = share + carried
        carried = level if _error(job, point) <= level else 0.0
        if carried:
            passed.append(point)
    job.best = min(passed, key=job.cost, default=None)
    _label(job, field_)


def _error(job: Job, point: Point) -> float:
    """One-sided p-value of "its relative quality is below the floor": normal, with the standard error that the bootstrap's lower bound
    implies."""
    from scipy.stats import norm

    test = point.test
    assert test is not None
    spread = (test.value - test.low) / 1.6449
    return float(norm.sf((test.value - job.work.floor) / spread)) if spread > 0 else float(test.value < job.work.floor)


def _undominated(job: Job, points: list[Point], most: int = 14) -> list[Point]:
    """Points that no other beats in both cost and search quality, thinned evenly when many; those near the floor are always among them."""
    from fourfold.solvers.bayes import dominated

    coordinates = [(job.cost(p), -p.search.value) for p in points]  # type: ignore[union-attr]
    kept = [p for p, gone in zip(points, dominated(coordinates), strict=True) if not gone]
    near = [p for p in points if p not in kept and p.search and abs(p.search.value - job.work.floor) < 0.02 and job.cost(p) < 1.0]
    near.sort(key=job.cost)
    safe = [p for p in points if p not in kept and p not in near[:4] and p.candidate.kind == "original" and job.pays(p)]
    kept = sorted(kept + near[:4] + safe[:2], key=job.cost)  # the original itself, run better, is what is surest to pass
    while len(kept) > most:
        gaps = [math.log(job.cost(kept[i + 1]) / max(1e-9, job.cost(kept[i - 1]))) for i in range(1, len(kept) - 1)]
        kept.pop(1 + int(np.argmin(gaps)))
    return kept


def _test(job: Job, point: Point) -> None:
    """Quality of a point on the unseen split, and for a cascade the share that each member answered; both journalled."""
    found: list[float] = []

    def run() -> np.ndarray:
        rows, shares = point.assembly.routed(job.splits.test, job.task)
        found.extend(shares)
        return rows

    words = point.candidate.kind == "bag_of_words"
    rows = next(s.test for s in job.simple if s.words is not None) if words else job.array(f"point:{point.name}:test", run)
    if point.shares:
        point.shares = job.journal.once(f"shares:{point.name}", lambda: found or point.shares)
    point.test = job.relative(rows, "test")


def _chance(job: Job, point: Point) -> float:
    """Probability that the unseen lower bound clears the floor, from the search split: normal, with both splits' errors."""
    from scipy.stats import norm

    assert point.search is not None
    s = max((point.search.high - point.search.low) / (2 * 1.645), 1e-4)
    t = s * math.sqrt(len(job.splits.search) / max(1, len(job.splits.test)))
    return float(norm.cdf((point.search.value - job.work.floor - 1.645 * t) / math.hypot(s, t)))


def _label(job: Job, points: list[Point]) -> None:
    """Says of each point whether it is on the front, and why not."""
    from fourfold.solvers.bayes import dominated

    def quality(p: Point) -> float:
        return p.test.value if p.test else p.search.value  # type: ignore[union-attr]

    gone = dominated([(job.cost(p), -quality(p)) for p in points])
    for point, lost in zip(points, gone, strict=True):
        point.status = "front" if not lost and point.test is not None else "dominated"
        if point.status == "front" and point is not job.best and point.test is not None and point.test.low < job.work.floor:
            point.status, point.reason = "infeasible", f"its lower bound {point.test.low:.1%} is below the floor"
        if lost:
            point.reason = point.reason or "another point is cheaper and better"
    if job.best is not None:
        job.best.status, job.best.reason = "front", ""
