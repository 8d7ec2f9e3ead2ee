"""What every engine owes: say no in words, write its files, open them again, and answer in float32.

Threads that wait by spinning burn processor time that no work is done in, so the wait policy is set here, before any OpenMP runtime is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import numpy as np

from fourfold.errors import FourfoldError, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = dict[str, np.ndarray]

#: Everything a number can be stored and multiplied in here. `int8` quantises activations at run time (OpenVINO: from calibration), `int8-static`
#: from calibration, `int8-weights` only stores weights in 8 bits.
PRECISIONS = ("fp32", "bf16", "int8", "int8-static", "int8-weights")

#: Largest accepted noise-to-signal ratio of the outputs (see `parity`). It catches broken exports; whether the task still works is measured apart.
TOLERANCE = {"fp32": 2e-3, "bf16": 0.25, "int8": 0.7, "int8-static": 0.7, "int8-weights": 0.25}

EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "openvino": "openvino", "nncf": "openvino", "torchao": "torchao"}


class Unexportable(FourfoldError):
    """An engine that could not take this model; the message is the reason in words."""


@dataclass(frozen=True)
class Signature:
    """How a wrapped module is called: input names in positional order, numpy dtype names, dynamic axes ({input: {axis: name}}), an example batch."""

    names: tuple[str, ...]
    dtypes: dict[str, str]
    dynamic: dict[str, dict[int, str]]
    example: Batch

    @classmethod
    def of(cls, names: Sequence[str], batches: Sequence[Batch]) -> Signature:
        """Read it off a few batches. Axis 0 is always dynamic; another axis is where its size differs between batches, and axis 1 of tokens and
        waves.

        Inputs whose sizes always agree along their axes share an axis name. Raises `InputError` where an input is missing from the batches.
        """
        if not batches:
            raise InputError("no batch to read the model's inputs from", "Give at least one example.")
        for name in names:
            if name not in batches[0]:
                raise InputError(f"the data has no column {name!r} that the model is called with", f"It has: {', '.join(batches[0])}.")
        sizes: dict[tuple[int, ...], str] = {}
        dynamic: dict[str, dict[int, str]] = {}
        for name in names:
            dynamic[name] = {0: "batch"}
            for axis in range(1, batches[0][name].ndim):
                size = tuple(batch[name].shape[axis] for batch in batches)
                # Texts that are all cut to one length now need not be so for ever.
                line = batches[0][name].ndim == 2 and (batches[0][name].dtype.kind in "iu" or name == "input_values")
                if len(set(size)) > 1 or line:
                    dynamic[name][axis] = sizes.setdefault(size, f"length{len(sizes) or ''}")
        # Sizes 0 and 1 make tracers specialise, so the example is the batch with the most rows.
        example = max(batches, key=lambda batch: min(len(batch[names[0]]), 4))
        example = {name: example[name] for name in names}
        return cls(tuple(names), {name: str(example[name].dtype) for name in names}, dynamic, example)

    def tensors(self, batch: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
        """The inputs of `batch` in positional order, as torch tensors that share their memory."""
        import torch

        return tuple(torch.from_numpy(np.ascontiguousarray(batch[name], dtype=self.dtypes[name])) for name in self.names)

    def to_json(self) -> dict[str, Any]:
        """Without the example: what a loader needs to call a saved engine."""
        dynamic = {name: {str(axis): label for axis, label in axes.items()} for name, axes in self.dynamic.items()}
        return {"names": list(self.names), "dtypes": self.dtypes, "dynamic": dynamic, "shapes": {k: list(v.shape) for k, v in self.example.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """The reverse; the example is then zeros of the recorded shapes."""
        example = {name: np.zeros(shape, data["dtypes"][name]) for name, shape in data["shapes"].items()}
        dynamic = {name: {int(axis): label for axis, label in axes.items()} for name, axes in data["dynamic"].items()}
        return cls(tuple(data["names"]), dict(data["dtypes"]), dynamic, example)


class Session(ABC):
    """A model that is loaded and ready, and answers several threads at once. `bytes` is the size of its weights as they are held.

    It belongs to the process that opened it: threads of an engine do not live on in a forked child, which opens its own (see `Part.open`).
    """

    bytes: int = 0
    #: Lengths of texts that it likes: an engine that prepares itself anew for every shape is fed multiples of this.
    multiple: int = 1
    #: Whether calls of several threads wait for one another.
    queues: bool = False
    #: Process that opened it, where its part has said so.
    home: int | None = None

    @property
    def foreign(self) -> bool:
        """Whether another process opened it, of which this one is a forked child."""
        return self.home is not None and self.home != os.getpid()

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """One batch in, the model's one output as float32 out. Batch size and lengths may differ from call to call."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What really runs, read back from the engine (JSON-able)."""

    def close(self) -> None:  # noqa: B027
        """Give the memory back; twice is once. Nothing may be run afterwards."""


class Engine(ABC):
    """Abstract or final; facts are class attributes. `needs` are importable module names."""

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    #: Those of `needs` without which its files cannot be opened (none named: all of them).
    opens: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]]
    #: Whether `open` needs the torch module, or works from the files alone.
    standalone: ClassVar[bool] = False

    @classmethod
    def declines(cls, precision: str, machine: Any) -> str | None:
        """Why this engine cannot serve this precision on this machine (`.flags`), or None."""
        if precision not in cls.precisions:
            return f"{cls.title} has no {precision} (it has {', '.join(cls.precisions)})"
        return missing(cls.needs) or (slow_bf16(machine) if precision == "bf16" else None)

    @classmethod
    def refuses(cls, precision: str, machine: Any) -> str | None:
        """Why files that `export` wrote cannot be opened and run on this machine, or None: what only making them needs is not asked for."""
        return missing(cls.opens or cls.needs) or (slow_bf16(machine) if precision == "bf16" else None)

    @classmethod
    @abstractmethod
    def export(cls, wrapped: nn.Module, signature: Signature, calibration: Sequence[Batch], precision: str, folder: Path) -> list[str]:
        """Write what `open` needs into `folder`; the names of the files written. Raises `Unexportable` with the reason."""

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, wrapped: nn.Module | None, signature: Signature, precision: str, threads: int) -> Session:
        """Load what `export` wrote. Raises `Unexportable` with the reason."""


def missing(needs: Sequence[str]) -> str | None:
    """A sentence naming the extra that brings the first package of `needs` that is not installed, or None."""
    for name in needs:
        if importlib.util.find_spec(name) is None:
            return f"the package {name!r} is not installed (pip install 'fourfold[{EXTRAS.get(name, name)}]')"
    return None


def slow_bf16(machine: Any) -> str | None:
    """bf16 without instructions for it is emulated, several times slower than fp32. Unknown flags (none listed) leave the question to the race."""
    flags = frozenset(getattr(machine, "flags", ()) or ())
    if not flags or flags & {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "avx_ne_convert"}:
        return None
    return "this processor has no bf16 instructions (avx512_bf16 or amx_bf16), so bf16 would be emulated"


def relevant(inputs: Mapping[str, np.ndarray], output: np.ndarray) -> np.ndarray:
    """The output rows that mean something: padded positions of a [batch, length, …] output are left out where a mask of that shape says so."""
    mask = inputs.get("decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask")
    if mask is not None and output.ndim >= 3 and mask.shape == output.shape[:2]:
        return output[mask.astype(bool)]
    return output.reshape(-1, output.shape[-1]) if output.ndim > 1 else output.reshape(-1, 1)


def parity(session: Session, batches: Sequence[Batch], reference: Sequence[np.ndarray], precision: str) -> tuple[float, str | None]:
    """(noise-to-signal ratio, reason to reject or None) of `session` against fp32 outputs on the same batches.

    The ratio is |y − r|₂ / max(|r − mean(r)|₂, |r|₂ / 10) over all meaningful outputs, with the mean per output column; 0 is identical.
    """
    noise: list[np.ndarray] = []
    signal: list[np.ndarray] = []
    for batch, wanted in zip(batches, reference, strict=True):
        try:
            got = session.run(batch)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items())
            return float("inf"), f"fails on a batch of another shape ({shapes}): {first_line(error)}"
        if got.shape != wanted.shape:
            return float("inf"), f"answers with shape {list(got.shape)} where {list(wanted.shape)} is right"
        got, right = relevant(batch, got), relevant(batch, wanted)
        if not np.isfinite(got[np.isfinite(right)]).all():
            return float("inf"), "answers with NaN or infinity"
        noise.append(np.where(np.isfinite(right), got - right, 0.0).astype(np.float64))
        signal.append(np.where(np.isfinite(right), right, 0.0).astype(np.float64))
    if len({part.shape[1] for part in signal}) > 1:  # an output as wide as the batch (image × text) has no columns to take means of
        noise, signal = [part.reshape(-1, 1) for part in noise], [part.reshape(-1, 1) for part in signal]
    right = np.concatenate(signal)
    # Outputs that hardly depend on the input (an untrained model's) have next to no spread to be off by.
    scale = max(float(np.linalg.norm(right - right.mean(0, keepdims=True))), 0.1 * float(np.linalg.norm(right)))
    ratio = float(np.linalg.norm(np.concatenate(noise))) / max(scale, 1e-12)
    limit = TOLERANCE[precision]
    return ratio, None if ratio <= limit else f"its outputs are off by {ratio:.2g} of their spread in {precision} (at most {limit:g} is allowed)"


def references(wrapped: nn.Module, signature: Signature, batches: Sequence[Batch]) -> list[np.ndarray]:
    """fp32 outputs of the torch module: what every engine is compared with."""
    import torch

    with torch.inference_mode():
        return [wrapped(*signature.tensors(batch)).float().numpy() for batch in batches]


def first_line(error: BaseException) -> str:
    """An error of another library, cut down to its class and first line with content."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def weigh(module: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    seen = {t.data_ptr(): t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()]}
    return sum(seen.values())


@contextmanager
def spelled_out(module: nn.Module) -> Iterator[None]:
    """While an exporter looks: attention of transformers models in simple operators, and functions that no exporter knows written with others."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Simple(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return difference(*args, **(kwargs or {})) if func in (torch.diff, torch.Tensor.diff) else func(*args, **(kwargs or {}))

    def difference(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
        x = torch.cat([part for part in (prepend, x, append) if part is not None], dim)
        for _ in range(n):
            count = x.shape[dim]
            x = x.narrow(dim, 1, count - 1) - x.narrow(dim, 0, count - 1)
        return x

    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None and hasattr(c, "_attn_implementation")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    printer, torch._C._jit_onnx_log = torch._C._jit_onnx_log, lambda *_: None  # a graph that cannot be exported would be printed whole
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        with Simple():
            yield
    finally:
        torch._C._jit_onnx_log = printer
        for key, config in configs.items():
            config._attn_implementation = before[key]


def export_onnx(wrapped: nn.Module, signature: Signature, path: Path, graph: str) -> None:
    """Write `wrapped` as ONNX. `graph` is the exporter: "torchscript" (traced, opset 17) or "dynamo" (torch.export, opset 18).

    The two graphs can differ in speed by half after quantisation, so callers race both. Raises whatever the exporter raises.
    """
    import logging
    import warnings

    import torch

    from fourfold.frontends.onnx_model import chosen, graph_in, write

    example = signature.tensors(signature.example)
    if (held := graph_in(wrapped)) is not None:
        if graph != "torchscript":
            raise Unexportable("an .onnx file is taken as it is")
        write(held, signature.names, signature.dtypes, chosen(held, example, signature.names), path)
        return
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad(), spelled_out(wrapped):
        warnings.simplefilter("ignore")
        if graph == "torchscript":
            rank = wrapped(*example).ndim
            result = {axis: f"out{axis}" for axis in range(max(rank - 1, 1))}
            torch.onnx.export(
                wrapped,
                example,
                str(path),
                dynamo=False,
                opset_version=17,
                input_names=list(signature.names),
                output_names=["output"],
                dynamic_axes={**signature.dynamic, "output": result},
            )
        else:
            dims: dict[str, Any] = {}
            labels = [signature.dynamic[name] for name in signature.names]
            shapes = tuple({axis: dims.setdefault(label, torch.export.Dim(label)) for axis, label in axes.items()} for axes in labels)
            torch.onnx.export(
                wrapped,
                example,
                str(path),
                dynamo=True,
                opset_version=18,
                external_data=False,
                input_names=list(signature.names),
                output_names=["output"],
                dynamic_shapes=(shapes,) if takes_varargs(wrapped) else shapes,
                verbose=False,
            )


def takes_varargs(module: nn.Module) -> bool:
    """Whether forward is written `forward(*tensors)`; torch.export then wants its dynamic shapes in one tuple."""
    import inspect

    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())


class TimeIsUp(BaseException):
    """Not an Exception, so that no `except Exception` of a compiler or exporter swallows it."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Interrupt the body after `seconds`. Only the main thread can be, and only where the system has SIGALRM; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    # It rings again until it is heard: an exception raised inside a destructor goes nowhere.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
