"""What both routers share: a layer of experts behind a router, its capacity, its losses, its load, and how it takes a dense MLP's place.

Shapes: G groups of n tokens, N = G·n, E experts, D width; c, the capacity factor, is the mean number of experts per token.

The router multiplies in float32 whatever the type of the tokens. Gates weigh the experts' answers in one of three ways. "softmax": the router's
probabilities as they are (Zhou et al. 2022, §3). "normalised": those of a token's experts sum to one (Lepikhin et al. 2021, §2.2), which copies of a
dense MLP need. "ones": each is 1 and has the gradient of E times the probability, which shares of a dense MLP need: all of them together are the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import ModelError
from fourfold.rewrites.route._experts import DenseMLP, Experts, Place, PlacedExperts, copies, split
from fourfold.structure.cores import PaddingMask

if TYPE_CHECKING:
    from torch.types import Device

    from fourfold.torch_types import Saved

Gates = Literal["softmax", "normalised", "ones"]
Group = Literal["sequence", "batch"]


@dataclass(frozen=True)
class Capacity:
    """How many tokens of a group an expert has room for. `factor` c: the mean number of experts per token, so that E experts have room for c·n of n
    tokens: round(c·n / E) each, halves up, at least one and at most n.

    Other definitions are converted: `gshard`, `flaxformer`.
    """

    factor: float
    experts: int

    def __post_init__(self) -> None:
        if not 0 < self.factor <= self.experts:
            raise ModelError(
                f"capacity factor {self.factor} for {self.experts} experts",
                f"It is the mean number of experts per token: over 0, up to {self.experts}.",
            )

    @classmethod
    def gshard(cls, factor: float, experts: int, k: int = 2) -> Capacity:
        """From a factor over a router's k choices: room for factor·k·n / E tokens (Lepikhin et al. 2021, algorithm 1)."""
        return cls(k * factor, experts)

    @classmethod
    def flaxformer(cls, factor: float, experts: int) -> Capacity:
        """From a factor over tokens, whatever k is: at k = 2 and factor 1 half of all choices find no room."""
        return cls(factor, experts)

    def slots(self, n: Any) -> Any:
        """Room of one expert for a group of n tokens; n is an int, or int64 of any shape. 0 tokens: 0."""
        share = Fraction(self.factor).limit_denominator(1024)
        half, whole = share.denominator * self.experts, 2 * share.denominator * self.experts
        room = (2 * share.numerator * n + half) // whole
        if isinstance(n, Tensor):
            return torch.minimum(room.clamp_min(1), n)
        return min(max(room, 1), n) if isinstance(n, int) else torch.sym_min(torch.sym_max(room, 1), n)


@dataclass
class Assignment:
    """Which rows the experts compute: `token` [S] (index into N), sorted by expert up to `ends` [E], nobody's after that; `gate` [S], 0 where
    nobody's. `even`: all experts have S / E rows. `wanted`: rows asked for before capacity, None where it is those that are there."""

    token: Tensor
    ends: Tensor
    gate: Tensor
    even: bool = False
    wanted: Tensor | None = None


class Routing:
    """What the last call did. `counts` int64 [E]: tokens of each expert; `served` int64 [N]: experts of each token (0 for masked ones); `tokens`:
    those that were not masked; `dropped`: choices that found no room; `loss`: auxiliary losses with their gradient, where not attached."""

    def __init__(self, counts: Tensor, served: Tensor, tokens: Tensor, dropped: Tensor, loss: Tensor | None) -> None:
        self.counts, self.served, self.tokens, self.dropped, self.loss = counts, served, tokens, dropped, loss

    @property
    def balance(self) -> float:
        """Largest load over mean load: 1 is perfect. 1 where nothing was routed."""
        total = float(self.counts.sum())
        return float(self.counts.max()) * len(self.counts) / total if total else 1.0

    def spread(self) -> dict[int, int]:
        """Experts per token → how many tokens, masked ones among those of 0."""
        kinds, many = torch.unique(self.served, return_counts=True)
        return dict(zip(kinds.tolist(), many.tolist(), strict=True))


_ROUTINGS: WeakKeyDictionary[nn.Module, Routing] = WeakKeyDictionary()   # beside the layers, so that layers are copied and saved without them


class RoutedMLP(nn.Module):
    """x [..., T, D], `mask` bool [..., T] (True: a token; None: all are) → [..., T, D]. Masked tokens are never routed and answer 0.

    Takes the place of an MLP x → x. `experts` of `hidden` units each; `capacity_factor` c as `Capacity` says; `group`: tokens compete within each
    "sequence" (what else is in the batch changes nothing) or in the whole "batch". `gates`: see above. `z_loss`: weight of mean (log Σ exp logits)²
    (Zoph et al. 2022). `attach`: in training the auxiliary losses' gradient is added whatever the loop's own loss is; else it is in
    `routing.loss`. `bias`, when made from a dense MLP's neurons, is that MLP's output bias, given to every token.

    After a call `routing` holds the load. Raises ModelError for another width, a mask of another shape, or tokens that are not floating point.
    """

    ragged = True                                                      # whether the experts' shares differ in size

    def __init__(
        self, width: int, hidden: int, experts: int = 8, *, capacity_factor: float = 2.0, group: Group = "sequence", gates: Gates = "softmax",
        z_loss: float = 0.0, attach: bool = True, activation: str | nn.Module = "gelu", gated: bool = False, bias: bool = True,
        device: Device = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if group not in ("sequence", "batch") or gates not in ("softmax", "normalised", "ones"):
            raise ModelError(f"group {group!r} and gates {gates!r}", 'Groups: "sequence", "batch"; gates: "softmax", "normalised", "ones".')
        self.capacity, self.group, self.gates = Capacity(capacity_factor, experts), group, gates
        self.z_loss, self.attach = z_loss, attach
        self.experts: Experts | PlacedExperts = Experts(
            experts, width, hidden, activation=activation, gated=gated, bias=bias, device=device, dtype=dtype
        )
        self.router = nn.Parameter(torch.empty(experts, width, device=device, dtype=dtype))
        self.bias: nn.Parameter | None = None
        self.padding: PaddingMask | None = None
        nn.init.normal_(self.router, std=0.02)

    @classmethod
    def of(cls, dense: DenseMLP, experts: int = 8, *, how: Literal["split", "copies"] = "split", **settings: Any) -> Self:
        """From a dense MLP: "split", its neurons dealt to the experts, gates "ones" (with c = E it is the MLP, exactly); or "copies", gates
        "normalised" (a token that has an expert gets the MLP's answer). Raises ModelError where it cannot be split."""
        if how not in ("split", "copies"):
            raise ModelError(f"experts are made by 'split' or 'copies', not {how!r}", "Choose one of them.")
        made = cls(dense.width, 1, experts, **{"gates": "ones" if how == "split" else "normalised", "device": "meta", **settings})
        if how == "split":
            made.experts, router = split(dense, experts)
            made.bias = None if dense.down_bias is None else nn.Parameter(dense.down_bias.detach().clone())
        else:
            made.experts = copies(dense, experts)
            router = torch.randn(experts, dense.width, generator=torch.Generator().manual_seed(0)) * 0.02
        made.router = nn.Parameter(router.to(dense.down))
        return made

    @property
    def routing(self) -> Routing | None:
        """What the last call did; None before it, and where it was compiled."""
        return _ROUTINGS.get(self)

    def place(self, places: Sequence[Place]) -> Self:
        """Put each expert on a device of its own choice: one place an expert. Returns the layer."""
        experts = self.experts.gathered() if isinstance(self.experts, PlacedExperts) else self.experts
        self.experts = PlacedExperts(experts, places)
        return self

    def assign(self, scores: Tensor, keep: Tensor | None) -> Assignment:
        """Probabilities [G, n, E], real tokens [G, n] (None: all) → who computes what."""
        raise NotImplementedError

    def gate_matrix(self, scores: Tensor, keep: Tensor | None) -> Tensor:
        """The same decision as gates [G, n, E], 0 where an expert does not compute a token."""
        raise NotImplementedError

    def weigh(self, chosen: Tensor, total: Callable[[], Tensor], valid: Tensor | None) -> Tensor:
        """Gates of chosen probabilities; `total`: the sum over each one's token; 0 where not `valid` (None: all are)."""
        if self.gates == "ones":
            gate = 1 + self.capacity.experts * (chosen - chosen.detach())
        elif self.gates == "normalised":
            gate = chosen / total().clamp_min(torch.finfo(chosen.dtype).tiny)
        else:
            gate = chosen
        return gate if valid is None else torch.where(valid, gate, 0.0)

    def losses(self, logits: Tensor, scores: Tensor, keep: Tensor | None) -> Tensor | None:
        """Auxiliary losses of the router, weighted and summed; None where there are none."""
        if not self.z_loss:
            return None
        return self.z_loss * _mean(torch.logsumexp(logits, -1).square(), keep)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        keep = self._checked(x, mask)
        if x.numel() == 0:
            return x * 1                                               # nothing to route: as it came, gradient and all
        grouped = x.reshape(1, -1, x.shape[-1]) if self.group == "batch" or x.ndim == 2 else x.reshape(-1, *x.shape[-2:])
        keep = None if keep is None else keep.reshape(grouped.shape[:2])
        with torch.autocast(x.device.type, enabled=False):
            precise = torch.promote_types(torch.float32, grouped.dtype)
            logits = F.linear(grouped.to(precise), self.router.to(precise))
            scores = logits.softmax(-1)
        flat = grouped.flatten(0, 1)
        out = self._everyone(flat, scores, keep) if self.ragged and exporting() else self._sparse(flat, scores, keep)
        if self.bias is not None:
            out = out + self.bias
        if keep is not None:
            out = out.masked_fill(~keep.reshape(-1, 1), 0.0)
        loss = self.losses(logits, scores, keep) if self.training else None
        if loss is not None and self.attach:
            out = _Attached.apply(out, loss)
        elif loss is not None:
            if torch.compiler.is_compiling():
                raise ModelError("losses of a compiled layer cannot be handed out beside its answer", "Leave attach=True under torch.compile.")
            _ROUTINGS[self].loss = loss
        return out.reshape(x.shape)

    def _sparse(self, flat: Tensor, scores: Tensor, keep: Tensor | None) -> Tensor:
        found, many = self.assign(scores, keep), flat.shape[0]
        answers = self.experts(flat[found.token], found.ends, found.even)
        answers = answers * found.gate.unsqueeze(-1).to(answers.dtype)
        out = answers.new_zeros(many, answers.shape[1], dtype=torch.promote_types(answers.dtype, torch.float32))
        out = out.index_add(0, found.token, answers.to(out.dtype)).to(answers.dtype)
        self._note(found, many, keep)
        return out

    def _everyone(self, flat: Tensor, scores: Tensor, keep: Tensor | None) -> Tensor:
        """All experts on all tokens, weighed: what an export writes where a graph cannot hold shares of unequal size."""
        gates = self.gate_matrix(scores, keep).flatten(0, 1)
        answers = self.experts.everyone(flat)
        return torch.einsum("ne,end->nd", gates.to(answers.dtype), answers)

    def _checked(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        if x.ndim < 2 or x.shape[-1] != self.experts.width or not x.is_floating_point():
            raise ModelError(
                f"experts of width {self.experts.width} were given a tensor of shape {tuple(x.shape)} and type {x.dtype}",
                f"Give floating point tokens [..., T, {self.experts.width}].",
            )
        if mask is None:
            heard = None if self.padding is None else self.padding.keep
            return heard if heard is not None and heard.shape == x.shape[:-1] else None
        if mask.shape != x.shape[:-1] or mask.is_floating_point():
            raise ModelError(f"a mask of shape {tuple(mask.shape)} and type {mask.dtype} for tokens {tuple(x.shape)}",
                             f"Give bool {tuple(x.shape[:-1])}, True where there is a token.")
        return mask.bool()

    def _note(self, found: Assignment, many: int, keep: Tensor | None) -> None:
        if torch.compiler.is_compiling() or exporting():
            return
        with torch.no_grad():
            counts = found.ends.diff(prepend=found.ends.new_zeros(1))
            served = found.token.new_zeros(many).index_add(0, found.token[: int(found.ends[-1])], found.token.new_ones(int(found.ends[-1])))
            tokens = found.ends.new_tensor(many) if keep is None else keep.sum()
            dropped = counts.new_zeros(()) if found.wanted is None else found.wanted - counts.sum()
        _ROUTINGS[self] = Routing(counts, served, tokens, dropped, None)

    def flops(self, tokens: int) -> int:
        """Multiply-adds × 2 of the router and of c experts per token, for `tokens` tokens of one group."""
        inner = 2 if self.experts.gated else 1
        rows = self.capacity.slots(tokens) * self.capacity.experts
        return 2 * self.experts.width * (tokens * self.capacity.experts + rows * (inner + 1) * self.experts.hidden)

    def extra_repr(self) -> str:
        return f"capacity_factor={self.capacity.factor}, group={self.group}, gates={self.gates}"


class _Attached(torch.autograd.Function):
    """The answer, with the gradient of a loss besides, whatever is made of the answer."""

    @staticmethod
    def forward(ctx: Saved, out: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Saved, grad: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grad, torch.ones_like(loss)


def _mean(values: Tensor, keep: Tensor | None) -> Tensor:
    """The mean over real tokens; 0 where there are none."""
    if keep is None:
        return values.mean()
    return torch.where(keep, values, 0.0).sum() / keep.sum().clamp_min(1)


def exporting() -> bool:
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None or torch.onnx.is_in_onnx_export()


def by_expert(expert: Tensor, token: Tensor, gate: Tensor, experts: int, wanted: Tensor | None = None) -> Assignment:
    """Choices [S] in any order, `expert` = E for nobody, as an assignment: sorted by expert, each expert's tokens in the order given."""
    expert, order = expert.sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(experts, device=expert.device), right=True)
    return Assignment(token[order], ends, torch.where(expert < experts, gate[order], 0.0), False, wanted)


def routing_loss(model: nn.Module) -> Tensor:
    """Sum of the auxiliary losses of all routed layers of `model` whose losses are not attached, of their last call in training; 0 where there are
    none. Add it to the loss."""
    found = [layer.routing.loss for layer in model.modules() if isinstance(layer, RoutedMLP) and layer.routing is not None]
    return torch.stack([loss for loss in found if loss is not None]).sum() if any(loss is not None for loss in found) else torch.zeros(())


def loads(model: nn.Module) -> dict[str, Routing]:
    """Path of each routed layer of `model` → what its last call did."""
    return {name: layer.routing for name, layer in model.named_modules() if isinstance(layer, RoutedMLP) and layer.routing is not None}
