"""JAX functions captured through their jaxpr: the same answers node by node, and contractions counted as XLA counts them."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the extra `jax` is not installed")
jnp = jax.numpy
jaxpr = pytest.importorskip("fourfold.frontends.jaxpr")
capture = jaxpr.capture


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def xla(function, *args) -> float:
    cost = jax.jit(function).lower(*args).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


PARAMS = {"w": draw(8, 16), "b": draw(16), "v": draw(16, 4)}


def mlp(params, x):
    return jax.nn.softmax(jnp.tanh(x @ params["w"] + params["b"]) @ params["v"])


def test_answers_equal_the_function_node_by_node():
    x = draw(5, 8)
    found = capture(mlp, (PARAMS, x))
    np.testing.assert_allclose(found.run(PARAMS, x), mlp(PARAMS, x), rtol=1e-5)
    np.testing.assert_allclose(found.run(x), mlp(PARAMS, x), rtol=1e-5)  # the captured parameters stay
    assert found.graph.validate() == []
    assert found.graph.flops.sum() == 2 * 5 * (8 * 16 + 16 * 4)
    assert int(found.graph.size[found.graph.role == 2].sum()) == 4 * (8 * 16 + 16 + 16 * 4)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (lambda a, b: a @ b, (draw(7, 9), draw(9, 5))),
        (lambda a, b: jnp.einsum("bik,bkj->bij", a, b), (draw(3, 7, 9), draw(3, 9, 5))),
        (lambda a, b: jnp.tensordot(a, b, 2), (draw(6, 4, 5), draw(4, 5, 3))),
        (lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), (draw(2, 3, 8, 4), draw(2, 3, 6, 4))),
    ],
)
def test_dots_are_counted_as_by_xla(function, args):
    found = capture(function, args)
    assert found.graph.flops.sum() == xla(function, *args)
    np.testing.assert_allclose(found.run(*args), function(*args), rtol=1e-5)


def test_convolution_without_padding_is_counted_as_by_xla():
    def conv(x, k):
        return jax.lax.conv_general_dilated(x, k, (2, 2), "VALID")

    x, k = draw(2, 3, 9, 9), draw(4, 3, 3, 3)
    found = capture(conv, (x, k))
    assert found.graph.flops.sum() == 2 * 2 * 4 * 4 * 4 * 27
    assert abs(xla(conv, x, k) / found.graph.flops.sum() - 1) < 0.05
    np.testing.assert_allclose(found.run(x, k), conv(x, k), rtol=1e-5)


def test_short_scans_are_unrolled_long_ones_kept():
    def recurrent(w, xs):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), h.sum()), jnp.zeros(8), xs)

    w = draw(8, 8)
    for length, unrolled in ((6, True), (500, False)):
        xs = draw(length, 8)
        found = capture(recurrent, (w, xs))
        assert ("scan" not in found.graph.kinds) == unrolled
        assert found.graph.flops.sum() == 2 * 8 * 8 * length
        for got, want in zip(jax.tree_util.tree_leaves(found.run(w, xs)), jax.tree_util.tree_leaves(recurrent(w, xs)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_training_marks_the_backward_pass():
    x = draw(5, 8)

    def loss(params, x):
        return (mlp(params, x) ** 2).sum()

    found = capture(loss, (PARAMS, x), train=True)
    value, gradient = found.run(PARAMS, x)
    want, slope = jax.value_and_grad(loss)(PARAMS, x)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for name in PARAMS:
        np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-5, atol=1e-7)
    assert set(found.graph.phase.tolist()) == {0, 1}
    forward = found.graph.flops[found.graph.phase == 0].sum()
    assert forward == 2 * 5 * (8 * 16 + 16 * 4)


def test_jit_remat_and_custom_derivatives_are_inlined():
    @jax.jit
    def inner(x):
        return jax.checkpoint(lambda y: jax.nn.relu(y) @ y.T)(x)

    x = draw(4, 6)
    found = capture(inner, (x,))
    assert not {"pjit", "jit", "remat", "checkpoint", "custom_jvp_call"} & set(found.graph.kinds)
    np.testing.assert_allclose(found.run(x), inner(x), rtol=1e-6)


def test_what_the_tables_do_not_know_is_listed():
    def odd(x):
        return jax.lax.while_loop(lambda s: s.sum() < 100, lambda s: s * 2 + 1, x)

    found = capture(odd, (jnp.ones(3),))
    assert found.graph.unknown == ("while",)
    np.testing.assert_allclose(found.run(jnp.ones(3)), odd(jnp.ones(3)))


def test_no_inputs_is_an_error_in_words():
    from fourfold.errors import InputError, ModelError

    with pytest.raises(InputError, match="without example inputs"):
        capture(mlp, None)
    with pytest.raises(ModelError, match="cannot be traced"):
        capture(lambda x: x if x.sum() > 0 else -x, (draw(3),))
