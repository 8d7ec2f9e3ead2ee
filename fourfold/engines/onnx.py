"""What engines share of ONNX: a whole module written as an .onnx file, a region of an .onnx program as a model of its own, and its nodes as calls of
torch for eager runs and Inductor; a node without a translation (`fourfold/frontends/onnx_ops.py`) runs in a session of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines.call import Call, Outs, Ref, Region
from fourfold.engines.decompose import spelled_out
from fourfold.errors import Declined, InputError
from fourfold.frontends.onnx_file import STANDARD, dtype_of, names_read
from fourfold.frontends.onnx_ops import OPS, UNKNOWN, OnnxNode, Translation, Untranslated
from fourfold.frontends.onnx_session import session_of

if TYPE_CHECKING:
    from onnx import NodeProto
    from torch import nn

    from fourfold.engines.base import Signature
    from fourfold.frontends.onnx import OnnxProgram


# ---- whole modules -------------------------------------------------------------------------------------------------------------------------------


def export_onnx(wrapped: nn.Module, signature: Signature, path: Path, graph: str) -> None:
    """Write `wrapped` as ONNX. `graph` is the exporter: "torchscript" (traced, opset 17) or "dynamo" (torch.export, opset 18).

    The two graphs can differ in speed by half after quantisation, so callers race both. Raises whatever the exporter raises.
    """
    import logging
    import warnings

    import torch

    from fourfold.frontends.onnx_model import chosen, graph_in, write

    example = signature.tensors(signature.example)
    if (held := graph_in(wrapped)) is not None:
        if graph != "torchscript":
            raise Declined("an .onnx file is taken as it is")
        write(held, signature.names, signature.dtypes, chosen(held, example, signature.names), path)
        return
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), spelled_out(wrapped):
        warnings.simplefilter("ignore")
        if graph == "torchscript":
            rank = wrapped(*example).ndim
            result = {axis: f"out{axis}" for axis in range(max(rank - 1, 1))}
            torch.onnx.export(
                wrapped,
                example,
                str(path),
                dynamo=False,
                opset_version=17,
                input_names=list(signature.names),
                output_names=["output"],
                dynamic_axes={**signature.dynamic, "output": result},
            )
        else:
            dims: dict[str, object] = {}
            labels = [signature.dynamic[name] for name in signature.names]
            shapes = tuple({axis: dims.setdefault(label, torch.export.Dim(label)) for axis, label in axes.items()} for axes in labels)
            torch.onnx.export(
                wrapped,
                example,
                str(path),
                dynamo=True,
                opset_version=18,
                external_data=False,
                input_names=list(signature.names),
                output_names=["output"],
                dynamic_shapes=(shapes,) if takes_varargs(wrapped) else shapes,
                verbose=False,
            )


def takes_varargs(module: nn.Module) -> bool:
    """Whether forward is written `forward(*tensors)`; torch.export then wants its dynamic shapes in one tuple."""
    import inspect

    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())


# ---- regions -------------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Foreign:
    """A node that only ONNX Runtime runs: the model that holds it alone."""

    model: bytes
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    foreign = True
    _session: Any = field(default=None, repr=False)

    def __call__(self, *tensors: Any) -> tuple[object, ...]:
        import torch

        if self._session is None:
            self._session = session_of(self.model, torch.get_num_threads(), optimise=False)
        fed = {name: tensor.numpy() for name, tensor in zip(self.reads, tensors, strict=True)}
        return tuple(torch.from_numpy(np.array(a)) for a in self._session.run(list(self.makes), fed))

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model, "reads": self.reads, "makes": self.makes, "_session": None}


def model(program: OnnxProgram, graph: object, region: Region) -> bytes:
    """A region as an ONNX model: inputs `v12` for value 12, outputs likewise."""
    nodes = [program.calls[node][0] for node, _ in region.nodes]
    return _written(program, nodes, region.reads, region.weights, region.makes)


def _written(program: Any, nodes: Sequence[object], reads: Sequence[int], weights: Sequence[int], makes: Sequence[int]) -> bytes:
    onnx, name = program.onnx, {v: n for n, v in program.value.items()}
    code = {dtype_of(onnx, c): c for c in onnx.TensorProto.DataType.values() if c}

    def entry(v: int) -> object:
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


def call(program: OnnxProgram, graph: object, node: int, task: int) -> Call:
    """The call of a node: torch's where it has one, else ONNX Runtime's."""
    proto, made = program.calls[node]
    outputs: list[Outs] = [program.value[name] for name in made]
    found = _translated(program, proto, made)
    if found is not None:
        target, args, kwargs = found
        return Call(task, node, target, args, kwargs, outputs if proto.op_type == "Split" else outputs[0])
    reads = names_read(proto)
    inside = _written(program, [proto], [program.value[n] for n in reads], (), [program.value[name] for name in made])
    return Call(task, node, Foreign(inside, tuple(reads), tuple(made)), tuple(Ref(program.value[n]) for n in reads), {}, outputs)


def _translated(program: OnnxProgram, proto: NodeProto, made: Sequence[str]) -> Translation | None:
    op = OPS.get(proto.op_type, UNKNOWN) if proto.domain in STANDARD else UNKNOWN
    if op.torch is None:
        return None
    try:
        return op.torch(OnnxNode(program, proto, made, Ref))
    except Untranslated:
        return None
