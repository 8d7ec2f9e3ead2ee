"""The scheduler among executors that answer late, in any order, and die: a deterministic simulation of every message, with its invariants checked.

Executors are queues; a computation of several executors is a rendezvous: it happens when it stands first in the queue of each. Without the scheduler,
tenants send to the executors themselves, each at its own pace, and computations that cross wait for each other for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fourfold.runtime.fleet.scheduler import Dispatch, FleetJob, IslandScheduler, LogicalArray


@dataclass
class SimulationRecord:
    """What happened: jobs `done`, `failed`, started `again`; `deadlock`: work was left that nothing could move; `broken`: invariants, in words."""

    done: int = 0
    failed: int = 0
    again: int = 0
    deaths: int = 0
    dropped: int = 0                                                    # late messages of earlier generations
    deadlock: bool = False
    broken: list[str] = field(default_factory=list)
    orders: list[list[int]] = field(default_factory=list)               # per executor: places in the island's order, as its last incarnation went


@dataclass(slots=True)
class _Message:
    """One executor's share of one node."""

    job: int
    attempt: int
    node: int
    order: int
    turn: int
    generation: int


class FleetSimulation:
    """An island of `size` executors under random delays and deaths from `seed`."""

    def __init__(self, size: int, *, seed: int, depth: int = 2, budget: int = 1 << 62, death: float = 0.0) -> None:
        self.random, self.death = np.random.default_rng(seed), death
        self.scheduler = IslandScheduler(size, depth=depth, budget=budget)
        self.channels: list[deque[_Message]] = [deque() for _ in range(size)]
        self.queues: list[deque[_Message]] = [deque() for _ in range(size)]
        self.generation, self.turn = [0] * size, [0] * size             # of the executors themselves
        self.buffers: list[set[int]] = [set() for _ in range(size)]
        self.sent: dict[tuple[int, int], Dispatch] = {}
        self.left: dict[tuple[int, int], int] = {}                      # nodes of an attempt that have not run
        self.news: list[tuple[int, int]] = []                           # attempts that ended, not yet told to the scheduler
        self.rising: list[tuple[np.ndarray, int]] = []
        self.owned: list[int] = []
        self.freed: set[int] = set()
        self.record = SimulationRecord(orders=[[] for _ in range(size)])

    def run(self, programs: Sequence[tuple[str, Sequence[np.ndarray], int]], *, keep: bool = True, pure: bool = True) -> SimulationRecord:
        """Submit (tenant, nodes, bytes) at random moments until all have ended. `keep`: each gives an array, held for a while, then freed."""
        waiting = deque(programs)
        while True:
            moves = self._moves(bool(waiting))
            if not moves:
                self.record.deadlock = bool(self.scheduler.inflight or self.scheduler.waiting)
                break
            kind, which = moves[int(self.random.integers(len(moves)))]
            if kind == "submit":
                tenant, nodes, size = waiting.popleft()
                gives = [(len(nodes) - 1, size)] if keep else []
                needs = [n for n in self.owned if not self.scheduler.arrays[n].lost][:1] if self.random.random() < 0.3 else []
                self.scheduler.submit(tenant, nodes, bytes=size, cost=float(self.random.integers(1, 5)), gives=gives, pure=pure, needs=needs)
            elif kind == "deliver":
                self._deliver(which)
            elif kind == "run":
                self._run(which)
            elif kind == "tell":
                self._tell(which)
            elif kind == "free":
                self._free(self.owned.pop(which))
            elif kind == "up":
                self._up(which)
            if self.death and self.random.random() < self.death:
                self._die(int(self.random.integers(self.scheduler.size)))
            self._pump()
        self._check()
        return self.record

    def _moves(self, waiting: bool) -> list[tuple[str, int]]:
        moves = [("submit", 0)] if waiting else []
        moves += [("deliver", e) for e, channel in enumerate(self.channels) if channel]
        moves += [("run", e) for e in range(len(self.queues)) if self._ready(e)]
        moves += [("tell", k) for k in range(len(self.news))] + [("up", k) for k in range(len(self.rising))]
        return moves + [("free", k) for k in range(len(self.owned))][: 2 if not waiting and not moves else 1]

    def _pump(self) -> None:
        while (found := self.scheduler.next()) is not None:
            self.sent[found.job.number, found.attempt] = found
            self.left[found.job.number, found.attempt] = len(found.job.nodes)
            for node, who in enumerate(found.job.nodes):
                for k, e in enumerate(who.tolist()):
                    self.channels[e].append(_Message(found.job.number, found.attempt, node, found.orders[node], int(found.turns[node][k]),
                                                     int(found.generations[node][k])))

    def _deliver(self, e: int) -> None:
        message = self.channels[e].popleft()
        if message.generation != self.generation[e]:
            self.record.dropped += 1                                    # of an incarnation that is gone
        elif message.turn != self.turn[e] + 1:
            self.record.broken.append(f"executor {e} was sent turn {message.turn} after {self.turn[e]}")
        else:
            self.turn[e] += 1
            self.queues[e].append(message)

    def _ready(self, e: int) -> bool:
        if not self.queues[e]:
            return False
        head = self.queues[e][0]
        who = self.sent[head.job, head.attempt].job.nodes[head.node]
        return all(self.queues[f] and self.queues[f][0].order == head.order for f in who.tolist())

    def _run(self, e: int) -> None:
        head = self.queues[e][0]
        found = self.sent[head.job, head.attempt]
        who = found.job.nodes[head.node]
        for k, f in enumerate(who.tolist()):
            self.queues[f].popleft()
            self.record.orders[f].append(head.order)
            if self.generation[f] != int(found.generations[head.node][k]):
                self.record.broken.append(f"two generations met in job {head.job} on executor {f}")
        self.left[head.job, head.attempt] -= 1
        if not self.left[head.job, head.attempt]:
            self.news.append((head.job, head.attempt))

    def _tell(self, which: int) -> None:
        number, attempt = self.news.pop(which)
        job = self.scheduler.finished(number, attempt, float(self.random.random() * 4))
        if job is None:
            self.record.dropped += 1
            return
        self.record.done += 1
        for handle, (node, _) in zip(job.handles, job.gives, strict=True):
            for e in job.nodes[node].tolist():
                self.buffers[e].add(handle)
            self.owned.append(handle)
        self._drop(self.scheduler.settle(job))

    def _free(self, handle: int) -> None:
        if handle in self.freed:
            self.record.broken.append(f"array {handle} was freed twice")
        self.freed.add(handle)
        found = self.scheduler.free(handle)
        self._drop([found] if found else [])

    def _drop(self, arrays: Sequence[LogicalArray]) -> None:
        for array in arrays:
            for e in array.executors.tolist():
                if array.number not in self.buffers[e]:
                    self.record.broken.append(f"array {array.number} was dropped on executor {e}, which does not hold it")
                self.buffers[e].discard(array.number)

    def _die(self, e: int) -> None:
        if not self.scheduler.alive[e]:
            return
        self.record.deaths += 1
        before = {number: job for number, job in self.scheduler.inflight.items()}
        restart = self.scheduler.died([e])
        for f in restart.executors.tolist():
            self.queues[f].clear()
            self.buffers[f].clear()
            self.generation[f], self.turn[f] = -1, 0                    # ended: takes nothing until it stands again
            self.record.orders[f].clear()
        for f in range(self.scheduler.size):
            self.buffers[f] -= set(restart.lost)
        self.record.again += len(restart.again)
        for job in restart.failed:
            self._failed(job)
        self.rising.append((restart.executors, restart.generation))
        for job in before.values():                                     # no survivor waits for a dead one
            if job.number in self.scheduler.inflight and np.isin(job.executors, restart.executors).any():
                self.record.broken.append(f"job {job.number} was left with a part of its slice")

    def _failed(self, job: FleetJob) -> None:
        self.record.failed += 1
        self._drop(self.scheduler.settle(job))

    def _up(self, which: int) -> None:
        who, generation = self.rising.pop(which)
        now = who[self.scheduler.generations[who] == generation]        # the others were asked for again since
        if len(now) and self.scheduler.up(now, generation):
            for e in now.tolist():
                self.generation[e] = generation

    def _check(self) -> None:
        scheduler, record = self.scheduler, self.record
        if record.deadlock:
            return
        for e, orders in enumerate(record.orders):
            if orders != sorted(set(orders)):
                record.broken.append(f"executor {e} did not follow the island's order")
        if scheduler.arrays or scheduler.held.any() or scheduler.load.any():
            record.broken.append(f"{len(scheduler.arrays)} arrays, {int(scheduler.held.sum())} bytes or {int(scheduler.load.sum())} places leaked")
        if any(self.buffers):
            record.broken.append("executors hold arrays that were freed")


def unscheduled(size: int, programs: Sequence[tuple[str, Sequence[np.ndarray], int]], seed: int) -> bool:
    """Whether the same programs deadlock where each tenant sends to the executors itself: in its own order, at its own pace to each of them."""
    random = np.random.default_rng(seed)
    channels: dict[tuple[str, int], deque[tuple[int, int]]] = {}
    meet: dict[tuple[int, int], list[int]] = {}
    for number, (tenant, nodes, _) in enumerate(programs):
        for node, who in enumerate(nodes):
            meet[number, node] = who.tolist()
            for e in who.tolist():
                channels.setdefault((tenant, e), deque()).append((number, node))
    queues: list[deque[tuple[int, int]]] = [deque() for _ in range(size)]
    while True:
        moves: list[tuple[str, int] | None] = [key for key, channel in channels.items() if channel]
        ready = [q[0] for q in queues if q and all(queues[f] and queues[f][0] == q[0] for f in meet[q[0]])]
        if ready:
            moves.append(None)
        if not moves:
            return any(queues)
        move = moves[int(random.integers(len(moves)))]
        if move is None:
            for f in meet[ready[0]]:
                queues[f].popleft()
        else:
            queues[move[1]].append(channels[move].popleft())


def crossing(size: int, count: int, seed: int, tenants: int = 2) -> list[tuple[str, list[np.ndarray], int]]:
    """`count` random programs of one to three computations, on slices of at least two executors that cross those of the other tenants."""
    random = np.random.default_rng(seed)
    programs = []
    for _ in range(count):
        nodes = [np.sort(random.choice(size, int(random.integers(min(2, size), size + 1)), replace=False)) for _ in range(int(random.integers(1, 4)))]
        programs.append((f"tenant{int(random.integers(tenants))}", nodes, int(random.integers(0, 8))))
    return programs


def scaled(executors: int, tenants: int, programs: int, slices: int, deaths: float, seed: int) -> dict[str, object]:
    """`programs` of `tenants` on contiguous and strided slices of at most `slices` of `executors`, under random delays, and deaths at that chance.

    The same programs without the scheduler are run beside it: whether they deadlock.
    """
    import time

    random = np.random.default_rng(seed)
    made = []
    for _ in range(programs):
        nodes = []
        for _ in range(int(random.integers(1, 4))):
            size, stride = int(random.integers(2, min(slices, executors) + 1)), int(random.integers(1, 4))
            nodes.append(np.unique((int(random.integers(executors)) + stride * np.arange(size)) % executors))
        made.append((f"tenant{int(random.integers(tenants))}", nodes, int(random.integers(0, 8))))
    began = time.process_time()
    fleet = FleetSimulation(executors, seed=seed, death=deaths)
    for number in range(tenants):
        fleet.scheduler.tenant(f"tenant{number}", 1.0 + number % 5)
    record = fleet.run(made)
    return {"executors": executors, "tenants": tenants, "programs": programs, "done": record.done, "failed": record.failed, "deaths": record.deaths,
            "restarts": record.again, "late": record.dropped, "deadlocks": int(record.deadlock), "broken": record.broken,
            "cpu_s": time.process_time() - began, "unscheduled": "deadlock" if unscheduled(executors, made, seed) else "none"}
