"""Random draws as functions of a key: run again with the same key, they answer alike, so a mask may be computed again in the backward program."""

from __future__ import annotations

import math
from dataclasses import replace

from fourfold.differentiate.equations import Emitter, Equation, Function, Variable
from fourfold.errors import ModelError


def keyed(function: Function) -> Function:
    """The same program with one more input at the end, an int64 scalar `key`, in which each draw is a function of the key and of its number. Calls
    must be inlined before. A program that draws nothing is returned as it is. Raises ModelError for a draw that has no such form here.
    """
    from fourfold.differentiate.unzip import random

    if not any(random(eq) for eq in function.equations):
        return function
    key, e, drawn = Variable((), "int64", name="key"), Emitter(), 0
    new: dict[Variable, Variable] = {}
    for eq in function.equations:
        eq = eq.renamed(new)
        if not random(eq):
            e.equations.append(eq)
            continue
        e.at = (eq.module, eq.name)
        made = _drawn(e, eq, key, drawn)
        drawn += 1
        new.update({o: m for o, m in zip(eq.outputs, made, strict=True) if o is not None})
    return replace(function, inputs=(*function.inputs, key), equations=tuple(e.equations), outputs=tuple(new.get(v, v) for v in function.outputs))


def _drawn(e: Emitter, eq: Equation, key: Variable, number: int) -> tuple[Variable, ...]:
    op, out = eq.op.split(".")[1], eq.outs[0]

    def unit(dtype: str) -> Variable:
        return e.emit("uniform", key, number, list(out.shape), dtype)

    if op == "native_dropout":
        x, p, train = eq.args[:3]
        if train is False or p == 0:
            return x, e.emit("aten.full.default", list(x.shape), True, dtype=_bool())
        mask = e.emit("aten.ge.Scalar", unit("float32"), float(p))
        return e.mul(e.emit("aten.where.ScalarOther", mask, x, 0.0), 0.0 if p >= 1 else 1 / (1 - p)), mask
    if op in ("rand", "rand_like"):
        return (unit(out.dtype),)
    if op in ("randn", "randn_like"):                                  # by the normal's quantile; at 0 half a step above it
        u = e.emit("aten.clamp.default", e.emit("aten.sub.Scalar", e.mul(unit(out.dtype), 2.0), 1.0), -1 + 2**-23, None)
        return (e.mul(e.emit("aten.erfinv.default", u), math.sqrt(2)),)
    if op == "bernoulli":
        p = eq.args[1] if eq.op.endswith(".p") else eq.args[0]
        form = "Tensor" if isinstance(p, Variable) else "Scalar"
        return (e.convert(e.emit(f"aten.lt.{form}", unit(p.dtype if isinstance(p, Variable) else "float32"), p), out.dtype),)
    raise ModelError(f"{eq.op} draws random numbers and has no form with a key; it stands in {eq.where}.",
                     "Draw uniform or normal numbers, or hand the draw in as an input.")


def _bool() -> object:
    import torch

    return torch.bool


