"""Answers that are known already, exactly: the same artefact, the same row. And rows that are being computed, once for all who ask meanwhile.

A key is a hash of the artefact's digest and the row as it came; nothing is looked up by likeness. A failure is told to all who wait and not kept.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import msgspec

from fourfold.runtime.cache import PER_ENTRY, ResponseCache
from fourfold.runtime.serve.batching import RowAnswer, WaitingRow
from fourfold.runtime.serve.wire import Row

_encode = msgspec.msgpack.Encoder().encode


class KnownAnswers(Protocol):
    """A store of bytes by key, bounded; `cost` is what making the value took (CPU seconds)."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes, cost: float) -> object: ...


def warmed(capacity: int, policy: str = "gdsf") -> ResponseCache:
    """A store of `capacity` bytes whose policy is compiled already: numba compiles a policy's kernels at their first use, which takes seconds in a
    fresh installation and must not fall into a request. Raises InputError for a policy that does not exist."""
    trial = ResponseCache(8 * (PER_ENTRY + 64), policy)
    for number in range(64):                                           # enough that entries leave and some are forgotten
        trial.put(bytes([number]), bytes(64), 1.0 + number % 3)
        trial.get(bytes([number // 2]))
        trial.get(bytes([number]))
    trial.discard(bytes([63]))
    return ResponseCache(capacity, policy)


class ResponseDesk:
    """Looks answers up, joins rows that are on their way, keeps what was computed. `store` None: nothing is kept, rows are still joined."""

    def __init__(self, store: KnownAnswers | None) -> None:
        self.store = store
        self.flights: dict[bytes, WaitingRow] = {}
        self.hits = self.misses = self.joined = 0
        self.saved = 0.0                                               # CPU seconds that answers once took and that were not spent again

    @staticmethod
    def key(digest: bytes, row: Row) -> bytes:
        """16 bytes that stand for this row and this artefact."""
        return hashlib.blake2b(_encode(row), digest_size=16, key=digest[:64]).digest()

    def known(self, key: bytes) -> RowAnswer | None:
        """The answer, if it is kept."""
        kept = self.store.get(key) if self.store is not None else None
        if kept is None:
            return None
        said, record, member, cpu = msgspec.msgpack.decode(kept)
        self.hits += 1
        self.saved += cpu
        return RowAnswer(said, record, 0.0, member, cached=True)

    def flying(self, key: bytes) -> WaitingRow | None:
        """The row that is being computed under this key, if somebody still waits for it."""
        row = self.flights.get(key)
        if row is None or row.abandoned:
            return None
        self.joined += 1
        return row

    def begin(self, row: WaitingRow) -> None:
        """This row is being computed."""
        self.misses += 1
        self.flights[row.key] = row

    def settled(self, row: WaitingRow, answer: RowAnswer | None) -> None:
        """It is answered (kept), or failed (forgotten)."""
        if self.flights.get(row.key) is row:
            del self.flights[row.key]
        if answer is not None and not answer.error:
            for _ in row.waiters[1:]:
                self.saved += answer.cpu
            if self.store is not None:
                self.store.put(row.key, _encode((answer.said, answer.record, answer.member, answer.cpu)), answer.cpu)
