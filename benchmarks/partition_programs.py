"""Small JAX programs with a few annotated arguments: what propagation is compared with JAX's own partitioner on. Mesh: a × b, two devices each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

Entry = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Example:
    """A function, the shapes of its arguments ("i" before a shape's numbers: integers below that many), and entries of annotated arguments."""

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    said: dict[int, tuple[Entry, ...]]
    integers: dict[int, int] = field(default_factory=dict)              # argument → its values are below this


def attention(x: Any, q: Any, k: Any, v: Any, o: Any) -> Any:
    query, key, value = (jnp.einsum("bld,dhk->bhlk", x, w) for w in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("bhlk,bhsk->bhls", query, key) * 0.2, -1)
    return jnp.einsum("bhlk,hkd->bld", jnp.einsum("bhls,bhsk->bhlk", weights, value), o)


def norm(x: Any) -> Any:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def mlp(x: Any, u: Any, d: Any) -> Any:
    return jax.nn.gelu(x @ u) @ d


def block(x: Any, q: Any, k: Any, v: Any, o: Any, u: Any, d: Any) -> Any:
    x = x + attention(norm(x), q, k, v, o)
    return x + mlp(norm(x), u, d)


def loss(x: Any, u: Any, d: Any, y: Any) -> Any:
    return ((mlp(x, u, d) - y) ** 2).mean()


def entropy(x: Any, w: Any, y: Any) -> Any:
    scores = x @ w
    return (jax.nn.logsumexp(scores, -1) - (scores * jax.nn.one_hot(y, scores.shape[-1])).sum(-1)).mean()


def recurrent(x: Any, w: Any, u: Any) -> Any:
    h = jnp.zeros((x.shape[0], u.shape[0]))
    for t in range(x.shape[1]):
        h = jnp.tanh(x[:, t] @ w + h @ u)
    return h


def experts(x: Any, route: Any, u: Any, d: Any) -> Any:
    """Every expert on every token, weighed: dense mixture."""
    gates = jax.nn.softmax(x @ route, -1)
    return jnp.einsum("te,tec->tc", gates, jnp.einsum("tef,efc->tec", jax.nn.silu(jnp.einsum("tc,ecf->tef", x, u)), d))


def convolve(x: Any, w: Any) -> Any:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")


X, W, V = (256, 128), (128, 512), (512, 128)
B = (8, 32, 128)
HEADS = ((128, 8, 16), (128, 8, 16), (128, 8, 16), (8, 16, 128))

PROGRAMS: dict[str, Example] = {
    "rows": Example(lambda x, w: x @ w, (X, W), {0: ("a",)}),
    "columns": Example(lambda x, w: x @ w, (X, W), {1: (None, "b")}),
    "rows and columns": Example(lambda x, w: x @ w, (X, W), {0: ("a",), 1: (None, "b")}),
    "contracted on both sides": Example(lambda x, w: x @ w, (X, W), {0: (None, "b"), 1: ("b",)}),
    "contracted on one side": Example(lambda x, w: x @ w, (X, W), {0: (None, "b")}),
    "both axes on one dimension": Example(lambda x, w: x @ w, (X, W), {0: (("a", "b"),)}),
    "feed-forward, columns": Example(mlp, (X, W, V), {1: (None, "b")}),
    "feed-forward, two axes": Example(mlp, (X, W, V), {0: ("a",), 1: (None, "b")}),
    "feed-forward, second weight": Example(mlp, (X, W, V), {2: ("b",)}),
    "feed-forward, weights of one split": Example(mlp, (X, W, V), {1: ("b",), 2: ("b",)}),
    "feed-forward, columns twice": Example(mlp, (X, W, V), {1: (None, "b"), 2: (None, "b")}),
    "gated feed-forward": Example(lambda x, u, g, d: (jax.nn.silu(x @ g) * (x @ u)) @ d, (X, W, W, V), {1: (None, "b")}),
    "residual": Example(lambda x, u, d: x + mlp(x, u, d), (X, W, V), {0: ("a",), 1: (None, "b")}),
    "weights split as the examples": Example(lambda x, w: x @ w, (X, W), {0: ("a",), 1: ("a",)}),
    "weights and examples, columns": Example(lambda x, w: x @ w, (X, W), {0: ("a",), 1: (None, "a")}),
    "attention, examples": Example(attention, (B, *HEADS), {0: ("a",)}),
    "attention, heads": Example(attention, (B, *HEADS), {1: (None, "b")}),
    "attention, both": Example(attention, (B, *HEADS), {0: ("a",), 1: (None, "b"), 4: ("b",)}),
    "attention, sequence": Example(attention, (B, *HEADS), {0: (None, "a")}),
    "block, examples": Example(block, (B, *HEADS, W, V), {0: ("a",)}),
    "block, both": Example(block, (B, *HEADS, W, V), {0: ("a",), 1: (None, "b"), 5: (None, "b")}),
    "norm, rows": Example(norm, (X,), {0: ("a",)}),
    "norm, columns": Example(norm, (X,), {0: (None, "b")}),
    "softmax, columns": Example(lambda x: jax.nn.softmax(x, -1), (X,), {0: (None, "b")}),
    "softmax, rows": Example(lambda x: jax.nn.softmax(x, -1), (X,), {0: ("a",)}),
    "embedding, width": Example(lambda w, i: w[i], ((512, 128), (8, 32)), {0: (None, "b")}, {1: 512}),
    "embedding, places": Example(lambda w, i: w[i], ((512, 128), (8, 32)), {1: ("a",)}, {1: 512}),
    "entropy, examples": Example(entropy, (X, W, (256,)), {0: ("a",)}, {2: 512}),
    "entropy, classes": Example(entropy, (X, W, (256,)), {1: (None, "b")}, {2: 512}),
    "mean of all": Example(lambda x: (x * 2).mean(), (X,), {0: ("a", "b")}),
    "turned": Example(lambda x, w: x.T @ w, ((128, 256), W), {0: (None, "a")}),
    "heads merged": Example(lambda x, w: x.reshape(8, 32, 128) @ w, ((8, 32, 8, 16), W), {0: ("a", None, "b")}),
    "heads split": Example(lambda x, w: (x @ w).reshape(8, 32, 8, 64).sum(2), (B, W), {1: (None, "b")}),
    "joined": Example(lambda x, y: jnp.concatenate([x, y], 1) * 2, (X, X), {0: ("a",)}),
    "joined along what is split": Example(lambda x, y: jnp.concatenate([x, y], 1) * 2, (X, X), {0: (None, "b")}),
    "two sums": Example(lambda x, u, y, v: x @ u + y @ v, (X, W, X, W), {0: (None, "b"), 2: (None, "b")}),
    "chain": Example(lambda x, a, b, c, d: x @ a @ b @ c @ d, (X, W, V, W, V), {1: (None, "b")}),
    "gradient, examples": Example(jax.grad(loss, (1, 2)), (X, W, V, X), {0: ("a",)}),
    "gradient, both": Example(jax.grad(loss, (1, 2)), (X, W, V, X), {0: ("a",), 1: (None, "b")}),
    "gradient of attention": Example(jax.grad(lambda *a: attention(*a).sum(), (1, 2, 3, 4)), (B, *HEADS), {0: ("a",), 1: (None, "b")}),
    "experts": Example(experts, (X, (128, 8), (8, 128, 64), (8, 64, 128)), {2: ("b",)}),
    "experts and examples": Example(experts, (X, (128, 8), (8, 128, 64), (8, 64, 128)), {0: ("a",), 2: ("b",)}),
    "convolution, examples": Example(convolve, ((8, 16, 16, 16), (32, 16, 3, 3)), {0: ("a",)}),
    "convolution, channels": Example(convolve, ((8, 16, 16, 16), (32, 16, 3, 3)), {1: ("b",)}),
    "convolution, channels read": Example(convolve, ((8, 16, 16, 16), (32, 16, 3, 3)), {0: (None, "b")}),
    "recurrent, examples": Example(recurrent, ((8, 4, 64), (64, 64), (64, 64)), {0: ("a",)}),
    "recurrent, columns": Example(recurrent, ((8, 4, 64), (64, 64), (64, 64)), {2: (None, "b")}),
    "sliced": Example(lambda x, w: x[:, :100] @ w[:100], (X, W), {0: ("a",)}),
}

__all__ = ["PROGRAMS", "Example"]
