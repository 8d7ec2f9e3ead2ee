"""Linear attention whose kernel is multiplied by a mask of relative position, grid, tree or graph, in less than quadratic time (Choromanski et al.
2022).

With features φ and a mask M ≥ 0, num_i = φ(q_i)ᵀ Σ_j M_ij φ(k_j) v_jᵀ and den_i = φ(q_i)ᵀ Σ_j M_ij φ(k_j): all that touches M is its product with the
N × m(e+1) numbers [φ(k_j) v_jᵀ, φ(k_j)]. Where M times a vector costs T(N), attention costs T(N) · m(e+1). A relative bias b added to scores is
M = e^b. The masks are in `_masks`: Toeplitz and grids by Fourier transforms without wrap-around, trees in two passes or by centroids, graphs by
diffusion. Below a measured length the product is made densely, which is the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.rewrite import Conversion, Edit, Rewrite
from fourfold.rewrites.attend._features import Kind, RandomFeatures
from fourfold.rewrites.attend._linear import exporting, read_mask, scaled, weighted, with_ones
from fourfold.rewrites.attend._masks import AttentionMask, ToeplitzMask
from fourfold.structure.cores import install

if TYPE_CHECKING:
    from fourfold.structure.sites import Sites

SHORT = 1024  # positions up to which the dense product is faster on processors (docs/features.md)
NUMBERS = 1 << 17  # numbers that go through the mask at once: their transforms stay in the cache
FEATURES, REACH = 64, 512  # of a converted attention


class MaskedLinearAttention(nn.Module):
    """q [B, H, L, d], k [B, H or fewer, S, d], v [B, H or fewer, S, e] → [B, H, L, e], with the arguments of torch's
    `scaled_dot_product_attention`.

    `heads` H, `head_dim` d, `mask`: an `AttentionMask` of H heads or 1, over the S positions; queries are the last L of them. `features` m: cost
    grows with m · (e + 1), so that few are asked. `kind`, `orthogonal`, `seed`: as for BoundedFeatures. `short`: positions up to which the product is
    dense. Computed in float32 with transforms in float64 (all in float64 for such inputs) and given back in the inputs' type.

    `attn_mask` may leave keys out or add numbers to them, and say that attention is causal, which a mask without order refuses. A query that sees no
    key gets 0. With `biased` the numbers in `attn_mask` are those that the mask holds itself, and only whether they hide keys is read. A number that
    is not finite spreads to all positions through a transform, unless its key is left out.
    """

    def __init__(self, heads: int, head_dim: int, mask: AttentionMask, features: int = 32, *, kind: Kind = "bounded", orthogonal: bool = True,
                 seed: int = 0, short: int = SHORT, biased: bool = False) -> None:
        super().__init__()
        if mask.heads not in (1, heads):
            raise ModelError(f"the mask is of {mask.heads} heads, the attention of {heads}.",
                             "Make the mask for 1 head, which serves all, or for as many.")  # fmt: skip
        if kind == "trigonometric":
            raise ModelError("trigonometric features were asked for under a mask: their sums may vanish.", "Kinds: bounded, positive.")
        self.maps = RandomFeatures(heads, head_dim, features, kind, orthogonal=orthogonal, seed=seed)
        self.mask, self.short, self.biased = mask, short, biased

    def reset_parameters(self) -> None:
        self.maps.reset_parameters()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """Raises ModelError for shapes that do not belong together, more queries than keys, and masks that sums over keys cannot carry."""
        n, m = key.shape[-2], query.shape[-2]
        seen = read_mask(_hidden(attn_mask) if self.biased else attn_mask, is_causal, m, n)
        if m > n or (seen.causal and seen.offset != n - m):
            raise ModelError(f"{m} queries and {n} keys were given: a masked attention must know at which positions the queries stand.",
                             "Give as many, or the queries of the last positions and a mask that says so.")  # fmt: skip
        self.mask.check(n, seen.causal)
        x, y, v = scaled(query, key, value, scale, self.maps.heads, self.maps.width)
        with torch.autocast(x.device.type, enabled=False):
            keep = None if seen.bias is None else seen.bias > -torch.inf
            a = self.maps.a(x.dtype) if self.training else None
            if self.training and x.numel() and y.numel():
                self.maps.observe(x, y, keep)
            if keep is not None:
                y, v = y.masked_fill(~keep[..., None], 0), v.masked_fill(~keep[..., None], 0)
            maps = self.maps.prepared(x.dtype, a)
            f_x, f_y, k = maps(x, False)[0], *maps(y, True)
            k = weighted(k, None if seen.bias is None else seen.bias.to(x.dtype), slice(None))
            most = k.detach().amax(-1, keepdim=True) if n else k
            v1 = with_ones(v) * (k - most.masked_fill(most == -torch.inf, 0)).exp()[..., None]
            sums = self._dense(f_x, f_y, v1, seen.causal) if n <= self.short or m < n or exporting() else self._fast(f_x, f_y, v1, seen.causal)
            above, below = sums[..., :-1], sums[..., -1:]
            # what is no more than the rounding of the largest sum cannot be told from 0: it may not blow up, nor turn sign
            least = below.detach().amax(-2, keepdim=True) * torch.finfo(torch.float64).eps if m and n else below
            out = above / torch.maximum(below, least).clamp_min(torch.finfo(below.dtype).tiny)
            out = out.masked_fill(~self._lit(keep, m, n, seen.causal, x.device)[..., None], 0)
        return out.to(query.dtype)

    def _dense(self, f_x: Tensor, f_y: Tensor, v: Tensor, causal: bool) -> Tensor:
        mask = self.mask.dense(f_y.shape[2], f_x.shape[2], causal).to(f_x.dtype)
        return ((f_x @ f_y.transpose(-1, -2)) * mask) @ v

    def _fast(self, f_x: Tensor, f_y: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Feature by feature as many as `NUMBERS` allows: [B, H, N, e + 1]."""
        b, h, n, width = v.shape
        f_x, f_y, v = f_x.transpose(-1, -2), f_y.transpose(-1, -2), v.transpose(-1, -2)
        step = max(1, NUMBERS // max(1, b * h * n * width))
        total, product = torch.zeros_like(v), self.mask.prepared(n, causal)
        for start in range(0, f_y.shape[2], step):
            part = slice(start, start + step)
            stacked = f_y[:, :, part, None] * v[:, :, None]             # [B, H, step, e + 1, N]
            through = product(stacked.flatten(2, 3)).view_as(stacked)
            total = total + (through * f_x[:, :, part, None]).sum(2)
        return total.transpose(-1, -2)

    def _lit(self, keep: Tensor | None, queries: int, keys: int, causal: bool, device: torch.device) -> Tensor:
        """bool [B or 1, H or 1, L]: whether a query sees any key. Counted, since a transform's sum of nothing is not quite 0."""
        keep = torch.ones(1, 1, keys, dtype=torch.bool, device=device) if keep is None else keep
        if causal:
            return (keep.cumsum(-1) > 0)[..., keys - queries :]
        return keep.any(-1, keepdim=True).expand(*keep.shape[:-1], queries)

    def extra_repr(self) -> str:
        return f"short={self.short}"


def _hidden(mask: Tensor | None) -> Tensor | None:
    """Marks of what a mask hides, whatever it adds to the rest."""
    return mask if mask is None or mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 8


class MaskedFeatures(Rewrite):
    """Attention by random features under a learnt mask of relative position in place of the softmax (Choromanski et al. 2022)."""

    title = "attention by random features under a learnt mask of relative position, less than quadratic"
    cites = ("choromanski2022", "likhosherstov2022")
    needs = ("torch",)
    edits = ("masked_features",)
    converts = ("masked-features",)
    step = "softmax attention estimated by random features under a mask of position"

    def declines(self, model: nn.Module) -> str | None:
        """Whether there is an attention shows when the model runs, which is for `conversions`."""
        return None

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        """Every attention of a sequence with itself. One with a learnt relative bias (T5's) hands it over to its mask; others start from no bias."""
        found = []
        for number, site in enumerate(site for site in sites.attentions if not site.cross):
            edits = site.edits("masked_features", features=FEATURES, seed=number, reach=REACH, biased=site.biased)
            note = (f"softmax attention of {site.heads} heads estimated by {FEATURES} random features each under a mask of relative position that is "
                    f"learnt{' further' if site.biased else ''}: less than quadratic time, answers change until it is recovered")
            found.append(Conversion(site.name, site.path, edits, False, note))
        if not found:
            raise ModelError("the model has no attention of a sequence with itself to put a mask of relative position on.", "Convert another model.")
        return found

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        mask = ToeplitzMask(edit["heads"], edit["reach"])
        if edit["biased"]:
            _take_over(model, edit, mask)
        core = MaskedLinearAttention(edit["heads"], edit["head_dim"], mask, edit["features"], seed=edit["seed"], biased=edit["biased"])
        return install(model, edit, core)

    def describe(self, edits: Sequence[Edit]) -> str:
        mine = [edit for edit in edits if edit["kind"] == "masked_features"]
        return f"{len(mine)} attentions by {FEATURES} random features under a learnt mask of relative position"


@torch.no_grad()
def _take_over(model: nn.Module, edit: Edit, mask: ToeplitzMask) -> None:
    """Writes the relative bias of the attention at `edit`'s path, or of the first one that serves its stack (T5), into the mask."""
    names = edit["path"].split(".")
    holder: Any = None
    for depth in range(len(names), -1, -1):                            # the nearest above that holds a table of relative positions
        above = model.get_submodule(".".join(names[:depth]))
        holder = next((part for part in above.modules() if isinstance(getattr(part, "relative_attention_bias", None), nn.Embedding)
                       and callable(getattr(part, "compute_bias", None))), None)  # fmt: skip
        if holder is not None:
            break
    if holder is None:
        raise ModelError(f"the position bias of {edit['path']} is kept in a way that is not known.",
                         "Only relative biases as T5 has them are taken over.")  # fmt: skip
    if holder.relative_attention_bias.weight.is_meta:
        return
    n = mask.reach + 1
    bias = holder.compute_bias(n, n)[0]                                # [H, n, n]: of key − query
    mask.bias.copy_(torch.cat([bias[:, 0, 1:].flip(-1), bias[:, :, 0]], -1))
