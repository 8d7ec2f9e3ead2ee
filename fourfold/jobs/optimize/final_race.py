"""From trained candidates to raced, judged points: every candidate in its likeliest precisions and back ends, against the tuned original, in one
race.

A *point* is a structure and a way to run it (or a cascade of two points). Its cost is measured, interleaved with the baseline's; nothing that is not
faster by its interval is accepted, whatever its FLOPs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourfold.engines import engine
from fourfold.engines.base import first_line
from fourfold.engines.parity import parity, references
from fourfold.engines.select import sample_batches
from fourfold.errors import Declined
from fourfold.measure.quality import Relative
from fourfold.measure.race import RaceResult
from fourfold.runtime.artefact import Assembly, Part, Setting

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.jobs.optimize.builds import Made
    from fourfold.rewrites.compress.combine import Candidate
    from fourfold.runtime.service import Served


@dataclass
class Point:
    """One answer to the question: `candidate` (a structure) run by `assembly`. Ratios are to the original at its own best settings."""

    name: str
    candidate: Candidate
    assembly: Assembly
    search_records: np.ndarray | None = None
    search: Relative | None = None
    test: Relative | None = None
    agreement: Relative | None = None
    served: Served | None = None
    timing: RaceResult | None = None
    predicted: float = 1.0
    shares: list[float] = field(default_factory=list)
    status: str = "open"
    reason: str = ""

    @property
    def cost(self) -> float:
        """Processor time relative to the original: raced where it has been, predicted before."""
        return self.timing.cpu.value if self.timing else self.predicted

    @property
    def setting(self) -> Setting:
        return self.assembly.parts[0].setting

    @property
    def bytes(self) -> int:
        """Bytes of weights as they are held, by precision."""
        return sum(weight_bytes(part) for part in self.assembly.parts)


@dataclass
class Gated:
    """A family: `members`, cheapest first, and a point for each setting of the gates between them, from cautious to bold."""

    name: str
    members: list[Point]
    points: list[Point] = field(default_factory=list)
    share: float = 1.0  # of the error that all cascades may spend
    technique: str = ""  # id of what joined them


def weight_bytes(part: Part) -> int:
    """Bytes of a part's weights in its precision (embeddings stay in floating point under run-time int8)."""
    if part.module is None:
        return 0 if part.words is None else part.words.nbytes
    from torch import nn

    if part.generating is not None and part.session is not None:
        return part.session.bytes
    each = {"fp32": (4, 4), "bf16": (2, 2), "int8": (1, 4), "int8-static": (1, 4), "int8-weights": (1, 1)}.get(part.setting.precision, (1, 4))
    tables = {id(m.weight): m.weight.numel() for m in part.module.modules() if isinstance(m, nn.Embedding)}
    total = sum(p.numel() for p in part.module.parameters())
    embedded = sum(tables.values())
    return (total - embedded) * each[0] + embedded * each[1]


def prepare(part: Part, examples: Examples, folder: Path, seed: int = 0, made: Made | None = None) -> tuple[float, str | None]:
    """Export and open one part; (noise-to-signal of its outputs against fp32, reason it cannot be used or None). `made`: what came of its export,
    where that was done elsewhere (`fourfold.jobs.optimize.builds`)."""
    if part.generating is not None:
        from fourfold.jobs.optimize.decoders import prepared

        return prepared(part, examples, folder)
    from fourfold.engines.base import Signature
    from fourfold.host import here

    kind = engine(part.setting.engine)
    reason = kind.declines(part.setting.precision, here())
    if reason:
        return float("inf"), reason
    assert part.module is not None
    few = sample_batches(part.sees(examples), seed)
    part.signature = Signature.of(part.subject.inputs, few)
    part.folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = part.subject.wrap(part.module).eval()
    if made is not None and made.reason:
        return float("inf"), made.reason
    try:
        part.files = made.files if made is not None else kind.export(wrapped, part.signature, few, part.setting.precision, folder)
        noise, reason = parity(part.open(), few, references(wrapped, part.signature, few), part.setting.precision)
    except Declined as error:
        noise, reason = float("inf"), error.message
    except Exception as error:  # an exporter's own failure is a reason to do without it, never the end of the job
        noise, reason = float("inf"), first_line(error)
    if reason:
        part.close()
    return noise, reason


def runner(assembly: Assembly, examples: Examples, task: Task) -> Callable[[], None]:
    """One pass over `examples`, collation included. A cascade does all that it would in service: gate, gather, hand on."""
    if task.generation is not None:
        from fourfold.runtime.generating import call, workload
        from fourfold.runtime.service import decoding

        rows = workload(examples, task, 0, 1)[0]
        return lambda: call(decoding(assembly), examples, task, rows)
    if assembly.gates or assembly.parts[0].words is not None:
        return lambda: _pass(assembly, examples, task)
    part = assembly.parts[0]
    examples = part.sees(examples)
    session, batches = part.open(), examples.batches(part.setting.batch, bucket=part.setting.bucketing)

    def run() -> None:
        for index in batches:
            session.run(examples.collate(index, session.multiple))

    return run


def _pass(assembly: Assembly, examples: Examples, task: Task) -> None:
    assembly.outputs(examples, task)


def sample_for(baseline: Part, examples: Examples, seconds: float, seed: int, objective: str) -> Examples:
    """A seeded subset whose pass takes the baseline about `seconds`; at least 32 rows (4 for latency), at most 768."""
    low, high = (4, 48) if objective == "latency" else (32, 768)
    first = examples.take(np.arange(min(low, len(examples))))
    session = baseline.open()
    at = first.batches(baseline.setting.batch)[0]
    session.run(first.collate(at))
    began = time.perf_counter()
    session.run(first.collate(at))
    each = (time.perf_counter() - began) / len(at)
    count = int(np.clip(seconds / max(each, 1e-7), low, high))
    return examples.take(np.sort(np.random.default_rng(seed).permutation(len(examples))[:count]))


