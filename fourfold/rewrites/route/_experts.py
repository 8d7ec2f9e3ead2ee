"""Experts: E small MLPs of one shape with their weights stacked, made from nothing, from a dense MLP's own neurons, or from copies of it.

Shapes: S rows, N tokens, E experts, D width, F hidden units of one expert.

From a dense MLP: *split* deals its neurons out, so that the sum of all experts is the dense MLP, exactly; which neurons belong together is decided by
balanced clusters of their input weights, as in Zhang et al. (2022). *Copies* make every expert the dense MLP (sparse upcycling, Komatsuzaki et al.
2023): gates that sum to one leave its answers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import ModelError
from fourfold.recipe import is_conv1d
from fourfold.rewrites.route._grouped import grouped_linear
from fourfold.structure.cores import ACTIVATIONS

if TYPE_CHECKING:
    from torch.types import Device

Place = str | torch.device | Callable[["Experts"], Callable[[Tensor, Tensor], Tensor]]
"""A device; or what takes a shard away (to another process, another host): a function of rows [S, D] sorted by expert and ends int64 [E] → [S, D]."""


class NamedActivation(nn.Module):
    """An activation by its name in `structure.cores.ACTIVATIONS`. Raises ModelError for another name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in ACTIVATIONS:
            raise ModelError(f"there is no activation {name!r}", f"Known: {', '.join(ACTIVATIONS)}; or give a module.")
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](x)

    def extra_repr(self) -> str:
        return self.name


def activation_of(given: str | nn.Module) -> nn.Module:
    """A name, or a module (copied)."""
    return NamedActivation(given) if isinstance(given, str) else copy.deepcopy(given)


@dataclass(frozen=True)
class DenseMLP:
    """A dense MLP by its weights, out × in: y = down·act(up·x), or down·(act(gate·x) ⊙ up·x). `up`, `gate` [H, D], `down` [D, H], biases or None."""

    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    down_bias: Tensor | None = None
    activation: str | nn.Module = "gelu"

    @classmethod
    def of(cls, up: nn.Module, down: nn.Module, gate: nn.Module | None = None, activation: str | nn.Module = "gelu") -> DenseMLP:
        """From linear layers: Linear, or GPT-2's Conv1D. Raises ModelError for others."""
        read = [(None, None) if layer is None else _matrix(layer) for layer in (up, gate, down)]
        return cls(cast(Tensor, read[0][0]), cast(Tensor, read[2][0]), read[1][0], read[0][1], read[1][1], read[2][1], activation)

    @property
    def width(self) -> int:
        return self.down.shape[0]

    @property
    def hidden(self) -> int:
        return self.down.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        act, inner = activation_of(self.activation), F.linear(x, self.up, self.up_bias)
        hidden = act(inner) if self.gate is None else act(F.linear(x, self.gate, self.gate_bias)) * inner
        return F.linear(hidden, self.down, self.down_bias)


def _matrix(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """(weight [out, in], bias [out] or None)."""
    if not (isinstance(linear, nn.Linear) or is_conv1d(linear)):
        raise ModelError(f"{type(linear).__name__} is no linear layer that experts can be made from", "Linear and Conv1D are.")
    weight, bias = cast(Tensor, linear.weight).detach(), cast("Tensor | None", linear.bias)
    return weight.t() if is_conv1d(linear) else weight, None if bias is None else bias.detach()


class Experts(nn.Module):
    """rows [S, D] sorted by expert, ends int64 [E] → [S, D]; rows past `ends[-1]` answer 0.

    `inner` [E, F, D] ([E, 2F, D] where `gated`: gate above up) and `outer` [E, D, F] hold the weights, `inner_bias` and `outer_bias` [E, ·] the
    biases (`bias`; `outer_bias` may be absent alone). Computes in the autocast type where autocast is on.
    """

    def __init__(
        self, experts: int, width: int, hidden: int, *, activation: str | nn.Module = "gelu", gated: bool = False, bias: bool = True,
        outer_bias: bool | None = None, device: Device = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(experts, width, hidden) < 1:
            raise ModelError(f"{experts} experts of width {width} with {hidden} hidden units were asked for", "Each must be at least 1.")
        self.gated, self.activation = gated, activation_of(activation)
        rows, to = (2 if gated else 1) * hidden, {"device": device, "dtype": dtype}
        self.inner, self.outer = nn.Parameter(torch.empty(experts, rows, width, **to)), nn.Parameter(torch.empty(experts, width, hidden, **to))
        self.inner_bias = nn.Parameter(torch.empty(experts, rows, **to)) if bias else None
        self.outer_bias = nn.Parameter(torch.empty(experts, width, **to)) if (bias if outer_bias is None else outer_bias) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.Linear` does, expert by expert: uniform within 1 / √inputs."""
        with torch.no_grad():
            for weight, bias in ((self.inner, self.inner_bias), (self.outer, self.outer_bias)):
                bound = weight.shape[2] ** -0.5
                for tensor in (weight, bias):
                    if tensor is not None:
                        tensor.uniform_(-bound, bound)

    @property
    def count(self) -> int:
        return self.inner.shape[0]

    @property
    def width(self) -> int:
        return self.outer.shape[1]

    @property
    def hidden(self) -> int:
        return self.outer.shape[2]

    def forward(self, rows: Tensor, ends: Tensor, even: bool = False) -> Tensor:
        rows, weights = self._typed(rows)
        inner, inner_bias, outer, outer_bias = weights
        hidden = self._act(grouped_linear(rows, cast(Tensor, inner), inner_bias, ends, even))
        return grouped_linear(hidden, cast(Tensor, outer), outer_bias, ends, even)

    def everyone(self, x: Tensor) -> Tensor:
        """All experts on all tokens, x [N, D] → [E, N, D]: E / c times the work. What sums are checked against, and what an export writes."""
        x, (inner, inner_bias, outer, outer_bias) = self._typed(x)
        hidden = torch.matmul(x, cast(Tensor, inner).transpose(1, 2))
        hidden = self._act(hidden if inner_bias is None else hidden + inner_bias.unsqueeze(1))
        out = torch.matmul(hidden, cast(Tensor, outer).transpose(1, 2))
        return out if outer_bias is None else out + outer_bias.unsqueeze(1)

    def _typed(self, rows: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        kind = rows.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.inner.dtype
        weights = (self.inner, self.inner_bias, self.outer, self.outer_bias)
        return rows.to(dtype), tuple(None if w is None else w.to(dtype) for w in weights)

    def _act(self, hidden: Tensor) -> Tensor:
        if not self.gated:
            return cast(Tensor, self.activation(hidden))
        gate, up = hidden.chunk(2, -1)
        return self.activation(gate) * up                              # type: ignore[no-any-return]

    def part(self, first: int, stop: int) -> Experts:
        """Experts `first` to `stop` as a module of their own, on the same device."""
        made = Experts(1, 1, 1, activation=self.activation, gated=self.gated, device="meta")
        for name, tensor in self._parameters.items():
            made._parameters[name] = None if tensor is None else nn.Parameter(tensor.detach()[first:stop].clone(), tensor.requires_grad)
        return made.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.count} experts, width={self.width}, hidden={self.hidden}, gated={self.gated}, bias={self.inner_bias is not None}"


class PlacedExperts(nn.Module):
    """The same experts on several devices: `places` says where each lives, runs of one place are one shard. Rows travel there and their answers back.

    A place that is a callable takes the shard's weights with it; then they are neither trained nor saved here. For all others `state_dict` is the
    same as that of `Experts`, so placement is no part of an artefact.
    """

    def __init__(self, experts: Experts, places: Sequence[Place]) -> None:
        super().__init__()
        if len(places) != experts.count:
            raise ModelError(f"{len(places)} places for {experts.count} experts", "Name one place for each expert.")
        self.count, self.width, self.hidden, self.gated = experts.count, experts.width, experts.hidden, experts.gated
        self.runs: list[tuple[int, int]] = []
        self.away: dict[int, Callable[[Tensor, Tensor], Tensor]] = {}
        shards: list[nn.Module] = []
        for place, run in groupby(enumerate(places), key=lambda item: item[1]):
            numbers = [i for i, _ in run]
            self.runs.append((numbers[0], numbers[-1] + 1))
            shard = experts.part(*self.runs[-1])
            if callable(place):
                self.away[len(shards)] = place(shard)
                shards.append(nn.Identity())
            else:
                shards.append(shard.to(place))
        self.shards = nn.ModuleList(shards)

    def forward(self, rows: Tensor, ends: Tensor, even: bool = False) -> Tensor:
        stops, found, start = ends.tolist(), [], 0
        for number, (first, stop) in enumerate(self.runs):
            share, own = rows[start : stops[stop - 1]], ends[first:stop] - start
            found.append(self._ask(number, share, own, even).to(rows.device))
            start = stops[stop - 1]
        out = torch.cat(found)
        return out if start == rows.shape[0] else torch.cat([out, out.new_zeros(rows.shape[0] - start, out.shape[1])])

    def _ask(self, number: int, share: Tensor, ends: Tensor, even: bool) -> Tensor:
        if number in self.away:
            return self.away[number](share, ends)
        shard = cast(Experts, self.shards[number])
        device = shard.inner.device
        return shard(share.to(device), ends, even) if device.type != "meta" else torch.empty_like(share, device=device)

    def everyone(self, x: Tensor) -> Tensor:
        """All experts on all tokens, x [N, D] → [E, N, D]. Raises ModelError where some are held elsewhere."""
        self._here()
        return torch.cat([cast(Experts, shard).everyone(x.to(cast(Experts, shard).inner.device)).to(x.device) for shard in self.shards])

    def gathered(self) -> Experts:
        """The experts in one place again: the first shard's."""
        self._here()
        shards = [cast(Experts, shard) for shard in self.shards]
        made = shards[0].part(0, shards[0].count)
        for name, first in shards[0]._parameters.items():
            if first is not None:
                joined = torch.cat([cast(Tensor, shard._parameters[name]).detach().to(first.device) for shard in shards])
                made._parameters[name] = nn.Parameter(joined, first.requires_grad)
        return made

    def _here(self) -> None:
        if self.away:
            raise ModelError("some of the experts are held elsewhere, so their weights are not here", "Save them where they are, or place them here.")

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        self._here()

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As `Experts.state_dict`."""
        return self.gathered().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: object) -> None:
        for number, (first, stop) in enumerate(self.runs):             # each shard then finds its own rows under its own names
            for name in [] if number in self.away else self.shards[number]._parameters:
                if prefix + name in state:
                    state[f"{prefix}shards.{number}.{name}"] = state[prefix + name][first:stop]
        for name in ("inner", "inner_bias", "outer", "outer_bias"):
            state.pop(prefix + name, None)

    def extra_repr(self) -> str:
        return f"{self.count} experts in {len(self.runs)} places"


# --- from a dense MLP ------------------------------------------------------------------------------------------------------------------------------


def copies(dense: DenseMLP, count: int) -> Experts:
    """`count` copies of a dense MLP, biases included."""
    return _filled(dense, [torch.arange(dense.hidden)] * count, dense.hidden, 1.0)


def split(dense: DenseMLP, count: int) -> tuple[Experts, Tensor]:
    """(experts, router rows [E, D]): the neurons of a dense MLP in `count` experts of equal size, padded with neurons of no effect where it does not
    divide. The output bias is left out: it belongs to the whole. A router row is the mean direction in which its expert's neurons read.

    Raises ModelError where there are fewer neurons than experts.
    """
    if dense.hidden < count:
        raise ModelError(f"{dense.hidden} neurons cannot be dealt to {count} experts", "Ask for fewer experts.")
    reads = dense.up if dense.gate is None else dense.gate
    owner = clusters(reads, count)
    size = -(-dense.hidden // count)
    router = torch.stack([F.normalize(reads[owner.to(reads.device) == e].float().mean(0), dim=0) for e in range(count)])
    return _filled(dense, [torch.nonzero(owner == e).flatten() for e in range(count)], size, None), router


def _filled(dense: DenseMLP, parts: list[Tensor], size: int, bias: float | None) -> Experts:
    """Experts that hold these neurons of `dense`; `bias`: what share of the output bias each has, None: none of them holds one."""
    inner = [] if dense.gate is None else [(dense.gate, dense.gate_bias)]
    inner.append((dense.up, dense.up_bias))
    biased, outer_bias = any(b is not None for _, b in inner), bias is not None and dense.down_bias is not None
    made = Experts(
        len(parts), dense.width, size, activation=dense.activation, gated=dense.gate is not None, bias=biased, outer_bias=outer_bias,
        device=dense.up.device, dtype=dense.up.dtype,
    )  # fmt: skip
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.zero_()                                             # neurons that pad read nothing and write nothing
        for e, part in enumerate(parts):
            part = part.to(dense.up.device)
            for at, (weight, its) in zip(range(0, len(inner) * size, size), inner, strict=True):
                made.inner[e, at : at + len(part)] = weight[part]
                if made.inner_bias is not None and its is not None:
                    made.inner_bias[e, at : at + len(part)] = its[part]
            made.outer[e, :, : len(part)] = dense.down[:, part]
            if made.outer_bias is not None and dense.down_bias is not None:
                made.outer_bias[e] = dense.down_bias * cast(float, bias)
    return made


def clusters(reads: Tensor, count: int, rounds: int = 8) -> Tensor:
    """Balanced k-means of rows [F, D] by direction: the cluster of each, int64 [F], none larger than ⌈F / count⌉. The surest choose first.

    Depends on nothing but its arguments. Weights that are not there yet (on "meta") are dealt in order.
    """
    many, size = reads.shape[0], -(-reads.shape[0] // count)
    if reads.device.type == "meta":
        return torch.arange(many) * count // many
    rows = F.normalize(torch.nan_to_num(reads.detach().float().cpu()), dim=1)
    dice = torch.Generator().manual_seed(0)
    centres, owner = rows[torch.randperm(many, generator=dice)[:count]], torch.empty(0, dtype=torch.int64)
    for _ in range(rounds):
        likeness = rows @ centres.T
        best = likeness.topk(min(2, count), 1).values
        wishes, before = likeness.argsort(1, descending=True).tolist(), owner
        free, chosen = [size] * count, [0] * many
        for i in (best[:, 0] - best[:, -1]).argsort(descending=True).tolist():
            chosen[i] = next(e for e in wishes[i] if free[e])
            free[chosen[i]] -= 1
        owner = torch.tensor(chosen)
        if torch.equal(owner, before):
            break
        centres = torch.stack([F.normalize(rows[owner == e].sum(0), dim=0) if (owner == e).any() else centres[e] for e in range(count)])
    return owner
