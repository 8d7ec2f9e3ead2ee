"""An .onnx file read and checked: opset, external weights, order of the nodes, values of dynamic dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fourfold.errors import InputError, MissingExtra
from fourfold.graph import topological

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

OLDEST = 7  # before it, broadcasting and batch normalisation mean something else
STANDARD = ("", "ai.onnx")


def import_onnx() -> Any:
    """The package onnx. Raises MissingExtra without it."""
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.numpy_helper
        import onnx.shape_inference

        return onnx
    except ImportError as error:
        raise MissingExtra("Reading .onnx files needs the package onnx.", "Install it: pip install 'fourfold[onnx]'.") from error


def load(onnx: ModuleType, file: Path) -> ModelProto:
    """The ModelProto of a file, its own functions inlined, the weights of the main graph left where they lie.

    Raises InputError where the file is missing or damaged, of an opset that the installed onnx does not know, or lacks its external weights.
    """
    model = _read(onnx, file)
    _opsets(onnx, file, model)
    _external(onnx, file, model)
    _inside(onnx, file, model)
    if len(model.functions):
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    return model


def _read(onnx: ModuleType, file: Path) -> ModelProto:
    from google.protobuf.message import DecodeError

    if not file.is_file():
        raise InputError(f"There is no file {file}.", "Give the path of an .onnx file.")
    again = "Export or copy it again."
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{file} is damaged or no ONNX file: {one_line(error)}.", again) from error
    if not model.HasField("graph") or not (len(model.graph.node) or len(model.graph.output)) or not len(model.opset_import):
        raise InputError(f"{file} is no ONNX model: it has no graph or no opset.", again)
    return model


def _opsets(onnx: ModuleType, file: Path, model: ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = next((o.version for o in model.opset_import if o.domain in STANDARD), None)
    if version is None and any(n.domain in STANDARD for n in model.graph.node):
        raise InputError(f"{file} names no version of the standard opset.", "Export it again.")
    if version is not None and not OLDEST <= version <= newest:
        raise InputError(
            f"{file} uses opset {version}; this fourfold with onnx {onnx.__version__} reads {OLDEST} to {newest}.",
            "Export it with an opset in that range" + (", or install a newer onnx." if version > newest else "."),
        )


def _external(onnx: ModuleType, file: Path, model: ModelProto) -> None:
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


def _inside(onnx: ModuleType, file: Path, model: ModelProto) -> None:
    """External data of all but the main graph's own weights (those of If, Loop and Scan, of constants, of functions) is read now: onnx's checker and
    ONNX Runtime look for it in the working folder."""
    for tensor in _all_tensors(model)[len(model.graph.initializer):]:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(file.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _all_tensors(model: ModelProto) -> list[TensorProto]:
    """The main graph's initialisers first."""
    return tensors_of(model.graph) + [t for function in model.functions for t in _held(function.node)]


def tensors_of(graph: GraphProto) -> list[Any]:
    """Initialisers of a graph and the tensors in attributes of its nodes."""
    sparse = [t for s in graph.sparse_initializer for t in (s.values, s.indices)]
    return [*graph.initializer, *sparse, *_held(graph.node)]


def _held(nodes: Iterable[NodeProto]) -> list[TensorProto]:
    """Tensors in attributes of nodes, those of their sub-graphs included."""
    found: list[TensorProto] = []
    for node in nodes:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.tensors
            found += [t for s in (attribute.sparse_tensor, *attribute.sparse_tensors) for t in (s.values, s.indices)]
            found += [t for sub in subgraphs_of(attribute) for t in tensors_of(sub)]
    return found


def subgraphs_of(attribute: AttributeProto) -> list[Any]:
    """Graphs that an attribute holds (If, Loop, Scan)."""
    return ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)


def _nbytes(onnx: ModuleType, tensor: TensorProto) -> int:
    kind = dtype_of(onnx, tensor.data_type)
    from fourfold.graph import bytes_of

    return bytes_of(tensor.dims, kind)


def sort_nodes(file: Path, model: ModelProto) -> None:
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
        for read in names_read(node):
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


def _title(node: NodeProto, index: int) -> str:
    return node.name or f"{node.op_type} number {index}"


def names_read(node: NodeProto) -> list[str]:
    """Names that a node reads, those that its subgraphs take from outside included."""
    reads = [name for name in node.input if name]
    for attribute in node.attribute:
        for sub in subgraphs_of(attribute):
            own = {i.name for i in sub.input} | {i.name for i in sub.initializer} | {o for n in sub.node for o in n.output}
            reads += [name for n in sub.node for name in names_read(n) if name not in own]
            reads += [o.name for o in sub.output if o.name not in own]
    return list(dict.fromkeys(reads))


def check_model(onnx: ModuleType, file: Path, model: ModelProto) -> None:
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
        raise InputError(f"{file} is malformed: {one_line(error)}.", "Export it again.") from error


def by_name(model: ModelProto, inputs: object) -> dict[str, object]:
    """Example inputs by name: a mapping as it is, a sequence in the order of the inputs."""
    if inputs is None:
        return {}
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return dict(zip(fed_inputs(model), inputs if isinstance(inputs, list | tuple) else (inputs,), strict=False))


def fed_inputs(model: ModelProto) -> list[str]:
    """Names of the inputs that are no weights."""
    weights = {i.name for i in model.graph.initializer}
    return [i.name for i in model.graph.input if i.name not in weights]


def fix_dimensions(file: Path, model: Any, inputs: Mapping[str, Any], dims: dict[str, int]) -> None:
    """Give every dynamic dimension of the inputs its value, in place."""
    unknown = {name for name in inputs if name not in fed_inputs(model)}
    if unknown:
        raise InputError(f"{file} has no input {min(unknown)!r}.", f"Its inputs: {', '.join(fed_inputs(model))}.")
    if bad := [f"{name}={size}" for name, size in dims.items() if size < 1]:
        raise InputError(f"A dimension cannot be {bad[0]}.", "Give a positive whole number.")
    used, lacking, names = set(), [], []
    for entry in model.graph.input:
        if entry.name not in fed_inputs(model) or not entry.type.HasField("tensor_type"):
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


def one_line(error: BaseException) -> str:
    """An error's message on one line, at most 200 characters."""
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:200].rstrip(".")


def dtype_of(onnx: ModuleType, code: int) -> str:
    """torch's name of an ONNX element type."""
    name = onnx.TensorProto.DataType.Name(code).lower()
    names = {"float": "float32", "double": "float64", "float8e4m3fn": "float8_e4m3fn", "float8e5m2": "float8_e5m2", "float4e2m1": "float4_e2m1fn",
             "float8e4m3fnuz": "float8_e4m3fnuz", "float8e5m2fnuz": "float8_e5m2fnuz"}  # fmt: skip
    return str(names.get(name, name))
