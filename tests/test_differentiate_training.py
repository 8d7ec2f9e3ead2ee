"""Training graphs for plans: made by the three passes, equal to eager training and to what autograd recorded, which is the way back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fourfold
from fourfold.errors import ArtefactError
from fourfold.frontends.capture import capture
from fourfold.frontends.torch_export import capture as torch_capture
from fourfold.runtime.source import read, recapture

IDS = torch.tensor([[1, 2, 3, 0], [4, 4, 1, 2]])


class Tagger(nn.Module):
    """An embedding, an encoder layer with dropout, a frozen and an unused weight."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(5, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.head, self.unused = nn.Linear(8, 3), nn.Linear(2, 2)
        self.head.bias.requires_grad_(False)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.block(self.embed(ids), src_key_padding_mask=ids == 0))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def eager(net: nn.Module, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(7)
    loss = net(*inputs)["loss"]
    params = {k: p for k, p in net.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return loss.detach(), {k: g for k, g in zip(params, found, strict=True) if g is not None}


@pytest.mark.parametrize("gradient, dropout", [("passes", 0.1), ("passes", 0.0), ("recorded", 0.0)])
def test_training_equals_eager(gradient: Any, dropout: float) -> None:
    torch.manual_seed(0)
    net, labels = Tagger(dropout).train(), IDS % 3
    found = torch_capture(net, {"ids": IDS, "labels": labels}, train=True, gradient=gradient)
    loss, expected = eager(net, IDS, labels)
    torch.manual_seed(7)
    value, gradients = found.run(labels=labels, ids=IDS)
    assert found.note == () and list(gradients) == list(expected) and "unused.weight" not in gradients and "head.bias" not in gradients
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(gradients, expected)
    assert found.graph.validate() == [] and found.graph.unknown == () and set(found.graph.phase.tolist()) == {0, 1}
    assert "block.linear1" in found.graph.modules and "head.weight" in found.graph.labels


def test_passes_cost_what_autograd_costs() -> None:
    torch.manual_seed(0)
    net, given = Tagger(0.0).train(), {"ids": IDS, "labels": IDS % 3}
    passes, recorded = (torch_capture(net, given, train=True, gradient=g).graph for g in ("passes", "recorded"))
    assert passes.flops.sum() == recorded.flops.sum()
    assert passes.live().max() <= 1.1 * recorded.live().max() and passes.steps.sum() <= 1.25 * recorded.steps.sum()


class Exponential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x @ self.w)


def test_what_has_no_rule_falls_back_and_says_so() -> None:
    torch.manual_seed(1)
    net, x = Exponential(), torch.randn(3, 3)
    found = capture(net, (x,), train=True)
    (note,) = found.note
    assert note.startswith("The gradient is what torch's autograd recorded, since aten.linalg_matrix_exp.default has no")
    value, gradients = found.run(x)
    loss = net(x).square().mean()
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(gradients["w"], torch.autograd.grad(loss, net.w)[0])


def test_plans_of_before_are_captured_as_they_were() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    plan = fourfold.plan(net, x, train=True, budget="1s", solver="heft")
    assert plan.capture["gradient"] == "passes" and recapture(plan, net, x).graph == plan.graph
    old = read(net, x, train=True, gradient="recorded")
    assert old.captured.graph.hash != plan.graph.hash
    capture_of = {k: v for k, v in old.capture.items() if k != "gradient"}
    order = np.arange(len(old.captured.graph))
    before = replace(plan, graph=old.captured.graph, capture=capture_of, group=order, place=np.zeros_like(order), priority=order)
    assert recapture(before, net, x).graph == old.captured.graph, "a plan that does not say how was recorded"
    with pytest.raises(ArtefactError, match="is not the program that the plan is for"):
        recapture(replace(before, capture={**capture_of, "gradient": "passes"}), net, x)
    assert "gradient" not in read(net, x).capture


def test_second_derivatives_of_fused_attention() -> None:
    """torch has none of its fused kernel; its plain formula is what ours are compared with."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x).view(2, 5, 2, 4).transpose(1, 2)
            seen = torch.ones(5, 5, dtype=torch.bool).tril(1)
            one = F.scaled_dot_product_attention(q, q.flip(-1) * 2, q.sin(), is_causal=True)
            return one.square().sum() + F.scaled_dot_product_attention(q, q.cos(), q, attn_mask=seen).pow(3).sum()

    torch.manual_seed(2)
    net, x = Attention().double(), torch.randn(2, 5, 4, dtype=torch.float64)
    step = fourfold.grad(net, x)
    kinds = step.graph.kinds
    assert "aten._scaled_dot_product_flash_attention_for_cpu_backward" in kinds and "aten.bmm" not in kinds
    v = tuple(torch.randn_like(p) for p in net.parameters())
    _, (_, products) = fourfold.linearize(step, wrt="parameters")(list(v))
    tangent = fourfold.linearize(net, x, wrt="parameters")(list(v))[1]

    def value(*p: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(step.names, p, strict=True)), (x,))

    with sdpa_kernel(SDPBackend.MATH):
        _, expected = torch.autograd.functional.hvp(value, tuple(net.parameters()), v)
        forward = torch.func.jvp(value, tuple(net.parameters()), v)[1]
    for a, b in zip(products.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tangent, forward.detach(), rtol=1e-9, atol=1e-9)
