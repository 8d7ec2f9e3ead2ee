"""What serving a decoder on a grid of chips costs, by layout: the analytic model of Pope et al. (2022, arXiv:2211.05102, section 3 and appendix A).

A layer takes

    max(FLOP / (peak · compute), bytes of weights / (bandwidth · memory))        its projections
  + max(FLOP / (peak · compute), bytes of the cache / (bandwidth · memory))      its attention
  + kernels · launch
  + Σ bytes / (links · share) + ring steps · hop                                 collectives of activations, exposed
  + what the gather of a layer's weights takes longer than computing a layer     weight-gathered layouts only

Activations are needed at once, so their collectives are exposed; weights depend on nothing, so a layer's gather runs while the layer before
computes. A collective over K chips sends (K − 1)/K of its bytes, ring by ring along one axis after another, so it reaches the share of a chip's links
that one axis has; the paper prices all collectives at one bandwidth too. Shares and floors are one set for all layouts, phases and models
(`ServingChips`); none is fitted to a row. Left out: scores and other intermediate activations in memory (fused), embedding look-up, and sampling.

`serving_events.py` plays the same layer event by event, from the shapes of its tensors; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.machine import Machine
    from fourfold.sharding.mesh import Mesh
    from fourfold.zoo.decoders import DecoderDims

ACTIVATION = 2                                                          # B an element of activations and of the cache: bfloat16
COMPUTE_SHARE, MEMORY_SHARE = 0.8, 0.8                                  # of peak and of bandwidth, where the machine states none: assumed
LINK_SHARE = 1 / 3                                                      # of a chip's links: a ring along one axis of a 3-D torus uses that axis's
PARALLEL_KERNELS, SERIAL_KERNELS = 9, 13                                # norm, in, rotary and cache, scores, softmax, values, gate, out, residual
SCHEMES = ("ws-1d", "ws-2d", "wg")


@dataclass(frozen=True)
class ServingPhase:
    """What is served: `kind` prefill (`tokens` of each of `batch` sequences in one pass) or decode (`tokens` steps, a token a sequence each, after
    `context` tokens in the cache). `weight_bytes` an element: 2 bfloat16, 1 int8 (computed in bfloat16). Raises InputError for anything else."""

    kind: str
    batch: int
    tokens: int
    context: int = 0
    weight_bytes: int = 2

    def __post_init__(self) -> None:
        if self.kind not in ("prefill", "decode"):
            raise InputError(f"There is no phase {self.kind!r}.", "Choose prefill or decode.")
        if self.batch < 1 or self.tokens < 1 or self.context < 0 or self.weight_bytes not in (1, 2):
            raise InputError(f"{self.kind} of {self.batch} sequences, {self.tokens} tokens after {self.context}, {self.weight_bytes} bytes a weight.",
                             "Give at least one sequence and one token, a context of 0 or more, and 1 or 2 bytes a weight.")

    @property
    def steps(self) -> int:
        """Passes through the model."""
        return 1 if self.kind == "prefill" else self.tokens

    @property
    def rows(self) -> int:
        """Tokens that one pass carries."""
        return self.batch * self.tokens if self.kind == "prefill" else self.batch

    @property
    def seen(self) -> float:
        """Tokens that a query reads of the cache, on average over the steps; a prefill computes the full square."""
        return self.context + (self.tokens if self.kind == "prefill" else self.tokens / 2)

    @property
    def kept(self) -> int:
        """Tokens a sequence in the cache at the end."""
        return self.context + self.tokens


@dataclass(frozen=True)
class ServingChips:
    """Equal chips in a grid: `shape[i]` along axis `names[i]`. peak FLOP/s, bandwidth B/s, memory B, links B/s (all of a chip's, one direction), hop
    s a ring step, launch s a kernel; compute, memory_share, link_share: what of them is reached."""

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    peak: float
    bandwidth: float
    memory: float
    links: float
    hop: float
    launch: float
    compute: float = COMPUTE_SHARE
    memory_share: float = MEMORY_SHARE
    link_share: float = LINK_SHARE

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def over(self, axes: Iterable[str]) -> int:
        """Chips along those axes."""
        return math.prod(self.shape[self.names.index(axis)] for axis in axes)

    def ring_steps(self, axes: Iterable[str]) -> int:
        """Steps of a collective that runs a ring along one axis after another."""
        return sum(self.shape[self.names.index(axis)] - 1 for axis in axes)

    def rest(self, axes: Iterable[str]) -> tuple[str, ...]:
        """The other axes."""
        taken = set(axes)
        return tuple(name for name in self.names if name not in taken)

    @property
    def wide(self) -> tuple[str, ...]:
        """Axes with more than one chip."""
        return tuple(name for name, n in zip(self.names, self.shape, strict=True) if n > 1)

    @classmethod
    def of(cls, machine: Machine, mesh: Mesh, link_share: float | None = None) -> ServingChips:
        """The chips of `machine` in the grid of `mesh`. Links: all that leave its first device, together; link_share: what a ring reaches of them,
        by default one axis of three on TPUs, whose torus is written as one link a chip, and elsewhere one link of those that leave a device.

        Raises InputError where the mesh asks for another number of chips than there are, or the devices are unlike.
        """
        if mesh.size != len(machine):
            raise InputError(f"A mesh of {'x'.join(map(str, mesh.shape))} has {mesh.size} chips, and {machine.name} has {len(machine)}.",
                             f"Give --devices whose sizes multiply to {len(machine)}, or another --machine.")
        first = machine.devices[0]
        if any((one.peak, one.bandwidth, one.memory) != (first.peak, first.bandwidth, first.memory) for one in machine.devices):
            raise InputError(f"The devices of {machine.name} are unlike, and a layout of serving gives all the same work.",
                             "Name a machine of equal devices.")
        peak = first.speed("bfloat16") or first.speed("float32")
        out = [link for link in machine.links if first.name in (link.a, link.b)]
        product = first.efficiency.get("matmul")
        shares = (product.peak[-1][1], min(1.0, product.bandwidth[-1][1])) if product is not None else (COMPUTE_SHARE, MEMORY_SHARE)
        hop = machine.route(0, 1).latency if len(machine) > 1 else 0.0
        share = link_share if link_share is not None else LINK_SHARE if first.kind == "tpu" else 1 / max(1, len(out))
        links = sum(link.bandwidth for link in out) or math.inf
        return cls(machine.name, tuple(mesh.names), tuple(mesh.shape), peak, first.bandwidth, first.memory, links, hop, first.launch, *shares,
                   share)


@dataclass(frozen=True)
class ServingLayout:
    """Where weights and activations of a layer stand. `scheme`: ws-1d (feed-forward dimension over all chips), ws-2d (width over the axes `x`,
    feed-forward dimension over the others) or wg (weights gathered along `x`, over which the batch is split). `attention`: head or batch, what
    queries and cache are split by."""

    scheme: str
    x: tuple[str, ...] = ()
    attention: str = "head"

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES or self.attention not in ("head", "batch") or bool(self.x) == (self.scheme == "ws-1d"):
            raise InputError(f"{self.scheme!r} along {self.x} with {self.attention!r} attention is not a layout.",
                             "Choose ws-1d without axes, or ws-2d or wg with some; attention by head or batch.")

    def title(self, chips: ServingChips) -> str:
        """Its name in the paper: WS-1D, WS-2D, WG-X, WG-XY, WG-XYZ."""
        if self.scheme != "wg":
            return self.scheme.upper()
        return "WG-XYZ" if set(self.x) >= set(chips.wide) else "WG-X" if len(self.x) == 1 else "WG-XY"

    def to_json(self) -> dict[str, object]:
        return {"scheme": self.scheme, "x": list(self.x), "attention": self.attention}


@dataclass(frozen=True)
class LayerCollective:
    """A collective of one layer: what it is, over which axes, bytes that a chip sends, and whether it carries weights ahead of time."""

    kind: str
    axes: tuple[str, ...]
    bytes: float
    ahead: bool = False

    def seconds(self, chips: ServingChips) -> float:
        return self.bytes / (chips.links * chips.link_share) + chips.ring_steps(self.axes) * chips.hop


@dataclass(frozen=True)
class ServingCost:
    """Seconds of a phase, by what takes them; `bytes`: a chip's, by what holds them. `mfu`: 2 · parameters · tokens over what all chips could do."""

    projections: float
    attention: float
    launches: float
    exposed: float
    hidden: float
    gather: float
    head: float
    steps: int
    bytes: dict[str, float]
    sent: float
    mfu: float

    @property
    def seconds(self) -> float:
        """Of the whole phase; `hidden` is not in it."""
        return self.projections + self.attention + self.launches + self.exposed + self.gather + self.head

    @property
    def step(self) -> float:
        """Seconds a pass."""
        return self.seconds / self.steps

    @property
    def resident(self) -> float:
        """Bytes that a chip holds."""
        return sum(self.bytes.values())

    def to_json(self) -> dict[str, object]:
        names = ("projections", "attention", "launches", "exposed", "hidden", "gather", "head", "sent", "mfu")
        return {name: getattr(self, name) for name in names} | {"seconds": self.seconds, "step": self.step, "bytes": dict(self.bytes)}


def collectives(dims: DecoderDims, phase: ServingPhase, chips: ServingChips, layout: ServingLayout) -> list[LayerCollective]:
    """All collectives of a layer, in order."""
    everything = tuple(chips.names)
    rows, width, joined = phase.rows * ACTIVATION, dims.width, 1 if dims.parallel else 2
    query, hidden = dims.stored_heads * dims.head_dim, dims.feed_forward
    found: list[LayerCollective] = []

    def add(kind: str, axes: tuple[str, ...], size: float, ahead: bool = False) -> None:
        k = chips.over(axes)
        if k > 1:
            found.append(LayerCollective(kind, axes, size * (k - 1) / k, ahead))

    if layout.scheme == "wg":
        rest, split = chips.rest(layout.x), chips.over(layout.x)
        for _ in range(2 * joined):                                    # what leads into the hidden dimension, and what leads out of it
            add("gather weights", layout.x, dims.layer_parameters() * phase.weight_bytes / chips.over(rest) / (2 * joined), True)
        for _ in range(joined):
            add("gather input", rest, rows * width / split)
            add("scatter output", rest, rows * width / split)
        if layout.attention == "batch":
            add("queries by batch", rest, rows * query / chips.size)
            add("values by head", rest, rows * query / chips.size)
    elif layout.scheme == "ws-1d":
        for _ in range(joined):
            add("gather input", everything, rows * width)
            add("scatter output", everything, rows * width)
        if layout.attention == "batch":
            add("queries by batch", everything, rows * query / chips.size)
            add("values by head", everything, rows * query / chips.size)
    else:
        x, rest = layout.x, chips.rest(layout.x)
        over_x, over_rest = chips.over(x), chips.over(rest)
        gates = (dims.matrices - 1) * hidden
        sides = [(gates + query, hidden + query)] if dims.parallel else [(query, query), (gates, hidden)]      # of the hidden dimension: in, out
        for wider, narrower in sides:
            add("gather input", rest, rows * width / over_x)
            add("scatter hidden", x, rows * wider / over_rest)
            add("gather hidden", x, rows * narrower / over_rest)
            add("scatter output", rest, rows * width / over_x)
        keys = 2 * dims.kv_heads * dims.head_dim                       # partial sums over x, as the queries are
        add("scatter keys", x, rows * keys / min(dims.kv_heads, over_rest))
        if layout.attention == "batch":
            add("queries by batch", rest, rows * query / chips.size)
            add("values by head", rest, rows * query / chips.size)
        else:
            add("gather keys", x, rows * keys / min(dims.kv_heads, over_rest))
    return found


def cache_bytes(dims: DecoderDims, batch: int, context: float, chips: ServingChips, layout: ServingLayout) -> float:
    """Bytes of keys and values that a chip holds (a head that several chips need stands on each)."""
    split = chips.over(layout.x) if layout.scheme == "wg" else 1
    heads = dims.stored_heads if dims.kv_heads == dims.heads else dims.kv_heads
    a_token = 2 * dims.layers * dims.head_dim * ACTIVATION
    if layout.attention == "batch":
        return math.ceil(batch / chips.size) * context * heads * a_token
    return math.ceil(batch / split) * context * max(1, math.ceil(heads / (chips.size // split))) * a_token


def longest_context(dims: DecoderDims, batch: int, chips: ServingChips, layout: ServingLayout, share: float = 0.3) -> int:
    """Tokens a sequence whose keys and values fill `share` of a chip's memory (Pope et al. 2022, table 1, has 30 %)."""
    return int(share * chips.memory / cache_bytes(dims, batch, 1, chips, layout))


def resident_bytes(dims: DecoderDims, phase: ServingPhase, chips: ServingChips, layout: ServingLayout) -> dict[str, float]:
    """A chip's bytes by what holds them: weights, cache, two gathered matrices (one in use, one on its way), and the residual stream twice."""
    weights = (dims.layers * dims.layer_parameters() + dims.embedding) * phase.weight_bytes / chips.size
    matrix = dims.width * max(dims.feed_forward, dims.stored_heads * dims.head_dim) * phase.weight_bytes
    gathered = 2 * matrix / chips.over(chips.rest(layout.x)) if layout.scheme == "wg" else 0.0
    return {"weights": weights, "cache": cache_bytes(dims, phase.batch, phase.kept, chips, layout), "gathered": gathered,
            "activations": 2 * phase.rows * dims.width * ACTIVATION / chips.size}


def serving_cost(dims: DecoderDims, phase: ServingPhase, chips: ServingChips, layout: ServingLayout) -> ServingCost:
    """Seconds and bytes of a phase under a layout; whether it is allowed is asked elsewhere (`decisions/layout`)."""
    n, steps, layers = chips.size, phase.steps, dims.layers
    speed, stream = chips.peak * chips.compute, chips.bandwidth * chips.memory_share
    held = n // chips.over(layout.x) if layout.scheme == "wg" else n   # chips that a layer's weights are spread over while they are used
    work, read = 2 * phase.rows * dims.layer_parameters() / n, dims.layer_parameters() * phase.weight_bytes / held
    projections = max(work / speed, read / stream)
    scores = 4 * phase.rows * phase.seen * dims.stored_heads * dims.head_dim / n
    cached = cache_bytes(dims, phase.batch, phase.seen, chips, layout) / layers
    attention = max(scores / speed, cached / stream)
    launches = (PARALLEL_KERNELS if dims.parallel else SERIAL_KERNELS) * chips.launch
    all_of_layer = collectives(dims, phase, chips, layout)
    exposed = sum(one.seconds(chips) for one in all_of_layer if not one.ahead)
    gather = sum(one.seconds(chips) for one in all_of_layer if one.ahead)
    behind = min(gather, projections + attention + launches)
    head = max(2 * phase.batch * dims.embedding / n / speed, dims.embedding * phase.weight_bytes / n / stream) + chips.launch
    times = layers * steps
    total = times * (projections + attention + launches + exposed + gather - behind) + steps * (head + behind)      # the first layer's gather is seen
    done = 2 * dims.parameters * phase.rows * steps
    return ServingCost(times * projections, times * attention, times * launches, times * exposed, (times - steps) * behind,
                       times * (gather - behind) + steps * behind, steps * head, steps, resident_bytes(dims, phase, chips, layout),
                       times * sum(one.bytes for one in all_of_layer), done / (n * chips.peak * total))


def least_seconds(dims: DecoderDims, phase: ServingPhase, chips: ServingChips) -> float:
    """Seconds that no layout beats: work and weights shared by all chips, the cache read once, collectives free."""
    n, speed, stream = chips.size, chips.peak * chips.compute, chips.bandwidth * chips.memory_share
    parameters = dims.layer_parameters()
    projections = max(2 * phase.rows * parameters / n / speed, parameters * phase.weight_bytes / n / stream)
    cached = 2 * dims.kv_heads * dims.head_dim * ACTIVATION * phase.batch * phase.seen / n
    attention = max(4 * phase.rows * phase.seen * dims.stored_heads * dims.head_dim / n / speed, cached / stream)
    launches = (PARALLEL_KERNELS if dims.parallel else SERIAL_KERNELS) * chips.launch
    return phase.steps * dims.layers * (projections + attention + launches)


# ---- the closed forms of the paper, for a feed-forward layer of two matrices

def ws_1d_elements(rows: float, width: float) -> float:
    """Elements that a chip sends a layer, 1-D weight-stationary: 2·BL·E, whatever the number of chips."""
    return 2 * rows * width


def ws_2d_elements(rows: float, width: float, chips: int) -> float:
    """2-D weight-stationary at the best split X = √n/2 (F = 4E): 8·BL·E/√n."""
    return 8 * rows * width / math.sqrt(chips)


def wg_elements(rows: float, width: float, hidden: float, chips: int) -> float:
    """Weight-gathered over the best N = √(BL·n/F) chips: 4·E·√(BL·F)/√n; N stays between 1 and n."""
    best = min(max(math.sqrt(rows * chips / hidden), 1.0), chips)
    return 2 * width * hidden * best / chips + 2 * rows * width / best


def crossover(hidden: float) -> float:
    """Tokens in a pass (B·L) above which gathering weights sends less than 2-D weight-stationary, where nothing overlaps: F/4 by the closed forms."""
    return hidden / 4


def scaled(chips: ServingChips, **factors: float) -> ServingChips:
    """The same chips with figures multiplied: `scaled(chips, link_share=0.5)`, for how much an answer rests on one."""
    return replace(chips, **{name: getattr(chips, name) * factor for name, factor in factors.items()})


__all__ = ["LINK_SHARE", "LayerCollective", "ServingChips", "ServingCost", "ServingLayout", "ServingPhase", "cache_bytes", "collectives", "crossover",
           "least_seconds", "longest_context", "resident_bytes", "scaled", "serving_cost", "wg_elements", "ws_1d_elements", "ws_2d_elements"]
