"""Large models as published plans name them, without weights: built on the meta device, so that a model of any size can be captured and planned.

    gpt:8192x48x64             hidden, layers, heads; vocabulary 51200, sequence 1024, half precision (the suite of Zheng et al., OSDI 2022)
    moe:1024x24x16x64          hidden, layers, heads, experts: every second block has experts (GShard, Lepikhin et al., ICLR 2021)
    wresnet:4x50               width factor and depth (50 or 101) of a Wide-ResNet (Zagoruyko and Komodakis 2016), 224 × 224 pictures, 1024 classes

`giant("gpt:8192x48x64", batch=1)` gives a module that answers its loss, and example inputs.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import InputError

KINDS = {"gpt": 3, "moe": 4, "wresnet": 2}


class GiantAttention(nn.Module):
    """Causal attention with a projection each for queries, keys and values, so that heads can be split."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = (layer(x).view(b, s, self.heads, h // self.heads).transpose(1, 2) for layer in (self.query, self.key, self.value))
        answer = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(answer.transpose(1, 2).reshape(b, s, h))


class GiantMlp(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class GiantExperts(nn.Module):
    """Switch routing with a capacity: the tokens of a group go to the expert of largest gate, by products with a 0/1 tensor."""

    def __init__(self, hidden: int, experts: int, slack: float = 1.25) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, hidden, 4 * hidden))
        self.down = nn.Parameter(torch.empty(experts, 4 * hidden, hidden))
        self.experts, self.slack = experts, slack

    def forward(self, x: Tensor) -> Tensor:
        capacity = max(1, int(self.slack * x.shape[1] / self.experts))
        gates = F.softmax(self.gate(x), dim=-1)
        best, expert = gates.max(dim=-1)
        chosen = (expert.unsqueeze(-1) == torch.arange(self.experts, device=x.device)).to(x.dtype)
        slot = torch.cumsum(chosen, dim=1) * chosen
        places = torch.arange(1, capacity + 1, device=x.device, dtype=x.dtype)
        dispatch = (slot.unsqueeze(-1) == places).to(x.dtype)
        inside = torch.einsum("gsec,gsh->egch", dispatch, x)
        worked = torch.einsum("egcf,efh->egch", F.gelu(torch.einsum("egch,ehf->egcf", inside, self.up)), self.down)
        return torch.einsum("gsec,egch->gsh", dispatch * best.unsqueeze(-1).unsqueeze(-1), worked)


class GiantBlock(nn.Module):
    def __init__(self, hidden: int, heads: int, experts: int = 0) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = GiantAttention(hidden, heads)
        self.mlp = GiantExperts(hidden, experts) if experts else GiantMlp(hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class GiantLanguageModel(nn.Module):
    """Embeddings, blocks, a head of its own; answers the mean loss of the next tokens."""

    def __init__(self, hidden: int, layers: int, heads: int, experts: int = 0, vocabulary: int = 51200, length: int = 1024) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, hidden), nn.Embedding(length, hidden)
        self.blocks = nn.ModuleList(GiantBlock(hidden, heads, experts if i % 2 else 0) for i in range(layers))
        self.last, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.last(x)).flatten(0, 1), targets.flatten(), reduction="sum") / targets.numel()


class Bottleneck(nn.Module):
    def __init__(self, inside: int, width: int, outside: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(inside, width, 1, bias=False), nn.Conv2d(width, width, 3, stride, 1, bias=False),
                                    nn.Conv2d(width, outside, 1, bias=False)])
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (width, width, outside))
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = F.relu(y) if i < 2 else y
        return F.relu(y + self.short(x))


class WideResNet(nn.Module):
    """Bottleneck blocks of `width` × 64 channels and more; answers its loss."""

    def __init__(self, width: int, depth: int, classes: int = 1024) -> None:
        super().__init__()
        counts = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
        self.stem, self.norm = nn.Conv2d(3, 64 * width, 7, 2, 3, bias=False), nn.BatchNorm2d(64 * width)
        inside, blocks = 64 * width, []
        for stage, count in enumerate(counts):
            for i in range(count):
                blocks.append(Bottleneck(inside, 64 * width << stage, 256 * width << stage, 2 if stage and not i else 1))
                inside = 256 * width << stage
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(inside, classes)

    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(pictures))), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x.mean((2, 3))), targets, reduction="sum") / len(targets)


def is_giant(ref: object) -> bool:
    """Whether `ref` names a model of this file."""
    return isinstance(ref, str) and ref.partition(":")[0] in KINDS and bool(re.fullmatch(r"\w+:\d+(x\d+)*", ref))


def giant(ref: str, batch: int = 1, length: int = 1024, dtype: torch.dtype | None = None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module that `ref` names, on the meta device, and example inputs of `batch` rows. dtype: half precision (of pictures single) unless given.

    Raises InputError where the sizes are not those of its kind.
    """
    kind, _, text = ref.partition(":")
    sizes = [int(part) for part in text.split("x")]
    if len(sizes) != KINDS[kind] or min(sizes) < 1 or kind == "wresnet" and sizes[1] not in (50, 101) or kind != "wresnet" and sizes[0] % sizes[2]:
        raise InputError(f"{ref!r} is no size of {kind}.", "Write gpt:HIDDENxLAYERSxHEADS (heads divide hidden), moe:HIDDENxLAYERSxHEADSxEXPERTS or "
                         "wresnet:WIDTHx50.")
    with torch.device("meta"):
        if kind == "wresnet":
            model, precision = WideResNet(*sizes), dtype or torch.float32
            inputs: tuple[Tensor, ...] = (torch.empty(batch, 3, 224, 224, dtype=precision), torch.empty(batch, dtype=torch.long))
        else:
            model, precision = GiantLanguageModel(*sizes[:3], *sizes[3:], length=length), dtype or torch.float16
            inputs = (torch.empty(batch, length, dtype=torch.long), torch.empty(batch, length, dtype=torch.long))
    return model.to(precision), inputs


__all__ = ["GiantAttention", "GiantBlock", "GiantLanguageModel", "GiantMlp", "GiantExperts", "Bottleneck", "WideResNet", "giant", "is_giant"]
