"""A toy: softmax attention in which a query sees the keys at most `reach` positions away (after Beltagy et al. 2020). For tests only.

Nothing in fourfold knows of it: it shows that a conversion is one file, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourfold.errors import ModelError
from fourfold.rewrite import Conversion, Edit, Rewrite
from fourfold.structure.cores import install
from fourfold.structure.sites import Sites


class WindowCore(nn.Module):
    """q [B, H, T, D], k, v [B, H, S, D] → [B, H, T, D]; `gain` [H] multiplies the scores of each head."""

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        self.reach, self.gain = reach, nn.Parameter(torch.ones(heads))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
    ) -> Tensor:
        at = torch.arange(k.shape[2], device=q.device)
        back = at[-q.shape[2]:, None] - at
        near = back.abs() <= self.reach
        near = near & (back >= 0) if is_causal else near
        low = torch.finfo(q.dtype).min / 4
        mask = torch.zeros_like(near, dtype=q.dtype).masked_fill(~near, low)
        if attn_mask is not None:
            mask = mask + (torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, low) if attn_mask.dtype == torch.bool else attn_mask)
        return functional.scaled_dot_product_attention(q * self.gain[:, None, None], k, v, mask, scale=scale)


class Window(Rewrite):
    """Self-attentions see their neighbours only."""

    title = "attention to near positions"
    cites = ("hinton2015",)
    needs = ("torch",)
    edits = ("window",)
    converts = ("window", "window-4")

    def declines(self, model: nn.Module) -> str | None:
        return None

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        reach = 4 if to == "window-4" else 512
        own = [site for site in sites.attentions if not site.cross]
        if not own:
            raise ModelError("there is no self-attention that could be kept to near positions", "Convert a model that has some.")
        note = f"each query sees {reach} positions to either side; what lies further is lost"
        return [Conversion(site.name, site.path, site.edits("window", reach=reach), reach > 128, note) for site in own]

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        return install(model, edit, WindowCore(edit["heads"], edit["reach"]))

    def describe(self, edits: Sequence[Edit]) -> str:
        return f"attention to {edits[-1]['reach']} positions to either side"
