"""What a metered window used, and how that prints: a component a line, each with its grade and interval, and the reasons for what is missing."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fourfold.measure.recompute import Charge, recompute
from fourfold.units import Quantity

_WIDEST = 70                                                           # letters of a command that are shown
_TITLES = {"cpu_dynamic": "processor, work", "cpu_idle": "processor, idle", "memory": "memory", "disk": "disk", "gpu": "GPU"}
guard = threading.Lock()                                               # held while a station is made or something may be imported: forks wait


@dataclass
class Use:
    """What a window used. `readings` are the raw counters at both ends and the stated model; figures follow from them (`recompute`) when asked.

    `wall` and `cpu` are seconds; `energy` maps cpu_dynamic, cpu_idle, memory, disk and gpu to joules or None; `why` says why not, and why a meter
    was not used; `host` is the whole host's measured energy. `parent` is the run that this one lies inside of: totals count only outermost runs.
    """

    readings: list[dict[str, object]]
    name: str = ""
    id: str = ""
    parent: str | None = None
    work: dict[str, float] = field(default_factory=dict)
    command: list[str] | None = None
    code: int | None = None
    site: dict[str, object] | None = None
    failed: str = ""
    _charge: Charge | None = field(default=None, repr=False, compare=False)

    @property
    def charge(self) -> Charge:
        """All figures at once."""
        if self._charge is None:
            with guard:                                                # forks wait, for the first time imports
                self._charge = recompute(self.readings)
        return self._charge

    @property
    def window(self) -> dict[str, Any]:
        """The reading of the clocks."""
        return next(row for row in self.readings if row["kind"] == "window")

    @property
    def wall(self) -> float:
        """Seconds by the monotonic clock, sleep of the computer left out."""
        return self.window["wall_s"]

    @property
    def cpu(self) -> float | None:
        """CPU seconds of the process and its children (of all threads), or None where they could not be read."""
        return self.charge.cpu.value if self.charge.cpu else None

    @property
    def cpu_time(self) -> Quantity | None:
        """The same with grade and interval."""
        return self.charge.cpu

    @property
    def energy(self) -> dict[str, Quantity | None]:
        """Joules by component, boundary "process"."""
        return self.charge.energy

    @property
    def why(self) -> dict[str, str]:
        """Component or meter → why there is no figure, or why it was not used."""
        return self.charge.why

    @property
    def host(self) -> Quantity | None:
        """Joules of the whole host as its meter read them, whoever caused them; None where there is no meter, or another process reports them."""
        return self.charge.host

    @property
    def total(self) -> Quantity | None:
        """The sum of the components that are known; J, boundary "process"."""
        return self.charge.total

    @property
    def co2e(self) -> Quantity | None:
        """gCO2e of the total, the hall's overhead included; None without a site."""
        return self.charge.co2e

    @property
    def cost(self) -> Quantity | None:
        """USD of the total, the hall's overhead included; None without a site or where no price is known."""
        return self.charge.cost

    @property
    def notes(self) -> list[str]:
        """What a reader should know: overlaps, clock steps, sleep, gaps."""
        return [*self.charge.notes, *([f"The work failed: {self.failed}."] if self.failed else [])]

    def each(self) -> Quantity | None:
        """Joules for one unit of work; None without a total or without work counted."""
        done = sum(self.work.values())
        return self.total / done if self.total is not None and done > 0 else None

    def row(self) -> dict[str, object]:
        """The run as a ledger row: plain data."""
        from fourfold.host import here

        window, figures = self.window, self.charge.to_json()
        return {"kind": "run", "run": self.id, "parent": self.parent, "name": self.name, "command": self.command, "exit_code": self.code,
                "place": self.site["id"] if self.site else None, "start_utc": _iso(window["start_utc"]), "end_utc": _iso(window["end_utc"]),
                "machine": here().to_json(), "readings": self.readings, **figures, "notes": self.notes, "embodied": None, "site": self.site,
                "work": self.work, "data_hashes": {}}

    def to_json(self) -> dict[str, object]:
        """The same without the machine and the readings."""
        return {name: item for name, item in self.row().items() if name not in ("machine", "readings", "embodied", "data_hashes")}

    def __str__(self) -> str:
        return "\n".join(lines(self))


def lines(use: Use) -> list[str]:
    """The report of a window, a line a figure."""
    title = use.name or " ".join(" ".join(use.command or []).split()) or use.id
    title = title if len(title) <= _WIDEST else title[: _WIDEST - 1] + "…"
    cpu = f"{use.cpu:.3g} s CPU" if use.cpu is not None else "CPU time unknown"
    found = [f"{title}: {use.wall:.3g} s, {cpu}" + (f", exit {use.code}" if use.code is not None else "")]
    for name, title in _TITLES.items():
        found.append(_line(title, use.energy[name], use.why.get(name, "")))
    found.append(_line("total", use.total, use.why.get("total", ""), share=_largest(use)))
    for title, figure, name in (("CO2e", use.co2e, "co2e"), ("cost", use.cost, "cost")):
        found.append(_line(title, figure, use.why.get(name, ""), share=figure.method.split(" + ")[-1] if figure else ""))
    if use.host is not None:
        found.append(_line("whole host", use.host, ""))
    if use.work:
        unit, count = next(iter(use.work.items()))
        found.append(_line(f"each {unit}", use.each(), "no joules", share=f"of {count:g}"))
    return [*found, *(f"  {note}" for note in use.notes)]


def _line(title: str, figure: Quantity | None, why: str, share: str = "") -> str:
    if figure is None:
        return f"  {title:<16} unknown: {why}"
    low, high = figure.bounds
    interval = f" [{low:.3g}, {high:.3g}]" if low < high else ""
    return f"  {title:<16} {figure.value:.4g} {figure.unit}{interval} {figure.grade}{f'; {share}' if share else f'; {figure.method}'}"


def _largest(use: Use) -> str:
    """Which component holds most of the total."""
    known: dict[str, float] = {name: part.value for name, part in use.energy.items() if part is not None}
    if not known or use.total is None or use.total.value <= 0:
        return ""
    name = max(known, key=lambda name: known[name])
    missing = [_TITLES[name] for name in use.energy if use.energy[name] is None and name in use.why and name != "gpu"]
    return f"{known[name] / use.total.value:.0%} is {_TITLES[name]}" + (f"; without {', '.join(missing)}" if missing else "")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
