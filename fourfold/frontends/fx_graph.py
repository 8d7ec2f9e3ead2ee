"""An fx graph and what its placeholders and outputs mean → Graph, and the program that executes it."""

from __future__ import annotations

import contextlib
import io
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fourfold.errors import InputError, ModelError
from fourfold.frontends import flops as ops
from fourfold.frontends.fx_ops import OpInfo, leaves_of, op_info, passed_on
from fourfold.graph import BACKWARD, FORWARD, GATHER, Builder
from fourfold.letters import Piece, ShardingRule
from fourfold.program import Captured, Program

_SILENT = (
    "_assert_tensor_metadata",
    "_assert_async",
    "_assert_scalar",
    "_functional_assert_async",
    "sym_constrain_range_for_size",
    "sym_constrain_range",
)


@dataclass
class FxSource:
    """An fx graph module and what its placeholders and outputs mean.

    `roles`: placeholder name → (role, label, tensor or None for what the caller feeds).
    """

    module: fx.GraphModule
    roles: dict[str, tuple[str, str, Any]]
    outputs: list[Any]  # fx nodes or plain constants, in the order in which they are returned
    unflatten: Callable[[list[object]], object]
    flatten: Callable[..., list[Any]]
    backward: frozenset[str] = frozenset()
    prefix: str = ""  # of module paths and labels: what the capture wrapped around the model
    note: list[str] = field(default_factory=list)


def storage_key(tensor: Tensor) -> object:
    """Equal for tensors that are one in memory. On the meta device every address is 0, so there the storage itself counts."""
    if tensor.device.type == "meta":
        return tensor.untyped_storage()._cdata, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()) if tensor.numel() else id(tensor)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def views_as_reshapes(module: fx.GraphModule) -> None:
    """A view that eager may take need not be one for the strides that decomposed operators answer with; reshape is one wherever it can be."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


def as_captured(source: FxSource, title: str) -> Captured:
    """The graph of `source` and the program that executes it. Raises ModelError for a dimension without a value."""
    build = _Build(source, title)
    build.placeholders()
    build.calls()
    return build.finish()


class _Build:
    def __init__(self, source: FxSource, title: str) -> None:
        self.source, self.builder, self.layers = source, Builder(title), ops.Layers()
        self.value: dict[fx.Node, tuple[int, ...]] = {}  # fx node → values it stands for
        self.same: dict[fx.Node, fx.Node] = {}  # a call without effect → what it passes on
        self.bound: dict[int, object] = {}  # value → parameter or constant tensor
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
                key = storage_key(tensor) if isinstance(tensor, Tensor) else node
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
        if (source := passed_on(node)) is not None:
            self.same[node], self.value[node] = source, self.value[source]
            return
        values = [v for v in leaves_of(node.meta.get("val"))]
        for value in values:
            _static(node, value, _module(node))
        inputs = [v for n in node.all_input_nodes for v in self.value.get(n, ())]
        outputs = [(tuple(v.shape), _dtype(v.dtype)) if isinstance(v, Tensor) else ((), _scalar(v)) for v in values]
        if not inputs and not outputs:
            return
        info = op_info(node, values)
        roots = [info.alias_of(self.value, i) for i in range(len(outputs))]
        path = f"{_module(node)}.".removeprefix(self.source.prefix).rstrip(".")
        made = self.builder.node(
            info.kind, inputs, outputs, name=node.name, module=path, flops=info.flops, steps=info.steps, fusion=info.fusion, alias=roots,
            phase=BACKWARD if node.name in self.source.backward else FORWARD, labels=[node.name] * len(outputs), layer=self.layers.of(path),
            known=info.known, **self.traffic(node, info, inputs, values),
        )  # fmt: skip
        self.value[node] = made
        self.steps.append(node)

    def traffic(self, node: fx.Node, info: OpInfo, inputs: list[int], values: list[object]) -> dict[str, Any]:
        """Bytes that differ from the sizes of what is read and made: a gather reads what it picks, indices included."""
        if info.fusion != GATHER or not inputs:
            return {}
        made = sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
        table, *index = dict.fromkeys(inputs)
        picked = min(made, self.builder.size_of(table))
        return {"reads": picked + sum(self.builder.size_of(v) for v in index), "params": picked if table in self.bound else 0}

    def finish(self) -> Captured:
        outputs: list[int | object] = []
        for node in self.source.outputs:
            if isinstance(node, fx.Node) and (found := self.value.get(node)):
                self.builder.output(found[0])
                outputs.append(found[0])
            else:
                outputs.append(_Plain(node))
        graph = self.builder.build()
        values = {node: value for node, value in self.value.items()}
        made = [(graph.kinds[graph.kind[n]], tuple(graph.outputs_of(n).tolist()), [graph.shape_of(v) for v in graph.outputs_of(n).tolist()])
                for n in range(len(graph))]                            # kind, values and their shapes, for the letters
        return Captured(graph, TorchProgram(self.source, self.steps, values, self.same, self.bound, self.fed, outputs, made), tuple(self.source.note))


@dataclass(frozen=True)
class _Plain:
    """An output that is no tensor."""

    value: Any


class TorchProgram(Program):
    """Executes the captured fx graph. `nodes[i]` is the fx node behind graph node i; `module` the whole fx graph module."""

    dialect = "torch"

    def __init__(
        self,
        source: FxSource,
        nodes: list[fx.Node],
        values: dict[fx.Node, tuple[int, ...]],
        same: dict[fx.Node, fx.Node],
        bound: dict[int, object],
        fed: list[tuple[str, int | None]],
        outputs: list[Any],
        made: Sequence[tuple[str, tuple[int, ...], list[tuple[int, ...]]]] = (),
    ) -> None:
        self.module, self.nodes, self.values, self.same = source.module, nodes, values, same
        self._bound, self._fed, self._outputs = bound, fed, outputs
        self._flatten, self._unflatten = source.flatten, source.unflatten
        self._made = made

    @property
    def outputs(self) -> list[int | Any]:
        """What is returned: values, and in place of numbers or None something else, whose `value` they are."""
        return self._outputs

    def flatten(self, *inputs: object, **named: object) -> list[Any]:
        """The model's own arguments as a list."""
        return self._flatten(*inputs, **named)

    def unflatten(self, answers: list[Any]) -> object:
        """A list of outputs in the structure in which the model returns them."""
        return self._unflatten(answers)

    def weights(self) -> dict[int, object]:
        return dict(self._bound)

    def feed(self, *inputs: object, **named: object) -> dict[int, object]:
        flat = self._flatten(*inputs, **named)
        if len(flat) != len(self._fed):
            raise InputError(f"{len(flat)} inputs were given, the model was captured with {len(self._fed)}.", "Give those it was captured with.")
        fed: dict[int, object] = {}
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

    def step(self, node: int, values: Mapping[int, object]) -> tuple[object, ...]:
        call = self.nodes[node]
        args, kwargs = fx.node.map_arg((call.args, call.kwargs), lambda n: self._lookup(n, values))  # type: ignore[misc]
        target = (
            torch.ops.aten.reshape.default if call.target is torch.ops.aten.view.default else call.target
        )  # strides may differ from the capture's
        made = target(*args, **kwargs)  # type: ignore[operator]
        return tuple(_aligned(call.meta.get("val"), made))

    def _lookup(self, node: fx.Node, values: Mapping[int, object]) -> object:
        if node.op == "get_attr" and node not in self.values:
            return _attribute(self.module, node.target)
        found = [values[v] for v in self.values[node]]
        if isinstance(node.meta.get("val"), list | tuple):
            return found
        return found[0]

    def letters(self, node: int) -> ShardingRule | None:
        from fourfold.frontends.letters import rule_of

        kind, makes, shapes = self._made[node]
        return rule_of(kind, self.nodes[node], self.values, makes, shapes)

    def piece(self, node: int, rule: ShardingRule, operands: Sequence[Any], piece: Piece) -> tuple[Any, ...]:
        from fourfold.frontends.letters import OpLetters
        from fourfold.frontends.letters.local import run_piece

        kind, makes, results = self._made[node]
        call = OpLetters(kind, self.nodes[node], self.values, makes, results)
        return run_piece(self.nodes[node], call, rule, operands, piece)

    def collect(self, values: Mapping[int, object]) -> object:
        return self._unflatten([o.value if isinstance(o, _Plain) else values[o] for o in self._outputs])


def _told(tensor: Tensor) -> str:
    return f"{_dtype(tensor.dtype)}{list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__


def _attribute(module: nn.Module, target: object) -> object:
    found: object = module
    for part in str(target).split("."):
        found = getattr(found, part)
    return found


def _aligned(value: object, made: Any) -> list[object]:
    """What a kernel gave for each leaf that the capture foresaw; None where it left one out that nobody asked for."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [leaf for part, given in zip(value, made, strict=True) for leaf in _aligned(part, given)]
    return [made]


def _position(value: object, index: int) -> int | None:
    """Where item `index` of a result stands among its leaves; None if it is None."""
    if not isinstance(value, list | tuple):
        return index
    if value[index] is None:
        return None
    return sum(len(leaves_of(part)) for part in value[:index])


def _spec(value: object) -> tuple[tuple[int, ...], str] | None:
    return (tuple(value.shape), _dtype(value.dtype)) if isinstance(value, Tensor) else None


def _static(node: fx.Node, value: object, where: str) -> None:
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


def _scalar(value: object) -> str:
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


def ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """`nodes` and all that they are made from."""
    seen, stack = set(nodes), list(nodes)
    while stack:
        for other in stack.pop().all_input_nodes:
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return seen
