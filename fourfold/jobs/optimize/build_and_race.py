"""The contest: every candidate in its likeliest precisions and back ends, words alone, and cascades, raced against the tuned original."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines.select import sample_batches
from fourfold.errors import FourfoldError, ModelError
from fourfold.jobs.optimize.builds import Made
from fourfold.jobs.optimize.cascades import cascades
from fourfold.jobs.optimize.final_race import Point, prepare
from fourfold.measure.quality import Relative
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
    everyone += _smaller_vocabularies(job, everyone)
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
        job.points.append(job.built.get(name) or point(job, candidate, setting, made.get(name)))
        job.listener.advance()
    job.points += _words(job)
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
    from fourfold.jobs.optimize.search import ROOM, weight_bytes

    wanted: dict[str, Build] = {}
    seed, examples = job.work.seed, job.raced(job.splits.search)
    for candidate, (name, precision, how) in ways:
        if named(candidate, Setting(name, precision, **how)) in job.built or candidate.module is None or engine(name).declines(precision, here()):
            continue
        if name == "torch" or (candidate.kind == "original" and job.race_files[0] == (name, precision)):
            continue  # nothing is written, or it has been
        key = f"{candidate.name}|{name}"
        if key not in wanted:
            part = job.part(candidate.name, candidate.module, candidate, Setting(name, precision, **how))
            few = sample_batches(part.sees(examples), seed)
            signature = Signature.of(part.subject.inputs, few)
            wanted[key] = Build(key, candidate.module, part.subject, signature, few, name, [], _home(job, candidate))
        wanted[key].precisions.append(precision)
    crew = job.crew
    if crew is None and len(wanted) > 1 and here().cores > 1 and weight_bytes(job) <= ROOM and not job.sequences:
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


def _home(job: Job, candidate: Candidate) -> Path:
    """The folder of a candidate's engine files."""
    return job.folder / "engines" / candidate.name.replace(" ", "-")


def original(job: Job) -> Candidate:
    """The original as a candidate: run better, it may be all that passes."""
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress.combine import Candidate

    root = Candidate("original", "original", Recipe(()), {}, 1.0, 2, module=job.subject.module)
    root.records, root.quality = job.base_search, Relative(1.0, 1.0, 1.0, len(job.base_search))
    return root


def _smaller_vocabularies(job: Job, everyone: list[Candidate]) -> list[Candidate]:
    """Where memory is what counts, every structure once more without the token rows that no training text uses: as fast, but far smaller."""
    from fourfold.recipe import apply
    from fourfold.rewrites.compress.combine import Candidate, evaluate_with
    from fourfold.rewrites.compress.vocabulary import VocabularyPruning, plan, reencoded

    train = job.splits.train
    if job.work.objective != "memory" or job.subject.tokenizer is None or "input_ids" not in train.columns or train.raw is None:
        return []
    if job.task.kind not in ("classification", "regression") or VocabularyPruning().declines(job.subject.module):
        return []
    made = []
    for c in everyone:
        if c.module is None or c.kind == "static":
            continue
        try:
            pruned = plan(c.module, job.subject.tokenizer, list(train.columns["input_ids"]))
            module = apply(copy.deepcopy(c.module), pruned.recipe)
        except ModelError as error:
            job.refusals["vocabulary"] = error.message
            return []
        subject = replace(job.subject, module=module, tokenizer=pruned.tokenizer)
        smaller = Candidate(
            f"{c.name}, fewer rows", c.kind, c.recipe + pruned.recipe, c.shape, c.cost, c.rung, c.steps, c.parent, c.kept, module=module,
            extra={**c.extra, "subject": subject, "pruned": pruned},
        )
        seen = reencoded(job.splits.search, job.subject, pruned, job.options.max_length)
        smaller.records = job.array(f"judge:{smaller.name}", lambda s=subject, m=module, e=seen: evaluate_with(s, job.task, m, e))
        smaller.quality = job.relative(smaller.records, "search")
        made.append(smaller)
    return made


def _ways(job: Job, candidate: Candidate, worth: bool) -> list[Way]:
    """Settings to build a candidate in; one that another beats in both cost and quality is only kept for the record, as it was trained."""
    base = ("torch", "fp32", {"threads": job.base_setting.threads, "batch": job.base_setting.batch, "bucketing": job.base_setting.bucketing})
    pairs = [w for w in job.pairs if (w[0], w[1]) != ("torch", "fp32")]
    if candidate.kind == "original":
        return [base, *pairs]
    if candidate.kind == "static":  # a table look-up has nothing to quantise that would pay; only the back end can differ
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
    rest = sorted((w for w in ways if w not in plain), key=lambda w: (ranks[w[1][0], w[1][1]], w[0].kind != "original", distance(w[0])))
    must = [w for w in rest if w[0].kind == "original" and (w[1][0], w[1][1]) in firsts.values()]
    must += [w for w in rest if w[0].kind != "original"][:3]
    kept, spent = [], 0.0
    for way in [*must, *[w for w in rest if w not in must]]:
        cost = seconds.get((way[1][0], way[1][1]), 2.0) * (1.0 if way[0].kind == "original" else 0.7)
        if way in must or spent + cost <= job.work.budget / 6:
            kept.append(way)
            spent += cost
    return plain + kept


def bits(precision: str) -> int:
    """Bits of a weight."""
    return {"fp32": 32, "bf16": 16}.get(precision, 8)


def point(job: Job, candidate: Candidate, setting: Setting, ready: Made | None = None) -> Point:
    """A candidate built for a setting, with its answers on the search split; rejected, with the reason, where that fails. `ready`: its engine files,
    where they have been made."""
    name = named(candidate, setting)
    part = job.part(candidate.name, candidate.module, candidate, setting)
    made = Point(name, candidate, Assembly(name, [part]), predicted=candidate.cost * _ratio(job, setting))
    home, (raced, files) = _home(job, candidate), job.race_files
    if candidate.kind == "original" and raced == (setting.engine, setting.precision) and files and all(file.is_file() for file in files):
        home.mkdir(parents=True, exist_ok=True)
        ready = Made([Path(shutil.copy2(file, home)).name for file in files])
    _, reason = prepare(part, job.raced(job.splits.search), home, job.work.seed, ready)
    if reason:
        made.status, made.reason = "rejected", reason
        return made
    try:
        made.search_records = job.array(f"point:{name}:search", lambda: _answers(job, part, candidate))
    except FourfoldError as error:
        made.status, made.reason = "rejected", error.message
    if made.search_records is not None and not np.isfinite(made.search_records).all():
        made.status, made.reason = "rejected", "answers with NaN or infinity on the search split"
    if made.status == "open" and made.search_records is not None:
        made.search = job.relative(made.search_records, "search")
    return made


def named(candidate: Candidate, setting: Setting) -> str:
    """A point's name."""
    return f"{candidate.name} · {setting.engine} {setting.precision}"


def _answers(job: Job, part: Part, candidate: Candidate) -> np.ndarray:
    """Records of a part over the search split. Plain PyTorch answers the same whatever its batch and threads, so all cores answer for it."""
    from fourfold.rewrites.compress.combine import evaluate_with

    if (part.setting.engine, part.setting.precision) != ("torch", "fp32") or part.module is None or part.reencode is not None:
        return part.outputs(job.splits.search, job.task, job.lanes)
    if candidate.kind == "original":
        return job.base_search
    return evaluate_with(part.subject, job.task, part.module, job.splits.search, exact=True)


def _ratio(job: Job, setting: Setting) -> float:
    """Cost of the original at an engine and precision, relative to its own best, as the last stage of its race found it; 1 where it did not run."""
    found = {
        r["stage"]: float(r["cpu"]["value"])
        for r in job.race_rows
        if r["who"] == "candidate" and (r["engine"], r["precision"]) == (setting.engine, setting.precision)
    }
    return found.get("final", found.get("heat", 1.0))


def _set_aside(job: Job) -> None:
    """What need not race: a network as it was trained, where the same network at a cheaper setting answers as well. These are the dearest to race,
    and would lose."""
    if job.work.objective == "memory":
        return
    for p in job.points:
        if p.status != "open" or p.search is None or p.candidate.kind not in ("network", "original"):
            continue
        mine = _ratio(job, p.setting)
        for twin in job.points:
            if twin.candidate is p.candidate and twin.status == "open" and twin.search is not None and _ratio(job, twin.setting) < 0.8 * mine:
                if (p.setting.engine, p.setting.precision) == ("torch", "fp32") and twin.search.value > p.search.value - 0.01:
                    p.status, p.reason = "dominated", f"{twin.name} answers as well, and is cheaper by the race of the original"


def _words(job: Job) -> list[Point]:
    """The linear model on counted words, where there is one, as a point."""
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress.combine import Candidate

    made = []
    for simple in job.simple:
        if simple.words is None or job.splits.search.raw is None:
            continue
        candidate = Candidate("bag of words", "bag_of_words", Recipe(()), {}, 0.01, 2)
        part = Part("bag-of-words", job.subject, None, None, Setting("numpy", "fp32", 1, 256, False), words=simple.words)
        point = Point("bag of words", candidate, Assembly("bag of words", [part]), simple.search, predicted=0.02)
        point.search = job.relative(simple.search, "search")
        made.append(point)
    return made


def race_points(job: Job, points: list[Point]) -> None:
    """Race the open points' services against the tuned original's, on rows of the search split; journalled under the points' names."""
    from fourfold.runtime.service import ORIGINAL, Runner, Served, race_services

    if not points:
        return

    def run() -> dict[str, Any]:
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
