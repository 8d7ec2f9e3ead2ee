"""Rows of the table: one scalar function per element. Formulas are textbook derivatives; where torch has a fused one, the tangent is that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from fourfold.differentiate._rules import CONSTANT, Cotangents, Rows, Rule, Tangent, fit, only, symmetric, total
from fourfold.differentiate.equations import Argument, Emitter, Equation, Variable

Unary = Callable[[Emitter, Variable, Variable, Variable], Variable]     # (e, x, y, ẋ) → ẏ


def _plus(e: Emitter, x: Variable, number: float) -> Variable:
    return e.emit("aten.add.Scalar", x, number)


def _square(e: Emitter, x: Variable) -> Variable:
    return e.mul(x, x)


def _one(e: Emitter, op: str, x: Variable) -> Variable:
    return e.emit(f"aten.{op}.default", x)


_UNARY: dict[str, Unary] = {
    "exp": lambda e, x, y, t: e.mul(t, y),
    "exp2": lambda e, x, y, t: e.mul(e.mul(t, y), math.log(2)),
    "expm1": lambda e, x, y, t: e.mul(t, _plus(e, y, 1.0)),
    "log": lambda e, x, y, t: e.div(t, x),
    "log2": lambda e, x, y, t: e.div(t, e.mul(x, math.log(2))),
    "log10": lambda e, x, y, t: e.div(t, e.mul(x, math.log(10))),
    "log1p": lambda e, x, y, t: e.div(t, _plus(e, x, 1.0)),
    "sqrt": lambda e, x, y, t: e.div(t, e.mul(y, 2.0)),
    "rsqrt": lambda e, x, y, t: e.mul(t, e.mul(e.mul(_square(e, y), y), -0.5)),
    "reciprocal": lambda e, x, y, t: e.mul(t, e.neg(_square(e, y))),
    "sin": lambda e, x, y, t: e.mul(t, _one(e, "cos", x)),
    "cos": lambda e, x, y, t: e.mul(t, e.neg(_one(e, "sin", x))),
    "tan": lambda e, x, y, t: e.mul(t, _plus(e, _square(e, y), 1.0)),
    "asin": lambda e, x, y, t: e.mul(t, _one(e, "rsqrt", _plus(e, e.neg(_square(e, x)), 1.0))),
    "acos": lambda e, x, y, t: e.mul(t, e.neg(_one(e, "rsqrt", _plus(e, e.neg(_square(e, x)), 1.0)))),
    "atan": lambda e, x, y, t: e.div(t, _plus(e, _square(e, x), 1.0)),
    "sinh": lambda e, x, y, t: e.mul(t, _one(e, "cosh", x)),
    "cosh": lambda e, x, y, t: e.mul(t, _one(e, "sinh", x)),
    "asinh": lambda e, x, y, t: e.mul(t, _one(e, "rsqrt", _plus(e, _square(e, x), 1.0))),
    "acosh": lambda e, x, y, t: e.mul(t, _one(e, "rsqrt", _plus(e, _square(e, x), -1.0))),
    "atanh": lambda e, x, y, t: e.div(t, _plus(e, e.neg(_square(e, x)), 1.0)),
    "erf": lambda e, x, y, t: e.mul(t, e.mul(_one(e, "exp", e.neg(_square(e, x))), 2 / math.sqrt(math.pi))),
    "erfc": lambda e, x, y, t: e.mul(t, e.mul(_one(e, "exp", e.neg(_square(e, x))), -2 / math.sqrt(math.pi))),
    "erfinv": lambda e, x, y, t: e.mul(t, e.mul(_one(e, "exp", _square(e, y)), math.sqrt(math.pi) / 2)),
    "abs": lambda e, x, y, t: e.mul(t, _one(e, "sign", x)),
    "lgamma": lambda e, x, y, t: e.mul(t, _one(e, "digamma", x)),
    "digamma": lambda e, x, y, t: e.mul(t, e.emit("aten.polygamma.default", 1, x)),
    "tanh": lambda e, x, y, t: e.emit("aten.tanh_backward.default", t, y),
    "sigmoid": lambda e, x, y, t: e.emit("aten.sigmoid_backward.default", t, y),
    "relu": lambda e, x, y, t: e.emit("aten.threshold_backward.default", t, y, 0),
}


def _unary(rule: Unary) -> Rule:
    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
        t = tangent(eq.args[0])
        return (None if t is None else rule(e, eq.args[0], eq.outs[0], fit(e, t, eq.outs[0])),)

    return Rule(jvp)


# operator → (its fused derivative, the latter's arguments after the tangent, from those of the operator)
_FUSED: dict[str, tuple[str, Callable[[Equation], list[Argument]]]] = {
    "gelu": ("gelu_backward", lambda eq: [eq.args[0]]),
    "silu": ("silu_backward", lambda eq: [eq.args[0]]),
    "elu": ("elu_backward", lambda eq: [*eq.args[1:4], False, eq.args[0]]),
    "leaky_relu": ("leaky_relu_backward", lambda eq: [eq.args[0], eq.args[1], False]),
    "softplus": ("softplus_backward", lambda eq: [*eq.args]),
    "mish": ("mish_backward", lambda eq: [eq.args[0]]),
    "hardswish": ("hardswish_backward", lambda eq: [eq.args[0]]),
    "hardsigmoid": ("hardsigmoid_backward", lambda eq: [eq.args[0]]),
    "hardtanh": ("hardtanh_backward", lambda eq: [*eq.args]),
}


def _fused(op: str, arguments: Callable[[Equation], list[Argument]]) -> Rule:
    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
        t = tangent(eq.args[0])
        return (None if t is None else e.emit(f"aten.{op}.default", t, *arguments(eq), **eq.kwargs),)

    return Rule(jvp)


# --- sums and products ------------------------------------------------------------------------------------------------------------------------------


def _add(sign: int) -> Rule:
    """x + sign·alpha·y."""

    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
        x, y = tangent(eq.args[0]), tangent(eq.args[1])
        out = eq.outs[0]
        if x is not None and y is not None and {x.dtype, y.dtype} == {out.dtype}:
            return (fit(e, e.emit(eq.op, x, y, **eq.kwargs), out),)
        if y is not None:
            scale = sign * eq.kwargs.get("alpha", 1)
            y = y if scale == 1 else e.neg(y) if scale == -1 else e.mul(y, scale)
        return (total(e, [x, y], out),)

    def transpose(e: Emitter, eq: Equation, cotangents: Cotangents) -> Iterable[tuple[Variable, Variable]]:
        ct, scale = only(cotangents), sign * eq.kwargs.get("alpha", 1)
        if isinstance(eq.args[0], Variable) and eq.args[0].linear:
            yield eq.args[0], e.matches(ct, eq.args[0])
        if isinstance(eq.args[1], Variable) and eq.args[1].linear:
            small = e.matches(ct, eq.args[1])
            yield eq.args[1], small if scale == 1 else e.neg(small) if scale == -1 else e.mul(small, scale)

    return Rule(jvp, transpose, joint=(0, 1))


def _shifted(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    """x + number."""
    t = tangent(eq.args[0])
    return (None if t is None else fit(e, t, eq.outs[0]),)


def _reversed(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    """number − x."""
    t = tangent(eq.args[0])
    return (None if t is None else e.neg(fit(e, t, eq.outs[0])),)


def _div(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    """ẋ/y − (x/y)/y · ẏ."""
    x, y, out = eq.args[0], eq.args[1], eq.outs[0]
    tx, ty = tangent(x), tangent(y)
    terms = [e.emit(eq.op, tx, y) if tx is not None else None]
    if ty is not None:
        terms.append(e.mul(ty, e.neg(e.div(out, y))))
    return (total(e, terms, out),)


def _pow(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    """p x^(p−1) ẋ + y ln x ṗ; where x is 0 the second is 0, as torch has it."""
    x, p, out = eq.args[0], eq.args[1], eq.outs[0]
    terms: list[Variable | None] = []
    if (tx := tangent(x)) is not None:
        if isinstance(p, Variable):
            safe = e.emit("aten.where.ScalarSelf", e.emit("aten.eq.Scalar", p, 0), 0.0, e.mul(e.emit(eq.op, x, _plus(e, p, -1)), p))
            terms.append(e.mul(tx, safe))
        elif p == 0:
            terms.append(None)
        elif p in (1, 2):
            terms.append(tx if p == 1 else e.mul(tx, e.mul(x, 2.0)))
        else:
            terms.append(e.mul(tx, e.mul(e.emit("aten.pow.Tensor_Scalar", x, p - 1), float(p))))
    if (tp := tangent(p)) is not None:
        if isinstance(x, Variable):
            logs = e.emit("aten.where.ScalarSelf", e.emit("aten.eq.Scalar", x, 0), 0.0, e.mul(out, _one(e, "log", x)))
        else:
            logs = e.mul(out, math.log(x) if x > 0 else 0.0)
        terms.append(e.mul(tp, logs))
    return (total(e, terms, out),)


def _extreme(compare: str) -> Rule:
    """max(x, y) or min(x, y): the tangent of the chosen one; where both are equal half of each, as torch has it."""

    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
        x, y, out = eq.args[0], eq.args[1], eq.outs[0]
        terms: list[Variable | None] = []
        for one, other in ((x, y), (y, x)):
            if (t := tangent(one)) is not None:
                half = e.mul(e.convert(e.emit("aten.eq.Tensor", one, other), out.dtype), 0.5)
                terms.append(e.mul(t, e.add(e.convert(e.emit(f"aten.{compare}.Tensor", one, other), out.dtype), half)))
        return (total(e, terms, out),)

    return Rule(jvp)


def _where(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    mask, out = eq.args[0], eq.outs[0]
    x, y = tangent(eq.args[1]), tangent(eq.args[2])
    if x is not None and y is not None:
        return (fit(e, e.emit("aten.where.self", mask, fit(e, x, out), fit(e, y, out)), out),)
    if x is not None:
        return (fit(e, e.emit("aten.where.ScalarOther", mask, x, 0.0), out),)
    return (None if y is None else fit(e, e.emit("aten.where.ScalarSelf", mask, 0.0, y), out),)


def _masked(position: int) -> Rule:
    """where(mask, x, number) or where(mask, number, x): linear where the number is 0."""

    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
        t = tangent(eq.args[position])
        args = [eq.args[0], 0.0, 0.0]
        args[position] = t
        return (None if t is None else fit(e, e.emit(eq.op, *args), eq.outs[0]),)

    return Rule(jvp, symmetric, each=(position,))


def _where_transposed(e: Emitter, eq: Equation, cotangents: Cotangents) -> Iterable[tuple[Variable, Variable]]:
    ct, (mask, x, y) = only(cotangents), eq.args[:3]
    yield x, e.matches(e.emit("aten.where.ScalarOther", mask, ct, 0.0), x)
    yield y, e.matches(e.emit("aten.where.ScalarSelf", mask, 0.0, ct), y)


def _clamp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    """ẋ where low ≤ x ≤ high; the tangent of a bound where it holds."""
    x, low, high, out = *eq.args[:3], eq.outs[0]
    terms: list[Variable | None] = []
    inside: list[Variable] = []
    for bound, op, cut in ((low, "ge", "lt"), (high, "le", "gt")):
        if bound is None:
            continue
        form = "Tensor" if isinstance(bound, Variable) else "Scalar"
        inside.append(e.emit(f"aten.{op}.{form}", x, bound))
        if (t := tangent(bound)) is not None:
            terms.append(e.emit("aten.where.ScalarOther", e.emit(f"aten.{cut}.{form}", x, bound), e.expand(t, out.shape), 0.0))
    if (t := tangent(x)) is not None:
        mask = inside[0] if len(inside) == 1 else e.emit("aten.logical_and.default", *inside)
        terms.append(e.emit("aten.where.ScalarOther", mask, t, 0.0))
    return (total(e, terms, out),)


def _atan2(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    """(x ẏ − y ẋ) / (x² + y²) of atan2(y, x)."""
    y, x, out = eq.args[0], eq.args[1], eq.outs[0]
    norm = e.add(_square(e, x), _square(e, y))
    ty, tx = tangent(y), tangent(x)
    return (total(e, [e.mul(ty, e.div(x, norm)) if ty is not None else None, e.mul(tx, e.neg(e.div(y, norm))) if tx is not None else None], out),)


def _remainder(rounding: str) -> Rule:
    """x − y·round(x/y)."""

    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
        tx, ty = tangent(eq.args[0]), tangent(eq.args[1])
        terms = [tx]
        if ty is not None:
            terms.append(e.mul(ty, e.neg(_one(e, rounding, e.div(eq.args[0], eq.args[1])))))
        return (total(e, terms, eq.outs[0]),)

    return Rule(jvp)


def _polygamma(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    t = tangent(eq.args[1])
    return (None if t is None else e.mul(t, e.emit("aten.polygamma.default", eq.args[0] + 1, eq.args[1])),)


def _hypot(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    terms = [e.mul(t, e.div(x, eq.outs[0])) for x in eq.args[:2] if (t := tangent(x)) is not None]
    return (total(e, terms, eq.outs[0]),)


def _addcmul(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    """x + value·a·b, or a/b."""
    x, a, b = eq.args[:3]
    product = e.mul(a, b) if "mul" in eq.op else e.div(a, b)
    return (e.add(x, e.mul(product, eq.kwargs["value"]) if "value" in eq.kwargs else product),)


def _cast(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
    t, out = tangent(eq.args[0]), eq.outs[0]
    return (None if t is None or not out.floating else e.convert(t, out.dtype),)


_SCALE = Rule(each=(0,), transpose=symmetric)
_CONSTANT = """eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar
    logical_and.default logical_or.default logical_not.default logical_xor.default bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor
    bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar bitwise_not.default isnan.default isinf.default isfinite.default floor.default
    ceil.default round.default round.decimals trunc.default sign.default sgn.default signbit.default div.Tensor_mode div.Scalar_mode
    floor_divide.default heaviside.default argmax.default argmin.default any.default any.dim any.dims all.default all.dim full.default
    zeros.default ones.default empty.memory_format arange.start_step arange.default arange.start scalar_tensor.default full_like.default
    zeros_like.default ones_like.default empty_like.default new_zeros.default new_ones.default new_full.default new_empty.default eye.default
    eye.m linspace.default tril_indices.default triu_indices.default rand.default randn.default rand_like.default randn_like.default
    randint.low randint.default randperm.default bernoulli.default bernoulli.p searchsorted.Tensor bucketize.Tensor detach.default
    count_nonzero.default count_nonzero.dim_IntList nextafter.default bitwise_left_shift.Tensor bitwise_right_shift.Tensor
    empty_permuted.default empty_strided.default lift_fresh_copy.default fmod.Scalar_mode""".split()

ROWS: Rows = (
    {f"aten.{op}.default": _unary(rule) for op, rule in _UNARY.items()}
    | {f"aten.{op}.default": _fused(*rule) for op, rule in _FUSED.items()}
    | {f"aten.{op}.default": _SCALE for op in ("neg", *(name for name, _ in _FUSED.values()), "tanh_backward", "sigmoid_backward",
                                              "threshold_backward")}
    | {f"aten.{op}": CONSTANT for op in _CONSTANT}
    | {"aten.mul.Tensor": Rule(each=(0, 1), transpose=symmetric), "aten.mul.Scalar": _SCALE, "aten.div.Scalar": _SCALE,
       "aten.add.Tensor": _add(1), "aten.sub.Tensor": _add(-1), "aten.add.Scalar": Rule(_shifted), "aten.sub.Scalar": Rule(_shifted),
       "aten.rsub.Scalar": Rule(_reversed), "aten.div.Tensor": Rule(_div, symmetric, each=(0,)),
       "aten.pow.Tensor_Scalar": Rule(_pow), "aten.pow.Tensor_Tensor": Rule(_pow), "aten.pow.Scalar": Rule(_pow),
       "aten.maximum.default": _extreme("gt"), "aten.minimum.default": _extreme("lt"),
       "aten.where.self": Rule(_where, _where_transposed, joint=(1, 2)), "aten.where.ScalarOther": _masked(1), "aten.where.ScalarSelf": _masked(2),
       "aten.clamp.default": Rule(_clamp), "aten.clamp.Tensor": Rule(_clamp),
       "aten.atan2.default": Rule(_atan2), "aten.hypot.default": Rule(_hypot), "aten.polygamma.default": Rule(_polygamma),
       "aten.fmod.Tensor": _remainder("trunc"), "aten.fmod.Scalar": _remainder("trunc"),
       "aten.remainder.Tensor": _remainder("floor"), "aten.remainder.Scalar": _remainder("floor"),
       "aten.addcmul.default": Rule(expand=_addcmul), "aten.addcdiv.default": Rule(expand=_addcmul),
       "aten._to_copy.default": Rule(_cast, symmetric, each=(0,))}
)  # fmt: skip
