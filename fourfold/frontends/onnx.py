"""An .onnx file → Graph: weights folded, dynamic dimensions given values, shapes inferred; executed node by node by ONNX Runtime or onnx's reference.

A node whose inputs are all known before the run (initialisers, Constant, ConstantOfShape) is no operation of the program but a weight of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fourfold.errors import InputError
from fourfold.frontends import flops as ops
from fourfold.frontends.onnx_file import (
    STANDARD,
    by_name,
    check_model,
    dtype_of,
    fed_inputs,
    fix_dimensions,
    import_onnx,
    load,
    names_read,
    one_line,
    sort_nodes,
    subgraphs_of,
)
from fourfold.frontends.onnx_ops import OPS, UNKNOWN, flops_of
from fourfold.frontends.onnx_shapes import ValueSpec, inferred, probed, runner_of, sized_by_data
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, OPAQUE, REDUCTION, VIEW, Builder
from fourfold.program import Captured, Program

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def capture(
    path: str | Path, inputs: object = None, *, dims: Mapping[str, int] | None = None, train: bool = False, name: str = "", check: bool = True
) -> Captured:
    """Capture an ONNX file. `dims` gives dynamic dimensions values, by their name ("batch") or as "input.axis"; shapes of `inputs` (a mapping by
    name, or a sequence) do so too.

    Raises InputError where the file is missing, malformed, cyclic, of an opset that the installed onnx does not know, lacks its external weights, or
    has a dimension without a value; MissingExtra without onnx.
    """
    onnx = import_onnx()
    if train:
        raise InputError("An ONNX file holds no backward pass.", "Give the torch module to capture training.")
    file = Path(path)
    model = load(onnx, file)
    sort_nodes(file, model)
    if check:
        check_model(onnx, file, model)
    fix_dimensions(file, model, by_name(model, inputs), dict(dims or {}))
    return _Build(onnx, file, model, name or file.stem, by_name(model, inputs)).captured()


# --- building --------------------------------------------------------------------------------------------------------------------------------------


class _Build:
    def __init__(self, onnx: ModuleType, file: Path, model: ModelProto, title: str, given: Mapping[str, object] | None = None) -> None:
        self.onnx, self.file, self.model, self.given = onnx, file, model, dict(given or {})
        self.builder, self.layers = Builder(title), ops.Layers()
        self.version = next((o.version for o in model.opset_import if o.domain in STANDARD), onnx.defs.onnx_opset_version())
        self.spec = inferred(onnx, file, model)
        self.initial = {t.name: t for t in model.graph.initializer}
        self.folded: dict[str, Any] = {}  # value name → node that makes it before the run
        self.value: dict[str, int] = {}
        self.bound: dict[int, str] = {}
        self.steps: list[tuple[Any, list[str]]] = []
        self.note: list[str] = []
        self.wanted = {name for node in model.graph.node for name in names_read(node)} | {out.name for out in model.graph.output}

    def made(self, node: NodeProto) -> list[str]:
        """Names of the outputs that somebody reads; the first in any case (a dropout's mask is mostly left lying)."""
        return [name for i, name in enumerate(node.output) if name and (i == 0 or name in self.wanted)]

    def captured(self) -> Captured:
        graph = self.model.graph
        for tensor in graph.initializer:
            self.spec[tensor.name] = tuple(tensor.dims), dtype_of(self.onnx, tensor.data_type)
        running = [node for node in graph.node if not self.fold(node)]
        self.complete(running)
        fed = {name: self.builder.input(*self.spec[name], name) for name in fed_inputs(self.model)}
        self.value |= fed
        for index, node in enumerate(running):
            self.call(node, index)
        for out in graph.output:
            self.builder.output(self.read(out.name))
        program = OnnxProgram(self.onnx, self.file, self.model, self.steps, self.value, self.bound, self.folded, list(fed), self.spec)
        return Captured(self.builder.build(), program, tuple(self.note))

    def fold(self, node: NodeProto) -> bool:
        """Whether the node's result is known before the run."""
        known = all(name in self.initial or name in self.folded for name in names_read(node))
        if not known or OPS.get(node.op_type, UNKNOWN).draws or node.domain not in STANDARD or any(subgraphs_of(a) for a in node.attribute):
            return False
        self.folded |= dict.fromkeys((name for name in node.output if name), node)
        return True

    def complete(self, running: Sequence[NodeProto]) -> None:
        """Shapes that inference left open are read off one run of the model on zeros; what depends on data even then is refused by name."""
        missing = [name for node in running for name in self.made(node) if name not in self.spec]
        missing += [name for name in self.folded if name not in self.spec]
        if not missing:
            return
        real = bool(self.given) and set(self.given) >= set(fed_inputs(self.model))
        told = sized_by_data(self.model, set(missing) - set(self.folded))
        if told and not real:
            name, op = next(iter(told.items()))
            raise InputError(f"{self.file}: the size of {name!r} depends on the data ({op}).", "Plan from a real example: --inputs FILE.npz")
        try:
            found = probed(self.onnx, self.file, self.model, self.spec, missing, self.given if real else None)
        except Exception as error:
            raise InputError(
                f"{self.file}: the shape of {missing[0]!r} cannot be inferred, and running the model to see it failed: {one_line(error)}.",
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

    def call(self, node: NodeProto, index: int) -> None:
        attributes = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        shapes = [self.spec[name][0] if name else () for name in node.input]
        made = self.made(node)
        outputs = [self.spec[name] for name in made]
        standard = node.domain in STANDARD
        op = OPS.get(node.op_type, UNKNOWN)
        fusion, known = (OPAQUE, False) if op.fusion is None else (op.fusion, standard or node.domain == "com.microsoft")
        if node.op_type == "Dropout" and self.training(node, attributes):
            fusion = ELEMENTWISE
        if any(subgraphs_of(a) for a in node.attribute):
            known = False
        reads = [self.read(name) for name in names_read(node)]
        flops = flops_of(node.op_type, attributes, shapes, [s for s, _ in outputs]) if fusion == CONTRACTION else 0.0
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
        self, node: NodeProto, attributes: Mapping[str, Any], shapes: Sequence[ops.Shape], outputs: Sequence[ValueSpec], fusion: int, known: bool,
        largest: int,
    ) -> float:
        if not known:
            return largest * ops.ASSUMED_STEPS if fusion != VIEW else 0.0
        if fusion not in (ELEMENTWISE, REDUCTION, OPAQUE) or OPS[node.op_type].moves:
            return 0.0
        if node.op_type in ("MaxPool", "AveragePool", "LpPool"):
            return float(prod(outputs[0][0]) * prod(attributes.get("kernel_shape", (1,))))
        if node.op_type == "LRN":
            return float(largest * (2 * attributes.get("size", 1) + 3))
        return float(largest * OPS[node.op_type].steps)

    def training(self, node: NodeProto, attributes: Mapping[str, object]) -> bool:
        """Whether a Dropout draws: it does where its third input says so."""
        return len(node.input) > 2 and bool(node.input[2])


def _width(dtype: str) -> float:
    from fourfold.graph import BITS

    return BITS.get(dtype, 0) / 8


def _module(name: str) -> str:
    """torch's exporters name a node "/encoder/layer.0/MatMul" by the module path; the last part is the op."""
    parts = [part for part in name.split("/") if part]
    return ".".join(parts[:-1]) if name.startswith("/") else ""


# --- running ---------------------------------------------------------------------------------------------------------------------------------------


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
    spec: dict[str, ValueSpec]

    dialect = "onnx"

    def __post_init__(self) -> None:
        self._sessions: dict[int, Callable[[Mapping[str, object]], list[object]]] = {}
        self._weights: dict[int, object] | None = None

    def weights(self) -> dict[int, object]:
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

    def _fold(self, made: Sequence[str]) -> list[object]:
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

    def feed(self, *inputs: object, **named: object) -> dict[int, object]:
        import numpy as np

        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            inputs, named = (), {**inputs[0], **named}
        given = dict(zip(self.inputs, inputs, strict=False)) | named
        if set(given) != set(self.inputs):
            raise InputError(f"Inputs {', '.join(sorted(given)) or 'none'} were given.", f"The model takes {', '.join(self.inputs)}.")
        fed: dict[int, object] = {}
        for name, array in given.items():
            array, (shape, dtype) = np.asarray(array), self.spec[name]
            if array.shape != shape or str(array.dtype) != dtype:
                raise InputError(
                    f"input {name} is {array.dtype}{list(array.shape)}; the program was captured for {dtype}{list(shape)}.",
                    "Capture it again for these shapes.",
                )
            fed[self.value[name]] = array
        return fed

    def step(self, node: int, values: Mapping[int, object]) -> tuple[object, ...]:
        call, made = self.calls[node]
        reads = names_read(call)
        if node not in self._sessions:
            self._sessions[node] = self._session(call, reads, made)
        return tuple(self._sessions[node]({name: values[self.value[name]] for name in reads}))

    def _session(self, call: NodeProto, reads: Sequence[str], made: Sequence[str]) -> Callable[[Mapping[str, object]], list[object]]:
        helper = self.onnx.helper
        code = {dtype_of(self.onnx, c): c for c in self.onnx.TensorProto.DataType.values() if c}
        entries = [helper.make_tensor_value_info(name, code[self.spec[name][1]], self.spec[name][0]) for name in reads]
        graph = helper.make_graph([call], call.name or call.op_type, entries, [helper.make_empty_tensor_value_info(name) for name in made])
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return runner_of(self.onnx, self.file, model, made)

    def collect(self, values: Mapping[int, object]) -> dict[str, object]:
        """The outputs by name."""
        return {out.name: values[self.value[out.name]] for out in self.model.graph.output}
