"""A local Ray cluster that outlives the command that starts it, and how later commands find it: one file says its address, process and folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fourfold.errors import FourfoldError, InputError

if TYPE_CHECKING:
    from fourfold.runtime.fleet.island import RemoteCall

_PATIENCE = 120.0                                                       # s until a cluster must answer


@dataclass
class LocalCluster:
    """`pid` leads the session of all processes of the cluster; `folder` holds its sockets and the jobs' logs."""

    address: str
    pid: int
    devices: int
    folder: str
    version: str


class FleetError(FourfoldError):
    """The cluster did not come up, or is gone."""

    exit_code = 6


def _ray() -> None:
    """Raises InputError where Ray is not installed."""
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise InputError("A fleet runs on Ray, which is not installed.", "Install it: pip install 'fourfold[fleet]'")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")                  # of a cluster that listens on this host alone
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")               # no telemetry


def state_file() -> Path:
    """Where the running fleet is written down: $FOURFOLD_FLEET, else in the user's state folder."""
    if given := os.environ.get("FOURFOLD_FLEET"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fourfold" / "fleet.json"


def known() -> LocalCluster:
    """The fleet that is up. Raises FleetError where there is none, or its process is gone."""
    path = state_file()
    try:
        found = LocalCluster(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        raise FleetError("No fleet is up.", "Start one: fourfold fleet up --devices 4") from None
    if not _lives(found.pid):
        raise FleetError(f"The fleet at {found.address} is gone: its process {found.pid} does not live.",
                         "Clean up after it: fourfold fleet down, then start one: fourfold fleet up")
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if Path("/proc").is_dir() else True
    except OSError:
        return False


def up(devices: int, weights: dict[str, float]) -> LocalCluster:
    """Start a cluster of `devices` places on this host, and its island. Raises FleetError where one is up, or it does not come up."""
    _ray()
    import ray

    path = state_file()
    if path.is_file():
        with contextlib.suppress(FleetError):
            there = known()
            raise InputError(f"A fleet of {there.devices} places is up at {there.address}.", "Use it, or take it down: fourfold fleet down")
        _remove(path)
    folder = Path(tempfile.mkdtemp(prefix="ffleet-"))                   # short: paths of Unix sockets may have 107 bytes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
             f"--num-cpus={devices}", "--include-dashboard=false", f"--temp-dir={folder / 'r'}", "--object-store-memory=200000000",
             "--disable-usage-stats"]
    paths = os.pathsep.join(part for part in sys.path if part)          # the executors import this package, wherever it lies
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                                   env={**os.environ, "PYTHONPATH": paths})
    made = LocalCluster(f"127.0.0.1:{port}", process.pid, devices, str(folder), ray.__version__)
    try:
        _await(made, process)
        with connected(made, fresh=True):
            from fourfold.runtime.fleet.island import ISLAND, Island

            remote = ray.remote(Island)
            handle = remote.options(name=ISLAND, lifetime="detached", num_cpus=0, max_concurrency=8, max_restarts=0).remote(devices, weights)
            ray.get(handle.status.remote(), timeout=_PATIENCE)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(asdict(made)), "utf-8")
        aside.replace(path)
    except BaseException:
        _end(made)
        raise
    return made


def _await(made: LocalCluster, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _PATIENCE
    host, _, port = made.address.rpartition(":")
    while time.monotonic() < until:
        if process.poll() is not None:
            last = (Path(made.folder) / "ray.log").read_text("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise FleetError(f"Ray ended with status {process.returncode}: {last[0][:150]}", "See what stands in its way, and try again.")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 0.2):
            return
        time.sleep(0.05)
    raise FleetError(f"Ray did not answer at {made.address} within {_PATIENCE:.0f} s.", "The machine may be too busy: try again.")


class connected:  # noqa: N801 — read as a clause: with connected(cluster)
    """This process as a client of the cluster, while the clause lasts. Raises FleetError for another version of Ray, or where nobody answers."""

    def __init__(self, cluster: LocalCluster, fresh: bool = False) -> None:
        self.cluster, self.fresh = cluster, fresh

    def __enter__(self) -> LocalCluster:
        _ray()
        import logging

        import ray

        if ray.__version__ != self.cluster.version:
            raise FleetError(f"This is Ray {ray.__version__}, the cluster at {self.cluster.address} runs {self.cluster.version}.",
                             "Use the same environment for both, or take the fleet down and start it anew.")
        from fourfold.runtime.fleet.island import NAMESPACE

        until = time.monotonic() + (_PATIENCE if self.fresh else 20.0)
        while True:
            try:
                ray.init(address=self.cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
                return self.cluster
            except Exception as error:  # noqa: BLE001 — Ray raises many kinds while its head comes up
                with contextlib.suppress(Exception):
                    ray.shutdown()
                if time.monotonic() > until:
                    raise FleetError(f"The cluster at {self.cluster.address} does not answer: {' '.join(str(error).split())[:120]}",
                                     "See `fourfold fleet status`, or take it down: fourfold fleet down") from None
                time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()


def asked(method: str, *args: object) -> object:
    """What the island of the fleet that is up answers. Raises FleetError, and InputError as the island does."""
    with connected(known()):
        import ray
        from ray.exceptions import RayError, RayTaskError

        from fourfold.runtime.fleet.island import ISLAND

        try:
            handle = ray.get_actor(ISLAND)
            return ray.get(cast("RemoteCall", getattr(handle, method)).remote(*args), timeout=60)
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, FourfoldError) else FleetError(f"The island failed: {str(error)[:150]}", "Take it down, start anew.") \
                from None
        except (ValueError, RayError):
            raise FleetError("The fleet's island is gone.", "Take the fleet down, and start it anew: fourfold fleet down") from None


def down() -> LocalCluster:
    """End the fleet that was started here, and nothing else. Raises FleetError where none is known."""
    path = state_file()
    try:
        found = LocalCluster(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        raise FleetError("No fleet is up.", "There is nothing to take down.") from None
    if _lives(found.pid):
        with contextlib.suppress(FourfoldError):
            asked("close")
    _end(found)
    _remove(path)
    return found


def _end(cluster: LocalCluster) -> None:
    """End the cluster's leader, all that descends from it, and all of its session; then its folder goes."""
    import psutil

    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(cluster.pid).children(recursive=True)
    for one in psutil.process_iter():                                   # what was left by a parent that died
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(one.pid) == cluster.pid or cluster.folder in " ".join(one.cmdline()):
                family.append(one)
    with contextlib.suppress(ProcessLookupError):
        os.kill(cluster.pid, signal.SIGTERM)
    gone, left = psutil.wait_procs(family, timeout=5)
    for one in left:
        with contextlib.suppress(psutil.Error):
            one.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(cluster.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(cluster.pid, os.WNOHANG)
    keep = [Path(cluster.folder) / "r", Path(cluster.folder) / "ray.log"]
    for part in keep:                                                   # the jobs' logs stay where the user was told
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        Path(cluster.folder).rmdir()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
