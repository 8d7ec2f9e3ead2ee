"""Read model and data, split, open the journal, and keep as many rows as the budget can judge."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import InputError
from fourfold.jobs.optimize.deadline import spell, spent_before
from fourfold.jobs.optimize.question import tried
from fourfold.jobs.optimize.state import capped

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.jobs.optimize.state import Job
    from fourfold.journal import Journal

FEWEST = {"search": 24, "test": 48}
"""Rows without which nothing can be judged."""
LEAST_PASSES, LEAST_SECONDS = 4.0, 4.0
"""Passes of the original over those rows, and seconds beside them, that a run needs at the very least."""
SEARCH_ROWS, TEST_ROWS = 3_000, 20_000
"""Rows of the search and test splits that are judged at most; more would cost time and no longer narrow the interval that matters."""


def read(job: Job, model: object, data: object) -> None:
    """Load model and data, split, open the journal."""
    from fourfold.datasets.load import load_data
    from fourfold.frontends.model import load_model
    from fourfold.frontends.preprocessors import tokenizer_in

    work, options = job.work, job.options
    job.listener.stage("reading model and data", 0)
    job.subject = load_model(model)
    if options.tokenizer is not None:
        job.subject.tokenizer, job.subject.processor = tokenizer_in(options.tokenizer)
    job.subject.module.eval()
    if job.subject.origin.get("kind") == "onnx":
        job.notes.append("The original is an .onnx file, which ONNX Runtime runs as it is; where PyTorch fp32 is named, that is what ran.")
        job.warnings.append(f"The structure stays as it is: {job.subject.module.sealed}. It is still quantised, and its back ends are raced.")
    if job.subject.origin.get("kind") == "opaque":
        job.warnings.append(f"{job.subject.origin['why']}: the result can be used here, and saved only where a back end's own files carry it.")
    splits, job.task = load_data(
        data,
        options.task,
        job.subject,
        columns=options.columns,
        splits=options.splits,
        seed=work.seed,
        max_length=options.max_length,
        metric=options.metric,
        generation=options.generation,
    )
    job.subject.inputs = tuple(n for n in job.subject.inputs if n in splits.train.columns)
    job.splits = replace(splits, search=capped(splits.search, SEARCH_ROWS, work.seed), test=capped(splits.test, TEST_ROWS, work.seed))
    if splits.note:
        job.notes.append(splits.note)
    from fourfold.rewrites.compress.distil import pays_threads, use_threads

    use_threads(None)
    job.batch = 32 if not job.sequences else int(np.clip(1024 // max(1, int(np.mean(splits.train.lengths))), 2, 32))
    job.journal = _journal(job)
    if job.task.generation is not None:
        from fourfold.jobs.optimize.generating import begin

        begin(job)
    job.deadline.before = spent_before(job.journal.events()[:-1])  # the last line is this run's own beginning
    tried(job)
    job.threads = int(job.decide("threads", pays_threads))
    use_threads(job.threads)
    _limit(job)


def _journal(job: Job) -> Journal:
    """The journal of exactly this question; the old one is put aside where a fresh start is asked for."""
    from fourfold.datasets.generation import facts
    from fourfold.frontends.model import state
    from fourfold.host import here
    from fourfold.journal import Journal

    fingerprint = {
        "weights": _digest(state(job.subject.module)),
        "train": job.splits.train.digest(),
        "search": job.splits.search.digest(),
        "test": job.splits.test.digest(),
        "floor": job.work.floor,
        "objective": job.work.objective,
        "budget": job.work.budget,
        "seed": job.work.seed,
        "metric": job.task.metric.name,
        "agree": job.options.agree,
        "engines": job.options.engines,
        "threads": job.options.threads,
        "machine": here().fingerprint,
        "version": 6,
        **({"techniques": list(job.options.techniques)} if job.options.techniques else {}),
        **({"generation": facts(job.task.generation)} if job.task.generation else {}),
    }
    journal = Journal(job.folder, fingerprint)
    if job.options.fresh and any("key" in e for e in journal.events()):
        path = journal.path
        journal.close()
        os.replace(path, path.with_suffix(f".{int(time.time())}.old"))
        journal = Journal(job.folder, fingerprint)
    return journal


def _limit(job: Job) -> None:
    """Time the original on a few rows, and keep only as many search and test rows as the budget can judge a dozen times over. A budget that cannot
    even hold the original's answers to the fewest rows is refused, with the least that can be done with."""
    from fourfold.rewrites.compress.combine import evaluate_with

    def run() -> float:
        each, count = 0.0, 2
        while True:
            few = job.splits.test.take(np.arange(min(count, len(job.splits.test))))
            began = time.perf_counter()
            evaluate_with(job.subject, job.task, job.subject.module, few, exact=True)
            seconds = time.perf_counter() - began
            each = seconds / len(few)
            if count >= 16 and seconds > 0.05 or len(few) < count or seconds > 0.01 * job.work.budget:
                return each
            count *= 2 if count > 2 else 4

    job.each = float(job.journal.once("rows", run))
    spent = job.decide("read", job.deadline.spent)
    least = 1.1 * spent + LEAST_PASSES * (FEWEST["search"] + FEWEST["test"]) * job.each + LEAST_SECONDS
    if least > job.work.budget:
        raise InputError(
            f"a budget of {spell(job.work.budget)} is too small for this model, which takes {job.each:.2g} s for one row.",
            f"The least is about {spell(math.ceil(least / 5) * 5)}: give --budget {spell(math.ceil(least / 5) * 5)} or more.",
        )
    room = max(0.0, job.work.budget - spent)
    for name, share, few in (("search", 0.04, 100), ("test", 0.11, 300)):
        whole: Examples = getattr(job.splits, name)
        fits = int(share * room / max(job.each, 1e-9))
        kept = capped(whole, max(FEWEST[name], fits if fits >= few else min(few, int(1.5 * fits))), job.work.seed)
        if len(kept) < len(whole):
            job.notes.append(
                f"{len(kept):,} of {len(whole):,} {name} rows are used, which is what the budget of {job.work.budget:.0f} s can judge; "
                "a larger one uses more."
            )
            job.splits = replace(job.splits, **{name: kept})


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of named tensors: names, shapes, types and bytes."""
    import hashlib

    import torch

    total = hashlib.sha256()
    for name in sorted(values):
        array = values[name].detach().contiguous()
        total.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        total.update(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return total.hexdigest()
