"""OpenVINO: fp32, bf16, int8 from calibration (NNCF) and int8 weights; opens from its two files alone. Regions are converted, and run in fp32."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fourfold.engines._pool import Pool
from fourfold.engines.base import Batch, Engine, RegionJob, Session, Signature, first_line, missing, one_line, slow_bf16
from fourfold.engines.decompose import spelled, spelled_out
from fourfold.engines.onnx import export_onnx
from fourfold.engines.parity import parity, references
from fourfold.errors import Declined

if TYPE_CHECKING:
    import torch
    from torch import nn

# Neither converter needs to phone home, and this package does not let them.
os.environ.setdefault("NNCF_CI", "1")
if "openvino_telemetry" not in sys.modules:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

ROUTES = ("trace", "onnx", "static")
#: fp32 files already in the folder (made for another precision) are taken only where they agree with the module this closely.
SAME = 1e-4


class OpenVino(Engine):
    """Converts by tracing, then through ONNX, then with fixed sizes: the first that gives the right answers on batches of other shapes."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    needs: ClassVar[tuple[str, ...]] = ("openvino",)
    extra: ClassVar[str] = "openvino"
    versions: ClassVar[tuple[str, ...]] = ("openvino", "nncf")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8", "int8-weights")
    standalone: ClassVar[bool] = True
    likely: ClassVar[Mapping[str, int]] = {"int8": 2, "bf16": 3, "fp32": 5, "int8-weights": 7}
    regions: ClassVar[tuple[str, ...]] = ("torch", "onnx")
    reads_onnx: ClassVar[bool] = True
    format: ClassVar[str] = "openvino"
    opened: ClassVar[str] = '`openvino.Core().compile_model("model.xml", "CPU")`'
    answering: ClassVar[str] = """
import openvino
compiled = openvino.Core().compile_model(folder + "/model.xml", "CPU", {"INFERENCE_PRECISION_HINT": hint})
wanted = [p.get_any_name() for p in compiled.inputs]
found = [np.array(compiled({n: b[n] for n in wanted})[0]) for b in batches]
"""

    @classmethod
    def declines(cls, precision: str, machine: object) -> str | None:
        reason = super().declines(precision, machine)
        return reason or (missing(("nncf",), cls.extra) if precision.startswith("int8") else None)

    @classmethod
    def export(cls, wrapped: nn.Module, signature: Signature, calibration: Sequence[Batch], precision: str, folder: Path) -> list[str]:
        import openvino

        if precision == "int8" and not calibration:
            raise Declined("int8 needs calibration batches and there are none")
        batches = list(calibration[:3]) or [signature.example]
        wanted = references(wrapped, signature, batches)
        reasons: list[str] = []
        made = folder / "openvino-fp32.xml"
        for route in (made, *ROUTES) if made.exists() else ROUTES:
            try:
                model = openvino.Core().read_model(str(route)) if route is made else convert(wrapped, signature, str(route))
                noise, reason = parity(OpenVinoSession(model, signature, "fp32", 1), batches, wanted, "fp32")
                if reason is None and (route is not made or noise < SAME):
                    break
                reasons.append(f"{route}: {reason}")
            except Exception as error:
                reasons.append(f"{route}: {first_line(error)}")
        else:
            raise Declined("; ".join(reasons))
        if route is not made:
            save(model, made)
        if precision != "fp32":
            save(compress(model, precision, signature, calibration), folder / f"openvino-{precision}.xml", half=precision == "bf16")
        return [f"openvino-{precision}.xml", f"openvino-{precision}.bin"]

    @classmethod
    def open(cls, folder: Path, wrapped: nn.Module | None, signature: Signature, precision: str, threads: int) -> Session:
        import openvino

        file = folder / f"openvino-{precision}.xml"
        session = OpenVinoSession(openvino.Core().read_model(str(file)), signature, precision, threads)
        session.bytes = file.with_suffix(".bin").stat().st_size
        return session

    @classmethod
    def compile(cls, job: RegionJob) -> Callable[..., object]:
        if reason := missing(cls.needs, cls.extra):
            raise Declined(reason)
        if job.device != "cpu":
            raise Declined(f"here {cls.title} runs on CPUs")
        return region(job)


class OpenVinoSession(Session):
    """One stream of `threads` threads that are not pinned to cores; an infer request for each caller at a time, since a request holds its result."""

    queues = True  # its one stream does a call at a time
    multiple = 8  # a length not met before costs several times a pass; multiples of 8 are soon all met

    def __init__(self, model: object, signature: Signature, precision: str, threads: int) -> None:
        from fourfold.host import here

        # int8 leaves the rest of the graph in the fastest float this processor has.
        halves = precision == "bf16" or (precision.startswith("int8") and slow_bf16(here()) is None and bool(here().flags))
        self.compiled: Any = compiled(model, threads, "bf16" if halves else "f32")
        self.requests: Pool[Any] = Pool(self.compiled.create_infer_request)
        self.wanted = [port.get_any_name() for port in self.compiled.inputs]
        self.signature, self.precision, self.threads = signature, precision, threads

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        feed = [np.ascontiguousarray(inputs[name], dtype=self.signature.dtypes[name]) for name in self.wanted]
        with self.requests.one() as request:
            # The result lives in memory that the next call of this request overwrites.
            return np.array(request.infer(feed, share_inputs=True, share_outputs=True)[0], dtype=np.float32, copy=True)

    def describe(self) -> dict[str, object]:
        import openvino

        ran = {key.lower(): str(self.compiled.get_property(key)) for key in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS")}
        return {"engine": "openvino", "version": openvino.__version__, "precision": self.precision, "threads": self.threads, **ran}

    def close(self) -> None:
        self.requests.clear()  # safe to call twice: points of one candidate share a session
        self.compiled = None


def save(model: object, path: Path, half: bool = False) -> None:
    """Write beside and rename: an open session may still have the old weights mapped into memory."""
    import openvino

    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        openvino.save_model(model, str(Path(scratch) / path.name), compress_to_fp16=half)
        for suffix in (".bin", ".xml"):
            (Path(scratch) / path.name).with_suffix(suffix).replace(path.with_suffix(suffix))


def convert(wrapped: nn.Module, signature: Signature, route: str) -> object:
    """An openvino.Model whose inputs bear the signature's names and whose dynamic axes, and only those, are open."""
    import warnings

    import openvino
    import torch

    from fourfold.frontends.onnx_model import graph_in

    if route != "onnx" and graph_in(wrapped) is not None:
        raise Declined("an .onnx file is read as it is")
    if route == "onnx":
        if reason := missing(("onnx",), "onnx"):
            raise Declined(reason)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.onnx"
            export_onnx(wrapped, signature, path, "torchscript")
            return openvino.Core().read_model(path.read_bytes())
    open_axes = signature.dynamic if route == "trace" else {name: {} for name in signature.names}
    sizes = {n: [-1 if axis in open_axes[n] else size for axis, size in enumerate(a.shape)] for n, a in signature.example.items()}
    noise = io.StringIO()
    with warnings.catch_warnings(), torch.no_grad(), spelled_out(wrapped), contextlib.redirect_stdout(noise):
        warnings.simplefilter("ignore")
        model = openvino.convert_model(wrapped, example_input=signature.tensors(signature.example))
    if len(model.inputs) != len(signature.names):
        raise Declined(f"tracing kept {len(model.inputs)} of {len(signature.names)} inputs")
    for port, name in zip(model.inputs, signature.names, strict=True):
        port.get_tensor().set_names({name})
    model.reshape({name: openvino.PartialShape(sizes[name]) for name in signature.names})
    return model


def compress(model: Any, precision: str, signature: Signature, calibration: Sequence[Batch]) -> Any:
    """int8 by NNCF: weights and activations from calibration, or weights alone."""
    if not precision.startswith("int8"):
        return model
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        if precision == "int8-weights":
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        names = [port.get_any_name() for port in model.inputs]
        data = nncf.Dataset([{name: batch[name] for name in names} for batch in calibration])
        kinds = {op.get_type_name() for op in model.get_ordered_ops()}
        attends = "ScaledDotProductAttention" in kinds or "Softmax" in kinds
        kind = nncf.ModelType.TRANSFORMER if attends else None
        # Bias correction takes two fifths of the time and changes nothing where layer norms follow (answers 5.1 instead of 4.9 % apart, MiniLM).
        more = nncf.AdvancedQuantizationParameters(disable_bias_correction=attends)
        return nncf.quantize(
            model, data, preset=nncf.QuantizationPreset.MIXED, model_type=kind, subset_size=len(calibration), advanced_parameters=more
        )


def compiled(model: Any, threads: int, precision: str) -> Any:
    """The model compiled for the processor: one stream of `threads` threads that are not pinned to cores; `precision` "f32" or "bf16"."""
    import openvino

    wish = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": precision}  # fmt: skip
    return openvino.Core().compile_model(model, "CPU", wish)


def region(job: RegionJob) -> Callable[..., object]:
    """A region converted, for one call at a time."""
    import openvino
    import torch

    try:
        if job.file is not None:
            converted = openvino.Core().read_model(job.file)
        else:
            graph, examples = spelled(job.graph()), job.examples()
            with torch.no_grad(), muted():
                converted = openvino.convert_model(graph.eval(), example_input=tuple(examples))
            converted.reshape({port: openvino.PartialShape(list(e.shape)) for port, e in zip(converted.inputs, examples, strict=True)})
        made = compiled(converted, job.threads, "f32")
    except Declined:
        raise
    except Exception as error:  # noqa: BLE001
        raise Declined(f"OpenVINO cannot convert it: {unknown(error)}") from error
    if len(made.inputs) != len(job.region.reads) or len(made.outputs) != len(job.region.makes):
        raise Declined(f"OpenVINO keeps {len(made.inputs)} of {len(job.region.reads)} inputs, "
                       f"{len(made.outputs)} of {len(job.region.makes)} outputs")
    request = made.create_infer_request()
    dtypes = [spec.dtype if (spec := job.specs.get(v)) is not None else None for v in job.region.makes]

    def run(*tensors: Any) -> tuple[object, ...]:
        found = request.infer([t.contiguous().numpy() for t in tensors], share_inputs=True, share_outputs=True)
        return tuple(_kept(torch.from_numpy(found[k].copy()), dtype) for k, dtype in enumerate(dtypes))   # the next call overwrites its outputs

    return run


def _kept(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def unknown(error: BaseException) -> str:
    """Its converter's error in a line: the operations that it has no rule for, where it names them."""
    text = " ".join(str(error).split())
    found = re.search(r"No conversion rule found for operations: ([\w:., ]+?)(?= --|$)", text)
    return f"it has no rule for {found[1]}" if found else one_line(error)
