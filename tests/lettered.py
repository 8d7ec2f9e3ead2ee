"""Small modules that call the operators which models are made of, with example inputs: what letters are tried on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Function = Callable[..., Tensor | tuple[Tensor, ...] | list[Tensor]]


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...] | list[Tensor]:
        return self.function(*tensors)


def t(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def n(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high))


X, Y = t(4, 6, 8), t(4, 6, 8)
CASES: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    # element by element
    "add": (lambda x, y: x + y, (X, t(6, 1))),
    "add_twice": (lambda x: x + x, (X,)),
    "sub_one": (lambda x: 1 - x, (X,)),
    "mul": (lambda x, y: x * y, (X, t(8))),
    "square": (lambda x: x * x, (X,)),
    "div": (lambda x, y: x / y, (X, Y)),
    "where": (lambda x, y: torch.where(x > 0, x, y), (X, Y)),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 0.0), (X,)),
    "gelu": (functional.gelu, (X,)),
    "cast": (lambda x: x.to(torch.float32), (X,)),
    "clamp": (lambda x: x.clamp(-1, 1), (X,)),
    "compare": (lambda x, y: (x > y) & (x < 2), (X, Y)),
    "like": (lambda x: torch.zeros_like(x) + x.new_ones(6, 8), (X,)),
    "arange": (lambda x: x + torch.arange(2, 18, 2), (X,)),
    "type_as": (lambda x, y: x.type_as(y), (X, t(3).float())),
    "one_hot": (lambda i: functional.one_hot(i, 6), (n(6, 4, 8),)),
    "bucketize": (lambda x, y: torch.bucketize(x, y), (X, torch.arange(3.0, dtype=torch.float64))),
    "diff": (lambda x: torch.diff(x), (X,)),
    "uneven": (lambda x, y: x.relu() + y, (t(7, 5), t(7, 1))),
    # movements
    "transpose": (lambda x: x.transpose(0, 2), (X,)),
    "permute": (lambda x: x.permute(2, 0, 1), (X,)),
    "t": (lambda x: x.t(), (t(4, 6),)),
    "merge": (lambda x: x.reshape(24, 8), (X,)),
    "split_heads": (lambda x: x.reshape(4, 6, 4, 2).transpose(1, 2), (X,)),
    "gcd": (lambda x: x.reshape(6, 4), (t(4, 6),)),
    "prime": (lambda x: x.reshape(5, 3, 8), (t(3, 5, 8),)),
    "squeeze": (lambda x: x.unsqueeze(1).squeeze(), (X,)),
    "expand": (lambda x: x.expand(4, 6, 8), (t(6, 1),)),
    "slice": (lambda x: x[:, 1:5], (X,)),
    "select": (lambda x: x[:, -1], (X,)),
    "cat": (lambda x, y: torch.cat([x, y], 1), (X, t(4, 2, 8))),
    "stack": (lambda x, y: torch.stack([x, y], 1), (X, Y)),
    "split": (lambda x: x.split(2, 1), (X,)),
    "unbind": (lambda x: x.unbind(1), (X,)),
    "flip": (lambda x: x.flip(1), (X,)),
    "pad": (lambda x: functional.pad(x, (1, 2)), (X,)),
    "repeat": (lambda x: x.repeat(1, 2, 1), (X,)),
    "tril": (lambda x: x.tril(), (t(4, 6, 6),)),
    "cumsum": (lambda x: x.cumsum(1), (X,)),
    "sort": (lambda x: torch.sort(x, -1), (X,)),
    "topk": (lambda x: torch.topk(x, 3, -1), (X,)),
    "roll": (lambda x: x.roll(1, 1), (X,)),
    # products
    "mm": (lambda x, y: x @ y, (t(4, 8), t(8, 6))),
    "bmm": (lambda x, y: x @ y, (t(4, 6, 8), t(4, 8, 2))),
    "batched": (lambda x, y: x @ y, (t(2, 1, 6, 8), t(4, 8, 4))),
    "mv": (lambda x, y: x @ y, (t(4, 8), t(8))),
    "linear": (functional.linear, (X, t(12, 8), t(12))),
    "addmm": (torch.addmm, (t(6), t(4, 8), t(8, 6))),
    "baddbmm": (torch.baddbmm, (t(4, 6, 2), t(4, 6, 8), t(4, 8, 2))),
    "einsum": (lambda x, y: torch.ops.aten.einsum("b...lk,bkn->b...ln", [x, y]), (t(2, 3, 4, 8), t(2, 8, 4))),
    "conv": (lambda x, w, b: functional.conv2d(x, w, b, padding=1), (t(4, 8, 6, 6), t(4, 8, 3, 3), t(4))),
    "conv1x1": (lambda x, w, b: functional.conv2d(x, w, b), (t(4, 8, 6, 6), t(4, 8, 1, 1), t(4))),
    "depthwise": (lambda x, w: functional.conv2d(x, w, padding=1, groups=8), (t(4, 8, 6, 6), t(8, 1, 3, 3))),
    "grouped": (lambda x, w: functional.conv2d(x, w, groups=4), (t(2, 8, 6, 6), t(12, 2, 3, 3))),
    "conv1d": (lambda x, w: functional.conv1d(x, w, stride=2), (t(4, 8, 9), t(4, 8, 3))),
    "transposed": (lambda x, w, b: functional.conv_transpose2d(x, w, b, stride=2), (t(4, 8, 5, 5), t(8, 4, 3, 3), t(4))),
    "attention": (functional.scaled_dot_product_attention, (t(4, 4, 6, 8), t(4, 4, 6, 8), t(4, 4, 6, 8))),
    "causal": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True), (t(4, 4, 6, 8), t(4, 4, 6, 8), t(4, 4, 6, 8))),
    "grouped_queries": (lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
                        (t(2, 8, 6, 8), t(2, 4, 6, 8), t(2, 4, 6, 8))),
    "masked": (lambda q, k, v, m: functional.scaled_dot_product_attention(q, k, v, m), (t(4, 4, 6, 8), t(4, 4, 6, 8), t(4, 4, 6, 8), t(4, 1, 6, 6))),
    # reductions and norms
    "sum": (lambda x: x.sum(1), (X,)),
    "mean": (lambda x: x.mean((0, 2), keepdim=True), (t(7, 6, 8),)),
    "mean_all": (lambda x: x.mean(), (X,)),
    "amax": (lambda x: x.amax(1), (X,)),
    "argmax": (lambda x: x.argmax(-1), (X,)),
    "max": (lambda x: x.max(1), (X,)),
    "var": (lambda x: torch.var(x, 1), (X,)),
    "softmax": (lambda x: x.softmax(-1), (X,)),
    "log_softmax": (lambda x: x.log_softmax(1), (X,)),
    "layer_norm": (lambda x, w, b: functional.layer_norm(x, (8,), w, b), (X, t(8), t(8))),
    "rms_norm": (lambda x, w: functional.rms_norm(x, (8,), w), (X, t(8))),
    "group_norm": (lambda x, w, b: functional.group_norm(x, 4, w, b), (t(4, 8, 6), t(8), t(8))),
    "batch_norm": (lambda x, m, v, w, b: functional.batch_norm(x, m, v.exp(), w, b), (t(4, 8, 6), t(8), t(8), t(8), t(8))),
    "max_pool": (lambda x: functional.max_pool2d(x, 2), (t(4, 8, 6, 6),)),
    "avg_pool": (lambda x: functional.avg_pool2d(x, 2), (t(4, 8, 6, 6),)),
    "adaptive_pool": (lambda x: functional.adaptive_avg_pool2d(x, 1), (t(4, 8, 6, 6),)),
    "upsample": (lambda x: functional.interpolate(x, scale_factor=2.0), (t(4, 8, 6, 6),)),
    "mse": (functional.mse_loss, (X, Y)),
    "cross_entropy": (lambda x, y: functional.cross_entropy(x, y, reduction="sum"), (t(8, 6), n(6, 8))),
    "nll": (lambda x, y: torch.ops.aten.nll_loss_forward(x, y, None, 2, -100), (t(8, 6), n(6, 8))),
    # indices
    "embedding": (lambda w, i: functional.embedding(i, w), (t(12, 8), n(12, 4, 6))),
    "gather": (lambda x, i: x.gather(1, i), (X, n(6, 4, 2, 8))),
    "scatter_add": (lambda x, i, y: x.scatter_add(1, i, y), (X, n(6, 4, 2, 8), t(4, 2, 8))),
    "index": (lambda x, i: x[:, i], (X, n(6, 4))),
    "two_indices": (lambda x, i, j: x[i, :, j], (X, n(4, 4), n(8, 4))),
    "index_select": (lambda x, i: x.index_select(1, i), (X, n(6, 4))),
    "index_put": (lambda x, i, y: x.index_put((i,), y, accumulate=True), (X, n(4, 2), t(2, 6, 8))),
}


class Net(nn.Module):
    """A bit of everything whose gradient has operators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.up, self.down = nn.Embedding(12, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.conv, self.batch = nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.BatchNorm1d(8)

    def forward(self, i: Tensor) -> Tensor:
        x = self.table(i)
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        q, k, v = (one.reshape(4, 6, 4, 2).transpose(1, 2) for one in (x, x.sigmoid(), x.tanh()))
        x = x + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(4, 6, 8)
        y = functional.relu(self.batch(self.conv(x.transpose(1, 2))))
        y = functional.max_pool1d(y, 2) + functional.avg_pool1d(y, 2)
        return functional.silu(y[:, :, 0]).log_softmax(-1).gather(1, i[:, :1] % 8).mean() + x[:, 2:].softmax(1).square().sum()


def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(7)
    return Net().double(), n(12, 4, 6)
