"""Small models of seven families with example inputs, made on the spot: what memory plans are measured on. Sizes are such that activations outweigh
the rest, as they do in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class EncoderBlock(nn.Module):
    """Pre-norm transformer block whose attention is written out, so that its scores are values like any other."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * (w // self.heads) ** -0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, w))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Encoder, or with `causal` a language model in the manner of GPT-2."""

    def __init__(self, layers: int = 6, width: int = 128, heads: int = 4, words: int = 512, length: int = 64, causal: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(EncoderBlock(width, heads, causal) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words if causal else 2)
        self.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.head(x if self.causal else x.mean(1))


class Residual(nn.Module):
    """Bottleneck of He et al. (2016), with group norm."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        mid = outer // 4
        self.body = nn.Sequential(nn.Conv2d(inner, mid, 1), nn.GroupNorm(4, mid), nn.ReLU(), nn.Conv2d(mid, mid, 3, stride, 1), nn.GroupNorm(4, mid),
                                  nn.ReLU(), nn.Conv2d(mid, outer, 1), nn.GroupNorm(4, outer))
        self.skip = nn.Identity() if inner == outer and stride == 1 else nn.Conv2d(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.skip(x))


class Inverted(nn.Module):
    """Inverted residual of Sandler et al. (2018)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inner
        self.add = inner == outer and stride == 1
        self.body = nn.Sequential(nn.Conv2d(inner, wide, 1), nn.GroupNorm(4, wide), nn.ReLU6(), nn.Conv2d(wide, wide, 3, stride, 1, groups=wide),
                                  nn.GroupNorm(4, wide), nn.ReLU6(), nn.Conv2d(wide, outer, 1), nn.GroupNorm(4, outer))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


class Convolutional(nn.Module):
    """A stem, blocks of one kind, a head."""

    def __init__(self, kind: Callable[[int, int, int], nn.Module], widths: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1)
        steps = [2 if b > a else 1 for a, b in zip(widths, widths[1:], strict=False)]
        self.layers = nn.ModuleList(kind(a, b, s) for a, b, s in zip(widths, widths[1:], steps, strict=False))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """Encoder and decoder with links across (Ronneberger et al. 2015)."""

    def __init__(self, base: int = 16, depth: int = 4) -> None:
        super().__init__()

        def unit(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.GroupNorm(4, b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.GroupNorm(4, b), nn.ReLU())

        wide = [base << i for i in range(depth)]
        self.down = nn.ModuleList(unit(a, b) for a, b in zip([3, *wide], wide, strict=False))
        self.up = nn.ModuleList(unit(a + b, a) for a, b in zip(wide[-2::-1], wide[:0:-1], strict=True))
        self.head = nn.Conv2d(base, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, part in enumerate(self.down):
            x = part(nn.functional.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for part, other in zip(self.up, kept[-2::-1], strict=True):
            x = part(torch.cat([nn.functional.interpolate(x, scale_factor=2.0), other], 1))
        return self.head(x)


class EncoderDecoder(nn.Module):
    """T5 from its configuration, without weights of anybody's."""

    def __init__(self, layers: int = 3, width: int = 96) -> None:
        super().__init__()
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(vocab_size=512, d_model=width, d_kv=width // 4, d_ff=4 * width, num_layers=layers, num_decoder_layers=layers, num_heads=4,
                          dropout_rate=0.0, use_cache=False)
        config.decoder_start_token_id = 0
        self.model = T5ForConditionalGeneration(config)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.model(input_ids=ids, labels=labels).loss


class Recurrent(nn.Module):
    """Stacked LSTM cells (Hochreiter and Schmidhuber 1997), unrolled."""

    def __init__(self, width: int = 96, layers: int = 2, words: int = 256) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        self.gates = nn.ModuleList(nn.Linear(2 * width, 4 * width) for _ in range(layers))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        steps = list(x.unbind(1))
        for gate in self.gates:
            h = c = torch.zeros_like(steps[0])
            for t, step in enumerate(steps):
                i, f, o, g = gate(torch.cat([step, h], -1)).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                steps[t] = h
        return self.head(torch.stack(steps, 1))


def _ids(words: int, *shape: int) -> Tensor:
    return torch.randint(words, shape, generator=torch.Generator().manual_seed(0))


def _image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "encoder": lambda: (Transformer(6), (_ids(512, 16, 64),)),
    "gpt2": lambda: (Transformer(6, causal=True), (_ids(512, 8, 64),)),
    "resnet": lambda: (Convolutional(Residual, (32, 32, 32, 64, 64, 64, 128, 128)), (_image(8, 3, 32, 32),)),
    "mobilenet": lambda: (Convolutional(Inverted, (16, 16, 24, 24, 24, 32, 32, 32, 48, 48)), (_image(8, 3, 32, 32),)),
    "unet": lambda: (UNet(), (_image(4, 3, 48, 48),)),
    "t5": lambda: (EncoderDecoder(), (_ids(512, 8, 48), _ids(512, 8, 32))),
    "lstm": lambda: (Recurrent(), (_ids(256, 16, 24),)),
}


def made(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """(module in training mode, example inputs) of a family."""
    torch.manual_seed(seed)
    module, inputs = MODELS[name]()
    return module.train(), inputs
