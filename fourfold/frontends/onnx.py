"""An .onnx file → Graph: weights folded, dynamic dimensions given values, shapes inferred; executed node by node by ONNX Runtime or onnx's reference.

A node whose inputs are all known before the run (initialisers, Constant, ConstantOfShape) is no operation of the program but a weight of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fourfold.errors import InputError, MissingExtra
from fourfold.frontends import flops as ops
from fourfold.frontends.capture import Captured, Program
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, OPAQUE, REDUCTION, VIEW, Builder, topological

OLDEST = 7  # before it, broadcasting and batch normalisation mean something else
_STANDARD = ("", "ai.onnx")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout")

CLASSES: dict[Any, int] = (
    dict.fromkeys(
        """Conv ConvTranspose ConvInteger QLinearConv DeformConv Gemm MatMul MatMulInteger QLinearMatMul Einsum LSTM GRU RNN Attention FusedMatMul
        FusedGemm FusedConv MatMulNBits MultiHeadAttention""".split(), CONTRACTION)
    | dict.fromkeys(
        """ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare ArgMax ArgMin Softmax
        LogSoftmax Hardmax LayerNormalization GroupNormalization InstanceNormalization RMSNormalization MeanVarianceNormalization
        LpNormalization MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool LRN CumSum SimplifiedLayerNormalization
        SkipLayerNormalization SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss""".split(), REDUCTION)
    | dict.fromkeys(
        """Abs Acos Acosh Add And Asin Asinh Atan Atanh BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
        Celu Clip Concat ConstantOfShape Cos Cosh DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Floor
        Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu
        Pad Pow QuantizeLinear Range Reciprocal Relu Resize ReverseSequence Round Selu Shrink Sigmoid Sign Sin Sinh Slice Softplus Softsign
        SpaceToDepth Split Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Tile Transpose Trilu Upsample Where Xor BiasGelu FastGelu QuickGelu
        CenterCropPad RotaryEmbedding""".split(),
        ELEMENTWISE)
    | dict.fromkeys("Reshape Flatten Squeeze Unsqueeze Identity Dropout Optional OptionalGetElement".split(), VIEW)
    | dict.fromkeys("Gather GatherElements GatherND Compress".split(), GATHER)
    | dict.fromkeys("Shape Size NonZero TopK Unique OneHot Scatter ScatterElements ScatterND RoiAlign MaxRoiPool NonMaxSuppression Det DFT STFT "
                    "MelWeightMatrix HannWindow HammingWindow BlackmanWindow GridSample AffineGrid Col2Im MaxUnpool RandomNormal RandomNormalLike "
                    "RandomUniform RandomUniformLike Multinomial Bernoulli ImageDecoder StringNormalizer TfIdfVectorizer".split(), OPAQUE)
)  # fmt: skip
_STEPS = {
    "Softmax": 5, "LogSoftmax": 5, "LayerNormalization": 8, "GroupNormalization": 8, "InstanceNormalization": 8, "RMSNormalization": 5,
    "MeanVarianceNormalization": 6, "BatchNormalization": 2, "Gelu": 5, "Sigmoid": 4, "Swish": 5, "HardSwish": 5, "HardSigmoid": 4, "Softplus": 4,
    "Mish": 6,
    "Elu": 4, "Selu": 5, "ReduceL2": 2, "ReduceSumSquare": 2, "ReduceLogSumExp": 4,
}  # fmt: skip
_MOVES = frozenset(
    "Cast CastLike Concat ConstantOfShape DepthToSpace Expand EyeLike Pad Slice SpaceToDepth Split Tile Transpose Trilu Shape Size Scatter "
    "ScatterElements ScatterND OneHot ReverseSequence CenterCropPad NonZero Unique".split()
)


def capture(
    path: str | Path, inputs: Any = None, *, dims: Mapping[str, int] | None = None, train: bool = False, name: str = "", check: bool = True
) -> Captured:
    """Capture an ONNX file. `dims` gives dynamic dimensions values, by their name ("batch") or as "input.axis"; shapes of `inputs` (a mapping by
    name, or a sequence) do so too.

    Raises InputError where the file is missing, malformed, cyclic, of an opset that the installed onnx does not know, lacks its external weights, or
    has a dimension without a value; MissingExtra without onnx.
    """
    onnx = _import()
    if train:
        raise InputError("An ONNX file holds no backward pass.", "Give the torch module to capture training.")
    file = Path(path)
    model = _read(onnx, file)
    _opsets(onnx, file, model)
    _external(onnx, file, model)
    _inside(onnx, file, model)
    if len(model.functions):
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    _order(file, model)
    if check:
        _check(onnx, file, model)
    _dimensions(file, model, _named(model, inputs), dict(dims or {}))
    return _Build(onnx, file, model, name or file.stem, _named(model, inputs)).captured()


def _import() -> Any:
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.numpy_helper
        import onnx.shape_inference

        return onnx
    except ImportError as error:
        raise MissingExtra("Reading .onnx files needs the package onnx.", "Install it: pip install 'fourfold[onnx]'.") from error


# --- reading ---------------------------------------------------------------------------------------------------------------------------------------


def _read(onnx: Any, file: Path) -> Any:
    from google.protobuf.message import DecodeError

    if not file.is_file():
        raise InputError(f"There is no file {file}.", "Give the path of an .onnx file.")
    again = "Export or copy it again."
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{file} is damaged or no ONNX file: {_line(error)}.", again) from error
    if not model.HasField("graph") or not (len(model.graph.node) or len(model.graph.output)) or not len(model.opset_import):
        raise InputError(f"{file} is no ONNX model: it has no graph or no opset.", again)
    return model


def _opsets(onnx: Any, file: Path, model: Any) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = next((o.version for o in model.opset_import if o.domain in _STANDARD), None)
    if version is None and any(n.domain in _STANDARD for n in model.graph.node):
        raise InputError(f"{file} names no version of the standard opset.", "Export it again.")
    if version is not None and not OLDEST <= version <= newest:
        raise InputError(
            f"{file} uses opset {version}; this fourfold with onnx {onnx.__version__} reads {OLDEST} to {newest}.",
            "Export it with an opset in that range" + (", or install a newer onnx." if version > newest else "."),
        )


def _external(onnx: Any, file: Path, model: Any) -> None:
    """External weights must be there, inside the model's folder, and long enough."""
    for tensor in _all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        told = {e.key: e.value for e in tensor.external_data}
        place = file.parent / told.get("location", "")
        if not told.get("location") or not place.resolve().is_relative_to(file.parent.resolve()):
            raise InputError(f"{file}: weight {tensor.name!r} lies outside the model's folder.", "Keep the weights file beside the model.")
        if not place.is_file():
            raise InputError(f"{file}: the weights file {place.name} is missing (weight {tensor.name!r} is in it).", f"Put it into {file.parent}.")
        try:
            offset = int(told.get("offset", 0) or 0)
            needed = offset + int(told.get("length", 0) or _nbytes(onnx, tensor))
        except ValueError as error:
            raise InputError(f"{file}: weight {tensor.name!r} has no readable offset or length.", "Export it again.") from error
        if place.stat().st_size < needed:
            raise InputError(
                f"{file}: the weights file {place.name} has {place.stat().st_size} bytes; weight {tensor.name!r} ends at {needed}.", "Copy it again."
            )


def _inside(onnx: Any, file: Path, model: Any) -> None:
    """External data of all but the main graph's own weights (those of If, Loop and Scan, of constants, of functions) is read now: onnx's checker and
    ONNX Runtime look for it in the working folder."""
    for tensor in _all_tensors(model)[len(model.graph.initializer):]:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(file.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _all_tensors(model: Any) -> list[Any]:
    """The main graph's initialisers first."""
    return _tensors(model.graph) + [t for function in model.functions for t in _held(function.node)]


def _tensors(graph: Any) -> list[Any]:
    sparse = [t for s in graph.sparse_initializer for t in (s.values, s.indices)]
    return [*graph.initializer, *sparse, *_held(graph.node)]


def _held(nodes: Any) -> list[Any]:
    """Tensors in attributes of nodes, those of their sub-graphs included."""
    found: list[Any] = []
    for node in nodes:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.tensors
            found += [t for s in (attribute.sparse_tensor, *attribute.sparse_tensors) for t in (s.values, s.indices)]
            found += [t for sub in _subgraphs(attribute) for t in _tensors(sub)]
    return found


def _subgraphs(attribute: Any) -> list[Any]:
    return ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)


def _nbytes(onnx: Any, tensor: Any) -> int:
    kind = _dtype(onnx, tensor.data_type)
    from fourfold.graph import bytes_of

    return bytes_of(tensor.dims, kind)


def _order(file: Path, model: Any) -> None:
    """Sort the nodes topologically in place; ONNX asks for it, some writers forget. Raises InputError where a value is made twice, by nobody or by
    itself.
    """
    graph = model.graph
    given = {i.name for i in graph.input} | {i.name for i in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    maker: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for out in node.output:
            if out and (out in maker or out in given):
                raise InputError(
                    f"{file}: the value {out!r} is made twice (by node {_title(node, index)}).", "Every value has one producer; export it again."
                )
            if out:
                maker[out] = index
    src, dst = [], []
    for index, node in enumerate(graph.node):
        for read in _reads(node):
            if read in maker:
                src.append(maker[read])
                dst.append(index)
            elif read not in given:
                raise InputError(f"{file}: node {_title(node, index)} reads {read!r}, which nothing makes.", "Export it again.")
    for out in graph.output:
        if out.name not in maker and out.name not in given:
            raise InputError(f"{file}: the output {out.name!r} is made by nothing.", "Export it again.")
    titles = [_title(node, index) for index, node in enumerate(graph.node)]
    try:
        order = topological(len(graph.node), src, dst, titles)
    except InputError as error:
        raise InputError(f"{file}: {error.message}", error.mend) from error
    if (order != range(len(graph.node))).any():
        nodes = [graph.node[i] for i in order.tolist()]
        copies = [type(n).FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _title(node: Any, index: int) -> str:
    return node.name or f"{node.op_type} number {index}"


def _reads(node: Any) -> list[str]:
    """Names that a node reads, those that its subgraphs take from outside included."""
    reads = [name for name in node.input if name]
    for attribute in node.attribute:
        for sub in _subgraphs(attribute):
            own = {i.name for i in sub.input} | {i.name for i in sub.initializer} | {o for n in sub.node for o in n.output}
            reads += [name for n in sub.node for name in _reads(n) if name not in own]
            reads += [o.name for o in sub.output if o.name not in own]
    return list(dict.fromkeys(reads))


def _check(onnx: Any, file: Path, model: Any) -> None:
    """onnx's own checker; it also asks for the shapes of outputs and for external data, which are not its business here."""
    bare = type(model).FromString(model.SerializeToString())
    given = {entry.name for entry in bare.graph.input}
    for tensor in [t for t in bare.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]:
        if tensor.name not in given:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        bare.graph.initializer.remove(tensor)
    for entry in (*bare.graph.input, *bare.graph.output, *bare.graph.value_info):
        if entry.type.HasField("tensor_type") and not entry.type.tensor_type.HasField("shape"):
            entry.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(bare)
    except Exception as error:
        raise InputError(f"{file} is malformed: {_line(error)}.", "Export it again.") from error


def _named(model: Any, inputs: Any) -> dict[str, Any]:
    if inputs is None:
        return {}
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return dict(zip(_fed(model), inputs if isinstance(inputs, list | tuple) else (inputs,), strict=False))


def _fed(model: Any) -> list[str]:
    weights = {i.name for i in model.graph.initializer}
    return [i.name for i in model.graph.input if i.name not in weights]


def _dimensions(file: Path, model: Any, inputs: Mapping[str, Any], dims: dict[str, int]) -> None:
    """Give every dynamic dimension of the inputs its value, in place."""
    unknown = {name for name in inputs if name not in _fed(model)}
    if unknown:
        raise InputError(f"{file} has no input {min(unknown)!r}.", f"Its inputs: {', '.join(_fed(model))}.")
    if bad := [f"{name}={size}" for name, size in dims.items() if size < 1]:
        raise InputError(f"A dimension cannot be {bad[0]}.", "Give a positive whole number.")
    used, lacking, names = set(), [], []
    for entry in model.graph.input:
        if entry.name not in _fed(model) or not entry.type.HasField("tensor_type"):
            continue
        kind = entry.type.tensor_type
        if not kind.HasField("shape"):
            if entry.name not in inputs:
                raise InputError(f"{file}: input {entry.name!r} has no shape.", "Give example inputs, or export it with shapes.")
            for size in inputs[entry.name].shape:
                kind.shape.dim.add().dim_value = size
            continue
        shape = getattr(inputs.get(entry.name), "shape", None)
        if shape is not None and len(shape) != len(kind.shape.dim):
            raise InputError(f"{file}: input {entry.name!r} was given with {len(shape)} dimensions.", f"It has {len(kind.shape.dim)}.")
        for axis, dim in enumerate(kind.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            label = dim.dim_param or f"{entry.name}.{axis}"
            names.append(label)
            keys = [key for key in (f"{entry.name}.{axis}", label) if key in dims]
            used |= set(keys)
            if keys:
                size = dims[keys[0]]
            elif entry.name in inputs:
                size = inputs[entry.name].shape[axis]
            else:
                lacking.append(label)
                continue
            dim.Clear()
            dim.dim_value = int(size)
    if lacking:
        wanted = "--dims " + ",".join(f"{label}=…" for label in dict.fromkeys(lacking))
        raise InputError(f"{file} has dimensions without a value: {', '.join(dict.fromkeys(lacking))}.", f"Give them: {wanted}")
    if stray := sorted(set(dims) - used):
        raise InputError(
            f"{file} has no dynamic dimension {stray[0]!r}.", f"It has: {', '.join(dict.fromkeys(names))}." if names else "All its shapes are fixed."
        )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:200].rstrip(".")


# --- shapes ----------------------------------------------------------------------------------------------------------------------------------------


def _dtype(onnx: Any, code: int) -> str:
    """torch's name of an ONNX element type."""
    name = onnx.TensorProto.DataType.Name(code).lower()
    names = {"float": "float32", "double": "float64", "float8e4m3fn": "float8_e4m3fn", "float8e5m2": "float8_e5m2", "float4e2m1": "float4_e2m1fn",
             "float8e4m3fnuz": "float8_e4m3fnuz", "float8e5m2fnuz": "float8_e5m2fnuz"}  # fmt: skip
    return str(names.get(name, name))


_Spec = tuple[tuple[int, ...], str]


def _spec(onnx: Any, info: Any) -> _Spec | None:
    """Shape and dtype of a ValueInfoProto; None where a dimension is not known. A sequence or map is a value without a size."""
    if not info.type.HasField("tensor_type"):
        return ((), info.type.WhichOneof("value") or "unknown") if info.type.WhichOneof("value") else None
    kind = info.type.tensor_type
    if not kind.elem_type or not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
        return None
    return tuple(d.dim_value for d in kind.shape.dim), _dtype(onnx, kind.elem_type)


def _inferred(onnx: Any, file: Path, model: Any) -> dict[str, _Spec]:
    bare = type(model).FromString(model.SerializeToString())
    foreign = {name for node in bare.graph.node if node.domain not in _STANDARD for name in node.output}
    told = [info for info in (*bare.graph.value_info, *bare.graph.output) if info.name in foreign and _spec(onnx, info)]
    del bare.graph.value_info[:]
    for out in bare.graph.output:                                      # what a file claims of its outputs may hold names of dimensions
        if out.type.HasField("tensor_type") and out.name not in foreign:
            out.type.tensor_type.ClearField("shape")
    returned = {out.name for out in bare.graph.output}
    bare.graph.value_info.extend(info for info in told if info.name not in returned)      # of foreign ops there is nothing else to go by
    try:
        whole = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise InputError(f"{file}: shapes do not fit: {_line(error)}.", "Check the dimensions that were given, or export it again.") from error
    graph = whole.graph
    return {info.name: spec for info in (*graph.input, *graph.value_info, *graph.output) if (spec := _spec(onnx, info))}


# --- building --------------------------------------------------------------------------------------------------------------------------------------


class _Build:
    def __init__(self, onnx: Any, file: Path, model: Any, title: str, given: Mapping[str, Any] | None = None) -> None:
        self.onnx, self.file, self.model, self.given = onnx, file, model, dict(given or {})
        self.builder, self.layers = Builder(title), ops.Layers()
        self.version = next((o.version for o in model.opset_import if o.domain in _STANDARD), onnx.defs.onnx_opset_version())
        self.spec = _inferred(onnx, file, model)
        self.initial = {t.name: t for t in model.graph.initializer}
        self.folded: dict[str, Any] = {}  # value name → node that makes it before the run
        self.value: dict[str, int] = {}
        self.bound: dict[int, str] = {}
        self.steps: list[tuple[Any, list[str]]] = []
        self.note: list[str] = []
        self.wanted = {name for node in model.graph.node for name in _reads(node)} | {out.name for out in model.graph.output}

    def made(self, node: Any) -> list[str]:
        """Names of the outputs that somebody reads; the first in any case (a dropout's mask is mostly left lying)."""
        return [name for i, name in enumerate(node.output) if name and (i == 0 or name in self.wanted)]

    def captured(self) -> Captured:
        graph = self.model.graph
        for tensor in graph.initializer:
            self.spec[tensor.name] = tuple(tensor.dims), _dtype(self.onnx, tensor.data_type)
        running = [node for node in graph.node if not self.fold(node)]
        self.complete(running)
        fed = {name: self.builder.input(*self.spec[name], name) for name in _fed(self.model)}
        self.value |= fed
        for index, node in enumerate(running):
            self.call(node, index)
        for out in graph.output:
            self.builder.output(self.read(out.name))
        program = OnnxProgram(self.onnx, self.file, self.model, self.steps, self.value, self.bound, self.folded, list(fed), self.spec)
        return Captured(self.builder.build(), program, tuple(self.note))

    def fold(self, node: Any) -> bool:
        """Whether the node's result is known before the run."""
        known = all(name in self.initial or name in self.folded for name in _reads(node))
        if not known or node.op_type in _RANDOM or node.domain not in _STANDARD or any(_subgraphs(a) for a in node.attribute):
            return False
        self.folded |= dict.fromkeys((name for name in node.output if name), node)
        return True

    def complete(self, running: Sequence[Any]) -> None:
        """Shapes that inference left open are read off one run of the model on zeros; what depends on data even then is refused by name."""
        missing = [name for node in running for name in self.made(node) if name not in self.spec]
        missing += [name for name in self.folded if name not in self.spec]
        if not missing:
            return
        real = bool(self.given) and set(self.given) >= set(_fed(self.model))
        told = _told_by_data(self.model, set(missing) - set(self.folded))
        if told and not real:
            name, op = next(iter(told.items()))
            raise InputError(f"{self.file}: the size of {name!r} depends on the data ({op}).", "Plan from a real example: --inputs FILE.npz")
        try:
            found = _probe(self.onnx, self.file, self.model, self.spec, missing, self.given if real else None)
        except Exception as error:
            raise InputError(
                f"{self.file}: the shape of {missing[0]!r} cannot be inferred, and running the model to see it failed: {_line(error)}.",
                "Export it with static shapes.",
            ) from error
        self.spec |= found
        run = "the inputs that were given" if real else "zeros"
        self.note.append(f"{len(missing)} shapes could not be inferred and were read off a run on {run}, {missing[0]!r} among them.")
        if told:
            self.note.append(f"{len(told)} sizes depend on the data, {next(iter(told))!r} among them: the plan holds for the inputs that were given, "
                             "and for others that make the same sizes.")

    def read(self, name: str) -> int:
        """The value of a name, made a parameter or constant on first reading."""
        if name not in self.value:
            shape, dtype = self.spec[name]
            weight = dtype.startswith(("float", "bfloat", "uint8", "int8", "uint4", "int4")) and prod(shape) > 1
            self.value[name] = (self.builder.parameter if weight else self.builder.constant)(shape, dtype, name)
            self.bound[self.value[name]] = name
        return self.value[name]

    def call(self, node: Any, index: int) -> None:
        attributes = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        shapes = [self.spec[name][0] if name else () for name in node.input]
        made = self.made(node)
        outputs = [self.spec[name] for name in made]
        standard = node.domain in _STANDARD
        fusion, known = CLASSES.get(node.op_type, OPAQUE), node.op_type in CLASSES and (standard or node.domain == "com.microsoft")
        if node.op_type == "Dropout" and self.training(node, attributes):
            fusion = ELEMENTWISE
        if any(_subgraphs(a) for a in node.attribute):
            known = False
        reads = [self.read(name) for name in _reads(node)]
        flops = _flops(node.op_type, attributes, shapes, [s for s, _ in outputs]) if fusion == CONTRACTION else 0.0
        known = known and flops is not None
        largest = max((prod(s) for s in (*shapes, *(s for s, _ in outputs))), default=0)
        path = _module(node.name)
        traffic: dict[str, Any] = {}
        if fusion == GATHER and shapes:
            rows = min(prod(outputs[0][0]), prod(shapes[0])) * _width(outputs[0][1])
            rest = sum(self.builder.size_of(v) for v in dict.fromkeys(reads[1:]))
            traffic = {"reads": int(rows + rest), "params": int(rows) if reads[0] in self.bound else 0}
        values = self.builder.node(
            node.op_type if standard else f"{node.domain}.{node.op_type}", reads, outputs, name=node.name or f"{node.op_type}_{index}", module=path,
            flops=float(flops or 0.0), steps=self.steps_of(node, attributes, shapes, outputs, fusion, known, largest), fusion=fusion, known=known,
            alias=[reads[0]] if fusion == VIEW and reads else [], labels=made, layer=self.layers.of(path), **traffic,
        )  # fmt: skip
        self.value |= dict(zip(made, values, strict=True))
        self.steps.append((node, made))

    def steps_of(
        self, node: Any, attributes: Mapping[str, Any], shapes: Sequence[ops.Shape], outputs: Sequence[_Spec], fusion: int, known: bool, largest: int
    ) -> float:
        if not known:
            return largest * ops.ASSUMED_STEPS if fusion != VIEW else 0.0
        if fusion not in (ELEMENTWISE, REDUCTION, OPAQUE) or node.op_type in _MOVES:
            return 0.0
        if node.op_type in ("MaxPool", "AveragePool", "LpPool"):
            return float(prod(outputs[0][0]) * prod(attributes.get("kernel_shape", (1,))))
        if node.op_type == "LRN":
            return float(largest * (2 * attributes.get("size", 1) + 3))
        return float(largest * _STEPS.get(node.op_type, 1))

    def training(self, node: Any, attributes: Mapping[str, Any]) -> bool:
        """Whether a Dropout draws: it does where its third input says so."""
        return len(node.input) > 2 and bool(node.input[2])


def _width(dtype: str) -> float:
    from fourfold.graph import BITS

    return BITS.get(dtype, 0) / 8


def _module(name: str) -> str:
    """torch's exporters name a node "/encoder/layer.0/MatMul" by the module path; the last part is the op."""
    parts = [part for part in name.split("/") if part]
    return ".".join(parts[:-1]) if name.startswith("/") else ""


def _flops(op: str, attributes: Mapping[str, Any], shapes: Sequence[ops.Shape], outs: Sequence[ops.Shape]) -> float | None:
    """Of a contraction; None where the table has no formula for this form."""
    match op:
        case "Conv" | "ConvInteger" | "FusedConv" | "DeformConv":
            return ops.convolution(shapes[0], shapes[1], outs[0])
        case "QLinearConv":
            return ops.convolution(shapes[0], shapes[3], outs[0])
        case "ConvTranspose":
            return ops.convolution(shapes[0], shapes[1], outs[0], True)
        case "Gemm" | "FusedGemm":
            a, b = (s[::-1] if attributes.get(t) else s for s, t in zip(shapes, ("transA", "transB"), strict=False))
            return ops.matmul(a, b)
        case "MatMul" | "MatMulInteger":
            return ops.matmul(shapes[0], shapes[1])
        case "FusedMatMul":
            a, b = ((*s[:-2], s[-1], s[-2]) if attributes.get(t) else s for s, t in zip(shapes, ("transA", "transB"), strict=False))
            return ops.matmul(a, b)
        case "QLinearMatMul":
            return ops.matmul(shapes[0], shapes[3])
        case "MatMulNBits":
            return 2 * prod(shapes[0]) * int(attributes["N"])
        case "Einsum":
            return ops.einsum(attributes["equation"].decode(), *shapes)
        case "LSTM" | "GRU" | "RNN":
            gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
            return ops.recurrent(shapes[0], shapes[0][-1], int(attributes.get("hidden_size", shapes[2][-1])), gates, shapes[1][0])
        case "Attention" if len(shapes[0]) == 4:
            return ops.attention(shapes[0], shapes[1], shapes[2])
        case "Attention":  # [batch, length, heads × width]
            heads, own = int(attributes["q_num_heads"]), int(attributes["kv_num_heads"])
            (b, length, width), (_, span, _), (_, _, deep) = shapes[:3]
            return ops.attention((b, heads, length, width // heads), (b, own, span, width // heads), (b, own, span, deep // own))
    return None


# --- running ---------------------------------------------------------------------------------------------------------------------------------------


_MAKES_SIZES = frozenset("NonZero Unique Compress NonMaxSuppression Loop If Scan StringSplit ImageDecoder SequenceAt SplitToSequence".split())
_TAKES_SIZES = {"Reshape": (1,), "Expand": (1,), "Tile": (1,), "Range": (0, 1, 2), "ConstantOfShape": (0,), "Slice": (1, 2, 3, 4), "Pad": (1, 3),
                "Resize": (2, 3), "Upsample": (1,), "TopK": (1,), "OneHot": (1,), "Split": (1,), "CenterCropPad": (1,), "Unsqueeze": (1,),
                "Squeeze": (1,), "Col2Im": (1, 2), "AffineGrid": (1,), "MaxUnpool": (2,), "DFT": (1,), "STFT": (1,)}   # op → inputs that say sizes


def _told_by_data(model: Any, open_: set[str]) -> dict[str, str]:
    """Of the values `open_`, whose shapes inference left open, those whose size follows from the values of the inputs: name → kind of op."""
    moved = set(_fed(model))                                            # values that follow from the inputs' values; a shape alone does not
    sized: dict[str, str] = {}
    for node in model.graph.node:
        reads = _reads(node)
        makes = next((sized[name] for name in reads if name in sized), "")
        shaping = [node.input[i] for i in _TAKES_SIZES.get(node.op_type, ()) if i < len(node.input)]
        if node.op_type in _MAKES_SIZES and moved.intersection(reads) or moved.intersection(shaping):
            makes = makes or node.op_type
        asks = node.op_type in ("Shape", "Size")
        for name in node.output:
            if name and makes and name in open_:
                sized[name] = makes
            if name and (makes and asks or not asks and moved.intersection(reads)):
                moved.add(name)
    return sized


def _probe(
    onnx: Any, file: Path, model: Any, spec: Mapping[str, _Spec], names: Sequence[str], given: Mapping[str, Any] | None = None
) -> dict[str, _Spec]:
    """Shapes and types of values in one run on `given`, or zeros."""
    import numpy as np

    shown = type(model).FromString(model.SerializeToString())
    have = {o.name for o in shown.graph.output}
    names = list(dict.fromkeys(names))
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    fed = {name: np.asarray(given[name]) if given else np.zeros(spec[name][0], dtype=spec[name][1]) for name in _fed(model)}
    found = dict(zip(names, _runner(onnx, file, shown, names)(fed), strict=True))
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in found.items()}


def _runner(onnx: Any, file: Path, model: Any, wanted: Sequence[str]) -> Callable[[Mapping[str, Any]], list[Any]]:
    """ONNX Runtime where it is installed (without its graph optimisations), else onnx's reference in numpy."""
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(model.graph)):
        onnx.external_data_helper.load_external_data_for_model(model, str(file.parent))
    try:
        import onnxruntime as runtime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda given: list(evaluator.run(list(wanted), dict(given)))  # type: ignore[arg-type]
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda given: list(session.run(list(wanted), dict(given)))


@dataclass
class OnnxProgram(Program):
    """Executes one ONNX node at a time. `calls[i]` is the NodeProto behind graph node i and the outputs it is asked for; values are numpy arrays."""

    onnx: Any
    file: Path
    model: Any
    calls: list[tuple[Any, list[str]]]
    value: dict[str, int]
    bound: dict[int, str]
    folded: dict[str, Any]
    inputs: list[str]
    spec: dict[str, _Spec]

    dialect = "onnx"

    def __post_init__(self) -> None:
        self._sessions: dict[int, Callable[[Mapping[str, Any]], list[Any]]] = {}
        self._weights: dict[int, Any] | None = None

    def weights(self) -> dict[int, Any]:
        """Initialisers, and what folds before the run."""
        if self._weights is None:
            helper, base = self.onnx.numpy_helper, str(self.file.parent)
            wanted = set(self.bound.values())
            arrays = {t.name: helper.to_array(t, base_dir=base) for t in self.model.graph.initializer if t.name in wanted}
            made = [name for name in self.bound.values() if name in self.folded]
            if made:
                arrays |= dict(zip(made, self._fold(made), strict=True))
            self._weights = {value: arrays[name] for value, name in self.bound.items()}
        return dict(self._weights)

    def _fold(self, made: Sequence[str]) -> list[Any]:
        from onnx.reference import ReferenceEvaluator

        nodes = list({id(n): n for n in self.folded.values()}.values())
        helper = self.onnx.helper
        used = {name for n in nodes for name in n.input}
        graph = helper.make_graph(
            nodes,
            "folded",
            [],
            [helper.make_empty_tensor_value_info(name) for name in made],
            [t for t in self.model.graph.initializer if t.name in used],
        )
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        self.onnx.external_data_helper.load_external_data_for_model(model, str(self.file.parent))
        return list(ReferenceEvaluator(model).run(list(made), {}))

    def feed(self, *inputs: Any, **named: Any) -> dict[int, Any]:
        import numpy as np

        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            inputs, named = (), {**inputs[0], **named}
        given = dict(zip(self.inputs, inputs, strict=False)) | named
        if set(given) != set(self.inputs):
            raise InputError(f"Inputs {', '.join(sorted(given)) or 'none'} were given.", f"The model takes {', '.join(self.inputs)}.")
        fed = {}
        for name, array in given.items():
            array, (shape, dtype) = np.asarray(array), self.spec[name]
            if array.shape != shape or str(array.dtype) != dtype:
                raise InputError(
                    f"input {name} is {array.dtype}{list(array.shape)}; the program was captured for {dtype}{list(shape)}.",
                    "Capture it again for these shapes.",
                )
            fed[self.value[name]] = array
        return fed

    def step(self, node: int, values: Mapping[int, Any]) -> tuple[Any, ...]:
        call, made = self.calls[node]
        reads = _reads(call)
        if node not in self._sessions:
            self._sessions[node] = self._session(call, reads, made)
        return tuple(self._sessions[node]({name: values[self.value[name]] for name in reads}))

    def _session(self, call: Any, reads: Sequence[str], made: Sequence[str]) -> Callable[[Mapping[str, Any]], list[Any]]:
        helper = self.onnx.helper
        code = {_dtype(self.onnx, c): c for c in self.onnx.TensorProto.DataType.values() if c}
        entries = [helper.make_tensor_value_info(name, code[self.spec[name][1]], self.spec[name][0]) for name in reads]
        graph = helper.make_graph([call], call.name or call.op_type, entries, [helper.make_empty_tensor_value_info(name) for name in made])
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return _runner(self.onnx, self.file, model, made)

    def collect(self, values: Mapping[int, Any]) -> dict[str, Any]:
        """The outputs by name."""
        return {out.name: values[self.value[out.name]] for out in self.model.graph.output}
