"""`fourfold plan --devices`: the whole way on small models: never worse than by hand, sound when verified, told, and errors in two lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fourfold import plans
from fourfold.cli.main import app
from fourfold.errors import FourfoldError, Infeasible, InputError
from fourfold.jobs.devices import plan_devices
from fourfold.jobs.devices.one_mesh import shard_model
from fourfold.jobs.devices.source import meshes_of, parsed
from fourfold.sharding.stored import DevicePlan


class Net(nn.Module):
    """Four equal blocks, answering a loss."""

    def __init__(self, wide: int = 256) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(wide, 4 * wide), nn.ReLU(), nn.Linear(4 * wide, wide)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x.square().sum()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, plans.Document]:
    out = tmp_path_factory.mktemp("plan") / "plan"
    ledger = out.parent / "ledger.jsonl"
    document = plan_devices(Net(), (torch.zeros(64, 256),), devices="2x2", machine="v100x64", train=True, microbatches=8, out=out, ledger=ledger)
    assert "stages by" in ledger.read_text()
    return out, document


def test_a_plan_is_sound_proven_and_never_worse_than_by_hand(made: tuple[Path, plans.Document]) -> None:
    out, document = made
    solution = document.solutions["stages"]
    assert plans.verify(out) == {"stages": []}
    assert solution["gap"] == 0.0 and solution["exact"] == solution["meshes"]
    for row in solution["by_hand"]:
        assert row["cost"] is None or row["cost"] >= solution["cost"] * (1 - 1e-9)
    plan = DevicePlan.from_json(solution["plan"])
    assert sorted(name for stage in plan.stages for name in stage.nodes) == sorted(document.graph.names)
    assert all(label in {*document.graph.labels} for stage in plan.stages for label in stage.stored)
    told = plans.explain(out)
    assert any("Data parallelism" in line for line in told) and any("stage" in line for line in told)


def test_the_page_and_the_trace_show_the_pipeline(made: tuple[Path, plans.Document]) -> None:
    out, document = made
    page = (out / "plan.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "blocks.0.0.weight" in page and "<svg" in page
    trace = json.loads((out / "trace.json").read_text())
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    stages = len(document.solutions["stages"]["stages"])
    assert len(slices) == 2 * stages * 8 and {event["tid"] for event in slices} == set(range(1, stages + 1))


def test_what_was_changed_in_a_plan_is_noticed(made: tuple[Path, plans.Document], tmp_path: Path) -> None:
    out, _ = made
    for name in ("plan.json", "graph.npz", "system.toml", "stages.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    data = json.loads((tmp_path / "plan.json").read_text())
    stage = data["solutions"]["stages"]["plan"]["stages"][0]
    stage["nodes"] = stage["nodes"][1:]
    stage["devices"] = [9, *stage["devices"][1:]]
    data["solutions"]["stages"]["cost"] *= 2
    (tmp_path / "plan.json").write_text(json.dumps(data))
    wrong = " ".join(plans.verify(tmp_path)["stages"])
    assert "the graph has" in wrong and "not different devices" in wrong


def test_memory_makes_it_split_and_what_fits_nothing_says_by_how_much() -> None:
    """2.1 M weights take 16 bytes each with Adam's state: 34 MB whole, so 12 MB a device need a split or a pipeline."""
    tight = plan_devices(Net(), (torch.zeros(64, 256),), devices="1x4", machine="v100x64", train=True, microbatches=8, memory="12MB")
    solution = tight.solutions["stages"]
    assert solution["before"] is None and all(stage["bytes"] <= 12e6 for stage in solution["stages"])
    assert any(stage["tensors"][0]["spec"] != "P(None, None)" or stage["tensors"][0]["state"] for stage in solution["stages"]) \
        or len(solution["stages"]) > 1
    with pytest.raises(Infeasible, match=r"No plan .*MiB.*\n.*--memory"):
        plan_devices(Net(), (torch.zeros(64, 256),), devices="1x4", machine="v100x64", train=True, memory="1MB")


@pytest.mark.parametrize(("asked", "said"), [
    ({"devices": "2xa"}, "not hosts × devices"), ({"devices": "3x2", "machine": "v100x64"}, "does not divide"),
    ({"devices": "4x4", "machine": "v100x4"}, "has 4"), ({"devices": "1x2", "layers": 5000}, "--layers 5000"),
    ({"devices": "1x2", "schedule": "zigzag"}, "no pipeline schedule"), ({"devices": "1x2", "microbatches": 0}, "--microbatches 0"),
    ({"devices": "1x2", "solver": "alpaca"}, "no solver"),
])  # fmt: skip
def test_errors_are_two_lines(asked: dict[str, object], said: str) -> None:
    with pytest.raises(FourfoldError, match=said) as error:
        plan_devices(Net(16), (torch.zeros(4, 16),), **asked)  # type: ignore[arg-type]
    assert len(str(error.value).splitlines()) == 2


def test_one_mesh_alone_is_the_question_shard(tmp_path: Path) -> None:
    """Exact without a limit, with a bound within one; never worse than by hand; its file is sound, and a changed choice is noticed."""
    asked = {"mesh": "dp=2,tp=2", "machine": "v100x4", "train": True, "microbatches": 8}
    free = shard_model(Net(), (torch.zeros(64, 256),), out=tmp_path / "free", **asked).solutions["shard"]      # type: ignore[arg-type]
    assert free["gap"] == 0.0 and free["solver"] == "bucket_elimination" and plans.verify(tmp_path / "free") == {"shard": []}
    assert all(row["cost"] is None or row["cost"] >= free["cost"] * (1 - 1e-9) for row in free["by_hand"])
    tight = shard_model(Net(), (torch.zeros(64, 256),), memory="12MB", **asked).solutions["shard"]             # type: ignore[arg-type]
    assert tight["peak"] <= 12e6 and tight["cost"] >= free["cost"] and tight["bound"] is not None and tight["gap"] < 0.2
    assert DevicePlan.from_json(free["plan"]).stages[0].mesh.names == ("dp", "tp")
    data = json.loads((tmp_path / "free" / "plan.json").read_text())
    chosen = data["solutions"]["shard"]["answer"]["strategies"]
    chosen[:] = [0] * len(chosen)
    (tmp_path / "free" / "plan.json").write_text(json.dumps(data))
    assert "counted again" in " ".join(plans.verify(tmp_path / "free")["shard"])


def test_meshes_of_submeshes() -> None:
    assert parsed("2x4") == (2, 4) and parsed("8") == (1, 8)
    assert meshes_of(1, 8) == ["1", "2", "4", "2x2", "8", "2x4"]
    assert meshes_of(4, 8)[-4:] == ["2x8", "4x4", "4x8", "8x4"]
    with pytest.raises(InputError):
        parsed("0x4")


def test_the_command_tells_and_a_giant_has_no_weights(tmp_path: Path) -> None:
    run = CliRunner()
    out = tmp_path / "plan"
    asked = ["plan", "gpt:256x4x4", "--devices", "2x2", "--machine", "v100x64", "--train", "--microbatches", "4", "--dims", "batch=4,sequence=64",
             "--memory", "2GiB", "--out", str(out), "--progress", "none"]
    done = run.invoke(app, asked)
    assert done.exit_code == 0 and "Stages" in done.output and "By hand" in done.output and "best uniform plan" in done.output
    told = json.loads(run.invoke(app, [*asked, "--json"]).output)
    assert told["question"] == "stages" and math.isclose(told["cost"], plans.read(out).solutions["stages"]["cost"])
    assert run.invoke(app, ["plan", "verify", str(out)]).output.startswith("stages: sound")
