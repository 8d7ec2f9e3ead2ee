"""Students without attention: pooled token embeddings, distilled from the original, for text classification and regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.compress._bench import Training
    from fourfold.rewrites.compress.combine import Bench

SLOT = 0.2
"""Share of the descent's time that one student may take."""


def students(job: Job, bench: Bench, seconds: Callable[[float], float]) -> list[Training]:
    """Two students to be trained, of single tokens and of windows of three, which become candidates of the search; none where the original is no
    reader of short texts. `seconds` gives a share of the time there is."""
    from fourfold.rewrites.compress.static import Static

    assert job.searcher is not None
    if (
        job.task.kind not in ("classification", "regression")
        or Static().declines(job.subject.module)
        or "input_ids" not in bench.pool.columns
        or bench.answers is None
    ):
        return []
    steps = int(np.clip(5 * len(bench.pool) // 128, 100, 2500))
    return [_student(job, bench, window, width, steps, seconds) for window, width in ((1, 128), (3, 192))]


def _student(job: Job, bench: Bench, window: int, width: int, steps: int, seconds: Callable[[float], float]) -> Training:
    """One student, trained, then judged on the search split; both journalled."""
    from fourfold.frontends.subject import Subject
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress._bench import Training
    from fourfold.rewrites.compress.combine import Candidate, evaluate_with
    from fourfold.rewrites.compress.distil import Schedule
    from fourfold.rewrites.compress.static import student

    assert bench.answers is not None
    outputs = int(bench.answers.shape[1])
    names = tuple(n for n in ("input_ids", "attention_mask", "token_type_ids") if n in bench.pool.columns)
    name = f"static-{window}"

    def made() -> torch.nn.Module:
        return student(job.subject.module, bench.pool, outputs, width=width, window=window, seed=job.work.seed)

    def finish(module: torch.nn.Module | None, state: dict[str, torch.Tensor], facts: dict[str, Any]) -> list[Training]:
        assert job.searcher is not None
        if module is None:
            module = made()
            module.load_state_dict(state)
            module.eval()
        subject = Subject(module, {"kind": "static", "shape": module.shape}, names, job.subject.tokenizer, None, None)
        share = sum(p.numel() for p in module.parameters() if p.dim() < 3) / max(1, sum(p.numel() for p in job.subject.module.parameters()))
        extra = {"subject": subject, "window": window, "curve": facts["curve"], "seconds": facts["wall"]}
        candidate = Candidate(name, "static", Recipe(()), {}, min(0.01, share), 2, steps, module=module, extra=extra)
        candidate.records = job.array(f"judge:{name}", lambda: evaluate_with(subject, job.task, module, job.splits.search))
        candidate.quality = job.relative(candidate.records, "search")
        job.searcher.candidates.append(candidate)
        return []

    schedule = Schedule(steps, 128, 2e-3, seed=job.work.seed, hidden_weight=0, bf16=False)  # a table look-up multiplies next to nothing
    subject = Subject(torch_identity(), {"kind": "static"}, names, None, None, None)
    return Training(name, f"train:{name}:{steps}", lambda: (made(), {}), subject, schedule, lambda: seconds(SLOT), finish)


def torch_identity() -> torch.nn.Module:
    """A stand-in where only the way of calling is wanted."""
    from torch import nn

    return nn.Identity()
