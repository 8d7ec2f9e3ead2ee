"""What the combined search works on and hands back: data, teacher, prices, plan, candidates; and a module's answers to examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.cost.unit_costs import CostTable, PruningSite
from fourfold.measure.quality import Relative
from fourfold.recipe import Recipe
from fourfold.rewrites.calibration import bulky
from fourfold.rewrites.compress._shape import Shape
from fourfold.rewrites.compress.distil import Limit, Recovery, Teacher, TrainingSchedule, all_cores, autocast, fast_bf16, tensors

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples, Splits
    from fourfold.datasets.task import Task
    from fourfold.frontends.subject import Subject


LEAST_SECONDS = 1.5
"""Seconds below which no training is begun."""


class SearchJournal(Protocol):
    """What the search needs of a journal: remembered steps."""

    def once(self, key: str, fn: Callable[[], object]) -> Any: ...
    def tensors(self, key: str, fn: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]: ...
    def __contains__(self, key: str) -> bool: ...


@dataclass
class TrainingTask:
    """One training: the student as it begins, how it is called, how long, where its middle is kept, and whose hidden states it matches."""

    name: str
    student: nn.Module
    subject: Subject
    schedule: TrainingSchedule
    limit: Limit | None
    checkpoint: Path | None
    pairs: list[tuple[str, str]] | None = None


@dataclass
class Done:
    """What came of a training: the trained state, its record, and the changes that its limit made."""

    name: str
    state: dict[str, Tensor]
    recovery: Recovery
    changes: list[list[int]]


class Trainers(Protocol):
    """Who trains: `lanes` trainings at once, `free` of them idle now; `next` waits for the first that ends."""

    lanes: int

    @property
    def free(self) -> int: ...
    def start(self, work: TrainingTask) -> None: ...
    def next(self) -> Done: ...


@dataclass
class Training:
    """A training to come. `begin` makes the student as it begins, with the facts to remember of it (only asked where the journal has no result);
    `seconds` is asked as it begins; `finish` gets the trained state and the facts, and hands back what shall be trained next."""

    name: str
    key: str
    begin: Callable[[], tuple[nn.Module, dict[str, object]]]
    subject: Subject
    schedule: TrainingSchedule
    seconds: Callable[[], float]
    finish: Callable[[nn.Module | None, dict[str, Tensor], dict[str, object]], list[Training]]
    pairs: Callable[[dict[str, Any]], list[tuple[str, str]] | None] = lambda facts: None


class ProgressCallback(Protocol):
    """Where progress goes."""

    def plan(self, stages: dict[str, float]) -> None: ...
    def stage(self, name: str, total: int = 0) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def best(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Candidate:
    """One structure, trained as far as `rung` says. `records` are its answers on the search split, `cost` its predicted cost relative to the
    original. Nothing asks for its `kind`, which only sorts it: what matters to whoever works on it are the fields of their own.

    `root`: the original itself · `structured`: `shape` and `kept` say what is left of the original's anatomy · `technique`: id of what proposed it ·
    `techniques`: names of all that made it · `how`: what was done, in words, where the structure does not tell · `step`: title of its step in the
    breakdown of costs, where the structure does not tell · `quantises`: fewer bits may pay.
    """

    name: str
    kind: str
    recipe: Recipe
    shape: Shape
    cost: float
    rung: int = 0
    steps: int = 0
    parent: str = "original"
    kept: dict[str, list[int]] = field(default_factory=dict)
    records: np.ndarray | None = None
    quality: Relative | None = None
    status: str = "open"
    reason: str = ""
    module: nn.Module | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    root: bool = False
    structured: bool = False
    technique: str = ""
    techniques: tuple[str, ...] = ()
    how: str = ""
    step: str = ""
    quantises: bool = True

    @property
    def members(self) -> list[Any]:
        """The points that a cascade is made of, cheapest first; [] for what answers alone."""
        return self.extra.get("members", [])

    @property
    def alone(self) -> bool:
        """Whether it is a single network: neither counted words nor a cascade."""
        return self.module is not None and not self.members


@dataclass
class SearchPlan:
    """What the time allows, decided once from measured step times and then journalled.

    `levels` cost targets from large to small · `steps` of full recovery per level, at most, and how many are
    `expected` in its time · `short` steps of rung 1 · `sketches` shapes tried at rung 0 ·
    `rivals` at rung 1 per level.
    """

    levels: list[float]
    steps: list[int]
    short: int
    sketches: int
    rivals: int
    refine: int
    hidden: float = 0.0
    expected: int = 0


@dataclass
class SearchContext:
    """Everything the search works on, handed over by `fourfold.optimize` so that no room reaches for another."""

    subject: Subject
    task: Task
    splits: Splits
    pool: Examples
    teacher: Teacher
    answers: Tensor | None
    sample: Callable[[nn.Module], Tensor]
    table: CostTable
    sites: list[PruningSite]
    diary: SearchJournal
    listener: ProgressCallback
    folder: Path
    floor: float
    seed: int
    base_records: np.ndarray
    batch: int = 32
    lr: float = 2e-4
    hidden_weight: float = 1.0
    label_weight: float = 0.0
    calibration: int = 384
    crew: Trainers = field(kw_only=True)
    left: Callable[[], float] = field(kw_only=True)  # seconds until the search must have ended
    bf16_from: float = field(default=0.0, kw_only=True)  # predicted cost from which on a training step is quicker in bf16; infinite: nowhere

    def carry_out(self, waiting: list[Training], tick: Callable[[], None] = lambda: None) -> None:
        """Do trainings, as many at once as there are lanes, and what they hand back before what waits. Each is remembered with its weights, its
        facts, and the changes that the clock made to its number of steps."""
        waiting, running = list(waiting), {}
        while waiting or running:
            while waiting and (waiting[0].key in self.diary or self.crew.free > 0):
                training = waiting.pop(0)
                if training.key in self.diary:
                    waiting[:0] = self._remember(training, None, None)
                    continue
                if not self._in_time(training):
                    continue
                student, facts = training.begin()
                running[training.name] = training, student, facts
                self.crew.start(self._work(training, student, facts))
            if running:
                done = self.crew.next()
                training, student, facts = running.pop(done.name)
                waiting[:0] = self._remember(training, done, (student, facts))
            tick()

    def _in_time(self, training: Training) -> bool:
        """Whether there is time for it; remembered."""
        key = f"budget:begin:{training.key}"
        return bool(self.diary.once(key, lambda: f"budget:{training.key}" in self.diary or training.seconds() >= LEAST_SECONDS))

    def _work(self, training: Training, student: nn.Module, facts: dict[str, object]) -> TrainingTask:
        key = f"budget:{training.key}"
        known = key in self.diary
        limit = Limit(0.0, self.diary.once(key, list), True) if known else Limit(training.seconds())
        checkpoint = self.folder / f"{training.name}.ckpt.safetensors"
        return TrainingTask(training.name, student, training.subject, training.schedule, limit, checkpoint, training.pairs(facts))

    def _remember(self, training: Training, done: Done | None, begun: tuple[nn.Module, dict[str, object]] | None) -> list[Training]:
        if done is not None:
            changes = done.changes
            self.diary.once(f"budget:{training.key}", lambda: changes)

        def again() -> dict[str, Tensor]:  # weights on record whose file was lost: the same training once more
            nonlocal done, begun
            if done is None:
                begun = training.begin()
                self.crew.start(self._work(training, *begun))
                done = self.crew.next()
            return done.state

        state = self.diary.tensors(training.key, again)
        made = done

        def facts() -> dict[str, object]:
            known = begun[1] if begun is not None else training.begin()[1]  # facts that a kill lost: how it begins is deterministic
            told = made.recovery if made else Recovery(0, 0.0, 0.0, ())
            return known | {"wall": told.wall, "cpu": told.cpu, "curve": list(told.curve), "made": told.steps}

        student = None
        if begun is not None:
            student = begun[0]
            student.load_state_dict(state)
            student.eval()
        return training.finish(student, state, self.diary.once(f"{training.key}:facts", facts))


@torch.no_grad()
def evaluate_with(subject: Subject, task: Task, module: nn.Module, examples: Examples, *, exact: bool = False) -> np.ndarray:
    """Records of a torch module; in bf16 where that is fast, in its own precision when `exact`."""
    all_cores()
    module.eval()
    if task.generates and task.judge is not None:
        return task.judge(module, examples)
    rows: np.ndarray | None = None
    for index in examples.batches(4 if bulky(task, examples) else 64, bucket=True):
        batch = examples.collate(index)
        targets = examples.collate_targets(index) if examples.targets is not None else None
        with autocast(fast_bf16() and not exact):
            if task.generates:
                part = task.written(forward(subject, module), batch, targets)
            else:
                part = task.records(subject.logits(module, tensors(batch)).float().numpy(), batch, targets)
        if rows is None:
            rows = np.zeros((len(examples), part.shape[1]))
        rows[index] = part
    assert rows is not None
    return rows


def forward(subject: Subject, module: nn.Module) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """One pass of an encoder–decoder, inputs → logits [B, T, V]; the encoder runs once for as long as its inputs stay the same arrays."""
    from fourfold.frontends.subject import answer

    names = [name for name in subject.inputs if not name.startswith("decoder_") and name != "labels"]
    last: dict[str, object] = {}

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        if not (hasattr(module, "get_encoder") and hasattr(module, "config")):
            return subject.logits(module, tensors(batch)).float().numpy()
        key = tuple(id(batch[name]) for name in names if name in batch)
        own = tensors({name: batch[name] for name in names if name in batch})
        if last.get("key") != key:
            last.update(key=key, kept=batch, encoded=module.get_encoder()(**own, return_dict=True))  # pyright: ignore[reportCallIssue]
        rest = {name: value for name, value in own.items() if name == "attention_mask"}
        more = tensors({name: value for name, value in batch.items() if name in ("decoder_input_ids", "decoder_attention_mask")})
        return answer(module(encoder_outputs=last["encoded"], use_cache=False, **rest, **more)).float().numpy()

    return run
