"""ONNX Runtime: fp32, and int8 with scales per output channel, dynamic or calibrated (QDQ); opens from its file alone. Of an .onnx program it runs
regions too."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fourfold.engines.base import Batch, Engine, RegionJob, Session, Signature, TimeIsUp, first_line, limit, missing, one_line
from fourfold.engines.onnx import export_onnx
from fourfold.engines.parity import parity, references
from fourfold.errors import Declined
from fourfold.frontends.onnx_session import session_of

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn

GRAPHS = ("torchscript", "dynamo")
#: Seconds that one exporter may take; the second one sometimes takes minutes.
PATIENCE = 60.0


class OnnxRuntime(Engine):
    """Exports twice where both exporters work, because the graph matters as much as the quantiser, and keeps the faster file."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    opens: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    extra: ClassVar[str] = "onnx"
    versions: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int8-static")
    standalone: ClassVar[bool] = True
    likely: ClassVar[Mapping[str, int]] = {"int8": 4, "fp32": 6, "int8-static": 10}
    slow: ClassVar[Mapping[str, float]] = {"int8-static": 45.0}
    regions: ClassVar[tuple[str, ...]] = ("onnx",)
    reads_onnx: ClassVar[bool] = True
    format: ClassVar[str] = "onnx"
    opened: ClassVar[str] = '`onnxruntime.InferenceSession("model.onnx")`'
    answering: ClassVar[str] = """
import onnxruntime
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
wanted = [p.name for p in session.get_inputs()]
found = [session.run(None, {n: b[n] for n in wanted})[0] for b in batches]
"""

    @classmethod
    def export(cls, wrapped: nn.Module, signature: Signature, calibration: Sequence[Batch], precision: str, folder: Path) -> list[str]:
        if precision == "int8-static" and not calibration:
            raise Declined("static int8 needs calibration batches and there are none")
        file = f"onnxruntime-{precision}.onnx"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made: dict[str, Path] = {}
            reasons: list[str] = []
            for graph in GRAPHS:
                if graph == "dynamo" and (missing(("onnxscript",), cls.extra) or precision != "int8" and made):
                    continue
                path = Path(scratch) / f"{graph}.onnx"
                try:
                    with limit(PATIENCE):
                        export_onnx(wrapped, signature, path, graph)
                    made[graph] = quantise(path, Path(scratch) / f"{graph}-{precision}.onnx", precision, signature, calibration)
                    agree(made[graph], wrapped, signature, precision, calibration)
                except (Exception, TimeIsUp) as error:
                    made.pop(graph, None)
                    reasons.append(f"{graph} export: {first_line(error) if isinstance(error, Exception) else f'took longer than {PATIENCE:.0f} s'}")
            if not made:
                raise Declined("; ".join(reasons))
            fastest(made, signature, calibration).replace(folder / file)
        return [file]

    @classmethod
    def open(cls, folder: Path, wrapped: nn.Module | None, signature: Signature, precision: str, threads: int) -> Session:
        return OnnxSession(folder / f"onnxruntime-{precision}.onnx", signature, precision, threads)

    @classmethod
    def compile(cls, job: RegionJob) -> Callable[..., object]:
        """With the region's share of threads, which wait actively: its cores are its own."""
        import torch

        if job.file is None:
            raise Declined("the program is no .onnx file")
        if reason := missing(cls.opens, cls.extra):
            raise Declined(reason)
        try:
            session = session_of(job.file, job.threads)
        except Exception as error:  # noqa: BLE001
            raise Declined(f"{cls.title} cannot open it: {one_line(error)}") from error
        names, wanted = [port.name for port in session.get_inputs()], [port.name for port in session.get_outputs()]

        def run(*tensors: Any) -> tuple[object, ...]:
            given = {name: tensor.contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}
            return tuple(torch.from_numpy(array) for array in session.run(wanted, given))

        return run


class OnnxSession(Session):
    """Threads do not spin between operators, so that processor time is work. ONNX Runtime itself lets several threads run one session."""

    def __init__(self, path: Path, signature: Signature, precision: str, threads: int) -> None:
        self.session: Any = session_of(str(path), threads, spin=False)
        self.wanted = [port.name for port in self.session.get_inputs()]
        self.signature, self.precision, self.threads = signature, precision, threads
        self.bytes = path.stat().st_size

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        feed = {name: np.ascontiguousarray(inputs[name], dtype=self.signature.dtypes[name]) for name in self.wanted}
        return np.asarray(self.session.run(None, feed)[0], np.float32)

    def describe(self) -> dict[str, object]:
        import onnxruntime

        providers = self.session.get_providers()
        return {
            "engine": "onnxruntime", "version": onnxruntime.__version__, "precision": self.precision, "threads": self.threads, "providers": providers
        }  # fmt: skip

    def close(self) -> None:
        self.session = None


def quantise(source: Path, target: Path, precision: str, signature: Signature, calibration: Sequence[Batch]) -> Path:
    """int8 weights per output channel; activations per tensor, at run time ("int8") or from calibration ("int8-static")."""
    if precision == "fp32":
        return source
    from onnxruntime import quantization as q

    quiet = (logging.getLogger(), logging.getLogger("onnxruntime"))
    before = [log.level for log in quiet]
    for log in quiet:  # it tells the root logger what it thinks of every model
        log.setLevel(logging.CRITICAL)
    try:
        return rounded(q, source, target, precision, signature, calibration)
    finally:
        for log, level in zip(quiet, before, strict=True):
            log.setLevel(level)


def rounded(q: ModuleType, source: Path, target: Path, precision: str, signature: Signature, calibration: Sequence[Batch]) -> Path:
    """The quantiser proper, `q` being onnxruntime.quantization."""
    import onnx

    model = onnx.load(source)
    # The dynamo exporter notes a shape for every value; the quantiser transposes weights and would then trip over them.
    del model.graph.value_info[:]
    onnx.save(model, source)
    if precision == "int8":
        q.quantize_dynamic(source, target, weight_type=q.QuantType.QInt8, per_channel=True, reduce_range=False)
        return target
    ready = source.with_suffix(".ready.onnx")
    try:
        q.shape_inference.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    except Exception:
        ready = source
    q.quantize_static(
        ready,
        target,
        Reader(signature, calibration),  # type: ignore[arg-type]
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=False,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        calibrate_method=q.CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, "MatMulConstBOnly": True},
    )
    return target


class Reader:
    """Calibration batches one by one, the way ONNX Runtime asks for them."""

    def __init__(self, signature: Signature, batches: Sequence[Batch]) -> None:
        self.names, self.batches = signature.names, batches
        self.rewind()

    def rewind(self) -> None:
        self.queue = iter(self.batches)

    def get_next(self) -> Batch | None:
        batch = next(self.queue, None)
        return None if batch is None else {name: batch[name] for name in self.names}


def agree(path: Path, wrapped: nn.Module, signature: Signature, precision: str, calibration: Sequence[Batch]) -> None:
    """Raise `Declined` where the file does not do what the module does: one exporter's graph may be right and the other's wrong."""
    batches = list(calibration[:2]) or [signature.example]
    _, reason = parity(OnnxSession(path, signature, precision, 1), batches, references(wrapped, signature, batches), precision)
    if reason:
        raise Declined(reason)


def fastest(made: dict[str, Path], signature: Signature, calibration: Sequence[Batch]) -> Path:
    """The file that takes the least processor time on a calibration batch."""
    if len(made) == 1:
        return next(iter(made.values()))
    from fourfold.measure.race import race

    batch = calibration[0] if calibration else signature.example
    sessions = {graph: OnnxSession(path, signature, "", 1) for graph, path in made.items()}
    runners = {graph: (lambda session=session: session.run(batch)) for graph, session in sessions.items()}
    taken = race(runners, baseline=next(iter(made)), rounds=3, min_time=0.02)
    return made[min(made, key=lambda graph: taken[graph].cpu_median)]
