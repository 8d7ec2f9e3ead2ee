"""Pipeline schedules played through: GPipe, 1F1B and interleaved 1F1B, with the microbatches that each device keeps.

A device runs its own list of passes in order; a forward pass waits for the stage before, a backward pass for the stage after. Sources: GPipe (Huang
et al., NeurIPS 2019); 1F1B (Narayanan et al., PipeDream, SOSP 2019); interleaved (Narayanan et al., Megatron-LM, SC 2021, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError

SCHEDULES = ("gpipe", "1f1b", "interleaved")
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Pass:
    """One pass of one microbatch through one stage: on `device`, from `start` to `end` (s)."""

    device: int
    stage: int
    microbatch: int
    backward: bool
    start: float
    end: float


@dataclass(frozen=True)
class PipelineTimeline:
    """All passes in order of their start; `seconds` of the whole step, `busy` f8[D] share of it that each device computes, `kept` i8[D] the most
    microbatches (of a chunk of layers each) that a device keeps at once, `bytes` f8[D] the most bytes of activations."""

    passes: tuple[Pass, ...]
    seconds: float
    busy: F64
    kept: NDArray[np.int64]
    bytes: F64

    @property
    def bubble(self) -> float:
        """Share of all device time in which nothing is computed."""
        return float(1 - self.busy.mean())


def play(forward: Sequence[float], backward: Sequence[float], microbatches: int, schedule: str = "1f1b", *, chunks: int = 1,
         active: Sequence[float] = (), send: Sequence[float] = ()) -> PipelineTimeline:
    """Play a step: `forward` and `backward` f8[S·chunks] seconds of a microbatch in each stage, in order along the model. Stage v runs on device
    v mod S, with S = stages / `chunks`; `chunks` above 1 needs "interleaved". `active`: bytes that a microbatch keeps in each stage; `send`: seconds
    to carry a microbatch's activations from each stage to the next (and gradients back), [S·chunks − 1].

    Raises InputError where the schedule is not known, sizes differ, or interleaving has microbatches that are no multiple of the devices.
    """
    count = len(forward)
    if schedule not in SCHEDULES:
        raise InputError(f"There is no pipeline schedule {schedule!r}.", f"Known: {', '.join(SCHEDULES)}.")
    if len(backward) != count or not count or microbatches < 1 or count % chunks or (chunks > 1 and schedule != "interleaved"):
        raise InputError(f"{count} forward and {len(backward)} backward times in {chunks} chunks with {microbatches} microbatches are no pipeline of "
                         f"{schedule}.", "Give one time each for every stage, a number of stages that the chunks divide, and a microbatch.")
    devices = count // chunks
    if schedule == "interleaved" and chunks > 1 and microbatches % devices:
        raise InputError(f"Interleaving takes microbatches in groups of {devices} devices, got {microbatches}.",
                         f"Ask for a multiple of {devices} microbatches.")
    orders = [_order(schedule, device, devices, chunks, microbatches) for device in range(devices)]
    return _played(orders, np.asarray(forward, float), np.asarray(backward, float), microbatches, np.asarray(active or np.zeros(count), float),
                   np.asarray(send or np.zeros(max(0, count - 1)), float))


def _order(schedule: str, device: int, devices: int, chunks: int, microbatches: int) -> list[tuple[int, int, bool]]:
    """(stage, microbatch, backward) in the order in which a device runs them."""
    if schedule == "gpipe":
        return [(device, m, False) for m in range(microbatches)] + [(device, m, True) for m in reversed(range(microbatches))]
    if chunks == 1:
        warm = min(devices - device - 1, microbatches)
    else:
        warm = min((devices - device - 1) * 2 + (chunks - 1) * devices, microbatches * chunks)
    total = microbatches * chunks

    def at(number: int, back: bool) -> tuple[int, int, bool]:
        group, within = divmod(number, devices * chunks)
        chunk = within // devices
        chunk = chunks - 1 - chunk if back else chunk
        microbatch = group * devices + within % devices if chunks > 1 else number
        return device + chunk * devices, microbatch, back

    order = [at(n, False) for n in range(warm)]
    for n in range(total - warm):
        order += [at(warm + n, False), at(n, True)]
    return order + [at(n, True) for n in range(total - warm, total)]


def _played(orders: list[list[tuple[int, int, bool]]], forward: F64, backward: F64, microbatches: int, active: F64, send: F64) -> PipelineTimeline:
    count, devices = len(forward), len(orders)
    ends = np.full((2, count, microbatches), np.nan)
    at, free = [0] * devices, [0.0] * devices
    passes: list[Pass] = []
    waiting = list(range(devices))
    while waiting:
        moved = False
        for device in list(waiting):
            while at[device] < len(orders[device]):
                stage, m, back = orders[device][at[device]]
                if back:
                    ready = ends[1, stage + 1, m] + send[stage] if stage + 1 < count else ends[0, stage, m]
                else:
                    ready = ends[0, stage - 1, m] + send[stage - 1] if stage else 0.0
                if np.isnan(ready):
                    break
                start = max(float(ready), free[device])
                free[device] = end = start + float((backward if back else forward)[stage])
                ends[int(back), stage, m] = end
                passes.append(Pass(device, stage, m, back, start, end))
                at[device], moved = at[device] + 1, True
            if at[device] == len(orders[device]):
                waiting.remove(device)
        if waiting and not moved:
            raise InputError("The stages wait for each other for ever.", "This order of passes is no schedule.")
    whole = max(free)
    busy, kept, held = np.zeros(devices), np.zeros(devices, np.int64), np.zeros(devices)
    now, bytes_ = np.zeros(devices, np.int64), np.zeros(devices)
    for one in sorted(passes, key=lambda p: (p.end if p.backward else p.start, not p.backward)):
        d, sign = one.device, -1 if one.backward else 1
        now[d], bytes_[d] = now[d] + sign, bytes_[d] + sign * active[one.stage]
        kept[d], held[d] = max(kept[d], now[d]), max(held[d], bytes_[d])
        busy[d] += one.end - one.start
    return PipelineTimeline(tuple(sorted(passes, key=lambda p: (p.start, p.device))), whole, busy / whole if whole else busy, kept, held)
