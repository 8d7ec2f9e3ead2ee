"""What is asked: a model, its data, a quality floor, what to make cheap, how long to search. Frozen plain data; importing it loads nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fourfold.errors import InputError

OBJECTIVES = ("energy", "latency", "memory")
_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0}


@dataclass(frozen=True)
class Workload:
    """One job. `model` and `data` are references as the user gave them, in words (a path, an entry point, "Module Net"); `floor` is relative quality
    (0.97 keeps 97 % of the original's); `budget` seconds of search; `runs` how many examples it will serve (None: unknown), for the break-even.
    """

    model: str
    data: str
    floor: float
    objective: str = "energy"
    budget: float = 600.0
    seed: int = 0
    runs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "floor", fraction(self.floor))
        object.__setattr__(self, "budget", seconds(self.budget))
        if self.objective not in OBJECTIVES:
            raise InputError(f"Cannot optimise for {self.objective!r}.", f"Choose one of: {', '.join(OBJECTIVES)}.")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Workload:
        return cls(**data)


def fraction(text: str | float) -> float:
    """A floor as a fraction of the original's quality: "97%", "97 %", "97", "0.97" and 0.97 are the same.

    A bare number above 10 is read as per cent; between 1 and 10 it is refused, since "1.2" is likelier a slip than 1.2 %.
    Raises InputError outside 0 < floor <= 1.
    """
    found = re.fullmatch(r"([+-]?(?:\d+(?:[.,]\d+)?|[.,]\d+)(?:e-?\d+)?)\s*(%?)", str(text).strip())
    if not found:
        raise InputError(f"The floor {text!r} is not a share of the original's quality.", "Write it as 97%, 97 or 0.97.")
    value = float(found[1].replace(",", "."))
    value = value / 100 if found[2] or value > 10 else value
    if not 0 < value <= 1:
        raise InputError(f"The floor {text} is {value * 100:g} % of the original's quality; it must be above 0 % and at most 100 %.", "Try 97%.")
    return value


def seconds(text: str | float) -> float:
    """A duration: "10min", "90s", "1h 30min", "1.5h"; a bare number is seconds. Raises InputError where it is not positive and finite."""
    words = str(text).strip().lower()
    parts = re.findall(r"([0-9.]+)\s*([a-z]*?)s?(?=[\s0-9]|$)", words)
    whole = re.fullmatch(r"(\s*[0-9.]+\s*[a-z]*\s*)+", words)
    try:
        if not whole or len(parts) > 1 and not all(unit for _, unit in parts):
            raise ValueError(words)
        value = sum(float(number) * _SECONDS[unit or "s"] for number, unit in parts)
    except (ValueError, KeyError):
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise InputError(f"The budget {text!r} is not a duration.", "Give one such as 90s, 10min or 1h.")
    return value
