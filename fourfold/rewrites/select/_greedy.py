"""Sequential Attention (Yasuda et al., ICLR 2023, algorithm 1): greedy selection inside one training run, with its schedule corrected.

One logit a feature; the softmax over the features that are not chosen yet scales them, chosen ones pass at full strength. A run is a warm-up without
a mask, then phases of equal length; at the *end* of a phase the features of the largest logits are chosen, the logits begin anew as noise, and the
network's weights go on. (Choosing at the beginning of a phase would choose by the noise, and comparing the number of the phase with the number of
features would end with too few of them; both are in circulation.)

So that a network of many features does not learn few rows by heart, after which gradients tell nothing, a share of the features may be dropped in
every batch, chosen ones too (`dropout`; the same ones for all rows of the batch, which costs nothing).

Where the network is ours, the mask is folded into its first layer, W' = W ⊙ mask: the gradient of the mask is then a sum over dL/dW' ⊙ W, which a
plain training run has anyway, and no gradient of the inputs is needed.

Shapes: B rows of a batch, d features, h hidden units, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import InputError

NOISE = 1e-5
"""Standard deviation of fresh logits: enough to break ties, too little to prefer anything."""
LEAST_UPDATES = 8
"""Updates of the logits without which a phase would choose by their noise."""

Batch = tuple[Tensor, Tensor, Tensor | None]
"""Inputs [B, d], targets, and weights [B] of the rows or None."""


@dataclass(frozen=True)
class SelectionSchedule:
    """When how many features are chosen: `features` in all, `step` at the end of each phase, over `updates` of which the first `warmup` (a share)
    have no mask. Raises InputError where a phase would be too short to learn anything."""

    features: int
    step: int
    updates: int
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if self.features < 1 or self.step < 1:
            raise InputError(f"{self.features} features in steps of {self.step} cannot be selected.", "Both must be at least 1.")
        if not 0.0 <= self.warmup < 1.0:
            raise InputError(f"a warm-up of {self.warmup} of the training is not a share.", "It must be at least 0 and less than 1.")
        if self.updates - self.first < LEAST_UPDATES * self.phases:
            raise InputError(
                f"{self.updates:,} updates are too few for {self.phases:,} phases, each of which chooses {self.step}: they would choose by noise.",
                f"Train longer, or choose more features at a time: {LEAST_UPDATES} updates a phase after the warm-up are the least.",
            )

    @property
    def first(self) -> int:
        """Updates of the warm-up."""
        return int(self.warmup * self.updates)

    @property
    def phases(self) -> int:
        return -(-self.features // self.step)

    def due(self, done: int) -> int:
        """Features that are chosen once `done` updates are made: a phase's at its end, all of them at the end of the run."""
        ended = max(0, done - self.first) * self.phases // (self.updates - self.first)
        return min(self.features, ended * self.step)


class FeatureAttention(nn.Module):
    """x [..., d] → x ⊙ mask: 1 for what is chosen, the softmax over the rest of `eligible` for the rest; all ones while `warm`.

    `eligible` bool [d]: what may be chosen (None: all). `dropout`: share of the features that a batch does without, in training. `order` lists
    what is chosen, the first first.
    """

    chosen: Tensor
    eligible: Tensor

    def __init__(
        self, features: int, eligible: Tensor | None = None, generator: torch.Generator | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.logits = nn.Parameter(torch.zeros(features))
        self.register_buffer("chosen", torch.zeros(features, dtype=torch.bool))
        self.register_buffer("eligible", torch.ones(features, dtype=torch.bool) if eligible is None else eligible.clone())
        self.generator = generator
        self.order: list[int] = []
        self.warm = True
        self.renew()

    def renew(self) -> None:
        """Fresh logits: noise that prefers nothing."""
        with torch.no_grad():
            self.logits.normal_(0.0, NOISE, generator=self.generator)

    def attention(self) -> Tensor:
        """Softmax [d] over what may still be chosen, 0 elsewhere."""
        open_ = self.eligible & ~self.chosen
        return torch.softmax(self.logits.masked_fill(~open_, float("-inf")), 0) if bool(open_.any()) else torch.zeros_like(self.logits)

    def mask(self) -> Tensor | None:
        """What inputs are multiplied by [d]; None for ones."""
        mask = None if self.warm else self.attention() + self.chosen
        if not self.training or not self.dropout:
            return mask
        kept = torch.rand(len(self.logits), generator=self.generator).ge(self.dropout).to(self.logits) / (1.0 - self.dropout)
        return kept if mask is None else mask * kept

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask()
        return x if mask is None else x * mask.to(x.dtype)

    def choose(self, count: int) -> Tensor:
        """Choose the `count` of the largest logits among what may be chosen, then begin anew. Returns the attention [d] that decided."""
        with torch.no_grad():
            attention = self.attention()
            open_ = self.eligible & ~self.chosen
            picks = self.logits.masked_fill(~open_, float("-inf")).topk(min(count, int(open_.sum()))).indices
            self.chosen[picks] = True
            self.order += picks.tolist()
        self.renew()
        return attention

    def extra_repr(self) -> str:
        return f"{len(self.logits)} features, {len(self.order)} chosen"


class SelectingMLP(nn.Module):
    """x [B, d] → [B, o] through hidden layers of ReLUs, the attention folded into the first layer. `hidden` (): a linear model."""

    def __init__(self, attention: FeatureAttention, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.attention = attention
        sizes = [len(attention.logits), *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.layers
        mask = self.attention.mask()
        assert isinstance(first, nn.Linear)
        x = F.linear(x, first.weight if mask is None else first.weight * mask, first.bias)
        for layer in rest:
            x = layer(torch.relu(x))
        return x


class Attended(nn.Module):
    """A network of the user's own behind the attention: x [B, d] → network(x ⊙ mask)."""

    def __init__(self, attention: FeatureAttention, network: nn.Module) -> None:
        super().__init__()
        self.attention, self.network = attention, network

    def forward(self, x: Tensor) -> object:
        return self.network(self.attention(x))


def select(
    network: nn.Module, attention: FeatureAttention, schedule: SelectionSchedule, batch: Callable[[int], Batch],
    loss: Callable[[Tensor, Tensor], Tensor], *, lr: float = 3e-3, attention_lr: float | None = None, weight_decay: float = 0.0,
    advance: Callable[[], None] = lambda: None,
) -> Tensor:  # fmt: skip
    """Train `network` (which holds `attention`) by Adam on `batch(update)` and choose by `schedule`; what is chosen stands in `attention.order`.

    `loss(outputs, targets)` answers one number a row [B]. Returns scores float [d]: the attention, relative to an even one, by which each was chosen;
    for what was not chosen, that of the last phase. Raises InputError where the loss is not finite.
    """
    weights = [p for p in network.parameters() if p is not attention.logits and p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in weights)
    optimiser = torch.optim.Adam(weights, lr=lr, weight_decay=weight_decay, fused=fused)
    beside = torch.optim.Adam([attention.logits], lr=attention_lr or lr)
    scores = torch.zeros(len(attention.logits))
    network.train()
    for update in range(schedule.updates):
        attention.warm = update < schedule.first
        x, targets, rows = batch(update)
        each = loss(network(x), targets)
        value = each.mean() if rows is None else (each * rows).sum() / rows.sum().clamp_min(1e-12)
        optimiser.zero_grad(set_to_none=True)
        beside.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        if not attention.warm:
            beside.step()
        missing = schedule.due(update + 1) - len(attention.order)
        if missing > 0:
            if not bool(torch.isfinite(value)) or not bool(torch.isfinite(attention.logits).all()):
                raise InputError(f"the training diverged after {update + 1:,} updates.", f"Use a smaller learning rate than {lr:g}.")
            open_ = attention.eligible & ~attention.chosen
            found = attention.choose(missing)
            scores[open_] = found[open_] * int(open_.sum())
            beside = torch.optim.Adam([attention.logits], lr=attention_lr or lr)
        advance()
    network.eval()
    return scores
