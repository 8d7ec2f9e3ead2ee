"""What the budget allows: how many levels, trials, steps and refinements, from the measured time of a training step."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fourfold.rewrites.compress.combine import Node, Plan
    from fourfold.run.job import Job
    from fourfold.workload import Workload


def plan(job: Job, root: Node) -> Plan:
    """What the budget allows, from the measured time of a training step; journalled, so that a resumed run follows the same plan."""
    from fourfold.rewrites.compress.combine import Plan, cheapest, prune
    from fourfold.rewrites.compress.distil import Schedule, Teacher, recover

    assert job.table is not None
    table = job.table

    def run() -> dict[str, Any]:
        teacher = Teacher(job.subject, root.module, job.task)
        warm, count = (1, 2) if job.sequences else (2, 6)
        quick = Schedule(warm, job.batch, hidden_weight=0, seed=991, dropout=False)
        thin = {s.name: max(s.least, s.full // 4) for s in job.sites}  # as deep as the original: a step costs by depth more than by width
        pace: dict[float, float] = {}
        for shape in ({}, thin, {s.name: s.least for s in job.sites}):
            module = prune(root, shape, mend=False)[0] if shape else copy.deepcopy(root.module)
            recover(module, job.subject, job.task, job.splits.train, quick, teacher=teacher)
            began = time.perf_counter()
            recover(module, job.subject, job.task, job.splits.train, replace(quick, steps=count), teacher=teacher)
            pace[table.total(job.sites, shape)] = (time.perf_counter() - began) / count
        return plan_for(
            pace,
            cheapest(root.anatomy, table, job.sites),
            job.work,
            len(job.splits.train),
            job.journal.elapsed,
            job.batch,
            online=job.sequences,
        )

    found = job.journal.once("plan", run)
    job.augment = float(found.pop("augment"))
    return Plan(**found)


LEAST_STEPS = 20
"""Fewer do not recover anything; a level is dropped sooner."""


def plan_for(
    pace: Mapping[float, float], reach: float, work: Workload, rows: int, spent: float, batch: int = 32, online: bool = False
) -> dict[str, Any]:
    """The plan for a budget, from `pace`: seconds of a training step (the teacher's own pass included) by the predicted cost of the shape trained,
    1.0 the original; and from the cost of the smallest shape, `reach`.

    Three fifths of what is left goes to short trials, full recoveries and refinement; the rest is for the teacher's answers, back ends, races and
    the proof. `online`: the teacher answers in every step (its logits are too large to keep).
    """
    costs, seconds = zip(*sorted(pace.items()), strict=True)
    whole = pace[max(pace)]
    teacher = 0.0 if online else 0.22 * whole  # answered once for all steps, not in each of them

    def each(cost: float) -> float:
        return max(0.02 * whole, float(np.interp(cost, costs, seconds)) - teacher)

    left = max(10.0, work.budget - spent)
    share = 0.6 * left
    levels = [v for v in (0.6, 0.35, 0.2, 0.1, 0.05) if v > 1.1 * reach] or [0.5 + 0.5 * reach]
    if reach > 0.93:  # nothing worth having can be removed: precision and back ends are all there is
        return {"levels": [], "steps": [], "short": 0, "sketches": 0, "rivals": 0, "refine": 0, "hidden": 0.0, "augment": 0.0 if online else 1.0}
    if work.floor >= 0.985 or online:
        levels = [0.8, *levels]
    rivals = 2
    refine = 0 if left < 40 else 1 if left < 600 else 2

    def steps_for(chosen: list[float], refine: int = refine) -> int:
        """As many per level, with rivals' trials of a sixth as many, and refinements that tend to lie above the middle level."""
        full = sum(each(v) for v in chosen)
        return int(share / (full * (1 + rivals / 6) + refine * each(chosen[len(chosen) // 2] * 1.5)))

    cap = max(150, 8 * rows // batch)
    if steps_for(levels) < min(500, cap):  # better few levels well recovered than many badly
        few = [v for v in levels if v in (0.35, 0.2, 0.1)] if not online else [v for v in levels if v in (0.8, 0.6)]
        levels = few or levels[:2]
    if steps_for(levels) < LEAST_STEPS:
        refine = 0
    while len(levels) > 1 and steps_for(levels, refine) < LEAST_STEPS:
        levels = levels[:-1]
    steps = max(LEAST_STEPS, min(steps_for(levels, refine), cap))
    price = teacher or 0.22 * whole
    augment = 0.0 if online else min(5.0, 0.10 * left / max(1e-9, rows * price / batch), max(0.0, steps * batch * 1.2 / rows - 1.0) + 0.5)
    return {
        "levels": levels,
        "steps": [steps] * len(levels),
        "short": max(8, min(80, steps // 6)),
        "sketches": int(np.clip(left / 12, 4, 40)) if not online else 6,
        "rivals": rivals if steps >= 120 else 1,
        "refine": refine,
        "hidden": 1.0 if steps >= 2500 else 0.0,
        "augment": round(augment, 2),
    }
