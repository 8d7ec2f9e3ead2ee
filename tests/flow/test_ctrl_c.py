"""Ctrl-C amid trainings: the trainers end, and what was proved is kept; a second one stops at once, and what was saved stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fourfold

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists() or len(os.sched_getaffinity(0)) < 2, reason="needs /proc and two cores")


def trainers(parent: int) -> set[int]:
    """The processes that train for `parent`."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = b"fourfold.jobs.optimize.crew" in (path / "cmdline").read_bytes()
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if ours and above == parent:
            found.add(int(path.name))
    return found


def running(pids: set[int]) -> set[int]:
    alive = set()
    for pid in pids:
        try:
            ours = b"fourfold.jobs.optimize.crew" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            ours = False
        alive |= {pid} if ours else set()
    return alive


@pytest.mark.slow                                                        # beside busy neighbours 40 s may end before a training begins
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_trainers_are_at_work(model: Path, reviews: Path, tmp_path: Path, times: int) -> None:
    out = tmp_path / "cheap"
    asked = ["--floor", "90%", "--budget", "40s", "--engines", "torch,onnxruntime", "--seed", "1", "--progress", "plain"]
    command = [sys.executable, "-m", "fourfold", "optimize", str(model), "--data", str(reviews), "--out", str(out), *asked]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen: set[int] = set()
    end = time.monotonic() + 600

    def begun() -> bool:
        """Whether a training is under way: begun by the journal, and not yet there."""
        lines = [line for path in (tmp_path / ".cheap.fourfold").glob("journal-*.jsonl") for line in path.read_text().splitlines()]
        keys = {str(json.loads(line).get("key", "")) for line in lines[:-1]}
        return any(key.startswith("budget:begin:") and key.removeprefix("budget:begin:") not in keys for key in keys)

    while process.poll() is None and time.monotonic() < end and not (seen and begun()):
        seen |= trainers(process.pid)
        time.sleep(0.1)
    assert process.poll() is None and running(seen), "no trainer was seen at work"
    saved = (out / "manifest.json").exists()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        seen |= trainers(process.pid)
    printed, said = process.communicate(timeout=900)
    assert process.returncode == 130, said
    assert not running(seen)
    if times == 1:
        assert "best so far" in said and (out / "report.json").exists() and "Interrupted" in printed
    assert saved <= (out / "manifest.json").exists()
    if (out / "manifest.json").exists():
        assert set(fourfold.load(out).predict(["flame word1 word2", "word3 river lake wave"])) <= {"water", "fire"}
    assert saved or times == 1 and json.loads((out / "report.json").read_text())["infeasible"]
