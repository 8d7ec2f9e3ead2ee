"""Shapes and types of the values of an ONNX graph: inferred, told by the data, or read off a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fourfold.errors import InputError
from fourfold.frontends.onnx_file import STANDARD, dtype_of, fed_inputs, names_read, one_line, tensors_of
from fourfold.frontends.onnx_ops import OPS, UNKNOWN
from fourfold.frontends.onnx_session import session_of

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

ValueSpec = tuple[tuple[int, ...], str]  # shape, dtype


def spec_of(onnx: ModuleType, info: ValueInfoProto) -> ValueSpec | None:
    """Shape and dtype of a ValueInfoProto; None where a dimension is not known. A sequence or map is a value without a size."""
    if not info.type.HasField("tensor_type"):
        return ((), info.type.WhichOneof("value") or "unknown") if info.type.WhichOneof("value") else None
    kind = info.type.tensor_type
    if not kind.elem_type or not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
        return None
    return tuple(d.dim_value for d in kind.shape.dim), dtype_of(onnx, kind.elem_type)


def inferred(onnx: ModuleType, file: Path, model: ModelProto) -> dict[str, ValueSpec]:
    """Shape and dtype of the values that onnx can infer, by name. Raises InputError where shapes do not fit."""
    bare = type(model).FromString(model.SerializeToString())
    foreign = {name for node in bare.graph.node if node.domain not in STANDARD for name in node.output}
    told = [info for info in (*bare.graph.value_info, *bare.graph.output) if info.name in foreign and spec_of(onnx, info)]
    del bare.graph.value_info[:]
    for out in bare.graph.output:                                      # what a file claims of its outputs may hold names of dimensions
        if out.type.HasField("tensor_type") and out.name not in foreign:
            out.type.tensor_type.ClearField("shape")
    returned = {out.name for out in bare.graph.output}
    bare.graph.value_info.extend(info for info in told if info.name not in returned)      # of foreign ops there is nothing else to go by
    try:
        whole = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise InputError(f"{file}: shapes do not fit: {one_line(error)}.", "Check the dimensions that were given, or export it again.") from error
    graph = whole.graph
    return {info.name: spec for info in (*graph.input, *graph.value_info, *graph.output) if (spec := spec_of(onnx, info))}


def sized_by_data(model: ModelProto, open_: set[str]) -> dict[str, str]:
    """Of the values `open_`, whose shapes inference left open, those whose size follows from the values of the inputs: name → kind of op."""
    moved = set(fed_inputs(model))                                            # values that follow from the inputs' values; a shape alone does not
    sized: dict[str, str] = {}
    for node in model.graph.node:
        reads = names_read(node)
        makes = next((sized[name] for name in reads if name in sized), "")
        op = OPS.get(node.op_type, UNKNOWN)
        shaping = [node.input[i] for i in op.sizes if i < len(node.input)]
        if op.measures and moved.intersection(reads) or moved.intersection(shaping):
            makes = makes or node.op_type
        asks = node.op_type in ("Shape", "Size")
        for name in node.output:
            if name and makes and name in open_:
                sized[name] = makes
            if name and (makes and asks or not asks and moved.intersection(reads)):
                moved.add(name)
    return sized


def probed(
    onnx: Any, file: Path, model: Any, spec: Mapping[str, ValueSpec], names: Sequence[str], given: Mapping[str, object] | None = None
) -> dict[str, ValueSpec]:
    """Shapes and types of values in one run on `given`, or zeros."""
    import numpy as np

    shown = type(model).FromString(model.SerializeToString())
    have = {o.name for o in shown.graph.output}
    names = list(dict.fromkeys(names))
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    fed = {name: np.asarray(given[name]) if given else np.zeros(spec[name][0], dtype=spec[name][1]) for name in fed_inputs(model)}
    found = dict(zip(names, runner_of(onnx, file, shown, names)(fed), strict=True))
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in found.items()}


def runner_of(onnx: ModuleType, file: Path, model: ModelProto, wanted: Sequence[str]) -> Callable[[Mapping[str, object]], list[Any]]:
    """ONNX Runtime where it is installed (without its graph optimisations), else onnx's reference in numpy."""
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors_of(model.graph)):
        onnx.external_data_helper.load_external_data_for_model(model, str(file.parent))
    session = session_of(model.SerializeToString(), optimise=False)
    return lambda given: list(session.run(list(wanted), dict(given)))
