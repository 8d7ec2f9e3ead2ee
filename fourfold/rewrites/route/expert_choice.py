"""Expert Choice: experts choose their tokens, each equally many, so that load is balanced by construction (Zhou et al. 2022, §3).

S = softmax over experts of X·W_g; of a group of n tokens each expert takes the k = round(c·n / E) with the largest S: `G, I = topk(Sᵀ, k)`, and
y_t = Σ G[i, j]·expert_i(x_t) over all (i, j) with I[i, j] = t. A token may have no expert (its MLP then adds nothing) or several; there is no
auxiliary loss.

It is not causal: whether a token is chosen depends on the tokens after it. In a decoder the training loss then falls by reading the future, which is
not there when text is generated. So a causal model is refused unless told (`allow_leak`). `threshold` is the causal variant: an expert takes the
tokens whose score is over a running mean of its k-th best, which was learnt beforehand; load is then balanced in the mean only.

Shapes: G groups of n tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.rewrite import Context, Conversion, Edit, Proposal, Rewrite
from fourfold.rewrites.route import _converting
from fourfold.rewrites.route._routed import Assignment, RoutedMLP, by_expert, exporting

if TYPE_CHECKING:
    from fourfold.structure.sites import Sites

LEAK = "with Expert Choice later tokens decide whether an expert takes a token, so a causal model reads the future in training and lacks it later"


class ExpertChoice(RoutedMLP):
    """x [..., T, D], `mask` bool [..., T] → [..., T, D]; experts choose tokens. See `RoutedMLP` for what all routed layers take.

    `causal`: the layer stands in a causal decoder, which raises ModelError unless `allow_leak` or `threshold`. `threshold`: the causal variant;
    `momentum` of its running mean.
    """

    def __init__(
        self, width: int, hidden: int, experts: int = 8, *, causal: bool = False, allow_leak: bool = False, threshold: bool = False,
        momentum: float = 0.9, **settings: Any,
    ) -> None:  # fmt: skip
        if causal and not (allow_leak or threshold):
            raise ModelError(LEAK, "Use TopTwo, or threshold=True; or allow_leak=True where you know what you do.")
        super().__init__(width, hidden, experts, **settings)
        self.threshold, self.momentum, self.ragged = threshold, momentum, threshold
        self.cutoff: Tensor | None
        self.register_buffer("cutoff", torch.full((experts,), 1 / experts) if threshold else None)

    def assign(self, scores: Tensor, keep: Tensor | None) -> Assignment:
        groups, n, experts = scores.shape
        if self.threshold:
            return self._over(scores, keep)
        k = self.capacity.slots(n)
        ranked = scores.transpose(1, 2)                                # [G, E, n]
        if keep is not None:
            ranked = ranked.masked_fill(~keep.unsqueeze(1), -1.0)      # probabilities are not negative: behind every real token
        value, index = ranked.topk(k, -1)
        token = index + n * torch.arange(groups, device=index.device).view(-1, 1, 1)
        valid = None
        if keep is not None:                                           # a group has room by its real tokens: padding changes nothing
            room = self.capacity.slots(keep.sum(1))
            valid = (torch.arange(k, device=index.device) < room.view(-1, 1, 1)).expand_as(index)
        token, value = token.transpose(0, 1).flatten(), value.transpose(0, 1).flatten()
        flat = None if valid is None else valid.transpose(0, 1).flatten()

        def total() -> Tensor:
            mine = value if flat is None else torch.where(flat, value, 0.0)
            return mine.new_zeros(groups * n).index_add(0, token, mine)[token]

        gate = self.weigh(value, total, flat)
        if flat is None or exporting():
            ends = torch.arange(1, experts + 1, device=index.device) * (groups * k)
            return Assignment(token, ends, gate, True)
        expert = torch.arange(experts, device=index.device).repeat_interleave(groups * k)
        return by_expert(torch.where(flat, expert, experts), token, gate, experts)

    def _over(self, scores: Tensor, keep: Tensor | None) -> Assignment:
        """Whoever is over the cutoff; in training the cutoff then moves towards this call's k-th best."""
        gates = self.gate_matrix(scores, keep).flatten(0, 1)
        token, expert = self._chosen(scores, keep).flatten(0, 1).nonzero(as_tuple=True)
        if self.training and self.cutoff is not None:
            with torch.no_grad():
                real = scores.flatten(0, 1) if keep is None else scores[keep]
                if len(real):
                    best = real.topk(self.capacity.slots(len(real)), 0).values[-1]
                    self.cutoff.lerp_(best.to(self.cutoff), 1 - self.momentum)
        return by_expert(expert, token, gates[token, expert], scores.shape[2])

    def _chosen(self, scores: Tensor, keep: Tensor | None) -> Tensor:
        chosen = scores >= cast(Tensor, self.cutoff)
        return chosen if keep is None else chosen & keep.unsqueeze(-1)

    def gate_matrix(self, scores: Tensor, keep: Tensor | None) -> Tensor:
        if self.threshold:
            chosen = self._chosen(scores, keep)
            return self.weigh(scores, lambda: torch.where(chosen, scores, 0.0).sum(-1, keepdim=True), chosen)
        found, shape = self.assign(scores, keep), scores.shape
        expert = torch.bucketize(torch.arange(len(found.token), device=scores.device), found.ends, right=True).clamp_max(shape[2] - 1)
        return scores.new_zeros(shape[0] * shape[1], shape[2]).index_put((found.token, expert), found.gate.to(scores.dtype), True).view(shape)


class ExpertChoiceRouting(Rewrite):
    """MLPs of encoders as experts that choose their tokens (Zhou et al. 2022), made from the MLPs' own neurons (Zhang et al. 2022)."""

    title = "MLPs as experts that choose their tokens, made from the MLPs' own neurons"
    cites = ("zhou2022", "zhang2022", "komatsuzaki2023")
    needs = ("torch",)
    edits = ("expert_choice",)
    step = "two of eight experts a token in place of the whole MLP"
    converts = ("expert-choice",)

    def declines(self, model: nn.Module) -> str | None:
        config, generates = getattr(model, "config", None), getattr(model, "can_generate", lambda: False)()
        if generates and not getattr(config, "is_encoder_decoder", False):
            return f"{type(model).__name__} generates from left to right: {LEAK}"
        found = any(isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" for m in model.modules())
        return None if found else f"{type(model).__name__} has no linear layers to make experts of"

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        """Every MLP beside which no attention is causal."""
        return _converting.offered(sites, "expert_choice", lambda site: f"{LEAK}; --to top-two does not" if site.causal else None)

    def propose(self, context: Context) -> Iterator[Proposal]:
        """All MLPs at once; nothing where none fits."""
        yield from _converting.proposal(context, "expert-choice", self.conversions)

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        return _converting.routed(model, edit, ExpertChoice)

    def describe(self, edits: Sequence[Edit]) -> str:
        return _converting.told(edits, "chosen by the experts")
