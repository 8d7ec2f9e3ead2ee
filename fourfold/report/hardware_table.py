"""Chips as rows for the terminal: one line a chip, or one line a figure with its grade and source."""

from __future__ import annotations

from fourfold.host import Chip
from fourfold.units import Quantity

_SIXTEEN = ("bf16", "fp16", "fp32")                                    # the first of these that a chip states is its headline peak
_NAMES = {"memory": "memory", "bandwidth": "memory bandwidth", "tdp": "TDP", "system": "measured mean, system per chip",
          "chip": "measured mean, chip alone"}


def overview(chip: Chip) -> dict[str, str]:
    """One line: the 16-bit dense peak (fp32 where there is none), memory, watts. "~" marks what is remembered, not looked up."""
    precision = next((name for name in _SIXTEEN if name in chip.peak), "")
    peak = chip.peak.get(precision)
    return {"chip": chip.name, "year": str(chip.year), "TFLOP/s": f"{_said(peak, 1e12)} {precision}" if peak else "–",
            "memory": f"{_said(chip.memory)} {chip.memory.unit}" if chip.memory else "–",
            "GB/s": _said(chip.bandwidth, 1e9) if chip.bandwidth else "–", "TDP": f"{_said(chip.tdp)} W" if chip.tdp else "–",
            "system": f"{_said(chip.system)} W" if chip.system else "–"}


def figures(chip: Chip) -> list[dict[str, str]]:
    """One line a figure: value with interval, grade, source; and why a figure is missing."""
    found: list[tuple[str, Quantity, float, str]] = []
    for name, words in _NAMES.items():
        figure = getattr(chip, name)
        if figure is not None:
            scale, unit = (1e9, "GB/s") if name == "bandwidth" else (1.0, figure.unit)
            found.append((words, figure, scale, unit))
    for table, words in ((chip.peak, "dense"), (chip.sparse, "sparse")):
        found += [(f"peak {precision}, {words}", figure, 1e12, "TFLOP/s") for precision, figure in table.items()]
    rows = [{"figure": words, "value": _whole(figure, scale, unit), "grade": figure.grade, "source": figure.source}
            for words, figure, scale, unit in found]
    return rows + [{"figure": _NAMES.get(name, name), "value": "–", "grade": "", "source": reason} for name, reason in chip.why.items()]


def _said(figure: Quantity, scale: float = 1.0) -> str:
    return ("~" if figure.grade == "assumed" else "") + f"{figure.value / scale:,.4g}".replace("e+03", "")


def _whole(figure: Quantity, scale: float, unit: str) -> str:
    low, high = (end / scale for end in figure.bounds)
    return f"{figure.value / scale:g} {unit}" + (f" [{low:g}, {high:g}]" if low < high else "")
