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
    """A floor as a fraction of the original's quality: "97%", "97 %", "0.97" and 0.97 are the same. Raises InputError outside 0 < floor <= 1."""
    mend = "Give the share of the original's quality to keep, such as 97% or 0.97."
    words = str(text).strip().replace(" ", "")
    try:
        value = float(words[:-1]) / 100 if words.endswith("%") else float(words)
    except ValueError:
        raise InputError(f"The floor {text!r} is not a number.", mend) from None
    if words.endswith("%") and value > 1 or not words.endswith("%") and 1 < value <= 100:
        guess = f" Did you mean {words}%?" if value >= 10 and not words.endswith("%") else ""
        raise InputError(f"The floor {text} is over {'100 %' if words.endswith('%') else 1}: no cheaper model can be asked to beat the original.",
                         mend + guess)
    if not math.isfinite(value) or not 0 < value <= 1:
        raise InputError(f"The floor {text} is not between 0 and 100 %.", mend)
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
