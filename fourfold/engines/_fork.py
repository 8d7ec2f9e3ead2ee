"""A fork waits for what is at work: libraries' own locks, held by a thread that the child does not have, would never be released there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 30.0  # seconds after which a fork no longer waits


class Works:
    """Counts the threads that are inside an engine, and keeps new ones out while the process forks."""

    def __init__(self) -> None:
        self.fresh()

    def fresh(self) -> None:
        """As in a new process: nobody is at work."""
        self.changed = threading.Condition()
        self.running, self.forking = 0, False
        self.mine = threading.local()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A piece of work; pieces inside pieces of one thread count once."""
        depth = getattr(self.mine, "depth", 0)
        if depth == 0:
            with self.changed:
                while self.forking:
                    self.changed.wait()
                self.running += 1
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
        """Wait until no other thread is at work; keep the lock, so that none begins."""
        own = 1 if getattr(self.mine, "depth", 0) else 0
        self.changed.acquire()
        self.forking = True
        end = time.monotonic() + PATIENCE
        while self.running > own and time.monotonic() < end:
            self.changed.wait(max(0.0, end - time.monotonic()))

    def after(self) -> None:
        """In the parent: go on."""
        self.forking = False
        self.changed.notify_all()
        self.changed.release()


works = Works()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=works.before, after_in_parent=works.after, after_in_child=works.fresh)
