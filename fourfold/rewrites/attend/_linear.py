"""Attention by features in linear time: sums over keys are made once and read by every query (Katharopoulos et al. 2020).

A key's weight e^k is never computed by itself: sums are kept as (sums, scale) of true value sums · e^scale, where `scale` is the largest k of the
keys *so far*, as in the online softmax (Milakov and Gimelshein 2018). Every exponent is then ≤ 0, nothing overflows, and a position depends on no
later one, not even by rounding. The scale cancels in numerator and denominator, so that no gradient flows through it.

Shapes: B batch, H heads, L queries, S keys, d width of a head, M features, e width of a value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fourfold.errors import ModelError
from fourfold.rewrites.attend._features import Map

SMALLEST = 1e-6  # a denominator of signed features is kept this far from 0, relative to the sum of magnitudes that it is the difference of


def scaled(query: Tensor, key: Tensor, value: Tensor, scale: float | None, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x, y, v) in the type that is computed in: queries and keys both times √scale, keys and values of as many heads as queries.

    Raises ModelError where shapes do not belong together, or not to `heads` of `width`.
    """
    fits = query.ndim == key.ndim == value.ndim == 4 and key.shape[:-1] == value.shape[:-1] and query.shape[0] == key.shape[0]
    if not fits or query.shape[1] % max(1, key.shape[1]) or (query.shape[1], query.shape[-1], key.shape[-1]) != (heads, width, width):
        raise ModelError(
            f"queries {tuple(query.shape)}, keys {tuple(key.shape)} and values {tuple(value.shape)} were given to {heads} heads of width {width}.",
            "Give [batch, heads, length, width], with as many keys as values, and heads that are a multiple of those of keys.",
        )
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    q, k, v = query.to(kind), key.to(kind), value.to(kind)
    if k.shape[1] != heads:
        k, v = (t.repeat_interleave(heads // k.shape[1], 1) for t in (k, v))
    factor = width**-0.5 if scale is None else scale
    root = abs(factor) ** 0.5
    return q * (root if factor >= 0 else -root), k * root, v


class LinearState(NamedTuple):
    """What all keys so far leave behind: `sums` [B, H, M, e + 1] (last column: without values) and `scale` [B, H, 1, 1], −inf before any key."""

    sums: Tensor
    scale: Tensor


def empty(like: Tensor, features: int) -> LinearState:
    """No keys yet. `like`: values [B, H, S, e]."""
    b, h, _, e = like.shape
    return LinearState(like.new_zeros(b, h, features, e + 1), like.new_full((b, h, 1, 1), -torch.inf))


def added(state: LinearState, f: Tensor, k: Tensor, v: Tensor) -> LinearState:
    """The state after keys of values `f` [B, H, C, M] and log weights `k` [B, H, C]; `v` [B, H, C, e + 1]."""
    scale = torch.maximum(state.scale, k.detach().amax(-1)[..., None, None])
    safe = scale.masked_fill(scale == -torch.inf, 0)
    return LinearState(state.sums * (state.scale - safe).exp() + f.transpose(-1, -2) @ (v * (k[..., None] - safe).exp()), scale)


def ratio(found: Tensor, signed: bool) -> Tensor:
    """Numerator over denominator (the last column): [..., e + 1] → [..., e]; 0 where no key is seen."""
    above, below = found[..., :-1], found[..., -1:]
    none = below == 0
    if signed:  # of either sign and any size: keep the sign, not the size
        below = torch.where(below.abs() < SMALLEST, torch.where(below < 0, -SMALLEST, SMALLEST), below)
        none = none & (above == 0).all(-1, keepdim=True)
    return (above / below.masked_fill(none, 1)).masked_fill(none, 0)


def with_ones(v: Tensor) -> Tensor:
    """[..., e] → [..., e + 1]: the ones add up the denominator."""
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(i, min(i + chunk, length)) for i in range(0, length, chunk)]


def weighted(weights: Tensor, bias: Tensor | None, part: slice) -> Tensor:
    """Log weights with what a mask adds to those keys. A key that is left out gets −inf, whatever it holds."""
    if bias is None:
        return weights
    bias = bias[..., part]
    return torch.where(bias == -torch.inf, bias, weights + bias)


def gathered(maps: Map, y: Tensor, v: Tensor, bias: Tensor | None, chunk: int, state: LinearState | None = None) -> LinearState:
    """The state of all keys y [B, H, S, d] with values v [B, H, S, e + 1], `chunk` keys at a time."""
    for part in _chunks(y.shape[2], chunk):
        f, k = maps(y[:, :, part], True)
        state = added(empty(v[..., :-1], f.shape[-1]) if state is None else state, f, weighted(k, bias, part), v[:, :, part])
    if state is None:
        f, _ = maps(y.new_zeros(*y.shape[:2], 1, y.shape[-1]), True)
        state = empty(v[..., :-1], f.shape[-1])
    return state


def bidirectional(maps: Map, x: Tensor, y: Tensor, v: Tensor, bias: Tensor | None, signed: bool, chunk: int) -> Tensor:
    """Every query x [B, H, L, d] sees every key y [B, H, S, d] that `bias` [B, 1 or H, S] does not leave out: [B, H, L, e]."""
    state = gathered(maps, y, with_ones(v), bias, chunk)
    found = [ratio(maps(x[:, :, part], False)[0] @ state.sums, signed) for part in _chunks(x.shape[2], chunk)]
    return torch.cat(found, 2) if len(found) > 1 else found[0] if found else torch.zeros_like(v[:, :, :0])


def exporting() -> bool:
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def running_max(k: Tensor) -> Tensor:
    """The largest of each and all before it along the last axis."""
    if not exporting():
        return k.cummax(-1).values
    n = k.shape[-1]                                                    # ONNX has no cumulative maximum; these axes are short
    later = torch.ones(n, n, dtype=torch.bool, device=k.device).triu(1)
    return k.unsqueeze(-2).expand(*k.shape[:-1], n, n).masked_fill(later, -torch.inf).amax(-1)


def _finite(scale: Tensor) -> Tensor:
    """Of no key, −inf: 0, so that no difference is NaN."""
    return scale.masked_fill(scale == -torch.inf, 0)


def _block(f_x: Tensor, f_y: Tensor, k: Tensor, v: Tensor, state: LinearState, chunk: int) -> tuple[Tensor, LinearState]:
    """Causal sums of a block of n · C positions, C = `chunk`: queries f_x and keys f_y [B, H, nC, M], log weights k [B, H, nC], v [B, H, nC, e + 1] →
    [B, H, nC, e + 1] and the state after it. Scores within chunks are n × C × C; each chunk's sums go to those after it by an (n + 1) × n matrix."""
    b, h = k.shape[:2]
    f_x, f_y, v = (t.reshape(b, h, -1, chunk, t.shape[-1]) for t in (f_x, f_y, v))
    k = k.reshape(b, h, -1, chunk)
    fixed = k.detach()
    most = fixed.amax(-1)                                              # [B, H, n]
    start = state.scale.squeeze(-1)                                    # [B, H, 1]
    before = torch.cat([start, torch.maximum(start, running_max(most))], -1)    # [B, H, n + 1]: largest before each chunk, and after the last
    sums = f_y.transpose(-1, -2) @ (v * (k - _finite(most)[..., None]).exp()[..., None])
    n = most.shape[-1]
    m, e = sums.shape[-2:]
    earlier = torch.ones(n + 1, n, dtype=torch.bool, device=k.device).tril(-1)
    parts = (most[..., None, :] - _finite(before)[..., None]).masked_fill(~earlier, -torch.inf).exp()
    held = (parts @ sums.reshape(b, h, n, m * e)).reshape(b, h, n + 1, m, e)
    held = held + state.sums.unsqueeze(2) * (start - _finite(before)).exp()[..., None, None]
    top = _finite(torch.maximum(before[..., :-1, None], running_max(fixed)))
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)
    share = (k[..., None, :] - top[..., None]).masked_fill(later, -torch.inf).exp()
    near = ((f_x @ f_y.transpose(-1, -2)) * share) @ v
    far = (f_x @ held[:, :, :-1]) * (before[..., :-1, None] - top).exp()[..., None]
    return (near + far).flatten(2, 3), LinearState(held[:, :, -1], before[..., -1:, None])


def _padded(maps: Map, z: Tensor, key: bool, more: int) -> tuple[Tensor, Tensor]:
    """Features of z, and of `more` positions after it that no query sees."""
    f, k = maps(z, key)
    if isinstance(more, int) and more == 0:                            # a tensor while it is exported, for lengths to come
        return f, k
    return torch.nn.functional.pad(f, (0, 0, 0, more)), torch.nn.functional.pad(k, (0, more), value=-torch.inf)


def causal(maps: Map, x: Tensor, y: Tensor, v: Tensor, bias: Tensor | None, signed: bool, chunk: int, block: int, offset: int = 0,
           state: LinearState | None = None) -> tuple[Tensor, LinearState]:
    """Query i of x [B, H, L, d] sees keys 0 … i + offset of y [B, H, S, d], and what `state` holds of earlier ones. Returns [B, H, L, e] and the
    state after the last key that the last query sees. `block` positions are worked on at once, a multiple of `chunk` C.

    Time L · (C + 2e) · M and memory M · e beside one block's, whatever the length.
    """
    v1 = with_ones(v)
    if exporting():
        return _one_block(maps, x, y, v1, bias, signed, chunk)
    seen = max(0, min(offset, y.shape[2]))
    if seen or state is None:
        state = gathered(maps, y[:, :, :seen], v1[:, :, :seen], None if bias is None else bias[..., :seen], block, state)
    found = []
    if offset < 0:  # the first queries see no key of y
        blind = min(-offset, x.shape[2])
        found.append(ratio(maps(x[:, :, :blind], False)[0] @ state.sums, signed))
        x = x[:, :, blind:]
    paired = min(x.shape[2], y.shape[2] - seen)
    for part in _chunks(paired, block):
        keys = slice(seen + part.start, seen + part.stop)
        size = part.stop - part.start
        own = min(chunk, size)
        more = -size % own
        f_x, _ = _padded(maps, x[:, :, part], False, more)
        f_y, k = _padded(lambda z, key, keys=keys: _masked(maps, z, bias, keys), y[:, :, keys], True, more)
        sums, state = _block(f_x, f_y, k, torch.nn.functional.pad(v1[:, :, keys], (0, 0, 0, more)), state, own)
        found.append(ratio(sums[:, :, :size], signed))
    if paired < x.shape[2]:  # more queries than keys: the last see them all
        found.append(ratio(maps(x[:, :, max(paired, 0) :], False)[0] @ state.sums, signed))
    return (torch.cat(found, 2) if len(found) > 1 else found[0] if found else torch.zeros_like(v[:, :, :0])), state


def _one_block(maps: Map, x: Tensor, y: Tensor, v: Tensor, bias: Tensor | None, signed: bool, chunk: int) -> tuple[Tensor, LinearState]:
    """As `causal`, for as many queries as keys and nothing before them, without a step in Python that depends on the length: what is exported."""
    length = x.shape[2]
    more = (chunk - length % chunk) % chunk
    f_x, _ = _padded(maps, x, False, more)
    f_y, k = _padded(lambda z, key: _masked(maps, z, bias, slice(None)), y, True, more)
    sums, state = _block(f_x, f_y, k, torch.nn.functional.pad(v, (0, 0, 0, more)), empty(v[..., :-1], f_x.shape[-1]), chunk)
    return ratio(sums[:, :, :length], signed), state


def _masked(maps: Map, z: Tensor, bias: Tensor | None, keys: slice) -> tuple[Tensor, Tensor]:
    f, k = maps(z, True)
    return f, weighted(k, bias, keys)


class Seen(NamedTuple):
    """What a mask says, in terms that linear attention has. `bias` [B, 1 or H, S]: added to each key's log weight, −inf for keys left out (None: all
    are seen alike); `causal`; `offset`: query i sees keys up to i + offset."""

    bias: Tensor | None
    causal: bool
    offset: int


def read_mask(mask: Tensor | None, is_causal: bool, queries: int, keys: int) -> Seen:
    """The mask of `scaled_dot_product_attention` (True or added number: seen), broadcastable to [B, H, L, S], taken apart.

    Taken: marks or numbers for keys (any numbers), and marks that are those of keys, of causality, or of both. Raises ModelError for any other mask
    over pairs, which sums over keys cannot carry.
    """
    if mask is None:
        return Seen(None, is_causal, 0)
    if mask.ndim < 2 or mask.shape[-1] not in (1, keys) or mask.shape[-2] not in (1, queries):
        raise ModelError(
            f"the attention mask has shape {tuple(mask.shape)} for {queries} queries and {keys} keys.",
            "Give one that can be broadcast to [batch, heads, queries, keys].",
        )
    mask = mask[(None,) * (4 - mask.ndim)] if mask.ndim < 4 else mask
    mask = mask.expand(*mask.shape[:-1], keys)
    if mask.shape[-2] == 1:
        return Seen(_bias(mask[..., 0, :]), is_causal, 0)
    if is_causal:
        raise ModelError("a mask over pairs of positions was given together with is_causal.",
                         "Give one of the two, or marks of keys alone [B, 1, 1, S].")  # fmt: skip
    if exporting():
        raise ModelError(
            "linear attention cannot be exported with a mask over pairs of positions: what it says depends on its values.",
            "Give marks of keys alone, [batch, 1, 1, keys], and is_causal.",
        )
    return _taken_apart(mask, queries, keys)


def _bias(mask: Tensor) -> Tensor:
    """Marks or numbers for keys [B, 1 or H, S] as numbers."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    return mask


def _taken_apart(mask: Tensor, queries: int, keys: int) -> Seen:
    if mask.dtype == torch.bool:
        keep = mask
    else:
        keep = mask > -1e4                                             # half precision's least number and a quarter of it are further away
        if not bool(((mask == 0) | ~keep).all()):
            raise ModelError(
                "the attention adds numbers to scores that depend on query and key, such as a position bias, which linear attention cannot carry.",
                "Convert layers without one, or use MaskedLinearAttention, whose mask multiplies the kernel.",
            )
    last = keep[..., -1:, :]                                           # of all queries it sees most
    i, j = torch.arange(queries, device=mask.device)[:, None], torch.arange(keys, device=mask.device)
    for causal, offset in ((True, keys - queries), (True, 0), (False, 0)):
        wanted = last & (j <= i + offset) if causal else last.expand_as(keep)
        blind = ~wanted.any(-1, keepdim=True)                          # a query that may look nowhere: libraries write anything there
        if bool(((keep == wanted) | blind).all()):
            return Seen(None if bool(last.all()) else _bias(last[..., 0, :]), causal, offset)
    raise ModelError(
        "the attention mask is neither of keys alone nor causal (a window, packed texts, an order of its own); linear attention cannot carry it.",
        "Convert layers that attend to all positions or to all before.",
    )
