"""The fleet's scheduler and its admission of slices, in a simulation of every message: random delays, orders and deaths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import InputError
from fourfold.runtime.fleet.admission import Admission
from fourfold.runtime.fleet.scheduler import IslandScheduler
from fourfold.runtime.fleet.simulate import FleetSimulation, crossing, unscheduled


def test_a_thousand_programs_with_crossing_collectives_end_and_the_control_deadlocks() -> None:
    stuck = 0
    for seed in range(100):                                             # ten programs each
        programs = crossing(4, 10, seed)
        record = FleetSimulation(4, seed=seed).run(programs)
        assert not record.deadlock and not record.broken and record.done == 10 and not record.failed, (seed, record)
        stuck += unscheduled(4, programs, seed)
    assert stuck > 50


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 7), count=st.integers(1, 16), seed=st.integers(0, 1 << 30), depth=st.integers(1, 3), tenants=st.integers(1, 4),
       death=st.sampled_from([0.0, 0.01, 0.08]), pure=st.booleans())
def test_invariants_hold_under_deaths_and_delays(size: int, count: int, seed: int, depth: int, tenants: int, death: float, pure: bool) -> None:
    simulation = FleetSimulation(size, seed=seed, depth=depth, budget=64, death=death)
    record = simulation.run(crossing(size, count, seed, tenants), pure=pure)
    assert not record.deadlock and not record.broken, record
    assert record.done + record.failed == count
    assert record.failed == 0 or record.deaths
    again = FleetSimulation(size, seed=seed, depth=depth, budget=64, death=death).run(crossing(size, count, seed, tenants), pure=pure)
    assert again == record                                              # the same seed, the same history


def test_the_simulation_sees_a_scheduler_that_forgets_the_order() -> None:
    found = 0
    for seed in range(20):
        simulation = FleetSimulation(3, seed=seed, depth=3)
        real = simulation.scheduler.next
        random = np.random.default_rng(seed)

        def shuffled(real=real, random=random):                         # noqa: ANN001, ANN202 — the fault: turns of one executor swapped
            found = real()
            if found is not None and random.random() < 0.3:
                found.turns[0][0] += 1
            return found

        simulation.scheduler.next = shuffled                            # type: ignore[method-assign]
        record = simulation.run(crossing(3, 8, seed))
        found += record.deadlock or bool(record.broken)
    assert found >= 15                                                 # in the others no turn was changed


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 5), (0.5, 1, 3)])
def test_tenants_share_by_weight_of_measured_time(weights: tuple[float, ...]) -> None:
    scheduler, random = IslandScheduler(4, depth=1), np.random.default_rng(0)
    seconds = {"t0": 1.0, "t1": 3.0, "t2": 0.5}                         # what a program really takes; all are estimated at 1
    for name, weight in zip(seconds, weights, strict=True):
        scheduler.tenant(name, weight)
        for _ in range(5000):
            scheduler.submit(name, [np.arange(4)])
    clock = 0.0
    while clock < 1200:
        found = scheduler.next()
        assert found is not None
        took = seconds[found.job.tenant] * float(random.uniform(0.5, 1.5))
        clock += took
        scheduler.finished(found.job.number, found.attempt, took)
    used = np.array([scheduler.tenants[name].used for name in seconds])
    assert np.abs(used / used.sum() - np.array(weights) / sum(weights)).max() < 0.05 * min(weights) / sum(weights) + 0.005


def test_a_large_program_is_not_overtaken_for_ever() -> None:
    scheduler = IslandScheduler(4, depth=1)
    small = [scheduler.submit("small", [np.array([e])]) for e in range(3)]
    running = [scheduler.next() for _ in small]
    large = scheduler.submit("large", [np.arange(4)])
    for _ in range(50):
        scheduler.submit("small", [np.array([0])])
    started = None
    for step in range(30):
        while (found := scheduler.next()) is not None:
            running.append(found)
            if found.job is large:
                started = step
        if started is not None:
            break
        first = running.pop(0)
        assert first is not None
        scheduler.finished(first.job.number, first.attempt, 1.0)
    assert started is not None and started < 12


def test_back_pressure_bounds_bytes_and_programs() -> None:
    scheduler = IslandScheduler(2, depth=2, budget=100)
    for _ in range(5):
        scheduler.submit("a", [np.arange(2)], bytes=30, gives=[(0, 20)])
    first, second = scheduler.next(), scheduler.next()
    assert first and second and scheduler.next() is None and scheduler.held.tolist() == [100, 100]
    done = scheduler.finished(first.job.number, 1, 1.0)
    assert done and scheduler.held.tolist() == [70, 70] and scheduler.next() is None    # its result is still held
    scheduler.free(done.handles[0])
    assert scheduler.next() is not None
    with pytest.raises(InputError, match="freed before"):
        scheduler.free(done.handles[0])
    with pytest.raises(InputError, match="needs 101 bytes"):
        scheduler.submit("a", [np.arange(2)], bytes=101)
    with pytest.raises(InputError, match="an island of 2"):
        scheduler.submit("a", [np.arange(3)])


def test_a_death_takes_whom_it_may_hang_and_nobody_else() -> None:
    scheduler = IslandScheduler(6, depth=2)
    jobs = [scheduler.submit("a", [np.array(who)], pure=True) for who in ([0, 1], [1, 2], [4, 5])]
    sent = [scheduler.next() for _ in jobs]
    restart = scheduler.died([0])
    assert restart.executors.tolist() == [0, 1, 2] and [job.number for job in restart.again] == [1, 2] and not restart.failed
    assert scheduler.next() is None                                     # nothing runs on a part of its slice
    first = sent[0]
    assert first and scheduler.finished(first.job.number, first.attempt, 1.0) is None   # a late word of the dead generation
    assert not scheduler.up([0, 1, 2], restart.generation - 1) and scheduler.up([0, 1, 2], restart.generation)
    found = scheduler.next()
    assert found and found.job.number == 1 and found.generations[0].tolist() == [1, 1] and found.turns[0].tolist() == [1, 1]


@settings(max_examples=80, deadline=None)
@given(devices=st.integers(1, 12), seed=st.integers(0, 1 << 30))
def test_slices_are_whole_or_nothing(devices: int, seed: int) -> None:
    random, admission = np.random.default_rng(seed), Admission(devices)
    for _ in range(40):
        there = devices - len(admission.gone)
        what = random.random()
        if what < 0.5 and there:
            size = int(random.integers(1, there + 1))
            admission.request(f"t{random.integers(3)}", (size,), priority=int(random.integers(2)), least=int(random.integers(1, size + 1)))
        elif what < 0.8 and admission.running:
            admission.done(int(random.choice(list(admission.running))))
        elif what < 0.9 and there > 1:
            admission.lost([int(random.integers(devices))])
        else:
            admission.regained(list(admission.gone)[:1])
        change = admission.decide()
        held = [device for one in admission.running.values() for device in one.devices]
        assert len(held) == len(set(held)) and not set(held) & admission.gone
        assert all(len(one.devices) == one.size >= 1 for one in admission.running.values())
        assert all(not one.devices for one in admission.waiting)
        assert all(one.number in admission.running for one in change.start)
    while admission.running or admission.waiting:                       # whoever waits is served in the end
        admission.regained(list(admission.gone))
        admission.decide()
        assert admission.running
        admission.done(next(iter(admission.running)))


def test_urgent_work_takes_slices_back_and_they_come_again() -> None:
    admission = Admission(4)
    low, other = admission.request("a", (3,)), admission.request("b", (1,))
    assert admission.decide().start == (low, other)
    high = admission.request("c", (2,), priority=5)
    change = admission.decide()
    assert high in change.start and set(change.end) <= {low, other} and high.devices
    admission.done(high.number)
    back = admission.decide()
    assert low.devices and low.generation == 2 and back.start


def test_seventeen_on_sixteen_and_a_smaller_mesh() -> None:
    admission = Admission(16)
    with pytest.raises(InputError, match="A slice of 17 devices on a fleet of 16"):
        admission.request("a", (17,))
    elastic = admission.request("a", (16,), least=8)
    admission.decide()
    assert admission.lost([3, 4]).end == (elastic,) and elastic.shape == (14,)
    assert admission.decide().start == (elastic,) and 3 not in elastic.devices and elastic.generation == 2
    admission.draining = True
    with pytest.raises(InputError, match="drains"):
        admission.request("a", (1,))
