"""Operations rewritten for OpenVINO answer as they did."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from fourfold.engines.decompose import spelled

ATEN = torch.ops.aten


def one(target, *args, pick: int | None = None, **kwargs) -> fx.GraphModule:  # type: ignore[no-untyped-def]
    """A module that calls `target` on its tensor arguments."""
    graph = fx.Graph()
    given = [graph.placeholder(f"x{k}") if isinstance(a, torch.Tensor) else a for k, a in enumerate(args)]
    kwargs = {key: graph.placeholder(key) if isinstance(a, torch.Tensor) else a for key, a in kwargs.items()}
    node = graph.call_function(target, tuple(given), kwargs)
    graph.output(node if pick is None else graph.call_function(operator.getitem, (node, pick)))
    return fx.GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize(("target", "args", "kwargs"), [
    (ATEN._to_copy.default, (torch.randn(3, 4),), {"dtype": torch.int64}),
    (ATEN._to_copy.default, (torch.randn(3, 4),), {}),
    (ATEN.diff.default, (torch.randn(2, 7),), {}),
    (ATEN.diff.default, (torch.randn(5, 7), 1, 0), {}),
    (ATEN.diff.default, (torch.arange(12).view(2, 6),), {"prepend": torch.full((2, 1), -1), "append": torch.zeros(2, 2, dtype=torch.int64)}),
])
def test_rewritten_ops_answer_alike(target, args, kwargs) -> None:  # type: ignore[no-untyped-def]
    graph = one(target, *args, **kwargs)
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    wanted = graph(*tensors)
    found = spelled(graph)
    assert not any(node.target == target for node in found.graph.nodes)
    torch.testing.assert_close(found(*tensors), wanted, rtol=0, atol=0)


def test_norms_by_fixed_moments_answer_alike_and_moments_that_are_read_stay() -> None:
    args = (torch.randn(2, 3, 5, 5), torch.rand(3), torch.rand(3), torch.rand(3), 0.5 + torch.rand(3), 0.1, 1e-5)
    tensors = args[:5]
    target = ATEN._native_batch_norm_legit_no_training.default
    graph = one(target, *args, pick=0)
    wanted = graph(*tensors)
    found = spelled(graph)
    assert not any(node.target == target for node in found.graph.nodes)
    torch.testing.assert_close(found(*tensors), wanted)
    kept = spelled(one(target, *args, pick=1))
    assert any(node.target == target for node in kept.graph.nodes)


def test_second_differences_stay() -> None:
    assert any(node.target == ATEN.diff.default for node in spelled(one(ATEN.diff.default, torch.randn(6), 2)).graph.nodes)
