"""Programs in one arena: outputs and gradients of an eager run, in memory that is poisoned between lives; bytes as planned; faults that must show."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from torch import nn

from fourfold.decisions.rematerialise.problem import Rematerialise
from fourfold.decisions.rematerialise.recompute_all import RecomputeAll
from fourfold.engines.call import Call
from fourfold.errors import InputError
from fourfold.frontends.capture import capture
from fourfold.problem import Budget
from fourfold.runtime.arena import writers
from fourfold.runtime.arena.dry_run import DryRun, allocations, dry_run, poisoned, same, span
from fourfold.runtime.arena.execute import ProgramArena
from fourfold.runtime.arena.layout import ArenaLayout, laid_out
from fourfold.runtime.arena.ready import Eager, Ready, ready
from fourfold.runtime.local.compare import compared

CASES = [(name, train) for name in small_models.MODELS for train in (False, True)]
TRAINED = ("encoder", "gpt", "resnet", "unet", "mlp")


@cache
def program(name: str, train: bool) -> tuple[Ready, Any, DryRun]:
    model, x = small_models.MODELS[name]()
    model.train(train)
    captured = capture(model, (x,), train=train)
    made = ready(captured)
    return made, captured.inputs, dry_run(made, captured.inputs, repeat=1)


def stored(made: Ready) -> ArenaLayout:
    """The program's own order, offsets by greedy first fit."""
    plan = Rematerialise.of(made.graph, price=np.ones(len(made.graph))).baseline()
    return laid_out(made.graph, plan.sequence, plan.offset)


def repeated(made: Ready) -> ArenaLayout:
    """Everything of the forward pass computed again for every reader in the backward pass, random draws too."""
    problem = Rematerialise.of(made.graph, price=np.ones(len(made.graph)), seeds_kept=made.random)
    plan = RecomputeAll().solve(problem, Budget(), 0).answer
    return laid_out(made.graph, plan.sequence, plan.offset)


def differing(arena: ProgramArena, eager: Eager) -> list[str]:
    want = {v: one.clone() for v, one in eager.outputs()[0].items()}
    got = arena.run().outputs
    return [str(one) for one in (compared(f"value {v}", got[v], want[v]) for v in want) if not one.equal]


@pytest.mark.parametrize(("name", "train"), CASES)
def test_a_poisoned_arena_answers_as_eager_does(name: str, train: bool) -> None:
    made, inputs, dry = program(name, train)
    layout = stored(made)
    arena = ProgramArena(made, inputs, layout, dry, poison=True)
    eager = Eager(made, inputs)
    assert not differing(arena, eager)
    assert not differing(arena, eager), "a second run in the same buffer"
    assert arena.touched() == layout.top, "the highest byte used is the highest one planned"
    assert int(arena.outside().max()) == int(dry.workspace.max()), "temporaries are those that the dry run saw"
    assert not arena.strays


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_equal_where_the_forward_pass_runs_again(name: str) -> None:
    made, inputs, dry = program(name, True)
    layout = repeated(made)
    assert layout.again.sum() > len(made.graph) // 20 and layout.top < stored(made).top
    arena = ProgramArena(made, inputs, layout, dry, poison=True, seed=3)
    eager = Eager(made, inputs, seed=3)
    assert not differing(arena, eager)
    loss, gradients = made.collect(arena.run().outputs)
    assert loss.ndim == 0 and len(gradients) == len([p for p in small_models.MODELS[name]()[0].parameters()])


@pytest.mark.parametrize("name", ["encoder", "mlp", "unet", "lstm"])
def test_the_gradients_are_those_of_autograd(name: str) -> None:
    made, inputs, dry = program(name, True)
    model, x = small_models.MODELS[name]()
    model.train()
    model(x).float().square().mean().backward()
    loss, gradients = made.collect(ProgramArena(made, inputs, repeated(made) if name != "lstm" else stored(made), dry, poison=True).run().outputs)
    assert torch.isclose(loss, model(x).float().square().mean(), rtol=1e-5)
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.allclose(gradients[label], parameter.grad, rtol=1e-4, atol=1e-6), label


def test_two_lives_in_one_place_show() -> None:
    made, inputs, dry = program("encoder", False)
    layout = stored(made)
    for k in range(len(layout)):                                        # the first value that lives on while a later one is made, and that one
        later = [j for j in range(k + 1, len(layout)) if layout.step[j] < layout.last[k] and layout.size[j] and layout.size[k]]
        if later:
            offset = layout.offset.copy()
            offset[later[0]] = offset[k]
            break
    wrong = laid_out(made.graph, layout.sequence, offset)
    assert differing(ProgramArena(made, inputs, wrong, dry, poison=True), Eager(made, inputs))


def test_what_is_read_too_late_is_poison() -> None:
    made, inputs, dry = program("mlp", False)
    layout = stored(made)
    arena = ProgramArena(made, inputs, layout, dry, poison=True)
    first = int(np.flatnonzero(layout.last > layout.step)[0])
    piece = next(iter(arena.steps[int(layout.last[first])].dies))
    arena.steps[int(layout.step[first])].dies.append(piece)             # it dies in the step that makes it
    assert any(not torch.isfinite(one).all() for one in arena.run().outputs.values())


def test_a_node_that_draws_again_draws_alike_and_another_seed_does_not() -> None:
    made, inputs, dry = program("gpt", True)
    layout = repeated(made)
    drawn = [n for n in layout.sequence[layout.again].tolist() if n in made.random]
    assert drawn, "a dropout mask is made again"
    one, other = (ProgramArena(made, inputs, layout, dry, seed=seed).run().outputs for seed in (0, 1))
    assert not torch.equal(one[int(made.graph.outputs[0])], other[int(made.graph.outputs[0])])
    before = torch.get_rng_state()
    ProgramArena(made, inputs, layout, dry).run()
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is as it was"


def test_statistics_of_batch_normalisation_move_once_though_the_node_runs_again() -> None:
    made, inputs, dry = program("resnet", True)
    layout = repeated(made)
    norms = [n for n in layout.sequence[layout.again].tolist() if writers.changes(made.calls[n].target)]
    assert norms
    moving = [v for v, tensor in made.weights.items() if "running_mean" in made.graph.labels[v]]
    arena = ProgramArena(made, inputs, layout, dry)
    before = {v: made.weights[v].clone() for v in moving}
    Eager(made, inputs).outputs()
    step = {v: made.weights[v].clone() for v in moving}
    for v in moving:
        made.weights[v].copy_(before[v])
    arena.run()
    assert moving and all(torch.allclose(made.weights[v], step[v]) for v in moving)


def test_plans_that_are_not_of_the_program_are_refused() -> None:
    made, inputs, dry = program("mlp", False)
    layout = stored(made)
    with pytest.raises(InputError, match="has not made"):
        laid_out(made.graph, layout.sequence[::-1], layout.offset)
    with pytest.raises(InputError, match="offsets for"):
        laid_out(made.graph, layout.sequence, layout.offset[:-1])
    with pytest.raises(InputError, match="does not make"):
        laid_out(made.graph, layout.sequence[:-1], layout.offset[:-1])
    with pytest.raises(InputError, match="runs node"):
        laid_out(made.graph, [len(made.graph)], [0])
    with pytest.raises(InputError, match="the arena has"):
        ProgramArena(made, inputs, layout, dry, capacity=layout.top - 1)
    with pytest.raises(InputError, match="another program"):
        ProgramArena(program("unet", False)[0], inputs, layout, dry)
    with pytest.raises(InputError, match="multiple"):
        ProgramArena(made, inputs, laid_out(made.graph, layout.sequence, layout.offset + 2), dry)


def test_lives_are_those_of_the_question() -> None:
    from fourfold.decisions.rematerialise._lives import lives

    made, _, _ = program("gpt", True)
    for layout in (stored(made), repeated(made)):
        other = lives(Rematerialise.of(made.graph, price=np.ones(len(made.graph))), layout.sequence)
        assert np.array_equal(layout.step, other.step) and np.array_equal(layout.value, other.value) and np.array_equal(layout.last + 1, other.upper)


# ---- how results are written

aten = torch.ops.aten


@pytest.mark.parametrize(("target", "args", "shape"), [
    (aten.linear.default, (torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)), (2, 3, 5)),
    (aten.linear.default, (torch.randn(2, 3, 8), torch.randn(5, 8)), (2, 3, 5)),
    (aten.matmul.default, (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5, 6)), (2, 3, 4, 6)),
    (aten.matmul.default, (torch.randn(2, 4, 5), torch.randn(5, 6)), (2, 4, 6)),
    (aten.matmul.default, (torch.randn(4, 5), torch.randn(5)), (4,)),
    (aten.relu.default, (torch.randn(4, 5),), (4, 5)),
    (aten.embedding.default, (torch.randn(9, 4), torch.tensor([[1, 8], [0, 1]])), (2, 2, 4)),
    (aten.clone.default, (torch.randn(4, 5).t(),), (5, 4)),
    (aten.reshape.default, (torch.randn(4, 6).t(), [8, 3]), (8, 3)),
    (aten.full_like.default, (torch.randn(3), 2.5), (3,)),
    (aten.masked_fill.Scalar, (torch.randn(3, 2), torch.tensor([[True, False]]), -1.0), (3, 2)),
    (aten.slice_backward.default, (torch.randn(2, 3), [2, 8], 1, 1, 7, 2), (2, 8)),
    (aten.select_backward.default, (torch.randn(3), [4, 3], 0, 2), (4, 3)),
    (aten.constant_pad_nd.default, (torch.randn(2, 3), [1, 2, 0, 1], 0.5), (3, 6)),
    (aten.index_put.default, (torch.zeros(4), [torch.tensor([1, 3])], torch.tensor([5.0, 6.0])), (4,)),
    (aten.div.Tensor, (torch.randn(3, 1).expand(3, 4), torch.tensor(3.0)), (3, 4)),
    (aten.zeros.default, ([3, 2],), (3, 2)),
], ids=lambda part: str(part) if hasattr(part, "_schema") else "")
def test_forms_of_our_own_answer_bit_for_bit_and_allocate_less(target: Any, args: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    write = writers.writers(Call(0, 0, target, args, {}, 0))[writers.OWN]
    want, out = target(*args), poisoned(torch.empty(shape))
    write(args, {}, [out])
    assert same(out, want)
    with allocations() as seen:
        for k, way in enumerate((write, writers.writers(Call(0, 0, target, args, {}, 0))[writers.COPY])):
            with span(k):
                way(args, {}, [out])
    own, copied = seen(2)
    assert own < copied


def test_generated_out_overloads_are_told_from_true_ones() -> None:
    """ATen has an out= form of both; that of the norm runs the op and copies, so it is no better than a copy of our own."""
    with torch.no_grad():
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Softmax(-1)).eval()
        made = ready(capture(model, (torch.randn(4, 8),)))
        found = dry_run(made, (torch.randn(4, 8),), repeat=1)
    ways = {made.graph.kinds[made.graph.kind[n]]: (way, int(found.workspace[n])) for n, way in enumerate(found.way)}
    assert ways["aten.linear"][1] == 0 and ways["aten.softmax"] == (writers.OUT, 0)
    assert ways["aten.layer_norm"][0] == writers.COPY and ways["aten.layer_norm"][1] >= 128


def test_an_attention_without_dropout_draws_nothing() -> None:
    x = torch.randn(1, 1, 4, 8)
    for dropout, drawn in ((0.0, False), (0.5, True)):
        assert writers.draws(Call(0, 0, aten.scaled_dot_product_attention.default, (x, x, x, None, dropout), {}, 0)) is drawn
    assert writers.draws(Call(0, 0, aten.bernoulli.default, (x,), {}, 0)) and not writers.draws(Call(0, 0, aten.relu.default, (x,), {}, 0))
    made, _, _ = program("encoder", True)
    assert not made.random, "nothing is drawn, so nothing is seeded"


def test_a_dry_run_survives_its_json() -> None:
    _, _, dry = program("mlp", True)
    again = DryRun.from_json(dry.to_json())
    assert again.way == dry.way and np.array_equal(again.workspace, dry.workspace) and np.array_equal(again.seconds, dry.seconds)
