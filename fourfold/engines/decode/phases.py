"""Which way to generate takes the least energy, reading the prompt and writing the answer told apart, whatever device each runs on.

A call reads a batch of prompts and takes greedy steps. What runs on processors costs its CPU seconds times the watts of a busy core; what runs on a
card costs its counter's joules besides. All ways answer the same prompts in rounds of random order. The way with the least joules of both phases
together at the asked lengths wins; per phase the least is named too, so that a reader sees what another split would gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from fourfold.engines.base import first_line
from fourfold.engines.decode.base import Decoding
from fourfold.errors import Declined, FourfoldError

WATTS = 5.0  #: of one busy core, where the caller knows none; ratios between processors' ways do not depend on it


@runtime_checkable
class Metered(Protocol):
    """A way whose device counts its own joules."""

    def joules(self) -> float | None: ...


@dataclass
class PhaseFigures:
    """Of one way, a number a round: CPU seconds, wall seconds and joules of reading (`prefill`) and writing (`decode`) a batch."""

    name: str
    cpu: dict[str, list[float]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    wall: dict[str, list[float]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    joules: dict[str, list[float]] = field(default_factory=lambda: {"prefill": [], "decode": []})

    def median(self, phase: str) -> float:
        """Joules of a batch in that phase."""
        return float(np.median(self.joules[phase]))

    @property
    def total(self) -> float:
        """Joules of a batch, both phases."""
        return float(np.median(np.add(self.joules["prefill"], self.joules["decode"])))


@dataclass
class PhaseRace:
    """What a race found: every way's figures, the cheapest in all and by phase, and why the others did not run."""

    ways: dict[str, PhaseFigures]
    best: str
    by_phase: dict[str, str]
    declined: dict[str, str]


def raced(openers: Mapping[str, Callable[[], Decoding]], prompts: np.ndarray, new: int, *, rounds: int = 5, watts: float = WATTS, seed: int = 0,
          clock: Callable[[], float] = time.process_time) -> PhaseRace:  # fmt: skip
    """Race ways to generate on `prompts` int64 [B, T], none of them padded, with `new` greedy tokens each.

    An opener that raises is left out, in its own words. `clock`: CPU seconds of this process. Raises Declined where no way is left.
    """
    if new < 2:
        raise ValueError("a race of phases needs two new tokens or more")
    ready: dict[str, Decoding] = {}
    declined: dict[str, str] = {}
    for name, opener in openers.items():
        try:
            ready[name] = opener()
            _call(ready[name], prompts, 2, watts, clock)
        except FourfoldError as error:
            declined[name] = error.message
        except Exception as error:  # noqa: BLE001 # a foreign engine's failure is a reason to do without it
            declined[name] = first_line(error)
        if name in declined and name in ready:
            ready.pop(name).close()
    if not ready:
        raise Declined("no way to generate is left: " + "; ".join(f"{name}: {why}" for name, why in declined.items()))
    found = {name: PhaseFigures(name) for name in ready}
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        for name in rng.permutation(np.array(list(ready), dtype=object)):
            for phase, (cpu, wall, joules) in _call(ready[name], prompts, new, watts, clock).items():
                found[name].cpu[phase].append(cpu)
                found[name].wall[phase].append(wall)
                found[name].joules[phase].append(joules)
    for one in ready.values():
        one.close()
    by_phase = {phase: min(found, key=lambda name, phase=phase: found[name].median(phase)) for phase in ("prefill", "decode")}
    return PhaseRace(found, min(found, key=lambda name: found[name].total), by_phase, declined)


def _call(model: Decoding, prompts: np.ndarray, new: int, watts: float, clock: Callable[[], float]) -> dict[str, tuple[float, float, float]]:
    """Phase → (CPU s, wall s, J) of one batch."""
    marks = [_mark(model, clock)]
    state, logits = model.start({"input_ids": prompts, "attention_mask": np.ones_like(prompts)}, prompts.shape[1] + new)
    marks.append(_mark(model, clock))
    for _ in range(new - 1):
        token = logits.reshape(len(prompts), -1, logits.shape[-1])[:, -1].argmax(-1)[:, None]
        logits = model.step(state, token)
    marks.append(_mark(model, clock))
    found = {}
    for phase, before, after in zip(("prefill", "decode"), marks, marks[1:], strict=False):
        cpu, wall, card = (b - a for a, b in zip(before, after, strict=True))
        found[phase] = cpu, wall, watts * cpu + card
    return found


def _mark(model: Decoding, clock: Callable[[], float]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds, and the joules of the device's own counter. Raises Declined where the device has one that does not answer: what is
    not measured is not raced."""
    card = 0.0
    if isinstance(model, Metered):
        counted = model.joules()
        if counted is None:
            raise Declined("the card's joules cannot be measured (no NVML counter), so it cannot be compared")
        card = counted
    return clock(), time.perf_counter(), card
