"""Attention by positive bounded random features, in time linear in the length (FAVOR++: Likhosherstov et al. 2022; FAVOR+: Choromanski et al. 2021).

softmax(QKᵀ)V is estimated as φ(Q) (φ(K)ᵀ V) with random features φ of the kernel exp(xᵀy), x = q·√scale, y = k·√scale (`_features`): positive,
bounded, unbiased, of least mean log second moment over queries and keys through one number A a head, and with orthogonal directions. Causal attention
goes through prefix sums, chunk by chunk (`_linear`), and leaves a state of M · (e + 1) numbers a head with which decoding goes on.

A depends on the data, so that it is a running mean without gradient, updated while training and fixed after it: A of the present sequence would tell a
causal model of what is to come. Directions are drawn from a seed, saved, and drawn anew every `redraw` training steps.

It pays for long inputs only: the page docs/features.md has the measured length. An estimate is another function than the softmax, so that a converted
model wants recovery by distillation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.rewrite import Context, Edit, Proposal, Rewrite
from fourfold.rewrites.attend._features import Kind, RandomFeatures, per_sequence
from fourfold.rewrites.attend._linear import LinearState, bidirectional, causal, exporting, read_mask, scaled

LONG = 2048  # tokens from which a proposal is made: below, exact attention is faster on processors (docs/features.md)
CHUNK = 64  # positions scored together by causal attention
MOST = 16  # chunks that are worked on at once
NUMBERS = 1 << 19  # features that are held at once, of all sequences and heads


class BoundedFeatures(nn.Module):
    """q [B, H, L, d], k [B, H or fewer, S, d], v [B, H or fewer, S, e] → [B, H, L, e], with the arguments of torch's
    `scaled_dot_product_attention`.

    `heads` H, `head_dim` d of any size, `features` M; `kind`: "bounded" (FAVOR++), "positive" (FAVOR+) or "trigonometric". `orthogonal`, `seed`: of the
    directions; `redraw`: training steps between draws (None: never). `adaptive`: A from each sequence's own queries and keys instead of the running
    mean; refused for causal attention. Computed in float32 (float64 for such inputs) whatever the inputs are, and given back in their type.

    Masks: of keys, as marks or as any numbers added to scores, and causality; others raise ModelError. A query that sees no key gets 0. A mask with
    −inf for a key leaves it out whatever it holds, NaN too.
    """

    def __init__(
        self, heads: int, head_dim: int, features: int = 256, *, kind: Kind = "bounded", orthogonal: bool = True, seed: int = 0, redraw: int | None = None,
        adaptive: bool = False, chunk: int = CHUNK,
    ) -> None:  # fmt: skip
        super().__init__()
        if chunk < 1 or (redraw is not None and redraw < 1):
            raise ModelError(f"chunks of {chunk} positions and new directions every {redraw} steps were asked for.", "Give positive numbers.")
        self.maps = RandomFeatures(heads, head_dim, features, kind, orthogonal=orthogonal, seed=seed)
        self.redraw_every, self.adaptive, self.chunk = redraw, adaptive, chunk

    def reset_parameters(self) -> None:
        self.maps.reset_parameters()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """Raises ModelError for shapes that do not belong together and for masks that sums over keys cannot carry. `dropout_p` is not used: there are
        no attention weights to drop."""
        seen = read_mask(attn_mask, is_causal, query.shape[-2], key.shape[-2])
        x, y, v = scaled(query, key, value, scale, self.maps.heads, self.maps.width)
        with torch.autocast(x.device.type, enabled=False):
            a = self._statistics(x, y, None if seen.bias is None else seen.bias > -torch.inf, seen.causal)
            if seen.bias is not None:
                v = v.masked_fill((seen.bias == -torch.inf)[..., None], 0)
                y = y.masked_fill((seen.bias == -torch.inf)[..., None], 0)
            signed, bias = self.maps.kind == "trigonometric", None if seen.bias is None else seen.bias.to(x.dtype)
            maps = self.maps.prepared(x.dtype, a)
            if seen.causal:
                out, _ = causal(maps, x, y, v, bias, signed, self.chunk, self._block(x), seen.offset)
            else:  # in one piece where it is exported, whatever length the exported model is given
                out = bidirectional(maps, x, y, v, bias, signed, max(x.shape[2], y.shape[2], 1) if exporting() else self._block(x))
        return out.to(query.dtype)

    def stream(self, query: Tensor, key: Tensor, value: Tensor, state: LinearState | None = None, scale: float | None = None
               ) -> tuple[Tensor, LinearState]:
        """Causal attention of the next positions, one or many: query i sees keys 0 … i of these and all that `state` holds. Returns the answer and the
        state after them; a text in pieces gives what it gives in one."""
        if query.shape[-2] != key.shape[-2]:
            raise ModelError(f"{query.shape[-2]} queries came with {key.shape[-2]} keys.", "A stream takes as many of both: those of the new positions.")
        x, y, v = scaled(query, key, value, scale, self.maps.heads, self.maps.width)
        if state is not None and state.sums.shape[:2] != x.shape[:2]:
            raise ModelError(f"the state is of {tuple(state.sums.shape[:2])} sequences and heads, the queries of {tuple(x.shape[:2])}.",
                             "Give the state that the same batch left.")  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            out, state = causal(self.maps.prepared(x.dtype), x, y, v, None, self.maps.kind == "trigonometric", self.chunk, self._block(x), 0, state)
        return out.to(query.dtype), state

    def _block(self, x: Tensor) -> int:
        """Positions that are worked on at once: whole chunks, as many as hold `NUMBERS` features of all sequences and heads."""
        fit = NUMBERS // max(1, x.shape[0] * x.shape[1] * self.maps.features * self.chunk)
        return self.chunk * max(1, min(fit, MOST))

    def _statistics(self, x: Tensor, y: Tensor, keep: Tensor | None, is_causal: bool) -> Tensor | None:
        """A of each sequence where it is adaptive. While training: the running mean goes on, for the steps after this one, and directions are drawn
        anew when it is time."""
        if self.adaptive and is_causal:
            raise ModelError("A of the present sequence was asked for in causal attention: it would tell each position of later ones.",
                             "Build it with adaptive=False: A is then a running mean that is fixed after training.")  # fmt: skip
        if self.training and self.redraw_every is not None and int(self.maps.seen) and int(self.maps.seen) % self.redraw_every == 0:
            self.maps.redraw()
        a = self.maps.a(x.dtype) if self.training else None            # before this sequence is counted
        if self.training and x.numel() and y.numel():
            self.maps.observe(x, y, keep)
        return per_sequence(x, y, keep) if self.adaptive and self.maps.kind == "bounded" else a

    def extra_repr(self) -> str:
        return f"redraw={self.redraw_every}, adaptive={self.adaptive}, chunk={self.chunk}"


class BoundedRandomFeatures(Rewrite):
    """Attention by positive bounded random features in place of the softmax (Likhosherstov et al. 2022)."""

    title = "attention in linear time by positive bounded random features (FAVOR++)"
    cites = ("likhosherstov2022", "choromanski2021", "katharopoulos2020")
    needs = ("torch",)
    edits = ("bounded_features",)
    step = "softmax attention estimated by random features"

    def declines(self, model: nn.Module) -> str | None:
        return None
