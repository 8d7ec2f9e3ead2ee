"""ONNX Runtime: a decoder as one graph with its memory as inputs and outputs, which stay where they are between steps.

Packed weights become `MatMulNBits` nodes (4 or 8 bits in blocks; com.microsoft), whose kernels widen codes inside the product; a packed table is
gathered as codes. A row that is one group is written as blocks of the largest power of two that divides it, all with its step.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fourfold.engines.base import first_line, missing
from fourfold.engines.decode.base import Decoding, DecodingState, prompt_mask
from fourfold.errors import Declined

if TYPE_CHECKING:
    from torch import nn

    from fourfold.engines.decode._traced import OneStep
    from fourfold.rewrites.compress._packed import PackedWeight

FILE = "decode-onnxruntime"
#: "int8": products with packed weights also round what they read, block by block, at run time.
PRECISIONS = ("fp32", "int8")
NEEDS = ("onnxruntime", "onnx")
OPSET = 18
LEAST_BLOCK = 16  #: of MatMulNBits


class OnnxDecoding(Decoding):
    """A session of `threads` threads that do not spin; a state holds its memory as the session's own values."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"
    needs: ClassVar[tuple[str, ...]] = NEEDS
    extra: ClassVar[str] = "onnx"
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    narrow: ClassVar[tuple[str, ...]] = ("int8",)
    packs: ClassVar[tuple[str, ...]] = ("int8",)
    standalone: ClassVar[bool] = True
    likely: ClassVar[Mapping[str, int]] = {"int8": 5, "fp32": 6}
    slow: ClassVar[float] = 15.0

    @classmethod
    def export(cls, module: nn.Module, precision: str, folder: Path, calibration: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
        return export(module, folder, precision)

    @classmethod
    def open(cls, folder: Path, module: nn.Module | None, precision: str, threads: int) -> OnnxDecoding:
        return cls(folder, threads, precision)

    def __init__(self, folder: Path, threads: int = 1, precision: str = "fp32", device: str = "cpu") -> None:
        if reason := missing(("onnxruntime",), "onnx"):
            raise Declined(reason)
        self.told: dict[str, Any] = json.loads((folder / f"{FILE}.json").read_text())
        self.threads, self.precision, self.device = threads, precision, device
        self.positions, self.vocabulary = self.told["positions"], self.told["vocabulary"]
        self.bytes = sum(file.stat().st_size for file in folder.glob(f"{FILE}-{precision}.onnx*"))
        self.session: Any = opened_session(folder / f"{FILE}-{precision}.onnx", threads, device)
        self.inputs = [port.name for port in self.session.get_inputs()]
        self.outputs = [port.name for port in self.session.get_outputs()]

    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        self.fits(room)
        mask = prompt_mask(inputs)
        tokens = np.asarray(inputs["input_ids"], np.int64)
        empty = [self._value(np.zeros((len(mask), heads, 0, width), np.float32)) for heads, width in self.told["memories"]]
        state = DecodingState(0, room, mask[:, :0], held=empty)
        return state, self._read(state, tokens, mask, np.array([tokens.shape[1] - 1]))[:, -1]

    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        tokens = np.asarray(tokens, np.int64).reshape(state.rows, -1)
        return self._read(state, tokens, np.ones(tokens.shape, bool), np.arange(tokens.shape[1]))

    def _value(self, array: np.ndarray) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)

    def _read(self, state: DecodingState, tokens: np.ndarray, mask: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        whole = np.concatenate([state.mask, mask], 1)
        places = np.maximum(np.cumsum(whole, 1)[:, -tokens.shape[1] :] - 1, 0)
        feed = {"input_ids": tokens, "attention_mask": whole.astype(np.int64), "position_ids": places, "wanted": np.asarray(wanted, np.int64)}
        given = {name: self._value(array) for name, array in feed.items() if name in self.inputs}
        given |= {f"past.{i}": value for i, value in enumerate(_memory(state))}
        logits, *state.held = self.session.run_with_ort_values(self.outputs, given)  # type: ignore[misc]
        state.seen, state.mask = state.seen + tokens.shape[1], whole
        return np.asarray(logits.numpy(), np.float32)

    def _changed(self, state: DecodingState, arrays: Sequence[np.ndarray]) -> None:
        state.held = [self._value(array) for array in arrays]

    def crop(self, state: DecodingState, length: int) -> None:
        if not 0 < length <= state.seen:
            raise ValueError(f"a state of {state.seen} tokens cannot be cropped to {length}")
        if length < state.seen:
            self._changed(state, [value.numpy()[:, :, :length] for value in _memory(state)])
        state.seen, state.mask = length, state.mask[:, :length]

    def rows(self, state: DecodingState, index: Sequence[int] | np.ndarray) -> None:
        kept = np.asarray(index, np.int64)
        state.mask = state.mask[kept]
        self._changed(state, [value.numpy()[kept] for value in _memory(state)])

    def copied(self, state: DecodingState, length: int | None = None, room: int | None = None) -> DecodingState:
        length = state.seen if length is None else length
        if not 0 < length <= state.seen:
            raise ValueError(f"a state of {state.seen} tokens has no first {length}")
        made = DecodingState(length, room or length, state.mask[:, :length].copy())
        self._changed(made, [value.numpy()[:, :, :length] for value in _memory(state)])
        return made

    def joined(self, states: Sequence[DecodingState]) -> DecodingState:
        sizes = [state.seen - int(np.flatnonzero(state.mask.any(axis=0))[0]) for state in states]
        longest = max(sizes)
        mask = np.concatenate([np.pad(state.mask[:, state.seen - size :], ((0, 0), (longest - size, 0)))
                               for state, size in zip(states, sizes, strict=True)])
        made = DecodingState(longest, longest + max(state.room - state.seen for state in states), mask)
        self._changed(made, [
            np.concatenate([np.pad(value.numpy()[:, :, state.seen - size :], ((0, 0), (0, 0), (longest - size, 0), (0, 0)))
                            for value, state, size in zip(values, states, sizes, strict=True)])
            for values in zip(*map(_memory, states), strict=True)])  # fmt: skip
        return made

    def state_bytes(self, state: DecodingState) -> int:
        return 4 * state.rows * state.seen * sum(heads * width for heads, width in self.told["memories"])

    def describe(self) -> dict[str, object]:
        import onnxruntime

        return {"engine": self.name, "version": onnxruntime.__version__, "precision": self.precision, "threads": self.threads,
                "weights": self.told["weights"], "providers": self.session.get_providers()}  # fmt: skip

    def close(self) -> None:
        self.session = None


def _memory(state: DecodingState) -> list[Any]:
    assert isinstance(state.held, list)
    return state.held


def opened_session(file: Path, threads: int, device: str) -> Any:
    """A session on that device. Raises Declined where this build of ONNX Runtime has no such device, or does not take the file."""
    import onnxruntime

    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device)
    if wanted is None or wanted not in onnxruntime.get_available_providers():
        raise Declined(f"this build of ONNX Runtime has no {device} (it has {', '.join(onnxruntime.get_available_providers())})")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    for key in ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning"):
        options.add_session_config_entry(key, "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=[wanted])
    except Exception as error:
        raise Declined(f"ONNX Runtime cannot open the decoder: {first_line(error)}") from error


def export(module: nn.Module, folder: Path, precision: str = "fp32") -> list[str]:
    """Write the graph of a decoder, packed or not, into `folder`; the names of the files. Raises Declined with the reason."""
    if reason := declines(precision, None):
        raise Declined(reason)
    import onnx

    from fourfold.engines.decode._traced import OneStep, plain_attention
    from fourfold.engines.decode.eager import positions
    from fourfold.rewrites.compress._packed import unpacked

    with unpacked(module) as packed, plain_attention(module), tempfile.TemporaryDirectory(dir=folder) as scratch:
        one = OneStep(module)
        names = {name: packed[p.data_ptr()] for name, p in one.named_parameters(remove_duplicate=False) if p.data_ptr() in packed}
        traced = Path(scratch) / "traced.onnx"
        _trace(one, traced)
        model = onnx.load(traced)
        narrowed(model, names, 4 if precision == "int8" else 1)
        file = f"{FILE}-{precision}.onnx"
        large = model.ByteSize() > 2**31 - 2**20
        onnx.save(model, str(folder / file), save_as_external_data=large, location=f"{file}.data")
        told = {"positions": positions(module.config), "vocabulary": one.vocabulary,
                "memories": [(s.heads, width) for s in one.slots for width in (s.width, s.values)],
                "weights": sorted({f"int{w.grid.bits}-weights" for w in packed.values()}) or ["fp32"]}  # fmt: skip
    (folder / f"{FILE}.json").write_text(json.dumps(told))
    return [f"{FILE}.json", file, *([f"{file}.data"] if large else [])]


def _trace(one: OneStep, file: Path) -> None:
    import torch

    memories = 2 * len(one.slots)
    names = ["input_ids", "attention_mask", "position_ids", "wanted", *(f"past.{i}" for i in range(memories))]
    made = ["logits", *(f"present.{i}" for i in range(memories))]
    axes: dict[str, dict[int, str]] = {"input_ids": {0: "rows", 1: "new"}, "attention_mask": {0: "rows", 1: "slots"},
                                       "position_ids": {0: "rows", 1: "new"}, "wanted": {0: "wanted"},
                                       "logits": {0: "rows", 1: "wanted"}}  # fmt: skip
    axes |= {f"past.{i}": {0: "rows", 2: "past"} for i in range(memories)} | {f"present.{i}": {0: "rows", 2: "slots"} for i in range(memories)}
    noise = io.StringIO()
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            warnings.simplefilter("ignore")
            # Unfolded, a weight is still there under its own name, and turned by a node of its own.
            torch.onnx.export(one.eval(), one.example(), str(file), input_names=names, output_names=made, dynamic_axes=axes, dynamo=False,
                              opset_version=OPSET, do_constant_folding=False)
    except Exception as error:
        raise Declined(f"the decoder has no ONNX graph: {first_line(error)}") from error


def narrowed(model: Any, packed: Mapping[str, PackedWeight], accuracy: int) -> None:
    """In place: products with packed weights as MatMulNBits (`accuracy` 4: inputs are rounded to 8 bits; 1: not), look-ups in packed tables as
    look-ups of codes; weights that neither takes stay float32."""
    from onnx import helper

    graph = model.graph
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose" and node.input[0] in packed}
    fresh: list[Any] = []
    written: dict[str, list[str]] = {}
    for node in graph.node:
        source = turned.get(node.input[1]) if node.op_type == "MatMul" else None
        if source is not None and (block := block_of(packed[source])):
            weight = packed[source]
            if source not in written:
                written[source] = _blocks(graph, source, weight, block)
            fresh.append(helper.make_node("MatMulNBits", [node.input[0], *written[source]], list(node.output), name=f"{node.name}_bits",
                                          domain="com.microsoft", K=weight.inputs, N=weight.outputs, bits=weight.grid.bits, block_size=block,
                                          accuracy_level=accuracy))
        elif node.op_type == "Gather" and node.input[0] in packed:
            fresh.extend(_look_up(graph, node, packed[node.input[0]]))
        else:
            fresh.append(node)
    del graph.node[:]
    graph.node.extend(fresh)
    # What nobody reads any more goes: first the turned weights, then the weights themselves.
    read = {name for node in graph.node for name in node.input if node.op_type != "Transpose" or node.output[0] not in turned}
    kept = [node for node in graph.node if node.output[0] not in turned or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in graph.node for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(left)
    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def block_of(weight: PackedWeight) -> int:
    """Size of the blocks that MatMulNBits can hold the weight in: the largest power of two that divides a group, up to 128; 0 where none is large
    enough."""
    size = weight.inputs // weight.step.shape[1]
    block = min(size & -size, 128)
    return block if block >= LEAST_BLOCK else 0


def _blocks(graph: Any, name: str, weight: PackedWeight, block: int) -> list[str]:
    """Names of the initializers codes, steps and offsets of a packed weight, added to the graph."""
    from onnx import numpy_helper

    repeat = weight.inputs // weight.step.shape[1] // block
    blocks = weight.inputs // block
    step = np.repeat(weight.step.numpy(), repeat, 1).astype(np.float32)
    offset = np.repeat(weight.offset.numpy(), repeat, 1)
    arrays = {"codes": weight.codes.numpy().reshape(weight.outputs, blocks, -1), "step": step}
    if weight.grid.offset == "fractional":
        arrays["offset"] = offset.astype(np.float32)
    elif weight.grid.offset == "integer":  # left out, it is the middle: symmetric
        whole = offset.astype(np.uint8)
        if weight.grid.bits == 4:
            whole = np.pad(whole, ((0, 0), (0, blocks % 2)))
            whole = whole[:, 0::2] | (whole[:, 1::2] << 4)
        arrays["offset"] = whole
    for kind, array in arrays.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}.{kind}"))
    return [f"{name}.{kind}" for kind in arrays]


def _look_up(graph: Any, node: Any, weight: PackedWeight) -> list[Any]:
    """Nodes that gather rows of codes, steps and offsets, and widen them."""
    from onnx import helper, numpy_helper

    from fourfold.rewrites.compress._packed import unpack

    name, groups = f"{node.input[0]}.rows", weight.step.shape[1]
    shape = (weight.outputs, groups, weight.inputs // groups)
    arrays = {"codes": unpack(weight.codes, weight.grid.bits).numpy().reshape(shape), "step": weight.step.numpy()[..., None],
              "offset": weight.offset.numpy()[..., None]}  # fmt: skip
    for kind, array in arrays.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}.{kind}"))
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, weight.inputs], np.int64), f"{name}.shape"))
    nodes = [helper.make_node("Gather", [f"{name}.{kind}", node.input[1]], [f"{name}.{kind}.found"], axis=0) for kind in arrays]
    return [
        *nodes, helper.make_node("Cast", [f"{name}.codes.found"], [f"{name}.wide"], to=1),
        helper.make_node("Sub", [f"{name}.wide", f"{name}.offset.found"], [f"{name}.moved"]),
        helper.make_node("Mul", [f"{name}.moved", f"{name}.step.found"], [f"{name}.scaled"]),
        helper.make_node("Reshape", [f"{name}.scaled", f"{name}.shape"], list(node.output)),
    ]  # fmt: skip


def declines(precision: str, machine: object) -> str | None:
    """Why this way to generate cannot be used in this precision on this machine, or None."""
    if precision not in PRECISIONS:
        return f"ONNX Runtime generates in {', '.join(PRECISIONS)}, not {precision}: its processor kernels have no other"
    return missing(NEEDS, "onnx")


def opened(module: nn.Module, inputs: Mapping[str, np.ndarray], threads: int = 1, precision: str = "fp32", device: str = "cpu",
           folder: Path | None = None) -> OnnxDecoding:  # fmt: skip
    """A decoder on ONNX Runtime that answers as the module does on `inputs` (a few rows), within the tolerance of its precision. Files are left in
    `folder` (none: they go once it is open). Raises Declined with the reason."""
    from fourfold.engines.decode.base import TOLERANCE
    from fourfold.engines.decode.eager import EagerDecoding, agree

    with tempfile.TemporaryDirectory(prefix="fourfold-decode-") as scratch:
        place = folder or Path(scratch)
        if not (place / f"{FILE}-{precision}.onnx").exists():
            export(module, place, precision)
        found = OnnxDecoding(place, threads, precision, device)
    if not agree(found, EagerDecoding(module, threads), inputs, TOLERANCE[precision]):
        raise Declined(f"ONNX Runtime's answers in {precision} are further from PyTorch's than {TOLERANCE[precision]:g} of their largest")
    return found
