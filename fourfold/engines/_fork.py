"""A fork waits for what is at work: libraries' own locks, held by a thread that the child does not have, would never be released there.

A call of an engine returns before the engine's own threads (TBB's of OpenVINO, OpenMP's) have gone back to sleep, and on their way they take locks.
A fork waits for those too.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PATIENCE = 30.0  # seconds after which a fork no longer waits for calls of engines
SETTLING = 2.0  # seconds after which it no longer waits for threads of theirs: somebody else's may never sleep
RUNS = (b"R", b"D")  # proc(5): running or runnable; in a wait that nothing interrupts, which ends by itself
LOOKS, APART = 2, 0.002  # times in a row, and seconds from one to the next, that all of them must be seen asleep


class Works:
    """Counts the threads that are inside an engine, and keeps new ones out while the process forks."""

    def __init__(self) -> None:
        self.fresh()

    def fresh(self) -> None:
        """As in a new process: nobody is at work."""
        self.changed = threading.Condition()
        self.running, self.forking, self.worked = 0, False, False
        self.mine = threading.local()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A piece of work; pieces inside pieces of one thread count once."""
        depth = getattr(self.mine, "depth", 0)
        if depth == 0:
            with self.changed:
                while self.forking:
                    self.changed.wait()
                self.running, self.worked = self.running + 1, True
        self.mine.depth = depth + 1
        try:
            yield
        finally:
            self.mine.depth = depth
            if depth == 0:
                with self.changed:
                    self.running -= 1
                    self.changed.notify_all()

    def before(self) -> None:
        """Wait until no other thread is at work, nor any that an engine started; keep the lock, so that none begins."""
        own = 1 if getattr(self.mine, "depth", 0) else 0
        self.changed.acquire()
        self.forking = True
        end = time.monotonic() + PATIENCE
        while self.running > own and time.monotonic() < end:
            self.changed.wait(max(0.0, end - time.monotonic()))
        if self.worked:
            settle()

    def after(self) -> None:
        """In the parent: go on."""
        self.forking = False
        self.changed.notify_all()
        self.changed.release()


def settle(seconds: float = SETTLING) -> bool:
    """Wait until the threads that Python did not start are asleep; whether they are. Only Linux tells: elsewhere True at once."""
    end, quiet = time.monotonic() + seconds, 0
    while quiet < LOOKS:
        quiet = quiet + 1 if not awake() else 0
        if quiet < LOOKS:
            if time.monotonic() > end:
                return False
            time.sleep(APART)
    return True


def awake() -> list[int]:
    """Ids of threads of this process that Python did not start and that run, or wait for a processor; [] where the system does not tell."""
    known = {thread.native_id for thread in threading.enumerate()} | {threading.get_native_id()}
    found = []
    try:
        for name in os.listdir("/proc/self/task"):
            if int(name) in known:
                continue
            with suppress(OSError), open(f"/proc/self/task/{name}/stat", "rb") as file:  # it may end meanwhile
                if file.read().rpartition(b")")[2].split()[0] in RUNS:
                    found.append(int(name))
    except OSError:
        return []
    return found


works = Works()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=works.before, after_in_parent=works.after, after_in_child=works.fresh)
