"""One process a device: the main process runs one device itself and watches the others. Values pass through one file in memory that has no name.

The file is unlinked before anybody writes to it, so nothing can leak, whoever dies. A value is announced by its number in a pipe from sender to
receiver. A worker that loses its main process ends; a worker that ends, raises or does not answer in time is a FourfoldError that names device and
task, and the others are stopped.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fourfold.engines.base import Engine, RegionJob, TensorSpec
from fourfold.engines.call import Call, Region
from fourfold.errors import Declined, FourfoldError
from fourfold.runtime.local import malloc

_ALIGN = 64
EAGERLY = "Call the model itself on these inputs to see more."


class Lost(Exception):
    """The main process is gone."""


# ---- one file in memory --------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in the arena."""

    offset: int
    spec: TensorSpec
    scalar: bool = False


class Arena:
    """Shared memory without a name: `fd` is handed to workers."""

    def __init__(self, size: int, fd: int | None = None) -> None:
        self.size = max(size, mmap.PAGESIZE)
        if fd is None:
            fd = os.memfd_create("fourfold") if hasattr(os, "memfd_create") else _unlinked()
            os.ftruncate(fd, self.size)
        self.fd = fd
        self.memory: Any = mmap.mmap(fd, self.size)
        self.head = memoryview(self.memory).cast("q")

    def tensor(self, slot: Slot) -> Any:
        import torch

        span = _span(slot.spec)
        if span == 0:
            return torch.empty(slot.spec.shape, dtype=slot.spec.dtype)
        flat = torch.frombuffer(self.memory, dtype=slot.spec.dtype, count=span, offset=slot.offset)
        return flat.as_strided(slot.spec.shape, slot.spec.stride)

    def close(self) -> None:
        """The mapping goes when the last tensor does; the descriptor now."""
        with contextlib.suppress(OSError):
            os.close(self.fd)


def _unlinked() -> int:
    fd, name = tempfile.mkstemp()
    os.unlink(name)
    return fd


def _span(spec: TensorSpec) -> int:
    """Elements from the first to the last."""
    if 0 in spec.shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(spec.shape, spec.stride, strict=True))


def dense(spec: TensorSpec) -> TensorSpec:
    """The same where every element has a place of its own; else contiguous."""
    import math

    if _span(spec) == math.prod(spec.shape):
        return spec
    strides, step = [], 1
    for size in reversed(spec.shape):
        strides.append(step)
        step *= max(1, size)
    return TensorSpec(spec.shape, tuple(reversed(strides)), spec.dtype)


class Layout:
    """Hands out places in an arena; the first `head` int64 are progress, one a device."""

    def __init__(self, head: int) -> None:
        self.size = -(-8 * head // _ALIGN) * _ALIGN

    def slot(self, spec: TensorSpec, scalar: bool = False) -> Slot:
        spec = dense(spec)
        offset = self.size
        self.size += -(-_span(spec) * spec.dtype.itemsize // _ALIGN) * _ALIGN
        return Slot(offset, spec, scalar)


# ---- one device ----------------------------------------------------------------------------------------------------------------------------------

@dataclass
class Duty:
    """What one device does. `jobs`: (region, engine, calls, ONNX file); `weights`, `given`, `passed`, `returned`: slots in the arena by value."""

    device: int
    name: str
    target: str                                                         # "cpu", "cuda:0"
    threads: int
    cores: tuple[int, ...]
    jobs: Sequence[tuple[Region, type[Engine], list[Call], bytes | None]]
    specs: dict[int, TensorSpec | None]
    weights: dict[int, Slot]
    given: dict[int, Slot]
    passed: dict[int, Slot]
    returned: dict[int, Slot]
    stamps: bool
    folder: str | None
    names: dict[int, str] = field(default_factory=dict)                 # of tasks, for errors


@dataclass
class Record:
    """What one device measured in one run: spans of tasks (task, start, finish), of regions (number, start, finish) and of sendings (value, to,
    start, finish), seconds of a clock that all processes share."""

    tasks: list[tuple[int, float, float]] = field(default_factory=list)
    regions: list[tuple[int, float, float]] = field(default_factory=list)
    sent: list[tuple[int, int, float, float]] = field(default_factory=list)


class DeviceWorker:
    """Runs the regions of one device in order, in whatever process it is made."""

    def __init__(self, duty: Duty, arena: Arena | None, weights: Mapping[int, object] | None = None, send: Mapping[int, int] | None = None,
                 receive: Callable[[set[int]], None] | None = None) -> None:
        self.duty, self.arena, self.send, self.receive = duty, arena, send or {}, receive
        self.mark: Any = arena.head[duty.device: duty.device + 1] if arena is not None else [0]
        self.weights = dict(weights or {})
        if arena is not None:
            self.weights |= {v: arena.tensor(slot) for v, slot in duty.weights.items() if v not in self.weights}
        self.here = {v: self._to(t) for v, t in self.weights.items()}
        self.passed = {v: arena.tensor(slot) for v, slot in duty.passed.items()} if arena is not None else {}
        self.calls: list[tuple[Region, bool, Callable[..., Any]]] = []

    def _to(self, tensor: Any) -> object:
        return tensor.to(self.duty.target) if self.duty.target != "cpu" and hasattr(tensor, "to") else tensor

    def prepare(self) -> None:
        """Build every region. Raises FourfoldError naming the region's first task where its engine declines."""
        duty = self.duty
        malloc.keep()
        for region, engine, calls, file in duty.jobs:
            self.mark[0] = region.tasks[0]
            job = RegionJob(region, _moved(calls, duty.target), {v: self.here[v] for v in region.weights}, duty.specs, duty.threads, file,
                      Path(duty.folder) if duty.folder else None, self.mark,
                      duty.stamps and engine.stamps, duty.target)
            try:
                made = engine.build(job)
            except Declined as error:
                first, title = duty.names.get(region.tasks[0], region.tasks[0]), engine.region_name or engine.name
                raise FourfoldError(f"{title} cannot run the region of {first} on {duty.name}: {error.message}",
                                    "Race the engines again, or run it eagerly: --no-race.") from None
            self.calls.append((region, job.stamps, made))

    def run(self, given: Mapping[int, object], record: Record | None = None) -> dict[int, object]:
        """One run: the values that stay (outputs of the program made here among them)."""
        import torch

        clock, at = time.perf_counter, self.mark
        have: dict[int, object] = dict(given) if self.duty.target == "cpu" else {v: self._to(t) for v, t in given.items()}
        for region, stamped, call in self.calls:
            if region.needs:
                missing = {v for v in region.needs if v not in have}
                if missing and self.receive is not None:
                    at[0] = region.tasks[0]
                    self.receive(missing)
                    for v in missing:
                        slot = self.duty.passed[v]
                        have[v] = self.passed[v].item() if slot.scalar else self._to(self.passed[v])
            at[0] = region.tasks[0]
            began = clock()
            made = call(*[have[v] for v in region.reads])
            if self.duty.target != "cpu":
                torch.cuda.synchronize()
            if stamped:
                made, stamps = made
                if record is not None:
                    record.tasks += [(task, stamps[k], stamps[k + 1]) for k, task in enumerate(_order(region))]
            ended = clock()
            if record is not None:
                record.regions.append((region.number, began, ended))
            have.update(zip(region.makes, made, strict=True))
            self._send(region, have, record)
            for v in region.drops:
                have.pop(v, None)
        return have

    def _send(self, region: Region, have: Mapping[int, object], record: Record | None) -> None:
        clock, copied = time.perf_counter, set()
        for v, to in region.sends:
            began = clock()
            if v not in copied:
                copied.add(v)
                if self.duty.passed[v].scalar:
                    self.passed[v].fill_(have[v])
                else:
                    self.passed[v].copy_(have[v])
            os.write(self.send[to], struct.pack("<i", v))
            if record is not None:
                record.sent.append((v, to, began, clock()))


def _order(region: Region) -> list[int]:
    """Tasks in the order in which `printed` stamps them."""
    found: list[int] = []
    for _, task in region.nodes:
        if not found or found[-1] != task:
            found.append(task)
    return found


def _moved(calls: Sequence[Call], target: str) -> list[Call]:
    """Calls that make tensors on the CPU make them on `target`."""
    if target == "cpu":
        return list(calls)
    import torch

    from fourfold.engines.call import mapped

    def change(part: object) -> object:
        return torch.device(target) if isinstance(part, torch.device) else part

    return [Call(c.task, c.node, c.target, mapped(c.args, change), mapped(c.kwargs, change), c.outs) for c in calls]


# ---- messages ------------------------------------------------------------------------------------------------------------------------------------

class _Pickler(pickle.Pickler):
    """Between a process and its own workers only: operators of torch go by name, fx modules by their code."""

    def persistent_id(self, obj: object) -> object:
        import torch

        if isinstance(obj, torch._ops.OpOverload):
            return "overload", obj.namespace, obj._opname, obj._overloadname
        if isinstance(obj, torch._ops.HigherOrderOperator):
            return "higher", obj.name()
        return None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> object:
        import torch

        if pid[0] == "overload":
            return getattr(getattr(getattr(torch.ops, pid[1]), pid[2]), pid[3])
        return getattr(torch.ops.higher_order, pid[1])


def pack(message: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


def unpack(data: bytes) -> Any:
    return _Unpickler(io.BytesIO(data)).load()


class Inbox:
    """Numbers of values that have come from other devices, through one pipe from each."""

    def __init__(self, pipes: Mapping[int, int], watch: Callable[[], None], others: Sequence[int] = ()) -> None:
        self.pipes, self.watch, self.come = dict(pipes), watch, set[int]()
        self.poll = select.poll()
        for fd in self.pipes.values():
            self.poll.register(fd, select.POLLIN)
        for fd in others:
            self.poll.register(fd, 0)                                   # of these only the end
        self.others = set(others)

    def clear(self) -> None:
        self.come.clear()

    def wait(self, missing: set[int]) -> None:
        while not missing <= self.come:
            ready = self.poll.poll(200)
            for fd, event in ready:
                if fd in self.others:
                    continue
                data = os.read(fd, 65536) if event & select.POLLIN else b""
                if not data:
                    self.poll.unregister(fd)                            # the sender is gone; whoever watches will say so
                    continue
                while len(data) % 4:
                    data += os.read(fd, 4 - len(data) % 4)
                self.come.update(v for (v,) in struct.iter_unpack("<i", data))
            if not ready or any(fd in self.others for fd, _ in ready):
                self.watch()


# ---- the main process's side ---------------------------------------------------------------------------------------------------------------------

@dataclass
class _Worker:
    duty: Duty
    process: subprocess.Popen[bytes]
    link: Connection


class WorkerPool:
    """Workers for all duties but that of `home`, which runs here. A context manager: leaving it, however, ends every worker."""

    def __init__(self, duties: Sequence[Duty], home: int | None, arena: Arena | None, weights: Mapping[int, object], limit: float = 120.0,
                 compiling: float = 1800.0) -> None:
        self.duties, self.home, self.arena, self.limit, self.compiling = list(duties), home, arena, limit, compiling
        self.workers: list[_Worker] = []
        self._fds: list[int] = []
        self.deadline, self.allowed = 0.0, limit
        self._weights = weights
        self.device: DeviceWorker | None = None

    def __enter__(self) -> WorkerPool:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        numbers = [duty.device for duty in self.duties]
        ends: dict[tuple[int, int], tuple[int, int]] = {}
        for a in numbers:
            for b in numbers:
                if a != b:
                    ends[a, b] = os.pipe()
                    self._fds += ends[a, b]
                    _widen(ends[a, b][1])
        for duty in self.duties:
            if duty.device != self.home:
                self._spawn(duty, ends)
        mine = next((duty for duty in self.duties if duty.device == self.home), None)
        self.inbox = Inbox({a: r for (a, b), (r, _) in ends.items() if b == self.home}, self.watch, [w.link.fileno() for w in self.workers])
        for (a, b), (r, w) in ends.items():                             # each end stays open where it is used, so that a death is an end of file
            for fd, used in ((r, b == self.home), (w, a == self.home)):
                if not used:
                    os.close(fd)
                    self._fds.remove(fd)
        self.allowed = self.compiling
        self.deadline = time.monotonic() + self.allowed
        for worker in self.workers:
            self._tell(worker, ("duty", worker.duty, self.arena.size if self.arena else 0))
        if mine is not None:
            send = {b: w for (a, b), (_, w) in ends.items() if a == self.home}
            self.device = DeviceWorker(mine, self.arena if self.workers else None, self._weights, send, self.inbox.wait)
            with self._named(mine, self.device):
                self.device.prepare()
        for worker in self.workers:
            self._answer(worker, "ready")

    def _spawn(self, duty: Duty, ends: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        ours, theirs = socket.socketpair()
        assert self.arena is not None
        reads = {a: r for (a, b), (r, _) in ends.items() if b == duty.device}
        writes = {b: w for (a, b), (_, w) in ends.items() if a == duty.device}
        passed = [self.arena.fd, theirs.fileno(), *reads.values(), *writes.values()]
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(dict.fromkeys([root, *[p for p in sys.path if p], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
        told = repr((self.arena.fd, theirs.fileno(), reads, writes))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(duty.threads)}
        process = subprocess.Popen([sys.executable, "-m", "fourfold.runtime.local.worker_main", told], pass_fds=passed, env=environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        theirs.close()
        self.workers.append(_Worker(duty, process, Connection(ours.detach())))

    # ---- talking

    def _tell(self, worker: _Worker, message: object) -> None:
        try:
            worker.link.send_bytes(pack(message))
        except (BrokenPipeError, ConnectionResetError):
            self._dead(worker)

    def _answer(self, worker: _Worker, kind: str) -> Any:
        """The worker's next message, which must be of that kind; all others are watched meanwhile."""
        while not worker.link.poll(0.05):
            self.watch()
        try:
            found = unpack(worker.link.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._dead(worker)
        if found[0] == "error":
            self._failed(worker, found)
        assert found[0] == kind, found
        return found[1]

    def watch(self) -> None:
        """Raises FourfoldError where a worker has ended, has raised, or where the time is up."""
        for worker in self.workers:
            if worker.process.poll() is not None:
                if worker.link.poll(0):
                    with contextlib.suppress(EOFError, ConnectionResetError):
                        found = unpack(worker.link.recv_bytes())
                        if found[0] == "error":
                            self._failed(worker, found)
                self._dead(worker)
        if time.monotonic() > self.deadline:
            slow = [w for w in self.workers if not w.link.poll(0)] or self.workers
            at = ", ".join(f"{w.duty.name} at {self._task(w)}" for w in slow)
            raise FourfoldError(f"Not all workers have answered within {self.allowed:g} s: {at}.",
                                "Allow more time with limit=…, or plan for fewer devices.")

    def _task(self, worker: _Worker) -> str:
        assert self.arena is not None
        task = self.arena.head[worker.duty.device]
        return worker.duty.names.get(task, f"task {task}") if worker.duty.jobs else "no task"

    def _dead(self, worker: _Worker) -> object:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(2)
        code = worker.process.returncode
        if code is not None and code < 0:
            how = f"was killed ({signal.Signals(-code).name})" if -code in set(signal.Signals) else f"was killed (signal {-code})"
        else:
            how = f"ended with code {code}"
        raise FourfoldError(f"The worker of {worker.duty.name} {how} at {self._task(worker)}.",
                            "If memory ran out, use a smaller batch or more devices; else run it again.")

    def _failed(self, worker: _Worker, found: Any) -> object:
        _, text, mend, told = found
        raise FourfoldError(text if told else f"The worker of {worker.duty.name} failed at {self._task(worker)}: {text}", mend)

    @contextlib.contextmanager
    def _named(self, duty: Duty, device: DeviceWorker) -> Iterator[None]:
        try:
            yield
        except (FourfoldError, KeyboardInterrupt):
            raise
        except Exception as error:
            task = device.mark[0]
            raise FourfoldError(f"{duty.name} failed at {duty.names.get(task, task)}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                                EAGERLY) from error

    # ---- running

    def run(self, given: Mapping[int, object], record: bool = False) -> tuple[float, float, dict[int, object], list[tuple[int, Record]]]:
        """One run: (start on the shared clock, wall seconds until all outputs are here, values here, what each device measured)."""
        self.allowed = self.limit
        self.deadline = time.monotonic() + self.allowed
        self.inbox.clear()
        for duty in self.duties:
            if duty.device != self.home:
                for v, slot in duty.given.items():
                    assert self.arena is not None
                    self.arena.tensor(slot).copy_(given[v])
        began = time.perf_counter()
        for worker in self.workers:
            self._tell(worker, ("run", record))
        records: list[tuple[int, Record]] = []
        have: dict[int, object] = {}
        if self.device is not None:
            mine = Record()
            with self._named(self.device.duty, self.device):
                have = self.device.run(given, mine if record else None)
            records.append((self.device.duty.device, mine))
        for worker in self.workers:
            records.append((worker.duty.device, self._answer(worker, "done")))
            for v, slot in worker.duty.returned.items():
                assert self.arena is not None
                tensor = self.arena.tensor(slot)
                have[v] = tensor.item() if slot.scalar else tensor
        return began, time.perf_counter() - began, have, records

    def close(self) -> None:
        """End the workers: they are asked, then told."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.link.close()
        for worker in self.workers:
            try:
                worker.process.wait(0.3)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait(10)
        self.workers = []
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds = []


def _widen(fd: int) -> None:
    """Room for a quarter of a million announcements, where the system lets us."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)


__all__ = ["Arena", "DeviceWorker", "Duty", "Inbox", "Layout", "Lost", "WorkerPool", "Record", "Slot", "pack", "unpack"]
