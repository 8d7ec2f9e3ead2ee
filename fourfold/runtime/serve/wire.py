"""What the front and its workers say to each other over a socket pair: a length of four bytes, then a typed message in MessagePack.

Nothing is pickled: a worker that was fed a stranger's input can at worst send wrong numbers.
"""

from __future__ import annotations

import socket
import struct

import msgspec

LENGTH = struct.Struct("!I")
LARGEST = 1 << 28                                                      # bytes of a frame

Row = str | tuple[object, ...]                                         # a text; a pair of texts; numbers, nested as the array is


class Member(msgspec.Struct):
    """One member of the artefact as its worker opened it. batch: rows at once, as measured when it was saved; `single`, `full`: seconds of a call
    with one row and with `batch` rows of `size` characters each (0: not tried)."""

    name: str
    setting: str
    batch: int
    threads: int
    single: float = 0.0
    full: float = 0.0
    size: int = 1


class WorkerReady(msgspec.Struct, tag="ready"):
    """The worker has loaded: kind of task, its classes, members cheapest first, whether the model reads "texts" or "arrays"."""

    kind: str
    reads: str
    classes: list[str] | None
    members: list[Member]
    warnings: list[str]
    generates: bool = False
    parameters: int = 0


class WorkerFailed(msgspec.Struct, tag="failed"):
    """The worker could not load, in the two lines of an error."""

    message: str
    mend: str


class RowsJob(msgspec.Struct, tag="batch"):
    """Answer these rows by member `stage`; -1: by the whole assembly, for inputs that are no texts."""

    number: int
    stage: int
    rows: list[Row]


class GenerationJob(msgspec.Struct, tag="generate"):
    """Continue a prompt by at most `new` tokens."""

    number: int
    prompt: str
    new: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class BatchDone(msgspec.Struct, tag="done"):
    """Answers of a batch: `said[i]` as JSON can hold it and `records[i]` (class scores, values) of a row that is answered, None of one that the gate
    hands on. `errors[i]`: why row i could not be read. cpu, wall: seconds."""

    number: int
    said: list[object]
    records: list[list[float] | None]
    sure: list[bool]
    cpu: float
    wall: float
    errors: dict[int, str] = {}


class TextPiece(msgspec.Struct, tag="piece"):
    """The next words of a text that is being written; `end` with the last, and the CPU seconds of all."""

    number: int
    text: str
    end: bool = False
    cpu: float = 0.0


class BatchRefused(msgspec.Struct, tag="refused"):
    """The batch raised; the worker goes on. The message names no input."""

    number: int
    message: str


FromWorker = WorkerReady | WorkerFailed | BatchDone | BatchRefused | TextPiece
ToWorker = RowsJob | GenerationJob

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def packed(message: FromWorker | ToWorker) -> bytes:
    """A message as a frame."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def told_worker(body: bytes) -> ToWorker:
    """A frame's body as the worker reads it. Raises msgspec.DecodeError."""
    return _to_worker.decode(body)


def told_front(body: bytes) -> FromWorker:
    """A frame's body as the front reads it. Raises msgspec.DecodeError."""
    return _from_worker.decode(body)


def received(link: socket.socket) -> bytes | None:
    """The next frame's body from a blocking socket; None once the other side is gone."""
    head = _exactly(link, LENGTH.size)
    if head is None:
        return None
    return _exactly(link, LENGTH.unpack(head)[0])


def _exactly(link: socket.socket, count: int) -> bytes | None:
    held = bytearray()
    while len(held) < count:
        part = link.recv(count - len(held))
        if not part:
            return None
        held += part
    return bytes(held)
