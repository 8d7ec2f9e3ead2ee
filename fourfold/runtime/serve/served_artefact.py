"""One artefact at work: its workers, a queue of rows before each member of its cascade, and who is admitted.

Work is conserved: a free worker takes what waits, the oldest row first, with company that pays (`batching`). Rows that a gate hands on wait before
the next member with those of other batches, and as they are the oldest they go first. A row is refused only while no worker is free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fourfold.runtime.serve import wire
from fourfold.runtime.serve.batching import BatchPace, MemberQueue, RowAnswer, WaitingRow
from fourfold.runtime.serve.limits import ServingLimits
from fourfold.runtime.serve.supervision import BACKOFF, STEADY, BatchDeclined, SupervisedWorker, WorkerDied

_LOOK = 0.1                                                            # seconds between looks at workers that have nothing to do


class Overloaded(Exception):
    """Every worker is at work and more rows wait than may; `after` seconds from now there may be room."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after


class ServingObserver(Protocol):
    """Who is told what happens."""

    def batch(self, stage: int, rows: int, seconds: float, cpu: float, waited: float) -> None: ...

    def worker(self, event: str, number: int, pid: int, why: str) -> None: ...


@dataclass(frozen=True)
class ArtefactIdentity:
    """Which artefact: its folder, its name, the sha256 of its manifest (which holds that of every file), when it was made."""

    folder: Path
    name: str
    digest: str
    created: str


class ServedArtefact:
    """An artefact with `count` workers. `open` first; `submit` rows; `close` when done."""

    def __init__(self, identity: ArtefactIdentity, trust: Sequence[str], count: int, limits: ServingLimits, observer: ServingObserver,
                 batching: bool = True) -> None:
        self.identity, self.trust, self.limits, self.observer, self.batching = identity, tuple(trust), limits, observer, batching
        self.workers = [SupervisedWorker(identity.folder, trust, number) for number in range(count)]
        self.queues: list[MemberQueue] = []
        self.about: wire.WorkerReady | None = None
        self.closing = False
        self.deaths = self.batches = self.declined = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._died: dict[int, tuple[int, float]] = {}

    async def open(self) -> wire.WorkerReady:
        """Start all workers. Raises ArtefactError where one cannot load; the others are then ended."""
        try:
            found = await asyncio.gather(*(worker.start() for worker in self.workers))
        except BaseException:
            self.closing = True
            await asyncio.gather(*(worker.close(0.0) for worker in self.workers), return_exceptions=True)
            raise
        self.about = about = found[0]
        stages = about.members if about.reads == "texts" and about.kind in ("classification", "regression") else about.members[-1:]
        self.queues = [MemberQueue(one.batch if self.batching else 1, BatchPace.of(one)) for one in stages]
        for worker in self.workers:
            self.observer.worker("worker_ready", worker.number, worker.pid, "")
        self._begin(self._dispatch())
        self._begin(self._watch())
        return about

    def _begin(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- rows --------------------------------------------------------------------------------------------------------------------------------

    @property
    def free(self) -> list[SupervisedWorker]:
        """Workers that could begin now."""
        return [worker for worker in self.workers if worker.ready is not None and not worker.busy and worker.alive]

    @property
    def waiting(self) -> int:
        """Rows in queues."""
        return sum(map(len, self.queues))

    @property
    def backlog(self) -> float:
        """Predicted seconds until a new row's turn comes."""
        able = sum(worker.ready is not None and worker.alive for worker in self.workers)
        return sum(queue.backlog for queue in self.queues) / max(1, able)

    def admit(self, rows: int) -> None:
        """Raises Overloaded where `rows` more may not wait: never while a worker is free."""
        if self.free and not self.waiting:
            return
        if self.waiting + rows > self.limits.queue and not self.free:
            raise Overloaded(f"{self.waiting:,} rows wait already.", self.backlog)
        if self.backlog > self.limits.timeout and not self.free:
            raise Overloaded(f"The {self.waiting:,} rows that wait would take {self.backlog:.0f} s.", self.backlog - self.limits.timeout)

    def submit(self, row: WaitingRow) -> None:
        """Queue a row before the first member."""
        self.queues[0].rows.append(row)
        self._changed.set()

    async def _dispatch(self) -> None:
        """Hand batches to free workers as long as the artefact serves."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (free := self.free) and (queue := self._next()) is not None:
                now = time.monotonic()
                rows = queue.take(now)                                 # at once: waiting for company would leave the worker idle
                if rows:
                    worker = free[0]
                    worker.busy = True
                    self._begin(self._run(worker, self.queues.index(queue), rows))

    def _next(self) -> MemberQueue | None:
        """The queue whose first row has waited longest; None where none waits."""
        some = [queue for queue in self.queues if queue.rows]
        return min(some, key=lambda queue: queue.rows[0].came) if some else None

    async def _run(self, worker: SupervisedWorker, stage: int, rows: list[WaitingRow]) -> None:
        began = time.monotonic()
        queue = self.queues[stage]
        area = len(rows) * max(row.size for row in rows)
        patience = max(self.limits.timeout, 10 * queue.pace.seconds(area))
        try:
            about = self.about
            assert about is not None
            staged = len(self.queues) == len(about.members)
            done = await asyncio.wait_for(worker.run(stage if staged else -1, [row.row for row in rows]), patience)
        except (TimeoutError, WorkerDied) as error:
            slow = isinstance(error, TimeoutError)
            worker.kill()
            why = f"it took more than {patience:.0f} s for a batch" if slow else str(error)
            for row in rows:
                row.fail(WorkerDied(f"The worker that computed this answer is gone: {why}."))
            self._lost(worker, why)
            return
        except BatchDeclined as error:
            self.declined += 1
            await self._apart(worker, stage, rows, error)
            return
        finally:
            self.batches += 1
        self._free(worker)
        queue.pace.learn(area, done.wall)
        self.observer.batch(stage, len(rows), done.wall, done.cpu, began - rows[0].came)
        self._settle(stage, rows, done)

    def _free(self, worker: SupervisedWorker) -> None:
        worker.busy = False
        self._changed.set()

    async def _apart(self, worker: SupervisedWorker, stage: int, rows: list[WaitingRow], error: BatchDeclined) -> None:
        """A batch raised: its rows are asked again one by one, so that one row cannot spoil another's answer."""
        if len(rows) == 1:
            self._free(worker)
            rows[0].fail(error)
            return
        for place, row in enumerate(rows):
            try:
                about = self.about
                assert about is not None
                done = await asyncio.wait_for(worker.run(stage if len(self.queues) == len(about.members) else -1, [row.row]), self.limits.timeout)
                self._settle(stage, [row], done)
            except BatchDeclined as found:
                row.fail(found)
            except (TimeoutError, WorkerDied) as died:
                worker.kill()
                for lost in rows[place:]:
                    lost.fail(WorkerDied(f"The worker that computed this answer is gone: {died}."))
                self._lost(worker, str(died))
                return
        self._free(worker)

    def _settle(self, stage: int, rows: list[WaitingRow], done: wire.BatchDone) -> None:
        """Answer the rows that are sure, hand on the others."""
        total = sum(row.size for row in rows)
        passed = False
        for at, row in enumerate(rows):
            row.cpu += done.cpu * row.size / total
            if done.sure[at]:
                row.resolve(RowAnswer(done.said[at], done.records[at], row.cpu, stage, done.errors.get(at, "")))
            else:
                row.stage = stage + 1
                self.queues[stage + 1].rows.append(row)
                passed = True
        if passed:
            self._changed.set()

    # ---- texts -------------------------------------------------------------------------------------------------------------------------------

    async def write(self, job: wire.GenerationJob, heard: Callable[[wire.TextPiece], None]) -> wire.TextPiece:
        """Continue a prompt on the next worker that is free. Raises Overloaded, WorkerDied, BatchDeclined."""
        self.admit(1)
        until = time.monotonic() + self.limits.timeout
        while not (free := self.free):
            if time.monotonic() > until:
                raise Overloaded("No worker became free in time.", 1.0)
            await asyncio.sleep(0.005)
        worker = free[0]
        worker.busy = True
        try:
            done = await worker.write(job, heard)
        except WorkerDied as died:
            self._lost(worker, str(died))
            raise
        except BaseException as error:
            if not isinstance(error, BatchDeclined):                   # the reader went away amid a text: the worker must not go on with it
                worker.kill()
                self._lost(worker, "its reader went away")
            else:
                self._free(worker)
            raise
        self._free(worker)
        return done

    # ---- workers -----------------------------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """See workers die that have nothing to do."""
        while True:
            await asyncio.sleep(_LOOK)
            for worker in self.workers:
                if worker.ready is not None and not worker.busy and not worker.alive:
                    worker.busy = True
                    self._lost(worker, "it ended while it had nothing to do")
            if self.waiting:
                self._changed.set()

    def _lost(self, worker: SupervisedWorker, why: str) -> None:
        """A worker is gone: start another in its place."""
        self.deaths += 1
        self.observer.worker("worker_died", worker.number, worker.pid, why)
        if not self.closing:
            self._begin(self._again(worker))

    async def _again(self, old: SupervisedWorker) -> None:
        number = old.number
        while not self.closing:
            count, last = self._died.get(number, (0, 0.0))
            count = count + 1 if time.monotonic() - last < STEADY else 0
            self._died[number] = (count, time.monotonic())
            await asyncio.sleep(BACKOFF[min(count, len(BACKOFF) - 1)])
            worker = SupervisedWorker(self.identity.folder, self.trust, number)
            try:
                await worker.start()
            except Exception as error:
                self.observer.worker("worker_failed", number, worker.pid, str(error).splitlines()[0])
                continue
            if self.closing:
                await worker.close(0.0)
                return
            self.workers[self.workers.index(old)] = worker
            self.observer.worker("worker_ready", number, worker.pid, "")
            self._changed.set()
            return

    async def drained(self, patience: float) -> bool:
        """Wait until nothing waits and nobody works; whether that came within `patience` seconds."""
        until = time.monotonic() + patience
        while self.waiting or any(worker.busy and worker.alive for worker in self.workers):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.01)
        return True

    async def close(self) -> None:
        """End the workers; rows that still wait fail."""
        self.closing = True
        for queue in self.queues:
            for row in queue.rows:
                row.fail(WorkerDied("The server ended."))
            queue.rows.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*(worker.close() for worker in self.workers), return_exceptions=True)
