"""A torch module or an exported program → Graph: inference through torch.export, training with autograd recorded behind it.

Two levels of detail. "ops" is functional but keeps composite operations whole (linear, layer norm, attention), which is how eager runs them and what
is worth executing. "core" goes down to core ATen, as a compiler's fusion sees it. Flops are the same at both.
"""

from __future__ import annotations

import contextlib
import io
import json
import operator
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fourfold.errors import InputError, ModelError
from fourfold.frontends import flops as ops
from fourfold.frontends.capture import Both, Captured, Program, arguments
from fourfold.frontends.model import Wrapped, called
from fourfold.graph import BACKWARD, CONTRACTION, ELEMENTWISE, FORWARD, GATHER, OPAQUE, REDUCTION, VIEW, Builder

Level = Literal["ops", "core"]
_SILENT = (
    "_assert_tensor_metadata",
    "_assert_async",
    "_assert_scalar",
    "_functional_assert_async",
    "sym_constrain_range_for_size",
    "sym_constrain_range",
)


def capture(
    model: nn.Module | torch.export.ExportedProgram,
    inputs: Any,
    *,
    train: bool = False,
    loss: Callable[[Any], Tensor] | None = None,
    level: Level = "ops",
    name: str = "",
) -> Captured:
    """Capture `model` on `inputs` (a tensor, a tuple, or a mapping by argument name); shapes are those of the inputs.

    `train`: forward and backward in one graph, marked by phase; the program returns the loss, then the gradients of all parameters that take part.
    `loss` makes a scalar of what the model returns (default: its first scalar if it is one, such as a transformers loss, else the mean square of its
    first floating tensor). The module is captured in the mode it is in (`module.training`), and left as it was.
    Raises ModelError naming what cannot be exported, such as a size that depends on data.
    """
    args, kwargs = arguments(inputs)
    title = name or (type(model).__name__ if isinstance(model, nn.Module) else "exported")
    if train:
        if not isinstance(model, nn.Module):
            raise InputError("An exported program holds no backward pass.", "Give the module itself to capture training.")
        source = _joint(model, args, kwargs, loss)
    else:
        source = _inference(model, args, kwargs, level)
    source.prefix += "module." if isinstance(model, Wrapped) else ""
    if isinstance(model, Whole) and model.left:
        source.note.append(f"Not planned, since it is no tensor, list or mapping of them: {', '.join(model.left)} of the model's answer.")
    return _graph(source, title)


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

    def kept(self, value: Any, path: str) -> Any:
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


def load(path: str | Path) -> torch.export.ExportedProgram:
    """A .pt2 file as torch.export.save writes it. Raises InputError where it is missing, damaged or something else, and where it holds what opening
    would run: a pickle of anything but tensors, or a compiled library.

    What is left to trust is torch's own reader, which evaluates the expressions of sizes: open files of people you trust.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no file {path}.", "Give the path of a .pt2 file.")
    again = f"Save it with torch.export.save of torch {torch.__version__}."
    try:
        risk = _risk(Path(path))
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or no exported program: {_line(error)}", again) from error
    if risk:
        raise InputError(f"{path} holds {risk}, which would run when opened.", "Export it again from plain tensors with torch.export.save.")
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:
        raise InputError(f"{path} is damaged or no exported program: {_line(error)}", again) from error


def _risk(path: Path) -> str:
    """What in the archive could run code when opened, "" for nothing: libraries, objects, pickles that torch's reader of plain tensors refuses."""
    objects = ("custom_obj_", "opaque_obj_")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = {name for name in names if name.endswith((".pt", "serialized_state_dict.json", "serialized_constants.json"))}
        for name in names:
            folder, _, base = name.rpartition("/")
            if "/aotinductor/" in name or base.endswith((".so", ".pyd", ".dll")):
                return f"a compiled library ({base})"
            if base.startswith(objects):
                return f"a pickled object ({base})"
            if base.endswith("_config.json"):
                for entry in json.loads(archive.read(name)).get("config", {}).values():
                    if entry["path_name"].startswith(objects):
                        return f"a pickled object ({entry['path_name']})"
                    pickled |= {f"{folder}/{entry['path_name']}"} if entry.get("use_pickle") else set()
        for name in sorted(pickled & set(names)):
            data = archive.read(name)
            try:
                torch.load(io.BytesIO(data), weights_only=True) if data else None
            except Exception:
                return f"a pickle of more than tensors ({name.rpartition('/')[2]})"
    return ""


def fixed(program: torch.export.ExportedProgram, inputs: Any, dims: Mapping[str, int]) -> tuple[Any, Any, list[str]]:
    """The program with all sizes fixed, inputs of these sizes, and notes. `dims` names a size by its symbol ("s0") or as "input.axis". Numbers that
    the program was exported with stay the constants they are, whether they are given again or not.

    Raises InputError naming the dimensions that have no value, or a name in `dims` that the program does not have.
    """
    from torch.utils import _pytree

    told, plain = _given(program)
    names = [n for n in told if n not in plain]
    vals = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in names}
    axes = {f"{n}.{i}": d for n, v in vals.items() if isinstance(v, Tensor) for i, d in enumerate(v.shape) if isinstance(d, torch.SymInt)}
    axes |= {n: v for n, v in vals.items() if isinstance(v, torch.SymInt)}     # a whole number that may vary
    symbols = sorted({str(d) for d in axes.values()})
    if stray := sorted(set(dims) - set(axes) - set(symbols)):
        known = f"It has: {', '.join([*symbols, *axes])}." if axes else "All its shapes are fixed."
        raise InputError(f"The program has no dynamic dimension {stray[0]!r}.", known)
    spec: Any = program.call_spec.in_spec

    def arranged(leaves: list[Any]) -> Any:
        args, kwargs = _pytree.tree_unflatten(leaves, spec)
        return Both(args, kwargs) if args and kwargs else kwargs if kwargs else args

    drawn = [op for op in ("dropout", "batch_norm") if _trains(program, op)]
    notes = [f"The program was exported in training mode ({', '.join(drawn)}), and is planned as it is: export it from model.eval() for inference."]
    if isinstance(inputs, Mapping) and set(names) <= set(inputs) <= set(told):    # by the program's own names, however it takes them
        if other := [n for n in plain if n in inputs and not _same(inputs[n], plain[n])]:
            raise InputError(f"The program was exported for {other[0]} = {plain[other[0]]}.", "Export it again for another value.")
        inputs = arranged([plain[n] if n in plain else _number(inputs[n], vals.get(n)) for n in told])
    elif plain and isinstance(inputs, tuple | list) and len(inputs) == len(names) < len(told):
        rest = iter(inputs)
        inputs = arranged([plain[n] if n in plain else next(rest) for n in told])
    if inputs is None:
        values = {str(axes[key]) if key in axes else key: size for key, size in dims.items()}
        if lacking := [s for s in symbols if s not in values]:
            where = [f"{s} ({', '.join(key for key, d in axes.items() if str(d) == s)})" for s in lacking]
            raise InputError(
                f"The program has dimensions without a value: {', '.join(where)}.", "Give them: --dims " + ",".join(f"{s}=…" for s in lacking)
            )
        if _unbacked(program):
            raise InputError(f"{_unbacked(program)} of the program has a size that depends on the data, which zeros cannot tell.",
                             "Give a real example: --inputs FILE.npz")
        inputs = arranged([plain[n] if n in plain else _zeros(vals.get(n), values) for n in told])
    if axes:
        args, kwargs = arguments(inputs)
        with _quiet(), torch.no_grad():
            try:
                program = torch.export.export(program.module(), args, kwargs, strict=False)
            except Exception as error:
                raise InputError(
                    f"The program does not take these sizes: {_line(error)}", "Give sizes within the ranges it was exported for."
                ) from error
    return program, inputs, notes if drawn else []


def _given(program: torch.export.ExportedProgram) -> tuple[list[str], dict[str, Any]]:
    """Names of the program's arguments in their order, and the values of those that are no tensors but constants of it."""
    from torch.export.graph_signature import ConstantArgument, InputKind

    given = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    names = [arg.name or f"argument{i}" for i, arg in enumerate(given)]  # type: ignore[union-attr]
    return names, {name: arg.value for name, arg in zip(names, given, strict=True) if isinstance(arg, ConstantArgument)}


def _number(value: Any, example: Any) -> Any:
    """An array of one number where the program takes a number."""
    return value.item() if isinstance(example, torch.SymInt) and hasattr(value, "item") else value


def _same(given: Any, wanted: Any) -> bool:
    given = given.item() if hasattr(given, "item") and getattr(given, "size", 1) not in (0,) and wanted is not None else given
    return given is wanted or given == wanted or (isinstance(wanted, float) and abs(float(given) - wanted) <= 1e-6 * abs(wanted))


def _trains(program: torch.export.ExportedProgram, op: str) -> bool:
    """Whether the program holds this op as it is in training."""
    at = {"dropout": 2, "batch_norm": 5}[op]
    for node in program.graph.nodes:
        name = str(node.target)
        if name.startswith(f"aten.{op}.") and len(node.args) > at and node.args[at] is True:
            return True
        if op == "batch_norm" and "_native_batch_norm_legit_functional" in name or op == "dropout" and "aten.native_dropout" in name:
            return True
    return False


def _unbacked(program: torch.export.ExportedProgram) -> str:
    """The first value whose size no input tells, "" where there is none."""
    for node in program.graph.nodes:
        for value in _leaves(node.meta.get("val")) if node.op == "call_function" else ():
            sizes = value.shape if isinstance(value, Tensor) else ()
            if any(isinstance(d, torch.SymInt) and re.search(r"\bu\d+\b", str(d)) for d in sizes):
                return node.name
    return ""


def _zeros(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, torch.SymInt):
        return sizes.get(str(value), value.node.maybe_as_int())
    if not isinstance(value, Tensor):
        return value
    shape = [sizes[str(d)] if isinstance(d, torch.SymInt) else int(d) for d in value.shape]
    return torch.zeros(shape, dtype=value.dtype)


# --- sources: an fx graph and what its placeholders and outputs mean ---------------------------------------------------------------------------


@dataclass
class _Source:
    """`roles`: placeholder name → (role, label, tensor or None for what the caller feeds)."""

    module: fx.GraphModule
    roles: dict[str, tuple[str, str, Any]]
    outputs: list[Any]  # fx nodes or plain constants, in the order in which they are returned
    unflatten: Callable[[list[Any]], Any]
    flatten: Callable[..., list[Any]]
    backward: frozenset[str] = frozenset()
    prefix: str = ""  # of module paths and labels: what the capture wrapped around the model
    note: list[str] = field(default_factory=list)


def _inference(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], level: Level) -> _Source:
    if isinstance(model, torch.export.ExportedProgram):
        program = model
    else:
        try:
            with _quiet(), torch.no_grad():
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            if not _registered(model, args, kwargs):
                return _followed(model, args, kwargs, None, error)
            return _inference(model, args, kwargs, level)
    if open_ := _unbacked(program):
        module = program.module() if isinstance(model, torch.export.ExportedProgram) else model
        return _followed(module, args, kwargs, None, RuntimeError(f"the size of {open_} is data-dependent"))
    _reshape(program.graph_module)
    with _quiet():
        try:
            program = program.run_decompositions({} if level == "ops" else None)
        except Exception as error:
            raise ModelError(f"the exported program cannot be decomposed: {_line(error)}", "Try the other level of detail.") from error
    return _exported(program)


def _registered(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
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


def _reshape(module: fx.GraphModule) -> None:
    """A view that eager may take need not be one for the strides that decomposed operators answer with; reshape is one wherever it can be."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


def _exported(program: torch.export.ExportedProgram) -> _Source:
    from torch.export.graph_signature import InputKind, OutputKind
    from torch.utils import _pytree

    signature, roles = program.graph_signature, {}
    state: dict[str, Any] = {**program.state_dict, **program.constants}
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
    told, plain = _given(program)

    def flatten(*given: Any, **named: Any) -> list[Any]:
        given, named = _ordered(in_spec, given, named)
        flat, spec = _pytree.tree_flatten((given, named))
        if spec != in_spec:
            raise InputError("The inputs are structured unlike those that the model was captured with.", f"Expected {in_spec.num_leaves} tensors.")
        for label, value in zip(told, flat, strict=True):
            if label in plain and not _same(value, plain[label]):
                raise InputError(f"{label} is {value!r}; the program was captured for {plain[label]!r}.", "Capture it again for this value.")
        return flat

    return _Source(program.graph_module, roles, kept, lambda flat: _pytree.tree_unflatten(flat, out_spec), flatten)


def _ordered(spec: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Keyword arguments in the order in which the program was exported with."""
    names = list(spec.child(1).context or []) if hasattr(spec, "child") else list(spec.children_specs[1].context or [])
    return given, ({key: named[key] for key in names} if set(names) == set(named) else named)


def _advice(error: Exception) -> str:
    text = str(error)
    if "data-dependent" in text or "unbacked" in text.lower():
        return "Its control flow or a size depends on the values of a tensor: write that part without `if` or `.item()` on tensors."
    if isinstance(error, TypeError):
        return "Do the inputs fit its forward()?"
    return "Let forward() run on these inputs, and use tensors, tuples and mappings only."


class _Lossy(nn.Module):
    """(loss,) of a model that was called with flat tensors: what AOTAutograd wants."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor], call: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__()
        self.model, self._loss, self._call = model, loss, call

    def forward(self, *flat: Any) -> tuple[Tensor]:
        args, kwargs = self._call(list(flat))
        return (self._loss(self.model(*args, **kwargs)),)


def square(output: Any) -> Tensor:
    """The loss where none is given: the model's own if its first tensor is a scalar, else the mean square of the tensor that matters."""
    from fourfold.frontends.model import answer

    first = output if isinstance(output, Tensor) else next(iter(output.values() if isinstance(output, Mapping) else output), None)
    if isinstance(first, Tensor) and first.is_floating_point() and first.ndim == 0:
        return first
    return answer(output).float().square().mean()


def _joint(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Callable[[Any], Tensor] | None) -> _Source:
    """The exported program is run once on fake tensors, with autograd behind it, and every operation below autograd is recorded."""
    from torch.export.graph_signature import InputKind, OutputKind
    from torch.utils import _pytree

    flat, spec = _pytree.tree_flatten((args, kwargs))
    wrapped = _Lossy(model, loss or square, lambda leaves: _pytree.tree_unflatten(leaves, spec))
    try:
        with _quiet(), torch.enable_grad():
            exported = torch.export.export(wrapped, tuple(flat), strict=False)
    except Exception as error:
        return _followed(model, args, kwargs, loss or square, error)
    _reshape(exported.graph_module)
    signature, state = exported.graph_signature, {**exported.state_dict, **exported.constants}
    leaves, examples, where = _Leaves(model), iter(_pytree.tree_leaves(exported.example_inputs)), []
    for entry in signature.input_specs:
        label = str(entry.target or getattr(entry.arg, "name", "")).removeprefix("model.")
        if entry.kind == InputKind.USER_INPUT:
            where.append(leaves.add("input", label, next(examples)))
        else:
            where.append(leaves.add("constant" if entry.kind == InputKind.CONSTANT_TENSOR else "parameter", label, state[str(entry.target)]))
    index = next(i for i, s in enumerate(signature.output_specs) if s.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT))

    def forward(tensors: Sequence[Any]) -> Tensor:
        return fx.Interpreter(exported.graph_module).run(*(tensors[w] for w in where))[index]

    try:
        return _differentiated(forward, leaves, tuple(kwargs), "fake", "model.")
    except Exception as error:
        raise ModelError(f"the backward pass of {type(model).__name__} cannot be captured: {_line(error)}", _advice(error)) from error


def _followed(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], loss: Callable[[Any], Tensor] | None, cause: Exception) -> _Source:
    """What cannot be exported because its control flow asks for values is run on the given ones, and what it did is recorded."""
    from torch.utils import _pytree

    why = ModelError(f"{type(model).__name__} cannot be exported by torch {torch.__version__}: {_line(cause)}", _advice(cause))
    if not _depends(cause):
        raise why from cause
    flat, spec = _pytree.tree_flatten((args, kwargs))
    leaves = _Leaves(model)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    where = {name: leaves.add("parameter", name, tensor) for name, tensor in state.items()}
    fed = [leaves.add("input", f"input{i}", leaf) for i, leaf in enumerate(flat)]
    shape: list[Any] = []

    def forward(tensors: Sequence[Any]) -> Any:
        given, named = _pytree.tree_unflatten([tensors[i] for i in fed], spec)
        with _named(model):
            return torch.func.functional_call(model, {name: tensors[i] for name, i in where.items()}, given, named)

    def answers(*tensors: Any) -> list[Any]:
        out, structure = _pytree.tree_flatten(forward(tensors))
        shape[:] = [structure]
        return out

    try:
        if loss is not None:
            source = _differentiated(lambda tensors: loss(forward(tensors)), leaves, tuple(kwargs), "real", "")
        else:
            with torch.no_grad():
                module = _record(answers, leaves.tensors, "real")
            source = leaves.source(module, lambda flat: _pytree.tree_unflatten(flat, shape[0]), tuple(kwargs))
    except Exception as error:
        raise why from error
    source.note.append(
        "The control flow of the model depends on values; it was captured as it went for the inputs that were given, and holds for inputs like them."
    )
    return source


@contextlib.contextmanager
def _named(model: nn.Module) -> Iterator[None]:
    """Inside, what a module calls is recorded with the module's path."""
    from torch.fx import traceback

    stack: list[str] = [""]

    def tell() -> None:
        traceback.current_meta = {**traceback.current_meta, "nn_module_stack": {"": (stack[-1], "")}}

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(name)
            tell()

        return hook

    def leave(*_: Any) -> None:
        stack.pop()
        tell()

    handles = [h for n, m in model.named_modules() for h in (m.register_forward_pre_hook(enter(n)), m.register_forward_hook(leave))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _depends(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return any(mark in text for mark in ("data-dependent", "datadependent", "unbacked", "_local_scalar_dense", "could not guard"))


class _Leaves:
    """The tensors that a recorded program takes; tied weights are one of them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {_key(p): name for name, p in model.named_parameters()}
        self.tensors: list[Any] = []
        self.roles: list[tuple[str, str, Any]] = []
        self._index: dict[Any, int] = {}

    def add(self, role: str, label: str, tensor: Any) -> int:
        key = object() if role == "input" or not isinstance(tensor, Tensor) else _key(tensor)
        if key not in self._index:
            self._index[key] = len(self.tensors)
            self.tensors.append(tensor)
            self.roles.append((role, self.names.get(key, label), None if role == "input" else tensor))
        return self._index[key]

    def source(self, module: fx.GraphModule, unflatten: Callable[[list[Any]], Any], keys: tuple[str, ...]) -> _Source:
        from torch.utils import _pytree

        placeholders = [n.name for n in module.graph.nodes if n.op == "placeholder"]
        (result,) = (n for n in module.graph.nodes if n.op == "output")

        def flatten(*inputs: Any, **named: Any) -> list[Any]:
            return _pytree.tree_leaves((inputs, {key: named[key] for key in keys if key in named}))

        return _Source(module, dict(zip(placeholders, self.roles, strict=True)), list(result.args[0]), unflatten, flatten)


def _differentiated(
    forward: Callable[[Sequence[Any]], Tensor], leaves: _Leaves, keys: tuple[str, ...], mode: Literal["fake", "real"], prefix: str
) -> _Source:
    """Loss and gradients of all parameters that take part, as one recorded program."""
    from torch._functorch._aot_autograd.logging_utils import setup_stacktrace_preservation_hooks

    learned = [i for i, t in enumerate(leaves.tensors) if isinstance(t, nn.Parameter) and t.requires_grad]
    given: list[str] = []
    own_prefix = "module." if isinstance(leaves.model, Wrapped) else ""

    def step(*tensors: Any) -> list[Any]:
        own = [t.detach().requires_grad_() if i in learned else t for i, t in enumerate(tensors)]
        scalar = forward(own)
        setup_stacktrace_preservation_hooks([scalar.grad_fn] if scalar.grad_fn is not None else [])
        found = torch.autograd.grad(scalar, [own[i] for i in learned], allow_unused=True)
        given[:] = [leaves.roles[i][1].removeprefix(own_prefix) for i, g in zip(learned, found, strict=True) if g is not None]
        return [scalar, *(g for g in found if g is not None)]

    plain = torch.backends.mkldnn.flags(enabled=False)                 # fused recurrent layers hand their backward a workspace that no graph carries
    with torch.enable_grad(), torch.autograd.detect_anomaly(check_nan=False), plain:
        module = _record(step, leaves.tensors, mode)

    def unflatten(answers: list[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return answers[0], dict(zip(given, answers[1:], strict=True))

    source = leaves.source(module, unflatten, keys)
    ahead = _ancestors(source.outputs[:1])
    source.backward = frozenset(n.name for n in module.graph.nodes if n.op == "call_function" and n not in ahead)
    source.prefix = prefix
    _inherit(module, source.backward)
    return source


def _record(step: Callable[..., list[Any]], tensors: Sequence[Any], mode: Literal["fake", "real"]) -> fx.GraphModule:
    """Every operation below autograd that `step` calls, without writes in place."""
    from torch.fx import traceback
    from torch.fx.experimental.proxy_tensor import make_fx

    def asked(*args: Any) -> list[Any]:
        with _Answering():
            return step(*args)

    with _quiet(), traceback.preserve_node_meta():
        module = make_fx(asked if mode == "real" else step, tracing_mode=mode, _allow_non_fake_inputs=True, record_module_stack=mode == "real")(
            *tensors
        )
        if any(_writes(node) for node in module.graph.nodes):
            module = make_fx(torch.func.functionalize(fx.Interpreter(module).run), tracing_mode=mode, _allow_non_fake_inputs=True)(*tensors)
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
            if node.args[0].op == "placeholder" and not node.users:        # a buffer's new value goes back into it: not ours to write
                module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    return module


class _Answering(TorchDispatchMode):
    """Inside, a program that asks for a value (`if mask.all()`) is told it, unrecorded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            with _disable_current_modes():
                return func(*args)
        return func(*args, **(kwargs or {}))


def _key(tensor: Tensor) -> Any:
    """Equal for tensors that are one in memory."""
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()) if tensor.numel() else id(tensor)


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _inherit(module: fx.GraphModule, behind: frozenset[str]) -> None:
    """A backward op belongs to the module whose forward op autograd numbered alike."""
    ahead = {n.meta["seq_nr"]: n.meta for n in module.graph.nodes if n.name not in behind and "seq_nr" in n.meta and n.meta.get("nn_module_stack")}
    for node in module.graph.nodes:
        if node.name in behind and (source := ahead.get(node.meta.get("seq_nr"))):
            node.meta["nn_module_stack"] = source["nn_module_stack"]


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    seen, stack = set(nodes), list(nodes)
    while stack:
        for other in stack.pop().all_input_nodes:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return seen


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints whole graphs when it gives up; the error that is raised says what matters."""
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:200]


# --- fx graph → Graph ------------------------------------------------------------------------------------------------------------------------------


def _graph(source: _Source, title: str) -> Captured:
    build = _Build(source, title)
    build.placeholders()
    build.calls()
    return build.finish()


class _Build:
    def __init__(self, source: _Source, title: str) -> None:
        self.source, self.builder, self.layers = source, Builder(title), ops.Layers()
        self.value: dict[fx.Node, tuple[int, ...]] = {}  # fx node → values it stands for
        self.same: dict[fx.Node, fx.Node] = {}  # a call without effect → what it passes on
        self.bound: dict[int, Any] = {}  # value → parameter or constant tensor
        self.fed: list[tuple[str, int | None]] = []  # user inputs in order; None: not a tensor, or not read
        self.steps: list[fx.Node] = []  # graph node → fx node

    def placeholders(self) -> None:
        graph, shared = self.source.module.graph, {}
        for node in (n for n in graph.nodes if n.op == "placeholder"):
            role, label, tensor = self.source.roles.get(node.name, ("input", node.name, None))
            label = label.removeprefix(self.source.prefix)
            spec = _spec(node.meta.get("val"))
            if role == "input":
                _static(node, node.meta.get("val"), label)
                value = self.builder.input(*spec, label) if spec else None
                self.fed.append((label, value))
            elif spec is None or not node.users:
                continue
            else:
                key = _key(tensor) if isinstance(tensor, Tensor) else node
                value = shared.get(key)  # tied weights are one value
                if value is None:
                    value = shared[key] = (self.builder.parameter if role == "parameter" else self.builder.constant)(*spec, label)
                    kept = tensor.detach() if isinstance(tensor, Tensor) else tensor
                    moving = self.source.backward and isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
                    self.bound[value] = kept.clone() if moving else kept   # batch normalisation in training writes to its statistics
            if value is not None:
                self.value[node] = (value,)

    def calls(self) -> None:
        module = self.source.module
        for node in module.graph.nodes:
            if node.op == "get_attr":
                tensor = _attribute(module, node.target)
                if isinstance(tensor, Tensor):
                    value = self.builder.constant(tuple(tensor.shape), _dtype(tensor.dtype), str(node.target))
                    self.value[node], self.bound[value] = (value,), tensor.detach()
            elif node.op == "call_function":
                self.call(node)
            elif node.op not in ("placeholder", "output"):
                raise ModelError(f"the captured program holds {node.op} {node.target}", "Export it again with torch.export.")

    def call(self, node: fx.Node) -> None:
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            whole = self.value.get(node.args[0], ())
            position = _position(node.args[0].meta.get("val"), int(node.args[1]))  # type: ignore[arg-type]
            self.value[node] = (whole[position],) if position is not None and position < len(whole) else ()
            return
        if any(mark in str(node.target) for mark in _SILENT):
            return
        if (source := _passes(node)) is not None:
            self.same[node], self.value[node] = source, self.value[source]
            return
        values = [v for v in _leaves(node.meta.get("val"))]
        for value in values:
            _static(node, value, _module(node))
        inputs = [v for n in node.all_input_nodes for v in self.value.get(n, ())]
        outputs = [(tuple(v.shape), _dtype(v.dtype)) if isinstance(v, Tensor) else ((), _scalar(v)) for v in values]
        if not inputs and not outputs:
            return
        info = _info(node, values)
        roots = [info.alias_of(self.value, i) for i in range(len(outputs))]
        path = f"{_module(node)}.".removeprefix(self.source.prefix).rstrip(".")
        made = self.builder.node(
            info.kind, inputs, outputs, name=node.name, module=path, flops=info.flops, steps=info.steps, fusion=info.fusion, alias=roots,
            phase=BACKWARD if node.name in self.source.backward else FORWARD, labels=[node.name] * len(outputs), layer=self.layers.of(path),
            known=info.known, **self.traffic(node, info, inputs, values),
        )  # fmt: skip
        self.value[node] = made
        self.steps.append(node)

    def traffic(self, node: fx.Node, info: _Info, inputs: list[int], values: list[Any]) -> dict[str, Any]:
        """Bytes that differ from the sizes of what is read and made: a gather reads what it picks, indices included."""
        if info.fusion != GATHER or not inputs:
            return {}
        made = sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
        table, *index = dict.fromkeys(inputs)
        picked = min(made, self.builder.size_of(table))
        return {"reads": picked + sum(self.builder.size_of(v) for v in index), "params": picked if table in self.bound else 0}

    def finish(self) -> Captured:
        outputs: list[int | Any] = []
        for node in self.source.outputs:
            if isinstance(node, fx.Node) and (found := self.value.get(node)):
                self.builder.output(found[0])
                outputs.append(found[0])
            else:
                outputs.append(_Plain(node))
        graph = self.builder.build()
        values = {node: value for node, value in self.value.items()}
        return Captured(graph, TorchProgram(self.source, self.steps, values, self.same, self.bound, self.fed, outputs), tuple(self.source.note))


@dataclass(frozen=True)
class _Plain:
    """An output that is no tensor."""

    value: Any


class TorchProgram(Program):
    """Executes the captured fx graph. `nodes[i]` is the fx node behind graph node i; `module` the whole fx graph module."""

    dialect = "torch"

    def __init__(
        self,
        source: _Source,
        nodes: list[fx.Node],
        values: dict[fx.Node, tuple[int, ...]],
        same: dict[fx.Node, fx.Node],
        bound: dict[int, Any],
        fed: list[tuple[str, int | None]],
        outputs: list[Any],
    ) -> None:
        self.module, self.nodes, self.values, self.same = source.module, nodes, values, same
        self._bound, self._fed, self._outputs = bound, fed, outputs
        self._flatten, self._unflatten = source.flatten, source.unflatten

    def weights(self) -> dict[int, Any]:
        return dict(self._bound)

    def feed(self, *inputs: Any, **named: Any) -> dict[int, Any]:
        flat = self._flatten(*inputs, **named)
        if len(flat) != len(self._fed):
            raise InputError(f"{len(flat)} inputs were given, the model was captured with {len(self._fed)}.", "Give those it was captured with.")
        fed: dict[int, Any] = {}
        for tensor, (label, value) in zip(flat, self._fed, strict=True):
            if value is None:
                continue
            node = next(n for n, v in self.values.items() if v == (value,))
            want = node.meta["val"]
            if tuple(tensor.shape) != tuple(want.shape) or tensor.dtype != want.dtype:
                raise InputError(
                    f"input {label} is {_told(tensor)}; the program was captured for {_told(want)}.", "Capture it again for these shapes."
                )
            fed[value] = tensor
        return fed

    def step(self, node: int, values: Mapping[int, Any]) -> tuple[Any, ...]:
        call = self.nodes[node]
        args, kwargs = fx.node.map_arg((call.args, call.kwargs), lambda n: self._lookup(n, values))  # type: ignore[misc]
        target = (
            torch.ops.aten.reshape.default if call.target is torch.ops.aten.view.default else call.target
        )  # strides may differ from the capture's
        made = target(*args, **kwargs)  # type: ignore[operator]
        return tuple(_aligned(call.meta.get("val"), made))

    def _lookup(self, node: fx.Node, values: Mapping[int, Any]) -> Any:
        if node.op == "get_attr" and node not in self.values:
            return _attribute(self.module, node.target)
        found = [values[v] for v in self.values[node]]
        if isinstance(node.meta.get("val"), list | tuple):
            return found
        return found[0]

    def collect(self, values: Mapping[int, Any]) -> Any:
        return self._unflatten([o.value if isinstance(o, _Plain) else values[o] for o in self._outputs])


def _told(tensor: Any) -> str:
    return f"{_dtype(tensor.dtype)}{list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__


def _attribute(module: nn.Module, target: Any) -> Any:
    found: Any = module
    for part in str(target).split("."):
        found = getattr(found, part)
    return found


def _leaves(value: Any) -> list[Any]:
    """Tensors and symbolic or plain numbers in a result; None (an output not asked for) is left out."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def _aligned(value: Any, made: Any) -> list[Any]:
    """What a kernel gave for each leaf that the capture foresaw; None where it left one out that nobody asked for."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [leaf for part, given in zip(value, made, strict=True) for leaf in _aligned(part, given)]
    return [made]


def _position(value: Any, index: int) -> int | None:
    """Where item `index` of a result stands among its leaves; None if it is None."""
    if not isinstance(value, list | tuple):
        return index
    if value[index] is None:
        return None
    return sum(len(_leaves(part)) for part in value[:index])


def _spec(value: Any) -> tuple[tuple[int, ...], str] | None:
    return (tuple(value.shape), _dtype(value.dtype)) if isinstance(value, Tensor) else None


def _static(node: fx.Node, value: Any, where: str) -> None:
    """Sizes must be numbers by now. Raises ModelError naming the dimension that is not."""
    if not isinstance(value, Tensor):
        return
    for axis, size in enumerate(value.shape):
        if isinstance(size, torch.SymInt):
            if size.node.maybe_as_int() is not None:
                continue
            raise ModelError(
                f"dimension {axis} of {node.name}" + (f" ({where})" if where and where != node.name else "") + f" is {size}, which has no value",
                f"Give it one: --dims {size}=…",
            )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _scalar(value: Any) -> str:
    if isinstance(value, bool | torch.SymBool):
        return "bool"
    return "int64" if isinstance(value, int | torch.SymInt) else "float64"


def _module(node: fx.Node) -> str:
    """Dotted path of the module that called the op, in the user's model; "" at its top."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", path.replace("L['self']", "").replace("L__self__", ""))
    path = re.sub(r"@\d+", "", path)
    return ".".join(part for part in path.replace("_modules", "").split(".") if part)


# --- what an op is ---------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Info:
    kind: str
    fusion: int
    flops: float
    steps: float
    known: bool
    alias: list[fx.Node | None]

    def alias_of(self, values: Mapping[fx.Node, tuple[int, ...]], output: int) -> int | None:
        source = self.alias[output] if output < len(self.alias) else None
        found = values.get(source, ()) if source is not None else ()
        return found[0] if found else None


def _name(target: Any) -> tuple[str, str]:
    """("aten", "mm") of an operator; ("python", "mul") of a function."""
    packet = getattr(target, "_qualified_op_name", None) or getattr(target, "name", None)
    if callable(packet):
        packet = packet()
    text = str(packet or getattr(target, "__name__", target))
    space, _, op = text.rpartition("::")
    if not space and isinstance(target, torch._ops.HigherOrderOperator):
        return "higher_order", text
    return (space or "python"), op.split(".")[0]


def _info(node: fx.Node, values: list[Any]) -> _Info:
    space, op = _name(node.target)
    kind = f"{space}.{op}"
    alias = _aliases(node, len(values))
    fusion = _class(node, space, op, alias)
    known = fusion is not None
    if fusion is None:
        fusion = OPAQUE
    flops = _flops(node, op, values) if fusion == CONTRACTION else 0.0
    if not known and space != "python":
        counted = _counted(node)
        known, flops = counted is not None and space == "aten", counted or 0.0
        fusion = CONTRACTION if flops else fusion
    steps = 0.0
    if fusion in (ELEMENTWISE, REDUCTION, OPAQUE) and op not in ops.MOVES:
        largest = max((t.numel() for t in (*_tensors(node), *values) if isinstance(t, Tensor)), default=0)
        steps = float(largest) * (ops.STEPS.get(op, 1) if known else ops.ASSUMED_STEPS)
    return _Info(kind, fusion, float(flops), steps, known or space == "python", alias)


def _tensors(node: fx.Node) -> list[Tensor]:
    return [leaf for n in node.all_input_nodes for leaf in _leaves(n.meta.get("val")) if isinstance(leaf, Tensor)]


def _class(node: fx.Node, space: str, op: str, alias: list[fx.Node | None]) -> int | None:
    if alias and all(a is not None for a in alias):
        return VIEW
    found = ops.ATEN.get(op)
    if found is not None and space in ("aten", "prims", "quantized_decomposed", "transformers"):
        return found
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags:
        return ELEMENTWISE
    if (reduction := getattr(torch.Tag, "reduction", None)) is not None and reduction in tags:
        return REDUCTION
    return None


def _aliases(node: fx.Node, outputs: int) -> list[fx.Node | None]:
    """For each output the input whose memory it shares, by the operator's own schema (a view op annotates its result, and does not write)."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.returns:
        return []
    named: dict[str, fx.Node] = {}
    arguments = {a.name: node.kwargs.get(a.name) for a in schema.arguments} | {
        a.name: given for a, given in zip(schema.arguments, node.args, strict=False)
    }
    for argument in schema.arguments:
        given, info = arguments[argument.name], argument.alias_info
        if info is not None and not info.is_write and isinstance(given, fx.Node):
            named |= dict.fromkeys(info.before_set, given)
    sources = []
    for returned in schema.returns:
        info = returned.alias_info
        sources.append(next((named[s] for s in info.before_set if s in named), None) if info is not None and not info.is_write else None)
    if len(schema.returns) == 1 and outputs > 1:  # a list of views: split, unbind
        info = schema.returns[0].alias_info
        source = sources[0] or next(iter(named.values()), None)
        return [source] * outputs if named and (info is not None or _is_split(node)) else []
    if sources and sources[0] is not None and _name(node.target)[1] in ("reshape", "contiguous", "to", "flatten", "reshape_as"):
        return sources if _stays(node) else [None]
    return sources


def _is_split(node: fx.Node) -> bool:
    return _name(node.target)[1] in ("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "hsplit", "vsplit", "unsafe_split")


def _stays(node: fx.Node) -> bool:
    """Whether an op that may copy (reshape) does not, for these strides."""
    source, result = node.args[0].meta.get("val"), node.meta.get("val")  # type: ignore[union-attr]
    if not isinstance(source, Tensor) or not isinstance(result, Tensor) or source.dtype != result.dtype:
        return False
    try:
        return torch.empty_strided(source.shape, source.stride(), device="meta", dtype=source.dtype).view(result.shape).stride() == result.stride()
    except RuntimeError:
        return False


def _passes(node: fx.Node) -> fx.Node | None:
    """The input that a call hands on unchanged: a copy into the same layout (dropout at inference, contiguous) or to the same type."""
    _, op = _name(node.target)
    source = node.args[0] if node.args else None
    if op not in ("clone", "contiguous", "_to_copy", "to", "alias", "detach", "lift_fresh_copy", "dropout") or not isinstance(source, fx.Node):
        return None
    if op == "dropout" and node.args[2:3] != (False,) and node.args[1:2] != (0.0,):
        return None
    if any(n.op == "output" for n in node.users) and source.op in ("placeholder", "get_attr"):
        return None  # what is returned is not the caller's own tensor
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return None
    same = before.dtype == after.dtype and before.device == after.device and tuple(before.shape) == tuple(after.shape)
    return source if same and before.stride() == after.stride() else None


def _shapes(node: fx.Node) -> list[Any]:
    """Shapes of the arguments in schema order, None where there is no tensor; a list of tensors as a list of shapes."""
    schema = getattr(node.target, "_schema", None)
    given = list(node.args)
    if schema is not None:
        given += [node.kwargs.get(a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments[len(given) :]]

    def shape(a: Any) -> Any:
        if isinstance(a, fx.Node):
            value = a.meta.get("val")
            return tuple(value.shape) if isinstance(value, Tensor) else value
        return [shape(x) for x in a] if isinstance(a, list | tuple) else a

    return [shape(a) for a in given]


def _flops(node: fx.Node, op: str, values: list[Any]) -> float:
    """Of a contraction, from shapes alone; ops that the table has no formula for are decomposed and counted by torch."""
    s = _shapes(node)
    out = tuple(values[0].shape) if values and isinstance(values[0], Tensor) else ()
    match op:
        case "mm" | "bmm" | "matmul" | "mv" | "dot" | "vdot" | "inner" | "_int_mm" | "_scaled_mm":
            return ops.matmul(s[0], s[1][::-1] if op == "inner" and len(s[1]) == 2 else s[1])
        case "addmm" | "baddbmm" | "addmv" | "_addmm_activation":
            return ops.matmul(s[1], s[2])
        case "addbmm":
            return ops.matmul(s[1], s[2])
        case "linear":
            return ops.linear(s[0], s[1])
        case "einsum":
            return ops.einsum(s[0], *s[1])
        case "convolution" | "_convolution":
            return ops.convolution(s[0], s[1], out, bool(s[6]))
        case "conv1d" | "conv2d" | "conv3d":
            return ops.convolution(s[0], s[1], out)
        case "conv_transpose1d" | "conv_transpose2d" | "conv_transpose3d":
            return ops.convolution(s[0], s[1], out, True)
        case "convolution_backward":
            return ops.convolution_backward(s[0], s[1], s[2], bool(s[7]), s[10])
        case "outer" | "ger" | "addr":
            return 0.0  # a product without a sum
        case "_grouped_mm" | "grouped_mm_fallback":                   # every row meets the matrix of its group; of two matrices, rows are summed over
            return float(2 * s[0][-1] * prod(out if len(s[0]) + len(s[1]) > 4 else out[1:]))
        case "grouped_mm_fallback_backward":                          # rows [T, K] by [E, K, N]: as much for each of the two gradients
            return float(4 * prod(s[0]) * s[1][-1])
    if op.endswith("_backward") and "scaled_dot_product" in op:
        return ops.attention_backward(s[1], s[2], s[3])
    if "scaled_dot_product" in op:
        return ops.attention(s[0], s[1], s[2])
    if op in ("lstm", "gru", "rnn_tanh", "rnn_relu"):                 # every matrix meets every step of every sample once
        weights = s[3] if isinstance(s[3], list) else s[2]
        return float(2 * prod(s[0][:-1]) * sum(prod(w) for w in weights if len(w) == 2))
    if op.endswith("_cell"):
        return float(2 * prod(s[0][:-1]) * (prod(s[2]) + prod(s[3])))
    if op == "mkldnn_rnn_layer":
        return float(2 * prod(s[0][:-1]) * (prod(s[1]) + prod(s[2])))
    return _counted(node) or 0.0


def _counted(node: fx.Node) -> float | None:
    """What torch's own counter says when the op runs on fake tensors, attention included; None where it does not run."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils import _pytree
    from torch.utils.flop_counter import FlopCounterMode

    def bare(n: fx.Node) -> Any:
        value = n.meta.get("val")
        return _pytree.tree_map_only(Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype), value)

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False, custom_mapping=counters()) as counter:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), bare)  # type: ignore[misc]
            node.target(*args, **kwargs)  # type: ignore[operator]
        return float(counter.get_total_flops())
    except Exception:
        return None


def counters() -> dict[Any, Callable[..., int]]:
    """`custom_mapping` for FlopCounterMode: attention as the CPU runs it, which torch's own registry lacks (and so counts as nothing)."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return ops.attention(query, key, value)

    def backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return ops.attention_backward(query, key, value)

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


__all__ = ["Level", "TorchProgram", "capture", "counters", "fixed", "load", "square"]
