"""OpenVINO: a decoder as one graph that keeps its own memory. Packed weights are written as they are: codes, steps and offsets, which the processor
widens on the way into a product.

Keys and values are variables of the graph (ReadValue, Assign), reordered by `beam_idx`; so a step hands over tokens and gets logits. Rejected drafts
are masked and not moved: their slots stay, seen by nobody, until an eighth of the memory is such slots; then they are cut out.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fourfold.engines.base import first_line, missing, slow_bf16
from fourfold.engines.decode.base import Decoding, DecodingState, prompt_mask
from fourfold.errors import Declined

if TYPE_CHECKING:
    from torch import nn

    from fourfold.engines.decode._traced import OneStep
    from fourfold.rewrites.compress._packed import PackedWeight

if "openvino_telemetry" not in sys.modules:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

FILE = "decode-openvino"
#: Arithmetic of a step. "int8" also rounds what a product of packed weights reads, in groups of 32 inputs with a step of their own, at run time, and
#: what it remembers; the rest is in the fastest float that this processor has.
PRECISIONS = ("fp32", "bf16", "int8")
CACHES = ("fp32", "bf16", "int8")
LEAST_DEAD = 64  #: slots that nobody sees, below which none are cut out
OFFERED = 4  #: inputs of the graph before the memory: tokens, mask, positions, wanted


class OpenVinoDecoding(Decoding):
    """A graph with memory, compiled for `threads` threads in one precision; a request of it for each state that lives."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    needs: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    narrow: ClassVar[tuple[str, ...]] = ("int8",)
    packs: ClassVar[tuple[str, ...]] = ("int8", "bf16")
    standalone: ClassVar[bool] = True
    likely: ClassVar[Mapping[str, int]] = {"fp32": 3, "bf16": 2, "int8": 2}
    written: ClassVar[weakref.WeakKeyDictionary[nn.Module, Path]] = weakref.WeakKeyDictionary()  # by this process: one graph serves all precisions

    @classmethod
    def export(cls, module: nn.Module, precision: str, folder: Path, calibration: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
        files, place = [f"{FILE}{suffix}" for suffix in (".bin", ".json", ".xml")], cls.written.get(module)
        if place is not None and all((place / file).is_file() for file in files):
            for file in files if place != folder else ():
                shutil.copy2(place / file, folder / file)
            return files
        found = export(module, folder)
        cls.written[module] = folder
        return found

    @classmethod
    def open(cls, folder: Path, module: nn.Module | None, precision: str, threads: int) -> OpenVinoDecoding:
        return cls(folder, threads, precision)

    def __init__(self, folder: Path, threads: int = 1, precision: str = "fp32", cache: str = "") -> None:
        if reason := missing(("openvino",), "openvino"):
            raise Declined(reason)
        import json

        self.told: dict[str, Any] = json.loads((folder / f"{FILE}.json").read_text())
        self.threads, self.precision, self.cache = threads, precision, cache or {"fp32": "fp32", "bf16": "bf16", "int8": "int8"}[precision]
        self.positions, self.vocabulary, self.slides = self.told["positions"], self.told["vocabulary"], self.told["slides"]
        self.bytes = (folder / f"{FILE}.bin").stat().st_size
        self.compiled: Any = compiled(folder / f"{FILE}.xml", threads, precision, self.cache)
        self.free: list[Any] = []

    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        self.fits(room)
        mask = prompt_mask(inputs)
        held = _Held(self)
        state = DecodingState(0, room, mask[:, :0], held=held)
        held.order = np.arange(len(mask), dtype=np.int32)
        tokens = np.asarray(inputs["input_ids"], np.int64)
        return state, self._read(state, tokens, mask, np.array([tokens.shape[1] - 1]))[:, -1]

    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        tokens = np.asarray(tokens, np.int64).reshape(state.rows, -1)
        return self._read(state, tokens, np.ones(tokens.shape, bool), np.arange(tokens.shape[1]))

    def _read(self, state: DecodingState, tokens: np.ndarray, mask: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        held = _held(state)
        whole = np.concatenate([state.mask, mask], 1)
        places = np.maximum(np.cumsum(whole, 1)[:, -tokens.shape[1] :] - 1, 0)
        live = np.concatenate([held.live, np.arange(held.slots, held.slots + tokens.shape[1])])
        seen = np.zeros((len(whole), held.slots + tokens.shape[1]), np.int64)
        seen[:, live] = whole
        feed = {"input_ids": np.ascontiguousarray(tokens), "attention_mask": seen, "position_ids": np.ascontiguousarray(places),
                "wanted": np.ascontiguousarray(wanted, dtype=np.int64), "beam_idx": held.order}  # fmt: skip
        found = held.request.infer({n: feed[n] for n in self.told["inputs"]}, share_inputs=True, share_outputs=True)[0]
        held.order = np.arange(len(whole), dtype=np.int32)
        held.live, held.slots = live, held.slots + tokens.shape[1]
        state.seen, state.mask = state.seen + tokens.shape[1], whole
        # The result lives in memory that the next call of this request overwrites.
        return np.array(found, dtype=np.float32, copy=True)

    def crop(self, state: DecodingState, length: int) -> None:
        held = _held(state)
        if not 0 < length <= state.seen:
            raise ValueError(f"a state of {state.seen} tokens cannot be cropped to {length}")
        state.seen, state.mask, held.live = length, state.mask[:, :length], held.live[:length]
        dead = held.slots - length
        if dead and (self.slides or dead >= max(LEAST_DEAD, held.slots // 8)):
            self._rewrite(held, held.order, held.live)

    def rows(self, state: DecodingState, index: Sequence[int] | np.ndarray) -> None:
        held = _held(state)
        kept = np.asarray(index, np.int64)
        state.mask = state.mask[kept]
        if len(kept) == len(held.order):
            held.order = held.order[kept]
        else:  # the graph reorders rows; another number of them is written by hand
            self._rewrite(held, held.order[kept], held.live)

    def _rewrite(self, held: _Held, order: np.ndarray, live: np.ndarray) -> None:
        """Memory of these rows and slots alone, in that order."""
        held.write({name: array[order][:, :, live] for name, array in held.read().items()}, len(order), len(live))

    def copied(self, state: DecodingState, length: int | None = None, room: int | None = None) -> DecodingState:
        held, length = _held(state), state.seen if length is None else length
        if not 0 < length <= state.seen:
            raise ValueError(f"a state of {state.seen} tokens has no first {length}")
        made = _Held(self)
        made.write({name: array[held.order][:, :, held.live[:length]] for name, array in held.read().items()}, len(held.order), length)
        return DecodingState(length, room or length, state.mask[:, :length].copy(), held=made)

    def joined(self, states: Sequence[DecodingState]) -> DecodingState:
        sizes = [state.seen - int(np.flatnonzero(state.mask.any(axis=0))[0]) for state in states]  # less the columns that pad all rows
        longest = max(sizes)
        memories: dict[str, list[np.ndarray]] = {}
        for state, size in zip(states, sizes, strict=True):
            held = _held(state)
            for name, array in held.read().items():
                kept = array[held.order][:, :, held.live[state.seen - size :]]
                memories.setdefault(name, []).append(np.pad(kept, ((0, 0), (0, 0), (longest - size, 0), (0, 0))))
        mask = np.concatenate([np.pad(state.mask[:, state.seen - size :], ((0, 0), (longest - size, 0)))
                               for state, size in zip(states, sizes, strict=True)])
        made = _Held(self)
        made.write({name: np.concatenate(arrays) for name, arrays in memories.items()}, len(mask), longest)
        return DecodingState(longest, longest + max(state.room - state.seen for state in states), mask, held=made)

    def state_bytes(self, state: DecodingState) -> int:
        width = {"fp32": 4, "bf16": 2, "int8": 1}[self.cache]
        return state.rows * _held(state).slots * width * sum(heads * size for heads, size in self.told["memories"])

    def describe(self) -> dict[str, object]:
        import openvino

        keys = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        ran = {key.lower(): str(self.compiled.get_property(key)) for key in keys}
        return {"engine": self.name, "version": openvino.__version__, "precision": self.precision, "threads": self.threads, "cache": self.cache,
                "weights": self.told["weights"], **ran}  # fmt: skip

    def close(self) -> None:
        self.free.clear()
        self.compiled = None


class _Held:
    """Of a state: its request, slots in all, those that are seen (`live`, in order), and the order in which the next call finds its rows."""

    def __init__(self, owner: OpenVinoDecoding) -> None:
        self.request = owner.free.pop() if owner.free else owner.compiled.create_infer_request()
        self.request.reset_state()
        self.slots, self.live, self.order = 0, np.zeros(0, np.int64), np.zeros(0, np.int32)
        weakref.finalize(self, owner.free.append, self.request)

    def read(self) -> dict[str, np.ndarray]:
        """Variable → what it holds, [rows, heads, slots, width], in the order of the last call."""
        return {variable.name: np.asarray(variable.state.data) for variable in self.request.query_state()}

    def write(self, arrays: Mapping[str, np.ndarray], rows: int, slots: int) -> None:
        """Replace what every variable holds."""
        import openvino

        for variable in self.request.query_state():
            variable.state = openvino.Tensor(np.ascontiguousarray(arrays[variable.name]))
        self.order, self.live, self.slots = np.arange(rows, dtype=np.int32), np.arange(slots), slots


def _held(state: DecodingState) -> _Held:
    assert isinstance(state.held, _Held)
    return state.held


def compiled(file: Path, threads: int, precision: str, cache: str) -> Any:
    """The graph compiled: one stream of `threads` threads that are not pinned to cores."""
    import openvino

    from fourfold.host import here

    kinds = {"fp32": "f32", "bf16": "bf16", "int8": "u8"}
    halves = precision == "bf16" or (precision == "int8" and bool(here().flags) and slow_bf16(here()) is None)
    wish = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if halves else "f32", "KV_CACHE_PRECISION": kinds[cache],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32 if precision == "int8" else 0}  # fmt: skip
    try:
        return openvino.Core().compile_model(str(file), "CPU", wish)
    except Exception as error:
        raise Declined(f"OpenVINO cannot compile the decoder: {first_line(error)}") from error


def export(module: nn.Module, folder: Path) -> list[str]:
    """Write the graph of a decoder, packed or not, into `folder`; the names of the files. Raises Declined with the reason."""
    if reason := missing(("openvino",), "openvino"):
        raise Declined(reason)
    import json

    import openvino

    from fourfold.engines.decode._traced import OneStep, plain_attention
    from fourfold.engines.decode.eager import positions
    from fourfold.rewrites.compress._packed import unpacked

    kept: list[object] = []  # numbers that constants of the graph point at
    with unpacked(module) as packed, plain_attention(module):
        one = OneStep(module)
        graph = converted(one)
        narrowed(graph, packed, kept)
        remember(graph, one.slots)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            openvino.save_model(graph, str(Path(scratch) / f"{FILE}.xml"), compress_to_fp16=False)
            for suffix in (".bin", ".xml"):
                shutil.move(Path(scratch) / f"{FILE}{suffix}", folder / f"{FILE}{suffix}")
        told = {"inputs": [port.get_any_name() for port in graph.inputs], "slides": one.slides, "positions": positions(module.config),
                "vocabulary": one.vocabulary, "memories": [(s.heads, width) for s in one.slots for width in (s.width, s.values)],
                "weights": sorted({f"int{w.grid.bits}-weights" for w in packed.values()}) or ["fp32"]}  # fmt: skip
    (folder / f"{FILE}.json").write_text(json.dumps(told))
    return [f"{FILE}.bin", f"{FILE}.json", f"{FILE}.xml"]


def export_plain(module: nn.Module, file: Path) -> None:
    """The graph as others' pipelines call it, by tokens, mask, positions and `beam_idx` alone, with the logits of every position; weights that are
    packed stay so. Raises Declined with the reason."""
    import openvino
    from openvino import opset13 as ops

    from fourfold.engines.decode._traced import OneStep, plain_attention
    from fourfold.rewrites.compress._packed import unpacked

    kept: list[object] = []
    with unpacked(module) as packed, plain_attention(module):
        one = OneStep(module)
        graph = converted(one)
        narrowed(graph, packed, kept)
        ports = {port.get_any_name(): port for port in graph.inputs}
        first, step = ops.constant(np.int64(0)), ops.constant(np.int64(1))
        length = ops.gather(ops.shape_of(ports["input_ids"].get_node(), output_type="i64"), step, first)
        everything = ops.range(first, length, step, "i64")
        wanted = ports["wanted"].get_node()
        for reader in list(ports["wanted"].get_target_inputs()):
            reader.replace_source_output(everything.output(0))
        graph.remove_parameter(wanted)
        remember(graph, one.slots)
        openvino.save_model(graph, str(file), compress_to_fp16=False)


def narrowed(graph: Any, packed: Mapping[int, PackedWeight], kept: list[object]) -> None:
    """In place: constants that are packed weights, known by the address of their numbers, as codes that are widened."""
    import openvino

    for constant in [op for op in graph.get_ordered_ops() if op.get_type_name() == "Constant"]:
        if constant.output(0).get_element_type() == openvino.Type.f32 and (weight := packed.get(constant.data.ctypes.data)) is not None:
            replacement = widened(weight, kept)
            for port in list(constant.output(0).get_target_inputs()):
                port.replace_source_output(replacement.output(0))


def converted(one: OneStep) -> Any:
    """The traced step as an OpenVINO model whose inputs and outputs bear names; all sizes but heads and widths are open."""
    import io
    import warnings

    import openvino
    import torch

    example = one.example()
    names = ["input_ids", "attention_mask", "position_ids", "wanted"]
    noise = io.StringIO()
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(one.eval(), example, check_trace=False, strict=False)
            model = openvino.convert_model(traced, example_input=example)
    except Exception as error:
        raise Declined(f"OpenVINO cannot convert the decoder: {first_line(error)}") from error
    memories = 2 * len(one.slots)
    if len(model.inputs) < memories or len(model.outputs) != memories + 1:
        raise Declined(f"tracing kept {len(model.inputs)} inputs and {len(model.outputs)} outputs of a decoder with {memories} memories")
    # An input that no operation reads (positions of a model that has none) is dropped by the tracer; the others keep their order and their names.
    found = [next((n for n in names if any(part == n or part.startswith(f"{n}.") for part in port.get_names())), None)
             for port in model.inputs[: len(model.inputs) - memories]]
    left = iter([n for n in names if n not in found])
    for port, name in zip(model.inputs, found, strict=False):
        port.get_tensor().set_names({name or next(left)})
    for i in range(memories):
        model.inputs[len(model.inputs) - memories + i].get_tensor().set_names({f"past.{i}"})
        model.outputs[i + 1].get_tensor().set_names({f"present.{i}"})
    model.outputs[0].get_tensor().set_names({"logits"})
    return model


def remember(model: Any, slots: Sequence[Any]) -> None:
    """In place: memories become variables, empty at first, whose rows are reordered by a new input `beam_idx` [B] before they are read."""
    import openvino
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    sizes = [(s.heads, width) for s in slots for width in (s.width, s.values)]
    order = ops.parameter([-1], openvino.Type.i32, name="beam_idx")
    order.output(0).get_tensor().set_names({"beam_idx"})
    zero = ops.constant(np.int64(0))
    ports = {port.get_any_name(): port for port in model.inputs}
    rows = ops.gather(ops.shape_of(ports["input_ids"].get_node(), output_type="i64"), ops.constant(np.array([0], np.int64)), zero)
    for i, (heads, width) in enumerate(sizes):
        port = ports[f"past.{i}"]
        port.get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, width]))
        readers = list(port.get_target_inputs())
        sorted_rows = ops.gather(port.get_node(), order, zero)
        for reader in readers:
            reader.replace_source_output(sorted_rows.output(0))
    model.add_parameters([order])
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {f"past.{i}": f"present.{i}" for i in range(len(sizes))})
    for op in model.get_ops():
        if op.get_type_name() == "ReadValue":
            shape = op.get_output_partial_shape(0)
            size = ops.constant(np.array([shape[1].get_length(), 0, shape[3].get_length()], np.int64))
            op.set_arguments([ops.broadcast(ops.constant(np.float32(0)), ops.concat([rows, size], 0))])
    model.validate_nodes_and_infer_types()


def widened(weight: PackedWeight, kept: list[object]) -> Any:
    """The graph of a packed weight [out, in]: codes → float → minus offsets → times steps; arrays that it points at are added to `kept`."""
    import openvino
    from openvino import opset13 as ops

    from fourfold.rewrites.compress._packed import unpack

    grid, step = weight.grid, weight.step.numpy()
    groups, size = step.shape[1], weight.inputs // step.shape[1]
    shape = [weight.outputs, groups, size] if groups > 1 else [weight.outputs, size]
    tail = [weight.outputs, groups, 1] if groups > 1 else [weight.outputs, 1]
    signed = grid.offset == "symmetric"
    middle = 2 ** (grid.bits - 1)

    def constant(codes: np.ndarray, shape: list[int]) -> Any:
        """Whole numbers below 2^bits as the narrowest type."""
        if grid.bits == 8:
            array = np.ascontiguousarray((codes.astype(np.int16) - middle).astype(np.int8) if signed else codes.astype(np.uint8)).reshape(shape)
            kept.append(array)
            return ops.constant(array)
        flat = (codes.astype(np.uint8).reshape(-1) ^ 8) if signed else codes.astype(np.uint8).reshape(-1)  # two's complement of four bits
        flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
        array = np.ascontiguousarray(flat[0::2] | (flat[1::2] << 4))
        kept.append(array)
        return ops.constant(openvino.Tensor(array, openvino.Shape(shape), openvino.Type.i4 if signed else openvino.Type.u4))

    found = ops.convert(constant(unpack(weight.codes, grid.bits).numpy(), shape), "f32")
    if not signed:
        offset = weight.offset.numpy()
        if grid.offset == "integer":
            found = ops.subtract(found, ops.convert(constant(offset, tail), "f32"))
        else:
            found = ops.subtract(found, ops.constant(np.ascontiguousarray(offset.reshape(tail), np.float32)))
    found = ops.multiply(found, ops.constant(np.ascontiguousarray(step.reshape(tail), np.float32)))
    return ops.reshape(found, ops.constant(np.array([weight.outputs, weight.inputs], np.int64)), False) if groups > 1 else found


def declines(precision: str, machine: object) -> str | None:
    """Why this way to generate cannot be used in this precision on this machine, or None."""
    if precision not in PRECISIONS:
        return f"OpenVINO generates in {', '.join(PRECISIONS)}, not {precision}"
    return missing(("openvino",), "openvino") or (slow_bf16(machine) if precision == "bf16" else None)


def opened(module: nn.Module, inputs: Mapping[str, np.ndarray], threads: int = 1, precision: str = "fp32", cache: str = "",
           folder: Path | None = None) -> OpenVinoDecoding:  # fmt: skip
    """A decoder on OpenVINO that answers as the module does on `inputs` (a few rows), within the tolerance of its precision. Files are left in
    `folder` (none: they go when it is closed). Raises Declined with the reason."""
    from fourfold.engines.decode.base import TOLERANCE
    from fourfold.engines.decode.eager import EagerDecoding, agree

    scratch = None if folder is not None else tempfile.mkdtemp(prefix="fourfold-decode-")
    place = folder or Path(str(scratch))
    try:
        if not (place / f"{FILE}.xml").exists():
            export(module, place)
        found = OpenVinoDecoding(place, threads, precision, cache)
        if not agree(found, EagerDecoding(module, threads), inputs, TOLERANCE[precision]):
            raise Declined(f"OpenVINO's answers in {precision} are further from PyTorch's than {TOLERANCE[precision]:g} of their largest")
        return found
    finally:
        if scratch is not None:  # the compiled graph holds its weights itself
            shutil.rmtree(scratch, ignore_errors=True)
