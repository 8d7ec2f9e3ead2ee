"""A torch module as equations that the passes of `fourfold.differentiate` read, and equations as a captured program that can be planned and run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fourfold.differentiate.equations import Function, Variable, inlined, pruned
from fourfold.differentiate.fx import from_fx, to_fx
from fourfold.differentiate.table import RULES
from fourfold.errors import InputError, ModelError
from fourfold.frontends.fx_graph import FxSource, TorchProgram, ancestors, quiet, storage_key, views_as_reshapes
from fourfold.graph import ROLES
from fourfold.program import Captured
from fourfold.text import headline

Value = Any                                                            # what a model takes or returns, and what torch keeps beside it
_KEPT = ("aten.linear.default", "aten.matmul.default")                 # torch writes these as stacks of products where strides are odd


@dataclass
class Differentiable:
    """A program with what its inputs mean: `roles` has (role, label, tensor or None for what the caller feeds) for each input of `function`."""

    function: Function
    roles: list[tuple[str, str, Value]]
    flatten: Callable[..., list[Value]]
    unflatten: Callable[[list[Value]], Value]
    plain: dict[int, Value] = field(default_factory=dict)                # outputs that are no tensors, by their position among all

    def label(self, index: int) -> str:
        return self.roles[index][1]

    def indices(self, role: str) -> list[int]:
        return [i for i, (found, _, _) in enumerate(self.roles) if found == role]

    def given(self, *inputs: Value, **named: Value) -> list[Tensor]:
        """Tensors for all inputs of the program, from the model's own arguments."""
        flat = [t for t in self.flatten(*inputs, **named) if isinstance(t, Tensor)]
        wanted = self.indices("input")
        if len(flat) != len(wanted):
            raise InputError(f"{len(flat)} inputs were given.", f"The model was captured with {len(wanted)}: {', '.join(map(self.label, wanted))}.")
        left = iter(flat)
        return [next(left) if role == "input" else tensor for role, _, tensor in self.roles]


def decompositions() -> dict[Value, Value]:
    """torch's decompositions to core ATen, but for operators that have a row in the table."""
    table: Value = torch.export.default_decompositions()
    for target in list(table.keys()):
        if str(target) in RULES and (RULES[str(target)].expand is None or str(target) in _KEPT):
            table.pop(target)
    return table


def differentiable(model: nn.Module | torch.export.ExportedProgram, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Differentiable:
    """Export `model` on these inputs and read it as equations, tied weights as one input.

    Raises ModelError where it cannot be exported, or holds what has no equation (control flow, sizes that depend on data, complex numbers).
    """
    try:
        with quiet(), torch.enable_grad():
            exported = model if isinstance(model, torch.export.ExportedProgram) else torch.export.export(model, args, kwargs, strict=False)
            exported = lowered(exported)
    except Exception as error:
        named = model.model if isinstance(model, WithLoss) else model
        raise ModelError(f"{type(named).__name__} cannot be exported by torch {torch.__version__}: {headline(error)}",
                         "Let forward() run on these inputs, and use tensors, tuples and mappings only.") from error
    inner = model.model if isinstance(model, WithLoss) else model
    own = {storage_key(p): name for name, p in inner.named_parameters()} if isinstance(inner, nn.Module) else {}
    return read(exported, own, "model." if isinstance(model, WithLoss) else "")


def lowered(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The exported program in operators of the table, as far as torch can decompose it."""
    views_as_reshapes(exported.graph_module)
    _stopped(exported.graph_module)
    return exported.run_decompositions(decompositions())


def _stopped(module: fx.GraphModule) -> None:
    """What a region under torch.no_grad answers is detached: decomposition melts the region into the rest."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or "wrap_with_set_grad_enabled" not in str(node.target) or node.args[0] is not False:
            continue
        picked = [user for user in node.users if user.target is operator.getitem] or [node]
        for value in picked:
            with module.graph.inserting_after(value):
                cut = module.graph.call_function(torch.ops.aten.detach.default, (value,))
            cut.meta.update(value.meta)
            value.replace_all_uses_with(cut, delete_user_cb=lambda user, cut=cut: user is not cut)
    module.recompile()


def read(exported: torch.export.ExportedProgram, names: dict[Value, str], prefix: str = "") -> Differentiable:
    """A lowered program as equations; `names` are those of parameters by `storage_key`, and paths lose the `prefix` of what was wrapped around the
    model.

    Raises ModelError for what has no equation.
    """
    from torch.export.graph_signature import InputKind, OutputKind
    from torch.utils import _pytree as pytree

    signature, state = exported.graph_signature, {**exported.state_dict, **exported.constants}
    held: dict[Variable, Value] = {}
    whole = from_fx(exported.graph_module, "f", held)
    roles: list[tuple[str, str, Value]] = []
    inputs: list[Variable] = []
    stands: dict[Variable, Variable] = {}
    shared: dict[Value, Variable] = {}
    placeholders = [n for n in exported.graph_module.graph.nodes if n.op == "placeholder"]
    given = iter(whole.inputs)
    for node, entry in zip(placeholders, signature.input_specs, strict=True):
        if not isinstance(node.meta.get("val"), Tensor):
            continue
        v = next(given)
        if entry.kind == InputKind.USER_INPUT:
            role: tuple[str, str, Value] = ("input", str(getattr(entry.arg, "name", node.name)).removeprefix(prefix), None)
        else:
            tensor = state[str(entry.target)]
            key = storage_key(tensor)
            if key in shared:
                stands[v] = shared[key]
                continue
            shared[key] = v
            kind = "constant" if entry.kind == InputKind.CONSTANT_TENSOR else "parameter"
            role = (kind, names.get(key, str(entry.target).removeprefix(prefix)), tensor)
        inputs.append(v)
        roles.append(role)
    for v, tensor in held.items():
        inputs.append(v)
        roles.append(("constant", v.name, tensor))
    kept = [i for i, s in enumerate(signature.output_specs) if s.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)]
    (result,) = (n for n in exported.graph_module.graph.nodes if n.op == "output")
    flat = list(result.args[0])
    tensors = {i: at for at, i in enumerate(i for i, n in enumerate(flat) if isinstance(n, fx.Node))}
    plain = {at: flat[i] for at, i in enumerate(kept) if i not in tensors}
    outputs = tuple(stands.get(v, v) for v in (whole.outputs[tensors[i]] for i in kept if i in tensors))
    own = [replace(eq.renamed(stands), module=f"{eq.module}.".removeprefix(prefix).rstrip(".")) for eq in whole.equations]
    equations = tuple(pruned(own, outputs))
    spec: Value = exported.call_spec.in_spec
    out_spec: Value = exported.call_spec.out_spec

    def unflatten(found: list[Value]) -> Value:
        left = iter(found)
        return pytree.tree_unflatten([plain[i] if i in plain else next(left) for i in range(len(kept))], out_spec)

    def flatten(*args: Value, **named: Value) -> list[Value]:
        return pytree.tree_leaves((args, named)) if named or spec is None else pytree.tree_leaves((args, {}))

    function = Function(whole.name, tuple(inputs), outputs, equations)
    return Differentiable(function, roles, flatten, unflatten, plain)


def source(function: Function, roles: Sequence[tuple[str, str, Value]], flatten: Callable[..., list[Value]],
           unflatten: Callable[[list[Value]], Value], ahead: int = 1) -> FxSource:
    """An ordinary program as an fx graph that `as_captured` makes a Graph of. What its first `ahead` outputs do not depend on is marked as
    backward.
    """
    flat = inlined(function)
    module, placeholders, outputs = to_fx(flat)
    found = FxSource(module, {n.name: role for n, role in zip(placeholders, roles, strict=True)}, list(outputs), unflatten, flatten)
    first = ancestors(outputs[:ahead])
    found.backward = frozenset(n.name for n in module.graph.nodes if n.op == "call_function" and n not in first)
    return found


class WithLoss(nn.Module):
    """A model and the scalar that `loss` makes of its answer."""

    def __init__(self, model: nn.Module, loss: Callable[[Value], Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *args: Value, **kwargs: Value) -> Tensor:
        return self._loss(self.model(*args, **kwargs))


def of_captured(captured: Captured) -> Differentiable:
    """A program that was captured from torch, as equations. Raises ModelError for one of another dialect."""
    program = captured.program
    if not isinstance(program, TorchProgram):
        raise ModelError(f"{captured.graph.name} is a program of {program.dialect}; derivatives are of torch programs.",
                         "Give the torch module, or convert the model to one.")
    graph, held = captured.graph, {}
    nodes = {v[0]: n for n, v in reversed(program.values.items()) if len(v) == 1}
    asked = [o for o in program.outputs if isinstance(o, int)]
    whole = from_fx(program.module, graph.name, held, [nodes[o] for o in asked])
    bound = program.weights()
    roles: list[tuple[str, str, Value]] = []
    inputs: list[Variable] = []
    stands: dict[Variable, Variable] = {}
    seen: dict[int, Variable] = {}
    placeholders = [n for n in program.module.graph.nodes if n.op == "placeholder" and isinstance(n.meta.get("val"), Tensor)]
    for node, v in zip(placeholders, whole.inputs, strict=False):
        value = program.values.get(node, (-1,))[0]
        if value < 0 and not node.users:                               # nobody reads it
            roles.append(("constant", node.name, torch.zeros(v.shape, dtype=getattr(torch, v.dtype))))
        elif value in seen:
            stands[v] = seen[value]
            continue
        else:
            seen[value] = v
            roles.append((ROLES[int(graph.role[value])], graph.labels[value], _learned(graph.labels[value], bound.get(value))))
        inputs.append(v)
    for v, tensor in held.items():
        inputs.append(v)
        roles.append(("constant", v.name, tensor))
    plain = {i: o.value for i, o in enumerate(program.outputs) if not isinstance(o, int)}

    def unflatten(found: list[Value]) -> Value:
        left = iter(found)
        return program.unflatten([plain[i] if i in plain else next(left) for i in range(len(program.outputs))])

    outputs = tuple(stands.get(v, v) for v in whole.outputs)
    function = Function(graph.name, tuple(inputs), outputs, tuple(pruned([eq.renamed(stands) for eq in whole.equations], outputs)))
    return Differentiable(function, roles, program.flatten, unflatten)


def _learned(label: str, tensor: Value) -> Value:
    """A capture keeps parameters and buffers alike; what is floating and no running statistic counts as learned."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or label.endswith(("running_mean", "running_var")):
        return tensor
    return nn.Parameter(tensor, requires_grad=True)


def with_loss(program: Differentiable, loss: Callable[[Value], Tensor]) -> Differentiable:
    """The program that returns what `loss` makes of the answer of `program`. Raises ModelError where the loss cannot be traced."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from fourfold.differentiate.evaluate import evaluate

    function = inlined(program.function)
    examples = [torch.zeros(v.shape, dtype=getattr(torch, v.dtype)) for v in function.inputs]

    def run(*tensors: Value) -> Tensor:
        return loss(program.unflatten(evaluate(function, tensors)[0]))

    try:
        with quiet(), torch.no_grad():
            module = make_fx(run, tracing_mode="fake", decomposition_table=decompositions(), _allow_non_fake_inputs=True)(*examples)
    except Exception as error:
        raise ModelError(f"the loss of {function.name} cannot be traced: {headline(error)}", "Use tensor operations only.") from error
    held: dict[Variable, Value] = {}
    found = from_fx(module, function.name, held)
    roles = [*program.roles, *(("constant", v.name, tensor) for v, tensor in held.items())]
    return Differentiable(found, roles, program.flatten, lambda leaves: leaves[0])


def wrapped(model: nn.Module, args: tuple[Value, ...], kwargs: dict[str, Value], loss: Callable[[Value], Tensor]) -> Differentiable:
    """A module with a loss behind it; labels are those of the module."""
    return differentiable(WithLoss(model, loss), args, kwargs)


def by_passes(exported: torch.export.ExportedProgram, model: nn.Module, keys: tuple[str, ...], own: str) -> FxSource:
    """Loss and gradients of all parameters that take part, of an exported program that returns the loss: linearize, unzip, transpose.

    `keys`: keyword arguments of the model in order. `own`: what parameters' names begin with that is not the model's.
    Raises ModelError where an operator has no rule, or no parameter takes part.
    """
    from torch.utils import _pytree

    from fourfold.differentiate.gradient import reverse_mode

    with quiet():
        program = read(lowered(exported), {storage_key(p): name for name, p in model.named_parameters()}, "model.")
    whole = program.function
    learned = [isinstance(t, nn.Parameter) and t.requires_grad for _, _, t in program.roles]
    made = reverse_mode(whole, learned)
    dropped = {v for eq in made.linearized.equations if eq.op == "drop" for v in eq.inputs}
    taking = [t not in dropped for t in made.linearized.linear_inputs]
    if not any(taking):
        raise ModelError("no parameter takes part in the loss", "Is everything detached?")
    names = [program.label(i).removeprefix(own) for i, learns in enumerate(learned) if learns]
    ends = (made.function.outputs[0], *(g for g, t in zip(made.function.outputs[1:], taking, strict=True) if t))
    function = replace(made.function, outputs=ends, equations=tuple(pruned(made.function.equations, ends)))
    kept = [name for name, t in zip(names, taking, strict=True) if t]

    def flatten(*inputs: Value, **named: Value) -> list[Value]:
        leaves = _pytree.tree_leaves((inputs, {key: named[key] for key in keys if key in named}))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    return source(function, program.roles, flatten, lambda found: (found[0], dict(zip(kept, found[1:], strict=True))))
