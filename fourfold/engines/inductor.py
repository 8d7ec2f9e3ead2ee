"""Inductor: of modules by torch.compile, in fp32, bf16, and torchao's int8 with frozen weights; compiling takes long, is measured, and has a limit.
Of regions ahead of time with frozen weights (constants folded, convolutions and linears packed once), without guards; it fuses as it sees fit within
the region, and beyond the plan's groups."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from fourfold.engines._pool import Turns, forked
from fourfold.engines.base import (  # fmt: skip
    Batch,
    Engine,
    RegionJob,
    Session,
    Signature,
    TimeIsUp,
    first_line,
    limit,
    missing,
    no_compiler,
    one_line,
    spec_of,
    weigh,
)
from fourfold.errors import Declined
from fourfold.rewrites.compress.quantise import narrow, to_bf16

if TYPE_CHECKING:
    from torch import fx

#: Seconds that one compilation may take. Overridden by the environment variable FOURFOLD_COMPILE_LIMIT.
LIMIT = 180.0
AHEAD = {"freezing": True}                                              # options of a region's compilation


class Inductor(Engine):
    """Shapes stay dynamic, so that batches of other lengths do not compile again."""

    name: ClassVar[str] = "inductor"
    title: ClassVar[str] = "torch.compile"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    extra: ClassVar[str] = "torchao"
    versions: ClassVar[tuple[str, ...]] = ("torchao",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")
    likely: ClassVar[Mapping[str, int]] = {"bf16": 11, "int8": 12, "fp32": 13}
    slow: ClassVar[Mapping[str, float]] = {"fp32": 90.0, "bf16": 90.0, "int8": 150.0}
    regions: ClassVar[tuple[str, ...]] = ("torch", "onnx")

    @classmethod
    def declines(cls, precision: str, machine: object) -> str | None:
        reason = super().declines(precision, machine) or (missing(("torchao",), cls.extra) if precision == "int8" else None)
        return reason or no_compiler()

    @classmethod
    def refuses(cls, precision: str, machine: object) -> str | None:
        return cls.declines(precision, machine)  # its code is made where it runs

    @classmethod
    def export(cls, wrapped: nn.Module, signature: Signature, calibration: Sequence[Batch], precision: str, folder: Path) -> list[str]:
        """Nothing to write: code is compiled for the machine that it runs on, when it is opened."""
        if sealed := getattr(getattr(wrapped, "module", None), "sealed", None):
            raise Declined(sealed)
        return []

    @classmethod
    def open(cls, folder: Path, wrapped: nn.Module | None, signature: Signature, precision: str, threads: int) -> Session:
        if wrapped is None:
            raise Declined("torch.compile needs the module itself, not only files")
        module = copy.deepcopy(wrapped).eval()
        if precision == "bf16":
            to_bf16(module)
        elif precision == "int8":
            shrink(module)
        return InductorSession(module, signature, precision, threads)

    @classmethod
    def compile(cls, job: RegionJob) -> Callable[..., object]:
        return ahead(job)


class InductorSession(Session):
    """Compiles on opening, for one thread count. Compiled code may run in several threads at once, but compiling may not: inputs whose sizes are new
    in kind (which axes are 1, which are equal) are run alone, since they may have to be compiled for."""

    turns: ClassVar[Turns] = Turns()  # one for all sessions: the compiler's state is the process's

    def __init__(self, module: nn.Module, signature: Signature, precision: str, threads: int) -> None:
        from torch._inductor import config

        self.signature, self.precision, self.threads = signature, precision, 1 if forked() else threads
        quiet()
        torch.set_num_threads(self.threads)
        torch._dynamo.reset()
        self.frozen = precision == "int8"
        self.bytes = weigh(module)
        self.patch = config.patch(freezing=self.frozen, compile_threads=1)
        self.seen: set[tuple[int, ...]] = set()
        self.compiled: Any = torch.compile(module, dynamic=True)
        started = time.perf_counter()
        try:
            with limit(float(os.environ.get("FOURFOLD_COMPILE_LIMIT", LIMIT))):
                self.run(signature.example)
                self.run({name: value[: max(2, len(value) // 2)] for name, value in signature.example.items()})
        except TimeIsUp:
            torch._dynamo.reset()
            raise Declined(f"compiling took longer than {time.perf_counter() - started:.0f} s and was stopped") from None
        except Exception as error:
            torch._dynamo.reset()
            raise Declined(f"compiling failed: {first_line(error)}") from None
        self.seconds = time.perf_counter() - started

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        tensors = self.signature.tensors(inputs)
        if self.precision == "bf16":
            tensors = tuple(narrow(t) if t.is_floating_point() else t for t in tensors)
        flat = [size for tensor in tensors for size in tensor.shape]
        sizes = tuple(-1 if size == 1 else flat.index(size) for size in flat)
        # no_grad, not inference_mode: freezing looks at the former only.
        if sizes in self.seen:
            with contextlib.suppress(Exception), self.turns.together(), torch.no_grad():
                return self.compiled(*tensors).float().numpy()
        with self.turns.alone(), self.patch, torch.no_grad():
            answer = self.compiled(*tensors).float().numpy()
            self.seen.add(sizes)
            return answer

    def describe(self) -> dict[str, object]:
        return {
            "engine": "inductor", "version": torch.__version__, "precision": self.precision, "threads": self.threads,
            "frozen": self.frozen, "compile_seconds": round(self.seconds, 1),
        }  # fmt: skip

    def close(self) -> None:
        self.compiled = None
        torch._dynamo.reset()


def ahead(job: RegionJob) -> Callable[..., object]:
    """A region compiled ahead of time into a package, kept in `folder` under a name of all that decides it; just in time where that fails."""
    if reason := no_compiler():
        raise Declined(reason)
    graph, examples = job.graph(), job.examples()
    key = key_of(job, graph)
    place = (job.folder or Path(tempfile.mkdtemp(prefix="fourfold-"))) / f"{key}.pt2"
    with torch.no_grad():
        try:
            if not place.exists():
                exported = torch.export.export(graph, tuple(examples), strict=False)
                with tempfile.TemporaryDirectory(dir=place.parent) as aside:
                    made = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(aside) / "region.pt2"),
                                                                       inductor_configs={**AHEAD})
                    os.replace(made, place)
            loaded: Any = torch._inductor.aoti_load_package(str(place))
            loaded(*examples)
        except Exception as error:  # noqa: BLE001 — whatever it is, the other way may do
            try:
                jitted: Any = torch._inductor.compile(graph, examples, options={})
                jitted(*examples)
            except Exception:  # noqa: BLE001
                raise Declined(f"Inductor cannot compile it: {one_line(error)}") from error
            return fitted(jitted, job)
        finally:
            if job.folder is None:
                shutil.rmtree(place.parent, ignore_errors=True)         # loaded code stays mapped
    return fitted(loaded, job)


def fitted(call: Callable[..., object], job: RegionJob) -> Callable[..., object]:
    """Compiled code believes the strides that it was compiled for."""
    wanted = [job.specs[v] for v in job.region.reads]

    def fit(tensor: Any, spec: Any) -> object:
        return tensor if tensor.stride() == spec.stride else torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype,
                                                                                 device=tensor.device).copy_(tensor)

    def run(*tensors: object) -> Any:
        return call(*[fit(t, s) for t, s in zip(tensors, wanted, strict=True)])

    return run


def key_of(job: RegionJob, graph: fx.GraphModule) -> str:
    """Digest of code, weights, shapes, threads, torch and processor."""
    from fourfold.host import here

    digest = hashlib.sha256(f"{torch.__version__} {here().fingerprint} {job.threads} {AHEAD} {graph.code}".encode())
    for v in job.region.reads:
        digest.update(str(job.specs[v]).encode())
    for v, tensor in job.weights.items():
        digest.update(f"{v} {spec_of(tensor)}".encode())
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()[:32]


def shrink(module: nn.Module) -> None:
    """torchao's dynamic int8, in place; per token × per output channel."""
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(module, Int8DynamicActivationInt8WeightConfig())


def quiet() -> None:
    """The libraries under us report their own missing CUDA parts and each recompilation."""
    for name in ("torch", "torch._dynamo", "torch._inductor", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)
