"""Sequential Attention++ (Yasuda et al., NeurIPS 2024): which blocks of a weight matrix matter, learnt while the matrix is trained.

One logit a block, A = N softmax(L) over the N blocks of a matrix (mean 1), and W is replaced by W ⊙ A ⊙ mask, A and mask spread over the blocks.
The mask follows the alternating schedule of AC/DC (Peste et al. 2021): dense, rounds of dense, sparsification and sparse training, then sparse to
the end. Sparsification takes the blocks of the smallest A away, as many as

    s(t) = s (1 − e^(−ct)) / (1 − e^(−c)),   c = 4, t from 0 to 1.

At the end A is folded into W. A block may be a square, or the columns that belong to one unit (a neuron, a head).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fourfold.errors import InputError, ModelError


@dataclass(frozen=True)
class AlternatingSchedule:
    """Phase and sparsity of every update: `dense` of all `updates` (a share), `rounds` of equal length, `sparse` at the end."""

    updates: int
    sparsity: float
    rounds: int = 7
    dense: float = 0.1
    sparse: float = 0.15
    sharpness: float = 4.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise InputError(f"a sparsity of {self.sparsity} is no share of the blocks.", "It must be at least 0 and less than 1.")
        if self.updates < 10 * self.rounds:
            raise InputError(f"{self.updates} updates are too few for {self.rounds} rounds.", f"Train for {10 * self.rounds} or more.")

    def at(self, update: int) -> tuple[Literal["dense", "sparsify", "sparse"], float]:
        """Phase and share of blocks that are away during this update, counted from 0."""
        share = update / self.updates
        if share < self.dense:
            return "dense", 0.0
        if share >= 1.0 - self.sparse:
            return "sparse", self.sparsity
        within = (share - self.dense) / (1.0 - self.dense - self.sparse) * self.rounds
        third = (within - math.floor(within)) * 3
        if third < 1.0:
            return "dense", 0.0
        if third >= 2.0:
            return "sparse", self.sparsity
        return "sparsify", self.sparsity * (1 - math.exp(-self.sharpness * (third - 1))) / (1 - math.exp(-self.sharpness))


class BlockAttention(nn.Module):
    """W → W ⊙ A ⊙ mask, as a parametrization. `index` int64, broadcastable to W: the block of each weight, of `blocks` in all."""

    index: Tensor
    mask: Tensor

    def __init__(self, index: Tensor, blocks: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(blocks))
        self.register_buffer("index", index)
        self.register_buffer("mask", torch.ones(blocks, dtype=torch.bool))

    def attention(self) -> Tensor:
        """A [N], mean 1."""
        return len(self.logits) * torch.softmax(self.logits, 0)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.attention() * self.mask)[self.index].to(weight.dtype)

    @torch.no_grad()
    def keep(self, count: int) -> None:
        """Take the blocks of the smallest A away until `count` are left; what is away stays away."""
        gone = int(self.mask.sum()) - count
        if gone > 0:
            self.mask[self.logits.masked_fill(~self.mask, float("inf")).topk(gone, largest=False).indices] = False

    def kept(self) -> list[int]:
        """Blocks that are left, in order."""
        return self.mask.nonzero().flatten().tolist()

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {len(self.mask)} blocks"


def squares(weight: Tensor, block: int) -> tuple[Tensor, int]:
    """(block of each weight, number of blocks) of a matrix cut into squares. Raises ModelError where `block` does not divide both sides."""
    rows, columns = weight.shape
    if block < 1 or rows % block or columns % block:
        raise ModelError(f"a matrix of {rows} × {columns} cannot be cut into blocks of {block} × {block}", "Choose a block that divides both sides.")
    across = columns // block
    return torch.arange(rows).div(block, rounding_mode="floor")[:, None] * across + torch.arange(columns).div(block, rounding_mode="floor"), (
        rows // block
    ) * across


class BlockSparsifier:
    """Puts a `BlockAttention` on weights while a model is trained by anybody's loop: `before(update)` ahead of each update, `fold()` at the end.

    `layers`: path → (index, blocks) of the weight of that module of `model`. The logits are parameters of the model: give its parameters to the
    optimiser after this.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, tuple[Tensor, int]], schedule: AlternatingSchedule) -> None:
        self.model, self.schedule = model, schedule
        self.attentions: dict[str, BlockAttention] = {}
        for path, (index, blocks) in layers.items():
            self.attentions[path] = BlockAttention(index, blocks)
            parametrize.register_parametrization(model.get_submodule(path), "weight", self.attentions[path], unsafe=True)

    @classmethod
    def of(cls, model: nn.Module, paths: Iterable[str], schedule: AlternatingSchedule, block: int = 16) -> BlockSparsifier:
        """Squares of `block` × `block` of the linears at `paths`. Raises ModelError where one cannot be cut into them."""
        return cls(model, {path: squares(model.get_submodule(path).weight, block) for path in paths}, schedule)  # type: ignore[arg-type]

    def before(self, update: int) -> None:
        """Set the masks of this update."""
        phase, share = self.schedule.at(update)
        for attention in self.attentions.values():
            if phase == "dense":
                attention.mask.fill_(True)
            else:
                attention.keep(len(attention.mask) - round(share * len(attention.mask)))

    def parameters(self) -> list[nn.Parameter]:
        """The logits, for an optimiser group of their own (no weight decay)."""
        return [attention.logits for attention in self.attentions.values()]

    def fold(self) -> dict[str, list[int]]:
        """Multiply A and mask into the weights and take the attentions off; the blocks that are left, by path."""
        for path in self.attentions:
            parametrize.remove_parametrizations(self.model.get_submodule(path), "weight", leave_parametrized=True)
        return {path: attention.kept() for path, attention in self.attentions.items()}
