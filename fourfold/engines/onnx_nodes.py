"""ONNX nodes as calls of torch, for eager runs and Inductor; what has no translation here runs in a session of ONNX Runtime of its own.

Shapes are fixed in a capture, so whatever only changes shape is a reshape to what came out of inference. Definitions: the ONNX operator
specification, opset 7 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fourfold.engines.call import Call, Ref, Region
from fourfold.errors import InputError

_STANDARD = ("", "ai.onnx")


@dataclass
class Foreign:
    """A node that only ONNX Runtime runs: the model that holds it alone."""

    model: bytes
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    foreign = True
    _session: Any = field(default=None, repr=False)

    def __call__(self, *tensors: Any) -> tuple[Any, ...]:
        import torch

        if self._session is None:
            self._session = session(self.model, torch.get_num_threads(), plain=True)
        fed = {name: tensor.numpy() for name, tensor in zip(self.reads, tensors, strict=True)}
        return tuple(torch.from_numpy(np.array(a)) for a in self._session.run(list(self.makes), fed))

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "reads": self.reads, "makes": self.makes, "_session": None}


def session(model: bytes, threads: int, plain: bool = False) -> Any:
    """Of ONNX Runtime, or (`plain`, where it is missing) of onnx's reference in numpy."""
    try:
        import onnxruntime as runtime
    except ImportError:
        if not plain:
            raise
        from onnx import ModelProto
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(ModelProto.FromString(model))
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    if plain:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def model(program: Any, graph: Any, region: Region) -> bytes:
    """A region as an ONNX model: inputs `v12` for value 12, outputs likewise."""
    nodes = [program.calls[node][0] for node, _ in region.nodes]
    return _model(program, nodes, region.reads, region.weights, region.makes)


def _model(program: Any, nodes: Sequence[Any], reads: Sequence[int], weights: Sequence[int], makes: Sequence[int]) -> bytes:
    from fourfold.frontends.onnx_file import dtype_of

    onnx, name = program.onnx, {v: n for n, v in program.value.items()}
    code = {dtype_of(onnx, c): c for c in onnx.TensorProto.DataType.values() if c}

    def entry(v: int) -> Any:
        shape, dtype = program.spec[name[v]]
        return onnx.helper.make_tensor_value_info(name[v], code[dtype], shape)

    bound = program.weights() if weights else {}
    initial = [onnx.numpy_helper.from_array(np.ascontiguousarray(bound[v]).reshape(np.shape(bound[v])), name[v]) for v in weights]
    graph = onnx.helper.make_graph(list(nodes), "region", [entry(v) for v in reads], [entry(v) for v in makes], initial)
    made = onnx.helper.make_model(graph, opset_imports=program.model.opset_import, ir_version=max(program.model.ir_version, 4))
    try:
        return made.SerializeToString()
    except (ValueError, RuntimeError) as error:                         # 2 GB is the most that a message holds
        raise InputError(f"a region of {len(nodes)} nodes is too large for one ONNX message", "Run it eagerly or with Inductor.") from error


def names(program: Any, values: Sequence[int]) -> list[str]:
    """What the region's model calls these values."""
    found = {v: n for n, v in program.value.items()}
    return [found[v] for v in values]


def call(program: Any, graph: Any, node: int, task: int) -> Call:
    """The call of a node: torch's where it has one, else ONNX Runtime's."""
    proto, made = program.calls[node]
    outputs = [program.value[name] for name in made]
    found = _translated(program, proto, made)
    if found is not None:
        target, args, kwargs = found
        return Call(task, node, target, args, kwargs, outputs if proto.op_type == "Split" else outputs[0])
    from fourfold.frontends.onnx_file import names_read

    reads = names_read(proto)
    inside = _model(program, [proto], [program.value[n] for n in reads], (), outputs)
    return Call(task, node, Foreign(inside, tuple(reads), tuple(made)), tuple(Ref(program.value[n]) for n in reads), {}, outputs)


# ---- translations: (program, node, …) → (function, arguments, keywords), or None ------------------------------------------------------------------

_Found = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _translated(program: Any, proto: Any, made: Sequence[str]) -> _Found | None:
    maker = _TABLE.get(proto.op_type) if proto.domain in _STANDARD else None
    if maker is None:
        return None
    attributes = {a.name: program.onnx.helper.get_attribute_value(a) for a in proto.attribute}
    node = _Node(program, proto, attributes, list(made))
    try:
        return maker(node)
    except _Other:
        return None


class _Other(Exception):
    """This form has no translation."""


class _Node:
    """A node with what its translation asks of it."""

    def __init__(self, program: Any, proto: Any, attributes: Mapping[str, Any], made: list[str]) -> None:
        self.program, self.proto, self.attributes, self.made = program, proto, attributes, made
        self.version = next((o.version for o in program.model.opset_import if o.domain in _STANDARD), 0)

    def __len__(self) -> int:
        return sum(1 for name in self.proto.input if name)

    def has(self, k: int) -> bool:
        return k < len(self.proto.input) and bool(self.proto.input[k])

    def ref(self, k: int) -> Ref | None:
        return Ref(self.program.value[self.proto.input[k]]) if self.has(k) else None

    def shape(self, k: int) -> tuple[int, ...]:
        return tuple(self.program.spec[self.proto.input[k]][0])

    def dtype(self, k: int) -> str:
        return self.program.spec[self.proto.input[k]][1]

    def out(self, k: int = 0) -> tuple[list[int], str]:
        shape, dtype = self.program.spec[self.made[k]]
        return list(shape), dtype

    def known(self, k: int) -> Any:
        """A constant input as an array. Raises _Other where it is computed."""
        value = self.program.value.get(self.proto.input[k])
        if value not in self.program.bound:
            raise _Other
        return np.asarray(self.program.weights()[value])

    def get(self, name: str, default: Any = None) -> Any:
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def only(self, condition: bool) -> None:
        if not condition:
            raise _Other


def _torch(name: str) -> Callable[..., Any]:
    import torch

    return getattr(torch, name)


def _plain(name: str) -> Callable[[_Node], _Found]:
    return lambda n: (_torch(name), tuple(n.ref(k) for k in range(len(n))), {})


def _many(name: str) -> Callable[[_Node], _Found]:
    return lambda n: (fold, (name, [n.ref(k) for k in range(len(n))]), {})


def fold(name: str, given: Sequence[Any]) -> Any:
    found = given[0]
    for other in given[1:]:
        found = _torch(name)(found, other)
    return found


def _reshape(n: _Node) -> _Found:
    n.only(len(n.made) == 1)
    return _torch("reshape"), (n.ref(0), n.out()[0]), {}


def _pads(n: _Node, sides: int, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Begins, then ends."""
    auto = n.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return list(n.get("pads", [0] * 2 * sides))
    if auto == "VALID":
        return [0] * 2 * sides
    begins, ends = [], []
    for size, k, s, d in zip(n.shape(0)[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less, more = total // 2, total - total // 2
        begins.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return begins + ends


def _padded(x: Any, pads: list[int], value: float) -> Any:
    import torch

    return torch.nn.functional.pad(x, pads, "constant", value)


def _flat(pads: Sequence[int]) -> list[int]:
    """ONNX's begins and ends as torch's pairs from the last side on."""
    sides = len(pads) // 2
    return [p for k in reversed(range(sides)) for p in (pads[k], pads[sides + k])]


def _conv(n: _Node) -> _Found:
    sides = len(n.shape(0)) - 2
    n.only(1 <= sides <= 3 and n.dtype(0).startswith("float"))
    kernel = n.get("kernel_shape", list(n.shape(1)[2:]))
    strides, dilations = n.get("strides", [1] * sides), n.get("dilations", [1] * sides)
    pads = _pads(n, sides, kernel, strides, dilations)
    return conv, (n.ref(0), n.ref(1), n.ref(2), list(strides), list(pads), list(dilations), int(n.get("group", 1))), {}


def conv(x: Any, w: Any, b: Any, strides: list[int], pads: list[int], dilations: list[int], groups: int) -> Any:
    import torch

    sides = len(strides)
    if pads[:sides] != pads[sides:]:
        x, pads = _padded(x, _flat(pads), 0.0), [0] * 2 * sides
    op = (torch.conv1d, torch.conv2d, torch.conv3d)[sides - 1]
    return op(x, w, b, strides, pads[:sides], dilations, groups)


def _pool(n: _Node, most: bool) -> _Found:
    n.only(len(n.made) == 1)
    kernel = list(n.get("kernel_shape"))
    sides = len(kernel)
    n.only(1 <= sides <= 3 and n.dtype(0).startswith("float") and not n.get("storage_order", 0))
    strides, dilations = list(n.get("strides", [1] * sides)), list(n.get("dilations", [1] * sides))
    ceil, counted = bool(n.get("ceil_mode", 0)), bool(n.get("count_include_pad", 0))
    n.only(most or set(dilations) == {1})
    pads = _pads(n, sides, kernel, strides, dilations)
    if ceil:                                                            # torch leaves out a window that begins in the padding; so more is padded
        n.only(most)
        for k in range(sides):
            size, reach = n.shape(0)[2 + k] + pads[k] + pads[sides + k], (kernel[k] - 1) * dilations[k] + 1
            pads[sides + k] += max(0, (n.out()[0][2 + k] - 1) * strides[k] + reach - size)
    if most:
        return max_pool, (n.ref(0), kernel, strides, pads, dilations), {}
    return average_pool, (n.ref(0), kernel, strides, pads, counted), {}


def max_pool(x: Any, kernel: list[int], strides: list[int], pads: list[int], dilations: list[int]) -> Any:
    import torch

    sides = len(kernel)
    if pads[:sides] != pads[sides:] or any(2 * p > k for p, k in zip(pads, kernel, strict=False)):
        x, pads = _padded(x, _flat(pads), float("-inf")), [0] * 2 * sides
    op = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[sides - 1]
    return op(x, kernel, strides, pads[:sides], dilations)


def average_pool(x: Any, kernel: list[int], strides: list[int], pads: list[int], counted: bool) -> Any:
    import torch
    import torch.nn.functional as F

    sides = len(kernel)
    op: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[sides - 1]
    if pads[:sides] == pads[sides:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False)):
        return op(x, kernel, strides, pads[:sides], False, counted or not any(pads))
    wide = op(_padded(x, _flat(pads), 0.0), kernel, strides)
    if counted:
        return wide
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    return wide / op(_padded(ones, _flat(pads), 0.0), kernel, strides)


def _norm(n: _Node) -> _Found:
    n.only(len(n.made) == 1 and not n.get("training_mode", 0))
    return batch_norm, (*(n.ref(k) for k in range(5)), float(n.get("epsilon", 1e-5))), {}


def batch_norm(x: Any, scale: Any, bias: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    import torch

    return torch.batch_norm(x, scale, bias, mean, variance, False, 0.0, epsilon, False)


def _gemm(n: _Node) -> _Found:
    n.only(n.dtype(0).startswith("float"))
    facts = float(n.get("alpha", 1.0)), float(n.get("beta", 1.0)), bool(n.get("transA", 0)), bool(n.get("transB", 0))
    return gemm, (n.ref(0), n.ref(1), n.ref(2), *facts), {}


def gemm(a: Any, b: Any, c: Any, alpha: float, beta: float, first: bool, second: bool) -> Any:
    import torch

    a, b = a.t() if first else a, b.t() if second else b
    if c is None:
        return alpha * (a @ b) if alpha != 1 else a @ b
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _softmax(name: str) -> Callable[[_Node], _Found]:
    def maker(n: _Node) -> _Found:
        axis = int(n.get("axis", -1 if n.version >= 13 else 1))
        shape = n.shape(0)
        if n.version >= 13 or axis in (-1, len(shape) - 1):
            return _torch(name), (n.ref(0), axis), {}
        return flat_softmax, (name, n.ref(0), axis % len(shape)), {}
    return maker


def flat_softmax(name: str, x: Any, axis: int) -> Any:
    """Before opset 13: over all sides from `axis` on."""
    return _torch(name)(x.flatten(axis), axis).reshape(x.shape)


def _lrn(n: _Node) -> _Found:
    n.only(len(n.shape(0)) == 4)
    return lrn, (n.ref(0), int(n.get("size")), float(n.get("alpha", 1e-4)), float(n.get("beta", 0.75)), float(n.get("bias", 1.0))), {}


def lrn(x: Any, size: int, alpha: float, beta: float, bias: float) -> Any:
    import torch
    import torch.nn.functional as F

    around = F.pad(x.square().unsqueeze(1), (0, 0, 0, 0, (size - 1) // 2, size // 2))
    total = F.avg_pool3d(around, (size, 1, 1), 1) * size
    return x / torch.pow(bias + alpha / size * total.reshape(x.shape), beta)


def _clip(n: _Node) -> _Found:
    low, high = n.get("min"), n.get("max")
    if n.version >= 11:
        low, high = (n.known(k).item() if n.has(k) else None for k in (1, 2))
    if low is None and high is None:
        return _torch("clone"), (n.ref(0),), {}
    return _torch("clamp"), (n.ref(0), low, high), {}


def _concat(n: _Node) -> _Found:
    return _torch("cat"), ([n.ref(k) for k in range(len(n.proto.input))], int(n.get("axis", 1))), {}


def _transpose(n: _Node) -> _Found:
    return _torch("permute"), (n.ref(0), list(n.get("perm", range(len(n.shape(0)))[::-1]))), {}


def _mean(n: _Node) -> _Found:
    return mean, ([n.ref(k) for k in range(len(n))],), {}


def mean(given: Sequence[Any]) -> Any:
    return sum(given[1:], given[0]) / len(given)


def _global(most: bool) -> Callable[[_Node], _Found]:
    def maker(n: _Node) -> _Found:
        return _torch("amax" if most else "mean"), (n.ref(0), list(range(2, len(n.shape(0)))), True), {}
    return maker


def _reduce(name: str) -> Callable[[_Node], _Found]:
    def maker(n: _Node) -> _Found:
        axes = n.known(1).tolist() if n.has(1) else n.get("axes")
        n.only(axes is not None or not n.get("noop_with_empty_axes", 0))
        axes = list(axes) if axes else list(range(len(n.shape(0))))
        return _torch(name), (n.ref(0), axes, bool(n.get("keepdims", 1))), {}
    return maker


def _pad(n: _Node) -> _Found:
    n.only(n.get("mode", "constant") == "constant" and not n.has(3))
    pads = n.known(1).tolist() if n.version >= 11 else list(n.get("pads"))
    value = float(n.known(2).item()) if n.version >= 11 and n.has(2) else float(n.get("value", 0.0))
    n.only(n.dtype(0).startswith("float"))
    return _padded, (n.ref(0), _flat(pads), value), {}


def _slice(n: _Node) -> _Found:
    rank = len(n.shape(0))
    if n.version >= 10:
        starts, ends = n.known(1).tolist(), n.known(2).tolist()
        axes = n.known(3).tolist() if n.has(3) else list(range(len(starts)))
        steps = n.known(4).tolist() if n.has(4) else [1] * len(starts)
    else:
        starts, ends = list(n.get("starts")), list(n.get("ends"))
        axes, steps = list(n.get("axes", range(len(starts)))), [1] * len(starts)
    n.only(all(step > 0 for step in steps))
    cuts = [(axis % rank, *slice(a, b, s).indices(n.shape(0)[axis])) for axis, a, b, s in zip(axes, starts, ends, steps, strict=True)]
    return sliced, (n.ref(0), cuts), {}


def sliced(x: Any, cuts: Sequence[tuple[int, int, int, int]]) -> Any:
    import torch

    for axis, start, end, step in cuts:
        x = torch.ops.aten.slice(x, axis, start, max(start, end), step)
    return x


def _split(n: _Node) -> _Found:
    n.only(len(n.made) == len(n.proto.output))
    axis = int(n.get("axis", 0))
    return _torch("split"), (n.ref(0), [n.out(k)[0][axis] for k in range(len(n.made))], axis), {}


def _gather(n: _Node) -> _Found:
    axis = int(n.get("axis", 0)) % len(n.shape(0))
    return gather, (n.ref(0), n.ref(1), axis), {}


def gather(x: Any, index: Any, axis: int) -> Any:
    import torch

    index = torch.where(index < 0, index + x.shape[axis], index)
    found = torch.index_select(x, axis, index.reshape(-1))
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1:]))


def _cast(n: _Node) -> _Found:
    import torch

    dtype = getattr(torch, n.out()[1], None)
    n.only(isinstance(dtype, torch.dtype) and not (n.dtype(0).startswith("float") and not dtype.is_floating_point))
    return cast, (n.ref(0), dtype), {}


def cast(x: Any, dtype: Any) -> Any:
    return x.to(dtype)


def _layer_norm(n: _Node) -> _Found:
    n.only(len(n.made) == 1 and n.has(1))
    axis = int(n.get("axis", -1)) % len(n.shape(0))
    return _torch("layer_norm"), (n.ref(0), list(n.shape(0)[axis:]), n.ref(1), n.ref(2), float(n.get("epsilon", 1e-5))), {}


def _leaky(n: _Node) -> _Found:
    import torch

    return torch.nn.functional.leaky_relu, (n.ref(0), float(n.get("alpha", 0.01))), {}


def _gelu(n: _Node) -> _Found:
    import torch

    return torch.nn.functional.gelu, (n.ref(0),), {"approximate": n.get("approximate", "none")}


def _arithmetic(name: str) -> Callable[[_Node], _Found]:
    def maker(n: _Node) -> _Found:
        n.only(n.dtype(0).startswith("float"))                          # of integers torch divides otherwise
        return _torch(name), (n.ref(0), n.ref(1)), {}
    return maker


def _identity(n: _Node) -> _Found:
    n.only(len(n.made) == 1 and not (len(n.proto.input) > 2 and n.proto.input[2]))
    return _torch("reshape"), (n.ref(0), n.out()[0]), {}


_TABLE: dict[str, Callable[[_Node], _Found]] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _plain("matmul"), "BatchNormalization": _norm, "LayerNormalization": _layer_norm, "LRN": _lrn,
    "MaxPool": lambda n: _pool(n, True), "AveragePool": lambda n: _pool(n, False), "GlobalAveragePool": _global(False),
    "GlobalMaxPool": _global(True), "Relu": _plain("relu"), "LeakyRelu": _leaky, "Sigmoid": _plain("sigmoid"), "Tanh": _plain("tanh"),
    "Clip": _clip, "Softmax": _softmax("softmax"), "LogSoftmax": _softmax("log_softmax"), "Gelu": _gelu, "Erf": _plain("erf"), "Exp": _plain("exp"),
    "Log": _plain("log"), "Sqrt": _plain("sqrt"), "Neg": _plain("neg"), "Abs": _plain("abs"), "Reciprocal": _plain("reciprocal"),
    "Floor": _plain("floor"), "Ceil": _plain("ceil"), "Sin": _plain("sin"), "Cos": _plain("cos"), "Not": _plain("logical_not"),
    "Add": _plain("add"), "Sub": _plain("sub"), "Mul": _plain("mul"), "Div": _arithmetic("div"), "Pow": _arithmetic("pow"),
    "And": _plain("logical_and"), "Or": _plain("logical_or"), "Equal": _plain("eq"), "Less": _plain("lt"), "Greater": _plain("gt"),
    "Where": _plain("where"), "Sum": _many("add"), "Max": _many("maximum"), "Min": _many("minimum"), "Mean": _mean,
    "ReduceMean": _reduce("mean"), "ReduceSum": _reduce("sum"), "ReduceMax": _reduce("amax"), "ReduceMin": _reduce("amin"),
    "Concat": _concat, "Transpose": _transpose, "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape,
    "Identity": _identity, "Dropout": _identity, "Pad": _pad, "Slice": _slice, "Split": _split, "Gather": _gather, "Cast": _cast,
}  # fmt: skip


__all__ = ["Foreign", "call", "model", "names", "session"]
