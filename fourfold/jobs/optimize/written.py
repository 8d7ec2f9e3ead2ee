"""The report's page on generation: what serving costs by batch and phase, texts of the original and of the chosen model, bits by layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.jobs.optimize.drafts import row

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job
    from fourfold.report.generation import GenerationSummary, LayerBits, ServedBatch, SideBySide
    from fourfold.runtime.artefact import Part

SHOWN = 4
"""Prompts whose answers are told."""
WIDTHS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.0, "int8-weights": 8.0, "int4-weights": 4.0}


def summary(job: Job) -> GenerationSummary | None:
    """None where the job's model does not generate."""
    generation = job.task.generation
    if generation is None:
        return None
    rate = job.energy.get("per_cpu_second")
    rows: list[ServedBatch] = _rows("original", job.served.generation if job.served is not None else None, rate)
    for point in job.points:
        rows += _rows(point.name, point.served.generation if point.served is not None else None, rate)
    found: GenerationSummary = {"prompt_tokens": generation.prompt, "new_tokens": generation.new, "batches": sorted(set(generation.batch)),
                                "rows": rows, "examples": _examples(job), "bits": _bits(job), "drafts": row(job)}
    return found


def _rows(name: str, phases: dict[str, Any] | None, rate: float | None) -> list[ServedBatch]:
    made: list[ServedBatch] = []
    for batch, one in (phases or {}).items():
        each = one["decode_cpu_s"] * max(1, one["new_tokens"] - 1) + one["prefill_cpu_s"]
        made.append({"name": name, "batch": int(batch), "first_token_s": one["first_token_s"], "prefill_cpu_s": one["prefill_cpu_s"],
                     "decode_cpu_s": one["decode_cpu_s"], "tokens_per_s": one["tokens_per_s"],
                     "joules_per_1000_tokens": None if not rate else 1000 * rate * each / one["new_tokens"]})
    return made


def _examples(job: Job) -> list[SideBySide]:
    """A few unseen rows answered by both; journalled. Nothing where nothing was chosen."""
    if job.best is None:
        return []
    few = job.splits.test.take(np.sort(np.random.default_rng([job.work.seed, 31]).permutation(len(job.splits.test))[:SHOWN]))
    part = job.best.assembly.parts[-1]

    def run() -> list[SideBySide]:
        from fourfold.jobs.optimize.decoders import ready
        from fourfold.runtime.generating import GeneratingSession, prompts, texts, wanted

        session, index = part.open(), np.arange(len(few))
        assert isinstance(session, GeneratingSession)
        own = texts(ready(job.subject.module, job.task, few), few, job.task, SHOWN)
        cheap = texts(session.decoding, part.sees(few), job.task, SHOWN)
        references = job.task.texts([[int(t) for t in row if t >= 0] for row in wanted(few, index, job.task)])
        given = [str(one) for one in few.raw] if few.raw is not None else None
        if given is None and not (job.task.generation and job.task.generation.encodes):
            batch = prompts(few, index, job.task)
            given = job.task.texts([row[mask > 0].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)])
        given = given or [f"row {i + 1}" for i in range(len(few))]
        told = zip(given, own, cheap, references, strict=True)
        return [{"prompt": a[-600:], "original": b, "cheap": c, "wanted": d or None} for a, b, c, d in told]

    return job.journal.once(f"side by side:{job.best.name}", run)


def _bits(job: Job) -> list[LayerBits]:
    return [] if job.best is None else bits(job.best.assembly.parts[-1])


def bits(part: Part) -> list[LayerBits]:
    """Mean bits of a weight by block, in the order of the module; packed layers count their steps and offsets."""
    import torch
    from torch import nn

    if part.module is None:
        return []
    from fourfold.rewrites.weight_precision import layers, weight_bits

    packed = set(layers(part.module))
    counted = {path: each for path, each in weight_bits(part.module).items() if path in packed}
    held: dict[str, list[float]] = {}
    whole = WIDTHS.get(part.setting.precision, 32.0)
    seen: set[int] = set()
    for name, module in part.module.named_modules():
        own = counted.get(name)
        tensors = list(module.parameters(recurse=False)) if own is None else [torch.empty(1, 1)]
        weight = [t for t in tensors if t.ndim > 1 and id(t) not in seen]
        if not weight or not (isinstance(module, nn.Linear | nn.Embedding) or own is not None or "Conv1D" in type(module).__name__):
            continue
        seen |= {id(t) for t in weight}
        if isinstance(own, int | float):
            count, each = getattr(module, "in_features", 1) * getattr(module, "out_features", 1), float(own)
        else:
            count, kept = weight[0].numel(), whole < 16 and isinstance(module, nn.Embedding)
            each = 32.0 if kept else min(whole, 8.0 * weight[0].element_size())
        key = re.sub(r"^(?:.*\.)?((?:layers|h|block|blocks)\.\d+)\..*$", r"\1", name)
        total = held.setdefault(key, [0.0, 0.0])
        total[0] += count * each
        total[1] += count
    return [{"name": key, "bits": total / count} for key, (total, count) in held.items()]
