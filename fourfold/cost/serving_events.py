"""A decoder's layers on one chip of a grid, event by event: the check on `serving.py`, written apart from it.

Nothing here is a formula of a layout. A layer is a list of tensors with the axes that each dimension is split over; what a chip computes, reads and
sends follows from local shapes. Three resources run: the matrix unit, the memory and the links. Kernels run one after another, a kernel streams its
operands while it computes, collectives run ring step by ring step and hold the kernels up; a gather of weights goes on behind kernels, matrix by
matrix, and yields the links to every collective of activations. All chips do the same, so one is played.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourfold.cost.serving import ServingChips, ServingLayout, ServingPhase
    from fourfold.zoo.decoders import DecoderDims

_ELEMENT = 2                                                            # B of activations and cache


@dataclass(frozen=True)
class ServingEvent:
    """One thing that happened on the played chip: `what` of layer `layer`, from `start` to `end` (s), on `unit` (kernel, links)."""

    layer: int
    what: str
    unit: str
    start: float
    end: float


@dataclass(frozen=True)
class _Shards:
    """Sizes of a tensor's dimensions, and the axes that each is split over."""

    sizes: tuple[float, ...]
    split: tuple[tuple[str, ...], ...]

    def elements(self, chips: ServingChips) -> float:
        """Elements on one chip."""
        return math.prod(size / chips.over(axes) for size, axes in zip(self.sizes, self.split, strict=True))

    def along(self, position: int, *axes: str) -> _Shards:
        """The same tensor with one dimension split over other axes."""
        return _Shards(self.sizes, (*self.split[:position], axes, *self.split[position + 1:]))


@dataclass
class _Chip:
    """The clock of the played chip, and the gather that runs behind its kernels. `waiting`: matrices on their way in order, (name, seconds left)."""

    chips: ServingChips
    now: float = 0.0
    waiting: list[tuple[str, float]] = field(default_factory=list)
    events: list[ServingEvent] = field(default_factory=list)
    layer: int = 0
    sent: float = 0.0

    def kernel(self, what: str, flops: float = 0.0, read: float = 0.0, launch: bool = True) -> None:
        """Compute `flops` while streaming `read` bytes."""
        c = self.chips
        work, stream = flops / (c.peak * c.compute), read / (c.bandwidth * c.memory_share)
        self._pass(what, "kernel", max(work, stream) + (c.launch if launch else 0.0), behind=True)

    def ring(self, what: str, axes: tuple[str, ...], small: float, item: float = _ELEMENT) -> None:
        """All-gather of `small` local elements (or the reduce-scatter that leaves them): along one axis after another, k − 1 steps each."""
        held = small * item
        for axis in reversed(axes):
            k = self.chips.over((axis,))
            for _ in range(k - 1):
                self._pass(what, "links", self._wire(held), behind=False)
                self.sent += held
            held *= k

    def exchange(self, what: str, axes: tuple[str, ...], held: float) -> None:
        """All-to-all of `held` local elements: every chip keeps its own part and sends the others, a ring step at a time."""
        k, steps = self.chips.over(axes), self.chips.ring_steps(axes)
        for _ in range(steps if k > 1 else 0):
            part = held * _ELEMENT * (k - 1) / k / steps
            self._pass(what, "links", self._wire(part), behind=False)
            self.sent += part

    def fetch(self, what: str, axes: tuple[str, ...], small: float, item: float) -> None:
        """Start gathering a matrix behind what runs."""
        held, seconds = small * item, 0.0
        for axis in reversed(axes):
            k = self.chips.over((axis,))
            seconds += (k - 1) * self._wire(held)
            self.sent += (k - 1) * held
            held *= k
        self.waiting.append((what, seconds))

    def need(self, *names: str) -> None:
        """Wait until those matrices have arrived; what stands before them in the queue arrives first."""
        while any(name in names for name, _ in self.waiting):
            name, left = self.waiting.pop(0)
            self._pass(f"wait for {name}", "links", left, behind=False)

    def _wire(self, size: float) -> float:
        return size / (self.chips.links * self.chips.link_share) + self.chips.hop

    def _pass(self, what: str, unit: str, seconds: float, behind: bool) -> None:
        self.events.append(ServingEvent(self.layer, what, unit, self.now, self.now + seconds))
        self.now += seconds
        while behind and seconds > 0 and self.waiting:                  # the links were free all the while
            name, left = self.waiting.pop(0)
            if left > seconds:
                self.waiting.insert(0, (name, left - seconds))
            seconds -= left


def play(dims: DecoderDims, phase: ServingPhase, chips: ServingChips, layout: ServingLayout,
         layers: int | None = None) -> tuple[float, list[ServingEvent]]:
    """(seconds of one pass, events). A decode step is the one in the middle of the phase. layers: fewer than the model has, scaled up."""
    count = min(layers or dims.layers, dims.layers)
    chip = _Chip(chips)
    one = _Layer(dims, phase, chips, layout)
    one.fetch(chip, 0)
    for layer in range(count):
        chip.layer = layer
        if layer + 1 < count:
            one.fetch(chip, layer + 1)
        one.run(chip, layer)
    scale = dims.layers / count
    table = _Shards((dims.vocabulary, dims.width), (tuple(chips.names), ()))
    body = chip.now
    chip.kernel("logits", 2 * phase.batch * table.elements(chips), table.elements(chips) * phase.weight_bytes)
    return body * scale + (chip.now - body), chip.events


class _Layer:
    """The tensors of a layer under a layout, and its kernels in order."""

    def __init__(self, dims: DecoderDims, phase: ServingPhase, chips: ServingChips, layout: ServingLayout) -> None:
        self.dims, self.phase, self.chips, self.layout = dims, phase, chips, layout
        everything = tuple(chips.names)
        self.gathered = layout.x if layout.scheme == "wg" else ()
        self.across = layout.x if layout.scheme == "ws-2d" else ()      # what the width of the weights is split over
        self.along = everything if layout.scheme == "ws-1d" else chips.rest(layout.x)
        self.stream = _Shards((phase.rows, dims.width), (self.gathered, tuple(a for a in everything if a not in self.gathered)))
        query, gates = dims.stored_heads * dims.head_dim, (dims.matrices - 1) * dims.feed_forward
        self.halves = [("block", gates + query, dims.feed_forward + query)] if dims.parallel else [
            ("attention", query, query), ("feed-forward", gates, dims.feed_forward)]

    def matrix(self, rows: int, columns: int) -> _Shards:
        """A matrix of the width by a hidden dimension, as it is used."""
        return _Shards((rows, columns), (self.across, self.along))

    def hidden(self, columns: float) -> _Shards:
        """A hidden activation as the weights make it: partial over `across`."""
        return _Shards((self.phase.rows, columns), (self.gathered, self.along))

    def fetch(self, chip: _Chip, layer: int) -> None:
        """Start gathering the weights of a layer."""
        item, keys = self.phase.weight_bytes, 2 * self.dims.kv_heads * self.dims.head_dim
        for name, wide, narrow in self.halves if self.gathered else ():
            extra = keys if name != "feed-forward" else 0
            for what, columns in ((f"{name} in", wide + extra), (f"{name} out", narrow)):
                small = self.matrix(self.dims.width, columns).elements(self.chips) / self.chips.over(self.gathered)
                chip.fetch(f"{what} {layer}", self.gathered, small, item)

    def run(self, chip: _Chip, layer: int) -> None:
        """The kernels and collectives of a layer."""
        for name, wide, narrow in self.halves:
            attends = name != "feed-forward"
            chip.kernel("norm")
            self._project_in(chip, name, wide, attends, layer)
            if attends:
                self._attend(chip)
            if name != "attention":
                chip.kernel("gate")
            self._project_out(chip, name, narrow, layer)

    def _project_in(self, chip: _Chip, name: str, wide: int, attends: bool, layer: int) -> None:
        d, rows = self.dims, self.phase.rows / self.chips.over(self.gathered)
        keys = 2 * d.kv_heads * d.head_dim if attends else 0
        chip.ring("gather input", self.along, self.stream.along(1, *self.across, *self.along).elements(self.chips))
        chip.need(f"{name} in {layer}")
        weights = self.matrix(d.width, wide + keys).elements(self.chips)
        chip.kernel("in", 2 * rows * weights, weights * self.phase.weight_bytes)
        if self.across:
            scattered = self.hidden(wide).along(1, *self.along, *self.across)
            chip.ring("scatter hidden", self.across, scattered.elements(self.chips))
            if attends:
                shared = min(d.kv_heads, self.chips.over(self.along))
                part = self.phase.rows * keys / shared / self.chips.over(self.across)
                chip.ring("scatter keys", self.across, part)
                if self.layout.attention == "head":
                    chip.ring("gather keys", self.across, part)

    def _attend(self, chip: _Chip) -> None:
        d, p, c = self.dims, self.phase, self.chips
        everywhere = tuple(c.names)
        queries = _Shards((p.rows, d.stored_heads * d.head_dim), (self.gathered, tuple(a for a in everywhere if a not in self.gathered)))
        by_batch = self.layout.attention == "batch"
        if by_batch:
            chip.exchange("queries by batch", self.along, queries.elements(c))
        chip.kernel("rotary and cache")
        sequences = math.ceil(p.batch / c.over(everywhere if by_batch else self.gathered))
        heads = d.stored_heads if d.kv_heads == d.heads else d.kv_heads
        held = heads if by_batch else max(1, math.ceil(heads / (c.size // c.over(self.gathered))))
        cache = sequences * p.seen * held * d.head_dim * _ELEMENT       # of keys; of values as much again
        work = 2 * (queries.elements(c)) * p.seen
        chip.kernel("scores", work, cache)
        chip.kernel("softmax")
        chip.kernel("values", work, cache)
        if by_batch:
            chip.exchange("values by head", self.along, queries.elements(c))

    def _project_out(self, chip: _Chip, name: str, narrow: int, layer: int) -> None:
        if self.across:
            chip.ring("gather hidden", self.across, self.hidden(narrow).along(1, *self.along, *self.across).elements(self.chips))
        chip.need(f"{name} out {layer}")
        weights = self.matrix(self.dims.width, narrow).elements(self.chips)
        chip.kernel("out", 2 * self.phase.rows / self.chips.over(self.gathered) * weights, weights * self.phase.weight_bytes)
        chip.ring("scatter output", self.along, self.stream.along(1, *self.across, *self.along).elements(self.chips))
        chip.kernel("residual")


def spans(events: list[ServingEvent]) -> Iterator[tuple[str, float]]:
    """(what, seconds in all), dearest first."""
    total: dict[str, float] = {}
    for event in events:
        total[event.what] = total.get(event.what, 0.0) + event.end - event.start
    yield from sorted(total.items(), key=lambda item: -item[1])


__all__ = ["ServingEvent", "play", "spans"]
