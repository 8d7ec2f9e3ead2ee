"""One host, several processes: one of them reports the host's joules, so that a sum over ranks counts them once. Held by a file lock."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:                                                    # not on Windows: there every process reports its own share only
    fcntl = None


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

    Several stations of the process may hold it at once. The kernel frees it when the process ends, however it ends.
    """

    def __init__(self, path: Callable[[], Path] = usual) -> None:
        self._path = path
        self._held: list[int] = []                                     # the open file, once for each station that relies on it
        _all.add(self)

    def take(self) -> bool:
        """Become the process that reports, unless another is. Where no lock can be had at all, every process reports."""
        if self._held:
            self._held.append(self._held[0])
            return True
        file = self._open() if fcntl is not None else None
        if fcntl is None or file is None:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._held.append(file)
        return True

    def give(self) -> None:
        """One station less relies on it."""
        if not self._held:
            return
        file = self._held.pop()
        if not self._held:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_UN)                       # a child between fork and exec may hold the file open a moment longer
            os.close(file)

    def forked(self) -> None:
        """In a forked child: the lock is the parent's. (The open file is shared, so closing this copy frees nothing.)"""
        for file in set(self._held):
            os.close(file)
        self._held.clear()

    def _open(self) -> int | None:
        for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):            # another user's file can be locked without being written
            try:
                return os.open(self._path(), flags | os.O_CLOEXEC, 0o666)
            except OSError:
                continue
        return None


_all: weakref.WeakSet[HostLock] = weakref.WeakSet()
HOST = HostLock()                                                         # of the computer that this process runs on


def forked() -> None:
    """In a forked child: no claim is its own."""
    for claim in list(_all):
        claim.forked()
