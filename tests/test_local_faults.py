"""What goes wrong while a plan runs: a worker that raises, is killed, hangs; Ctrl-C. Nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourfold.errors import FourfoldError
from fourfold.frontends.capture import capture
from fourfold.machine import Machine
from fourfold.plans import Plan
from fourfold.program import Captured
from fourfold.runtime.local.executor import Local, execute


class Lookup(nn.Module):
    """An index out of range makes the second half raise."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.table(x + 1)))


def planned(found: Captured, place: Any) -> Plan:
    count = len(found.graph)
    order = -np.arange(count, dtype=float)
    return Plan(found.graph, Machine.here(2), "latency", np.arange(count), np.asarray(place, np.int16), order, "test", 1.0, "s")


@pytest.fixture(scope="module")
def net() -> Captured:
    torch.manual_seed(0)
    return capture(Lookup().eval(), (torch.zeros(4, dtype=torch.long),))


def after(found: Captured, op: str) -> np.ndarray:
    """0 before the op of that name, 1 from there on."""
    at = next(n for n, name in enumerate(found.graph.names) if op in name)
    return (np.arange(len(found.graph)) >= at).astype(int)


def nothing_left(pids: list[int]) -> None:
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    shared = Path("/dev/shm")
    assert not shared.exists() or not [f for f in shared.iterdir() if f.name.startswith(("psm_", "fourfold"))]


def pids(ready: Local) -> list[int]:
    return [worker.process.pid for worker in ready.pool.workers]


def test_an_exception_names_device_and_task(net: Captured) -> None:
    plan, ids = planned(net, after(net, "embedding")), torch.zeros(4, dtype=torch.long)
    with Local(plan, net.program, (ids,)) as ready:
        ready.run()
        left = pids(ready)
        ids.fill_(99)
        with pytest.raises(FourfoldError, match="worker of cpu1 failed at embedding: IndexError"):
            ready.run()
    nothing_left(left)
    for place in (after(net, "embedding"), np.zeros(len(net.graph))):   # seen before any worker is asked
        with pytest.raises(FourfoldError, match=r"cpu\d failed at embedding: IndexError"):
            execute(planned(net, place), net.program, (ids,), repeat=1)


def test_a_killed_worker_is_named_and_nothing_stays(net: Captured) -> None:
    with Local(planned(net, after(net, "relu")), net.program, (torch.zeros(4, dtype=torch.long),)) as ready:
        ready.run()
        left = pids(ready)
        os.kill(left[0], signal.SIGKILL)
        with pytest.raises(FourfoldError, match=r"worker of cpu1 was killed \(SIGKILL\) at "):
            for _ in range(3):
                ready.run()
    nothing_left(left)


def test_a_hanging_worker_is_named_and_ended(net: Captured) -> None:
    with Local(planned(net, after(net, "relu")), net.program, (torch.zeros(4, dtype=torch.long),), limit=1.0) as ready:
        ready.run()
        left = pids(ready)
        os.kill(left[0], signal.SIGSTOP)
        with pytest.raises(FourfoldError, match=r"within 1 s: cpu1 at "):
            ready.run()
    nothing_left(left)


@pytest.mark.slow
def test_a_worker_outlives_no_main_process(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time, torch, numpy as np
        sys.path[:0] = [{tests!r}]
        from test_local_faults import Lookup, after, planned, pids
        from fourfold.frontends.capture import capture
        from fourfold.runtime.local.executor import Local
        found = capture(Lookup().eval(), (torch.zeros(4, dtype=torch.long),))
        with Local(planned(found, after(found, "relu")), found.program, (torch.zeros(4, dtype=torch.long),)) as ready:
            ready.run()
            print(*pids(ready), flush=True)
            while True:
                ready.run()
    """).format(tests=str(Path(__file__).parent))
    for how in (signal.SIGKILL, signal.SIGINT):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                 start_new_session=True)
        assert child.stdout is not None
        left = [int(pid) for pid in child.stdout.readline().split()]
        assert left
        (os.killpg if how == signal.SIGINT else os.kill)(child.pid, how)
        child.wait(600)
        for _ in range(3000):
            if not any(Path(f"/proc/{pid}").exists() for pid in left):
                break
            time.sleep(0.1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_threads_of_the_caller_are_not_confused(net: Captured) -> None:
    """Two plans at once, in two threads."""
    plan, inputs, found = planned(net, after(net, "relu")), (torch.zeros(4, dtype=torch.long),), []

    def go() -> None:
        found.append(execute(plan, net.program, inputs, repeat=2).outputs)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and torch.equal(found[0], found[1])
