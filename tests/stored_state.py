"""States to save in tests of the store, faults to meet, and what a step has to hold afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fourfold.runtime.store.backend import Backend
from fourfold.runtime.store.commit import decide
from fourfold.runtime.store.manifest import StepManifest
from fourfold.runtime.store.pieces import split
from fourfold.runtime.store.prepare import Attempt, prepare
from fourfold.runtime.store.snapshot import SnapshotMemory
from fourfold.store import Checkpointer, Shard

ROWS, COLUMNS = 64, 48


class Died(BaseException):
    """A process that ends at once; no handler of the store's may catch it."""


class Dying(Backend):
    """A store whose process dies at its write number `at`: before it is carried out, or after (`after`), when nobody hears of it any more."""

    def __init__(self, root: Path, at: int, after: bool) -> None:
        super().__init__(root)
        self.at, self.after, self.count = at, after, 0

    def _step(self, before: bool) -> None:
        if before:
            self.count += 1
        if self.count == self.at + 1 and before != self.after:
            raise Died

    def begin(self, key: str, value: bytes) -> object:
        self._step(True)
        made = super().begin(key, value)
        if self.after:
            self.wait(made)
        self._step(False)
        return made

    def create(self, key: str, value: bytes) -> bool:
        self._step(True)
        made = super().create(key, value)
        self._step(False)
        return made

    def delete_under(self, prefix: str) -> None:
        self._step(True)
        super().delete_under(prefix)
        self._step(False)


def state(step: int, rank: int = 0, world: int = 1) -> dict[str, object]:
    """What a rank holds at `step`: rows of a large tensor, of one that never changes, and a small one of its own; every element tells the step."""
    at = [round(ROWS * 1024 * index / world) for index in range(world + 1)]
    rows = at[rank + 1] - at[rank]
    shape, offset = (ROWS * 1024, COLUMNS), (at[rank], 0)
    return {
        "w": Shard(torch.full((rows, COLUMNS), float(step)), shape, offset),
        "fixed": Shard(torch.arange(at[rank], at[rank + 1]).repeat(2, 1).T.contiguous(), (ROWS * 1024, 2), offset),
        f"own.{rank}": torch.full((3,), 1000 * rank + step), "optimizer": {"step": step},
    }


def right(found: Mapping[str, object], step: int, world: int) -> bool:
    """Whether a loaded state is wholly that of `step`."""
    w, fixed = found["w"], found["fixed"]
    assert isinstance(w, torch.Tensor) and isinstance(fixed, torch.Tensor)
    own = [(found[f"own.{rank}"], 1000 * rank + step) for rank in range(world)]
    return (w.shape == (ROWS * 1024, COLUMNS) and bool((w == step).all()) and bool((fixed == torch.arange(ROWS * 1024)[:, None]).all())
            and all(isinstance(one, torch.Tensor) and one.tolist() == [value] * 3 for one, value in own) and found["optimizer.step"] == step)


def saved(root: Path, step: int, world: int, generation: int, dying: Dying | None = None, victim: int = 0) -> StepManifest:
    """A save of all ranks, one after the other, as their processes would; rank `victim` meets with `dying`."""
    backend = Backend(root)
    backend.prepared(make=True)
    base = Checkpointer(root)._newest()
    for rank in reversed(range(world)):
        pieces, values = split(state(step, rank, world))
        mine = dying if dying is not None and rank == victim else backend
        prepare(mine, SnapshotMemory().copy(pieces), values, Attempt(step, generation, 0, rank, world, 5.0, 1 << 20), base)
    return decide(dying if dying is not None and victim == 0 else backend, Attempt(step, generation, 0, 0, world, 5.0, 1 << 20))
