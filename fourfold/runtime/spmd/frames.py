"""What a launcher and its ranks say to each other over a pipe: a length, then a pickled message. Both ends are processes of this run."""

from __future__ import annotations

import os
import pickle
import struct
from dataclasses import dataclass, field
from pathlib import Path

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True)
class RankStart:
    """The first thing that a rank is told: who it is, where the store is, how it communicates, and the file in which it tells how far it is."""

    rank: int
    world: int
    host: str
    port: int
    backend: str
    threads: int
    timeout: float
    progress: Path
    local: int = 0                                                      # its number on its host: which GPU it takes


@dataclass(frozen=True)
class RankJob:
    """Carry out the program in `program` on the values in `tensors`, `warm` times untimed and `repeat` times timed; compare with the whole outputs
    in `expected`, and where `outputs` is named, rank 0 writes its own there: "o0" … outputs, "g7" the gradient of value 7. `learn`: with gradients,
    by autograd. `weights` is the digest of `tensors`; `mode` what is to be done.
    """

    number: int
    mode: str                                                           # "run", "pipeline" or "calibrate"
    program: Path | None = None
    tensors: Path | None = None
    expected: Path | None = None
    outputs: Path | None = None
    weights: str = ""
    warm: int = 1
    repeat: int = 5
    learn: bool = False
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Timing:
    """One timed step of a rank, seconds: by the wall clock, of its processor time, and the wall seconds of these that it spent in collectives."""

    wall: float
    cpu: float
    waiting: float


@dataclass(frozen=True)
class RankReport:
    """What a rank answers to a job. `problem`: why it could not be done, in words; `disagree`: ranks that hold something else, and what."""

    rank: int
    number: int
    timings: tuple[Timing, ...] = ()
    outputs: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    problem: str = ""
    disagree: tuple[tuple[int, str], ...] = ()
    rows: tuple[tuple[str, int, int, float, float], ...] = ()           # of a calibration: collective, ranks, bytes, wall s, CPU s
    facts: dict[str, float] = field(default_factory=dict)


def send(stream: int, message: object) -> None:
    data = pickle.dumps(message)
    _write(stream, _LENGTH.pack(len(data)) + data)


def receive(stream: int) -> object | None:
    """The next message; None where the other end has gone."""
    head = _read(stream, _LENGTH.size)
    data = _read(stream, _LENGTH.unpack(head)[0]) if head is not None else None
    return pickle.loads(data) if data is not None else None             # noqa: S301 — from our own parent or child


def _write(stream: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]


def _read(stream: int, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(stream, size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


__all__ = ["RankJob", "RankReport", "RankStart", "Timing", "receive", "send"]
