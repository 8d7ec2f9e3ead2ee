"""What is captured is all that the model answers, as it answers: every output, in eval mode, with the numbers that it was exported with."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fourfold.errors import InputError
from fourfold.frontends.capture import capture
from fourfold.runtime.source import read

FACTORIES = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Found:
    logits: torch.Tensor
    boxes: list
    extra: dict
    loss: object = None

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.classes, self.corners = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 4)
    def forward(self, x, form="dict"):
        h = self.body(x).relu()
        a, b = self.classes(h), self.corners(h).sigmoid()
        return self.shaped(a, b)

class Named(Detector):
    def shaped(self, a, b): return {"logits": a, "boxes": b, "loss": None}
class Tupled(Detector):
    def shaped(self, a, b): return a, [b, b + 1]
class Dataclassed(Detector):
    def shaped(self, a, b): return Found(a, [b], {"sum": b.sum()})

def named(): return Named(), (torch.randn(2, 8),)
def tupled(): return Tupled(), (torch.randn(2, 8),)
def dataclassed(): return Dataclassed(), (torch.randn(2, 8),)
def bare(): return Dataclassed()
def number(): return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)), (torch.randn(4, 8),)
def slicing(): return Slicing(), (torch.randn(2, 8), 3)
class Slicing(nn.Module):
    def forward(self, x, k): return x[:, :k] * 2.0
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"made_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(name, None)
    return name


@pytest.mark.parametrize(("kind", "count"), [("named", 2), ("tupled", 3), ("dataclassed", 3)])
def test_every_tensor_of_the_answer_is_an_output(kind: str, count: int, factories: str) -> None:
    found = capture(f"{factories}:{kind}")
    assert len(found.graph.outputs) == count
    module, given = getattr(sys.modules[factories], kind)()
    wanted, answer = module.eval()(*given), found.run(*given)
    if kind == "named":
        torch.testing.assert_close(answer["boxes"], wanted["boxes"])
    elif kind == "tupled":
        torch.testing.assert_close(answer[1][1], wanted[1][1])
    else:
        assert type(answer).__name__ == "Found"
        torch.testing.assert_close(answer.boxes[0], wanted.boxes[0])
        torch.testing.assert_close(answer.extra["sum"], wanted.extra["sum"])


def test_without_examples_too(factories: str) -> None:
    found = capture(f"{factories}:bare", dims={"x.0": 2, "x.1": 8})
    assert len(found.graph.outputs) == 3
    assert set(found.run(torch.randn(2, 8))) == {"logits", "boxes", "extra"}


def test_a_transformers_model_keeps_its_pooler() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32)
    found = capture(BertModel(config).eval(), dims={"batch": 1, "length": 4})
    assert set(found.run(*found.inputs)) == {"last_hidden_state", "pooler_output"}


def test_the_check_compares_all_outputs(factories: str, tmp_path: Path) -> None:
    import fourfold
    from fourfold.runtime.local.check import check

    plan = fourfold.plan(f"{factories}:named", solver="default", out=tmp_path / "plan")
    found = check(plan, repeat=1, trust=[factories])
    assert found.equal and {one.name for one in found.outputs} == {"logits", "boxes"}


def test_a_factory_in_training_mode_is_captured_as_it_answers(factories: str) -> None:
    made = read(f"{factories}:number").captured
    assert not any("dropout" in kind for kind in made.graph.kinds)
    given = made.inputs
    torch.testing.assert_close(made.run(*given), made.run(*given))
    statistics = [t for t in made.program.weights().values() if t.shape == (8,)]
    made.run(*given)
    assert any((t == 0).all() for t in statistics)                      # running means are as they were made


def test_a_module_is_left_in_its_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5).eval())
    assert net.training
    capture(net, (torch.randn(2, 4),))
    assert net.training and not net[1].training


def test_training_keeps_what_training_does() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    found = capture(net, (torch.randn(2, 4),), train=True)
    assert any("dropout" in kind or "bernoulli" in kind for kind in found.graph.kinds)


# ---- numbers among the inputs --------------------------------------------------------------------------------------------------------------------

class Top(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor, k: int, flag: bool, none: Any = None, scale: float = 1.0) -> Tensor:
        return self.a(x)[:, :k] * scale if flag else x


@pytest.fixture
def top(tmp_path: Path) -> Path:
    torch.export.save(torch.export.export(Top().eval(), (torch.randn(2, 8), 3, True, None), {"scale": 0.5}), tmp_path / "top.pt2")
    return tmp_path / "top.pt2"


@pytest.mark.parametrize("inputs", [None, {"x": np.ones((2, 8), np.float32)}, {"x": np.ones((2, 8), np.float32), "k": np.array(3)},
                                    (np.ones((2, 8), np.float32),)])
def test_numbers_of_a_pt2_are_constants(top: Path, inputs: Any) -> None:
    from fourfold.program import arguments

    found = capture(str(top), inputs)
    args, named = arguments(found.inputs)
    assert args[1:] == (3, True, None) and named == {"scale": 0.5}
    torch.testing.assert_close(found.run(*args, **named), torch.export.load(top).module()(*args, **named))
    with pytest.raises(InputError, match="captured for 3"):
        found.run(args[0], 4, True, None, **named)


def test_another_number_is_refused(top: Path) -> None:
    with pytest.raises(InputError, match="k = 3"):
        capture(str(top), {"x": np.ones((2, 8), np.float32), "k": np.array(4)})


def test_a_planned_pt2_with_numbers_runs(top: Path, tmp_path: Path) -> None:
    import fourfold
    from fourfold.runtime.local.check import check

    fourfold.plan(str(top), solver="default", out=tmp_path / "plan")
    assert check(tmp_path / "plan", repeat=1).equal


def test_numbers_among_a_factorys_examples(factories: str) -> None:
    found = capture(f"{factories}:slicing")
    assert found.run(*found.inputs).shape == (2, 3)


def test_a_pt2_in_training_mode_says_so(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    torch.export.save(torch.export.export(net, (torch.randn(2, 4),)), tmp_path / "net.pt2")
    assert "training mode (dropout)" in " ".join(capture(str(tmp_path / "net.pt2")).note)


# ---- sizes that depend on the data ---------------------------------------------------------------------------------------------------------------

class Where(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].exp()


def test_a_size_that_depends_on_data_holds_for_the_inputs_given() -> None:
    x = torch.tensor([1.0, -1.0, 2.0])
    found = capture(Where(), (x,))
    torch.testing.assert_close(found.run(x), x[x > 0].exp())
    assert "holds for inputs like them" in " ".join(found.note)


def test_a_pt2_whose_sizes_depend_on_data_asks_for_an_example(tmp_path: Path) -> None:
    x = torch.tensor([1.0, -1.0, 2.0])
    torch.export.save(torch.export.export(Where(), (x,)), tmp_path / "where.pt2")
    with pytest.raises(InputError, match="depends on the data"):
        capture(str(tmp_path / "where.pt2"))
    torch.testing.assert_close(capture(str(tmp_path / "where.pt2"), (x,)).run(x), x[x > 0].exp())


@dataclass
class Pair:
    first: Tensor
    second: Tensor


class Two(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x + 1, x - 1)


def test_a_dataclass_of_a_module_in_memory() -> None:
    found = capture(Two(), (torch.ones(2),))
    answer = found.run(torch.ones(2))
    assert isinstance(answer, Pair) and answer.second.tolist() == [0.0, 0.0]
