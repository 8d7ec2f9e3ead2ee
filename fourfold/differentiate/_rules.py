"""What a row of the table says, and the forms that many rows share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fourfold.differentiate.equations import Argument, Emitter, Equation, Variable, variables

Tangent = Callable[[Argument], "Variable | None"]                           # of a non-linear variable, or of what is none; None: zero
Jvp = Callable[[Emitter, Equation, Tangent], Sequence["Variable | None"]]
Cotangents = Sequence["Variable | None"]
Transpose = Callable[[Emitter, Equation, Cotangents], Iterable[tuple[Variable, Variable]]]
Expand = Callable[[Emitter, Equation], Sequence["Variable | None"]]


@dataclass(frozen=True)
class Rule:
    """One operator.

    `jvp(e, equation, tangent)` emits the partial derivatives (non-linear) and what applies them (linear), and returns a tangent for each output,
    None for zero. Left out, it follows from linearity: `joint` are the positions of arguments in which the operator is linear together (add, cat),
    `each` those in which it is linear one at a time, the others held (mul, mm: multilinear).
    `transpose(e, equation, cotangents)` is for an equation whose linear operands stand in those positions: pairs (linear operand, its cotangent).
    `still`: positions of arguments of which only the shape matters.
    `constant`: the derivative is zero wherever it exists (comparisons, rounding, random draws).
    `when`: says of an equation whether the row is for it; else torch's decomposition is taken.
    `expand(e, equation)` writes the operator in simpler ones, which are then differentiated in its place.
    """

    jvp: Jvp | None = None
    transpose: Transpose | None = None
    joint: tuple[int, ...] = ()
    each: tuple[int, ...] = ()
    still: tuple[int, ...] = ()
    constant: bool = False
    expand: Expand | None = None
    when: Callable[[Equation], bool] | None = None


Rows = dict[str, Rule]
CONSTANT = Rule(constant=True)


def fit(e: Emitter, tangent: Variable, out: Variable) -> Variable:
    """A tangent in the shape and type of the value that it belongs to."""
    return e.convert(e.expand(tangent, out.shape), out.dtype)


def total(e: Emitter, terms: Sequence[Variable | None], out: Variable) -> Variable | None:
    """The sum of the terms that there are, in the shape and type of `out`."""
    left = [fit(e, t, out) for t in terms if t is not None]
    while len(left) > 1:
        left[:2] = [e.add(left[0], left[1])]
    return left[0] if left else None


def by_linearity(rule: Rule) -> Jvp:
    """The jvp of an operator that is linear in some of its arguments."""

    def jvp(e: Emitter, eq: Equation, tangent: Tangent) -> Sequence[Variable | None]:
        if rule.joint:
            args = list(eq.args)
            for p in rule.joint:
                args[p] = _tangents(e, args[p], tangent)
            made = e.emit(eq.op, *args, **eq.kwargs)
            return made if isinstance(made, tuple) else (made,)
        terms = []
        for p in rule.each:
            if (t := tangent(eq.args[p])) is not None:
                made = e.emit(eq.op, *eq.args[:p], t, *eq.args[p + 1 :], **eq.kwargs)
                terms.append(made if isinstance(made, tuple) else (made,))
        return tuple(None if out is None else total(e, [term[i] for term in terms], out) for i, out in enumerate(eq.outputs))

    return jvp


def _tangents(e: Emitter, value: Argument, tangent: Tangent) -> Argument:
    if isinstance(value, list | tuple):
        return [_tangents(e, part, tangent) for part in value]
    found = tangent(value)
    return e.zero(value.shape, value.dtype) if found is None and isinstance(value, Variable) else found


def operand(eq: Equation) -> Variable:
    """The one linear variable that an equation reads."""
    return next(v for v in eq.inputs if v.linear)


def only(cotangents: Cotangents) -> Variable:
    """The cotangent of the one output."""
    return next(c for c in cotangents if c is not None)


def symmetric(e: Emitter, eq: Equation, cotangents: Cotangents) -> Iterable[tuple[Variable, Variable]]:
    """The transpose of what is its own transpose but for broadcasting and type: scaling by a non-linear value, masks, softmax's derivative."""
    x, ct = operand(eq), only(cotangents)
    args = [ct if a is x else a for a in eq.args]
    yield x, e.matches(e.emit(eq.op, *args, **eq.kwargs), x)


def sizes(e: Emitter, shape: Sequence[int], dtype: str) -> Variable:
    """A non-linear tensor of which only the shape matters: one element, expanded."""
    return e.expand(e.full([1] * len(shape), 0.0, dtype), shape)


def linear_operands(eq: Equation, positions: Sequence[int]) -> list[Variable]:
    return [v for p in positions for v in variables(eq.args[p]) if v.linear]
