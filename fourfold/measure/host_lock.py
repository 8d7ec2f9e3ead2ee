"""One host, several processes: one of them reports the host's joules, so that a sum over ranks counts them once. Held by a file lock."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def usual() -> Path:
    """This host's lock file: in $FOURFOLD_LOCKS or the temporary folder, keyed by the boot: one left before a restart means nothing."""
    import tempfile

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "here"
    return Path(os.environ.get("FOURFOLD_LOCKS", tempfile.gettempdir())) / f"fourfold-{boot}.lock"


class HostLock:
    """The right to report a host's joules, which one process at a time holds; `path` says which file stands for the host.

    Several stations of the process may hold it at once. The system frees it when the process ends, however it ends.
    """

    def __init__(self, path: Callable[[], Path] = usual) -> None:
        self._path = path
        self._lock: BaseFileLock | None = None
        self._users = 0                                                # stations that rely on it
        _all.add(self)

    def take(self) -> bool:
        """Become the process that reports, unless another is. Where no lock can be had at all, every process reports."""
        if self._lock is None:
            from filelock import FileLock, Timeout

            lock = FileLock(self._path(), timeout=0, mode=0o666, thread_local=False)   # other users' processes may try it too
            try:
                lock.acquire()
            except Timeout:
                return False
            except (OSError, NotImplementedError):
                return True
            self._lock = lock
        self._users += 1
        return True

    def give(self) -> None:
        """One station less relies on it."""
        if self._lock is not None:
            self._users -= 1
            if not self._users:
                self._lock.release()
                self._lock = None

    def forked(self) -> None:
        """In a forked child: the lock is the parent's, and stays with it."""
        self._lock, self._users = None, 0


_all: weakref.WeakSet[HostLock] = weakref.WeakSet()
HOST = HostLock()                                                         # of the computer that this process runs on


def forked() -> None:
    """In a forked child: no claim is its own."""
    for claim in list(_all):
        claim.forked()
