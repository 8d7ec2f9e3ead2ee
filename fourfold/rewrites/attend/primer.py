"""Primer: a squared ReLU in the MLP, and a causal depthwise convolution of width 3 over time after each of the query, key and value projections.

So et al. 2021 (arXiv 2109.08668), the two changes that the paper calls Primer-EZ: relu(x)² between the MLP's linears, no gate; and, on all heads'
channels before heads are split, y_t = w_0 ⊙ x_t + w_1 ⊙ x_{t−1} + w_2 ⊙ x_{t−2}, without bias and activation, where what lies before the first
position is 0. Fewer training steps reach a loss; whether less energy does depends on what the convolution costs, so it is made of scaled adds in
place, with a gradient made likewise: no shifted copy is kept, and no transpose to channels first is made.

A model converted by `fourfold convert --to primer` gets convolutions that begin as the identity, so its attentions answer as before; relu² in place
of another activation changes answers and has to be trained. A cache of transformers keeps keys and values but not what a convolution needs of the
positions before, so a converted model computes whole sequences, and refuses a cache outside of `decoding(model)`, which keeps that too.

Shapes: B sequences, T positions, C channels (all heads), D residual width, H heads, S positions seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.errors import InputError, ModelError
from fourfold.recipe import is_conv1d, put
from fourfold.rewrite import Conversion, Edit, Rewrite
from fourfold.structure.cores import SoftmaxCore, by_interface, install, put_activation, unnested
from fourfold.torch_types import Saved

if TYPE_CHECKING:
    from torch.types import Device

    from fourfold.structure.sites import AttentionSite, MLPSite, Sites
    from fourfold.torch_types import Factory

# ---- relu(x)² --------------------------------------------------------------------------------------------------------------------------------------


class _SquaredReLU(torch.autograd.Function):
    """One buffer forwards, and nothing kept but x: half of what autograd spends on relu and square."""

    @staticmethod
    def forward(ctx: Saved, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.relu(x).square_()

    @staticmethod
    def backward(ctx: Saved, *grads: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return (torch.relu(x) * grads[0]).mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)², elementwise. In float16 it saturates at 65,472, as 256² would be infinite."""
    if x.dtype == torch.float16:
        return x.clamp(0, 255.875).square()
    if torch.compiler.is_compiling() or not (x.requires_grad and torch.is_grad_enabled()):
        return torch.relu(x).square()
    return _SquaredReLU.apply(x)  # type: ignore[no-any-return]


class ReLUSquared(nn.Module):
    """relu(x)² as a layer: any shape to the same (So et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return relu_squared(x)


# ---- the convolution -------------------------------------------------------------------------------------------------------------------------------


def _shifted(x: Tensor, lag: int) -> tuple[slice, slice]:
    """Positions of the output and of the input that a tap joins: the output `lag` later (earlier where negative)."""
    length = max(x.shape[1] - abs(lag), 0)
    return slice(max(lag, 0), max(lag, 0) + length), slice(max(-lag, 0), max(-lag, 0) + length)


def _taps(x: Tensor, weight: Tensor, lags: tuple[int, ...]) -> Tensor:
    """Σ_k w_k ⊙ x_{t − lag_k} with zeros beyond the ends: [B, T, C], a pass over memory for each tap."""
    still = lags.index(0)
    out = x * weight[still]
    for k, lag in enumerate(lags):
        if lag and abs(lag) < x.shape[1]:
            to, of = _shifted(x, lag)
            out[:, to].addcmul_(x[:, of], weight[k])
    return out


class _SavedLags(Saved, Protocol):
    lags: tuple[int, ...]


class _DepthwiseTaps(torch.autograd.Function):
    """`_taps`, whose gradient by x is the same sum with lags turned round, and by w a product with each shifted input."""

    @staticmethod
    def forward(ctx: _SavedLags, x: Tensor, weight: Tensor, lags: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.lags = lags
        return _taps(x, weight, lags)

    @staticmethod
    def backward(ctx: _SavedLags, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad, lags = grads[0], ctx.lags
        turned = _taps(grad, weight, tuple(-lag for lag in lags)) if ctx.needs_input_grad[0] else None
        rows = None
        if ctx.needs_input_grad[1]:
            joined = (_shifted(x, lag) for lag in lags)
            rows = torch.stack([(grad[:, to] * x[:, of]).sum((0, 1)) for to, of in joined])
        return turned, rows, None


def _lagged(x: Tensor, weight: Tensor, lags: tuple[int, ...]) -> Tensor:
    """The same in plain operators, for compilers and exporters."""
    before, after = max(0, *lags), max(0, *(-lag for lag in lags))
    padded = F.pad(x, (0, 0, before, after))
    length = x.shape[1]
    out = padded[:, before - lags[0] : before - lags[0] + length] * weight[0]
    for k, lag in enumerate(lags[1:], 1):
        out = out + padded[:, before - lag : before - lag + length] * weight[k]
    return out


class CausalDepthwiseConv(nn.Module):
    """x [B, T, C] → [B, T, C]: y_t = Σ_k w_k ⊙ x_{t−k}, k < `width` (So et al. 2021), zeros before the first position.

    Weights [width, C] begin as the paper's code has them, w_0 = 1/2 and the others 1/2 over the width, or with `identity` as w_0 = 1 and 0, so that
    y = x. `bidirectional` (odd widths): the taps lie around each position, for models that are not causal. Raises InputError for other widths.
    """

    def __init__(self, channels: int, width: int = 3, *, identity: bool = False, bidirectional: bool = False, device: Device = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if width < 1 or channels < 1 or (bidirectional and width % 2 == 0):
            raise InputError(f"a convolution of width {width} over {channels} channels; widths and channels of 1 or more were expected"
                             f"{', and an odd width around each position' * bidirectional}.", "Primer's width is 3.")
        self.channels, self.width, self.identity, self.bidirectional = channels, width, identity, bidirectional
        self.lags = tuple(k - width // 2 for k in range(width)) if bidirectional else tuple(range(width))
        self.weight = nn.Parameter(torch.empty(width, channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        still = self.lags.index(0)
        with torch.no_grad():
            self.weight.fill_(0.0 if self.identity else 0.5 / self.width)
            self.weight[still] = 1.0 if self.identity else 0.5

    def extra_repr(self) -> str:
        return f"{self.channels}, width={self.width}" + ", bidirectional=True" * self.bidirectional

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        """`documents` int [B, T]: numbers of the texts that were packed into a row; nothing crosses from one to another. Raises InputError for an x
        of another width."""
        if x.dim() != 3 or x.shape[-1] != self.channels:
            raise InputError(f"x of shape {tuple(x.shape)} in a convolution over {self.channels} channels.", f"Give [B, T, {self.channels}].")
        if documents is not None:
            return self._packed(x, documents)
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            return _lagged(x, self.weight, self.lags)
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return _DepthwiseTaps.apply(x, self.weight, self.lags)  # type: ignore[no-any-return]
        return _taps(x, self.weight, self.lags)

    def _packed(self, x: Tensor, documents: Tensor) -> Tensor:
        out = x * self.weight[self.lags.index(0)]
        for k, lag in enumerate(self.lags):
            if lag and abs(lag) < x.shape[1]:
                to, of = _shifted(x, lag)
                same = (documents[:, to] == documents[:, of]).unsqueeze(-1)
                at = (0, 0, to.start, x.shape[1] - to.stop)
                out = out + F.pad(torch.where(same, x[:, of], 0.0) * self.weight[k], at)
        return out

    def tail(self, batch: int, like: Tensor | None = None) -> Tensor:
        """What precedes the first position: zeros [B, width − 1, C]."""
        like = self.weight if like is None else like
        return torch.zeros(batch, self.width - 1, self.channels, dtype=like.dtype, device=like.device)

    def step(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """The next positions x [B, T, C] after `tail` [B, width − 1, C], the last inputs before them: (y [B, T, C], the next tail). Equal to one run
        over all positions. Raises InputError where the convolution looks ahead."""
        if self.bidirectional:
            raise InputError("a bidirectional convolution cannot go on position by position.", "Make it without bidirectional=True to decode.")
        seen = torch.cat([tail, x], 1)
        length = x.shape[1]
        out = x * self.weight[0]
        for k in range(1, self.width):
            out = torch.addcmul(out, seen[:, self.width - 1 - k : self.width - 1 - k + length], self.weight[k])
        return out, seen[:, seen.shape[1] - self.width + 1 :]


# ---- attention and block ---------------------------------------------------------------------------------------------------------------------------


class PrimerState(NamedTuple):
    """What decoding goes on from, of one attention: keys and values [B, H, S, D / H] after the convolution, and the last projections before it
    [B, width − 1, 3·D]."""

    keys: Tensor
    values: Tensor
    tail: Tensor


class PrimerAttention(nn.Module):
    """Multi-head self-attention with a depthwise convolution on queries, keys and values: [B, T, D] → [B, T, D] (So et al. 2021).

    One linear makes all three, and one convolution of `taps` runs over them (1: none, plain attention). `core` has the semantics of torch's
    `scaled_dot_product_attention`. Raises InputError where `heads` do not divide `width`.
    """

    def __init__(self, width: int, heads: int, *, taps: int = 3, causal: bool = True, bias: bool = True, dropout: float = 0.0,
                 core: Callable[..., Tensor] | None = None, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"{heads} heads in a width of {width}.", "The number of heads must divide the width.")
        self.width, self.heads, self.causal, self.dropout, self.core = width, heads, causal, dropout, core
        self.batch_first = True                                        # nn.TransformerEncoder asks its first layer
        self.qkv_proj = nn.Linear(width, 3 * width, bias=bias, device=device, dtype=dtype)
        self.conv = CausalDepthwiseConv(3 * width, taps, bidirectional=not causal, device=device, dtype=dtype) if taps > 1 else None
        self.out_proj = nn.Linear(width, width, bias=bias, device=device, dtype=dtype)

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        if self.core is not None:
            out = self.core(q, k, v, attn_mask=mask, is_causal=causal, scale=None)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """`attn_mask`: bool (True: look) or to be added, broadcastable to [B, H, T, T]; `documents` int [B, T] as for the convolution. A position
        that may look nowhere gets an average of nothing, 0, through the output projection."""
        made = self.qkv_proj(x)
        q, k, v = self._split(made if self.conv is None else self.conv(made, documents))
        if attn_mask is None and documents is None:
            return self._attend(q, k, v, None, self.causal)
        mask = _joined(attn_mask, documents, x.shape[1], self.causal, x)
        return self._attend(q, k, v, mask, False)

    def state(self, batch: int) -> PrimerState:
        """Where decoding begins: nothing seen."""
        like = self.qkv_proj.weight
        nothing = torch.zeros(batch, self.heads, 0, self.width // self.heads, dtype=like.dtype, device=like.device)
        return PrimerState(nothing, nothing, nothing if self.conv is None else self.conv.tail(batch, like))

    def step(self, x: Tensor, state: PrimerState) -> tuple[Tensor, PrimerState]:
        """The next T ≥ 1 positions x [B, T, D] after `state`: (y [B, T, D], the next state). Equal to one run over all positions. Raises InputError
        for an attention that is not causal."""
        if not self.causal:
            raise InputError("an attention that looks ahead cannot go on position by position.", "Make it with causal=True to decode.")
        made, tail = self.qkv_proj(x), state.tail
        if self.conv is not None:
            made, tail = self.conv.step(made, tail)
        q, k, v = self._split(made)
        keys, values = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        mask = None
        if x.shape[1] > 1:
            mask = torch.ones(x.shape[1], keys.shape[2], dtype=torch.bool, device=x.device).tril(state.keys.shape[2])
        return self._attend(q, keys, values, mask, False), PrimerState(keys, values, tail)


def _joined(given: Tensor | None, documents: Tensor | None, length: int, causal: bool, like: Tensor) -> Tensor:
    """Every reason not to look, as one mask."""
    mask = torch.ones(length, length, dtype=torch.bool, device=like.device)
    mask = mask.tril() if causal else mask
    if documents is not None:
        mask = mask & (documents.unsqueeze(-1) == documents.unsqueeze(-2)).unsqueeze(1)
    if given is None:
        return mask
    if given.dtype == torch.bool:
        return mask & given
    return torch.where(mask, given, torch.finfo(given.dtype).min / 4)


class PrimerBlock(nn.Module):
    """A pre-norm transformer block after Primer-EZ, called as `nn.TransformerEncoderLayer(norm_first=True, batch_first=True)` is: src [B, T, D] →
    [B, T, D].

    `causal` (the default): no position sees a later one, whatever the mask says; without it the convolution lies around each position. `taps` 1 and
    `activation` nn.GELU(): the plain block beside which it is measured. `step` decodes position by position.
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int | None = None, dropout: float = 0.0, *, bias: bool = True,
                 causal: bool = True, taps: int = 3, activation: nn.Module | None = None, device: Device = None,
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        hidden = dim_feedforward or 4 * d_model
        self.norm1, self.norm2 = (nn.LayerNorm(d_model, bias=bias, **made) for _ in range(2))
        self.self_attn = PrimerAttention(d_model, nhead, taps=taps, causal=causal, bias=bias, dropout=dropout, **made)
        self.linear1, self.linear2 = nn.Linear(d_model, hidden, bias=bias, **made), nn.Linear(hidden, d_model, bias=bias, **made)
        self.activation, self.dropout = activation or ReLUSquared(), nn.Dropout(dropout)

    def forward(self, src: Tensor, src_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None, is_causal: bool = False,
                documents: Tensor | None = None) -> Tensor:
        """`src_mask` [T, T] or [B·H, T, T] and `src_key_padding_mask` [B, T]: bool (True: do not look) or added, as torch's own layer takes them.
        `is_causal` is only torch's hint about the mask. `documents` int [B, T]: texts packed into a row."""
        mask = self._mask(src, src_mask, src_key_padding_mask)
        src = src + self.dropout(self.self_attn(self.norm1(src), mask, documents))
        return self._feed(src)

    def _feed(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.linear2(self.dropout(self.activation(self.linear1(self.norm2(x))))))

    def _mask(self, src: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Both as one that is broadcastable to [B, H, T, T]; bool: True looks."""
        if mask is not None:
            mask = ~mask if mask.dtype == torch.bool else mask
            mask = mask.unflatten(0, (src.shape[0], -1)) if mask.dim() == 3 else mask
        if padding is None:
            return mask
        padding = (~padding if padding.dtype == torch.bool else padding)[:, None, None, :]
        if mask is None:
            return padding
        if mask.dtype == padding.dtype == torch.bool:
            return mask & padding
        return _added(mask, src.dtype) + _added(padding, src.dtype)

    def state(self, batch: int) -> PrimerState:
        """Where decoding begins."""
        return self.self_attn.state(batch)

    def step(self, src: Tensor, state: PrimerState) -> tuple[Tensor, PrimerState]:
        """The next positions [B, T, D] after `state`: (their outputs, the next state), equal to one run over all positions (in eval mode)."""
        found, state = self.self_attn.step(self.norm1(src), state)
        return self._feed(src + self.dropout(found)), state


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(mask, 0.0, torch.finfo(dtype).min / 4).to(dtype) if mask.dtype == torch.bool else mask.to(dtype)


# ---- in models that are there ----------------------------------------------------------------------------------------------------------------------


class ConvolvedProjection(nn.Module):
    """A query, key or value projection, or one for all three, and the convolution after it: x [B, T, ·] → [B, T, C], or [T, B, ·] where not
    `batch_first`. `cache` is set by `decoding` for a single call."""

    cache: _Tails | None = None

    def __init__(self, projection: nn.Module, conv: CausalDepthwiseConv, batch_first: bool = True) -> None:
        super().__init__()
        self.projection, self.conv, self.batch_first = projection, conv, batch_first

    @property
    def weight(self) -> Tensor:
        """Of the projection: models ask it for its dtype."""
        return self.projection.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.projection.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        y = self.projection(x)
        cache, self.cache = self.cache, None
        if not self.batch_first:
            return self.conv(y.transpose(0, 1)).transpose(0, 1)
        return self.conv(y) if cache is None else cache.step(self.conv, y)


class WholeSequenceCore(SoftmaxCore):
    """Softmax attention that refuses a cache of keys and values outside of `decoding`: the convolution before it would not have seen the positions
    that are only in the cache."""

    open = False

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
    ) -> Tensor:
        if k.shape[2] != q.shape[2] and not self.open:
            raise ModelError(f"{q.shape[2]} queries on {k.shape[2]} keys: a cache holds earlier positions, which Primer's convolution has not seen",
                             "Call with use_cache=False, or inside `with fourfold.nn.decoding(model):`.")
        return super().forward(q, k, v, attn_mask, is_causal, scale)


class _Tails:
    """What a cache of transformers lacks: the last inputs of each convolution. It lives as long as the cache, and is reordered with it."""

    def __init__(self, cache: Any) -> None:
        self.tails: dict[int, Tensor] = {}
        for name in ("reorder_cache", "batch_select_indices"):
            self._follow(cache, name, lambda tail, index: tail.index_select(0, index.to(tail.device)))
        self._follow(cache, "batch_repeat_interleave", lambda tail, times: tail.repeat_interleave(times, 0))
        cache.crop = _uncropped

    def _follow(self, cache: object, name: str, change: Callable[[Tensor, Any], Tensor]) -> None:
        old = getattr(cache, name, None)
        if old is None:
            return

        def both(argument: object) -> object:
            self.tails = {key: change(tail, argument) for key, tail in self.tails.items()}
            return old(argument)

        setattr(cache, name, both)

    def step(self, conv: CausalDepthwiseConv, y: Tensor) -> Tensor:
        tail = self.tails.get(id(conv))
        out, self.tails[id(conv)] = conv.step(y, conv.tail(y.shape[0], y) if tail is None else tail)
        return out


def _uncropped(*args: object, **kwargs: object) -> None:
    raise ModelError("the cache is to forget its last positions, and what Primer's convolution needs of those before is gone",
                     "Decode without assisted or speculative generation.")


class _CacheWatch:
    """A pre-hook of an attention: hands the cache that it is called with to its convolved projections."""

    def __init__(self, parts: Sequence[ConvolvedProjection]) -> None:
        self.parts = parts

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        cache = next((one for one in given if hasattr(one, "get_seq_length") and hasattr(one, "update")), None)
        tails = None
        if cache is not None:
            tails = cache.__dict__.setdefault("primer_tails", None) or _Tails(cache)
            cache.primer_tails = tails
        for part in self.parts:
            part.cache = tails


@contextmanager
def decoding(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, a converted model of transformers may use its cache (`model.generate(…)` does), with answers equal to those of whole sequences. Beams
    may be reordered; a cache that is cropped is refused."""
    hooks, cores, settings = [], [], []
    for attention in model.modules():
        parts = [part for part in attention.children() if isinstance(part, ConvolvedProjection)]
        if parts:
            hooks.append(attention.register_forward_pre_hook(_CacheWatch(parts), with_kwargs=True))
        if isinstance(attention, WholeSequenceCore):
            cores.append(attention)
    for config in _configs(model):
        settings.append((config, config.use_cache))
        config.use_cache = True
    for core in cores:
        core.open = True
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        for core in cores:
            core.open = False
        for config, before in settings:
            config.use_cache = before


def _configs(part: nn.Module) -> list[Any]:
    found = (getattr(part, name, None) for name in ("config", "generation_config"))
    return [one for one in found if hasattr(one, "use_cache")]


class Primer(Rewrite):
    """Squared ReLU and depthwise convolutions on queries, keys and values (So et al. 2021)."""

    title = "Primer: relu² in MLPs, convolutions over time after query, key and value projections"
    cites = ("so2021",)
    needs = ("torch",)
    edits = ("primer",)
    step = "relu² and convolutions of Primer"
    converts = ("primer",)

    def declines(self, model: nn.Module) -> str | None:
        """What there is to change shows when the model runs, which is for `conversions`. The main job is offered nothing: Primer makes training
        cheaper, and answers of a trained model a little dearer."""
        return None

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        """Every self-attention, and every MLP with an activation of its own and no gate."""
        found = [self._attention(site) for site in sites.attentions if not site.cross]
        found += [self._mlp(site) for site in sites.mlps if site.activation and not site.gate and site.function != "relu_squared"]
        if not found:
            raise ModelError("the model has no self-attention, and no MLP without a gate whose activation is a module or an attribute, so there is "
                             "nothing for Primer to change", "Convert a transformer whose attentions and MLPs `fourfold profile` lists.")
        return found

    def _attention(self, site: AttentionSite) -> Conversion:
        first = all(edit.get("batch_first", True) for edit in site.before)
        edits = site.edits("primer", part="convolution", projections=list(site.projections), taps=3, bidirectional=not site.causal, batch_first=first)
        way = "causal" if site.causal else "symmetric"
        note = f"a {way} depthwise convolution of width 3 after {len(site.projections)} projections, the identity until it is trained"
        return Conversion(site.name, site.path, edits, True, note)

    def _mlp(self, site: MLPSite) -> Conversion:
        note = f"relu² in place of {site.function or 'its activation'}: answers change, and quality has to be won back by training"
        return Conversion(site.name, site.path, site.edits("primer", part="activation"), False, note)

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        if edit["part"] == "activation":
            return put_activation(model, edit, ReLUSquared())
        for path in edit["projections"]:
            old: Any = model.get_submodule(path)
            channels = old.weight.shape[1 if is_conv1d(old) else 0]
            conv = CausalDepthwiseConv(channels, edit["taps"], identity=True, bidirectional=edit["bidirectional"], device=old.weight.device,
                                       dtype=old.weight.dtype)
            put(model, path, ConvolvedProjection(old, conv, edit["batch_first"]))
        attention = model.get_submodule(edit["path"])
        unnested(model, edit["path"])
        if edit["how"] == "interface" and by_interface(attention) and edit["causal"]:
            install(model, edit, WholeSequenceCore())
            for config in _configs(model):
                config.use_cache = False
        return model

    def describe(self, edits: Sequence[Edit]) -> str:
        convolved = sum(edit.get("part") == "convolution" for edit in edits)
        return f"convolutions after the projections of {convolved} attentions, relu² in {len(edits) - convolved} MLPs"
