"""Ninety per cent intervals and log-standard deviations: from one to the other, and by source."""

from __future__ import annotations

import math

from fourfold.errors import InputError
from fourfold.units.figure import QuantityLike

Z90 = 1.6448536269514722                                              # half-width of a 90 % interval in standard deviations


def cancelled(mine: float, theirs: float) -> float:
    """Their sum; exactly 0 where only rounding is left of it."""
    left = mine + theirs
    return left if abs(left) > 1e-12 * max(abs(mine), abs(theirs)) else 0.0


def exact(part: QuantityLike) -> bool:
    """Whether it has neither an error nor an interval."""
    return not part.errors and part.low == part.high


def crosses(part: QuantityLike) -> bool:
    """Whether its interval holds zero: then no log-standard deviation says how wide it is."""
    low, high = part.bounds
    return low < high and not (0 < low or high < 0)


def width(part: QuantityLike) -> float:
    """Its log-standard deviation; 0 where it has none."""
    return 0.0 if crosses(part) else math.sqrt(sum(size * size for size in part.errors.values()))


def deviations(part: QuantityLike) -> dict[str, float]:
    """Standard deviations by source, in the part's unit."""
    low, high = part.bounds
    if part.value == 0:
        return {part._name(): (high - low) / (2 * Z90)} if high > low else {}
    return {name: part.value * size for name, size in part.errors.items()}


def edge(value: float, sigma: float) -> float:
    """One end of the 90 % interval of a log-normal figure; signed sigma picks the end, for negative values too."""
    try:
        return value * math.exp(Z90 * (sigma if value >= 0 else -sigma)) if sigma else value
    except OverflowError:
        raise InputError(f"An error of {abs(sigma):g} (log-standard deviation) has no finite interval.",
                         "Errors are relative: 0.1 is about 10 %.") from None
