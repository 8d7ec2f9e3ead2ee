"""Every family: flops as torch counts them, and the captured nodes, run one by one, answer as the model does; forward and with the backward pass."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from table import FAMILIES, Family, made
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fourfold.frontends.autograd import square
from fourfold.frontends.fx_ops import counters
from fourfold.frontends.model import load_model
from fourfold.frontends.torch_export import capture
from fourfold.graph import BACKWARD, CONTRACTION, FORWARD, PARAMETER
from fourfold.program import Captured

# families whose layers are another's, in another configuration or with another head: `make slow` takes them too
VARIANTS = ("bert-lm", "minilm", "roberta", "mpnet", "t5-v1.1", "mt5", "marian", "opt-post", "falcon-new", "llama-grouped", "mistral", "qwen2",
            "deit", "wav2vec2-ctc", "hubert", "encoder-seq-first", "annotated", "fairly")
every = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
each = pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow if f.name in VARIANTS else (), id=f.name) for f in FAMILIES])
third = pytest.mark.parametrize(                                         # `make slow` takes the others too
    "family", [pytest.param(f, marks=() if n % 3 == 0 and f.name not in VARIANTS else pytest.mark.slow, id=f.name) for n, f in enumerate(FAMILIES)]
)
DEAD = {"minilm": "pooler"}                                            # computed by eager, read by nobody: export leaves it out


def given(family: Family) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    subject, inputs = load_model(made(family)), family.inputs()
    return subject.wrap(subject.module).eval(), tuple(inputs[name] for name in subject.inputs)


def counted(family: Family, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], backend: list[SDPBackend]) -> int:
    """torch's own count, with attention and recurrent layers as plain products (it knows no fused ones of the CPU, and counts them as nothing)."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(backend), torch.backends.mkldnn.flags(enabled=False):
        module(*inputs)
    dead = [sum(ops.values()) for name, ops in counter.flop_counts.items() if family.name in DEAD and name.endswith(DEAD[family.name])]
    return counter.get_total_flops() - sum(dead)


@cache
def captured(family: Family, level: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], Captured]:
    module, inputs = given(family)
    return module, inputs, capture(module, inputs, level=level, name=family.name)


@each
def test_flops_shapes_and_answers(family: Family):
    answers(family, "ops")


@third
def test_flops_shapes_and_answers_of_core_ops(family: Family):
    answers(family, "core")


def answers(family: Family, level: str) -> None:
    module, inputs, found = captured(family, level)
    graph = found.graph
    assert graph.validate() == [] and graph.unknown == ()
    assert graph.flops.sum() == counted(family, module, inputs, [SDPBackend.MATH])
    assert set(graph.fusion[graph.flops > 0].tolist()) <= {CONTRACTION}
    with torch.no_grad():
        want = module(*inputs)
    torch.testing.assert_close(found.run(*inputs), want, rtol=1e-4, atol=1e-5)
    assert [graph.shape_of(v) for v in graph.outputs] == [tuple(want.shape)]
    own = {p.data_ptr(): p.numel() * p.element_size() for p in module.parameters()}
    held = {t.data_ptr() for t in found.program.weights().values() if isinstance(t, torch.nn.Parameter) or t.data_ptr() in own}
    assert int(graph.size[graph.role == PARAMETER].sum()) >= sum(own[p] for p in held) > 0


@third
def test_every_value_has_the_shape_it_has_when_run(family: Family):
    _, inputs, found = captured(family, "ops")
    graph, program = found.graph, found.program
    values = {**program.weights(), **program.feed(*inputs)}
    with torch.no_grad():
        for node in range(len(graph)):
            values |= dict(zip(graph.outputs_of(node).tolist(), program.step(node, values), strict=True))
    for v, tensor in values.items():
        assert (tuple(tensor.shape), str(tensor.dtype)) == (graph.shape_of(v), f"torch.{graph.dtype[v]}")
        assert tensor.numel() * tensor.element_size() == graph.size[v]
    views = np.flatnonzero(graph.alias != np.arange(len(graph.alias)))
    kept = [v for v in views.tolist() if values[v].numel() and values[v].untyped_storage().data_ptr() != _root(values, graph, v)]
    assert len(kept) <= 0.1 * len(views) + 2, [graph.names[graph.producer[v]] for v in kept]      # a reshape may copy for the strides of real kernels


def _root(values, graph, value: int) -> int:
    return values[int(graph.alias[value])].untyped_storage().data_ptr()


@pytest.mark.slow
@every
def test_joint_graph_has_the_loss_and_the_gradients(family: Family):
    module, inputs = given(family)
    with FlopCounterMode(display=False, custom_mapping=counters()) as counter, torch.backends.mkldnn.flags(enabled=False):
        loss = square(module(*inputs))
        loss.backward()
    found = capture(module, inputs, train=True)
    graph = found.graph
    dead = counter.get_total_flops() - graph.flops.sum()
    assert dead == 0 or family.name in DEAD
    assert set(graph.phase.tolist()) == {FORWARD, BACKWARD}
    with torch.no_grad():
        value, gradients = found.run(*inputs)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-5, atol=1e-7)
    want = {name.removeprefix("module."): p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert {n for n in want if n in gradients or want[n].abs().max() == 0} == set(want)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, want[name], rtol=1e-3, atol=1e-5)
