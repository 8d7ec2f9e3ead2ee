"""Joules and grams of the server, from the meter of this machine: windows of some seconds, one after another, over the front and its workers.

A request is charged its CPU seconds (its share of its batches) at the joules per CPU second that the last windows measured; idle power belongs to
nobody's request and stands in the totals alone.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourfold.measure.use import Use

WINDOW = 10.0                                                          # seconds


@dataclass(frozen=True)
class EnergyTotals:
    """Since the start: joules with idle power, CPU seconds, grams of CO2e (None without a site); joules per CPU second of work; the weakest grade."""

    joules: float = 0.0
    cpu: float = 0.0
    grams: float | None = None
    per_cpu: float = 0.0
    grade: str = "modelled"


class EnergyAccount:
    """Keeps the totals in a thread of its own. `site`: where the machine stands; `ledger`: file that every window is written down in, or None."""

    def __init__(self, site: str | None = None, ledger: Path | None = None, window: float = WINDOW) -> None:
        self.site, self.ledger, self.window = site, ledger, window
        self.totals = EnergyTotals(per_cpu=_stated())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def start(self) -> None:
        """Begin to measure. Raises InputError for an unknown site."""
        from fourfold.measure.meter import Meter

        self._meter = Meter("fourfold serve", site=self.site, unit="request", hz=1.0)
        self._meter.start()
        self._thread.start()

    def _run(self) -> None:
        while True:
            done = self._stop.wait(self.window)
            self._add(self._meter.stop())
            if done:
                return
            self._meter.start()

    def _add(self, use: Use) -> None:
        now = self.totals
        total, work, cpu, co2e = use.total, use.energy.get("cpu_dynamic"), use.cpu or 0.0, use.co2e
        joules = total.value if total is not None else 0.0
        grams = (now.grams or 0.0) + co2e.value if co2e is not None else now.grams
        per = work.value / cpu if work is not None and cpu > 0.01 else now.per_cpu
        self.totals = EnergyTotals(now.joules + joules, now.cpu + cpu, grams, per, total.grade if total is not None else now.grade)
        self._ratio = co2e.value / joules if co2e is not None and joules > 0 else self._ratio

    _ratio: float | None = None

    def charge(self, cpu: float) -> tuple[float, float | None]:
        """(joules, grams of CO2e or None without a site) of so many CPU seconds of work."""
        joules = cpu * self.totals.per_cpu
        return joules, None if self._ratio is None else joules * self._ratio

    def stop(self) -> EnergyTotals:
        """End the last window; the totals."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        return self.totals


def _stated() -> float:
    """Joules per CPU second of work as the machine's stated power has it: what is charged until a window was measured."""
    from fourfold.host import here, power

    row = power(here())
    return max(0.0, row.busy.value - row.idle.value)
