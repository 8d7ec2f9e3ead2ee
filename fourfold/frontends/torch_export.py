"""A torch module or an exported program → Graph: inference through torch.export, training with autograd recorded behind it.

Two levels of detail. "ops" is functional but keeps composite operations whole (linear, layer norm, attention), which is how eager runs them and what
is worth executing. "core" goes down to core ATen, as a compiler's fusion sees it. Flops are the same at both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fourfold.errors import InputError, ModelError
from fourfold.frontends.autograd import Gradients, followed, joint
from fourfold.frontends.fx_graph import FxSource, as_captured, quiet, views_as_reshapes
from fourfold.frontends.pt2 import data_dependent, same_value, user_inputs
from fourfold.frontends.subject import Wrapped, called
from fourfold.program import Captured, arguments
from fourfold.text import headline

Level = Literal["ops", "core"]


def capture(
    model: nn.Module | torch.export.ExportedProgram,
    inputs: object,
    *,
    train: bool = False,
    loss: Callable[[object], Tensor] | None = None,
    level: Level = "ops",
    name: str = "",
    gradient: Gradients = "passes",
) -> Captured:
    """Capture `model` on `inputs` (a tensor, a tuple, or a mapping by argument name); shapes are those of the inputs.

    `train`: forward and backward in one graph, marked by phase; the program returns the loss, then the gradients of all parameters that take part.
    `loss` makes a scalar of what the model returns (default: its first scalar if it is one, such as a transformers loss, else the mean square of its
    first floating tensor). `gradient`: "passes" has it made by linearize, unzip and transpose, "recorded" by torch's autograd, as before; the former
    falls back to the latter, and the note says so. The module is captured in the mode it is in (`module.training`), and left as it was.
    Raises ModelError naming what cannot be exported, such as a size that depends on data.
    """
    args, kwargs = arguments(inputs)
    title = name or (type(model).__name__ if isinstance(model, nn.Module) else "exported")
    if train:
        if not isinstance(model, nn.Module):
            raise InputError("An exported program holds no backward pass.", "Give the module itself to capture training.")
        source = joint(model, args, kwargs, loss, gradient)
    else:
        source = _inference(model, args, kwargs, level)
    source.prefix += "module." if isinstance(model, Wrapped) else ""
    if isinstance(model, Whole) and model.left:
        source.note.append(f"Not planned, since it is no tensor, list or mapping of them: {', '.join(model.left)} of the model's answer.")
    return as_captured(source, title)


class Whole(Wrapped):
    """A model seen as tensors in, all that it answers out: tensors in tuples and mappings (a dataclass is a mapping), what is None left out, and a
    tensor that is alone as itself. `left` names what was not taken.
    """

    def __init__(self, module: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__(module, inputs)
        self.left: list[str] = []

    def forward(self, *tensors: Tensor) -> Any:
        answer = called(self.module, dict(zip(self.inputs, tensors, strict=False)), self.inputs)
        self.left[:] = []
        found = self.kept(answer, "")
        while isinstance(found, dict | tuple) and len(found) == 1:
            found = next(iter(found.values())) if isinstance(found, dict) else found[0]
        if found is None:
            raise ModelError(f"the model answers {type(answer).__name__}, in which there is no tensor",
                             "Let forward return a tensor, a tuple or a mapping of tensors.")
        return found

    def kept(self, value: object, path: str) -> object:
        """Tensors of `value` in plain containers; None where there are none."""
        if isinstance(value, Tensor) or value is None:
            return value
        if is_dataclass(value) and not isinstance(value, Mapping):
            value = {f.name: getattr(value, f.name) for f in fields(value)}
        if isinstance(value, Mapping):
            held = {str(k): self.kept(v, f"{path}.{k}".lstrip(".")) for k, v in value.items()}
            return {k: v for k, v in held.items() if v is not None} or None
        if isinstance(value, list | tuple):
            return tuple(v for v in [self.kept(v, f"{path}.{i}".lstrip(".")) for i, v in enumerate(value)] if v is not None) or None
        if not isinstance(value, bool | int | float | str):
            self.left.append(f"{path or 'all'} ({type(value).__name__})")
        return None


# --- sources: an fx graph and what its placeholders and outputs mean ---------------------------------------------------------------------------


def _inference(model: Any, args: tuple[object, ...], kwargs: dict[str, object], level: Level) -> FxSource:
    if isinstance(model, torch.export.ExportedProgram):
        program = model
    else:
        try:
            with quiet(), torch.no_grad():
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            if not _registered(model, args, kwargs):
                return followed(model, args, kwargs, None, error)
            return _inference(model, args, kwargs, level)
    if open_ := data_dependent(program):
        module = program.module() if isinstance(model, torch.export.ExportedProgram) else model
        return followed(module, args, kwargs, None, RuntimeError(f"the size of {open_} is data-dependent"))
    views_as_reshapes(program.graph_module)
    with quiet():
        try:
            program = program.run_decompositions({} if level == "ops" else None)
        except Exception as error:
            raise ModelError(f"the exported program cannot be decomposed: {headline(error)}", "Try the other level of detail.") from error
    return _exported(program)


def _registered(model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Whether the model answers with a dataclass that torch's exporter did not know; it knows it now."""
    from torch.utils import _pytree

    try:
        with torch.no_grad():
            leaves = _pytree.tree_leaves(model(*args, **kwargs))
    except Exception:  # noqa: BLE001 — the exporter's own error says more
        return False
    found = {type(leaf) for leaf in leaves if is_dataclass(leaf) and not isinstance(leaf, type)}
    for kind in found:
        torch.export.register_dataclass(kind)
    return bool(found)


def _exported(program: torch.export.ExportedProgram) -> FxSource:
    from torch.export.graph_signature import InputKind, OutputKind
    from torch.utils import _pytree

    signature, roles = program.graph_signature, {}
    state: dict[str, object] = {**program.state_dict, **program.constants}
    for spec in signature.input_specs:
        label = getattr(spec.arg, "name", "")
        if spec.kind == InputKind.USER_INPUT:
            roles[label] = ("input", label, None)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            roles[label] = ("parameter", str(spec.target), state[str(spec.target)])
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            roles[label] = ("constant", str(spec.target), state[str(spec.target)])
        else:
            roles[label] = ("other", str(spec.target), state.get(str(spec.target)))
    (result,) = (n for n in program.graph.nodes if n.op == "output")
    kept = [n for n, spec in zip(result.args[0], signature.output_specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]
    in_spec: Any = program.call_spec.in_spec
    out_spec: Any = program.call_spec.out_spec
    told, plain = user_inputs(program)

    def flatten(*given: object, **named: object) -> list[Any]:
        given, named = _ordered(in_spec, given, named)
        flat, spec = _pytree.tree_flatten((given, named))
        if spec != in_spec:
            raise InputError("The inputs are structured unlike those that the model was captured with.", f"Expected {in_spec.num_leaves} tensors.")
        for label, value in zip(told, flat, strict=True):
            if label in plain and not same_value(value, plain[label]):
                raise InputError(f"{label} is {value!r}; the program was captured for {plain[label]!r}.", "Capture it again for this value.")
        return flat

    return FxSource(program.graph_module, roles, kept, lambda flat: _pytree.tree_unflatten(flat, out_spec), flatten)


def _ordered(spec: Any, given: tuple[object, ...], named: dict[str, object]) -> tuple[tuple[object, ...], dict[str, object]]:
    """Keyword arguments in the order in which the program was exported with."""
    names = list(spec.child(1).context or []) if hasattr(spec, "child") else list(spec.children_specs[1].context or [])
    return given, ({key: named[key] for key in names} if set(names) == set(named) else named)


# --- what an op is ---------------------------------------------------------------------------------------------------------------------------------


__all__ = ["Level", "Whole", "capture"]
