"""Layer removal: whole blocks and whole sub-layers (attention, cross-attention, feed-forward) leave, chosen by measured influence.

Two readings, both from the calibration pass: Block Influence (ShortGPT, Men et al. 2024), 1 − mean cosine between a block's input and output, and
the ablation itself, the divergence of the model's answers when the block or sub-layer hands on its input. The ablation decides; Block Influence
breaks ties and is reported. Removal is of the residual branch: the stream passes unchanged, a post-norm keeps its norm, and a block that has lost
all of its sub-layers is taken out of its stack with its norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from fourfold.rewrite import Context, Option, Proposal, Rewrite
from fourfold.rewrites.compress._single import single
from fourfold.structure.discover import Anatomy

if TYPE_CHECKING:
    from fourfold.rewrites.calibration import Sensitivities


def block_order(anatomy: Anatomy, sensitivities: Sensitivities) -> dict[str, list[int]]:
    """For each stack, its removable block numbers, the least missed first (ablation harm, then Block Influence)."""

    def missed(path: str) -> tuple[float, float]:
        return sensitivities.ablation.get(path, float("inf")), sensitivities.influence.get(path, 2.0)

    return {s.name: sorted((i for i, b in enumerate(s.blocks) if b.removable), key=lambda i, s=s: missed(s.blocks[i].path)) for s in anatomy.stacks}


class LayerRemoval(Rewrite):
    """Whole blocks and sub-layers, by measured influence (ShortGPT Block Influence, Men et al. 2024, and direct ablation)."""

    default = True
    title = "whole blocks and sub-layers, by measured influence"
    cites = ("men2024shortgpt", "sajjad2023")
    needs = ("torch",)
    combined = True

    def declines(self, model: nn.Module) -> str | None:
        stacks = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1]
        return (
            None
            if stacks
            else f"{type(model).__name__} has no stack of blocks (no ModuleList or Sequential); its matrices may still be pruned, quantised and raced"
        )

    def options(self, anatomy: Anatomy, sensitivities: Sensitivities) -> list[Option]:
        found = []
        for stack in anatomy.stacks:
            for block in stack.blocks:
                for sub in block.sublayers:
                    full = sub.bundle.count if sub.bundle else 1
                    if sub.absent and sub.name in sensitivities.ablation:
                        found.append(Option(sub.name, 0, full, sensitivities.ablation[sub.name], {"block": block.path}))
                if not block.sublayers and block.removable and block.path in sensitivities.ablation:
                    found.append(Option(block.path, 0, 1, sensitivities.ablation[block.path], {"block": block.path}))
        return found

    def propose(self, context: Context) -> Iterator[Proposal]:
        """One removal each, least harm first."""
        yield from single(self.options(context.anatomy, context.sensitivities), context)
