"""Answers that are known already, exactly: the same artefact, the same row. And rows that are being computed, once for all who ask meanwhile.

A key is a hash of the artefact's digest and the row as it came; nothing is looked up by likeness. A failure is told to all who wait and not kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Protocol

import msgspec

from fourfold.runtime.serve.batching import RowAnswer, WaitingRow
from fourfold.runtime.serve.wire import Row

_encode = msgspec.msgpack.Encoder().encode
_PER_ENTRY = 120                                                       # bytes that an entry takes beside key and value


class KnownAnswers(Protocol):
    """A store of bytes by key, bounded; `cost` is what making the value took (CPU seconds)."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes, cost: float) -> None: ...


class LeastRecent:
    """A store of at most `capacity` bytes from which the least recently used leaves first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.held = capacity, 0
        self.entries: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, key: bytes) -> bytes | None:
        """The value, which is then the most recently used."""
        value = self.entries.get(key)
        if value is not None:
            self.entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes, cost: float) -> None:
        """Keep a value; one larger than the store is not kept."""
        del cost                                                       # all are worth the same here
        size = len(key) + len(value) + _PER_ENTRY
        if size > self.capacity:
            return
        if (old := self.entries.pop(key, None)) is not None:
            self.held -= len(key) + len(old) + _PER_ENTRY
        self.entries[key] = value
        self.held += size
        while self.held > self.capacity:
            gone, lost = self.entries.popitem(last=False)
            self.held -= len(gone) + len(lost) + _PER_ENTRY


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
