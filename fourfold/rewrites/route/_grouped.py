"""One linear layer per expert over rows that are sorted by expert: the kernel under every mixture of experts.

Shapes: S rows, E experts, D width in, F width out. Three ways to do it, chosen by what `benchmarks/layers_experts.py` measured on a CPU: equal shares
go through one batched product; unequal ones without a bias through `torch.nn.functional.grouped_mm` where it takes the type and the strides; all
others through one product an expert, which adds the bias on the way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fourfold.torch_types import Saved

_GROUPED = (torch.float32, torch.bfloat16, torch.float16)


def grouped_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor, even: bool = False) -> Tensor:
    """rows [S, D] sorted by expert, weight [E, F, D], bias [E, F] or None, ends int64 [E] (row after each expert's last) → [S, F].

    Rows from `ends[-1]` on belong to nobody: they cost nothing and answer 0. `even`: every expert has S / E rows, and no row is nobody's.
    Gradients reach rows, weight and bias (once differentiable), whatever the strides of the incoming gradient.
    """
    even = even and rows.shape[0] > 0
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        # shares of unequal size are one opaque node, so that the graph does not break at the loop
        return batched(rows, weight, bias) if even else _OP(rows, weight, bias, ends)
    return _Grouped.apply(rows, weight, bias, ends, even)              # type: ignore[no-any-return]


def batched(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Equal shares as one product."""
    share, wide = rows.unflatten(0, (weight.shape[0], -1)), weight.transpose(1, 2)
    return (torch.bmm(share, wide) if bias is None else torch.baddbmm(bias.unsqueeze(1), share, wide)).flatten(0, 1)


def forward(rows: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """The product itself."""
    stops = ends.tolist()
    if bias is None and stops[-1] and _aligned(rows, weight):
        taken = F.grouped_mm(rows[: stops[-1]], weight.transpose(1, 2), offs=ends.to(torch.int32))
        return taken if stops[-1] == rows.shape[0] else torch.cat([taken, taken.new_zeros(rows.shape[0] - stops[-1], weight.shape[1])])
    out, start = rows.new_empty(rows.shape[0], weight.shape[1]), 0
    for e, stop in enumerate(stops):
        if stop > start:
            if bias is None:
                torch.mm(rows[start:stop], weight[e].t(), out=out[start:stop])
            else:
                torch.addmm(bias[e], rows[start:stop], weight[e].t(), out=out[start:stop])
        start = stop
    out[start:].zero_()
    return out


def _aligned(rows: Tensor, weight: Tensor) -> bool:
    """Whether `grouped_mm` takes them: its type, and every row begins at a multiple of 16 bytes."""
    size = rows.element_size()
    widths = rows.shape[1] * size % 16 == 0 and weight.shape[1] * size % 16 == 0
    starts = rows.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
    return rows.dtype in _GROUPED and rows.dtype == weight.dtype and widths and starts and rows.is_contiguous() and weight.is_contiguous()


def backward(grad: Tensor, rows: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows [S, D], weight [E, F, D] and bias [E, F]."""
    grad, start = grad.contiguous(), 0
    to_rows, to_weight, to_bias = torch.empty_like(rows), torch.empty_like(weight), weight.new_zeros(weight.shape[:2])
    for e, stop in enumerate(ends.tolist()):
        if stop > start:
            torch.mm(grad[start:stop], weight[e], out=to_rows[start:stop])
            torch.mm(grad[start:stop].t(), rows[start:stop], out=to_weight[e])
            torch.sum(grad[start:stop], 0, out=to_bias[e])
        else:
            to_weight[e].zero_()
        start = stop
    to_rows[start:].zero_()
    return to_rows, to_weight, to_bias


class _SavedBias(Saved, Protocol):
    biased: bool


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _SavedBias, rows: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor, even: bool) -> Tensor:
        ctx.save_for_backward(rows, weight, ends)
        ctx.biased = bias is not None
        return batched(rows, weight, bias) if even else forward(rows, weight, bias, ends)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _SavedBias, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, ends = ctx.saved_tensors
        to_rows, to_weight, to_bias = backward(grad, rows, weight, ends)
        return to_rows, to_weight, to_bias if ctx.biased else None, None, None


@torch.library.custom_op("fourfold::grouped_linear", mutates_args=())
def _OP(rows: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    return forward(rows.contiguous(), weight, bias, ends)


@_OP.register_fake
def _(rows: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


@torch.library.custom_op("fourfold::grouped_linear_backward", mutates_args=())
def _BACK(grad: Tensor, rows: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return backward(grad, rows.contiguous(), weight, ends)


@_BACK.register_fake
def _(grad: Tensor, rows: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(weight), weight.new_empty(weight.shape[:2])


def _keep(ctx: _SavedBias, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor], output: Tensor) -> None:
    rows, weight, bias, ends = inputs
    ctx.save_for_backward(rows, weight, ends)
    ctx.biased = bias is not None


def _back(ctx: _SavedBias, grad: Tensor) -> tuple[Tensor | None, ...]:
    to_rows, to_weight, to_bias = _BACK(grad, *ctx.saved_tensors)
    return to_rows, to_weight, to_bias if ctx.biased else None, None


_OP.register_autograd(_back, setup_context=_keep)
