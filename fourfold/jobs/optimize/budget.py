"""What the budget allows: how many levels, trials and refinements, from the measured time of a training step."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.jobs.optimize.deadline import ENDS

if TYPE_CHECKING:
    from torch import nn

    from fourfold.datasets.examples import Examples
    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.compress.combine import Node, SearchPlan
    from fourfold.rewrites.compress.distil import Teacher, TrainingSchedule
    from fourfold.workload import Workload


def plan(job: Job, root: Node) -> SearchPlan:
    """What the budget allows, from the measured time of a training step; journalled, so that a resumed run follows the same plan."""
    from fourfold.rewrites.compress.combine import SearchPlan, cheapest

    assert job.table is not None
    table = job.table

    def run() -> dict[str, object]:
        pace, bf16_from = _pace(job, root)
        made = plan_for(
            pace,
            cheapest(root.anatomy, table, job.sites),
            job.work,
            len(job.splits.train),
            job.deadline.spent(),
            job.batch,
            online=job.sequences,
            answer=job.each * _quickest(job),
            cascades=job.task.kind == "classification" and job.work.objective != "memory",
        )
        return {**made, "bf16_from": bf16_from}

    found = job.journal.once("plan", run)
    job.augment, job.bf16_from = float(found.pop("augment")), float(found.pop("bf16_from"))
    return SearchPlan(**found)


def _quickest(job: Job) -> float:
    """What the original's answers to the pool will take, relative to its own pace in PyTorch, by `fourfold.jobs.optimize.search.quick_answers`."""
    cheapest = min((float(r["cpu"]["value"]) for r in job.race_rows if r["who"] == "candidate" and r["stage"] in ("final", "heat")), default=1.0)
    return 1.0 if job.sequences else min(1.0, cheapest * job.base_cpu / job.lanes / max(job.each, 1e-9))


def _pace(job: Job, root: Node) -> tuple[dict[float, float], float]:
    """Seconds of a training step, by the predicted cost of the shape trained, in the precision that is quicker for it; and the cost from which on
    that is bfloat16. On one thread where several trainings will run beside one another. The original itself is timed only where a tenth of the time
    that the search has holds it."""
    from fourfold.jobs.optimize.points import ROOM, original_bytes
    from fourfold.rewrites.compress.combine import prune
    from fourfold.rewrites.compress.distil import Teacher, TrainingSchedule, fast_bf16, use_threads

    assert job.table is not None
    few = job.splits.train.take(np.arange(min(len(job.splits.train), 40 * job.batch)))
    teacher = Teacher(job.subject, root.module, job.task)
    answers = None
    if not job.sequences:  # any numbers of the right shape will do: as in the real thing, the teacher is not asked in the steps
        import torch

        answers = torch.randn(len(few), job.base_search.shape[1]) if job.task.kind in ("classification", "regression") else None
    if answers is not None and original_bytes(job) <= ROOM:
        use_threads(1)
    end = time.monotonic() + max(2.0, min(8.0, 0.03 * job.deadline.until("search")))
    thin = {s.name: max(s.least, s.full // 4) for s in job.sites}  # as deep as the original: a step costs by depth more than by width
    pace: dict[float, float] = {}
    bf16_from = 0.0 if fast_bf16() else float("inf")
    try:
        for shape in ({s.name: s.least for s in job.sites}, thin, {}):
            cost = job.table.total(job.sites, shape)
            seconds: dict[bool, float] = {}
            for bf16 in (True, False) if fast_bf16() else (False,):
                if pace and time.monotonic() > end and bf16 is not (bf16_from <= cost):
                    continue  # no time for the precision that lost on a smaller shape, or has not been seen to win
                module = prune(root, shape, mend=False)[0] if shape else copy.deepcopy(root.module)
                quick = TrainingSchedule(2, job.batch, hidden_weight=0, seed=991, dropout=False, bf16=bf16)
                seconds[bf16] = _step(job, module, few, teacher, answers, quick, end)
            pace[cost] = min(seconds.values())
            if fast_bf16() and True in seconds and False in seconds and seconds[False] < seconds[True]:
                bf16_from = 1.5 * cost
            if len(pace) == 2 and time.monotonic() > end:
                break
    finally:
        use_threads(job.threads)
    return pace, bf16_from


def _step(job: Job, module: nn.Module, few: Examples, teacher: Teacher, answers: Any, quick: TrainingSchedule, end: float) -> float:
    """Seconds of one step: the median of a handful, the first two not counted; fewer where time is short."""
    from fourfold.rewrites.compress.distil import recover

    marks: list[float] = []

    def tick(_step: int, _loss: float) -> None:
        marks.append(time.perf_counter())

    began = time.perf_counter()
    recover(module, job.subject, job.task, few, quick, teacher=teacher, answers=answers, progress=tick)
    more = 2 if time.monotonic() > end or time.perf_counter() - began > 4 else 8
    recover(module, job.subject, job.task, few, replace(quick, steps=more), teacher=teacher, answers=answers, progress=tick)
    return float(np.median(np.diff(marks[2:]))) if len(marks) > 3 else float(np.diff(marks)[-1])


LEAST_STEPS = 20
"""Fewer do not recover anything; a level is dropped sooner."""
GOOD_STEPS = 800
"""About what a level needs to be worth more than fewer levels with more steps each."""


def plan_for(
    pace: Mapping[float, float], reach: float, work: Workload, rows: int, spent: float, batch: int = 32, online: bool = False,
    answer: float | None = None, cascades: bool = True,
) -> dict[str, Any]:
    """The plan for a budget, from `pace`: seconds of a training step by the predicted cost of the shape trained, 1.0 the original; and from the cost
    of the smallest shape, `reach`. `answer`: seconds that the original takes for one row; None: a fifth of its step.

    The levels share the time that `ENDS` gives to the search, less the original's answers and the refinement; each training is then held to its
    seconds by the clock, so `steps` is only the most it may take. `online`: the teacher answers in every step (its logits are too large to keep).
    `cascades`: a small level is wanted early, since what it is unsure of may be handed on.
    """
    costs, seconds = zip(*sorted(pace.items()), strict=True)
    whole = pace[max(pace)] / max(pace) if max(pace) < 0.9 else pace[max(pace)]

    def each(cost: float) -> float:
        return max(0.02 * whole, float(np.interp(cost, costs, seconds)))

    window = max(0.0, ENDS["search"] * work.budget - spent)
    price = batch * answer if answer is not None else 0.22 * whole
    augment = 0.0 if online else max(0.0, min(4.0, 0.07 * window / max(1e-9, rows * price / batch) - 1.0))
    nothing = dict.fromkeys(("expected", "short", "sketches", "rivals", "refine"), 0)
    nothing |= {"levels": [], "steps": [], "hidden": 0.0, "augment": 0.0 if online else 1.0}
    if reach > 0.93 or window < LEAST_STEPS * each(max(0.35, reach)) / 2:  # nothing worth having can be removed, or no time to win it back
        return nothing
    wanted = (0.2, 0.1, 0.35, 0.6, 0.05) if cascades else (0.35, 0.2, 0.6, 0.1, 0.05)
    if work.floor >= 0.985 or online:
        wanted = (0.6, 0.35, 0.8, 0.2, 0.1)
    wanted = tuple(v for v in wanted if v > 1.1 * reach) or (0.5 + 0.5 * reach,)
    refine = 0 if window < 25 else 2
    share = window * (0.85 if online else 0.75) * (0.68 if refine else 1.0)
    cap = max(150, 8 * rows // batch)

    def steps_for(chosen: tuple[float, ...]) -> int:
        return int(share / sum(each(v) for v in chosen))

    levels = wanted[:1]
    for count in range(2, len(wanted) + 1):
        if steps_for(wanted[:count]) >= min(GOOD_STEPS, cap):
            levels = wanted[:count]
    steps = max(LEAST_STEPS, min(steps_for(levels), cap))
    levels = tuple(sorted(levels, reverse=True))
    return {
        "levels": list(levels),
        "steps": [cap if steps > LEAST_STEPS else LEAST_STEPS] * len(levels),
        "expected": steps,
        "short": max(8, min(80, steps // 6)),
        "sketches": int(np.clip(window / 10, 4, 40)) if not online else 6,
        "rivals": 2 if steps >= 120 else 1,
        "refine": refine,
        "hidden": 1.0 if steps >= 2500 else 0.0,
        "augment": round(augment, 2),
    }
