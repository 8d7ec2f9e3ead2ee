"""Unzip: the second pass. J f (x; ẋ) → (y; ẏ) becomes a non-linear program x → (y, residuals) and a linear one (residuals; ẋ) → ẏ.

That is possible because nothing non-linear reads a linear variable, so all non-linear equations may run first (Radul et al. 2023, section 6). What
the linear part reads of the non-linear one are the residuals, and here alone it is decided whether each is stored between the two programs or
computed again in the second. A call is split in two: its forward half returns its residuals besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fourfold.differentiate.equations import Equation, Function, Variable, call, pruned
from fourfold.errors import InputError

Choice = Literal["store", "recompute"]
Policy = Choice | Mapping[str, Choice] | Callable[["Residual"], Choice]
_VIEWS = frozenset("aten.reshape.default aten.permute.default aten.expand.default aten.slice.Tensor aten.select.int aten.diagonal.default".split())
_DRAWS = ("rand", "randn", "bernoulli", "native_dropout", "randint", "randperm", "rand_like", "randn_like")


@dataclass(frozen=True, eq=False)
class Residual:
    """A value of the primal program that the linear part needs.

    name        unique in its program
    value       its variable; `bytes` what storing it costs (0 of what shares the memory of an input)
    cone        the equations that compute it from the program's inputs, in order
    recomputable   False where the cone draws random numbers without a key, so that it must be stored
    readers     names of the operations whose derivatives read it
    """

    name: str
    value: Variable
    bytes: int
    cone: tuple[Equation, ...]
    recomputable: bool
    readers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Unzipped:
    """`forward`: inputs → outputs, then what is stored. `linear`: (inputs it needs, what is stored; tangents) → results. Variables of one name are
    one in both. `stored` and `recomputed` name residuals.
    """

    forward: Function
    linear: Function
    outputs: int
    stored: tuple[Residual, ...]
    recomputed: tuple[Residual, ...]

    @property
    def bytes(self) -> int:
        """Bytes that live between the two programs, beside the inputs."""
        return sum(r.bytes for r in self.stored)


def random(eq: Equation) -> bool:
    """Whether an equation draws from torch's global generator, so that running it again answers otherwise."""
    if eq.function is not None:
        return any(random(inner) for inner in eq.function.equations)
    return "." in eq.op and eq.op.split(".")[1] in _DRAWS


def unzip(linearized: Function, policy: Policy = "store") -> Unzipped:
    """Split J f. `policy`: "store" or "recompute" for all residuals, a mapping from names (others are stored), or a function of each Residual.

    Residuals are values of the primal program; derivatives (cos x, masks) and views of them are always computed from them in the linear program.
    A residual that is recomputed is so from the stored ones and the inputs. Raises InputError for an unknown name or choice, or where a mapping asks
    to recompute what draws random numbers without a key.
    """
    equations = _split_calls(linearized, policy)
    nonlinear = [eq for eq in equations if not eq.linear]
    linear = [eq for eq in equations if eq.linear]
    makers = {o: eq for eq in nonlinear for o in eq.outs}
    found = _residuals(linearized, nonlinear, linear, makers)
    choices = _choices(found, policy)
    stored = [r for r in found if choices[r.name] == "store"]
    again = [r for r in found if choices[r.name] == "recompute"]
    available = {*linearized.inputs, *(r.value for r in stored)}
    body = _on_demand(linear, makers, available)
    used = {v for eq in body for v in eq.inputs}
    inputs = [v for v in (*linearized.inputs, *(r.value for r in stored)) if v in used]
    second = Function(f"linear {linearized.name.removeprefix('J ')}", tuple(inputs), (), tuple(body), linearized.tangents,
                      linearized.results)
    ends = (*linearized.outputs, *(r.value for r in stored))
    first = Function(linearized.name.removeprefix("J "), linearized.inputs, ends, tuple(pruned(nonlinear, ends)))
    return Unzipped(first, second, len(linearized.outputs), tuple(stored), tuple(again))


def residuals(linearized: Function) -> tuple[Residual, ...]:
    """Everything that `unzip` decides about, in the order in which the primal program makes it."""
    equations = _split_calls(linearized, "store")
    nonlinear = [eq for eq in equations if not eq.linear]
    makers = {o: eq for eq in nonlinear for o in eq.outs}
    return tuple(_residuals(linearized, nonlinear, [eq for eq in equations if eq.linear], makers))


def _split_calls(f: Function, policy: Policy) -> list[Equation]:
    """Each call of a J g in two: a call of its forward half, which returns what it stores, and one of its linear half."""
    known: dict[Function, Unzipped] = {}
    made: list[Equation] = []
    inner: Policy = "recompute" if policy == "recompute" else "store"   # names are those of this program, not of its callees
    for eq in f.equations:
        if eq.function is None or not eq.function.tangents:
            made.append(eq)
            continue
        jg = eq.function
        if jg not in known:
            known[jg] = unzip(jg, inner)
        half = known[jg]
        n = len(jg.inputs)
        given, tangents = eq.inputs[:n], eq.inputs[n:]
        forward = call(half.forward, given, at=(eq.module, eq.name))
        extra = forward.outputs[half.outputs :]
        made.append(replace(forward, outputs=(*eq.outputs[: half.outputs], *extra)))
        stands = dict(zip(jg.inputs, given, strict=True)) | dict(zip((r.value for r in half.stored), extra, strict=True))
        made.append(Equation("call", (*(stands[v] for v in half.linear.inputs), *tangents), eq.outputs[half.outputs :], {}, False, half.linear,
                             eq.module, eq.name))
    return made


def _residuals(f: Function, nonlinear: Sequence[Equation], linear: Sequence[Equation], makers: Mapping[Variable, Equation]) -> list[Residual]:
    inputs = set(f.inputs)
    needed: dict[Variable, str] = {}
    roots: dict[Variable, list[str]] = {}
    for eq in linear:
        stack = [v for v in eq.inputs if not v.linear]
        seen: set[Variable] = set()
        while stack:
            v = stack.pop()
            if v in seen or v in inputs:
                continue
            seen.add(v)
            maker = makers[v]
            if maker.derived or maker.op in _VIEWS or not maker.inputs:
                stack += maker.inputs
            else:
                roots.setdefault(v, []).append(eq.name or eq.op)
    order = [o for eq in nonlinear for o in eq.outs if o in roots]
    names: dict[str, int] = {}
    for v in order:
        base = v.name or makers[v].name or "value"
        names[base] = names.get(base, 0) + 1
        needed[v] = base if names[base] == 1 else f"{base}.{names[base] - 1}"
    found = []
    for v in order:
        cone = tuple(pruned([eq for eq in nonlinear if not eq.derived], [v]))
        found.append(Residual(needed[v], v, v.bytes, cone, not any(random(eq) for eq in cone), tuple(dict.fromkeys(roots[v]))))
    return found


def _choices(found: Iterable[Residual], policy: Policy) -> dict[str, Choice]:
    known = {r.name: r for r in found}
    if isinstance(policy, str):
        if policy not in ("store", "recompute"):
            raise InputError(f"There is no policy {policy!r}.", "Give store, recompute, or a choice by residual.")
        return {name: policy if r.recomputable else "store" for name, r in known.items()}
    if isinstance(policy, Mapping):
        if unknown := [name for name in policy if name not in known]:
            raise InputError(f"There is no residual {unknown[0]!r}.", f"There are: {', '.join(list(known)[:20])}.")
        told: dict[str, Choice] = {name: policy.get(name, "store") for name in known}
    else:
        told = {name: policy(r) for name, r in known.items()}
    for name, choice in told.items():
        if choice not in ("store", "recompute"):
            raise InputError(f"{name} is to be {choice!r}.", "A residual is stored or recomputed: store, recompute.")
        if choice == "recompute" and not known[name].recomputable:
            raise InputError(f"{name} cannot be computed again: it draws random numbers without a key.", "Store it.")
    return told


def _on_demand(linear: Sequence[Equation], makers: Mapping[Variable, Equation], available: set[Variable]) -> list[Equation]:
    """The linear equations in order, each after the non-linear ones that it needs first, on new variables."""
    new: dict[Variable, Variable] = {v: v for v in available}
    body: list[Equation] = []

    def make(v: Variable) -> None:
        stack = [v]
        while stack:
            top = stack[-1]
            if top in new:
                stack.pop()
                continue
            maker = makers[top]
            if missing := [u for u in maker.inputs if u not in new]:
                stack += missing
                continue
            stack.pop()
            fresh = {o: o.like() for o in maker.outs}                   # of several outputs one may be stored: it stays that one
            body.append(replace(maker.renamed(new), outputs=tuple(None if o is None else fresh[o] for o in maker.outputs)))
            new.update({o: f for o, f in fresh.items() if o not in new})

    for eq in linear:
        for v in eq.inputs:
            if not v.linear:
                make(v)
        body.append(eq.renamed(new))
    return body
