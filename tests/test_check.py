"""The validator's kernels against plain Python: groups that break a rule, circles, the simulator's rules replayed, sizes and classes."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cost.roofline import Prices, fused_seconds
from fourfold.cost.simulate import Tasks, simulate, tasks_of
from fourfold.decisions.schedule._parts import fuse
from fourfold.decisions.schedule.problem import Answer, Schedule, replay
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, OPAQUE, REDUCTION, VIEW, Builder, Graph, number
from fourfold.machine import Device, Link, Machine
from fourfold.zoo.graphs import FAMILIES, make

SHAPES = [(8, 16), (8, 1), (4, 4), (8, 32), ()]


def tangled(dice: np.random.Generator, nodes: int) -> Graph:
    """A random sound graph with all that random_graph lacks: views that share memory, several outputs of a node, several of the program, colocation
    of many, inputs that many read.
    """
    build = Builder(f"tangled {nodes}")
    values = [(build.input((8, 16), "float32"), (8, 16)) for _ in range(2)] + [(build.parameter((8, 16), "float32"), (8, 16))]
    for _ in range(nodes):
        fusion = int(dice.choice([OPAQUE, ELEMENTWISE, REDUCTION, CONTRACTION, VIEW, GATHER], p=[0.06, 0.4, 0.12, 0.17, 0.2, 0.05]))
        back = dice.geometric(0.35, size=1 if fusion == VIEW else int(dice.integers(1, 4)))
        picks = [max(0, len(values) - int(one)) for one in back]
        reads = [values[i] for i in dict.fromkeys(picks)]
        shapes = [reads[0][1] if dice.random() < 0.6 else SHAPES[int(dice.integers(len(SHAPES)))]
                  for _ in range(1 if fusion == VIEW else int(dice.choice([1, 1, 1, 2])))]
        kind = ("aten.opaque", "aten.add", "aten.sum", "aten.mm", "aten.view", "aten.gather")[fusion]
        work = float(np.prod(shapes[0]) * {CONTRACTION: 300, VIEW: 0}.get(fusion, 2))
        made = build.node(kind, [v for v, _ in reads], [(shape, "float32") for shape in shapes], flops=work, fusion=fusion,
                          alias=[reads[0][0]] if fusion == VIEW else (), colocation=int(dice.integers(3)) if dice.random() < 0.15 else -1)
        values += list(zip(made, shapes, strict=True))
    for i in {len(values) - 1, *dice.integers(3, len(values), size=2).tolist()}:
        build.output(values[i][0])
    return build.build()


def mesh(count: int, memory: float = 1e9, overlap: bool = True) -> Machine:
    devices = tuple(Device(f"d{i}", "fake", {"float32": (1e9, 2e9, 5e8)[i % 3]}, (1e9, 4e9)[i % 2], 1e-6 * (1 + i), memory, 1.0, 10.0)
                    for i in range(count))
    links = tuple(Link(a.name, b.name, 1e-6, 1e8, overlap=overlap) for i, a in enumerate(devices) for b in devices[i + 1:])
    return Machine("fake", devices, links)


COMMON = settings(max_examples=60, deadline=None)


@given(st.integers(0, 10**6), st.integers(2, 24), st.integers(1, 8), st.integers(2, 5))
@COMMON
def test_groups_that_break_a_rule_are_those_of_the_plain_rules(seed: int, nodes: int, most: int, streams: int) -> None:
    dice = np.random.default_rng(seed)
    problem = Schedule(tangled(dice, nodes), mesh(1), most=most, streams=streams)
    group = dice.integers(-1, max(1, nodes // 2), size=nodes) if dice.random() < 0.5 else fuse(problem)
    if dice.random() < 0.5:                                             # nearly sound: one node strays
        group = np.array(group)
        group[dice.integers(nodes)] = group[dice.integers(nodes)]
    told = problem._fusions(Answer(group, np.zeros(nodes, int), np.zeros(nodes)))
    task, count = number(group, nodes)
    plain = []
    for t in range(count):
        members = np.flatnonzero(task == t).tolist()
        if len(members) > 1:
            plain += [what for what in problem._unfit(members)]
    assert len(told) == len(plain) and all(one.endswith(other) for one, other in zip(told, plain, strict=True))


@given(st.integers(0, 10**6), st.integers(2, 20))
@COMMON
def test_circles_are_those_of_the_closure(seed: int, nodes: int) -> None:
    dice = np.random.default_rng(seed)
    graph = tangled(dice, nodes)
    task, count = number(dice.integers(0, nodes, size=nodes), nodes)
    reach = np.zeros((count, count), bool)
    src, dst, _ = graph.edges()
    reach[task[src], task[dst]] = True
    np.fill_diagonal(reach, False)
    for _ in range(count):
        reach |= (reach.astype(int) @ reach.astype(int)) > 0
    told = Schedule(graph, mesh(1))._cycles(Answer(task, np.zeros(nodes, int), np.zeros(nodes)))
    assert bool(told) == bool(reach.diagonal().any())


@given(st.integers(0, 10**6), st.integers(2, 24), st.integers(1, 4), st.booleans(), st.booleans())
@COMMON
def test_replay_is_plain_python_and_the_simulator_to_the_bit(seed: int, nodes: int, devices: int, fused: bool, overlap: bool) -> None:
    dice = np.random.default_rng(seed)
    system = mesh(devices, overlap=overlap)
    problem = Schedule(tangled(dice, nodes), system)
    tasks = problem.tasks(fuse(problem) if fused else np.arange(nodes))
    if dice.random() < 0.3:                                             # instants that coincide, tasks of no time
        tasks = replace(tasks, seconds=np.round(tasks.seconds * 1e6) * 1e-6)
    place, priority = dice.integers(devices, size=len(tasks)), dice.integers(0, 4, size=len(tasks)).astype(float)
    start, finish, peak = replay(tasks, place, priority, system)
    told = Plain(tasks, place.tolist(), priority.tolist(), system).run()
    assert (start, finish, [most for most, _ in peak]) == (told[0], told[1], [most for most, _ in told[2]])
    assert [at for _, at in peak] == [at for _, at in told[2]]
    line = simulate(tasks, place, priority, system)
    assert start == line.start.tolist() and finish == line.finish.tolist() and [most for most, _ in peak] == line.peak_bytes.tolist()


@given(st.integers(0, 10**6), st.integers(2, 24))
@COMMON
def test_sizes_and_classes_are_those_counted_one_by_one(seed: int, nodes: int) -> None:
    graph = tangled(np.random.default_rng(seed), nodes)
    problem = Schedule(graph, mesh(2))
    assert sorted(np.concatenate(problem.classes).tolist()) == list(range(nodes))
    for c, members in enumerate(problem.classes):
        assert (problem.label[members] == c).all() and problem.stands[c] == problem.standing(members)
        assert (problem.fits[c] == problem.able[members].all(0)).all()
        assert len(members) == 1 or len(set(graph.colocation[members].tolist())) == 1
    wide = np.ones(nodes, np.int64)
    for n in range(nodes):
        for v in graph.outputs_of(n):
            wide[n] = max(wide[n], int(np.prod(graph.shape_of(int(v)))))
        for v in graph.inputs_of(n) if graph.fusion[n] not in (CONTRACTION, GATHER) else ():
            if graph.role[graph.alias[v]] < 2:
                wide[n] = max(wide[n], int(np.prod(graph.shape_of(int(v)))))
    assert problem.space.tolist() == wide.tolist()


@given(st.integers(0, 10**6), st.integers(2, 24))
@COMMON
def test_what_a_view_holds_is_what_it_views_unless_that_is_elsewhere(seed: int, nodes: int) -> None:
    dice = np.random.default_rng(seed)
    graph, system = tangled(dice, nodes), mesh(2)
    group = dice.integers(0, nodes, size=nodes) if dice.random() < 0.6 else np.arange(nodes)
    tasks = tasks_of(graph, group, system)
    hold, base = storage(graph, tasks)
    assert tasks.hold.tolist() == hold and tasks.base.tolist() == base


def storage(graph: Graph, tasks: Tasks) -> tuple[list[int], list[int]]:
    """Bytes that each value between tasks holds and the one whose memory it shares, value by value."""
    task = tasks.group
    free = graph.role[graph.alias] != 0
    passed = [v for v in range(len(graph.producer)) if not free[v] and graph.producer[v] >= 0 and (
        v in graph.outputs or any(task[n] != task[graph.producer[v]] for n in graph.readers_of(v)))]
    passed.sort(key=lambda v: (task[graph.producer[v]], v))
    hold, base = [int(graph.size[v]) for v in passed], [-1] * len(passed)
    read: dict[tuple[int, int], int] = {}
    for v in sorted(passed):
        for n in graph.readers_of(v):
            if task[n] != task[graph.producer[v]]:
                read.setdefault((int(task[n]), int(graph.alias[v])), passed.index(v))
    made = {(int(task[graph.producer[v]]), v): i for i, v in enumerate(passed) if graph.alias[v] == v}
    for i, v in enumerate(passed):
        root, t = int(graph.alias[v]), int(task[graph.producer[v]])
        if root == v:
            continue
        owner = read.get((t, root)) if task[graph.producer[root]] != t else made.get((t, root))
        if owner is not None:
            hold[i], base[i] = 0, owner
        else:
            hold[i] = int(graph.size[root])
            made[t, root] = i
    return hold, base


@pytest.mark.parametrize("family", FAMILIES)
def test_prices_at_hand_change_nothing_and_changed_copies_keep_them(family: str) -> None:
    graph, system = make(family, 120, 3), Machine.read("p100x2")
    problem = Schedule(graph, system, bounded=False)
    group = fuse(problem)
    assert np.array_equal(fused_seconds(graph, group, system), fused_seconds(graph, group, system, Prices(graph, system)))
    other = problem.replace(objective="energy", most=3)
    assert other.prices is problem.prices and (other.unit, other.most, problem.unit, problem.most) == ("J", 3, "s", 64)
    assert other.violations(Answer(group, np.zeros(len(graph), int), np.zeros(len(graph)))) or len(np.unique(group)) * 3 >= len(graph)
    with pytest.raises(TypeError, match="no field"):
        problem.replace(colour="red")


class Plain:
    def __init__(self, tasks: Tasks, place: list[int], priority: list[float], system: Machine) -> None:
        self.place, self.priority, self.system, devices = place, priority, system, range(len(system))
        self.seconds = [float(tasks.seconds[t, d]) for t, d in enumerate(place)]
        self.producer, self.size, self.hold, self.base = (getattr(tasks, name).tolist() for name in ("producer", "size", "hold", "base"))
        ptr, use = tasks.use_ptr.tolist(), tasks.use_task.tolist()
        self.readers = [use[a:b] for a, b in zip(ptr[:-1], ptr[1:], strict=True)]
        self.workspace = tasks.workspace.tolist()
        self.makes: dict[int, list[int]] = {}
        self.reads: dict[int, list[int]] = {}
        self.needs: dict[tuple[int, int], int] = {}                    # (value, device) → who still needs its bytes there
        for v, t in enumerate(self.producer):
            self.makes.setdefault(t, []).append(v)
            if tasks.keep[v]:
                self._need(v, place[t])
            if self.base[v] >= 0:
                self._need(self.base[v], place[t])
            for reader in self.readers[v]:
                self.reads.setdefault(reader, []).append(v)
                self._need(v, place[reader])
        self.missing = [len(self.reads.get(t, ())) for t in range(len(place))]
        self.memory = [sum(int(size) for f, size in enumerate(tasks.fixed_size)
                           if any(place[t] == d for t in tasks.fixed_task[tasks.fixed_ptr[f]:tasks.fixed_ptr[f + 1]])) for d in devices]
        self.peak = [(m, 0.0) for m in self.memory]
        self.queue: list[list[tuple[float, int]]] = [[] for _ in devices]
        self.running: list[int | None] = [None for _ in devices]
        self.free_at, self.lane_free = [0.0 for _ in devices], [0.0] * (2 * len(system.links))
        self.start, self.finish = [float("nan")] * len(place), [float("nan")] * len(place)
        self.events: list[tuple[float, int, int]] = []
        self.sent: list[tuple[int, int, int, float]] = []              # value, from, to, arrival

    def _need(self, value: int, device: int) -> None:
        self.needs[value, device] = self.needs.get((value, device), 0) + 1

    def run(self) -> tuple[list[float], list[float], list[tuple[int, float]]]:
        for t, count in enumerate(self.missing):
            if not count:
                heapq.heappush(self.queue[self.place[t]], (-self.priority[t], t))
        now = 0.0
        while True:
            for d in range(len(self.queue)):
                if self.running[d] is None and self.free_at[d] <= now and self.queue[d]:
                    self._begin(heapq.heappop(self.queue[d])[1], d, now)
            if not self.events:
                return self.start, self.finish, self.peak
            now = self.events[0][0]
            while self.events and self.events[0][0] == now:
                _, kind, item = heapq.heappop(self.events)
                (self._end, self._arrive, self._depart, lambda item, now: None)[kind](item, now)

    def _begin(self, t: int, d: int, now: float) -> None:
        self.running[d], self.start[t] = t, now
        self._take(d, self.workspace[t] + sum(self.hold[v] for v in self.makes.get(t, ())), now)
        heapq.heappush(self.events, (now + self.seconds[t], 0, t))

    def _take(self, d: int, size: int, now: float) -> None:
        self.memory[d] += size
        if self.memory[d] > self.peak[d][0]:
            self.peak[d] = self.memory[d], now

    def _drop(self, v: int, d: int) -> None:
        """One need fewer of value v on d; at none its bytes go, and with a view's the need of what it views."""
        self.needs[v, d] -= 1
        self._gone(v, d)

    def _gone(self, v: int, d: int) -> None:
        if self.needs.get((v, d), 0):
            return
        home = self.place[self.producer[v]] == d
        self.memory[d] -= self.hold[v] if home else self.size[v]
        if home and self.base[v] >= 0:
            self._drop(self.base[v], d)

    def _end(self, t: int, now: float) -> None:
        d = self.place[t]
        self.running[d], self.finish[t] = None, now
        self.memory[d] -= self.workspace[t]
        for v in self.makes.get(t, ()):
            for to in sorted({self.place[reader] for reader in self.readers[v]} - {d}):
                self._send(v, d, to, now)
            self._gone(v, d)
            self._reached(v, d)
        for v in self.reads.get(t, ()):
            self._drop(v, d)

    def _send(self, v: int, d: int, to: int, now: float) -> None:
        route = self.system.route(d, to)
        copies = not all(self.system.links[lane // 2].overlap for lane in route.lanes)
        begin = max([now, *(self.lane_free[lane] for lane in route.lanes), *([self.free_at[d]] if copies else [])])
        busy = self.size[v] / route.bandwidth
        for lane in route.lanes:
            self.lane_free[lane] = begin + busy
        if copies:
            self.free_at[d] = begin + busy
            heapq.heappush(self.events, (begin + busy, 3, d))
        heapq.heappush(self.events, (begin, 2, len(self.sent)))
        self.sent.append((v, d, to, begin + busy + route.latency))
        self._need(v, d)                                               # here until it is there

    def _depart(self, item: int, now: float) -> None:
        v, _, to, arrival = self.sent[item]
        self._take(to, self.size[v], now)
        heapq.heappush(self.events, (arrival, 1, item))

    def _arrive(self, item: int, now: float) -> None:
        v, d, to, _ = self.sent[item]
        self._reached(v, to)
        self._drop(v, d)

    def _reached(self, v: int, d: int) -> None:
        for t in self.readers[v]:
            if self.place[t] == d:
                self.missing[t] -= 1
                if not self.missing[t]:
                    heapq.heappush(self.queue[d], (-self.priority[t], t))
