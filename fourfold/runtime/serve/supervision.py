"""The front's side of a worker process: start it, talk to it, see it die. A batch that was with it then fails, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fourfold.errors import ArtefactError
from fourfold.runtime.serve import wire

LOADING = 300.0                                                        # seconds that an artefact may take to load
BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)                              # seconds before a worker that died is started again, by how often in a row
STEADY = 60.0                                                          # seconds after which a death counts as the first


class WorkerDied(Exception):
    """A worker ended with a batch in its hands; the message says how, in words."""


class BatchDeclined(Exception):
    """A batch raised inside its worker, which goes on."""


def ended(code: int | None) -> str:
    """In words how a process ended."""
    if code is None:
        return "it closed its connection"
    if code == -signal.SIGKILL:
        return "it was killed (signal 9), perhaps by the system for want of memory"
    if code < 0:
        return f"it was killed by signal {-code}"
    return f"it ended with exit code {code}"


class SupervisedWorker:
    """One worker process with one job at a time. `busy`: it has one; `ready`: what it said of itself (None while it loads)."""

    def __init__(self, folder: Path, trust: Sequence[str], number: int) -> None:
        self.folder, self.trust, self.number = folder, tuple(trust), number
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: wire.WorkerReady | None = None
        self.busy = self.closing = False
        self.began = 0.0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._jobs = 0

    @property
    def pid(self) -> int:
        """Its process id, 0 before it starts."""
        return self.process.pid if self.process is not None else 0

    async def start(self) -> wire.WorkerReady:
        """Start the process and wait until it has loaded. Raises ArtefactError with the worker's own two lines where it cannot."""
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-m", "fourfold.runtime.serve.worker_main", str(theirs.fileno()), str(self.folder), *self.trust]
        self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment,
                                        stderr=None if os.environ.get("FOURFOLD_DEBUG") else subprocess.DEVNULL,   # the log is a JSON object a line
                                        start_new_session=True)        # a Ctrl-C of the terminal goes to the front alone
        theirs.close()
        self.began = time.monotonic()
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        try:
            said = await asyncio.wait_for(self._received(), LOADING)
        except TimeoutError:
            self.kill()
            raise ArtefactError(f"{self.folder} did not load within {LOADING:.0f} s.", "Try `fourfold predict` on it.") from None
        except WorkerDied as died:
            raise ArtefactError(f"The worker that should load {self.folder} did not: {died}.", "Try `fourfold predict` on it.") from None
        if isinstance(said, wire.WorkerFailed):
            self.kill()
            raise ArtefactError(said.message, said.mend)
        assert isinstance(said, wire.WorkerReady)
        self.ready = said
        return said

    async def _received(self) -> wire.FromWorker:
        assert self._reader is not None
        try:
            head = await self._reader.readexactly(wire.LENGTH.size)
            (size,) = wire.LENGTH.unpack(head)
            if size > wire.LARGEST:
                raise WorkerDied("it sent what no worker sends")
            return wire.told_front(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            raise WorkerDied(ended(await self._code())) from None

    async def _code(self) -> int | None:
        """The exit code, waited for shortly: the socket closes before the process is reaped."""
        for _ in range(100):
            if self.process is None or (code := self.process.poll()) is not None:
                return None if self.process is None else code
            await asyncio.sleep(0.01)
        self.kill()
        return None

    async def run(self, stage: int, rows: list[wire.Row]) -> wire.BatchDone:
        """Answer a batch. Raises WorkerDied where the process ends before it has, BatchDeclined where the batch raised."""
        self._jobs += 1
        self._send(wire.RowsJob(self._jobs, stage, rows))
        said = await self._received()
        if isinstance(said, wire.BatchRefused):
            raise BatchDeclined(said.message)
        if not isinstance(said, wire.BatchDone) or said.number != self._jobs:
            self.kill()
            raise WorkerDied("it answered what nobody had asked")
        return said

    async def write(self, job: wire.GenerationJob, heard: Callable[[wire.TextPiece], None]) -> wire.TextPiece:
        """Continue a prompt; `heard` is told piece after piece. Raises as `run`."""
        self._jobs += 1
        job.number = self._jobs
        self._send(job)
        while True:
            said = await self._received()
            if isinstance(said, wire.BatchRefused):
                raise BatchDeclined(said.message)
            if not isinstance(said, wire.TextPiece) or said.number != self._jobs:
                self.kill()
                raise WorkerDied("it answered what nobody had asked")
            heard(said)
            if said.end:
                return said

    def _send(self, job: wire.ToWorker) -> None:
        assert self._writer is not None
        if self._writer.is_closing():
            raise WorkerDied("it was gone already")
        self._writer.write(wire.packed(job))

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def close(self, patience: float = 5.0) -> None:
        """Let the process end: it does when its connection closes; killed after `patience` seconds."""
        self.closing = True
        if self._writer is not None:
            self._writer.close()
        until = time.monotonic() + patience
        while self.alive and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self.kill()
        if self.process is not None:
            self.process.wait()


