"""A plan of memory for its readers: what order and repeats save, module by module, and what stays outside of the arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.graph import INPUT, Graph
from fourfold.report import format
from fourfold.report.allocate import size, write
from fourfold.report.modules import label, named

if TYPE_CHECKING:
    from fourfold.decisions.allocate.problem import Allocate
    from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
    from fourfold.problem import Solution

_TOLD = 8                                                               # modules that are told of


@dataclass(frozen=True)
class Again:
    """What one module computes again: its `path`, `ops` in words, how many `runs` beyond the first, `seconds` that they take, and `saved` bytes: how
    much higher the peak would be without them, all else as planned.
    """

    path: str
    ops: str
    runs: int
    seconds: float
    saved: int

    def to_json(self) -> dict[str, object]:
        return {"module": self.path, "ops": self.ops, "runs": self.runs, "seconds": self.seconds, "saved": self.saved}


def again(problem: Rematerialise, answer: Rematerialisation) -> list[Again]:
    """A row for each module in which something is computed again, those that save most first. Effects do not add up: repeats lean on one another."""
    graph, sequence = problem.graph, answer.sequence
    seen, extra = set[int](), list[int]()
    for s, n in enumerate(sequence.tolist()):
        if n < len(graph) and n in seen and not problem.viewing[n]:
            extra.append(s)
        seen.add(n)
    groups: dict[str, list[int]] = {}
    for s in extra:
        groups.setdefault(place(graph, int(sequence[s])), []).append(s)
    now = _live(problem, sequence)
    found = []
    for path, steps in groups.items():
        nodes = sequence[steps].tolist()
        without = _live(problem, np.delete(sequence, steps))
        found.append(Again(path, label(graph, sorted(set(nodes))), len(steps), float(problem.price[nodes].sum()), max(0, without - now)))
    return sorted(found, key=lambda row: (-row.saved, -row.seconds, row.path))


@dataclass(frozen=True)
class Moved:
    """What one module keeps in the second memory: its `path`, what makes the values in words, how many `fetches`, `size` bytes of the values, `price`
    of all copies in s or J, and `saved` bytes: how much higher the peak would be without them, all else as planned.
    """

    path: str
    ops: str
    fetches: int
    size: int
    price: float
    saved: int

    def to_json(self) -> dict[str, Any]:
        return {"module": self.path, "ops": self.ops, "fetches": self.fetches, "bytes": self.size, "price": self.price, "saved": self.saved}


def moved(problem: Rematerialise, answer: Rematerialisation) -> list[Moved]:
    """A row for each module of whose values some are copied to the second memory, those that save most first."""
    graph, sequence, groups = problem.graph, answer.sequence, dict[str, list[int]]()
    for v in answer.away.tolist():
        groups.setdefault(place(graph, int(graph.producer[v])), []).append(v)
    now, found = _live(problem, sequence) if groups else 0, []
    for path, values in groups.items():
        steps = np.flatnonzero(np.isin(sequence, len(graph) + np.array(values)))
        price = float(problem.transfer[sequence[steps] - len(graph)].sum() + problem.transfer[values].sum())
        without = _live(problem, np.delete(sequence, steps))
        found.append(Moved(path, label(graph, sorted({int(graph.producer[v]) for v in values})), len(steps), int(problem.size[values].sum()), price,
                           max(0, without - now)))
    return sorted(found, key=lambda row: (-row.saved, -row.size, row.path))


def amount(problem: Rematerialise, price: float) -> str:
    """A price in words: "0.8 ms" or "0.02 J"."""
    return format.span(price) if problem.unit == "s" else f"{price:.3g} J"


def _live(problem: Rematerialise, sequence: np.ndarray) -> int:
    """Most bytes alive at a time in a sequence of nodes, views taken wherever they are needed."""
    from fourfold.decisions.rematerialise._lives import measure

    return measure(problem.linked, problem.collapse(sequence))[0]


def needs_most(problem: Rematerialise) -> tuple[str, int]:
    """(the op that needs most bytes for what it reads and makes, in words; those bytes)."""
    from fourfold.decisions.rematerialise.bound import node_bytes

    need = node_bytes(problem.core)
    at = int(np.argmax(need))
    return op(problem.graph, int(problem.core.node[at])), int(need[at])


def op(graph: Graph, node: int) -> str:
    """A node in words: "layer_norm of blocks.3.n1"; one that belongs to no module by its name."""
    where = place(graph, node)
    return f"{label(graph, [node])} of {named(where)}" if where else f"{label(graph, [node])} ({graph.names[node]})"


def place(graph: Graph, node: int) -> str:
    """The module of a node, its layer where it has no module, "" where it has neither."""
    return graph.modules[node] or (f"layer {graph.layer[node]}" if graph.layer[node] >= 0 else "")


def sentences(problem: Rematerialise, facts: Mapping[str, Any], rows: Sequence[Again], carried: Sequence[Moved] = ()) -> list[str]:
    """What was decided and what it costs. `facts`: peaks of the stages ("offsets", "ordered", "planned"), "outside", "worst", "straight",
    "computing", "seconds" planned and of one run of everything, "measured".
    """
    runs, graph = sum(row.runs for row in rows), problem.graph
    price = "measured" if facts["measured"] else "modelled"
    said = [_joined(facts, runs, price)]
    for row in rows[:_TOLD]:
        what = f"{row.ops} of {named(row.path)}" if row.path else row.ops
        gain = f"{size(row.saved)} less" if row.saved else "no less by itself"
        times = f", {row.runs} runs in all" if row.runs > row.ops.count("+") + 1 else ""
        said.append(f"Computed again: {what}{times}: {gain} for {amount(problem, row.seconds)}.")
    if len(rows) > _TOLD:
        rest = rows[_TOLD:]
        spent = amount(problem, sum(row.seconds for row in rest))
        said.append(f"Computed again: ops of {len(rest)} more module{'s' * (len(rest) != 1)}, for {spent}.")
    said += _carried(problem, facts, carried)
    most, need = needs_most(problem)
    said.append(f"The op that needs most is {most}: {size(need)} for what it reads and makes. No plan takes less than {size(problem.least_peak())}.")
    if facts["straight"] is not None:
        worst = f"; the largest temporary outside is {size(facts['outside'])}, of {facts['worst']}" if facts["outside"] else ""
        said.append(f"{facts['straight']:,} of {facts['computing']:,} ops write straight into the arena{worst}.")
    fed = int(graph.size[(graph.role != 0) & (graph.alias == np.arange(len(graph.alias)))].sum())
    given = int(graph.size[graph.role == INPUT].sum())
    said.append(f"Weights and inputs ({size(fed)}, {size(given)} of it inputs) lie outside of the arena.")
    return said


def _carried(problem: Rematerialise, facts: Mapping[str, Any], rows: Sequence[Moved]) -> list[str]:
    """What goes to the second memory, and what it gives."""
    if "far" not in facts:
        return []
    memory, used = facts["far"]["memory"], facts["far"]["used"]
    if not rows:
        return [f"Nothing is copied to {memory['name']}: keeping or computing again is cheaper than its link."]
    name = memory["name"][0].upper() + memory["name"][1:]
    said = [f"{name} holds {size(used)} of {size(memory['room'])} at most; {facts['far']['fetches']:,} fetches over a link of "
            f"{memory['bandwidth'] / 1e9:.3g} GB/s."]
    for row in rows[:_TOLD]:
        what = f"{row.ops} of {named(row.path)}" if row.path else row.ops
        gain = f"{size(row.saved)} less" if row.saved else "no less by itself"
        said.append(f"Offloaded: what {what} makes, {size(row.size)}: {gain} for {amount(problem, row.price)}.")
    if len(rows) > _TOLD:
        rest = rows[_TOLD:]
        said.append(f"Offloaded: values of {len(rest)} more module{'s' * (len(rest) != 1)}, {size(sum(row.size for row in rest))}, for "
                    f"{amount(problem, sum(row.price for row in rest))}.")
    return said


def _joined(facts: Mapping[str, Any], runs: int, price: str) -> str:
    peaks, seconds, plain = facts["peaks"], facts["seconds"], facts["once"]
    parts = [f"Offsets alone need {size(peaks['offsets'])}"]
    if peaks["ordered"] is not None and peaks["ordered"] < 0.999 * peaks["offsets"]:
        parts.append(f"in another order of the ops it is {size(peaks['ordered'])}")
    if runs:
        took = f"{format.span(seconds)} instead of {format.span(plain)}, {price} op by op"
        more = f"{100 * (seconds / plain - 1):.1f} % more time ({took})" if plain else "no time"
        parts.append(f"with {runs:,} op{'s' * (runs != 1)} computed again {size(peaks['planned'])}, for {more}")
    elif facts.get("far", {}).get("fetches"):
        more = 100 * (seconds / plain - 1) if plain else 0.0
        parts.append(f"with {facts['far']['fetches']:,} values fetched from the second memory {size(peaks['planned'])}, for {more:.1f} % more time")
    elif peaks["planned"] not in (peaks["offsets"], peaks["ordered"]):
        parts.append(f"the plan takes {size(peaks['planned'])}, and computes nothing again")
    return "; ".join(parts) + "."


# ---- the page

@dataclass(frozen=True)
class MemoryMap:
    """What the page of a plan of memory shows: each value that a step makes as a buffer over steps, at its offset (`report/allocate.py` draws it)."""

    problem: Allocate
    solution: Solution[np.ndarray]
    table: tuple[Mapping[str, object], ...]
    workload: Mapping[str, object]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def offsets(self) -> np.ndarray:
        return self.solution.answer


def memory_map(problem: Rematerialise, answer: Rematerialisation, told: Mapping[str, Any]) -> MemoryMap:
    """Buffers of a plan; `told`: the solution as a plan keeps it. The bound shown is that of offsets for this sequence."""
    from fourfold.decisions.allocate.instance import Buffers
    from fourfold.decisions.allocate.problem import Allocate
    from fourfold.decisions.rematerialise._lives import lives
    from fourfold.problem import Solution, appraise, gap

    g, found, seen, ids = problem.graph, lives(problem, answer.sequence), set[int](), list[str]()
    for step, value in zip(found.step.tolist(), found.value.tolist(), strict=True):
        ids.append(f"{g.labels[value] or f'value {value}'}{', again' if value in seen else ''} (step {step})")
        seen.add(value)
    modules = tuple(g.modules[int(g.producer[v])] for v in found.value.tolist())
    distinct = tuple(f"{name} {k}" if ids.count(name) > 1 else name for k, name in enumerate(ids)) if len(set(ids)) < len(ids) else tuple(ids)
    buffers = Buffers(distinct, found.lower, found.upper, found.size, alignment=np.full(len(ids), 64), modules=modules)
    asked = Allocate(buffers if told["limit"] is None else buffers.limited(int(told["room"])))
    cost, bound, (before, why) = asked.cost(answer.offset), float(asked.bound()), appraise(asked, asked.baseline())
    table = tuple({**row, "cost": row["peak"]} for row in told["table"])
    bound = min(bound, cost)
    solution = Solution("allocate", str(told["solver"]), answer.offset, cost, "B", before, why, bound, gap(cost, bound), (), 0.0, 0)
    return MemoryMap(asked, solution, table, {"name": g.name}, tuple(told["sentences"]), tuple(told["notes"]))


def write_page(problem: Rematerialise, answer: Rematerialisation, told: Mapping[str, object], file: Path) -> Path:
    """Write the page of a plan of memory."""
    return write(memory_map(problem, answer, told), file)
