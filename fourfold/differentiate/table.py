"""The table of operators: how each is linearized and, where it is linear, how it is transposed; both beside each other in one row.

The rows stand in `_elementwise`, `_shape`, `_reduction`, `_contraction`, `_attention` and `_indexing`. An operator without a row is written in ones
that have one, by torch's own decompositions; where there is none either, `rule_of` says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from fourfold.differentiate import _attention, _contraction, _elementwise, _indexing, _reduction, _shape
from fourfold.differentiate._rules import CONSTANT, Rows, Rule
from fourfold.differentiate.equations import Argument, Emitter, Equation, Function, Variable, copied, operator_of, torch_dtype
from fourfold.differentiate.fx import from_fx
from fourfold.errors import ModelError

RULES: Rows = {**_elementwise.ROWS, **_shape.ROWS, **_reduction.ROWS, **_contraction.ROWS, **_attention.ROWS, **_indexing.ROWS,
               "uniform": CONSTANT}
_torch: dict[Argument, Function | None] = {}


def rule_of(eq: Equation) -> Rule:
    """The row of an equation's operator. Raises ModelError where there is none and torch has no decomposition of it."""
    if (rule := RULES.get(eq.op)) is not None and (rule.when is None or rule.when(eq)):
        return rule
    if all(not out.floating for out in eq.outs):
        return CONSTANT
    if decomposition(eq) is None:
        raise ModelError(f"{eq.op} has no differentiation rule; it stands in {eq.where}.",
                         "Write that part with other operators, or give its row in fourfold/differentiate/.")
    return Rule(expand=by_torch)


def by_torch(e: Emitter, eq: Equation) -> Sequence[Variable | None]:
    """The equation in simpler operators, as torch decomposes it."""
    found = decomposition(eq)
    if found is None:
        raise ModelError(f"{eq.op} has no differentiation rule for all of its arguments; it stands in {eq.where}.",
                         "Write that part with other operators, or give its row in fourfold/differentiate/.")
    body, _ = copied(found)
    new: dict[Variable, Variable] = dict(zip(body.inputs, eq.inputs, strict=True))
    for inner in body.equations:
        made = e.emit(inner.op, *_given(inner.args, new), **dict(inner.kwargs))
        parts = made if isinstance(made, tuple) else (made,)
        new.update({o: p for o, p in zip(inner.outputs, parts, strict=True) if o is not None and p is not None})
    outputs = iter(new.get(v, v) for v in body.outputs)
    made = [None if o is None else next(outputs) for o in eq.outputs]
    return tuple(m if o is not None and m is not None and m.shape == o.shape else None for m, o in zip(made, eq.outputs, strict=True))


def _given(value: Argument, new: dict[Variable, Variable]) -> Argument:
    if isinstance(value, Variable):
        return new[value]
    return type(value)(_given(v, new) for v in value) if isinstance(value, list | tuple) else value


def decomposition(eq: Equation) -> Function | None:
    """The equation's operator, written by torch in others; None where torch does not know."""
    import torch

    if "." not in eq.op:
        return None
    specs = [(v.shape, v.dtype) for v in eq.inputs]
    key = (eq.op, repr(specs), repr(_shaped(eq.args)), repr(sorted(eq.kwargs.items())), repr([o is None for o in eq.outputs]))
    if key not in _torch:
        from torch._decomp import decomposition_table

        target = operator_of(eq.op)
        written = decomposition_table.get(target)
        composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        _torch[key] = _traced(eq, target, written) if written is not None or composite else None
    return _torch[key]


def _shaped(value: Argument) -> Argument:
    if isinstance(value, Variable):
        return ("v", value.shape)
    return [_shaped(v) for v in value] if isinstance(value, list | tuple) else value


def _traced(eq: Equation, target: Argument, written: Argument) -> Function | None:
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    given = [torch.empty(v.shape, dtype=torch_dtype(v.dtype)) for v in eq.inputs]

    def run(*tensors: Argument) -> list[Argument]:
        left = iter(tensors)

        def bound(value: Argument) -> Argument:
            if isinstance(value, Variable):
                return next(left)
            return type(value)(bound(v) for v in value) if isinstance(value, list | tuple) else value

        made = (written or target)(*bound(eq.args), **eq.kwargs)
        parts = made if isinstance(made, tuple | list) else (made,)
        return [p for p, o in zip(parts, eq.outputs, strict=True) if o is not None]

    table: dict[Argument, Argument] = {target: written} if written is not None else {}
    try:
        with torch.no_grad():
            module = make_fx(run, decomposition_table=table, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
        found = from_fx(module)
    except Exception:                                                  # noqa: BLE001 — then there is no decomposition that holds here
        return None
    return None if any(inner.op == eq.op for inner in found.equations) else found


__all__ = ["RULES", "by_torch", "decomposition", "rule_of"]
