"""Transpose: the third pass. A linear program (r; ẋ) → ẏ becomes (r; ȳ) → x̄ with ⟨ȳ, A ẋ⟩ = ⟨Aᵀ ȳ, ẋ⟩.

Linear equations are walked backwards, each by the transposition rule in its row of the table; zero ↔ drop, add ↔ dup, a call ↔ a call of the
transposed callee (Radul et al. 2023, figure 7). Since each linear variable is used exactly once, each has exactly one cotangent: nothing is
accumulated, sums come from dup alone. The result is a linear program again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fourfold.differentiate.check import check
from fourfold.differentiate.equations import Emitter, Equation, Function, Variable, call, explicit, pruned
from fourfold.differentiate.table import rule_of
from fourfold.errors import InputError, ModelError


def transpose(linear: Function) -> Function:
    """The transposed program. Raises InputError where `linear` is none: where it has ordinary outputs, or uses a linear variable not exactly once."""
    if linear.outputs or not linear.tangents and not linear.results:
        raise InputError(f"{linear.name} is no linear program.", "Unzip it first, and give the linear half.")
    if faults := check(linear):
        raise InputError(f"{linear.name} is not linear: {faults[0]}", "Each linear variable must be used exactly once: equations.explicit.")
    return _transposed(linear, {}, tuple(True for _ in linear.linear_outputs))


def _transposed(linear: Function, known: dict[object, Function], active: tuple[bool, ...]) -> Function:
    """`active`: which linear outputs have a cotangent that is not zero."""
    e = Emitter()
    makers = {o: eq for eq in linear.equations if not eq.linear for o in eq.outs}
    cotangent: dict[Variable, Variable] = {}
    given = iter(active)
    tangents = tuple(v.like() if v is not None and next(given) else None for v in linear.results)
    cotangent.update({v: t for v, t in zip(linear.results, tangents, strict=True) if v is not None and t is not None})
    ready = set(linear.inputs)
    e.ignored = {eq.outs[0] for eq in linear.equations if eq.op == "zero"}
    for eq in reversed([eq for eq in linear.equations if eq.linear]):
        e.at = (eq.module, eq.name)
        _equation(e, eq, cotangent, makers, ready, known)
    results = []
    for v in linear.tangents:
        results.append(None if v is None else cotangent[v] if v in cotangent else e.zero(v.shape, v.dtype))
    name = linear.name.removeprefix("T ") if linear.name.startswith("T ") else f"T {linear.name}"
    found = Function(name, linear.inputs, (), tuple(e.equations), tangents, tuple(results))
    return explicit(_without_dead(found))


def _equation(e: Emitter, eq: Equation, cotangent: dict[Variable, Variable], makers: Mapping[Variable, Equation], ready: set[Variable],
              known: dict[object, Function]) -> None:
    cts = [None if o is None else cotangent.pop(o, None) for o in eq.outputs]
    if eq.op in ("zero", "drop") or not any(c is not None for c in cts):
        return                                                         # a cotangent that is zero throughout stays unwritten
    if eq.op == "dup":
        one, other = cts
        found = one if other is None else other if one is None else e.add(one, other)
        assert found is not None
        cotangent[eq.inputs[0]] = found
        return
    for v in eq.inputs:
        if not v.linear:
            _make(e, v, makers, ready)
    if eq.function is not None:
        _call(e, eq, eq.function, cts, cotangent, known)
        return
    rule = rule_of(eq)
    if rule.transpose is None:
        raise ModelError(f"{eq.op} has no transposition rule; it stands in {eq.where}.", "Give its row in fourfold/differentiate/ one.")
    for operand, ct in rule.transpose(e, eq, cts):
        if operand not in e.ignored:
            cotangent[operand] = ct


def _make(e: Emitter, v: Variable, makers: Mapping[Variable, Equation], ready: set[Variable]) -> None:
    """The non-linear equations that compute v, where they have not run yet: as late as can be."""
    stack = [v]
    while stack:
        top = stack[-1]
        if top in ready:
            stack.pop()
            continue
        maker = makers[top]
        if missing := [u for u in maker.inputs if u not in ready]:
            stack += missing
            continue
        stack.pop()
        ready.update(maker.outs)
        e.equations.append(maker)


def _call(e: Emitter, eq: Equation, f: Function, cts: list[Variable | None], cotangent: dict[Variable, Variable],
          known: dict[object, Function]) -> None:
    n = len(f.inputs)
    active = tuple(c is not None for c in cts)
    key = (f, active)
    if key not in known:
        known[key] = _transposed(f, known, active)
    made = call(known[key], [*eq.inputs[:n], *(c for c in cts if c is not None)], at=e.at)
    e.equations.append(made)
    cotangent.update({v: o for v, o in zip(eq.inputs[n:], made.outputs, strict=True) if o is not None})


def _without_dead(f: Function) -> Function:
    """Without equations that no result depends on."""
    return replace(f, equations=tuple(pruned(f.equations, f.linear_outputs)))
