"""The original: its answers, its own best settings, and the models that need no network."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError, MetricError, ModelError
from fourfold.jobs.optimize.pairs import best_pairs
from fourfold.jobs.optimize.question import questioned
from fourfold.jobs.optimize.state import Simple
from fourfold.runtime.artefact import Setting

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.jobs.optimize.state import Job


def baseline(job: Job) -> None:
    """The original's answers, its own best settings, and the models that need no network."""
    job.listener.stage("measuring the original", 3)
    for name in ("search", "test"):
        _answer(job, name)
        if name == "search":
            questioned(job)
            own = float(job.task.metric.score(job.base_search, job.splits.search.targets))
            job.listener.best(f"the original: {job.task.metric.name} {own:.4g} on {len(job.base_search):,} examples of the search split")
        job.listener.advance()
    job.quality = _quality(job)
    job.listener.best(f"the original: {job.task.metric.name} {job.quality:.4g} on {len(job.base_test):,} unseen examples")
    _simple(job)
    _tune(job)
    job.listener.advance()


FIRST = 256
"""Rows after which a first figure is told, before the rest of a split is answered."""


def _answer(job: Job, name: str) -> None:
    """The original's records on a split. Without labels its own answers are the truth, and agreement with them the quality."""
    from fourfold.rewrites.compress.combine import evaluate_with

    examples: Examples = getattr(job.splits, name)

    def run() -> np.ndarray:
        if name != "search" or len(examples) < 2 * FIRST or examples.targets is None:
            return evaluate_with(job.subject, job.task, job.subject.module, examples, exact=True)
        parts = [examples.take(np.arange(FIRST)), examples.take(np.arange(FIRST, len(examples)))]
        head = evaluate_with(job.subject, job.task, job.subject.module, parts[0], exact=True)
        with suppress(Exception):  # a metric that means nothing on so few; the whole split is judged below
            own = float(job.task.metric.score(head, parts[0].targets))
            job.listener.best(f"the original: {job.task.metric.name} {own:.4g} on the first {FIRST:,} examples")
        return np.concatenate([head, evaluate_with(job.subject, job.task, job.subject.module, parts[1], exact=True)])

    rows = job.array(f"original:{name}", run)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise ModelError(
            f"the original answers NaN or infinity on row {bad} of the {name} split.", "Repair the model or remove such inputs first."
        )
    setattr(job, f"base_{name}", rows)
    if examples.targets is None:
        job.splits = replace(job.splits, **{name: examples.with_targets(job.task.labelled(rows))})
        job.task = job.task.with_metric("agreement") if job.task.metric.name != "agreement" else job.task


def _quality(job: Job) -> float:
    """The original's own score; raises where the metric, or a share of that score, means nothing."""
    metric, targets = job.task.metric, job.splits.test.targets
    quality = float(metric.score(job.base_test, targets))
    again = float(metric.score(job.base_test, targets))
    job.relative(job.base_test, "test")  # raises where a share of the original's own score means nothing
    if not math.isfinite(quality) or again != quality:
        raise MetricError(
            f"the metric {metric.name} answered {quality} and then {again} for the same predictions.",
            "A metric must be a finite, deterministic number.",
        )
    if quality <= 0 and metric.greater_is_better:
        raise InputError(
            f"the original scores {metric.name} = {quality:.4g}; a share of that means nothing.",
            "Check labels and model, or give a metric that is positive.",
        )
    return quality


def _simple(job: Job) -> None:
    """What needs no network: the majority class or the mean (counted tokens for language models), and what techniques answer with alone."""
    from fourfold.datasets.constant import majority, mean, plain
    from fourfold.jobs.optimize.proposals import asked, context
    from fourfold.rewrite import Rewrite

    train, search, test = job.splits.train, job.splits.search, job.splits.test
    if train.targets is None:
        return
    if job.task.kind == "causal_lm" and not job.task.generates:
        name, rows = plain(train, test, job.task)
        job.simple.append(Simple(name, plain(train, search, job.task)[1], rows))
    if job.task.kind not in ("classification", "regression"):
        return
    outputs = job.base_test.shape[1]
    constant = majority(train.targets, outputs) if job.task.kind == "classification" else mean(train.targets)
    job.simple.append(Simple(constant.name, constant.records(range(len(search))), constant.records(range(len(test)))))
    for id, rewrite in asked(job, Rewrite.alone):
        model = rewrite.alone(context(job))
        if model is not None:
            name = type(rewrite).title[:1].lower() + type(rewrite).title[1:]
            job.simple.append(Simple(name, model.records(search.raw or []), model.records(test.raw or []), model, id))


def _tune(job: Job) -> None:
    """Race the original over back ends, precisions and settings: what everything is measured against, and what is worth building."""
    from fourfold.engines.select import race_model
    from fourfold.runtime.service import dealt

    if job.task.generation is not None:
        from fourfold.jobs.optimize.generating import tune

        tune(job)
        return
    folder, rows = job.folder / "race-original", len(job.served_rows(job.splits.test))

    def run() -> dict[str, object]:
        outcome = race_model(
            job.subject,
            job.subject.module,
            job.raced(job.splits.search),
            objective=job.work.objective,
            engines=job.options.engines,
            threads=job.options.threads,
            batch_sizes=[1, 2, 4, 8] if job.sequences else None,
            budget_s=max(2.0, min(90.0, 0.06 * job.work.budget + 3.0, 0.8 * job.deadline.until("baseline"))),
            folder=folder,
            seed=job.work.seed,
            call=max(1, rows // dealt(rows)),
            log=job.listener.note if os.environ.get("FOURFOLD_DEBUG") else None,
        )
        return outcome.to_json()

    found = job.journal.once("race:original", run)
    job.race_rows, job.race_rejected = found["table"], found["rejected"]
    base, best = found["baseline"], found["best"]
    job.race_files = (best["engine"], best["precision"]), [folder / name for name in found["files"]]
    job.base_setting = Setting("torch", "fp32", base["threads"], base["batch"], base["bucket"])
    job.pairs = best_pairs(found["table"], job.work.objective, job.base_setting)
    row = next(r for r in found["table"] if r["who"] == "baseline" and r["stage"] == "final")
    job.base_cpu, job.base_wall = row["cpu_per_example"], row["wall_per_example"]
    job.listener.best(
        f"the original: {job.task.metric.name} {job.quality:.4g}; {1e3 * job.base_cpu:.2f} ms CPU per example at its best ({job.base_setting})"
    )
