"""Rows of the table: attention as one operator, softmax(s q kᵀ + mask) v with the logarithm of the softmax's sum beside it (Dao et al. 2022,
"FlashAttention", appendix B), so that its probabilities are no residual.

Its tangent by (q, k, v) is our own operator `attention_tangent`, and that is the transpose of torch's fused backward: the two rows close a circle.
Where the mask has a tangent, or the second output is read (second derivatives), both are written out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fourfold.differentiate._rules import Cotangents, Rows, Rule, Tangent, only, operand, total
from fourfold.differentiate.equations import Emitter, Equation, Variable, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

Pairs = Iterable[tuple[Variable, Variable]]
_FORWARD = "aten._scaled_dot_product_flash_attention_for_cpu.default"
_BACKWARD = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"


def _matmul(e: Emitter, a: Variable, b: Variable) -> Variable:
    """Stacks of matrices [..., l, m] and [..., m, n]."""
    ahead = a.shape[:-2]
    made = e.emit("aten.bmm.default", e.reshape(a, [math.prod(ahead), *a.shape[-2:]]), e.reshape(b, [math.prod(ahead), *b.shape[-2:]]))
    return e.reshape(made, [*ahead, a.shape[-2], b.shape[-1]])


def _turned(e: Emitter, a: Variable) -> Variable:
    n = len(a.shape)
    return e.permute(a, [*range(n - 2), n - 1, n - 2])


def _scale(q: Variable, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def _probabilities(e: Emitter, q: Variable, k: Variable, lse: Variable, causal: bool, mask: Variable | None, scale: float | None) -> Variable:
    scores = e.mul(_matmul(e, q, _turned(e, k)), _scale(q, scale))
    if mask is not None and mask.dtype != "bool":
        scores = e.add(scores, mask)
    found = e.emit("aten.exp.default", e.sub(scores, e.reshape(lse, [*lse.shape, 1])))
    if mask is not None and mask.dtype == "bool":
        found = e.emit("aten.where.ScalarOther", mask, found, 0.0)
    if causal:
        low = e.emit("aten.tril.default", e.emit("aten.full.default", list(found.shape[-2:]), True, dtype=torch_dtype("bool")))
        found = e.emit("aten.where.ScalarOther", low, found, 0.0)
    return e.convert(found, q.dtype)


def _written(e: Emitter, tangents: Sequence[Variable | None], tensors: Sequence[Variable], causal: bool, mask: Variable | None,
             scale: float | None) -> tuple[Variable | None, Variable | None]:
    """Tangents of both outputs, written out; `tangents` are of q, k, v and the mask, `tensors` q, k, v, out, lse."""
    (tq, tk, tv, tm), (q, k, v, out, lse) = tangents, tensors
    p, factor = _probabilities(e, q, k, lse, causal, mask, scale), _scale(q, scale)
    terms = [e.mul(_matmul(e, tq, _turned(e, k)), factor) if tq is not None else None,
             e.mul(_matmul(e, q, _turned(e, tk)), factor) if tk is not None else None, tm]
    moved = total(e, terms, p)
    found = [_matmul(e, p, tv) if tv is not None else None]
    row = None
    if moved is not None:
        row = e.sum(e.mul(moved, p), [len(p.shape) - 1], True)
        found.append(_matmul(e, e.mul(e.sub(moved, row), p), v))
    return total(e, found, out), None if row is None else e.convert(e.reshape(row, lse.shape), lse.dtype)


def _attention(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    q, k, v, _, causal = eq.args[:5]
    (out, lse), mask, scale = eq.outs, eq.kwargs.get("attn_mask"), eq.kwargs.get("scale")
    found = [tangent(x) for x in (q, k, v, mask)]
    if found[3] is not None or lse in e.wanted:
        return _written(e, found, (q, k, v, out, lse), causal, mask, scale)
    filled = [e.zero(x.shape, x.dtype) if t is None else t for t, x in zip(found[:3], (q, k, v), strict=True)]
    return e.emit("attention_tangent", *filled, q, k, v, out, lse, causal, mask, scale), None


def _tangent_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    tq, tk, tv, q, k, v, out, lse, causal, mask, scale = eq.args
    made = e.emit(_BACKWARD, only(cotangents), q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scale)
    yield from zip((tq, tk, tv), made, strict=True)


def _tangent_written(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    tq, tk, tv, *tensors, causal, mask, scale = eq.args
    return (_written(e, (tq, tk, tv, None), tensors, causal, mask, scale)[0],)


def _backward_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    _, q, k, v, out, lse, _, causal = eq.args[:8]
    given = [e.zero(x.shape, x.dtype) if c is None else c for c, x in zip(cotangents, (q, k, v), strict=True)]
    yield operand(eq), e.emit("attention_tangent", *given, q, k, v, out, lse, causal, eq.kwargs.get("attn_mask"), eq.kwargs.get("scale"))


def _backward_written(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    ct, q, k, v, out, lse, _, causal = eq.args[:8]
    mask, scale = eq.kwargs.get("attn_mask"), eq.kwargs.get("scale")
    p = _probabilities(e, q, k, lse, causal, mask, scale)
    row = e.sum(e.mul(ct, out), [len(out.shape) - 1], True)
    moved = e.mul(e.mul(e.sub(_matmul(e, ct, _turned(e, v)), row), p), _scale(q, scale))
    return _matmul(e, moved, k), _matmul(e, _turned(e, moved), q), _matmul(e, _turned(e, p), ct)


def _plain(eq: Equation) -> bool:
    """Whether queries, keys and values have as many heads each, and nothing is dropped."""
    q, k, v, dropped = eq.args[:4]
    return q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and not dropped


ROWS: Rows = {
    _FORWARD: Rule(_attention, when=_plain),
    _BACKWARD: Rule(transpose=_backward_transposed, each=(0,), expand=_backward_written),
    "attention_tangent": Rule(transpose=_tangent_transposed, joint=(0, 1, 2), expand=_tangent_written),
}


def attention_tangent(tq: Tensor, tk: Tensor, tv: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool,
                      mask: Tensor | None, scale: float | None) -> Tensor:
    """The tangent of attention's first output on tensors [..., l, e], for (q̇, k̇, v̇)."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q @ k.transpose(-1, -2)) * factor
    if mask is not None and mask.is_floating_point():
        scores = scores + mask
    p = (scores - lse.unsqueeze(-1)).exp().to(q.dtype)
    if mask is not None and not mask.is_floating_point():
        p = p * mask
    if causal:
        p = p.tril()
    moved = (tq @ k.transpose(-1, -2) + q @ tk.transpose(-1, -2)) * factor
    return ((moved - (p * moved).sum(-1, keepdim=True)) * p) @ v + p @ tv
