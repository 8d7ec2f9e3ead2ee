"""What runs on Ray: the island, one named actor that alone starts and ends gangs, and executors, one process of a program each.

An executor belongs to a bundle of its gang's placement group, so a slice is whole or not there. Ray restarts nothing here: a rank that comes back
alone would find the others hanging in a collective, so the island ends the whole gang and starts it again, on the same group, under the next
generation. Programs are started as torch.distributed expects them: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, and FOURFOLD_GENERATION.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from fourfold.runtime.fleet.admission import Admission, SliceRequest

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

NAMESPACE, ISLAND = "fourfold", "island"
READY = 60.0                                                            # s until a placement group or an executor must be there
TICK = 0.02                                                             # s between two looks of the island at its gangs


class RemoteCall(Protocol):
    """A method of an actor."""

    def remote(self, *args: object) -> ObjectRef[object]: ...


class ExecutorHandle(Protocol):
    """An executor, from outside of its process."""

    address: RemoteCall
    start: RemoteCall
    wait: RemoteCall


class Executor:
    """One rank: starts the program's process and waits for its end. The kernel ends the process when the executor dies."""

    def address(self) -> tuple[str, int]:
        """Address and a free port of this host, at which the gang meets."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as found:
            found.bind((host, 0))
            return host, int(found.getsockname()[1])

    def start(self, command: list[str], environment: dict[str, str], folder: str, log: str) -> int:
        """The process id. Raises OSError where the program cannot be started."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with open(log, "ab") as stream:
            self.process = subprocess.Popen(command, cwd=folder, env={**clean, **environment}, stdout=stream, stderr=subprocess.STDOUT,
                                            preexec_fn=_with_parent)
        return self.process.pid

    def wait(self) -> int:
        """Its exit status, when it ends."""
        return self.process.wait()


def _with_parent() -> None:
    """In the new process: be killed when the executor is."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG


@dataclass
class Gang:
    """A submitted program. `state`: waiting, running, done, failed, ended; `restarts`: the most; `again`: how many there
    were; `back`: seconds from when a death was seen until all ranks ran again."""

    request: SliceRequest
    command: list[str]
    folder: str
    log: str
    environment: dict[str, str]
    restarts: int
    state: str = "waiting"
    why: str = ""
    again: int = 0
    back: list[float] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    group: PlacementGroup | None = None
    executors: list[ExecutorHandle] = field(default_factory=list)
    waits: dict[ObjectRef[object], int] = field(default_factory=dict)

    def told(self) -> dict[str, object]:
        """What a user reads."""
        request = self.request
        return {"job": request.number, "tenant": request.tenant, "ranks": request.size, "priority": request.priority, "state": self.state,
                "generation": request.generation + self.again, "restarts": self.again, "why": self.why, "command": self.command, "log": self.log,
                "pids": self.pids, "back_s": self.back}


class Island:
    """The controller of `devices` executors' places. Methods answer at once; a thread of its own does the work, in one order."""

    def __init__(self, devices: int, weights: dict[str, float]) -> None:
        self.admission = Admission(devices, weights)
        self.gangs: dict[int, Gang] = {}
        self.lock = threading.Lock()
        self.closed = False
        threading.Thread(target=self._loop, daemon=True).start()

    def submit(self, command: list[str], ranks: int, tenant: str, priority: int, restarts: int, folder: str, log: str,
               environment: dict[str, str]) -> int:
        """The job's number. Raises InputError as `Admission.request`."""
        with self.lock:
            request = self.admission.request(tenant, (ranks,), priority=priority)
            self.gangs[request.number] = Gang(request, command, folder, log.replace("{job}", str(request.number)), environment, restarts)
            return request.number

    def status(self) -> dict[str, object]:
        with self.lock:
            return {"devices": self.admission.devices, "free": len(self.admission.free), "draining": self.admission.draining,
                    "jobs": [gang.told() for gang in self.gangs.values()]}

    def end(self, number: int) -> bool:
        """A job is no longer wanted; whether it was there."""
        with self.lock:
            gang = self.gangs.get(number)
            if gang is None or gang.state not in ("waiting", "running"):
                return False
            self._over(gang, "ended", "")
            return True

    def drain(self) -> None:
        """Take no new work; what runs and waits goes on."""
        with self.lock:
            self.admission.draining = True

    def close(self) -> None:
        """End all."""
        with self.lock:
            self.closed = True
            for gang in self.gangs.values():
                if gang.state in ("waiting", "running"):
                    self._over(gang, "ended", "the fleet was taken down")

    # ---- the one thread that starts and ends gangs

    def _loop(self) -> None:
        while not self.closed:
            with self.lock:
                change = self.admission.decide()
                for request in change.end:                              # taken back for a more urgent one: it waits again
                    gang = self.gangs[request.number]
                    self._stop(gang)
                    self._release(gang)
                    gang.state, gang.why = "waiting", "preempted"
                starting = [self.gangs[request.number] for request in change.start]
                for gang in starting:
                    self._guarded(gang)
                for gang in list(self.gangs.values()):
                    if gang.state == "running":
                        self._look(gang)
            time.sleep(TICK)

    def _guarded(self, gang: Gang) -> None:
        try:
            self._start(gang)
        except Exception as error:  # noqa: BLE001 — one gang's fault is not the island's
            self._over(gang, "failed", f"could not be started: {' '.join(str(error).split())[:200]}")

    def _start(self, gang: Gang) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        size = gang.request.size
        if gang.group is None:
            gang.group = placement_group([{"CPU": 1}] * size, strategy="PACK")
            ray.get(gang.group.ready(), timeout=READY)                  # no executor before the whole slice is there
        remote = ray.remote(Executor)
        gang.executors = [cast(ExecutorHandle, remote.options(
            num_cpus=1, max_restarts=0, scheduling_strategy=PlacementGroupSchedulingStrategy(gang.group, placement_group_bundle_index=rank)).remote())
            for rank in range(size)]
        host, port = cast("tuple[str, int]", ray.get(gang.executors[0].address.remote(), timeout=READY))
        generation = gang.request.generation + gang.again
        refs = [one.start.remote(gang.command, {
            **gang.environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": host, "MASTER_PORT": str(port),
            "FOURFOLD_GENERATION": str(generation)}, gang.folder, gang.log) for rank, one in enumerate(gang.executors)]
        gang.pids = cast("list[int]", ray.get(refs, timeout=READY))
        gang.waits = {one.wait.remote(): rank for rank, one in enumerate(gang.executors)}
        gang.state, gang.why = "running", ""

    def _look(self, gang: Gang) -> None:
        """Whether ranks of a gang have ended: all well, it is done; one ill, all are ended and started again."""
        import ray

        ended, _ = ray.wait(list(gang.waits), num_returns=len(gang.waits), timeout=0)
        for ref in ended:
            rank = gang.waits[ref]
            try:
                status = int(cast(int, ray.get(ref)))
            except Exception:  # noqa: BLE001 — ActorDiedError and its kin: the executor itself is gone
                status = -signal.SIGKILL
            if status:
                self._again(gang, rank, status)
                return
            del gang.waits[ref]
        if not gang.waits:
            self._over(gang, "done", "")

    def _again(self, gang: Gang, rank: int, status: int) -> None:
        seen = time.monotonic()
        killed = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = " (the kernel kills for memory so)" if status == -signal.SIGKILL else ""
        self._stop(gang)
        if gang.again >= gang.restarts:
            self._over(gang, "failed", f"rank {rank} {killed}{hint}, after {gang.again} restarts; its last lines are in {gang.log}")
            return
        gang.again += 1
        self._guarded(gang)
        gang.back.append(time.monotonic() - seen)

    def _stop(self, gang: Gang) -> None:
        """End the executors, and their processes with them; the placement group stays."""
        import ray

        for one in gang.executors:
            with contextlib.suppress(Exception):
                ray.kill(cast("ActorHandle", one), no_restart=True)
        gang.executors, gang.waits = [], {}
        for pid in gang.pids:                                           # of this host; elsewhere the kernel does it with the executor
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        gang.pids = []

    def _release(self, gang: Gang) -> None:
        from ray.util.placement_group import remove_placement_group

        if gang.group is not None:
            with contextlib.suppress(Exception):
                remove_placement_group(gang.group)
            gang.group = None

    def _over(self, gang: Gang, state: str, why: str) -> None:
        self._stop(gang)
        self._release(gang)
        self.admission.done(gang.request.number)
        gang.state, gang.why = state, why


def log_of(folder: Path) -> str:
    """Where a job's output goes; `{job}` is its number."""
    return str(folder / "job-{job}.log")
