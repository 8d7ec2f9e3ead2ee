"""A plan by the clock: exact techniques in a process of their own, which may be ended at any moment, and a quick plan with a bound beside it.

The libraries and kernels that solve a problem exactly look at no clock and hear no Ctrl-C; a process can be ended whatever it does. What has been
found when the time is up is what there is: the better of both schedules, and the prices that prove more.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fourfold.decisions.carbon_aware._choose import _HIGHS, planner
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.decisions.carbon_aware.validate import Certificate, certify
from fourfold.errors import FourfoldError, Infeasible
from fourfold.problem import Budget, Solution, gap, solve

_LIGHT = 500                                                            # columns of an integer programme that is done in a second or so
_LEAST = 5.0                                                            # s: what a first plan of many jobs takes, whatever the budget
_MAIN = "from fourfold.decisions.carbon_aware._apart import main; main()"


def light(problem: Place) -> bool:
    """Whether the exact technique takes a second or so, by the instance's size: then there is nothing to keep a clock for."""
    from fourfold.decisions.carbon_aware.flow import size
    from fourfold.decisions.carbon_aware.milp import variables
    from fourfold.decisions.carbon_aware.successive_shortest_paths import SuccessiveShortestPaths

    return variables(problem) <= _LIGHT if SuccessiveShortestPaths().declines(problem) else size(problem) <= _HIGHS


class Apart:
    """A process that works on one task and sends what it finds, a message at a time: (word, what)."""

    def __init__(self, task: str, *payload: object) -> None:
        paths = os.pathsep.join([entry for entry in sys.path if entry] + [os.getcwd()] * ("" in sys.path))
        self._process = subprocess.Popen([sys.executable, "-c", _MAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                                         env={**os.environ, "PYTHONPATH": paths})   # a session of its own: Ctrl-C is ours to hear
        self._found: queue.Queue[tuple[str, object]] = queue.Queue()
        self.ended = False
        threading.Thread(target=self._talk, args=(pickle.dumps((task, payload)),), daemon=True).start()

    def _talk(self, payload: bytes) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(payload)
            self._process.stdin.close()
            while True:
                self._found.put(pickle.load(self._process.stdout))      # what our own process wrote
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self._found.put(("end", None))

    def take(self, seconds: float) -> tuple[str, Any] | None:
        """The next message, waited for so long; None if there is none."""
        try:
            word, what = self._found.get(timeout=max(0.0, seconds)) if seconds > 0 else self._found.get_nowait()
        except queue.Empty:
            return None
        self.ended = self.ended or word == "end"
        return word, what

    @property
    def waiting(self) -> bool:
        """Whether there is a message."""
        return not self._found.empty()

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()


class _Until(Budget):
    """A budget that also ends when the process beside has something to say."""

    def __init__(self, seconds: float, apart: Apart) -> None:
        super().__init__(seconds)
        self._apart = apart

    @property
    def left(self) -> float:
        return 0.0 if self._apart.waiting else super().left


def within(problem: Place, seconds: float, most: float, seed: int) -> tuple[Solution[JobHours], Certificate]:
    """A checked schedule and its certificate in about `seconds`, or sooner where the exact technique has ended or the `Watch` was told to stop; where
    there is no schedule by then, in `most`.

    Raises Infeasible where that is proved, or nothing was found in time.
    """
    from fourfold.decisions.carbon_aware.lagrangean import Lagrangean

    budget = Budget(max(_LEAST, seconds))
    apart = Apart("solve", problem, budget.seconds, seed)
    quick: Solution[JobHours] | None = None
    exact: Solution[JobHours] | None = None
    proof: Certificate | None = None
    refused: Infeasible | None = None
    try:
        try:
            quick = solve(problem, Lagrangean(_Until(max(_LEAST, most), apart)), _Until(budget.left, apart), seed)
        except Infeasible as none:
            refused = none
        while not apart.ended and budget.left > 0:
            word, what = apart.take(min(0.1, budget.left)) or ("", None)
            if word == "infeasible" and what is not None and quick is None:
                raise Infeasible(*what)
            exact, proof = (what if word == "answer" else exact), (what if word == "certificate" else proof)
            if proof is not None:
                break
    finally:
        apart.close()
    found = min((each for each in (exact, quick) if each is not None), key=lambda each: each.cost, default=None)
    if found is None:
        raise refused or Infeasible("No schedule was found in time.", "Raise the budget.")
    return _proved(problem, found, quick, proof)


def _proved(problem: Place, found: Solution[JobHours], quick: Solution[JobHours] | None,
            proof: Certificate | None) -> tuple[Solution[JobHours], Certificate]:
    """The schedule with the best of the bounds that are proved, and the certificate of that."""
    prices: list[tuple[float, Any, Any, bool]] = [(0.0, np.zeros(len(problem.names)), np.zeros(problem.intensity.shape), True)]
    if quick is not None and "low" in quick.evidence:
        prices.append((quick.evidence["low"], quick.evidence["lam"], quick.evidence["mu"], quick.evidence["loose"]))
    if proof is not None:
        prices.append((proof.bound, proof.lam, proof.mu, proof.loose))
    low, lam, mu, loose = max(prices, key=lambda each: each[0])
    low = min(low, found.cost)
    return replace(found, bound=low, gap=gap(found.cost, low)), certify(problem, found.answer, mu, proof=(lam, low, loose))


def rows(problem: Place, found: Solution[JobHours], more: Callable[[], bool], **options: object) -> Iterator[tuple[str, dict[str, object]]]:
    """(part, row) of the comparators, one by one, while `more` says to go on; parts and options as of `_compare.everything`."""
    apart = Apart("compare", problem, found, options)
    try:
        while not apart.ended and more():
            word, what = apart.take(0.1) or ("", None)
            if word == "row" and what is not None:
                yield what
    finally:
        apart.close()


def main() -> None:
    """The process apart: reads its task from stdin, sends what it finds to stdout, and dies with the one that started it."""
    stdin, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)                                                       # what libraries print is no message
    _die_with_parent()
    task, payload = pickle.load(stdin)

    def tell(word: str, what: object) -> None:
        pickle.dump((word, what), out)
        out.flush()

    try:
        if task == "solve":
            problem, seconds, seed = payload
            began = time.monotonic()
            found = solve(problem, planner(problem), Budget(seconds), seed)
            tell("answer", found)
            if time.monotonic() - began < seconds:
                tell("certificate", certify(problem, found.answer, found.evidence.get("mu")))
        else:
            from fourfold.decisions.carbon_aware._compare import everything

            problem, found, options = payload
            for part, row in everything(problem, found, **options):
                tell("row", (part, row))
    except Infeasible as none:
        tell("infeasible", (none.message, none.mend))
    except FourfoldError as error:
        tell("error", (error.message, error.mend))


def _die_with_parent() -> None:
    """Ask Linux to end this process with the one that started it (prctl(2), PR_SET_PDEATHSIG)."""
    try:
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
