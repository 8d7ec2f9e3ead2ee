"""Token-choice routing: each token takes its two best experts, as in GShard (Lepikhin et al. 2021, §2.2) and GLaM (Du et al. 2022).

Gates are the two probabilities, normalised to sum to one. Load is what the router makes of it; an auxiliary loss pulls it towards balance:
`balance`·E·Σ_i f_i·p_i, with f_i the share of tokens whose first choice is i and p_i its mean probability (Lepikhin et al. 2021, algorithm 1, up to
its factor).

*Dropless*, as it is unless told otherwise, every choice is computed. With a capacity, choices beyond an expert's room are dropped: "choice" order
fills all first choices before any second, as GShard does; "token" order fills token by token. In choice order a later token's first choice takes the
room of an earlier token's second, so it leaks in a causal model; token order does not, at a given length; dropless never does.

Shapes: G groups of n tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import ModelError
from fourfold.rewrite import Context, Conversion, Edit, Proposal, Rewrite
from fourfold.rewrites.route import _converting
from fourfold.rewrites.route._routed import Assignment, RoutedMLP, by_expert

if TYPE_CHECKING:
    from fourfold.structure.sites import Sites


class TopTwo(RoutedMLP):
    """x [..., T, D], `mask` bool [..., T] → [..., T, D]; each token takes two experts. See `RoutedMLP` for what all routed layers take.

    `dropless`: every choice is computed, and `capacity_factor` is not used. Else an expert has room for round(c·n / E) of a group's tokens, filled in
    `order` "choice" or "token". `balance`: weight of the auxiliary loss. `causal`: the layer stands in a causal decoder; ModelError for choice order
    with a capacity, unless `allow_leak`.
    """

    def __init__(
        self, width: int, hidden: int, experts: int = 8, *, dropless: bool = True, order: Literal["choice", "token"] = "choice",
        balance: float = 0.01, causal: bool = False, allow_leak: bool = False, gates: Any = "normalised", **settings: Any,
    ) -> None:  # fmt: skip
        if experts < 2 or order not in ("choice", "token"):
            raise ModelError(f"two of {experts} experts in order {order!r}", 'At least 2 experts; orders: "choice", "token".')
        if causal and not (dropless or order == "token" or allow_leak):
            raise ModelError("filled in choice order, a later token's first choice takes the room of an earlier token's second: it leaks",
                             'Use dropless=True or order="token"; or allow_leak=True where you know what you do.')
        super().__init__(width, hidden, experts, gates=gates, **settings)
        self.dropless, self.order, self.balance = dropless, order, balance

    def _choices(self, scores: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(experts [G, n, 2], gates [G, n, 2], which of them are computed or None for all)."""
        value, choice = scores.topk(2, -1)
        valid = None if keep is None else keep.unsqueeze(-1).expand_as(choice)
        if not self.dropless:
            valid = self._fits(choice, valid)
        return choice, self.weigh(value, lambda: value.sum(-1, keepdim=True), valid), valid

    def _fits(self, choice: Tensor, valid: Tensor | None) -> Tensor:
        """Which choices find room [G, n, 2]."""
        groups, n, _ = choice.shape
        one = F.one_hot(choice, self.capacity.experts)                 # [G, n, 2, E]
        if valid is not None:
            one = one * valid.unsqueeze(-1)
        filled = one.transpose(1, 2) if self.order == "choice" else one
        place = filled.flatten(1, 2).cumsum(1).view(filled.shape)
        place = place.transpose(1, 2) if self.order == "choice" else place
        room = self.capacity.slots(n) if valid is None else self.capacity.slots(valid[..., 0].sum(1)).view(-1, 1, 1)
        mine = (place * one).sum(-1)                                   # counted from 1; 0 for masked tokens
        return (mine > 0) & (mine <= room)

    def assign(self, scores: Tensor, keep: Tensor | None) -> Assignment:
        choice, gate, valid = self._choices(scores, keep)
        many, experts = scores.shape[0] * scores.shape[1], scores.shape[2]
        token = torch.arange(many, device=scores.device).repeat_interleave(2)
        expert = choice if valid is None else torch.where(valid, choice, experts)
        wanted = torch.tensor(2 * many, device=scores.device) if keep is None else 2 * keep.sum()
        return by_expert(expert.flatten(), token, gate.flatten(), experts, wanted)

    def gate_matrix(self, scores: Tensor, keep: Tensor | None) -> Tensor:
        choice, gate, _ = self._choices(scores, keep)
        return torch.zeros_like(scores).scatter(-1, choice, gate)

    def losses(self, logits: Tensor, scores: Tensor, keep: Tensor | None) -> Tensor | None:
        loss = super().losses(logits, scores, keep)
        if not self.balance:
            return loss
        with torch.no_grad():
            first = F.one_hot(scores.argmax(-1), self.capacity.experts).to(scores.dtype)
        real = None if keep is None else keep.unsqueeze(-1)
        share, mean = self._means(first, real), self._means(scores, real)
        even = self.balance * self.capacity.experts * (share * mean).sum()
        return even if loss is None else loss + even

    @staticmethod
    def _means(values: Tensor, real: Tensor | None) -> Tensor:
        """Mean over real tokens of [G, n, E], of all groups: [E]."""
        if real is None:
            return values.mean((0, 1))
        return torch.where(real, values, 0.0).sum((0, 1)) / real.sum().clamp_min(1)

    def flops(self, tokens: int) -> int:
        inner, rows = 2 if self.experts.gated else 1, 2 * tokens
        return 2 * self.experts.width * (tokens * self.capacity.experts + rows * (inner + 1) * self.experts.hidden)


class TopTwoRouting(Rewrite):
    """MLPs as experts of which each token takes two (Lepikhin et al. 2021; Du et al. 2022), made from the MLPs' own neurons (Zhang et al. 2022)."""

    title = "MLPs as experts of which each token takes two, made from the MLPs' own neurons"
    cites = ("lepikhin2021", "du2022", "zhang2022", "komatsuzaki2023")
    needs = ("torch",)
    edits = ("top_two",)
    step = "two of eight experts a token in place of the whole MLP"
    converts = ("top-two",)

    def declines(self, model: nn.Module) -> str | None:
        found = any(isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" for m in model.modules())
        return None if found else f"{type(model).__name__} has no linear layers to make experts of"

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        """Every MLP; dropless, so that a causal model stays causal."""
        return _converting.offered(sites, "top_two", lambda site: None)

    def propose(self, context: Context) -> Iterator[Proposal]:
        """All MLPs at once; nothing where none fits."""
        yield from _converting.proposal(context, "top-two", self.conversions)

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        return _converting.routed(model, edit, TopTwo)

    def describe(self, edits: Sequence[Edit]) -> str:
        return _converting.told(edits, "chosen by each token")
