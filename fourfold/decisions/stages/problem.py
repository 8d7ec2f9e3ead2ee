"""Cut a chain of layers into pipeline stages, and give each a submesh (Zheng et al., OSDI 2022, section 5). Written without looking at any solver.

    cost = Σ_s t_s + (B − 1) · max_s t_s        t_s seconds of a microbatch in stage s, B microbatches
Each stage is a run of layers on a configuration of the table; devices of all stages together at most D. A device of stage s holds what its layers
hold and one microbatch's activations for each that is in flight: under "1f1b" min(B, stages from s to the last), under "gpipe" all B.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from fourfold.decisions.stages.instance import I64, MANY, StageTable, invented
from fourfold.errors import InputError
from fourfold.problem import Problem

SCHEDULES = ("1f1b", "gpipe")
_SLACK = 1e-9


@dataclass(frozen=True)
class Stages:
    """S stages in order: `first` i8[S] the first layer of each, `config` i8[S] the configuration of the table that it runs on."""

    first: I64
    config: I64

    def __post_init__(self) -> None:
        for name in ("first", "config"):
            array = np.asarray(getattr(self, name))
            if array.ndim != 1 or not (array.size == 0 or np.issubdtype(array.dtype, np.integer)):
                raise InputError(f"Stages give a whole number each for {name}, got shape {array.shape} of {array.dtype}.", "Give a list of numbers.")
            object.__setattr__(self, name, array.astype(np.int64))

    def runs(self, layers: int) -> list[tuple[int, int]]:
        """(first, last) layer of each stage."""
        return [(int(a), int(b) - 1) for a, b in zip(self.first, [*self.first[1:], layers], strict=True)]


@dataclass(frozen=True)
class StageConstruction(Problem[Stages]):
    """`devices`: how many there are in all; `microbatches` B; `limit`: bytes a device (inf: none); `schedule`: "1f1b" or "gpipe".

    Raises InputError where devices or microbatches are below 1, or the schedule is not known.
    """

    question: ClassVar[str] = "stages"
    lever: ClassVar[str] = "machine"
    unit: str = field(default="s", init=False)

    table: StageTable = field(repr=False)
    devices: int
    microbatches: int = 1
    limit: float = float("inf")
    schedule: str = "1f1b"

    def __post_init__(self) -> None:
        if self.devices < 1 or self.microbatches < 1:
            raise InputError(f"A pipeline needs a device and a microbatch, got {self.devices} and {self.microbatches}.", "Give at least one of each.")
        if self.schedule not in SCHEDULES:
            raise InputError(f"There is no schedule {self.schedule!r}.", f"Known: {', '.join(SCHEDULES)}.")

    def baseline(self) -> Stages:
        """One stage on as many devices as there are, by data parallelism alone."""
        table = self.table
        fits = np.flatnonzero(table.data & (table.devices <= self.devices))
        if not fits.size:
            fits = np.flatnonzero(table.devices <= self.devices)
        best = max(fits.tolist(), key=lambda c: (table.devices[c], -table.seconds[c, 0, -1]), default=0)
        return Stages(np.zeros(1, np.int64), np.array([best]))

    def cost(self, answer: Stages) -> float:
        times = self.times(answer)
        return float(times.sum() + (self.microbatches - 1) * times.max())

    def times(self, answer: Stages) -> np.ndarray:
        """f8[S]: seconds of a microbatch in each stage."""
        return np.array([self.table.seconds[c, i, k] for c, (i, k) in zip(answer.config, answer.runs(len(self.table.layers)), strict=True)])

    def flights(self, stages: int) -> list[int]:
        """Microbatches in flight in each of so many stages, first to last."""
        return [self.microbatches if self.schedule == "gpipe" else min(self.microbatches, stages - s) for s in range(stages)]

    def bytes(self, answer: Stages) -> np.ndarray:
        """f8[S]: bytes that a device of each stage holds at most."""
        runs, many = answer.runs(len(self.table.layers)), self.flights(len(answer.first))
        return np.array([self.table.held[c, i, k] + n * self.table.active[c, i, k] for c, (i, k), n in zip(answer.config, runs, many, strict=True)])

    def violations(self, answer: Stages) -> list[str]:
        table, count = self.table, len(self.table.layers)
        if len(answer.first) != len(answer.config) or not len(answer.first):
            return [f"{len(answer.first)} stages have {len(answer.config)} configurations; each needs one, and there must be a stage"]
        if answer.first[0] != 0 or (np.diff(answer.first) < 1).any() or answer.first[-1] >= count:
            return [f"stages begin at layers {answer.first.tolist()}; they must begin at 0 and rise, below {count}"]
        if (answer.config < 0).any() or (answer.config >= len(table.configs)).any():
            return [f"a stage runs on configuration {answer.config.tolist()}; there are 0 … {len(table.configs) - 1}"]
        broken, used = [], int(table.devices[answer.config].sum())
        if used > self.devices:
            broken.append(f"the stages use {used} devices, there are {self.devices}")
        bytes_, flights = self.bytes(answer), self.flights(len(answer.first))
        for s, (c, (i, k)) in enumerate(zip(answer.config.tolist(), answer.runs(count), strict=True)):
            if not np.isfinite(table.seconds[c, i, k]):
                broken.append(f"stage {s} (layers {i} to {k}) cannot run on {table.configs[c]}")
            elif bytes_[s] > self.limit * (1 + _SLACK):
                broken.append(f"a device of stage {s} (layers {i} to {k} on {table.configs[c]}) holds {bytes_[s]:,.0f} bytes with {flights[s]} "
                              f"microbatches in flight, {bytes_[s] - self.limit:,.0f} more than its {self.limit:,.0f}")
        return broken

    @cached_property
    def most_flights(self) -> I64:
        """i8[C, L, L]: the largest number of stages from this one to the last that memory allows (0: it fits nowhere, `MANY`: any)."""
        many = np.maximum(self.table.in_flight(self.limit, self.microbatches), 0)
        many = np.where((many < MANY) & (self.schedule == "gpipe"), 0, many)
        return np.where(self.table.possible, many, 0).astype(np.int64)

    @cached_property
    def _bound(self) -> float:
        from fourfold.decisions.stages.bound import lower_bound

        return lower_bound(self)

    def bound(self) -> float | None:
        """What no pipeline of this table can beat (`bound.py`); None where nothing fits."""
        return self._bound if np.isfinite(self._bound) else None

    @classmethod
    def sample(cls, seed: int) -> StageConstruction:
        table, devices, microbatches, limit = invented(seed)
        return cls(table, devices, microbatches, limit, SCHEDULES[seed % 2])
