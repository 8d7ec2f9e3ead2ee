"""Which policy a cache should keep its objects by: a trace replayed under each, at each size; the library call behind `fourfold cache simulate`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from fourfold import registry
from fourfold.datasets import traces
from fourfold.decisions.cache.bound import least_missed
from fourfold.decisions.cache.instance import Evictions, RequestTrace
from fourfold.decisions.cache.problem import Cache
from fourfold.decisions.cache.validate import misses
from fourfold.errors import InputError
from fourfold.problem import Budget, Solver
from fourfold.units.parse import memory

SIZES = ("0.1%", "1%", "10%")
_AGAINST = "lru"                                                        # what others are measured by


class Staged(Protocol):
    """What shows how far it is."""

    def stage(self, name: str, total: int = 0) -> None: ...

    def advance(self) -> None: ...


class _Live(Protocol):
    def online(self, capacity: int, seed: int = 0) -> object: ...


@dataclass(frozen=True)
class PolicyRow:
    """One policy at one size. `objects_missed`, `bytes_missed`: of all; `against`: bytes missed over LRU's, less 1 (None where LRU missed none);
    `rate`: requests per CPU second of the replay, compiled before, this process alone."""

    size: str
    capacity: int
    policy: str
    objects_missed: float
    bytes_missed: float
    against: float | None
    rate: float

    def to_json(self) -> dict[str, object]:
        return {"size": self.size, "capacity_bytes": self.capacity, "policy": self.policy, "object_miss": self.objects_missed,
                "byte_miss": self.bytes_missed, "against_lru": self.against, "requests_per_cpu_s": self.rate}


@dataclass(frozen=True)
class CacheSimulation:
    """A trace under policies: rows by size, the fewest missed bytes first; `least`: share of bytes that every policy misses, by size."""

    trace: str
    format: str
    requests: int
    objects: int
    bytes: int
    footprint: int
    seed: int
    rows: tuple[PolicyRow, ...]
    least: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        told = []
        for size, least in self.least.items():
            best = next(row for row in self.rows if row.size == size)
            gain = ""
            if best.against is not None and best.policy != _AGAINST:
                gain = f", {abs(best.against):.1%} {'less' if best.against <= 0 else 'more'} than lru"
            told.append(f"At {size} ({best.capacity:,} B) {best.policy} misses fewest bytes: {best.bytes_missed:.1%}{gain}; no policy can miss under "
                        f"{least:.1%}.")
        return tuple(told)

    def to_json(self) -> dict[str, object]:
        return {"trace": self.trace, "format": self.format, "requests": self.requests, "objects": self.objects, "bytes": self.bytes,
                "footprint_bytes": self.footprint, "seed": self.seed, "rows": [row.to_json() for row in self.rows], "least_byte_miss": self.least,
                "sentences": list(self.sentences), "notes": list(self.notes)}


def simulate(trace: str | Path | RequestTrace, *, sizes: Sequence[str] = SIZES, policies: Sequence[str] = (), format: str | None = None,
             seed: int = 0, progress: Staged | None = None) -> CacheSimulation:
    """Replay a trace (a file, or requests) under each policy in a cache of each size: "64MiB", bytes, or a share of all objects' bytes ("10%").

    Policies are techniques of the question `cache`; none named: all that a live cache can use. Every answer is priced by the validator. Raises
    InputError for a trace, size or policy that cannot be used.
    """
    asked = [registry.resolve(name, "cache") for name in policies]
    notes: tuple[str, ...] = ()
    kind = "requests"
    if not isinstance(trace, RequestTrace):
        found = traces.read(trace, format)
        kind, notes = found.format, found.notes
        trace = RequestTrace.of(found.keys, found.sizes, Path(trace).name)
    room = {size: _capacity(size, trace) for size in sizes}
    if not room:
        raise InputError("No size of the cache was given.", "Give --sizes 1%,10% or 64MiB.")
    chosen = list(dict.fromkeys(asked)) or [id for id in registry.techniques("cache") if _lives(id)]
    every = list(dict.fromkeys([registry.resolve(_AGAINST, "cache"), *chosen]))
    if progress is not None:
        progress.stage("replaying the trace", len(every) * len(room))
    short = RequestTrace.of(trace.ids[:64], trace.sizes[:64])
    for id in every:                                                    # compiled before any clock runs
        _solved(id, Cache(short, max(1, short.footprint // 2)), seed)
    rows: list[PolicyRow] = []
    for size, capacity in room.items():
        rows += _at(size, Cache(trace, capacity), every, chosen, seed, progress)
    least = {size: least_missed(trace, capacity) / trace.bytes for size, capacity in room.items()}
    return CacheSimulation(trace.name, kind, len(trace), trace.objects, trace.bytes, trace.footprint, seed, tuple(rows), least, notes)


def _at(size: str, problem: Cache, every: Sequence[str], chosen: Sequence[str], seed: int, progress: Staged | None) -> list[PolicyRow]:
    """Rows of one size, the fewest missed bytes first."""
    trace, found = problem.trace, []
    for id in every:
        begin = time.process_time()
        answer = _solved(id, problem, seed)
        took = max(time.process_time() - begin, 1e-6)
        missed, broken = misses(trace, problem.capacity, answer)
        if broken:
            raise InputError(f"{id} gave an answer that cannot be: {broken}.", "Leave the policy out, and report this.")
        found.append((id, float(missed.mean()), float(trace.sizes[missed].sum()), len(trace) / took))
        if progress is not None:
            progress.advance()
    lru = found[0][2]
    rows = [PolicyRow(size, problem.capacity, id.split("/")[1], objects, lost / trace.bytes, lost / lru - 1 if lru else None, rate)
            for id, objects, lost, rate in found if id in chosen]
    return sorted(rows, key=lambda row: (row.bytes_missed, row.policy))


def _solved(id: str, problem: Cache, seed: int) -> Evictions:
    solver = cast(Solver, registry.technique(id)())
    return cast(Evictions, solver.solve(problem, Budget(evaluations=max(1, len(problem.trace)), seconds=1e9), seed).answer)


def _lives(id: str) -> bool:
    """Whether a cache can use it that does not know the requests to come."""
    try:
        cast(_Live, registry.technique(id)()).online(1)
    except InputError:
        return False
    return True


def _capacity(size: str, trace: RequestTrace) -> int:
    """Bytes that "10%", "64MiB" or "4096" mean."""
    text = size.strip()
    if not text.endswith("%"):
        return memory(text, f"--sizes {size}")
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(f"--sizes {size!r} is no share of the objects' bytes.", "Give above 0% to 100%, or bytes such as 64MiB.")
    return max(1, round(trace.footprint * share))
