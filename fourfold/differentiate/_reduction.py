"""Rows of the table: sums, means, extremes, scans, sorting and normalisations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fourfold.differentiate._rules import Cotangents, Rows, Rule, Tangent, fit, only, operand, symmetric, total
from fourfold.differentiate.equations import Argument, Emitter, Equation, Variable, torch_dtype

Pairs = Iterable[tuple[Variable, Variable]]
One = Sequence["Variable | None"]


def dims_of(dim: Argument, rank: int) -> list[int]:
    """Dimensions that a reduction goes over, from 0; all where none is named."""
    if dim is None or dim == []:
        return list(range(rank))
    return sorted(d % max(rank, 1) for d in (dim if isinstance(dim, list | tuple) else [dim]) if rank)


def kept(x: Variable, dims: Sequence[int]) -> list[int]:
    """The shape of x with those dimensions at 1."""
    return [1 if d in dims else n for d, n in enumerate(x.shape)]


def _sum(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x, ct = operand(eq), only(cotangents)
    dims = dims_of(eq.args[1] if len(eq.args) > 1 else None, len(x.shape))
    if "mean" in eq.op:
        ct = e.div(ct, float(max(1, math.prod(x.shape[d] for d in dims))))
    yield x, e.convert(e.expand(e.reshape(ct, kept(x, dims)), x.shape), x.dtype)


def _amax(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """The tangent of the largest; the mean of those that are equal, as torch has it."""
    x, out = eq.args[0], eq.outs[0]
    if (t := tangent(x)) is None:
        return (None,)
    dims = dims_of(eq.args[1] if len(eq.args) > 1 else None, len(x.shape))
    mask = e.emit("aten.eq.Tensor", x, e.reshape(out, kept(x, dims)))
    share = e.convert(mask, x.dtype)
    share = e.div(share, e.emit("aten.sum.dim_IntList", share, dims, True)) if dims else share
    return (e.reshape(e.sum(e.mul(t, share), dims), out.shape),)


def _picked(position: int, keepdim: int | None) -> Rule:
    """What answers elements of x and their indices along a dimension: the tangent picks the same ones. `position`: of the argument that
    names it (0: a keyword); `keepdim`: of that argument."""

    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> One:
        x, (out, index) = eq.args[0], eq.outputs
        t = tangent(x)
        if t is None or out is None or index is None:
            return None, None
        if not x.shape:
            return fit(e, t, out), None
        dim = (eq.args[position] if position else eq.kwargs.get("dim", -1)) % len(x.shape)
        lone = keepdim is not None and not eq.args[keepdim]
        where = e.reshape(index, [*index.shape[:dim], 1, *index.shape[dim:]]) if lone else index
        return e.reshape(e.emit("aten.gather.default", t, dim, where), out.shape), None

    return Rule(jvp)


def _variance(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """2/(n − correction) Σ (x − mean) ẋ; where the mean is an output, its tangent is the mean of ẋ."""
    x = eq.args[0]
    t = tangent(x)
    if t is None:
        return (None,) * len(eq.outputs)
    dims = dims_of(eq.args[1], len(x.shape))
    correction = eq.kwargs.get("correction", 1)
    scale = 2.0 / max(math.prod(x.shape[d] for d in dims) - (1 if correction is None else correction), 0.0) if dims else math.nan
    centred = e.sub(x, e.emit("aten.mean.dim", x, dims, True))
    found = [e.reshape(e.mul(e.sum(e.mul(t, centred), dims), scale), eq.outs[0].shape)]
    if len(eq.outputs) == 2:
        found.append(e.reshape(e.emit("aten.mean.dim", t, dims, True), eq.outs[1].shape))
    return tuple(found)


def _norm(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """Of the p-norm: Σ sign(x) |x|^(p−1) ẋ / y^(p−1), and 0 where y is 0."""
    x, p, out = eq.args[0], 2 if eq.args[1] is None else eq.args[1], eq.outs[0]
    if (t := tangent(x)) is None:
        return (None,)
    dims = dims_of(eq.args[2], len(x.shape))
    t, wide = e.convert(t, out.dtype), e.reshape(out, kept(x, dims))
    zero = e.emit("aten.eq.Scalar", wide, 0)
    size, sign = e.emit("aten.abs.default", x), e.emit("aten.sign.default", x)
    if p == 0:
        return (None,)
    if p in (math.inf, -math.inf):
        mask = e.convert(e.emit("aten.eq.Tensor", size, wide), out.dtype)
        share = e.mul(sign, e.div(mask, e.emit("aten.sum.dim_IntList", mask, dims, True)))
    elif p == 1:
        share = sign
    else:
        part = e.div(x, wide) if p == 2 else e.mul(sign, e.emit("aten.pow.Tensor_Scalar", e.div(size, wide), p - 1))
        share = e.emit("aten.where.ScalarSelf", zero, 0.0, part)
    return (e.reshape(e.sum(e.mul(t, share), dims), out.shape),)


def _halves(e: Emitter, x: Variable, dim: int) -> Variable:
    """The product along `dim` by halves: log₂ n products of whole slices, exact where elements are 0."""
    n = x.shape[dim]
    while n > 1:
        half = n // 2
        made = e.mul(e.emit("aten.slice.Tensor", x, dim, 0, half), e.emit("aten.slice.Tensor", x, dim, half, 2 * half))
        x = e.emit("aten.cat.default", [made, e.emit("aten.slice.Tensor", x, dim, 2 * half, n)], dim) if n % 2 else made
        n = x.shape[dim]
    return x


def _prod(e: Emitter, eq: Equation) -> One:
    x, out = eq.args[0], eq.outs[0]
    x = e.convert(x, out.dtype)
    if eq.op == "aten.prod.default":
        return (e.reshape(_halves(e, e.reshape(x, [math.prod(x.shape)]), 0), []),)
    return (e.reshape(_halves(e, x, eq.args[1] % max(1, len(x.shape))), out.shape) if x.shape else x,)


def _cumprod(e: Emitter, eq: Equation) -> One:
    """Running products by doubling: each element times the one 1, 2, 4 … before it."""
    x, dim = e.convert(eq.args[0], eq.outs[0].dtype), eq.args[1]
    if not x.shape:
        return (x,)
    dim, step = dim % len(x.shape), 1
    n = x.shape[dim]
    while step < n:
        ones = e.full([step if d == dim else s for d, s in enumerate(x.shape)], 1.0, x.dtype)
        x = e.mul(x, e.emit("aten.cat.default", [ones, e.emit("aten.slice.Tensor", x, dim, 0, n - step)], dim))
        step *= 2
    return (x,)


def _cumsum(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    """Sums from the other end."""
    x, ct, dim = operand(eq), only(cotangents), eq.args[1]
    if x.shape:
        ct = e.emit("aten.flip.default", e.emit(eq.op, e.emit("aten.flip.default", ct, [dim]), dim), [dim])
    yield x, e.convert(ct, x.dtype)


def _logsumexp(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    x, out = eq.args[0], eq.outs[0]
    if (t := tangent(x)) is None:
        return (None,)
    dims = dims_of(eq.args[1], len(x.shape))
    return (e.reshape(e.sum(e.mul(t, e.emit("aten.exp.default", e.sub(x, e.reshape(out, kept(x, dims))))), dims), out.shape),)


def _softmax(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """y ∘ (ẋ − ⟨y, ẋ⟩): a symmetric map, which torch has as the softmax's backward."""
    x, y = eq.args[0], eq.outs[0]
    if (t := tangent(x)) is None:
        return (None,)
    return (e.emit("aten._softmax_backward_data.default", e.convert(t, y.dtype), y, eq.args[1], torch_dtype(y.dtype)),)


def _log_softmax(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """ẋ − ⟨exp y, ẋ⟩."""
    y = eq.outs[0]
    if (t := tangent(eq.args[0])) is None:
        return (None,)
    t = e.convert(t, y.dtype)
    if not y.shape:
        return (e.sub(t, e.mul(t, e.emit("aten.exp.default", y))),)
    return (e.sub(t, e.sum(e.mul(t, e.emit("aten.exp.default", y)), [eq.args[1]], True)),)


# --- normalisations: y = w ∘ x̂ + b, and the derivative of x̂ by x is symmetric ---------------------------------------------------------------------


def _affine(e: Emitter, normal: Variable | None, xhat: Variable | None, weight: Variable | None, tw: Variable | None, tb: Variable | None,
            out: Variable) -> Variable | None:
    terms = [normal if normal is None or weight is None else e.mul(normal, weight)]
    terms.append(e.mul(tw, xhat) if tw is not None and xhat is not None else None)
    return total(e, [*terms, tb], out)


def _layer_norm(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    x, shape, weight, bias, _ = eq.args[:5]
    out, mean, rstd = eq.outputs
    assert out is not None and mean is not None and rstd is not None
    t, tw, tb = tangent(x), tangent(weight), tangent(bias)
    normal = xhat = None
    if t is not None:
        normal = e.emit("aten.native_layer_norm_backward.default", t, x, shape, mean, rstd, None, None, [True, False, False])[0]
    if tw is not None:
        xhat = e.mul(e.sub(x, mean), rstd)
    moments = _moments(e, eq, t, list(range(len(x.shape) - len(shape), len(x.shape))))
    return (_affine(e, normal, xhat, weight, tw, tb, out), *moments)


def _moments(e: Emitter, eq: Equation, t: Variable | None, dims: list[int]) -> tuple[Variable | None, Variable | None]:
    """Tangents of the mean and of 1/√(variance + ε), which only second derivatives ask for."""
    x, mean, rstd = eq.args[0], eq.outputs[1], eq.outputs[2]
    if t is None or mean is None or rstd is None or not {mean, rstd} & e.wanted:
        return None, None
    axes = dims_of(dims, len(x.shape))
    wide = kept(x, axes)
    m = e.emit("aten.mean.dim", t, axes, True)
    centred = e.sub(x, e.reshape(mean, wide))
    cube = e.mul(e.mul(rstd, rstd), rstd)
    r = e.mul(e.reshape(e.emit("aten.mean.dim", e.mul(t, centred), axes, True), rstd.shape), e.neg(cube))
    return e.reshape(m, mean.shape), r


def _symmetric_first(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x, ct = operand(eq), only(cotangents)
    yield x, e.emit(eq.op, ct, *eq.args[1:])[0]


def _channels(x: Variable, value: Variable, e: Emitter) -> Variable:
    """A value per channel, in a shape that broadcasts over x [batch, channels, …]."""
    return e.reshape(value, [1, *value.shape] + [1] * (len(x.shape) - 2))


def _batch_norm_fixed(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """By fixed moments: scaling and shifting."""
    x, weight, bias, mean, variance, _, epsilon = eq.args[:7]
    t, tw, tb = tangent(x), tangent(weight), tangent(bias)
    rstd = e.emit("aten.rsqrt.default", e.emit("aten.add.Scalar", variance, epsilon))
    terms: list[Variable | None] = []
    if t is not None:
        terms.append(e.mul(t, _channels(x, e.mul(rstd, weight) if weight is not None else rstd, e)))
    if tw is not None:
        terms.append(e.mul(_channels(x, tw, e), e.mul(e.sub(x, _channels(x, mean, e)), _channels(x, rstd, e))))
    if tb is not None:
        terms.append(_channels(x, tb, e))
    return total(e, terms, eq.outs[0]), None, None


def _batch_norm(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """By the batch's own moments."""
    x, weight, bias, running_mean, running_var, training, _, epsilon = eq.args[:8]
    out, mean, rstd = eq.outputs[:3]
    rest = (None,) * (len(eq.outputs) - 3)
    if not training:
        fixed = Equation(eq.op, (x, weight, bias, running_mean, running_var, 0.0, epsilon), eq.outputs)
        return (*_batch_norm_fixed(e, fixed, tangent), *rest)
    assert out is not None and mean is not None and rstd is not None
    t, tw, tb = tangent(x), tangent(weight), tangent(bias)
    normal = xhat = None
    if t is not None:
        normal = e.emit("aten.native_batch_norm_backward.default", t, x, None, None, None, mean, rstd, True, epsilon, [True, False, False])[0]
    if tw is not None:
        xhat = e.mul(e.sub(x, _channels(x, mean, e)), _channels(x, rstd, e))
    weight, tw, tb = (None if v is None else _channels(x, v, e) for v in (weight, tw, tb))
    moments = _moments(e, eq, t, [0, *range(2, len(x.shape))])
    return (_affine(e, normal, xhat, weight, tw, tb, out), *moments, *rest)


def _group_norm(e: Emitter, eq: Equation) -> One:
    """By its definition: moments over each group of channels."""
    x, weight, bias, n, c, inner, groups, epsilon = eq.args[:8]
    split = e.reshape(x, [n, groups, c // groups * inner])
    mean = e.emit("aten.mean.dim", split, [2], True)
    centred = e.sub(split, mean)
    variance = e.emit("aten.mean.dim", e.mul(centred, centred), [2], True)
    rstd = e.emit("aten.rsqrt.default", e.emit("aten.add.Scalar", variance, epsilon))
    y = e.reshape(e.mul(centred, rstd), x.shape)
    y = y if weight is None else e.mul(y, _channels(x, weight, e))
    y = y if bias is None else e.add(y, _channels(x, bias, e))
    return y, e.reshape(mean, [n, groups]), e.reshape(rstd, [n, groups])


def _rms_norm(e: Emitter, eq: Equation) -> One:
    """x / √(mean x² + ε), by its definition."""
    x, shape, weight, epsilon = eq.args[:4]
    dims = list(range(len(x.shape) - len(shape), len(x.shape)))
    if epsilon is None:
        import torch

        epsilon = float(torch.finfo(getattr(torch, x.dtype)).eps)
    square = e.emit("aten.mean.dim", e.mul(x, x), dims, True)
    rstd = e.emit("aten.rsqrt.default", e.emit("aten.add.Scalar", square, epsilon))
    y = e.mul(x, rstd)
    return y if weight is None else e.mul(y, weight), rstd


def _dropout(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """The same elements, scaled alike."""
    x, p, train = eq.args[:3]
    t, mask = tangent(x), eq.outputs[1]
    if t is None or mask is None or train is False:
        return t, None
    scale = 0.0 if p >= 1 else 1 / (1 - p)
    return e.mul(e.emit("aten.where.ScalarOther", mask, t, 0.0), scale), None


_PART = Rule(each=(0,), transpose=_symmetric_first)
_SUM = Rule(each=(0,), transpose=_sum)
ROWS: Rows = {
    "aten.sum.dim_IntList": _SUM, "aten.sum.default": _SUM, "aten.mean.dim": _SUM, "aten.mean.default": _SUM,
    "aten.amax.default": Rule(_amax), "aten.amin.default": Rule(_amax), "aten.max.default": Rule(_amax), "aten.min.default": Rule(_amax),
    "aten.max.dim": _picked(1, 2), "aten.min.dim": _picked(1, 2), "aten.sort.default": _picked(1, None), "aten.sort.stable": _picked(0, None),
    "aten.topk.default": _picked(2, None), "aten.kthvalue.default": _picked(2, 3), "aten.median.dim": _picked(1, 2),
    "aten.mode.default": _picked(1, 2),
    "aten.cummax.default": _picked(1, None), "aten.cummin.default": _picked(1, None),
    "aten.var.correction": Rule(_variance), "aten.var_mean.correction": Rule(_variance), "aten.linalg_vector_norm.default": Rule(_norm),
    "aten.prod.default": Rule(expand=_prod), "aten.prod.dim_int": Rule(expand=_prod), "aten.cumprod.default": Rule(expand=_cumprod),
    "aten.cumsum.default": Rule(each=(0,), transpose=_cumsum), "aten.logsumexp.default": Rule(_logsumexp),
    "aten._softmax.default": Rule(_softmax), "aten._log_softmax.default": Rule(_log_softmax),
    "aten._softmax_backward_data.default": Rule(each=(0,), transpose=symmetric),
    "aten.native_layer_norm.default": Rule(_layer_norm), "aten.native_layer_norm_backward.default": _PART,
    "aten._native_batch_norm_legit_functional.default": Rule(_batch_norm), "aten._batch_norm_with_update_functional.default": Rule(_batch_norm),
    "aten._native_batch_norm_legit_no_training.default": Rule(_batch_norm_fixed), "aten._native_batch_norm_legit.no_stats": Rule(
        lambda e, eq, t: _batch_norm(e, Equation(eq.op, (*eq.args[:3], None, None, *eq.args[3:]), eq.outputs), t)),
    "aten.native_batch_norm_backward.default": _PART, "aten.native_group_norm.default": Rule(expand=_group_norm),
    "aten._fused_rms_norm.default": Rule(expand=_rms_norm), "aten.native_dropout.default": Rule(_dropout),
}  # fmt: skip
