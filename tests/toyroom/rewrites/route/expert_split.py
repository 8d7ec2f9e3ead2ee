"""A toy: each wide linear layer becomes experts of equal width, of which a token uses one (after Shazeer et al. 2017). For tests only.

Nothing in fourfold knows of it: it shows that a technique is one file, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.recipe import put
from fourfold.rewrite import Context, Edit, Proposal, Rewrite


class SplitLinear(nn.Module):
    """x [..., D] → [..., F], of which the expert with the largest mean of its first four neurons keeps its F / experts values; the rest are 0."""

    def __init__(self, inputs: int, outputs: int, experts: int) -> None:
        super().__init__()
        self.inner, self.experts = nn.Linear(inputs, outputs), experts

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x).unflatten(-1, (self.experts, -1))
        chosen = torch.nn.functional.one_hot(y[..., :4].mean(-1).argmax(-1), self.experts).to(y.dtype)
        return (y * chosen.unsqueeze(-1)).flatten(-2)


def wide(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features >= 2 * m.in_features]


class ExpertSplit(Rewrite):
    """One proposal: the last wide layer in two experts."""

    title = "experts of equal width"
    cites = ("hinton2015",)
    needs = ("torch",)
    edits = ("expert_split",)
    step = "one of two experts a token"

    def declines(self, model: nn.Module) -> str | None:
        return None if wide(model) else f"{type(model).__name__} has no linear layer twice as wide as what it reads"

    def propose(self, context: Context) -> Iterator[Proposal]:
        path = wide(context.subject.module)[-1]
        yield Proposal("experts-2", ({"kind": "expert_split", "path": path, "experts": 2},), (0.9, 0.5, 1.0))

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        old = model.get_submodule(edit["path"])
        if not isinstance(old, nn.Linear) or old.out_features % edit["experts"]:
            raise ModelError(f"{edit['path']} does not split into {edit['experts']} experts", "The recipe was made for another architecture.")
        new = SplitLinear(old.in_features, old.out_features, edit["experts"])
        new.inner.load_state_dict(old.state_dict())
        put(model, edit["path"], new)
        return model

    def describe(self, edits: Sequence[Edit]) -> str:
        return f"{edits[0]['path']} in {edits[0]['experts']} experts; distilled"
