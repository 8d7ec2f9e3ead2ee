"""What several threads share of an engine: as many requests (or replicas of a module) as are in use at once, made on demand."""

from __future__ import annotations

import copy
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

#: Most of a kind that are made: each holds the memory of its activations, and more callers than this wait for one another anyway.
MOST = 32


class Pool(Generic[T]):
    """Things of which each serves one caller at a time. `make` is called when all that there are are in use, up to `most` times; then callers wait.

    `shared`: where `make` fails for the first one, this serves all, one caller after another (a module that cannot be copied).
    """

    def __init__(self, make: Callable[[], T], most: int = MOST, shared: T | None = None) -> None:
        self.make, self.most, self.shared = make, most, shared
        self.free: queue.LifoQueue[T] = queue.LifoQueue()
        self.made = 0
        self.growing = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[T]:
        """One of them, nobody else's until the block ends."""
        item = self._taken()
        try:
            yield item
        finally:
            self.free.put(item)

    def clear(self) -> None:
        """Forget those that are not in use."""
        while True:
            try:
                self.free.get_nowait()
            except queue.Empty:
                return

    def _taken(self) -> T:
        try:
            return self.free.get_nowait()
        except queue.Empty:
            pass
        with self.growing:  # held while one is made: two copies of one module at once help nobody
            if self.made < self.most:
                item = self._grown()
                if item is not None:
                    return item
        return self.free.get()

    def _grown(self) -> T | None:
        try:
            item: T | None = self.make()
        except Exception:
            if self.shared is None:
                raise
            item, self.most = (self.shared if self.made == 0 else None), self.made or 1
        self.made += item is not None
        return item


class OneAtATime:
    """A lock that a forked child does not inherit locked: each process has its own. A thread that has it may take it again."""

    def __init__(self) -> None:
        self.locks: dict[int, threading.RLock] = {}

    def __enter__(self) -> None:
        self.locks.setdefault(os.getpid(), threading.RLock()).acquire()  # setdefault is one step for all threads

    def __exit__(self, *_: object) -> None:
        self.locks[os.getpid()].release()

    def __reduce__(self) -> object:
        return OneAtATime, ()


_left: list[object] = []
_forked = False


def leave(thing: object) -> None:
    """Keep what another process opened, for ever and unused: to destroy it would be to wait for threads that only that process has."""
    _left.append(thing)
    if "torch" in sys.modules:  # its worker threads did not come along either, and a parallel region would wait for them
        sys.modules["torch"].set_num_threads(1)


def forked() -> bool:
    """Whether this process is a forked child of one that had loaded this module."""
    return _forked


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class Turns:
    """Many may work together, or one alone: whoever wants to be alone waits for the others, and nobody else begins meanwhile."""

    def __init__(self) -> None:
        self.change = threading.Condition()
        self.working = self.waiting = 0
        self.taken = False

    @contextmanager
    def together(self) -> Iterator[None]:
        with self.change:
            self.change.wait_for(lambda: not self.taken and not self.waiting)
            self.working += 1
        try:
            yield
        finally:
            with self.change:
                self.working -= 1
                self.change.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self.change:
            self.waiting += 1
            self.change.wait_for(lambda: not self.taken and not self.working)
            self.waiting, self.taken = self.waiting - 1, True
        try:
            yield
        finally:
            with self.change:
                self.taken = False
                self.change.notify_all()


def replica(module: nn.Module) -> nn.Module:
    """A copy of the module tree with the same parameters and buffers: what forward leaves in its attributes stays in this copy."""
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, shared)
