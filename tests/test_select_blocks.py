"""Sequential Attention++: schedule, exact sparsity, folding, against block magnitude; and the technique in the main job."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fourfold.datasets.examples import Examples
from fourfold.datasets.metrics import METRICS
from fourfold.datasets.task import Task
from fourfold.errors import InputError, ModelError
from fourfold.frontends.subject import Subject
from fourfold.recipe import Recipe, apply, unpack
from fourfold.rewrite import Context
from fourfold.rewrites.select._blocks import AlternatingSchedule, BlockAttention, BlockSparsifier, squares
from fourfold.rewrites.select.sequential_attention import SequentialAttentionSelection
from fourfold.structure.discover import anatomize


@given(st.integers(70, 2000), st.floats(0, 0.95))
@settings(max_examples=50, deadline=None)
def test_the_schedule_is_dense_then_rounds_then_sparse(updates: int, sparsity: float) -> None:
    schedule = AlternatingSchedule(updates, sparsity)
    said = [schedule.at(update) for update in range(updates)]
    assert all(phase == "dense" for phase, _ in said[: int(0.1 * updates)]) and said[-1] == ("sparse", sparsity)
    assert all(share == {"dense": 0.0, "sparse": sparsity}.get(phase, share) and 0 <= share <= sparsity for phase, share in said)
    turns = [a for a, b in zip(said, said[1:], strict=False) if a[0] == "dense" != b[0]]
    assert len(turns) == 7
    rising = [share for phase, share in said if phase == "sparsify"][: updates // 40]
    assert rising == sorted(rising)


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_sparsity_is_exact_and_folding_changes_no_answer(sparsity: float) -> None:
    model, x = net(0), torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    before = model(x)
    sparsifier = BlockSparsifier.of(model, ["0"], AlternatingSchedule(100, sparsity), block=8)
    assert torch.allclose(model(x), before, atol=1e-6), "attention of mean 1 on all blocks is no change"
    with torch.no_grad():
        sparsifier.attentions["0"].logits.normal_(generator=torch.Generator().manual_seed(1))
    for update in range(100):
        sparsifier.before(update)
    masked, gone = model(x), round(sparsity * 64)
    kept = sparsifier.fold()["0"]
    assert torch.allclose(model(x), masked, atol=1e-6) and len(kept) == 64 - gone and set(dict(model.named_parameters())) == set(dict(
        net(0).named_parameters()))
    blocks = model[0].weight.detach().unflatten(0, (8, 8)).unflatten(2, (8, 8)).abs().amax((1, 3)).flatten()
    assert (blocks == 0).nonzero().flatten().tolist() == sorted(set(range(64)) - set(kept))


def test_gradients_of_the_attention_are_those_of_the_formula() -> None:
    index, blocks = squares(torch.zeros(4, 6), 2)
    attention = BlockAttention(index, blocks).double()
    attention.keep(5)
    weight = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def run(weight: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(attention, {"logits": logits}, (weight,))

    assert torch.autograd.gradcheck(run, (weight, logits))
    assert abs(float(attention.attention().mean()) - 1) < 1e-12
    with pytest.raises(ModelError, match="cannot be cut"):
        squares(torch.zeros(5, 6), 2)
    with pytest.raises(InputError, match="too few for 7 rounds"):
        AlternatingSchedule(20, 0.5)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return torch.from_numpy(X / 8 - 1).float(), torch.from_numpy(y)


@pytest.mark.slow
def test_blocks_that_it_keeps_are_worth_more_than_those_of_greatest_magnitude() -> None:
    X, y = digits()

    def trained(seed: int, attend: bool) -> float:
        model, updates = net(seed), 1400
        rng = torch.Generator().manual_seed(seed)
        schedule = AlternatingSchedule(updates, 0.9)
        sparsifier = BlockSparsifier.of(model, ["0"], schedule, block=8)
        mine = sparsifier.attentions["0"]
        mine.logits.requires_grad_(attend)
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        for update in range(updates):
            if not attend:                                              # magnitude: the mask follows the norm of each block of the dense weights
                with torch.no_grad():
                    raw = model[0].parametrizations["weight"].original
                    mine.logits.copy_(raw.unflatten(0, (8, 8)).unflatten(2, (8, 8)).square().sum((1, 3)).flatten())
                    share = schedule.at(update)[1]
                    mine.mask.fill_(True)
                    mine.keep(64 - round(share * 64))
                    mine.logits.zero_()                                 # the mask alone counts
            else:
                sparsifier.before(update)
            rows = torch.randint(0, 1200, (64,), generator=rng)
            optimiser.zero_grad()
            F.cross_entropy(model(X[rows]), y[rows]).backward()
            optimiser.step()
        sparsifier.fold()
        with torch.no_grad():
            return float((model(X[1200:]).argmax(1) == y[1200:]).float().mean())

    ours, magnitude = (np.mean([trained(seed, attend) for seed in range(3)]) for attend in (True, False))
    assert ours >= magnitude - 0.005, (ours, magnitude)


# ---- the technique


def wide(rows: int = 600) -> tuple[Context, list[int]]:
    """A network of 96 features that uses 8 of them, and those."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 3))
    used = [5, 17, 20, 33, 48, 60, 77, 90]
    with torch.no_grad():
        model[0].weight[:, [i for i in range(96) if i not in used]] = 0.0
        model[0].weight *= 4
        model[2].weight *= 4
    x = np.random.default_rng(0).normal(size=(rows, 96)).astype(np.float32)
    task = Task("classification", ["a", "b", "c"], METRICS["accuracy"])
    subject = Subject(model.eval(), {"kind": "module"}, ("x",), None, None)
    anatomy = anatomize(model, lambda model: model(torch.from_numpy(x[:4])))
    return Context(subject, task, Examples({"x": x}), None, anatomy, None, 0.97, 0), used


def test_it_finds_the_features_that_a_network_uses_and_leaves_its_answers() -> None:
    context, used = wide()
    model, technique = context.subject.module, SequentialAttentionSelection()
    assert technique.declines(model) is None
    proposals = list(technique.propose(context))
    assert [one.name for one in proposals] == ["features-48", "features-24", "features-12", "features-24-units"]
    smallest = proposals[2]
    assert set(used) <= set(unpack(smallest.edits[0]["index"]))
    x = torch.from_numpy(np.random.default_rng(9).normal(size=(50, 96)).astype(np.float32))
    small = technique.build(context, smallest)
    assert small[0].in_features == 12 and torch.allclose(small(x), model(x), atol=1e-5)
    assert "12 of its input features" in technique.describe(smallest.edits)
    shrunk = apply(copy.deepcopy(model), Recipe(proposals[3].edits))
    assert shrunk[0].out_features == 16 and shrunk[2].in_features == 16 and "fewer units" in technique.describe(proposals[3].edits)
    exported = torch.export.export(small, (x,)).module()
    assert torch.allclose(exported(x), small(x), atol=1e-6)


@pytest.mark.parametrize(("model", "said"), [
    (nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2)), "rows of 20 features"),
    (nn.Sequential(nn.Conv1d(3, 8, 3)), "does not begin with a linear layer"),
    (nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 2)), "does not begin with a linear layer"),
])  # fmt: skip
def test_narrow_rows_and_other_inputs_are_declined_in_words(model: nn.Module, said: str) -> None:
    assert said in str(SequentialAttentionSelection().declines(model))


def test_sequences_of_wide_rows_are_left_alone() -> None:
    context, _ = wide(64)
    model = nn.Sequential(nn.Linear(96, 8), nn.Flatten(), nn.Linear(24, 3)).eval()
    x = np.random.default_rng(0).normal(size=(64, 3, 96)).astype(np.float32)
    other = Context(Subject(model, {"kind": "module"}, ("x",), None, None), context.task, Examples({"x": x}), None, None, None, 0.97, 0)
    assert list(SequentialAttentionSelection().propose(other)) == []
