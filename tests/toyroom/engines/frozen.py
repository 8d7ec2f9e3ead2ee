"""A toy: TorchScript, traced and frozen, of whole modules and of regions. For tests only.

Nothing in fourfold knows of it: it shows that an engine is one file, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fourfold.engines.base import Batch, Engine, RegionJob, Session, Signature, first_line
from fourfold.engines.decompose import spelled_out
from fourfold.errors import Declined


def traced(module: nn.Module, example: tuple[Any, ...]) -> Any:
    """The module as frozen TorchScript. Raises Declined where tracing fails."""
    try:
        with torch.no_grad():
            return torch.jit.freeze(torch.jit.trace(module.eval(), example, check_trace=False))
    except Exception as error:
        raise Declined(f"tracing failed: {first_line(error)}") from error


class Frozen(Engine):
    """fp32 only; opens from its file alone."""

    name = "frozen"
    title = "frozen TorchScript"
    needs = ("torch",)
    precisions = ("fp32",)
    standalone = True
    likely = {"fp32": 0}
    regions = ("torch",)

    @classmethod
    def export(cls, wrapped: nn.Module, signature: Signature, calibration: Sequence[Batch], precision: str, folder: Path) -> list[str]:
        with spelled_out(wrapped):
            made = traced(wrapped, signature.tensors(signature.example))
        made.save(str(folder / "frozen-fp32.pt"))
        return ["frozen-fp32.pt"]

    @classmethod
    def open(cls, folder: Path, wrapped: nn.Module | None, signature: Signature, precision: str, threads: int) -> Session:
        return FrozenSession(folder / "frozen-fp32.pt", signature, threads)

    @classmethod
    def compile(cls, job: RegionJob) -> Callable[..., Any]:
        call = traced(job.graph(), tuple(job.examples()))

        def run(*tensors: Any) -> tuple[Any, ...]:
            found = call(*tensors)
            return found if isinstance(found, tuple) else (found,)

        return run


class FrozenSession(Session):
    queues = True

    def __init__(self, file: Path, signature: Signature, threads: int) -> None:
        self.module, self.signature, self.threads, self.bytes = torch.jit.load(str(file)), signature, threads, file.stat().st_size

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self.module(*self.signature.tensors(inputs)).float().numpy()

    def describe(self) -> dict[str, Any]:
        return {"engine": "frozen", "version": torch.__version__, "precision": "fp32", "threads": self.threads}
