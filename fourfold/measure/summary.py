"""What a metered window prints: a component a line, each with its grade and interval, and the reasons for what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourfold.measure.meter import Use
    from fourfold.units import Quantity

_WIDEST = 70                                                           # letters of a command that are shown
_TITLES = {"cpu_dynamic": "processor, work", "cpu_idle": "processor, idle", "memory": "memory", "disk": "disk", "gpu": "GPU"}


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
    known: dict[str, Any] = {name: part.value for name, part in use.energy.items() if part is not None}
    if not known or use.total is None or use.total.value <= 0:
        return ""
    name = max(known, key=lambda name: known[name])
    missing = [_TITLES[name] for name in use.energy if use.energy[name] is None and name in use.why and name != "gpu"]
    return f"{known[name] / use.total.value:.0%} is {_TITLES[name]}" + (f"; without {', '.join(missing)}" if missing else "")
