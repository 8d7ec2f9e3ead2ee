"""Engines of regions: calls in, one callable out. Every engine answers within rounding of the calls made one by one, or says why it declines.

 eager         the calls, one after the other, as one Python function
 inductor      Inductor ahead of time with frozen weights (constants folded, convolutions and linears packed once), no guards; Inductor fuses as it
               sees fit within the region, and beyond the plan's groups
 openvino      the region converted to OpenVINO, in float32
 onnxruntime   the region of an .onnx file as a session of its own
 xla           the region of a JAX program, jitted
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.engines.call import Call, Region
from fourfold.engines.decompose import spelled
from fourfold.engines.region import ProgramNode, module, printed

ENGINES = ("eager", "inductor", "openvino", "onnxruntime", "xla")
OPTIONS = {"freezing": True}                                            # of Inductor


class Declined(Exception):
    """Why an engine cannot run a region, in words."""


@dataclass(frozen=True)
class Spec:
    """Shape, strides and dtype of a value, as it came out when the program ran."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: Any

    def example(self, device: str = "cpu") -> Any:
        import torch

        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device).zero_()


def spec_of(tensor: Any) -> Spec | None:
    """None of what is no torch tensor."""
    import torch

    return Spec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype) if isinstance(tensor, torch.Tensor) else None


@dataclass
class RegionJob:
    """All that an engine may ask of a region. `file`: the region as an ONNX model, where it comes from one; `folder`: where compiled code is kept."""

    region: Region
    calls: Sequence[Call]
    weights: Mapping[int, Any]
    specs: Mapping[int, Spec | None]
    threads: int
    file: bytes | None = None
    folder: Path | None = None
    mark: Any = None
    stamps: bool = False
    device: str = "cpu"

    def examples(self) -> list[Any]:
        found = []
        for v in self.region.reads:
            spec = self.specs.get(v)
            if spec is None:
                raise Declined(f"value {v} is no tensor")
            found.append(spec.example(self.device))
        return found


def build(engine: str, job: RegionJob) -> Callable[..., Any]:
    """A callable of the tensors of `region.reads` that returns those of `region.makes` (with `stamps` and engine eager: and times, see `printed`).

    Raises Declined with the reason where the engine cannot.
    """
    if not job.region.makes and engine != "eager":
        raise Declined("the region makes nothing")
    with _quiet():
        made = _BUILDERS[engine](job)
    return made


def _eager(job: RegionJob) -> Callable[..., Any]:
    import time

    return printed(job.region, job.calls, job.weights, mark=job.mark, clock=time.perf_counter if job.stamps else None)


# ---- Inductor ------------------------------------------------------------------------------------------------------------------------------------

def _compiler() -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")):
        raise Declined("Inductor needs a C++ compiler and there is none (install g++ or clang)")


def _fx(job: RegionJob) -> Any:
    if any(isinstance(call.target, ProgramNode) or getattr(call.target, "foreign", False) for call in job.calls):
        raise Declined("a node of the region is no torch operation")
    return module(job.region, job.calls, job.weights)


def _inductor(job: RegionJob) -> Callable[..., Any]:
    return _ahead(job)


def _ahead(job: RegionJob) -> Callable[..., Any]:
    """Compiled ahead of time into a package, which is kept in `folder` under a name of all that decides it; just in time where that fails."""
    import torch

    _compiler()
    graph, examples = _fx(job), job.examples()
    key = _key(job, graph)
    place = (job.folder or Path(tempfile.mkdtemp(prefix="fourfold-"))) / f"{key}.pt2"
    with torch.no_grad():
        try:
            if not place.exists():
                exported = torch.export.export(graph, tuple(examples), strict=False)
                with tempfile.TemporaryDirectory(dir=place.parent) as aside:
                    made = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(aside) / "region.pt2"),
                                                                       inductor_configs={**OPTIONS})
                    os.replace(made, place)
            loaded: Any = torch._inductor.aoti_load_package(str(place))
            loaded(*examples)
        except Exception as error:  # noqa: BLE001 — whatever it is, the other way may do
            try:
                jitted: Any = torch._inductor.compile(graph, examples, options={})
                jitted(*examples)
            except Exception:  # noqa: BLE001
                raise Declined(f"Inductor cannot compile it: {_line(error)}") from error
            return _fitted(jitted, job)
        finally:
            if job.folder is None:
                shutil.rmtree(place.parent, ignore_errors=True)         # loaded code stays mapped
    return _fitted(loaded, job)


def _fitted(call: Callable[..., Any], job: RegionJob) -> Callable[..., Any]:
    """Compiled code believes the strides that it was compiled for."""
    import torch

    wanted = [job.specs[v] for v in job.region.reads]

    def fit(tensor: Any, spec: Any) -> Any:
        return tensor if tensor.stride() == spec.stride else torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype,
                                                                                 device=tensor.device).copy_(tensor)

    def run(*tensors: Any) -> Any:
        return call(*[fit(t, s) for t, s in zip(tensors, wanted, strict=True)])

    return run


def _key(job: RegionJob, graph: Any) -> str:
    """Digest of code, weights, shapes, threads, torch and processor."""
    import torch

    from fourfold.host import here

    digest = hashlib.sha256(f"{torch.__version__} {here().fingerprint} {job.threads} {OPTIONS} {graph.code}".encode())
    for v in job.region.reads:
        digest.update(str(job.specs[v]).encode())
    for v, tensor in job.weights.items():
        digest.update(f"{v} {spec_of(tensor)}".encode())
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()[:32]


# ---- others --------------------------------------------------------------------------------------------------------------------------------------

def _openvino(job: RegionJob) -> Callable[..., Any]:
    """In float32, one stream for one call at a time."""
    import torch

    try:
        import openvino
    except ImportError:
        raise Declined("openvino is not installed: pip install 'fourfold[openvino]'") from None
    if job.device != "cpu":
        raise Declined("here OpenVINO runs on CPUs")
    try:
        if job.file is not None:
            converted = openvino.Core().read_model(job.file)
        else:
            graph, examples = spelled(_fx(job)), job.examples()
            with torch.no_grad(), _muted():
                converted = openvino.convert_model(graph.eval(), example_input=tuple(examples))
            converted.reshape({port: openvino.PartialShape(list(e.shape)) for port, e in zip(converted.inputs, examples, strict=True)})
        wish = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": "f32"}
        compiled: Any = openvino.Core().compile_model(converted, "CPU", wish)
    except Declined:
        raise
    except Exception as error:  # noqa: BLE001
        raise Declined(f"OpenVINO cannot convert it: {_line(error)}") from error
    if len(compiled.inputs) != len(job.region.reads) or len(compiled.outputs) != len(job.region.makes):
        raise Declined(f"OpenVINO keeps {len(compiled.inputs)} of {len(job.region.reads)} inputs, "
                       f"{len(compiled.outputs)} of {len(job.region.makes)} outputs")
    request = compiled.create_infer_request()
    dtypes = [_plain_dtype(job.specs.get(v)) for v in job.region.makes]

    def run(*tensors: Any) -> tuple[Any, ...]:
        found = request.infer([t.contiguous().numpy() for t in tensors], share_inputs=True, share_outputs=True)
        return tuple(_kept(torch.from_numpy(found[k].copy()), dtype) for k, dtype in enumerate(dtypes))   # the next call overwrites its outputs

    return run


def _plain_dtype(spec: Spec | None) -> Any:
    return spec.dtype if spec is not None else None


def _kept(tensor: Any, dtype: Any) -> Any:
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


def _onnxruntime(job: RegionJob) -> Callable[..., Any]:
    """All of ONNX Runtime's graph optimisations, the region's share of threads."""
    import torch

    from fourfold.engines.onnx_nodes import session

    if job.file is None:
        raise Declined("the program is no .onnx file")
    try:
        made = session(job.file, job.threads)
    except ImportError:
        raise Declined("onnxruntime is not installed: pip install 'fourfold[onnx]'") from None
    except Exception as error:  # noqa: BLE001
        raise Declined(f"ONNX Runtime cannot open it: {_line(error)}") from error
    names, wanted = [port.name for port in made.get_inputs()], [port.name for port in made.get_outputs()]

    def run(*tensors: Any) -> tuple[Any, ...]:
        return tuple(torch.from_numpy(a) for a in made.run(wanted, {n: t.contiguous().numpy() for n, t in zip(names, tensors, strict=True)}))

    return run


def _xla(job: RegionJob) -> Callable[..., Any]:
    """The primitives of the region in one jitted function."""
    if not any(isinstance(call.target, ProgramNode) and call.target.program.dialect == "jax" for call in job.calls):
        raise Declined("the program is no JAX function")
    import jax  # type: ignore[import-not-found]

    plain = printed(job.region, job.calls, {v: jax.numpy.asarray(w) for v, w in job.weights.items()})
    compiled = jax.jit(plain)

    def run(*arrays: Any) -> Any:
        return jax.block_until_ready(compiled(*arrays))

    return run


_BUILDERS: dict[str, Callable[[RegionJob], Callable[..., Any]]] = {
    "eager": _eager, "inductor": _inductor, "openvino": _openvino, "onnxruntime": _onnxruntime, "xla": _xla,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Compilers talk; what they raise says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if unknown := re.search(r"No conversion rule found for operations: ([\w:., ]+?)(?= --|$)", text):
        return f"it has no rule for {unknown[1]}"
    return (text or type(error).__name__)[:200]
