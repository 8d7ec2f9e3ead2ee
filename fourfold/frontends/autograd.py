"""Training as one program: the loss and its gradients, recorded below autograd; and models that no exporter takes, recorded as they run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fourfold.errors import ModelError
from fourfold.frontends.differentiable import by_passes
from fourfold.frontends.fx_graph import FxSource, ancestors, quiet, storage_key, views_as_reshapes
from fourfold.frontends.subject import Wrapped, answer
from fourfold.text import headline

Gradients = Literal["passes", "recorded"]


def _advice(error: Exception) -> str:
    text = str(error)
    if "data-dependent" in text or "unbacked" in text.lower():
        return "Its control flow or a size depends on the values of a tensor: write that part without `if` or `.item()` on tensors."
    if isinstance(error, TypeError):
        return "Do the inputs fit its forward()?"
    return "Let forward() run on these inputs, and use tensors, tuples and mappings only."


class _Lossy(nn.Module):
    """(loss,) of a model that was called with flat tensors: what AOTAutograd wants."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor],
                 call: Callable[[list[object]], tuple[tuple[object, ...], dict[str, object]]]) -> None:
        super().__init__()
        self.model, self._loss, self._call = model, loss, call

    def forward(self, *flat: object) -> tuple[Tensor]:
        args, kwargs = self._call(list(flat))
        return (self._loss(self.model(*args, **kwargs)),)


def square(output: Tensor) -> Tensor:
    """The loss where none is given: the model's own if its first tensor is a scalar, else the mean square of the tensor that matters."""
    first = output if isinstance(output, Tensor) else next(iter(output.values() if isinstance(output, Mapping) else output), None)
    if isinstance(first, Tensor) and first.is_floating_point() and first.ndim == 0:
        return first
    return answer(output).float().square().mean()


def joint(
    model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], loss: Callable[[object], Tensor] | None, gradient: Gradients = "passes"
) -> FxSource:
    """The exported program with its gradient. "passes": made by linearize, unzip and transpose. "recorded", or where these lack a rule: the program
    is run once on fake tensors with autograd behind it, and every operation below autograd is recorded.
    """
    from torch.utils import _pytree

    flat, spec = _pytree.tree_flatten((args, kwargs))
    wrapped = _Lossy(model, loss or square, lambda leaves: _pytree.tree_unflatten(leaves, spec))
    try:
        with quiet(), torch.enable_grad():
            exported = torch.export.export(wrapped, tuple(flat), strict=False)
    except Exception as error:
        return followed(model, args, kwargs, loss or square, error)
    if gradient == "recorded":
        return _recorded(exported, model, tuple(kwargs))
    try:
        return by_passes(exported, model, tuple(kwargs), "module." if isinstance(model, Wrapped) else "")
    except Exception as error:                                         # noqa: BLE001 — what torch's autograd can do, it does
        found = _recorded(exported, model, tuple(kwargs))
        found.note.append(f"The gradient is what torch's autograd recorded, since {headline(error).rstrip('.')}.")
        return found


def _recorded(exported: torch.export.ExportedProgram, model: nn.Module, keys: tuple[str, ...]) -> FxSource:
    from torch.export.graph_signature import InputKind, OutputKind
    from torch.utils import _pytree

    views_as_reshapes(exported.graph_module)
    signature, state = exported.graph_signature, {**exported.state_dict, **exported.constants}
    leaves, examples, where = _Leaves(model), iter(_pytree.tree_leaves(exported.example_inputs)), []
    for entry in signature.input_specs:
        label = str(entry.target or getattr(entry.arg, "name", "")).removeprefix("model.")
        if entry.kind == InputKind.USER_INPUT:
            where.append(leaves.add("input", label, next(examples)))
        else:
            where.append(leaves.add("constant" if entry.kind == InputKind.CONSTANT_TENSOR else "parameter", label, state[str(entry.target)]))
    index = next(i for i, s in enumerate(signature.output_specs) if s.kind in (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT))

    def forward(tensors: Sequence[object]) -> Tensor:
        return fx.Interpreter(exported.graph_module).run(*(tensors[w] for w in where))[index]

    try:
        return _differentiated(forward, leaves, keys, "fake", "model.")
    except Exception as error:
        raise ModelError(f"the backward pass of {type(model).__name__} cannot be captured: {headline(error)}", _advice(error)) from error


def followed(model: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any], loss: Callable[[Any], Tensor] | None, cause: Exception) -> FxSource:
    """What cannot be exported because its control flow asks for values is run on the given ones, and what it did is recorded."""
    from torch.utils import _pytree

    why = ModelError(f"{type(model).__name__} cannot be exported by torch {torch.__version__}: {headline(cause)}", _advice(cause))
    if not _depends(cause):
        raise why from cause
    flat, spec = _pytree.tree_flatten((args, kwargs))
    leaves = _Leaves(model)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    where = {name: leaves.add("parameter", name, tensor) for name, tensor in state.items()}
    fed = [leaves.add("input", f"input{i}", leaf) for i, leaf in enumerate(flat)]
    shape: list[Any] = []

    def forward(tensors: Sequence[Any]) -> object:
        given, named = _pytree.tree_unflatten([tensors[i] for i in fed], spec)
        with _named(model):
            return torch.func.functional_call(model, {name: tensors[i] for name, i in where.items()}, given, named)

    def answers(*tensors: object) -> list[object]:
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
        def hook(*_: object) -> None:
            stack.append(name)
            tell()

        return hook

    def leave(*_: object) -> None:
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
        self.names = {storage_key(p): name for name, p in model.named_parameters()}
        self.tensors: list[object] = []
        self.roles: list[tuple[str, str, object]] = []
        self._index: dict[object, int] = {}

    def add(self, role: str, label: str, tensor: Tensor) -> int:
        key = object() if role == "input" or not isinstance(tensor, Tensor) else storage_key(tensor)
        if key not in self._index:
            self._index[key] = len(self.tensors)
            self.tensors.append(tensor)
            self.roles.append((role, self.names.get(key, label), None if role == "input" else tensor))
        return self._index[key]

    def source(self, module: fx.GraphModule, unflatten: Callable[[list[object]], object], keys: tuple[str, ...]) -> FxSource:
        from torch.utils import _pytree

        placeholders = [n.name for n in module.graph.nodes if n.op == "placeholder"]
        (result,) = (n for n in module.graph.nodes if n.op == "output")

        def flatten(*inputs: object, **named: object) -> list[Any]:
            return _pytree.tree_leaves((inputs, {key: named[key] for key in keys if key in named}))

        return FxSource(module, dict(zip(placeholders, self.roles, strict=True)), list(result.args[0]), unflatten, flatten)


def _differentiated(
    forward: Callable[[Sequence[object]], Tensor], leaves: _Leaves, keys: tuple[str, ...], mode: Literal["fake", "real"], prefix: str
) -> FxSource:
    """Loss and gradients of all parameters that take part, as one recorded program."""
    from torch._functorch._aot_autograd.logging_utils import setup_stacktrace_preservation_hooks

    learned = [i for i, t in enumerate(leaves.tensors) if isinstance(t, nn.Parameter) and t.requires_grad]
    given: list[str] = []
    own_prefix = "module." if isinstance(leaves.model, Wrapped) else ""

    def step(*tensors: Any) -> list[object]:
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
    ahead = ancestors(source.outputs[:1])
    source.backward = frozenset(n.name for n in module.graph.nodes if n.op == "call_function" and n not in ahead)
    source.prefix = prefix
    _inherit(module, source.backward)
    return source


def _record(step: Callable[..., list[object]], tensors: Sequence[object], mode: Literal["fake", "real"]) -> fx.GraphModule:
    """Every operation below autograd that `step` calls, without writes in place."""
    from torch.fx import traceback
    from torch.fx.experimental.proxy_tensor import make_fx

    def asked(*args: object) -> list[object]:
        with _Answering():
            return step(*args)

    with quiet(), traceback.preserve_node_meta():
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

    def __torch_dispatch__(self, func: Callable[..., object], types: Sequence[type], args: tuple[object, ...] = (),
                           kwargs: Mapping[str, object] | None = None) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:
            with _disable_current_modes():
                return func(*args)
        return func(*args, **(kwargs or {}))


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _inherit(module: fx.GraphModule, behind: frozenset[str]) -> None:
    """A backward op belongs to the module whose forward op autograd numbered alike."""
    ahead = {n.meta["seq_nr"]: n.meta for n in module.graph.nodes if n.name not in behind and "seq_nr" in n.meta and n.meta.get("nn_module_stack")}
    for node in module.graph.nodes:
        if node.name in behind and (source := ahead.get(node.meta.get("seq_nr"))):
            node.meta["nn_module_stack"] = source["nn_module_stack"]
