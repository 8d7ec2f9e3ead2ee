"""What a call costs besides its work is in what a plan predicts: JAX's dispatch, ops that run one by one, a machine that was measured quickly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fourfold
from fourfold.jobs import planning
from fourfold.jobs.calibrate import QUICK
from fourfold.machine import Machine
from fourfold.runtime.local.check import check
from fourfold.units import Quantity


def test_jax_is_priced_with_its_own_dispatch(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax", reason="the extra `jax` is not installed")

    def f(x):  # type: ignore[no-untyped-def]
        return jax.numpy.tanh(x @ x) + x

    plan = fourfold.plan(f, (np.ones((4, 4), np.float32),), solver="default", out=tmp_path / "plan")
    assert any("JAX takes" in note for note in plan.notes)
    first = plan.system.devices[0]
    assert first.launch >= Machine.read("here").devices[0].launch
    assert plan.system.figures[f"{first.name}.launch"].source.startswith("jax") or first.launch == Machine.read("here").devices[0].launch
    again = type(plan).load(tmp_path / "plan")
    assert again.system.hash == plan.system.hash and again.timeline().makespan == plan.timeline().makespan


def test_what_runs_eagerly_is_compared_with_ops_priced_one_by_one() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Sigmoid(), nn.Tanh()) for _ in range(4))), torch.randn(2, 8)
    plan = fourfold.plan(net, (x,), solver="expert")
    assert len(plan.tasks) < len(plan.graph)                            # something was fused
    found = check(plan, model=net, inputs=(x,), repeat=1, engines="eager")
    assert found.predicted == found.unfused > plan.timeline().makespan
    assert any("op by op" in note for note in found.notes)


def test_a_quick_calibration_says_what_it_is_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = Machine.read("here")
    (tmp_path / ".fourfold").mkdir()
    for ending, told in ((f" in 25 s, {QUICK}", [planning.ROUGH]), ("", [])):
        figures = {name: Quantity(one.value, one.unit, "measured", source=f"fourfold calibrate{ending}") for name, one in here.figures.items()}
        replace(here, figures=figures).write(tmp_path / ".fourfold" / "machine.toml")
        assert planning.machine("here")[1] == told
