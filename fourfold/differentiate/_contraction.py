"""Rows of the table: products with a sum, which are linear in each of their operands, and pooling.

A convolution y = x ∗ w, its input form (ȳ, w) → x̄ and its weight form (ȳ, x) → w̄ are the three faces of one trilinear form ⟨ȳ, x ∗ w⟩; each is the
transpose of another in one operand, so three rows close the circle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fourfold.differentiate._rules import Cotangents, Rows, Rule, Tangent, only, operand, sizes, total
from fourfold.differentiate.equations import Argument, Emitter, Equation, Variable

Pairs = Iterable[tuple[Variable, Variable]]


def _turned(e: Emitter, x: Variable) -> Variable:
    n = len(x.shape)
    return e.permute(x, [*range(n - 2), n - 1, n - 2])


def _product(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    """Of a @ b, matrices or stacks of them: ȳ bᵀ and aᵀ ȳ."""
    ct, (a, b) = only(cotangents), eq.args[:2]
    if a.linear:
        yield a, e.emit(eq.op, ct, _turned(e, b))
    else:
        yield b, e.emit(eq.op, _turned(e, a), ct)


def _added(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    """β c + α a @ b."""
    c, a, b = eq.args[:3]
    op = "aten.mm.default" if eq.op == "aten.addmm.default" else "aten.bmm.default"
    beta, alpha = eq.kwargs.get("beta", 1), eq.kwargs.get("alpha", 1)
    ta, tb, tc = tangent(a), tangent(b), tangent(c)
    terms = [e.emit(op, ta, b) if ta is not None else None, e.emit(op, a, tb) if tb is not None else None]
    terms = [t if t is None or alpha == 1 else e.mul(t, alpha) for t in terms]
    terms.append(tc if tc is None or beta == 1 else e.mul(tc, beta))
    return (total(e, terms, eq.outs[0]),)


def _vectors(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    """Products with vectors, by matrices of one row or column."""
    a, b = eq.args[:2]
    left = e.reshape(a, [1, *a.shape]) if len(a.shape) == 1 else a
    return (e.reshape(e.emit("aten.mm.default", left, e.reshape(b, [*b.shape, 1])), eq.outs[0].shape),)


def _linear(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    """x wᵀ + b as one product of matrices, whatever is ahead of x's last dimension: then w̄ is one product too."""
    x, w, bias = eq.args[:3]
    rows = e.reshape(x, [_count(x.shape[:-1]), x.shape[-1]])
    turned = e.permute(w, [1, 0])
    made = e.emit("aten.mm.default", rows, turned) if bias is None else e.emit("aten.addmm.default", bias, rows, turned)
    return (e.reshape(made, eq.outs[0].shape),)


def _matmul(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    """a @ b: one product of matrices where b is one matrix, else a stack of them."""
    (a, b), out = eq.args[:2], eq.outs[0]
    if len(b.shape) == 2:
        return (e.reshape(e.emit("aten.mm.default", e.reshape(a, [_count(a.shape[:-1]), a.shape[-1]]), b), out.shape),)
    ahead, n = out.shape[:-2], _count(out.shape[:-2])
    stacks = [e.reshape(e.expand(v, [*ahead, *v.shape[-2:]]), [n, *v.shape[-2:]]) for v in (a, b)]
    return (e.reshape(e.emit("aten.bmm.default", *stacks), out.shape),)


# --- convolution ------------------------------------------------------------------------------------------------------------------------------------


def _each(value: Argument, dims: int) -> list[int]:
    return list(value) * dims if len(value) == 1 else list(value)


def _to_input(e: Emitter, ct: Variable, w: Variable, shape: Sequence[int], attributes: Sequence[Argument]) -> Variable:
    """The input form: (ȳ, w) → x̄ of `shape`, for y = convolution(x, w, None, *attributes). It is a convolution of the other kind with the same w."""
    stride, padding, dilation, transposed, _, groups = attributes
    dims = len(shape) - 2
    stride, padding, dilation = (_each(v, dims) for v in (stride, padding, dilation))
    left = [0] * dims
    if not transposed:                                                 # what rounding down left over at the end of x
        for d in range(dims):
            left[d] = shape[2 + d] - ((ct.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (w.shape[2 + d] - 1) + 1)
    found = e.emit("aten.convolution.default", ct, w, None, stride, padding, dilation, not transposed, left, groups)
    for d in range(dims):
        if found.shape[2 + d] != shape[2 + d]:
            found = e.emit("aten.slice.Tensor", found, 2 + d, 0, shape[2 + d])
    return found


def _to_weight(e: Emitter, ct: Variable, x: Variable, w: Variable, attributes: Sequence[Argument]) -> Variable:
    """The weight form: (ȳ, x) → w̄; of w only the shape matters."""
    return e.emit("aten.convolution_backward.default", ct, x, w, None, *attributes, [False, True, False])[1]


def _convolution(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    x, w, bias, *attributes = eq.args[:9]
    tx, tw, tb = tangent(x), tangent(w), tangent(bias)
    terms = [e.emit(eq.op, tx, w, None, *attributes) if tx is not None else None, e.emit(eq.op, x, tw, None, *attributes) if tw is not None else None,
             e.reshape(tb, [1, *tb.shape] + [1] * (len(x.shape) - 2)) if tb is not None else None]
    return (total(e, terms, eq.outs[0]),)


def _convolution_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    x, w, _, *attributes = eq.args[:9]
    if x.linear:
        yield x, _to_input(e, only(cotangents), w, x.shape, attributes)
    else:
        yield w, _to_weight(e, only(cotangents), x, sizes(e, w.shape, w.dtype), attributes)


def _weight_form(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    ct, x, w, _, *attributes, mask = eq.args[:11]
    if list(mask) != [False, True, False]:
        return _whole_backward(e, eq, tangent)
    terms = [_to_weight(e, t, x, w, attributes) if (t := tangent(ct)) is not None else None,
             _to_weight(e, ct, t, w, attributes) if (t := tangent(x)) is not None else None]
    return None, total(e, terms, eq.outs[0]), None


def _whole_backward(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    """Of a captured gradient: all three forms at once."""
    ct, x, w, _, *attributes, mask = eq.args[:11]
    tc, tx, tw = tangent(ct), tangent(x), tangent(w)
    first = second = third = None
    if mask[0]:
        first = total(e, [_to_input(e, tc, w, x.shape, attributes) if tc is not None else None,
                          _to_input(e, ct, tw, x.shape, attributes) if tw is not None else None], x.like(False))
    if mask[1]:
        second = total(e, [_to_weight(e, tc, x, w, attributes) if tc is not None else None,
                           _to_weight(e, ct, tx, w, attributes) if tx is not None else None], w.like(False))
    if mask[2] and tc is not None:
        third = e.sum(tc, [0, *range(2, len(tc.shape))])
    return first, second, third


def _weight_form_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
    ct, x, _, _, *attributes, _ = eq.args[:11]
    into = only(cotangents)
    if ct.linear:
        yield ct, e.emit("aten.convolution.default", x, into, None, *attributes)
    else:
        yield x, _to_input(e, ct, into, x.shape, attributes)


# --- pooling and resampling -------------------------------------------------------------------------------------------------------------------------


def _pool(name: str) -> dict[str, Rule]:
    """A linear pooling and its transpose, which torch has under the name `name`_backward."""

    def down(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
        x = operand(eq)
        given = [] if "adaptive" in name else eq.args[1:]
        yield x, e.emit(f"aten.{name}_backward.default", only(cotangents), sizes(e, x.shape, x.dtype), *given)

    def up(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
        x = operand(eq)
        given = [list(x.shape[-(3 if "3d" in name else 2) :])] if "adaptive" in name else eq.args[2:]
        yield x, e.emit(f"aten.{name}.default", only(cotangents), *given)

    return {f"aten.{name}.default": Rule(each=(0,), transpose=down), f"aten.{name}_backward.default": Rule(each=(0,), still=(1,), transpose=up)}


def _chosen(dims: int) -> Rule:
    """A pooling that picks elements and says which: the tangent picks the same ones."""

    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
        (t, index), x = (tangent(eq.args[0]), eq.outputs[1]), eq.args[0]
        if t is None or index is None:
            return None, None
        ahead = list(x.shape[: len(x.shape) - dims])
        flat = e.reshape(t, [*ahead, _count(x.shape[len(ahead) :])])
        picked = e.emit("aten.gather.default", flat, len(ahead), e.reshape(index, [*ahead, _count(index.shape[len(ahead) :])]))
        return e.reshape(picked, index.shape), None

    return Rule(jvp)


def _count(shape: Sequence[int]) -> int:
    found = 1
    for n in shape:
        found *= n
    return found


def _line(name: str) -> Callable[[Emitter, Equation], Sequence[Variable | None]]:
    """One-dimensional pooling by the two-dimensional one."""

    def expand(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
        x = eq.args[0]
        wide = e.reshape(x, [*x.shape[:-1], 1, x.shape[-1]])
        kernel, stride, padding, *rest = eq.args[1:]
        made = e.emit(f"aten.{name}.default", wide, [1, *kernel], [1, *(stride or kernel)], [0, *padding], *rest)
        return (e.reshape(made, eq.outs[0].shape),)

    return expand


def _resampling(name: str, corners: bool, dims: int) -> dict[str, Rule]:
    """Upsampling by repetition or interpolation; `corners`: it takes align_corners."""

    def scales(factors: Argument) -> list[Argument]:
        return list(factors) if factors is not None else [None] * dims

    def down(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
        x, ct = operand(eq), only(cotangents)
        middle = [eq.args[2]] if corners else []
        given = scales(eq.args[2 + corners]) if eq.op.endswith(".vec") else list(eq.args[2 + corners :])
        yield x, e.emit(f"aten.{name}_backward.default", ct, list(ct.shape[2:]), list(x.shape), *middle, *given)

    def up(e: Emitter, eq: Equation, cotangents: Cotangents) -> Pairs:
        yield operand(eq), e.emit(f"aten.{name}.default", only(cotangents), eq.args[1], *eq.args[3:])

    forward = Rule(each=(0,), transpose=down)
    return {f"aten.{name}.vec": forward, f"aten.{name}.default": forward, f"aten.{name}_backward.default": Rule(each=(0,), transpose=up)}


ROWS: Rows = (
    {f"aten.{op}.default": Rule(each=(0, 1), transpose=_product) for op in ("mm", "bmm")}
    | {f"aten.{op}.default": Rule(_added) for op in ("addmm", "baddbmm")}
    | {f"aten.{op}.default": Rule(expand=_vectors) for op in ("mv", "dot")}
    | {"aten.linear.default": Rule(expand=_linear, when=lambda eq: len(eq.args[1].shape) == 2),
       "aten.matmul.default": Rule(expand=_matmul, when=lambda eq: min(len(v.shape) for v in eq.args[:2]) > 1),
       "aten.convolution.default": Rule(_convolution, _convolution_transposed, each=(0, 1)),
       "aten.convolution_backward.default": Rule(_weight_form, _weight_form_transposed, each=(0, 1)),
       "aten.max_pool2d_with_indices.default": _chosen(2), "aten.max_pool3d_with_indices.default": _chosen(3),
       "aten.adaptive_max_pool2d.default": _chosen(2), "aten.fractional_max_pool2d.default": _chosen(2),
       "aten.avg_pool1d.default": Rule(expand=_line("avg_pool2d"))}
    | _pool("avg_pool2d") | _pool("avg_pool3d") | _pool("_adaptive_avg_pool2d") | _pool("_adaptive_avg_pool3d")
    | _resampling("upsample_nearest1d", False, 1) | _resampling("upsample_nearest2d", False, 2) | _resampling("upsample_nearest3d", False, 3)
    | _resampling("upsample_linear1d", True, 1) | _resampling("upsample_bilinear2d", True, 2) | _resampling("upsample_trilinear3d", True, 3)
    | _resampling("upsample_bicubic2d", True, 2)
)  # fmt: skip
