"""Which waiting rows go into a worker together. The oldest row always goes; others join while padding them costs less than a call of their own.

Padded batches cost rows × longest, so rows of like length share one (sorted by length as in the race that measured the batch), and the pace of a
member is learnt from its own batches: seconds = a + b · rows · longest, exponentially weighted least squares. While rows wait for less than the
deadline, a batch is no larger than half of the deadline allows; behind it, throughput counts and batches are as large as was measured best. No row
waits while a worker is free: batches fill while all workers are busy, and only then is there something to share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fourfold.runtime.serve.wire import Member, Row

FORGET = 0.98                                                          # weight of a batch for each batch after it
_WIDEN = 16                                                            # characters that a text has at least, in sizes: a call's special tokens


def size_of(row: Row) -> int:
    """Characters of a text or a pair; 1 for arrays, which are not padded."""
    if isinstance(row, str):
        return len(row) + _WIDEN
    if len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], str):
        return len(row[0]) + len(row[1]) + _WIDEN
    return 1


@dataclass(frozen=True)
class RowAnswer:
    """What a row was answered with: a JSON value, its class scores or value, the CPU seconds that it took (0 from the cache), the member that said
    it. `error`: why it could not be read."""

    said: object
    record: list[float] | None
    cpu: float
    member: int
    error: str = ""
    cached: bool = False


@dataclass(eq=False)
class WaitingRow:
    """A row in a queue: when it came, by when it should be answered (monotonic seconds), and who waits for its answer: one future a request."""

    row: Row
    key: bytes
    came: float
    due: float
    waiters: list[asyncio.Future[RowAnswer]]
    settled: Callable[[WaitingRow, RowAnswer | None], None]
    size: int = 0
    stage: int = 0
    cpu: float = 0.0

    def __post_init__(self) -> None:
        self.size = self.size or size_of(self.row)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(one.done() for one in self.waiters)

    def resolve(self, answer: RowAnswer) -> None:
        """Hand the answer to all that wait."""
        self.settled(self, answer)
        for one in self.waiters:
            if not one.done():
                one.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Hand the error to all that wait; it is never remembered."""
        self.settled(self, None)
        for one in self.waiters:
            if not one.done():
                one.set_exception(error)

    def drop(self) -> None:
        """Nobody waits: forget it."""
        self.settled(self, None)


class BatchPace:
    """Seconds of a call as a function of its padded characters, learnt as calls end."""

    def __init__(self, fixed: float = 2e-3, slope: float = 1e-6) -> None:
        self.fixed, self.slope = fixed, slope
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    @classmethod
    def of(cls, member: Member) -> BatchPace:
        """From the worker's own trial: one row, and a full batch."""
        if member.full <= 0:
            return cls()
        few, many = member.size + _WIDEN, (member.size + _WIDEN) * member.batch
        slope = max(0.0, member.full - member.single) / max(1, many - few)
        pace = cls(max(1e-6, member.single - slope * few), slope)
        for area, seconds in ((few, member.single), (many, member.full)):
            pace.learn(area, seconds)
        return pace

    def learn(self, area: float, seconds: float) -> None:
        """A call of so many padded characters took so many seconds."""
        f = FORGET
        self._n, self._x, self._y = f * self._n + 1, f * self._x + area, f * self._y + seconds
        self._xx, self._xy = f * self._xx + area * area, f * self._xy + area * seconds
        spread = self._n * self._xx - self._x * self._x
        if spread > 1e-6 * self._n * self._xx:
            slope = (self._n * self._xy - self._x * self._y) / spread
            if slope >= 0 and (fixed := (self._y - slope * self._x) / self._n) >= 0:
                self.slope, self.fixed = slope, fixed
                return
        self.slope, self.fixed = (self._y / self._x if self._x else self.slope), 0.0

    def seconds(self, area: float) -> float:
        """Predicted seconds of a call."""
        return self.fixed + self.slope * area

    @property
    def worth(self) -> float:
        """Padded characters that cost as much as a call of its own."""
        return self.fixed / self.slope if self.slope > 0 else float("inf")


@dataclass
class MemberQueue:
    """Rows that wait for one member, oldest first, and how fast it answers."""

    batch: int
    pace: BatchPace
    rows: list[WaitingRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def backlog(self) -> float:
        """Predicted seconds of one worker until all that wait is answered."""
        if not self.rows:
            return 0.0
        calls = -(-len(self.rows) // self.batch)
        return calls * self.pace.fixed + self.pace.slope * sum(row.size for row in self.rows)

    def take(self, now: float) -> list[WaitingRow]:
        """The rows of the next batch, which leave the queue. Rows that were given up are dropped."""
        given_up = [row for row in self.rows if row.abandoned]
        if given_up:
            self.rows = [row for row in self.rows if not row.abandoned]
            for row in given_up:
                row.drop()
        if not self.rows:
            return []
        oldest = self.rows[0]
        late = now >= oldest.due - 0.5 * (oldest.due - oldest.came)
        allowed = float("inf") if late else 0.5 * (oldest.due - oldest.came)
        picked = chosen([row.size for row in self.rows[: 8 * self.batch]], self.batch, self.pace, allowed)
        inside = set(picked)
        taken = [self.rows[i] for i in picked]
        self.rows = [row for i, row in enumerate(self.rows) if i not in inside]
        return taken


def chosen(sizes: Sequence[int], most: int, pace: BatchPace, allowed: float) -> list[int]:
    """Positions of the rows that share a batch with row 0, which are the nearest in length: at most `most`, at most `allowed` predicted seconds, and
    none whose padding costs more than a call of its own would. Always holds 0."""
    anchor = sizes[0]
    order = sorted(range(1, len(sizes)), key=lambda i: (abs(sizes[i] - anchor), i))
    picked, widest, total = [0], anchor, anchor
    for i in order:
        if len(picked) >= most:
            break
        wide = max(widest, sizes[i])
        area, padding = wide * (len(picked) + 1), wide * (len(picked) + 1) - (total + sizes[i])
        if padding - (widest * len(picked) - total) > pace.worth or pace.seconds(area) > allowed:
            continue
        picked.append(i)
        widest, total = wide, total + sizes[i]
    return sorted(picked)
