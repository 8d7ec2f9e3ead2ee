"""What is asked: a model, its data, a quality floor, what to make cheap, how long to search. Frozen plain data; importing it loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fourfold.errors import InputError
from fourfold.units.parse import duration, figure

OBJECTIVES = ("energy", "latency", "memory")


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

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Workload:
        return cls(**data)


def fraction(text: str | float) -> float:
    """A floor as a fraction of the original's quality: "97%", "97 %", "97", "0.97" and 0.97 are the same.

    A bare number above 10 is read as per cent; between 1 and 10 it is refused, since "1.2" is likelier a slip than 1.2 %.
    Raises InputError outside 0 < floor <= 1.
    """
    found = figure(str(text), "share", "The floor", bare="1")
    value = found.number / 100 if not found.unit and found.number > 10 else found.value
    if not 0 < value <= 1:
        raise InputError(f"The floor {text} is {value * 100:g} % of the original's quality; it must be above 0 % and at most 100 %.", "Try 97%.")
    return value


def seconds(text: str | float) -> float:
    """A budget in seconds: "10min", "90s", "1h 30min", "2d"; a bare number is seconds. Raises InputError for no duration and for none above 0."""
    value = duration(text, "The budget")
    if value <= 0:
        raise InputError(f"The budget {text!r} is no time at all.", "Give one such as 90s, 10min or 1h.")
    return value
