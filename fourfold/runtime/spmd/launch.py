"""Starts the ranks of a mesh on this host, gives them work, and watches them: one that dies, stands still or disagrees is named, and all are ended.

Ranks are processes of their own in sessions of their own (Ctrl-C reaches the launcher alone); the kernel ends them when their launcher ends, however
it ends. The store at which they meet is the launcher's of node 0, so no rank's death takes it away. With several nodes each has a launcher of its own
that starts its share of the ranks; what one finds, all learn through the store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from fourfold.errors import FourfoldError, InputError
from fourfold.runtime.spmd.frames import RankJob, RankReport, RankStart, receive, send
from fourfold.runtime.spmd.progress import IDLE, STARTING, ProgressFile, RankProgress

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

PATIENCE = 30.0                                                         # s without a sign of life until a rank counts as hung
_BUSY = 10.0                                                            # times that, where it computes all the while
_TAIL = 12                                                              # lines of its log that are shown
_STARTING = 120.0                                                       # s that a rank may take, doing nothing, until it is up: disks are slow
_FOLDER = "fourfold-spmd-"                                              # of logs and progress; the launcher's process follows
_GRACE = 1.0                                                            # s in which a death is looked for that explains another rank's error


class RankFailure(FourfoldError):
    """A rank died, stood still, failed or disagreed, and all were ended. `ranks`: which; `log`: the last lines that the first of them wrote."""

    exit_code = 5

    def __init__(self, message: str, mend: str, ranks: tuple[int, ...] = (), log: str = "") -> None:
        super().__init__(message, mend)
        self.ranks, self.log = ranks, log


def sweep() -> None:
    """Remove the folders of launchers that were killed before they could do so themselves. Whose process lives, or is another user's, stays."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        number = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if not number.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.getuid():
                continue
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Child:
    rank: int
    process: subprocess.Popen[bytes]
    progress: Path
    log: Path
    last: RankProgress = field(default_factory=RankProgress)
    since: float = 0.0
    cpu: float = 0.0

    @property
    def answers(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    @property
    def asks(self) -> int:
        assert self.process.stdin is not None
        return self.process.stdin.fileno()


class RankPool:
    """`nproc` ranks, of which this host runs `nproc / nodes`, from its start until `close`; a context manager.

    address   "host:port" of node 0's store; None: this host, on a free port. Ranks use NCCL where every one of them has a GPU, else gloo
    patience  seconds without progress until a rank that does nothing counts as hung
    Raises InputError for a port in use, a number of ranks that the nodes do not divide, or an address that nobody answers.
    """

    def __init__(self, nproc: int, *, nodes: int = 1, node_rank: int = 0, address: str | None = None, patience: float = PATIENCE,
                 threads: int | None = None) -> None:
        if nproc < 1 or nproc % nodes or not 0 <= node_rank < nodes:
            raise InputError(f"{nproc} ranks on {nodes} nodes, of which this is node {node_rank}.",
                             "Give nodes that divide the ranks, counted from 0.")
        if nodes > 1 and address is None:
            raise InputError("Several nodes need an address at which they meet.", "Give the address of node 0: --address HOST:PORT")
        self.nproc, self.nodes, self.node_rank, self.patience = nproc, nodes, node_rank, patience
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self.children: list[_Child] = []
        self.jobs = 0
        try:
            self.host, self.store = self._store(address)
            self._start(threads)
        except BaseException:
            self.close()
            raise

    # ---- start and end

    def _store(self, address: str | None) -> tuple[str, TCPStore]:
        import datetime

        from torch._C._distributed_c10d import TCPStore
        from torch.distributed import DistError

        host, _, text = (address or "127.0.0.1:0").rpartition(":")
        if not text.isdecimal() or not host:
            raise InputError(f"{address!r} is no address.", "Write it like 10.0.0.1:29500")
        port, first = int(text), self.node_rank == 0
        if first and port:
            _free(port)
        patience = datetime.timedelta(seconds=max(self.patience, 10.0))
        try:
            return host, TCPStore(host, port, None, first, patience, wait_for_workers=False)
        except (DistError, RuntimeError) as error:
            raise InputError(f"Nobody answers at {address}: {' '.join(str(error).split())[:120]}",
                             "Start node 0 first, and name its address, which this host must reach.") from None

    def _start(self, threads: int | None) -> None:
        import torch

        from fourfold.host import here

        local = self.nproc // self.nodes
        backend = "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= local else "gloo"
        threads = threads or max(1, here().cores // local)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": str(threads),
                       "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        if name := _interface(self.host if self.nodes > 1 else "127.0.0.1"):
            environment |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
        for place in range(local):
            rank = self.node_rank * local + place
            log, progress = self.folder / f"rank{rank}.log", self.folder / f"rank{rank}.progress"
            with log.open("wb") as stream:
                process = subprocess.Popen([sys.executable, "-m", "fourfold.runtime.spmd.rank_main"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                           stderr=stream, env=environment, start_new_session=True)
            child = _Child(rank, process, progress, log, since=time.monotonic())
            self.children.append(child)
            host = "127.0.0.1" if self.node_rank == 0 else self.host
            timeout = max(60.0, _BUSY * self.patience)
            with contextlib.suppress(BrokenPipeError):
                send(child.asks, RankStart(rank, self.nproc, host, self.store.port, backend, threads, timeout, progress, place))

    def close(self) -> None:
        """End all ranks of this host at once and remove what they wrote; twice does nothing more."""
        for child in self.children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
        for child in self.children:
            child.process.wait()
            for stream in (child.process.stdin, child.process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self.children = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> dict[int, int]:
        """rank → process, of this host."""
        return {child.rank: child.process.pid for child in self.children}

    # ---- work

    def next_job(self) -> int:
        """A number that all nodes count alike."""
        self.jobs += 1
        return self.jobs

    def do(self, job: RankJob) -> list[RankReport]:
        """Give every rank of this host the job; their reports, in the order of ranks. Raises RankFailure, after which no rank is left."""
        if not self.children:
            raise InputError("The ranks have been ended.", "Start them again.")
        reports: dict[int, RankReport] = {}
        now = time.monotonic()
        try:
            for child in self.children:
                child.since = now
                with contextlib.suppress(BrokenPipeError):
                    send(child.asks, job)
            while len(reports) < len(self.children):
                self._wait(reports)
        except BaseException:
            self.close()
            raise
        return [reports[child.rank] for child in self.children]

    def _wait(self, reports: dict[int, RankReport]) -> None:
        waiting = {child.answers: child for child in self.children if child.rank not in reports}
        ready, _, _ = select.select(list(waiting), [], [], 0.2)
        problems: list[RankReport] = []
        for stream in ready:
            report = receive(stream)
            if report is None:
                self._dead(_GRACE)
            else:
                found = cast(RankReport, report)
                reports[found.rank] = found
                if found.problem or found.disagree:
                    problems.append(found)
        if problems:
            self._dead(0.0)
            self._failed(problems[0])
        self._dead(0.0)
        self._elsewhere()
        self._hung([child for child in self.children if child.rank not in reports])

    # ---- failures

    def _dead(self, grace: float) -> None:
        """Raises RankFailure where a rank has ended; waits `grace` seconds for one that is ending."""
        until = time.monotonic() + grace
        while True:
            gone = [child for child in self.children if child.process.poll() is not None]
            if gone:
                break
            if time.monotonic() >= until:
                return
            time.sleep(0.01)
        child = gone[0]
        code = child.process.returncode
        how = f"was ended by {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
        self._raise([child.rank], f"Rank {child.rank} (process {child.process.pid}) {how} {ProgressFile.read(child.progress)}", _tail(child.log))

    def _failed(self, report: RankReport) -> None:
        if report.disagree:
            what: dict[str, list[int]] = {}
            for rank, thing in report.disagree:
                what.setdefault(thing, []).append(rank)
            told = "; ".join(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: another {thing}" for thing, ranks in what.items())
            self._raise(sorted({rank for rank, _ in report.disagree}), f"Ranks disagree on what is run. {told}", "",
                        "Give every node the same plan, model, inputs and versions.")
        child = next(c for c in self.children if c.rank == report.rank)
        time.sleep(0.2)                                                 # a death elsewhere breaks connections here: look for it first
        self._dead(0.0)
        self._elsewhere()
        self._raise([report.rank], f"Rank {report.rank} failed {ProgressFile.read(child.progress)}: {report.problem}", _tail(child.log))

    def _hung(self, children: list[_Child]) -> None:
        now, still = time.monotonic(), list[_Child]()
        for child in children:
            reading, cpu = ProgressFile.read(child.progress), _cpu(child.process.pid)
            if reading != child.last or reading.stage == STARTING and cpu > child.cpu + 0.05:
                child.last, child.since, child.cpu = reading, now, cpu
            idle = cpu - child.cpu < 0.1 * (now - child.since)
            patience = self.patience if reading.stage >= IDLE else max(self.patience, _STARTING)
            if now - child.since > (patience if idle or reading.waits else _BUSY * patience):
                still.append(child)
        stopped = [child for child in children if _state(child.process.pid) in ("T", "t") and now - child.since > self.patience]
        if stopped:
            self._stuck(stopped[0])
        if any(not child.last.waits for child in still):                # of those that do not move, the one that is least far: others wait for it
            quiet = [child for child in children if now - child.since > self.patience / 2]
            self._stuck(min(quiet, key=lambda child: (child.last.job, child.last.stage, child.last.entered, child.last.waits)))
        elif still and len(still) == len(children):                     # all wait: for whom?
            least = min(still, key=lambda child: child.last.entered)
            most = max(child.last.entered for child in still)
            if least.last.entered < most:
                self._stuck(least)
            elif self.nodes == 1:
                self._raise([child.rank for child in still], f"All ranks wait in collective {most} for each other", "", "Start them again.")

    def _stuck(self, child: _Child) -> None:
        state = "is stopped" if _state(child.process.pid) in ("T", "t") else "stands still"
        seconds = time.monotonic() - child.since
        self._raise([child.rank], f"Rank {child.rank} (process {child.process.pid}) {state} for {seconds:.0f} s {child.last}", _tail(child.log))

    def _elsewhere(self) -> None:
        """Raises RankFailure where another node has told of a failure, or node 0 is gone."""
        if self.nodes == 1:
            return
        try:
            told = self.store.get("failed").decode() if self.store.check(["failed"]) else ""
        except Exception:                                               # noqa: BLE001 — the store stands in node 0's launcher
            told = "Node 0 is gone"
        if told:
            self.close()
            raise RankFailure(f"{told}.", "All ranks of this node were ended. See the other node for its log.")

    def _raise(self, ranks: list[int], what: str, log: str, mend: str = "") -> None:
        others = self.nproc - len(ranks)
        if self.nodes > 1:
            with contextlib.suppress(Exception):
                self.store.set("failed", what)
                time.sleep(1.0 if self.node_rank == 0 else 0.0)         # the store goes with node 0
        self.close()
        last = log.strip().splitlines()[-1][:160] if log.strip() else ""
        raise RankFailure(f"{what}; {'it was' if not others else f'the other {others} were'} ended.",
                          mend or (f"Its log ends: {last}" if last else "It wrote nothing to its log."), tuple(ranks), log)


def _free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"Port {port} is in use on this host.", "Name another, or none: a free one is taken.") from None
            raise InputError(f"Port {port} cannot be opened: {error.strerror}.", "Name another, or none: a free one is taken.") from None


def _interface(host: str) -> str:
    """The network interface over which `host` is reached; "" where it cannot be told."""
    import psutil

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            mine = probe.getsockname()[0]
    except OSError:
        return ""
    return next((name for name, held in psutil.net_if_addrs().items() if any(one.address == mine for one in held)), "")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
    except OSError:
        return ""


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _cpu(pid: int) -> float:
    """Processor seconds of a process so far; 0 where there is no /proc."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(rest[11]) + int(rest[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


__all__ = ["PATIENCE", "RankFailure", "RankPool"]
