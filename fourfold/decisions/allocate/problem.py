"""The question: an offset for each buffer, so that the memory used is least, or a capacity suffices. Written without looking at any solver."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from fourfold.decisions.allocate import bound as proofs
from fourfold.decisions.allocate.instance import FREE, I64, Buffers
from fourfold.decisions.allocate.validate import violations
from fourfold.problem import Problem


@dataclass(frozen=True, eq=False)
class Allocate(Problem[np.ndarray]):
    """Static memory allocation (dynamic storage allocation with known lives): an answer is the offsets i8[n], in bytes.

    `cost` is the height in bytes: how far up the memory is used, of several banks the sum. Passing the capacity (`buffers.banks`) breaks a rule.
    `decide`: any packing within the capacity will do, so a solver may stop at `target`.
    """

    question: ClassVar[str] = "allocate"
    lever: ClassVar[str] = "machine"

    buffers: Buffers
    decide: bool = True
    unit: str = "B"

    @property
    def capacity(self) -> int | None:
        return self.buffers.capacity

    @cached_property
    def target(self) -> int:
        """A height (bytes) at which a solver may stop: the capacity where only that is asked, else the bound."""
        return self.capacity if self.decide and self.capacity is not None else self.bound()

    def baseline(self) -> I64:
        """Best fit on line: buffers are met as they are born (fixed ones stand from the start), each goes into the smallest free hole that holds it
        for its whole life; nothing is known of later ones. May pass the capacity."""
        return self._baseline

    @cached_property
    def _baseline(self) -> I64:
        from fourfold.decisions.allocate._place import born, place

        parts = self.buffers.parts()
        return parts.offsets(place(parts, born(parts), best=True))

    def violations(self, answer: np.ndarray) -> list[str]:
        return violations(self.buffers, answer)

    def cost(self, answer: np.ndarray) -> float:
        """Bytes used: of each bank up to the highest address that a buffer takes."""
        b, at = self.buffers, np.asarray(answer, np.int64)
        if not len(b):
            return 0.0
        which = np.maximum(0, np.searchsorted(b.base, at, "right") - 1)
        used = np.zeros(len(b.base), np.int64)
        np.maximum.at(used, which, at + b.size - b.base[which])
        return float(used.sum())

    def bound(self) -> int:
        """Peak live bytes or, where more can be proven, more (`bound.py`)."""
        return self._bound

    @cached_property
    def _bound(self) -> int:
        return proofs.bound(self.buffers)

    def impossible(self) -> str | None:
        """A sentence that proves that no packing exists; None: unknown."""
        return self._impossible

    @cached_property
    def _impossible(self) -> str | None:
        return proofs.impossible(self.buffers)

    @classmethod
    def sample(cls, seed: int) -> Allocate:
        return cls(invented(seed))


def invented(seed: int, most: int = 14) -> Buffers:
    """2 to `most` buffers cut out of a valid packing, so that there is one: by seed plain, aligned, with fixed offsets, gaps, two banks, aliases, or
    without capacity."""
    rng = np.random.default_rng(seed)
    count, kind = int(rng.integers(2, most + 1)), seed % 6
    lower = rng.integers(0, 20, count)
    upper = lower + rng.integers(1, 9, count)
    alignment = rng.choice([1, 1, 2, 4, 8], count) if kind == 1 else np.ones(count, np.int64)
    size = rng.integers(1, 12, count)
    gaps = [(int(a) + 1, int(z) - 1) if kind == 3 and z - a > 3 and rng.random() < 0.6 else None for a, z in zip(lower, upper, strict=True)]
    alias = np.arange(count)
    if kind == 4 and count > 2:
        alias[count - 1], lower[count - 1], upper[count - 1] = 0, upper[0], upper[0] + 3
    buffers = Buffers(tuple(f"b{i}" for i in range(count)), lower, upper, size, alignment,
                      gap_ptr=np.concatenate([[0], np.cumsum([gap is not None for gap in gaps])]).astype(np.int32),
                      gap_lower=np.array([gap[0] for gap in gaps if gap], np.int64), gap_upper=np.array([gap[1] for gap in gaps if gap], np.int64),
                      alias=alias.astype(np.int32))
    from fourfold.decisions.allocate._place import born, place

    parts = buffers.parts()
    offsets = parts.offsets(place(parts, born(parts)[::-1].copy()))
    top = int((offsets + size).max())
    if kind == 2:
        fixed = np.where(rng.random(count) < 0.3, offsets, FREE)
        return Buffers(buffers.ids, lower, upper, size, fixed=fixed, banks=np.array([top]))
    if kind == 5:
        return buffers
    return buffers.limited(top, top) if kind == 3 else buffers.limited(top)
