"""Every operator of the table against torch.autograd in double precision, and the laws that its rows owe each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from differentiated import CASES, FIRST, KEYWORDS, RANDOM
from torch import Tensor

from fourfold.differentiate.check import check
from fourfold.differentiate.equations import Emitter, Equation, Function, Variable, inferred, normalised, operator_of
from fourfold.differentiate.evaluate import evaluate
from fourfold.differentiate.linearize import linearize
from fourfold.differentiate.table import RULES, by_torch, rule_of
from fourfold.differentiate.transpose import transpose
from fourfold.differentiate.unzip import unzip

EVERY = [(op, i) for op, cases in sorted(CASES.items()) for i in range(len(cases))]


def program(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Function, list[Tensor]]:
    """One equation as a program, and the tensors for its inputs."""
    inputs: list[Variable] = []
    tensors: list[Tensor] = []

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            inputs.append(Variable(value.shape, str(value.dtype).removeprefix("torch.")))
            tensors.append(value)
            return inputs[-1]
        return [told(v) for v in value] if isinstance(value, list) else value

    given, named = normalised(op, [told(a) for a in args], kwargs)
    outputs = tuple(None if s is None else Variable(*s) for s in inferred(op, given, named))
    equation = Equation(op, given, outputs, named, name="it")
    return Function("f", tuple(inputs), tuple(o for o in outputs if o is not None), (equation,)), tensors


def dot(a: list[Tensor | None], b: list[Tensor | None]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True) if x is not None and y is not None)


def close(a: Tensor | None, b: Tensor | None, like: Tensor) -> bool:
    a, b = (torch.zeros_like(like) if t is None else t for t in (a, b))
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.allclose(a, b, rtol=1e-9 if a.dtype == torch.float64 else 1e-5, atol=1e-9))


def reference(function: Function, tensors: list[Tensor]) -> list[Tensor]:
    """The outputs with autograd behind them; where torch has no derivative of the operator itself, of what it is written in."""
    eq = function.equations[0]
    with torch.enable_grad():
        found = evaluate(function, tensors)[0]
        try:
            scalar = sum(o.sum() for o in found if o.is_floating_point() and o.requires_grad)
            torch.autograd.grad(scalar, [t for t in tensors if t.requires_grad], retain_graph=True, allow_unused=True)    # type: ignore[arg-type]
        except (RuntimeError, NotImplementedError) as error:
            if "derivative" not in str(error):
                raise
            e = Emitter()
            made = (rule_of(eq).expand or by_torch)(e, eq)
            simpler = replace(function, equations=tuple(e.equations), outputs=tuple(m for m in made if m is not None))
            found = evaluate(simpler, tensors)[0]
    return found


def test_every_operator_of_the_table_has_a_case() -> None:
    lacking = {op for op, rule in RULES.items() if not rule.constant} - set(CASES) - RANDOM
    assert not lacking, f"no case for {sorted(lacking)}"
    assert len(CASES) >= 150 and set(CASES) <= set(RULES)


@pytest.mark.parametrize("op, number", EVERY, ids=[f"{op.removeprefix('aten.')}-{i}" for op, i in EVERY])
def test_equals_autograd(op: str, number: int) -> None:
    torch.manual_seed(number)
    function, tensors = program(op, CASES[op][number](), KEYWORDS.get(op, {}))
    j = linearize(function)
    halves = unzip(j)
    t = transpose(halves.linear)
    again = transpose(t)
    assert not check(j) + check(halves.linear) + check(t) + check(again)
    learned = 3 if op in FIRST else len(tensors)
    own = [x.detach().requires_grad_(x.is_floating_point() and i < learned) for i, x in enumerate(tensors)]
    expected = reference(function, own)
    active = [i for i, x in enumerate(own) if x.requires_grad]
    wanted = [o for o in expected if o.is_floating_point()]
    w = [torch.rand(v.shape, dtype=o.dtype if o.is_floating_point() else torch.float64) for v, o in zip(function.outputs, expected, strict=True)]
    if op in FIRST:
        w[1:] = [torch.zeros_like(x) for x in w[1:]]
    given: list[Tensor | None] = [x if o.is_floating_point() else None for x, o in zip(w, expected, strict=True)]
    scalar = sum((o * x).sum() for o, x in zip(expected, w, strict=True) if o.is_floating_point() and o.requires_grad)
    assert wanted
    if isinstance(scalar, Tensor):
        gradients = torch.autograd.grad(scalar, [own[i] for i in active], allow_unused=True)
    else:
        gradients = (None,) * len(active)
    with torch.no_grad():
        values = evaluate(halves.forward, tensors)[0]
        known = dict(zip(halves.forward.inputs, tensors, strict=True)) | dict(zip(halves.forward.outputs, values, strict=True))
        held = [known[v] for v in halves.linear.inputs]
        found = evaluate(t, held, given)[1]
        v = [torch.rand_like(x) if x.is_floating_point() else None for x in tensors]
        y, dy = evaluate(j, tensors, v)
        pushed = evaluate(halves.linear, held, v)[1]
        twice = evaluate(again, held, v)[1]
    for i, gradient in zip(active, gradients, strict=True):
        assert close(found[i], gradient, tensors[i]), f"input {i}: {found[i]} and {gradient}"
    exact = 1e-9 if all(o.dtype == torch.float64 for o in wanted) and all(x.dtype != torch.float32 for x in tensors) else 1e-5
    assert dot(dy, given) == pytest.approx(dot(v, found), rel=exact, abs=exact)
    for a, b, c, o in zip(dy, pushed, twice, y, strict=True):
        assert a is None and b is None and c is None or close(a, b, o) and close(a, c, o)
    for o, e in zip(y, expected, strict=True):
        assert torch.equal(o, e) or torch.allclose(o.double(), e.detach().double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("op", ["aten.gt.Scalar", "aten.floor.default", "aten.argmax.default", "aten.detach.default"])
def test_what_is_constant_has_a_zero_of_the_right_shape(op: str) -> None:
    x = torch.rand(3, 4, dtype=torch.float64)
    function, tensors = program(op, (x, 0.5) if op.endswith("Scalar") else (x,), {})
    j = linearize(function)
    t = transpose(unzip(j).linear)
    assert operator_of(op) and not check(j) + check(t)
    y, dy = evaluate(j, tensors, [x])
    assert (dy[0] is None) == (not y[0].is_floating_point()) and (dy[0] is None or torch.equal(dy[0], torch.zeros_like(y[0])))
    cotangent = [None if d is None else torch.ones_like(d) for d in dy]
    assert torch.equal(evaluate(t, [], cotangent)[1][0], torch.zeros_like(x))    # type: ignore[arg-type]
