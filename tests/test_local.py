"""Plans carried out: outputs, order, regions, transfers, engines, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from fourfold.cost.simulate import simulate
from fourfold.engines.region import calls, free, printed, regions
from fourfold.errors import InputError
from fourfold.frontends.capture import capture
from fourfold.machine import Machine
from fourfold.plans import Plan
from fourfold.program import Captured
from fourfold.runtime.local.check import check, flat, original_of
from fourfold.runtime.local.compare import compared
from fourfold.runtime.local.executor import ONE, PLANNED, Local, execute
from fourfold.runtime.local.race import race
from fourfold.runtime.local.tensors import feed


class Branches(nn.Module):
    """Two branches, a split, a view of a weight, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        h, g = torch.relu(self.a(x)), torch.tanh(self.b(x)).split(32, 1)
        return {"y": self.c(torch.cat([h, *g], 1)), "pair": (h, self.a.weight.t() @ h.t())}


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, tuple[torch.Tensor, ...], Captured]:
    torch.manual_seed(0)
    model, inputs = Branches().eval(), (torch.randn(8, 64),)
    return model, inputs, capture(model, inputs)


def planned(found: Captured, place: Any = None, devices: int = 2, group: Any = None, priority: Any = None, system: Machine | None = None) -> Plan:
    """A plan without a solver."""
    count = len(found.graph)
    return Plan(found.graph, system or Machine.here(devices), "latency", np.arange(count) if group is None else group,
                np.zeros(count, np.int16) if place is None else np.asarray(place, np.int16),
                -np.arange(count, dtype=float) if priority is None else np.asarray(priority), "test", 1.0, "s")


def same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_device_is_one_region_and_answers_as_eager(net: Any) -> None:
    model, inputs, found = net
    done = execute(planned(found), found.program, inputs, repeat=3)
    want = model(*inputs)
    same(done.outputs["y"], want["y"])
    same(done.outputs["pair"][1], want["pair"][1])
    assert len(done.regions) == 1 and not done.transfers and len(done.runs) == 3 and done.low <= done.seconds <= done.high
    assert np.isfinite(done.start).all() and (done.finish >= done.start).all() and done.finish.max() <= done.makespan + 1e-9


def test_several_devices_are_processes_in_the_simulators_order(net: Any) -> None:
    model, inputs, found = net
    place = np.arange(len(found.graph)) % 2
    plan = planned(found, place)
    done = execute(plan, found.program, inputs, repeat=2)
    same(done.outputs["y"], model(*inputs)["y"])
    timeline = plan.timeline()
    for device in (0, 1):
        mine = np.flatnonzero(plan.of_tasks[0] == device)
        wanted = mine[np.lexsort((mine, timeline.start[mine]))]
        begun = [t for r in done.regions if r.device == device for t in r.tasks]
        assert begun == wanted.tolist()
        starts = [r.start for r in done.regions if r.device == device]
        assert starts == sorted(starts)
    finish = {t: r.finish for r in done.regions for t in r.tasks}
    assert done.transfers and all(sent.source != sent.target and sent.finish >= sent.start for sent in done.transfers)
    assert len({(sent.value, sent.target) for sent in done.transfers}) == len(done.transfers) == len(timeline.transfers)
    for sent in done.transfers:                                         # nobody reads what has not been sent
        task = int(plan.tasks.group[found.graph.producer[sent.value]])
        assert sent.start >= finish[task] - 1e-9


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_regions_hold_every_task_once_and_wait_in_no_circle(seed: int) -> None:
    dice = np.random.default_rng(seed)
    found = _small()
    graph, count = found.graph, len(found.graph)
    place, priority = dice.integers(0, 3, count), dice.standard_normal(count)
    plan = planned(found, place, 3, priority=priority)
    timeline = simulate(plan.tasks, *plan.of_tasks, plan.system)
    cut = regions(graph, np.asarray(plan.tasks.group), plan.of_tasks[0], timeline.start)
    assert sorted(t for r in cut for t in r.tasks) == list(range(len(plan.tasks)))
    given_, have, weights = free(graph), {}, found.program.weights()
    fed = feed(found.program, found.inputs)
    for region in cut:                                                  # in their order, one after the other, with what each says it needs
        here = {v: have[region.device, v] if (region.device, v) in have else fed[v] for v in region.reads}
        call = printed(region, calls(found.program, graph, region), {v: weights[v] for v in region.weights})
        for v, tensor in zip(region.makes, call(*here.values()), strict=True):
            have[region.device, v] = tensor
            have |= {(to, v): tensor for w, to in region.sends if w == v}
            assert not (given_[v] and region.sends and v in dict(region.sends))
        for v in region.drops:
            have.pop((region.device, v), None)
    outputs = {v: tensor for (_, v), tensor in have.items()}
    for v, tensor in original_of(found, found.inputs).items():
        same(outputs[v], tensor)


_kept: list[Captured] = []


def _small() -> Captured:
    if not _kept:
        torch.manual_seed(1)
        _kept.append(capture(Branches().eval(), (torch.randn(4, 64),)))
    return _kept[0]


def test_groups_and_one_process(net: Any) -> None:
    model, inputs, found = net
    plan = planned(found, np.arange(len(found.graph)) % 2)
    done = execute(plan, found.program, inputs, repeat=2, placement=ONE)
    assert done.placement == ONE and len(done.regions) == 1 and not done.transfers
    same(done.outputs["y"], model(*inputs)["y"])


def test_training_runs_its_joint_graph() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), (torch.randn(8, 16),)
    found = capture(model, inputs, train=True)
    done = execute(planned(found, (np.arange(len(found.graph)) > len(found.graph) // 2).astype(int)), found.program, inputs, repeat=2)
    loss, gradients = done.outputs
    want = model(*inputs).square().mean()
    want.backward()
    same(loss, want.detach())
    for name, parameter in model.named_parameters():
        same(gradients[name], parameter.grad)


def test_check_compares_and_prices(net: Any) -> None:
    _, _, found = net
    told = check(planned(found), model=found, repeat=3)
    assert told.equal and all(o.relative == 0 for o in told.outputs) and told.predicted > 0
    assert sum(row["tasks"] for row in told.kinds) == len(found.graph) and told.regions[0]["engine"] == "eager"
    document = json.loads(json.dumps(told.to_json()))
    assert document["measured"] == told.execution.seconds and {"linear", "relu"} <= {row["op"] for row in document["kinds"]}


def test_a_race_keeps_eager_where_nothing_is_there_to_race(net: Any) -> None:
    _, inputs, found = net
    result = race(planned(found), found.program, inputs, engines=("onnxruntime",), rounds=5)
    assert result.engines["0"] == "eager" and result.engines["placement"] == PLANNED and result.engines["fingerprint"]
    assert any("no .onnx file" in row["why"] for row in result.rows)


def test_several_devices_must_beat_one_process(net: Any) -> None:
    _, inputs, found = net
    result = race(planned(found, np.arange(len(found.graph)) % 2), found.program, inputs, engines=(), rounds=5)
    rows = {row["engine"]: row for row in result.rows if row["region"] == "plan"}
    assert set(rows) == {ONE, PLANNED}
    assert (result.engines["placement"] == PLANNED) == rows[PLANNED]["faster"]


def test_a_race_of_another_processor_is_void(net: Any) -> None:
    _, inputs, found = net
    plan = planned(found).replace(engines={"0": "inductor", "placement": PLANNED, "fingerprint": "elsewhere"})
    done = execute(plan, found.program, inputs, repeat=1)
    assert done.engines == {"0": "eager"} and "another processor" in done.notes[0]


def test_another_machine_is_refused(net: Any) -> None:
    _, inputs, found = net
    from dataclasses import replace

    other = replace(Machine.here(2), name="the other one", fingerprint="0123456789abcdef")
    with pytest.raises(InputError, match="for 'the other one' .fingerprint 0123456789abcdef.; this machine is"):
        execute(planned(found, system=other), found.program, inputs)
    with pytest.raises(InputError, match="no particular machine"):
        execute(planned(found, system=replace(other, fingerprint="")), found.program, inputs)


def test_a_gpu_that_is_not_here_is_named(net: Any) -> None:
    _, inputs, found = net
    from dataclasses import replace

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    system = Machine.here(2)
    system = replace(system, devices=(system.devices[0], replace(system.devices[1], kind="cuda")))
    with pytest.raises(InputError, match="uses cpu1, a GPU; torch sees 0"):
        execute(planned(found, np.arange(len(found.graph)) % 2, system=system), found.program, inputs)


def test_wrong_inputs_are_refused(net: Any) -> None:
    with pytest.raises(InputError, match="captured for"):
        execute(planned(net[2]), net[2].program, (torch.randn(3, 64),))


def test_threads_and_cores_are_given_back(net: Any) -> None:
    import os

    _, inputs, found = net
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    with Local(planned(found, np.arange(len(found.graph)) % 2), found.program, inputs) as ready:
        ready.run()
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before


@pytest.mark.parametrize(("ours", "theirs", "equal"), [
    ([1.0, 2.0], [1.0, 2.0], True), ([1.0, 2.0], [1.0, 2.1], False), ([np.nan, 1.0], [np.nan, 1.0], True), ([np.nan, 1.0], [2.0, 1.0], False),
    ([1, 2], [1, 2], True), ([1, 2], [1, 3], False), ([0.0], [0.0], True), ([1e-9], [0.0], False), ([1.0], [1.0, 1.0], False),
])
def test_outputs_are_compared_by_dtype(ours: Any, theirs: Any, equal: bool) -> None:
    assert compared("y", torch.tensor(ours), torch.tensor(theirs)).equal is equal


def test_answers_are_taken_apart_as_they_were_put_together(net: Any) -> None:
    model, inputs, found = net
    apart = flat(planned(found), found, model(*inputs))
    assert set(apart) == set(found.graph.outputs.tolist())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from fourfold.cli import run as command
    from fourfold.jobs.plan import plan as make

    (tmp_path / "shop.py").write_text("import torch\n\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Linear(8, 4), torch.zeros(2, 8)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    np.savez(tmp_path / "x.npz", input=np.ones((2, 8), np.float32))
    exported = torch.export.export(nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval(), (torch.zeros(2, 8),))
    torch.export.save(exported, tmp_path / "net.pt2")
    make(str(tmp_path / "net.pt2"), machine=Machine.here(1), solver="default", budget=1.0, evaluations=10, out=tmp_path / "plan")
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["run", "plan", "--no-race", "--check", "--json", "--repeat", "3"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["equal"] and told["predicted"] > 0 and told["race"] is None and told["execution"]["engines"] == {"0": "eager"}
    done = CliRunner().invoke(app, ["run", "plan", "--no-race", "--repeat", "3"])
    assert done.exit_code == 0 and "predicted" in done.output and "The output equals the original's" in done.output
    assert "<dt>measured</dt>" in (tmp_path / "plan" / "plan.html").read_text(encoding="utf-8")
