"""The account: joules of the original by the best meter there is, and what each rung from it to the chosen point saved."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.jobs.optimize.final_race import Point
from fourfold.runtime.artefact import Assembly
from fourfold.runtime.service import ORIGINAL, Runner, race_services, runner

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.compress.combine import Candidate


def ladder(job: Job) -> None:
    """Joules of the original by the best meter there is, and the ladder of measured whole-run costs from the original to the chosen point."""
    job.listener.stage("keeping the account", 0)
    job.energy = job.journal.once("energy", lambda: _energy(job))
    if job.best is not None:
        end = job.best.timing.cpu.value if job.best.timing else 0.0      # an early answer may be timed again, and then ends elsewhere
        job.ladder = job.journal.once(f"ladder:{job.best.name}:{end!r}", lambda: _climb(job))


def _energy(job: Job) -> dict[str, Any]:
    """Joules per example of the original, over about two seconds of unseen rows; with interval, grade, method, boundary, and why no better meter."""
    from fourfold.measure.power import window

    whole, examples = Assembly("original", [job.signed("original", job.subject.module)]), job.served_rows(job.splits.test)
    rows = np.random.default_rng(job.work.seed).permutation(len(examples))
    calls = [np.sort(part) for part in np.array_split(rows, max(1, len(rows) // 128))]
    ready = [runner(whole, examples, part, job.task, job.options.max_length, job.work.objective == "latency") for part in calls]
    ready[0]()
    seen, began = 0, time.perf_counter()
    with window() as used:
        for run, part in zip(ready, calls, strict=True):
            run()
            seen += len(part)
            if time.perf_counter() - began > 2.0:
                break
    joules = used.joules
    assert joules is not None
    per = {"value": joules.value / seen, "low": (joules.low or joules.value) / seen, "high": (joules.high or joules.value) / seen}
    return {
        "per_example": per["value"],
        "per_cpu_second": joules.value / max(used.cpu, 1e-9),
        "grade": joules.grade,
        "method": joules.method,
        "boundary": joules.boundary,
        **per,
        "why": used.why,
    }


def _climb(job: Job) -> list[dict[str, Any]]:
    """Rungs (lever, technique, title, before, after, quality) whose costs are all relative to the original at its best, and end at the chosen
    point's."""
    best = job.best
    assert best is not None
    first = best.candidate.members[0] if best.candidate.members else best
    rungs: list[tuple[str, str, str, float]] = []
    fp32 = next(
        (p for p in job.points if p.candidate is first.candidate and (p.setting.engine, p.setting.precision) == ("torch", "fp32") and p.timing),
        None,
    )
    if first.candidate.structured and fp32 is not None:
        removed = _only_removal(job, first.candidate)
        if removed is not None:
            rungs.append(("model", "layer_removal", "blocks and sub-layers removed", removed))
        rungs.append(("model", "matrix_pruning", "heads and neurons removed", job.cost(fp32)))
    elif first.candidate.step and (fp32 is not None or not first.candidate.alone):
        rungs.append(("model", first.candidate.techniques[0], first.candidate.step, job.cost(fp32 or first)))
    if first is not fp32 and first.candidate.alone:
        title = f"{first.setting.engine} {first.setting.precision}"
        technique, lever = ("quantise", "model") if first.setting.precision != "fp32" else ("engine", "machine")
        rungs.append((lever, technique, title, job.cost(first)))
    if best is not first:
        rungs.append(("model", "cascade", "unsure answers handed to a dearer member", job.cost(best)))
    rows, before = [], 1.0
    for lever, technique, title, after in rungs:
        rows.append({"lever": lever, "technique": technique, "title": title, "before": before, "after": after})
        before = after
    end = best.timing.cpu.value if best.timing else before
    if rows:
        rows[-1]["after"] = end  # the ladder speaks of energy whatever the objective was
    return rows


def _only_removal(job: Job, candidate: Candidate) -> float | None:
    """Cost of the original with the candidate's missing blocks and sub-layers gone and everything else at full size; None where none is
    missing."""
    from fourfold.rewrites.compress.combine import Candidate, prune

    assert job.root is not None
    shape = {i: 0 for i, n in candidate.shape.items() if n == 0}
    if not shape:
        return None
    module, recipe, kept = prune(job.root, shape, mend=False)
    variant = Candidate("removal", "network", recipe, shape, 1.0, kept=kept, module=module, structured=True)
    point = Point("removal", variant, Assembly("removal", [job.signed("removal", module, variant)]))
    runners = {ORIGINAL: Runner(Assembly(ORIGINAL, [job.signed(ORIGINAL, job.subject.module)])), "removal": Runner(point.assembly)}
    found = race_services(
        runners, job.served_rows(job.splits.test), job.task, seconds=max(3.0, 0.02 * job.work.budget), seed=job.work.seed,
        max_length=job.options.max_length,
    )
    return found["removal"].result.cpu.value
