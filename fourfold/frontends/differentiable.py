"""A torch module as equations that the passes of `fourfold.differentiate` read, and equations as a captured program that can be planned and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fourfold.differentiate.equations import Function, Variable, inlined, pruned
from fourfold.differentiate.fx import from_fx, to_fx
from fourfold.differentiate.table import RULES
from fourfold.errors import ModelError
from fourfold.frontends.fx_graph import FxSource, quiet, storage_key, views_as_reshapes
from fourfold.text import headline


@dataclass
class Differentiable:
    """A program with what its inputs mean: `roles` has (role, label, tensor or None for what the caller feeds) for each input of `function`."""

    function: Function
    roles: list[tuple[str, str, Any]]
    flatten: Callable[..., list[Any]]
    unflatten: Callable[[list[Any]], Any]
    plain: dict[int, Any] = field(default_factory=dict)                # outputs that are no tensors, by their position among all
    prefix: str = ""

    def label(self, index: int) -> str:
        return self.roles[index][1].removeprefix(self.prefix)

    def indices(self, role: str) -> list[int]:
        return [i for i, (found, _, _) in enumerate(self.roles) if found == role]

    def given(self, *inputs: Any, **named: Any) -> list[Tensor]:
        """Tensors for all inputs of the program, from the model's own arguments."""
        flat = iter(t for t in self.flatten(*inputs, **named) if isinstance(t, Tensor))
        return [next(flat) if role == "input" else tensor for role, _, tensor in self.roles]


def decompositions() -> dict[Any, Any]:
    """torch's decompositions to core ATen, but for operators that have a row in the table."""
    table: Any = torch.export.default_decompositions()
    for target in list(table.keys()):
        if str(target) in RULES and RULES[str(target)].expand is None:
            table.pop(target)
    return table


def differentiable(model: nn.Module | torch.export.ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Differentiable:
    """Export `model` on these inputs and read it as equations, tied weights as one input.

    Raises ModelError where it cannot be exported, or holds what has no equation (control flow, sizes that depend on data, complex numbers).
    """
    from torch.utils import _pytree

    try:
        with quiet(), torch.enable_grad():
            exported = model if isinstance(model, torch.export.ExportedProgram) else torch.export.export(model, args, kwargs, strict=False)
            views_as_reshapes(exported.graph_module)
            exported = exported.run_decompositions(decompositions())
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be exported by torch {torch.__version__}: {headline(error)}",
                         "Let forward() run on these inputs, and use tensors, tuples and mappings only.") from error
    own = {storage_key(p): name for name, p in model.named_parameters()} if isinstance(model, nn.Module) else {}
    return read(exported, own, _pytree)


def read(exported: torch.export.ExportedProgram, names: dict[Any, str], pytree: Any) -> Differentiable:
    from torch.export.graph_signature import InputKind, OutputKind

    signature, state = exported.graph_signature, {**exported.state_dict, **exported.constants}
    held: dict[Variable, Any] = {}
    whole = from_fx(exported.graph_module, "f", held)
    roles: list[tuple[str, str, Any]] = []
    inputs: list[Variable] = []
    stands: dict[Variable, Variable] = {}
    shared: dict[Any, Variable] = {}
    placeholders = [n for n in exported.graph_module.graph.nodes if n.op == "placeholder"]
    given = iter(whole.inputs)
    for node, entry in zip(placeholders, signature.input_specs, strict=True):
        if not isinstance(node.meta.get("val"), Tensor):
            continue
        v = next(given)
        if entry.kind == InputKind.USER_INPUT:
            role: tuple[str, str, Any] = ("input", str(getattr(entry.arg, "name", node.name)), None)
        else:
            tensor = state[str(entry.target)]
            key = storage_key(tensor)
            if key in shared:
                stands[v] = shared[key]
                continue
            shared[key] = v
            role = ("constant" if entry.kind == InputKind.CONSTANT_TENSOR else "parameter", names.get(key, str(entry.target)), tensor)
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
    equations = tuple(pruned([eq.renamed(stands) for eq in whole.equations], outputs))
    spec: Any = exported.call_spec.in_spec
    out_spec: Any = exported.call_spec.out_spec

    def unflatten(found: list[Any]) -> Any:
        left = iter(found)
        return pytree.tree_unflatten([plain[i] if i in plain else next(left) for i in range(len(kept))], out_spec)

    def flatten(*args: Any, **named: Any) -> list[Any]:
        return pytree.tree_leaves((args, named)) if named or spec is None else pytree.tree_leaves((args, {}))

    function = Function(whole.name, tuple(inputs), outputs, equations)
    return Differentiable(function, roles, flatten, unflatten, plain)


def source(function: Function, roles: Sequence[tuple[str, str, Any]], flatten: Callable[..., list[Any]], unflatten: Callable[[list[Any]], Any],
           ahead: int = 1) -> FxSource:
    """An ordinary program as an fx graph that `as_captured` makes a Graph of. What its first `ahead` outputs do not depend on is marked as backward."""
    flat = inlined(function)
    module, placeholders, outputs = to_fx(flat)
    found = FxSource(module, {n.name: role for n, role in zip(placeholders, roles, strict=True)}, list(outputs), unflatten, flatten)
    first = _ancestors(outputs[:ahead])
    found.backward = frozenset(n.name for n in module.graph.nodes if n.op == "call_function" and n not in first)
    return found


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    seen, stack = set(nodes), list(nodes)
    while stack:
        for other in stack.pop().all_input_nodes:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return seen
