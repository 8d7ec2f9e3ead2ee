"""A footprint in words and as table rows: every figure with its interval and grade, and why one is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourfold.cost.footprint import Footprint
from fourfold.units import Quantity

_STEPS = {"kWh": ((1e3, "MWh", 1e3), (1e7, "GWh", 1e6)), "gCO2e": ((1e3, "kg CO2e", 1e3), (1e6, "t CO2e", 1e6)), "USD": ()}
_FIGURES = (("energy_it", "energy of the machines", "kWh"), ("energy", "energy of the hall", "kWh"), ("gross", "carbon, gross (location)", "gCO2e"),
            ("net", "carbon, net (market)", "gCO2e"), ("embodied", "carbon, embodied", "gCO2e"), ("total", "carbon, gross + embodied", "gCO2e"),
            ("cost", "electricity", "USD"))


def said(figure: Quantity | None, unit: str, grade: bool = True) -> str:
    """A figure in a readable size: "1,289 MWh [1,167, 1,425] (assumed)"; None → "–"."""
    if figure is None:
        return "–"
    figure = figure.to(unit)
    size, name = 1.0, {"gCO2e": "g CO2e"}.get(unit, unit)
    for least, word, scale in _STEPS.get(unit, ()):
        if abs(figure.value) >= least:
            size, name = scale, word
    low, high = (end / size for end in figure.bounds)
    ends = f" [{number(low)}, {number(high)}]" if low < high else ""
    return f"{number(figure.value / size)} {name}{ends}" + (f" ({figure.grade})" if grade else "")


def number(value: float) -> str:
    """Four figures, with thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def rows(found: Footprint) -> list[dict[str, str]]:
    """One line a figure."""
    shown = [(getattr(found, key), key, words, unit) for key, words, unit in _FIGURES]
    return [{"figure": words, "value": said(figure, unit, grade=False), "grade": figure.grade if figure else "", "from": _from(found, key)}
            for figure, key, words, unit in shown if figure is not None or key in ("gross", "net", "cost", "embodied")]


def overview(found: Sequence[Footprint]) -> list[dict[str, str]]:
    """One line a run, for several."""
    keys = ("energy", "gross", "net", "embodied", "cost")
    shown = [key for key in keys if any(getattr(one, key) is not None for one in found)]
    units = {key: (words.replace("carbon, ", ""), unit) for key, words, unit in _FIGURES}
    return [{"run": one.name, **{units[key][0]: said(getattr(one, key), units[key][1]) for key in shown}} for one in found]


def heading(found: Footprint) -> str:
    """What ran, in a sentence."""
    what = f"{found.chips:,} × {found.chip or 'chip'}" if found.chips else found.chip or "chips"
    if found.chip_hours is None:
        return f"{found.name}: energy metered at the hall"
    time = f"{found.chip_hours.value / (found.chips or 1):,.4g} h" if found.chips else f"{found.chip_hours.value:,.0f} chip-hours"
    watts = f" at {found.watts.value:g} W each" if found.watts else ""
    return f"{found.name}: {what} for {time}{watts}"


def notes(found: Footprint) -> list[str]:
    """What the reader should know: runs paid, warnings."""
    lines = [f"warning: {words}" for words in found.warnings]
    if found.runs_paid > 1:
        paid: Any = found.energy * found.runs_paid
        carbon = f", {said(found.gross * found.runs_paid, 'gCO2e')}" if found.gross else ""
        lines.insert(0, f"All {found.runs_paid:g} runs paid for, search and repeats included: {said(paid, 'kWh')}{carbon}")
    return lines


def _from(found: Footprint, key: str) -> str:
    """The formula of a figure with its inputs, or why it is missing."""
    if getattr(found, key) is None:
        return found.why.get(key, "")
    pue = f"× PUE {found.pue.value:g} ({found.pue.grade})" if found.pue else "as metered"
    words = {
        "energy_it": f"{found.chip_hours.value:,.0f} chip-hours × {found.watts.value:g} W ({found.watts.grade})"
        if found.watts and found.chip_hours else "energy of the hall / PUE",
        "energy": pue,
        "gross": f"× {said(found.intensity, 'gCO2e/kWh')}",
        "net": f"× {said(found.net_intensity, 'gCO2e/kWh')}",
        "embodied": f"{said(found.embodied_rate, 'gCO2e', grade=False)} per chip-hour",
        "total": "known to × or ÷ 3 in its embodied part",
        "cost": f"× {said(found.price, 'USD/kWh')}",
    }
    return words[key]
