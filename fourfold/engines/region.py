"""A region: tasks of one device that run between two transfers, as plain calls that any process can make, print as Python or hand to a compiler.

A node whose result shares the memory of a parameter or an input is free: every region that reads it makes its own, as the simulator has it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines.call import Call, Outs, Ref, Region, mapped, refs, values
from fourfold.errors import InputError
from fourfold.graph import INTERMEDIATE, Graph

if TYPE_CHECKING:
    from torch import fx


_PLAIN = (bool, int, str, type(None))


def free(graph: Graph) -> np.ndarray:
    """bool [V]: values that need no producer to have run before them elsewhere: given ones and views of them."""
    return graph.role[graph.alias] != INTERMEDIATE


def regions(graph: Graph, task: np.ndarray, place: np.ndarray, start: np.ndarray, *, whole: bool = False) -> list[Region]:
    """Cut the program into regions. `task` i4[N], `place` i[T] and simulated `start` f8[T]: every device runs its tasks by start.

    A region ends after a task whose value is sent, and before a task that needs a value which has not yet had to come. So every region receives
    before its first task and sends after its last, and as starts follow the dataflow, regions wait for one another in no circle. `whole`: all on
    one device.
    """
    given, count = free(graph), len(place)
    where = np.zeros(count, np.int64) if whole else np.asarray(place, np.int64)
    members: list[list[int]] = [[] for _ in range(count)]
    for n, t in enumerate(task.tolist()):
        members[t].append(n)
    order = sorted(range(count), key=lambda t: (float(start[t]), members[t][0]))
    order = _topological(graph, task, given, order, members)
    maker = np.where(graph.producer >= 0, task[graph.producer], -1)
    home = np.where(maker >= 0, where[maker], -1)
    readers: list[set[int]] = [set() for _ in range(len(graph.producer))]         # devices that read each value
    for n in range(len(graph)):
        for v in graph.inputs_of(n).tolist():
            readers[v].add(int(where[task[n]]))
    sent = {v: sorted(readers[v] - {int(home[v])}) for v in range(len(home)) if home[v] >= 0 and not given[v]}
    open_: dict[int, list[int]] = {}
    came: dict[int, set[int]] = {}
    cut: list[tuple[int, list[int]]] = []
    for t in order:
        d = int(where[t])
        mine = open_.setdefault(d, [])
        needs = {int(v) for n in members[t] for v in graph.inputs_of(n) if not given[v] and home[v] not in (-1, d)}
        if needs - came.setdefault(d, set()) and mine:
            cut.append((d, mine))
            mine = open_[d] = []
        came[d] |= needs
        mine.append(t)
        if any(sent.get(int(v)) for n in members[t] for v in graph.outputs_of(n)):
            cut.append((d, mine))
            open_[d] = []
    cut += [(d, mine) for d, mine in open_.items() if mine]
    rank = {t: i for i, t in enumerate(order)}
    cut.sort(key=lambda one: rank[one[1][0]])
    made = [_region(graph, k, d, tasks, members, given, home) for k, (d, tasks) in enumerate(cut)]
    return _joined(graph, made, sent, given, home)


def _topological(graph: Graph, task: np.ndarray, given: np.ndarray, order: list[int], members: Sequence[Sequence[int]]) -> list[int]:
    """`order` where it follows the dataflow; ties of equal start (tasks of no length) are put right."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    src, dst, value = graph.edges()
    counts = ~given[value] & (task[src] != task[dst])
    a, b = task[src[counts]].astype(np.int64), task[dst[counts]].astype(np.int64)
    if not (rank[a] > rank[b]).any():
        return order
    from fourfold.graph import topological

    back = [order[int(i)] for i in topological(len(order), rank[a], rank[b], [graph.names[members[t][0]] for t in order])]
    return back


def _region(graph: Graph, number: int, device: int, tasks: list[int], members: Sequence[Sequence[int]], given: np.ndarray, home: np.ndarray,
            ) -> Region:
    nodes: dict[int, int] = {}

    def emit(node: int, task: int) -> None:
        stack = [(node, False)]
        while stack:
            n, ready = stack.pop()
            if n in nodes:
                continue
            if ready:
                nodes[n] = task
                continue
            stack.append((n, True))
            stack += [(int(graph.producer[v]), False) for v in graph.inputs_of(n) if given[v] and graph.producer[v] >= 0]

    for t in tasks:
        for n in members[t]:
            emit(n, t)
    inside = {int(v) for n in nodes for v in graph.outputs_of(n)}
    outside = dict.fromkeys(int(v) for n in nodes for v in graph.inputs_of(n) if int(v) not in inside)
    weights = tuple(v for v in outside if graph.producer[v] < 0 and graph.role[v] >= 2)
    reads = tuple(v for v in outside if v not in set(weights))
    needs = tuple(v for v in reads if home[v] not in (-1, device))
    return Region(number, device, tuple(tasks), tuple(nodes.items()), reads, weights, tuple(sorted(inside)), needs=needs)


def _joined(graph: Graph, made: list[Region], sent: Mapping[int, list[int]], given: np.ndarray, home: np.ndarray) -> list[Region]:
    """What each region hands on, sends and may drop, now that all are known."""
    wanted: dict[int, set[int]] = {}                                    # value → regions that read it
    for region in made:
        for v in region.reads:
            wanted.setdefault(v, set()).add(region.number)
    outputs = {int(v) for v in graph.outputs}
    owner: dict[int, int] = {}
    for region in made:
        for n, task in region.nodes:
            if n in _own(graph, region, n, task):
                owner.update(dict.fromkeys((int(v) for v in graph.outputs_of(n)), region.number))
    last: dict[tuple[int, int], int] = {}
    for region in made:
        for v in (*region.reads, *region.makes):
            last[region.device, v] = region.number
    final = []
    for region in made:
        makes = tuple(v for v in region.makes if wanted.get(v, set()) - {region.number} and not given[v]
                      or v in outputs and owner.get(v) == region.number)
        sends = tuple((v, d) for v in makes for d in sent.get(v, ()))
        drops = tuple(v for v in (*region.reads, *makes) if last[region.device, v] == region.number and v not in outputs)
        final.append(replace(region, makes=makes, sends=sends, drops=drops))
    return final


def _own(graph: Graph, region: Region, node: int, task: int) -> tuple[int, ...]:
    """The node itself where the region holds the task that it belongs to."""
    return (node,) if task in region.tasks else ()


# ---- calls ---------------------------------------------------------------------------------------------------------------------------------------


def calls(program: Any, graph: Graph, region: Region) -> list[Call]:
    """The calls of a region. Raises InputError where a node cannot be carried to a process of its own."""
    if program.dialect == "torch":
        return [_torch_call(program, graph, node, task) for node, task in region.nodes]
    if program.dialect == "onnx":
        from fourfold.engines.onnx import call

        return [call(program, graph, node, task) for node, task in region.nodes]
    return [_step(program, graph, node, task) for node, task in region.nodes]


def _torch_call(program: Any, graph: Graph, node: int, task: int) -> Call:
    import torch
    from torch import fx

    made = program.nodes[node]

    def found(n: fx.Node) -> object:
        if n.op == "get_attr" and n not in program.values:
            owner: object = program.module
            for part in str(n.target).split("."):
                owner = getattr(owner, part)
            return owner
        several = [Ref(v) for v in program.values[n]]
        return several if isinstance(n.meta.get("val"), list | tuple) else several[0]

    def plain(part: object) -> Any:
        if isinstance(part, fx.Node):
            return found(part)
        if isinstance(part, list | tuple):
            return [plain(one) for one in part] if isinstance(part, list) else tuple(plain(one) for one in part)
        if isinstance(part, Mapping):
            return {key: plain(one) for key, one in part.items()}
        return part

    target = torch.ops.aten.reshape.default if made.target is torch.ops.aten.view.default else made.target
    outputs = iter(graph.outputs_of(node).tolist())
    kwargs = {key: plain(a) for key, a in made.kwargs.items()}
    return Call(task, node, target, tuple(plain(a) for a in made.args), kwargs, _outs(made.meta.get("val"), outputs))


def _outs(value: object, outputs: Iterator[int]) -> Outs:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_outs(part, outputs) for part in value]
    return next(outputs)


@dataclass(frozen=True)
class ProgramNode:
    """A node of a program that only its own process can run."""

    program: Any
    node: int
    reads: tuple[int, ...]

    def __call__(self, *tensors: object) -> tuple[object, ...]:
        return self.program.step(self.node, dict(zip(self.reads, tensors, strict=True)))


def _step(program: object, graph: Graph, node: int, task: int) -> Call:
    reads = tuple(graph.inputs_of(node).tolist())
    return Call(task, node, ProgramNode(program, node, reads), tuple(Ref(v) for v in reads), {}, graph.outputs_of(node).tolist())


# ---- as Python -----------------------------------------------------------------------------------------------------------------------------------


def printed(region: Region, made: Sequence[Call], weights: Mapping[int, object], *, mark: object = None, clock: Callable[[], float] | None = None,
            ) -> Callable[..., object]:
    """One Python function of the values in `region.reads`, which returns those in `region.makes`; every call a line, values dropped after their last
    use.

    `mark`: something whose item 0 is set to the task before it runs. With `clock`, it returns (values, times): the clock before each task and at the
    end.
    """
    space: dict[str, Any] = {f"w{v}": tensor for v, tensor in weights.items()}
    keep, last = {*region.makes}, {}
    for k, call in enumerate(made):
        for v in (*refs(call.args), *refs(call.kwargs)):
            last[v] = k
    inside = {v for call in made for v in values(call.outs)}

    def text(part: object) -> str:
        if isinstance(part, Ref):
            return f"w{part.value}" if part.value in weights else f"v{part.value}"
        if isinstance(part, list):
            return f"[{', '.join(text(one) for one in part)}]"
        if isinstance(part, tuple) and type(part) is tuple:
            return f"({', '.join(text(one) for one in part)}{',' * (len(part) == 1)})"
        if isinstance(part, _PLAIN) and type(part) in _PLAIN or isinstance(part, float) and isfinite(part):
            return repr(part)
        name = f"k{len(space)}"
        space[name] = part
        return name

    def result(outs: object) -> str:
        if isinstance(outs, list):
            return f"({', '.join(result(one) for one in outs)}{',' * (len(outs) == 1)})"
        return f"v{outs}" if outs is not None and (outs in keep or outs in last) else "_"

    functions: dict[int, str] = {}
    lines, before = [f"def region({', '.join(f'v{v}' for v in region.reads)}):"], None
    if clock is not None:
        lines.append(" stamps = []")
        space["clock"] = clock
    for k, call in enumerate(made):
        if call.task != before:
            before = call.task
            if mark is not None:
                space["at"] = mark
                lines.append(f" at[0] = {call.task}")
            if clock is not None:
                lines.append(" stamps.append(clock())")
        name = functions.setdefault(id(call.target), f"f{len(functions)}")
        space[name] = getattr(call.target, "_op", call.target) if hasattr(call.target, "_overloadname") else call.target
        args = [text(a) for a in call.args] + [f"{key}={text(a)}" for key, a in call.kwargs.items()]
        left = result(call.outs)
        lines.append(f" {left + ' = ' if left != '()' else ''}{name}({', '.join(args)})")
        gone = [v for v in dict.fromkeys((*refs(call.args), *refs(call.kwargs))) if last[v] == k and v in inside and v not in keep]
        if gone:
            lines.append(f" {' = '.join(f'v{v}' for v in gone)} = None")
    if clock is not None:
        lines.append(" stamps.append(clock())")
    back = f"({', '.join(f'v{v}' for v in region.makes)}{',' * (len(region.makes) == 1)})"
    lines.append(f" return {back}{', stamps' * (clock is not None)}")
    exec(compile("\n".join(lines), f"<region {region.number}>", "exec"), space)  # noqa: S102 — text that was printed above
    return space["region"]


def plain(made: Sequence[Call]) -> bool:
    """Whether every call is a torch operation, which a compiler can look into."""
    return not any(isinstance(call.target, ProgramNode) or getattr(call.target, "foreign", False) for call in made)


def module(region: Region, made: Sequence[Call], weights: Mapping[int, Any]) -> Any:
    """The region as an fx.GraphModule: weights are its buffers, inputs `region.reads`, answers `region.makes` as a tuple. Nodes carry `meta["task"]`.

    Raises InputError where a node is no torch operation.
    """
    from torch import fx, nn

    root, graph, at = nn.Module(), fx.Graph(), {}
    for v in region.reads:
        at[v] = graph.placeholder(f"v{v}")
    for v, tensor in weights.items():
        root.register_buffer(f"w{v}", tensor)
        at[v] = graph.get_attr(f"w{v}")
    for call in made:
        if not plain([call]):
            raise InputError(f"node {call.node} is no torch operation", "Run this region eagerly.")
        for k, part in enumerate((*call.args, *call.kwargs.values())):
            if isinstance(part, nn.Module):
                root.add_module(f"m{call.node}_{k}", part)
        given = [graph.get_attr(f"m{call.node}_{k}") if isinstance(a, nn.Module) else mapped(a, lambda x: at[x.value] if isinstance(x, Ref) else x)
                 for k, a in enumerate((*call.args, *call.kwargs.values()))]
        node = graph.call_function(call.target, tuple(given[: len(call.args)]), dict(zip(call.kwargs, given[len(call.args):], strict=True)))
        node.meta["task"] = call.task
        _bind(graph, node, call.outs, at)
    graph.output(tuple(at[v] for v in region.makes))
    return fx.GraphModule(root, graph)


def _bind(graph: fx.Graph, node: Any, outs: Any, at: dict[int, Any]) -> None:
    if isinstance(outs, list):
        for k, part in enumerate(outs):
            if values(part):
                _bind(graph, graph.call_function(operator.getitem, (node, k)), part, at)
    elif outs is not None:
        at[outs] = node

