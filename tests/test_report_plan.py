"""trace.json: well-formed Trace Event Format that says what the timeline says."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import planned
import pytest

from fourfold.decisions.schedule.heft import Heft
from fourfold.decisions.schedule.problem import Schedule
from fourfold.report import trace

Event = dict[str, Any]


def threads(events: list[Event], pid: int = trace.PREDICTED) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["pid"] == pid:
            found[event["tid"]].append(event)
    return found


def sound(document: dict[str, Any]) -> None:
    """The rules of the format that viewers rely on."""
    events = document["traceEvents"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    for event in events:
        assert event["ph"] in "XMCstf" and isinstance(event["name"], str) and isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert event["ph"] == "M" or event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0 and (event["pid"], event["tid"]) in named
    for pid in {event["pid"] for event in events}:
        for row in threads(events, pid).values():
            last = -1.0
            for event in sorted(row, key=lambda event: (event["ts"], event["ts"] + event["dur"])):
                assert event["ts"] >= last - 1e-6, "slices of a thread do not overlap"
                last = event["ts"] + event["dur"]
    steps: dict[tuple[int, Any], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            steps[event["pid"], event["id"]].append(event)
    for (pid, _), arrow in steps.items():
        assert [event["ph"] for event in arrow] == ["s", "t", "f"] and arrow[0]["ts"] <= arrow[1]["ts"] <= arrow[2]["ts"]
        for event in arrow:                                             # an arrow's end hangs on a slice that is there at that moment
            assert any(one["ts"] - 1e-3 <= event["ts"] <= one["ts"] + one["dur"] + 1e-3 for one in threads(events, pid)[event["tid"]])
    counters: dict[str, float] = {}
    for event in events:
        if event["ph"] == "C":
            assert event["ts"] >= counters.get(event["name"], 0.0)
            counters[event["name"]] = event["ts"]


@pytest.mark.parametrize("family, system", [("encoder_decoder", "p100x4"), ("moe", "p100x2"), ("cnn", "cpux2"), ("rnnlm", "v100x4")])
def test_the_trace_is_well_formed_and_adds_up(family: str, system: str) -> None:
    asked = planned.problem(family, 120, system=system)
    plan = planned.solved(asked, Heft())
    document, timeline = trace.trace(plan), plan.timeline()
    sound(document)
    events, place = document["traceEvents"], plan.of_tasks[0]
    rows = threads(events)
    tasks = [event for row in rows.values() for event in row if event["cat"] == "task"]
    assert len(tasks) == len(plan.tasks)
    for event in tasks:
        t = event["args"]["task"]
        assert event["tid"] == 1 + place[t] and event["ts"] == pytest.approx(timeline.start[t] * 1e6, abs=1e-3)
    for d in range(len(plan.system)):
        assert sum(event["dur"] for event in rows[1 + d]) == pytest.approx(timeline.busy[d] * 1e6, rel=1e-6, abs=0.01 * len(tasks))
    for link, busy in enumerate(timeline.link_busy):
        spent = sum(event["dur"] for lane in (2 * link, 2 * link + 1) for event in rows[trace.LANES + lane])
        assert spent == pytest.approx(busy * 1e6, rel=1e-6, abs=0.01 * len(tasks))
    assert len([event for event in events if event["ph"] == "s"]) == len(timeline.transfers)
    assert max(event["ts"] + event["dur"] for event in tasks) == pytest.approx(timeline.makespan * 1e6, abs=2e-3)


def test_memory_counters_reach_the_peak_and_nothing_above() -> None:
    plan = planned.solved(planned.problem("encoder_decoder", 200))
    peak = plan.timeline().peak_bytes
    held: dict[str, list[int]] = defaultdict(list)
    for event in trace.trace(plan)["traceEvents"]:
        if event["ph"] == "C":
            held[event["name"]].append(event["args"]["bytes"])
    assert [max(held[f"memory of {device.name}"]) for device in plan.system.devices] == peak.tolist()


def test_of_an_instant_the_highest_and_the_last_value_are_kept() -> None:
    at, held = np.array([0.0, 1.0, 1.0, 1.0, 2.0]), np.array([5, 7, 9, 6, 6])
    assert trace.telling(at, held).tolist() == [0, 2, 3, 4]
    assert trace.telling(at[:0], held[:0]).tolist() == []


def test_a_single_device_has_no_arrows(tmp_path: Path) -> None:
    asked = planned.problem("cnn", 40, system="p100x2")
    document = trace.trace(planned.of(asked, asked.baseline()))
    sound(document)
    assert not [event for event in document["traceEvents"] if event["ph"] in "stf"]


def test_names_that_need_escaping_survive(tmp_path: Path) -> None:
    name = 'a"b\\c</script>é\u2028'
    asked = planned.problem("cnn", 40, system="p100x2")
    plan = planned.of(Schedule(planned.renamed(asked.graph, name), asked.system), asked.baseline())
    document = json.loads(trace.write(plan, tmp_path).read_text(encoding="utf-8"))
    assert any(event.get("args", {}).get("op") == f"{name} 0" for event in document["traceEvents"])


def test_large_files_are_packed_and_only_one_is_left(tmp_path: Path) -> None:
    assert trace.save(b"{}", tmp_path, plain=10) == tmp_path / "trace.json"
    packed = trace.save(b'{"traceEvents":[]}', tmp_path, plain=10)
    assert packed.name == "trace.json.gz" and json.loads(gzip.decompress(packed.read_bytes())) == {"traceEvents": []}
    assert not (tmp_path / "trace.json").exists()
    trace.save(b"{}", tmp_path, plain=10)
    assert not packed.exists()


@pytest.mark.parametrize("compiled", [False, True])
def test_what_was_measured_stands_beside_what_was_predicted(compiled: bool, tmp_path: Path) -> None:
    plan = planned.solved(planned.problem("encoder_decoder", 120, system="cpux2"), Heft())
    execution = planned.executed(plan, compiled)
    document = json.loads(trace.write(plan, tmp_path, execution).read_text())
    events = document["traceEvents"]
    if not compiled:                                                    # regions as long as everything overlap nothing that hangs together
        sound(document)
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names[trace.PREDICTED].startswith("predicted: ") and names[trace.MEASURED].startswith("measured: ")
    tasks = [event for row in threads(events, trace.MEASURED).values() for event in row if event["cat"] == "task"]
    assert sum(event["args"]["tasks"] for event in tasks) == len(plan.tasks)
    assert document["otherData"]["measured_seconds"] == pytest.approx(2 * document["otherData"]["predicted_seconds"])
    if compiled:
        assert len(tasks) == len(execution.regions) and all(event["args"]["engine"] == "inductor" for event in tasks)
