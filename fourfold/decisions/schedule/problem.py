"""The question in arrays: a graph, a system, and what a plan of fusion, placement and order costs and may not do.

An answer gives each node a group (nodes of one group run as one kernel, a task), a device and a priority (a device takes the ready task of largest
priority; a task has the largest of its nodes). The cost is the simulator's (`cost/simulate.py` states its rules): seconds of a step ("latency"),
seconds of the busiest device or lane ("throughput": one step after another, pipelined), joules ("energy") or bytes at the fullest device ("memory").

What may be one group
 · an opaque op stays alone; at most `most` ops run as one, which read and hand on at most `streams` values (registers);
 · at most one contraction, without reductions beside it, that reads nothing the group computes (views aside): ops follow it, none is drawn into it;
 · all but views run over one iteration space: a node's number of elements divides the group's largest (what is broadcast or reduced included);
 · its parts hang together by values they pass on or both read, and no path leaves the group and comes back (the groups' graph has no cycle).
Written without looking at any solver.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from fourfold.cost.simulate import Arrays, Tasks, Timeline, arrays, number, play, simulate, tasks_of
from fourfold.decide import Problem
from fourfold.errors import Infeasible, InputError
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, INTERMEDIATE, OPAQUE, REDUCTION, VIEW, Builder, Graph
from fourfold.system import Device, Link, System

OBJECTIVES = {"latency": "s", "throughput": "s", "energy": "J", "memory": "B"}


@dataclass(frozen=True, eq=False)
class Answer:
    """`group` i4[N] (equal = one task), `place` i2[N] (device), `priority` f8[N] (larger first). Raises InputError where they are no such arrays."""

    group: np.ndarray
    place: np.ndarray
    priority: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in (("group", np.int32), ("place", np.int16), ("priority", np.float64)):
            given = np.asarray(getattr(self, name))
            if given.ndim != 1 or given.size and kind is not np.float64 and not np.issubdtype(given.dtype, np.integer):
                raise InputError(f"{name} of an answer is an array of {given.dtype} with {given.ndim} dimensions.", f"Give {kind.__name__}[N].")
            value = np.array(given, kind)
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.group)

    def to_json(self) -> dict[str, Any]:
        return {"group": self.group.tolist(), "place": self.place.tolist(), "priority": self.priority.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Answer:
        return cls(np.array(data["group"], np.int32), np.array(data["place"], np.int16), np.array(data["priority"], np.float64))


@dataclass(frozen=True, eq=False)
class Schedule(Problem[Answer]):
    """A graph on a system. `group`, `place`, `priority` fix that part of the answer (a partition for `group`, whatever its numbers), so that fusion,
    placement and order can each be asked alone.

    `objective` latency, throughput, energy or memory; `most` and `streams` limit a fused group; `bounded` False drops the limit of memory.

    Raises InputError for an unknown objective, fixed parts of another length, ops that no device can run; Infeasible where parameters, inputs and
    constants fit no device, or not all devices together (which op, by how many bytes).
    """

    graph: Graph
    system: System
    objective: str = "latency"
    group: np.ndarray | None = None
    place: np.ndarray | None = None
    priority: np.ndarray | None = None
    most: int = 64
    streams: int = 32
    bounded: bool = True
    _kept: dict[bytes, Tasks] = field(default_factory=dict, init=False, repr=False)

    question: ClassVar[str] = "schedule"
    lever: ClassVar[str] = "machine"
    rules: ClassVar[tuple[str, ...]] = ("memory",)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"There is no objective {self.objective!r}.", f"Choose one of: {', '.join(OBJECTIVES)}.")
        if not len(self.graph):
            raise InputError("The graph has no op to schedule.", "Capture a model that computes something.")
        object.__setattr__(self, "unit", OBJECTIVES[self.objective])
        for name, kind in (("group", np.int32), ("place", np.int16), ("priority", np.float64)):
            given = getattr(self, name)
            if given is not None:
                if np.shape(given) != (len(self.graph),):
                    raise InputError(f"The fixed {name} has shape {list(np.shape(given))} for {len(self.graph)} nodes.", "Give one number per node.")
                object.__setattr__(self, name, np.array(given, kind))
        for n in np.flatnonzero(~self.able.any(axis=1))[:1]:
            raise InputError(f"No device of {self.system.name!r} can run {self.graph.names[n]} ({self.graph.kinds[self.graph.kind[n]]}).",
                             "Add a device that can, or change `unsupported` in the machine file.")
        if self.bounded:
            self._fit()

    def _fit(self) -> None:
        """What stays resident must fit: that of each op (with its colocation class) on one device, all of it on all of them."""
        g, limits = self.graph, [device.memory for device in self.system.devices]
        if self.resident.sum() > sum(limits):
            raise Infeasible(f"Parameters, inputs and constants hold {int(self.resident.sum()):,} bytes, {int(self.resident.sum() - sum(limits)):,} "
                             f"more than the {len(limits)} devices of {self.system.name!r} together.",
                             "Use more or larger devices, or a smaller type.")
        for nodes in self.classes:
            need, room = self.standing(nodes), max((limits[d] for d in range(len(limits)) if self.able[nodes, d].all()), default=0.0)
            if need > room:
                which = g.names[nodes[0]] + (f" and the {len(nodes) - 1} ops colocated with it" if len(nodes) > 1 else "")
                raise Infeasible(f"{which} needs {need:,} bytes of parameters, inputs and constants, {need - int(room):,} more than any device that "
                                 "can run it has.", "Split it, use a larger device, or a smaller type.")

    # ---- what the rules and the solvers read

    @cached_property
    def seconds(self) -> np.ndarray:
        """f8[N, D] of each node alone; inf where the device cannot run it."""
        from fourfold.cost.roofline import seconds

        return seconds(self.graph, self.system)

    @cached_property
    def able(self) -> np.ndarray:
        """bool [N, D]."""
        return np.isfinite(self.seconds)

    @cached_property
    def free(self) -> np.ndarray:
        """bool [V]: values whose storage is there from the start (parameters, inputs, constants and views of them)."""
        return self.graph.role[self.graph.alias] != INTERMEDIATE

    @cached_property
    def resident(self) -> np.ndarray:
        """i8[R] bytes of each parameter, input and constant that some op reads."""
        roots = np.unique(self.graph.alias[self.graph.in_val[self.free[self.graph.in_val]]])
        return self.graph.size[roots]

    def standing(self, nodes: Sequence[int] | np.ndarray) -> int:
        """Bytes of parameters, inputs and constants that these nodes read, each once."""
        g = self.graph
        read = np.concatenate([g.inputs_of(int(n)) for n in nodes]) if len(nodes) else np.zeros(0, np.int32)
        return int(g.size[np.unique(g.alias[read[self.free[read]]])].sum())

    @cached_property
    def classes(self) -> tuple[np.ndarray, ...]:
        """Nodes that share a device: one array for each colocation class, one for each other node."""
        order = np.argsort(self.graph.colocation, kind="stable")
        tied = order[self.graph.colocation[order] >= 0]
        cuts = np.flatnonzero(np.diff(self.graph.colocation[tied])) + 1
        return (*([part for part in np.split(tied, cuts) if len(part)]), *(np.array([n]) for n in np.flatnonzero(self.graph.colocation < 0)))

    @cached_property
    def space(self) -> np.ndarray:
        """i8[N] elements that a node runs over: of its largest output or, where it is neither contraction nor gather, of what it reads that was
        computed or given."""
        g = self.graph
        elements = np.array([int(np.prod(g.shape[a:b])) for a, b in zip(g.shape_ptr[:-1].tolist(), g.shape_ptr[1:].tolist(), strict=True)], np.int64)
        wide = np.ones(len(g), np.int64)
        made = g.producer >= 0
        np.maximum.at(wide, g.producer[made], elements[made])
        reader = np.repeat(np.arange(len(g)), np.diff(g.in_ptr))
        counts = (g.role[g.alias[g.in_val]] < 2) & ~np.isin(g.fusion[reader], (CONTRACTION, GATHER))
        np.maximum.at(wide, reader[counts], elements[g.in_val[counts]])
        return wide

    def tasks(self, group: np.ndarray) -> Tasks:
        """The tasks that a partition makes, priced; the last few are kept."""
        key = np.asarray(group, np.int64).tobytes()
        if key not in self._kept:
            if len(self._kept) >= 4:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = tasks_of(self.graph, group, self.system)
        return self._kept[key]

    def plain(self, group: np.ndarray) -> Arrays:
        """`tasks` as arrays for kernels."""
        return arrays(self.tasks(group), self.system)

    def of_tasks(self, answer: Answer) -> tuple[Tasks, np.ndarray, np.ndarray]:
        """(tasks, place i2[T], priority f8[T]) of an answer: a task has the largest priority of its nodes."""
        tasks = self.tasks(answer.group)
        place, priority = np.zeros(len(tasks), np.int16), np.full(len(tasks), -np.inf)
        place[tasks.group] = answer.place
        np.maximum.at(priority, tasks.group, answer.priority)
        return tasks, place, priority

    def of_nodes(self, tasks: Tasks, place: np.ndarray, priority: np.ndarray) -> Answer:
        """The answer that gives each node what its task has."""
        return Answer(tasks.group, np.asarray(place, np.int16)[tasks.group], np.asarray(priority, np.float64)[tasks.group])

    def replace(self, **changes: Any) -> Schedule:
        """A copy with other fields."""
        return dataclasses.replace(self, **changes)

    def relaxed(self, rules: tuple[str, ...]) -> Schedule:
        return self.replace(bounded=False) if "memory" in rules and self.bounded else self

    def baseline(self) -> Answer:
        """Nothing fused, all on the device that runs the whole soonest (whether or not it holds it), first come first served in the graph's order."""
        nodes, total = len(self.graph), self.seconds.sum(axis=0)
        alone = np.nan_to_num(self.seconds, posinf=0.0).sum(axis=0) if np.isinf(total).all() else total
        place = np.full(nodes, int(np.argmin(alone)), np.int16) if self.place is None else self.place
        group = np.arange(nodes, dtype=np.int32) if self.group is None else self.group
        return Answer(group, place, -np.arange(nodes, dtype=np.float64) if self.priority is None else self.priority)

    # ---- what it may not do

    def violations(self, answer: Answer) -> list[str]:
        """Sentences: lengths, devices, priorities, fixed parts, unsupported ops, colocation, fusion, cycles, memory. Memory only where the rest
        holds.
        """
        first = self._form(answer) or [*self._fixed(answer), *self._places(answer), *self._fusions(answer)]
        return first or self._cycles(answer) or self._full(answer)

    def _form(self, answer: Answer) -> list[str]:
        nodes, devices = len(self.graph), len(self.system)
        if not len(answer.group) == len(answer.place) == len(answer.priority) == nodes:
            return [f"the answer has {len(answer.group)} groups, {len(answer.place)} places and {len(answer.priority)} priorities for {nodes} ops"]
        wrong = [f"{self.graph.names[n]} is on device {answer.place[n]}, but there are {devices}"
                 for n in np.flatnonzero((answer.place < 0) | (answer.place >= devices))]
        return wrong + [f"the priority of {self.graph.names[n]} is {answer.priority[n]}" for n in np.flatnonzero(~np.isfinite(answer.priority))]

    def _fixed(self, answer: Answer) -> list[str]:
        names, wrong = self.graph.names, []
        if self.group is not None:
            mine, given = number(answer.group, len(names))[0], number(self.group, len(names))[0]
            wrong += [f"{names[n]} is in group {mine[n]}, but fusion is fixed and puts it in {given[n]}" for n in np.flatnonzero(mine != given)]
        if self.place is not None:
            wrong += [f"{names[n]} is on device {answer.place[n]}, but placement is fixed to {self.place[n]}"
                      for n in np.flatnonzero(answer.place != self.place)]
        if self.priority is not None:
            wrong += [f"{names[n]} has priority {answer.priority[n]:g}, but the order is fixed to {self.priority[n]:g}"
                      for n in np.flatnonzero(answer.priority != self.priority)]
        return wrong

    def _places(self, answer: Answer) -> list[str]:
        g, devices = self.graph, self.system.devices
        wrong = [f"{g.names[n]} ({g.kinds[g.kind[n]]}) cannot run on {devices[answer.place[n]].name}"
                 for n in np.flatnonzero(~self.able[np.arange(len(g)), answer.place])]
        for what, label in (("colocated", g.colocation), ("fused", answer.group)):
            first: dict[int, int] = {}
            for n, one in enumerate(label.tolist()):
                if one >= 0 and answer.place[first.setdefault(one, n)] != answer.place[n]:
                    a, b = devices[answer.place[first[one]]].name, devices[answer.place[n]].name
                    wrong.append(f"{g.names[n]} and {g.names[first[one]]} are {what}, but on {b} and {a}")
        return wrong

    def _fusions(self, answer: Answer) -> list[str]:
        g, task = self.graph, number(answer.group, len(self.graph))[0]
        members: dict[int, list[int]] = {}
        for n, t in enumerate(task.tolist()):
            members.setdefault(t, []).append(n)
        wrong = []
        for nodes in members.values():
            if len(nodes) > 1:
                here = f"the group of {g.names[nodes[0]]} and {len(nodes) - 1} other op{'s' * (len(nodes) > 2)}"
                wrong += [f"{here} {what}" for what in self._unfit(nodes)]
        return wrong

    def _unfit(self, nodes: list[int]) -> Iterator[str]:
        """Why these nodes cannot run as one."""
        g, inside = self.graph, set(nodes)
        kinds: dict[int, list[int]] = {}
        for n in nodes:
            kinds.setdefault(int(g.fusion[n]), []).append(n)
        if OPAQUE in kinds:
            yield f"holds {g.names[kinds[OPAQUE][0]]}, which cannot be fused"
        if len(nodes) > self.most:
            yield f"has {len(nodes)} ops, {len(nodes) - self.most} more than a kernel may"
        heavy = kinds.get(CONTRACTION, [])
        if len(heavy) > 1:
            yield f"holds {len(heavy)} contractions, first {g.names[heavy[0]]} and {g.names[heavy[1]]}"
        if heavy and REDUCTION in kinds:
            yield f"holds the reduction {g.names[kinds[REDUCTION][0]]} beside the contraction {g.names[heavy[0]]}"
        for n in heavy:
            if computed := self._computed(n, inside):
                yield f"computes what its contraction {g.names[n]} reads, in {g.names[computed[0]]}"
        spaces = {int(self.space[n]): n for n in nodes if g.fusion[n] != VIEW}
        largest = max(spaces, default=1)
        odd = [n for wide, n in spaces.items() if wide and largest % wide]
        if odd:
            yield f"runs over {largest} elements, which the {int(self.space[odd[0]])} of {g.names[odd[0]]} do not divide"
        outside = self._outside(nodes, inside)
        if outside > self.streams:
            yield f"reads and hands on {outside} values, {outside - self.streams} more than there are registers for"
        parts = self._parts(nodes)
        if parts > 1:
            yield f"falls into {parts} parts that share no value"

    def _computed(self, node: int, inside: set[int]) -> list[int]:
        """Nodes of `inside`, views aside, that `node` reads from, directly or through views."""
        g, stack, seen, found = self.graph, [node], {node}, []
        while stack:
            for v in g.inputs_of(stack.pop()).tolist():
                made = int(g.producer[v])
                if made in inside and made not in seen:
                    seen.add(made)
                    (stack if g.fusion[made] == VIEW else found).append(made)
        return found

    def _outside(self, nodes: list[int], inside: set[int]) -> int:
        """Values that the group reads from elsewhere, and those of its own that others read or the program returns."""
        g = self.graph
        values = {int(v) for n in nodes for v in g.inputs_of(n) if int(g.producer[v]) not in inside}
        for n in nodes:
            values |= {int(v) for v in g.outputs_of(n) if v in self._returned or any(int(m) not in inside for m in g.readers_of(int(v)))}
        return len(values)

    @cached_property
    def _returned(self) -> frozenset[int]:
        return frozenset(self.graph.outputs.tolist())

    def _parts(self, nodes: list[int]) -> int:
        """Pieces of the group when nodes hang together by a value that one makes and another reads, or that both read."""
        g, parent = self.graph, {n: n for n in nodes}

        def find(n: int) -> int:
            while parent[n] != n:
                n = parent[n]
            return n

        first: dict[int, int] = {}
        for n in nodes:
            for v in [*g.inputs_of(n).tolist(), *g.outputs_of(n).tolist()]:
                parent[find(n)] = find(first.setdefault(v, n))
        return sum(parent[n] == n for n in nodes)

    def _cycles(self, answer: Answer) -> list[str]:
        g, (task, count) = self.graph, number(answer.group, len(self.graph))
        src, dst, _ = g.edges()
        pairs = {(a, b) for a, b in zip(task[src].tolist(), task[dst].tolist(), strict=True) if a != b}
        after: dict[int, list[int]] = {}
        waiting = [0] * count
        for a, b in pairs:
            after.setdefault(a, []).append(b)
            waiting[b] += 1
        ready = [t for t in range(count) if not waiting[t]]
        done = 0
        while ready:
            done += 1
            for t in after.get(ready.pop(), []):
                waiting[t] -= 1
                if not waiting[t]:
                    ready.append(t)
        if done == count:
            return []
        stuck = [n for n in range(len(g)) if waiting[task[n]]]
        return [f"the groups of {g.names[stuck[0]]} and {count - done - 1} others wait for one another in a circle"]

    def _full(self, answer: Answer) -> list[str]:
        if not self.bounded:
            return []
        _, _, peak = replay(*self.of_tasks(answer), self.system)
        return [f"{device.name} holds {bytes_:,} bytes at {when:.6g} s, {bytes_ - int(device.memory):,} more than its {int(device.memory):,}"
                for device, (bytes_, when) in zip(self.system.devices, peak, strict=True) if bytes_ > device.memory]

    # ---- what it costs

    def timeline(self, answer: Answer) -> Timeline:
        """What happens when the answer is carried out."""
        return simulate(*self.of_tasks(answer), self.system)

    def cost(self, answer: Answer) -> float:
        """In `unit`, by the simulator."""
        tasks, place, priority = self.of_tasks(answer)
        run = play(arrays(tasks, self.system), place, priority, False, False)
        if run.done < len(tasks):
            raise InputError(f"{len(tasks) - run.done} tasks wait for one another for ever.", "Choose groups whose graph has no cycle.")
        match self.objective:
            case "latency":
                return float(run.makespan)
            case "throughput":
                return float(max(run.busy.max(), run.lane_busy.max(initial=0.0)))
            case "energy":
                return float(run.joules)
            case _:
                return float(run.peak.max())

    def bound(self) -> float | None:
        """A cost that no valid answer can beat, in `unit`; `_bound.py` says why."""
        return self._least

    @cached_property
    def _least(self) -> float:
        from fourfold.decisions.schedule._bound import least

        return least(self)

    @classmethod
    def sample(cls, seed: int) -> Schedule:
        """Two or three devices, 5 to 12 ops with colocation, memory that one device may lack; valid, because the first device holds everything."""
        dice = np.random.default_rng(seed)
        graph = random_graph(dice, int(dice.integers(5, 13)))
        need = int(graph.size.sum())
        devices = [Device(f"dev{d}", "fake", {"float32": float(dice.choice([1e9, 2e9]))}, float(dice.choice([1e8, 4e8])), 1e-6,
                          float(need if d == 0 else dice.choice([need, need // 2])), 1.0, 10.0) for d in range(int(dice.integers(2, 4)))]
        links = [Link(a.name, b.name, 1e-6, float(dice.choice([1e7, 1e8]))) for i, a in enumerate(devices) for b in devices[i + 1:]]
        return cls(graph, System("sample", tuple(devices), tuple(links)))


def random_graph(dice: np.random.Generator, nodes: int, colocated: float = 0.2) -> Graph:
    """A random sound graph of ops of every fusion class; for samples and tests."""
    build = Builder(f"random {nodes}")
    shapes = [(8, 16), (8, 1), (4, 4), (8, 32)]
    values = [(build.input(shapes[int(dice.integers(2))], "float32"), 0)]
    for n in range(nodes):
        shape = shapes[int(dice.choice(4, p=[0.55, 0.15, 0.15, 0.15]))]
        fusion = int(dice.choice([OPAQUE, ELEMENTWISE, REDUCTION, CONTRACTION, VIEW, GATHER], p=[0.08, 0.4, 0.12, 0.25, 0.1, 0.05]))
        take = 1 if fusion == VIEW else int(dice.integers(1, 3))
        reads = [values[max(0, len(values) - 1 - int(dice.geometric(0.4)))][0] for _ in range(take)]
        weight = [build.parameter((16, int(dice.integers(1, 40))), "float32")] if fusion == CONTRACTION else []
        size = int(np.prod(shape))
        kind = ("aten.opaque", "aten.add", "aten.sum", "aten.mm", "aten.view", "aten.gather")[fusion]
        made = build.node(kind, [*reads, *weight], [(shape, "float32")],
                          flops=0.0 if fusion == VIEW else float(size * (200 if fusion == CONTRACTION else 2)), fusion=fusion,
                          colocation=int(dice.integers(3)) if dice.random() < colocated else -1, layer=4 * n // nodes)
        values.append((made[0], n))
    build.output(values[-1][0])
    return build.build()


def replay(tasks: Tasks, place: np.ndarray, priority: np.ndarray, system: System) -> tuple[list[float], list[float], list[tuple[int, float]]]:
    """(start [T], finish [T], (bytes, when) at the fullest moment of each device): the simulator's rules once more, slowly and plainly.

    Events of one instant happen in the order: ends, arrivals, transfers' starts, senders' wakings; then idle devices take tasks.
    """
    return _Replay(tasks, [int(d) for d in place], [float(p) for p in priority], system).run()


class _Replay:
    def __init__(self, tasks: Tasks, place: list[int], priority: list[float], system: System) -> None:
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
