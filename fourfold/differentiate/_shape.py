"""Rows of the table: operators that move elements and do no arithmetic. All are linear; the transpose puts each element back, summing where one was
read several times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fourfold.differentiate._rules import Cotangents, Rows, Rule, Tangent, linear_operands, only, operand, symmetric
from fourfold.differentiate.equations import Emitter, Equation, Variable

Pairs = Iterable[tuple[Variable, Variable]]


def _back(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    """Of reshape and expand."""
    x, ct = operand(eq), only(cotangents)
    yield x, e.reshape(ct, x.shape) if "reshape" in eq.op else e.matches(ct, x)


def _permute(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    dims = [d % len(eq.args[1]) for d in eq.args[1]]
    yield operand(eq), e.permute(only(cotangents), sorted(range(len(dims)), key=dims.__getitem__))


def _slice(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x, dim, start, end, step = eq.args[:5]
    size = x.shape[dim]
    start, end = _clipped(start, 0, size), _clipped(end, size, size)
    yield x, e.emit("aten.slice_backward.default", only(cotangents), list(x.shape), dim, start, end, step)


def _clipped(bound: int | None, default: int, size: int) -> int:
    if bound is None:
        return default
    return min(max(bound + size if bound < 0 else bound, 0), size)


def _slice_backward(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    yield operand(eq), e.emit("aten.slice.Tensor", only(cotangents), *eq.args[2:6])


def _select(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x, dim, index = eq.args[:3]
    yield x, e.emit("aten.select_backward.default", only(cotangents), list(x.shape), dim, index)


def _select_backward(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    yield operand(eq), e.emit("aten.select.int", only(cotangents), *eq.args[2:4])


def _diagonal(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x = operand(eq)
    yield x, e.emit("aten.diagonal_backward.default", only(cotangents), list(x.shape), *eq.args[1:4])


def _diagonal_backward(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    yield operand(eq), e.emit("aten.diagonal.default", only(cotangents), *eq.args[2:5])


def _unfold(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x = operand(eq)
    yield x, e.emit("aten.unfold_backward.default", only(cotangents), list(x.shape), *eq.args[1:4])


def _unfold_backward(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    yield operand(eq), e.emit("aten.unfold.default", only(cotangents), *eq.args[2:5])


def _im2col(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x = operand(eq)
    yield x, e.emit("aten.col2im.default", only(cotangents), list(x.shape[-2:]), *eq.args[1:5])


def _col2im(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    yield operand(eq), e.emit("aten.im2col.default", only(cotangents), *eq.args[2:6])


def _cat(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    """Each part gets its slice."""
    ct, at = only(cotangents), 0
    for x in linear_operands(eq, (0,)):
        if len(x.shape) == 1 and x.shape[0] == 0 and len(ct.shape) > 1:      # torch lets empty vectors stand among tensors of any rank
            yield x, e.zero(x.shape, x.dtype)
            continue
        size = x.shape[eq.args[1]]
        yield x, e.convert(e.emit("aten.slice.Tensor", ct, eq.args[1], at, at + size), x.dtype)
        at += size


def _split(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    parts = [e.zero(o.shape, o.dtype) if c is None else c for o, c in zip(eq.outs, cotangents, strict=True)]
    yield operand(eq), e.emit("aten.cat.default", parts, eq.args[2])


def _pad(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    t = tangent(eq.args[0])
    return (None if t is None else e.emit(eq.op, t, eq.args[1], 0),)


def _pad_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    yield operand(eq), e.emit(eq.op, only(cotangents), [-p for p in eq.args[1]], 0)


def _flip(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    yield operand(eq), e.emit(eq.op, only(cotangents), *eq.args[1:])


def _roll(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    shifts = eq.args[1] if isinstance(eq.args[1], list | tuple) else [eq.args[1]]
    yield operand(eq), e.emit(eq.op, only(cotangents), [-s for s in shifts], eq.args[2])


def _scattered(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    """Of slice_scatter and select_scatter: x with a part of it replaced by y."""
    ct, (x, y) = only(cotangents), eq.args[:2]
    yield x, e.emit(eq.op, ct, e.zero(y.shape, y.dtype), *eq.args[2:])
    yield y, e.emit("aten.slice.Tensor" if "slice" in eq.op else "aten.select.int", ct, *eq.args[2:])


def _repeat(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    """Copies side by side: a new dimension before each, expanded."""
    x, times = eq.args[0], list(eq.args[1])
    shape = [1] * (len(times) - len(x.shape)) + list(x.shape)
    split = e.reshape(x, [n for size in shape for n in (1, size)])
    wide = e.expand(split, [n for size, count in zip(shape, times, strict=True) for n in (count, size)])
    return (e.reshape(wide, [size * count for size, count in zip(shape, times, strict=True)]),)


def _copy(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    """The source in the shape and type of the destination."""
    into, source = eq.args[:2]
    return (e.expand(e.convert(source, into.dtype), into.shape),)


def _fill(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    into, value = eq.args[:2]
    if isinstance(value, Variable):
        return (e.expand(e.convert(value, into.dtype), into.shape),)
    return (e.full(into.shape, value, into.dtype),)


def _unbind(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    x, dim = eq.args[:2]
    return tuple(e.emit("aten.select.int", x, dim, i) for i in range(x.shape[dim]))


def _split_evenly(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    x, size, dim = eq.args[:3]
    whole = x.shape[dim]
    return e.emit("aten.split_with_sizes.default", x, [min(size, whole - at) for at in range(0, whole, size)], dim) if whole > size else (x,)


def _pixel_shuffle(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    x, r = eq.args[:2]
    *ahead, c, h, w = x.shape
    n = len(ahead)
    split = e.reshape(x, [*ahead, c // (r * r), r, r, h, w])
    moved = e.permute(split, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return (e.reshape(moved, [*ahead, c // (r * r), h * r, w * r]),)


def _as_strided(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    """Elements by their place in memory, which is that of a contiguous tensor here."""
    x, size, stride, offset = eq.args[:4]
    index = None
    for d, (n, s) in enumerate(zip(size, stride, strict=True)):
        steps = e.emit("aten.arange.start_step", 0, n * s if s else n, s or 1, dtype=_int64())
        steps = steps if s else e.emit("aten.full.default", [n], 0, dtype=_int64())
        row = e.reshape(steps, [1] * d + [n] + [1] * (len(size) - d - 1))
        index = row if index is None else e.add(index, row)
    flat = e.reshape(x, [math.prod(x.shape)])
    if index is None:
        return (e.emit("aten.select.int", flat, 0, offset or 0),)
    return (e.emit("aten.index.Tensor", flat, [e.emit("aten.add.Scalar", index, offset or 0)]),)


def _int64() -> object:
    import torch

    return torch.int64


ROWS: Rows = {
    "aten.reshape.default": Rule(each=(0,), transpose=_back),
    "aten.expand.default": Rule(each=(0,), transpose=_back),
    "aten.permute.default": Rule(each=(0,), transpose=_permute),
    "aten.slice.Tensor": Rule(each=(0,), transpose=_slice),
    "aten.slice_backward.default": Rule(each=(0,), transpose=_slice_backward),
    "aten.select.int": Rule(each=(0,), transpose=_select),
    "aten.select_backward.default": Rule(each=(0,), transpose=_select_backward),
    "aten.diagonal.default": Rule(each=(0,), transpose=_diagonal),
    "aten.diagonal_backward.default": Rule(each=(0,), transpose=_diagonal_backward),
    "aten.unfold.default": Rule(each=(0,), transpose=_unfold),
    "aten.unfold_backward.default": Rule(each=(0,), transpose=_unfold_backward),
    "aten.im2col.default": Rule(each=(0,), transpose=_im2col),
    "aten.col2im.default": Rule(each=(0,), transpose=_col2im),
    "aten.cat.default": Rule(joint=(0,), transpose=_cat),
    "aten.split_with_sizes.default": Rule(joint=(0,), transpose=_split),
    "aten.constant_pad_nd.default": Rule(_pad, _pad_transposed, each=(0,)),
    "aten.flip.default": Rule(each=(0,), transpose=_flip),
    "aten.roll.default": Rule(each=(0,), transpose=_roll),
    "aten.tril.default": Rule(each=(0,), transpose=symmetric),
    "aten.triu.default": Rule(each=(0,), transpose=symmetric),
    "aten.slice_scatter.default": Rule(joint=(0, 1), transpose=_scattered),
    "aten.select_scatter.default": Rule(joint=(0, 1), transpose=_scattered),
    "aten.repeat.default": Rule(expand=_repeat),
    "aten.copy.default": Rule(expand=_copy),
    "aten.fill.Scalar": Rule(expand=_fill),
    "aten.fill.Tensor": Rule(expand=_fill),
    "aten.unbind.int": Rule(expand=_unbind),
    "aten.split.Tensor": Rule(expand=_split_evenly),
    "aten.pixel_shuffle.default": Rule(expand=_pixel_shuffle),
    "aten.as_strided.default": Rule(expand=_as_strided),
}
