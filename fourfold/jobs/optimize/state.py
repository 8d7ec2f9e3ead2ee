"""The state of one run of `fourfold.optimize`, and what its stages share. The stages are the other files of this room;
`fourfold/jobs/optimize/__init__.py` tells their order on one page.

All that is worth keeping goes through the journal, so a killed run resumes at the step it was in. Decisions depend on the seed, the data and
journalled measurements, never on a clock read in passing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.jobs.optimize.deadline import Deadline
from fourfold.jobs.optimize.final_race import Gated, Point, weight_bytes
from fourfold.measure.quality import Relative, relative
from fourfold.runtime.artefact import Part, Setting
from fourfold.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fourfold.cost.unit_costs import CostTable, PruningSite
    from fourfold.datasets.examples import Examples, Splits
    from fourfold.datasets.generation import GenerationAsked
    from fourfold.datasets.task import Task
    from fourfold.frontends.subject import Subject
    from fourfold.jobs.optimize.crew import Crew
    from fourfold.journal import Journal
    from fourfold.measure.sequence import Family
    from fourfold.rewrite import Standalone
    from fourfold.rewrites.compress.combine import Candidate, Node, ProgressCallback, Searcher, SearchPlan
    from fourfold.runtime.service import Served


class NullProgress:
    """Progress that goes nowhere."""

    def plan(self, stages: dict[str, float]) -> None: ...
    def stage(self, name: str, total: int = 0) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def best(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Options:
    """What the user asked for beyond model, data and floor."""

    out: Path | None = None
    metric: Any = None
    task: str | None = None
    columns: Mapping[str, str] | None = None
    splits: object = None
    engines: list[str] | None = None
    threads: list[int] | None = None
    max_length: int | None = None
    fresh: bool = False
    command: str = ""
    agree: float | None = None
    anyway: bool = False
    tokenizer: str | Path | None = None
    techniques: tuple[str, ...] = ()  # ids asked for besides those that are used anyway
    generation: GenerationAsked | None = None  # a generating workload, and what was said of it


@dataclass
class Simple:
    """A model without a network: its records on search and test; `model` and the `technique` (id) that made it, where it can answer by itself and not
    only serve as a yardstick."""

    name: str
    search: np.ndarray
    test: np.ndarray
    model: Standalone | None = None
    technique: str = ""


@dataclass
class Job:
    """One run. Fields are filled by the stages in order; the comments say by which."""

    work: Workload
    options: Options
    listener: ProgressCallback
    folder: Path
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    started: float = field(default_factory=time.time)
    deadline: Deadline = field(init=False)  # begins with the job; `read` takes off what killed runs have spent

    # read: `batch` rows of a training step, `each` seconds of the original per row
    subject: Subject = field(init=False)
    task: Task = field(init=False)
    splits: Splits = field(init=False)
    journal: Journal = field(init=False)
    batch: int = 32
    each: float = 0.0
    threads: int | None = None  # that PyTorch trains and judges with; None: every core

    # baseline: the original's records, absolute quality, best setting, (engine, precision, settings) worth building, and seconds per example
    base_search: np.ndarray = field(init=False)
    base_test: np.ndarray = field(init=False)
    quality: float = field(init=False)
    simple: list[Simple] = field(default_factory=list)
    base_setting: Setting = field(init=False)
    pairs: list[tuple[str, str, dict[str, Any]]] = field(init=False)
    race_rows: list[dict[str, Any]] = field(default_factory=list)
    race_rejected: list[dict[str, str]] = field(default_factory=list)
    race_files: tuple[tuple[str, str], list[Path]] = (("", ""), [])  # engine and precision that won, and its files
    base_cpu: float = field(init=False)
    base_wall: float = field(init=False)

    # measure, plan: None where nothing can be removed
    root: Node | None = None
    table: CostTable | None = None
    sites: list[PruningSite] = field(default_factory=list)
    plan: SearchPlan | None = None
    augment: float = 0.0
    bf16_from: float = 0.0  # cost of a shape from which on bfloat16 trains quicker

    # search, contest, prove, ladder
    searcher: Searcher | None = None
    crew: Crew | None = None  # its children are idle
    candidates: list[Candidate] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    best: Point | None = None
    order: list[str] = field(default_factory=list)
    built: dict[str, Point] = field(default_factory=dict)
    families: list[Gated] = field(default_factory=list)
    tests: list[Family] = field(default_factory=list)  # in which order, at which levels, points were tested on the unseen split
    served: Served | None = None
    energy: dict[str, Any] = field(default_factory=dict)
    ladder: list[dict[str, Any]] = field(default_factory=list)
    drafts: dict[str, Any] = field(default_factory=dict)  # of a generating workload: whether drafts pay (`fourfold.jobs.optimize.drafts`)

    def __post_init__(self) -> None:
        self.deadline = Deadline(self.work.budget)

    def left(self) -> float:
        """Wall seconds until the whole run must be done."""
        return self.deadline.left()

    @property
    def lanes(self) -> int:
        """How many batches are answered at once where answers, and not their cost, are wanted."""
        from fourfold.host import here

        return 1 if self.sequences else here().cores

    def decide(self, key: str, fn: Callable[[], object]) -> Any:
        """What was decided from a clock or a measured speed (JSON), journalled, so that a resumed run decides alike."""
        return self.journal.once(f"budget:{key}", fn)

    @property
    def sequences(self) -> bool:
        """Whether outputs are tokens × vocabulary per example, far larger than anything else at hand."""
        from fourfold.rewrites.calibration import bulky

        return bulky(self.task, self.splits.train)

    def raced(self, examples: Examples) -> Examples:
        """The rows that races, calibration of int8 and parity checks read: few where every row's output is large."""
        return capped(examples, 8, self.work.seed) if self.sequences else examples

    def served_rows(self, examples: Examples) -> Examples:
        """The rows that races of whole services may answer: all of them, but few where every row's output is large."""
        return capped(examples, 64, self.work.seed) if self.sequences else examples

    def sample(self, module: nn.Module) -> torch.Tensor:
        """A forward pass over a few short rows: what anatomy probes the model with."""
        import torch

        from fourfold.rewrites.compress.distil import tensors

        examples = self.splits.train
        few = np.argsort(examples.lengths, kind="stable")[len(examples) // 4 :][:3]
        with torch.no_grad():
            return self.subject.logits(module, tensors(examples.collate(few)))

    def part(self, name: str, module: nn.Module | None, candidate: Candidate | None, setting: Setting) -> Part:
        """`module` (the candidate's, or the original's where there is none) to be run at `setting`."""
        subject = candidate.extra.get("subject", self.subject) if candidate is not None else self.subject
        part = Part(name, subject, module, candidate.recipe if candidate is not None else None,
                    setting, generating=self.task if self.task.generation is not None else None)
        if candidate is not None:
            part.reencode = candidate.extra.get("reencode")
        return part

    def signed(self, name: str, module: nn.Module, candidate: Candidate | None = None) -> Part:
        """A part in PyTorch at the original's own best setting, ready to open without an export."""
        from fourfold.engines.base import Signature
        from fourfold.engines.select import sample_batches

        part = self.part(name, module, candidate, self.base_setting)
        part.signature = Signature.of(self.subject.inputs, sample_batches(self.raced(self.splits.search), self.work.seed))
        return part

    def cost(self, point: Point) -> float:
        """What the objective minimises, relative to the original."""
        if self.work.objective == "memory":
            return point.bytes / max(1, weight_bytes(self.part("original", self.subject.module, None, Setting())))
        if point.timing is None:
            return point.predicted
        return point.timing.wall.value if self.work.objective == "latency" else point.timing.cpu.value

    def pays(self, point: Point) -> bool:
        """Whether the point is cheaper than the original beyond doubt (by bytes for the memory objective)."""
        if self.work.objective == "memory":
            return self.cost(point) < 1.0
        return point.timing is not None and point.timing.faster("wall" if self.work.objective == "latency" else "cpu")

    def relative(self, records: np.ndarray, split: str) -> Relative:
        """Quality relative to the original's on "search" or "test"; duplicates, and pieces of one document, are resampled together."""
        examples: Examples = getattr(self.splits, split)
        base = self.base_search if split == "search" else self.base_test
        return relative(self.task.metric, base, records, examples.targets, seed=self.work.seed, groups=examples.groups)

    def agreement(self, records: np.ndarray) -> Relative | None:
        """How often the answers on the unseen split are the original's own: a share with its Wilson interval for classes and texts, the rank
        correlation for values; None where a task's records hold no answers."""
        from fourfold.datasets.metrics import METRICS
        from fourfold.measure.quality import relative, wilson

        if self.task.generation is not None:
            if not self.task.generates:
                return None
            same = (records[:, self.task.first :] == self.base_test[:, self.task.first :]).all(1)
        elif self.task.kind == "regression":
            examples, spearman = self.splits.test, METRICS["spearman"]
            own = self.base_test[:, 0]
            if not own.std() > 0:
                return None
            return relative(spearman, self.base_test, records, own, seed=self.work.seed, groups=examples.groups)
        elif self.task.kind == "classification":
            same = records.argmax(1) == self.base_test.argmax(1)
        elif self.task.kind in ("seq2seq", "ctc") and self.task.width:
            start = 4 if self.task.kind == "seq2seq" else 2
            same = (records[:, start:] == self.base_test[:, start:]).all(1)
        else:
            return None
        low, high = wilson(float(same.sum()), len(same))
        return Relative(float(same.mean()), low, high, len(same))

    def array(self, key: str, fn: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a journalled step; `fn` runs only if it is not on record."""
        import torch

        return self.journal.tensors(key, lambda: {"rows": torch.from_numpy(np.ascontiguousarray(fn()))})["rows"].numpy()

    def close(self) -> None:
        """Give sessions and the journal back. Points of one candidate and the cascades over them share sessions, which are closed once."""
        if self.crew is not None:
            self.crew.close()
        points = [*self.points, *self.built.values()]
        sessions = {id(part.session): part.session for point in points for part in point.assembly.parts if part.session is not None}
        for session in sessions.values():
            session.close()
        for point in points:
            for part in point.assembly.parts:
                part.session = None
        self.journal.close()


def capped(examples: Examples, most: int, seed: int) -> Examples:
    """At most `most` rows, a seeded sample in their old order."""
    if len(examples) <= most:
        return examples
    return examples.take(np.sort(np.random.default_rng([seed, 5]).permutation(len(examples))[:most]))
