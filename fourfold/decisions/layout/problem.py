"""A layout for each phase of serving (Pope et al. 2022, arXiv:2211.05102): which of the weights, activations and cache stands on which chip, and what
is gathered when.

The answer is a `ServingLayout` a phase, in order. Prefill and decode may differ: weight-gathered layouts store the weights as the weight-stationary
ones do, so changing between phases moves nothing. The cost is the time of all phases together, by `fourfold/cost/serving.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fourfold.cost.serving import ServingChips, ServingCost, ServingLayout, ServingPhase, least_seconds, resident_bytes, serving_cost
from fourfold.problem import Problem
from fourfold.zoo.decoders import DecoderDims

Layouts = tuple[ServingLayout, ...]


@dataclass(frozen=True)
class ServingLayoutProblem(Problem[Layouts]):
    """Layouts of `dims` on `chips` for `phases`."""

    question: ClassVar[str] = "layout"
    lever: ClassVar[str] = "machine"

    dims: DecoderDims
    chips: ServingChips
    phases: tuple[ServingPhase, ...]
    unit: str = "s"

    def baseline(self) -> Layouts:
        """1-D weight-stationary with attention split by head, as tensor parallelism is commonly done."""
        return (ServingLayout("ws-1d"),) * len(self.phases)

    def violations(self, answer: Layouts) -> list[str]:
        if len(answer) != len(self.phases):
            return [f"{len(answer)} layouts for {len(self.phases)} phases"]
        return [f"{phase.kind}, {layout.title(self.chips) if set(layout.x) <= set(self.chips.names) else layout.scheme}: {fault}"
                for phase, layout in zip(self.phases, answer, strict=True) for fault in faults(self.dims, self.chips, phase, layout)]

    def parts(self, answer: Layouts) -> list[ServingCost]:
        """The cost of each phase."""
        return [serving_cost(self.dims, phase, self.chips, layout) for phase, layout in zip(self.phases, answer, strict=True)]

    def cost(self, answer: Layouts) -> float:
        return sum(part.seconds for part in self.parts(answer))

    def bound(self) -> float:
        return sum(least_seconds(self.dims, phase, self.chips) for phase in self.phases)

    @classmethod
    def sample(cls, seed: int) -> ServingLayoutProblem:
        """A small random decoder on 4 to 64 chips, with at least one layout that fits."""
        rng = np.random.default_rng(seed)
        shape = [(2, 2), (4,), (2, 4), (2, 2, 2), (4, 4), (4, 4, 4)][int(rng.integers(6))]
        chips = ServingChips("sample", ("x", "y", "z")[: len(shape)], shape, 275e12, 1.2e12, 32e9, 270e9, 2e-6, 5e-6)
        head, width = 128, 1024 * int(rng.integers(1, 9))
        heads = 64
        dims = DecoderDims("sample", int(rng.integers(2, 9)), width, 4 * width, heads, (1, 8, heads)[int(rng.integers(3))], head, 32_000,
                           bool(rng.integers(2)), bool(rng.integers(2)))
        batch = int(rng.choice([1, 4, 64, 256]))
        phases = (ServingPhase("prefill", batch, int(rng.choice([128, 1024]))), ServingPhase("decode", batch, 64, 512))
        return cls(dims, chips, phases)


def faults(dims: DecoderDims, chips: ServingChips, phase: ServingPhase, layout: ServingLayout) -> list[str]:
    """Every rule that a layout breaks in a phase, a sentence each."""
    found: list[str] = []
    if unknown := [axis for axis in layout.x if axis not in chips.names]:
        return [f"the mesh {'x'.join(map(str, chips.shape))} has no axis {', '.join(unknown)}"]
    if len(set(layout.x)) != len(layout.x):
        return ["an axis is named twice"]
    across = chips.over(layout.x) if layout.scheme == "ws-2d" else 1   # what splits the width
    batch = chips.over(layout.x) if layout.scheme == "wg" else 1       # what splits the sequences
    along = chips.size // across // batch                              # what splits the hidden dimension
    if layout.scheme == "ws-2d" and 1 in (across, along):
        found.append(f"two dimensions need two axes of more than one chip, and {'x'.join(map(str, chips.shape))} leaves one side with 1")
    if layout.scheme == "wg" and batch == 1:
        found.append("there is nothing to gather over one chip")
    for name, size, parts in (("width", dims.width, across * along), ("feed-forward width", dims.feed_forward, across * along),
                              ("query width", dims.stored_heads * dims.head_dim, across * along)):
        if size % parts:
            found.append(f"the {name} {size} does not divide over {parts} chips (remainder {size % parts})")
    if phase.batch % batch:
        found.append(f"{phase.batch} sequences do not divide over the {batch} chips whose weights are gathered")
    sharing = chips.size // batch
    if layout.attention == "head" and dims.stored_heads % sharing:
        padded = -(-dims.stored_heads // sharing) * sharing
        found.append(f"{dims.stored_heads} heads do not divide over {sharing} chips; padded to {padded} they would")
    if layout.attention == "batch" and phase.batch % chips.size:
        found.append(f"attention by batch: {phase.batch} sequences do not divide over {chips.size} chips")
    held = resident_bytes(dims, phase, chips, layout)
    if (over := sum(held.values()) - chips.memory) > 0:
        most = max(held, key=lambda name: held[name])
        found.append(f"a chip would hold {_gib(sum(held.values()))} of {_gib(chips.memory)}, {_gib(over)} too much; the {most} alone take "
                     f"{_gib(held[most])}")
    return found


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
