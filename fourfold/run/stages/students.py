"""Students without attention: pooled token embeddings, distilled from the original, for text classification and regression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from fourfold.rewrites.compress.combine import Bench, Candidate
    from fourfold.run.job import Job


def students(job: Job, bench: Bench) -> None:
    """Two students, of single tokens and of windows of three, as candidates of the search; none where the original is no reader of short texts."""
    from fourfold.rewrites.compress.static import Static

    assert job.searcher is not None
    if (
        job.task.kind not in ("classification", "regression")
        or Static().declines(job.subject.module)
        or "input_ids" not in bench.pool.columns
        or bench.answers is None
    ):
        return
    steps = int(np.clip(4 * len(bench.pool) // 128, 100, 2500 if job.work.budget > 400 else 900))
    for window, width in ((1, 128), (3, 192)):
        job.searcher.candidates.append(_student(job, bench, window, width, steps))


def _student(job: Job, bench: Bench, window: int, width: int, steps: int) -> Candidate:
    """One student, trained and judged on the search split; both steps journalled."""
    from fourfold.ingest.model import Subject
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress.combine import Candidate, evaluate_with
    from fourfold.rewrites.compress.distil import Schedule, counted, recover, snapshot
    from fourfold.rewrites.compress.static import student

    assert bench.answers is not None
    names = tuple(n for n in ("input_ids", "attention_mask", "token_type_ids") if n in bench.pool.columns)
    made = student(job.subject.module, bench.pool, int(bench.answers.shape[1]), width=width, window=window, seed=job.work.seed)
    subject = Subject(made, {"kind": "static", "shape": made.shape}, names, job.subject.tokenizer, None, None)
    name = f"static-{window}"

    def train() -> dict[str, torch.Tensor]:
        job.listener.stage("distilling a static student", steps)
        schedule = Schedule(steps, 128, 2e-3, seed=job.work.seed, hidden_weight=0)
        progress = counted(job.listener.advance)
        recover(made, subject, job.task, bench.pool, schedule, teacher=bench.teacher, answers=bench.answers, progress=progress)
        return snapshot(made)

    made.load_state_dict(job.journal.tensors(f"train:{name}:{steps}", train))
    made.eval()
    share = sum(p.numel() for p in made.parameters() if p.dim() < 3) / max(1, sum(p.numel() for p in job.subject.module.parameters()))
    candidate = Candidate(name, "static", Recipe(()), {}, min(0.01, share), 2, steps, module=made, extra={"subject": subject, "window": window})
    candidate.records = job.array(f"judge:{name}", lambda: evaluate_with(subject, job.task, made, job.splits.search))
    candidate.quality = job.relative(candidate.records, "search")
    return candidate
