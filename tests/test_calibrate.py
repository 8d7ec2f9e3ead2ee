"""Calibration: curves found again from times made with known ones, a short real run, the command, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fourfold.cost.roofline import seconds
from fourfold.errors import InputError
from fourfold.graph import CONTRACTION, ELEMENTWISE, Builder
from fourfold.run.calibrate import Sample, _transfers, calibrate, fit_contraction, fit_moving, predicted
from fourfold.system import Efficiency, System


def sample(work: float, moved: float, narrow: float, took: float) -> Sample:
    return Sample("x", work, moved, narrow, lambda: lambda: None, times=[took, took, took])


def test_times_of_known_curves_are_found_again() -> None:
    truth = Efficiency(4e-6, ((1e3, 0.02), (1e6, 0.3), (1e9, 0.9)), ((6e4, 4.0), (1e8, 1.0)), ((1.0, 0.05), (64.0, 0.8), (256.0, 1.0)))
    dice, peak, bandwidth = np.random.default_rng(0), 1e11, 1e10
    samples = []
    for m in (1, 8, 64, 512):
        for n, k in ((16, 16), (64, 64), (256, 256), (768, 768), (3072, 768)):
            one = sample(2.0 * m * n * k, 4.0 * (m * n + n * k + m * k), min(m, n, k), 1.0)
            one.times = [predicted(one, peak, bandwidth, truth) * math.exp(0.03 * dice.standard_normal())] * 3
            samples.append(one)
    samples.append(sample(2.0 * 8**3, 768.0, 8, 4e-6 + 1e-7))
    found = fit_contraction(samples, peak, bandwidth)
    errors = [abs(math.log(predicted(one, peak, bandwidth, found) / one.seconds)) for one in samples]
    assert np.median(errors) < 0.06 and max(errors) < 0.4
    assert all(0 < share <= 1.000001 for _, share in found.peak)
    unseen = sample(2.0 * 32 * 512 * 512, 4.0 * (2 * 32 * 512 + 512 * 512), 32, 1.0)
    assert abs(math.log(predicted(unseen, peak, bandwidth, found) / predicted(unseen, peak, bandwidth, truth))) < 0.3


def test_moves_are_exact_where_they_were_timed() -> None:
    samples = [sample(0.0, size, 1e9, 2e-6 + size / rate) for size, rate in ((1e3, 1e12), (1e5, 8e10), (1e6, 5e10), (1e8, 1e10))]
    found = fit_moving(samples, 1e10)
    for one in samples[1:]:
        assert math.isclose(predicted(one, 1e11, 1e10, found), one.seconds, rel_tol=0.03)
    assert found.launch is not None and math.isclose(found.launch, 2e-6, rel_tol=0.05)


@pytest.fixture(scope="module")
def measured() -> System:
    return calibrate(2, 10.0)


def test_a_short_run_gives_a_sound_system(measured: System, tmp_path: Path) -> None:
    assert len(measured) == 2 and measured.local and len(measured.links) == 1 and not measured.links[0].overlap
    measured.write(tmp_path / "machine.toml")
    assert System.read(tmp_path / "machine.toml") == measured
    first = measured.devices[0]
    families = {"matmul", "conv", "pointwise", "depthwise", "attention", "elementwise", "gelu", "softmax", "layer_norm", "gather", "view"}
    assert families <= set(first.efficiency)
    assert 1e9 < first.peak["float32"] < 1e14 and 1e8 < first.bandwidth < 1e12
    assert all(curve.launch is not None and 0 < curve.launch < 0.1 for curve in first.efficiency.values())
    assert measured.figures["cpu0.bandwidth"].grade == "measured" and measured.figures["cpu0.busy"].grade != "measured"


def test_a_short_run_prices_sensibly(measured: System) -> None:
    """More work never costs less along one shape, and what was measured orders ops as anybody would."""
    build = Builder()
    for side in (32, 256, 1024):
        x, w = build.input((side, side), "float32"), build.parameter((side, side), "float32")
        build.node("aten.mm", [x, w], [((side, side), "float32")], fusion=CONTRACTION, flops=2.0 * side**3)
    for side in (32, 512, 1024):
        x = build.input((side, side), "float32")
        build.node("aten.gelu", [x], [((side, side), "float32")], fusion=ELEMENTWISE)
    table = seconds(build.build(), measured)[:, 0]
    assert table[0] < table[1] < table[2] and table[3] < table[4] < table[5]
    assert np.isfinite(table).all()


def test_transfers_cost_more_when_they_are_larger() -> None:
    latency, bandwidth = _transfers((1024, 2**20), rounds=6)
    assert 0 < latency < 1 and 1e7 < bandwidth < 1e13


@pytest.mark.parametrize(("workers", "time"), [(0, 10.0), (1, 0.0), (1, math.nan)])
def test_nonsense_is_refused(workers: int, time: float) -> None:
    with pytest.raises(InputError):
        calibrate(workers, time)


def test_the_command_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from fourfold.commands import calibrate as command

    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["calibrate", "--seconds", "1", "--workers", "1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["file"] == ".fourfold/machine.toml"
    assert System.here(1).name == told["name"] and System.here(1).local
