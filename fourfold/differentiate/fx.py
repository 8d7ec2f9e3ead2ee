"""torch.fx graphs of ATen operators to equations and back."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from fourfold.differentiate.equations import Argument, Equation, Function, Variable, inferred, normalised, operator_of, torch_dtype, variables
from fourfold.errors import ModelError

_PASSED_ON = frozenset("""aten.alias.default aten.clone.default aten.contiguous.default aten.lift_fresh_copy.default aten.lift_fresh.default
    aten._conj.default aten.view_copy.default""".split())
_SILENT = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "_functional_assert_async", "sym_constrain_range")
_RESHAPES = frozenset("""aten.view.default aten._unsafe_view.default aten.reshape.default aten.squeeze.dims aten.squeeze.dim aten.squeeze.default
    aten.unsqueeze.default aten.flatten.using_ints aten._reshape_copy.default aten._reshape_alias.default aten.unflatten.int""".split())
_CALLS = ("invoke_subgraph", "wrap", "tag_activation_checkpoint", "wrap_with_set_grad_enabled", "inner_compile", "wrap_activation_checkpoint",
          "checkpoint", "wrap_with_autocast")


def from_fx(
    module: fx.GraphModule, name: str = "", constants: dict[Variable, Argument] | None = None, ends: Sequence[fx.Node] | None = None
) -> Function:
    """A functional graph of ATen operators with static shapes as a program; placeholders are its inputs, and tensors that the graph holds itself are
    further inputs, listed in `constants` with their tensors. Views become reshapes, copies vanish, and calls of subgraphs stay calls. `ends`: what is
    returned instead of what the graph returns.

    Raises ModelError for what is no operator, writes in place, or has a shape without a number.
    """
    return _Reader(module, name, {} if constants is None else constants).read(ends)


_Call = tuple[str, tuple[Argument, ...], dict[str, Argument]]


class _Reader:
    def __init__(self, module: fx.GraphModule, name: str, constants: dict[Variable, Argument]) -> None:
        self.module, self.name, self.constants = module, name, constants
        self.value: dict[fx.Node, Argument] = {}
        self.equations: list[Equation] = []

    def read(self, ends: Sequence[fx.Node] | None) -> Function:
        inputs: list[Variable] = []
        outputs: list[Variable] = []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.value[node] = variable(node) if isinstance(node.meta.get("val"), Tensor) else node.meta.get("val")
                if isinstance(self.value[node], Variable):
                    inputs.append(self.value[node])
            elif node.op == "get_attr":
                self.value[node] = self.held(node)
            elif node.op == "call_function":
                self.call(node)
            elif node.op == "output":
                flat: Argument = ends if ends is not None else node.args[0] if isinstance(node.args[0], list | tuple) else (node.args[0],)
                outputs = [v for v in (self.given(part) for part in flat) if isinstance(v, Variable)]
            else:
                raise ModelError(f"the captured program holds {node.op} {node.target}", "Export it again with torch.export.")
        return Function(self.name or "f", (*inputs, *(v for v in self.constants if v not in inputs)), tuple(outputs), tuple(self.equations))

    def given(self, value: Argument) -> Argument:
        if isinstance(value, fx.Node):
            return self.value[value]
        if isinstance(value, list | tuple):
            return [self.given(part) for part in value]
        if isinstance(value, slice):
            return value
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            found = value.node.maybe_as_int() if isinstance(value, torch.SymInt) else None
            if found is None:
                raise ModelError(f"the captured program holds {value}, which has no value", "Capture it for inputs of fixed shape.")
            return found
        return value

    def held(self, node: fx.Node) -> Argument:
        found: Argument = self.module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if not isinstance(found, Tensor):
            return found
        made = Variable(found.shape, _dtype(found.dtype), name=str(node.target))
        self.constants[made] = found.detach()
        return made

    def call(self, node: fx.Node) -> None:
        target = node.target
        if target is operator.getitem:
            self.value[node] = self.value[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        if isinstance(target, torch._ops.HigherOrderOperator):
            self.higher(node, target)
            return
        if not isinstance(target, torch._ops.OpOverload):
            raise ModelError(f"{target} at {node.name} works on numbers that depend on values or shapes", "Capture it for inputs of fixed shape.")
        op = str(target)
        if any(mark in op for mark in _SILENT):
            return
        if target._schema.is_mutable:
            raise ModelError(f"{op} at {node.name} writes in place", "Capture it with torch.export, which removes writes.")
        if op in _PASSED_ON:
            self.value[node] = self.given(node.args[0])
            return
        args, kwargs = normalised(op, self.given(list(node.args)), {k: self.given(v) for k, v in node.kwargs.items()})
        self.emit(node, *_canonical(op, args, kwargs, node))

    def emit(self, node: fx.Node, op: str, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> None:
        val = node.meta.get("val")
        several = isinstance(val, list | tuple)
        if val is None:
            specs = inferred(op, args, kwargs)
            several = len(specs) != 1
            made = [None if s is None else Variable(*s, name=node.name) for s in specs]
        else:
            made = [None if not isinstance(v, Tensor) else variable(node, v) for v in (val if several else [val])]  # type: ignore[union-attr]
        if not several and made[0] is not None and op == "aten.reshape.default" and args[0].shape == made[0].shape:
            self.value[node] = args[0]
            return
        if not several and made[0] is None:
            raise ModelError(f"{op} at {node.name} makes a number from a tensor", "Write it without .item() and without sizes that depend on data.")
        self.equations.append(Equation(op, args, tuple(made), kwargs, module=module_of(node), name=node.name))
        self.value[node] = made if several else made[0]

    def higher(self, node: fx.Node, target: Argument) -> None:
        """A call of a subgraph."""
        name = str(target.name() if callable(getattr(target, "name", None)) else target)
        body = next((a for a in (self.given(arg) for arg in node.args) if isinstance(a, fx.GraphModule)), None)
        if body is None or name not in _CALLS:
            raise ModelError(f"{name} has no differentiation rule; it stands in {module_of(node) or node.name}.",
                             "Write that part without torch's control flow operators.")
        function = from_fx(body, str(name), inner := {})
        given = [a for arg in node.args if isinstance(a := self.given(arg), Variable)]
        for variable_, tensor in inner.items():                        # what the subgraph holds itself is handed to it
            outer = variable_.like()
            self.constants[outer] = tensor
            given.append(outer)
        outputs = tuple(o.like() for o in function.outputs)
        self.equations.append(Equation("call", tuple(given), outputs, function=function, module=module_of(node), name=node.name))
        stopped = name == "wrap_with_set_grad_enabled" and node.args[0] is False
        found = [self.stopped(o, node) if stopped else o for o in outputs]
        self.value[node] = found if isinstance(node.meta.get("val"), list | tuple) or len(found) > 1 else found[0]
        if not isinstance(node.meta.get("val"), list | tuple) and any(u.target is operator.getitem for u in node.users):
            self.value[node] = found

    def stopped(self, v: Variable, node: fx.Node) -> Variable:
        made = v.like()
        self.equations.append(Equation("aten.detach.default", (v,), (made,), module=module_of(node), name=node.name))
        return made


def _canonical(op: str, args: tuple[Argument, ...], kwargs: dict[str, Argument], node: fx.Node) -> _Call:
    """The same operation by the one operator that the table has for it."""
    val = node.meta.get("val")
    if op in _RESHAPES and isinstance(val, Tensor):
        return "aten.reshape.default", (args[0], [int(n) for n in val.shape]), {}
    if op == "aten.expand.default" and isinstance(val, Tensor):
        return op, (args[0], [int(n) for n in val.shape]), {}
    if op in ("aten.t.default", "aten.transpose.int", "aten.numpy_T.default", "aten.mT.default", "aten.movedim.int"):
        rank = len(args[0].shape)
        order = list(range(rank))
        if op == "aten.movedim.int":
            order.insert(args[2] % rank, order.pop(args[1] % rank))
        elif rank > 1:
            a, b = (args[1] % rank, args[2] % rank) if op == "aten.transpose.int" else (rank - 2, rank - 1)
            order[a], order[b] = order[b], order[a]
        return "aten.permute.default", (args[0], order), {}
    if op in ("aten.unsafe_split.Tensor", "aten.unsafe_chunk.default"):
        return "aten.split.Tensor", args, kwargs
    return op, args, kwargs


def variable(node: fx.Node, value: Argument = None) -> Variable:
    """The variable of a node's fake result. Raises ModelError where a size has no number or the type is complex."""
    value = node.meta["val"] if value is None else value
    shape = []
    for axis, size in enumerate(value.shape):
        number = size.node.maybe_as_int() if isinstance(size, torch.SymInt) else size
        if number is None:
            raise ModelError(f"dimension {axis} of {node.name} is {size}, which has no value", "Capture it for inputs of fixed shape.")
        shape.append(number)
    if value.dtype.is_complex:
        raise ModelError(f"{node.name} is complex; derivatives are of real numbers here", "Split it in real and imaginary part.")
    return Variable(shape, _dtype(value.dtype), name=node.name)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def module_of(node: fx.Node) -> str:
    """Dotted path of the module that called the operator, as the exporter wrote it down; "" at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def to_fx(function: Function) -> tuple[fx.GraphModule, list[fx.Node], list[fx.Node]]:
    """An ordinary program (no linear variables, no calls) as a graph of ATen operators with fake results: (module, its placeholders, its outputs)."""
    graph = fx.Graph()
    node: dict[Variable, fx.Node] = {}
    fake: dict[fx.Node, Argument] = {}
    taken: set[str] = set()
    for i, v in enumerate(function.inputs):
        node[v] = graph.placeholder(f"in{i}")
        node[v].meta["val"] = fake[node[v]] = torch.empty(v.shape, dtype=torch_dtype(v.dtype), device="meta")
    for eq in function.equations:
        named = eq.name if eq.name and not eq.derived and eq.name not in taken else eq.op.removeprefix("aten.").split(".")[0]
        taken.add(named)
        args, kwargs = _nodes(eq.args, node), {k: _nodes(v, node) for k, v in eq.kwargs.items()}
        made = graph.create_node("call_function", _target(eq.op), args, kwargs, name=named)
        if eq.module:
            made.meta["nn_module_stack"] = {"": (eq.module, "")}
        result = _run(eq, made, fake)
        made.meta["val"] = result
        if isinstance(result, tuple | list):
            made.meta["val"] = type(result)(result) if isinstance(result, list) else tuple(result)
            for i, out in enumerate(eq.outputs):
                if out is not None:
                    node[out] = item = graph.call_function(operator.getitem, (made, i))
                    item.meta = {**{k: v for k, v in made.meta.items() if k != "val"}, "val": result[i]}
                    fake[item] = result[i]
        else:
            node[eq.outs[0]], fake[made] = made, result
    outputs = [node[v] for v in function.outputs]
    graph.output(outputs)
    return fx.GraphModule(torch.nn.Module(), graph), [node[v] for v in function.inputs], outputs


def _target(op: str) -> Argument:
    from fourfold.differentiate.evaluate import OWN

    return OWN[op] if op in OWN else operator_of(op)


def _nodes(value: Argument, node: Mapping[Variable, fx.Node]) -> Argument:
    if isinstance(value, Variable):
        return node[value]
    return type(value)(_nodes(v, node) for v in value) if isinstance(value, list | tuple) else value


def _run(eq: Equation, made: fx.Node, fake: Mapping[fx.Node, Argument]) -> Argument:
    if "." not in eq.op:
        return torch.empty(eq.outs[0].shape, dtype=torch_dtype(eq.outs[0].dtype), device="meta")
    args, kwargs = fx.node.map_arg((made.args, made.kwargs), lambda n: fake[n])  # type: ignore[misc]
    named = dict(kwargs)
    if not any(variables(eq.args)) and any(a.name == "device" for a in operator_of(eq.op)._schema.arguments):
        named["device"] = "meta"
    with torch.no_grad():
        return made.target(*args, **named)  # type: ignore[operator]
