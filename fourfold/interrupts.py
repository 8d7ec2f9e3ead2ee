"""Ctrl-C while a result is being made: the first is heard, the second stops."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


class Interrupts:
    """`with Interrupts(told) as interrupts:` calls `told` at the first Ctrl-C, and raises KeyboardInterrupt at the second.

    While `at_once` holds, the first raises too, after `told`. `times`: how often it came. Only the main thread hears signals; one that was ignored
    before (`nohup … &`) stays so.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self.told, self.at_once, self.times = told, False, 0
        self._before: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Interrupts:
        try:
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self._before = signal.signal(signal.SIGINT, self._heard)
        except ValueError:                                              # not the main thread: its signals are another's to catch
            pass
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _heard(self, number: int, frame: object) -> None:
        self.times += 1
        if self.times > 1:
            raise KeyboardInterrupt
        self.told()
        if self.at_once:
            raise KeyboardInterrupt
