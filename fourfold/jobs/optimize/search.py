"""The combined search over what the original is made of, on what it answered; and what every technique proposes beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fourfold.jobs.optimize.points import ROOM, original_bytes
from fourfold.jobs.optimize.proposals import proposals
from fourfold.jobs.optimize.state import capped

if TYPE_CHECKING:
    import torch

    from fourfold.datasets.examples import Examples
    from fourfold.jobs.optimize.crew import Crew
    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.compress.combine import SearchContext

AGREES = 0.06
"""Root mean square difference, as a share of the answers' own spread, up to which a back end may answer for the original before its students: well
below what a student misses them by, so int8 may, where it is close."""


def search(job: Job) -> None:
    """The combined search: sketches, short trials, full recoveries with all techniques' own proposals beside them, and refinement near the floor."""
    from fourfold.rewrites.compress.combine import Searcher
    from fourfold.rewrites.compress.distil import use_threads

    if job.root is not None and job.plan is not None and job.plan.levels:
        bench, crew = _bench(job)
        try:
            job.searcher = Searcher(bench, job.root, job.plan)
            sketches = job.searcher.propose()  # before the children have work: it uses every core
            crew.open()
            job.searcher.descend(sketches, lambda seconds: proposals(job, bench, seconds))
            job.candidates = job.searcher.candidates
            job.searcher.refine()
            job.crew = crew  # the contest has work for it, and dismisses it
        finally:
            use_threads(job.threads)
            if job.crew is not crew:
                job.journal.once("crew", crew.close)  # within a step, so that the processor time of the children is booked
                crew.close()  # where an earlier run has booked that step
        job.candidates = job.searcher.candidates


def _bench(job: Job) -> tuple[SearchContext, Crew]:
    """All that the search works on: the pool of inputs, widened as the plan allows, and the original's answers to it, journalled; and who trains."""
    from fourfold.host import here
    from fourfold.jobs.optimize.crew import Crew
    from fourfold.rewrites.augmentation import augment
    from fourfold.rewrites.compress.combine import SearchContext
    from fourfold.rewrites.compress.distil import Teacher

    assert job.root is not None and job.table is not None and job.plan is not None
    tokenizer = job.subject.tokenizer
    train = job.splits.train
    room = max(1_000, job.batch * (sum(job.plan.steps) + job.plan.short))
    train = capped(train, room, job.work.seed)
    pool = augment(
        train,
        job.augment,
        job.task,
        special=getattr(tokenizer, "all_special_ids", ()) or (),
        mask=getattr(tokenizer, "mask_token_id", None),
        seed=job.work.seed,
    )
    teacher = Teacher(job.subject, job.root.module, job.task)

    def answer() -> dict[str, torch.Tensor]:
        import torch

        job.listener.stage("asking the original", len(pool))
        found = None if job.sequences else quick_answers(job, pool)
        found = found if found is not None else teacher.answer(pool, job.listener.advance)
        return {"answers": found if found is not None else torch.zeros(0)}

    least = original_bytes(job) > ROOM or job.sequences  # large models, and language models, are trained one at a time, on every core
    crew = Crew(1 if least else min(2, here().cores), job.task, pool, teacher, None, lambda _: job.searcher.tick() if job.searcher else None)
    try:
        crew.hire()
        answers = job.journal.tensors("answers", answer)["answers"]
    except BaseException:
        crew.close()
        raise
    known = crew.answers = answers if answers.numel() else None
    crew.lanes = crew.lanes if known is not None else 1
    crew.hidden = job.plan.hidden > 0
    bench = SearchContext(
        job.subject,
        job.task,
        job.splits,
        pool,
        teacher,
        known,
        job.sample,
        job.table,
        job.sites,
        job.journal,
        job.listener,
        job.folder,
        job.work.floor,
        job.work.seed,
        job.base_search,
        batch=job.batch,
        lr=5e-5 if job.task.kind == "causal_lm" else 3e-4,
        hidden_weight=job.plan.hidden,
        label_weight=0.0,
        calibration=min(192, job.root.sensitivities.examples if job.root.sensitivities else 192),
        crew=crew,
        left=lambda: job.deadline.until("search"),
        bf16_from=job.bf16_from,
    )
    return bench, crew


def quick_answers(job: Job, pool: Examples) -> torch.Tensor | None:
    """The original's answers to the pool by the cheapest back end that the race of the original found and that answers as it does: on the search
    split's first rows, `AGREES` of the answers' own spread is the most that they may differ by (root mean square). None where plain PyTorch is as
    cheap, no other is that close, or it fails on the way; the reason is noted."""
    import torch

    from fourfold.errors import FourfoldError
    from fourfold.jobs.optimize.points import build_point, named, original
    from fourfold.runtime.artefact import Setting

    count = min(128, len(job.splits.search))
    few, wanted = job.splits.search.take(np.arange(count)), job.base_search[:count]
    root = original(job)
    for engine, precision, how in job.pairs:
        if (engine, precision) == ("torch", "fp32") or precision == "int8-weights":
            continue
        setting = Setting(engine, precision, **how)
        name = named(root, setting)
        made = job.built[name] = job.built.get(name) or build_point(job, root, setting)
        if made.status == "rejected":
            continue
        (part,) = made.assembly.parts
        try:
            session = part.open()
            shape = session.run(few.collate(np.arange(min(2, count)), session.multiple)).shape
            if len(shape) != 2 or shape[1] != wanted.shape[1]:  # records are less than the outputs that a student must copy
                return None
            apart = float(np.sqrt(np.mean((part.outputs(few, job.task) - wanted) ** 2))) / max(1e-9, float(wanted.std()))
            if apart > AGREES:
                job.listener.note(f"{engine} {precision} answers {apart:.1%} apart from the original: not asked for the students")
                continue
            return torch.from_numpy(part.outputs(pool, job.task, job.lanes, job.listener.advance)).float()
        except (FourfoldError, RuntimeError, ValueError, KeyError) as error:
            job.listener.note(f"{engine} {precision} could not answer for the students: {type(error).__name__}")
    return None
