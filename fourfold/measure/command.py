"""Run a command and tell what it took, without standing in its way: its streams, exit code and signals are its own.

The command runs as a child; what it starts, and what that starts, is counted while it lives, whether or not anybody waits for it. What this process
itself uses is not charged to it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.measure.meter import LEDGER, OUTER, _new_id, _site, _stated, _write, known
from fourfold.measure.process_tree import Tree
from fourfold.measure.sampler import Station
from fourfold.measure.use import Use

_PASSED = [signal.Signals(number) for number in (
    getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT")) if number]
_RESET = [signal.Signals(number) for number in (getattr(signal, name, None) for name in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGQUIT")) if number]
_SUBREAPER = 36                                                        # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def run(command: Sequence[str], *, site: object = None, ledger: Path | str | bool | None = True, hz: float = 10.0, name: str = "",
        reserve: float | None = None, model: bool = True, meters: Sequence[object] | None = None,
        environment: Mapping[str, str] | None = None) -> Use:
    """Run `command` and return what it used; `code` in it is its exit code (128 + N where signal N ended it).

    `environment` replaces this process's. Raises InputError for an unknown site, impossible options and a command that is not there
    (exit_code 127) or cannot be run (126).
    """
    if not command:
        raise InputError("There is no command to run.", "Write it after two hyphens: fourfold meter -- python train.py")
    if not 0 < hz <= 1000:
        raise InputError(f"hz is {hz!r}.", "Expected more than 0, at most 1000 samples a second.")
    place, id = _site(site), _new_id()
    _adopt_orphans()
    body = Tree(itself=False)
    station = Station(known() if meters is None else meters, body=body, threaded=False)
    began = time.process_time()
    window = station.enter(name, id, None, hz)
    path = LEDGER if ledger is True else Path(ledger) if ledger else None
    with _waiting() as waited:                                          # until the row is written, so that no second Ctrl-C costs it
        child = _spawn(command, {**(os.environ if environment is None else environment), OUTER: id})
        code = _through(child, waited, station, station.rate)
        readings = [*station.leave(window), _stated(reserve, model), *([{"kind": "site", **place}] if place else [])]
        readings[0]["sampler_cpu_s"] = time.process_time() - began
        use = Use(readings, name, id, os.environ.get(OUTER), {}, list(command), code, place)
        if path is not None:
            _write(path, use)
    return use


def _through(child: int, waited: Callable[[float], Iterator[tuple[int, bool]]], station: Station, hz: float) -> int:
    """The child's exit code, with samples taken while it runs and signals handed on."""
    station.sample()
    pause = min(0.002, 1.0 / hz)                                        # often at first: a short command has no second chance
    while True:
        for number, from_terminal in waited(pause):
            if not from_terminal and number != getattr(signal, "SIGCHLD", None):
                _send(child, number)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        station.sample()
        pause = min(1.5 * pause, 1.0 / hz)


def _spawn(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start the command with our streams, the signals as a shell would leave them, and nothing else of ours."""
    try:
        return os.posix_spawnp(command[0], list(command), dict(environment), setsigmask=[], setsigdef=_RESET)
    except FileNotFoundError:
        error = InputError(f"There is no command {command[0]!r}.", "Give its path, or a name on PATH, after the two hyphens.")
        error.exit_code = 127
    except OSError as found:
        error = InputError(f"{command[0]!r} cannot be run: {found.strerror}.", "Is it executable, and a program of this machine's kind?")
        error.exit_code = 126
    raise error


def _send(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:
        pass


@contextmanager
def _waiting() -> Iterator[Any]:
    """Something that waits for so many seconds, or until a child ends, and yields the signals that came: (number, whether the terminal sent it).

    A signal that the terminal sent (Ctrl-C) reached the child too, for both are in the foreground; one sent to this process alone is handed on.
    """
    if not hasattr(signal, "sigtimedwait"):
        yield from _handled()
        return
    waited = {*_PASSED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)

    def wait(seconds: float) -> Iterator[tuple[int, bool]]:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            got = signal.sigtimedwait(waited, left)
            if got is None:
                return
            yield got.si_signo, got.si_code > 0
            if got.si_signo == signal.SIGCHLD:
                return

    try:
        yield wait
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handled() -> Iterator[object]:
    """The same where there is no sigtimedwait (macOS): handlers cannot tell who sent a signal, so those a terminal sends are not handed on."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def wait(seconds: float) -> Iterator[tuple[int, bool]]:
        time.sleep(min(seconds, 0.05))
        while came:
            number = came.pop(0)
            yield number, number == signal.SIGINT

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _adopt_orphans() -> None:
    """Ask Linux that grandchildren whose parents die become our children, so that they are still counted (prctl(2))."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
