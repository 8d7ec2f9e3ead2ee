"""Metered windows: who is charged what, proved on real processes and on meters with a known power curve; the fault matrix of a meter's life.

The clock of most tests moves only when told to, so that every joule has a truth to be held against.
"""

import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fourfold
from fourfold.errors import InputError
from fourfold.ledger import hash_chain
from fourfold.measure.command import run
from fourfold.measure.counter import COMPONENTS, MeterError, Sampled
from fourfold.measure.discover import survey
from fourfold.measure.host_lock import HostLock
from fourfold.measure.meter import Meter, differences, recompute
from fourfold.measure.meters.battery import Battery
from fourfold.measure.meters.cgroup import Cgroup, Group
from fourfold.measure.meters.disk import EITHER, SOLID, SPINNING, drive
from fourfold.measure.meters.external import External
from fourfold.measure.meters.fake import FakeBattery, FakeClock, FakeMeter, FakeNvml, FakePowercap, FakeSensor
from fourfold.measure.meters.hwmon import Hwmon
from fourfold.measure.meters.nvml import Nvml, NvmlPower
from fourfold.measure.meters.rapl import Rapl
from fourfold.measure.process_tree import Tree
from fourfold.measure.sampler import Station

ROOT = Path(__file__).parent.parent
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts live children from /proc, which only Linux has")


def burn(seconds: float) -> None:
    """So much CPU time in this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        math.sqrt(2.0)


def near(value, rel=0.005):
    return pytest.approx(value, rel=rel)


def joules(use, name="total"):
    figure = use.total if name == "total" else use.energy[name]
    assert figure is not None, use.why
    return figure.value


# ---- a known power curve -------------------------------------------------------------------------------------------------------------------------

CURVES = {"constant": (lambda t: 80.0, lambda t: 80.0 * t), "ramp": (lambda t: 20 + 3.0 * t, lambda t: 20 * t + 1.5 * t * t),
          "sine": (lambda t: 50 + 40 * math.sin(t), lambda t: 50 * t + 40 * (1 - math.cos(t))),
          "square": (lambda t: 100.0 if t % 2 < 1 else 20.0, lambda t: 60.0 * t)}


@pytest.mark.parametrize("name", CURVES)
def test_a_counter_reads_the_integral_of_the_curve_and_all_of_it_is_charged(name) -> None:
    curve, truth = CURVES[name]
    clock = FakeClock()
    clock.advance(2.0)
    with Meter(meters=[FakeMeter(curve, clock)], clock=clock, reserve=os.cpu_count()) as m:
        clock.advance(8.0, cpu=5.0)
    exact = truth(10.0) - truth(2.0)
    assert m.result.host is not None and m.result.host.grade == "measured" and m.result.host.value == near(exact)
    whole = joules(m.result, "cpu_dynamic") + joules(m.result, "cpu_idle")          # alone on the host, all cores held: both are all of it
    assert whole == near(exact)


@pytest.mark.parametrize("name", ["constant", "ramp", "sine"])
@pytest.mark.parametrize("make", [
    lambda root, meter, clock: (FakeSensor(root, "power_meter", meter), Hwmon(root, now=clock.wall)),
    lambda root, meter, clock: (FakeBattery(root, meter), Battery(root, now=clock.wall)),
    lambda root, meter, clock: (None, NvmlPower(FakeNvml([meter]), now=clock.wall))], ids=["hwmon", "battery", "nvml-power"])
def test_sampled_power_integrates_within_half_a_percent_at_ten_hertz(name, make, tmp_path) -> None:
    curve, truth = CURVES[name]
    clock = FakeClock()
    folder, meter = make(tmp_path / "sys", FakeMeter(curve, clock), clock)
    assert meter.available() is None
    with Meter(meters=[meter], clock=clock, reserve=os.cpu_count()) as m:
        for _ in range(100):
            clock.advance(0.1, cpu=0.05)
            if folder:
                folder.refresh()
            m.sample()
    use = m.result
    found = joules(use, "gpu") if meter.boundary == "device" else use.host.value
    assert found == near(truth(10.0))


def test_a_wrapping_counter_is_unwrapped_and_its_raw_values_are_kept(tmp_path) -> None:
    clock = FakeClock()
    tree = FakePowercap(tmp_path / "powercap", FakeMeter(lambda t: 150.0, clock), FakeMeter(lambda t: 20.0, clock), reach=1000.0)
    clock.held, clock.taken = 10**9, 4 * 10**9
    with Meter(meters=[Rapl(tmp_path / "powercap", now=clock.wall)], clock=clock, reserve=os.cpu_count()) as m:
        for _ in range(40):                                            # 6,000 J and 800 J: the packages wrap six times
            clock.advance(1.0)
            tree.refresh()
            m.sample()
    use = m.result
    assert joules(use, "cpu_dynamic") + joules(use, "cpu_idle") == near(6000.0)
    assert joules(use, "memory") == near(200.0) and "memory" in use.energy["memory"].method        # 800 J × 1 GB of 4 GB in use
    reading = next(row for row in use.readings if row["kind"] == "meter")
    package = next(count for count in reading["end"] if count["covers"] == "cpu")
    assert package["wraps"] == 6 and package["raw"] < 1e9 and package["reach"] == 1e9
    assert use.host.value == near(6800.0)


def test_two_wraps_that_nobody_saw_are_refused(tmp_path) -> None:
    clock = FakeClock()
    tree = FakePowercap(tmp_path / "powercap", FakeMeter(lambda t: 150.0, clock), reach=1000.0)
    with Meter(meters=[Rapl(tmp_path / "powercap", now=clock.wall)], clock=clock) as m:
        clock.advance(15.0)
        tree.refresh()
    assert m.result.host is None and "more than once" in m.result.why["rapl"] and m.result.energy["cpu_dynamic"].grade == "modelled"


def test_a_pause_between_windows_hides_no_wrap_from_anybody(tmp_path) -> None:
    clock = FakeClock()
    tree = FakePowercap(tmp_path / "powercap", FakeMeter(lambda t: 150.0, clock), reach=1000.0)
    meter = Meter(meters=[Rapl(tmp_path / "powercap", now=clock.wall)], clock=clock, reserve=os.cpu_count())
    for _ in range(3):
        with meter:
            clock.advance(0.5)
            tree.refresh()
        clock.advance(1000.0)                                          # nobody measures: the counter wraps as it likes
        tree.refresh()
        assert joules(meter.result, "cpu_dynamic") + joules(meter.result, "cpu_idle") == near(75.0)


def test_a_counter_that_was_set_back_is_not_a_wrap(tmp_path) -> None:
    clock = FakeClock()
    clock.advance(100.0)
    tree = FakePowercap(tmp_path / "powercap", FakeMeter(lambda t: 50.0, clock))
    with Meter(meters=[Rapl(tmp_path / "powercap", now=clock.wall)], clock=clock) as m:
        clock.advance(1.0)
        tree.refresh()
        m.sample()
        clock.advance(1.0)
        (tmp_path / "powercap/intel-rapl:0/energy_uj").write_text("12\n")          # after a suspend
    assert m.result.host is None and "set back" in m.result.why["rapl"] and joules(m.result) < 50


@pytest.mark.parametrize("fault, words", [
    (lambda zone: (zone / "energy_uj").unlink(), "stopped answering"),
    (lambda zone: (zone / "energy_uj").write_text("?"), "stopped answering"),
    (lambda zone: (zone / "energy_uj").write_text("-5"), "stopped answering")])
def test_rapl_that_breaks_midway_leaves_the_model_and_the_reason(tmp_path, fault, words) -> None:
    clock = FakeClock()
    FakePowercap(tmp_path / "powercap", FakeMeter(lambda t: 50.0, clock))
    with Meter(meters=[Rapl(tmp_path / "powercap", now=clock.wall)], clock=clock) as m:
        clock.advance(1.0)
        m.sample()
        fault(tmp_path / "powercap/intel-rapl:0")
        clock.advance(1.0)
    use = m.result
    assert use.host is None and words in use.why["rapl"] and "not passed off as the whole" in use.why["rapl"]
    assert use.energy["cpu_dynamic"].grade == "modelled" and "W per busy core" in use.energy["cpu_dynamic"].method


AS_NOBODY = """
import os, pathlib, sys
from fourfold.measure.meters.rapl import Rapl
if os.geteuid() == 0:
    os.setuid(65534)
print(Rapl(pathlib.Path(sys.argv[1])).available())
"""


def test_files_that_only_root_may_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        FakePowercap(Path(folder), FakeMeter(lambda t: 50.0, FakeClock()))
        (Path(folder) / "intel-rapl:0/energy_uj").chmod(0)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, folder], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "only root may read" in done.stdout


@pytest.mark.parametrize("at", [0.5, 1.5, 2.0])
def test_a_meter_that_dies_midway_is_no_part_of_the_figure(at) -> None:
    clock = FakeClock()
    with Meter(meters=[FakeMeter(lambda t: 1000.0, clock, dies=at)], clock=clock) as m:
        for _ in range(4):
            clock.advance(0.5)
            m.sample()
    use = m.result
    assert use.host is None and f"died at {at:g} s" in use.why["fake"] and joules(use) < 100
    with Meter(meters=[FakeMeter(lambda t: 1000.0, clock, dies=at)], clock=clock, model=False) as m:
        clock.advance(1.0)
    assert m.result.total is None and m.result.energy["cpu_dynamic"] is None and "declined" in m.result.why["cpu_dynamic"]


def test_a_counter_that_stands_still_is_a_reason_and_never_zero_joules() -> None:
    clock = FakeClock()
    still = [FakeMeter(lambda t: 1.0, clock, resolution=1e6), Nvml(FakeNvml([FakeMeter(lambda t: 1.0, clock, resolution=1e6)]))]
    with Meter(meters=still, clock=clock, model=False) as m:
        clock.advance(2.0)
    use = m.result
    assert use.total is None and use.energy["gpu"] is None
    assert "did not move" in use.why["fake"] and "did not move" in use.why["nvml"] and "did not move" in use.why["gpu"]


def test_gaps_between_samples_widen_the_interval_and_too_many_void_the_reading(tmp_path) -> None:
    clock = FakeClock()
    sensor = FakeSensor(tmp_path, "power_meter", FakeMeter(lambda t: 50 + 40 * math.sin(t), clock))

    def measured(gap: float):
        with Meter(meters=[Hwmon(tmp_path, now=clock.wall)], clock=clock, reserve=os.cpu_count()) as m:
            for step in range(200):
                clock.advance(gap if step == 100 else 0.1)
                sensor.refresh()
                m.sample()
        return m.result

    sharp, gapped, lost = measured(0.1), measured(4.0), measured(60.0)
    width = [use.host.bounds[1] / use.host.value for use in (sharp, gapped)]
    assert width[1] > 1.5 * (width[0] - 1) + 1 and gapped.host.bounds[0] < gapped.host.value
    assert lost.host is None and "was not sampled for 60" in lost.why["hwmon"]


def test_the_calendar_may_be_set_and_the_computer_may_sleep() -> None:
    clock = FakeClock()
    with Meter(meters=[FakeMeter(lambda t: 10.0, clock)], clock=clock) as m:
        clock.advance(5.0)
        clock.set(-3600.0)
        clock.sleep(120.0)
        clock.advance(5.0)
    use = m.result
    assert use.wall == pytest.approx(10.0) and use.host.value == near(100.0)
    assert any("-3600.0 s" in note for note in use.notes) and any("slept for 120 s" in note for note in use.notes)
    assert use.window["end_utc"] - use.window["start_utc"] == pytest.approx(130.0)


def test_a_sampled_power_refuses_the_impossible() -> None:
    clock = FakeClock()
    for watts in (-1.0, float("nan"), 1e9):
        with pytest.raises(MeterError, match="no computer draws"):
            Sampled(clock.wall).add(watts)


# ---- shares of a host ----------------------------------------------------------------------------------------------------------------------------


def test_a_process_on_a_shared_host_is_charged_its_own_share() -> None:
    clock = FakeClock()
    meter = FakeMeter(lambda t: 100.0, clock)
    with Meter(meters=[meter], clock=clock) as m:
        for _ in range(10):
            clock.advance(1.0, cpu=0.5, others=1.5)
            m.sample()
    use = m.result
    idle = next(row for row in use.readings if row["kind"] == "model")
    resting = idle["idle"]["value"] * idle["host_cores"] * 10
    assert joules(use, "cpu_dynamic") == near((1000 - resting) / 4) and use.energy["cpu_dynamic"].grade == "modelled"
    assert use.host.value == near(1000) and use.host.grade == "measured"
    assert joules(use, "cpu_idle") == near(resting * 5.0 / (10 * idle["host_cores"]))             # it reserved nothing: idle of what it kept busy


def test_the_shares_of_all_jobs_add_up_to_no_more_than_the_host() -> None:
    uses = []
    for mine in (0.0, 0.2, 0.7, 1.1):
        clock = FakeClock()
        with Meter(meters=[FakeMeter(lambda t: 60.0, clock)], clock=clock) as m:
            clock.advance(10.0, cpu=10 * mine, others=10 * (2.0 - mine))
        uses.append(m.result)
    assert sum(joules(use, "cpu_dynamic") for use in uses) + joules(uses[1], "cpu_idle") <= 600.0
    assert joules(uses[0], "cpu_dynamic") == 0.0                         # an idle process beside busy ones: less than 2 % of the dynamic energy


def test_stated_idle_power_above_what_is_seen_gives_way_to_it() -> None:
    clock = FakeClock()
    with Meter(meters=[FakeMeter(lambda t: 0.01, clock)], clock=clock, reserve=os.cpu_count()) as m:
        clock.advance(10.0)
    assert joules(m.result, "cpu_idle") + joules(m.result, "cpu_dynamic") == near(0.1)


def test_reserved_cores_pay_idle_power_all_the_time() -> None:
    clock = FakeClock()
    with Meter(meters=[], clock=clock, reserve=4) as held, Meter(meters=[], clock=clock) as free:
        clock.advance(10.0, cpu=0.0)
    idle = next(row for row in held.result.readings if row["kind"] == "model")["idle"]["value"]
    assert joules(held.result, "cpu_idle") == near(4 * 10 * idle) and "4 cores reserved" in held.result.energy["cpu_idle"].method
    assert joules(free.result, "cpu_idle") == 0.0 and joules(held.result, "cpu_dynamic") == 0.0


def test_host_time_that_nobody_counts_leaves_the_model() -> None:
    clock = FakeClock()
    clock.host = lambda: None
    with Meter(meters=[FakeMeter(lambda t: 100.0, clock)], clock=clock) as m:
        clock.advance(1.0)
    assert "share of its CPU time cannot be told" in m.result.why["fake"] and m.result.host.value == near(100.0)
    assert m.result.energy["cpu_dynamic"].grade == "modelled"


def test_gpus_and_host_meters_are_never_added_twice(tmp_path) -> None:
    clock = FakeClock()
    gpu = FakeMeter(lambda t: 300.0, clock)
    wall = FakeMeter(lambda t: 500.0, clock, covers="host", name="wall")
    package = FakeMeter(lambda t: 100.0, clock, name="package")
    with Meter(meters=[wall, package, Nvml(FakeNvml([gpu], pids=[{1}]))], clock=clock, reserve=os.cpu_count()) as m:
        clock.advance(10.0)
    use = m.result
    assert joules(use, "gpu") == near(3000.0) and joules(use, "cpu_dynamic") + joules(use, "cpu_idle") == near(2000.0)
    assert joules(use) == near(5000.0) and use.energy["memory"] is None and "whole computer" in use.why["memory"]
    assert "nothing is added twice" in use.why["package"] and use.host.value == near(5000.0)


def test_only_the_gpus_that_the_job_is_on_are_charged() -> None:
    clock = FakeClock()
    clock.pids = {10, 11}
    gpus = [FakeMeter(lambda t, watts=watts: watts, clock) for watts in (300.0, 200.0, 100.0)]
    with Meter(meters=[Nvml(FakeNvml(gpus, pids=[{10}, {11, 77}, {78}]))], clock=clock) as m:
        clock.advance(10.0)
    use = m.result
    assert joules(use, "gpu") == near(3000.0 + 1000.0) and use.energy["gpu"].bounds[1] > 4000
    assert any(note.startswith("gpu2") and "not charged" in note for note in use.notes)
    clock.pids = {1}
    with Meter(meters=[Nvml(FakeNvml(gpus, pids=[{10}, {11}, {78}]))], clock=clock) as m:
        clock.advance(10.0)
    assert m.result.energy["gpu"] is None and "no process of the job" in m.result.why["gpu"]
    with Meter(meters=[Nvml(FakeNvml(gpus))], clock=clock) as m:         # a library that does not tell who is on them
        clock.advance(10.0)
    assert joules(m.result, "gpu") == near(6000.0) and "nobody tells" in m.result.energy["gpu"].method


def test_in_a_container_whose_processes_have_other_numbers_open_device_files_tell_the_gpus() -> None:
    clock = FakeClock()
    clock.files = {"/dev/nvidia1", "/dev/nvidiactl"}
    gpus = [FakeMeter(lambda t, watts=watts: watts, clock) for watts in (300.0, 200.0)]
    for pids, joules_expected in (([set(), set()], 2000.0), ([{4711}, {4712}], 2000.0), ([{4711}, {4712, 4713}], 1000.0)):
        with Meter(meters=[Nvml(FakeNvml(gpus, pids=pids))], clock=clock) as m:
            clock.advance(10.0)
        assert joules(m.result, "gpu") == near(joules_expected) and any(note.startswith("gpu0") for note in m.result.notes)


@linux
def test_files_that_the_tree_holds_open_are_seen(tmp_path) -> None:
    path = tmp_path / "device7"
    path.write_text("")
    with path.open():
        assert Tree().opened(str(tmp_path / "device")) == {str(path)}
    assert Tree().opened(str(tmp_path)) == set()


def test_meters_that_must_be_looked_at_are_looked_at_even_unasked(tmp_path) -> None:
    clock = FakeClock()
    FakePowercap(tmp_path / "powercap", FakeMeter(lambda t: 1.0, clock))
    assert Station([Rapl(tmp_path / "powercap")]).rate == pytest.approx(1 / 30)
    FakeSensor(tmp_path / "hwmon", "power_meter", FakeMeter(lambda t: 1.0, clock))
    assert Station([Hwmon(tmp_path / "hwmon")]).rate == 2.0 and Station([Rapl(tmp_path / "none")]).rate == 0.0


def test_short_gpu_windows_are_known_to_be_less_sure() -> None:
    clock, widths = FakeClock(), []
    for seconds in (1.0, 30.0):
        with Meter(meters=[Nvml(FakeNvml([FakeMeter(lambda t: 300.0, clock)]))], clock=clock) as m:
            clock.advance(seconds)
        figure = m.result.energy["gpu"]
        widths.append((figure.bounds[1] - figure.bounds[0]) / figure.value)
    assert widths[0] == pytest.approx(0.6) and widths[1] == pytest.approx(0.1)


def test_gpus_without_a_counter_are_sampled() -> None:
    clock = FakeClock()
    old = FakeNvml([FakeMeter(lambda t: 100 + 10 * t, clock)], counter=False)
    assert "Not Supported" in str(Nvml(old).available()) and NvmlPower(old, now=clock.wall).available() is None


def test_a_gpu_that_is_lost_or_whose_driver_is_reloaded() -> None:
    clock = FakeClock()
    clock.advance(10.0)
    with Meter(meters=[Nvml(FakeNvml([FakeMeter(lambda t: 300.0, clock, dies=11.0)]))], clock=clock) as m:
        clock.advance(5.0)
    assert m.result.energy["gpu"] is None and "stopped answering" in m.result.why["gpu"]
    fresh = {"zero": 0.0}
    reloaded = FakeMeter(lambda t: 300.0, clock)
    whole = reloaded.read
    reloaded.read = lambda: whole() - fresh["zero"]
    with Meter(meters=[Nvml(FakeNvml([reloaded]))], clock=clock) as m:
        clock.advance(1.0)
        m.sample()
        fresh["zero"] = whole()
        clock.advance(1.0)
    assert m.result.energy["gpu"] is None and "driver reloaded" in m.result.why["gpu"]


# ---- windows -------------------------------------------------------------------------------------------------------------------------------------


def test_nested_windows_are_inside_and_siblings_beside() -> None:
    clock = FakeClock()
    with Meter("outer", meters=None, clock=clock) as outer:
        for _ in range(2):
            with Meter("inner", clock=clock) as inner:
                clock.advance(1.0)
            assert inner.result.cpu == pytest.approx(1.0) and inner.result.parent == outer._open[-1][0].id and not inner.result.notes
        clock.advance(1.0)
    assert outer.result.cpu == pytest.approx(3.0) and outer.result.parent is None and not outer.result.notes


def test_a_failed_window_is_closed_and_says_so() -> None:
    clock = FakeClock()
    with pytest.raises(RuntimeError), Meter("a", clock=clock) as m:
        clock.advance(1.0)
        raise RuntimeError
    assert m.result.wall == 1.0 and m.result.notes == ["The work failed: RuntimeError."]
    with pytest.raises(InputError, match="no open window"):
        m.stop()
    with pytest.raises(InputError, match="not ended yet"):
        _ = Meter("b").result


def test_decorated_functions_and_coroutines_are_windows_and_generators_are_refused() -> None:
    clock = FakeClock()
    step, wait = Meter(clock=clock), Meter("wait", clock=clock)

    @step
    def work(n: int) -> int:
        """What it does."""
        clock.advance(n)
        return work(n - 1) + 1 if n > 1 else 1

    @wait
    async def sleep() -> str:
        clock.advance(2.0)
        return "done"

    assert work(3) == 3 and work.__doc__ == "What it does." and step.name.endswith("work")
    assert [use.wall for use in step.results] == [1.0, 3.0, 6.0]         # it calls itself: windows nest
    assert asyncio.run(sleep()) == "done" and wait.result.wall == 2.0
    with pytest.raises(InputError, match="generator"):
        @Meter()
        def values():
            yield 1
    with pytest.raises(InputError, match="brackets"):
        Meter(work)                                                     # type: ignore[arg-type]


def test_interleaved_tasks_are_flagged_and_charged_equal_shares() -> None:
    clock = FakeClock()

    async def task(name: str, steps: int):
        async with Meter(name, clock=clock) as m:
            for _ in range(steps):
                clock.advance(1.0)
                await asyncio.sleep(0)
        return m.result

    async def all_of_them():
        async with Meter("all", clock=clock) as m:
            uses = await asyncio.gather(task("a", 4), task("b", 2), task("c", 1))
        return m.result, uses

    whole, uses = asyncio.run(all_of_them())
    assert whole.cpu == pytest.approx(7.0) and not whole.notes
    assert sum(use.cpu for use in uses) == pytest.approx(7.0)            # each second is somebody's, and nobody's twice
    assert all(any("Overlaps" in note for note in use.notes) for use in uses) and all(use.parent == whole.id for use in uses)
    assert sum(joules(use) for use in uses) == near(joules(whole))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 5.0)), min_size=1, max_size=20))
@settings(max_examples=60)
def test_however_windows_overlap_their_charges_add_up_to_what_was_used_while_any_was_open(events) -> None:
    clock, open_windows, charged, covered = FakeClock(), {}, 0.0, 0.0
    station = Station([], clock=clock, body=clock, host=clock.host, in_use=clock.in_use, claim=None)
    for name, seconds in [*events, *[(name, 1.0) for name in "abc"]]:
        if name in open_windows:
            charged += _charged(station.leave(open_windows.pop(name)))
        else:
            open_windows[name] = station.enter(name, name)
        clock.advance(seconds, cpu=2 * seconds)
        covered += 2 * seconds if open_windows else 0.0
    for window in open_windows.values():
        charged += _charged(station.leave(window))
    assert charged == pytest.approx(covered)


def _charged(readings) -> float:
    cpu = next(row for row in readings if row["kind"] == "cpu")
    return sum(cpu["end"].values()) - sum(cpu["start"].values()) - cpu["elsewhere_s"]


@pytest.mark.apart
def test_windows_in_threads_overlap_honestly() -> None:
    barrier = threading.Barrier(2)

    def work(name: str):
        with Meter(name) as m:
            barrier.wait()
            burn(0.2)
            barrier.wait()
        return m.result

    with ThreadPoolExecutor(2) as pool:
        uses = list(pool.map(work, ["x", "y"]))
    assert sum(use.cpu for use in uses) == pytest.approx(0.4, abs=0.15)
    assert all("Overlaps" in use.notes[0] for use in uses)


def test_work_is_counted_in_units() -> None:
    clock = FakeClock()
    with Meter("train", unit="epoch", clock=clock) as m:
        for _ in range(4):
            clock.advance(1.0)
            m.add()
    assert m.result.work == {"epoch": 4} and m.result.each().value == near(joules(m.result) / 4)
    with pytest.raises(InputError):
        m.add(-1)
    with pytest.raises(InputError):
        Meter().add()


@pytest.mark.parametrize("options", [{"hz": -1}, {"hz": float("nan")}, {"reserve": 0}, {"scope": "house"}, {"site": "Atlantis-on-Sea"}])
def test_impossible_options_are_refused_before_the_work_starts(options) -> None:
    with pytest.raises(InputError):
        Meter("a", **options)


# ---- processes -----------------------------------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.apart
def test_children_count_once_waited_for_or_not() -> None:
    with Meter() as m:                                                  # ends and is waited for
        child = multiprocessing.get_context("fork").Process(target=burn, args=(0.3,))
        child.start()
        child.join()
    assert started(m.result) == pytest.approx(0.3, abs=0.12)
    code = "import time\nwhile time.process_time() < .3: pass\nprint(flush=True)\ntime.sleep(60)"
    with Meter() as m:                                                  # outlives the window
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline()
    assert started(m.result) == pytest.approx(0.3, abs=0.12) and any("outlived" in note for note in m.result.notes)
    with Meter() as m:                                                  # was there before, is waited for now: its time is not counted again
        child.kill()
        child.wait()
        child.stdout.close()
    assert started(m.result) < 0.12


def started(use) -> float:
    """CPU seconds of a window's children alone: what this process spent on waiting for them is no part of it."""
    cpu = next(row for row in use.readings if row["kind"] == "cpu")
    return sum(cpu["end"][part] - cpu["start"][part] for part in ("reaped", "live", "gone"))


def look() -> None:
    """See who is there now, whenever the sampling thread comes to it: opening a window reads everything."""
    with Meter("look"):
        pass


@linux
@pytest.mark.apart
def test_children_nobody_waits_for_keep_their_last_reading() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Meter() as m:
            ready, release = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                burn(0.4)
                os.write(ready[1], b"x")
                os.read(release[0], 1)
                os._exit(0)
            assert os.read(ready[0], 1) == b"x"
            look()
            os.write(release[1], b"x")
            end = time.monotonic() + 300
            while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
                time.sleep(0.01)
            for _ in range(5):                                           # nobody's counter shows it: now it is surely nobody's
                look()
        for file in (*ready, *release):
            os.close(file)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert started(m.result) == pytest.approx(0.4, abs=0.15) and any("nobody waiting" in note for note in m.result.notes)


@linux
@pytest.mark.apart
def test_an_orphan_that_was_seen_stays_counted() -> None:
    with Meter() as m:
        ready, child, orphan = os.pipe(), os.pipe(), os.pipe()           # one for each reader: neither may take what the other waits for
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                os.write(ready[1], b"a")
                os.read(orphan[0], 1)                                    # until its parent was seen, and has gone
                burn(0.3)
                os.write(ready[1], b"b")
                os.read(orphan[0], 1)
                os._exit(0)
            os.read(child[0], 1)
            os._exit(0)
        assert os.read(ready[0], 1) == b"a"
        look()
        os.write(child[1], b"x")
        os.waitpid(pid, 0)
        os.write(orphan[1], b"x")
        assert os.read(ready[0], 1) == b"b"
    os.write(orphan[1], b"x")
    for file in (*ready, *child, *orphan):
        os.close(file)
    assert started(m.result) == pytest.approx(0.3, abs=0.15)


@linux
@pytest.mark.apart
def test_a_forked_child_has_windows_of_its_own_inside_its_parents(tmp_path) -> None:
    out = tmp_path / "child.json"
    with Meter("parent") as parent:
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                with Meter("child") as m:
                    burn(0.2)
                out.write_text(json.dumps({"cpu": m.result.cpu, "parent": m.result.parent}))
                parent.__exit__(None, None, None)                       # the block that the parent entered: nothing is counted, nothing written
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    child = json.loads(out.read_text())
    assert child["cpu"] == pytest.approx(0.2, abs=0.1) and child["parent"] == parent.result.id
    assert started(parent.result) == pytest.approx(0.2, abs=0.12)


FORKING = """
import os, threading
from fourfold import Meter
def work():
    for _ in range(60):
        with Meter("thread") as m:
            sum(range(2000))
        assert m.result.total is not None
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        with Meter("child") as m:
            sum(range(1000))
        os._exit(0 if m.result.total is not None and m.result.parent is None else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
for thread in threads:
    thread.join()
print("done")
"""


@linux
def test_forks_amid_threads_that_measure_leave_nobody_waiting() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, cwd=ROOT, timeout=900, check=False)
    assert done.stdout == "done\n", done.stderr


def write_process(proc: Path, pid: int, parent: int, own: float, reaped: float = 0.0, born: int = 1, state: str = "S", moved=(0, 0)) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    ticks = [round(own * 100), 0, round(reaped * 100), 0]
    words = [state, parent, 0, 0, 0, 0, 0, 0, 0, 0, 0, *ticks, 0, 0, 1, 0, born, 0, 256]
    (folder / "stat").write_text(f"{pid} (a (strange) name) {' '.join(map(str, words))} 0 0\n")
    (folder / "statm").write_text("1000 256 10 1 0 1 0\n")
    (folder / "io").write_text(f"rchar: 9\nread_bytes: {moved[0]}\nwrite_bytes: {moved[1]}\ncancelled_write_bytes: 0\n")


def end_process(proc: Path, pid: int) -> None:
    for file in (proc / str(pid)).iterdir():
        file.unlink()
    (proc / str(pid)).rmdir()


@linux
def test_who_waits_for_whom_decides_once_twice_or_never(tmp_path) -> None:
    proc = tmp_path / "proc"
    write_process(proc, 1, 0, 50.0)
    write_process(proc, 10, 1, 1.0)                                      # the root of the tree
    write_process(proc, 20, 10, 2.0, moved=(100, 10))
    write_process(proc, 30, 20, 4.0)
    write_process(proc, 99, 1, 70.0)                                     # a stranger
    tree = Tree(10, proc=proc)
    assert tree.take().cpu == pytest.approx(7.0) and tree.members() == {10, 20, 30}
    end_process(proc, 30)                                                # its parent waits for it
    write_process(proc, 20, 10, 2.0, 4.5, moved=(100, 10))
    assert tree.take().cpu == pytest.approx(7.5)
    end_process(proc, 20)                                                # and the root for that one
    write_process(proc, 10, 1, 1.0, 6.5, moved=(100, 10))
    assert tree.take().cpu == pytest.approx(7.5) and tree.take().read == 100
    write_process(proc, 40, 10, 3.0, moved=(7, 0))
    assert tree.take().cpu == pytest.approx(10.5)
    end_process(proc, 40)                                                # nobody waits for this one
    for _ in range(6):
        assert tree.take().cpu == pytest.approx(10.5) and tree.take().read == 107
    write_process(proc, 50, 10, 2.0)
    assert tree.take().cpu == pytest.approx(12.5)
    end_process(proc, 50)                                                # seen to be gone a moment before its parent's counter shows it
    assert tree.take().cpu == pytest.approx(12.5)
    write_process(proc, 10, 1, 1.0, 8.5, moved=(100, 10))
    assert tree.take().cpu == pytest.approx(12.5) == pytest.approx(tree.take().cpu)


@linux
def test_a_number_used_again_is_no_ones_child(tmp_path) -> None:
    proc = tmp_path / "proc"
    write_process(proc, 10, 1, 1.0)
    write_process(proc, 20, 10, 2.0, born=5)
    tree = Tree(10, proc=proc)
    assert tree.take().cpu == pytest.approx(3.0)
    write_process(proc, 20, 1, 500.0, born=77)                           # ended; the number is a stranger's now
    write_process(proc, 10, 1, 1.0, 2.0)
    assert tree.take().cpu == pytest.approx(3.0) == pytest.approx(tree.take().cpu) and tree.members() == {10}


@linux
def test_disk_counters_that_cannot_be_read_are_no_zero(tmp_path) -> None:
    proc = tmp_path / "proc"
    write_process(proc, 10, 1, 1.0)
    write_process(proc, 20, 10, 1.0, moved=(5, 5))
    tree = Tree(10, proc=proc)
    assert tree.take().read == 5
    (proc / "20/io").unlink()
    write_process(proc, 21, 10, 1.0)
    (proc / "21/io").unlink()
    used = tree.take()
    assert used.read is None and "not passed off as the whole" in used.why["disk"]


def test_a_system_without_proc_says_what_it_cannot_count(tmp_path) -> None:
    used = Tree(proc=tmp_path / "none").take()
    assert "no /proc" in used.why["children"] and used.read is None and used.held is None and "unknown" in used.why["memory"]


def test_a_system_without_proc_reads_living_children_by_psutil(tmp_path) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"],
                            stdout=subprocess.PIPE, text=True)
    try:
        assert busy.stdout is not None and busy.stdout.readline() == "done\n"
        used = Tree(proc=tmp_path / "none").take()
        assert used.live >= 0.25 and used.living >= 1 and used.processes >= 2
    finally:
        busy.kill()
        busy.wait()


@linux
@pytest.mark.apart
def test_memory_is_charged_by_what_is_held_for_how_long() -> None:
    with Meter() as small:
        time.sleep(0.3)
    with Meter() as big:
        block = bytearray(300_000_000)
        for place in range(0, len(block), 4096):
            block[place] = 1
        time.sleep(0.5)
    del block
    held = [next(row for row in use.result.readings if row["kind"] == "memory")["byte_seconds"] / use.result.wall for use in (small, big)]
    assert held[1] - held[0] > 1.5e8 and big.result.energy["memory"].value > small.result.energy["memory"].value


@linux
@pytest.mark.apart
def test_pages_shared_after_a_fork_are_held_once() -> None:
    block = bytearray(os.urandom(4096)) * 25_000                         # 100 MB
    reader, writer = os.pipe()
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        children.append(pid)
    tree = Tree()
    alone, held = tree.take(walk=False).held, tree.take(walk=True).held
    os.close(writer)
    for pid in children:
        os.waitpid(pid, 0)
    os.close(reader)
    assert len(block) == 102_400_000 and held < 1.1 * alone + 50e6       # whatever the process holds, its forks hold the same pages


@linux
def test_disk_bytes_of_children_are_counted(tmp_path) -> None:
    code = f"import os\nwith open({str(tmp_path / 'big')!r}, 'wb') as f:\n    f.write(os.urandom(4_000_000)); f.flush(); os.fsync(f.fileno())"
    with Meter() as m:
        subprocess.run([sys.executable, "-c", code], check=True)
    reading = next(row for row in m.result.readings if row["kind"] == "disk")
    if reading["start"] is None:
        pytest.skip(f"this kernel does not count: {reading['why']}")
    moved = sum(reading["end"]) - sum(reading["start"])
    if moved == 0:
        pytest.skip("the file system of the temporary folder writes to no disk")
    assert moved >= 4_000_000 and m.result.energy["disk"].grade == "assumed" and m.result.energy["disk"].value > 0


def test_drives_are_told_apart_and_virtual_ones_tell_nothing(tmp_path) -> None:
    for name, spins in {"sda": "1", "loop0": "0"}.items():
        (tmp_path / "a/block" / name / "queue").mkdir(parents=True)
        (tmp_path / "a/block" / name / "queue/rotational").write_text(spins)
    assert drive(tmp_path / "a") == SPINNING and drive(tmp_path / "none") == EITHER
    (tmp_path / "a/block/nvme0n1/queue").mkdir(parents=True)
    (tmp_path / "a/block/nvme0n1/queue/rotational").write_text("0")
    assert drive(tmp_path / "a") == EITHER
    (tmp_path / "a/block/sda/queue/rotational").write_text("0")
    assert drive(tmp_path / "a") == SOLID


# ---- control groups, hwmon, battery, wall --------------------------------------------------------------------------------------------------------


def groups(folder: Path, lines: str, **files: str) -> Cgroup:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(lines)
    for name, text in files.items():
        file = folder / "cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Cgroup(folder / "proc", folder / "cgroup")


def test_control_groups_of_both_versions(tmp_path) -> None:
    second = groups(tmp_path / "a", "0::/box\n", box__cpu_DOT_stat="usage_usec 2500000\nuser_usec 1\n", box__memory_DOT_current="4096\n")
    assert (second.available("cpu"), second.available("memory")) == (None, None) and (second.cpu(), second.held()) == (2.5, 4096)
    first = groups(tmp_path / "b", "4:memory:/box\n2:cpu,cpuacct:/box\n", cpuacct__box__cpuacct_DOT_usage="1500000000\n",
                   memory__box__memory_DOT_usage_in_bytes="8192\n")
    assert (first.cpu(), first.held()) == (1.5, 8192)
    inside = groups(tmp_path / "c", "0::/\n", cpu_DOT_stat="usage_usec 1000000\n", cgroup_DOT_type="domain\n", memory_DOT_current="1\n")
    assert inside.cpu() == 1.0                                           # a container that sees its own group as the root
    outside = groups(tmp_path / "d", "0::/\n2:cpuacct:/\n", cpu_DOT_stat="usage_usec 1\n", cpuacct__cpuacct_DOT_usage="1\n")
    assert "whole host" in str(outside.available("cpu")) and outside.cpu() is None
    bad = groups(tmp_path / "e", "0::/box\n", box__cpu_DOT_stat="usage_usec x\n")
    assert "cannot be read" in str(bad.available("cpu"))
    with pytest.raises(InputError, match="cannot be metered"):
        Group(outside)
    assert Group(second).take().cpu == 2.5 and Group(second).take().held == 4096


def test_hwmon_uses_only_sensors_whose_place_is_known(tmp_path) -> None:
    clock = FakeClock()
    meter = FakeMeter(lambda t: 40.0, clock)
    assert "usual in virtual machines" in str(Hwmon(tmp_path / "none").available())
    FakeSensor(tmp_path / "a", "nvme", meter, "temp1_input")
    assert "no sensor" in str(Hwmon(tmp_path / "a").available())
    FakeSensor(tmp_path / "b", "ina226", meter)
    assert "ina226" in str(Hwmon(tmp_path / "b").available())
    sensor = FakeSensor(tmp_path / "c", "amd_energy", meter, "energy1_input")
    chips = Hwmon(tmp_path / "c", now=clock.wall)
    assert chips.available() is None and chips.counts()[0].covers == "cpu"
    with Meter(meters=[chips], clock=clock, reserve=os.cpu_count()) as m:
        clock.advance(10.0)
        sensor.refresh()
    assert m.result.host.value == near(400.0)
    (tmp_path / "c/hwmon0/energy1_input").write_text("3\n")
    with pytest.raises(MeterError, match="set back"):
        chips.counts()
    (tmp_path / "c/hwmon0/energy1_input").unlink()
    assert "cannot be read" in str(chips.available()) or "only root" in str(chips.available())


def test_a_battery_tells_only_while_it_discharges(tmp_path) -> None:
    clock = FakeClock()
    assert "no battery" in str(Battery(tmp_path / "none").available())
    battery = FakeBattery(tmp_path / "sys", FakeMeter(lambda t: 24.0, clock))
    meter = Battery(tmp_path / "sys", now=clock.wall)
    with Meter(meters=[meter], clock=clock, reserve=os.cpu_count()) as m:
        for step in range(20):
            clock.advance(0.5)
            battery.status = "Charging" if step == 10 else battery.status
            battery.refresh()
            m.sample()
    assert m.result.host is None and "is charging" in m.result.why["battery"] and "on mains" in str(meter.available())


WALL = [(1.7e9 + 0.5 * step, 60.0 + 0.02 * step) for step in range(-20, 100)]


def test_a_wall_meters_record_is_read_once_the_work_is_done(tmp_path) -> None:
    clock, file = FakeClock(), tmp_path / "wall.csv"
    with Meter(meters=[External(file)], clock=clock, reserve=os.cpu_count()) as m:
        clock.advance(20.0)
        file.write_text("time,W\n" + "".join(f"{when},{watts}\n" for when, watts in WALL))
    truth = 20 * 60.0 + 0.04 * 20**2 / 2
    assert m.result.host.value == near(truth) and joules(m.result) == near(truth) and m.result.host.grade == "measured"
    energy, running = ["time,Wh"], 0.0
    for (when, watts), (_, more) in zip(WALL, WALL[1:], strict=False):
        energy.append(f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(when))}.{'5' if when % 1 else '0'}+00:00,{running / 3600:.9f}")
        running += (watts + more) / 4
    file.write_text("\n".join(energy) + "\n")
    assert External(file).between(1.7e9, 1.7e9 + 20).joules == near(truth)


@pytest.mark.parametrize("text, words", [
    ("", "first line"), ("time,volts\n1,2\n", "first line"), ("time,W\n2026-03-01T12:00:00,5\n", "line 2.*no zone"),
    ("time,W\n1700000000,x\n", "line 2"), ("time,W\n1700000000,-4\n", "line 2.*not a possible"), ("time,W\n1700000000,nan\n", "not a possible"),
    ("time,W\n1700000001,4\n1700000000,4\n", "line 3.*not after"), ("time,W\n1700000000,4\n", "one reading"),
    ("time,W\n12,4\n", "seconds since 1970")])
def test_a_record_that_cannot_be_one_is_refused_by_line(tmp_path, text, words) -> None:
    (tmp_path / "wall.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        External(tmp_path / "wall.csv").between(1.7e9, 1.7e9 + 1)


def test_a_record_that_does_not_reach_is_a_reason(tmp_path) -> None:
    clock, file = FakeClock(), tmp_path / "wall.csv"
    with Meter(meters=[External(file)], clock=clock) as m:
        clock.advance(200.0)
        file.write_text("time,W\n" + "".join(f"{when},{watts}\n" for when, watts in WALL))
    assert m.result.host is None and "reaches from" in m.result.why["external"]
    with Meter(meters=[External(tmp_path / "never.csv")], clock=clock) as m:
        clock.advance(1.0)
    assert "was not written" in m.result.why["external"]


# ---- readings, ledger, ranks ---------------------------------------------------------------------------------------------------------------------


def test_figures_are_a_pure_function_of_the_readings(tmp_path) -> None:
    clock, ledger = FakeClock(), tmp_path / "runs.jsonl"
    clock.held, clock.moved = 3 * 10**9, (0, 0)
    with Meter("epoch", site="FR", ledger=ledger, clock=clock, meters=[FakeMeter(lambda t: 90.0, clock)]) as m:
        clock.advance(30.0, cpu=12.0, others=3.0)
        clock.moved = (2 * 10**9, 10**9)
    use, row = m.result, hash_chain.rows(ledger)[0]
    assert hash_chain.verify(ledger) == [] and row["kind"] == "run" and row["run"] == use.id and row["place"] == "FR"
    again = recompute(json.loads(json.dumps(row["readings"])))
    assert again.total == use.total and again.co2e == use.co2e and again.energy == use.energy
    assert differences(row) == []
    row["total_j"]["value"] *= 1.001
    assert "total_j" in differences(row)[0]
    pue, grams = use.site["pue"]["value"], use.site["intensity"]["value"]
    assert use.co2e.value == near(joules(use) / 3.6e6 * pue * grams, 1e-9) and use.co2e.boundary == "hall" and use.co2e.signal == "average"
    assert use.energy["disk"].value == near(3 * next(r for r in use.readings if r["kind"] == "model")["drive"]["joules"])
    assert use.energy["memory"].value == near(3 * 30 * 0.3725)
    with pytest.raises(InputError, match="not the readings"):
        recompute([])


def test_every_component_has_a_figure_or_a_reason() -> None:
    with Meter() as m:
        burn(0.05)
    use = m.result
    assert tuple(use.energy) == COMPONENTS and all(figure is not None or use.why[name] for name, figure in use.energy.items())
    assert use.co2e is None and "no site" in use.why["co2e"] and use.cost is None
    assert use.total.value == near(sum(figure.value for figure in use.energy.values() if figure), 1e-9)
    assert all(figure.grade and figure.method for figure in use.energy.values() if figure)
    assert "unknown:" in str(use) and use.row()["readings"] is use.readings


def test_a_ledger_that_cannot_be_written_does_not_end_the_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="was not written"), Meter(ledger=tmp_path / "file" / "runs.jsonl") as m:
        pass
    assert m.result.wall >= 0


RANK = """
import sys, time, json
from fourfold.measure.host_lock import HOST
from fourfold.measure.meters.fake import FakeClock, FakeMeter
from fourfold.measure.meter import Meter
clock = FakeClock(claim=HOST)
with Meter(meters=[FakeMeter(lambda t: 100.0, clock)], clock=clock) as m:
    print("open", flush=True)
    sys.stdin.readline()
    clock.advance(10.0, cpu=10.0, others=10.0)
print(json.dumps({"host": m.result.host and m.result.host.value, "why": m.result.why.get("host"), "mine": m.result.energy["cpu_dynamic"].value}))
"""


def test_one_of_the_ranks_of_a_host_reports_its_joules(tmp_path) -> None:
    ranks = []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FOURFOLD_LOCKS": str(tmp_path)}
    for _ in range(2):
        rank = subprocess.Popen([sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert rank.stdout is not None and rank.stdout.readline() == "open\n"
        ranks.append(rank)
    found = [json.loads(rank.communicate("go\n")[0]) for rank in ranks]
    assert [use["host"] is not None for use in found] == [True, False] and "another process" in found[1]["why"]
    assert sum(use["mine"] for use in found) <= found[0]["host"]           # shares of the host, by CPU time: never more than the whole


def test_who_meters_this_computer_does_not_touch_another_hosts_figures(tmp_path) -> None:
    other, ours = HostLock(lambda: tmp_path / "lock"), HostLock(lambda: tmp_path / "lock")
    assert other.take() and not ours.take()                              # as if another process of this computer measured now
    for claim, seen in ((ours, False), (None, True)):
        clock = FakeClock(claim=claim)
        with Meter(meters=[FakeMeter(lambda t: 100.0, clock)], clock=clock) as m:
            clock.advance(10.0)
        assert (m.result.host is not None) == seen
    other.give()
    assert ours.take() and ours.take() and not other.take()              # two stations of one process hold it together
    ours.give()
    assert not other.take()
    ours.give()
    assert other.take()
    other.give()


def test_ranks_share_what_they_are_confined_to(monkeypatch) -> None:
    from fourfold.measure import meter as module

    monkeypatch.setattr(module, "_machine", lambda: {"kind": "model", "host_cores": 8, "confined": 6})
    assert module._stated(None, True)["reserved"] == 6
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert module._stated(None, True)["reserved"] == 3 and "2 ranks" in module._stated(None, True)["reserved_why"]
    assert module._stated(1.5, True)["reserved"] == 1.5 and module._stated(None, False)["declined"]


# ---- commands ------------------------------------------------------------------------------------------------------------------------------------


def fourfold_command(*arguments: str, folder: Path, stdin: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "fourfold", *arguments], capture_output=True, text=True, cwd=folder, input=stdin, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=900)


def test_a_metered_command_keeps_its_streams_and_exit_code(tmp_path) -> None:
    done = fourfold_command("meter", "--site", "tokyo", "--", "sh", "-c", "cat; echo err >&2; exit 7", folder=tmp_path, stdin="in\n")
    assert done.returncode == 7 and done.stdout == "in\n" and done.stderr.startswith("err\n") and "total" in done.stderr and "gCO2e" in done.stderr
    row = hash_chain.rows(tmp_path / ".fourfold/ledger.jsonl")[0]
    assert row["exit_code"] == 7 and row["command"][0] == "sh" and row["place"] == "tokyo" and differences(row) == []


def test_a_metered_command_as_json_and_into_a_file(tmp_path) -> None:
    command = ["--", sys.executable, "-c", "sum(range(10**6))", "--json"]
    done = fourfold_command("meter", "--json", "--no-ledger", "--out", "use.json", *command, folder=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == 0 and document == json.loads((tmp_path / "use.json").read_text()) and set(document["energy"]) == set(COMPONENTS)
    assert document["cpu"]["grade"] == "counted" and document["cpu"]["value"] > 0 and not (tmp_path / ".fourfold").exists()
    mixed = fourfold_command("meter", "--no-ledger", "--", "echo", "--json", folder=tmp_path)
    assert mixed.stdout == "--json\n"


@pytest.mark.parametrize("command, code, words", [
    (["meter", "--", "no-such-command-here"], 127, "no command"), (["meter", "--", "/etc/passwd"], 126, "cannot be run"), (["meter"], 2, "--help"),
    (["meter", "--site", "Atlantis-on-Sea", "--", "true"], 2, "Atlantis"), (["meter", "--hz", "0", "--", "true"], 2, "samples a second"),
    (["meter", "--no-ledger", "--", "sh", "-c", "kill -9 $$"], 137, "exit 137")])
def test_what_goes_wrong_with_a_command_says_so(tmp_path, command, code, words) -> None:
    done = fourfold_command(*command, folder=tmp_path)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_command_and_the_row_is_still_written(tmp_path, number) -> None:
    code = ("import signal, sys, time\nfor n in (2, 10, 15):\n    signal.signal(n, lambda n, f: sys.exit(40 + n))\n"
            "print('ready', flush=True)\ntime.sleep(60)")
    child = subprocess.Popen([sys.executable, "-m", "fourfold", "meter", "--", sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.PIPE, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(number)
    child.communicate(timeout=900)
    assert child.returncode == 40 + number and hash_chain.rows(tmp_path / ".fourfold/ledger.jsonl")[0]["exit_code"] == 40 + number


@linux
@pytest.mark.apart
def test_ctrl_c_at_a_terminal_arrives_once_and_the_row_is_written(tmp_path) -> None:
    import pty

    code = ("import signal, time\ncame = []\nsignal.signal(2, lambda n, f: came.append(n))\nprint('ready', flush=True)\n"
            "end = time.time() + 1.5\nwhile time.time() < end: time.sleep(.05)\nprint('came', len(came), flush=True)\nraise SystemExit(3)")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "fourfold", "meter", "--", sys.executable, "-c", code])
    seen = b""
    with contextlib.suppress(OSError):                                    # the terminal closes when the command is done
        while True:
            part = os.read(terminal, 1000)
            seen += part
            if b"ready" in part and b"came" not in seen:
                os.write(terminal, b"\x03")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3 and b"came 1" in seen
    assert hash_chain.rows(tmp_path / ".fourfold/ledger.jsonl")[0]["exit_code"] == 3


@linux
def test_a_command_is_charged_with_all_that_it_started(tmp_path) -> None:
    code = ("import os, time\n"
            "def burn(s):\n    end = time.process_time() + s\n    while time.process_time() < end: pass\n"
            "if os.fork() == 0:\n    if os.fork() == 0:\n        burn(.3); os._exit(0)\n    os._exit(0)\n"     # an orphan at once
            "burn(.3); time.sleep(.8)")
    use = run([sys.executable, "-c", code], ledger=None)
    assert use.code == 0 and use.cpu == pytest.approx(0.6, abs=0.2)


@linux
def test_what_ran_before_a_window_did_not_outlive_it(tmp_path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as older:
        use = run(["true"], ledger=None)
        assert older.poll() is None
        older.communicate(b"\n")
    assert not [note for note in use.notes if "outlived" in note]


@linux
@pytest.mark.parametrize("count", [0, 1, 3])
def test_work_that_a_command_leaves_behind_is_counted_and_named(tmp_path, count: int) -> None:
    fifo = tmp_path / "left"
    os.mkfifo(fifo)
    sleeper = f"{sys.executable} -c 'import os, time; os.write(1, (str(os.getpid()) + chr(10)).encode()); time.sleep(60)' > {fifo} & "
    script = sleeper * count + (f"head -n {count} {fifo} > {tmp_path}/pids; sleep 0.2" if count else "true")
    use = run(["sh", "-c", f"exec 3<> {fifo}; {script}"], ledger=None)
    left = [int(pid) for pid in (tmp_path / "pids").read_text().split()] if count else []
    try:
        notes = [note for note in use.notes if "outlived" in note]
        assert len(notes) == (count > 0) and all(note.startswith(f"{count} of the processes") and "python" in note for note in notes)
        assert use.readings and len(next(row for row in use.readings if row["kind"] == "cpu").get("left", ())) == count == len(left)
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)                                          # the metering process adopts what is left behind


def test_a_command_inside_another_knows_its_run(tmp_path) -> None:
    inner = f"import fourfold\nwith fourfold.Meter('inner', ledger={str(tmp_path / 'runs.jsonl')!r}): pass"
    use = run([sys.executable, "-c", inner], ledger=tmp_path / "runs.jsonl", environment={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = hash_chain.rows(tmp_path / "runs.jsonl")
    assert [row["parent"] for row in rows] == [use.id, None]              # totals count only those inside of nothing


def test_the_environment_of_a_command_is_the_users(tmp_path) -> None:
    done = fourfold_command("meter", "--no-ledger", "--", "env", folder=tmp_path)
    names = {line.split("=")[0] for line in done.stdout.splitlines()}
    assert names - set(os.environ) <= {"FOURFOLD_RUN", "PYTHONPATH", "LC_CTYPE", "_"}


def test_what_can_be_measured_here_is_listed_with_reasons(tmp_path) -> None:
    rows = survey()
    assert all(row["why"] and row["grade"] for row in rows) and {"rapl", "nvml", "cpu time", "processor model"} <= {row["name"] for row in rows}
    done = fourfold_command("meters", "--json", folder=tmp_path)
    assert [row["name"] for row in json.loads(done.stdout)["meters"]] == [row["name"] for row in rows]
    assert "processor model" in fourfold_command("meters", folder=tmp_path).stdout


# ---- cost ----------------------------------------------------------------------------------------------------------------------------------------


def test_metering_imports_nothing_but_the_standard_library() -> None:
    code = ("import sys\nfrom fourfold.measure.command import run\nuse = run(['true'], ledger=None)\nstr(use)\n"
            "heavy = {'numpy', 'rich', 'typer', 'click', 'scipy', 'pandas', 'torch', 'psutil', 'pynvml'}\nprint(sorted(heavy & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_the_command_line_starts_without_rich_or_numpy(tmp_path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fourfold", "meter", "--no-ledger", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    loaded = {line.split("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not loaded & {"rich", "numpy", "scipy", "torch", "pandas", "pydantic"}


@pytest.mark.parametrize("words", [["--help"], ["--no-such-option", "true"], ["--hz", "fast", "--", "true"], ["--json=yes", "true"], ["--site"],
                                   ["--"], []])
def test_words_that_do_not_fit_are_left_to_the_parser_that_explains(words) -> None:
    from fourfold.cli.meter import lean

    assert lean(words) is None


def test_the_short_way_in_knows_every_option(tmp_path, monkeypatch, capsys) -> None:
    from fourfold.cli.meter import lean

    monkeypatch.chdir(tmp_path)
    words = ["--site=FR", "--ledger", "a.jsonl", "--hz", "20", "--name", "x", "--reserve=1.5", "--measured-only", "--out", "b.json", "--json", "--"]
    assert lean([*words, sys.executable, "-c", "raise SystemExit(5)"]) == 5
    document, row = json.loads(capsys.readouterr().out), hash_chain.rows(tmp_path / "a.jsonl")[0]
    assert document["name"] == "x" and document == json.loads((tmp_path / "b.json").read_text()) and row["place"] == "FR"
    model = next(reading for reading in row["readings"] if reading["kind"] == "model")
    assert model["reserved"] == 1.5 and model["declined"] and document["total_j"] is None and row["readings"][0]["hz"] == 20


EMPTY = """
import time
from fourfold import Meter
meter, costs = Meter("a"), []
for _ in range(60):
    start = time.process_time()
    for _ in range(10):
        with meter:
            pass
    costs.append((time.process_time() - start) / 10)
print(sorted(costs)[len(costs) // 4])
"""


@pytest.mark.bench
def test_an_empty_window_costs_microseconds() -> None:
    done = subprocess.run([sys.executable, "-c", EMPTY], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(done.stdout) < 100e-6                                    # a shared machine; alone it is under 50 µs (benchmarks/meters.py)


def test_windows_one_after_another_share_a_thread_and_those_at_both_ends_only_need_none(monkeypatch) -> None:
    from fourfold.measure import sampler as module

    monkeypatch.setattr(module, "_LINGER", 1e9)                          # however long this machine stands still between two windows
    station, threads = Station([]), []
    for _ in range(50):
        window = station.enter("", "a")
        threads.append(station._thread)
        station.leave(window)
    assert len(set(threads)) == 1 and threads[0] is not None
    station._stop.set()
    station = Station([])
    station.leave(station.enter("", "b", hz=0))
    assert station._thread is None


@pytest.mark.bench
@linux
def test_sampling_ten_times_a_second_takes_less_than_a_hundredth_of_a_core() -> None:
    children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(3)]
    try:
        with Meter(hz=10) as warm:
            time.sleep(0.3)
        with Meter(hz=10) as m:
            time.sleep(3.0)
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert warm.result.wall < m.result.wall
    window = m.result.window
    assert window["samples"] > 10 and window["sampler_cpu_s"] / window["wall_s"] < 0.01


class Counting(Tree):
    """A tree that tells which files it read."""

    def __init__(self, *given, **named) -> None:
        super().__init__(*given, **named)
        self.files: list[str] = []

    def _text(self, path: str) -> bytes:
        self.files.append(path)
        return super()._text(path)


@linux
def test_a_sample_reads_the_members_and_no_stranger(tmp_path) -> None:
    proc = tmp_path / "proc"
    write_process(proc, 10, 1, 1.0)
    for pid in (20, 21, 22):
        write_process(proc, pid, 10, 1.0)
    for pid in range(100, 200):
        write_process(proc, pid, 1, 1.0)
    (proc / "loadavg").write_text("0.1 0.1 0.1 1/104 199\n")
    tree = Counting(10, proc=proc)
    assert tree.take().processes == 4 and "150/stat" in tree.files       # the first look is at everybody
    for thorough in (False, True):                                       # as a sample, and as a window's end: no process was started meanwhile
        tree.files.clear()
        assert tree.take(thorough=thorough).processes == 4
        assert {name.split("/")[0] for name in tree.files} == {"10", "20", "21", "22", "loadavg"} and len(tree.files) < 30
    write_process(proc, 23, 10, 1.0)
    (proc / "loadavg").write_text("0.1 0.1 0.1 1/105 200\n")
    tree.files.clear()
    assert tree.take(thorough=True).processes == 5 and "150/stat" not in tree.files     # strangers are known by now


def test_the_meter_is_public() -> None:
    assert fourfold.Meter is Meter
