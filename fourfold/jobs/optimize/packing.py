"""Candidates of a generating workload once more, with their weights in fewer bits: 8 and 4 by each technique that packs, and mixed by sensitivity.

Decoding reads every weight for every token, so bits of weights are what it costs. Plans are tried least harm first on the original, and on the
structures near the floor, while a share of the budget lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.compress.combine import Candidate
    from fourfold.rewrites.weight_precision import WeightPlan

SHARE = 0.2
"""Share of the budget that packing and judging may take."""
STRUCTURES = 2
"""Structures, besides the original, that are packed."""
CALIBRATION = 32
"""Train rows that techniques calibrate with."""
MEASURED = 0.05
"""Share of the budget that measuring the harms may take."""
SENSITIVE = 8
"""Train rows on which the harm of each layer is measured, for mixed plans."""
MEANS = (5.0, 6.0)
"""Mean bits a weight of mixed plans."""


NEAR = 1.15
"""An engine is given packed weights where the original's cost in it is within so much of the least."""


def packs(job: Job) -> list[tuple[str, str]]:
    """(engine, arithmetic) in which packed weights are worth running: of engines that ran the original, those near the cheapest."""
    from fourfold.engines.decode import decoder, names
    from fourfold.host import here

    wanted = job.options.engines
    able = [(name, p) for name in names() for p in decoder(name).packs
            if (wanted is None or name in wanted) and decoder(name).declines(p, here()) is None]  # fmt: skip
    by = "wall" if job.work.objective == "latency" else "cpu"
    cost: dict[str, float] = {}
    for row in job.race_rows:
        if row["engine"] in {name for name, _ in able}:
            cost[row["engine"]] = min(cost.get(row["engine"], 1e9), float(row[by]["value"]))
    least = min(cost.values(), default=0.0)
    return [(name, p) for name, p in able if not cost or cost.get(name, 1e9) <= NEAR * least]


def packed(job: Job, everyone: Sequence[Candidate]) -> list[Candidate]:
    """The packed candidates, judged on the search split; [] where no engine here runs packed weights, or none can be packed."""
    if job.task.generation is None or not packs(job):
        return []
    began, found = time.monotonic(), []
    near = sorted((c for c in everyone if c.structured and c.quality), key=lambda c: abs(c.quality.value - job.work.floor - 0.01))  # type: ignore[union-attr]
    roots = [c for c in everyone if c.root]
    for parent in [*roots, *near[:STRUCTURES]]:
        assert parent.module is not None
        run = _calibrating(job)
        for plan in _plans(job, parent.module):
            name = f"{parent.name}, {plan.name}"
            left = SHARE * job.work.budget - (time.monotonic() - began)
            if not job.decide(f"pack:{name}", lambda left=left: left > 0):
                continue
            job.listener.note(f"packing {name}")
            one = _made(job, parent, plan, name, run)
            if one is not None:
                found.append(one)
    return found


def _plans(job: Job, module: nn.Module) -> list[WeightPlan]:
    """What is tried, least harm first; mixed plans by each layer's measured harm where that takes little of the budget, else by the predicted."""
    from fourfold.rewrites.weight_precision import Grid, mixed, plans, predicted, sensitivities

    all_ = plans(module)
    names = ("int8", "int4 gptq 32 integer", "int4 awq 32 integer", "int4 gptq 64 symmetric")
    chosen = [plan for name in names for plan in all_ if plan.name == name]
    if not chosen:
        return all_[:3]
    few, at = job.splits.train.take(np.arange(min(SENSITIVE, len(job.splits.train)))), time.monotonic()
    loss = _loss(job, few)
    loss(module)
    each = time.monotonic() - at
    choices = (Grid(4, 32, "integer"), Grid(8, 0, "symmetric"))
    layers = len(chosen[0].grids)
    if job.decide("mixed bits", lambda: each * layers * len(choices) < MEASURED * job.work.budget):
        harms = job.journal.once(f"harms:{layers}", lambda: {path: row.tolist() for path, row in sensitivities(module, loss, choices).items()})
        chosen += mixed(module, {path: np.array(row) for path, row in harms.items()}, choices, MEANS, "compress/gptq")
    elif job.task.kind == "causal_lm":
        harms = job.journal.once(f"harms:predicted:{layers}", lambda: {
            path: row.tolist() for path, row in predicted(module, _differentiable(job, few.take(np.arange(min(4, len(few))))), choices).items()})
        chosen += mixed(module, {path: np.array(row) for path, row in harms.items()}, choices, MEANS, "compress/gptq")
    return chosen


def _differentiable(job: Job, few: Any) -> Callable[[nn.Module], Any]:
    """The same loss as a tensor, of one batch."""
    import torch

    from fourfold.rewrites.compress.distil import tensors

    index = np.arange(len(few))
    return lambda module: job.task.loss(job.subject.logits(module, tensors(few.collate(index))), torch.from_numpy(few.collate_targets(index)))


def _loss(job: Job, few: Any) -> Callable[[nn.Module], float]:
    """Mean negative log-likelihood of the answers, teacher-forced."""
    from fourfold.rewrites.compress.combine import evaluate_with

    task = replace(job.task.with_metric("perplexity"), judge=None)

    def loss(module: nn.Module) -> float:
        rows = evaluate_with(job.subject, task, module, few, exact=True)
        return float(rows[:, 0].sum() / max(1.0, rows[:, 1].sum()))

    return loss


def _calibrating(job: Job) -> Callable[[nn.Module], object]:
    """Calls a module on train rows, a few at a time."""
    import torch

    from fourfold.rewrites.compress.distil import tensors

    few = job.splits.train.take(np.arange(min(CALIBRATION, len(job.splits.train))))

    def run(module: nn.Module) -> None:
        with torch.no_grad():
            for index in few.batches(8):
                job.subject.logits(module, tensors(few.collate(index)))

    return run


def _made(job: Job, parent: Candidate, plan: WeightPlan, name: str, run: Callable[[nn.Module], object]) -> Candidate | None:
    from fourfold.errors import FourfoldError
    from fourfold.recipe import Recipe
    from fourfold.registry import technique
    from fourfold.rewrites.compress.combine import Candidate, evaluate_with
    from fourfold.rewrites.weight_precision import packed as pack
    from fourfold.rewrites.weight_precision import weight_bits

    assert parent.module is not None
    try:
        module = pack(parent.module, plan, run)
    except (FourfoldError, RuntimeError, ValueError) as error:
        job.refusals[name] = str(error).splitlines()[0]
        return None
    # What a technique added to a layer while it packed (scaled inputs) is part of its shape.
    edits = tuple({**edit, **({"scaled": True} if getattr(module.get_submodule(str(edit["path"])), "scaled", None) is not None else {})}
                  for edit in plan.edits())
    short, bits = plan.technique.removeprefix("compress/"), weight_bits(module)
    mean = float(np.mean(list(bits.values()))) if bits else 32.0
    rewrite = technique(plan.technique)()
    made = Candidate(
        name, parent.kind, parent.recipe + Recipe(edits), parent.shape, parent.cost * max(0.1, mean / 32), parent.rung, parent.steps, parent.name,
        parent.kept, module=module, extra={**parent.extra, "packed": parent}, technique=plan.technique, techniques=(*parent.techniques, short),
        how=f"{parent.how + '; ' if parent.how and not parent.root else ''}{rewrite.describe(edits)}", step=rewrite.describe(edits), quantises=False,
    )  # fmt: skip
    made.records = job.array(f"judge:{name}", lambda: evaluate_with(job.subject, job.task, module, job.splits.search, exact=True))
    made.quality = job.relative(made.records, "search")
    quality = made.quality
    job.listener.best(f"{name}: {mean:.3g} bits a weight, quality {quality.value:.1%} [{quality.low:.1%}, {quality.high:.1%}]")
    return made
