"""Linearize: the first of the three passes. f(x) → y becomes J f (x; ẋ) → (y; ẏ).

Each equation y = op(x₁ … x_k) stays, and beside it come non-linear equations for its partial derivatives and linear ones for ẏ = Σ ∂op/∂x_i · ẋ_i.
Then `dup` is written before each further use of a linear variable and `drop` where one is not used (Radul et al. 2023, figure 5). A call of f
becomes a call of J f. A tangent that is zero throughout is not computed; asked for as a result, it is a zero of the right shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fourfold.differentiate._rules import Rule, by_linearity
from fourfold.differentiate.equations import Argument, Emitter, Equation, Function, Variable, call, explicit, pruned, readers, variables
from fourfold.differentiate.table import by_torch, rule_of
from fourfold.errors import InputError


def linearize(function: Function, wrt: Sequence[bool] | None = None) -> Function:
    """J f of an ordinary program. `wrt`: by which inputs (default: by all that have tangents); of others, and of integers, the tangent is None.

    Raises InputError where `function` has linear inputs already or `wrt` asks for an integer's tangent, ModelError naming an operator without a rule.
    """
    if function.tangents:
        raise InputError(f"{function.name} is linearized already.", "Make an ordinary program of it first: equations.plain.")
    active = [v.floating for v in function.inputs] if wrt is None else list(wrt)
    if len(active) != len(function.inputs):
        raise InputError(f"wrt has {len(active)} entries for {len(function.inputs)} inputs.", "Give one per input.")
    if bad := [v for v, a in zip(function.inputs, active, strict=True) if a and not v.floating]:
        raise InputError(f"{bad[0]!r} has no tangent: its type is {bad[0].dtype}.", "Differentiate by floating-point values.")
    found = _Linearize({}).function(function, tuple(active))
    e = Emitter()
    results = tuple(e.zero(o.shape, o.dtype) if r is None and o.floating else r for o, r in zip(found.outputs, found.results, strict=True))
    return explicit(replace(found, equations=(*found.equations, *e.equations), results=results))


class _Linearize:
    """One pass; functions that are called several times are linearized once per pattern of active inputs."""

    def __init__(self, known: dict[Argument, Function]) -> None:
        self.known = known

    def function(self, f: Function, active: tuple[bool, ...]) -> Function:
        """J f without `dup` and `drop`; results that are zero are None."""
        e = Emitter(derived=True)
        e.wanted = set(readers(f.equations, f.outputs))
        tangent: dict[Variable, Variable] = {}
        tangents = tuple(v.like(True) if a else None for v, a in zip(f.inputs, active, strict=True))
        tangent.update({v: t for v, t in zip(f.inputs, tangents, strict=True) if t is not None})
        for eq in f.equations:
            self.equation(e, eq, tangent)
        results = tuple(tangent.get(v) for v in f.outputs)
        kept = pruned(e.equations, (*f.outputs, *(r for r in results if r is not None)))
        return Function(f"J {f.name}", f.inputs, f.outputs, tuple(kept), tangents, results)

    def equation(self, e: Emitter, eq: Equation, tangent: dict[Variable, Variable]) -> None:
        if not any(v in tangent for v in eq.inputs):
            e.equations.append(eq)
            return
        e.at = (eq.module, eq.name)
        if eq.function is not None:
            self.call(e, eq, eq.function, tangent)
            return
        rule = rule_of(eq)
        if rule.constant:
            e.equations.append(eq)
            return
        if rule.jvp is None and not _covered(rule, eq, tangent):
            self.expanded(e, eq, rule, tangent)
            return
        e.equations.append(eq)
        jvp = rule.jvp or by_linearity(rule)
        made = jvp(e, eq, lambda x: tangent.get(x) if isinstance(x, Variable) else None)
        tangent.update({o: t for o, t in zip(eq.outputs, made, strict=True) if o is not None and t is not None})

    def expanded(self, e: Emitter, eq: Equation, rule: Rule, tangent: dict[Variable, Variable]) -> None:
        """The equation in simpler ones, and those linearized."""
        simpler = Emitter(derived=eq.derived)
        simpler.at = (eq.module, eq.name)
        made = (rule.expand or by_torch)(simpler, eq)
        stands = {m: o for o, m in zip(eq.outputs, made, strict=True) if o is not None and m is not None}
        own = {o for inner in simpler.equations for o in inner.outs}
        for inner in simpler.equations:
            self.equation(e, inner.renamed({m: o for m, o in stands.items() if m in own}), tangent)
        for m, o in stands.items():
            if m not in own:                                           # an output that is an input, or one of several that are the same
                e.equations.append(Equation("aten.reshape.default", (m, list(m.shape)), (o,), {}, False, None, *e.at))
                if m in tangent:
                    tangent[o] = tangent[m]

    def call(self, e: Emitter, eq: Equation, f: Function, tangent: dict[Variable, Variable]) -> None:
        active = tuple(v in tangent for v in eq.inputs)
        key = (f, active)
        if key not in self.known:
            self.known[key] = explicit(self.function(f, active))
        jf = self.known[key]
        given = [*eq.inputs, *(tangent[v] for v in eq.inputs if v in tangent)]
        made = call(jf, given, at=(eq.module, eq.name))
        n = len(f.outputs)
        fresh = iter(made.outputs[n:])
        e.equations.append(replace(made, outputs=(*eq.outputs, *made.outputs[n:])))
        for out, result in zip(eq.outputs, jf.results, strict=True):
            if result is not None:
                t = next(fresh)
                if out is not None and t is not None:
                    tangent[out] = t


def _covered(rule: Rule, eq: Equation, tangent: dict[Variable, Variable]) -> bool:
    """Whether every active argument stands where the operator is linear."""
    places = (*rule.joint, *rule.each, *rule.still)
    covered = {v for p in places for v in variables(eq.args[p])} if places else set()
    return bool(places) and all(v in covered for v in eq.inputs if v in tangent)
