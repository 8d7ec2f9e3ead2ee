"""Every operator's letters, tried: whatever layout they allow, the devices' parts put together are what the whole operator answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from lettered import CASES, Of, net

from fourfold.frontends.capture import capture
from fourfold.letters import Choice
from fourfold.program import Captured
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import rules
from fourfold.sharding.simulate import simulate

LINE, GRID, QUAD = Mesh.parse("2"), Mesh.parse("2x2"), Mesh.parse("4")
RANDOM = ("bernoulli", "native_dropout", "rand", "randn", "randint", "empty", "empty_like", "new_empty")


def choices_of(options: tuple[Choice, ...], seed: int, most: int) -> Iterator[tuple[Mesh, dict[str, Choice]]]:
    """Every single choice over two devices, then a sample of others over four."""
    yield from ((LINE, {"x": one}) for one in options)
    maker = random.Random(seed)
    yield from ((QUAD, {"x": one}) for one in maker.sample(options, min(most, len(options))))
    pairs = [(a, b) for a in options for b in options if a is not None and b is not None]
    yield from ((GRID, {"x": a, "y": b}) for a, b in maker.sample(pairs, min(most, len(pairs))))
    yield from ((GRID, {"y": b, "x": a}) for a, b in maker.sample(pairs, min(1, len(pairs))))


def tried(found: Captured, inputs: tuple[object, ...], most: int = 3) -> tuple[int, set[str], set[str]]:
    """(layouts tried, kinds with letters, kinds without); raises AssertionError where parts put together differ from the whole."""
    program, values = found.program, {}
    values.update(program.weights())
    values.update(program.feed(*inputs))
    count, known, unknown = 0, set(), set()
    for node, rule in enumerate(rules(found)):
        made = program.step(node, values)
        values.update(zip(found.graph.outputs_of(node).tolist(), made, strict=True))
        if not rule.known:
            unknown.add(rule.kind)
            continue
        known.add(rule.kind)
        if rule.kind.rpartition(".")[2].rstrip("_") in RANDOM:
            continue
        operands = [values[v] for v in rule.reads]
        for mesh, choices in choices_of(rule.choices, node, most):
            answer = simulate(found, node, rule, choices, mesh, operands, seed=node)
            for mine, full in zip(answer or (), made, strict=answer is not None):
                if not full.numel():
                    continue                                            # statistics that a kernel did not keep
                largest = max([1.0, *(float(one.abs().max()) for one in operands if one.is_floating_point() and one.numel())])
                near = 1e-8 if full.dtype == torch.float64 else 1e-3    # random parts of a sum cancel: what is left of float32 has few digits
                assert torch.allclose(mine.to(full.dtype), full, rtol=near, atol=near * min(largest, 1e9), equal_nan=True), (rule, choices, mesh)
            count += answer is not None
    return count, known, unknown


@cache
def training() -> Captured:
    model, inputs = net()
    return capture(model, (inputs,), train=True)


SLOW = frozenset(
    """sub_one square div clamp compare type_as one_hot bucketize diff gcd prime t squeeze unbind flip roll repeat sort cumsum batched mv addmm
    baddbmm grouped conv1d transposed causal masked mean_all max log_softmax rms_norm group_norm avg_pool adaptive_pool upsample nll two_indices
    index_select scatter_add var""".split()
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES])
def test_parts_of_an_operator_make_the_whole(name: str) -> None:
    function, inputs = CASES[name]
    count, known, unknown = tried(capture(Of(function), inputs), inputs)
    assert not unknown and known and count >= 4


def test_parts_of_a_training_program_make_the_whole() -> None:
    _, inputs = net()
    count, known, unknown = tried(training(), (inputs,), most=1)
    assert not unknown and len(known) > 40 and count > 300
