"""What every engine owes, of whole modules and of regions of plans: say no in words, build, write its files and open them again.

Threads that wait by spinning burn processor time that no work is done in, so the wait policy is set here, before any OpenMP runtime is loaded.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, overload

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import numpy as np

from fourfold.engines.call import Call, Region
from fourfold.errors import Declined, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = dict[str, np.ndarray]

#: Everything a number can be stored and multiplied in here. `int8` quantises activations at run time (OpenVINO: from calibration), `int8-static`
#: from calibration, `int8-weights` only stores weights in 8 bits.
PRECISIONS = ("fp32", "bf16", "int8", "int8-static", "int8-weights")


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


@dataclass(frozen=True)
class TensorSpec:
    """Shape, strides and dtype of a value, as it came out when the program ran."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: Any

    def example(self, device: str = "cpu") -> object:
        import torch

        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device).zero_()


def spec_of(tensor: object) -> TensorSpec | None:
    """None of what is no torch tensor."""
    import torch

    return TensorSpec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype) if isinstance(tensor, torch.Tensor) else None


@dataclass
class ModuleJob:
    """A whole module to be made ready: how it is called, batches to calibrate with, precision, threads, and the folder of the engine's files.
    `files`: the names of those that were written."""

    wrapped: nn.Module
    signature: Signature
    calibration: Sequence[Batch]
    precision: str
    threads: int
    folder: Path
    files: list[str] = field(default_factory=list)


@dataclass
class RegionJob:
    """A region to be made ready: its calls, its weights and the specs of its values. `file`: the region as an ONNX model, where it comes from one;
    `folder`: where compiled code is kept; `mark`, `stamps`: see `fourfold.engines.region.printed`."""

    region: Region
    calls: Sequence[Call]
    weights: Mapping[int, object]
    specs: Mapping[int, TensorSpec | None]
    threads: int
    file: bytes | None = None
    folder: Path | None = None
    mark: object = None
    stamps: bool = False
    device: str = "cpu"

    def examples(self) -> list[Any]:
        """Zeros of the specs of what the region reads. Raises Declined where one is no tensor."""
        found = []
        for v in self.region.reads:
            spec = self.specs.get(v)
            if spec is None:
                raise Declined(f"value {v} is no tensor")
            found.append(spec.example(self.device))
        return found

    def graph(self) -> Any:
        """The region as an fx.GraphModule. Raises Declined where a node is no torch operation."""
        from fourfold.engines.region import module, plain

        if not plain(self.calls):
            raise Declined("a node of the region is no torch operation")
        return module(self.region, self.calls, self.weights)


class Engine:
    """What runs a whole module, a region of a plan's program, or both; abstract or final, facts are literal class attributes.

    One for modules names `precisions` and writes `export` and `open`; one for regions names the dialects of programs in `regions` and writes
    `compile`. Each refuses by raising Declined with the reason. `needs` are importable module names.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    #: The extra of this package that brings what it needs.
    extra: ClassVar[str] = ""
    #: Those of `needs` without which its files cannot be opened (none named: all of them).
    opens: ClassVar[tuple[str, ...]] = ()
    #: Packages whose versions decide what it answers, and how fast.
    versions: ClassVar[tuple[str, ...]] = ()

    precisions: ClassVar[tuple[str, ...]] = ()
    #: Whether `open` needs the torch module, or works from the files alone.
    standalone: ClassVar[bool] = False
    #: Precision → place in the order in which ways to run a module are prepared, the likeliest winner first, so that a short budget is spent on it.
    likely: ClassVar[Mapping[str, int]] = {}
    #: Precision → seconds of budget below which it is not worth starting: exporting, calibrating or compiling a small encoder takes about this long.
    slow: ClassVar[Mapping[str, float]] = {}

    #: Dialects of programs ("torch", "onnx", "jax") whose regions it is raced in.
    regions: ClassVar[tuple[str, ...]] = ()
    #: What plans call it, where that is not its name.
    region_name: ClassVar[str] = ""
    #: Whether it takes a region of an .onnx file as an ONNX model.
    reads_onnx: ClassVar[bool] = False
    #: Whether its regions can tell when each task began.
    stamps: ClassVar[bool] = False

    #: What `fourfold export --to` calls its files, where others open them without this package; "" where nobody else does.
    format: ClassVar[str] = ""
    #: Of such files, which lie in a folder as model.*: how their README says that they are opened.
    opened: ClassVar[str] = ""
    #: And the Python that a process without this package answers by: from `folder`, `batches` (arrays by name) and `hint` ("f32" or "bf16") to
    #: `found`, an array a batch.
    answering: ClassVar[str] = ""

    @classmethod
    def declines(cls, precision: str, machine: object) -> str | None:
        """Why this engine cannot serve this precision on this machine (`.flags`), or None."""
        if precision not in cls.precisions:
            return f"{cls.title} has no {precision} (it has {', '.join(cls.precisions)})"
        return missing(cls.needs, cls.extra) or (slow_bf16(machine) if precision == "bf16" else None)

    @classmethod
    def refuses(cls, precision: str, machine: object) -> str | None:
        """Why files that `export` wrote cannot be opened and run on this machine, or None: what only making them needs is not asked for."""
        return missing(cls.opens or cls.needs, cls.extra) or (slow_bf16(machine) if precision == "bf16" else None)

    @overload
    @classmethod
    def build(cls, job: ModuleJob) -> Session: ...

    @overload
    @classmethod
    def build(cls, job: RegionJob) -> Callable[..., Any]: ...

    @classmethod
    def build(cls, job: ModuleJob | RegionJob) -> object:
        """Make a module or a region ready to run, so that it answers within the tolerance of its precision (`fourfold/engines/parity.py`).

        Returns the Session of a module, by `export` and `open`; or, by `compile`, a callable of the tensors of `region.reads` that returns those of
        `region.makes` (with `stamps`: and times, see `printed`). Raises Declined with the reason.
        """
        if isinstance(job, ModuleJob):
            job.files = cls.export(job.wrapped, job.signature, job.calibration, job.precision, job.folder)
            return cls.open(job.folder, None if cls.standalone else job.wrapped, job.signature, job.precision, job.threads)
        if not job.region.makes and not cls.stamps:
            raise Declined("the region makes nothing")
        with quiet():
            return cls.compile(job)

    @classmethod
    def export(cls, wrapped: nn.Module, signature: Signature, calibration: Sequence[Batch], precision: str, folder: Path) -> list[str]:
        """Write what `open` needs into `folder`; the names of the files written. Raises Declined with the reason."""
        raise Declined(f"{cls.title} runs regions of programs, not whole modules")

    @classmethod
    def open(cls, folder: Path, wrapped: nn.Module | None, signature: Signature, precision: str, threads: int) -> Session:
        """Load what `export` wrote. Raises Declined with the reason."""
        raise Declined(f"{cls.title} runs regions of programs, not whole modules")

    @classmethod
    def compile(cls, job: RegionJob) -> Callable[..., object]:
        """The region as a callable (see `build`). Raises Declined with the reason."""
        raise Declined(f"{cls.title} runs whole modules, not regions of programs")


def missing(needs: Sequence[str], extra: str = "") -> str | None:
    """A sentence naming the first package of `needs` that is not installed, and the extra that brings it, or None."""
    for name in needs:
        if importlib.util.find_spec(name) is None:
            return f"the package {name!r} is not installed (pip install 'fourfold[{extra or name}]')"
    return None


def slow_bf16(machine: object) -> str | None:
    """bf16 without instructions for it is emulated, several times slower than fp32. Unknown flags (none listed) leave the question to the race."""
    flags = frozenset(getattr(machine, "flags", ()) or ())
    if not flags or flags & {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "avx_ne_convert"}:
        return None
    return "this processor has no bf16 instructions (avx512_bf16 or amx_bf16), so bf16 would be emulated"


def first_line(error: BaseException) -> str:
    """An error of another library, cut down to its class and first line with content."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Compilers talk; what they raise says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def no_compiler() -> str | None:
    """Why C++ code cannot be compiled here, or None."""
    if any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")):
        return None
    return "torch.compile needs a C++ compiler and there is none (install g++ or clang)"


def one_line(error: BaseException) -> str:
    """What a compiler's error says, in a line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def weigh(module: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    seen = {t.data_ptr(): t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()]}
    return sum(seen.values())


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
