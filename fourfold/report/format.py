"""Numbers as a reader reads them: "98.1 % [97.2, 99.0]", "22.7 M", "about 3 min"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourfold.report.schema import Ends, Joules, SettingRow


def percent(value: float | None, sign: bool = True, digits: int | None = None) -> str:
    """A fraction in per cent: 0.981 → "98.1 %", 0.0043 → "0.43 %", 0.97 → "97 %"; None → "–". `digits` fixes the decimals."""
    if value is None:
        return "–"
    scaled = value * 100
    if digits is None:
        digits = 0 if abs(scaled) >= 999.5 or abs(scaled - round(scaled)) < 1e-9 else _digits(scaled)
    text = f"{scaled:,.{digits}f}"
    return f"{text} %" if sign else text


def _digits(scaled: float) -> int:
    """Decimals that show about three figures of a percentage."""
    return 1 if abs(scaled) >= 0.995 else 2 if abs(scaled) >= 0.0995 else 3


def interval(figure: Ends | None, sign: bool = True) -> str:
    """A relative figure with its interval, in per cent: "98.1 % [97.2, 99.0]"."""
    if figure is None:
        return "–"
    digits = _digits(figure["value"] * 100)
    low, high = (percent(figure[end], False, digits) for end in ("low", "high"))
    ends = "" if figure["low"] is None and figure["high"] is None else f" [{low}, {high}]"
    return percent(figure["value"], sign, digits) + ends


def absolute(figure: Ends | None) -> str:
    """A metric in its own unit with its interval: "0.853 [0.840, 0.866]"."""
    if figure is None:
        return "–"
    digits = 1 if abs(figure["value"]) >= 100 else 2 if abs(figure["value"]) >= 10 else 3
    ends = "" if figure["low"] is None or figure["high"] is None else f" [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"
    return f"{figure['value']:.{digits}f}{ends}"


def times(factor: float | None) -> str:
    """How many times: 16.2 → "16×", 2.13 → "2.1×"."""
    return "–" if factor is None else f"{factor:,.0f}×" if factor >= 19.95 else f"{factor:.1f}×" if factor >= 1.995 else f"{factor:.2f}×"


def chain(factors: Sequence[float], total: float) -> tuple[list[str], str]:
    """Factors and their product in as few digits as let the printed factors multiply to the printed product: (["2.13×", "3.29×"], "7.0×")."""
    whole = times(total)
    for digits in range(2, 14):
        shown = [times(f) if digits == 2 else f"{f:,.{max(0, digits - 1 - math.floor(math.log10(f)))}f}×" if f > 0 else times(f) for f in factors]
        if times(math.prod(float(text.removesuffix("×").replace(",", "")) for text in shown)) == whole:
            return shown, whole
    return shown, whole


def factor(figure: Ends | None, shown: str | None = None) -> str:
    """How many times less, with its interval: "15× [13, 17]"; `shown` stands for the value where it has been put in words already."""
    if figure is None:
        return "–"
    ends = "" if figure["low"] is None or figure["high"] is None or figure["low"] == figure["high"] else f" {span_of(figure)}"
    return (shown or times(figure["value"])) + ends


def span_of(figure: Ends) -> str:
    """The interval of a factor alone: "[13, 17]"; three figures where both ends would read alike."""
    low, high = (times(figure[end]).removesuffix("×") for end in ("low", "high"))
    if low == high:
        low, high = (f"{figure[end]:.4g}" for end in ("low", "high"))
    return f"[{low}, {high}]"


def grams(figure: Ends | None) -> str:
    """CO2e in the unit it deserves: "8.52 mg CO2e", "1.2 kg CO2e"."""
    return "–" if figure is None else mass(figure["value"])


def mass(value: float) -> str:
    """Grams of CO2e: 1200.0 → "1.2 kg CO2e"."""
    for size, unit in ((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit} CO2e"
    return f"{value / 1e-6:.3g} µg CO2e"


def count(value: float | None) -> str:
    """A count in a few digits: 22_713_216 → "22.7 M"."""
    if value is None:
        return "–"
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            scaled = value / (1e3 if size == 1e4 else size)
            return f"{scaled:.{0 if scaled >= 99.5 else 1}f}{letter}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in decimal units: 90_800_000 → "90.8 MB"."""
    if value is None:
        return "–"
    return f"{count(value)}B" if value >= 1e4 else f"{value:.0f} B"


def span(value: float | None) -> str:
    """A duration: 0.0123 → "12 ms", 42 → "42 s", 190 → "3 min 10 s"."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1e6:.0f} µs" if value < 1e-3 else f"{value * 1e3:.3g} ms"
    if value < 100:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if rest else f"{minutes} min"


def joules(value: float) -> str:
    """Joules in the unit they deserve: 41.2 → "41.2 J", 7.2e6 → "2 kWh"."""
    scale, unit = (3.6e6, "kWh") if value >= 3.6e6 else (1e3, "kJ") if value >= 1e3 else (1.0, "J") if value >= 0.1 else (1e-3, "mJ")
    return f"{value / scale:.3g} {unit}"


def energy(figure: Joules | None) -> str:
    """Joules with their grade: "41.2 J (modelled)"."""
    return "not measured" if figure is None else f"{joules(figure['value'])} ({figure['grade']})"


def setting(row: SettingRow | None) -> str:
    """A configuration in words: "openvino bf16, 1 thread, batch 32, bucketed"."""
    if row is None:
        return "–"
    threads = f"{row['threads']} thread{'s' if row['threads'] != 1 else ''}"
    return f"{row['engine']} {row['precision']}, {threads}, batch {row['batch']}{', bucketed' if row['bucketing'] else ''}"


def sentence(text: str) -> str:
    """With a capital at its beginning and a full stop at its end, unless it ends in one or in a command."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "/")) or "fourfold " in text else text + "."


def clip(text: str, width: int) -> str:
    """At most `width` characters, the end kept (a path's end says most): "…/reviews.csv"."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def clip_end(text: str, width: int) -> str:
    """At most `width` characters, the beginning kept: "3 of 6 blocks, 24 of 72 h…"."""
    return text if len(text) <= width else text[: width - 1] + "…"


def roughly(value: float) -> str:
    """A forecast, no finer than it deserves: 7 → "a few seconds", 130 → "about 2 min"."""
    if value < 8:
        return "a few seconds"
    if value < 90:
        return f"about {round(value, -1):.0f} s"
    return f"about {value / 60:.0f} min" if value < 5400 else f"about {value / 3600:.1f} h"
