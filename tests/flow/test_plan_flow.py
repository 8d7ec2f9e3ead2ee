"""A plan of every kind of model: made, written, read again, found valid by a validator that knows no solver, and the model captured again from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zygote import freshly

import fourfold
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import ArtefactError, InputError
from fourfold.machine import systems
from fourfold.plans import Plan
from fourfold.runtime.source import recapture

QUICK = {"solver": "anneal", "evaluations": 300, "machine": "p100x2"}


def saved(plan: Plan, folder: Path) -> Plan:
    """The plan as another process reads it, valid and at the price it says."""
    again = Plan.load(folder)
    problem = Schedule(again.graph, again.system, again.objective)
    answer = Answer(again.group, again.place, again.priority)
    assert problem.violations(answer) == [] and problem.cost(answer) == pytest.approx(plan.cost)
    assert again.hash == plan.hash and again.bound is not None and again.bound <= again.cost * (1 + 1e-9)
    assert again.before is None or again.cost <= again.before * (1 + 1e-9)
    assert again.to_json() == plan.to_json()
    return again


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))


def test_a_folder(bert: Path, tmp_path: Path) -> None:
    plan = fourfold.plan(bert, dims={"batch": 3, "sequence": 12}, out=tmp_path, **QUICK)
    again = saved(plan, tmp_path)
    assert [row["shape"] for row in again.capture["inputs"]] == [[3, 12], [3, 12], [3, 12]] and again.explain()
    found = recapture(again)
    assert found.graph == again.graph and found.run(*found.inputs).shape == (3, 2)
    with pytest.raises(ArtefactError, match="ops|makes"):
        recapture(again, Net(), torch.zeros(1, 3, 8, 8))


def test_a_folder_in_another_process(bert: Path, tmp_path: Path) -> None:
    fourfold.plan(bert, dims={"batch": 2, "length": 8}, out=tmp_path, **QUICK)
    code = "import sys; from fourfold.plans import Plan; from fourfold.runtime.source import recapture; recapture(Plan.load(sys.argv[1]))"
    assert freshly(code, tmp_path) == ""


def test_training(bert: Path, tmp_path: Path) -> None:
    plan = fourfold.plan(bert, dims={"batch": 2, "length": 8}, train=True, out=tmp_path, **QUICK)
    assert plan.graph.phase.max() == 1 and saved(plan, tmp_path).capture["train"] is True
    assert recapture(plan).graph == plan.graph


def test_a_module(tmp_path: Path) -> None:
    module, image = Net(), torch.randn(2, 3, 16, 16)
    plan = fourfold.plan(module, image, out=tmp_path, **QUICK)
    assert module.training and module.norm.num_batches_tracked == 0     # captured as it answers, left as it was
    again = saved(plan, tmp_path)
    with pytest.raises(InputError, match="in memory"):
        recapture(again)
    found = recapture(again, module, image)
    torch.testing.assert_close(found.run(image), module.eval()(image), rtol=1e-4, atol=1e-5)
    assert fourfold.plan(module, {"image": image}, **QUICK).graph == plan.graph
    assert fourfold.plan(module, dims={"image.0": 2, "image.1": 3, "image.2": 16, "image.3": 16}, **QUICK).cost == pytest.approx(plan.cost)


def test_an_onnx_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    file = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"
    plan = fourfold.plan(file, out=tmp_path, **QUICK)
    assert saved(plan, tmp_path).model["kind"] == "file" and recapture(plan).graph == plan.graph


def test_a_pt2_file(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(4, 3, 16, 16),), dynamic_shapes=({0: batch},)), tmp_path / "net.pt2")
    with pytest.raises(InputError, match="without a value"):
        fourfold.plan(tmp_path / "net.pt2", **QUICK)
    plan = fourfold.plan(tmp_path / "net.pt2", dims={"image.0": 5}, out=tmp_path / "plan", **QUICK)
    assert saved(plan, tmp_path / "plan").capture["inputs"][0]["shape"] == [5, 3, 16, 16] and recapture(plan).graph == plan.graph
    np.savez(tmp_path / "in.npz", image=np.zeros((6, 3, 16, 16), np.float32))
    assert fourfold.plan(tmp_path / "net.pt2", tmp_path / "in.npz", **QUICK).capture["inputs"][0]["shape"] == [6, 3, 16, 16]


def test_a_jax_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    (tmp_path / "jaxed_of_plan.py").write_text("import jax\nimport jax.numpy as jnp\n\ndef net(params, x):\n"
                                               "    return jax.nn.relu(x @ params['w'])\n\n"
                                               "def ready():\n    return net, ({'w': jnp.ones((4, 8))}, jnp.ones((3, 4)))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = fourfold.plan("jaxed_of_plan:ready", out=tmp_path / "plan", **QUICK)
    with pytest.raises(ArtefactError, match="the plan names jaxed_of_plan:ready"):
        recapture(saved(first, tmp_path / "plan"))
    assert recapture(saved(first, tmp_path / "plan"), trust=["jaxed_of_plan"]).graph == first.graph
    np.savez(tmp_path / "in.npz", **{"params/w": np.ones((4, 8), np.float32), "x": np.ones((3, 4), np.float32)})
    assert fourfold.plan("jaxed_of_plan:net", tmp_path / "in.npz", **QUICK).graph == first.graph
    import jaxed_of_plan  # pyright: ignore[reportMissingImports]

    assert fourfold.plan(*jaxed_of_plan.ready(), **QUICK).graph == first.graph


def test_the_user_s_data_gives_the_example(model: Path, reviews: Path, tmp_path: Path) -> None:
    plan = fourfold.plan(model, reviews, dims={"batch": 4}, out=tmp_path, **QUICK)
    assert {row["shape"][0] for row in plan.capture["inputs"]} == {4}
    assert recapture(saved(plan, tmp_path)).graph == plan.graph


@pytest.mark.parametrize("system", systems())
def test_shipped_systems(system: str, tmp_path: Path) -> None:
    plan = fourfold.plan(Net(), torch.randn(2, 3, 16, 16), out=tmp_path, **(QUICK | {"machine": system}))
    assert len(saved(plan, tmp_path).system) == len(plan.to_json()["devices"])


def test_the_same_evaluations_and_seed_give_the_same_plan() -> None:
    first, second = (fourfold.plan(Net(), torch.ones(2, 3, 8, 8), budget=1000.0, **QUICK) for _ in range(2))
    assert first.hash == second.hash
