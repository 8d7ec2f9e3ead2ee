"""The question in arrays: a graph, a system, and what a plan of fusion, placement and order costs and may not do.

An answer gives each node a group (nodes of one group run as one kernel, a task), a device and a priority (a device takes the ready task of largest
priority; a task has the largest of its nodes). The cost is the simulator's (`cost/simulate` states its rules): seconds of a step ("latency"),
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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from fourfold.cost.simulate import Played, Tasks, Timeline, arrays, play, simulate
from fourfold.decisions.schedule import validate
from fourfold.decisions.schedule.bound import least
from fourfold.decisions.schedule.instance import ScheduleInstance
from fourfold.errors import Infeasible, InputError
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, OPAQUE, REDUCTION, VIEW, Builder, Graph, number
from fourfold.machine import Device, Link, Machine
from fourfold.problem import Problem

OBJECTIVES = {"latency": "s", "throughput": "s", "energy": "J", "memory": "B"}
_SHARED = ("prices", "seconds", "able", "free", "resident", "label", "classes", "fits", "stands", "space", "_returned")  # of graph and system


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

    def to_json(self) -> dict[str, object]:
        return {"group": self.group.tolist(), "place": self.place.tolist(), "priority": self.priority.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Answer:
        return cls(np.array(data["group"], np.int32), np.array(data["place"], np.int16), np.array(data["priority"], np.float64))


@dataclass(frozen=True, eq=False)
class Schedule(ScheduleInstance, Problem[Answer]):
    """A graph on a system. `group`, `place`, `priority` fix that part of the answer (a partition for `group`, whatever its numbers), so that fusion,
    placement and order can each be asked alone.

    `objective` latency, throughput, energy or memory; `most` and `streams` limit a fused group; `bounded` False drops the limit of memory.

    Raises InputError for an unknown objective, fixed parts of another length, ops that no device can run; Infeasible where parameters, inputs and
    constants fit no device, or not all devices together (which op, by how many bytes).
    """

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
        need = self.stands
        room = np.where(self.fits, np.array(limits), 0.0).max(axis=1)
        for c in np.flatnonzero(need > room)[:1]:
            nodes = np.flatnonzero(self.label == c)
            which = g.names[nodes[0]] + (f" and the {len(nodes) - 1} ops colocated with it" if len(nodes) > 1 else "")
            raise Infeasible(f"{which} needs {int(need[c]):,} bytes of parameters, inputs and constants, {int(need[c]) - int(room[c]):,} more than "
                             "any device that can run it has.", "Split it, use a larger device, or a smaller type.")

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

    def replace(self, **changes: object) -> Schedule:
        """A copy with other fields; what follows from graph and system alone is not worked out again."""
        if "graph" in changes or "system" in changes:
            return dataclasses.replace(self, **changes)
        made = object.__new__(type(self))
        for name in (*(one.name for one in dataclasses.fields(self)), *(name for name in _SHARED if name in self.__dict__)):
            object.__setattr__(made, name, getattr(self, name))
        for name, value in changes.items():
            if name not in self.__dataclass_fields__ or name == "_kept":
                raise TypeError(f"Schedule has no field {name!r}")
            object.__setattr__(made, name, value)
        made.__post_init__()
        return made

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
            tied = np.flatnonzero(label >= 0)
            _, first, back = np.unique(label[tied], return_index=True, return_inverse=True)
            first = tied[first][back.reshape(-1)]                       # the first node of the same label
            for n, one in zip(tied.tolist(), first.tolist(), strict=True) if (answer.place[tied] != answer.place[first]).any() else ():
                if answer.place[one] != answer.place[n]:
                    a, b = devices[answer.place[one]].name, devices[answer.place[n]].name
                    wrong.append(f"{g.names[n]} and {g.names[one]} are {what}, but on {b} and {a}")
        return wrong

    def _fusions(self, answer: Answer) -> list[str]:
        g, (task, count) = self.graph, number(answer.group, len(self.graph))
        returned = np.zeros(len(g.producer), bool)
        returned[g.outputs] = True
        found = validate.unsound(task, count, g.fusion, self.space, g.in_ptr, g.in_val, g.out_ptr, g.out_val, g.use_ptr, g.use_node, g.producer,
                               returned, self.most, self.streams)
        wrong = []
        for t in np.flatnonzero(found):
            nodes = np.flatnonzero(task == t).tolist()
            here = f"the group of {g.names[nodes[0]]} and {len(nodes) - 1} other op{'s' * (len(nodes) > 2)}"
            wrong += [f"{here} {what}" for what in self._unfit(nodes)] or [f"{here} breaks a rule of fusion"]
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
        stuck = validate.waits(task, count, src, dst)
        if not stuck.any():
            return []
        return [f"the groups of {g.names[int(np.argmax(stuck[task]))]} and {int(stuck.sum()) - 1} others wait for one another in a circle"]

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
        return self.figure(run)

    def figure(self, run: Played) -> float:
        """What a simulated run costs, in `unit`."""
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
        """A cost that no valid answer can beat, in `unit`; `bound.py` says why."""
        return self._least

    @cached_property
    def _least(self) -> float:
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
        return cls(graph, Machine("sample", tuple(devices), tuple(links)))


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


def replay(tasks: Tasks, place: np.ndarray, priority: np.ndarray, system: Machine) -> tuple[list[float], list[float], list[tuple[int, float]]]:
    """(start [T], finish [T], (bytes, when) at the fullest moment of each device): the simulator's rules once more, by another way.

    First when everything happens: events of one instant in the order ends, arrivals, transfers' starts, senders' wakings; then idle devices take
    tasks. Each thing that happens is a step. Then memory: the bytes of every value are on a device from one step to another; sorted and summed up.
    """
    count, devices, where = len(tasks), len(system), np.asarray(place, np.int64)
    routes = [system.route(a, b) for a in range(devices) for b in range(devices)]
    lanes = [np.array(route.lanes, np.int64) for route in routes]
    made = np.searchsorted(tasks.producer, np.arange(count + 1)).astype(np.int64)
    reader, value = tasks.use_task, np.repeat(np.arange(len(tasks.producer)), np.diff(tasks.use_ptr))
    by = np.argsort(reader, kind="stable")
    ptr = np.concatenate([[0], np.cumsum(np.bincount(reader, minlength=count))]).astype(np.int64)
    start, finish, started, ended, sent, source, target, left, arrived, moments = validate.times(
        where, np.asarray(priority, np.float64), tasks.seconds[np.arange(count), where], made, ptr, tasks.use_ptr, reader,
        tasks.size.astype(np.float64), np.concatenate([[0], np.cumsum([len(one) for one in lanes])]).astype(np.int64),
        np.concatenate(lanes), np.array([route.latency for route in routes]).reshape(devices, devices),
        np.array([route.bandwidth for route in routes]).reshape(devices, devices),
        np.array([not all(system.links[lane // 2].overlap for lane in route.lanes) for route in routes]), 2 * len(system.links))
    until = validate.last_needs(where, made, ptr, value[by], tasks.producer, tasks.base, tasks.keep, started, ended, sent, source, arrived, devices)
    owner = np.repeat(np.arange(len(tasks.fixed_size)), np.diff(tasks.fixed_ptr))
    held = np.unique(owner * devices + where[tasks.fixed_task])
    standing = np.bincount(held % devices, tasks.fixed_size[held // devices], devices).astype(np.int64)
    home = where[tasks.producer]
    device = np.concatenate([where, where, home, home, target, target])
    when = np.concatenate([started, ended, started[tasks.producer], until[np.arange(len(home)), home], left, until[sent, target]])
    change = np.concatenate([tasks.workspace, -tasks.workspace, tasks.hold, -tasks.hold, tasks.size[sent], -tasks.size[sent]])
    happens = (when >= 0) & (when < len(moments)) & (change != 0)
    device, when, change = device[happens], when[happens], change[happens]
    peak = []
    for d in range(devices):
        mine = np.flatnonzero(device == d)
        mine = mine[np.argsort(when[mine], kind="stable")]
        level = np.concatenate([[standing[d]], standing[d] + np.cumsum(change[mine])])
        top = int(np.argmax(level))
        peak.append((int(level[top]), float(moments[when[mine[top - 1]]]) if top else 0.0))
    return start.tolist(), finish.tolist(), peak
