"""Rows of the table: reading at indices and writing at indices, each the transpose of the other. Indices and masks have no tangent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fourfold.differentiate._rules import Cotangents, Rows, Rule, Tangent, fit, only, operand
from fourfold.differentiate.equations import Emitter, Equation, Variable

Pairs = Iterable[tuple[Variable, Variable]]
One = Sequence["Variable | None"]


def _index(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x = operand(eq)
    yield x, e.emit("aten.index_put.default", e.zero(x.shape, x.dtype), eq.args[1], only(cotangents), True)


def _index_put(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    (x, indices, values, add), ct = eq.args[:4], only(cotangents)
    yield x, ct if add else e.emit(eq.op, ct, indices, e.zero(values.shape, values.dtype), False)
    if values not in e.ignored:
        yield values, e.matches(e.emit("aten.index.Tensor", ct, indices), values)


def _gather(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x, dim, index = operand(eq), *eq.args[1:3]
    yield x, e.emit("aten.scatter_add.default", e.zero(x.shape, x.dtype), dim, index, only(cotangents))


def _gathered(e: Emitter, ct: Variable, dim: int, index: Variable, source: Variable) -> Variable:
    """The cotangent of a scatter's source, which may be larger than its index."""
    found = e.emit("aten.gather.default", ct, dim, index)
    if source.shape != index.shape:
        pad = [n for s, i in zip(source.shape[::-1], index.shape[::-1], strict=True) for n in (0, s - i)]
        found = e.emit("aten.constant_pad_nd.default", found, pad, 0)
    return found


def _scatter_add(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    (x, dim, index, source), ct = eq.args[:4], only(cotangents)
    yield x, ct
    yield source, _gathered(e, ct, dim, index, source)


def _scatter(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    (x, dim, index, source), ct = eq.args[:4], only(cotangents)
    yield x, e.emit("aten.scatter.value", ct, dim, index, 0)
    yield source, _gathered(e, ct, dim, index, source)


def _scatter_value(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    t = tangent(eq.args[0])
    return (None if t is None else e.emit(eq.op, t, *eq.args[1:3], 0),)


def _scatter_value_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    yield operand(eq), e.emit(eq.op, only(cotangents), *eq.args[1:3], 0)


def _index_select(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x, dim, index = operand(eq), *eq.args[1:3]
    yield x, e.emit("aten.index_add.default", e.zero(x.shape, x.dtype), dim, index, only(cotangents))


def _index_add(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    (x, dim, index, source), ct = eq.args[:4], only(cotangents)
    found = e.emit("aten.index_select.default", ct, dim, index)
    yield x, ct
    yield source, e.mul(found, eq.kwargs["alpha"]) if "alpha" in eq.kwargs else found


def _embedding(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """Rows of the table's tangent; none at the padding index, whose row torch keeps still."""
    table, index, padding = eq.args[:3]
    if (t := tangent(table)) is None:
        return (None,)
    rows = e.emit(eq.op, t, index, -1)
    if padding is None or padding < 0:
        return (rows,)
    mask = e.emit("aten.ne.Scalar", e.reshape(index, [*index.shape, 1]), padding)
    return (e.emit("aten.where.ScalarOther", mask, rows, 0.0),)


def _embedding_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    table = operand(eq)
    yield table, e.emit("aten.embedding_dense_backward.default", only(cotangents), eq.args[1], table.shape[0], -1, False)


def _dense_backward(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """Of a captured gradient; rows of the padding index are left out and, where asked, others divided by their count."""
    if (t := tangent(eq.args[0])) is None:
        return (None,)
    return (e.emit(eq.op, t, *eq.args[1:]),)


def _dense_backward_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    ct, index, _, padding, scale = eq.args[:5]
    rows = e.emit("aten.embedding.default", only(cotangents), index, -1)
    if scale:
        from fourfold.errors import ModelError

        raise ModelError(f"{eq.where} scales an embedding's gradient by frequency, which has no transpose here.", "Set scale_grad_by_freq=False.")
    if padding is not None and padding >= 0:
        mask = e.emit("aten.ne.Scalar", e.reshape(index, [*index.shape, 1]), padding)
        rows = e.emit("aten.where.ScalarOther", mask, rows, 0.0)
    yield ct, rows


def _masked_fill(e: Emitter, eq: Equation) -> One:
    x, mask, value = eq.args[:3]
    out = eq.outs[0]
    if isinstance(value, Variable):
        return (e.expand(e.emit("aten.where.self", mask, e.convert(value, out.dtype), x), out.shape),)
    return (e.expand(e.emit("aten.where.ScalarSelf", mask, value, x), out.shape),)


def _scatter_reduce(e: Emitter, eq: Equation) -> One:
    """Sums alone; other reductions have no rule."""
    x, dim, index, source, how = eq.args[:5]
    if how != "sum":
        from fourfold.errors import ModelError

        raise ModelError(f"aten.scatter_reduce ({how}) has no differentiation rule; it stands in {eq.where}.",
                         "Use a sum there, or give the row in fourfold/differentiate/_indexing.py.")
    base = x if eq.kwargs.get("include_self", True) else e.emit("aten.scatter.value", x, dim, index, 0)
    return (e.emit("aten.scatter_add.default", base, dim, index, source),)


def _same(e: Emitter, eq: Equation) -> One:
    return (e.emit("aten.index.Tensor" if len(eq.args) == 2 else "aten.index_put.default", *eq.args),)


def _mask_put(e: Emitter, eq: Equation, tangent: Tangent) -> One:
    """x and values together; a values tensor that broadcasts stays as small as it is."""
    tx, tv = tangent(eq.args[0]), tangent(eq.args[2])
    x, values = eq.args[0], eq.args[2]
    tx = e.zero(x.shape, x.dtype) if tx is None else tx
    tv = e.zero(values.shape, values.dtype) if tv is None else tv
    return (fit(e, e.emit(eq.op, tx, eq.args[1], tv, eq.args[3]), eq.outs[0]),)


ROWS: Rows = {
    "aten.index.Tensor": Rule(each=(0,), transpose=_index),
    "aten._unsafe_index.Tensor": Rule(expand=_same),
    "aten.index_put.default": Rule(_mask_put, _index_put, joint=(0, 2)),
    "aten._unsafe_index_put.default": Rule(expand=_same),
    "aten.gather.default": Rule(each=(0,), transpose=_gather),
    "aten.scatter_add.default": Rule(joint=(0, 3), transpose=_scatter_add),
    "aten.scatter.src": Rule(joint=(0, 3), transpose=_scatter),
    "aten.scatter.value": Rule(_scatter_value, _scatter_value_transposed, each=(0,)),
    "aten.scatter_reduce.two": Rule(expand=_scatter_reduce),
    "aten.index_select.default": Rule(each=(0,), transpose=_index_select),
    "aten.index_add.default": Rule(joint=(0, 3), transpose=_index_add),
    "aten.embedding.default": Rule(_embedding, _embedding_transposed, each=(0,)),
    "aten.embedding_dense_backward.default": Rule(_dense_backward, _dense_backward_transposed, each=(0,)),
    "aten.masked_fill.Scalar": Rule(expand=_masked_fill),
    "aten.masked_fill.Tensor": Rule(expand=_masked_fill),
}
