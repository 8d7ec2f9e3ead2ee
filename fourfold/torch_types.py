"""Types that torch's stubs leave open: what an autograd function keeps, and where and as what a layer makes its parameters. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.types import Device


class Factory(TypedDict):
    """The keywords by which a layer's parameters are made."""

    device: Device
    dtype: torch.dtype | None


class Saved(Protocol):
    """`ctx` of a `torch.autograd.Function`. One that keeps more than tensors adds its attributes in a subclass."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """Of each argument of forward: whether its gradient is asked for."""
        ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
