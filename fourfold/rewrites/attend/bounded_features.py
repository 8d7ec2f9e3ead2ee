"""Attention by positive bounded random features, in time linear in the length (FAVOR++: Likhosherstov et al. 2022; FAVOR+: Choromanski et al. 2021).

softmax(QKᵀ)V is estimated as φ(Q) (φ(K)ᵀ V) with random features φ of the kernel exp(xᵀy), x = q·√scale, y = k·√scale (`_features`): positive,
bounded, unbiased, of least mean log second moment over queries and keys through one number A a head, and with orthogonal directions. Causal attention
goes through prefix sums, chunk by chunk (`_linear`), and leaves a state of M · (e + 1) numbers a head with which decoding goes on.

A depends on the data, so that it is a running mean without gradient, updated while training and fixed after it: A of the present sequence would tell
a causal model of what is to come. Directions are drawn from a seed, saved, and drawn anew every `redraw` training steps.

It pays for long inputs only: the page docs/features.md has the measured length. An estimate is another function than the softmax, so that a converted
model wants recovery by distillation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.datasets.examples import Ragged
from fourfold.errors import ModelError
from fourfold.rewrite import Context, Conversion, Edit, Proposal, Rewrite
from fourfold.rewrites.attend._features import Kind, RandomFeatures, per_sequence
from fourfold.rewrites.attend._linear import LinearState, bidirectional, causal, exporting, read_mask, scaled
from fourfold.structure.cores import install

if TYPE_CHECKING:
    from fourfold.structure.sites import Sites

EVEN = {False: 1100.0, True: 4000.0}
"""Tokens at which both cost the same here, not causal and causal: heads of width 64, 256 features (docs/features.md)."""
LONG = 2  # so many times longer must inputs be for a proposal
CHUNK = 64  # positions scored together by causal attention
MOST = 16  # chunks that are worked on at once
NUMBERS = 1 << 19  # features that are held at once, of all sequences and heads


class BoundedFeatures(nn.Module):
    """q [B, H, L, d], k [B, H or fewer, S, d], v [B, H or fewer, S, e] → [B, H, L, e], with the arguments of torch's
    `scaled_dot_product_attention`.

    `heads` H, `head_dim` d of any size, `features` M; `kind`: "bounded" (FAVOR++), "positive" (FAVOR+) or "trigonometric". `orthogonal`, `seed`: of
    the directions; `redraw`: training steps between draws (None: never). `adaptive`: A from each sequence's own queries and keys instead of the
    running mean; refused for causal attention. Computed in float32 (float64 for such inputs) whatever the inputs are, and given back in their type.

    Masks: of keys, as marks or as any numbers added to scores, and causality; others raise ModelError. A query that sees no key gets 0. A mask with
    −inf for a key leaves it out whatever it holds, NaN too.
    """

    def __init__(
        self, heads: int, head_dim: int, features: int = 256, *, kind: Kind = "bounded", orthogonal: bool = True, seed: int = 0,
        redraw: int | None = None, adaptive: bool = False, chunk: int = CHUNK,
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
        """Causal attention of the next positions, one or many: query i sees keys 0 … i of these and all that `state` holds. Returns the answer and
        the state after them; a text in pieces gives what it gives in one."""
        if query.shape[-2] != key.shape[-2]:
            raise ModelError(f"{query.shape[-2]} queries came with {key.shape[-2]} keys.",
                             "A stream takes as many of both: those of the new positions.")  # fmt: skip
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


def lengths(context: Context) -> float:
    """The median number of tokens of the examples; 0 where they have none."""
    column = context.examples.columns.get("input_ids")
    if column is None or len(column) == 0:
        return 0.0
    return float(np.median(column.sizes() if isinstance(column, Ragged) else [len(row) for row in column]))


def features_for(head_dim: int) -> int:
    """Features a head by default: four times its width, 32 at least; the error falls with the root of their number."""
    return max(32, 4 * head_dim)


class BoundedRandomFeatures(Rewrite):
    """Attention by positive bounded random features in place of the softmax (Likhosherstov et al. 2022)."""

    default = True  # offered for long texts alone, where it pays
    title = "attention in linear time by positive bounded random features (FAVOR++)"
    cites = ("likhosherstov2022", "choromanski2021", "katharopoulos2020")
    needs = ("torch",)
    edits = ("bounded_features",)
    converts = ("bounded-features",)
    step = "softmax attention estimated by random features"

    def declines(self, model: nn.Module) -> str | None:
        """Whether there is an attention shows when the model runs, which is for `propose`."""
        return None

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        """Every attention without a position bias, causal or not, of its own sequence or of another."""
        found = []
        for number, site in enumerate(site for site in sites.attentions if not site.biased):
            count = features_for(site.head_dim)
            edits = site.edits("bounded_features", features=count, features_kind="bounded", seed=number)
            note = (f"softmax attention of {site.heads} heads estimated by {count} bounded random features each, "
                    f"{'causal' if site.causal else 'in both directions'}: linear time, answers change until it is recovered")
            found.append(Conversion(site.name, site.path, edits, False, note))
        if not found:
            raise ModelError(
                "none of the model's attentions can be estimated by random features: " + _nothing(sites),
                "Convert a model whose attention adds nothing but a mask to its scores, or use --to masked-features for relative positions.",
            )
        return found

    def propose(self, context: Context) -> Iterator[Proposal]:
        """All attentions at once, where half of the examples are so long that it costs less than half of the softmax."""
        length = lengths(context)
        if length < LONG * EVEN[False] or context.call is None:
            return
        from fourfold.structure.sites import sites

        try:
            found = self.conversions(sites(context.subject.module, context.call), "bounded-features")
        except ModelError:  # nothing here that can be estimated
            return
        edits = tuple(edit for one in found for edit in one.edits)
        even = EVEN[any(edit.get("causal", False) for edit in edits)]
        if length < LONG * even:
            return
        width = max(edit["heads"] * edit["head_dim"] for edit in edits if edit["kind"] == "bounded_features")
        inside = length / (length + 6 * width)                         # of a block's multiplications; MLPs and projections are 24 n w² of them
        cost = 1 - inside * (1 - even / length)
        yield Proposal("bounded-features", edits, (cost, cost / 2, min(1.0, 2 * cost)))

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        core = BoundedFeatures(edit["heads"], edit["head_dim"], edit["features"], kind=edit["features_kind"], seed=edit["seed"])
        return install(model, edit, core)

    def describe(self, edits: Sequence[Edit]) -> str:
        mine = [edit for edit in edits if edit["kind"] == "bounded_features"]
        return f"{len(mine)} attentions by {mine[0]['features'] if mine else 0} bounded random features, linear in the length"


def _nothing(sites: Sites) -> str:
    if not sites.attentions:
        return next(iter(sites.refusals.values()), "none was found.")
    return f"all {len(sites.attentions)} add a position bias to their scores."
