"""The peers, in our harness: the same original, pool of inputs, teacher answers, loss, learning rate and number of steps as the search had.

Structural peers go down the same ladder of cost levels as the search, each level pruned from the one before and distilled for as many steps
(prune → distil → prune), so that nobody trains more than we did. Only the choice of what goes differs:
- Torch-Pruning: dependency graph, first-order Taylor importance, heads, neurons and the residual width, uniformly (Fang et al. 2023);
- layer dropping: blocks of least Block Influence (Men et al. 2024);
- uniform magnitude: the same share of heads and neurons in every block, those of least norm.
Quantising peers take the original as it is: OpenVINO + NNCF, ONNX Runtime, torchao, each in the engine that this project drives it with.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import torch
from torch import nn

from fourfold.jobs.optimize.final_race import Point, prepare
from fourfold.recipe import Recipe
from fourfold.recipe import apply as apply_recipe
from fourfold.rewrites.compress.combine import Candidate, site_ids
from fourfold.rewrites.compress.distil import TrainingSchedule, layer_map, recover, snapshot, tensors
from fourfold.runtime.artefact import Assembly, Part, Setting
from fourfold.structure.discover import Keep, anatomize, recipe_for

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job
    from fourfold.journal import Journal
    from fourfold.structure.discover import Bundle

QUANTISERS = {
    "OpenVINO + NNCF int8": ("openvino", "int8"),
    "ONNX Runtime int8 dynamic": ("onnxruntime", "int8"),
    "torchao int8 + compile": ("inductor", "int8"),
}


@dataclass
class Cut:
    """A smaller model on the way down: its module, the original numbers of its blocks, and the size it was cut to, in words."""

    module: nn.Module
    kept: dict[str, list[int]]
    size: str
    pairs: bool = True


Cutter = Callable[[Cut, float], Cut | None]
"""Cut the model to about a cost level (relative to the original), or None where there is nothing left to cut."""


def quantised(job: Job, folder: Path) -> tuple[list[Point], dict[str, str]]:
    """The original under each quantising peer, at the settings that the race of the original found for that pair; and who could not run, and why."""
    points, refused = [], {}
    base = job.base_setting
    os.environ.setdefault("FOURFOLD_COMPILE_LIMIT", "600")  # a peer may take its time to compile: only its answers are timed
    for name, (engine, precision) in QUANTISERS.items():
        how = next(
            (h for e, p, h in job.pairs if (e, p) == (engine, precision)), {"threads": base.threads, "batch": base.batch, "bucketing": base.bucketing}
        )
        part = Part(name, job.subject, job.subject.module, None, Setting(engine, precision, **how))
        _, reason = prepare(part, job.splits.search, folder / f"{engine}-{precision}", job.work.seed)
        if reason:
            refused[name] = reason
            print(f"{name}: left out, {reason}")
            continue
        candidate = Candidate(name, "network", Recipe(()), {}, 1.0, 2, module=job.subject.module, structured=True)
        points.append(Point(name, candidate, Assembly(name, [part])))
    return points, refused


def structural(job: Job, journal: Journal, folder: Path, levels: list[float], steps: list[int], progress: Any) -> tuple[list[Point], dict[str, str]]:
    """The three structural peers at every level they can reach."""
    points: list[Point] = []
    refused: dict[str, str] = {}
    for name, cutter in {"Torch-Pruning": torch_pruning, "layer dropping": layer_dropping, "uniform magnitude": uniform_magnitude}.items():
        try:
            points += descend(name, cutter(job), job, journal, folder, levels, steps, progress)
        except ImportError as error:
            refused[name] = str(error)
            print(f"{name}: left out, {error}")
    return points, refused


def descend(name: str, cutter: Cutter, job: Job, journal: Journal, folder: Path, levels: list[float], steps: list[int], progress: Any) -> list[Point]:
    """Prune → distil → prune along the levels; each level's weights are kept in the journal. Cutting is repeated on a resume, training is not."""
    assert job.root is not None and job.searcher is not None
    bench, points = job.searcher.bench, []
    at = Cut(copy.deepcopy(job.root.module), {k: list(v) for k, v in job.root.kept.items()}, "")
    total = 0
    for number, (level, count) in enumerate(zip(levels, steps, strict=True)):
        made = cutter(replace(at, module=copy.deepcopy(at.module)), level)
        if made is None:
            continue
        pairs = layer_map(job.root.anatomy, made.kept) if bench.hidden_weight > 0 and made.pairs else None
        schedule = TrainingSchedule(
            count,
            bench.batch,
            bench.lr,
            seed=bench.seed + number,
            hidden_weight=bench.hidden_weight if made.pairs else 0.0,
            label_weight=bench.label_weight,
            dropout=False,
        )
        progress.stage(f"{name}, {made.size}", count)

        def train(made: Cut = made, pairs: Any = pairs, schedule: TrainingSchedule = schedule, number: int = number) -> dict[str, torch.Tensor]:
            checkpoint = folder / f"{name.replace(' ', '-')}-{number}.ckpt.safetensors"
            recover(
                made.module, bench.subject, bench.task, bench.pool, schedule, teacher=bench.teacher, answers=bench.answers, pairs=pairs,
                checkpoint=checkpoint,
            )  # fmt: skip
            return snapshot(made.module)

        made.module.load_state_dict(journal.tensors(f"{name}:{number}:{level}:{count}:{made.size}", train))
        made.module.eval()
        total += count
        at = made
        points.append(point(f"{name}, {made.size}", job, made, total))
    return points


def point(name: str, job: Job, made: Cut, steps: int) -> Point:
    """A peer's model in PyTorch fp32 at the original's best settings, as our own structural points run."""
    part = Part(name, job.subject, made.module, None, job.base_setting, signature=harness.signature(job))
    candidate = Candidate(name, "network", Recipe(()), {}, 1.0, 2, steps, kept=made.kept, module=made.module, structured=True)
    return Point(name, candidate, Assembly(name, [part]))


# --------------------------------------------------------------------------------------------------------------- cutters


def torch_pruning(job: Job) -> Cutter:
    """Heads, feed-forward neurons and the residual width by the same share 1 − √level, as a user of the library prunes BERT."""
    import torch_pruning as tp

    left = 1.0
    pool = job.splits.train
    batches = [tensors(pool.collate(at)) for at in pool.batches(16, bucket=True, seed=job.work.seed)[:8]]

    def cut(at: Cut, level: float) -> Cut | None:
        nonlocal left
        share = 1 - math.sqrt(level) / left
        if share < 0.02:
            return None
        module = at.module.train(False)
        module.zero_grad()
        for inputs in batches:  # gradients of the model's own mean log-likelihood: what the Taylor criterion reads
            z = job.subject.logits(module, inputs).float()
            torch.nn.functional.cross_entropy(z, z.detach().argmax(-1)).backward()
        heads = {
            m: m.out_features // width(job)
            for n, m in module.named_modules()
            if isinstance(m, nn.Linear) and n.rsplit(".", 1)[-1] in ("query", "key", "value")
        }
        last = [m for n, m in module.named_modules() if isinstance(m, nn.Linear) and n == "classifier"]
        pruner = tp.pruner.BasePruner(
            module,
            example_inputs=dict(batches[0]),
            importance=tp.importance.GroupTaylorImportance(),
            pruning_ratio=share,
            prune_num_heads=True,
            prune_head_dims=False,  # attention reshapes by head size, which the configuration holds
            head_pruning_ratio=share,
            num_heads=heads,
            ignored_layers=last,
            output_transform=lambda out: out.logits.sum(),
            round_to=8,
        )
        pruner.step()
        module.zero_grad(set_to_none=True)
        left *= 1 - share
        return Cut(module, at.kept, f"{1 - left:.0%} of every width gone", pairs=False)

    return cut


def width(job: Job) -> int:
    """Size of an attention head."""
    config: Any = job.subject.module.config
    return config.hidden_size // config.num_attention_heads


def layer_dropping(job: Job) -> Cutter:
    """Whole blocks, those of least Block Influence on the original first; as many as the level's predicted cost asks for."""
    assert job.root is not None and job.root.sensitivities is not None and job.table is not None
    root, table, sites = job.root, job.table, job.sites
    influence = root.sensitivities.influence
    order = {s.name: sorted(range(len(s.blocks)), key=lambda i, s=s: influence.get(s.blocks[i].path, 2.0)) for s in root.anatomy.stacks}

    def kept_of(share: float) -> dict[str, list[int]]:
        return {name: sorted(those[len(those) - max(1, round(share * len(those))) :]) for name, those in order.items()}

    def cost(kept: dict[str, list[int]]) -> float:
        gone = {i: 0 for i in site_ids(root.anatomy) if int(i.rsplit(".", 2)[1]) not in kept[i.rsplit(".", 2)[0]]}
        return table.total(sites, gone)

    most = max(len(v) for v in order.values())

    def cut(at: Cut, level: float) -> Cut | None:
        options = [kept_of(k / most) for k in range(most, 0, -1)]
        kept = next((k for k in options if cost(k) <= level * 1.08), options[-1])
        if kept == at.kept:
            return None
        anatomy = anatomize(at.module, job.sample)
        blocks = {name: [at.kept[name].index(i) for i in those] for name, those in kept.items()}
        apply_step(at.module, anatomy, Keep(blocks=blocks))
        return Cut(at.module, kept, " and ".join(f"{len(v)} of {len(order[n])} blocks" for n, v in kept.items()))

    return cut


def uniform_magnitude(job: Job) -> Cutter:
    """The same share of heads and neurons in every block, least weight norm first; the largest share within the level's predicted cost."""
    assert job.root is not None and job.table is not None
    root, table, sites = job.root, job.table, job.sites
    names = {ident: bundle for ident, (_, bundle) in site_ids(root.anatomy).items() if bundle}
    full = {i: root.anatomy.bundles[b] for i, b in names.items()}

    def shape(share: float) -> dict[str, int]:
        step = {i: 1 if b.kind == "heads" else 32 if b.count >= 512 else 8 if b.count >= 32 else 1 for i, b in full.items()}
        return {i: min(b.count, max(step[i], round(share * b.count / step[i]) * step[i])) for i, b in full.items()}

    def cut(at: Cut, level: float) -> Cut | None:
        options = [shape(k / 48) for k in range(48, 0, -1)]
        wanted = next((s for s in options if table.total(sites, s) <= level * 1.05), options[-1])
        anatomy = anatomize(at.module, job.sample)
        here = {i: anatomy.bundles[b] for i, (_, b) in site_ids(anatomy, at.kept).items() if b}
        units = {b.name: strongest(at.module, b, wanted[i]) for i, b in here.items() if wanted[i] < b.count}
        if not units:
            return None
        apply_step(at.module, anatomy, Keep(units=units))
        first = {b.kind: f"{wanted[i]} of {b.count} {b.kind}" for i, b in full.items()}
        return Cut(at.module, at.kept, ", ".join(first.values()))

    return cut


def strongest(module: nn.Module, bundle: Bundle, count: int) -> list[int]:
    """The `count` units of a bundle with the largest norm over all rows that make them and columns that read them, in order."""
    total = torch.zeros(bundle.count)
    for site in (*bundle.producers, *bundle.consumers):
        weight = getattr(module.get_submodule(site.path), "weight", None) if isinstance(site.axis, str) else None
        if not isinstance(weight, torch.Tensor):
            continue
        power = weight.detach().float().pow(2)
        power = power.sum(1) if site.axis == "out" else power.sum(0)
        total += torch.stack([power[torch.from_numpy(site.index([u]))].sum() for u in range(bundle.count)])
    return sorted(total.argsort(descending=True)[:count].tolist())


def apply_step(module: nn.Module, anatomy: Any, keep: Keep) -> None:
    """Slice in place. What the anatomy prepares (a no-op on a prepared model) is not done twice."""
    edits = recipe_for(anatomy, keep).edits
    apply_recipe(module, Recipe(edits[len(anatomy.preparation.edits) :]))
