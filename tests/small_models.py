"""Small models of six families, with example inputs: what plans of memory are tried on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed(self.after(x))


class Transformer(nn.Module):
    """Blocks with an embedding below (of `words`) or without, and a head."""

    def __init__(self, blocks: int = 2, width: int = 32, words: int = 0, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width) if words else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, 4, causal, dropout) for _ in range(blocks)))
        self.head = nn.Linear(width, words or 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)))


class Residual(nn.Module):
    """A convolutional block with batch normalisation and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
                                  nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


class UNet(nn.Module):
    """Down twice, up twice, with shortcuts that live long."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.middle = (nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in ((3, 8), (8, 16), (16, 16)))
        self.third, self.last = (nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in ((32, 16), (24, 8)))
        self.head, self.pool, self.up = nn.Conv2d(8, 2, 1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(self.pool(a))
        c = self.up(self.middle(self.pool(b)))
        d = self.up(self.third(torch.cat([c, b], 1)))
        return self.head(self.last(torch.cat([d, a], 1)))


class Recurrent(nn.Module):
    """Two layers of LSTM and a head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(16, 24, 2, batch_first=True), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


def encoder() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Transformer(), torch.randn(2, 24, 32)


def gpt() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    return Transformer(words=50, causal=True, dropout=0.2), torch.randint(0, 50, (2, 24))


def resnet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Residual(8), nn.MaxPool2d(2), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 5)), torch.randn(4, 3, 16, 16)


def unet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return UNet(), torch.randn(2, 3, 16, 16)


def lstm() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(4)
    return Recurrent(), torch.randn(3, 6, 16)


def mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(5)
    return nn.Sequential(*(part for _ in range(6) for part in (nn.Linear(32, 32), nn.Tanh())), nn.Linear(32, 3)), torch.randn(64, 32)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"encoder": encoder, "gpt": gpt, "resnet": resnet, "unet": unet, "lstm": lstm, "mlp": mlp}
