"""What the combined search works on and hands back: data, teacher, prices, plan, candidates; and a module's answers to examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.cost.table import CostTable, Site
from fourfold.ingest.anatomy import hidden
from fourfold.measure.quality import Relative
from fourfold.recipe import Recipe
from fourfold.rewrites.calibration import bulky
from fourfold.rewrites.compress._shape import Shape
from fourfold.rewrites.compress.distil import Recovery, Schedule, Teacher, all_cores, autocast, counted, fast_bf16, recover, tensors

if TYPE_CHECKING:
    from fourfold.ingest.data import Examples, Splits
    from fourfold.ingest.model import Subject
    from fourfold.ingest.task import Task


class Diary(Protocol):
    """What the search needs of a journal: remembered steps."""

    def once(self, key: str, fn: Callable[[], Any]) -> Any: ...
    def tensors(self, key: str, fn: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]: ...


class Listener(Protocol):
    """Where progress goes."""

    def plan(self, stages: dict[str, float]) -> None: ...
    def stage(self, name: str, total: int) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def best(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Candidate:
    """One structure, trained as far as `rung` says. `records` are its answers on the search split, `cost` its predicted cost relative to the
    original."""

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


@dataclass
class Plan:
    """What the time allows, decided once from measured step times and then journalled: no later decision looks at a clock.

    `levels` cost targets from large to small · `steps` of full recovery per level · `short` steps of rung 1 · `sketches` shapes tried at rung 0 ·
    `rivals` at rung 1 per level.
    """

    levels: list[float]
    steps: list[int]
    short: int
    sketches: int
    rivals: int
    refine: int
    hidden: float = 0.0


@dataclass
class Bench:
    """Everything the search works on, handed over by `fourfold.optimize` so that no room reaches for another."""

    subject: Subject
    task: Task
    splits: Splits
    pool: Examples
    teacher: Teacher
    answers: Tensor | None
    sample: Callable[[nn.Module], Tensor]
    table: CostTable
    sites: list[Site]
    diary: Diary
    listener: Listener
    folder: Path
    floor: float
    seed: int
    base_records: np.ndarray
    batch: int = 32
    lr: float = 2e-4
    hidden_weight: float = 1.0
    label_weight: float = 0.0
    calibration: int = 384

    def recover(
        self, module: nn.Module, schedule: Schedule, *, pairs: list[tuple[str, str]] | None = None, checkpoint: Path | None = None
    ) -> Recovery:
        """Distil a pruned module in place: from the shared teacher, on the shared pool, with hidden states of `pairs`."""
        return recover(
            module,
            self.subject,
            self.task,
            self.pool,
            schedule,
            teacher=self.teacher,
            answers=self.answers,
            pairs=pairs,
            hidden=hidden,
            checkpoint=checkpoint,
            progress=counted(self.listener.advance),
        )


@torch.no_grad()
def evaluate_with(subject: Subject, task: Task, module: nn.Module, examples: Examples, *, exact: bool = False) -> np.ndarray:
    """Records of a torch module; in bf16 where that is fast, in its own precision when `exact`."""
    all_cores()
    module.eval()
    rows: np.ndarray | None = None
    for index in examples.batches(4 if bulky(task, examples) else 64, bucket=True):
        batch = examples.collate(index)
        with autocast(fast_bf16() and not exact):
            z = subject.logits(module, tensors(batch)).float().numpy()
        part = task.records(z, batch, examples.collate_targets(index) if examples.targets is not None else None)
        if rows is None:
            rows = np.zeros((len(examples), part.shape[1]))
        rows[index] = part
    assert rows is not None
    return rows
