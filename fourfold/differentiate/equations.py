"""A tensor program as equations, in which each variable is linear or not: what the three passes of differentiation read and write.

Radul et al., "You Only Linearize Once" (POPL 2023, arXiv 2204.10923), section 4. A variable is *non-linear* (an ordinary value) or *linear* (a
tangent or cotangent). Equations that make linear variables are linear in the linear variables that they read, and each linear variable is read
exactly once: fan-out is an explicit `dup`, disuse an explicit `drop`. Non-linear equations never read linear variables, so all of them may run first.

Operations are PyTorch's core ATen operators by name ("aten.mul.Tensor"), and six of our own: `zero`, `dup`, `drop`, `call`, `uniform` (a random
tensor as a function of a key) and `attention_tangent`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fourfold.errors import ModelError
from fourfold.graph import bytes_of

if TYPE_CHECKING:
    import torch

Argument = Any                                                         # of an operator: a variable, a number, a text, None, or a list of them

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})


class Variable:
    """A value of a program: its shape, its element type under torch's name, and whether it is linear. Two variables are equal where they are one."""

    __slots__ = ("dtype", "linear", "name", "shape")

    def __init__(self, shape: Iterable[int], dtype: str, linear: bool = False, name: str = "") -> None:
        self.shape, self.dtype, self.linear, self.name = tuple(int(s) for s in shape), dtype, linear, name

    def __repr__(self) -> str:
        return f"{self.name or 'v'}:{'~' if self.linear else ''}{self.dtype}{list(self.shape)}"

    @property
    def bytes(self) -> int:
        """Bytes of the dense tensor."""
        return bytes_of(self.shape, self.dtype)

    @property
    def floating(self) -> bool:
        """Whether it has a tangent; of integers and booleans the tangent space has one point, written None."""
        return self.dtype in FLOATING

    def like(self, linear: bool | None = None, name: str = "") -> Variable:
        """A new variable of the same shape and type."""
        return Variable(self.shape, self.dtype, self.linear if linear is None else linear, name or self.name)


@dataclass(frozen=True, eq=False)
class Equation:
    """outputs = op(*args, **kwargs). Variables stand in `args`, bare or in lists; everything else there is an attribute. An output that nobody can
    ask for is None. `derived` marks what a rule of linearize added to the program; `function` is the callee of a `call`, `module` and `name` say
    where the operation stands in the model.
    """

    op: str
    args: tuple[Argument, ...]
    outputs: tuple[Variable | None, ...]
    kwargs: Mapping[str, Argument] = field(default_factory=dict)
    derived: bool = False
    function: Function | None = None
    module: str = ""
    name: str = ""

    @property
    def inputs(self) -> list[Variable]:
        """The variables that it reads, in order, repeats included."""
        return list(variables((self.args, tuple(self.kwargs.values()))))

    @property
    def outs(self) -> list[Variable]:
        """The variables that it makes."""
        return [out for out in self.outputs if out is not None]

    @property
    def linear(self) -> bool:
        """Whether it belongs to the linear part of its program."""
        return any(out.linear for out in self.outs) or any(v.linear for v in self.inputs)

    @property
    def where(self) -> str:
        """Where it stands, for error messages: the module, or the name of the operation."""
        return self.module or self.name or self.op

    def renamed(self, new: Mapping[Variable, Variable]) -> Equation:
        """The same equation on other variables."""
        return replace(self, args=substituted(self.args, new), kwargs={k: substituted(v, new) for k, v in self.kwargs.items()},
                       outputs=tuple(new.get(o, o) if o is not None else None for o in self.outputs))


@dataclass(frozen=True, eq=False)
class Function:
    """outputs, results = f(inputs; tangents): non-linear inputs and outputs, then linear ones. Where a position has no tangent (an integer, or a
    value that nobody differentiates by), `tangents` or `results` hold None. `tensors` binds inputs to the model's own tensors.
    """

    name: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    tangents: tuple[Variable | None, ...] = ()
    results: tuple[Variable | None, ...] = ()

    def __repr__(self) -> str:
        return (f"{self.name}({len(self.inputs)}; {sum(v is not None for v in self.tangents)}) → ({len(self.outputs)}; "
                f"{sum(v is not None for v in self.results)}), {len(self.equations)} equations")

    def __str__(self) -> str:
        """The program as text, an equation a line; linear variables carry a dot."""
        names: dict[Variable, str] = {}

        def told(value: Argument) -> str:
            if isinstance(value, Variable):
                return names.setdefault(value, f"{'ẋ' if value.linear else 'x'}{len(names)}")
            if isinstance(value, list | tuple):
                return f"[{', '.join(told(v) for v in value)}]"
            return "_" if value is None else str(value).removeprefix("torch.")

        head = f"{self.name}({', '.join(told(v) for v in self.inputs)}; {', '.join(told(v) for v in self.tangents)})"
        lines = []
        for eq in self.equations:
            given = [told(a) for a in eq.args] + [f"{k}={told(v)}" for k, v in eq.kwargs.items()]
            op = f"call {eq.function.name}" if eq.function else eq.op.removeprefix("aten.")
            made = [f"{told(o)}:{o.dtype}{list(o.shape)}" if o is not None else "_" for o in eq.outputs]
            lines.append(f"  {', '.join(made) or '()'} = {op}({', '.join(given)})")
        return "\n".join([head, *lines, f"  return {', '.join(told(v) for v in self.outputs)}; {', '.join(told(v) for v in self.results)}"])

    @property
    def linear_inputs(self) -> list[Variable]:
        return [v for v in self.tangents if v is not None]

    @property
    def linear_outputs(self) -> list[Variable]:
        return [v for v in self.results if v is not None]


def variables(value: Argument) -> Iterator[Variable]:
    """The variables in nested lists of arguments, in order."""
    if isinstance(value, Variable):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from variables(part)


def substituted(value: Argument, new: Mapping[Variable, Argument]) -> Argument:
    """`value` with variables replaced."""
    if isinstance(value, Variable):
        return new.get(value, value)
    if isinstance(value, list | tuple):
        return type(value)(substituted(part, new) for part in value)
    return value


# --- making equations -------------------------------------------------------------------------------------------------------------------------------


def operator_of(op: str) -> Argument:
    """torch's operator for "aten.mul.Tensor"."""
    import torch

    space, packet, overload = op.split(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload)


def torch_dtype(name: str) -> torch.dtype:
    """torch's own for a name such as "float32"."""
    import torch

    return getattr(torch, name)


class Emitter:
    """Appends equations; the shapes of what they make come from running them on tensors without storage. What reads a linear variable is linear.

    `derived`: the equations are marked as added by linearize. `at`: the equation whose place in the model they share. `wanted`: variables that
    somebody reads; `ignored`: linear ones whose cotangent nobody asks for.
    """

    def __init__(self, derived: bool = False) -> None:
        self.equations: list[Equation] = []
        self.derived, self.at = derived, ("", "")
        self.wanted: set[Variable] = set()
        self.ignored: set[Variable] = set()

    def emit(self, op: str, *args: Argument, **kwargs: Argument) -> Argument:
        """The variable (or the tuple of variables) that `op` makes of these arguments. Raises ModelError where the op refuses them."""
        args, kwargs = normalised(op, args, kwargs)
        linear = any(v.linear for v in variables((args, tuple(kwargs.values()))))
        specs = inferred(op, args, kwargs)
        made = tuple(None if s is None else Variable(*s, linear=linear and s[1] in FLOATING) for s in specs)
        self.equations.append(Equation(op, args, made, kwargs, self.derived and not linear, None, *self.at))
        return made[0] if len(made) == 1 else made

    # The few that rules use most; arguments are variables or numbers, shapes broadcast as torch's do.

    def add(self, a: Variable, b: Variable) -> Variable:
        return self.emit("aten.add.Tensor", a, b)

    def sub(self, a: Variable, b: Variable) -> Variable:
        return self.emit("aten.sub.Tensor", a, b)

    def mul(self, a: Variable, b: Argument) -> Variable:
        return self.emit("aten.mul.Tensor" if isinstance(b, Variable) else "aten.mul.Scalar", a, b)

    def div(self, a: Variable, b: Argument) -> Variable:
        return self.emit("aten.div.Tensor" if isinstance(b, Variable) else "aten.div.Scalar", a, b)

    def neg(self, a: Variable) -> Variable:
        return self.emit("aten.neg.default", a)

    def zero(self, shape: Iterable[int], dtype: str) -> Variable:
        """A linear zero."""
        made = Variable(shape, dtype, True)
        self.equations.append(Equation("zero", (), (made,), {}, False, None, *self.at))
        return made

    def full(self, shape: Iterable[int], value: float, dtype: str) -> Variable:
        return self.emit("aten.full.default", list(shape), value, dtype=torch_dtype(dtype))

    def reshape(self, a: Variable, shape: Iterable[int]) -> Variable:
        shape = tuple(shape)
        return a if a.shape == shape else self.emit("aten.reshape.default", a, list(shape))

    def expand(self, a: Variable, shape: Iterable[int]) -> Variable:
        shape = tuple(shape)
        return a if a.shape == shape else self.emit("aten.expand.default", a, list(shape))

    def permute(self, a: Variable, dims: Sequence[int]) -> Variable:
        return a if list(dims) == list(range(len(dims))) else self.emit("aten.permute.default", a, list(dims))

    def convert(self, a: Variable, dtype: str) -> Variable:
        return a if a.dtype == dtype else self.emit("aten._to_copy.default", a, dtype=torch_dtype(dtype))

    def sum(self, a: Variable, dims: Sequence[int], keepdim: bool = False) -> Variable:
        if not dims:
            return a
        return self.emit("aten.sum.dim_IntList", a, list(dims), keepdim)

    def matches(self, a: Variable, like: Variable) -> Variable:
        """`a` summed over the dimensions along which `like` was broadcast to it, in the type of `like`: the transpose of broadcasting."""
        ahead = len(a.shape) - len(like.shape)
        dims = [d for d in range(len(a.shape)) if d < ahead or (like.shape[d - ahead] == 1 and a.shape[d] != 1)]
        return self.convert(self.reshape(self.sum(a, dims), like.shape), like.dtype)


_DROPPED = ("device", "layout", "pin_memory", "memory_format", "non_blocking")     # keyword-only arguments that change no value here


def normalised(op: str, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
    """All positional arguments of the operator's schema in order, defaults filled in; of keyword-only ones those that are not at their default."""
    if "." not in op:
        return tuple(args), dict(kwargs)
    given, left, named = list(args), dict(kwargs), {}
    for i, argument in enumerate(operator_of(op)._schema.arguments):
        if argument.kwarg_only:
            usual = argument.has_default_value() and left.get(argument.name) == argument.default_value
            if argument.name in left and argument.name not in _DROPPED and not usual:
                named[argument.name] = left[argument.name]
        elif i >= len(given):
            given.append(left[argument.name] if argument.name in left else argument.default_value)
    return tuple(given), named


Spec = tuple[tuple[int, ...], str]
_specs: dict[Argument, tuple[Spec | None, ...]] = {}


def inferred(op: str, args: tuple[Argument, ...], kwargs: Mapping[str, Argument]) -> tuple[Spec | None, ...]:
    """(shape, dtype) of everything that `op` makes of these arguments."""
    if op == "dup":
        return ((args[0].shape, args[0].dtype),) * 2
    if op == "drop":
        return ()
    if op == "uniform":
        return ((tuple(args[2]), args[3]),)
    if op == "attention_tangent":
        return ((args[6].shape, args[6].dtype),)
    key = (op, _key(args), _key(tuple(sorted(kwargs.items(), key=lambda kv: kv[0]))))
    if key not in _specs:
        import torch

        def bare(value: Argument) -> Argument:
            if isinstance(value, Variable):
                return torch.empty(value.shape, dtype=torch_dtype(value.dtype), device="meta")
            return type(value)(bare(v) for v in value) if isinstance(value, list | tuple) else value

        given = {k: bare(v) for k, v in kwargs.items()}
        target = operator_of(op)
        if any(argument.name == "device" for argument in target._schema.arguments) and not any(variables((args, tuple(kwargs.values())))):
            given["device"] = "meta"
        try:
            with torch.no_grad():
                made = target(*bare(args), **given)
        except Exception as error:
            told = ", ".join(map(repr, variables((args, tuple(kwargs.values())))))
            raise ModelError(f"{op} does not take {told}: {str(error).splitlines()[0]}", "This is a fault of a differentiation rule.") from error
        parts = made if isinstance(made, tuple | list) else (made,)
        if len(_specs) > 100_000:
            _specs.clear()
        _specs[key] = tuple(None if p is None else (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for p in parts)
    return _specs[key]


def _key(value: Argument) -> Argument:
    if isinstance(value, Variable):
        return ("v", value.shape, value.dtype)
    if isinstance(value, list | tuple):
        return tuple(_key(v) for v in value)
    return (type(value).__name__, value)


# --- whole programs ---------------------------------------------------------------------------------------------------------------------------------


def readers(equations: Iterable[Equation], ends: Iterable[Variable]) -> dict[Variable, int]:
    """Variable → how often it is read, by equations and as a result."""
    count: dict[Variable, int] = {}
    for eq in equations:
        for v in eq.inputs:
            count[v] = count.get(v, 0) + 1
    for v in ends:
        count[v] = count.get(v, 0) + 1
    return count


def pruned(equations: Sequence[Equation], ends: Iterable[Variable]) -> list[Equation]:
    """Without what no result depends on."""
    needed, kept = set(ends), []
    for eq in reversed(equations):
        if any(out in needed for out in eq.outs):
            needed.update(eq.inputs)
            kept.append(eq)
    return kept[::-1]


def explicit(function: Function) -> Function:
    """The same program with `dup` before each further use of a linear variable, and `drop` where it is not used: then each is used exactly once.

    A chain of binary dups is laid where the variable is made, one result of each for the next reader in the order of reading.
    """
    left = readers(function.equations, function.linear_outputs)
    spare: dict[Variable, Variable] = {}
    made: list[Equation] = []
    where = ("", "")

    def take(value: Argument) -> Argument:
        if isinstance(value, list | tuple):
            return type(value)(take(part) for part in value)
        if not isinstance(value, Variable) or not value.linear:
            return value
        now = spare.pop(value, value)
        left[value] -= 1
        if left[value]:
            one, other = now.like(), now.like()
            made.append(Equation("dup", (now,), (one, other), {}, False, None, *where))
            spare[value] = other
            return one
        return now

    unused: list[Variable] = [v for v in function.linear_inputs if not left.get(v)]
    for eq in function.equations:
        where = (eq.module, eq.name)
        fresh = replace(eq, args=take(eq.args), kwargs={k: take(v) for k, v in eq.kwargs.items()}) if any(v.linear for v in eq.inputs) else eq
        made.append(fresh)
        unused += [out for out in eq.outs if out.linear and not left.get(out)]
    results = tuple(None if r is None else take(r) for r in function.results)
    made += [Equation("drop", (v,), ()) for v in unused]
    return replace(function, equations=tuple(made), results=results)


def plain(function: Function, name: str = "") -> Function:
    """An ordinary program of the same meaning: linear variables become non-linear ones, `dup` and `drop` vanish, zeros are filled in, calls stay.

    Its inputs are those of `function` and then the tangents; its outputs likewise.
    """
    new: dict[Variable, Variable] = {}
    out = Emitter()
    for v in function.linear_inputs:
        new[v] = v.like(False)
    for eq in function.equations:
        if eq.op == "drop":
            continue
        if eq.op == "dup":
            for copy in eq.outs:
                new[copy] = new[eq.inputs[0]]
        elif eq.op == "zero":
            out.at = (eq.module, eq.name)
            new[eq.outs[0]] = out.full(eq.outs[0].shape, 0.0, eq.outs[0].dtype)
        else:
            new.update({o: o.like(False) for o in eq.outs if o.linear})
            callee = plain(eq.function) if eq.function is not None and eq.function.tangents else eq.function
            out.equations.append(replace(eq.renamed(new), function=callee))
    inputs = (*function.inputs, *(new[v] for v in function.linear_inputs))
    outputs = (*function.outputs, *(new.get(v, v) for v in function.linear_outputs))
    return Function(name or function.name, inputs, outputs, tuple(pruned(out.equations, outputs)))


def copied(function: Function) -> tuple[Function, dict[Variable, Variable]]:
    """The same program on new variables, and which stands for which."""
    new = {v: v.like() for v in (*function.inputs, *function.linear_inputs)}
    equations = []
    for eq in function.equations:
        new.update({o: o.like() for o in eq.outs})
        equations.append(eq.renamed(new))
    return Function(function.name, tuple(new[v] for v in function.inputs), tuple(new[v] for v in function.outputs), tuple(equations),
                    tuple(None if v is None else new[v] for v in function.tangents),
                    tuple(None if v is None else new[v] for v in function.results)), new


def inlined(function: Function) -> Function:
    """The same program with every call replaced by the equations of its callee."""
    if not any(eq.function for eq in function.equations):
        return function
    new: dict[Variable, Variable] = {}
    made: list[Equation] = []
    for eq in function.equations:
        eq = eq.renamed(new)
        if eq.function is None:
            made.append(eq)
            continue
        body, _ = copied(inlined(eq.function))
        bound = dict(zip((*body.inputs, *body.linear_inputs), eq.inputs, strict=True))
        prefix = eq.module
        for inner in body.equations:
            inner = inner.renamed(bound)
            made.append(replace(inner, module=inner.module or prefix, derived=inner.derived or eq.derived))
        for out, value in zip(eq.outputs, (*body.outputs, *body.linear_outputs), strict=True):
            if out is not None:
                new[out] = bound.get(value, value)

    def last(v: Variable) -> Variable:
        return new.get(v, v)

    return replace(function, equations=tuple(made), outputs=tuple(last(v) for v in function.outputs),
                   results=tuple(None if v is None else last(v) for v in function.results))


def call(function: Function, args: Sequence[Variable], *, derived: bool = False, at: tuple[str, str] = ("", "")) -> Equation:
    """An equation that calls `function` on `args`: its inputs, then its tangents."""
    outputs = (*function.outputs, *function.linear_outputs)
    return Equation("call", tuple(args), tuple(o.like() for o in outputs), {}, derived, function, *at)


def elements(shape: Iterable[int]) -> int:
    return math.prod(shape)

