"""Tree attention: a query looks at the keys that fall into its own leaf of a decision tree, or at the means along its path. Madaan et al. 2023.

Every head has a binary tree of height h whose nodes are oblique: at node i of a level a token z goes to 2i + [w · (z − c) > t]. Queries and keys go
through the same tree, each less its own mean c.

    TF   softmax over the keys of the query's leaf alone          about T · S / 2^h products where leaves are even, with every gradient inside of one
    TC   Σ over levels l of α_l · mean(values whose keys pass node_l(q))           no products of queries and keys; α a softmax over levels

A leaf without a key that the query may see is no NaN: the query takes the mean of the values in its deepest ancestor that has one (zeros where it may
see none at all). Thresholds follow the median of what arrives, so that leaves stay even; after training they are fixed, and who falls beside a token
depends on no other token: causal stays causal. The routing is trained straight through: forward a decision is 1, backward the sigmoid of its margin.

The paper's second level of bootstrapping, trees that grow by a level at a time, is `TreeAttention.grow`; its first, layers that are converted one by
one from the last, each tuned before the next, is `bootstrap`.

Shapes: B texts, H heads, T queries, S keys, D entries of a head, P = B · H, N = 2^h leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import InputError, ModelError
from fourfold.rewrite import Context, Conversion, Edit, Proposal, Rewrite
from fourfold.structure.cores import core_of, install, key_padding

if TYPE_CHECKING:
    from fourfold.structure.sites import AttentionSite, Sites

MOST = 12
"""Highest tree: 4,096 leaves."""
LEAF = 32
"""Tokens of a leaf where the height follows from the length of inputs."""
MOMENTUM = 0.1
"""Share of a batch's medians and means in the running ones."""
SHORTEST = 1024
"""Tokens below which the main job does not offer trees: torch's fused attention is as fast."""


class TreeAttention(nn.Module):
    """A core with the semantics of torch's `scaled_dot_product_attention`: q [B, H, T, D], k and v [B, H, S, D] → [B, H, T, D].

    `heads`, `head_dim`: H and D; `height` ≥ 0 of the trees (0: TF is softmax attention, TC the mean of the values); `mode`: "tf" or "tc"; `causal`: a
    query sees no later key (also said by `is_causal`, or by a mask). TF takes any mask or bias that softmax attention takes. TC takes masks of
    padding, causality, or both together: its means know no others. Inputs of half precision are computed as they are in TF, in float32 in TC.

    In training the first batch sets the trees (`fit`) and later ones move the thresholds. Raises InputError for sizes that cannot be, and for inputs
    of other sizes than said.
    """

    weight: nn.Parameter
    centre: Tensor
    threshold: Tensor
    fitted: Tensor

    def __init__(self, heads: int, head_dim: int, height: int = 5, mode: Literal["tf", "tc"] = "tf", causal: bool = False,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if heads < 1 or head_dim < 1 or not 0 <= height <= MOST:
            raise InputError(f"Trees of height {height} for {heads} heads of {head_dim} entries cannot be.",
                             f"At least one head and one entry, and a height of 0 to {MOST}.")
        if mode not in ("tf", "tc"):
            raise InputError(f"There is no tree attention {mode!r}.", 'Choose from: "tf" (the leaf\'s keys), "tc" (means along the path).')
        self.mode: Literal["tf", "tc"] = mode
        self.heads, self.head_dim, self.height, self.causal = heads, head_dim, height, causal
        self.weight = nn.Parameter(torch.empty(heads, (1 << height) - 1, head_dim, device=device, dtype=dtype))
        self.levels = nn.Parameter(torch.empty(heads, height + 1, device=device, dtype=dtype)) if mode == "tc" else None
        self.register_buffer("centre", torch.zeros(2, heads, head_dim, device=device, dtype=dtype))
        self.register_buffer("threshold", torch.zeros(heads, (1 << height) - 1, device=device, dtype=dtype))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64, device=device))  # levels that data have set; −1: not even the means
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random directions of length one; levels weigh alike. The next batch in training sets the trees anew."""
        nn.init.normal_(self.weight)
        with torch.no_grad():
            self.weight.div_(self.weight.norm(dim=-1, keepdim=True).clamp_min(1e-6))
            self.centre.zero_()
            self.threshold.zero_()
            self.fitted.fill_(-1)
        if self.levels is not None:
            nn.init.zeros_(self.levels)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
    ) -> Tensor:
        self._check(q, k, v)
        if q.shape[2] == 0 or k.shape[2] == 0 or q.shape[0] == 0:
            return q.new_zeros(q.shape) + 0 * (q.sum() + k.sum() + v.sum())
        if self.training:
            self.fit(q, k) if int(self.fitted) < self.height else self._follow(q, k)
        causal = is_causal or (self.causal and q.shape[2] == k.shape[2])
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            return self._dense(q, k, v, attn_mask, causal, scale)
        if self.mode == "tc":
            return self._coarse(q, k, v, self._seen(q, k, attn_mask), causal)
        return self._fine(q, k, v, attn_mask, causal, scale)

    def extra_repr(self) -> str:
        return f"{self.heads} heads of {self.head_dim}, {self.mode.upper()}, height {self.height}" + (", causal" if self.causal else "")

    # --- where tokens fall -----------------------------------------------------------------------------------------------------------------------

    def leaves(self, x: Tensor, side: Literal["query", "key"]) -> Tensor:
        """The leaf of each token, int64 [B, H, T], of x [B, H, T, D]."""
        centre = self.centre[0 if side == "query" else 1]
        if _compiles(x.detach()) and self.weight.dtype == torch.float32:
            from fourfold.rewrites.attend._tree_kernels import descend

            flat = x.detach().reshape(-1, *x.shape[2:]).contiguous().numpy()
            found = np.empty(flat.shape[:2], np.int64)
            descend(flat, _array(centre), _array(self.weight), _array(self.threshold), self.height, found)
            return torch.from_numpy(found).view(x.shape[:3])
        return self._margins(x.detach(), centre)[1]

    def _margins(self, x: Tensor, centre: Tensor) -> tuple[list[Tensor], Tensor]:
        """(margins [B, H, T] of the decisions that each token meets, level by level, their sign its turn; its leaf)."""
        x = x - centre[:, None].to(x.dtype)
        node = torch.zeros(x.shape[:3], dtype=torch.int64, device=x.device)
        found, head, first = [], torch.arange(x.shape[1], device=x.device)[None, :, None], 0
        for level in range(self.height):
            at = first + node
            margin = (x * self.weight[head, at].to(x.dtype)).sum(-1) - self.threshold[head, at].to(x.dtype)
            found.append(margin)
            node, first = 2 * node + (margin > 0), first + (1 << level)
        return found, node

    def _path(self, x: Tensor, side: Literal["query", "key"]) -> list[Tensor]:
        """For each level the product of the decisions so far [B, H, T]: forward 1, backward that of their sigmoids (straight through)."""
        margins, _ = self._margins(x, self.centre[0 if side == "query" else 1])
        products, product = [], None
        for margin in margins:
            soft = torch.sigmoid(margin.abs())
            hard = 1 + soft - soft.detach()
            product = hard if product is None else product * hard
            products.append(product)
        return products

    def fit(self, q: Tensor, k: Tensor) -> None:
        """Sets what no data have set yet from q [B, H, T, D] and k [B, H, S, D]: means of queries and keys, and at each node the direction in which
        those that arrive differ most (first principal component), cut at the median."""
        with torch.no_grad():
            if int(self.fitted) < 0:
                for side, x in enumerate((q, k)):
                    self.centre[side] = x.detach().to(self.centre.dtype).mean((0, 2))
            z = self._both(q, k)
            for level in range(max(0, int(self.fitted)), self.height):
                self._split(z, level, directions=True)
            self.fitted.fill_(self.height)

    def grow(self) -> TreeAttention:
        """A tree that is one level higher: what it has stays, and the next batch in training parts its leaves (until then at random). Raises
        InputError at the greatest height."""
        taller = TreeAttention(self.heads, self.head_dim, self.height + 1, self.mode, self.causal, self.weight.device, self.weight.dtype)
        with torch.no_grad():
            old = self.weight.shape[1]
            taller.weight[:, :old], taller.threshold[:, :old] = self.weight, self.threshold
            taller.centre.copy_(self.centre)
            if self.levels is not None and taller.levels is not None:  # the new level begins with no weight to speak of
                taller.levels[:, :-1], taller.levels[:, -1] = self.levels, self.levels.min() - 4
            taller.fitted.copy_(self.fitted)
        return taller.train(self.training)

    def _both(self, q: Tensor, k: Tensor) -> Tensor:
        """Queries and keys, each less their mean, as [H, (T + S) · B, D]."""
        parts = [(x.detach().to(self.centre.dtype) - self.centre[side][:, None]).transpose(0, 1).flatten(1, 2) for side, x in enumerate((q, k))]
        return torch.cat(parts, 1)

    def _split(self, z: Tensor, level: int, directions: bool, share: float = 1.0) -> None:
        """Sets thresholds (and `directions`) of one level's nodes from those of z [H, M, D] that arrive there; few or none change nothing."""
        first = (1 << level) - 1
        for head in range(self.heads):
            node = _descended(z[head], self.weight[head], self.threshold[head], level)
            for i in torch.unique(node).tolist():
                here = z[head][node == i]
                if len(here) < 2:
                    continue
                if directions:
                    self.weight[head, first + i] = _principal(here)
                middle = (here @ self.weight[head, first + i]).median()
                self.threshold[head, first + i] += share * (middle - self.threshold[head, first + i])

    def _follow(self, q: Tensor, k: Tensor) -> None:
        """Moves means and medians a little towards those of a batch."""
        with torch.no_grad():
            for side, x in enumerate((q, k)):
                self.centre[side] += MOMENTUM * (x.detach().to(self.centre.dtype).mean((0, 2)) - self.centre[side])
            z = self._both(q, k)
            if z.shape[1] > 4096:  # a sample is enough for a median
                z = z[:, torch.linspace(0, z.shape[1] - 1, 4096, device=z.device).long()]
            for level in range(self.height):
                self._split(z, level, directions=False, share=MOMENTUM)

    # --- TF: the keys of the query's leaf --------------------------------------------------------------------------------------------------------

    def _fine(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
        learns = torch.is_grad_enabled() and self.height > 0 and (self.weight.requires_grad or q.requires_grad or k.requires_grad)
        own, theirs = self.leaves(q, "query"), self.leaves(k, "key")
        heads, width = q.shape[1], q.shape[3]
        if not torch.is_grad_enabled() and _compiles(q) and (mask is None or mask.dtype == torch.bool and mask.ndim > 1 and mask.shape[-2] == 1):
            return self._inside(q, k, v, own, theirs, mask, causal, width**-0.5 if scale is None else scale)
        factor = self._path(k, "key")[-1] - 1 if learns else None      # forward 0: what a key's decisions add to its scores
        flat = [x.reshape(-1, x.shape[3]) for x in (q, k, v)]
        by = width**-0.5 if scale is None else scale
        out, nobody = flat[0].new_zeros(len(flat[0]), v.shape[3]), max(torch.finfo(q.dtype).min, torch.finfo(torch.float32).min) / 4
        empty = torch.zeros(len(flat[0]), dtype=torch.bool, device=q.device)
        for pairs, rows, columns in _groups(own, theirs, 1 << self.height):
            add = _within(rows, columns, pairs, mask, causal, heads, nobody)
            blind = add.amax(-1).expand(rows.shape) <= nobody / 2       # before what is learnt is added, which is 0
            at, of = (pairs[:, None] * q.shape[2] + rows.clamp_min(0)).flatten(), (pairs[:, None] * k.shape[2] + columns.clamp_min(0)).flatten()
            if factor is not None:
                add = add + factor.flatten()[of].view(len(pairs), 1, -1).to(q.dtype)
            one = flat[0].index_select(0, at).view(*rows.shape, -1) * by
            two, three = (x.index_select(0, of).view(*columns.shape, -1) for x in flat[1:])
            weight = torch.baddbmm(add.to(q.dtype), one, two.transpose(1, 2)).softmax(-1)
            real = (rows >= 0).flatten()
            at = at[real]
            out = out.index_copy(0, at, torch.bmm(weight, three).flatten(0, 1)[real])
            empty = empty.index_copy(0, at, blind.flatten()[real])
        out = out.view(*q.shape[:3], -1)
        if bool(empty.any()):
            alone = empty.view(q.shape[:3]).unsqueeze(-1)
            instead = self._ancestors(q, v, own, theirs, mask, causal, empty.view(q.shape[:3]))
            out = torch.where(alone, instead.to(out.dtype), out)
        return out * self._path(q, "query")[-1].unsqueeze(-1).to(out.dtype) if learns else out

    def _inside(self, q: Tensor, k: Tensor, v: Tensor, own: Tensor, theirs: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        """`_fine` in inference: a compiled loop over the leaves, which gathers a leaf's keys once."""
        from fourfold.rewrites.attend._tree_kernels import within

        seen, node = key_padding(mask), theirs.flatten(0, 1)
        if seen is not None:
            node = torch.where(seen[:, None].expand(theirs.shape).flatten(0, 1), node, -1)
        (asks, ask_starts), (keys, key_starts) = (_sorted(x, 1 << self.height) for x in (own.flatten(0, 1), node))
        out, empty = np.zeros((len(node), q.shape[2], v.shape[3]), np.float32), np.zeros((len(node), q.shape[2]), np.bool_)
        one, two, three = (_array(x.flatten(0, 1)) for x in (q, k, v))
        within(one, two, three, asks.numpy(), ask_starts.numpy(), keys.numpy(), key_starts.numpy(), np.float32(scale), causal, out, empty)
        found = torch.from_numpy(out).view(*q.shape[:3], -1)
        if empty.any():
            alone = torch.from_numpy(empty).view(q.shape[:3])
            found = torch.where(alone.unsqueeze(-1), self._ancestors(q, v, own, theirs, mask, causal, alone), found)
        return found

    def _ancestors(self, q: Tensor, v: Tensor, own: Tensor, theirs: Tensor, mask: Tensor | None, causal: bool, empty: Tensor) -> Tensor:
        """The mean of the values in the deepest ancestor that has any which the query may see, for the queries that are `empty`."""
        out = v.new_zeros(*q.shape[:3], v.shape[3])
        if mask is None or mask.ndim < 2 or mask.shape[-2] == 1:        # the same keys for all queries, but for causality
            if _compiles(v):
                return _along(v, own, theirs, key_padding(mask), None, self.height, causal)
            for level in range(self.height + 1):
                up = self.height - level
                mean, count = _means(v, own >> up, theirs >> up, 1 << level, key_padding(mask), causal)
                out = torch.where(count.unsqueeze(-1) > 0, mean.to(out.dtype), out)
            return out
        batch, head, time = empty.nonzero(as_tuple=True)                # few: their rows of the mask are read whole
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 8
        seen = seen.expand(q.shape[0], q.shape[1], q.shape[2], theirs.shape[2])[batch, head, time]
        if causal:
            seen = seen & (torch.arange(theirs.shape[2], device=q.device) <= time[:, None])
        found = v.new_zeros(len(batch), v.shape[3])
        for level in range(self.height + 1):
            up = self.height - level
            here = seen & ((theirs >> up)[batch, head] == (own >> up)[batch, head, time][:, None])
            count = here.sum(-1, keepdim=True)
            mean = torch.einsum("ns,nsd->nd", here.to(v.dtype), v[batch, head]) / count.clamp_min(1).to(v.dtype)
            found = torch.where(count > 0, mean, found)
        return out.index_put((batch, head, time), found)

    # --- TC: means along the path ----------------------------------------------------------------------------------------------------------------

    def _coarse(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
        assert self.levels is not None
        own, theirs = self.leaves(q, "query"), self.leaves(k, "key")
        learns = torch.is_grad_enabled() and self.height > 0 and (self.weight.requires_grad or q.requires_grad or k.requires_grad)
        if not learns and _compiles(v) and not torch.is_grad_enabled():
            return _along(v, own, theirs, seen, self.levels, self.height, causal)
        paths = (self._path(q, "query"), self._path(k, "key")) if learns else None
        means, weights = [], []
        for level in range(self.height + 1):
            values = v if paths is None or level == 0 else v * paths[1][level - 1].unsqueeze(-1).to(v.dtype)
            mean, count = _means(values, own >> (self.height - level), theirs >> (self.height - level), 1 << level, seen, causal)
            if paths is not None and level > 0:
                mean = mean * paths[0][level - 1].unsqueeze(-1).to(mean.dtype)
            means.append(mean)
            weights.append(self.levels[:, level].float()[None, :, None].masked_fill(count == 0, float("-inf")))
        share = torch.stack(weights).softmax(0).nan_to_num(0.0)          # a query that sees nothing: zeros
        return sum(w.unsqueeze(-1) * m for w, m in zip(share, means, strict=True)).to(q.dtype)  # type: ignore[union-attr]

    # --- what both need --------------------------------------------------------------------------------------------------------------------------

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        wanted = (self.heads, self.head_dim)
        if q.ndim != 4 or (q.shape[1], q.shape[3]) != wanted or (k.shape[1], k.shape[3]) != wanted or v.shape[:3] != k.shape[:3]:
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
            raise InputError(f"Tree attention of {self.heads} heads of {self.head_dim} entries got {shapes}.",
                             "Give q [B, H, T, D], k and v [B, H, S, D].")
        if torch.is_floating_point(q) is False:
            raise InputError(f"Tree attention takes numbers, not a tensor of {q.dtype}.", "Give floating-point numbers.")

    def _seen(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
        """Keys that may be looked at, bool [B or 1, S], of a mask of padding, causality or both. Raises InputError for any other."""
        seen = key_padding(mask)
        if mask is not None and mask.ndim > 1 and mask.shape[-2] > 1 and not torch.compiler.is_compiling():
            open_ = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 8
            assert seen is not None
            row = seen[:, None, None, :] & open_.new_ones(open_.shape[-2:]).tril(k.shape[2] - q.shape[2]) if self.causal else seen[:, None, None, :]
            if not bool((open_ == row).all()) or (mask.dtype != torch.bool and bool((mask[open_] != 0).any())):
                raise InputError("Means along a tree's path know padding and causality, and this mask or bias is neither.",
                                 'Use mode "tf", which takes any mask.')
        return seen

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
        """The same, every pair of query and key computed: what exporters can write down."""
        own, theirs = (self._margins(x, self.centre[i])[1] for i, x in enumerate((q, k)))
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        seen = (seen.tril() if causal else seen)[None, None]
        bias = None
        if mask is not None:
            seen = seen & (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 8)
            bias = mask if mask.dtype != torch.bool else None
        layers = []
        for level in range(self.height + 1):
            up = self.height - level
            layers.append(((own >> up).unsqueeze(-1) == (theirs >> up).unsqueeze(-2)) & seen)
        means = [here.to(q.dtype) / here.sum(-1, keepdim=True).clamp_min(1).to(q.dtype) for here in layers]
        if self.mode == "tc":
            assert self.levels is not None
            weights = [torch.where(here.any(-1), self.levels[:, level][None, :, None], -1e9) for level, here in enumerate(layers)]
            share = torch.stack(weights).softmax(0) * layers[0].any(-1)
            return sum((w.unsqueeze(-1) * m) @ v for w, m in zip(share, means, strict=True))  # type: ignore[return-value]
        score = (q @ k.transpose(-1, -2)) * (q.shape[3] ** -0.5 if scale is None else scale)
        score = (score if bias is None else score + bias).masked_fill(~layers[-1], torch.finfo(q.dtype).min / 4)
        weight, some = score.softmax(-1), torch.zeros_like(score[..., :1], dtype=torch.bool)
        out = torch.zeros_like(score)
        for here, mean in zip(reversed(layers), [weight, *reversed(means[:-1])], strict=True):
            any_ = here.any(-1, keepdim=True)
            out = torch.where(any_ & ~some, mean, out)
            some = some | any_
        return out @ v


# --- pieces ----------------------------------------------------------------------------------------------------------------------------------------


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _compiles(x: Tensor) -> bool:
    """Whether our compiled loops can take it: float32 in the processor's memory, no gradient asked for, nothing traced."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return not (x.requires_grad and torch.is_grad_enabled())


def _along(v: Tensor, own: Tensor, theirs: Tensor, seen: Tensor | None, levels: Tensor | None, height: int, causal: bool) -> Tensor:
    """Means along the path [B, H, T, D], weighed by the softmax of `levels` [H, height + 1] over those that are not empty; without them the deepest
    one alone."""
    from fourfold.rewrites.attend._tree_kernels import along

    batch, heads, size, width = v.shape
    look = np.ones((batch, size), np.bool_) if seen is None else np.ascontiguousarray(seen.expand(batch, size).numpy())
    share = np.zeros((heads, height + 1), np.float32) if levels is None else np.exp(_array(levels.float() - levels.float().amax(-1, keepdim=True)))
    out = np.zeros((batch * heads, own.shape[2], width), np.float32)
    values, nodes, others = (_array(x.reshape(batch * heads, *x.shape[2:])) for x in (v.detach(), own, theirs))
    along(values, nodes, others, look, share, height, causal, levels is None, out)
    return torch.from_numpy(out).view(batch, heads, own.shape[2], width)


def _descended(z: Tensor, weight: Tensor, threshold: Tensor, level: int) -> Tensor:
    """Node of that level of each of z [M, D], by one head's tree."""
    node, first = torch.zeros(len(z), dtype=torch.int64, device=z.device), 0
    for depth in range(level):
        at = first + node
        node, first = 2 * node + ((z * weight[at]).sum(-1) > threshold[at]), first + (1 << depth)
    return node


def _principal(z: Tensor) -> Tensor:
    """The first principal component of z [M, D], length one, by the power method."""
    z = (z - z.mean(0)).float()
    square = z.T @ z
    w = square[:, int(square.diagonal().argmax())].clone()
    for _ in range(16):
        w = square @ (w / w.norm().clamp_min(1e-12))
    if float(w.norm()) < 1e-12:  # all alike: any direction
        w = torch.ones_like(w)
    return w / w.norm()


def _sorted(leaf: Tensor, leaves: int) -> tuple[Tensor, Tensor]:
    """(positions by leaf, then by position [P, T]; where each leaf begins [P, leaves + 1]) of leaf int64 [P, T]."""
    if leaf.device.type == "cpu" and not torch.compiler.is_compiling():
        from fourfold.rewrites.attend._tree_kernels import arrange

        order, starts = np.empty(leaf.shape, np.int64), np.empty((leaf.shape[0], leaves + 1), np.int64)
        arrange(leaf.contiguous().numpy(), leaves, order, starts)
        return torch.from_numpy(order), torch.from_numpy(starts)
    order = torch.sort(leaf, stable=True, dim=-1).indices
    edges = torch.arange(leaves + 1, device=leaf.device).expand(leaf.shape[0], -1).contiguous()
    return order, torch.searchsorted(leaf.gather(-1, order), edges)


def _groups(own: Tensor, theirs: Tensor, leaves: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Leaves of like size together: (p int64 [n], positions of queries [n, a], positions of keys [n, b]), filled up with −1. Sizes are rounded up
    to 8, 12, 16, 24, 32, 48 …, so that there are few groups and at most a third of each is filling; a leaf without queries is in none."""
    (by_query, query_starts), (by_key, key_starts) = (_sorted(x.flatten(0, 1), leaves) for x in (own, theirs))
    sizes = [starts.diff(dim=-1).flatten() for starts in (query_starts, key_starts)]
    caps = [2 ** torch.ceil(torch.log2(size.clamp_min(8).double())).long() for size in sizes]
    caps = [torch.where(4 * size <= 3 * cap, 3 * cap // 4, cap).clamp_min(8) * (size > 0) for size, cap in zip(sizes, caps, strict=True)]
    kind = torch.stack(caps, -1)
    kind[:, 1].clamp_min_(8)                                            # no key at all: a group like any other, in which nothing is seen
    for cap in torch.unique(kind[kind[:, 0] > 0], dim=0).tolist():
        which = ((kind[:, 0] == cap[0]) & (kind[:, 1] == cap[1])).nonzero().flatten()
        pairs, leaf = which // leaves, which % leaves
        found = []
        for order, starts, size, most in ((by_query, query_starts, sizes[0], cap[0]), (by_key, key_starts, sizes[1], cap[1])):
            offset = torch.arange(most, device=own.device)
            at = (starts[pairs, leaf, None] + offset).clamp_max(order.shape[1] - 1)
            found.append(torch.where(offset < size[which, None], order[pairs[:, None], at], -1))
        yield pairs, found[0], found[1]


def _within(rows: Tensor, columns: Tensor, pairs: Tensor, mask: Tensor | None, causal: bool, heads: int, nobody: float) -> Tensor:
    """What is added to the scores of a group, [n, a, b], or [n, 1, b] where it is the same for all queries; `nobody` where a query may not look."""
    dtype = mask.dtype if mask is not None and mask.dtype != torch.bool else torch.float32
    add = torch.zeros(columns.shape, dtype=dtype, device=columns.device).masked_fill_(columns < 0, nobody)[:, None]
    if causal:
        add = add.masked_fill(columns[:, None, :] > rows[:, :, None], nobody)
    if mask is None:
        return add
    mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    b, h = pairs // heads if mask.shape[0] > 1 else 0 * pairs, pairs % heads if mask.shape[1] > 1 else 0 * pairs
    r = rows.clamp_min(0) if mask.shape[2] > 1 else 0 * rows[:, :1]
    c = columns.clamp_min(0) if mask.shape[3] > 1 else 0 * columns
    here = mask[b[:, None, None], h[:, None, None], r[:, :, None], c[:, None, :]]
    if mask.dtype == torch.bool:
        return add.masked_fill(~here, nobody)
    return (add + here.clamp_min(nobody)).clamp_min(nobody)


def _means(v: Tensor, own: Tensor, theirs: Tensor, nodes: int, seen: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """(mean of the values of keys in each query's node that it may see, float32 or float64 [B, H, T, D], zeros where there is none; how many
    [B, H, T]). v [B, H, S, D]; own [B, H, T] and theirs [B, H, S] are nodes of one level; seen bool [B or 1, S] or None.

    Keys are sorted by node and time, and summed up once; a query's sum is the difference of two of these.
    """
    size = v.shape[2]
    node = theirs.flatten(0, 1)
    if seen is not None:
        node = torch.where(seen[:, None].expand(theirs.shape).flatten(0, 1), node, nodes)
    code, order = (node * size + torch.arange(size, device=v.device)).sort(-1)
    wide = v.double() if size > 1024 and v.dtype != torch.float64 else v.float() if v.dtype not in (torch.float32, torch.float64) else v
    values = wide.flatten(0, 1).gather(1, order.unsqueeze(-1).expand(-1, -1, v.shape[3]))
    total = F.pad(values.cumsum(1), (0, 0, 1, 0))
    first = own.flatten(0, 1) * size
    time = torch.arange(own.shape[2], device=v.device) if causal else size - 1
    begin, end = torch.searchsorted(code, first), torch.searchsorted(code, first + time, right=True)
    count = end - begin
    pick = [total.gather(1, at.unsqueeze(-1).expand(-1, -1, v.shape[3])) for at in (end, begin)]
    mean = (pick[0] - pick[1]) / count.clamp_min(1).unsqueeze(-1)
    narrow = mean.to(v.dtype if v.dtype == torch.float64 else torch.float32)
    return narrow.view(*own.shape, -1), count.view(own.shape)


def counted(core: TreeAttention, q: Tensor, k: Tensor) -> tuple[float, float]:
    """(floating-point operations of the core's attention for these q and k, those of softmax attention), routing included, projections left out. A
    multiplication and an addition count as two; exponentials and divisions are not counted, for either."""
    batch, heads, width = q.shape[0], q.shape[1], q.shape[3]
    route = 2.0 * width * core.height * batch * heads * (q.shape[2] + k.shape[2])
    dense = 4.0 * width * batch * heads * q.shape[2] * k.shape[2]
    if core.mode == "tc":
        return route + (core.height + 1) * 2.0 * width * batch * heads * (q.shape[2] + k.shape[2]), dense
    sizes = []
    for x, side in ((q, "query"), (k, "key")):
        leaf = core.leaves(x, side).flatten(0, 1)  # type: ignore[arg-type]
        sizes.append(torch.zeros(leaf.shape[0], 1 << core.height).scatter_add_(1, leaf.cpu(), torch.ones(leaf.shape)))
    return route + 4.0 * width * float((sizes[0] * sizes[1]).sum()), dense


# --- from dense to trees ---------------------------------------------------------------------------------------------------------------------------


def bootstrap(
    model: nn.Module, conversions: Sequence[Conversion], tune: Callable[[nn.Module, str], None], heights: Sequence[int] | None = None
) -> nn.Module:
    """Converts layer by layer, the last first, and calls `tune(model, what)` after each change (Madaan et al. 2023: bootstrapping from the dense
    model, then from lower trees). `conversions` of `Treeformer.conversions`; `heights`: those that the trees grow through (by default only their
    own). The model is changed in place and returned; a model that stops improving is the caller's to see in `tune`."""
    technique = Treeformer()
    from fourfold.recipe import Recipe, apply

    for one in reversed(conversions):
        *before, own = one.edits
        apply(model, Recipe(tuple(before)))
        for step, height in enumerate(sorted(set(heights or ())) or [own["height"]]):
            attention: Any = model.get_submodule(own["path"])
            core = core_of(attention)
            if step and isinstance(core, TreeAttention):
                while core.height < height:
                    core = core.grow()
                install(model, own, core)
            else:
                technique.apply(model, {**own, "height": height})
            tune(model, f"{one.site}, height {height}")
    return model


def height_for(tokens: float, leaf: int = LEAF) -> int:
    """The height at which even leaves hold `leaf` of so many tokens."""
    return int(min(MOST, max(1, round(math.log2(max(1.0, tokens / leaf))))))


class Treeformer(Rewrite):
    """Attention within the leaves of trained trees (Madaan et al. 2023)."""

    title = "tree attention: a query looks at the keys of its own leaf"
    cites = ("madaan2023",)
    needs = ("torch", "numba")
    edits = ("treeformer",)
    step = "attention within the leaves of trees"
    converts = ("treeformer",)

    def declines(self, model: nn.Module) -> str | None:
        dense = sum(isinstance(part, nn.Linear | nn.MultiheadAttention) or type(part).__name__ == "Conv1D" for part in model.modules())
        return None if dense else f"{type(model).__name__} has no linear layers, and so no attention"

    def propose(self, context: Context) -> Iterator[Proposal]:
        """One student, all attentions by trees, where inputs are so long that attention is worth it."""
        lengths = np.asarray(context.examples.lengths)
        if context.call is None or len(lengths) == 0 or float(np.quantile(lengths, 0.75)) < SHORTEST:
            return
        from fourfold.structure.sites import sites

        try:
            found = self._of(sites(context.subject.module, context.call), height_for(float(np.median(lengths))))
        except ModelError:
            return
        edits = tuple(edit for one in found for edit in one.edits)
        yield Proposal(f"tree attention in {len(found)} layers", edits, (0.6, 0.3, 1.1), quantises=False)

    def build(self, context: Context, proposal: Proposal) -> nn.Module:
        """The trees are set by a pass over the sample batch, before training begins."""
        made = super().build(context, proposal)
        cores = [part for part in made.modules() if isinstance(part, TreeAttention)]
        for core in cores:
            core.train()
        if context.call is not None:
            with torch.no_grad():
                context.call(made)
        for core in cores:
            core.eval()
        return made

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        return self._of(sites, height_for(1024))

    def _of(self, sites: Sites, height: int) -> list[Conversion]:
        found = [_conversion(site, height) for site in sites.attentions]
        if not found:
            why = [*sites.refusals.values(), "The model has no attention whose core can be replaced."]
            raise ModelError(f"No attention of the model can be converted to treeformer. {why[0]}",
                             "Write attention by torch's scaled_dot_product_attention, nn.MultiheadAttention or transformers' own classes.")
        return found

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        core = TreeAttention(int(edit["heads"]), int(edit["head_dim"]), int(edit["height"]), edit["mode"], bool(edit["causal"]))
        weight = next(iter(model.get_submodule(edit["path"]).parameters()), None)
        return install(model, edit, core if weight is None else core.to(weight.device, weight.dtype))

    def describe(self, edits: Sequence[Edit]) -> str:
        ours = [edit for edit in edits if edit.get("kind") in self.edits]
        heights = sorted({int(edit["height"]) for edit in ours})
        return f"{len(ours)} attentions within the leaves of trees of height {', '.join(map(str, heights))}"


def _conversion(site: AttentionSite, height: int) -> Conversion:
    note = f"{site.heads} trees of height {height}: a query looks at the keys of its own leaf of {1 << height}; training sets the trees."
    return Conversion(site.name, site.path, site.edits("treeformer", mode="tf", height=height), height == 0, note)
