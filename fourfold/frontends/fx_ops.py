"""What an operator of an fx graph is: its class of fusion, flops, elementary steps, and the input whose memory its result shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from fourfold.frontends import flops as ops
from fourfold.graph import CONTRACTION, ELEMENTWISE, OPAQUE, REDUCTION, VIEW


def leaves_of(value: object) -> list[object]:
    """Tensors and symbolic or plain numbers in a result; None (an output not asked for) is left out."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves_of(part)]
    return [value]


@dataclass
class OpInfo:
    """An operator: `kind` "aten.mm", fusion class, flops of its contractions, elementary steps, whether the tables know it; `alias`: per output the
    node whose memory it shares.
    """

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


def _name(target: object) -> tuple[str, str]:
    """("aten", "mm") of an operator; ("python", "mul") of a function."""
    packet = getattr(target, "_qualified_op_name", None) or getattr(target, "name", None)
    if callable(packet):
        packet = packet()
    text = str(packet or getattr(target, "__name__", target))
    space, _, op = text.rpartition("::")
    if not space and isinstance(target, torch._ops.HigherOrderOperator):
        return "higher_order", text
    return (space or "python"), op.split(".")[0]


def op_info(node: fx.Node, values: list[object]) -> OpInfo:
    """What the operator of `node` is; `values` are the leaves of its fake result."""
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
    return OpInfo(kind, fusion, float(flops), steps, known or space == "python", alias)


def _tensors(node: fx.Node) -> list[Tensor]:
    return [leaf for n in node.all_input_nodes for leaf in leaves_of(n.meta.get("val")) if isinstance(leaf, Tensor)]


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


def passed_on(node: fx.Node) -> fx.Node | None:
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

    def shape(a: object) -> object:
        if isinstance(a, fx.Node):
            value = a.meta.get("val")
            return tuple(value.shape) if isinstance(value, Tensor) else value
        return [shape(x) for x in a] if isinstance(a, list | tuple) else a

    return [shape(a) for a in given]


def _flops(node: fx.Node, op: str, values: list[object]) -> float:
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

    def bare(n: fx.Node) -> object:
        value = n.meta.get("val")
        return _pytree.tree_map_only(Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype), value)

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False, custom_mapping=counters()) as counter:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), bare)  # type: ignore[misc]
            node.target(*args, **kwargs)  # type: ignore[operator]
        return float(counter.get_total_flops())
    except Exception:
        return None


def counters() -> dict[object, Callable[..., int]]:
    """`custom_mapping` for FlopCounterMode: attention as the CPU runs it, which torch's own registry lacks (and so counts as nothing)."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
        return ops.attention(query, key, value)

    def backward(_grad: object, query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
        return ops.attention_backward(query, key, value)

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
