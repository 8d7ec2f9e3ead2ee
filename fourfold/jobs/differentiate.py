"""Derivatives of a captured model by three passes over its program (Radul et al. 2023, "You Only Linearize Once"):

    lin = fourfold.linearize(model, inputs)       # J f: answers and tangents together; forward mode is running it
    halves = fourfold.unzip(lin)                  # what runs first, and a linear program that reads what was stored
    pull = fourfold.transpose(halves)             # the linear program backwards: reverse mode
    step = fourfold.grad(model, inputs, loss)     # the three together as one program, with a Graph that can be planned

Each takes what the one before returned, and what `grad` returned may be linearized again: second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fourfold.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from fourfold.differentiate.equations import Function
    from fourfold.differentiate.gradient import Reverse
    from fourfold.differentiate.unzip import Policy, Residual, Unzipped
    from fourfold.frontends.differentiable import Differentiable
    from fourfold.graph import Graph
    from fourfold.program import Captured

Wrt = str | Sequence[str]
Answer = Any                                                          # what a model takes or returns: tensors in any structure


@dataclass(frozen=True, eq=False)
class _Derived:
    """A program, by which of its inputs it was differentiated, and the inputs that it was captured with."""

    program: Differentiable
    wrt: tuple[int, ...]
    inputs: tuple[Answer, ...]
    named: dict[str, Answer]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters and inputs that it is differentiated by."""
        return tuple(self.program.label(i) for i in self.wrt)

    def _tensors(self, inputs: tuple[Answer, ...], key: int) -> list[Tensor]:
        import torch

        inputs, named = (inputs, {}) if inputs else (self.inputs, self.named)
        found = self.program.given(*inputs, **named)
        return [torch.tensor(key) if role == "key" else t for (role, _, _), t in zip(self.program.roles, found, strict=True)]

    def _tangents(self, given: Mapping[str, Tensor] | Sequence[Tensor | None]) -> list[Tensor | None]:
        """One per input of the program; None is zero."""
        names = self.names
        if isinstance(given, Mapping):
            if unknown := [name for name in given if name not in names]:
                raise InputError(f"There is no {unknown[0]!r} to differentiate by.", f"There are: {', '.join(names)}.")
            given = [given.get(name) for name in names]
        if len(given) != len(names):
            raise InputError(f"{len(given)} tangents were given.", f"Give one for each of {', '.join(names)}.")
        found: list[Tensor | None] = [None] * len(self.program.function.inputs)
        for i, t in zip(self.wrt, given, strict=True):
            found[i] = t
        return found


@dataclass(frozen=True, eq=False)
class Linearization(_Derived):
    """(x; ẋ) → (y; ẏ). `function` is the program J f; print it to read it."""

    function: Function

    def __call__(self, tangents: Mapping[str, Tensor] | Sequence[Tensor | None], *inputs: Answer, key: int = 0) -> tuple[Answer, Answer]:
        """(y, ẏ), both as the model returns its answer, at `inputs` (default: those of the capture). `tangents`: by name, those left out being zero,
        or one for each of `names`. `key` seeds random draws, alike for alike keys.
        """
        from fourfold.differentiate.evaluate import evaluate

        y, dy = _quietly(evaluate, self.function, self._tensors(inputs, key), self._tangents(tangents))
        return self.program.unflatten(y), self.program.unflatten(dy)


@dataclass(frozen=True, eq=False)
class Halves(_Derived):
    """`unzipped.forward` and `unzipped.linear`; `residuals` could be stored or recomputed, `bytes` are stored between the halves."""

    linearized: Function
    unzipped: Unzipped

    @property
    def bytes(self) -> int:
        return self.unzipped.bytes

    @cached_property
    def residuals(self) -> tuple[Residual, ...]:
        from fourfold.differentiate.unzip import residuals

        return residuals(self.linearized)

    def __call__(self, *inputs: Answer, key: int = 0) -> tuple[Answer, Callable[[Answer], Answer]]:
        """(y, push): `push(tangents)` runs the linear half on what was stored."""
        from fourfold.differentiate.evaluate import evaluate

        y, held = _forward(self, inputs, key)

        def push(tangents: Mapping[str, Tensor] | Sequence[Tensor | None]) -> Answer:
            return self.program.unflatten(_quietly(evaluate, self.unzipped.linear, held, self._tangents(tangents))[1])

        return y, push


@dataclass(frozen=True, eq=False)
class Pullback(_Derived):
    """`transposed` is the linear half backwards: (what was stored; ȳ) → x̄."""

    unzipped: Unzipped
    transposed: Function

    def __call__(self, *inputs: Answer, key: int = 0) -> tuple[Answer, Callable[..., dict[str, Tensor]]]:
        """(y, pull): `pull(*cotangents)`, one for each floating tensor of the answer in order, returns {name: cotangent}."""
        from fourfold.differentiate.evaluate import evaluate

        y, held = _forward(self, inputs, key)

        def pull(*cotangents: Tensor) -> dict[str, Tensor]:
            left, wanted = iter(cotangents), [v for v in self.transposed.tangents if v is not None]
            if len(cotangents) != len(wanted):
                raise InputError(f"{len(cotangents)} cotangents were given.", f"The answer has {len(wanted)} floating tensors: give one for each.")
            given = [None if v is None else next(left) for v in self.transposed.tangents]
            found = _quietly(evaluate, self.transposed, held, given)[1]
            return {name: found[i] for name, i in zip(self.names, self.wrt, strict=True)}

        return y, pull


@dataclass(frozen=True, eq=False)
class Gradient(_Derived):
    """Loss and gradients as one ordinary program. `reverse` holds what each pass made."""

    reverse: Reverse

    def __call__(self, *inputs: Answer, key: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, {name: gradient}) at `inputs` (default: those of the capture)."""
        from fourfold.differentiate.evaluate import evaluate

        found = _quietly(evaluate, self.reverse.function, self._tensors(inputs, key))[0]
        return found[0], dict(zip(self.names, found[1:], strict=True))

    @property
    def residuals(self) -> tuple[Residual, ...]:
        from fourfold.differentiate.unzip import residuals

        return residuals(self.reverse.linearized)

    @property
    def graph(self) -> Graph:
        return self.captured.graph

    @cached_property
    def captured(self) -> Captured:
        """The program as a Graph with what executes it, marked forward and backward: `fourfold.plan` and `Captured.run` take it."""
        import torch

        from fourfold.frontends.differentiable import source
        from fourfold.frontends.fx_graph import as_captured

        program = self.program
        drawn = any(role == "key" for role, _, _ in program.roles)

        def flatten(*inputs: Answer, key: int = 0, **named: Answer) -> list[Answer]:
            return [*program.flatten(*inputs, **named), *([torch.tensor(key)] if drawn else [])]

        roles = [("input" if role == "key" else role, program.label(i), t) for i, (role, _, t) in enumerate(program.roles)]
        found = source(self.reverse.function, roles, flatten, lambda leaves: (leaves[0], dict(zip(self.names, leaves[1:], strict=True))))
        return replace(as_captured(found, self.reverse.function.name), inputs=self.inputs)


def linearize(model: Answer, inputs: Answer = None, *, loss: Callable[[Answer], Tensor] | None = None, wrt: Wrt = "inputs") -> Linearization:
    """J f of a model: forward mode.

    model: an nn.Module, an exported program, what `fourfold.frontends.capture` captured from torch, or what `grad` returned (then second
    derivatives). inputs: example inputs (a tensor, a tuple, a mapping by argument name). loss: makes a scalar of the answer. wrt: "inputs",
    "parameters", "all", or names. Raises ModelError for what cannot be captured or has an operator without a rule (it names the operator and where
    it stands), InputError where there is nothing to differentiate by.
    """
    from fourfold.differentiate.linearize import linearize as pass_

    program, wanted, args, kwargs = _program(model, inputs, loss, wrt)
    chosen = set(wanted)
    function = pass_(program.function, [i in chosen for i in range(len(program.function.inputs))])
    return Linearization(program, wanted, args, kwargs, function)


def unzip(linearized: Linearization, policy: Policy = "store") -> Halves:
    """Split J f into a program that computes and stores, and a linear one. policy: "store", "recompute", a mapping from the names of residuals to
    one of both, or a function of a Residual. Raises InputError for names that there are not.
    """
    from fourfold.differentiate.unzip import unzip as pass_

    if not isinstance(linearized, Linearization):
        raise InputError(f"unzip was given {type(linearized).__name__}.", "Give what fourfold.linearize returned.")
    made = linearized
    return Halves(made.program, made.wrt, made.inputs, made.named, made.function, pass_(made.function, policy))


def transpose(halves: Halves) -> Pullback:
    """The linear half backwards: reverse mode. Raises ModelError naming a linear operator without a transposition rule."""
    from fourfold.differentiate.transpose import transpose as pass_

    if not isinstance(halves, Halves):
        raise InputError(f"transpose was given {type(halves).__name__}.", "Give what fourfold.unzip returned.")
    return Pullback(halves.program, halves.wrt, halves.inputs, halves.named, halves.unzipped, pass_(halves.unzipped.linear))


def grad(
    model: Answer, inputs: Answer = None, loss: Callable[[Answer], Tensor] | None = None, *, wrt: Wrt = "parameters", policy: Policy = "store"
) -> Gradient:
    """Loss and gradients of a model as one program. Arguments are those of `linearize` and `unzip`; without a `loss` it is the model's own scalar,
    else the mean square of its first floating tensor, as `fourfold plan --train` has it.
    """
    from fourfold.differentiate.gradient import reverse_mode
    from fourfold.frontends.autograd import square

    program, wanted, args, kwargs = _program(model, inputs, loss or square, wrt)
    chosen = set(wanted)
    made = reverse_mode(program.function, [i in chosen for i in range(len(program.function.inputs))], policy)
    return Gradient(program, wanted, args, kwargs, made)


# --- what they share --------------------------------------------------------------------------------------------------------------------------------


def _program(model: Answer, inputs: Answer, loss: Answer, wrt: Wrt) -> tuple[Differentiable, tuple[int, ...], tuple[Answer, ...], dict[str, Answer]]:
    import torch

    from fourfold.differentiate.equations import inlined
    from fourfold.differentiate.keyed import keyed
    from fourfold.frontends.differentiable import differentiable, of_captured, with_loss, wrapped
    from fourfold.program import Captured, arguments

    if isinstance(model, Gradient):
        before = model.program
        names = model.names
        program = replace(before, function=model.reverse.function, unflatten=lambda leaves: (leaves[0], dict(zip(names, leaves[1:], strict=True))))
        program = with_loss(program, loss) if loss is not None else program
        args, kwargs = (model.inputs, model.named) if inputs is None else arguments(inputs)
    elif isinstance(model, Captured):
        program = of_captured(model)
        program = with_loss(program, loss) if loss is not None else program
        args, kwargs = arguments(model.inputs if inputs is None else inputs)
    elif isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        if inputs is None and isinstance(model, torch.nn.Module):
            raise InputError(f"{type(model).__name__} was given without example inputs.",
                             "Give a tensor, a tuple or a mapping: their shapes are captured.")
        example: Answer = model.example_inputs if isinstance(model, torch.export.ExportedProgram) else None
        args, kwargs = arguments(inputs) if inputs is not None else example
        if isinstance(model, torch.nn.Module):
            program = wrapped(model, args, kwargs, loss) if loss is not None else differentiable(model, args, kwargs)
        else:
            program = differentiable(model, args, kwargs)
            program = with_loss(program, loss) if loss is not None else program
    else:
        raise InputError(f"{type(model).__name__} is no model that can be differentiated.",
                         "Give a torch module, an exported program or a captured one.")
    if (drawing := keyed(inlined(program.function))) is not program.function and len(drawing.inputs) > len(program.roles):
        program = replace(program, function=drawing, roles=[*program.roles, ("key", "key", None)])
    return program, _wanted(program, wrt), tuple(args), dict(kwargs)


def _wanted(program: Differentiable, wrt: Wrt) -> tuple[int, ...]:
    """Which inputs of the program `wrt` means."""
    from torch import nn

    floating = [i for i, v in enumerate(program.function.inputs) if v.floating]
    learned = [i for i in floating if isinstance(t := program.roles[i][2], nn.Parameter) and t.requires_grad]
    fed = [i for i in floating if program.roles[i][0] == "input"]
    groups = {"parameters": learned, "inputs": fed, "all": sorted({*learned, *fed})}
    if isinstance(wrt, str):
        if wrt not in groups:
            raise InputError(f"There is no group {wrt!r} to differentiate by.", "Give inputs, parameters, all, or a list of names.")
        if not groups[wrt]:
            other = "parameters" if wrt == "inputs" else "inputs"
            raise InputError(f"The model has no floating-point {wrt}.", f"Differentiate by its {other}: wrt={other!r}.")
        return tuple(groups[wrt])
    known = {program.label(i): i for i in floating}
    if unknown := [name for name in wrt if name not in known]:
        raise InputError(f"There is no {unknown[0]!r} to differentiate by.", f"There are: {', '.join(known)}.")
    return tuple(sorted(known[name] for name in wrt))


def _forward(made: Halves | Pullback, inputs: tuple[Answer, ...], key: int) -> tuple[Answer, list[Answer]]:
    """(y as the model returns it, the tensors that the linear half takes)."""
    from fourfold.differentiate.evaluate import evaluate

    unzipped, tensors = made.unzipped, made._tensors(inputs, key)
    found = _quietly(evaluate, unzipped.forward, tensors)[0]
    values = dict(zip(unzipped.forward.inputs, tensors, strict=True)) | dict(zip(unzipped.forward.outputs, found, strict=True))
    return made.program.unflatten(found[: unzipped.outputs]), [values[v] for v in unzipped.linear.inputs]


def _quietly(run: Callable[..., Answer], *given: Answer) -> Answer:
    """What `run` answers, with nothing recorded behind it."""
    import torch

    with torch.no_grad():
        return run(*given)
