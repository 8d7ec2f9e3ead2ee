"""How far a rank is, in 40 bytes of a file that it maps and its launcher reads: a rank that hangs tells as much as one that runs."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

STARTING, CONNECTING, IDLE, LOADING, RUNNING = range(5)
STAGES = ("starting", "connecting", "waiting for work", "loading its pieces", "running")
_FORM = struct.Struct("5q")


@dataclass(frozen=True)
class RankProgress:
    """`stage`; `job` and `step` it works on; collectives `entered` and `left` since it started."""

    stage: int = STARTING
    job: int = 0
    step: int = 0
    entered: int = 0
    left: int = 0

    @property
    def waits(self) -> bool:
        """Whether it is inside a collective."""
        return self.entered > self.left

    def __str__(self) -> str:
        if self.stage != RUNNING:
            return STAGES[self.stage]
        return f"in collective {self.entered}, step {self.step}" if self.waits else f"at step {self.step}, after {self.left} collectives"


class ProgressFile:
    """Written by one rank; `read` is the launcher's."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(_FORM.pack(0, 0, 0, 0, 0))
        with path.open("r+b") as stream:
            self.map = mmap.mmap(stream.fileno(), _FORM.size)
        self.now = [0, 0, 0, 0, 0]

    def tell(self, stage: int, job: int | None = None) -> None:
        self.now[0], self.now[2] = stage, 0
        if job is not None:
            self.now[1] = job
        self._write()

    def at(self, step: int) -> None:
        self.now[2] = step
        self._write()

    def tick(self, entered: bool) -> None:
        self.now[3 if entered else 4] += 1
        self._write()

    def _write(self) -> None:
        _FORM.pack_into(self.map, 0, *self.now)

    @staticmethod
    def read(path: Path) -> RankProgress:
        try:
            return RankProgress(*_FORM.unpack(path.read_bytes()))
        except (OSError, struct.error):
            return RankProgress()


__all__ = ["CONNECTING", "IDLE", "LOADING", "RUNNING", "ProgressFile", "RankProgress"]
