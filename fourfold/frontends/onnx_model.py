"""An .onnx file as the model of the main job: a module that ONNX Runtime runs, made again from data alone.

The graph without its large weights is the origin (compressed, in the manifest); the weights travel as safetensors like any module's. Engines get the
graph as it is, by `write`. It has no torch modules and no gradient, so its structure is not searched, and `sealed` says so.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.errors import FourfoldError, InputError, MissingExtra, ModelError
from fourfold.frontends.onnx_file import fed_inputs, import_onnx, load
from fourfold.frontends.onnx_session import session_of
from fourfold.frontends.preprocessors import companions
from fourfold.frontends.subject import answer
from fourfold.trust import sane

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

FILLED = {"token_type_ids": 0, "attention_mask": 1}                     # inputs that a tokenizer may not give, and what they are then
LEAST = 64                                                              # elements of a weight that is kept beside the graph
SEALED = ("an ONNX graph has neither torch modules nor a gradient, so no layers or units are removed and no student learns from its inside; "
          "give the torch model for that")
_MOST = 1_900_000_000                                                   # bytes of weights: what one ONNX message holds, and room for the graph
_LIMIT = 1 << 26                                                        # bytes of a graph without its weights, at most


class OnnxGraph(nn.Module):
    """forward(*tensors in the order of `inputs`, or by name) → the outputs by name. `sealed`: why its structure stays as it is.

    Weights are parameters `w0`, `w1` … (buffers where they are whole numbers), in the order of the graph's initialisers that carry no data.
    """

    sealed = SEALED

    def __init__(self, graph: bytes, inputs: tuple[str, ...], config: object = None) -> None:
        super().__init__()
        onnx = import_onnx()
        self.graph, self.inputs = graph, inputs
        self.names: list[tuple[str, str]] = []
        model = onnx.ModelProto.FromString(graph)
        for number, tensor in enumerate(t for t in model.graph.initializer if _hollow(onnx, t)):
            empty = torch.from_numpy(np.zeros(tuple(tensor.dims), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)))
            if empty.is_floating_point():
                self.register_parameter(f"w{number}", nn.Parameter(empty, requires_grad=False))
            else:
                self.register_buffer(f"w{number}", empty)
            self.names.append((f"w{number}", tensor.name))
        self.kinds = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
        self.outputs = [o.name for o in model.graph.output]
        if config is not None:
            self.config = config
        self._sessions: dict[int, object] = {}

    def forward(self, *tensors: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Raises ModelError where ONNX Runtime does not take these inputs."""
        given = dict(zip(self.inputs, tensors, strict=False)) | named
        shape = next(iter(given.values())).shape if given else ()
        given |= {n: torch.full(shape, value) for n, value in FILLED.items() if n in self.inputs and n not in given}
        if any(t.dtype == torch.bfloat16 for t in (*given.values(), *self.parameters())):
            raise ModelError("ONNX Runtime runs an ONNX graph in the types that it was written in", "OpenVINO can run it in bf16.")
        fed = {n: np.ascontiguousarray(t.detach().numpy(), dtype=self.kinds[n]) for n, t in given.items()}
        try:
            found = self._session().run(self.outputs, fed)
        except FourfoldError:
            raise
        except Exception as error:
            sizes = ", ".join(f"{n} {list(t.shape)}" for n, t in given.items())
            raise ModelError(f"ONNX Runtime cannot run the graph on {sizes}: {' '.join(str(error).split())[:160]}",
                             "Export it with dynamic axes for rows and lengths.") from error
        return {name: torch.from_numpy(np.array(a)) for name, a in zip(self.outputs, found, strict=True) if isinstance(a, np.ndarray)}

    def proto(self) -> Any:
        """The whole model, weights included."""
        onnx = import_onnx()
        model, own = onnx.ModelProto.FromString(self.graph), dict((name, key) for key, name in self.names)
        for tensor in model.graph.initializer:
            if tensor.name in own:
                tensor.raw_data = np.ascontiguousarray(getattr(self, own[tensor.name]).detach().numpy()).tobytes()
        return model

    def _session(self) -> Any:
        threads = torch.get_num_threads()
        if threads not in self._sessions:
            try:
                self._sessions[threads] = session_of(self.proto().SerializeToString(), threads, spin=False)
            except ImportError as error:
                raise MissingExtra("Running .onnx models needs the package onnxruntime.", "Install it: pip install 'fourfold[onnx]'.") from error
        return self._sessions[threads]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> object:
        self._sessions = {}
        return super().load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_sessions": {}}                        # copies and other processes open their own

    def __deepcopy__(self, memo: dict[int, object]) -> OnnxGraph:
        twin = OnnxGraph(self.graph, self.inputs, getattr(self, "config", None))
        for key, _ in self.names:
            getattr(twin, key).data = getattr(self, key).data.clone()
        return twin.train(self.training)


def graph_in(wrapped: nn.Module) -> OnnxGraph | None:
    """The ONNX graph behind a wrapped module, where that is what it is."""
    inner = getattr(wrapped, "module", wrapped)
    return inner if isinstance(inner, OnnxGraph) else None


def write(held: OnnxGraph, names: tuple[str, ...], dtypes: Mapping[str, str], output: str, path: Path) -> None:
    """The graph as a file with one output, `output`, and inputs of these `dtypes` (numpy names; a cast leads from them to the graph's own)."""
    onnx = import_onnx()
    model = held.proto()
    graph = model.graph
    kept = next(o for o in graph.output if o.name == output)
    kept = type(kept).FromString(kept.SerializeToString())
    del graph.output[:]
    graph.output.append(kept)
    casts = []
    for entry in [i for i in graph.input if i.name in FILLED and i.name not in names]:
        value = np.full(1, FILLED[entry.name], held.kinds[entry.name])
        casts += [onnx.helper.make_node("Shape", [names[0]], [f"{entry.name}__sizes"]),
                  onnx.helper.make_node("ConstantOfShape", [f"{entry.name}__sizes"], [entry.name], value=onnx.numpy_helper.from_array(value))]
        graph.input.remove(entry)
    for entry in graph.input:
        wanted = np.dtype(dtypes[entry.name]) if entry.name in dtypes else None
        if wanted is None or wanted == held.kinds[entry.name]:
            continue
        inner = f"{entry.name}__as_the_graph_takes_it"
        casts.append(onnx.helper.make_node("Cast", [entry.name], [inner], to=entry.type.tensor_type.elem_type))
        for node in graph.node:
            node.input[:] = [inner if name == entry.name else name for name in node.input]
        entry.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(wanted)
    if casts:
        rest = [type(n).FromString(n.SerializeToString()) for n in graph.node]
        del graph.node[:]
        graph.node.extend([*casts, *rest])
    path.write_bytes(model.SerializeToString())


def chosen(held: OnnxGraph, inputs: tuple[Tensor, ...], names: tuple[str, ...]) -> str:
    """Name of the output that matters: the one that `answer` picks. Raises ModelError where it is made of several."""
    found = held(**dict(zip(names, inputs, strict=True)))
    if "start_logits" in found and "end_logits" in found:
        raise ModelError("the answer is made of two outputs, start_logits and end_logits", "Join them in the graph, or give the torch model.")
    picked = answer(found)
    return next((name for name, tensor in found.items() if tensor is picked), held.outputs[0])


def read(file: Path) -> tuple[OnnxGraph, dict[str, Any], Any, Any]:
    """(module, origin, tokenizer, processor) of an .onnx file; config.json and the encoders lie beside it, if anywhere.

    Raises InputError where the file is damaged, too large for one message or lacks weights, ModelError where its sizes are fixed.
    """
    onnx = import_onnx()
    model = load(onnx, file)
    if foreign := sorted({n.domain for n in model.graph.node} - {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}):
        raise ModelError(f"{file} holds operators of {foreign[0]!r}, which ONNX Runtime does not bring", "Export it with standard operators.")
    fed = tuple(fed_inputs(model))
    if odd := [i.name for i in model.graph.input if i.name in fed and not i.type.HasField("tensor_type")]:
        raise ModelError(f"the input {odd[0]!r} of {file} is no tensor", "Export it with tensors as inputs.")
    _open_rows(model, fed)
    weights: list[Any] = []
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor, base_dir=str(file.parent))
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if array.size >= LEAST and str(array.dtype) in _KEPT:
            hollow = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            tensor.CopyFrom(hollow)
            weights.append(np.array(array))
        elif external:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    if sum(a.nbytes for a in weights) > _MOST:
        raise InputError(f"{file} holds more than 1.9 GB of weights, which one ONNX message cannot carry.", "Give the torch model.")
    del model.graph.value_info[:]
    config = _config(file.parent)
    module = OnnxGraph(model.SerializeToString(), fed, _configured(config))
    for (key, _), array in zip(module.names, weights, strict=True):
        getattr(module, key).data = torch.from_numpy(array)
    packed = base64.b64encode(zlib.compress(module.graph, 9)).decode()
    origin = {"kind": "onnx", "class": file.name, "graph": packed, "inputs": list(fed), "config": config}
    return module.eval(), origin, *companions(file.resolve().parent)


def rebuild(origin: Mapping[str, Any]) -> OnnxGraph:
    """The graph with empty weights, from its origin. Raises ModelError where that is damaged."""
    try:
        inflate = zlib.decompressobj()
        graph = inflate.decompress(base64.b64decode(str(origin["graph"]), validate=True), _LIMIT)
        if not inflate.eof:
            raise ValueError("the graph is cut off, or too large")
        model = import_onnx().ModelProto.FromString(graph)
        if any(t.data_location == import_onnx().TensorProto.EXTERNAL for t in model.graph.initializer):
            raise ValueError("the graph reads files")
        if sum(math.prod(t.dims) for t in model.graph.initializer if _hollow(import_onnx(), t)) > _MOST:
            raise ValueError("the graph's weights are larger than one message")     # before anything is allocated
        return OnnxGraph(graph, tuple(str(n) for n in origin["inputs"]), _configured(sane(origin.get("config")))).eval()
    except FourfoldError:
        raise
    except Exception as error:
        raise ModelError(f"the artefact's ONNX graph is damaged: {type(error).__name__}", "Copy the artefact again.") from error


_KEPT = ("float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")


def _hollow(onnx: ModuleType, tensor: TensorProto) -> bool:
    """Whether an initialiser waits for its data."""
    size = math.prod(tensor.dims)
    held = tensor.raw_data or tensor.float_data or tensor.int32_data or tensor.int64_data or tensor.double_data or tensor.uint64_data
    return size >= LEAST and not held


def _open_rows(model: ModelProto, fed: tuple[str, ...]) -> None:
    """Rows, and lengths of tokens, are open whatever the file says of them: many graphs are written for one row and run any number."""
    for entry in (*model.graph.input, *model.graph.output):
        if not entry.type.HasField("tensor_type") or (entry.name in {t.name for t in model.graph.initializer}):
            continue
        dims = entry.type.tensor_type.shape.dim
        if entry.name not in fed:
            entry.type.tensor_type.ClearField("shape")
        elif len(dims) and dims[0].dim_value == 1:
            dims[0].dim_param = "batch"


def _config(folder: Path) -> dict[str, object] | None:
    """config.json beside the file, as optimum writes it: names of classes, limits."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("model_type"), str) else None


def _configured(config: Mapping[str, object] | None) -> Any:
    if not config:
        return None
    import transformers

    given = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version", "auto_map")}
    try:
        return transformers.AutoConfig.for_model(str(config["model_type"]), **given)
    except Exception:  # noqa: BLE001 — a configuration helps to name classes, and is not needed
        return None
