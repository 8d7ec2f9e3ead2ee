"""Virtual slices onto devices: a slice is given whole or not at all, may be taken back for a more urgent one, and moves when a device is lost.

For gangs that keep their executors for long (training scripts, searches), beside the scheduler, which orders what is short. A state machine too.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from fourfold.errors import InputError


@dataclass(slots=True, eq=False)
class SliceRequest:
    """`shape` of the virtual mesh; `least`: devices along its first axis with which it would go on (elastic); a larger `priority` goes first.

    devices   physical devices while it holds them, in row-major order of the mesh; () while it waits
    """

    number: int
    tenant: str
    shape: tuple[int, ...]
    least: int
    priority: int = 0
    devices: tuple[int, ...] = ()
    generation: int = 0

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class AdmissionChange:
    """What to do: slices to start on their devices, slices to end (they wait again, or are over)."""

    start: tuple[SliceRequest, ...] = ()
    end: tuple[SliceRequest, ...] = ()


@dataclass
class Admission:
    """`devices` of one mesh. Tenants are served by what they hold relative to their weights, then in order of arrival."""

    devices: int
    weights: dict[str, float] = field(default_factory=dict)
    waiting: list[SliceRequest] = field(default_factory=list)
    running: dict[int, SliceRequest] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    draining: bool = False
    _count: int = 0

    def request(self, tenant: str, shape: Sequence[int], *, priority: int = 0, least: int | None = None) -> SliceRequest:
        """Ask for a slice. Raises InputError for one that is larger than the mesh, or while the fleet drains."""
        size = prod(shape)
        there = self.devices - len(self.gone)
        if self.draining:
            raise InputError("The fleet drains: it takes no new work.", "Submit to another, or wait until this one has been started anew.")
        if min((*shape, 1)) < 1 or size > there:
            raise InputError(f"A slice of {size} devices on a fleet of {there}.",
                             f"Ask for 1 to {there} devices, or have a larger fleet.")
        least = shape[0] if least is None else least
        if not 1 <= least <= shape[0]:
            raise InputError(f"A slice of {shape[0]} ranks that would go on with {least}.", f"Give 1 to {shape[0]}.")
        self._count += 1
        found = SliceRequest(self._count, tenant, tuple(shape), least, priority)
        self.waiting.append(found)
        return found

    @property
    def free(self) -> list[int]:
        held = {device for one in self.running.values() for device in one.devices}
        return [device for device in range(self.devices) if device not in held and device not in self.gone]

    def decide(self) -> AdmissionChange:
        """Start what is first in line, for as long as whole slices are free; where it is more urgent than what runs, take those back."""
        start, end = list[SliceRequest](), list[SliceRequest]()
        while self.waiting:
            first = min(self.waiting, key=lambda one: (-one.priority, self._share(one.tenant), one.number))
            free = self.free
            if first.size > len(free):
                victims, room = list[SliceRequest](), len(free)
                lower = [(one.priority, -one.number, one.number) for one in self.running.values() if one.priority < first.priority]
                heapq.heapify(lower)
                while room < first.size and lower:
                    victims.append(self.running[heapq.heappop(lower)[2]])
                    room += victims[-1].size
                if room < first.size:
                    break                                               # it waits, and nobody behind it takes what it needs
                for one in victims:
                    self._stop(one)
                    if one in start:
                        start.remove(one)
                    else:
                        end.append(one)
                    self.waiting.append(one)
                free = self.free
            self.waiting.remove(first)
            first.devices, first.generation = tuple(free[: first.size]), first.generation + 1
            self.running[first.number] = first
            start.append(first)
        return AdmissionChange(tuple(start), tuple(end))

    def done(self, number: int) -> None:
        """A slice is given back; one that waits is no longer wanted."""
        if number in self.running:
            self._stop(self.running[number])
        self.waiting = [one for one in self.waiting if one.number != number]

    def lost(self, devices: Sequence[int]) -> AdmissionChange:
        """Devices are gone for good: slices on them end, and come back first in line, on fewer devices where the mesh is now too small for all."""
        self.gone |= set(devices)
        hit = [one for one in self.running.values() if self.gone & set(one.devices)]
        there = self.devices - len(self.gone)
        for one in hit:
            self._stop(one)
        for one in [*hit, *self.waiting]:
            rest = one.size // one.shape[0]
            while one.size > there and one.shape[0] > one.least:
                one.shape = (one.shape[0] - 1, *one.shape[1:])
            if rest and one.size > there:
                one.shape = (0, *one.shape[1:])                         # can never run again
        over = [one for one in (*hit, *self.waiting) if not one.shape[0]]
        self.waiting = [one for one in (*hit, *self.waiting) if one.shape[0]]
        return AdmissionChange((), tuple({one.number: one for one in (*hit, *over)}.values()))

    def regained(self, devices: Sequence[int]) -> None:
        self.gone -= set(devices)

    def _stop(self, one: SliceRequest) -> None:
        del self.running[one.number]
        one.devices = ()

    def _share(self, tenant: str) -> float:
        held = sum(one.size for one in self.running.values() if one.tenant == tenant)
        return held / self.weights.get(tenant, 1.0)
