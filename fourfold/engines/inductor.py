"""torch.compile with Inductor: fp32, bf16, and torchao's int8 with frozen weights. Compiling takes long, is measured, and has a limit."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from fourfold.engines._pool import Turns, forked
from fourfold.engines.base import Batch, Engine, Session, Signature, TimeIsUp, Unexportable, first_line, limit, missing, weigh
from fourfold.rewrites.compress.quantise import narrow, to_bf16

#: Seconds that one compilation may take. Overridden by the environment variable FOURFOLD_COMPILE_LIMIT.
LIMIT = 180.0


class Inductor(Engine):
    """Shapes stay dynamic, so that batches of other lengths do not compile again."""

    name: ClassVar[str] = "inductor"
    title: ClassVar[str] = "torch.compile"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

    @classmethod
    def declines(cls, precision: str, machine: Any) -> str | None:
        reason = super().declines(precision, machine) or (missing(("torchao",)) if precision == "int8" else None)
        if reason is None and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")):
            reason = "torch.compile needs a C++ compiler and there is none (install g++ or clang)"
        return reason

    @classmethod
    def refuses(cls, precision: str, machine: Any) -> str | None:
        return cls.declines(precision, machine)  # its code is made where it runs

    @classmethod
    def export(cls, wrapped: nn.Module, signature: Signature, calibration: Sequence[Batch], precision: str, folder: Path) -> list[str]:
        """Nothing to write: code is compiled for the machine that it runs on, when it is opened."""
        if sealed := getattr(getattr(wrapped, "module", None), "sealed", None):
            raise Unexportable(sealed)
        return []

    @classmethod
    def open(cls, folder: Path, wrapped: nn.Module | None, signature: Signature, precision: str, threads: int) -> Session:
        if wrapped is None:
            raise Unexportable("torch.compile needs the module itself, not only files")
        module = copy.deepcopy(wrapped).eval()
        if precision == "bf16":
            to_bf16(module)
        elif precision == "int8":
            shrink(module)
        return InductorSession(module, signature, precision, threads)


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
            raise Unexportable(f"compiling took longer than {time.perf_counter() - started:.0f} s and was stopped") from None
        except Exception as error:
            torch._dynamo.reset()
            raise Unexportable(f"compiling failed: {first_line(error)}") from None
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

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "inductor", "version": torch.__version__, "precision": self.precision, "threads": self.threads,
            "frozen": self.frozen, "compile_seconds": round(self.seconds, 1),
        }  # fmt: skip

    def close(self) -> None:
        self.compiled = None
        torch._dynamo.reset()


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
