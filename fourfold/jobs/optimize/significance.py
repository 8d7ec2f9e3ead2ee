"""The proof: quality and agreement on the unseen split, which points are safe, what the safe ones cost, and which is the answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fourfold.jobs.optimize.cascades import CASCADES
from fourfold.measure.sequence import LEVEL, Family, safe

if TYPE_CHECKING:
    from fourfold.jobs.optimize.final_race import Gated, Point
    from fourfold.jobs.optimize.state import Job
    from fourfold.runtime.service import Served

SHOWN = 6
"""Points, besides the answer's own members, whose service is raced on the unseen rows."""


EARLY = 0.04
"""Share of the 5 % error that the early look at the original, run better, may spend (`fourfold.jobs.optimize.early`)."""


def prove(job: Job) -> None:
    """Quality on the unseen split. Which points may win is settled by fixed-sequence tests (`fourfold.measure.sequence`): families in orders that the
    search split fixed, sharing the 5 % error. Then the safe and the shown are raced as services on the unseen rows, and the cheapest safe one is
    the answer."""
    singles = [p for p in job.points if p.status == "open" and p.search is not None and len(p.assembly.parts) == 1]
    winners, tried = settled(job, singles, job.families, _shown(job, singles))
    gated = [p for f in job.families for p in f.points]
    shown = _raced(job, winners, tried, gated)
    job.points += [p for p in gated if p in shown]
    final_race(job, shown)
    job.best = min((p for p in winners if p in shown and job.pays(p)), key=job.cost, default=None)
    _label(job, [p for p in job.points if p.status == "open" and p.search is not None], {p.name for p in winners})


def settled(job: Job, singles: list[Point], families: list[Gated], shown: list[Point]) -> tuple[list[Point], list[Point]]:
    """(the safe points, all points of one model that were tried on the unseen split). `shown`: further ones to be tried, for the reader."""
    orders = [order for order in _singles(job, singles) if order]
    asked = [*(m for f in families for m in f.members), *(p for order in orders for p in order), *shown]
    tried = list({p.name: p for p in asked}.values())
    job.listener.stage("proving on the unseen split", len(tried))
    for point in tried:
        test(job, point)
        job.listener.advance()
    for family in families:
        _test_family(job, family)
    by_name = {p.name: p for p in [*tried, *(p for f in families for p in f.points)]}
    plans = [(f.name, CASCADES * f.share, [p.name for p in f.points]) for f in families]
    rest = 1.0 - sum(share for _, share, _ in plans)
    plans += [(f"singles-{n}", rest / len(orders), [p.name for p in order]) for n, order in enumerate(orders)]
    tests = [Family(name, LEVEL * (1 - EARLY) * share, tuple(names)) for name, share, names in plans if names]
    job.tests = tests
    passed, job.order = safe(tests, lambda name: error(job, by_name[name]))
    return [by_name[name] for name in passed], tried


def _singles(job: Job, points: list[Point]) -> list[list[Point]]:
    """Two orders of the points that are one model each: by their chance to pass, and from dear to cheap (what a noisy search split ranked wrongly is
    met there). In either, a point that costs more than one before it has nothing to add."""
    able = [p for p in points if job.pays(p) and _chance(job, p) >= 0.02]
    likely, dear, least = [], [], math.inf
    for point in sorted(able, key=lambda p: (-round(_chance(job, p), 2), job.cost(p))):
        if job.cost(point) < least:
            likely.append(point)
            least = job.cost(point)
    for point in sorted(able, key=lambda p: -job.cost(p)):
        if _chance(job, point) >= 0.2:
            dear.append(point)
    return [likely[:8], dear[-8:]]


def _shown(job: Job, points: list[Point], most: int = 7) -> list[Point]:
    """Points that no other beats in both cost and search quality, thinned evenly: a reader wants the whole front, not only what may win."""
    from fourfold.solvers.bayes import dominated

    coordinates = [(job.cost(p), -p.search.value) for p in points]  # type: ignore[union-attr]
    kept = sorted((p for p, gone in zip(points, dominated(coordinates), strict=True) if not gone), key=job.cost)
    while len(kept) > most:
        gaps = [math.log(job.cost(kept[i + 1]) / max(1e-9, job.cost(kept[i - 1]))) for i in range(1, len(kept) - 1)]
        kept.pop(1 + int(np.argmin(gaps)))
    return kept


def _raced(job: Job, winners: list[Point], tried: list[Point], gated: list[Point]) -> list[Point]:
    """Whose service is raced on the unseen rows: the cheapest safe points with all their members and the bare form of their first network, the next
    bolder setting that failed, and an even spread of the rest of the front."""
    from fourfold.solvers.bayes import dominated

    cheap = sorted(winners, key=job.cost)
    kept: list[Point] = [p for p in cheap if job.cost(p) <= 1.15 * job.cost(cheap[0])][:3] if cheap else []
    for family in job.families:
        fallen = [p for p in family.points if p.name in job.order and p not in winners]
        if fallen and (not kept or job.cost(fallen[-1]) < job.cost(kept[0])):
            kept.append(fallen[-1])
    everyone = [p for p in [*tried, *gated] if p.test is not None]
    gone = dominated([(job.cost(p), -p.test.value) for p in everyone])  # type: ignore[union-attr]
    front = sorted((p for p, lost in zip(everyone, gone, strict=True) if not lost and p not in kept), key=job.cost)
    room = max(0, SHOWN - len(kept))
    kept += [front[i] for i in sorted({round(x) for x in np.linspace(0, len(front) - 1, room)})] if front and room else []
    kept += [p for p in tried if p.candidate.root and p not in kept and not _bare(p)][:1]
    members = [m for p in kept for m in p.candidate.members]
    firsts = [p.candidate.members[0] if p.candidate.members else p for p in kept[:3]]
    bare = [p for p in job.points if p.search is not None and _bare(p) and any(p.candidate is f.candidate for f in firsts)]
    return list({p.name: p for p in [*kept, *members, *bare]}.values())


def _bare(point: Point) -> bool:
    """Whether it runs as it was trained: plain PyTorch."""
    return (point.setting.engine, point.setting.precision) == ("torch", "fp32")


def final_race(job: Job, points: list[Point], share: float = 0.12) -> None:
    """Race the points' services on the unseen rows, in about `share` of the budget; journalled. A cascade whose cost contradicts its members' is
    raced again, and where it still does, the dearer figure stands, with both in its interval and a warning."""
    from fourfold.gate import owners
    from fourfold.runtime.artefact import Assembly
    from fourfold.runtime.service import ORIGINAL, Runner, Served, disagrees, race_services

    if not points:
        return
    gated = {p.name: p for p in points if p.candidate.members}
    routes = {
        n: owners(p.candidate.extra["gates"], [records(job, m) for m in p.candidate.members]) for n, p in gated.items()
    }

    def run(key: str) -> dict[str, object]:
        job.listener.stage("racing the services on unseen rows", 0)
        base = job.signed(ORIGINAL, job.subject.module)
        runners = {ORIGINAL: Runner(Assembly(ORIGINAL, [base]))}
        for p in points:
            parts = tuple(m.name for m in p.candidate.members)
            runners[p.name] = Runner(p.assembly, routes.get(p.name), parts)
        seconds = max(6.0, min(share * job.work.budget, job.deadline.until("prove")))
        found = race_services(
            runners, job.served_rows(job.splits.test), job.task, seconds=seconds, seed=job.work.seed + len(key), objective=job.work.objective,
            max_length=job.options.max_length,
        )
        return {n: s.to_json() for n, s in found.items()}

    def wrong(found: dict[str, Served]) -> dict[str, str]:
        if job.work.objective == "latency":
            return {}
        said = {}
        for name, p in gated.items():
            reach = [float((routes[name] >= k).mean()) for k in range(len(p.assembly.parts))]
            why = disagrees(found[name], [found[m.name] for m in p.candidate.members], reach)
            said |= {name: why} if why else {}
        return said

    digest = _names(points)
    found = {n: Served.from_json(s) for n, s in job.journal.once(f"race:services:{digest}", lambda: run("")).items()}
    if wrong(found):
        found = {n: Served.from_json(s) for n, s in job.journal.once(f"race:services:again:{digest}", lambda: run("again")).items()}
    for name, why in wrong(found).items():
        job.warnings.append(f"{gated[name].candidate.name}: {why}. The machine was unsteady; the dearer figure stands.")
        found[name] = _dearer(found, gated[name], routes[name])
    for p in points:
        p.timing, p.served = found[p.name].result, found[p.name]
        if p.name in routes:
            p.shares = [float((routes[p.name] == k).mean()) for k in range(len(p.assembly.parts))]
    job.served = found[ORIGINAL]
    job.base_cpu, job.base_wall = job.served.cpu, job.served.wall


def _dearer(found: dict[str, Served], point: Point, route: np.ndarray) -> Served:
    """The dearer of what was measured and what the members add up to, in an interval that holds both."""
    from dataclasses import replace

    from fourfold.measure.race import Ratio

    served, members = found[point.name], [found[m.name].result for m in point.candidate.members]

    def both(measured: Ratio, parts: list[Ratio]) -> Ratio:
        total = sum(float((route >= k).mean()) * part.value for k, part in enumerate(parts))
        return Ratio(max(measured.value, total), min(measured.low, total), max(measured.high, 1.1 * total), measured.verdict)

    cpu = both(served.result.cpu, [m.cpu for m in members])
    wall = both(served.result.wall, [m.wall for m in members])
    return replace(served, result=replace(served.result, cpu=cpu, wall=wall))


def error(job: Job, point: Point) -> float:
    """One-sided p-value of "it is below a floor": of quality, normal with the standard error that the bootstrap's lower bound implies; of agreement,
    where that was asked for, binomial. Both must hold, so the larger counts (intersection–union test, Berger 1982)."""
    from scipy.stats import norm

    assert point.test is not None
    spread = _spread(point)
    chance = float(norm.sf((point.test.value - job.work.floor) / spread)) if spread > 0 else float(point.test.value < job.work.floor)
    return max(chance, _disagreement(job, point))


def reached(job: Job, point: Point, level: float) -> float:
    """The highest floor of quality at which `error` is at most `level`; −∞ where the agreement that was asked for does not hold at it."""
    from scipy.stats import norm

    assert point.test is not None
    return point.test.value - float(norm.isf(level)) * _spread(point) if _disagreement(job, point) <= level else -math.inf


def _spread(point: Point) -> float:
    assert point.test is not None
    return max(0.0, (point.test.value - point.test.low) / 1.6449)


def _disagreement(job: Job, point: Point) -> float:
    """The p-value of "it agrees with the original less often than was asked for"; 0 where nothing was."""
    from scipy.stats import binom

    wanted = job.options.agree
    if wanted is None:
        return 0.0
    if point.agreement is None:
        return 1.0
    n = point.agreement.n
    return float(binom.sf(round(point.agreement.value * n) - 1, n, wanted)) if wanted < 1 else float(point.agreement.value < 1)


def records(job: Job, point: Point) -> np.ndarray:
    """The point's records on the unseen split; journalled."""
    if (model := point.assembly.parts[0].words) is not None:
        return next(s.test for s in job.simple if s.model is model)
    (part,) = point.assembly.parts
    return job.array(f"point:{point.name}:test", lambda: part.outputs(job.splits.test, job.task, job.lanes))


def test(job: Job, point: Point) -> None:
    """Quality and agreement of a point on the unseen split."""
    rows = records(job, point)
    point.test, point.agreement = job.relative(rows, "test"), job.agreement(rows)


def _test_family(job: Job, family: Gated) -> None:
    """The same for every setting of a family's gates: from its members' records, since a gate looks at nothing else."""
    from fourfold.gate import assembled, owners

    rows = [records(job, m) for m in family.members]
    for point in family.points:
        gates = point.candidate.extra["gates"]
        joint = assembled(gates, rows)
        point.test, point.agreement = job.relative(joint, "test"), job.agreement(joint)
        owner = owners(gates, rows)
        point.shares = [float((owner == k).mean()) for k in range(len(rows))]


def _chance(job: Job, point: Point) -> float:
    """Probability that the unseen lower bound clears the floor, from the search split: normal, with both splits' errors."""
    from scipy.stats import norm

    assert point.search is not None
    s = max((point.search.high - point.search.low) / (2 * 1.645), 1e-4)
    t = s * math.sqrt(len(job.splits.search) / max(1, len(job.splits.test)))
    return float(norm.cdf((point.search.value - job.work.floor - 1.645 * t) / math.hypot(s, t)))


def _label(job: Job, points: list[Point], passed: set[str]) -> None:
    """Says of each point whether it is on the front, and why it is not the answer."""
    from fourfold.solvers.bayes import dominated

    def quality(p: Point) -> float:
        return p.test.value if p.test else p.search.value  # type: ignore[union-attr]

    gone = dominated([(job.cost(p), -quality(p)) for p in points])
    for point, lost in zip(points, gone, strict=True):
        point.status = "front" if not lost and point.test is not None else "dominated"
        point.reason = point.reason or _why(job, point, lost, point.name in passed)
        if point.status == "front" and point is not job.best and point.test is not None and point.test.low < job.work.floor:
            point.status = "infeasible"
    if job.best is not None:
        job.best.status, job.best.reason = "front", ""


def _why(job: Job, point: Point, lost: bool, passed: bool) -> str:
    """Why a point is not the answer, in words."""
    test, wanted = point.test, job.options.agree
    if test is None:
        return "another point is cheaper and better on the search split"
    if test.low < job.work.floor:
        missed = job.work.floor - test.low
        return f"its lower bound {test.low:.1%} is below the floor" + (f", by {100 * missed:.1f} points" if 0.0005 <= missed < 0.02 else "")
    if wanted is not None and (point.agreement is None or point.agreement.low < wanted):
        return "it does not agree with the original often enough" if point.agreement else "its agreement with the original cannot be counted"
    if not job.pays(point):
        return "not cheaper than the original beyond doubt"
    if passed:
        return "it is safe, but not the cheapest" if not lost else "another point is cheaper and better"
    if point.name in job.order:
        return "it holds the floor taken alone, but not after correction for the points that were tested"
    return "another point is cheaper and better" if lost else "it was not among the points whose safety was tested"


def _names(points: list[Point]) -> str:
    """A digest of who raced."""
    import hashlib

    return hashlib.sha256("|".join(p.name for p in points).encode()).hexdigest()[:12]
