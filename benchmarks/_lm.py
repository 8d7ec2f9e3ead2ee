"""The small language model on which layers are compared: bytes of the standard library's source text, as every Python has it.

256 symbols, width 96, three pre-norm layers of four heads, windows of 96 bytes, batches of 16, MLPs four times as wide; tied embedding (standard
deviation 0.02), learnt positions (0.02); AdamW, rate 2e-3 after 50 steps of linear warm-up, betas (0.9, 0.95), weight decay 0.01, gradients clipped
at norm 1. The first 95 % of the text train, 48 fixed windows of the rest validate, every 50 steps. 500 steps are about half a minute of one core.

Variants are paired: for a seed, all see the same windows in the same order, and draw their first weights after the same `manual_seed`. Processor
seconds are of training steps alone, validation left out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of the model: residual `width`, `layers`, `heads`, `length` of a window in bytes, `hidden` units of an MLP."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    length: int = 96
    hidden: int = 384


@dataclass(frozen=True)
class Training:
    """How it is trained: `steps` of `batch` windows at `rate` after `warmup` steps; validated `every` so many steps on `windows` windows."""

    steps: int = 500
    batch: int = 16
    rate: float = 2e-3
    warmup: int = 50
    every: int = 50
    windows: int = 48


@dataclass
class Curve:
    """What a run saw: at each of `steps` the validation `losses` in nats per byte and the processor `seconds` of training until then."""

    seed: int
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def at(self, loss: float, what: str = "steps") -> float | None:
        """Steps ("steps") or processor seconds ("seconds") until `loss` was first reached, interpolated linearly; None: it was not."""
        x = getattr(self, what)
        for i, value in enumerate(self.losses):
            if value <= loss:
                if i == 0 or self.losses[i - 1] == value:
                    return float(x[i])
                share = (self.losses[i - 1] - loss) / (self.losses[i - 1] - value)
                return float(x[i - 1] + share * (x[i] - x[i - 1]))
        return None


class SelfAttention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017): [B, T, D] → [B, T, D]. `core` has the semantics of torch's
    `scaled_dot_product_attention` on [B, H, T, D / H]; `between` is applied to queries, keys and values [B, T, D] before heads are split."""

    def __init__(self, width: int, heads: int, core: Callable[..., Tensor] | None = None,
                 between: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.heads, self.core = heads, core or F.scaled_dot_product_attention
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.between = nn.ModuleList(between(width) for _ in range(3)) if between else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        if self.between is not None:
            parts = [part(y) for part, y in zip(self.between, parts, strict=True)]
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
        return self.out_proj(self.core(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with `activation` between: [..., D] → [..., D]."""

    def __init__(self, width: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation or nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LM(nn.Module):
    """Bytes int64 [B, T] → logits float [B, T, 256]. `attention` and `mlp` make one layer's parts from the shape."""

    def __init__(self, shape: Shape | None = None, *, attention: Callable[[Shape], nn.Module] | None = None,
                 mlp: Callable[[Shape], nn.Module] | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        attention = attention or (lambda s: SelfAttention(s.width, s.heads))
        mlp = mlp or (lambda s: MLP(s.width, s.hidden))
        self.embedding, self.position = nn.Embedding(VOCABULARY, shape.width), nn.Embedding(shape.length, shape.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(shape.width, attention(shape), mlp(shape)) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


@cache
def corpus() -> tuple[Tensor, Tensor]:
    """(training bytes, validation bytes), uint8 [N]: the top-level *.py files of the standard library in the order of their names, split 95 : 5."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    cut = len(text) * 95 // 100
    return torch.from_numpy(text[:cut].copy()), torch.from_numpy(text[cut:].copy())


def windows(text: Tensor, starts: Sequence[int] | Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(inputs, targets), int64 [n, length]: bytes from each start, and those one further."""
    rows = torch.stack([text[int(at) : int(at) + length + 1] for at in starts]).long()
    return rows[:, :-1], rows[:, 1:]


def batches(seed: int, shape: Shape, training: Training) -> Callable[[], tuple[Tensor, Tensor]]:
    """The next training batch of a seed, each time it is called: the same sequence for every variant."""
    text, dice = corpus()[0], torch.Generator().manual_seed(seed)
    return lambda: windows(text, torch.randint(len(text) - shape.length - 1, (training.batch,), generator=dice), shape.length)


def validation(model: Callable[[Tensor], Tensor], shape: Shape, count: int = 48) -> float:
    """Mean loss in nats per byte on `count` fixed windows of the unseen text."""
    text = corpus()[1]
    inputs, targets = windows(text, np.linspace(0, len(text) - shape.length - 2, count).astype(int).tolist(), shape.length)
    if isinstance(model, nn.Module):
        model.eval()
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))


def train(model: LM, seed: int, training: Training | None = None, *, each: Callable[[int], Any] | None = None, run: Any = None) -> Curve:
    """Train `model` in place and say how it went. `each(step)` is called before every step (to change a schedule); `run` is called in place of the
    model in training (a compiled one). Raises FloatingPointError where the loss is no longer finite."""
    training = training or Training()
    optimiser = torch.optim.AdamW(model.parameters(), lr=training.rate, betas=(0.9, 0.95), weight_decay=0.01)
    batch, curve, spent = batches(seed, model.shape, training), Curve(seed), 0.0
    for step in range(1, training.steps + 1):
        inputs, targets = batch()
        model.train()
        began = time.process_time()
        if each is not None:
            each(step)
        for group in optimiser.param_groups:
            group["lr"] = training.rate * min(1.0, step / training.warmup)
        loss = F.cross_entropy((run or model)(inputs).flatten(0, 1), targets.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        spent += time.process_time() - began
        if step % training.every == 0 or step == training.steps:
            value = validation(model, model.shape, training.windows)
            if not np.isfinite(value):
                raise FloatingPointError(f"the loss of seed {seed} is {value} after {step} steps")
            curve.steps.append(step)
            curve.losses.append(value)
            curve.seconds.append(spent)
    return curve


def made(seed: int, shape: Shape | None = None, **parts: Any) -> LM:
    """A model whose first weights depend on the seed alone."""
    torch.manual_seed(seed)
    return LM(shape, **parts)


def fresh(seed: int, training: Training | None = None, shape: Shape | None = None, **parts: Any) -> tuple[LM, Curve]:
    """(trained model, its curve) of a seed; `parts` as for `LM`."""
    model = made(seed, shape, **parts)
    return model, train(model, seed, training)
