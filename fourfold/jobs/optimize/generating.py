"""The stages of the main job that are others where the model generates: its own continuations, its best settings, and what is ready to race."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets.generation import continued
from fourfold.engines.decode import decoder, names
from fourfold.engines.decode.base import Decoding
from fourfold.errors import FourfoldError, InputError, ModelError
from fourfold.jobs.optimize.decoders import prepared, ready, torch_threads
from fourfold.jobs.optimize.pairs import best_pairs
from fourfold.jobs.optimize.state import capped
from fourfold.runtime.artefact import Setting

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.jobs.optimize.state import Job
    from fourfold.measure.race import RaceResult
    from fourfold.runtime.artefact import Part

LONG = 1.0
"""Seconds of a call above which the first counts like any other."""

CONTINUED = 2_000
"""Train rows that the original continues at most, where the data hold prompts alone."""


def begin(job: Job) -> None:
    """Where the data hold prompts alone, the original's own greedy continuations are what is asked for; and how written answers are judged."""
    from fourfold.runtime.generating import ask, judged

    task = job.task
    assert task.generation is not None
    if task.generates and not task.generation.stops and task.metric.name in ("exact_match", "wer", "rouge"):
        raise InputError(f"the metric {task.metric.name} is of whole answers, and neither model nor tokenizer names an end-of-sequence token.",
                         "Set one (tokenizer.eos_token, model.generation_config.eos_token_id) and save both, or judge by perplexity or agreement.")
    first = job.splits.train if len(job.splits.train) else job.splits.test
    model = ready(job.subject.module, job.task, first)
    if not model.cached:
        job.warnings.append("The original does not answer the same with a cache of keys and values as without one, so every token reads everything.")

    def own(examples: Examples, key: str) -> Examples:
        def run() -> list[list[int]]:
            answers: list[list[int]] = [[] for _ in range(len(examples))]
            for index in examples.batches(max(8, *(task.generation.batch if task.generation else ()))):
                for i, tokens in zip(index, ask(model, examples, task, index).tokens, strict=True):
                    answers[int(i)] = tokens or list(task.generation.stops[:1] if task.generation else ())
            return answers

        return continued(examples, job.journal.once(key, run))

    for name in ("train", "search", "test"):
        examples: Examples = getattr(job.splits, name)
        if examples.targets is None and task.kind == "causal_lm":
            few = capped(examples, {"train": CONTINUED, "search": 300, "test": 600}[name], job.work.seed)
            job.listener.stage(f"continuing {len(few):,} prompts of the {name} split with the original", 0)
            job.splits = replace(job.splits, **{name: own(few, f"continuations:{name}")})
    batch = max(8, *task.generation.batch)

    def judge(module: Any, examples: Examples) -> np.ndarray:
        from fourfold.engines.decode.eager import EagerDecoding

        return judged(EagerDecoding(module, torch_threads()), examples, job.task, batch)

    job.task = replace(task, judge=judge)


def tune(job: Job) -> None:
    """Race the original over ways to generate: engines, precisions and threads, at the workload's tokens and batches.

    The baseline is eager PyTorch in fp32 with its cache, at its best number of threads.
    """
    assert job.task.generation is not None
    folder = job.folder / "race-original"

    def run() -> dict[str, object]:
        return _field(job, folder)

    found = job.journal.once("race:original:generate", run)
    base, best = found["baseline"], found["best"]
    job.race_rows, job.race_rejected = found["table"], found["rejected"]
    job.race_files = (best["engine"], best["precision"]), [folder / f"{best['engine']}-{best['precision']}" / name for name in found["files"]]
    job.base_setting = Setting("torch", "fp32", base["threads"], max(job.task.generation.batch), True)
    job.pairs = best_pairs(found["table"], job.work.objective, job.base_setting)
    row = next(r for r in found["table"] if r["who"] == "baseline" and r["stage"] == "final")
    job.base_cpu, job.base_wall = row["cpu_per_example"], row["wall_per_example"]
    job.listener.best(f"the original: {job.task.metric.name} {job.quality:.4g}; {job.base_cpu:.3g} s CPU per prompt at its best ({job.base_setting})")


@dataclass
class GeneratingWay:
    """A way to generate that is ready: its parts by threads, what making it took, and how far its logits are from PyTorch's."""

    engine: str
    precision: str
    parts: dict[int, Part]
    prepared: float
    noise: float
    threads: int = 0

    def runner(self, job: Job, rows: list[np.ndarray], threads: int) -> Callable[[], None]:
        """One call of the workload."""
        from fourfold.runtime.generating import GeneratingSession, call

        session = self.parts[threads].open()
        assert isinstance(session, GeneratingSession)
        return lambda: call(session.decoding, job.splits.search, job.task, rows)


def _field(job: Job, folder: Path) -> dict[str, object]:
    """Everything that generates here, ready and raced: the rows that `fourfold.engines.select.race_model` would have."""
    from fourfold.measure.race import race
    from fourfold.runtime.generating import workload

    budget = max(4.0, min(0.1 * job.work.budget + 3.0, 0.3 * job.left()))  # whatever answering took: how it is run is most of what can be won
    began, by = time.perf_counter(), "wall" if job.work.objective == "latency" else "cpu"
    rows = workload(job.splits.search, job.task, job.work.seed, 1)[0]
    ways, rejected = _ways(job, folder, began, budget)
    base = ways[0]
    heats = {(w.engine, w.precision, n): w.runner(job, rows, n) for w in ways for n in w.parts}
    labels = {key: "|".join(map(str, key)) for key in heats}
    first = labels[base.engine, base.precision, min(base.parts)]
    at = time.perf_counter()
    heats[base.engine, base.precision, min(base.parts)]()
    warmup = 0 if time.perf_counter() - at > LONG else 1                # a call of seconds needs none, and the budget has none to give
    left = max(1.0, budget - (time.perf_counter() - began))
    heat = race({labels[k]: run for k, run in heats.items()}, baseline=first, rounds=3, warmup=warmup, min_time=0.0, seed=job.work.seed, at_least=1,
                deadline=0.4 * left)
    for way in ways:
        way.threads = min(way.parts, key=lambda n, w=way: getattr(heat[labels[w.engine, w.precision, n]], f"{by}_min"))

    def label(way: GeneratingWay) -> str:
        return labels[way.engine, way.precision, way.threads]

    near = sorted(ways, key=lambda w: getattr(heat[label(w)], f"{by}_min"))[:4]
    finals = {label(w): heats[w.engine, w.precision, w.threads] for w in {id(w): w for w in [base, *near]}.values()}
    left = max(1.0, budget - (time.perf_counter() - began))
    final = race(finals, baseline=label(base), rounds=7, warmup=warmup, min_time=0.0, seed=job.work.seed + 1, at_least=3, deadline=left)
    best = min((w for w in ways if label(w) in final), key=lambda w: getattr(final[label(w)], by).value)
    table = [_row(job, w, "final", final[label(w)], None, base, best, by) for w in ways if label(w) in final]
    table += [_row(job, w, "heat", heat[label(w)], heat[label(base)], base, best, by) for w in ways if label(w) not in final]
    for way in ways:
        for part in way.parts.values():
            part.close()
    return {"table": table, "rejected": rejected, "files": next(iter(best.parts.values())).files, "baseline": {"threads": base.threads},
            "best": {"engine": best.engine, "precision": best.precision}}


def _ways(job: Job, folder: Path, began: float, budget: float) -> tuple[list[GeneratingWay], list[dict[str, str]]]:
    """What is ready to race, the baseline first, and why the rest is not."""
    from fourfold.engines.select import powers
    from fourfold.host import here

    assert job.task.generation is not None
    batch, counts = max(job.task.generation.batch), sorted(set(job.options.threads or powers(here().cores)))
    kinds = [(kind, p) for name in job.options.engines or names() for kind in [_named(name)] if kind is not None for p in kind.precisions
             if p not in kind.narrow]
    order = sorted(((k.name, p) for k, p in kinds if (k.name, p) != ("torch", "fp32")), key=lambda way: decoder(way[0]).likely.get(way[1], 11))
    ready_, rejected = [], []
    for engine, precision in [("torch", "fp32"), *order]:
        at, made, noise = time.perf_counter(), {}, 0.0
        late = bool(ready_) and 0.6 * budget - (at - began) < decoder(engine).slow
        reason = "not tried: the time budget does not allow for it" if late else None
        fewer = counts[-1:] if job.work.objective == "latency" else counts[:1]
        for threads in () if reason is not None else fewer if decoder(engine).slow else counts:
            part = job.part("original", job.subject.module, None, Setting(engine, precision, threads, batch, True))
            noise, reason = prepared(part, job.raced(job.splits.search), folder / f"{engine}-{precision}")
            if reason is not None:
                break
            made[threads] = part
        if reason is None:
            ready_.append(GeneratingWay(engine, precision, made, time.perf_counter() - at, noise))
        elif not ready_:
            raise ModelError(f"the original cannot generate from its own data: {reason}.", "Check that inputs and model belong together.")
        else:
            rejected.append({"engine": engine, "precision": precision, "reason": reason})
    return ready_, rejected


def _row(
    job: Job, way: GeneratingWay, stage: str, result: RaceResult, scale: RaceResult | None, base: GeneratingWay, best: GeneratingWay, by: str
) -> dict[str, object]:
    """One line of the table; of a heat the ratios are of best times, without an interval. Seconds are per prompt."""
    assert job.task.generation is not None
    count, session = sum(job.task.generation.batch), way.parts[way.threads].open()
    ratios: dict[str, dict[str, float]] = {}
    for one in ("cpu", "wall"):
        value = vars(getattr(result, one)) if scale is None else {}
        ratio = getattr(result, f"{one}_min") / max(1e-12, getattr(scale, f"{one}_min")) if scale is not None else 0.0
        ratios[one] = {key: float(value.get(key, ratio)) for key in ("value", "low", "high")}
    mine = ratios[by]
    return {
        "stage": stage, "who": "baseline" if way is base else "candidate", "engine": way.engine, "precision": way.precision, "threads": way.threads,
        "batch": max(job.task.generation.batch), "bucket": True, **ratios, "cpu_per_example": result.cpu_median / count,
        "wall_per_example": result.wall_median / count, "rounds": result.rounds, "dropped": result.dropped is not None,
        "verdict": "cheaper" if mine["high"] < 1 else "dearer" if mine["low"] > 1 else "no difference", "chosen": way is best,
        "bytes": session.bytes, "noise": way.noise, "prepared_s": way.prepared, "ran": session.describe(),
    }  # fmt: skip


def _named(name: str) -> type[Decoding] | None:
    """The class of a way to generate; None of an engine that does not."""
    try:
        return decoder(name)
    except FourfoldError:
        return None
