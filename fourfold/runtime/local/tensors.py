"""Values between dialects: numpy arrays of ONNX as torch tensors, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.program import arguments

if TYPE_CHECKING:
    from fourfold.program import Program


def feed(program: Program, inputs: object) -> dict[int, object]:
    """Values of the inputs as the executor's tensors."""
    args, kwargs = arguments(inputs)
    return tensors(program, program.feed(*args, **kwargs))


def tensors(program: Program, found: Mapping[int, object]) -> dict[int, Any]:
    """numpy arrays of ONNX as torch tensors; others as they are."""
    if program.dialect != "onnx":
        return dict(found)
    import torch

    return {v: a if isinstance(a, torch.Tensor) else torch.from_numpy(np.array(a)) for v, a in found.items()}


def natives(program: Program, found: Mapping[int, Any]) -> dict[int, object]:
    """The way back."""
    if program.dialect != "onnx":
        return dict(found)
    return {v: t.numpy() if hasattr(t, "numpy") else t for v, t in found.items()}
