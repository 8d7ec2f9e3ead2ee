"""The contest: every candidate in its likeliest precisions and back ends, words alone, and cascades, raced against the tuned original."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fourfold.engines.select import sample_batches
from fourfold.errors import ModelError
from fourfold.jobs.optimize.builds import Made
from fourfold.jobs.optimize.cascades import cascades
from fourfold.jobs.optimize.final_race import Point
from fourfold.jobs.optimize.packing import packed, packs
from fourfold.jobs.optimize.points import ROOM, build_point, cost_ratio, home, named, original, original_bytes
from fourfold.jobs.optimize.proposals import asked, context
from fourfold.runtime.artefact import Assembly, Part, Setting

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.compress.combine import Candidate

Way = tuple[str, str, dict[str, Any]]
"""Engine, precision, and settings ("threads", "batch", "bucketing")."""


def contest(job: Job) -> None:
    """Every candidate in its likeliest precisions and back ends, and cascades of them, raced against the tuned original."""
    from fourfold.solvers.bayes import dominated

    everyone = [original(job), *[c for c in job.candidates if c.status == "open" and c.module is not None]]
    everyone += _extended(job, everyone)
    everyone += packed(job, everyone)
    judged = [c for c in everyone if c.quality]
    beaten = dominated([(c.cost, -c.quality.value) for c in judged if c.quality])
    worth = {c.name for c, gone in zip(judged, beaten, strict=True) if not gone}
    ways = _affordable(job, [(c, w) for c in everyone for w in _ways(job, c, c.name in worth)])
    for done in job.built.values():
        done.status, done.reason = ("open", "") if done.status == "front" else (done.status, done.reason)
    job.points, job.best = [], None     # what was proved early is tested again with the others
    job.listener.stage("building precisions and back ends", 2 * len(ways))
    made = _made(job, ways)
    for candidate, (engine, precision, how) in ways:
        setting = Setting(engine, precision, **how)
        name = named(candidate, setting)
        job.points.append(job.built.get(name) or build_point(job, candidate, setting, made.get(name)))
        job.listener.advance()
    job.points += _alone(job)
    _set_aside(job)
    race_points(job, [p for p in job.points if p.status == "open"])
    job.families = cascades(job, [p for p in job.points if p.status == "open"])


def _made(job: Job, ways: list[tuple[Candidate, Way]]) -> dict[str, Made]:
    """The engine files of all that must be exported, by the points' names, as many at once as there are cores; {} where one at a time would do."""
    from fourfold.engines import engine
    from fourfold.engines.base import Signature
    from fourfold.host import here
    from fourfold.jobs.optimize.builds import Build
    from fourfold.jobs.optimize.crew import Crew

    if job.task.generation is not None:  # what is written for generation is written by the one that opens it
        return {}
    wanted: dict[str, Build] = {}
    seed, examples = job.work.seed, job.raced(job.splits.search)
    for candidate, (name, precision, how) in ways:
        if named(candidate, Setting(name, precision, **how)) in job.built or candidate.module is None or engine(name).declines(precision, here()):
            continue
        if name == "torch" or (candidate.root and job.race_files[0] == (name, precision)):
            continue  # nothing is written, or it has been
        key = f"{candidate.name}|{name}"
        if key not in wanted:
            part = job.part(candidate.name, candidate.module, candidate, Setting(name, precision, **how))
            few = sample_batches(part.sees(examples), seed)
            signature = Signature.of(part.subject.inputs, few)
            wanted[key] = Build(key, candidate.module, part.subject, signature, few, engine(name), [], home(job, candidate))
        wanted[key].precisions.append(precision)
    crew = job.crew
    if crew is None and len(wanted) > 1 and here().cores > 1 and original_bytes(job) <= ROOM and not job.sequences:
        crew = job.crew = Crew.of(min(2, here().cores))
    if crew is None or crew.lanes < 2 or len(wanted) < 2:
        built = {}
    else:
        built = crew.build(list(wanted.values()), job.listener.advance)
    if crew is not None:
        job.journal.once("crew", crew.close)  # within a step, so that the processor time of the children is booked
        crew.close()  # where an earlier run has booked that step
        job.crew = None
    return {
        named(candidate, Setting(name, precision, **how)): built[f"{candidate.name}|{name}"].made[precision]
        for candidate, (name, precision, how) in ways
        if precision in getattr(built.get(f"{candidate.name}|{name}"), "made", ())
    }


def _extended(job: Job, everyone: list[Candidate]) -> list[Candidate]:
    """Every structure once more, with what a technique can do to a finished one besides: fewer token rows where memory is what counts."""
    from fourfold.recipe import Recipe, apply
    from fourfold.rewrite import Rewrite
    from fourfold.rewrites.compress._bench import Candidate, evaluate_with

    made = []
    for id, rewrite in asked(job, Rewrite.extend):
        if rewrite.declines(job.subject.module):
            continue
        found = []
        for c in everyone:
            if c.module is None or not (c.structured or c.root):
                continue
            try:
                more = rewrite.extend(context(job), c.module)
                if more is None:
                    continue
                module = apply(copy.deepcopy(c.module), Recipe(more.edits))
            except ModelError as error:
                job.refusals[id.removeprefix("compress/")] = error.message
                found = []
                break
            subject = replace(job.subject, module=module, tokenizer=more.tokenizer)
            one = Candidate(
                f"{c.name}, {more.suffix}", c.kind, c.recipe + Recipe(more.edits), c.shape, c.cost, c.rung, c.steps, c.parent, c.kept, module=module,
                extra={**c.extra, "subject": subject, "reencode": more.reencode, "told": [more.told]}, root=c.root, structured=c.structured,
                technique=c.technique, techniques=(*c.techniques, id.removeprefix("compress/")), how=c.how,
            )
            seen = more.reencode(job.splits.search)
            one.records = job.array(f"judge:{one.name}", lambda s=subject, m=module, e=seen: evaluate_with(s, job.task, m, e))
            one.quality = job.relative(one.records, "search")
            found.append(one)
        made += found
    return made


def _ways(job: Job, candidate: Candidate, worth: bool) -> list[Way]:
    """Settings to build a candidate in; one that another beats in both cost and quality is only kept for the record, as it was trained."""
    base = ("torch", "fp32", {"threads": job.base_setting.threads, "batch": job.base_setting.batch, "bucketing": job.base_setting.bucketing})
    pairs = [w for w in job.pairs if (w[0], w[1]) != ("torch", "fp32")]
    if "packed" in candidate.extra:
        return [(engine, precision, base[2]) for engine, precision in packs(job)]
    if candidate.root:
        return [base, *pairs]
    if not candidate.quantises:  # only the back end can differ
        return [base, *[w for w in pairs if w[1] == "fp32"][:1]]
    return [base, *pairs] if worth else [base]


def _affordable(job: Job, ways: list[tuple[Candidate, Way]]) -> list[tuple[Candidate, Way]]:
    """The builds that fit in a sixth of the budget by the original's own building times: plain PyTorch always, then the likeliest first.

    Built in any case: the original at its best in each number of bits (what is surest to hold a floor that no structure holds), and three
    structures' best pair. Then the best pair before the second best, and structures near the floor before those far from it.
    """
    seconds = {(r["engine"], r["precision"]): float(r["prepared_s"]) for r in job.race_rows}
    ranks = {(e, p): i for i, (e, p, _) in enumerate(job.pairs)}
    firsts = {bits(p): (e, p) for e, p, _ in reversed(job.pairs)}

    def distance(c: Candidate) -> float:
        return abs((c.quality.value if c.quality else 0.0) - job.work.floor - 0.01)

    plain = [w for w in ways if (w[1][0], w[1][1]) == ("torch", "fp32")]
    rest = sorted((w for w in ways if w not in plain), key=lambda w: (ranks.get((w[1][0], w[1][1]), 0), not w[0].root, distance(w[0])))
    must = [w for w in rest if w[0].root and (w[1][0], w[1][1]) in firsts.values()]
    must += [w for w in rest if not w[0].root][:3]
    kept, spent = [], 0.0
    for way in [*must, *[w for w in rest if w not in must]]:
        cost = seconds.get((way[1][0], way[1][1]), seconds.get((way[1][0], "fp32"), 2.0)) * (1.0 if way[0].root else 0.7)
        if way in must or spent + cost <= job.work.budget / 6:
            kept.append(way)
            spent += cost
    return plain + kept


def bits(precision: str) -> int:
    """Bits of a weight."""
    return {"fp32": 32, "bf16": 16}.get(precision, 8)


def _set_aside(job: Job) -> None:
    """What need not race: a network as it was trained, where the same network at a cheaper setting answers as well. These are the dearest to race,
    and would lose."""
    if job.work.objective == "memory":
        return
    for p in job.points:
        if p.status != "open" or p.search is None or not (p.candidate.structured or p.candidate.root):
            continue
        mine = cost_ratio(job, p.setting)
        for twin in job.points:
            if twin.candidate is p.candidate and twin.status == "open" and twin.search is not None and cost_ratio(job, twin.setting) < 0.8 * mine:
                if (p.setting.engine, p.setting.precision) == ("torch", "fp32") and twin.search.value > p.search.value - 0.01:
                    p.status, p.reason = "dominated", f"{twin.name} answers as well, and is cheaper by the race of the original"


def _alone(job: Job) -> list[Point]:
    """What answers without a network, as points."""
    from fourfold.recipe import Recipe
    from fourfold.registry import technique
    from fourfold.rewrites.compress._bench import Candidate

    made = []
    for simple in job.simple:
        if simple.model is None or job.splits.search.raw is None:
            continue
        rewrite = technique(simple.technique)()
        candidate = Candidate(
            simple.name, simple.model.kind, Recipe(()), {}, 0.01, 2, technique=simple.technique,
            techniques=(simple.technique.removeprefix("compress/"),), how=rewrite.describe(()), step=rewrite.step or rewrite.title, quantises=False,
        )  # fmt: skip
        part = Part(simple.name.replace(" ", "-"), job.subject, None, None, Setting("numpy", "fp32", 1, 256, False), words=simple.model)
        point = Point(simple.name, candidate, Assembly(simple.name, [part]), simple.search, predicted=0.02)
        point.search = job.relative(simple.search, "search")
        made.append(point)
    return made


def race_points(job: Job, points: list[Point]) -> None:
    """Race the open points' services against the tuned original's, on rows of the search split; journalled under the points' names."""
    from fourfold.runtime.service import ORIGINAL, Runner, Served, race_services

    if not points:
        return

    def run() -> dict[str, object]:
        job.listener.stage("racing", 0)
        runners = {ORIGINAL: Runner(Assembly(ORIGINAL, [job.signed(ORIGINAL, job.subject.module)]))}
        runners |= {p.name: Runner(p.assembly) for p in points}
        seconds = max(6.0, min(90.0, 0.08 * job.work.budget, job.deadline.until("contest")))
        found = race_services(
            runners, job.served_rows(job.splits.search), job.task, seconds=seconds, seed=job.work.seed, objective=job.work.objective,
            max_length=job.options.max_length,
        )
        return {n: s.to_json() for n, s in found.items()}

    results = {n: Served.from_json(s) for n, s in job.journal.once(f"race:points:{_names(points)}", run).items()}
    for point in points:
        point.served = results[point.name]
        point.timing = point.served.result


def _names(points: list[Point]) -> str:
    """A digest of who raced."""
    import hashlib

    return hashlib.sha256("|".join(p.name for p in points).encode()).hexdigest()[:12]
