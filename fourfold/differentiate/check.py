"""The linearity checker: every rule that a program breaks, a sentence each, with the place.

Rules (Radul et al. 2023, figure 3): a linear variable is used exactly once; a non-linear equation reads no linear variable; an equation that makes
linear variables is linear in those it reads, together or in one of them. It knows operators by the positions of arguments in which they are linear,
and nothing of how derivatives are made.
"""

from __future__ import annotations

from collections.abc import Iterator

from fourfold.differentiate.equations import Equation, Function, Variable, variables
from fourfold.differentiate.table import RULES


def check(function: Function) -> list[str]:
    """What is wrong with `function`; [] = nothing."""
    found: list[str] = []
    known = {*function.inputs, *function.linear_inputs}
    uses: dict[Variable, list[str]] = {v: [] for v in function.linear_inputs}
    place: dict[Variable, str] = {v: f"input {i} of {function.name}" for i, v in enumerate(function.linear_inputs)}
    if bad := [v for v in function.inputs if v.linear] + [v for v in function.linear_inputs if not v.linear]:
        found.append(f"{bad[0]!r} stands among the wrong inputs.")
    for number, eq in enumerate(function.equations):
        where = f"equation {number} ({eq.op} in {eq.where})"
        for v in eq.inputs:
            if v not in known:
                found.append(f"{where} reads {v!r} before it is made.")
            if v.linear:
                uses.setdefault(v, []).append(where)
        for v in eq.outs:
            if v in known:
                found.append(f"{where} makes {v!r} a second time.")
            if v.linear:
                uses.setdefault(v, [])
                place[v] = where
        known.update(eq.outs)
        found += [f"{where} {why}" for why in _faults(eq)]
    for v in function.linear_outputs:
        uses.setdefault(v, []).append("the results")
    for v in (*function.outputs, *function.linear_outputs):
        if v not in known:
            found.append(f"{function.name} returns {v!r}, which nothing makes.")
    if bad := [v for v in function.outputs if v.linear] + [v for v in function.linear_outputs if not v.linear]:
        found.append(f"{bad[0]!r} stands among the wrong outputs.")
    for v, readers in uses.items():
        if not readers:
            found.append(f"The linear variable of {place.get(v, 'nowhere')} is never used; it needs a drop.")
        elif len(readers) > 1:
            by = " and ".join(readers[:3])
            found.append(f"The linear variable of {place.get(v, 'nowhere')} is used {len(readers)} times, by {by}; it needs a dup.")
    for eq in function.equations:
        if eq.function is not None:
            found += [f"{eq.function.name}: {why}" for why in check(eq.function)]
    return found


def _faults(eq: Equation) -> Iterator[str]:
    """What is wrong with one equation, after its place."""
    linear_in, linear_out = [v for v in eq.inputs if v.linear], [v for v in eq.outs if v.linear]
    if eq.op == "zero":
        if linear_in or len(linear_out) != 1:
            yield "must read nothing and make one linear variable."
    elif eq.op in ("dup", "drop"):
        if len(eq.inputs) != 1 or len(linear_in) != 1 or len(linear_out) != (2 if eq.op == "dup" else 0):
            yield f"must read one linear variable and make {'two' if eq.op == 'dup' else 'none'}."
    elif eq.function is not None:
        f = eq.function
        want = [*f.inputs, *f.linear_inputs]
        if [(v.shape, v.dtype, v.linear) for v in want] != [(v.shape, v.dtype, v.linear) for v in eq.inputs]:
            yield f"hands {f.name} other arguments than it takes."
        if [(v.shape, v.dtype, v.linear) for v in (*f.outputs, *f.linear_outputs)] != [(v.shape, v.dtype, v.linear) for v in eq.outs]:
            yield f"expects other results of {f.name} than it returns."
    elif linear_in or linear_out:
        yield from _operator(eq, linear_in, linear_out)


def _operator(eq: Equation, linear_in: list[Variable], linear_out: list[Variable]) -> Iterator[str]:
    rule = RULES.get(eq.op)
    if rule is None or not (rule.joint or rule.each):
        yield "is not linear in any of its arguments, and reads a linear variable."
        return
    if not linear_in:
        yield "makes a linear variable of non-linear ones alone."
    if len(linear_out) != len(eq.outs):
        yield "makes a non-linear variable of linear ones."
    together = [v for p in rule.joint for v in variables(eq.args[p])]
    apart = [v for p in rule.each for v in variables(eq.args[p]) if v.linear]
    if any(v not in together and v not in apart for v in linear_in):
        yield "reads a linear variable in an argument in which it is not linear."
    if together and any(v.linear for v in together) and not all(v.linear for v in together):
        yield "adds a linear variable to a non-linear one."
    if len(apart) > 1:
        yield "is linear in one of its arguments at a time, and is given several linear ones: their product."
    if eq.op in ("aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.constant_pad_nd.default", "aten.scatter.value"):
        number = next(a for a in reversed(eq.args) if isinstance(a, int | float)) if eq.op != "aten.where.ScalarSelf" else eq.args[1]
        if number:
            yield "puts a number other than 0 among linear values."
    if rule.joint and any(isinstance(eq.args[p], int | float) and eq.args[p] for p in rule.joint):
        yield "adds a number to a linear variable."
