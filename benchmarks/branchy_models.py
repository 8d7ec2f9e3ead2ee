"""Small networks with many branches, written as their authors write them (all branches, then what joins them): what the order of ops decides on."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn


def _unit(inner: int, outer: int, kernel: int = 3, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, kernel, 1, kernel // 2, groups=groups), nn.ReLU())


class Inception(nn.Module):
    """Four branches, concatenated (Szegedy et al. 2015)."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.stem = _unit(3, width)
        self.blocks = nn.ModuleList(nn.ModuleList([_unit(width, width // 4, 1), nn.Sequential(_unit(width, width, 1), _unit(width, width // 4)),
                                                   nn.Sequential(_unit(width, width, 1), _unit(width, width, 5), _unit(width, width // 4, 5)),
                                                   nn.Sequential(nn.MaxPool2d(3, 1, 1), _unit(width, width // 4, 1))]) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([branch(x) for branch in block], 1)          # type: ignore[union-attr]
        return x.mean((2, 3))


class WaveNet(nn.Module):
    """Dilated convolutions whose skip connections are added up at the end (van den Oord et al. 2016)."""

    def __init__(self, width: int = 32, layers: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2 ** (i % 6), padding=2 ** (i % 6)) for i in range(layers))
        self.outs, self.skips = (nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers)) for _ in range(2))
        self.last = nn.Conv1d(width, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), []
        for gate, out, skip in zip(self.gates, self.outs, self.skips, strict=True):
            a, b = gate(x)[..., : x.shape[-1]].chunk(2, 1)
            y = a.tanh() * b.sigmoid()
            skips.append(skip(y))
            x = x + out(y)
        return self.last(torch.stack(skips).sum(0).relu()) if len(skips) == 1 else self.last(sum(skips[1:], skips[0]).relu())


class RandomlyWired(nn.Module):
    """A random graph of separable convolutions (Xie et al. 2019)."""

    def __init__(self, nodes: int = 24, width: int = 24, seed: int = 1) -> None:
        super().__init__()
        dice = random.Random(seed)
        self.stem = _unit(3, width)
        self.inputs = [sorted({dice.randrange(max(0, n - 10), n) for _ in range(2)}) if n else [] for n in range(nodes)]
        self.parts = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.Conv2d(width, width, 1), nn.ReLU())
                                   for _ in range(nodes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        made: list[Tensor] = []
        for sources, part in zip(self.inputs, self.parts, strict=True):
            made.append(part(sum((made[s] for s in sources[1:]), made[sources[0]]) if sources else x))
        used = {s for sources in self.inputs for s in sources}
        ends = [y for i, y in enumerate(made) if i not in used]
        return sum(ends[1:], ends[0]).mean((2, 3))


class Mixture(nn.Module):
    """Experts that all answer, weighted by a gate (Jacobs et al. 1991)."""

    def __init__(self, width: int = 64, experts: int = 8, layers: int = 2) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(width, experts) for _ in range(layers))
        self.experts = nn.ModuleList(nn.ModuleList(nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
                                                   for _ in range(experts)) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for gate, experts in zip(self.gates, self.experts, strict=True):
            answers = [expert(x) for expert in experts]                # type: ignore[union-attr]
            shares = gate(x).softmax(-1)
            x = x + sum((shares[..., i + 1 : i + 2] * y for i, y in enumerate(answers[1:])), shares[..., :1] * answers[0])
        return x


class HighResolution(nn.Module):
    """Branches at several resolutions, exchanged after each stage (Sun et al. 2019)."""

    def __init__(self, width: int = 16, branches: int = 3, stages: int = 3) -> None:
        super().__init__()
        self.stem = nn.ModuleList(nn.Conv2d(3, width << i, 3, 2**i, 1) for i in range(branches))
        self.units = nn.ModuleList(nn.ModuleList(_unit(width << i, width << i) for i in range(branches)) for _ in range(stages))
        self.links = nn.ModuleList(nn.ModuleList(nn.ModuleList(nn.Conv2d(width << j, width << i, 1) for j in range(branches))
                                                 for i in range(branches)) for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        xs = [stem(x) for stem in self.stem]
        for units, links in zip(self.units, self.links, strict=True):
            ys = [unit(y) for unit, y in zip(units, xs, strict=True)]  # type: ignore[arg-type]
            moved = [[nn.functional.interpolate(link(y), size=to.shape[2:]) for link, y in zip(row, ys, strict=True)]
                     for row, to in zip(links, ys, strict=True)]       # type: ignore[arg-type]
            xs = [torch.relu(sum(row[1:], row[0])) for row in moved]
        return torch.cat([y.mean((2, 3)) for y in xs], 1)


class Pyramid(nn.Module):
    """A feature pyramid whose levels are brought to one size, with a head each (Lin et al. 2017)."""

    def __init__(self, width: int = 24, levels: int = 4) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if i == 0 else width, width, 3, 2 if i else 1, 1) for i in range(levels))
        self.side = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(levels))
        self.head = nn.ModuleList(nn.Sequential(_unit(width, width), nn.Conv2d(width, 8, 1)) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for down in self.down:
            x = down(x).relu()
            levels.append(x)
        merged = [side(y) for side, y in zip(self.side, levels, strict=True)]
        wide = [nn.functional.interpolate(y, size=merged[0].shape[2:]) for y in merged]
        answers = [head(y) for head, y in zip(self.head, wide, strict=True)]
        return reduce(torch.add, answers)


def _image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "inception": lambda: (Inception(), (_image(2, 3, 48, 48),)),
    "wavenet": lambda: (WaveNet(), (_image(2, 1, 1024),)),
    "randomly wired": lambda: (RandomlyWired(), (_image(2, 3, 32, 32),)),
    "mixture of experts": lambda: (Mixture(), (_image(8, 64, 64),)),
    "high resolution": lambda: (HighResolution(), (_image(2, 3, 48, 48),)),
    "pyramid": lambda: (Pyramid(), (_image(2, 3, 48, 48),)),
}


def made(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """(module in inference mode, example inputs)."""
    torch.manual_seed(seed)
    module, inputs = MODELS[name]()
    return module.eval(), inputs
