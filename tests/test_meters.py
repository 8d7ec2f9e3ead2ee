"""Meters against a known power curve: integration, wrap-around, gaps, death, missing hardware. No reading is ever a silent zero."""

import math
import time

import pytest

from fourfold.host import Host, here, power, powers, read
from fourfold.measure import availability
from fourfold.measure.meters.fake import FakeClock, FakeMeter, FakeNvml, FakePowercap
from fourfold.measure.meters.nvml import Nvml
from fourfold.measure.meters.rapl import MeterError, Rapl
from fourfold.measure.power import modelled, window

wave = {"constant": (lambda t: 80.0, lambda t: 80.0 * t), "ramp": (lambda t: 3.0 * t, lambda t: 1.5 * t * t),
        "sine": (lambda t: 50 + 40 * math.sin(t), lambda t: 50 * t + 40 * (1 - math.cos(t)))}


@pytest.mark.parametrize("name", wave)
def test_a_window_reads_the_integral_of_the_curve(name: str) -> None:
    curve, truth = wave[name]
    clock = FakeClock()
    clock.advance(2.0)
    with window([FakeMeter(curve, clock)], clock) as used:
        clock.advance(7.3, cpu=3.0)
    assert used.joules is not None and used.joules.grade == "measured"
    assert used.joules.value == pytest.approx(truth(9.3) - truth(2.0), rel=5e-3)
    assert (used.wall, used.cpu) == (pytest.approx(7.3), pytest.approx(3.0))


def test_windows_nest_and_close_on_errors() -> None:
    clock = FakeClock()
    meter = FakeMeter(lambda t: 10.0, clock)
    with window([meter], clock) as outer:
        with pytest.raises(RuntimeError), window([meter], clock) as inner:
            clock.advance(1)
            raise RuntimeError
        clock.advance(1)
    assert inner.joules and outer.joules and (inner.joules.value, outer.joules.value) == (pytest.approx(10), pytest.approx(20))


def test_rapl_unwraps_and_counts_no_core_twice(tmp_path) -> None:
    clock = FakeClock()
    tree = FakePowercap(tmp_path / "powercap", FakeMeter(lambda t: 150.0, clock), FakeMeter(lambda t: 20.0, clock), reach=1000.0)
    meter = Rapl(tmp_path / "powercap", now=clock.wall)
    assert meter.available() is None and meter.read() == 0
    for _ in range(40):                                                # 6,800 J: each counter wraps several times
        clock.advance(1.0)
        tree.refresh()
        joules = meter.read()
    assert joules == pytest.approx(40 * 170.0, rel=1e-6)
    clock.advance(5.0)
    tree.refresh()
    with pytest.raises(MeterError, match="more than once"):
        meter.read()


def test_rapl_says_why_not(tmp_path) -> None:
    assert "no RAPL counters" in str(Rapl(tmp_path / "none").available())
    (tmp_path / "empty").mkdir()
    assert "no processor package" in str(Rapl(tmp_path / "empty").available())
    clock = FakeClock()
    FakePowercap(tmp_path / "odd", FakeMeter(lambda t: 1.0, clock))
    (tmp_path / "odd/intel-rapl:0/energy_uj").write_text("?")
    assert "cannot be read" in str(Rapl(tmp_path / "odd").available())


def test_a_meter_that_dies_midway_leaves_the_model_and_its_reason() -> None:
    clock = FakeClock()
    with window([FakeMeter(lambda t: 10.0, clock, dies=1.5)], clock) as used:
        clock.advance(2.0, cpu=4.0)
    assert used.joules == modelled(4.0) and used.joules.grade == "modelled" and "died at 1.5 s" in used.why["fake"]


def test_a_counter_that_stands_still_is_not_zero_joules() -> None:
    clock = FakeClock()
    with window([FakeMeter(lambda t: 10.0, clock, resolution=1e6)], clock) as used:
        clock.advance(2.0)
    assert used.joules and used.joules.grade == "modelled" and "did not move" in used.why["fake"]


def test_gpus_are_summed_and_kept_apart_from_the_processors() -> None:
    clock = FakeClock()
    gpus = Nvml(FakeNvml([FakeMeter(lambda t: 300.0, clock), FakeMeter(lambda t: 200.0, clock)]))
    with window([FakeMeter(lambda t: 50.0, clock), gpus], clock) as used:
        clock.advance(10.0)
    assert used.joules and used.device and (used.joules.value, used.device.value) == (pytest.approx(500), pytest.approx(5000))
    assert used.device.boundary == "device"
    assert Nvml(FakeNvml([])).available() == "there is no NVIDIA GPU" and "no driver" in str(Nvml(FakeNvml([], "no driver")).available())
    with window([Nvml(FakeNvml([FakeMeter(lambda t: 1.0, clock, dies=clock.wall() + 1)]))], clock) as used:
        clock.advance(10.0)
    assert used.device is None and "stopped answering" in used.why["nvml"]


def test_here_a_window_counts_cpu_time_and_says_how_it_knows_joules() -> None:
    with window() as used:
        start = time.process_time()
        while time.process_time() - start < 0.2:
            math.sqrt(2.0)
    assert 0.2 <= used.cpu < 1.0 and used.joules is not None and used.joules.value > 0 and used.method
    assert set(used.why) <= set(availability()) and (used.joules.boundary == "host") == (used.joules.grade == "measured")


class Counted(FakeMeter):
    """A fake meter that counts how often it is asked."""

    asked, looked = 0, 0

    def available(self) -> str | None:
        self.looked += 1
        return super().available()

    def counts(self):
        self.asked += 1
        return super().counts()


def test_an_empty_window_reads_each_meter_once_at_each_end() -> None:
    clock = FakeClock()
    given = [Counted(lambda t: 1.0, clock, name="a"), Counted(lambda t: 1.0, clock, name="b")]
    for count in range(1, 6):
        with window(given, clock):
            assert [meter.asked for meter in given] == [2 * count - 1] * 2
        assert [meter.asked for meter in given] == [2 * count] * 2
    assert all(meter.looked <= 5 for meter in given)                     # whether it is there is asked once a window at most


@pytest.mark.bench
def test_an_empty_window_is_cheap() -> None:
    start = time.process_time()
    for _ in range(20):
        with window([]):
            pass
    assert (time.process_time() - start) / 20 < 0.005


def test_ratios_on_one_machine_are_sharper_than_the_watts() -> None:
    low, high = (modelled(100.0) / modelled(25.0)).bounds
    assert low == pytest.approx(4.0) == pytest.approx(high)
    assert modelled(100.0).bounds[1] / modelled(100.0).bounds[0] > 1.5


def test_every_power_row_is_sourced_and_one_fits_any_machine() -> None:
    assert len(powers()) >= 5
    for row in powers():
        assert row.busy.source and row.busy.grade in ("published", "assumed") and row.idle.value < row.busy.value
        assert row.busy.bounds[0] < row.busy.value < row.busy.bounds[1]
    assert power(Host("Toaster", "", "z80", "CP/M", 1, 0, frozenset())).busy.grade == "assumed"
    assert power(Host("AMD EPYC 7B12", "AuthenticAMD 23/49/0", "x86_64", "Linux", 2, 0, frozenset())).title.endswith("(Rome)")
    assert "Skylake" in power(Host("Xeon", "GenuineIntel 6/85/4", "x86_64", "Linux", 2, 0, frozenset())).title
    assert "Cascade" in power(Host("Xeon", "GenuineIntel 6/85/7", "x86_64", "Linux", 2, 0, frozenset())).title


XEON = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
stepping\t: 8
flags\t\t: fpu smep sse4_2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8 amx_tile

processor\t: 1
model name\t: another
"""


def tree(folder, cpu: str = "max 100000", memory: str = "max", cpuinfo: str = XEON):
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/cpuinfo").write_text(cpuinfo)
    (folder / "proc/meminfo").write_text("MemTotal:       1000 kB\nMemFree: 3 kB\n")
    (folder / "proc/self/cgroup").write_text("0::/box/inner\n")
    (folder / "cgroup/box/inner").mkdir(parents=True)
    (folder / "cgroup/box/cpu.max").write_text(cpu)
    (folder / "cgroup/box/memory.max").write_text(memory)
    return folder / "proc", folder / "cgroup"


def test_a_machine_is_read_with_its_limits(tmp_path) -> None:
    machine = read(*tree(tmp_path / "a", "100000 100000", "512000"))
    assert machine.name == "Intel(R) Xeon(R) Platinum 8480+" and machine.model == "GenuineIntel 6/143/8"
    assert machine.cores == 1 and machine.memory == 512000
    assert machine.has("amx_bf16", "avx512_vnni") and not machine.has("smep")
    free = read(*tree(tmp_path / "b"))
    assert free.memory == 1000 * 1024 and free.cores >= machine.cores
    assert Host.from_json(free.to_json()) == free


def test_the_fingerprint_changes_with_what_kernels_depend_on(tmp_path, monkeypatch) -> None:
    with_amx = read(*tree(tmp_path / "a"))
    without = read(*tree(tmp_path / "b", cpuinfo=XEON.replace("amx_bf16", "")))
    assert with_amx.fingerprint != without.fingerprint
    assert read(*tree(tmp_path / "c", memory="99999")).fingerprint == with_amx.fingerprint
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    hidden = read(*tree(tmp_path / "d"))
    assert not hidden.has("amx_bf16") and not hidden.has("avx512_bf16") and hidden.has("avx512_vnni")


def test_a_machine_without_linux_files_still_has_a_name(tmp_path) -> None:
    machine = read(tmp_path / "none", tmp_path / "none")
    assert machine.name and machine.cores >= 1 and machine.memory >= 0
    assert here() is here() and here().cores >= 1
