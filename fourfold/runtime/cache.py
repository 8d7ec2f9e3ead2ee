"""Answers kept in memory, exactly: the same key, the same bytes; one computation a key however many ask at once; bounded in bytes.

Who leaves when it is full is decided by a policy of `fourfold/decisions/cache`. Nothing is ever looked up by likeness: "enable" and "disable" are
alike to any embedding, and their answers are not.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass

from fourfold.decisions.cache._online import OnlinePolicy
from fourfold.errors import InputError

PER_ENTRY = 256                                                         # bytes of an entry beside key and value: dict, arrays of the policy
_FORGOTTEN = 2                                                          # keys that left and are remembered: at most so many times those inside
_FEWEST = 1024                                                          # … and this many anyway


class Abandoned(Exception):
    """Whoever computed gave up (cancelled); another may."""


@dataclass
class CacheCounts:
    """What happened: hits, misses, rows that waited for another's computation, entries that left, bytes held, `saved`: the cost of what was not
    computed again, in the unit that `put` was told."""

    hits: int = 0
    misses: int = 0
    joined: int = 0
    left: int = 0
    held: int = 0
    saved: float = 0.0


def exact_key(*parts: bytes | str | int | float) -> bytes:
    """16 bytes that stand for these parts in this order: digest of the model, dtype, row, decoding parameters, seed, tenant. Parts cannot run into
    one another: type and length of each are hashed too."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else repr(part).encode() if isinstance(part, int | float) else part.encode()
        hashed.update(f"{type(part).__name__}:{len(raw)}:".encode())
        hashed.update(raw)
    return hashed.digest()


class ResponseCache:
    """A store of at most `bytes` bytes, keys and bookkeeping counted. Safe for threads and tasks: no lock is held while computing.

    policy: a name that `fourfold list cache` shows, such as "lru", "s3fifo" or "gdsf" (which weighs `cost` against size). ttl:
    seconds after which an entry is computed again, None for ever. seed: of policies that draw. Raises InputError for a policy that does not exist or
    that must know the future, and for a size below zero.
    """

    def __init__(self, bytes: int, policy: str = "s3fifo", *, ttl: float | None = None, seed: int = 0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        if bytes < 0 or (ttl is not None and ttl <= 0):
            raise InputError(f"A cache of {bytes:,} bytes and a time to live of {ttl} s cannot be.",
                             "Give bytes of zero or more, and a time above zero.")
        self.bytes, self.policy, self.ttl, self._clock = int(bytes), policy, ttl, clock
        self._seed = seed
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Future[bytes]] = {}
        self.counts = CacheCounts()
        self._empty()

    def _empty(self) -> None:
        self._rule = _rule(self.policy, self.bytes, self._seed)
        self._slots: dict[Hashable, int] = {}                           # of keys inside and of keys remembered
        self._keys: list[Hashable] = []
        self._values: list[bytes | None] = []
        self._costs: list[float] = []
        self._until: list[float] = []
        self._free: list[int] = []
        self._gone: OrderedDict[int, None] = OrderedDict()              # remembered, the earliest first
        self._inside = 0
        self.counts.held = 0

    def __len__(self) -> int:
        return self._inside

    def get(self, key: Hashable) -> bytes | None:
        """The bytes kept under `key`, or None."""
        with self._lock:
            return self._get(key)

    def _get(self, key: Hashable) -> bytes | None:
        slot = self._slots.get(key)
        value = None if slot is None else self._values[slot]
        if slot is None or value is None:
            self.counts.misses += 1
            return None
        if self.ttl is not None and self._clock() >= self._until[slot]:
            self._remove(slot)
            self.counts.misses += 1
            return None
        self._rule.hit(slot)
        self.counts.hits += 1
        self.counts.saved += self._costs[slot]
        return value

    def put(self, key: Hashable, value: bytes, cost: float = 1.0) -> bool:
        """Keep `value`; False where it is larger than the cache. cost: what computing it took, in any one unit (joules, CPU seconds)."""
        size = _length(key) + len(value) + PER_ENTRY
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slot(key)
            held = self._values[slot]
            if held is not None:
                self._drop_value(slot)
            self._gone.pop(slot, None)
            left = self._rule.enter(slot, size, cost, hash(key))
            if left is None:
                self._free_slot(slot)
                return False
            self._values[slot], self._costs[slot] = bytes(value), cost
            self._until[slot] = self._clock() + self.ttl if self.ttl is not None else 0.0
            self._inside += 1
            self.counts.held += size
            for gone in left:
                self._drop_value(gone)
                self.counts.left += 1
                if self._rule.remembered(gone):
                    self._gone[gone] = None
                else:
                    self._free_slot(gone)
            while len(self._gone) > max(_FEWEST, _FORGOTTEN * self._inside):
                old, _ = self._gone.popitem(last=False)
                self._rule.forget(old)
                self._free_slot(old)
            return True

    def discard(self, key: Hashable) -> None:
        """Forget what is kept under `key`, if anything is."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None and self._values[slot] is not None:
                self._remove(slot)

    def clear(self) -> None:
        """Forget everything: another model answers now. Computations on their way end, and are not kept under the old model's keys unless those
        are new ones too, so keys name the model (`exact_key`)."""
        with self._lock:
            self._empty()

    # ---- one computation for all who ask

    def answer(self, key: Hashable, compute: Callable[[], bytes], cost: float | None = None) -> bytes:
        """What is kept, or what `compute()` makes: called once, however many threads ask meanwhile. An error is raised in all of them and not kept.
        cost: as in `put`; None: its CPU seconds on this thread."""
        while True:
            kept, flight, leads = self._board(key)
            if kept is not None:
                return kept
            if not leads:
                try:
                    return flight.result()
                except Abandoned:
                    continue
            began = time.thread_time()
            try:
                made = compute()
            except BaseException as error:
                self._land(key, flight, None, error)
                raise
            self._land(key, flight, made, None, time.thread_time() - began if cost is None else cost)
            return made

    async def answer_async(self, key: Hashable, compute: Callable[[], Awaitable[bytes]], cost: float = 1.0) -> bytes:
        """As `answer`, for tasks. A task that is cancelled while it computes leaves the work to the next who waits."""
        while True:
            kept, flight, leads = self._board(key)
            if kept is not None:
                return kept
            if not leads:
                try:
                    return await asyncio.shield(asyncio.wrap_future(flight))
                except Abandoned:
                    continue
            try:
                made = await compute()
            except BaseException as error:
                self._land(key, flight, None, error)
                raise
            self._land(key, flight, made, None, cost)
            return made

    def _board(self, key: Hashable) -> tuple[bytes | None, Future[bytes], bool]:
        """(what is kept or None, the computation under way, whether it is the caller's)."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                self.counts.joined += 1
                return None, flight, False
            flight = Future[bytes]()
            kept = self._get(key)
            if kept is None:
                self._flights[key] = flight
            return kept, flight, True

    def _land(self, key: Hashable, flight: Future[bytes], made: bytes | None, error: BaseException | None, cost: float = 0.0) -> None:
        if made is not None:
            self.put(key, made, cost)
        with self._lock:
            del self._flights[key]
        if error is not None:
            flight.set_exception(error if isinstance(error, Exception) else Abandoned())
        else:
            flight.set_result(made if made is not None else b"")

    # ---- slots

    def _slot(self, key: Hashable) -> int:
        if self._free:
            slot = self._free.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            self._keys.append(key)
            self._values.append(None)
            self._costs.append(0.0)
            self._until.append(0.0)
            self._rule.fit(slot)
        self._slots[key] = slot
        return slot

    def _drop_value(self, slot: int) -> None:
        value = self._values[slot]
        if value is not None:
            self.counts.held -= _length(self._keys[slot]) + len(value) + PER_ENTRY
            self._values[slot] = None
            self._inside -= 1

    def _free_slot(self, slot: int) -> None:
        del self._slots[self._keys[slot]]
        self._keys[slot] = None
        self._free.append(slot)

    def _remove(self, slot: int) -> None:
        self._drop_value(slot)
        self._rule.forget(slot)
        self._free_slot(slot)



def _length(key: Hashable) -> int:
    return len(key) if isinstance(key, bytes | str) else 16


def _rule(policy: str, capacity: int, seed: int) -> OnlinePolicy:
    """The policy of that name for requests that come one by one. Raises InputError."""
    from fourfold import registry
    from fourfold.decisions.cache._policy import EvictionRule

    found = registry.technique(registry.resolve(policy, "cache"))
    made = found()
    if not isinstance(made, EvictionRule):
        raise InputError(f"{policy!r} is no policy of a cache.", "See `fourfold list cache`.")
    return made.online(capacity, seed)
