"""trace.json: a plan's timeline in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open; the measured one beside it.

One process (row) is what the simulator predicts: a thread a device with a slice a task, a thread a direction of each link with a slice a transfer, an
arrow from the task that makes a value over its transfer to the first task that reads it there, a counter of memory a device. A second process is what
was measured. Times are microseconds with three decimals.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.cost.simulate import Timeline
from fourfold.report.json import replace
from fourfold.report.modules import label, lanes, members

if TYPE_CHECKING:
    from fourfold.plans import Plan

PREDICTED, MEASURED = 1, 2                                              # process numbers
LANES = 1000                                                            # thread of lane 0; devices are threads 1, 2, …
PLAIN = 20_000_000                                                      # bytes: from here on the file is packed
Event = dict[str, Any]


def write(plan: Plan, folder: Path | str, execution: object = None) -> Path:
    """Write trace.json into `folder`, or trace.json.gz where it is 20 MB or more (Perfetto reads both). Returns the file's path."""
    text = json.dumps(trace(plan, execution), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return save(text.encode("utf-8", "replace"), Path(folder))


def save(data: bytes, folder: Path, plain: int = PLAIN) -> Path:
    """One of trace.json and trace.json.gz; the other, from an earlier writing, is removed."""
    path, other = folder / "trace.json", folder / "trace.json.gz"
    if len(data) >= plain:
        path, other, data = other, path, gzip.compress(data, 3, mtime=0)
    replace(path, data)
    other.unlink(missing_ok=True)
    return path


def trace(plan: Plan, execution: Any = None) -> dict[str, object]:
    """The document: `traceEvents`, slices sorted by time within each thread, `displayTimeUnit`, and the plan's figures in `otherData`."""
    timeline = plan.timeline(memory=True)
    events = predicted(plan, timeline)
    if execution is not None:
        events += measured(plan, execution)
    return {"traceEvents": events, "displayTimeUnit": "ms",
            "otherData": {"graph": plan.graph.name, "hash": plan.graph.hash, "system": plan.system.name, "ops": len(plan.graph),
                          "tasks": len(plan.tasks), "predicted_seconds": timeline.makespan,
                          **({"measured_seconds": float(execution.seconds)} if execution is not None else {})}}


def predicted(plan: Plan, timeline: Timeline) -> list[Event]:
    """Slices, arrows and counters of a simulated timeline."""
    graph = plan.graph
    nodes = members(plan.tasks.group, len(plan.tasks))
    place, _ = plan.of_tasks
    events = _heads(PREDICTED, f"predicted: {graph.name or 'graph'} on {plan.system.name}", plan)
    start, finish = _micro(timeline.start), _micro(timeline.finish)
    waited = _micro(timeline.start - timeline.ready)
    for t in np.lexsort((timeline.finish, timeline.start, place)).tolist():
        events.append({"ph": "X", "pid": PREDICTED, "tid": 1 + int(place[t]), "ts": start[t], "dur": _round(finish[t] - start[t]),
                       "name": label(graph, nodes[t]), "cat": "task", "args": {**_told(plan, nodes[t], t), "waited_us": waited[t]}})
    return events + _sent(plan, place, timeline) + _memory(plan, timeline)


def _told(plan: Plan, nodes: list[int], task: int) -> Event:
    graph, first = plan.graph, nodes[0]
    return {"op": graph.names[first], "module": graph.modules[first], "task": task, "ops": len(nodes),
            "flops": float(graph.flops[nodes].sum()), "bytes": int(graph.reads[nodes].sum() + graph.writes[nodes].sum())}


def _sent(plan: Plan, place: np.ndarray, timeline: Timeline) -> list[Event]:
    """Transfers: a slice on every lane of the route (and on the sender, where it copies itself), and an arrow through the first lane."""
    tasks, system, sent = plan.tasks, plan.system, timeline.transfers
    if not len(sent):
        return []
    pairs = {(int(a), int(b)): system.route(int(a), int(b)) for a, b in zip(sent.source, sent.target, strict=True)}
    copying = {pair for pair, route in pairs.items() if not all(system.links[lane // 2].overlap for lane in route.lanes)}
    rate = np.array([pairs[a, b].bandwidth for a, b in zip(sent.source.tolist(), sent.target.tolist(), strict=True)])
    begun, asked, arrived, end = (_micro(at) for at in (sent.start, sent.asked, sent.finish, sent.start + tasks.size[sent.value] / rate))
    middle = _micro((timeline.start + timeline.finish) / 2)
    reader = first_readers(plan, place, timeline)
    slices: list[Event] = []
    arrows: list[Event] = []
    for x, (v, a, b) in enumerate(zip(sent.value.tolist(), sent.source.tolist(), sent.target.tolist(), strict=True)):
        maker = int(tasks.producer[v])
        threads = [LANES + lane for lane in pairs[a, b].lanes] + [1 + a] * ((a, b) in copying)
        told = {"bytes": int(tasks.size[v]), "from": system.devices[a].name, "to": system.devices[b].name, "waited_us": _round(begun[x] - asked[x]),
                "arrives_us": arrived[x]}
        slices += [{"ph": "X", "pid": PREDICTED, "tid": tid, "ts": begun[x], "dur": _round(end[x] - begun[x]), "cat": "transfer",
                    "name": f"{tasks.name(maker)} to {system.devices[b].name}", "args": told} for tid in dict.fromkeys(threads)]
        ends = (("s", 1 + a, middle[maker]), ("t", threads[0], (begun[x] + end[x]) / 2), ("f", 1 + b, middle[reader[v, b]]))
        arrows += [{"ph": ph, "pid": PREDICTED, "tid": tid, "ts": _round(at), "id": x, "name": "value", "cat": "value",
                    **({"bp": "e"} if ph == "f" else {})} for ph, tid, at in ends]
    return sorted(slices, key=lambda event: (event["tid"], event["ts"])) + arrows


def first_readers(plan: Plan, place: np.ndarray, timeline: Timeline) -> dict[tuple[int, int], int]:
    """(value, device) → the task that reads it there first."""
    tasks = plan.tasks
    value = np.repeat(np.arange(len(tasks.producer)), np.diff(tasks.use_ptr))
    order = np.argsort(-timeline.start[tasks.use_task], kind="stable")   # the first to start is written last, and stays
    reader = tasks.use_task[order]
    return dict(zip(zip(value[order].tolist(), place[reader].tolist(), strict=True), reader.tolist(), strict=True))


def _memory(plan: Plan, timeline: Timeline) -> list[Event]:
    events: list[Event] = []
    for device, (at, held) in zip(plan.system.devices, timeline.memory, strict=True):
        keep = telling(at, held)
        events += [{"ph": "C", "pid": PREDICTED, "tid": 0, "ts": ts, "name": f"memory of {device.name}", "args": {"bytes": size}}
                   for ts, size in zip(_micro(at[keep]), held[keep].tolist(), strict=True)]
    return events


def telling(at: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Positions of a memory curve worth keeping: of each instant its highest value, where it is above the last, and its last."""
    if not len(at):
        return np.zeros(0, np.int64)
    first = np.flatnonzero(np.concatenate([[True], np.diff(at) > 0]))
    last = np.concatenate([first[1:], [len(at)]]) - 1
    top = np.maximum.reduceat(held, first)
    instant = np.cumsum(np.concatenate([[True], np.diff(at) > 0])) - 1
    high = np.flatnonzero((held == top[instant]) & (held > held[last][instant]))
    return np.sort(np.concatenate([last, high]))


def measured(plan: Plan, execution: Any) -> list[Event]:
    """Slices and arrows of an `Execution` (runtime/local/executor.py): its median run. Tasks that a compiled region ran as one share a slice."""
    graph = plan.graph
    nodes = members(plan.tasks.group, len(plan.tasks))
    events = _heads(MEASURED, f"measured: {graph.name or 'graph'}, {execution.placement}, median of {len(execution.runs)} runs", plan)
    start, finish = _micro(execution.start), _micro(execution.finish)
    where: dict[int, int] = {}
    for region in execution.regions:
        where.update(dict.fromkeys(region.tasks, region.device))
        spans: dict[tuple[float, float], list[int]] = {}
        for t in region.tasks:
            if np.isfinite(execution.start[t]) and np.isfinite(execution.finish[t]):
                spans.setdefault((start[t], finish[t]), []).append(t)
        for (at, end), tasks in sorted(spans.items()):
            ops = sorted(n for t in tasks for n in nodes[t])
            told = {**_told(plan, ops, tasks[0]), "tasks": len(tasks), "region": region.number, "engine": region.engine}
            events.append({"ph": "X", "pid": MEASURED, "tid": 1 + region.device, "ts": at, "dur": _round(max(end - at, 0.0)),
                           "name": label(graph, ops), "cat": "task", "args": told})
    return events + _carried(plan, execution, where)


def _carried(plan: Plan, execution: Any, where: dict[int, int]) -> list[Event]:
    """Measured transfers and their arrows."""
    graph, system = plan.graph, plan.system
    middle = _micro((np.asarray(execution.start) + np.asarray(execution.finish)) / 2)
    slices: list[Event] = []
    arrows: list[Event] = []
    for x, sent in enumerate(execution.transfers):
        at, end = _micro(np.array([sent.start, sent.finish]))
        maker, lane = int(graph.producer[sent.value]), LANES + system.route(sent.source, sent.target).lanes[0]
        told = {"bytes": sent.bytes, "from": system.devices[sent.source].name, "to": system.devices[sent.target].name}
        slices.append({"ph": "X", "pid": MEASURED, "tid": lane, "ts": at, "dur": _round(max(end - at, 0.0)), "cat": "transfer",
                       "name": f"{graph.names[maker] if maker >= 0 else 'input'} to {told['to']}", "args": told})
        readers = {int(plan.tasks.group[n]) for n in graph.readers_of(sent.value).tolist()}
        there = [t for t in readers if where.get(t) == sent.target and middle[t] >= (at + end) / 2]
        made = int(plan.tasks.group[maker]) if maker >= 0 else -1
        if there and made >= 0 and middle[made] <= (at + end) / 2:
            ends = (("s", 1 + sent.source, middle[made]), ("t", lane, (at + end) / 2), ("f", 1 + sent.target, min(middle[t] for t in there)))
            arrows += [{"ph": ph, "pid": MEASURED, "tid": tid, "ts": _round(when), "id": f"m{x}", "name": "value", "cat": "measured value",
                        **({"bp": "e"} if ph == "f" else {})} for ph, tid, when in ends]
    return sorted(slices, key=lambda event: (event["tid"], event["ts"])) + arrows


def _heads(pid: int, title: str, plan: Plan) -> list[Event]:
    """Names and order of a process and its threads."""
    threads = [(1 + d, device.name) for d, device in enumerate(plan.system.devices)]
    threads += [(LANES + lane, name) for lane, name in lanes(plan.system)]
    events: list[Event] = [{"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": title}},
                           {"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}}]
    for tid, name in threads:
        events += [{"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}},
                   {"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}]
    return events


def _micro(seconds: np.ndarray) -> list[float]:
    """Microseconds, rounded to a nanosecond; rounding keeps order, so slices that follow one another still do."""
    return np.round(np.asarray(seconds, float) * 1e6, 3).tolist()


def _round(value: float) -> float:
    return round(value, 3)
