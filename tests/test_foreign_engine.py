"""An engine of somebody else's, which no file of fourfold names: listed where its room is adopted, raced for whole modules and for regions of plans,
run in a worker's process, saved and opened elsewhere. (`tests/flow/test_foreign.py` takes it through the optimise job.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import served
import torch
from torch import nn

import fourfold
from fourfold import engines, registry
from fourfold.engines.base import ModuleJob, RegionJob, Signature
from fourfold.engines.call import Region
from fourfold.engines.parity import parity, references
from fourfold.engines.select import race_model
from fourfold.errors import ArtefactError, Declined, InputError
from fourfold.frontends.capture import capture
from fourfold.host import here
from fourfold.machine import Machine
from fourfold.plans import Plan
from fourfold.program import Captured
from fourfold.runtime.local.executor import execute
from fourfold.runtime.local.race import race

TESTS = Path(__file__).parent


@pytest.fixture
def toyroom(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(TESTS))
    with registry.including(TESTS / "toyroom", "toyroom"):
        yield


class Wide(nn.Module):
    """Layers that two devices can share."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)) + x)


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, torch.Tensor, Captured]:
    torch.manual_seed(0)
    model, x = Wide().eval(), torch.randn(8, 32)
    return model, x, capture(model, (x,))


def planned(found: Captured, devices: int) -> Plan:
    count = len(found.graph)
    place = (np.arange(count) * devices // count).astype(np.int16)
    return Plan(found.graph, Machine.here(2), "latency", np.arange(count), place, -np.arange(count, dtype=float), "test", 1.0, "s")


def test_it_is_listed_where_its_room_is_adopted(toyroom: None) -> None:
    assert "frozen" in engines.names() and "frozen" in engines.of_regions("torch") and "frozen" not in engines.of_regions("onnx")
    assert engines.engine("frozen") is engines.region_engine("frozen")


def test_it_is_unknown_elsewhere() -> None:
    assert "frozen" not in engines.names()
    with pytest.raises(InputError, match="no back end called 'frozen'"):
        engines.engine("frozen")
    with pytest.raises(InputError, match="No engine of regions is called 'frozen'"):
        engines.region_engine("frozen")


def test_facts_read_from_the_source_are_the_classes_own() -> None:
    found = engines.facts()
    assert {one.name for one in found} >= {"torch", "xla"}
    for one in found:
        kind = engines.engine(one.name) if one.precisions else engines.region_engine(one.in_plans)
        own = (kind.name, kind.precisions, kind.regions, kind.region_name, kind.reads_onnx, kind.versions)
        assert own == (one.name, one.precisions, one.regions, one.region_name, one.reads_onnx, one.versions)
        assert one.precisions or one.regions, "it runs nothing"
        assert set(kind.likely) | set(kind.slow) <= set(kind.precisions) and kind.title


def test_one_build_makes_a_module_and_a_region_ready(toyroom: None, net: tuple[nn.Module, torch.Tensor, Captured], tmp_path: Path) -> None:
    model, x, _ = net
    kind = engines.engine("frozen")
    batches = [{"x": x.numpy()}, {"x": x[:3].numpy()}]
    signature = Signature.of(("x",), batches)
    job = ModuleJob(model, signature, batches, "fp32", 1, tmp_path)
    session = kind.build(job)
    assert parity(session, batches, references(model, signature, batches), "fp32")[1] is None
    assert job.files and all((tmp_path / file).is_file() for file in job.files)
    empty = Region(0, 0, (), (), (), (), ())
    with pytest.raises(Declined, match="makes nothing"):
        kind.build(RegionJob(empty, [], {}, {}, 1))


def test_what_an_engine_has_no_part_for_is_declined_in_words(tmp_path: Path) -> None:
    region = Region(0, 0, (0,), (), (), (), (1,))
    xla = engines.region_engine("xla")
    assert "no fp32" in str(xla.declines("fp32", here())) and "xla" not in engines.names()
    signature = Signature(("x",), {"x": "float32"}, {"x": {0: "batch"}}, {"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(Declined, match="not whole modules"):
        xla.build(ModuleJob(nn.Identity(), signature, [], "fp32", 1, tmp_path))
    with pytest.raises(Declined, match="no JAX function"):
        xla.build(RegionJob(region, [], {}, {}, 1))


class Rows:
    """Vectors of one length: the part of `Examples` that a race uses."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.lengths = rows, np.ones(len(rows), np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> Rows:
        return Rows(self.rows[index])

    def collate(self, index: np.ndarray, multiple: int = 1) -> dict[str, np.ndarray]:
        return {"x": self.rows[index]}

    def batches(self, size: int, bucket: bool = True, seed: int | None = None) -> list[np.ndarray]:
        return [np.arange(len(self))[i: i + size] for i in range(0, len(self), size)]


class Plain:
    """The part of `Subject` that a race uses."""

    inputs = ("x",)

    def wrap(self, module: nn.Module) -> nn.Module:
        return module


def test_it_is_raced_for_whole_modules(toyroom: None, net: tuple[nn.Module, torch.Tensor, Captured], tmp_path: Path) -> None:
    """By the race that the optimise job holds of its original."""
    rows = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    found = race_model(Plain(), net[0], Rows(rows), engines=["torch", "frozen"], precisions=["fp32"], threads=[1], batch_sizes=[8], budget_s=2.0,
                       folder=tmp_path)
    (row, *_) = [row for row in found.table if row["engine"] == "frozen"]
    assert row["cpu"]["value"] > 0 and row["noise"] < 1e-3 and row["ran"]["engine"] == "frozen"
    assert not found.rejected and (found.best.engine == "frozen") == (found.files == ["frozen-fp32.pt"])


def test_it_is_raced_in_the_regions_of_a_plan(toyroom: None, net: tuple[nn.Module, torch.Tensor, Captured]) -> None:
    model, x, found = net
    told = race(planned(found, 1), found.program, (x,), rounds=5, engines=["frozen"])
    (row,) = [row for row in told.rows if row["engine"] == "frozen"]
    assert row["seconds"] > 0 and not row["why"] and told.engines["0"] in ("frozen", "eager")


@pytest.mark.parametrize("devices", [1, 2])
def test_regions_run_by_it_answer_alike_also_in_a_worker(toyroom: None, net: tuple[nn.Module, torch.Tensor, Captured], devices: int) -> None:
    model, x, found = net
    done = execute(planned(found, devices), found.program, (x,), repeat=1, engines="frozen")
    with torch.no_grad():
        torch.testing.assert_close(done.outputs, model(x), rtol=1e-5, atol=1e-6)
    assert {region.engine for region in done.regions} == {"frozen"} and len({region.device for region in done.regions}) == devices


CHILD = """
import sys, fourfold
model = fourfold.load(sys.argv[1], trust=["toyroom"])
print(model.warnings, model.assembly.parts[0].open().describe()["engine"])
print([float(x) for row in model.records(sys.argv[2:]) for x in row])
"""


def test_an_artefact_that_it_runs_opens_elsewhere_where_it_is_trusted(toyroom: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    folder = served.saved(tmp_path / "cheap", [served.part(tmp_path / "files", "frozen")])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parts"][0]["engine_by"] == "toyroom.engines.frozen" and manifest["trust"] == ["toyroom"]
    texts = served.texts(2, 3)
    wanted = [float(x) for row in fourfold.load(folder, trust=["toyroom"]).records(texts) for x in row]
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder), *texts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
    *_, told, answers = done.stdout.splitlines()
    assert told == "[] frozen" and json.loads(answers) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(ArtefactError, match="toyroom.*not trusted"):
        fourfold.load(folder)
