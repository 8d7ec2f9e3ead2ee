"""The gang scheduler of one island, as a state machine without clock, threads or messages: Ray drives it, and so does a simulation.

It decides one total order of all work on the island's executors, the same on each (Barham et al., "Pathways", MLSys 2022, section 4.4): two programs
with collectives that cross can then not wait for each other. Tenants share by deficit round robin (Shreedhar and Varghese, 1996) over the cost that
was measured. A program starts on all of its executors or on none; what may be in flight on an executor, programs and bytes, is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fourfold.errors import InputError

_REACH = 64                                                             # tenants looked at for work that fits beside what waits
_DEBT = 4.0                                                             # rounds that a tenant may be in debt for executors nobody else wanted


@dataclass(slots=True)
class FleetJob:
    """One program as submitted. `nodes`: the executors of each computation, in order; one entry is one *sharded* computation, however many shards.

    bytes   held on each executor while it runs · gives: bytes on each executor of each result, kept until its handle is freed
    cost    seconds, as estimated; the measured ones replace it · needs: handles it reads · pure: may be run again after a failure
    """

    number: int
    tenant: str
    nodes: tuple[np.ndarray, ...]
    bytes: int = 0
    cost: float = 1.0
    needs: tuple[int, ...] = ()
    gives: tuple[tuple[int, int], ...] = ()                             # (node, bytes on each of its executors)
    pure: bool = False
    executors: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    attempt: int = 0
    handles: tuple[int, ...] = ()


@dataclass(slots=True)
class LogicalArray:
    """A result that lives sharded on `executors`; one count for all its shards."""

    number: int
    executors: np.ndarray
    bytes: int
    generation: int
    count: int = 1
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run a job now. `orders[i]`: place of node i in the island's order; `turns[i][k]`: its turn on the node's k-th executor, without gaps;
    `generations[i][k]`: the incarnation of that executor that is meant."""

    job: FleetJob
    attempt: int
    orders: tuple[int, ...]
    turns: tuple[np.ndarray, ...]
    generations: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Restart:
    """Executors that must be ended and started anew, all of `generation`; jobs that go back in their queue, jobs that failed, arrays that are
    gone."""

    generation: int
    executors: np.ndarray
    again: tuple[FleetJob, ...]
    failed: tuple[FleetJob, ...]
    lost: tuple[int, ...]


@dataclass(slots=True)
class _Tenant:
    name: str
    weight: float
    queue: deque[FleetJob] = field(default_factory=deque)
    deficit: float = 0.0
    credited: bool = False
    used: float = 0.0                                                   # executor-seconds, measured


class IslandScheduler:
    """`size` executors; at most `depth` programs and `budget` bytes in flight on each."""

    def __init__(self, size: int, *, depth: int = 2, budget: int = 1 << 62) -> None:
        if size < 1 or depth < 1:
            raise InputError(f"An island of {size} executors with {depth} programs in flight.", "Give at least one of each.")
        self.size, self.depth, self.budget = size, depth, budget
        self.order, self.generation, self._number, self._handle = 0, 0, 0, 0
        self.turns = np.zeros(size, np.int64)
        self.load = np.zeros(size, np.int32)                            # programs in flight
        self.held = np.zeros(size, np.int64)                            # bytes
        self.alive = np.ones(size, bool)
        self.generations = np.zeros(size, np.int64)
        self.tenants: dict[str, _Tenant] = {}
        self.ring: deque[_Tenant] = deque()                             # who has work waiting
        self.inflight: dict[int, FleetJob] = {}
        self.arrays: dict[int, LogicalArray] = {}
        self.quantum = 0.0                                              # executor-seconds a round gives to weight 1: the dearest program seen lately

    # ---- what clients do

    def tenant(self, name: str, weight: float = 1.0) -> None:
        """Make a tenant known, or change its weight. Raises InputError for a weight that is not positive."""
        if not weight > 0:
            raise InputError(f"Tenant {name} has weight {weight:g}.", "Give a weight above 0.")
        self.tenants.setdefault(name, _Tenant(name, weight)).weight = weight

    def submit(self, tenant: str, nodes: Sequence[np.ndarray], *, bytes: int = 0, cost: float = 1.0, needs: Sequence[int] = (),
               gives: Sequence[tuple[int, int]] = (), pure: bool = False) -> FleetJob:
        """Queue a program. Raises InputError where it can never run: executors or bytes that the island does not have, arrays that are gone."""
        if tenant not in self.tenants:
            self.tenant(tenant)
        executors = np.unique(np.concatenate([np.asarray(n, np.int64) for n in nodes])) if nodes else np.zeros(0, np.int64)
        if not len(executors) or executors[0] < 0 or executors[-1] >= self.size:
            raise InputError(f"A program on executors {executors.tolist()[:4]}… of an island of {self.size}.", "Take a slice of this island.")
        room = bytes + sum(size for _, size in gives)
        if room > self.budget:
            raise InputError(f"A program that needs {room:,} bytes on an executor, which may hold {self.budget:,}.",
                             "Shard it over a larger slice, or give executors more memory.")
        for number in needs:
            if number not in self.arrays or self.arrays[number].lost:
                raise InputError(f"Logical array {number} is gone: it was freed, or lost with its executors.",
                                 "Compute it again, or restore a commit.")
        for number in needs:
            self.arrays[number].count += 1
        self._number += 1
        job = FleetJob(self._number, tenant, tuple(np.asarray(n, np.int64) for n in nodes), bytes, cost, tuple(needs), tuple(gives), pure, executors)
        self._queue(job)
        return job

    def free(self, number: int) -> LogicalArray | None:
        """One holder fewer; the array where that was the last, to be dropped by its executors. Raises InputError for one freed before."""
        found = self.arrays.get(number)
        if found is None:
            raise InputError(f"Logical array {number} has been freed before.", "Free each handle once.")
        found.count -= 1
        if found.count:
            return None
        del self.arrays[number]
        if found.lost:
            return None
        self.held[found.executors] -= found.bytes
        return found

    # ---- what drives it

    def next(self) -> Dispatch | None:
        """What to start now; None where nothing fits. Ask until None after everything that happened."""
        blocked: np.ndarray | None = None
        place = 0
        while place < min(len(self.ring), _REACH):
            tenant = self.ring[place]
            job = tenant.queue[0]
            price = job.cost * len(job.executors)
            if place == 0:
                if not tenant.credited:
                    tenant.deficit, tenant.credited = tenant.deficit + self.quantum * tenant.weight, True
                if tenant.deficit < price:
                    self._rotate()
                    continue
            elif tenant.deficit < -_DEBT * self.quantum * tenant.weight:
                place += 1
                continue
            if self._fits(job) and (blocked is None or not blocked[job.executors].any()):
                return self._start(tenant, job, price)
            if blocked is None:
                blocked = np.zeros(self.size, bool)
            blocked[job.executors] = True                               # later ones may not overtake it there, or it would wait for ever
            place += 1
        return None

    def finished(self, number: int, attempt: int, seconds: float) -> FleetJob | None:
        """A job ended after so many seconds; None for a late word of an attempt that was given up. Its `handles`: of its results, as in `gives`."""
        job = self.inflight.get(number)
        if job is None or job.attempt != attempt:
            return None
        del self.inflight[number]
        self.load[job.executors] -= 1
        self.held[job.executors] -= job.bytes
        tenant, spent = self.tenants[job.tenant], seconds * len(job.executors)
        tenant.deficit += job.cost * len(job.executors) - spent
        tenant.used += spent
        made: list[int] = []
        for node, size in job.gives:
            self._handle += 1
            self.arrays[self._handle] = LogicalArray(self._handle, job.nodes[node], size, int(self.generations[job.nodes[node]].max()))
            made.append(self._handle)
        job.handles = tuple(made)
        return job

    def failed(self, number: int, attempt: int) -> FleetJob | None:
        """A job whose function raised on some executor: nothing of it is kept."""
        job = self.inflight.get(number)
        if job is None or job.attempt != attempt:
            return None
        del self.inflight[number]
        self.load[job.executors] -= 1
        self._unhold(job)
        return job

    def died(self, executors: Sequence[int] | np.ndarray) -> Restart:
        """Executors are gone. Whoever shares a running program with one of them may hang in its collective: all of those are started anew."""
        victims = np.zeros(self.size, bool)
        victims[np.asarray(executors, np.int64)] = True
        hit: dict[int, FleetJob] = {}
        grows = True
        while grows:
            grows = False
            for number, job in self.inflight.items():
                if number not in hit and victims[job.executors].any():
                    hit[number], grows = job, True
                    victims[job.executors] = True
        who = np.flatnonzero(victims)
        self.generation += 1
        lost = [array for array in self.arrays.values() if not array.lost and victims[array.executors].any()]
        for array in lost:
            array.lost = True
            self.held[array.executors] -= array.bytes
        for job in hit.values():
            del self.inflight[job.number]
            self._unhold(job)
        self.load[who], self.turns[who], self.alive[who], self.generations[who] = 0, 0, False, self.generation
        gone = {array.number for array in lost}
        again = [job for job in hit.values() if job.pure and not gone & set(job.needs)]
        failed = [job for job in hit.values() if job not in again]
        for tenant in list(self.ring):                                  # what waits for an array that is gone will never run
            bad = [job for job in tenant.queue if gone & set(job.needs)]
            for job in bad:
                tenant.queue.remove(job)
            failed += bad
            if not tenant.queue:
                self.ring.remove(tenant)
        for job in sorted(again, key=lambda one: -one.number):
            self._queue(job, first=True)
        return Restart(self.generation, who, tuple(again), tuple(failed), tuple(gone))

    def up(self, executors: Sequence[int] | np.ndarray, generation: int) -> bool:
        """Executors stand again; False for those of an older generation, which are to be ended."""
        who = np.asarray(executors, np.int64)
        if (self.generations[who] != generation).any():
            return False
        self.alive[who] = True
        return True

    def settle(self, job: FleetJob) -> list[LogicalArray]:
        """After a job ended, whichever way: let go of what it read. Gives the arrays that nobody holds now."""
        return [array for array in (self.free(number) for number in job.needs) if array is not None]

    def withdraw(self, number: int) -> FleetJob | None:
        """Take a job out of its queue; None where it runs or has ended. Whoever calls settles it."""
        for tenant in list(self.ring):
            for job in tenant.queue:
                if job.number == number:
                    tenant.queue.remove(job)
                    if not tenant.queue:
                        self._leave(tenant)
                    return job
        return None

    @property
    def waiting(self) -> int:
        return sum(len(tenant.queue) for tenant in self.ring)

    # ---- its own

    def _queue(self, job: FleetJob, first: bool = False) -> None:
        tenant = self.tenants[job.tenant]
        if not tenant.queue:
            self.ring.append(tenant)
            tenant.credited = False
        tenant.queue.appendleft(job) if first else tenant.queue.append(job)
        self.quantum = max(self.quantum, job.cost * len(job.executors), 1e-9)

    def _leave(self, tenant: _Tenant) -> None:
        self.ring.remove(tenant)
        tenant.deficit, tenant.credited = min(0.0, tenant.deficit), False

    def _rotate(self) -> None:
        self.ring[0].credited = False
        self.ring.rotate(-1)

    def _fits(self, job: FleetJob) -> bool:
        who = job.executors
        room = job.bytes + sum(size for _, size in job.gives)
        return bool(self.alive[who].all() and (self.load[who] < self.depth).all() and (self.held[who] <= self.budget - room).all())

    def _start(self, tenant: _Tenant, job: FleetJob, price: float) -> Dispatch:
        tenant.queue.popleft()
        tenant.deficit -= price
        if not tenant.queue:
            self._leave(tenant)
        job.attempt += 1
        self.load[job.executors] += 1
        self.held[job.executors] += job.bytes
        for node, size in job.gives:
            self.held[job.nodes[node]] += size
        orders, turns = [], []
        for who in job.nodes:
            self.order += 1
            self.turns[who] += 1
            orders.append(self.order)
            turns.append(self.turns[who].copy())
        self.inflight[job.number] = job
        return Dispatch(job, job.attempt, tuple(orders), tuple(turns), tuple(self.generations[who] for who in job.nodes))

    def _unhold(self, job: FleetJob) -> None:
        self.tenants[job.tenant].deficit += job.cost * len(job.executors)
        self.held[job.executors] -= job.bytes
        for node, size in job.gives:
            self.held[job.nodes[node]] -= size
