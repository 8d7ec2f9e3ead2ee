"""One forward pass, watched: which module ran when, on which tensors, and where attention scores were normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fourfold.recipe import axis_of, is_conv, is_conv1d
from fourfold.structure.anatomy import tensors

Call = Callable[[nn.Module], Tensor]


@dataclass
class Run:
    """One call of one module: its position in time, and the tensors that went in and came out (kept alive, so that addresses identify them)."""

    path: str
    module: nn.Module
    order: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def input(self) -> Tensor | None:
        return next(tensors(self.args), None) if next(tensors(self.args), None) is not None else next(tensors(self.kwargs), None)

    @property
    def where(self) -> int | str:
        """Position or name of the first tensor argument."""
        for i, value in enumerate(self.args):
            if isinstance(value, Tensor) and value.is_floating_point():
                return i
        return next((name for name, value in self.kwargs.items() if isinstance(value, Tensor) and value.is_floating_point()), 0)


@dataclass
class Core:
    """A softmax over scores, or a fused attention: `heads` as its operands show them (-1: projections included, nothing inside shows).

    `flat`: scores are (batch × heads) × queries × keys, and that is the length of their first axis.
    """

    path: str
    order: int
    heads: int
    flat: int = 0


class Trace(TorchFunctionMode):
    """Runs `call(module)` once and keeps all module calls and attention cores in order."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.runs: list[Run] = []
        self.cores: list[Core] = []
        self._open: list[Run] = []
        self._clock = 0

    def watch(self, call: Call) -> Tensor:
        handles = []
        for path, part in self.module.named_modules():
            handles.append(part.register_forward_pre_hook(self._enter(path), with_kwargs=True))
            handles.append(part.register_forward_hook(self._leave))
        try:
            with torch.no_grad(), self:
                return call(self.module)
        finally:
            for handle in handles:
                handle.remove()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            run = Run(path, part, self._tick(), args, kwargs)
            self.runs.append(run)
            self._open.append(run)

        return hook

    def _leave(self, part: nn.Module, args: object, output: Tensor) -> None:
        self._open.pop().output = output

    def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (),
                           kwargs: Mapping[str, object] | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention" and args[0].ndim == 4:
            self._note(args[0].shape[1])
        elif name == "multi_head_attention_forward":
            self._note(-1)
        elif name == "softmax" and isinstance(out, Tensor) and out.ndim in (3, 4):
            self._note(out.shape[1] if out.ndim == 4 else 0, out.shape[0])
        return out

    def _note(self, heads: int, flat: int = 0) -> None:
        path = self._open[-1].path if self._open else ""
        last = self.cores[-1] if self.cores else None
        if last is None or last.path != path or any(r.order > last.order for r in self.runs[-1:]):
            self.cores.append(Core(path, self._tick(), heads, flat))


def is_dense(module: nn.Module) -> bool:
    """A layer that mixes channels with a weight matrix: Linear, Conv1D, ungrouped convolution."""
    return isinstance(module, nn.Linear) or is_conv1d(module) or (is_conv(module) and module.groups == 1)  # type: ignore[attr-defined]


def size(module: nn.Module, axis: str) -> int:
    weight: Any = module.weight
    return weight.shape[axis_of(module, axis)]


def common(paths: Sequence[str]) -> str:
    """Path of the smallest module that holds all of these (a module holds itself)."""
    parts = [p.split(".") for p in paths]
    same = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        same.append(names[0])
    return ".".join(same)
