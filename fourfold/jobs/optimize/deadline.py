"""The time that a run may take, and when each of its stages must have ended.

All is wall-clock time, since that is what the user waits: on a half-loaded machine the same seconds hold less work, and every stage does less. A
resumed run has what the killed ones left. Whatever is decided from these clocks goes through `Job.decide`, which journals it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

ENDS = {"baseline": 0.25, "measure": 0.33, "search": 0.73, "contest": 0.90, "prove": 0.97, "ladder": 1.0}
"""Share of the budget after which a stage must have ended. What a stage leaves over goes to those after it."""


class Deadline:
    """`budget` seconds in all, of which earlier runs with the same journal have `spent` some."""

    def __init__(self, budget: float, spent: float = 0.0) -> None:
        self.budget, self.before, self.started, self.over = budget, spent, time.monotonic(), False

    def end(self) -> None:
        """No time is left from now on: every stage to come does the least it may."""
        self.over = True

    def spent(self) -> float:
        """Seconds since the run began, those of killed runs before it included."""
        return self.before + time.monotonic() - self.started

    def left(self) -> float:
        """Seconds until the whole must be done, 0 where that is past."""
        return 0.0 if self.over else max(0.0, self.budget - self.spent())

    def until(self, stage: str) -> float:
        """Seconds until `stage` (a key of `ENDS`) must have ended, 0 where that is past."""
        return 0.0 if self.over else max(0.0, ENDS[stage] * self.budget - self.spent())

    def ends(self, stage: str) -> float:
        """The same moment on `time.monotonic`'s clock."""
        return time.monotonic() if self.over else time.monotonic() + ENDS[stage] * self.budget - self.spent()


def spell(seconds: float) -> str:
    """Seconds as `--budget` takes them: "90s", "10min"."""
    return f"{seconds / 60:.0f}min" if seconds >= 120 and seconds % 60 == 0 else f"{seconds:.0f}s"


def spent_before(events: Iterable[Mapping[str, Any]]) -> float:
    """Wall seconds that finished runs spent, from a journal's events: each from its own beginning to the end of its last line. Lines before any
    beginning count by their own seconds."""
    total, began, last = 0.0, None, 0.0
    for line in events:
        at, seconds = float(line.get("at", 0.0)), float(line.get("seconds", 0.0))
        if line.get("event") in ("started", "resumed"):
            total += last - began if began is not None else 0.0
            began = last = at
        elif began is None:
            total += seconds
        else:
            last = max(last, at + seconds)
    return total + (last - began if began is not None else 0.0)
