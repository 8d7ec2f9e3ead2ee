"""What a conversion comes to on the user's data: the original teaches the converted model within the budget, both are judged on rows that the
training never saw, and both are raced on this machine.

Of the budget some 60 % train, 20 % race, the rest judges. The untrained converted model stays where training it does not better it on the search
split. All three qualities (original, converted, recovered) are of the same unseen rows; nothing is chosen by them.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import InputError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fourfold.datasets.examples import Examples
    from fourfold.jobs.convert import Converted
    from fourfold.jobs.convert import _Given as Given
    from fourfold.measure.quality import Relative
    from fourfold.measure.race import Ratio
    from fourfold.rewrite import Proposal, Rewrite
    from fourfold.rewrites.compress.distil import Teacher

TRAINED, RACED = 0.6, 0.2
"""Shares of the budget that training and racing may take."""
FEWEST = 48
"""Rows of the unseen split that are judged in any case."""
ROUNDS = 12
"""Passes over the training rows that a recovery makes at most."""
LEAST = 1.5
"""Seconds below which no training is begun."""


@dataclass
class _Bench:
    """What every training and judgement of one run shares."""

    given: Given
    rewrite: Rewrite
    proposal: Proposal
    pool: Examples
    search: Examples
    test: Examples
    base: np.ndarray
    teacher: Teacher
    answers: Tensor | None
    batch: int
    listener: Any

    def records(self, module: nn.Module, examples: Examples) -> np.ndarray:
        from fourfold.rewrites.compress._bench import evaluate_with

        return evaluate_with(self.given.subject, self.given.task, module, examples, exact=True)

    def relative(self, records: np.ndarray) -> Relative:
        from fourfold.measure.quality import relative

        return relative(self.given.task.metric, self.base, records, self.test.targets, seed=self.given.seed, groups=self.test.groups)

    def score(self, module: nn.Module) -> float:
        """The metric on the search split, the larger the better."""
        metric = self.given.task.metric
        found = float(metric.score(self.records(module, self.search), self.search.targets))
        return found if metric.greater_is_better else -found


def judge(given: Given, rewrite: Rewrite, result: Converted, edits: tuple[dict[str, object], ...], budget: float, seeds: int, listener: Any
          ) -> Converted:
    """`result` with `found`: {"quality": {"metric", "baseline", "converted", "recovered"}, "trainings", "cost", "record"} and the recovered module.

    Raises InputError where the original's own quality means nothing, ModelError where it answers NaN.
    """
    from fourfold.rewrites.compress.distil import pays_threads, use_threads

    built, began = result.module, time.monotonic()
    assert built is not None
    threads = pays_threads()
    use_threads(threads)
    bench = _bench(given, rewrite, result, edits, budget, seeds, listener)
    listener.stage("judging the converted model", 0)
    converted = bench.relative(bench.records(built, bench.test))
    kept, trainings = built, []
    for number in range(seeds):
        seconds = min(TRAINED * budget / seeds, (budget * (1 - RACED) - (time.monotonic() - began)) / (seeds - number))
        student, facts = _trained(bench, built, given.seed + number, seconds)
        better = facts["steps"] > 0 and (number > 0 or bench.score(student) >= bench.score(built))
        found = bench.relative(bench.records(student, bench.test)) if better else converted
        kept = student if number == 0 and better else kept
        trainings.append({**facts, "kept": better, "relative": _plain(found)})
        listener.best(f"seed {given.seed + number}: {100 * found.value:.1f} % of the original's {given.task.metric.name}")
    cost = _raced(bench, kept, threads, budget, began)
    own = float(given.task.metric.score(bench.base, bench.test.targets))
    after = float(given.task.metric.score(bench.records(kept, bench.test), bench.test.targets))
    quality = {"metric": given.task.metric.name, "rows": len(bench.test), "baseline": own, "converted": _plain(converted),
               "recovered": trainings[0]["relative"], "value": after}
    found = {"quality": quality, "trainings": trainings, "cost": cost, "record": _record(quality, trainings, cost)}
    return replace(result, module=kept, found=found)


def _bench(given: Given, rewrite: Rewrite, result: Converted, edits: tuple[dict[str, object], ...], budget: float, seeds: int, listener: Any
           ) -> _Bench:
    """Rows that the budget can judge, the original's answers to them, and what training reads."""
    from fourfold.jobs.optimize.state import capped
    from fourfold.rewrite import Proposal
    from fourfold.rewrites.calibration import bulky
    from fourfold.rewrites.compress._bench import evaluate_with
    from fourfold.rewrites.compress.distil import Teacher

    subject, task, splits = given.subject, given.task, given.splits
    listener.stage("judging the original", 0)
    few = splits.test.take(np.arange(min(16, len(splits.test))))
    at = time.perf_counter()
    evaluate_with(subject, task, subject.module, few, exact=True)
    each = max((time.perf_counter() - at) / len(few), 1e-6)
    fits = int(0.12 * budget / each / (3 + seeds))
    test = capped(splits.test, max(FEWEST, fits), given.seed)
    search = capped(splits.search, max(24, fits // 4), given.seed)
    base = evaluate_with(subject, task, subject.module, test, exact=True)
    if not np.isfinite(base).all():
        raise ModelError("the original answers NaN or infinity on the unseen split", "Repair the model or remove such inputs first.")
    if test.targets is None:
        test, search = (rows.with_targets(task.labelled(evaluate_with(subject, task, subject.module, rows, exact=True))) for rows in (test, search))
        given.task = task = task.with_metric("agreement")
    own = float(task.metric.score(base, test.targets))
    if not math.isfinite(own) or (own <= 0 and task.metric.greater_is_better):
        raise InputError(f"the original scores {task.metric.name} = {own:.4g}; a share of that means nothing.", "Check labels and model.")
    long = bulky(task, splits.train)
    batch = 32 if not long else int(np.clip(1024 // max(1, int(np.mean(splits.train.lengths))), 2, 32))
    pool = splits.train if long else capped(splits.train, max(64, int(0.1 * budget / each)), given.seed)
    teacher = Teacher(subject, subject.module, task)
    proposal = Proposal(result.to, edits, (1.0, 0.0, 1.0))
    return _Bench(given, rewrite, proposal, pool, search, test, base, teacher, teacher.answer(pool), batch, listener)


def _trained(bench: _Bench, built: nn.Module, seed: int, seconds: float) -> tuple[nn.Module, dict[str, Any]]:
    """A copy taught by the original for so many seconds, as the technique asks; untouched where it asks for nothing or there is no time."""
    from fourfold.rewrites.compress.distil import Limit, TrainingSchedule, counted, recover

    student = copy.deepcopy(built)
    context = replace(bench.given.context(), answers=bench.answers, seed=seed)
    options: dict[str, Any] | None = bench.rewrite.recover(context, bench.proposal)
    if options is None or seconds < LEAST:
        why = "the technique asks for none" if options is None else "the budget leaves no time for it"
        return student, {"seed": seed, "steps": 0, "wall": 0.0, "cpu": 0.0, "curve": [], "why": why}
    batch = int(options.get("batch", bench.batch))
    steps = int(options.get("steps", max(20, ROUNDS * len(bench.pool) // batch)))
    schedule = TrainingSchedule(steps, batch, float(options.get("lr", 2e-4)), seed=seed, hidden_weight=0, bf16=options.get("bf16"))
    bench.listener.stage(f"recovering, seed {seed}", steps)
    limit = Limit(seconds)
    done = recover(
        student, bench.given.subject, bench.given.task, bench.pool, schedule, teacher=bench.teacher, answers=bench.answers,
        progress=counted(bench.listener.advance), limit=limit,
    )  # fmt: skip
    return student.eval(), {"seed": seed, "steps": done.steps, "wall": done.wall, "cpu": done.cpu, "curve": list(done.curve), "why": ""}


def _raced(bench: _Bench, module: nn.Module, threads: int, budget: float, began: float) -> dict[str, Any]:
    """CPU and wall time relative to the original's, both in PyTorch fp32 at the same setting, and joules of 1,000 rows."""
    from fourfold.engines.base import Signature
    from fourfold.engines.select import sample_batches
    from fourfold.measure.power import window
    from fourfold.rewrites.calibration import bulky
    from fourfold.runtime.artefact import Assembly, Part, Setting
    from fourfold.runtime.service import ORIGINAL, Runner, race_services, runner

    given = bench.given
    bench.listener.stage("racing", 0)
    setting = Setting("torch", "fp32", threads, 4 if bulky(given.task, bench.test) else 32, True)
    rows = bench.test.take(np.arange(min(len(bench.test), 64))) if bulky(given.task, bench.test) else bench.test
    parts = [Part(name, given.subject, one, None, setting) for name, one in ((ORIGINAL, given.subject.module), ("converted", module))]
    for part in parts:
        part.signature = Signature.of(given.subject.inputs, sample_batches(rows, given.seed))
    runners = {part.name: Runner(Assembly(part.name, [part])) for part in parts}
    seconds = float(np.clip(budget - (time.monotonic() - began), 2.0, RACED * budget))
    served = race_services(runners, rows, given.task, seconds=seconds, seed=given.seed, max_length=given.longest)
    few = np.arange(min(len(rows), 64))
    call = runner(runners[ORIGINAL].assembly, rows, few, given.task, given.longest, False)
    with window() as used:
        call()
    joules = used.joules
    assert joules is not None
    for part in parts:
        part.close()
    result, watt = served["converted"].result, joules.value / max(used.cpu, 1e-9)
    before = 1000 * served[ORIGINAL].cpu * watt
    return {
        "cpu": _ratio(result.cpu), "wall": _ratio(result.wall), "setting": setting.to_json(), "rows": served["converted"].rows,
        "call": served["converted"].call, "seconds_per_row": {"before": served[ORIGINAL].cpu, "after": served["converted"].cpu},
        "joules": {"per": "1,000 rows", "before": before, "after": before * result.cpu.value, "low": before * result.cpu.low,
                   "high": before * result.cpu.high, "spent": time.process_time() * watt, "grade": joules.grade, "method": joules.method,
                   "boundary": joules.boundary},
    }  # fmt: skip


def _record(quality: dict[str, object], trainings: list[dict[str, Any]], cost: dict[str, object]) -> dict[str, Any]:
    """The saving in one line: metric, baseline, value, its interval, joules, seeds."""
    first, values = trainings[0]["relative"], [one["relative"]["value"] for one in trainings]
    return {
        "metric": quality["metric"], "baseline": quality["baseline"], "value": quality["value"], "relative": first["value"],
        "interval": [first["low"], first["high"]], "joules": cost["joules"], "seeds": [one["seed"] for one in trainings],
        "over_seeds": {"median": float(np.median(values)), "low": min(values), "high": max(values)},
    }


def _plain(found: Relative) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def _ratio(found: Ratio) -> dict[str, object]:
    verdict = {-1: "cheaper", 0: "no difference", 1: "dearer"}[found.verdict]
    return {"value": found.value, "low": found.low, "high": found.high, "verdict": verdict}
