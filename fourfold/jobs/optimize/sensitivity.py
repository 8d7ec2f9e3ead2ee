"""What the original is made of: its anatomy, what each unit matters, and what each unit costs on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fourfold.jobs.optimize.budget import plan
from fourfold.jobs.optimize.final_race import runner, sample_for
from fourfold.measure.race import race
from fourfold.runtime.artefact import Assembly

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fourfold.cost.unit_costs import CostTable
    from fourfold.datasets.examples import Examples
    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.calibration import Sensitivities
    from fourfold.rewrites.compress.combine import Node


LEAST = 0.12
"""Share of the budget that must be left for the search, or nothing is begun that it would need."""


def measure(job: Job) -> None:
    """Anatomy, sensitivities in one calibration pass, the cost table, and the plan that the time allows."""
    from fourfold.rewrites.compress.combine import cost_sites, original
    from fourfold.structure.discover import anatomize

    if not job.decide("measure", lambda: job.deadline.until("search") > LEAST * job.work.budget):
        job.warnings.append(
            "Measuring the original took the time that removing and training would have needed: only precisions, back ends, counted words and "
            "cascades of these were tried. A larger budget, or an idle machine, gives more."
        )
        return
    job.listener.stage("finding what can be removed", 0)
    if sealed := getattr(job.subject.module, "sealed", None):
        job.refusals = {type(job.subject.module).__name__: sealed}
        return                                                          # `read` has said so
    anatomy = anatomize(job.subject.module, job.sample)
    job.refusals = dict(anatomy.refusals)
    if not any(stack.blocks for stack in anatomy.stacks):
        why = next(iter(job.refusals.items()), (type(job.subject.module).__name__, "no stack of residual blocks was found"))
        job.warnings.append(f"Nothing of {why[0]} can be removed ({why[1]}). It is still quantised, and its back ends are raced.")
        return
    root = job.root = original(job.subject.module, anatomy)
    job.sites = cost_sites(anatomy)
    root.sensitivities = _sensitivities(job, root)
    job.table = _cost_table(job, root)
    job.plan = plan(job, root)
    window, rest = job.deadline.until("search"), job.deadline.left()
    job.listener.plan(
        {
            "asking the original": 0.1 * window,
            "sketching shapes": 0.1 * window,
            "pruning and distilling": 0.55 * window,
            "refining near the floor": 0.25 * window,
            "building precisions and back ends": 0.5 * (rest - window),
            "racing": 0.25 * (rest - window),
            "proving on the unseen split": 0.15 * (rest - window),
        }
    )


def _sensitivities(job: Job, root: Node) -> Sensitivities:
    """What each unit matters, from one pass over as many training rows as the budget allows; journalled."""
    from fourfold.rewrites.calibration import Sensitivities, calibrate

    stacks = root.anatomy.stacks
    units = sum(1 + len(b.sublayers) for stack in stacks for b in stack.blocks)
    seconds = 0.5 * job.deadline.until("measure")
    most = [min(len(job.splits.train), int(np.clip(0.55 * seconds / (4 * max(job.each, 1e-9)), 8, 256)))]
    most.append(min(most[0], int(0.45 * seconds / (units * max(job.each, 1e-9))), 128 if not job.sequences else 16))
    count, ablated = job.decide("calibration", lambda: most)

    def run() -> dict[str, torch.Tensor]:
        import torch

        job.listener.stage("calibrating: what each unit matters", count + (sum(len(s.blocks) for s in stacks) if ablated >= 4 else 0))
        found = calibrate(
            job.subject,
            root.module,
            job.task,
            job.splits.train,
            root.anatomy,
            examples=count,
            ablated=ablated if ablated >= 4 else 0,
            seed=job.work.seed,
            progress=job.listener.advance,
        )
        flat = {f"gradients|{k}": v for k, v in found.gradients.items()} | {f"gram|{k}": v for k, v in found.gram.items()}
        facts = json.dumps({"influence": found.influence, "ablation": found.ablation, "examples": found.examples})
        flat["facts"] = np.frombuffer(facts.encode(), np.uint8).copy()
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in flat.items()}

    stored = job.journal.tensors("calibration", run)
    facts = json.loads(stored["facts"].numpy().tobytes().decode())
    gradients = {k.removeprefix("gradients|"): v.numpy() for k, v in stored.items() if k.startswith("gradients|")}
    gram = {k.removeprefix("gram|"): v.numpy() for k, v in stored.items() if k.startswith("gram|")}
    return Sensitivities(facts["influence"], facts["ablation"], gradients, gram, facts["examples"])


def _cost_table(job: Job, root: Node) -> CostTable:
    """What each removable unit costs: raced on this machine with units gone, or counted in bytes for the memory objective."""
    from fourfold.cost.unit_costs import fit, variants
    from fourfold.rewrites.compress.combine import prune

    shapes = variants(job.sites)
    if len(shapes) > 14:  # many kinds of sites: time the whole-kind removals only, the ridge shares presence and size
        shapes = {n: s for n, s in shapes.items() if not n.endswith(":half")}

    def module(name: str) -> nn.Module:
        return root.module if name == "full" else prune(root, shapes[name], mend=False)[0]

    def run() -> dict[str, float]:
        job.listener.stage("timing removable units on this machine", len(shapes))
        allowed = max(2.0, min(25.0, 0.03 * job.work.budget, 0.5 * job.deadline.until("search")))
        runners: dict[str, Callable[[], None]] = {}
        sample: Examples | None = None
        for name in shapes:
            part = job.signed(name, module(name))
            if sample is None:
                # warm-up, five rounds and the growing number of shapes must fit in the time; a smaller shape takes less than the original
                one = min(0.6, job.work.budget / 600, allowed / (5.0 * len(shapes)))
                sample = sample_for(part, job.raced(job.splits.search), one, job.work.seed, job.work.objective)
            runners[name] = runner(Assembly(name, [part]), sample, job.task)
            job.listener.advance()
        results = race(runners, baseline="full", rounds=9, at_least=3, seed=job.work.seed, deadline=0.7 * allowed, warmup=1, min_time=0.02)
        return {n: (r.wall if job.work.objective == "latency" else r.cpu).value for n, r in results.items()}

    if job.work.objective == "memory":
        measured = {n: float(sum(p.numel() * p.element_size() for p in module(n).parameters())) for n in shapes}
    else:
        measured = job.journal.once("cost-table", run)
    return fit(job.sites, shapes, measured)
