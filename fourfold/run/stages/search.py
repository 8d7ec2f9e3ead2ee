"""The combined search over what the original is made of, on what it answered; and the static students beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.run.job import capped
from fourfold.run.stages.students import students

if TYPE_CHECKING:
    import torch

    from fourfold.rewrites.compress.combine import Bench
    from fourfold.run.job import Job


def search(job: Job) -> None:
    """The combined search: sketches, short trials, full recoveries, refinement near the floor; and the static students."""
    from fourfold.rewrites.compress.combine import Searcher

    if job.root is not None and job.plan is not None:
        bench = _bench(job)
        job.searcher = Searcher(bench, job.root, job.plan)
        sketches = job.searcher.propose()
        job.searcher.descend(sketches)
        job.candidates = job.searcher.candidates
        students(job, bench)
        job.searcher.refine()
    job.candidates = job.searcher.candidates if job.searcher else job.candidates


def _bench(job: Job) -> Bench:
    """All that the search works on: the pool of inputs, widened as the plan allows, and the original's answers to it, journalled."""
    from fourfold.rewrites.augmentation import augment
    from fourfold.rewrites.compress.combine import Bench
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
        found = teacher.answer(pool, job.listener.advance)
        return {"answers": found if found is not None else torch.zeros(0)}

    answers = job.journal.tensors("answers", answer)["answers"]
    return Bench(
        job.subject,
        job.task,
        job.splits,
        pool,
        teacher,
        answers if answers.numel() else None,
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
        lr=5e-5 if job.task.kind == "causal_lm" else 2e-4,
        hidden_weight=job.plan.hidden,
        label_weight=0.0,
        calibration=min(384, job.root.sensitivities.examples if job.root.sensitivities else 384),
    )
