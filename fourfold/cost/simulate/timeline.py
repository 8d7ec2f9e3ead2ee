"""What a simulated run tells: when each task ran, what was sent, and how full each device was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Transfers:
    """X transfers in the order in which they were asked for: value, source and target device i4[X]; asked, start, finish s f8[X]."""

    value: NDArray[np.int32]
    source: NDArray[np.int32]
    target: NDArray[np.int32]
    asked: NDArray[np.float64]
    start: NDArray[np.float64]
    finish: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Timeline:
    """What happens: `start`, `finish`, `ready` s f8[T]; `makespan` s; `busy` s f8[D]; `link_busy` s f8[L] (both lanes together); `peak_bytes` i8[D]
    and when; `joules`; `transfers`; `events` handled; `memory` (if asked for): per device the times f8[·] at which its bytes change, and bytes i8[·].
    """

    start: NDArray[np.float64]
    finish: NDArray[np.float64]
    ready: NDArray[np.float64]
    makespan: float
    busy: NDArray[np.float64]
    link_busy: NDArray[np.float64]
    peak_bytes: NDArray[np.int64]
    peak_at: NDArray[np.float64]
    over_at: NDArray[np.float64]
    joules: float
    transfers: Transfers
    events: int
    limits: tuple[tuple[str, float], ...] = ()
    unsupported: tuple[str, ...] = ()
    memory: tuple[tuple[NDArray[np.float64], NDArray[np.int64]], ...] = ()

    def violations(self) -> list[str]:
        """A sentence for every device that holds more than it may (by how many bytes, from when, worst when) and every task it cannot run."""
        told = [f"{name} holds {peak:,} bytes, {peak - int(limit):,} more than its {int(limit):,}: from {over:.6g} s on, most at {at:.6g} s."
                for (name, limit), peak, over, at in zip(self.limits, *(part.tolist() for part in (self.peak_bytes, self.over_at, self.peak_at)),
                                                         strict=True) if peak > limit]
        return [*self.unsupported, *told]

    def to_json(self) -> dict[str, object]:
        return {"makespan": self.makespan, "joules": self.joules, "busy": self.busy.tolist(), "link_busy": self.link_busy.tolist(),
                "peak_bytes": self.peak_bytes.tolist(), "transfers": len(self.transfers), "events": self.events,
                "start": self.start.tolist(), "finish": self.finish.tolist(), "violations": self.violations()}


def chain_of(timeline: Timeline, place: ArrayLike) -> Mapping[int, list[int]]:
    """Device → its tasks in the order in which they ran."""
    where = np.asarray(place)
    return {int(d): [int(t) for t in np.flatnonzero(where == d)[np.argsort(timeline.start[where == d], kind="stable")]] for d in np.unique(where)}
