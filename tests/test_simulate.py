"""The simulator against hand-computed schedules, a second event loop written apart, a recount of memory, and the properties its docstring states."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cost.simulate import Tasks, Timeline, bound, simulate, simulate_many, tasks_of
from fourfold.errors import InputError
from fourfold.graph import ELEMENTWISE, VIEW, Builder, number
from fourfold.machine import Device, Link, Machine

GB = 1e9


def machine(count: int, links: tuple[Link, ...], memory: float = 1e18, hubs: tuple[str, ...] = ()) -> Machine:
    devices = tuple(Device(f"d{k}", "cpu", {"float32": 1e9}, 1e9, 0.0, memory, idle=1.0 + k, busy=10.0 + k) for k in range(count))
    return Machine("test", devices, links, hubs=hubs)


def mesh(count: int, bandwidth: float = GB, latency: float = 0.25, **facts: Any) -> Machine:
    return machine(count, tuple(Link(f"d{a}", f"d{b}", latency, bandwidth, **facts) for a in range(count) for b in range(a + 1, count)))


def star(count: int, bandwidth: float = GB, latency: float = 0.25, **facts: Any) -> Machine:
    return machine(count, tuple(Link(f"d{a}", "hub", latency, bandwidth * (1 + a), **facts) for a in range(count)), hubs=("hub",))


# ---- a second loop, written apart: no heap, no counts of references; it rescans everything at every instant -------------------------------------

def slow(tasks: Tasks, place: list[int], priority: list[float], system: Machine, strict: bool = False) -> dict[str, Any]:
    count, devices = tasks.seconds.shape
    readers = [tasks.use_task[tasks.use_ptr[v]: tasks.use_ptr[v + 1]].tolist() for v in range(len(tasks.producer))]
    start, finish = [math.nan] * count, [math.inf] * count
    there: dict[tuple[int, int], float] = {}                            # (value, device) → when it is there
    sent: list[tuple[int, int, int, float, float, float]] = []
    lanes: dict[int, float] = {}
    copying, energy, ended, now = [0.0] * devices, 0.0, set[int](), 0.0
    while True:
        for t in sorted(t for t in range(count) if finish[t] == now and t not in ended):
            ended.add(t)
            here = place[t]
            for v in [v for v in range(len(readers)) if tasks.producer[v] == t]:
                there[v, here] = now
                for to in sorted({place[r] for r in readers[v]} - {here}):
                    way = system.route(here, to)
                    blocks = not all(system.links[lane // 2].overlap for lane in way.lanes)
                    begin = max([now, *(lanes.get(lane, 0.0) for lane in way.lanes), *([copying[here]] if blocks else [])])
                    hold = int(tasks.size[v]) / way.bandwidth
                    for lane in way.lanes:
                        lanes[lane] = begin + hold
                    if blocks:
                        copying[here] = begin + hold
                    there[v, to] = begin + hold + way.latency
                    energy += int(tasks.size[v]) * way.energy
                    sent.append((v, here, to, now, begin, there[v, to]))
        for d in range(devices):
            mine = sorted((t for t in range(count) if place[t] == d and math.isnan(start[t])), key=lambda t: (-priority[t], t))
            idle = copying[d] <= now and not any(place[t] == d and start[t] <= now < finish[t] for t in range(count) if not math.isnan(start[t]))
            able = [t for t in mine if all(there.get((v, d), math.inf) <= now for v in range(len(readers)) if t in readers[v])]
            if strict:
                able = [t for t in mine[:1] if t in able]
            if idle and able:
                start[able[0]], finish[able[0]] = now, now + float(tasks.seconds[able[0], d])
        later = [x for x in [*finish, *there.values(), *copying] if math.isfinite(x) and x > now]
        if not later:
            break
        now = min(later)
    return {"start": start, "finish": finish, "sent": sent, "energy": energy}


def recount(tasks: Tasks, place: list[int], timeline: Timeline, count: int) -> list[tuple[list[float], list[int]]]:
    """Bytes on each device at every instant at which any could change, counted afresh from who lives when."""
    way = timeline.transfers
    begun = {(v, d): s for v, d, s in zip(way.value.tolist(), way.target.tolist(), way.start.tolist(), strict=True)}
    spans: list[tuple[int, float, float, int]] = []
    readers = [tasks.use_task[tasks.use_ptr[v]: tasks.use_ptr[v + 1]].tolist() for v in range(len(tasks.producer))]
    until: dict[tuple[int, int], float] = {}
    for v in reversed(range(len(readers))):
        home = place[tasks.producer[v]]
        for d in {home, *(place[r] for r in readers[v])}:
            ends = [timeline.finish[r] for r in readers[v] if place[r] == d]
            if d == home:
                ends += [timeline.finish[tasks.producer[v]], *(f for w, f in zip(way.value, way.finish, strict=True) if w == v)]
                ends += [math.inf] if tasks.keep[v] else []
            ends += [until[w, d] for w in range(len(readers)) if tasks.base[w] == v and place[tasks.producer[w]] == d]
            until[v, d] = max(ends)
            if d == home:
                spans.append((d, float(timeline.start[tasks.producer[v]]), until[v, d], int(tasks.hold[v])))
            else:
                spans.append((d, begun[v, d], until[v, d], int(tasks.size[v])))
    for t in range(len(tasks)):
        spans.append((place[t], float(timeline.start[t]), float(timeline.finish[t]), int(tasks.workspace[t])))
    for f in range(len(tasks.fixed_size)):
        for d in {place[t] for t in tasks.fixed_task[tasks.fixed_ptr[f]: tasks.fixed_ptr[f + 1]].tolist()}:
            spans.append((d, 0.0, math.inf, int(tasks.fixed_size[f])))
    instants = sorted({0.0, *(x for _, a, b, _ in spans for x in (a, b) if math.isfinite(x))})
    return [(instants, [sum(size for e, a, b, size in spans if e == d and a <= x < b) for x in instants]) for d in range(count)]


# ---- random instances ---------------------------------------------------------------------------------------------------------------------------

@st.composite
def instances(draw: st.DrawFn, devices: int = 3, most: int = 9) -> tuple[Tasks, list[int], list[float]]:
    count = draw(st.integers(1, most))
    moments = st.integers(1, 12).map(lambda x: x / 4)                   # quarters: sums are exact, so instants can be compared
    seconds = [[draw(moments) for _ in range(devices)] for _ in range(count)]
    values = []
    for t in range(count):
        for _ in range(draw(st.integers(0, 2))):
            readers = draw(st.sets(st.integers(t + 1, count - 1), max_size=3)) if t + 1 < count else set()
            values.append((t, draw(st.sampled_from([0, 250_000_000, 500_000_000, 2_000_000_000])), sorted(readers)))
    keep = [v for v in range(len(values)) if draw(st.booleans())]
    fixed = [(draw(st.integers(0, 100)), sorted(draw(st.sets(st.integers(0, count - 1), max_size=3)))) for _ in range(draw(st.integers(0, 3)))]
    tasks = Tasks.of(seconds, values, keep=keep, fixed=fixed, workspace=[draw(st.integers(0, 50)) for _ in range(count)])
    base, hold = tasks.base.copy(), tasks.hold.copy()
    ptr, val = tasks.reads
    for v in range(len(base)):                                          # some values are views of what their task reads
        mine = val[ptr[tasks.producer[v]]: ptr[tasks.producer[v] + 1]]
        if len(mine) and draw(st.booleans()):
            base[v], hold[v] = draw(st.sampled_from(mine.tolist())), 0
    place = [draw(st.integers(0, devices - 1)) for _ in range(count)]
    return replace(tasks, base=base, hold=hold), place, [float(draw(st.integers(0, 4))) for _ in range(count)]


SYSTEMS = [mesh(3), star(3), mesh(3, duplex=False), star(3, duplex=False), mesh(3, overlap=False), star(3, overlap=False, energy=1e-9)]
COMMON = settings(max_examples=60, deadline=None)


@given(instances(), st.sampled_from(SYSTEMS))
@COMMON
def test_equals_the_second_loop(instance: tuple[Tasks, list[int], list[float]], system: Machine) -> None:
    tasks, place, priority = instance
    fast, other = simulate(tasks, place, priority, system), slow(tasks, place, priority, system)
    assert fast.start.tolist() == other["start"] and fast.finish.tolist() == other["finish"]
    way = fast.transfers
    mine = list(zip(*(part.tolist() for part in (way.value, way.source, way.target, way.asked, way.start, way.finish)), strict=True))
    assert mine == other["sent"]
    power = sum(d.idle * (fast.makespan - b) + d.busy * b for d, b in zip(system.devices, fast.busy, strict=True))
    assert math.isclose(fast.joules, power + other["energy"], rel_tol=1e-12)


@given(instances(), st.sampled_from(SYSTEMS))
@COMMON
def test_strict_equals_the_second_loop(instance: tuple[Tasks, list[int], list[float]], system: Machine) -> None:
    tasks, place, _ = instance
    order = [-float(t) for t in range(len(tasks))]                      # follows the dataflow, so no order waits for ever
    fast, other = simulate(tasks, place, order, system, strict=True), slow(tasks, place, order, system, strict=True)
    assert fast.start.tolist() == other["start"] and fast.finish.tolist() == other["finish"]


@given(instances(), st.sampled_from(SYSTEMS))
@COMMON
def test_memory_equals_a_recount(instance: tuple[Tasks, list[int], list[float]], system: Machine) -> None:
    tasks, place, priority = instance
    timeline = simulate(tasks, place, priority, system, memory=True)
    for d, (instants, counted) in enumerate(recount(tasks, place, timeline, len(system))):
        at, held = timeline.memory[d]
        told = [int(held[np.searchsorted(at, x, side="right") - 1]) for x in instants]
        assert told == counted
        assert timeline.peak_bytes[d] == max(counted)
        assert timeline.peak_at[d] == instants[counted.index(max(counted))]


@given(instances(), st.sampled_from(SYSTEMS))
@COMMON
def test_no_device_idles_while_a_task_is_ready(instance: tuple[Tasks, list[int], list[float]], system: Machine) -> None:
    tasks, place, priority = instance
    line = simulate(tasks, place, priority, system)
    way = line.transfers
    for t in range(len(tasks)):
        assert line.ready[t] <= line.start[t]
        work = sum(float(tasks.seconds[u, place[u]]) - max(0.0, line.ready[t] - line.start[u]) for u in range(len(tasks))
                   if place[u] == place[t] and line.ready[t] < line.finish[u] and line.start[u] < line.start[t])
        blocked = {x: (s, s + float(tasks.size[v]) / system.route(a, b).bandwidth) for x, (v, a, b, s) in
                   enumerate(zip(way.value, way.source, way.target, way.start, strict=True))
                   if a == place[t] and not all(system.links[lane // 2].overlap for lane in system.route(a, b).lanes)}
        copied = sum(max(0.0, min(e, line.start[t]) - max(s, line.ready[t])) for s, e in blocked.values())
        gaps = line.start[t] - line.ready[t] - work
        assert gaps <= copied + 1e-9 or blocked                         # a copying sender may wait for a lane in between
        if not blocked:
            assert math.isclose(gaps, 0.0, abs_tol=1e-9)


@given(instances(), st.sampled_from(SYSTEMS))
@COMMON
def test_never_faster_than_path_device_or_lane(instance: tuple[Tasks, list[int], list[float]], system: Machine) -> None:
    tasks, place, priority = instance
    line = simulate(tasks, place, priority, system)
    longest, lanes, load = [0.0] * len(tasks), dict[int, float](), [0.0] * len(system)
    src, dst, value = tasks.edges()
    for t in range(len(tasks)):
        arrivals = [longest[s] + system.route(place[s], place[t]).seconds(float(tasks.size[v]))
                    for s, d, v in zip(src, dst, value, strict=True) if d == t]
        longest[t] = max(arrivals, default=0.0) + float(tasks.seconds[t, place[t]])
        load[place[t]] += float(tasks.seconds[t, place[t]])
    for v, a, b in zip(line.transfers.value, line.transfers.source, line.transfers.target, strict=True):
        route = system.route(int(a), int(b))
        for lane in route.lanes:
            lanes[lane] = lanes.get(lane, 0.0) + float(tasks.size[v]) / route.bandwidth
        load[a] += 0.0 if all(system.links[lane // 2].overlap for lane in route.lanes) else float(tasks.size[v]) / route.bandwidth
    floor = max([*longest, *load, *lanes.values()])
    assert line.makespan >= floor - 1e-9
    assert math.isclose(bound(tasks, place, system), floor, rel_tol=1e-12, abs_tol=1e-12)
    np.testing.assert_allclose(line.busy, load)
    np.testing.assert_allclose(line.link_busy.sum(), sum(lanes.values()))


@given(instances(), st.sampled_from([1.5, 2.0, 10.0, math.inf]))
@COMMON
def test_more_bandwidth_never_hurts_where_orders_are_fixed(instance: tuple[Tasks, list[int], list[float]], factor: float) -> None:
    tasks, place, _ = instance
    order = [-float(t) for t in range(len(tasks))]
    slower, faster = mesh(3), mesh(3, bandwidth=GB * factor)
    before, after = (simulate(tasks, place, order, one, strict=True) for one in (slower, faster))
    assert (after.finish <= before.finish + 1e-9).all()


@given(instances(), st.sampled_from([1.5, 2.0, 10.0]))
@COMMON
def test_more_bandwidth_never_hurts_where_each_device_runs_a_chain(instance: tuple[Tasks, list[int], list[float]], factor: float) -> None:
    tasks, place, priority = instance
    links = [(tasks.producer[v], int(tasks.size[v]), tasks.use_task[tasks.use_ptr[v]: tasks.use_ptr[v + 1]].tolist())
             for v in range(len(tasks.producer))]
    for d in range(3):
        mine = [t for t in range(len(tasks)) if place[t] == d]
        links += [(a, 0, [b]) for a, b in zip(mine, mine[1:], strict=False)]
    chained = Tasks.of(tasks.seconds, links)
    before, after = (simulate(chained, place, priority, one) for one in (mesh(3), mesh(3, bandwidth=GB * factor)))
    assert (after.finish <= before.finish + 1e-9).all()


@given(instances(), st.sampled_from([0, 1]), st.floats(1.0, 100.0))
@COMMON
def test_the_fluid_bound_never_rises_with_bandwidth(instance: tuple[Tasks, list[int], list[float]], which: int, factor: float) -> None:
    tasks, place, _ = instance
    make = (mesh, star)[which]
    assert bound(tasks, place, make(3, bandwidth=GB * factor)) <= bound(tasks, place, make(3)) + 1e-9


def test_more_bandwidth_can_hurt_a_list_schedule() -> None:
    """Graham's anomaly: over the quicker link the input of task 3, preferred and long, is there in time to delay task 2, for which task 4 waits."""
    tasks = Tasks.of([[1, 9], [9, 2], [9, 1], [9, 8], [10, 9]], [(0, 2_000_000_000, [3]), (1, 0, [2]), (2, 0, [4])])
    place, priority = [0, 1, 1, 1, 0], [9.0, 8.0, 1.0, 5.0, 0.0]
    slower, faster = mesh(2, bandwidth=GB, latency=0.0), mesh(2, bandwidth=4 * GB, latency=0.0)
    one, other = (simulate(tasks, place, priority, system) for system in (slower, faster))
    assert (one.makespan, other.makespan) == (13.0, 21.0)
    assert bound(tasks, place, faster) <= bound(tasks, place, slower)


# ---- by hand ------------------------------------------------------------------------------------------------------------------------------------

def test_five_tasks_by_hand() -> None:
    """0 → 1, 2 → 3 → 4 over two devices: 1 GB a second, a quarter of a second latency."""
    tasks = Tasks.of([[2, 4], [3, 1], [2, 2], [1, 5], [1, 1]], [(0, 10**9, [1, 2]), (1, 2 * 10**9, [3]), (2, 5 * 10**8, [3]), (3, 0, [4])], keep=[3])
    line = simulate(tasks, [0, 1, 0, 0, 1], [5, 4, 3, 2, 1], mesh(2))
    # 0 on d0 until 2; its value is on d1 at 2 + 1 + 0.25; 1 on d1 until 4.25; 2 on d0 until 4; value 1 back at 4.25 + 2 + 0.25; 3 until 7.5
    assert line.start.tolist() == [0, 3.25, 2, 6.5, 7.75] and line.finish.tolist() == [2, 4.25, 4, 7.5, 8.75]
    assert line.makespan == 8.75 and line.busy.tolist() == [5, 2] and line.link_busy.tolist() == [3]
    assert len(line.transfers) == 3                                     # value 0 goes to d1 once; value 2 stays
    assert line.peak_bytes.tolist() == [2_500_000_000, 3_000_000_000]   # d0: values 1 and 2 from 4.25; d1: values 0 and 1 from 3.25
    assert line.joules == (5 * 10 + 3.75 * 1) + (2 * 11 + 6.75 * 2)


def test_a_transfer_is_paid_once_per_destination() -> None:
    tasks = Tasks.of([[1, 1]] * 4, [(0, 10**9, [1, 2, 3])])
    line = simulate(tasks, [0, 1, 1, 1], [0, 0, 0, 0], mesh(2))
    assert len(line.transfers) == 1 and line.start.tolist() == [0, 2.25, 3.25, 4.25]


def test_links_serve_in_order_and_duplex_lanes_do_not_meet() -> None:
    tasks = Tasks.of([[1, 1]] * 4, [(0, 10**9, [2]), (1, 10**9, [3])])
    assert simulate(tasks, [0, 1, 1, 0], [0] * 4, mesh(2, latency=0.0)).finish.tolist() == [1, 1, 3, 3]
    assert simulate(tasks, [0, 1, 1, 0], [0] * 4, mesh(2, latency=0.0, duplex=False)).finish.tolist() == [1, 1, 3, 4]


def test_a_sender_that_copies_computes_nothing_meanwhile() -> None:
    tasks = Tasks.of([[1, 1]] * 3, [(0, 10**9, [2])])
    assert simulate(tasks, [0, 0, 1], [2, 1, 0], mesh(2)).finish.tolist() == [1, 2, 3.25]
    copied = simulate(tasks, [0, 0, 1], [2, 1, 0], mesh(2, overlap=False))
    assert copied.finish.tolist() == [1, 3, 3.25] and copied.busy.tolist() == [3, 1]


def test_over_the_limit_is_said_in_words() -> None:
    tasks = Tasks.of([[1.0], [1.0], [1.0]], [(0, 600, [1]), (1, 500, [2])], fixed=[(100, [0, 2])])
    line = simulate(tasks, [0, 0, 0], [0, 0, 0], machine(1, (), memory=1000))
    assert line.peak_bytes.tolist() == [1200] and line.over_at.tolist() == [1.0]
    assert line.violations() == ["d0 holds 1,200 bytes, 200 more than its 1,000: from 1 s on, most at 1 s."]
    assert simulate(tasks, [0, 0, 0], [0, 0, 0], machine(1, (), memory=1200)).violations() == []


def test_what_a_device_cannot_run_takes_for_ever_and_is_named() -> None:
    tasks = Tasks.of([[1, math.inf], [1, 1]], [(0, 8, [1])], names=("conv1", "relu"))
    line = simulate(tasks, [1, 0], [0, 0], mesh(2))
    assert line.makespan == math.inf and line.joules == math.inf and line.violations() == ["conv1 cannot run on d1."]


def test_circles_and_impossible_orders_are_refused() -> None:
    circle = Tasks.of([[1.0], [1.0]], [(0, 0, [1]), (1, 0, [0])])
    with pytest.raises(InputError, match="2 tasks wait for one another for ever: task 0, task 1"):
        simulate(circle, [0, 0], [0, 0], machine(1, ()))
    chain = Tasks.of([[1.0], [1.0]], [(0, 0, [1])])
    with pytest.raises(InputError, match="follows the dataflow"):
        simulate(chain, [0, 0], [0, 1], machine(1, ()), strict=True)
    assert simulate_many(chain, [[0, 0]], [[0.0, 1.0]], machine(1, ()), strict=True)[0].tolist() == [math.inf]


@pytest.mark.parametrize(("place", "priority", "said"), [([0], [0, 0], "1 places"), ([0, 3], [0, 0], "device 3"), ([0, -1], [0, 0], "device -1"),
                                                         ([0, 1], [0, math.nan], "no priority")])
def test_wrong_answers_are_refused(place: list[int], priority: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        simulate(Tasks.of([[1, 1], [1, 1]]), place, priority, mesh(2))


def test_nothing_takes_no_time() -> None:
    line = simulate(Tasks.of(np.zeros((0, 2))), [], [], mesh(2))
    assert line.makespan == 0 and line.joules == 0 and line.events == 0


@given(instances(), st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=4))
@COMMON
def test_many_equals_one_by_one(instance: tuple[Tasks, list[int], list[float]], plans: list[list[int]]) -> None:
    tasks, _, priority = instance
    places = [plan[: len(tasks)] for plan in plans]
    makespan, peak, joules = simulate_many(tasks, places, [priority] * len(places), SYSTEMS[1])
    for b, place in enumerate(places):
        line = simulate(tasks, place, priority, SYSTEMS[1])
        assert (makespan[b], joules[b], peak[b].tolist()) == (line.makespan, line.joules, line.peak_bytes.tolist())


# ---- tasks of a graph ---------------------------------------------------------------------------------------------------------------------------

def diamond() -> Any:
    """x, w → a = x·w; v = view of a; b = relu(v); c = exp(a); out = b + c."""
    build = Builder("diamond")
    x, w = build.input((4, 8), "float32"), build.parameter((8,), "float32")
    (turned,) = build.node("aten.t", [w], [((8,), "float32")], fusion=VIEW, alias=[w])
    (a,) = build.node("aten.mul", [x, turned], [((4, 8), "float32")], fusion=ELEMENTWISE)
    (v,) = build.node("aten.view", [a], [((32,), "float32")], fusion=VIEW, alias=[a])
    (b,) = build.node("aten.relu", [v], [((32,), "float32")], fusion=ELEMENTWISE)
    (c,) = build.node("aten.exp", [a], [((4, 8), "float32")], fusion=ELEMENTWISE)
    (out,) = build.node("aten.add", [b, c], [((4, 8), "float32")], fusion=ELEMENTWISE)
    build.output(out)
    return build.build()


def test_tasks_of_single_nodes() -> None:
    graph = diamond()
    tasks = tasks_of(graph, [-1] * 6, mesh(2), np.ones((6, 2)))
    src, dst, _ = tasks.edges()
    assert sorted(zip(src.tolist(), dst.tolist(), strict=True)) == [(1, 2), (1, 4), (2, 3), (3, 5), (4, 5)]    # the view of w binds nobody
    assert tasks.fixed_size.tolist() == [128, 32] and tasks.hold.tolist() == [128, 0, 128, 128, 128] and tasks.base.tolist() == [-1, 0, -1, -1, -1]
    line = simulate(tasks, [0] * 6, [-t for t in range(6)], mesh(2), memory=True)
    assert line.peak_bytes.tolist() == [160 + 3 * 128, 0]               # a, b and c while exp runs; then b, c and out
    assert tasks.keep.tolist() == [False] * 4 + [True]


def test_tasks_of_groups_pass_only_what_crosses() -> None:
    graph = diamond()
    tasks = tasks_of(graph, [7, 7, 7, 7, 3, 3], mesh(2), np.ones((2, 2)))
    assert len(tasks) == 2 and tasks.size.tolist() == [128, 128, 128] and tasks.group.tolist() == [0, 0, 0, 0, 1, 1]
    whole = tasks_of(graph, [0] * 6, mesh(2), np.ones((1, 2)))
    assert whole.size.tolist() == [128] and whole.keep.tolist() == [True] and whole.fixed_size.tolist() == [128, 32]


def test_a_view_that_leaves_its_group_holds_its_roots_bytes() -> None:
    graph = diamond()
    tasks = tasks_of(graph, [0, 0, 0, 1, 0, 1], mesh(2), np.ones((2, 2)))      # v and c leave, a does not
    assert tasks.hold.tolist() == [128] * 3 and tasks.base.tolist() == [-1] * 3


def test_group_numbers_follow_the_first_node() -> None:
    task, count = number([5, -1, 5, 2, -1], 5)
    assert task.tolist() == [0, 1, 0, 2, 3] and count == 4
    with pytest.raises(InputError, match="5 nodes and 2"):
        number([1, 2], 5)
