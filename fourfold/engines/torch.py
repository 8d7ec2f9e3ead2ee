"""PyTorch as it is: the module called eagerly; of a region, its calls one after the other as one Python function, which plans call "eager". Always
there, and what every other engine is compared with."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch as pytorch
from torch import nn

from fourfold.engines._pool import Pool, forked, replica
from fourfold.engines.base import Batch, Engine, RegionJob, Session, Signature, weigh
from fourfold.engines.region import printed
from fourfold.errors import Declined
from fourfold.recipe import Recipe, apply
from fourfold.rewrites.compress.quantise import narrow, plan, to_bf16


class Torch(Engine):
    """fp32, bf16, and int8 through the modules of `fourfold.rewrites.compress.quantise`."""

    name: ClassVar[str] = "torch"
    title: ClassVar[str] = "PyTorch"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    versions: ClassVar[tuple[str, ...]] = ("torch",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8", "int8-static", "int8-weights")
    likely: ClassVar[Mapping[str, int]] = {"fp32": -1, "bf16": 0, "int8": 1, "int8-weights": 8, "int8-static": 9}
    regions: ClassVar[tuple[str, ...]] = ("torch", "onnx", "jax")
    region_name: ClassVar[str] = "eager"
    stamps: ClassVar[bool] = True

    @classmethod
    def export(cls, wrapped: nn.Module, signature: Signature, calibration: Sequence[Batch], precision: str, folder: Path) -> list[str]:
        """fp32 and bf16 need no files. int8 leaves its recipe, with the calibrated ranges of static quantisation as data."""
        if precision != "fp32" and (sealed := getattr(getattr(wrapped, "module", None), "sealed", None)):
            raise Declined(sealed)
        if precision in ("fp32", "bf16"):
            return []
        recipe = plan(wrapped, precision, [signature.tensors(batch) for batch in calibration])
        if not recipe.edits:
            raise Declined(f"no module of this model is worth {precision}")
        file = f"torch-{precision}.json"
        (folder / file).write_text(recipe.to_json())
        return [file]

    @classmethod
    def open(cls, folder: Path, wrapped: nn.Module | None, signature: Signature, precision: str, threads: int) -> Session:
        if wrapped is None:
            raise Declined("PyTorch needs the module itself, not only files")
        if precision == "bf16":
            wrapped = to_bf16(copy.deepcopy(wrapped))
        elif precision != "fp32":
            recipe = Recipe(tuple(json.loads((folder / f"torch-{precision}.json").read_text())["edits"]))
            wrapped = apply(copy.deepcopy(wrapped), recipe)
        return TorchSession(wrapped.eval(), signature, precision, threads)

    @classmethod
    def compile(cls, job: RegionJob) -> Callable[..., object]:
        return printed(job.region, job.calls, job.weights, mark=job.mark, clock=time.perf_counter if job.stamps else None)


class TorchSession(Session):
    """Calls the module under inference mode with its own thread count. A forward pass may leave things in its module, so each caller at a time has
    a replica of its own, which shares the weights."""

    def __init__(self, module: nn.Module, signature: Signature, precision: str, threads: int) -> None:
        # A forked child has none of the threads that its parent computed with, and would wait for them.
        self.module, self.signature, self.precision, self.threads = module, signature, precision, 1 if forked() else threads
        self.bytes = weigh(module)
        self.replicas: Pool[nn.Module] = Pool(lambda: replica(module), shared=module)

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        if pytorch.get_num_threads() != self.threads:
            pytorch.set_num_threads(self.threads)
        tensors = self.signature.tensors(inputs)
        if self.precision == "bf16":
            tensors = tuple(narrow(t) if t.is_floating_point() else t for t in tensors)
        with self.replicas.one() as module, pytorch.inference_mode():
            return module(*tensors).float().numpy()

    def describe(self) -> dict[str, object]:
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in [*self.module.parameters(), *self.module.buffers()]})
        return {"engine": "torch", "version": pytorch.__version__, "precision": self.precision, "threads": self.threads, "dtypes": dtypes}

    def close(self) -> None:
        self.replicas.clear()
        self.module = nn.Identity()
