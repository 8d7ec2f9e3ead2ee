"""Models that nobody has seen: the ways in which people write transformers and conv nets by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Causal(nn.Module):
    """Fused projection whose view takes the head width from the residual width; causal through a buffer."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n_head, self.n_embd = heads, width
        self.register_buffer("tril", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (y.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for y in self.c_attn(x).split(self.n_embd, dim=2))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = F.softmax(att.masked_fill(self.tril[:, :, :t, :t] == 0, float("-inf")), dim=-1)
        return self.c_proj((att @ v).transpose(1, 2).contiguous().view(b, t, c))


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(64), Causal(), nn.LayerNorm(64)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(64, 128), "c_proj": nn.Linear(128, 64)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Nano(nn.Module):
    """A hand-written language model with tied embeddings and blocks in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(100, 64), "wpe": nn.Embedding(64, 64), "h": nn.ModuleList([Step() for _ in range(3)])})
        self.head = nn.Linear(64, 100, bias=False)
        self.head.weight = self.transformer["wte"].weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.transformer["wte"](input_ids) + self.transformer["wpe"](torch.arange(input_ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.head(x)


class Patchwise(nn.Module):
    """Vision attention with one fused matrix, reshaped by batch, tokens, width; full attention."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        att = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((att @ v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(64), Patchwise(), nn.LayerNorm(64)
        self.mlp = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 64))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Eyes(nn.Module):
    """A vision transformer written in one Sequential, followed by its norm in the same container."""

    def __init__(self) -> None:
        super().__init__()

        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(64))
        self.head = nn.Linear(64, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(pixel_values).flatten(2).transpose(1, 2)).mean(1))


class Look(nn.Module):
    """Attention with its own norm and separate query and key-value matrices; inner width unlike the residual's."""

    def __init__(self, width: int = 64, heads: int = 3, deep: int = 16) -> None:
        super().__init__()
        self.heads, self.scale = heads, deep**-0.5
        self.norm, self.attend = nn.LayerNorm(width), nn.Softmax(dim=-1)
        self.to_q, self.to_kv = nn.Linear(width, heads * deep, bias=False), nn.Linear(width, 2 * heads * deep, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * deep, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1)))
        return self.to_out((self.attend(q @ k.transpose(-1, -2) * self.scale) @ v).transpose(1, 2).flatten(2))


class Lists(nn.Module):
    """Blocks as lists of parts, which the model's own forward adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(100, 64), nn.Linear(64, 5)
        self.layers = nn.ModuleList()
        for _ in range(2):
            feed = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
            self.layers.append(nn.ModuleList([Look(), feed]))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for attention, feed in self.layers:  # type: ignore[misc]
            x = attention(x) + x
            x = feed(x) + x
        return self.head(x.mean(1))


class Masked(nn.Module):
    """Attention with separate matrices, whose view uses the residual width, and a boolean padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (w(x).view(b, t, self.heads, d // self.heads).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        score = (q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)).masked_fill(mask[:, None, None, :] == 0, -1e9)
        return self.wo((score.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Masked(), nn.LayerNorm(64), nn.LayerNorm(64)
        self.w1, self.w2 = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.w2(torch.relu(self.w1(x))))


class Annotated(nn.Module):
    """Post-norm blocks as plain attributes, in the manner of the annotated transformer."""

    def __init__(self) -> None:
        super().__init__()

        self.embedding, self.first, self.second, self.head = nn.Embedding(100, 64), Layer(), Layer(), nn.Linear(64, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        x = self.second(self.first(x, attention_mask), attention_mask)
        return self.head(x[:, 0])


class Old(nn.Module):
    """Attention of older code: batch and heads share an axis, sequence first; the mask that is handed in is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 16
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        t, b, d = x.shape
        q, k, v = (w(x).contiguous().view(t, b * self.num_heads, self.head_dim).transpose(0, 1) for w in (self.q_proj, self.k_proj, self.v_proj))
        score = torch.bmm(q * self.head_dim**-0.5, k.transpose(1, 2)) + bias
        out = torch.bmm(torch.softmax(score, dim=-1), v).transpose(0, 1).contiguous().view(t, b, d)
        return self.out_proj(out)


class Fairly(nn.Module):
    """Pre-norm layers around it, with a causal bias and a gated feed-forward, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers, self.head = nn.Embedding(100, 64), nn.ModuleList([Aged(), Aged()]), nn.Linear(64, 100)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids).transpose(0, 1)
        bias = torch.full((x.shape[0], x.shape[0]), -1e4).triu(1)
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(x.transpose(0, 1))


class Aged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(64), nn.LayerNorm(64), Old()
        self.gate, self.value, self.down = nn.Linear(64, 96), nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), bias)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.value(y))


class Plain(nn.Module):
    """No residual connection anywhere: convolutions in a row, then a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(self.features(pixel_values))


class Memory(nn.Module):
    """A recurrent net: nothing that can be removed, and that must be said."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.core, self.head = nn.Embedding(100, 32), nn.LSTM(32, 32, batch_first=True), nn.Linear(32, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.core(self.embedding(input_ids))[0][:, -1])
