"""Linearize, unzip, transpose and their compositions on programs: calls, second derivatives, random draws, what to store, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fourfold
from fourfold.differentiate.check import check
from fourfold.differentiate.equations import Emitter, Equation, Function, Variable, call, explicit, inlined, plain
from fourfold.differentiate.evaluate import evaluate, uniform
from fourfold.differentiate.gradient import forward_mode, reverse_mode
from fourfold.differentiate.linearize import linearize
from fourfold.differentiate.transpose import transpose
from fourfold.differentiate.unzip import Unzipped, residuals, unzip
from fourfold.errors import InputError, ModelError

F64 = torch.float64


def program(build: Callable[..., Any], *shapes: tuple[int, ...]) -> Function:
    """The program that `build(emitter, *inputs)` writes."""
    e = Emitter()
    inputs = tuple(Variable(s, "float64", name=f"in{i}") for i, s in enumerate(shapes))
    made = build(e, *inputs)
    named = [replace(eq, name=f"n{i}") for i, eq in enumerate(e.equations)]
    return Function("f", inputs, tuple(made) if isinstance(made, list | tuple) else (made,), tuple(named))


def autograd(f: Function, tensors: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    own = [t.detach().requires_grad_() for t in tensors]
    with torch.enable_grad():
        found = evaluate(f, own)[0]
        scalar = sum((y * w).sum() for y, w in zip(found, cotangents, strict=True))
        if not isinstance(scalar, Tensor) or not scalar.requires_grad:
            return [torch.zeros_like(t) for t in tensors]
        got = torch.autograd.grad(scalar, own, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(got, tensors, strict=True)]


def pulled(f: Function, tensors: list[Tensor], cotangents: list[Tensor], policy: Any = "store") -> list[Tensor]:
    """The gradients by forward half and transposed half."""
    halves = unzip(linearize(f), policy)
    back = transpose(halves.linear)
    assert not check(halves.linear) + check(back)
    return evaluate(back, held(halves, tensors), cotangents)[1]    # type: ignore[return-value]


def held(halves: Unzipped, tensors: list[Tensor]) -> list[Tensor]:
    """What the linear half takes, after the forward half ran."""
    made = evaluate(halves.forward, tensors)[0]
    known = dict(zip(halves.forward.inputs, tensors, strict=True)) | dict(zip(halves.forward.outputs, made, strict=True))
    return [known[v] for v in halves.linear.inputs]


def near(a: Any, b: Any) -> bool:
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-9) for x, y in zip(a, b, strict=True))


# --- random programs -------------------------------------------------------------------------------------------------------------------------

UNARY = ("sin", "cos", "tanh", "sigmoid", "erf", "relu", "gelu", "silu", "atan", "neg")


def invented(draw: Callable[[Any], Any]) -> Function:
    """A random program of matrices [3, 3], with reuse, disuse and dead ends."""
    e = Emitter()
    inputs = [Variable((3, 3), "float64", name=f"in{i}") for i in range(draw(st.integers(1, 3)))]
    values = list(inputs)
    for _ in range(draw(st.integers(1, 14))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.integers(0, 11))
        if kind < 3:
            made = e.emit(f"aten.{draw(st.sampled_from(UNARY))}.default", a)
        elif kind == 3:
            made = e.add(a, b)
        elif kind == 4:
            made = e.mul(a, b)
        elif kind == 5:
            made = e.emit("aten.mm.default", a, b)
        elif kind == 6:
            made = e.emit("aten._softmax.default", a, draw(st.sampled_from((0, 1))), False)
        elif kind == 7:
            made = e.expand(e.sum(a, [draw(st.sampled_from((0, 1)))], True), [3, 3])
        elif kind == 8:
            made = e.emit("aten.cat.default", [e.emit("aten.slice.Tensor", a, 0, 0, 2), e.emit("aten.slice.Tensor", b, 0, 1, 2)], 0)
        elif kind == 9:
            made = e.emit("aten.where.self", e.emit("aten.gt.Tensor", a, b), a, b)
        elif kind == 10:
            made = e.div(a, e.emit("aten.add.Scalar", e.mul(b, b), 1.0))
        else:
            made = e.permute(e.sub(a, b), [1, 0])
        values.append(made)
    outputs = tuple(draw(st.sampled_from(values)) for _ in range(draw(st.integers(1, 2))))
    return Function("f", tuple(inputs), outputs, tuple(replace(eq, name=f"n{i}") for i, eq in enumerate(e.equations)))


def holds(f: Function, seed: int) -> None:
    """All laws of one program at a random point."""
    torch.manual_seed(seed)
    x, v, w = ([torch.randn(3, 3, dtype=F64) for _ in range(n)] for n in (len(f.inputs), len(f.inputs), len(f.outputs)))
    j = linearize(f)
    halves = unzip(j)
    t = transpose(halves.linear)
    again = transpose(t)
    assert not check(j) + check(halves.linear) + check(t) + check(again)
    y, dy = evaluate(j, x, v)
    kept = held(halves, x)
    back = evaluate(t, kept, w)[1]
    expected = autograd(f, x, w)
    scale = max(1.0, *(float(g.abs().max()) for g in expected))
    assert all(torch.allclose(a / scale, b / scale, rtol=1e-9, atol=1e-9) for a, b in zip(back, expected, strict=True))    # type: ignore[operator]
    left, right = (sum(float((a * b).sum()) for a, b in zip(p, q, strict=True)) for p, q in ((dy, w), (v, back)))    # type: ignore[operator]
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9 * scale)
    assert near(evaluate(again, kept, v)[1], dy) and near(y, evaluate(f, x)[0])
    for policy in ("recompute", lambda r: "store" if len(r.name) % 2 else "recompute"):
        assert all(torch.equal(a, b) for a, b in zip(pulled(f, x, w, policy), back, strict=True))    # type: ignore[arg-type]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_programs(data: st.DataObject) -> None:
    holds(invented(data.draw), data.draw(st.integers(0, 2**31)))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_two_hundred_random_programs(data: st.DataObject) -> None:
    holds(invented(data.draw), data.draw(st.integers(0, 2**31)))


# --- structure -------------------------------------------------------------------------------------------------------------------------------


def test_twice_transposed_is_the_same_program() -> None:
    f = program(lambda e, x, y: e.add(e.emit("aten.mm.default", x, y), x), (3, 3), (3, 3))
    line = unzip(linearize(f)).linear
    twice = transpose(transpose(line))

    def told(g: Function) -> list[Any]:
        """Its equations but for the order of what does not depend on each other."""
        return sorted((eq.op, [(v.shape, v.linear) for v in eq.inputs]) for eq in g.equations if eq.op not in ("dup", "aten.permute.default"))

    assert told(twice) == told(line) and not check(twice)
    assert [eq.op for eq in line.equations].count("dup") == [eq.op for eq in twice.equations].count("dup") == 1
    assert twice.name == line.name


def test_one_linear_variable_used_twice_gets_a_dup_and_an_unused_one_a_drop() -> None:
    f = program(lambda e, x, y: e.mul(x, x), (2,), (2,))
    j = linearize(f)
    ops = [eq.op for eq in j.equations]
    assert ops.count("dup") == 1 and ops.count("drop") == 1 and not check(j)
    back = transpose(unzip(j).linear)
    x = [torch.tensor([2.0, 3.0], dtype=F64), torch.zeros(2, dtype=F64)]
    found = evaluate(back, [x[0]], [torch.ones(2, dtype=F64)])[1]
    assert near(found, [2 * x[0], torch.zeros(2, dtype=F64)]), "what is dropped has a cotangent of zeros, in its shape"


def _faulty(change: Callable[[Variable, Variable], tuple[list[Equation], Variable]]) -> list[str]:
    x, t = Variable((2,), "float64"), Variable((2,), "float64", True)
    equations, out = change(x, t)
    return check(Function("bad", (x,), (), tuple(equations), (t,), (out,)))


def test_the_checker_rejects() -> None:
    def made(op: str, *args: Any) -> tuple[list[Equation], Variable]:
        out = Variable((2,), "float64", True)
        return [Equation(op, args, (out,), name="here")], out

    assert _faulty(lambda x, t: made("aten.mul.Tensor", t, x)) == []
    assert any("is never used" in why for why in _faulty(lambda x, t: made("zero")))
    twice = _faulty(lambda x, t: made("aten.add.Tensor", t, t))
    assert any("is used 2 times" in why and "equation 0 (aten.add.Tensor in here)" in why for why in twice)
    assert any("their product" in why for why in _faulty(lambda x, t: made("aten.mul.Tensor", t, t)))
    assert any("adds a linear variable to a non-linear one" in why for why in _faulty(lambda x, t: made("aten.add.Tensor", t, x)))
    assert any("not linear" in why for why in _faulty(lambda x, t: made("aten.div.Tensor", x, t)))
    assert any("not linear in any" in why for why in _faulty(lambda x, t: made("aten.sin.default", t)))
    assert any("other than 0" in why for why in _faulty(lambda x, t: made("aten.constant_pad_nd.default", t, [1, 1], 2.0)))
    assert any("adds a number" in why for why in _faulty(lambda x, t: made("aten.add.Tensor", t, 1.0)))
    assert any("non-linear ones alone" in why for why in _faulty(lambda x, t: made("aten.mul.Tensor", x, x)))
    assert any("nothing makes" in why for why in _faulty(lambda x, t: ([Equation("drop", (t,), ())], Variable((2,), "float64", True))))
    out = Variable((2,), "float64")
    assert any("makes a non-linear variable" in w for w in _faulty(lambda x, t: ([Equation("aten.mul.Tensor", (t, x), (out,))], out)))
    with pytest.raises(InputError, match="is not linear: .*used 2 times.*\n"):
        x, t = Variable((2,), "float64"), Variable((2,), "float64", True)
        equations, out = made("aten.add.Tensor", t, t)
        transpose(Function("bad", (x,), (), tuple(equations), (t,), (out,)))


def test_explicit_mends_what_the_checker_finds() -> None:
    t, s = Variable((2,), "float64", True), Variable((2,), "float64", True)
    out = [Variable((2,), "float64", True) for _ in range(2)]
    twice, thrice = Equation("aten.add.Tensor", (t, t), (out[0],)), Equation("aten.add.Tensor", (out[0], t), (out[1],))
    bad = Function("bad", (), (), (twice, thrice), (t, s), (out[1],))
    assert check(bad) and not check(explicit(bad))
    one = torch.ones(2, dtype=F64)
    assert torch.equal(evaluate(explicit(bad), [], [one, one])[1][0], 3 * one)    # type: ignore[arg-type]


def test_integers_have_no_tangent_and_zeros_have_a_shape() -> None:
    e = Emitter()
    x, i = Variable((3,), "float64"), Variable((2,), "int64")
    f = Function("f", (x, i), (e.emit("aten.index.Tensor", x, [i]), i, e.emit("aten.floor.default", x)), tuple(e.equations))
    j = linearize(f)
    assert j.tangents[1] is None and j.results[1] is None and not check(j)
    _, dy = evaluate(j, [torch.rand(3, dtype=F64), torch.tensor([2, 0])], [torch.tensor([1.0, 2.0, 3.0], dtype=F64), None])
    assert dy[0].tolist() == [3.0, 1.0] and dy[1] is None and dy[2].tolist() == [0.0] * 3    # type: ignore[union-attr]
    with pytest.raises(InputError, match="has no tangent: its type is int64"):
        linearize(f, [True, True])
    with pytest.raises(InputError, match="is linearized already"):
        linearize(j)


# --- functions and calls ---------------------------------------------------------------------------------------------------------------------


def layered(depth: int) -> tuple[Function, Function]:
    """A block, and a program that calls it `depth` times with other weights."""
    block = program(lambda e, x, w: e.add(e.emit("aten.tanh.default", e.emit("aten.mm.default", x, w)), e.mul(x, x)), (3, 3), (3, 3))
    block = replace(block, name="block")
    x, *weights = (Variable((3, 3), "float64", name=f"in{i}") for i in range(depth + 1))
    equations, now = [], x
    for i, w in enumerate(weights):
        equations.append(call(block, [now, w], at=(f"layers.{i}", f"call{i}")))
        now = equations[-1].outputs[0]
    return block, Function("f", (x, *weights), (now,), tuple(equations))


@pytest.mark.parametrize("policy", ["store", "recompute"])
def test_calls_are_split_in_two(policy: Any) -> None:
    torch.manual_seed(0)
    _, f = layered(3)
    x = [torch.randn(3, 3, dtype=F64) * 0.5 for _ in f.inputs]
    w = [torch.randn(3, 3, dtype=F64)]
    j = linearize(f)
    assert len({eq.function for eq in j.equations if eq.function}) == 1 and not check(j), "one J block, called three times"
    halves = unzip(j, policy)
    called = [eq.function for eq in halves.forward.equations if eq.function]
    assert len(called) == 3 and len(set(called)) == 1
    extra = len(called[0].outputs) - 1                                  # the forward half of a call returns its residuals besides
    assert extra == (1 if policy == "store" else 0)
    back = transpose(halves.linear)
    assert sum(eq.function is not None and "T" in eq.function.name for eq in back.equations) == 3
    assert len({eq.function for eq in back.equations if eq.function and eq.function.tangents}) == 1
    assert near(pulled(f, x, w, policy), autograd(inlined(f), x, w)) and near(pulled(f, x, w, policy), pulled(inlined(f), x, w, policy))


def test_calls_differentiate_by_what_is_asked() -> None:
    torch.manual_seed(1)
    _, f = layered(2)
    x = [torch.randn(3, 3, dtype=F64) * 0.5 for _ in f.inputs]
    j = linearize(f, [False, False, True])
    assert [eq.function is not None and bool(eq.function.tangents) for eq in j.equations] == [False, True], "the first call is not differentiated"
    w = [torch.randn(3, 3, dtype=F64)]
    halves = unzip(j)
    found = evaluate(transpose(halves.linear), held(halves, x), w)[1]
    assert found[:2] == [None, None] and near(found[2:], autograd(inlined(f), x, w)[2:])


# --- second derivatives ----------------------------------------------------------------------------------------------------------------------


def test_forward_over_reverse_and_reverse_over_reverse() -> None:
    torch.manual_seed(2)
    f = program(lambda e, x, w: e.sum(e.mul(e.emit("aten._softmax.default", e.emit("aten.mm.default", x, w), 1, False),
                                            e.emit("aten.gelu.default", x)), [0, 1]), (3, 3), (3, 3))
    x, v = ([torch.randn(3, 3, dtype=F64) for _ in range(2)] for _ in range(2))

    def scalar(*t: Tensor) -> Tensor:
        return evaluate(f, t)[0][0]

    reverse = reverse_mode(f).function
    _, products = torch.autograd.functional.hvp(scalar, tuple(x), tuple(v))
    both = forward_mode(reverse)
    found = evaluate(both, [*x, *v])[0]
    assert near(found[-2:], products), "forward over reverse"
    e = Emitter()
    body = list(reverse.equations)
    own = [Variable((3, 3), "float64") for _ in v]
    terms = [e.sum(e.mul(g, h), [0, 1]) for g, h in zip(reverse.outputs[1:], own, strict=True)]
    inner = Function("g", (*reverse.inputs, *own), (e.add(*terms),), (*body, *e.equations))
    twice = reverse_mode(inner, [True, True, False, False]).function
    assert near(evaluate(twice, [*x, *v])[0][1:], products), "reverse over reverse"
    third = forward_mode(both)
    assert len(evaluate(third, [*x, *v, *x, *v])[0]) == 2 * len(both.outputs) and not check(linearize(both))


def test_forward_mode_is_an_ordinary_program() -> None:
    f = program(lambda e, x: e.emit("aten.sin.default", x), (3,))
    jvp = forward_mode(f)
    x, v = torch.rand(3, dtype=F64), torch.rand(3, dtype=F64)
    assert not jvp.tangents and not any(eq.linear for eq in jvp.equations)
    assert near(evaluate(jvp, [x, v])[0], [x.sin(), x.cos() * v]) and near(evaluate(plain(linearize(f)), [x, v])[0], [x.sin(), x.cos() * v])


# --- what is stored --------------------------------------------------------------------------------------------------------------------------


def test_residuals_say_what_they_cost_and_how_they_are_made_again() -> None:
    def build(e: Emitter, x: Variable, w: Variable) -> Variable:
        return e.sum(e.emit("aten.tanh.default", e.emit("aten.mm.default", e.emit("aten.tanh.default", x), w)), [0, 1])

    f = program(build, (3, 3), (3, 3))
    found = residuals(linearize(f))
    assert [r.name for r in found] == ["n0", "n2"] and [r.bytes for r in found] == [72, 72] and all(r.recomputable for r in found)
    assert [eq.op for eq in found[1].cone] == ["aten.tanh.default", "aten.mm.default", "aten.tanh.default"] and found[1].readers == ("n2",)
    halves = unzip(linearize(f), {"n2": "recompute"})
    assert [r.name for r in halves.stored] == ["n0"] and [r.name for r in halves.recomputed] == ["n2"] and halves.bytes == 72
    again = [eq.op for eq in halves.linear.equations if not eq.linear]
    assert again == ["aten.mm.default", "aten.tanh.default"], "from what is stored, not from the start"
    assert unzip(linearize(f), "recompute").bytes == 0 and unzip(linearize(f)).bytes == 144
    with pytest.raises(InputError, match="There is no residual 'n7'"):
        unzip(linearize(f), {"n7": "store"})
    with pytest.raises(InputError, match="A residual is stored or recomputed"):
        unzip(linearize(f), {"n0": "offload"})    # type: ignore[dict-item]
    with pytest.raises(InputError, match="There is no policy 'nothing'"):
        unzip(linearize(f), "nothing")    # type: ignore[arg-type]


def test_draws_reuse_their_key() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.4), nn.Linear(64, 2)).double().train()
    x = torch.randn(5, 4, dtype=F64)
    stored, again = fourfold.grad(net, x), fourfold.grad(net, x, policy="recompute")
    assert stored.reverse.unzipped.bytes > again.reverse.unzipped.bytes == 0
    (one, a), (two, b), (other, c) = stored(key=1), again(key=1), stored(key=2)
    assert one == two and all(torch.equal(a[k], b[k]) for k in a) and one != other
    assert not any(torch.equal(a[k], c[k]) for k in ("0.weight", "2.weight"))
    drawn = uniform(7, 0, [1000], "float64")
    assert torch.equal(drawn, uniform(torch.tensor(7), 0, [1000], "float64")) and not torch.equal(drawn, uniform(7, 1, [1000], "float64"))
    assert 0.4 < float(drawn.mean()) < 0.6 and 0 <= float(drawn.min()) < 0.02 and 0.98 < float(drawn.max()) < 1
    assert set(stored.graph.phase.tolist()) == {0, 1}


def test_without_a_key_a_draw_must_be_stored() -> None:
    f = program(lambda e, x: e.emit("aten.native_dropout.default", x, 0.5, True)[0], (4,))
    (mask,) = residuals(linearize(f))
    assert not mask.recomputable and unzip(linearize(f), "recompute").bytes == 4
    with pytest.raises(InputError, match="cannot be computed again: it draws random numbers without a key"):
        unzip(linearize(f), {mask.name: "recompute"})


# --- the public functions --------------------------------------------------------------------------------------------------------------------


def test_linearize_unzip_transpose_grad() -> None:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, v, w = torch.randn(4, 3, dtype=F64), torch.randn(4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    lin = fourfold.linearize(net, x)
    y, dy = lin({"input": v})
    expected, tangent = torch.func.jvp(net, (x,), (v,))[:2]
    assert lin.names == ("input",) and near([y, dy], [expected, tangent])
    halves = fourfold.unzip(lin)
    again, push = halves()
    assert torch.equal(again, y) and near([push([v])], [dy]) and [r.bytes for r in halves.residuals] == [160] and halves.bytes == 160
    other, pull = fourfold.transpose(halves)(2 * x)
    leaf = (2 * x).requires_grad_()
    assert near([other, pull(w)["input"]], [net(2 * x), torch.autograd.grad((net(leaf) * w).sum(), leaf)[0]])
    step = fourfold.grad(net, x, lambda out: (out * w).sum())
    loss, gradients = step(x)
    own = torch.autograd.grad((net(x) * w).sum(), list(net.parameters()))
    assert near(gradients.values(), own) and list(gradients) == [name for name, _ in net.named_parameters()] and near([loss], [(net(x) * w).sum()])
    ran, same = step.captured.run(x)
    assert torch.equal(ran, loss) and all(torch.equal(same[k], gradients[k]) for k in gradients) and step.graph.validate() == []
    assert set(step.graph.phase.tolist()) == {0, 1} and any(step.graph.modules)
    curve = fourfold.linearize(step, wrt="parameters")
    (_, _), (_, product) = curve([torch.ones_like(p) for p in net.parameters()])
    _, hessian = torch.autograd.functional.hvp(lambda *p: (torch.func.functional_call(net, dict(zip(gradients, p, strict=True)), (x,)) * w).sum(),
                                               tuple(net.parameters()), tuple(torch.ones_like(p) for p in net.parameters()))
    assert near(product.values(), hessian)
    penalty = fourfold.grad(step, loss=lambda out: torch.stack([(g**2).sum() for g in out[1].values()]).sum(), wrt="inputs")
    _, by_input = penalty()
    leaf = x.clone().requires_grad_()
    parts = torch.autograd.grad((net(leaf) * w).sum(), list(net.parameters()), create_graph=True)
    squares = torch.stack([(g**2).sum() for g in parts]).sum()
    assert near(by_input.values(), torch.autograd.grad(squares, leaf)), "a gradient penalty: reverse over reverse"


def test_what_was_captured_can_be_differentiated() -> None:
    torch.manual_seed(5)
    from fourfold.frontends.capture import capture

    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    x = torch.randn(2, 3, 8, dtype=F64)
    captured = capture(net, (x,))
    step = fourfold.grad(captured, loss=lambda out: (out**3).sum())
    loss, gradients = step()
    params = dict(net.named_parameters())
    own = torch.autograd.grad((net.train()(x) ** 3).sum(), list(params.values()))
    assert len(gradients) == len(params) and near([gradients[k] for k in params], own)
    assert float(loss) == pytest.approx(float((net(x) ** 3).sum().detach()))
    exported = torch.export.export(net, (x,))
    assert near(fourfold.grad(exported, loss=lambda out: (out**3).sum())()[1].values(), own)


class Silent(nn.Module):
    """A part under no_grad, a detached value, a tied weight and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.c.weight = self.a.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            still = self.b(x).sigmoid()
        h = self.a(x) * still * self.frozen
        h = h + 0
        h += x.detach()                                                # a write in place, and a view that is written to
        h[:, 0] = h[:, 1] * 2
        return self.c(h)


def test_no_grad_detach_ties_and_writes() -> None:
    torch.manual_seed(6)
    net, x = Silent().double(), torch.randn(2, 3, dtype=F64)
    step = fourfold.grad(net, x, lambda out: (out**2).sum())
    loss, gradients = step()
    own = torch.autograd.grad((net(x) ** 2).sum(), [net.a.weight, net.b.weight], allow_unused=True)
    assert own[1] is None and near([gradients["a.weight"]], own[:1]) and list(gradients) == ["a.weight", "b.weight"]
    assert not gradients["b.weight"].any() and float(loss) == pytest.approx(float((net(x) ** 2).sum().detach()))


def test_the_page_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "differentiate.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- runs -->\n```python\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:                                               # each goes on from the one before
        exec(block, names)                                             # noqa: S102
    said = capsys.readouterr().out
    assert "T linear f(" in said and "tanh_backward" in said and "Graph('grad f'" in said


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.register_module("spectrum", Spectrum())

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule("spectrum")(self.inner(x))


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x)


def test_what_has_no_rule_is_named_with_its_place() -> None:
    place = r"aten\.linalg_matrix_exp\.default has no differentiation rule; it stands in .*spectrum\.\nWrite that part"
    with pytest.raises(ModelError, match=place) as caught:
        fourfold.grad(Odd(), torch.randn(3, 3))
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(InputError, match="The model has no floating-point inputs.\nDifferentiate by its parameters: wrt='parameters'."):
        fourfold.linearize(nn.Embedding(4, 2), torch.tensor([1]))
    with pytest.raises(InputError, match="There is no 'nothing' to differentiate by.\nThere are: "):
        fourfold.linearize(nn.Linear(2, 2), torch.randn(1, 2), wrt=["nothing"])
    with pytest.raises(InputError, match="There is no group 'weights'"):
        fourfold.linearize(nn.Linear(2, 2), torch.randn(1, 2), wrt="weights")
    with pytest.raises(InputError, match="was given without example inputs"):
        fourfold.grad(nn.Linear(2, 2))
    with pytest.raises(InputError, match="int is no model"):
        fourfold.grad(3)
    with pytest.raises(InputError, match="a gradient is that of a scalar"):
        fourfold.grad(nn.Linear(2, 2), torch.randn(1, 2), lambda out: out)
    lin = fourfold.linearize(nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(InputError, match="There is no 'x' to differentiate by"):
        lin({"x": torch.ones(1, 2)})
    with pytest.raises(InputError, match=r"input is float32\[2, 2\]"):
        lin([torch.ones(1, 2)], torch.ones(2, 2))
    with pytest.raises(InputError, match="transpose was given Linearization"):
        fourfold.transpose(lin)    # type: ignore[arg-type]
