"""Whole models: gradients by the three passes against torch.autograd, in double precision, whatever is stored; what they cost; and jax's opinion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fourfold
from fourfold.differentiate.check import check
from fourfold.differentiate.evaluate import evaluate
from fourfold.differentiate.unzip import Residual

F64 = torch.float64
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 0]])
Loss = Callable[[Any], Tensor]


def square(out: Any) -> Tensor:
    return (out[0] if isinstance(out, tuple) else out).square().mean()


def tokens(out: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), IDS.flatten(), ignore_index=0, label_smoothing=0.1)


class Gpt(nn.Module):
    """Causal, pre-norm, tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(10, 12), nn.Parameter(torch.randn(6, 12))
        self.qkv, self.out, self.norms = nn.Linear(12, 36), nn.Linear(12, 12), nn.ModuleList(nn.LayerNorm(12) for _ in range(3))
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place
        q, k, v = (t.view(2, 6, 3, 4).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 6, 12))
        x = x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))
        return self.norms[2](x) @ self.embed.weight.T


class Bert(nn.Module):
    """Post-norm encoder with padding: its mask, segment embeddings, a pooled classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.segments = nn.Embedding(10, 8, padding_idx=0), nn.Embedding(2, 8)
        self.block, self.pool = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.segments(torch.zeros_like(ids))
        return self.pool(self.block(x, src_key_padding_mask=ids == 0)[:, 0].tanh())


class T5(nn.Module):
    """RMS norm, bucketed position bias, gated feed-forward, cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bias, self.scale = nn.Embedding(10, 8), nn.Embedding(4, 2), nn.ParameterList(torch.ones(8) for _ in range(3))
        self.q, self.k, self.v, self.o, self.gate, self.up = (nn.Linear(8, 8, bias=False) for _ in range(6))

    def norm(self, x: Tensor, i: int) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale[i]

    def attend(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (f(t).view(2, 6, 2, 4).transpose(1, 2) for f, t in ((self.q, x), (self.k, memory), (self.v, memory)))
        distance = (torch.arange(6)[:, None] - torch.arange(6)).abs().clamp(max=3)
        scores = q @ k.transpose(-1, -2) + self.bias(distance).permute(2, 0, 1)
        return self.o((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(2, 6, 8))

    def forward(self, ids: Tensor) -> Tensor:
        memory = self.embed(ids)
        memory = memory + self.attend(self.norm(memory, 0), self.norm(memory, 0))
        x = self.embed(ids.flip(1))
        x = x + self.attend(self.norm(x, 1), memory)
        x = x + F.silu(self.gate(x)) * self.up(x)
        return self.norm(x, 2) @ self.embed.weight.T


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 1, 8))
        self.block, self.head = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, norm_first=True, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.block(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ahead, self.down, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(16, 1, 1)
        self.smooth, self.near = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.ahead(x), 0.1)
        b = self.norm(self.down(a)).relu()
        return self.last(torch.cat([a, self.up(b), self.smooth(b)[:, :4], self.near(b)[:, 4:]], 1))


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.cell, self.head = kind(3, 4, batch_first=True, **options), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Mixture(nn.Module):
    """Top-2 of 4 experts by a router; sorting, gathering, scattering."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        share, pick = torch.softmax(self.router(x), -1).topk(2, -1)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        chosen = every.gather(1, pick[..., None].expand(-1, -1, 4))
        usage = torch.zeros(len(x), 4, dtype=x.dtype).scatter_add(1, pick, share)
        ranked, _ = usage.sort(-1)
        return (chosen * share[..., None]).sum(1) + ranked.cumsum(-1)


class Residual2d(nn.Module):
    """A residual network's block with batch norm that is training, dilation, groups and a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.short, self.other = nn.Conv2d(4, 8, 3, 2, 2, 2, groups=2), nn.Conv2d(4, 8, 1, 2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.norm(self.stem(x))), 3, 2, 1)
        x = F.hardswish(self.other(self.conv(x)) + self.short(x))
        return self.head(F.adaptive_avg_pool2d(F.avg_pool2d(x, 2, ceil_mode=True), 1).flatten(1))


def image(*shape: int) -> tuple[Tensor]:
    return (torch.randn(*shape, dtype=F64),)


LABELS = torch.tensor([0, 2])
MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...], Loss]]] = {
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.ELU(), nn.Linear(6, 3)), image(2, 4),
            lambda o: F.cross_entropy(o, LABELS)),
    "resnet": lambda: (Residual2d(), image(2, 3, 12, 12), lambda o: F.nll_loss(F.log_softmax(o, -1), LABELS)),
    "conv-eval": lambda: (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 3)).eval(), image(2, 1, 7, 7), square),
    "conv1d": lambda: (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Mish(), nn.AvgPool1d(2),
                                     nn.ConvTranspose1d(4, 2, 3, 2, output_padding=1), nn.MaxPool1d(2)),
                       image(2, 2, 11), square),
    "gpt": lambda: (Gpt(), (IDS,), tokens), "bert": lambda: (Bert(), (IDS,),
            lambda o: F.cross_entropy(o, LABELS)), "t5": lambda: (T5(), (IDS,), tokens),
    "vit": lambda: (Vit(), image(2, 3, 8, 8), lambda o: F.cross_entropy(o, LABELS)),
    "unet": lambda: (Unet(), image(2, 1, 8, 8),
            lambda o: F.mse_loss(o, o * 0 + 1)),
    "lstm": lambda: (Recurrent(nn.LSTM, num_layers=2), image(2, 3, 3), square),
    "gru": lambda: (Recurrent(nn.GRU, bidirectional=True), image(2, 3, 3), square),
    "mixture": lambda: (Mixture(), image(5, 4), square),
    "encoder-decoder": lambda: (Pair(), image(2, 4, 8), lambda o: F.smooth_l1_loss(o, o.detach() * 0)),
    "autoencoder": lambda: (nn.Sequential(nn.Linear(6, 3), nn.Softplus(), nn.LayerNorm(3), nn.Linear(3, 6), nn.Sigmoid()), image(3, 6),
                            lambda o: F.binary_cross_entropy(o, torch.full_like(o, 0.3)) + o.std() + o.logsumexp(0).mean() + torch.linalg.norm(o)),
}  # fmt: skip


class Pair(nn.Module):
    """An encoder and a decoder with cross attention and a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, x.flip(1), tgt_mask=nn.Transformer.generate_square_subsequent_mask(4, dtype=F64), tgt_is_causal=True)


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert set(found) == set(expected)
    return max(float((found[k] - expected[k]).abs().max()) for k in found)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_whole_models(name: str) -> None:
    torch.manual_seed(0)
    net, inputs, loss = MODELS[name]()
    net = net.double()
    net(*inputs)                                                       # sizes of lazy layers
    state = {k: v.clone() for k, v in net.state_dict().items()}
    step = fourfold.grad(net, inputs, loss)
    value, gradients = step()
    expected = loss(net(*inputs))
    params = {k: p for k, p in net.named_parameters()}
    own = dict(zip(params, torch.autograd.grad(expected, list(params.values())), strict=True))
    net.load_state_dict(state)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-9, abs=1e-9) and differences(gradients, own) <= 1e-9
    parts = step.reverse
    assert not check(parts.linearized) + check(parts.unzipped.linear) + check(parts.transposed)

    asked: list[str] = []

    def some(residual: Residual) -> Any:
        """Every second one."""
        asked.append(residual.name)
        return "recompute" if len(asked) % 2 and residual.recomputable else "store"

    program, wrt = step.program.function, [i in step.wrt for i in range(len(step.program.function.inputs))]
    tensors = step.program.given(*inputs)
    from fourfold.differentiate.gradient import reverse_mode

    stored = [parts.unzipped.bytes]
    for policy in (some, "recompute"):
        other = reverse_mode(program, wrt, policy)
        with torch.no_grad():
            found = evaluate(other.function, tensors)[0]
        assert max(float((a - b).abs().max()) for a, b in zip(found[1:], gradients.values(), strict=True)) <= 1e-12
        stored.append(other.unzipped.bytes)
    assert stored[0] > stored[1] >= stored[2] and stored[2] == 0
    graph = step.graph
    ahead = graph.phase == 0
    primal, whole = (float((graph.flops + graph.steps)[part].sum()) for part in (ahead, ahead | ~ahead))
    assert whole <= 4 * primal and graph.unknown == ()
    fused = any("attention" in kind for kind in graph.kinds)            # its backward makes five products where the forward has two, as torch's does
    assert float(graph.flops.sum()) <= (3.5 if fused else 3.0) * float(graph.flops[ahead].sum())
    v = [torch.randn_like(t) if i in step.wrt else None for i, t in enumerate(tensors)]
    with torch.no_grad():
        _, tangent = evaluate(parts.linearized, tensors, v)
    paired = sum(float((v[i] * gradients[k]).sum()) for i, k in zip(step.wrt, step.names, strict=True))    # type: ignore[operator]
    assert float(tangent[0]) == pytest.approx(paired, rel=1e-9, abs=1e-9)    # type: ignore[arg-type]


def test_the_program_says_the_same_as_jax() -> None:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(4, 5)), rng.normal(size=(5, 3)), rng.normal(size=3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(x @ self.w + self.b)
            h = torch.softmax(h, -1) * torch.sigmoid(h).cumsum(0) + h.amax(1, keepdim=True)
            return torch.where(h > 0.3, h.exp(), h.sin())[:, 1:].flip(0).log1p().var(0).sum() + F.pad(h, (1, 2)).prod()

    def same(w: Any, b: Any, x: Any) -> Any:
        h = jnp.tanh(x @ w + b)
        h = jax.nn.softmax(h, -1) * jnp.cumsum(jax.nn.sigmoid(h), 0) + h.max(1, keepdims=True)
        return jnp.log1p(jnp.where(h > 0.3, jnp.exp(h), jnp.sin(h))[:, 1:][::-1]).var(0, ddof=1).sum() + jnp.pad(h, ((0, 0), (1, 2))).prod()

    value, gradients = fourfold.grad(Net(), torch.tensor(x), lambda out: out)()
    expected, (gw, gb) = jax.value_and_grad(same, (0, 1))(w, b, x)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    assert np.allclose(gradients["w"].numpy(), gw, rtol=1e-9, atol=1e-12) and np.allclose(gradients["b"].numpy(), gb, rtol=1e-9, atol=1e-12)


def test_transposes_are_those_of_jax() -> None:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 3, 6, 6)), rng.normal(size=(4, 3, 3, 3))

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(w))

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.w, stride=2, padding=1)
            return F.pad(y.permute(0, 2, 3, 1).reshape(2, -1)[:, ::2], (0, 1)).cumsum(1)

    def same(x: Any) -> Any:
        y = jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)))
        return jnp.cumsum(jnp.pad(y.transpose(0, 2, 3, 1).reshape(2, -1)[:, ::2], ((0, 0), (0, 1))), 1)

    pull = fourfold.transpose(fourfold.unzip(fourfold.linearize(Linear(), torch.tensor(x))))
    y, back = pull()
    cotangent = rng.normal(size=tuple(y.shape))
    (expected,) = jax.linear_transpose(same, jax.ShapeDtypeStruct(x.shape, jnp.float64))(jnp.asarray(cotangent))
    assert np.allclose(y.numpy(), same(x), atol=1e-12) and np.allclose(back(torch.tensor(cotangent))["x"].numpy(), expected, rtol=1e-9, atol=1e-12)
