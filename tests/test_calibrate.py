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
from fourfold.jobs import kernels as operators
from fourfold.jobs.calibrate import calibrate, fit, fit_contraction, fit_moving, predicted, time_all, transfers
from fourfold.jobs.kernels import Sample, TimedCall
from fourfold.machine import Efficiency, Machine

OLD = 'name = "the old file"\nfingerprint = "of another machine"\n'


def sample(work: float, moved: float, narrow: float, took: float) -> Sample:
    return Sample("x", work, moved, narrow, lambda: TimedCall(lambda: None, lambda: None, 0.0), times=[took, took, took])


class Fake:
    """A device whose true curves are known. Its clock runs only while it works; a neighbour makes some calls longer, never shorter."""

    def __init__(self, truth: dict[str, Efficiency], peak: float, bandwidth: float, seed: int = 0) -> None:
        self.truth, self.peak, self.bandwidth = truth, peak, bandwidth
        self.now, self.dice, self.called = 0.0, np.random.default_rng(seed), 0

    def clock(self) -> float:
        return self.now

    def sample(self, family: str, work: float, moved: float, narrow: float, params: float = 0.0) -> Sample:
        made = Sample(family, work, moved, narrow, lambda: TimedCall(run, lambda: None, 0.0), params=params)

        def run() -> None:
            self.called += 1
            busy = math.exp(abs(0.02 * self.dice.standard_normal())) * (self.dice.choice([1.0, 5.0], p=[0.9, 0.1]))
            self.now += busy * predicted(made, self.peak, self.bandwidth, self.truth[family])
        return made


def test_a_device_of_known_curves_is_found_again_amid_noise() -> None:
    shares = {"elementwise": Efficiency(2e-6, bandwidth=((1e4, 8.0), (1e5, 4.0), (1e6, 2.0), (1e7, 1.0))),
              "gelu": Efficiency(3e-6, bandwidth=((1e4, 0.8), (1e5, 0.4), (1e7, 0.4))), "mul": Efficiency(1.7e-6), "view": Efficiency(9e-7),
              "matmul": Efficiency(4e-6, ((1e3, 0.02), (1e6, 0.3), (1e9, 0.9)), ((6e4, 4.0), (1e8, 1.0)), ((1.0, 0.05), (64.0, 0.8), (256.0, 1.0)))}
    device = Fake(shares, 1e11, 1e10)
    timed = [device.sample(family, 0.0, size, 1e9) for family in ("elementwise", "gelu") for size in (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)]
    timed += [device.sample("mul", 0.0, 4096.0, 1e9), device.sample("view", 0.0, 0.0, 1e9), device.sample("matmul", 2.0 * 8**3, 768.0, 8)]
    for m in (1, 8, 64, 512):
        for n, k in ((16, 16), (64, 64), (256, 256), (768, 768), (3072, 768)):
            timed.append(device.sample("matmul", 2.0 * m * n * k, 4.0 * (m * n + n * k + m * k), min(m, n, k), 4.0 * n * k))
    assert time_all(timed, True, least=8, clock=device.clock) == 8
    assert all(8 <= len(one.times) <= 8 * 8 for one in timed) and device.called > sum(len(one.times) for one in timed)
    peaks, bandwidth, curves = fit(timed)
    assert math.isclose(bandwidth, 1e10, rel_tol=0.05)
    for one in timed:
        told = predicted(one, peaks["float32"], bandwidth, curves[one.family])
        truth = predicted(one, device.peak, device.bandwidth, device.truth[one.family])
        assert abs(math.log(told / truth)) < (0.45 if one.family == "matmul" else 0.06), (one.family, one.work, one.moved)
        low, high = one.interval()
        assert 0.9 * truth <= low <= one.seconds <= high < 2.0 * truth
    missed = [abs(math.log(predicted(s, peaks["float32"], bandwidth, curves["matmul"]) / s.seconds)) for s in timed if s.family == "matmul"]
    assert np.median(missed) < 0.06
    assert curves["mul"].bandwidth == curves["elementwise"].bandwidth and curves["mul"].launch == pytest.approx(2e-6, rel=0.3)


def test_all_operators_answer_and_say_what_they_move() -> None:
    import torch

    families = set()
    with torch.inference_mode():
        for one in operators.samples(1 / 64, False):
            call = one.make()
            call.write()
            made = call.run()
            families.add(one.family)
            if one.family in ("elementwise", "relu", "gelu", "softmax", "layer_norm", "matmul", "batched", "conv", "pointwise", "depthwise"):
                least = made.numel() * 4
                assert least < one.moved and (one.work or one.moved <= 4 * least), (one.family, one.moved, least)
            if one.work and one.family != "peak":
                assert one.params < one.moved and one.narrow >= 1
    assert len(families) > 50


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
def measured() -> Machine:
    return calibrate(2, 10.0)


@pytest.mark.whole
def test_a_short_run_gives_a_sound_system(measured: Machine, tmp_path: Path) -> None:
    assert len(measured) == 2 and measured.local and len(measured.links) == 1 and not measured.links[0].overlap
    measured.write(tmp_path / "machine.toml")
    assert Machine.read(tmp_path / "machine.toml") == measured
    first = measured.devices[0]
    families = {"matmul", "conv", "pointwise", "depthwise", "attention", "elementwise", "gelu", "softmax", "layer_norm", "gather", "view", "slice"}
    assert families <= set(first.efficiency) and "peak" not in first.efficiency
    assert 1e9 < first.peak["float32"] < 1e14 and 1e8 < first.bandwidth < 1e12
    assert all(curve.launch is not None and 0 < curve.launch < 0.1 for curve in first.efficiency.values())
    assert measured.figures["cpu0.bandwidth"].grade == "measured" and measured.figures["cpu0.busy"].grade != "measured"
    again = Machine.read(tmp_path / "machine.toml").figures
    for name in ("cpu0.peak.float32", "cpu0.efficiency.gelu.launch"):
        told, kept = measured.figures[name], again[name]
        assert told.low is not None and told.high is not None and told.low <= told.value <= told.high
        assert (kept.value, kept.low, kept.high, kept.grade) == (told.value, told.low, told.high, "measured")


@pytest.mark.whole
def test_a_short_run_prices_sensibly(measured: Machine) -> None:
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


def test_what_is_freed_is_kept_unless_the_environment_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold.runtime.local import malloc

    assert malloc.keep() == malloc.keep()                                   # another C library: no, twice
    monkeypatch.setattr(malloc, "_done", False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not malloc.keep()


@pytest.mark.whole
def test_transfers_cost_more_when_they_are_larger(measured: Machine) -> None:
    small, large = transfers(measured, ((8, 64), (512, 256)), rounds=5)
    for value, low, high in (small, large):
        assert 0 < low <= value <= high
    link = measured.links[0]
    assert small[0] < 1 and 1e5 < large[0] <= measured.devices[0].bandwidth and link.bandwidth <= measured.devices[0].bandwidth
    assert link.latency == measured.figures["cpu0-cpu1.latency"].value and measured.figures["cpu0-cpu1.bandwidth"].low is not None


@pytest.mark.parametrize(("workers", "time"), [(0, 10.0), (1, 0.0), (1, math.nan)])
def test_nonsense_is_refused(workers: int, time: float) -> None:
    with pytest.raises(InputError):
        calibrate(workers, time)


def test_the_command_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from fourfold.cli import calibrate as command

    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)
    Path(".fourfold").mkdir()
    Path(".fourfold/machine.toml").write_text(OLD)
    done = CliRunner().invoke(app, ["calibrate", "--seconds", "1", "--workers", "1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["file"] == ".fourfold/machine.toml"
    assert Machine.here(1).name == told["name"] and Machine.here(1).local


def test_an_interrupted_run_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from fourfold.cli import calibrate as command
    from fourfold.jobs import calibrate as module

    monkeypatch.chdir(tmp_path)
    turns = module._turns

    def stopped(*given: object) -> None:
        turns(*given)                                                   # type: ignore[arg-type]
        raise KeyboardInterrupt                                         # as Ctrl-C does, in the middle of a round

    monkeypatch.setattr(module, "_turns", stopped)
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)
    Path(".fourfold").mkdir()
    Path(".fourfold/machine.toml").write_text(OLD)
    done = CliRunner().invoke(app, ["calibrate", "--quick"])
    assert done.exit_code == 130 and "stays as it was" in done.stderr
    assert Path(".fourfold/machine.toml").read_text() == OLD and len(list(Path(".fourfold").iterdir())) == 1
